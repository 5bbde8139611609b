//! Wire to domain, requests for classes: what is classified, texts or images, given or as rows of a data set.
//!
//! Reads no data set and decodes nothing. Ranges are those written in `proto/evenkeel/v1/inference.proto`.

use bytes::Bytes;

use super::convert::{Bounds, MAX_IMAGES, MAX_INPUTS, Source, adapter, source};
use super::names::dataset;
use super::pb;
use super::violations::Violations;
use crate::dataset::{Content, Dataset};
use crate::model::chat::Message;
use crate::registry::Reference;

/// A checked request for classes.
#[derive(Debug, Clone)]
pub(super) struct Classify {
    /// The adapter; none is the base model.
    pub(super) adapter: Option<Reference>,
    /// Name of the base model; empty where none was given.
    pub(super) base_model: String,
    /// What is classified.
    pub(super) wanted: Wanted,
}

/// What is classified.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    /// What came with the request.
    Given(Entries),
    /// What is in a data set.
    Rows(RowsWanted),
}

/// Texts or images, at least one, and where they came from.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    /// All of one kind.
    pub(super) content: Contents,
    /// Where they came from.
    pub(super) places: Places,
}

/// Entries of one kind.
#[derive(Debug, Clone)]
pub(super) enum Contents {
    /// Texts.
    Texts(Vec<Source>),
    /// Files of images.
    Images(Vec<Bytes>),
}

/// Where entries came from, for faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Places {
    /// Inputs of the request.
    Inputs,
    /// Rows, by their numbers from 1.
    Rows(Vec<usize>),
}

/// Rows of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowsWanted {
    /// Name or id.
    pub(super) dataset: String,
    /// Which.
    pub(super) numbers: Numbers,
}

/// Numbers of rows, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Each by itself.
    List(Vec<u64>),
    /// Some that follow one another.
    Range {
        /// The first.
        first: u64,
        /// How many, 1 or more.
        count: usize,
    },
}

impl Places {
    /// Records the fault of an entry.
    pub(super) fn fault(&self, v: &mut Violations, entry: usize, part: &str, fault: &str) {
        match self {
            Self::Inputs => v.add(format!("inputs[{entry}]{part}"), fault),
            Self::Rows(numbers) => v.add("rows", format!("row {}: {fault}", numbers.get(entry).unwrap_or(&0))),
        }
    }

    /// Returns the field that all of them are in.
    pub(super) fn all(&self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::Rows(_) => "rows",
        }
    }

    /// Returns the number of an entry's row; 0 for an input.
    pub(super) fn row(&self, entry: usize) -> u64 {
        match self {
            Self::Inputs => 0,
            Self::Rows(numbers) => numbers.get(entry).map_or(0, |number| *number as u64),
        }
    }
}

/// Checks a request for classes.
pub(super) fn classify(request: pb::ClassifyRequest, bounds: Bounds) -> Result<Classify, Violations> {
    let mut v = Violations::default();
    let adapter = adapter(&mut v, "adapter", &request.adapter);
    let wanted = match request.rows {
        Some(asked) => {
            v.require("inputs", request.inputs.is_empty(), "must not be given beside rows");
            rows(&mut v, asked).map(Wanted::Rows)
        }
        None => {
            let content = if request.inputs.iter().any(|input| input.image.is_some()) {
                Contents::Images(images(&mut v, request.inputs))
            } else {
                Contents::Texts(texts(&mut v, request.inputs, bounds))
            };
            Some(Wanted::Given(Entries { content, places: Places::Inputs }))
        }
    };
    v.finish(wanted.map(|wanted| Classify { adapter, base_model: request.base_model, wanted }))
}

