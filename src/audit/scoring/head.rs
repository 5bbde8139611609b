//! Classes by a trained classification head: that of the base model, of an adapter, or of a full fine-tune.
//!
//! Logits become probabilities by softmax, or each by the logistic function where rows have several labels, as the data
//! set says. A head's labels are those of the data set by name; by place where the head does not name them.

use super::super::AuditError;
use super::super::settings::Settings;
use super::super::table::Outcomes;
use super::classes::{self, Classes};
use super::plan::{Planner, Rows};
use super::{Evidence, Predicted, Reading, Results};
use crate::dataset::Label;
use crate::lora;

/// Planned rows.
pub(super) struct Head {
    truth: Truth,
    /// One a row.
    units: Vec<usize>,
    /// Mirror images, where membership is asked of them too.
    mirrored: Vec<usize>,
}

/// What is right.
enum Truth {
    One(Classes),
    Many {
        names: Vec<String>,
        /// `[rows, classes]`.
        labels: Vec<bool>,
    },
}

impl Head {
    pub(super) fn plan(rows: &Rows<'_>, settings: &Settings, planner: &mut Planner<'_>) -> Result<Self, AuditError> {
        let truth =
            if rows.dataset.multi_label { many(rows, settings)? } else { Truth::One(Classes::of(rows, settings)?) };
        let mut units = Vec::with_capacity(rows.rows.len());
        let mut mirrored = Vec::new();
        let both = planner.sees() && settings.membership.as_ref().is_some_and(|asked| asked.mirrored);
        for row in 0..rows.rows.len() {
            units.push(planner.classes(row)?);
            if both {
                mirrored.push(planner.image(row, true)?);
            }
        }
        Ok(Self { truth, units, mirrored })
    }
}

impl Reading for Head {
    fn outcomes(&self, models: &[&Results], _: &Settings) -> Result<Predicted, AuditError> {
        let logits =
            |results: &&Results| -> Vec<Vec<f64>> { self.units.iter().map(|unit| results[*unit].clone()).collect() };
        let scores = models.iter().map(logits);
        Ok(match &self.truth {
            Truth::One(classes) => classes.outcomes(scores),
            Truth::Many { names, labels } => {
                let models = scores.map(|rows| rows.iter().flatten().map(|z| logistic(*z)).collect()).collect();
                Outcomes::MultiLabel { names: names.clone(), labels: labels.clone(), models }
            }
        }
        .into())
    }

    fn evidence(&self, row: usize, results: &Results) -> Option<Evidence> {
        let own = &results[self.units[row]];
        let queried = self.mirrored.get(row).map(|mirrored| averaged(own, &results[*mirrored], &self.truth));
        let logits = queried.as_ref().unwrap_or(own);
        Some(match &self.truth {
            Truth::One(classes) => classes.evidence(row, logits),
            Truth::Many { names, labels } => {
                // Each class is a question of its own: means over them, so that their number does not matter.
                let right =
                    labels.iter().skip(row * names.len()).zip(logits).map(|(yes, z)| if *yes { *z } else { -z });
                let count = names.len() as f64;
                let log_probability = right.clone().map(|z| -softplus(-z)).sum::<f64>() / count;
                Evidence { log_probability, signal: right.sum::<f64>() / count, text: None }
            }
        })
    }
}

fn many(rows: &Rows<'_>, settings: &Settings) -> Result<Truth, AuditError> {
    let names = rows.dataset.labels.clone();
    classes::positive(&names, settings)?;
    let mut labels = vec![false; rows.rows.len() * names.len()];
    for (i, row) in rows.rows.iter().enumerate() {
        let Some(Label::Classes(of_row)) = &row.label else {
            return Err(rows.fault(i, None, "it has no list of labels"));
        };
        for class in of_row {
            if *class >= names.len() {
                return Err(rows.fault(i, None, "its label is not one of the data set's"));
            }
            labels[i * names.len() + class] = true;
        }
    }
    Ok(Truth::Many { names, labels })
}

