//! What a job computes with: data sets, training and audits, each with a script in its place in tests.
//!
//! Says what is needed and does nothing itself.

use std::sync::Arc;

use super::JobsError;
use crate::dataset::{Dataset, DatasetError, Datasets};
use crate::store::Catalog;
use crate::train::{Context, Output, Progress, Settings, TrainError, Trainer};
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
