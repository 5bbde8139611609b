//! From the cells that a reader found to checked rows: types, limits, labels, groups, hashes, parts.
//!
//! Knows no file format: a cell is a JSON value, null where there is nothing. Memory: what is kept is counted against
//! the limits before it is kept.

use std::collections::HashMap;

use base64::Engine as _;
use bytes::Bytes;
use serde_json::Value;

use super::cells::{class, kind, messages, size};
use super::declaration::{MAX_LABELS, MAX_NAME_BYTES};
use super::fault::{FaultKind, Faults, shown};
use super::image_row::{BASE64, encoded};
use super::{Content, ContentColumns, Dataset, DatasetError, Declaration, Label, Row, Split, SplitRule, hash};
use crate::model::image::{self, ImageError};

/// What a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows.
    pub rows: u64,
    /// Bytes of one row: a line of JSONL, the declared columns' text otherwise; an image counts apart.
    pub row_bytes: u64,
    /// Bytes of all declared columns' text together, decompressed, and of all images.
    pub decoded_bytes: u64,
    /// What an image may hold.
    pub image: image::Limits,
    /// Pixels of all images together, each of which is decoded; none: what was decoded before is not again.
    pub pixels: Option<u64>,
}

impl Limits {
    /// For files that were accepted before.
    pub(super) const NONE: Self =
        Self { rows: u64::MAX, row_bytes: u64::MAX, decoded_bytes: u64::MAX, image: image::Limits::MOST, pixels: None };
}

/// Collects rows and faults.
pub(super) struct Builder<'a> {
    declaration: &'a Declaration,
    pub(super) limits: Limits,
    /// The columns that readers hand over, in this order.
    columns: Vec<&'a str>,
    seen: Vec<bool>,
    /// Whether any row could be looked into: then a column that was not seen is missing.
    looked: bool,
    faults: Faults,
    rows: Vec<Row>,
    /// Names of the classes as they came, or as they were declared.
    labels: Vec<String>,
    indices: HashMap<String, usize>,
    read: u64,
    bytes: u64,
    /// Of the images so far.
    pixels: u64,
    stopped: bool,
}

impl<'a> Builder<'a> {
    pub(super) fn new(declaration: &'a Declaration, limits: Limits) -> Self {
        let columns = declaration.columns();
        let labels = declaration.label.as_ref().map_or_else(Vec::new, |label| label.names.clone());
        Self {
            declaration,
            limits,
            seen: vec![false; columns.len()],
            columns,
            looked: false,
            faults: Faults::default(),
            rows: Vec::new(),
            indices: labels.iter().cloned().zip(0..).collect(),
            labels,
            read: 0,
            bytes: 0,
            pixels: 0,
            stopped: false,
        }
    }

    /// Returns the columns that [`Self::push`] takes, in its order.
    pub(super) fn columns(&self) -> &[&'a str] {
        &self.columns
    }

    /// Returns which of [`Self::columns`] holds images.
    pub(super) fn image_at(&self) -> Option<usize> {
        self.declaration.image_column().and_then(|column| self.at(column))
    }

    /// Returns the most bytes that a row of text can have, an image in base64 included.
    pub(super) fn line_bytes(&self) -> u64 {
        let image = self.declaration.image_column().map_or(0, |_| encoded(self.limits.image.bytes));
        self.limits.row_bytes.saturating_add(image)
    }

    /// Records that a column is there.
    pub(super) fn see(&mut self, column: usize) {
        self.seen[column] = true;
    }

    /// Returns whether reading on makes sense.
    pub(super) fn goes_on(&self) -> bool {
        !self.stopped && !self.faults.full()
    }

    /// Records a fault of the whole file.
    pub(super) fn file_fault(&mut self, column: Option<&str>, kind: FaultKind) {
        self.faults.add(None, column, kind);
        self.stopped = true;
    }

    /// Counts a row that cannot be read.
    pub(super) fn row_fault(&mut self, column: Option<&str>, kind: FaultKind) {
        if self.begin_row() {
            self.faults.add(Some(self.read), column, kind);
        }
    }

    /// As [`Self::row_fault`], and nothing behind it can be read either.
    pub(super) fn last_row_fault(&mut self, kind: FaultKind) {
        self.row_fault(None, kind);
        self.stopped = true;
    }

