//! What is in a data set, in numbers: parts, labels, groups, and what its owner should know.
//!
//! Reads no file. Written to disk beside the data set: a part's hash tells whether a later version reads it alike.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Dataset, Label, Split, hash};

/// Values of a group column that are told one by one.
const MOST_VALUES: usize = 100;

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which.
    pub split: Split,
    /// Its rows.
    pub rows: u64,
    /// SHA-256 of its rows' hashes in ascending order, hexadecimal.
    pub sha256: String,
}

/// One group column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSummary {
    /// Its name.
    pub column: String,
    /// Values and their rows, the most frequent first.
    pub values: Vec<(String, u64)>,
    /// Values that are not told.
    pub other_values: u64,
    /// Their rows.
    pub other_rows: u64,
    /// Rows without a value.
    pub missing_rows: u64,
}

/// What an owner should know, although nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// Rows whose content and label were there before.
    DuplicateRows(u64),
    /// Rows of validation or test that are in another part too: what is measured on them is too good.
    SplitOverlap(u64),
    /// All rows have this label.
    SingleLabel(String),
    /// Rows of a group column without a value.
    MissingGroupValues {
        /// The column.
        column: String,
        /// The rows.
        rows: u64,
    },
}

/// What is in a data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Train, validation, test.
    pub parts: Vec<Part>,
    /// Classes in their order, with their rows; a row of several classes counts for each.
    pub labels: Vec<(String, u64)>,
    /// Group columns in their order.
    pub groups: Vec<GroupSummary>,
    /// What the owner should know.
    pub warnings: Vec<Warning>,
}

impl Summary {
    /// Counts.
    pub fn of(dataset: &Dataset) -> Self {
        let parts = Split::ALL.map(|split| {
            let hashes: Vec<_> = dataset.rows.iter().filter(|row| row.split == split).map(|row| row.hash).collect();
            Part { split, rows: hashes.len() as u64, sha256: hash::part(hashes) }
        });
        let mut counts = vec![0; dataset.labels.len()];
        for row in &dataset.rows {
            let classes = match &row.label {
                None => &[][..],
                Some(Label::Class(class)) => std::slice::from_ref(class),
                Some(Label::Classes(classes)) => classes,
            };
            classes.iter().for_each(|class| counts[*class] += 1);
        }
        let labels: Vec<_> = dataset.labels.iter().cloned().zip(counts).collect();
        let columns = dataset.group_columns.iter().enumerate();
        let groups: Vec<_> = columns.map(|(index, column)| group(dataset, index, column)).collect();
        let warnings = warnings(dataset, &labels, &groups);
        Self { parts: parts.into(), labels, groups, warnings }
    }

    /// Returns the number of all rows.
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|part| part.rows).sum()
    }
}

fn group(dataset: &Dataset, index: usize, column: &str) -> GroupSummary {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut missing_rows = 0;
    for row in &dataset.rows {
        match row.groups.get(index).and_then(Option::as_deref) {
            Some(value) => *counts.entry(value).or_default() += 1,
            None => missing_rows += 1,
        }
    }
    let mut values: Vec<_> = counts.into_iter().map(|(value, rows)| (value.to_owned(), rows)).collect();
    // Stable: equal counts stay in the order of their values.
    values.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
    let others = values.split_off(values.len().min(MOST_VALUES));
    GroupSummary {
        column: column.to_owned(),
        values,
        other_values: others.len() as u64,
        other_rows: others.iter().map(|(_, rows)| rows).sum(),
        missing_rows,
    }
}

fn warnings(dataset: &Dataset, labels: &[(String, u64)], groups: &[GroupSummary]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut seen: HashMap<&[u8; 32], HashSet<Split>> = HashMap::new();
    for row in &dataset.rows {
        seen.entry(&row.hash).or_default().insert(row.split);
    }
    let duplicates = (dataset.rows.len() - seen.len()) as u64;
    if duplicates > 0 {
        warnings.push(Warning::DuplicateRows(duplicates));
    }
    let leaks = |row: &&super::Row| row.split != Split::Train && seen.get(&row.hash).is_some_and(|s| s.len() > 1);
    let overlap = dataset.rows.iter().filter(leaks).count() as u64;
    if overlap > 0 {
        warnings.push(Warning::SplitOverlap(overlap));
    }
    let mut used = labels.iter().filter(|(_, rows)| *rows > 0);
    if let (Some((only, rows)), None) = (used.next(), used.next())
        && *rows == dataset.rows.len() as u64
    {
        warnings.push(Warning::SingleLabel(only.clone()));
    }
    for group in groups.iter().filter(|group| group.missing_rows > 0) {
        warnings.push(Warning::MissingGroupValues { column: group.column.clone(), rows: group.missing_rows });
    }
    warnings
}
