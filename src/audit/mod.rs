//! Audits: does a model treat some subgroup worse, in utility, calibration or privacy, and is the difference real?
//!
//! Computes and knows nothing of jobs, names or disks.

pub mod statistics;
