//! Answers of different length, made comparable: what their log-probabilities are divided by, or what is taken off.
//!
//! Words no answer and chooses none. Unconditional: the answer after the token that begins (or ends) a text is what is
//! taken off. Units: natural logarithms.
//! After: lm-evaluation-harness `multiple_choice` (acc, acc_bytes); Brown et al. 2020 (arXiv 2005.14165) 2.4 for the last.

use super::super::AuditError;
use super::super::settings::Normalization;
use super::Results;
use super::plan::Planner;

/// Planned answers of one question, or texts that follow nothing.
pub(super) struct Likelihoods {
    unit: usize,
    /// Tokens of each.
    tokens: Vec<usize>,
    /// Each without the question; empty unless it is needed.
    alone: Vec<usize>,
}

impl Likelihoods {
    /// Takes a planned unit of answers, and plans what the comparison needs besides.
    pub(super) fn plan(
        planner: &mut Planner<'_>,
        (row, unit): (usize, usize),
        normalization: Normalization,
    ) -> Result<Self, AuditError> {
        let alone = match normalization {
            Normalization::Unconditional => planner.unconditional(row, unit)?,
            Normalization::Sum | Normalization::MeanToken | Normalization::MeanByte => Vec::new(),
        };
        Ok(Self { unit, tokens: planner.lengths(unit), alone })
    }

    /// Returns what is compared; `bytes` are those of each answer.
    pub(super) fn scores(&self, normalization: Normalization, bytes: &[usize], results: &Results) -> Vec<f64> {
        let score = |(answer, sum): (usize, &f64)| match normalization {
            Normalization::Sum => *sum,
            Normalization::MeanToken => sum / self.tokens[answer] as f64,
            Normalization::MeanByte => sum / bytes[answer].max(1) as f64,
            Normalization::Unconditional => sum - self.alone.get(answer).map_or(0.0, |alone| results[*alone][0]),
        };
        results[self.unit].iter().enumerate().map(score).collect()
    }
}
