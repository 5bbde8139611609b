//! Classes by words: each label is a continuation of the row's prompt, and the likelier it is the likelier the label.
//!
//! Words follow the prompt as they are given: whoever wants a space before them writes it. Probabilities are the softmax
//! of the compared values (`likelihood`), so they say which label is meant if one of them is.
//! After: lm-evaluation-harness `multiple_choice`.

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{Normalization, Settings};
use super::classes::Classes;
use super::likelihood::Likelihoods;
use super::plan::{Planner, Rows};
use super::{Evidence, Predicted, Reading, Results};

/// Planned rows.
pub(super) struct LabelWords {
    classes: Classes,
    normalization: Normalization,
    /// Of each word.
    bytes: Vec<usize>,
    rows: Vec<Likelihoods>,
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
        for i in 0..rows.rows.len() {
            let unit = planner.answers(i, &planner.question(i)?, words, &[])?;
            planned.push(Likelihoods::plan(planner, (i, unit), normalization)?);
        }
        let bytes = words.iter().map(String::len).collect();
        Ok(Self { classes, normalization, bytes, rows: planned })
    }

    fn scores(&self, row: usize, results: &Results) -> Vec<f64> {
        self.rows[row].scores(self.normalization, &self.bytes, results)
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
