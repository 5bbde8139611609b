//! Classes by words: each label is a continuation of the row's prompt, and the likelier it is the likelier the label.
//!
//! Words follow the prompt as they are given: whoever wants a space before them writes it. Probabilities are the softmax
//! of the compared values, so they say which label is meant if one of them is. Unconditional: the word after the token
//! that begins (or ends) a text is what is taken off.
//! After: lm-evaluation-harness `multiple_choice`; Brown et al. 2020 (arXiv 2005.14165) 2.4 for the last.

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{Normalization, Settings};
use super::classes::Classes;
use super::plan::{Planner, Rows};
use super::{Evidence, Predicted, Reading, Results};
use crate::encode::Question;

/// Planned rows.
pub(super) struct LabelWords {
    classes: Classes,
    normalization: Normalization,
    bytes: Vec<usize>,
    rows: Vec<Planned>,
}

/// One row.
struct Planned {
    unit: usize,
    /// Tokens of each word.
    lengths: Vec<usize>,
    /// Each word without the prompt; empty unless it is needed.
    alone: Vec<usize>,
}

impl LabelWords {
    pub(super) fn plan(
        rows: &Rows<'_>,
        settings: &Settings,
        (words, normalization): (&[String], Normalization),
        planner: &mut Planner<'_>,
    ) -> Result<Self, AuditError> {
        let classes = Classes::of(rows, settings)?;
        let field = "task.label_words.words";
        if words.len() != classes.names.len() {
            return Err(setting(field, format!("{} words for {} labels", words.len(), classes.names.len())));
        }
        if words.iter().any(String::is_empty) {
            return Err(setting(field, "a word is empty"));
        }
        let mut planned = Vec::with_capacity(rows.rows.len());
        for (i, row) in rows.rows.iter().enumerate() {
            let unit = planner.answers(i, &Question::of(&row.content), words, &[])?;
            let alone = match normalization {
                Normalization::Unconditional => planner.unconditional(i, unit)?,
                Normalization::Sum | Normalization::MeanToken | Normalization::MeanByte => Vec::new(),
            };
            planned.push(Planned { unit, lengths: planner.lengths(unit), alone });
        }
        let bytes = words.iter().map(String::len).collect();
        Ok(Self { classes, normalization, bytes, rows: planned })
    }

    fn scores(&self, row: usize, results: &Results) -> Vec<f64> {
        let Planned { unit, lengths, alone } = &self.rows[row];
        let sums = results[*unit].iter().enumerate();
        let score = |(word, sum): (usize, &f64)| match self.normalization {
            Normalization::Sum => *sum,
            Normalization::MeanToken => sum / lengths[word] as f64,
            Normalization::MeanByte => sum / self.bytes[word] as f64,
            Normalization::Unconditional => sum - results[alone[word]][0],
        };
        sums.map(score).collect()
    }
}

impl Reading for LabelWords {
    fn outcomes(&self, models: &[&Results], _: &Settings) -> Result<Predicted, AuditError> {
        let scores = |results: &&Results| (0..self.rows.len()).map(|row| self.scores(row, results)).collect();
        Ok(self.classes.outcomes(models.iter().map(scores)).into())
    }

    fn evidence(&self, row: usize, results: &Results) -> Option<Evidence> {
        Some(self.classes.evidence(row, &self.scores(row, results)))
    }
}
