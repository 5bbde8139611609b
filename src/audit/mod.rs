//! Audits: does a model treat some subgroup worse, in utility, calibration or privacy, and is the difference real?
//!
//! Computes and knows nothing of jobs, names or disks. `settings` is what is asked, scoring fills a [`table::Table`],
//! `assess` turns it into a [`report::Report`] with the functions of `statistics`, `render` writes that for people.

pub mod assess;
pub mod measures;
pub mod report;
pub mod settings;
pub mod statistics;
pub mod table;
pub mod uploaded;