    fn begin_row(&mut self) -> bool {
        if self.read >= self.limits.rows {
            self.file_fault(None, FaultKind::TooLarge { what: "the number of rows", limit: self.limits.rows });
            return false;
        }
        self.read += 1;
        true
    }

    /// Takes a row: one cell a column of [`Self::columns`]; `image` is the image's, where it is no text.
    pub(super) fn push(&mut self, cells: &mut [Value], image: Option<Bytes>) {
        if !self.begin_row() {
            return;
        }
        self.looked = true;
        let image_at = self.image_at();
        let bytes: u64 =
            cells.iter().enumerate().filter(|(at, _)| Some(*at) != image_at).map(|(_, cell)| size(cell)).sum();
        if bytes > self.limits.row_bytes {
            let kind = FaultKind::TooLarge { what: "the row's size in bytes", limit: self.limits.row_bytes };
            return self.faults.add(Some(self.read), None, kind);
        }
        let image = self.image(cells, image);
        let file = image.as_ref().ok().and_then(Option::as_ref);
        self.bytes = self.bytes.saturating_add(bytes).saturating_add(file.map_or(0, Bytes::len) as u64);
        if self.bytes > self.limits.decoded_bytes {
            let limit = self.limits.decoded_bytes;
            return self.file_fault(None, FaultKind::TooLarge { what: "the size of all columns in bytes", limit });
        }
        // Each part records its own fault, so that a row tells all of them.
        let label = self.label(cells);
        let groups = self.groups(cells);
        let part = self.part(cells);
        let content = self.content(cells, image);
        let (Some(content), Some(label), Some(groups), Some(part)) = (content, label, groups, part) else { return };
        let hash = hash::row(&content, label.as_deref());
        let split = match part {
            Part::Fixed(split) => split,
            Part::Seeded { key, seed, validation, test } => {
                hash::split(key.as_deref().map_or(&hash[..], str::as_bytes), seed, validation, test)
            }
        };
        let label = label.map(|names| self.index(names));
        if self.goes_on() {
            self.rows.push(Row { content, label, groups, split, hash });
        }
    }

