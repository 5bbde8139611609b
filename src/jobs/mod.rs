//! What is long: written down before it is acknowledged, computed beside serving, gone on with after a crash.
//!
//! Computes nothing itself: a [`Training`] makes the [`Work`], the registry publishes its result. `changes` answers
//! callers, `runner` is the one thread that takes jobs first come, first served, `pace` lets it compute in slices.
//!
//! A job is one row with its state and one row an event. An event is written before anybody sees it and never changed:
//! what a watcher was shown stays true. A step that a restart makes necessary again has its event already and gets no
//! second one. Order of writes at the end: last checkpoint, generation (whose lineage names the job), alias, success;
//! a job whose generation is found published is not published again.
//! Times are the system's; units as in [`crate::train`].

mod changes;
mod failure;
mod pace;
mod runner;

use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, DatasetError, Datasets};
use crate::lora::Generation;
use crate::registry::{Expected, Name, RegistryError};
use crate::store::{Catalog, RequestIdReused, StoreError};
use crate::train::{Context, Output, Progress, Settings, TrainError, Trainer};
use crate::turns::Slices;

#[cfg(test)]
pub(crate) use failure::registry as refused;

pub use changes::{Events, Jobs, Parts, Shown};

/// Steps of a job whose events are kept; of a longer one the oldest go.
const EVENTS: u64 = 100_000;

/// Id of a job: a UUID of version 7, so that ids sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(uuid::Uuid);

impl JobId {
    fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// Reads an id in its one form: lower case, with hyphens.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self(uuid::Uuid::try_parse(text).ok()?);
        (id.to_string() == text).then_some(id)
    }

    /// Returns its 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl TryFrom<String> for JobId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("not the id of a job")
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its turn.
    Queued,
    /// Is worked on, or will be again once the server is up.
    Running,
    /// Its result is published.
    Succeeded,
    /// It ended with an error.
    Failed,
    /// It was ended by a caller.
    Cancelled,
}

impl State {
    /// Returns its name as the store and the metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns whether nothing happens any more, unless it is resumed.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

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
    /// All of them.
    pub settings: Settings,
}

/// A step with what only the clock knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Advance {
    /// How the step went.
    pub progress: Progress,
    /// Tokens computed a second, of late.
    pub tokens_per_second: f64,
    /// Seconds until the last step, as far as can be told.
    pub eta_seconds: f64,
}

/// What was written down to go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Digest of its bytes.
    pub blob: String,
    /// Steps done.
    pub step: u64,
    /// Whether no step follows: what is left is to publish.
    pub last: bool,
}

/// What a job made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Adapter.
    pub adapter: String,
    /// Its generation.
    pub generation: String,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs: see [`reason`].
    pub reason: String,
    /// For people.
    pub message: String,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Where it is.
    pub state: State,
    /// A caller wants it to end.
    pub cancelling: bool,
    /// Name to publish under.
    pub adapter: String,
    /// What must be current under that name; empty: nothing; `None`: whatever is.
    pub expected: Option<String>,
    /// Alias to set to the result.
    pub alias: Option<String>,
    /// Keeps the result in memory; `None` leaves it as it was.
    pub pinned: Option<bool>,
    /// Accepts a result that changes nothing.
    pub allow_no_effect: bool,
    /// Id of the data set.
    pub dataset: String,
    /// Fingerprint of the base model.
    pub base: String,
    /// All of them.
    pub settings: Settings,
    /// When it was made.
    pub created: SystemTime,
    /// When it first ran.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub ended: Option<SystemTime>,
    /// The last step that has an event.
    pub last: Option<Advance>,
    /// What it goes on from.
    pub checkpoint: Option<Checkpoint>,
    /// What it made.
    pub made: Option<Made>,
    /// Why it failed.
    pub failure: Option<Failure>,
}

impl Job {
    /// Returns whether [`Jobs::resume`] would take it.
    pub fn is_resumable(&self) -> bool {
        matches!(self.state, State::Failed | State::Cancelled) && self.checkpoint.is_some()
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The state changed: the job as it was then.
    Job(Box<Job>),
    /// A step was done.
    Step(Box<Advance>),
}

/// Data sets as jobs need them.
pub trait Rows: Send + Sync {
    /// Returns the id of a data set, found by name or id.
    ///
    /// # Errors
    /// [`JobsError::DatasetNotFound`]; when the disk fails.
    fn find(&self, reference: &str) -> Result<String, JobsError>;

