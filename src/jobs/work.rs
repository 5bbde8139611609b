//! What a job computes with: data sets, training and audits, each with a script in its place in tests.
//!
//! Says what is needed and does nothing itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::JobsError;
use crate::audit::report::{Model, Report};
use crate::audit::settings::Settings as AuditSettings;
use crate::dataset::{Dataset, DatasetError, Datasets};
use crate::lora::Adapter;
use crate::model::ModelError;
use crate::store::Catalog;
use crate::train::{Context, Output, Progress, Settings, TrainError, Trainer};
use crate::turns::{Slices, Stopped};

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

    /// Keeps a data set for `holder`, in the transaction that makes or resumes the job.
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
        if catalog.dataset_content(id)?.is_none() {
            return Err(JobsError::DatasetNotFound(id.to_owned()));
        }
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

/// A model to audit, with what was trained for its sake.
#[derive(Clone)]
pub struct Subject {
    /// What the report says of it; its overlap is not known yet.
    pub model: Model,
    /// Its weights; none: the base model.
    pub adapter: Option<Arc<Adapter>>,
    /// Hashes of the rows that it was trained on; none where that is not known.
    pub trained_on: Option<Arc<BTreeSet<[u8; 32]>>>,
    /// Its shadow models.
    pub shadows: Vec<Shadow>,
    /// The control model, whose members must be found; one subject at most has it.
    pub planted: Option<Shadow>,
}

/// Brings an adapter into memory when its turn has come.
pub type Load = Arc<dyn Fn() -> Result<Arc<Adapter>, AuditError> + Send + Sync>;

/// A model that was trained as another one was, on other rows. There may be more of them than memory holds.
#[derive(Clone)]
pub struct Shadow {
    /// Its generation.
    pub generation: String,
    /// Its weights.
    pub load: Load,
    /// Hashes of the rows that it was trained on.
    pub trained_on: Arc<BTreeSet<[u8; 32]>>,
}

/// Begins audits, or takes them up again: scoring and statistics, or the script of a test.
pub trait Auditing: Send + Sync {
    /// Begins, or goes on from a checkpoint.
    ///
    /// # Errors
    /// When settings, rows or models do not go together, or the checkpoint is of another audit.
    fn start(
        &self,
        dataset: &Arc<Dataset>,
        settings: &AuditSettings,
        subjects: Vec<Subject>,
        checkpoint: Option<&[u8]>,
    ) -> Result<Box<dyn AuditWork>, AuditError>;
}

/// An audit between two batches of items; stays on the runner's thread.
pub trait AuditWork {
    /// Scores some items.
    ///
    /// # Errors
    /// When the model fails, or it was told to stop.
    fn advance(&mut self, slices: &dyn Slices) -> Result<AuditStep, AuditError>;

    /// Writes down what the rest depends on.
    ///
    /// # Errors
    /// When that cannot be had.
    fn checkpoint(&self) -> Result<Vec<u8>, AuditError>;

    /// Makes the report of what was scored. `stop` is asked often, lets requests go first, and says when to end.
    ///
    /// # Errors
    /// When the rows do not bear it, or it was told to stop.
    fn report(self: Box<Self>, stop: &(dyn Fn() -> bool + Sync)) -> Result<Report, AuditError>;
}

/// How far scoring is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditStep {
    /// Name of the model that was scored last.
    pub model: String,
    /// Items done, of all models.
    pub done: u64,
    /// Items there are.
    pub total: u64,
    /// Whether nothing is left to score.
    pub last: bool,
}

/// Why an audit cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A setting cannot be used with these models or rows; the field is that of the request.
    #[error("{field}: {fault}")]
    Setting {
        /// Field of the settings.
        field: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The rows cannot be audited.
    #[error("{0}")]
    Data(String),
    /// A model was trained on rows to audit.
    #[error("model `{model}` was trained on {rows} of the rows")]
    Overlap {
        /// Name of the model.
        model: String,
        /// Rows.
        rows: u64,
    },
    /// An adapter that is needed cannot be had.
    #[error("model `{model}` cannot be loaded: {fault}")]
    Load {
        /// Name of the model.
        model: String,
        /// What was said.
        fault: String,
    },
    /// A checkpoint is not one of this audit.
    #[error("the checkpoint {0}")]
    Checkpoint(String),
    /// It was told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}
