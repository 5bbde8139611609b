//! The rows of a data set as a job learns from them and looks at them.
//!
//! Checks rows against task and model before anything is computed, so that a fault is told at the start and not in the
//! third epoch. Keeps all ids in memory; says nothing of their order (see `order`). What a row is used
//! for is told by the settings; others are not read. A fault names its row, counted from 1 in the order of the file.
//! Units: tokens.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::dataset::{Content, Dataset, Label, Row};
use crate::encode::Encoder;

use super::{Context, Reader, Settings, Task, TrainError, Use};

/// Most values of one group column that figures are kept for; more is an identifier rather than a group.
const MAX_GROUP_VALUES: usize = 256;

/// One row for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Its ids, 1 or more.
    pub tokens: Vec<u32>,
    /// Whether the token of this place is to be predicted from those before it; as long as `tokens`.
    pub learnt: Vec<bool>,
    /// An image in the place of ids.
    pub image: Option<Picture>,
    /// What it is labelled with; classification only.
    pub class: Option<Label>,
    /// Indices into [`Examples::groups`], one a group column asked for.
    pub groups: Vec<usize>,
}

/// An image to learn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Its row in the data set, from 1.
    pub row: usize,
    /// Its file.
    pub file: Bytes,
}

/// A group that figures are kept for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// Name of the group column.
    pub column: String,
    /// Its value; `None` where the value is missing.
    pub value: Option<String>,
}

/// All rows of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examples {
    /// Learnt from, in the order of the file; 1 or more.
    pub train: Vec<Example>,
    /// Looked at, in the order of the file.
    pub validation: Vec<Example>,
    /// In the order of the columns asked for and of their values, a missing value last.
    pub groups: Vec<GroupKey>,
    /// Names of the classes; empty for language.
    pub labels: Vec<String>,
    /// Whether a row may have several classes.
    pub multi_label: bool,
    /// Rows that lost tokens to [`Settings::max_tokens`].
    pub truncated: usize,
}

impl Examples {
    /// Encodes the training and validation rows of `dataset`.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for `max_tokens` and `groups`; [`TrainError::Data`] names the row, or says what the
    /// rows together lack.
    pub fn new(context: &Context, dataset: &Dataset, settings: &Settings) -> Result<Self, TrainError> {
        let encoder = match (&context.reader, settings.task) {
            (Reader::Text { tokenizer, chat }, Task::CausalLm | Task::SequenceClassification) => {
                let longest = context.model.info().context_length;
                if settings.max_tokens < 2 || settings.max_tokens > longest {
                    let fault = format!("must be from 2 to the model's context length, {longest}");
                    return Err(setting("max_tokens", fault));
                }
                Some(Encoder::new(context.model.info(), tokenizer, chat.as_deref(), settings.max_tokens))
            }
            (Reader::Images(_), Task::ImageClassification) => None,
            (Reader::Text { .. }, Task::ImageClassification) => {
                return Err(setting("task", "the base model reads text, not images".to_owned()));
            }
            (Reader::Images(_), Task::CausalLm | Task::SequenceClassification) => {
                return Err(setting("task", "the base model reads images, not text".to_owned()));
            }
        };
        let (table, groups) = Groups::new(dataset, settings)?;
        let classes = settings.task.has_classes();
        if classes && dataset.labels.is_empty() {
            return Err(TrainError::Data("the data set has no label column, which classification needs".to_owned()));
        }
        let mut examples = Self {
            train: Vec::new(),
            validation: Vec::new(),
            groups,
            labels: if classes { dataset.labels.clone() } else { Vec::new() },
            multi_label: classes && dataset.multi_label,
            truncated: 0,
        };
        for (i, row) in dataset.rows.iter().enumerate() {
            let part = match settings.use_of(row) {
                Use::Learn => &mut examples.train,
                Use::Look => &mut examples.validation,
                Use::Leave => continue,
            };
            let named = |fault: &dyn std::fmt::Display| TrainError::Data(format!("row {}: {fault}", i + 1));
            let class = if classes { Some(label(row, dataset).map_err(|fault| named(&fault))?) } else { None };
            let groups = table.of(row);
            let Some(encoder) = &encoder else {
                let Content::Image(file) = &row.content else { return Err(named(&"it is no image")) };
                if let Reader::Images(processor) = &context.reader {
                    processor.takes(file).map_err(|fault| named(&fault))?;
                }
                let image = Some(Picture { row: i + 1, file: file.clone() });
                part.push(Example { tokens: Vec::new(), learnt: Vec::new(), image, class, groups });
                continue;
            };
            let encoded = match settings.task {
                Task::CausalLm => encoder.learnt(&row.content, settings.train_on_prompt),
                Task::SequenceClassification | Task::ImageClassification => encoder.given(&row.content),
            };
            let encoded = encoded.map_err(|fault| named(&fault))?;
            examples.truncated += usize::from(encoded.truncated);
            part.push(Example { tokens: encoded.tokens, learnt: encoded.learnt, image: None, class, groups });
        }
        let of = if settings.subset.is_some() { "subset" } else { "training split" };
        let Some((first, others)) = examples.train.split_first() else {
            return Err(TrainError::Data(format!("no row is in the {of}")));
        };
        if classes && others.iter().all(|example| example.class == first.class) {
            let fault = format!("all rows of the {of} have the same label, so there is nothing to tell apart");
            return Err(TrainError::Data(fault));
        }
        Ok(examples)
    }
}