/// Returns logits of the mean of the probabilities of two queries, as the code released with Carlini et al. 2022 does it
/// (`mi_lira_2021`); the paper itself fits a Gaussian of as many dimensions as there are queries.
fn averaged(one: &[f64], other: &[f64], truth: &Truth) -> Vec<f64> {
    match truth {
        Truth::One(_) => {
            let [one, other] = [one, other].map(softmax);
            one.iter().zip(&other).map(|(p, q)| ((p + q) / 2.0).max(f64::MIN_POSITIVE).ln()).collect()
        }
        Truth::Many { .. } => {
            let mean = |(a, b): (&f64, &f64)| (logistic(*a) + logistic(*b)) / 2.0;
            let bounded = |p: f64| p.clamp(f64::MIN_POSITIVE, 1.0 - f64::EPSILON);
            one.iter().zip(other).map(mean).map(bounded).map(|p| p.ln() - (-p).ln_1p()).collect()
        }
    }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|z| (z - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Returns 1 / (1 + exp(−z)).
fn logistic(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

/// Returns ln(1 + exp(z)).
fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// Returns the place among a head's logits of each label of the data set.
///
/// `told` says whether the head's own files can say that it is of several labels: those of an adapter from
/// elsewhere cannot.
pub(super) fn order(
    head: &lora::Classes,
    told: bool,
    labels: &[String],
    multi_label: bool,
) -> Result<Vec<usize>, String> {
    let kind = match (head.problem, multi_label) {
        (lora::Problem::Regression, _) => Some("its head is a regression, not a classifier"),
        (lora::Problem::Multi, false) => Some("its head is for several labels, rows of the data set have one"),
        (lora::Problem::Single, true) if told => Some("its head is for one label, rows of the data set have several"),
        (lora::Problem::Single, _) | (lora::Problem::Multi, true) => None,
    };
    if let Some(fault) = kind {
        return Err(fault.to_owned());
    }
    if head.names.len() != labels.len() {
        return Err(format!("its head has {} labels, the data set has {}", head.names.len(), labels.len()));
    }
    let by_name = labels.iter().map(|label| head.names.iter().position(|name| name == label).ok_or(label));
    match by_name.collect::<Result<Vec<usize>, _>>() {
        Ok(order) => Ok(order),
        Err(_) if !head.are_named() => Ok((0..labels.len()).collect()),
        Err(label) => Err(format!("its head has no label `{label}`; it has {}", head.names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::Problem;

    fn head(names: &[&str], problem: Problem) -> lora::Classes {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        lora::Classes { names, problem, pad_token_id: None }
    }

    #[test]
    fn labels_are_found_by_name_and_by_place_where_there_are_no_names() {
        let labels = ["no".to_owned(), "yes".to_owned()];
        assert_eq!(order(&head(&["yes", "no"], Problem::Single), true, &labels, false).unwrap(), [1, 0]);
        assert_eq!(order(&lora::Classes::unnamed(2), false, &labels, true).unwrap(), [0, 1]);
        let fault = order(&head(&["yes", "maybe"], Problem::Single), true, &labels, false).unwrap_err();
        assert!(fault.contains("`no`") && fault.contains("maybe"), "{fault}");
        order(&lora::Classes::unnamed(3), true, &labels, false).unwrap_err();
        order(&lora::Classes::unnamed(2), true, &labels, true).unwrap_err();
        order(&head(&["no", "yes"], Problem::Multi), true, &labels, false).unwrap_err();
        order(&head(&["no", "yes"], Problem::Regression), true, &labels, false).unwrap_err();
    }

    #[test]
    fn two_queries_are_averaged_as_probabilities() {
        let truth = Truth::Many { names: vec![], labels: vec![] };
        let z = averaged(&[0.0, 3.0], &[2.0, -1.0], &truth);
        for (z, (a, b)) in z.iter().zip([(0.0, 2.0), (3.0, -1.0)]) {
            assert!((logistic(*z) - (logistic(a) + logistic(b)) / 2.0).abs() < 1e-12);
        }
        let mean: f64 = softmax(&[0.0, 1.0])[1] / 2.0 + softmax(&[2.0, 1.0])[1] / 2.0;
        let one = softmax(&[0.0, 1.0])
            .iter()
            .zip(softmax(&[2.0, 1.0]))
            .map(|(p, q)| ((p + q) / 2.0).ln())
            .collect::<Vec<_>>();
        assert!((softmax(&one)[1] - mean).abs() < 1e-12);
    }

    #[test]
    fn logistic_and_its_logarithm_survive_large_logits() {
        for z in [-800.0, -3.0, 0.0, 3.0, 800.0] {
            assert!((0.0..=1.0).contains(&logistic(z)) && softplus(z).is_finite());
            assert!((logistic(z) + logistic(-z) - 1.0).abs() < 1e-15);
        }
        assert!((-softplus(-3.0) - logistic(3.0).ln()).abs() < 1e-14);
        assert_eq!(softplus(800.0), 800.0);
    }
}
