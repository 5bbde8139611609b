//! The questions of a task: one for a binary task or a table of ratios, one a class more where there are several.
//!
//! A question gives a view of every model over any rows. Knows no group.

use super::calibration::{CrossFitted, cross_fitted};
use super::measure::{self, Measure};
use super::names::Shape;
use super::view::{BinaryRows, ClassRows, View, largest};
use crate::audit::settings::Settings;
use crate::audit::statistics::{Measured, Undefined};
use crate::audit::table::{Formula, Outcomes, RatioColumn, RatioMeasure, Table};

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// The task as it is: binary or several classes at once.
    Task,
    /// One class against the rest, or one label of several.
    Class(usize),
    /// Rows with all labels right, wrong labels, averages over labels.
    Labels,
    /// Ratios of sums.
    Ratios,
}

/// Everything that views are made of.
#[derive(Debug)]
pub(super) struct Questions<'a> {
    settings: &'a Settings,
    table: &'a Table,
    /// By model; empty where not asked.
    temperatures: Vec<Result<CrossFitted, Undefined>>,
    /// Of [`Question::Labels`].
    labels: Vec<Vec<RatioColumn>>,
}

impl<'a> Questions<'a> {
    pub(super) fn new(settings: &'a Settings, table: &'a Table) -> Self {
        let mut questions = Self { settings, table, temperatures: Vec::new(), labels: Vec::new() };
        let paired = (table.weights.as_deref(), table.clusters.as_deref());
        match &table.outcomes {
            Outcomes::Classes { names, labels, models, .. } if settings.calibration.temperature => {
                let fit = |p: &Vec<f64>| cross_fitted(p, names.len(), labels, paired, settings.seed);
                questions.temperatures = models.iter().map(fit).collect();
            }
            Outcomes::MultiLabel { names, labels, models } => {
                let of = |p: &Vec<f64>| label_columns(names.len(), labels, p, settings.threshold);
                questions.labels = models.iter().map(of).collect();
            }
            Outcomes::Classes { .. } | Outcomes::Ratios { .. } => {}
        }
        questions
    }

