//! Labelled rows with group columns: read from files of strangers, checked, named by their content.
//!
//! Says what a row is and where it came from; tokenises nothing and trains nothing. Readers of JSONL, CSV and Parquet
//! end in the same [`Row`]s; a fault names its row (counted from 1) and its column. [`Datasets`] keeps them by name.

mod build;
mod cells;
mod csv;
mod datasets;
mod declaration;
mod fault;
mod folder;
mod hash;
mod image_row;
mod jsonl;
mod parquet;
mod summary;

use bytes::Bytes;

pub use build::Limits;
pub use datasets::{Change, DatasetRecord, Datasets, Expected};
pub use declaration::{ContentColumns, Declaration, Format, LabelColumn, SplitRule};
pub use fault::{DatasetError, Fault, FaultKind, MOST_FAULTS};
pub use folder::{Folder, MOST_LISTING};
pub use image_row::{ImageRow, image_line};
pub use summary::{GroupSummary, Part, Summary, Warning};

/// What one turn of a conversation says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the chat template knows.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// What a row holds for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// One text.
    Text(String),
    /// A prompt and what should follow it.
    Completion {
        /// Given.
        prompt: String,
        /// To be learnt.
        completion: String,
    },
    /// A conversation.
    Messages(Vec<Message>),
    /// An image, as its file.
    Image(Bytes),
}

/// What a row is labelled with; numbers are indices into [`Dataset::labels`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// One class.
    Class(usize),
    /// Any number of classes (multi-label), ascending.
    Classes(Vec<usize>),
}

/// The part of a data set that a row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Learnt from.
    Train,
    /// Looked at while learning: evaluation, early stopping.
    Validation,
    /// Kept apart for audits.
    Test,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// For the model.
    pub content: Content,
    /// For classification.
    pub label: Option<Label>,
    /// One a group column, in the order of [`Dataset::group_columns`]; `None` where the value is missing.
    pub groups: Vec<Option<String>>,
    /// Its part.
    pub split: Split,
    /// SHA-256 of content and label.
    pub hash: [u8; 32],
}

/// A data set in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// SHA-256 of the uploaded bytes and of what was declared about them, hexadecimal.
    pub id: String,
    /// Names of the classes; empty without a label column.
    pub labels: Vec<String>,
    /// Whether a row may have several classes.
    pub multi_label: bool,
    /// Names of the group columns.
    pub group_columns: Vec<String>,
    /// All rows, in the order of the file.
    pub rows: Vec<Row>,
}

/// Returns the SHA-256 of rows' hashes in ascending order, hexadecimal: the order of the rows does not matter.
pub fn digest<'r>(rows: impl Iterator<Item = &'r Row>) -> String {
    hash::part(rows.map(|row| row.hash).collect())
}

impl Dataset {
    /// Reads a file as it was declared; `digest` is the SHA-256 of its bytes.
    ///
    /// # Errors
    /// [`DatasetError::Invalid`] with up to [`MOST_FAULTS`] faults.
    pub fn parse(
        bytes: &Bytes,
        digest: &[u8; 32],
        declaration: &Declaration,
        limits: Limits,
    ) -> Result<Self, DatasetError> {
        declaration.check()?;
        let mut builder = build::Builder::new(declaration, limits);
        match declaration.format {
            Format::Jsonl => jsonl::read(bytes, &mut builder),
            Format::Csv => csv::read(bytes, declaration.csv_delimiter, &mut builder),
            Format::Parquet => parquet::read(bytes, &mut builder),
        }
        builder.finish(declaration.id(digest)?)
    }
}

#[cfg(test)]
mod tests;
