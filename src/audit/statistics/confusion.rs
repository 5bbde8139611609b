//! The binary confusion matrix, weighted, and every rate that is read off it.
//!
//! Knows no score and no group by name. A rate whose denominator is 0 is undefined with its reason; fairlearn and
//! scikit-learn put 0 in some of these places, which [`Convention::Fairlearn`] reproduces. Weights are sums of row
//! weights; without weights a row weighs 1.
//! After: scikit-learn 1.9 `confusion_matrix` and its rates, fairlearn 0.15 `_base_metrics`.

use super::inputs::{InputError, option};
use super::{Measured, Undefined, divide};

/// What to do with a rate whose denominator is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// Undefined, with the reason: left out of every comparison.
    Defined,
    /// What fairlearn 0.15 prints: 0 for TPR, FNR, TNR, FPR, precision and F1; the present class alone for balanced
    /// accuracy. Only to check a result against a notebook.
    Fairlearn,
}

/// A rate of a confusion matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rate {
    /// Right among all.
    Accuracy,
    /// Mean of TPR and TNR.
    BalancedAccuracy,
    /// Positive among those predicted positive (PPV).
    Precision,
    /// Another name of TPR.
    Recall,
    /// Harmonic mean of precision and recall, 2·TP / (2·TP + FP + FN).
    F1,
    /// Predicted positive among all.
    SelectionRate,
    /// Predicted positive among the positive.
    TruePositive,
    /// Predicted negative among the negative.
    TrueNegative,
    /// Predicted positive among the negative.
    FalsePositive,
    /// Predicted negative among the positive.
    FalseNegative,
    /// Negative among those predicted negative (NPV).
    NegativePredictive,
    /// Negative among those predicted positive.
    FalseDiscovery,
    /// Positive among those predicted negative.
    FalseOmission,
    /// Positive among all.
    BaseRate,
}

impl Rate {
    /// Every rate with its name, as fairlearn, scikit-learn and Aequitas write it.
    pub const ALL: [(&'static str, Rate); 14] = [
        ("accuracy", Self::Accuracy),
        ("balanced_accuracy", Self::BalancedAccuracy),
        ("precision", Self::Precision),
        ("recall", Self::Recall),
        ("f1", Self::F1),
        ("selection_rate", Self::SelectionRate),
        ("tpr", Self::TruePositive),
        ("tnr", Self::TrueNegative),
        ("fpr", Self::FalsePositive),
        ("fnr", Self::FalseNegative),
        ("npv", Self::NegativePredictive),
        ("fdr", Self::FalseDiscovery),
        ("for", Self::FalseOmission),
        ("base_rate", Self::BaseRate),
    ];

    /// Finds a rate by its name.
    ///
    /// # Errors
    /// [`InputError::UnknownOption`].
    pub fn named(name: &str) -> Result<Self, InputError> {
        option("metric", name, &Self::ALL)
    }
}

/// Sums of weights by label and prediction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Confusion {
    /// Positive, predicted positive.
    pub true_positive: f64,
    /// Negative, predicted positive.
    pub false_positive: f64,
    /// Negative, predicted negative.
    pub true_negative: f64,
    /// Positive, predicted negative.
    pub false_negative: f64,
}

impl Confusion {
    /// Counts rows of one weight each, or of their `weights`; all slices `[rows]`.
    #[must_use]
    pub fn of(truth: &[bool], predicted: &[bool], weights: Option<&[f64]>) -> Self {
        let mut all = Self::default();
        for (row, (truth, predicted)) in truth.iter().zip(predicted).enumerate() {
            all.add(*truth, *predicted, weights.map_or(1.0, |w| w[row]));
        }
        all
    }

    /// Counts the rows of each group; `group` holds `[rows]` indices below `groups`.
    #[must_use]
    pub fn by_group(
        truth: &[bool],
        predicted: &[bool],
        weights: Option<&[f64]>,
        group: &[u32],
        groups: usize,
    ) -> Vec<Self> {
        let mut by_group = vec![Self::default(); groups];
        for (row, group) in group.iter().enumerate() {
            by_group[*group as usize].add(truth[row], predicted[row], weights.map_or(1.0, |w| w[row]));
        }
        by_group
    }

    /// From the four cells of `label + 2 · prediction`: TN, FN, FP, TP.
    #[must_use]
    pub fn from_cells(cells: &[f64; 4]) -> Self {
        let [true_negative, false_negative, false_positive, true_positive] = *cells;
        Self { true_positive, false_positive, true_negative, false_negative }
    }

    /// Adds a row.
    pub fn add(&mut self, truth: bool, predicted: bool, weight: f64) {
        let cell = match (truth, predicted) {
            (true, true) => &mut self.true_positive,
            (false, true) => &mut self.false_positive,
            (false, false) => &mut self.true_negative,
            (true, false) => &mut self.false_negative,
        };
        *cell += weight;
    }

