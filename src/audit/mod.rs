//! Audits: does a model treat some subgroup worse, in utility, calibration or privacy, and is the difference real?
//!
//! Computes and knows nothing of jobs, names or disks. `settings` is what is asked, `scoring` asks models and fills a
//! [`table::Table`], `assess` turns it into a [`report::Report`] with the functions of `statistics`, `render` writes that
//! for people, `compare`, `policy`, `seeds` and `utility` read it. `uploaded` is for scores that were made elsewhere.

pub mod assess;
pub mod compare;
mod error;
pub mod groups;
pub mod measures;
pub mod policy;
pub mod render;
pub mod report;
pub mod scoring;
pub mod seeds;
pub mod settings;
pub mod statistics;
pub mod table;
pub mod uploaded;
pub mod utility;

pub use error::AuditError;
