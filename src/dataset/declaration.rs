//! What the uploader says about a file: its format, which column is what, labels, and how rows are split.
//!
//! Looks at no row. The declaration is part of a data set's identity: [`Declaration::id`] hashes it with the bytes.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fault::{FaultKind, Faults};
use super::{DatasetError, Split};

/// Largest number of group columns.
pub(super) const MAX_GROUP_COLUMNS: usize = 64;
/// Largest number of bytes of a column's name, a label or a group value.
pub(super) const MAX_NAME_BYTES: usize = 256;
/// Largest number of classes.
pub(super) const MAX_LABELS: usize = 1000;

/// How the bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// A header, then records; RFC 4180.
    Csv,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// Guesses: Parquet has its magic number, JSONL begins with a brace, all else is CSV.
    pub fn detect(bytes: &[u8]) -> Self {
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
        match (bytes.starts_with(b"PAR1"), text.first()) {
            (true, _) => Self::Parquet,
            (false, Some(b'{')) => Self::Jsonl,
            (false, _) => Self::Csv,
        }
    }
}

/// Which columns hold what the model reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContentColumns {
    /// One text.
    Text(String),
    /// What is given and what follows.
    Completion {
        /// Column of the prompt.
        prompt: String,
        /// Column of what follows.
        completion: String,
    },
    /// A conversation: a list of objects with `role` and `content`, or that list as JSON text.
    Messages(String),
    /// The file of an image: binary in Parquet, base64 elsewhere.
    Image(String),
}

/// Which column holds the label, and what it may say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelColumn {
    /// The column.
    pub column: String,
    /// Whether a row has a list of classes.
    pub multi_label: bool,
    /// Names of the classes in their order; empty: the distinct values, in ascending order.
    pub names: Vec<String>,
    /// What stands between the classes of a CSV field (multi-label only).
    pub separator: String,
}

/// How rows are told apart into parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitRule {
    /// Every row is for training.
    AllTrain,
    /// A column says `train`, `validation` or `test`.
    Column(String),
    /// By a hash, so that neither the order of rows nor other rows matter.
    Seeded {
        /// Expected fraction of validation rows.
        validation: f64,
        /// Expected fraction of test rows.
        test: f64,
        /// Changes which rows they are.
        seed: u64,
        /// Rows of one value of this column stay together; without it, equal rows do.
        grouping: Option<String>,
    },
}

/// What is said about a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Declaration {
    /// How the bytes are written.
    pub format: Format,
    /// What stands between the fields of CSV: one ASCII character.
    pub csv_delimiter: char,
    /// For the model.
    pub content: ContentColumns,
    /// For classification.
    pub label: Option<LabelColumn>,
    /// Columns to report and audit by.
    pub groups: Vec<String>,
    /// How rows are split.
    pub split: SplitRule,
}

impl Declaration {
    /// A declaration of content only: no label, no groups, every row for training.
    pub fn new(format: Format, content: ContentColumns) -> Self {
        let split = SplitRule::AllTrain;
        Self { format, csv_delimiter: ',', content, label: None, groups: Vec::new(), split }
    }