    /// The rows of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            true_positive: self.true_positive + other.true_positive,
            false_positive: self.false_positive + other.false_positive,
            true_negative: self.true_negative + other.true_negative,
            false_negative: self.false_negative + other.false_negative,
        }
    }

    /// Weight of the positive rows.
    #[must_use]
    pub fn positives(&self) -> f64 {
        self.true_positive + self.false_negative
    }

    /// Weight of the negative rows.
    #[must_use]
    pub fn negatives(&self) -> f64 {
        self.false_positive + self.true_negative
    }

    /// Weight of the rows predicted positive.
    #[must_use]
    pub fn selected(&self) -> f64 {
        self.true_positive + self.false_positive
    }

    /// Weight of the rows predicted negative.
    #[must_use]
    pub fn rejected(&self) -> f64 {
        self.true_negative + self.false_negative
    }

    /// Weight of all rows.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.positives() + self.negatives()
    }

    /// Numerator and denominator of a rate that is one fraction; none for balanced accuracy.
    #[must_use]
    pub fn fraction(&self, rate: Rate) -> Option<(f64, f64)> {
        Some(match rate {
            Rate::Accuracy => (self.true_positive + self.true_negative, self.total()),
            Rate::BalancedAccuracy => return None,
            Rate::Precision => (self.true_positive, self.selected()),
            Rate::Recall | Rate::TruePositive => (self.true_positive, self.positives()),
            Rate::F1 => {
                let twice = 2.0 * self.true_positive;
                (twice, twice + self.false_positive + self.false_negative)
            }
            Rate::SelectionRate => (self.selected(), self.total()),
            Rate::TrueNegative => (self.true_negative, self.negatives()),
            Rate::FalsePositive => (self.false_positive, self.negatives()),
            Rate::FalseNegative => (self.false_negative, self.positives()),
            Rate::NegativePredictive => (self.true_negative, self.rejected()),
            Rate::FalseDiscovery => (self.false_positive, self.selected()),
            Rate::FalseOmission => (self.false_negative, self.rejected()),
            Rate::BaseRate => (self.positives(), self.total()),
        })
    }

    /// A rate, in [0, 1].
    ///
    /// # Errors
    /// [`Undefined`] with the reason where its denominator is 0; [`Convention::Fairlearn`] leaves only those that
    /// fairlearn itself cannot compute: no rows, and NPV, FDR, FOR, which it does not have.
    pub fn rate(&self, rate: Rate, convention: Convention) -> Measured {
        if self.total() <= 0.0 {
            return Err(Undefined::NoRows);
        }
        let why = match rate {
            Rate::BalancedAccuracy => return self.balanced_accuracy(convention),
            Rate::Precision | Rate::FalseDiscovery => Undefined::NothingSelected,
            Rate::Recall | Rate::TruePositive | Rate::FalseNegative => Undefined::NoPositives,
            Rate::TrueNegative | Rate::FalsePositive => Undefined::NoNegatives,
            Rate::NegativePredictive | Rate::FalseOmission => Undefined::NothingRejected,
            Rate::F1 => Undefined::DivisionByZero,
            Rate::Accuracy | Rate::SelectionRate | Rate::BaseRate => Undefined::NoRows,
        };
        let (part, whole) = self.fraction(rate).unwrap_or((0.0, 0.0));
        let of_fairlearn = !matches!(rate, Rate::NegativePredictive | Rate::FalseDiscovery | Rate::FalseOmission);
        match divide(part, whole, why) {
            Err(_) if convention == Convention::Fairlearn && of_fairlearn => Ok(0.0),
            measured => measured,
        }
    }

    fn balanced_accuracy(&self, convention: Convention) -> Measured {
        let recall = divide(self.true_positive, self.positives(), Undefined::NoPositives);
        let specificity = divide(self.true_negative, self.negatives(), Undefined::NoNegatives);
        match (recall, specificity, convention) {
            (Ok(recall), Ok(specificity), _) => Ok(f64::midpoint(recall, specificity)),
            (Ok(only), Err(_), Convention::Fairlearn) | (Err(_), Ok(only), Convention::Fairlearn) => Ok(only),
            (Err(why), _, _) | (_, Err(why), _) => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_weight_of_two_is_the_row_twice(rows in prop::collection::vec((any::<bool>(), any::<bool>(), 0_u8..3), 1..60)) {
            let column = |f: fn(&(bool, bool, u8)) -> bool| rows.iter().map(f).collect::<Vec<_>>();
            let (truth, predicted) = (column(|r| r.0), column(|r| r.1));
            let weights: Vec<f64> = rows.iter().map(|r| f64::from(r.2)).collect();
            let mut repeated = Confusion::default();
            for (truth, predicted, times) in &rows {
                for _ in 0..*times {
                    repeated.add(*truth, *predicted, 1.0);
                }
            }
            prop_assert_eq!(Confusion::of(&truth, &predicted, Some(&weights)), repeated);
        }

        #[test]
        fn complements_sum_to_one(cells in prop::array::uniform4(0_u32..4)) {
            let confusion = Confusion::from_cells(&cells.map(f64::from));
            let pairs = [
                (Rate::TruePositive, Rate::FalseNegative),
                (Rate::TrueNegative, Rate::FalsePositive),
                (Rate::Precision, Rate::FalseDiscovery),
                (Rate::NegativePredictive, Rate::FalseOmission),
            ];
            for (rate, complement) in pairs {
                let rate = confusion.rate(rate, Convention::Defined);
                let complement = confusion.rate(complement, Convention::Defined);
                match (rate, complement) {
                    (Ok(rate), Ok(complement)) => prop_assert!((rate + complement - 1.0).abs() < 1e-15),
                    (rate, complement) => prop_assert_eq!(rate, complement),
                }
            }
        }
    }

    #[test]
    fn an_empty_denominator_is_told_by_its_reason() {
        let nobody_selected = Confusion { true_negative: 3.0, false_negative: 1.0, ..Confusion::default() };
        let rate = |rate| nobody_selected.rate(rate, Convention::Defined);
        assert_eq!(rate(Rate::Precision), Err(Undefined::NothingSelected));
        assert_eq!(rate(Rate::TruePositive), Ok(0.0));
        assert_eq!(rate(Rate::F1), Ok(0.0));
        assert_eq!(Confusion::default().rate(Rate::Accuracy, Convention::Fairlearn), Err(Undefined::NoRows));
    }
}
