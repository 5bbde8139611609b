//! Why an audit cannot begin, go on or end.
//!
//! Fields are those of [`Settings`](super::settings::Settings), rows count from 1 in the order of the data set. Says
//! nothing of jobs or wires.

use super::assess::AssessError;
use crate::model::ModelError;
use crate::model::pass::fault;
use crate::turns::Stopped;

/// Why an audit cannot begin, go on or end.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A setting cannot be used with these models or this data set.
    #[error("{field}: {fault}")]
    Setting {
        /// Its path in the settings, for example `membership.attacks`.
        field: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The rows together cannot be used.
    #[error("{0}")]
    Data(String),
    /// A row cannot be used.
    #[error("row {row}{}: {fault}", .column.as_ref().map(|column| format!(", column `{column}`")).unwrap_or_default())]
    Row {
        /// From 1, in the order of the data set.
        row: usize,
        /// The column at fault; none where that is the content or the row as a whole.
        column: Option<String>,
        /// What is wrong with it.
        fault: String,
    },
    /// Audited rows were trained on.
    #[error("{rows} of the audited rows were trained on by model `{model}`")]
    Overlap {
        /// Name of the model in the report.
        model: String,
        /// How many.
        rows: u64,
    },
    /// A model has no classification head, or one that does not fit the labels.
    #[error("model `{model}`: {fault}")]
    Head {
        /// Name of the model in the report.
        model: String,
        /// What is wrong with its head.
        fault: String,
    },
    /// An adapter that is needed cannot be had.
    #[error("model `{model}` cannot be loaded: {fault}")]
    Load {
        /// Name of the model in the report.
        model: String,
        /// What whoever loads it said.
        fault: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A checkpoint is not one of this audit.
    #[error("the checkpoint {0}")]
    Checkpoint(String),
    /// Not everything is scored yet.
    #[error("{done} of {total} items are scored")]
    Unfinished {
        /// Items that are.
        done: u64,
        /// Items there are.
        total: u64,
    },
    /// It was told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<AssessError> for AuditError {
    fn from(error: AssessError) -> Self {
        match error {
            AssessError::UnknownMeasure { .. } => setting("measures", error.to_string()),
            AssessError::Groups { .. } => setting("attributes", error.to_string()),
            AssessError::Rows { .. } => Self::Data(error.to_string()),
            AssessError::Threads { .. } => fault(&error.to_string()).into(),
            AssessError::Stopped => Self::Stopped(Stopped),
        }
    }
}

/// Returns the error of a setting.
pub(super) fn setting(field: &'static str, fault: impl Into<String>) -> AuditError {
    AuditError::Setting { field, fault: fault.into() }
}
