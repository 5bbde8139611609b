//! Which of two texts is likelier (CrowS-Pairs), or of three (StereoSet).
//!
//! Texts follow nothing but the token that begins (or ends) a text. A tie is not stereotypical. StereoSet's own scores are
//! means over target terms; here they are means over rows, and a mean by term is to be had by an attribute of terms.
//! After: lm-evaluation-harness `crows_pairs`; Nadeem et al. 2021 (arXiv 2004.09456).

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{Normalization, Settings};
use super::super::table::{Formula, Outcomes, RatioColumn, RatioMeasure};
use super::likelihood::Likelihoods;
use super::plan::{Planner, Rows};
use super::{Evidence, Predicted, Reading, Results};

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Texts<'a> {
    pub(super) more: &'a String,
    pub(super) less: &'a String,
    pub(super) unrelated: Option<&'a String>,
    pub(super) normalization: Normalization,
}

/// Planned rows.
pub(super) struct Pairs {
    normalization: Normalization,
    three: bool,
    rows: Vec<Planned>,
}

/// One row: more, less, and the unrelated text where there is one.
struct Planned {
    texts: Likelihoods,
    /// Bytes of each.
    bytes: Vec<usize>,
}

impl Pairs {
    pub(super) fn plan(rows: &Rows<'_>, texts: Texts<'_>, planner: &mut Planner<'_>) -> Result<Self, AuditError> {
        let Texts { more, less, unrelated, normalization } = texts;
        if normalization == Normalization::Unconditional {
            return Err(setting("task.pairs.normalization", "texts of pairs have no prompt to be without"));
        }
        let columns: Vec<String> = [more, less].into_iter().chain(unrelated).cloned().collect();
        let places = rows.places("task.pairs", &columns)?;
        let mut planned = Vec::with_capacity(rows.rows.len());
        for row in 0..rows.rows.len() {
            let texts = rows.texts(row, &places)?;
            let unit = planner.whole(row, &texts, &columns)?;
            let bytes = texts.iter().map(String::len).collect();
            planned.push(Planned { texts: Likelihoods::plan(planner, (row, unit), normalization)?, bytes });
        }
        Ok(Self { normalization, three: unrelated.is_some(), rows: planned })
    }

    fn scores(&self, row: usize, results: &Results) -> Vec<f64> {
        let Planned { texts, bytes } = &self.rows[row];
        texts.scores(self.normalization, bytes, results)
    }

    fn columns(&self, results: &Results) -> Vec<RatioColumn> {
        let rows = self.rows.len();
        let column = |count: f64| RatioColumn { sums: vec![0.0; rows], counts: vec![count; rows] };
        let mut columns = vec![column(1.0), column(1.0)];
        if self.three {
            columns.push(column(2.0));
        }
        for row in 0..rows {
            let scores = self.scores(row, results);
            let beats = |a: usize, b: usize| f64::from(u8::from(scores[a] > scores[b]));
            columns[0].sums[row] = beats(0, 1);
            columns[1].sums[row] = (scores[0] - scores[1]).abs();
            if self.three {
                columns[2].sums[row] = beats(0, 2) + beats(1, 2);
            }
        }
        columns
    }
}

impl Reading for Pairs {
    fn outcomes(&self, models: &[&Results], _: &Settings) -> Result<Predicted, AuditError> {
        let measure =
            |name: &str, formula: Formula, is_rate: bool| RatioMeasure { name: name.into(), formula, is_rate };
        let mut measures = vec![
            measure("stereotype_share", Formula::Ratio(0), true),
            measure("log_likelihood_difference", Formula::Ratio(1), false),
        ];
        if self.three {
            measures.push(measure("language_modelling_score", Formula::Ratio(2), false));
            measures.push(measure("icat", Formula::Idealised(2, 0), false));
        }
        let models = models.iter().map(|results| self.columns(results)).collect();
        Ok(Outcomes::Ratios { measures, models }.into())
    }

    fn evidence(&self, _: usize, _: &Results) -> Option<Evidence> {
        None
    }
}
