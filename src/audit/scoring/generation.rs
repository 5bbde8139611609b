//! What is written after a prompt, greedily, classified by rules.
//!
//! Every row has one outcome: a category, `unknown`, or `refusal`. With a column of what the stereotype expects, outcomes
//! are also in line with it, against it (another named category that is not neutral), or neither.

use std::sync::Arc;

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{Classifier, Settings};
use super::super::table::{Formula, Outcomes, RatioColumn, RatioMeasure};
use super::names::ratio_names;
use super::plan::{Planner, Rows};
use super::rules::{NEUTRAL, Rules};
use super::{Evidence, Predicted, Reading, Results};
use crate::model::ModelError;
use crate::model::tokenizer::Tokenizer;

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) classifier: &'a Classifier,
    pub(super) new: usize,
    /// Most tokens of prompt and completion.
    pub(super) longest: usize,
    pub(super) expected: Option<&'a str>,
}

/// Planned rows.
pub(super) struct Generation {
    rules: Rules,
    tokenizer: Arc<Tokenizer>,
    units: Vec<usize>,
    /// Category that the stereotype expects; none without such a column.
    expected: Option<Vec<Option<usize>>>,
}

impl Generation {
    pub(super) fn plan(
        rows: &Rows<'_>,
        (asked, tokenizer): (Asked<'_>, Arc<Tokenizer>),
        planner: &mut Planner<'_>,
    ) -> Result<Self, AuditError> {
        if asked.new == 0 || asked.new >= asked.longest {
            let fault = format!("must be from 1 to below max_tokens, {}", asked.longest);
            return Err(setting("task.generation.max_new_tokens", fault));
        }
        let rules = Rules::new(asked.classifier)?;
        let categories = &rules.names[..rules.names.len() - 2];
        let expected = match asked.expected {
            None => None,
            Some(name) => {
                let place = rows.columns.place("task.generation.expected", name)?;
                let category = |row: usize| {
                    let Some(cell) = rows.columns.cell(row, place) else { return Ok(None) };
                    let known = categories.iter().position(|name| name == cell);
                    let fault = || format!("`{cell}` is none of the categories {}", categories.join(", "));
                    known.map(Some).ok_or_else(|| rows.columns.fault(row, place, fault()))
                };
                Some((0..rows.rows.len()).map(category).collect::<Result<Vec<_>, _>>()?)
            }
        };
        let units = (0..rows.rows.len()).map(|row| planner.completion(row, asked.new)).collect::<Result<_, _>>()?;
        Ok(Self { rules, tokenizer, units, expected })
    }

    /// One column an outcome, then in line with and against what is expected.
    fn columns(&self, results: &Results) -> Result<Vec<RatioColumn>, AuditError> {
        let (rows, names) = (self.units.len(), &self.rules.names);
        let column = |count: f64| RatioColumn { sums: vec![0.0; rows], counts: vec![count; rows] };
        let mut columns = vec![column(1.0); names.len()];
        if self.expected.is_some() {
            columns.extend([column(0.0), column(0.0)]);
        }
        for (row, unit) in self.units.iter().enumerate() {
            let ids: Vec<u32> = results[*unit].iter().map(|id| *id as u32).collect();
            let text = self.tokenizer.decode(&ids, true).map_err(|e| ModelError::Input(e.to_string()))?;
            let outcome = self.rules.classify(&text);
            columns[outcome].sums[row] = 1.0;
            if let Some(expected) = self.expected.as_ref().and_then(|expected| expected[row]) {
                let against = outcome != expected && outcome + 2 < names.len() && names[outcome] != NEUTRAL;
                for (place, yes) in [outcome == expected, against].into_iter().enumerate() {
                    columns[names.len() + place].counts[row] = 1.0;
                    columns[names.len() + place].sums[row] = f64::from(u8::from(yes));
                }
            }
        }
        Ok(columns)
    }
}

impl Reading for Generation {
    fn outcomes(&self, models: &[&Results], settings: &Settings) -> Result<Predicted, AuditError> {
        let measure = |(i, name)| RatioMeasure { name, formula: Formula::Ratio(i), is_rate: true };
        let measures = ratio_names(&settings.task).into_iter().enumerate().map(measure).collect();
        let models = models.iter().map(|results| self.columns(results)).collect::<Result<_, _>>()?;
        Ok(Outcomes::Ratios { measures, models }.into())
    }

    fn evidence(&self, _: usize, _: &Results) -> Option<Evidence> {
        None
    }
}