    /// All of them, in order, with the name of their class.
    pub(super) fn all(&self) -> Vec<(Question, Option<&'a str>)> {
        let class = |(class, name): (usize, &'a String)| (Question::Class(class), Some(name.as_str()));
        match &self.table.outcomes {
            Outcomes::Classes { names, .. } if names.len() == 2 => vec![(Question::Task, None)],
            Outcomes::Classes { names, .. } => {
                [(Question::Task, None)].into_iter().chain(names.iter().enumerate().map(class)).collect()
            }
            Outcomes::MultiLabel { names, .. } => {
                [(Question::Labels, None)].into_iter().chain(names.iter().enumerate().map(class)).collect()
            }
            Outcomes::Ratios { .. } => vec![(Question::Ratios, None)],
        }
    }

    /// What the outcomes look like.
    pub(super) fn shape(&self) -> Shape {
        match &self.table.outcomes {
            Outcomes::Classes { names, .. } => Shape::Classes(names.len()),
            Outcomes::MultiLabel { names, .. } => Shape::Labels(names.len()),
            Outcomes::Ratios { measures, .. } => Shape::Ratios(measures.iter().map(|m| m.name.clone()).collect()),
        }
    }

    /// Number of models.
    pub(super) fn models(&self) -> usize {
        match &self.table.outcomes {
            Outcomes::Classes { models, .. } | Outcomes::MultiLabel { models, .. } => models.len(),
            Outcomes::Ratios { models, .. } => models.len(),
        }
    }

    /// Whether the question is about a positive and a negative class.
    pub(super) fn is_binary(&self, question: Question) -> bool {
        match (question, &self.table.outcomes) {
            (Question::Class(_), _) => true,
            (Question::Task, Outcomes::Classes { names, .. }) => names.len() == 2,
            (Question::Task | Question::Labels | Question::Ratios, _) => false,
        }
    }

    /// Whether smooth ECE and the null of ECE are computed of it: they need passes over all rows for each class.
    pub(super) fn is_calibrated(&self, question: Question) -> bool {
        match (question, &self.table.outcomes) {
            (Question::Task, _) => true,
            (Question::Class(_), Outcomes::Classes { names, .. } | Outcomes::MultiLabel { names, .. }) => {
                names.len() <= measure::MOST_RANKED
            }
            (Question::Class(_) | Question::Labels | Question::Ratios, _) => false,
        }
    }

    /// All measures of the question, asked or not.
    pub(super) fn measures(&self, question: Question) -> Vec<Measure> {
        match (question, &self.table.outcomes) {
            (Question::Task, Outcomes::Classes { names, .. }) if names.len() == 2 => measure::binary(),
            (Question::Task, Outcomes::Classes { names, .. }) => measure::classes(names.len()),
            (Question::Class(_), Outcomes::Classes { .. }) => measure::one_against_rest(),
            (Question::Class(_), _) => measure::binary(),
            (Question::Ratios, Outcomes::Ratios { measures, .. }) => measure::ratios(measures),
            (Question::Labels, Outcomes::MultiLabel { names, .. }) => label_measures(names.len()),
            (Question::Task | Question::Labels | Question::Ratios, _) => Vec::new(),
        }
    }

    /// Temperature of a model with the standard error of its logarithm; none where it was not asked.
    pub(super) fn temperature(&self, model: usize) -> Option<(Measured, Option<f64>)> {
        let fit = self.temperatures.get(model)?.as_ref();
        Some((fit.map(|fit| fit.temperature).map_err(|why| *why), fit.ok().and_then(|fit| fit.log_error)))
    }

    /// The measures of the task after temperature scaling, of those that are wanted.
    pub(super) fn after_temperature(&self, wants: &dyn Fn(&str) -> bool) -> Vec<Measure> {
        let asked: Vec<Measure> = self.measures(Question::Task).into_iter().filter(|m| wants(&m.name)).collect();
        measure::after_temperature(&asked)
    }

    /// Views of all models over the rows: as predicted, and then, of each model that has a temperature, after it.
    /// `weights` are of these rows.
    pub(super) fn views(
        &self,
        question: Question,
        rows: &[u32],
        weights: Option<&[f64]>,
        wants: &dyn Fn(&str) -> bool,
    ) -> Vec<View> {
        let all = self.measures(question);
        let asked: Vec<Measure> = all.iter().filter(|m| wants(&m.name)).cloned().collect();
        let models = 0..self.models();
        let mut views: Vec<View> = models
            .map(|model| self.view((question, model), self.probabilities(model), asked.clone(), rows, weights))
            .collect();
        let after = self.after_temperature(wants);
        if question == Question::Task && !after.is_empty() {
            let fits = self.temperatures.iter().enumerate();
            let scaled = fits.filter_map(|(model, fit)| Some((model, &fit.as_ref().ok()?.probabilities[..])));
            views.extend(scaled.map(|(model, p)| self.view((question, model), p, after.clone(), rows, weights)));
        }
        views
    }

    fn probabilities(&self, model: usize) -> &[f64] {
        match &self.table.outcomes {
            Outcomes::Classes { models, .. } | Outcomes::MultiLabel { models, .. } => &models[model],
            Outcomes::Ratios { .. } => &[],
        }
    }

    fn view(
        &self,
        (question, model): (Question, usize),
        probabilities: &[f64],
        measures: Vec<Measure>,
        rows: &[u32],
        weights: Option<&[f64]>,
    ) -> View {
        let (bins, threshold) = (self.settings.calibration.bins, self.settings.threshold);
        let rows_of = |classes: usize| rows.iter().map(move |row| &probabilities[*row as usize * classes..][..classes]);
        match (&self.table.outcomes, question) {
            (Outcomes::Classes { names, positive, labels, .. }, Question::Task) if names.len() == 2 => {
                let scores: Vec<f64> = rows_of(2).map(|p| p[*positive]).collect();
                let binary = BinaryRows {
                    labels: rows.iter().map(|row| labels[*row as usize] as usize == *positive).collect(),
                    predicted: scores.iter().map(|p| *p >= threshold).collect(),
                    scores,
                    tie_is_positive: *positive == 0,
                };
                View::binary(model, measures, &binary, weights, bins)
            }
            (Outcomes::Classes { names, labels, .. }, Question::Class(class)) => {
                let binary = BinaryRows {
                    labels: rows.iter().map(|row| labels[*row as usize] as usize == class).collect(),
                    predicted: rows_of(names.len()).map(|p| largest(p) == class).collect(),
                    scores: rows_of(names.len()).map(|p| p[class]).collect(),
                    tie_is_positive: false,
                };
                View::binary(model, measures, &binary, weights, bins)
            }
            (Outcomes::MultiLabel { names, labels, .. }, Question::Class(class)) => {
                let scores: Vec<f64> = rows_of(names.len()).map(|p| p[class]).collect();
                let binary = BinaryRows {
                    labels: rows.iter().map(|row| labels[*row as usize * names.len() + class]).collect(),
                    predicted: scores.iter().map(|p| *p >= threshold).collect(),
                    scores,
                    tie_is_positive: false,
                };
                View::binary(model, measures, &binary, weights, bins)
            }
            (Outcomes::Classes { names, labels, .. }, Question::Task | Question::Labels | Question::Ratios) => {
                let classes = ClassRows {
                    classes: names.len(),
                    labels: rows.iter().map(|row| labels[*row as usize]).collect(),
                    probabilities: rows_of(names.len()).flatten().copied().collect(),
                };
                View::classes(model, measures, &classes, weights, bins)
            }
            (Outcomes::MultiLabel { names, labels, .. }, Question::Task | Question::Labels | Question::Ratios) => {
                let count = names.len();
                let truth: Vec<bool> =
                    rows.iter().flat_map(|row| &labels[*row as usize * count..][..count]).copied().collect();
                let scores: Vec<f64> = rows_of(count).flatten().copied().collect();
                let view = View::ratios(model, measures, &self.labels[model], rows, weights);
                view.with_labels(count, &truth, &scores, threshold)
            }
            (Outcomes::Ratios { models, .. }, _) => View::ratios(model, measures, &models[model], rows, weights),
        }
    }
}

/// Measures over all labels of a row, of `count` labels.
pub(super) fn label_measures(count: usize) -> Vec<Measure> {
    let column = |(name, column, is_rate): (&str, usize, bool)| RatioMeasure {
        name: name.to_owned(),
        formula: Formula::Ratio(column),
        is_rate,
    };
    measure::labels(&LABELS.map(column), count)
}

/// Measures over all labels of a row: name, column, whether a share of rows.
pub(super) const LABELS: [(&str, usize, bool); 3] =
    [("exact_match", 0, true), ("hamming_loss", 1, false), ("accuracy_macro", 2, false)];

fn label_columns(classes: usize, labels: &[bool], probabilities: &[f64], threshold: f64) -> Vec<RatioColumn> {
    let wrong = |(truth, p): (&[bool], &[f64])| {
        truth.iter().zip(p).filter(|(truth, p)| **truth != (**p >= threshold)).count() as f64
    };
    let wrong: Vec<f64> = labels.chunks_exact(classes).zip(probabilities.chunks_exact(classes)).map(wrong).collect();
    let ones = vec![1.0; wrong.len()];
    let right: Vec<f64> = wrong.iter().map(|wrong| classes as f64 - wrong).collect();
    let exact = wrong.iter().map(|wrong| f64::from(u8::from(*wrong == 0.0))).collect();
    vec![
        RatioColumn { sums: exact, counts: ones },
        RatioColumn { counts: vec![classes as f64; wrong.len()], sums: wrong },
        RatioColumn { counts: vec![classes as f64; right.len()], sums: right },
    ]
}
