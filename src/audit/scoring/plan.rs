//! What has to be computed: units of work, each once, whatever number of rows or askings share it.
//!
//! Encodes and counts; computes nothing and knows no task. Units are the same for every model of an audit.
//! Units: tokens. A fault names its row, and the column where its text stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::super::AuditError;
use super::super::error::setting;
use super::super::groups::Columns;
use crate::dataset::{Content, Dataset, Row};
use crate::encode::{Answers, Encoder, Question, RowFault};
use crate::model::image::Processor;

/// Tokens that an image counts as, where work is divided.
const IMAGE_TOKENS: usize = 64;

/// One piece of work; its result depends on it and the model alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unit {
    /// Logits of classes for a sequence.
    Classes(Vec<u32>),
    /// Log-probabilities of answers after one prompt.
    Answers {
        /// 1 or more.
        prompt: Vec<u32>,
        /// 1 or more each.
        answers: Vec<Vec<u32>>,
    },
    /// Log-probability of the marked tokens of a sequence.
    Text {
        /// 2 or more.
        tokens: Vec<u32>,
        /// As long as `tokens`; the first does not count.
        learnt: Vec<bool>,
    },
    /// A greedy completion.
    Completion {
        /// 1 or more.
        prompt: Vec<u32>,
        /// Most tokens to write.
        new: usize,
    },
    /// Logits of classes for an image.
    Image {
        /// Its file.
        file: Bytes,
        /// Whether it is mirrored.
        mirrored: bool,
    },
}

impl Unit {
    /// Returns the tokens that go in; an image counts as many as a short text.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Image { .. } => IMAGE_TOKENS,
            Self::Classes(tokens) | Self::Text { tokens, .. } => tokens.len(),
            Self::Answers { prompt, answers } => prompt.len() + answers.iter().map(Vec::len).sum::<usize>(),
            Self::Completion { prompt, new } => prompt.len() + new,
        }
    }

    /// Adds its tokens, or its file, to a digest.
    fn hash(&self, digest: &mut Sha256) {
        let mut list = |tokens: &[u32]| {
            digest.update((tokens.len() as u64).to_le_bytes());
            tokens.iter().for_each(|token| digest.update(token.to_le_bytes()));
        };
        match self {
            Self::Classes(tokens) => list(tokens),
            Self::Answers { prompt, answers } => std::iter::once(prompt).chain(answers).for_each(|ids| list(ids)),
            Self::Text { tokens, learnt } => {
                list(tokens);
                list(&learnt.iter().map(|learnt| u32::from(*learnt)).collect::<Vec<_>>());
            }
            Self::Completion { prompt, new } => {
                list(prompt);
                list(&[*new as u32]);
            }
            Self::Image { file, mirrored } => {
                digest.update((file.len() as u64).to_le_bytes());
                digest.update(file);
                digest.update([u8::from(*mirrored)]);
            }
        }
    }
}

/// The audited rows.
pub(super) struct Rows<'a> {
    /// Where they come from.
    pub(super) dataset: &'a Dataset,
    /// In the order of the data set.
    pub(super) rows: Vec<&'a Row>,
    /// Their group columns, and their numbers.
    pub(super) columns: Columns<'a>,
}

impl Rows<'_> {
    /// Returns the places of columns.
    pub(super) fn places(&self, field: &'static str, names: &[String]) -> Result<Vec<usize>, AuditError> {
        names.iter().map(|name| self.columns.place(field, name)).collect()
    }

    /// Returns a row's texts in columns that must have some.
    pub(super) fn texts(&self, row: usize, places: &[usize]) -> Result<Vec<String>, AuditError> {
        places.iter().map(|place| Ok(self.columns.needed(row, *place)?.to_owned())).collect()
    }

    /// Returns the fault of a row, in a column where one is named.
    pub(super) fn fault(&self, row: usize, column: Option<String>, fault: impl Into<String>) -> AuditError {
        AuditError::Row { row: self.number(row), column, fault: fault.into() }
    }

    /// Returns a row's number in the data set, from 1.
    fn number(&self, row: usize) -> usize {
        self.columns.numbers.get(row).copied().unwrap_or(row + 1)
    }

    fn encoding(&self, row: usize, columns: &[String], fault: &RowFault) -> AuditError {
        self.fault(row, fault.answer().and_then(|answer| columns.get(answer).cloned()), fault.to_string())
    }
}

/// How rows are read.
pub(super) enum Reader<'a> {
    /// As texts.
    Text(Encoder<'a>),
    /// As images.
    Images(&'a Processor),
}

/// Collects units.
pub(super) struct Planner<'a> {
    reader: Reader<'a>,
    data: &'a Rows<'a>,
    known: BTreeMap<Arc<Unit>, usize>,
    units: Vec<Arc<Unit>>,
    rows: Vec<usize>,
    truncated: Vec<bool>,
}

/// All units, in the order in which they are computed.
#[derive(Debug)]
pub(super) struct Plan {
    /// No two alike.
    pub(super) units: Vec<Arc<Unit>>,
    /// The first row that needs each, by its number in the data set.
    pub(super) rows: Vec<usize>,
    /// Rows that lost tokens.
    pub(super) truncated: u64,
}

impl Plan {
    /// Adds the units to a digest.
    pub(super) fn hash(&self, digest: &mut Sha256) {
        digest.update((self.units.len() as u64).to_le_bytes());
        self.units.iter().for_each(|unit| unit.hash(digest));
    }
}

