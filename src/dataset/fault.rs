//! What can be wrong with an uploaded file, where, and how many faults are told at once.
//!
//! Rows count from 1: lines of JSONL, records of CSV without the header, rows of Parquet over all row groups.

use std::fmt;

use crate::model::image::ImageError;
use crate::store::{RequestIdReused, StoreError};

/// Faults told of one upload; a hostile file could have millions.
pub const MOST_FAULTS: usize = 20;
/// Characters of a value that a fault repeats.
const SHOWN: usize = 40;
/// Characters of a parser's complaint.
const MOST_TEXT: usize = 160;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// The value is not there, null or empty.
    #[error("is missing")]
    Missing,
    /// The value is of another type.
    #[error("must be {expected}, not {got}")]
    Type {
        /// What is understood.
        expected: &'static str,
        /// What is there.
        got: &'static str,
    },
    /// The value is none of those that are understood.
    #[error("{0}")]
    Value(String),
    /// No column of this name.
    #[error("there is no such column")]
    UnknownColumn,
    /// Two columns, or two keys of a row, have the name.
    #[error("is there twice")]
    DuplicateColumn,
    /// Bytes are no UTF-8 text.
    #[error("is not UTF-8")]
    Utf8,
    /// The file's syntax is broken.
    #[error("{0}")]
    Syntax(String),
    /// A record has more or fewer fields than the header.
    #[error("has {got} fields, the header has {expected}")]
    Ragged {
        /// Fields of the header.
        expected: usize,
        /// Fields of the record.
        got: usize,
    },
    /// Something is larger than allowed.
    #[error("{what} is over the limit of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An image that is not read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No row at all.
    #[error("there are no rows")]
    Empty,
    /// What was declared does not make sense.
    #[error("{0}")]
    Declaration(String),
}

/// One fault and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Row, from 1; `None` for the whole file.
    pub row: Option<u64>,
    /// Column; `None` for the whole row.
    pub column: Option<String>,
    /// What is wrong.
    pub kind: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.row, &self.column) {
            (Some(row), Some(column)) => write!(f, "row {row}, column `{column}`: {}", self.kind),
            (Some(row), None) => write!(f, "row {row}: {}", self.kind),
            (None, Some(column)) => write!(f, "column `{column}`: {}", self.kind),
            (None, None) => self.kind.fmt(f),
        }
    }
}

/// Cuts a value of the caller's for a message.
pub(super) fn shown(value: &str) -> String {
    cut(value, SHOWN)
}

fn cut(text: &str, most: usize) -> String {
    let mut cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// The faults found so far.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// Records a fault.
    pub(super) fn add(&mut self, row: Option<u64>, column: Option<&str>, kind: FaultKind) {
        if !self.full() {
            // Parsers repeat what they found, which may be the whole row.
            let kind = if let FaultKind::Syntax(text) = &kind { FaultKind::Syntax(cut(text, MOST_TEXT)) } else { kind };
            self.0.push(Fault { row, column: column.map(shown), kind });
        }
    }

    /// Returns whether no more are told: reading on finds nothing that anybody would see.
    pub(super) fn full(&self) -> bool {
        self.0.len() >= MOST_FAULTS
    }

    /// Returns whether none was found.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns `value`, or the faults if there are any.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<Fault>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }

    /// Records that a column is in no row that was read, in place of every row's fault of its own.
    pub(super) fn absent(&mut self, column: &str) {
        let column = shown(column);
        self.0.retain(|fault| fault.column.as_ref() != Some(&column));
        self.0.insert(0, Fault { row: None, column: Some(column), kind: FaultKind::UnknownColumn });
    }
}

/// Why a data set is refused or cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file or what was declared about it is faulty; never empty.
    #[error("{}", list(.0))]
    Invalid(Vec<Fault>),
    /// No data set of this name or id.
    #[error("there is no data set `{0}`")]
    NotFound(String),
    /// The name points to something else.
    #[error("data set `{name}` is at `{actual}`, not `{expected}`")]
    Mismatch {
        /// The name.
        name: String,
        /// Id that the caller expected; empty: that the name is free.
        expected: String,
        /// Id that it points to; empty: the name is free.
        actual: String,
    },
    /// Jobs that have not ended need it.
    #[error("data set `{name}` is needed by {}", holders.join(", "))]
    InUse {
        /// The name.
        name: String,
        /// Who needs it.
        holders: Vec<String>,
    },
    /// No folder is configured from which data sets may be read.
    #[error("`datasets.import_dir` is not set: there is no folder to read data sets from")]
    NoImportDir,
    /// A folder or its listing cannot be read.
    #[error("{fault}")]
    Folder {
        /// `directory` or `listing`: what was named.
        field: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The request id was used for another request.
    #[error(transparent)]
    RequestIdReused(#[from] RequestIdReused),
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Vec<Fault>> for DatasetError {
    fn from(faults: Vec<Fault>) -> Self {
        Self::Invalid(faults)
    }
}

/// Names the first faults.
fn list(faults: &[Fault]) -> String {
    let mut text = faults.iter().take(3).map(Fault::to_string).collect::<Vec<_>>().join("; ");
    if faults.len() > 3 {
        text.push_str(&format!("; and {} more", faults.len() - 3));
    }
    if faults.len() >= MOST_FAULTS {
        text.push_str(" (reading stopped there)");
    }
    text
}