    fn at(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|name| *name == column)
    }

    fn cell<'v>(&self, cells: &'v [Value], column: &str) -> &'v Value {
        self.at(column).and_then(|at| cells.get(at)).unwrap_or(&Value::Null)
    }

    fn take(&self, cells: &mut [Value], column: &str) -> Value {
        self.at(column).and_then(|at| cells.get_mut(at)).map_or(Value::Null, Value::take)
    }

    fn fault<T>(&mut self, column: &str, kind: FaultKind) -> Option<T> {
        self.faults.add(Some(self.read), Some(column), kind);
        None
    }

    /// Takes the content out of its cells; comes last, because another column may be the same.
    fn content(&mut self, cells: &mut [Value], image: Result<Option<Bytes>, FaultKind>) -> Option<Content> {
        let declaration = self.declaration;
        match &declaration.content {
            ContentColumns::Text(column) => self.text(cells, column, false).map(Content::Text),
            ContentColumns::Completion { prompt, completion } => {
                let prompt = self.text(cells, prompt, true);
                let completion = self.text(cells, completion, false);
                Some(Content::Completion { prompt: prompt?, completion: completion? })
            }
            ContentColumns::Messages(column) => {
                let value = self.take(cells, column);
                match messages(value) {
                    Ok(messages) => Some(Content::Messages(messages)),
                    Err(kind) => self.fault(column, kind),
                }
            }
            ContentColumns::Image(column) => {
                let file = image.and_then(|file| file.ok_or(FaultKind::Missing));
                match file.and_then(|file| self.sound(&file).map(|()| file)) {
                    Ok(file) => Some(Content::Image(file)),
                    Err(kind) => self.fault(column, kind),
                }
            }
        }
    }

    /// Checks an image from its first byte to its last, as long as there are pixels left for it.
    fn sound(&mut self, file: &[u8]) -> Result<(), FaultKind> {
        let header = image::inspect(file, self.limits.image)?;
        let Some(limit) = self.limits.pixels else { return Ok(()) };
        self.pixels = self.pixels.saturating_add(u64::from(header.width) * u64::from(header.height));
        if self.pixels > limit {
            self.stopped = true;
            return Err(FaultKind::TooLarge { what: "the number of pixels of all images so far", limit });
        }
        Ok(image::verify(file, header)?)
    }

    /// Takes the file of a row's image out of its cell, unless it has come beside it; looks at its size only.
    fn image(&self, cells: &mut [Value], file: Option<Bytes>) -> Result<Option<Bytes>, FaultKind> {
        let Some(at) = self.image_at() else { return Ok(None) };
        let limit = self.limits.image.bytes;
        let large = |bytes: usize| FaultKind::from(ImageError::Bytes { bytes: bytes as u64, limit });
        if let Some(file) = file {
            return if file.len() as u64 > limit { Err(large(file.len())) } else { Ok(Some(file)) };
        }
        match cells.get_mut(at).map_or(Value::Null, Value::take) {
            Value::Null => Ok(None),
            Value::String(text) if text.is_empty() => Ok(None),
            Value::String(text) if text.len() as u64 > encoded(limit) => Err(large(text.len() / 4 * 3)),
            Value::String(text) => match BASE64.decode(text) {
                Ok(file) => Ok(Some(file.into())),
                Err(error) => Err(FaultKind::Value(format!("is no base64: {error}"))),
            },
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                Err(FaultKind::Type { expected: "an image in base64", got: kind(&other) })
            }
        }
    }

    fn text(&mut self, cells: &mut [Value], column: &str, may_be_empty: bool) -> Option<String> {
        match self.take(cells, column) {
            Value::String(text) if may_be_empty || !text.is_empty() => Some(text),
            Value::Null | Value::String(_) => self.fault(column, FaultKind::Missing),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                self.fault(column, FaultKind::Type { expected: "a text", got: kind(&other) })
            }
        }
    }

    /// Returns the names of a row's classes; `Some(None)` without a label column.
    fn label(&mut self, cells: &[Value]) -> Option<Option<Vec<String>>> {
        let declaration = self.declaration;
        let Some(label) = &declaration.label else { return Some(None) };
        let column = &label.column;
        let value = self.cell(cells, column);
        let names = match value {
            Value::Array(values) if label.multi_label => values.iter().map(class).collect::<Option<Vec<_>>>(),
            Value::String(text) if label.multi_label && !label.separator.is_empty() => {
                let parts = text.split(label.separator.as_str()).map(|part| part.trim().to_owned());
                Some(parts.filter(|part| !part.is_empty()).collect())
            }
            Value::Null => return self.fault(column, FaultKind::Missing),
            Value::String(text) if text.is_empty() => return self.fault(column, FaultKind::Missing),
            other @ (Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                if label.multi_label {
                    let expected = "a list of labels";
                    return self.fault(column, FaultKind::Type { expected, got: kind(other) });
                }
                class(other).map(|name| vec![name])
            }
        };
        let Some(mut names) = names else {
            let expected = "a text, a whole number or a truth value";
            return self.fault(column, FaultKind::Type { expected, got: kind(value) });
        };
        if names.iter().any(|name| name.is_empty() || name.len() > MAX_NAME_BYTES) {
            return self.fault(column, FaultKind::Value(format!("a label must have 1 to {MAX_NAME_BYTES} bytes")));
        }
        let count = names.len();
        names.sort();
        names.dedup();
        if names.len() < count {
            return self.fault(column, FaultKind::Value("names a label twice".into()));
        }
        let strange = names.iter().find(|name| !self.indices.contains_key(*name));
        match strange {
            Some(strange) if !label.names.is_empty() => {
                let text = format!("`{}` is none of the declared labels", shown(strange));
                self.fault(column, FaultKind::Value(text))
            }
            _ => Some(Some(names)),
        }
    }

    /// Turns names into indices; new ones are added.
    fn index(&mut self, names: Vec<String>) -> Label {
        let multi_label = self.declaration.label.as_ref().is_some_and(|label| label.multi_label);
        let mut classes = Vec::with_capacity(names.len());
        for name in names {
            let next = self.labels.len();
            let index = *self.indices.entry(name.clone()).or_insert(next);
            if index == next {
                self.labels.push(name);
            }
            classes.push(index);
        }
        if self.labels.len() > MAX_LABELS {
            let column = self.declaration.label.as_ref().map(|label| label.column.as_str());
            let kind = FaultKind::TooLarge { what: "the number of labels", limit: MAX_LABELS as u64 };
            self.file_fault(column, kind);
        }
        if multi_label { Label::Classes(classes) } else { Label::Class(classes.first().copied().unwrap_or(0)) }
    }

    fn groups(&mut self, cells: &[Value]) -> Option<Vec<Option<String>>> {
        let declaration = self.declaration;
        let groups: Vec<_> = declaration.groups.iter().map(|column| self.group(cells, column)).collect();
        groups.into_iter().collect()
    }

    /// Returns a group value; `Some(None)` where it is missing.
    fn group(&mut self, cells: &[Value], column: &str) -> Option<Option<String>> {
        let text = match self.cell(cells, column) {
            Value::Null => return Some(None),
            Value::String(text) if text.is_empty() => return Some(None),
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            other @ (Value::Array(_) | Value::Object(_)) => {
                let expected = "a text, a number or a truth value";
                return self.fault(column, FaultKind::Type { expected, got: kind(other) });
            }
        };
        if text.len() > MAX_NAME_BYTES {
            let what = "the size of a group value in bytes";
            return self.fault(column, FaultKind::TooLarge { what, limit: MAX_NAME_BYTES as u64 });
        }
        Some(Some(text))
    }

    fn part(&mut self, cells: &[Value]) -> Option<Part> {
        let declaration = self.declaration;
        match &declaration.split {
            SplitRule::AllTrain => Some(Part::Fixed(Split::Train)),
            SplitRule::Column(column) => match self.cell(cells, column) {
                Value::String(text) if !text.is_empty() => match Split::parse(text) {
                    Some(split) => Some(Part::Fixed(split)),
                    None => {
                        let text = format!("must be train, validation or test, not `{}`", shown(text));
                        self.fault(column, FaultKind::Value(text))
                    }
                },
                Value::Null | Value::String(_) => self.fault(column, FaultKind::Missing),
                other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                    self.fault(column, FaultKind::Type { expected: "a text", got: kind(other) })
                }
            },
            SplitRule::Seeded { validation, test, seed, grouping } => {
                let key = match grouping {
                    Some(column) => self.group(cells, column)?,
                    None => None,
                };
                Some(Part::Seeded { key, seed: *seed, validation: *validation, test: *test })
            }
        }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// Every fault found.
    pub(super) fn finish(mut self, id: String) -> Result<Dataset, DatasetError> {
        if self.read == 0 && self.faults_none() {
            self.file_fault(None, FaultKind::Empty);
        }
        if self.looked {
            for (column, _) in self.columns.iter().zip(&self.seen).filter(|(_, seen)| !**seen) {
                self.faults.absent(column);
            }
        }
        self.faults.finish(())?;
        let declared = self.declaration.label.as_ref().is_some_and(|label| !label.names.is_empty());
        if !declared {
            sort_labels(&mut self.labels, &mut self.rows);
        }
        Ok(Dataset {
            id,
            labels: self.labels,
            multi_label: self.declaration.label.as_ref().is_some_and(|label| label.multi_label),
            group_columns: self.declaration.groups.clone(),
            rows: self.rows,
        })
    }

    fn faults_none(&self) -> bool {
        !self.stopped && self.faults.is_empty()
    }
}

