//! How well texts are predicted: loss a token, bits a byte, perplexity.
//!
//! A text is measured after the token that begins (or ends) a text, a completion after its prompt, a conversation in its
//! assistant's turns; no end of text is added. Bytes are those of what is measured, so that tokenizers can be compared.
//! Units: natural logarithms a token, bits a byte. After: lm-evaluation-harness `loglikelihood_rolling` without windows.

use std::f64::consts::LN_2;

use super::super::AuditError;
use super::super::settings::Settings;
use super::super::table::{Formula, Outcomes, RatioColumn, RatioMeasure};
use super::plan::{Planner, Rows};
use super::{Evidence, Predicted, Reading, Results};

/// Planned rows: unit and bytes of each.
pub(super) struct Perplexity(Vec<(usize, usize)>);

impl Perplexity {
    pub(super) fn plan(rows: &Rows<'_>, planner: &mut Planner<'_>) -> Result<Self, AuditError> {
        Ok(Self((0..rows.rows.len()).map(|row| planner.measured(row)).collect::<Result<_, _>>()?))
    }
}

impl Reading for Perplexity {
    fn outcomes(&self, models: &[&Results], _: &Settings) -> Result<Predicted, AuditError> {
        let measure = |name: &str, formula| RatioMeasure { name: name.into(), formula, is_rate: false };
        let measures = vec![
            measure("loss_per_token", Formula::Ratio(0)),
            measure("bits_per_byte", Formula::Ratio(1)),
            measure("perplexity", Formula::Exponential(0)),
        ];
        let columns = |results: &&Results| -> Vec<RatioColumn> {
            let loss = || self.0.iter().map(|(unit, _)| -results[*unit][0]);
            let tokens = self.0.iter().map(|(unit, _)| results[*unit][1]).collect();
            let bytes = self.0.iter().map(|(_, bytes)| *bytes as f64).collect();
            vec![
                RatioColumn { sums: loss().collect(), counts: tokens },
                RatioColumn { sums: loss().map(|loss| loss / LN_2).collect(), counts: bytes },
            ]
        };
        Ok(Outcomes::Ratios { measures, models: models.iter().map(columns).collect() }.into())
    }

    fn evidence(&self, row: usize, results: &Results) -> Option<Evidence> {
        let unit = self.0[row].0;
        let mean = results[unit][0] / results[unit][1];
        Some(Evidence { log_probability: mean, signal: mean, text: Some(unit) })
    }
}