impl<'a> Planner<'a> {
    pub(super) fn new(reader: Reader<'a>, data: &'a Rows<'a>) -> Self {
        let truncated = vec![false; data.rows.len()];
        Self { reader, data, known: BTreeMap::new(), units: Vec::new(), rows: Vec::new(), truncated }
    }

    /// Ends planning.
    pub(super) fn finish(self) -> Plan {
        let truncated = self.truncated.iter().filter(|truncated| **truncated).count() as u64;
        Plan { units: self.units, rows: self.rows, truncated }
    }

    /// Plans the classes of a row's content.
    pub(super) fn classes(&mut self, row: usize) -> Result<usize, AuditError> {
        if self.sees() {
            return self.image(row, false);
        }
        let encoded = self.encoder()?.given(&self.data.rows[row].content);
        let encoded = encoded.map_err(|fault| self.data.encoding(row, &[], &fault))?;
        self.truncated[row] |= encoded.truncated;
        Ok(self.add(row, Unit::Classes(encoded.tokens)))
    }

    /// Plans the classes of a row's image.
    pub(super) fn image(&mut self, row: usize, mirrored: bool) -> Result<usize, AuditError> {
        let Content::Image(file) = &self.data.rows[row].content else {
            return Err(self.data.fault(row, None, "it is no image, and the base model reads images"));
        };
        if let Reader::Images(processor) = &self.reader {
            processor.takes(file).map_err(|fault| self.data.fault(row, None, fault.to_string()))?;
        }
        Ok(self.add(row, Unit::Image { file: file.clone(), mirrored }))
    }

    /// Returns whether rows are images.
    pub(super) fn sees(&self) -> bool {
        matches!(self.reader, Reader::Images(_))
    }

    fn encoder(&self) -> Result<&Encoder<'a>, AuditError> {
        match &self.reader {
            Reader::Text(encoder) => Ok(encoder),
            Reader::Images(_) => Err(setting("task", "a model of images has no language")),
        }
    }

    /// Returns what a row asks.
    pub(super) fn question(&self, row: usize) -> Result<Question, AuditError> {
        Question::of(&self.data.rows[row].content).map_err(|fault| self.data.encoding(row, &[], &fault))
    }

    /// Plans answers to a question; `columns` are those where they stand, for faults.
    pub(super) fn answers(
        &mut self,
        row: usize,
        question: &Question,
        answers: &[String],
        columns: &[String],
    ) -> Result<usize, AuditError> {
        let encoded = self.encoder()?.answers(question, answers);
        self.scored(row, encoded, columns)
    }

    /// Plans texts that follow nothing; `columns` are those where they stand, for faults.
    pub(super) fn whole(&mut self, row: usize, texts: &[String], columns: &[String]) -> Result<usize, AuditError> {
        let encoded = self.encoder()?.whole(texts);
        self.scored(row, encoded, columns)
    }

    /// Plans each answer of a planned unit with no prompt but the token that begins or ends a text.
    pub(super) fn unconditional(&mut self, row: usize, unit: usize) -> Result<Vec<usize>, AuditError> {
        let start = self.encoder()?.start().map_err(|fault| self.data.encoding(row, &[], &fault))?;
        let Some(Unit::Answers { answers, .. }) = self.units.get(unit).map(|unit| (**unit).clone()) else {
            return Ok(Vec::new());
        };
        let alone = |answer: Vec<u32>| self.add(row, Unit::Answers { prompt: vec![start], answers: vec![answer] });
        Ok(answers.into_iter().map(alone).collect())
    }

    fn scored(
        &mut self,
        row: usize,
        encoded: Result<Answers, RowFault>,
        columns: &[String],
    ) -> Result<usize, AuditError> {
        let encoded = encoded.map_err(|fault| self.data.encoding(row, columns, &fault))?;
        self.truncated[row] |= encoded.truncated;
        Ok(self.add(row, Unit::Answers { prompt: encoded.prompt, answers: encoded.answers }))
    }

    /// Plans the likelihood of a row's content; returns the bytes of what is measured too.
    pub(super) fn measured(&mut self, row: usize) -> Result<(usize, usize), AuditError> {
        let encoded = self.encoder()?.measured(&self.data.rows[row].content);
        let (encoded, bytes) = encoded.map_err(|fault| self.data.encoding(row, &[], &fault))?;
        self.truncated[row] |= encoded.truncated;
        Ok((self.add(row, Unit::Text { tokens: encoded.tokens, learnt: encoded.learnt }), bytes))
    }

    /// Plans a completion of a row's content.
    pub(super) fn completion(&mut self, row: usize, new: usize) -> Result<usize, AuditError> {
        let asked = self.encoder()?.asked(&self.question(row)?, new);
        let (prompt, truncated) = asked.map_err(|fault| self.data.encoding(row, &[], &fault))?;
        self.truncated[row] |= truncated;
        Ok(self.add(row, Unit::Completion { prompt, new }))
    }

    /// Returns the tokens of each answer of a planned unit.
    pub(super) fn lengths(&self, unit: usize) -> Vec<usize> {
        match self.units.get(unit).map(|unit| &**unit) {
            Some(Unit::Answers { answers, .. }) => answers.iter().map(Vec::len).collect(),
            Some(Unit::Classes(_) | Unit::Text { .. } | Unit::Completion { .. } | Unit::Image { .. }) | None => {
                Vec::new()
            }
        }
    }

    fn add(&mut self, row: usize, unit: Unit) -> usize {
        if let Some(known) = self.known.get(&unit) {
            return *known;
        }
        let (unit, place) = (Arc::new(unit), self.units.len());
        self.known.insert(Arc::clone(&unit), place);
        self.units.push(unit);
        self.rows.push(self.data.number(row));
        place
    }
}
