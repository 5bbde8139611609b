//! What a job computes with: data sets, training and audits, each with a script in its place in tests.
//!
//! Says what is needed and does nothing itself.

use std::io::Write;
use std::sync::Arc;

use super::JobsError;
use crate::audit::AuditError;
use crate::audit::assess::{Provenance, assess};
use crate::audit::report::{BaseModel, Report};
use crate::audit::scoring::{self, Progress as Step, Scored, Scorer, Subject};
use crate::audit::settings::Settings as AuditSettings;
use crate::dataset::{Dataset, DatasetError, Datasets};
use crate::model::ModelError;
use crate::store::Catalog;
use crate::train::{Context, Output, Progress, Settings, TrainError, Trainer, trained_bytes};
use crate::turns::Slices;

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
        | DatasetError::NoImportDir
        | DatasetError::Folder { .. }
        | DatasetError::RequestIdReused(_) => JobsError::DatasetNotFound(reference.to_owned()),
    }
}

/// Begins work, or takes it up again: training, or the script of a test.
pub trait Training: Send + Sync {
    /// Begins, or goes on from a checkpoint; `base` is the fingerprint of the base model.
    ///
    /// # Errors
    /// As [`Trainer::begin`] and [`Trainer::resume`]; when there is no such base model.
    fn start(
        &self,
        base: &str,
        dataset: &Dataset,
        settings: &Settings,
        checkpoint: Option<&[u8]>,
    ) -> Result<Box<dyn Work>, TrainError>;

    /// Returns about how many bytes the result will take; `labels` is the number of the data set's labels. None where
    /// there is no such base model, or it cannot be trained.
    fn size(&self, base: &str, settings: &Settings, labels: usize) -> Option<u64>;
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
    fn checkpoint(&self, out: &mut dyn Write) -> Result<(), TrainError>;

    /// As [`Trainer::output`].
    ///
    /// # Errors
    /// Those of it.
    fn output(&self) -> Result<Output, TrainError>;

    /// As [`Trainer::latest`].
    ///
    /// # Errors
    /// Those of it.
    fn latest(&self) -> Result<Output, TrainError>;
}

/// One context for each base model.
impl Training for Vec<Context> {
    fn start(
        &self,
        base: &str,
        dataset: &Dataset,
        settings: &Settings,
        checkpoint: Option<&[u8]>,
    ) -> Result<Box<dyn Work>, TrainError> {
        let context = self.iter().find(|context| context.model.info().fingerprint == base);
        let context = context.ok_or_else(|| ModelError::Unsupported(format!("base model {base}")))?;
        Ok(Box::new(match checkpoint {
            Some(checkpoint) => Trainer::resume(context, dataset, settings, checkpoint)?,
            None => Trainer::begin(context, dataset, settings)?,
        }))
    }

    fn size(&self, base: &str, settings: &Settings, labels: usize) -> Option<u64> {
        let context = self.iter().find(|context| context.model.info().fingerprint == base)?;
        Some(trained_bytes(context.model.differentiable()?.base(), settings, labels))
    }
}

impl Work for Trainer {
    fn advance(&mut self, slices: &dyn Slices) -> Result<Progress, TrainError> {
        Self::advance(self, slices)
    }

    fn checkpoint(&self, out: &mut dyn Write) -> Result<(), TrainError> {
        Self::checkpoint(self, out)
    }

    fn output(&self) -> Result<Output, TrainError> {
        Self::output(self)
    }

    fn latest(&self) -> Result<Output, TrainError> {
        Self::latest(self)
    }
}

/// Begins audits, or takes them up again: scoring and statistics, or the script of a test.
pub trait Auditing: Send + Sync {
    /// Begins, or goes on from a checkpoint; `base` is the fingerprint of the base model.
    ///
    /// # Errors
    /// When settings, rows or models do not go together, or the checkpoint is of another audit.
    fn start(
        &self,
        base: &str,
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
    fn advance(&mut self, slices: &dyn Slices) -> Result<Step, AuditError>;

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

/// One context for each base model.
impl Auditing for Vec<scoring::Base> {
    fn start(
        &self,
        base: &str,
        dataset: &Arc<Dataset>,
        settings: &AuditSettings,
        subjects: Vec<Subject>,
        checkpoint: Option<&[u8]>,
    ) -> Result<Box<dyn AuditWork>, AuditError> {
        let context = self.iter().find(|context| context.info().fingerprint == base);
        let context = context.ok_or_else(|| ModelError::Unsupported(format!("base model {base}")))?;
        let scorer = match checkpoint {
            Some(checkpoint) => Scorer::resume(context, dataset, settings, subjects, checkpoint)?,
            None => Scorer::begin(context, dataset, settings, subjects)?,
        };
        let info = context.info();
        let base = BaseModel {
            name: context.name().to_owned(),
            fingerprint: info.fingerprint.clone(),
            dtype: info.dtype.clone(),
            device: info.device.clone(),
        };
        Ok(Box::new(Audit { scorer, base, settings: settings.clone() }))
    }
}

/// An audit of real models.
struct Audit {
    scorer: Scorer,
    base: BaseModel,
    settings: AuditSettings,
}

impl AuditWork for Audit {
    fn advance(&mut self, slices: &dyn Slices) -> Result<Step, AuditError> {
        self.scorer.advance(slices)
    }

    fn checkpoint(&self) -> Result<Vec<u8>, AuditError> {
        self.scorer.checkpoint()
    }

    fn report(self: Box<Self>, stop: &(dyn Fn() -> bool + Sync)) -> Result<Report, AuditError> {
        let Scored { table, data, models, groups, warnings } = self.scorer.finish()?;
        let software = env!("CARGO_PKG_VERSION").to_owned();
        let provenance = Provenance { software, base: Some(self.base), data, models, groups, warnings };
        Ok(assess(&self.settings, &table, provenance, stop)?)
    }
}