/// Where a row belongs.
enum Part {
    Fixed(Split),
    /// By the hash of `key`, or of the row.
    Seeded {
        key: Option<String>,
        seed: u64,
        validation: f64,
        test: f64,
    },
}

/// Puts classes into ascending order: by number if all are whole numbers, by text otherwise.
fn sort_labels(labels: &mut Vec<String>, rows: &mut [Row]) {
    let number = |name: &String| name.parse::<i64>().ok().filter(|number| number.to_string() == *name);
    let mut order: Vec<usize> = (0..labels.len()).collect();
    match labels.iter().map(number).collect::<Option<Vec<_>>>() {
        Some(numbers) => order.sort_by_key(|index| numbers[*index]),
        None => order.sort_by(|a, b| labels[*a].cmp(&labels[*b])),
    }
    let mut place = vec![0; order.len()];
    for (new, old) in order.iter().enumerate() {
        place[*old] = new;
    }
    for row in rows {
        match &mut row.label {
            None => {}
            Some(Label::Class(class)) => *class = place[*class],
            Some(Label::Classes(classes)) => {
                classes.iter_mut().for_each(|class| *class = place[*class]);
                classes.sort_unstable();
            }
        }
    }
    *labels = order.into_iter().map(|old| std::mem::take(&mut labels[old])).collect();
}