    /// Reads a data set by id.
    ///
    /// # Errors
    /// [`JobsError::DatasetNotFound`]; when the disk fails.
    fn read(&self, id: &str) -> Result<Arc<Dataset>, JobsError>;

    /// Keeps a data set for `holder`, in the transaction that makes the job.
    ///
    /// # Errors
    /// When it has been deleted since it was found, or the disk fails.
    fn hold(&self, _catalog: &Catalog<'_>, _id: &str, _holder: &str) -> Result<(), JobsError> {
        Ok(())
    }
}

impl Rows for Datasets {
    fn find(&self, reference: &str) -> Result<String, JobsError> {
        Ok(self.get(reference).map_err(|error| unread(error, reference))?.id)
    }

    fn read(&self, id: &str) -> Result<Arc<Dataset>, JobsError> {
        Self::read(self, id).map_err(|error| unread(error, id))
    }

    fn hold(&self, catalog: &Catalog<'_>, id: &str, holder: &str) -> Result<(), JobsError> {
        Ok(catalog.hold_dataset(id, holder)?)
    }
}

/// Says why a data set cannot be read; no other error of theirs comes from reading.
fn unread(error: DatasetError, reference: &str) -> JobsError {
    match error {
        DatasetError::Store(error) => JobsError::Store(error),
        DatasetError::NotFound(_)
        | DatasetError::Invalid(_)
        | DatasetError::Mismatch { .. }
        | DatasetError::InUse { .. }
        | DatasetError::RequestIdReused(_) => JobsError::DatasetNotFound(reference.to_owned()),
    }
}

/// Begins work, or takes it up again: training, or the script of a test.
pub trait Training: Send + Sync {
    /// Begins, or goes on from a checkpoint.
    ///
    /// # Errors
    /// As [`Trainer::begin`] and [`Trainer::resume`].
    fn start(
        &self,
        dataset: &Dataset,
        settings: &Settings,
        checkpoint: Option<&[u8]>,
    ) -> Result<Box<dyn Work>, TrainError>;
}

/// Work between two steps; stays on the runner's thread.
pub trait Work {
    /// As [`Trainer::advance`].
    ///
    /// # Errors
    /// Those of it.
    fn advance(&mut self, slices: &dyn Slices) -> Result<Progress, TrainError>;

    /// As [`Trainer::checkpoint`].
    ///
    /// # Errors
    /// Those of it.
    fn checkpoint(&self) -> Result<Vec<u8>, TrainError>;

    /// As [`Trainer::output`].
    ///
    /// # Errors
    /// Those of it.
    fn output(&self) -> Result<Output, TrainError>;
}

impl Training for Context {
    fn start(
        &self,
        dataset: &Dataset,
        settings: &Settings,
        checkpoint: Option<&[u8]>,
    ) -> Result<Box<dyn Work>, TrainError> {
        Ok(Box::new(match checkpoint {
            Some(checkpoint) => Trainer::resume(self, dataset, settings, checkpoint)?,
            None => Trainer::begin(self, dataset, settings)?,
        }))
    }
}

impl Work for Trainer {
    fn advance(&mut self, slices: &dyn Slices) -> Result<Progress, TrainError> {
        Self::advance(self, slices)
    }

    fn checkpoint(&self) -> Result<Vec<u8>, TrainError> {
        Self::checkpoint(self)
    }

    fn output(&self) -> Result<Output, TrainError> {
        Self::output(self)
    }
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
    /// The server runs another base model now.
    pub const BASE: &str = "TRAINING_BASE";
    /// A fault of the server: the log tells more.
    pub const INTERNAL: &str = "INTERNAL";
    /// All of them.
    pub const ALL: [&str; 8] = [SETTING, DATA, MEMORY, DIVERGED, GRADIENT, CHECKPOINT, BASE, INTERNAL];
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
