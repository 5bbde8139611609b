//! A job as it is written down: what it does, where it is, what it made.
//!
//! Plain values and their JSON. A record of the first version, which knew fine-tuning only, reads as one: the fields of
//! a fine-tuning stand beside those of every job.
//! Times are the system's; units as in [`crate::train`].

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::audit::settings::Settings as AuditSettings;
use crate::train::{Progress, Settings};

/// Id of a job: a UUID of version 7, so that ids sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(uuid::Uuid);

impl JobId {
    pub(super) fn new() -> Self {
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

/// What kind of work a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Trains an adapter or a model.
    FineTuning,
    /// Audits models.
    Audit,
}

impl JobKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::FineTuning, Self::Audit];

    /// Returns its name as the store and the metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FineTuning => "fine_tuning",
            Self::Audit => "audit",
        }
    }
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Task {
    /// Trains an adapter or a model and publishes it.
    FineTuning(Box<Tuning>),
    /// Audits models and keeps the report.
    Audit {
        /// What is audited.
        audit: Box<AuditTask>,
    },
}

/// What a fine-tuning makes, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
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
    /// All of them.
    pub settings: Settings,
    /// What must be current under the name of each checkpoint, as in `expected`, in the order of
    /// [`Settings::publish_steps`]; empty where `expected` tells it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected_checkpoints: Vec<String>,
}

/// What an audit audits, and how; adapters are those that there were when it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditTask {
    /// Name that the report is kept under.
    pub name: String,
    /// Models in the order of the report.
    pub models: Vec<AuditModel>,
    /// All of them.
    pub settings: AuditSettings,
    /// Whether models that were trained for it stay when it has succeeded; `None`: all but shadow and control models.
    pub keep_models: Option<bool>,
    /// Job that trains the control model of membership inference.
    pub planted: Option<JobId>,
    /// Fine-tuning jobs that go before it, in the order of the queue.
    pub children: Vec<JobId>,
}

/// A model of an audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditModel {
    /// Name in the report.
    pub name: String,
    /// Which.
    pub source: ModelSource,
    /// What its low-rank change is multiplied by.
    pub scale: f64,
    /// Jobs that train its shadow models; models that are trained alike share them.
    pub shadows: Vec<JobId>,
    /// Steps after which it, and so its shadow models, are taken from their training; none: what comes out at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
}

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// The base model.
    Base,
    /// A generation that there was when the audit was made.
    Stored {
        /// Name of the adapter.
        adapter: String,
        /// Its generation.
        generation: String,
    },
    /// What a job before it makes: its result, or the checkpoint of the model's step.
    Trained {
        /// The job.
        job: JobId,
        /// Name that this is published under.
        adapter: String,
    },
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
    /// Seconds that a step takes, of late; 0: not measured.
    #[serde(default)]
    pub step_seconds: f64,
}

/// How far an audit is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditProgress {
    /// What is done.
    pub phase: Phase,
    /// Name of the model that is worked on; empty: all.
    pub model: String,
    /// Items done in this phase.
    pub done: u64,
    /// Items there are in this phase.
    pub total: u64,
    /// Items a second, of late; waiting for requests included.
    pub items_per_second: f64,
    /// Seconds until the phase ends, as far as can be told.
    pub eta_seconds: f64,
}

/// Part of an audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Models say what they think of the rows.
    Scoring,
    /// Intervals and tests.
    Statistics,
}

impl Phase {
    /// Returns its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scoring => "scoring",
            Self::Statistics => "statistics",
        }
    }
}

/// What was written down to go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Digest of its bytes.
    pub blob: String,
    /// Steps done, or items scored.
    pub step: u64,
    /// Whether no step follows: what is left is to publish.
    pub last: bool,
}

/// What a job made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Made {
    /// A generation of an adapter.
    Generation {
        /// Adapter.
        adapter: String,
        /// Its generation.
        generation: String,
    },
    /// A report.
    Report {
        /// Its id.
        report: String,
    },
}

