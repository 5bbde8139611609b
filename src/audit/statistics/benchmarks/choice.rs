//! Multiple choice by log-likelihood: which continuation is the most likely, and is it the right one?
//!
//! Does no prompting. After: lm-evaluation-harness `multiple_choice` (acc, acc_norm, acc_bytes, brier_score); the first
//! option wins a tie.

use super::{Mean, weights_or_ones};
use crate::audit::statistics::Measured;

/// By what a log-likelihood is divided before options are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// Nothing: `acc`.
    Sum,
    /// Unicode scalar values: `acc_norm`.
    Characters,
    /// Bytes of UTF-8: `acc_bytes`.
    Bytes,
}

/// A question with its options.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceRow<'a> {
    /// The continuations.
    pub choices: Vec<&'a str>,
    /// Their log-likelihoods.
    pub log_likelihood: Vec<f64>,
    /// The right one.
    pub gold: usize,
}

impl ChoiceRow<'_> {
    /// Returns the option that the model chooses.
    pub fn answer(&self, by: Choice) -> usize {
        let length = |text: &str| match by {
            Choice::Sum => 1,
            Choice::Characters => text.chars().count().max(1),
            Choice::Bytes => text.len().max(1),
        };
        let divided = self.log_likelihood.iter().zip(&self.choices).map(|(l, text)| l / length(text) as f64);
        answer(&divided.collect::<Vec<_>>())
    }

    /// Returns softmax(log-likelihoods): the probabilities of options, given that one of them is said.
    pub fn probabilities(&self) -> Vec<f64> {
        let most = self.log_likelihood.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut p: Vec<f64> = self.log_likelihood.iter().map(|l| (l - most).exp()).collect();
        let sum: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
        p
    }

    /// Returns Σ over options of (probability − is right)².
    pub fn brier(&self) -> f64 {
        let right = |option: usize| f64::from(u8::from(option == self.gold));
        self.probabilities().iter().enumerate().map(|(option, p)| (p - right(option)).powi(2)).sum()
    }
}

/// Multiple choice over a set of questions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Choices {
    right: [Mean; 3],
    brier: Mean,
}

impl Choices {
    /// Sums up questions.
    pub fn new(rows: &[ChoiceRow<'_>], weights: Option<&[f64]>) -> Self {
        let mut sums = Self::default();
        for (row, weight) in rows.iter().zip(weights_or_ones(weights)) {
            for (mean, by) in sums.right.iter_mut().zip([Choice::Sum, Choice::Characters, Choice::Bytes]) {
                mean.add_flag(row.answer(by) == row.gold, weight);
            }
            sums.brier.add(row.brier(), weight);
        }
        sums
    }

    /// Returns the share of right answers.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`](crate::audit::statistics::Undefined::NoRows), as all scores here.
    pub fn accuracy(&self, by: Choice) -> Measured {
        let [sum, characters, bytes] = &self.right;
        match by {
            Choice::Sum => sum.get(),
            Choice::Characters => characters.get(),
            Choice::Bytes => bytes.get(),
        }
    }

    /// Returns the mean Brier score of a question, in [0, 2].
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`](crate::audit::statistics::Undefined::NoRows).
    pub fn brier(&self) -> Measured {
        self.brier.get()
    }
}

/// Returns the index of the largest value; the first wins a tie. 0 for none.
pub fn answer(values: &[f64]) -> usize {
    let mut best = 0;
    for (option, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = option;
        }
    }
    best
}