    /// Checks what was declared, before any row is read.
    ///
    /// # Errors
    /// [`DatasetError::Invalid`] with every fault.
    pub fn check(&self) -> Result<(), DatasetError> {
        let mut faults = Faults::default();
        let mut fault = |column: Option<&str>, text: String| faults.add(None, column, FaultKind::Declaration(text));
        for column in self.columns() {
            if column.is_empty() || column.len() > MAX_NAME_BYTES {
                fault(Some(column), format!("a column's name must have 1 to {MAX_NAME_BYTES} bytes"));
            }
        }
        if let ContentColumns::Image(image) = &self.content
            && self.others().contains(&image.as_str())
        {
            fault(Some(image), "cannot be the image and something else".into());
        }
        let mut seen = HashSet::new();
        if self.groups.len() > MAX_GROUP_COLUMNS {
            fault(None, format!("there may be {MAX_GROUP_COLUMNS} group columns at most"));
        } else if let Some(twice) = self.groups.iter().find(|group| !seen.insert(*group)) {
            fault(Some(twice), "is named twice as a group column".into());
        }
        if let ContentColumns::Completion { prompt, completion } = &self.content
            && prompt == completion
        {
            fault(Some(prompt), "cannot be both prompt and completion".into());
        }
        if let Some(label) = &self.label {
            let sound = |name: &String| !name.is_empty() && name.len() <= MAX_NAME_BYTES;
            let mut seen = HashSet::new();
            if label.names.len() > MAX_LABELS {
                fault(Some(&label.column), format!("there may be {MAX_LABELS} labels at most"));
            } else if !label.names.iter().all(sound) {
                fault(Some(&label.column), format!("a label must have 1 to {MAX_NAME_BYTES} bytes"));
            } else if let Some(twice) = label.names.iter().find(|name| !seen.insert(*name)) {
                fault(Some(&label.column), format!("the label `{twice}` is named twice"));
            }
            if label.multi_label && label.separator.is_empty() && self.format == Format::Csv {
                fault(Some(&label.column), "several labels in a CSV field need a separator".into());
            }
        }
        if !self.csv_delimiter.is_ascii() || matches!(self.csv_delimiter, '"' | '\r' | '\n' | '\0') {
            fault(None, "the CSV delimiter must be one ASCII character, no quote and no end of line".into());
        }
        if let SplitRule::Seeded { validation, test, .. } = &self.split {
            let fraction = |f: &f64| (0.0..=1.0).contains(f);
            if !fraction(validation) || !fraction(test) || validation + test > 1.0 {
                fault(None, "the fractions of a split must be 0 to 1, and 1 at most together".into());
            }
        }
        Ok(faults.finish(())?)
    }

    /// Returns the columns that are needed, each once.
    pub(super) fn columns(&self) -> Vec<&str> {
        let mut columns = match &self.content {
            ContentColumns::Text(column) | ContentColumns::Messages(column) | ContentColumns::Image(column) => {
                vec![column.as_str()]
            }
            ContentColumns::Completion { prompt, completion } => vec![prompt.as_str(), completion.as_str()],
        };
        columns.extend(self.others());
        let mut seen = HashSet::new();
        columns.retain(|column| seen.insert(*column));
        columns
    }

    /// Returns the columns of labels, groups and parts; one may be there several times.
    fn others(&self) -> Vec<&str> {
        let mut columns = Vec::new();
        columns.extend(self.label.as_ref().map(|label| label.column.as_str()));
        columns.extend(self.groups.iter().map(String::as_str));
        match &self.split {
            SplitRule::AllTrain => {}
            SplitRule::Column(column) => columns.push(column),
            SplitRule::Seeded { grouping, .. } => columns.extend(grouping.as_deref()),
        }
        columns
    }

    /// Returns the column of images, if rows are images.
    pub fn image_column(&self) -> Option<&str> {
        match &self.content {
            ContentColumns::Image(column) => Some(column),
            ContentColumns::Text(_) | ContentColumns::Completion { .. } | ContentColumns::Messages(_) => None,
        }
    }

    /// Returns the id of a file of this digest declared like this: SHA-256, hexadecimal.
    ///
    /// # Errors
    /// When the declaration cannot be written as JSON.
    pub fn id(&self, file: &[u8; 32]) -> Result<String, DatasetError> {
        let declared = serde_json::to_vec(self).map_err(crate::store::unwritable)?;
        let mut hash = Sha256::new();
        hash.update(b"evenkeel data set 1\0");
        hash.update(file);
        hash.update(declared);
        Ok(hex::encode(hash.finalize()))
    }
}

impl Split {
    /// All parts.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// Returns its name, as a split column writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|split| split.as_str() == text)
    }
}