/// Weights on the way, published as an adapter of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Steps that they were trained for.
    pub step: u64,
    /// Adapter.
    pub adapter: String,
    /// Its generation.
    pub generation: String,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs: see [`reason`](super::reason).
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
    /// What it does.
    #[serde(flatten)]
    pub task: Task,
    /// Id of the data set.
    pub dataset: String,
    /// Fingerprint of the base model.
    pub base: String,
    /// Audit that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<JobId>,
    /// When it was made.
    pub created: SystemTime,
    /// When it first ran.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub ended: Option<SystemTime>,
    /// The last step that has an event; of a fine-tuning.
    pub last: Option<Advance>,
    /// How far it is; of an audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audited: Option<AuditProgress>,
    /// What it goes on from.
    pub checkpoint: Option<Checkpoint>,
    /// What it made.
    pub made: Option<Made>,
    /// Checkpoints that it has published, by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Published>,
    /// Why it failed.
    pub failure: Option<Failure>,
}

impl Job {
    /// Returns what kind of work it is.
    pub fn kind(&self) -> JobKind {
        match self.task {
            Task::FineTuning(_) => JobKind::FineTuning,
            Task::Audit { .. } => JobKind::Audit,
        }
    }

    /// Returns the name of what it makes: an adapter or a report.
    pub fn name(&self) -> &str {
        match &self.task {
            Task::FineTuning(tuning) => &tuning.adapter,
            Task::Audit { audit } => &audit.name,
        }
    }

    /// Returns the jobs that were made for it, in the order of the queue.
    pub fn children(&self) -> &[JobId] {
        match &self.task {
            Task::FineTuning(_) => &[],
            Task::Audit { audit } => &audit.children,
        }
    }

    /// Returns the generations that it has published, with their adapters: checkpoints, then the result.
    pub fn generations(&self) -> Vec<(&str, &str)> {
        let checkpoints = self.published.iter().map(|kept| (kept.adapter.as_str(), kept.generation.as_str()));
        let made = match &self.made {
            Some(Made::Generation { adapter, generation }) => Some((adapter.as_str(), generation.as_str())),
            Some(Made::Report { .. }) | None => None,
        };
        checkpoints.chain(made).collect()
    }

    /// Returns the steps whose checkpoints are wanted and were not published: those that the run has passed, and those
    /// that it has not reached.
    pub fn unpublished(&self) -> (Vec<u64>, Vec<u64>) {
        let Task::FineTuning(tuning) = &self.task else { return Default::default() };
        let done = self.last.as_ref().map_or(0, |last| last.progress.step);
        let is_there = |step: &u64| self.published.iter().any(|kept| kept.step == *step);
        let wanted = tuning.settings.publish_steps.iter().copied();
        wanted.filter(|step| !is_there(step)).partition(|step| *step <= done)
    }

    /// Returns whether [`Jobs::resume`](super::Jobs::resume) would take it: an audit and its children begin anew where they
    /// have no checkpoint.
    pub fn is_resumable(&self) -> bool {
        let begins_anew = self.kind() == JobKind::Audit || self.parent.is_some();
        matches!(self.state, State::Failed | State::Cancelled) && (begins_anew || self.checkpoint.is_some())
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
    /// An audit went on.
    Audit(Box<AuditProgress>),
    /// A checkpoint was published.
    Published(Box<Published>),
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    /// A record as the first version wrote it.
    fn first() -> serde_json::Value {
        serde_json::json!({
            "id": "01890a5d-ac96-774b-bcce-b302099a8057", "state": "succeeded", "cancelling": false,
            "adapter": "a", "expected": "", "alias": "live", "pinned": null, "allow_no_effect": false,
            "dataset": "d", "base": "b", "settings": settings(),
            "created": SystemTime::UNIX_EPOCH, "started": null, "ended": null, "last": null, "checkpoint": null,
            "made": {"adapter": "a", "generation": "g"}, "failure": null
        })
    }

    #[test]
    fn records_of_the_first_version_are_read_and_written_as_they_were() {
        let job: Job = serde_json::from_value(first()).unwrap();
        let Task::FineTuning(tuning) = &job.task else { panic!() };
        assert_eq!(
            (&*tuning.adapter, tuning.expected.as_deref(), tuning.alias.as_deref()),
            ("a", Some(""), Some("live"))
        );
        assert_eq!(tuning.settings, settings());
        assert_eq!(job.made, Some(Made::Generation { adapter: "a".into(), generation: "g".into() }));
        assert_eq!((job.kind(), job.parent, &job.audited), (JobKind::FineTuning, None, &None));
        assert_eq!(serde_json::to_value(&job).unwrap(), first());
        for missing in ["adapter", "settings", "state", "id"] {
            let mut record = first();
            record.as_object_mut().unwrap().remove(missing);
            assert!(serde_json::from_value::<Job>(record).is_err(), "{missing}");
        }
    }
}
