//! Classes of rows: their names, the true one of each row, and probabilities from scores.
//!
//! Scores nothing. Scores of a row are logits or log-probabilities, one a class, in the order of the names.

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::Settings;
use super::super::statistics::lira::stable_logit;
use super::super::table::Outcomes;
use super::Evidence;
use super::plan::Rows;
use crate::dataset::Label;

/// Classes of a task in which one of several is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Classes {
    /// Two or more.
    pub(super) names: Vec<String>,
    /// Index of the positive class.
    pub(super) positive: usize,
    /// The true class of each row.
    pub(super) labels: Vec<u32>,
}

impl Classes {
    /// Takes the data set's classes.
    pub(super) fn of(rows: &Rows<'_>, settings: &Settings) -> Result<Self, AuditError> {
        let names = rows.dataset.labels.clone();
        let labels = true_labels(rows)?;
        Self::new(names, labels, settings)
    }

    /// Takes the data set's labels as numbers of `count` answers from 0, or, where they are none, as names of the answers
    /// in their order.
    pub(super) fn numbered(rows: &Rows<'_>, settings: &Settings, count: usize) -> Result<Self, AuditError> {
        let (names, places) = numbers(rows, count)?;
        let labels = true_labels(rows)?.into_iter().map(|label| places[label as usize]).collect();
        Self::new(names, labels, settings)
    }

    fn new(names: Vec<String>, labels: Vec<u32>, settings: &Settings) -> Result<Self, AuditError> {
        if names.len() < 2 {
            return Err(setting("task", format!("needs two or more classes, the data set has {}", names.len())));
        }
        let positive = positive(&names, settings)?;
        Ok(Self { names, positive, labels })
    }

    /// Returns outcomes from scores `[models][rows][classes]`.
    pub(super) fn outcomes(&self, scores: impl Iterator<Item = Vec<Vec<f64>>>) -> Outcomes {
        let models = scores.map(|rows| rows.iter().flat_map(|row| softmax(row)).collect()).collect();
        let Self { names, positive, labels } = self.clone();
        Outcomes::Classes { names, positive, labels, models }
    }

    /// Returns what scores say of a row's true class.
    pub(super) fn evidence(&self, row: usize, scores: &[f64]) -> Evidence {
        let label = self.labels[row] as usize;
        let log_probability = scores[label] - log_sum(scores);
        Evidence { log_probability, signal: stable_logit(scores, label), text: None }
    }
}

/// Returns the place of the positive class.
pub(super) fn positive(names: &[String], settings: &Settings) -> Result<usize, AuditError> {
    let Some(wanted) = &settings.positive else { return Ok(names.len().saturating_sub(1)) };
    let place = names.iter().position(|name| name == wanted);
    place.ok_or_else(|| setting("positive", format!("`{wanted}` is none of the classes")))
}

/// Refuses a data set whose rows have no label, or several.
pub(super) fn single_labels(rows: &Rows<'_>) -> Result<(), AuditError> {
    if rows.dataset.labels.is_empty() {
        return Err(setting("task", "the data set has no label column, which this task needs"));
    }
    if rows.dataset.multi_label {
        return Err(setting("task", "rows of the data set have several labels, of which this task knows one"));
    }
    Ok(())
}

fn true_labels(rows: &Rows<'_>) -> Result<Vec<u32>, AuditError> {
    single_labels(rows)?;
    let classes = rows.dataset.labels.len();
    let label = |(i, row): (usize, &&crate::dataset::Row)| match &row.label {
        Some(Label::Class(class)) if *class < classes => Ok(*class as u32),
        Some(Label::Class(_) | Label::Classes(_)) => Err(rows.fault(i, None, "its label is not one of the data set's")),
        None => Err(rows.fault(i, None, "it has no label")),
    };
    rows.rows.iter().enumerate().map(label).collect()
}

/// Returns names of `count` answers, and the answer that each of the data set's labels stands for.
pub(super) fn numbers(rows: &Rows<'_>, count: usize) -> Result<(Vec<String>, Vec<u32>), AuditError> {
    single_labels(rows)?;
    let labels = &rows.dataset.labels;
    let number =
        |label: &String| label.parse::<u32>().ok().filter(|n| (*n as usize) < count && n.to_string() == *label);
    if let Some(places) = labels.iter().map(number).collect::<Option<Vec<u32>>>() {
        return Ok(((0..count).map(|i| i.to_string()).collect(), places));
    }
    if labels.len() == count {
        return Ok((labels.clone(), (0..count as u32).collect()));
    }
    let fault = format!("{} labels, which are neither numbers of the {count} answers from 0 nor as many", labels.len());
    Err(setting("task", fault))
}

/// Returns the logarithm of the sum of exponentials.
pub(super) fn log_sum(scores: &[f64]) -> f64 {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + scores.iter().map(|score| (score - most).exp()).sum::<f64>().ln()
}

/// Returns probabilities of finite scores.
pub(super) fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut all: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.iter_mut().for_each(|p| *p /= sum);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_survive_scores_far_apart() {
        assert_eq!(softmax(&[-9000.0, -9000.0]), [0.5, 0.5]);
        let far = softmax(&[0.0, -5000.0, 1.0]);
        assert_eq!(far[1], 0.0);
        assert!((far[2] / far[0] - 1f64.exp()).abs() < 1e-12 && (far.iter().sum::<f64>() - 1.0).abs() < 1e-15);
        assert!((log_sum(&[-9000.0, -9000.0]) - (2f64.ln() - 9000.0)).abs() < 1e-9);
    }
}
