//! What is written after a prompt, greedily, classified by rules.
//!
//! Every row has one outcome: a category, `unknown`, or `refusal`. With a column of what the stereotype expects, outcomes
//! are also in line with it, against it (another named category that is not neutral), or neither. With a column of what is
//! right there are accuracy and the gaps of WinoMT (Stanovsky et al. 2019, arXiv 1906.00591): an F1 is twice the rows of
//! both over the rows of either, a ratio of sums as all others.

use std::sync::Arc;

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{Classifier, Settings};
use super::super::table::{Formula, Outcomes, RatioColumn, RatioMeasure};
use super::names::GENDERS;
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
    pub(super) gold: Option<&'a str>,
}

/// Planned rows.
pub(super) struct Generation {
    rules: Rules,
    tokenizer: Arc<Tokenizer>,
    units: Vec<usize>,
    /// Category that the stereotype expects; none without such a column.
    expected: Option<Vec<Option<usize>>>,
    /// Category that is right; none without such a column.
    gold: Option<Vec<Option<usize>>>,
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
        let named = |field: &'static str, name: Option<&str>| -> Result<Option<Vec<Option<usize>>>, AuditError> {
            let Some(name) = name else { return Ok(None) };
            let place = rows.columns.place(field, name)?;
            let category = |row: usize| {
                let Some(cell) = rows.columns.cell(row, place) else { return Ok(None) };
                let known = categories.iter().position(|name| name == cell);
                let fault = || format!("`{cell}` is none of the categories {}", categories.join(", "));
                known.map(Some).ok_or_else(|| rows.columns.fault(row, place, fault()))
            };
            (0..rows.rows.len()).map(category).collect::<Result<Vec<_>, _>>().map(Some)
        };
        let expected = named("task.generation.expected", asked.expected)?;
        let gold = named("task.generation.gold", asked.gold)?;
        let units = (0..rows.rows.len()).map(|row| planner.completion(row, asked.new)).collect::<Result<_, _>>()?;
        Ok(Self { rules, tokenizer, units, expected, gold })
    }

    /// Outcome of each row.
    fn outcome(&self, results: &Results) -> Result<Vec<usize>, AuditError> {
        let outcome = |unit: &usize| {
            let ids: Vec<u32> = results[*unit].iter().map(|id| *id as u32).collect();
            let text = self.tokenizer.decode(&ids, true).map_err(|e| ModelError::Input(e.to_string()))?;
            Ok(self.rules.classify(&text))
        };
        self.units.iter().map(outcome).collect()
    }

    /// Measures with the columns of outcomes that they are made of.
    fn measured(&self, outcomes: &[usize]) -> (Vec<RatioMeasure>, Vec<RatioColumn>) {
        let mut read = Read { outcomes, measures: Vec::new(), columns: Vec::new() };
        let names = &self.rules.names;
        for (category, name) in names.iter().enumerate() {
            read.rate(&format!("{name}_rate"), |_, outcome| Some(outcome == category));
        }
        if let Some(expected) = &self.expected {
            let against = |outcome: usize, expected: usize| {
                outcome != expected && outcome + 2 < names.len() && names[outcome] != NEUTRAL
            };
            read.rate("pro_rate", |row, outcome| Some(outcome == expected[row]?));
            read.rate("anti_rate", |row, outcome| Some(against(outcome, expected[row]?)));
        }
        let Some(gold) = &self.gold else { return (read.measures, read.columns) };
        read.rate("gold_accuracy", |row, outcome| Some(outcome == gold[row]?));
        let genders = GENDERS.map(|gender| names[..names.len() - 2].iter().position(|name| name == gender));
        if let [Some(male), Some(female)] = genders {
            let f1 = |category: usize| {
                move |row: usize, outcome: usize| {
                    let (is, said) = (gold[row]? == category, outcome == category);
                    Some((2.0 * f64::from(u8::from(is && said)), f64::from(u8::from(is) + u8::from(said))))
                }
            };
            let (male, female) = (read.column(f1(male)), read.column(f1(female)));
            read.difference("delta_g", male, female);
        }
        if let Some(expected) = &self.expected {
            let right = |in_line: bool| {
                move |row: usize, outcome: usize| {
                    let gold = gold[row]?;
                    (in_line == (gold == expected[row]?)).then_some((f64::from(u8::from(outcome == gold)), 1.0))
                }
            };
            let (pro, anti) = (read.column(right(true)), read.column(right(false)));
            read.difference("delta_s", pro, anti);
        }
        (read.measures, read.columns)
    }
}

