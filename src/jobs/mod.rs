//! What is long: written down before it is acknowledged, computed beside serving, gone on with after a crash.
//!
//! Computes nothing itself: a [`Training`] makes the [`Work`] of a fine-tuning, whose result the registry publishes, and
//! an [`Auditing`] that of an audit, whose report `reports` keeps. `changes` answers callers, `fan` makes audits
//! with the fine-tunings that they need, `estimate` says what one would cost, `runner` is the one thread that takes
//! jobs, `tune` and `audit` are what it does, `queue` puts jobs where they wait, `names` says what they publish under,
//! `pace` lets it compute in slices. First come, first served, and no audit before the jobs that were made for it.
//!
//! A job is one row with its state and one row an event. An event is written before anybody sees it and never changed:
//! what a watcher was shown stays true. A step that a restart makes necessary again has its event already and gets no
//! second one. Order of writes at the end: last checkpoint, generation (whose lineage names the job), alias, success;
//! a job whose generation is found published is not published again.
//! Times are the system's; units as in [`crate::train`].

mod audit;
mod changes;
mod estimate;
mod failure;
mod fan;
mod job;
mod names;
mod pace;
mod queue;
mod rows;
mod runner;
mod tune;
mod work;

use crate::lora::Generation;
use crate::registry::{Expected, Name, RegistryError};
use crate::store::{RequestIdReused, StoreError};
use crate::train::Settings;

#[cfg(test)]
pub(crate) use failure::registry as refused;

pub use changes::{Events, Jobs, Parts, Shown};
pub use estimate::Estimate;
pub use fan::{AuditWanted, CheckpointWanted, ModelWanted, SourceWanted};
pub use job::{
    Advance, AuditModel, AuditProgress, AuditTask, Checkpoint, Event, Failure, Job, JobId, JobKind, Made, ModelSource,
    Phase, Published, State, Task, Tuning,
};
pub use names::checkpoint_name;
pub use work::{AuditWork, Auditing, Rows, Training, Work};

/// Steps of a job whose events are kept; of a longer one the oldest go.
const EVENTS: u64 = 100_000;

/// What a caller asks for, checked.
#[derive(Debug, Clone)]
pub struct FineTuning {
    /// Name to publish under.
    pub adapter: Name,
    /// What must be current under that name, both when the job is made and when it is published.
    pub expected: Expected,
    /// Alias to set to the result.
    pub alias: Option<Name>,
    /// Keeps the result in memory; `None` leaves it as it was.
    pub pinned: Option<bool>,
    /// Accepts a result that changes nothing.
    pub allow_no_effect: bool,
    /// Data set, by name or id.
    pub dataset: String,
    /// Base model, by name; `None`: the first one.
    pub base: Option<String>,
    /// All of them.
    pub settings: Settings,
}

/// Why a call is refused or fails.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// No such job.
    #[error("there is no job `{0}`")]
    NotFound(String),
    /// No such data set.
    #[error("there is no data set `{0}`")]
    DatasetNotFound(String),
    /// It has ended.
    #[error("the job has {}", .0.as_str())]
    Finished(State),
    /// It cannot be taken up again.
    #[error("{0}")]
    NotResumable(String),
    /// Another job makes the same adapter or alias.
    #[error("job {0} is not finished and makes an adapter or alias of that name")]
    Conflict(String),
    /// Too many jobs wait.
    #[error("{0} jobs wait already")]
    QueueFull(usize),
    /// An audit needs more models trained than it may.
    #[error("needs {wanted} models trained, jobs.max_trained_models is {limit}")]
    TooManyModels {
        /// Models to train, shadow and control models included.
        wanted: usize,
        /// How many it may.
        limit: usize,
    },
    /// A measure that the audit cannot have with this data set.
    #[error("measure {place} {why}")]
    Measure {
        /// Its place among those asked.
        place: usize,
        /// What is wrong with it.
        why: String,
    },
    /// No event of this job has that number.
    #[error("the job has no such event")]
    Event,
    /// The request id was used for another request.
    #[error(transparent)]
    RequestIdReused(#[from] RequestIdReused),
    /// A name cannot be taken, or something else is current.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reasons of [`Failure::reason`] that a call of a service never gives; the others are those of the registry's errors.
pub mod reason {
    /// A setting cannot be used with this model or data.
    pub const SETTING: &str = "TRAINING_SETTING";
    /// The rows cannot be used.
    pub const DATA: &str = "TRAINING_DATA";
    /// The job cannot fit into memory.
    pub const MEMORY: &str = "TRAINING_MEMORY";
    /// The loss is no number.
    pub const DIVERGED: &str = "TRAINING_DIVERGED";
    /// A gradient is missing or no number.
    pub const GRADIENT: &str = "TRAINING_GRADIENT";
    /// The checkpoint cannot be gone on from.
    pub const CHECKPOINT: &str = "TRAINING_CHECKPOINT";
    /// The server does not have its base model any more.
    pub const BASE: &str = "TRAINING_BASE";
    /// A fault of the server: the log tells more.
    pub const INTERNAL: &str = "INTERNAL";
    /// A setting of an audit cannot be used with these models or rows.
    pub const AUDIT_SETTING: &str = "AUDIT_SETTING";
    /// The rows cannot be audited.
    pub const AUDIT_DATA: &str = "AUDIT_DATA";
    /// A model was trained on rows to audit.
    pub const AUDIT_OVERLAP: &str = "AUDIT_OVERLAP";
    /// A model that was to be trained for the audit was not.
    pub const AUDIT_CHILD_FAILED: &str = "AUDIT_CHILD_FAILED";
    /// The checkpoint of an audit cannot be gone on from.
    pub const AUDIT_CHECKPOINT: &str = "AUDIT_CHECKPOINT";
    /// All of them.
    pub const ALL: [&str; 13] = [
        SETTING,
        DATA,
        MEMORY,
        DIVERGED,
        GRADIENT,
        CHECKPOINT,
        BASE,
        INTERNAL,
        AUDIT_SETTING,
        AUDIT_DATA,
        AUDIT_OVERLAP,
        AUDIT_CHILD_FAILED,
        AUDIT_CHECKPOINT,
    ];
}

fn expected_text(expected: &Expected) -> Option<String> {
    match expected {
        Expected::Any => None,
        Expected::Absent => Some(String::new()),
        Expected::Generation(generation) => Some(generation.to_string()),
    }
}

fn expected_of(text: Option<&str>) -> Option<Expected> {
    match text {
        None => Some(Expected::Any),
        Some("") => Some(Expected::Absent),
        Some(text) => Generation::parse(text).map(Expected::Generation),
    }
}

#[cfg(test)]
pub(crate) mod tests;