fn texts(v: &mut Violations, inputs: Vec<pb::ClassifyInput>, bounds: Bounds) -> Vec<Source> {
    v.require("inputs", (1..=MAX_INPUTS).contains(&inputs.len()), "must have 1 to 1024 entries");
    let mut sources = Vec::new();
    for (i, input) in inputs.into_iter().take(MAX_INPUTS).enumerate() {
        let mut own = Violations::default();
        sources.extend(source(&mut own, input.prompt, input.messages, input.prompt_token_ids, bounds));
        for fault in own.list() {
            v.add(format!("inputs[{i}].{}", fault.field), fault.description.clone());
        }
    }
    sources
}

/// Takes the images of inputs that are nothing else.
fn images(v: &mut Violations, inputs: Vec<pb::ClassifyInput>) -> Vec<Bytes> {
    v.require("inputs", inputs.len() <= MAX_IMAGES, "must have at most 64 images");
    let mut images = Vec::new();
    for (i, input) in inputs.into_iter().take(MAX_IMAGES).enumerate() {
        let text = input.prompt.is_some() || !input.messages.is_empty() || input.prompt_token_ids.is_some();
        v.require(&format!("inputs[{i}]"), !text, "must be an image alone, as another input is one");
        match input.image {
            Some(image) => images.push(image.into()),
            None => v.add(format!("inputs[{i}].image"), "must be given, as another input is an image"),
        }
    }
    images
}

fn rows(v: &mut Violations, asked: pb::DatasetRows) -> Option<RowsWanted> {
    dataset(v, "rows.dataset", &asked.dataset);
    let numbers = match (asked.numbers, asked.range) {
        (numbers, None) if !numbers.is_empty() => {
            v.require("rows.numbers", numbers.len() <= MAX_INPUTS, "must have at most 1024 entries");
            Numbers::List(numbers)
        }
        (numbers, Some(pb::RowRange { first, count })) if numbers.is_empty() => {
            v.require("rows.range.first", first > 0, "must be 1 or more");
            v.require("rows.range.count", (1..=MAX_INPUTS as u32).contains(&count), "must be 1 to 1024");
            Numbers::Range { first, count: count as usize }
        }
        (_, _) => {
            v.add("rows.numbers", "exactly one of numbers and range must be given");
            return None;
        }
    };
    Some(RowsWanted { dataset: asked.dataset, numbers })
}

impl RowsWanted {
    /// Takes the rows out of their data set. What a classifier reads of a row is what training and audits give it.
    pub(super) fn take(&self, dataset: &Dataset) -> Result<Entries, Violations> {
        let mut v = Violations::default();
        let there = dataset.rows.len();
        let fault = format!("must be 1 to {there}: the data set has no other rows");
        let place = |number: u64| usize::try_from(number).ok().filter(|number| (1..=there).contains(number));
        let mut numbers = Vec::new();
        match &self.numbers {
            Numbers::List(list) => {
                for (i, number) in list.iter().enumerate() {
                    match place(*number) {
                        Some(number) => numbers.push(number),
                        None => v.add(format!("rows.numbers[{i}]"), fault.clone()),
                    }
                }
            }
            Numbers::Range { first, count } => match place(*first) {
                Some(first) => numbers.extend(first..=there.min(first + count - 1)),
                None => v.add("rows.range.first", fault),
            },
        }
        let (mut texts, mut images) = (Vec::new(), Vec::new());
        for row in numbers.iter().filter_map(|number| dataset.rows.get(number - 1)) {
            match &row.content {
                Content::Image(file) => images.push(file.clone()),
                Content::Text(text) | Content::Completion { prompt: text, .. } => {
                    texts.push(Source::Text(text.clone()))
                }
                Content::Messages(messages) => {
                    let message =
                        |m: &crate::dataset::Message| Message { role: m.role.clone(), content: m.content.clone() };
                    texts.push(Source::Messages(messages.iter().map(message).collect()));
                }
            }
        }
        v.require("rows", images.len() <= MAX_IMAGES, "must be at most 64 images");
        let content = if images.is_empty() { Contents::Texts(texts) } else { Contents::Images(images) };
        v.finish(Some(Entries { content, places: Places::Rows(numbers) }))
    }
}