/// Measures in the making.
struct Read<'a> {
    outcomes: &'a [usize],
    measures: Vec<RatioMeasure>,
    columns: Vec<RatioColumn>,
}

impl Read<'_> {
    /// Adds a column and returns its place; `of` a row and its outcome is numerator and denominator, none where it does not
    /// count.
    fn column(&mut self, of: impl Fn(usize, usize) -> Option<(f64, f64)>) -> usize {
        let values = self.outcomes.iter().enumerate().map(|(row, outcome)| of(row, *outcome).unwrap_or_default());
        let (sums, counts) = values.unzip();
        self.columns.push(RatioColumn { sums, counts });
        self.columns.len() - 1
    }

    fn add(&mut self, name: &str, formula: Formula, is_rate: bool) {
        self.measures.push(RatioMeasure { name: name.to_owned(), formula, is_rate });
    }

    /// Adds the share of rows that are `hit`.
    fn rate(&mut self, name: &str, hit: impl Fn(usize, usize) -> Option<bool>) {
        let column = self.column(|row, outcome| hit(row, outcome).map(|hit| (f64::from(u8::from(hit)), 1.0)));
        self.add(name, Formula::Ratio(column), true);
    }

    fn difference(&mut self, name: &str, first: usize, second: usize) {
        self.add(name, Formula::Difference(first, second), false);
    }
}

impl Reading for Generation {
    fn outcomes(&self, models: &[&Results], _: &Settings) -> Result<Predicted, AuditError> {
        let mut measures = Vec::new();
        let mut columns = Vec::with_capacity(models.len());
        for results in models {
            let (of_model, own) = self.measured(&self.outcome(results)?);
            measures = of_model;
            columns.push(own);
        }
        Ok(Outcomes::Ratios { measures, models: columns }.into())
    }

    fn evidence(&self, _: usize, _: &Results) -> Option<Evidence> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::scoring::tests::tokenizer;

    /// Sums over counts.
    fn ratio(column: &RatioColumn) -> f64 {
        column.sums.iter().sum::<f64>() / column.counts.iter().sum::<f64>()
    }

    #[test]
    fn gaps_of_winomt_are_differences_of_ratios() {
        // Male, female, neutral, unknown, refusal; gold and stereotype of five rows and what was written.
        let (gold, pro) = ([0, 1, 1, 0, 1], [true, true, false, false, false]);
        let outcomes = [0, 1, 0, 0, 3];
        let expected = gold.iter().zip(pro).map(|(gold, pro)| Some(if pro { *gold } else { 1 - gold }));
        let generation = Generation {
            rules: Rules::new(&Classifier::Pronouns).unwrap(),
            tokenizer: tokenizer(),
            units: Vec::new(),
            expected: Some(expected.collect()),
            gold: Some(gold.map(Some).to_vec()),
        };
        let (measures, columns) = generation.measured(&outcomes);
        let value = |name: &str| {
            let formula = measures.iter().find(|measure| measure.name == name).unwrap().formula;
            if let Formula::Difference(a, b) = formula {
                return ratio(&columns[a]) - ratio(&columns[b]);
            }
            let Formula::Ratio(column) = formula else { panic!("{formula:?}") };
            ratio(&columns[column])
        };
        assert!((value("gold_accuracy") - 0.6).abs() < 1e-12 && (value("unknown_rate") - 0.2).abs() < 1e-12);
        assert!((value("delta_s") - (1.0 - 1.0 / 3.0)).abs() < 1e-12);
        // F1: male 2 · 2 / (2 + 3), female 2 · 1 / (3 + 1).
        assert!((value("delta_g") - (0.8 - 0.5)).abs() < 1e-12);
        // In line with the stereotype: male, female and, where female is right, male.
        assert!((value("pro_rate") - 0.6).abs() < 1e-12 && (value("anti_rate") - 0.2).abs() < 1e-12);
        let alone = Generation { expected: None, ..generation };
        let names: Vec<String> = alone.measured(&outcomes).0.into_iter().map(|measure| measure.name).collect();
        assert!(names.contains(&"delta_g".to_owned()) && !names.contains(&"delta_s".to_owned()), "{names:?}");
    }
}