/// Returns the row's label, if it is one of the data set's.
fn label(row: &Row, dataset: &Dataset) -> Result<Label, String> {
    let label = row.label.as_ref().ok_or("it has no label")?;
    let (fits, largest) = match label {
        Label::Class(class) => (!dataset.multi_label, Some(*class)),
        Label::Classes(classes) => (dataset.multi_label, classes.iter().copied().max()),
    };
    if !fits || largest.is_some_and(|class| class >= dataset.labels.len()) {
        return Err("its label is not one of the data set's".to_owned());
    }
    Ok(label.clone())
}

/// Finds the groups of a row.
struct Groups {
    /// Place in [`Dataset::group_columns`], and value to index, a column asked for.
    columns: Vec<(usize, BTreeMap<Option<String>, usize>)>,
}

impl Groups {
    fn new(dataset: &Dataset, settings: &Settings) -> Result<(Self, Vec<GroupKey>), TrainError> {
        let asked = &settings.groups;
        let mut columns = Vec::with_capacity(asked.len());
        let mut keys = Vec::new();
        for (i, column) in asked.iter().enumerate() {
            if asked[..i].contains(column) {
                return Err(setting("groups", format!("`{column}` is named twice")));
            }
            let Some(place) = dataset.group_columns.iter().position(|name| name == column) else {
                return Err(setting("groups", format!("the data set has no group column `{column}`")));
            };
            let used = dataset.rows.iter().filter(|row| settings.use_of(row) != Use::Leave);
            let mut values: BTreeSet<Option<&String>> = used.map(|row| group(row, place)).collect();
            if values.len() > MAX_GROUP_VALUES {
                let count = values.len();
                let fault = format!("`{column}` has {count} values, at most {MAX_GROUP_VALUES} can be reported");
                return Err(setting("groups", fault));
            }
            let missing = values.remove(&None).then_some(None);
            let mut indices = BTreeMap::new();
            for value in values.into_iter().chain(missing) {
                indices.insert(value.cloned(), keys.len());
                keys.push(GroupKey { column: column.clone(), value: value.cloned() });
            }
            columns.push((place, indices));
        }
        Ok((Self { columns }, keys))
    }

    fn of(&self, row: &Row) -> Vec<usize> {
        self.columns.iter().filter_map(|(place, indices)| indices.get(&group(row, *place).cloned()).copied()).collect()
    }
}

fn group(row: &Row, place: usize) -> Option<&String> {
    row.groups.get(place).and_then(Option::as_ref)
}

pub(super) fn setting(field: &'static str, fault: String) -> TrainError {
    TrainError::Setting { field, fault }
}

#[cfg(test)]
mod tests;
