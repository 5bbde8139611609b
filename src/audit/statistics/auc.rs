//! Figures of scores: area under the ROC curve, log loss, Brier score, mean.
//!
//! Binary labels; scores of any finite size for the AUC, probabilities for the other two. Rows carry weights. A
//! bootstrap ranks its rows once ([`Ranked`]) and then reads every resample in that order without sorting again.
//! After: scikit-learn 1.9 `roc_auc_score`, `log_loss`, `brier_score_loss`.

use super::{Measured, Undefined, divide};

/// Rows in the order of their scores.
#[derive(Debug, Clone)]
pub struct Ranked {
    /// Rows, lowest score first; the highest bit says that the row has the same score as the row before.
    order: Vec<u32>,
    /// Labels in that order.
    truth: Vec<bool>,
}

const TIE: u32 = 1 << 31;

impl Ranked {
    /// Ranks the given rows (below 2³¹) by `scores[row]`; no score may be NaN.
    #[must_use]
    pub fn new(rows: impl Iterator<Item = usize>, scores: &[f64], truth: &[bool]) -> Self {
        let mut order: Vec<u32> = rows.map(|row| row as u32).collect();
        order.sort_unstable_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]));
        let truth = order.iter().map(|row| truth[*row as usize]).collect();
        let mut before = f64::NAN;
        for row in &mut order {
            let score = scores[*row as usize];
            if score == before {
                *row |= TIE;
            }
            before = score;
        }
        Self { order, truth }
    }

    /// Area under the ROC curve: the weighted share of pairs of a positive and a negative row in which the positive
    /// one has the higher score, a tie counting half.
    ///
    /// # Errors
    /// [`Undefined::NoPositives`], [`Undefined::NoNegatives`]: of any weight.
    pub fn auc(&self, weight: impl Fn(usize) -> f64) -> Measured {
        let (mut below, mut wins) = (0.0, 0.0);
        let (mut tied_positive, mut tied_negative) = (0.0, 0.0);
        let mut positives = 0.0;
        for (row, truth) in self.order.iter().zip(&self.truth) {
            if row & TIE == 0 {
                wins += tied_positive * (below + 0.5 * tied_negative);
                below += tied_negative;
                positives += tied_positive;
                (tied_positive, tied_negative) = (0.0, 0.0);
            }
            let weight = weight((row & !TIE) as usize);
            // Both sums without a branch: labels are as good as random here.
            let positive = weight * f64::from(u8::from(*truth));
            tied_positive += positive;
            tied_negative += weight - positive;
        }
        wins += tied_positive * (below + 0.5 * tied_negative);
        below += tied_negative;
        positives += tied_positive;
        match (positives > 0.0, below > 0.0) {
            (true, true) => Ok(wins / (positives * below)),
            (false, true) => Err(Undefined::NoPositives),
            (true, false) => Err(Undefined::NoNegatives),
            (false, false) => Err(Undefined::NoRows),
        }
    }
}

/// Weight of a row: 1 without weights.
fn weight(weights: Option<&[f64]>, row: usize) -> f64 {
    weights.map_or(1.0, |w| w[row])
}

/// Area under the ROC curve of all rows (see [`Ranked::auc`]).
///
/// # Errors
/// [`Undefined::NoPositives`], [`Undefined::NoNegatives`], [`Undefined::NoRows`].
pub fn auc(truth: &[bool], scores: &[f64], weights: Option<&[f64]>) -> Measured {
    Ranked::new(0..truth.len(), scores, truth).auc(|row| weight(weights, row))
}

/// Log loss of one row in nats, the probability clipped to [2⁻⁵², 1 − 2⁻⁵²].
#[must_use]
pub fn log_loss_of(probability_of_truth: f64) -> f64 {
    -probability_of_truth.clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln()
}

/// Mean log loss in nats.
///
/// # Errors
/// [`Undefined::NoRows`].
pub fn log_loss(truth: &[bool], scores: &[f64], weights: Option<&[f64]>) -> Measured {
    mean(truth.len(), weights, |row| log_loss_of(if truth[row] { scores[row] } else { 1.0 - scores[row] }))
}

/// Mean squared difference of probability and label.
///
/// # Errors
/// [`Undefined::NoRows`].
pub fn brier(truth: &[bool], scores: &[f64], weights: Option<&[f64]>) -> Measured {
    mean(truth.len(), weights, |row| (scores[row] - f64::from(u8::from(truth[row]))).powi(2))
}

/// Weighted mean of `value(row)`.
///
/// # Errors
/// [`Undefined::NoRows`].
pub fn mean(rows: usize, weights: Option<&[f64]>, value: impl Fn(usize) -> f64) -> Measured {
    let (mut sum, mut total) = (0.0, 0.0);
    for row in 0..rows {
        let weight = weight(weights, row);
        sum += weight * value(row);
        total += weight;
    }
    divide(sum, total, Undefined::NoRows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, pair by pair.
    fn by_pairs(rows: &[(bool, u8, u8)]) -> Measured {
        let (mut wins, mut pairs) = (0.0, 0.0);
        for (_, score, weight) in rows.iter().filter(|r| r.0) {
            for (_, other, other_weight) in rows.iter().filter(|r| !r.0) {
                let pair = f64::from(*weight) * f64::from(*other_weight);
                pairs += pair;
                wins += match score.cmp(other) {
                    std::cmp::Ordering::Greater => pair,
                    std::cmp::Ordering::Equal => 0.5 * pair,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        divide(wins, pairs, Undefined::NoRows)
    }

    proptest! {
        #[test]
        fn the_area_is_the_share_of_pairs(rows in prop::collection::vec((any::<bool>(), 0_u8..6, 0_u8..4), 0..40)) {
            let truth: Vec<bool> = rows.iter().map(|r| r.0).collect();
            let scores: Vec<f64> = rows.iter().map(|r| f64::from(r.1) / 5.0).collect();
            let weights: Vec<f64> = rows.iter().map(|r| f64::from(r.2)).collect();
            match (auc(&truth, &scores, Some(&weights)), by_pairs(&rows)) {
                (Ok(got), Ok(expected)) => prop_assert!((got - expected).abs() < 1e-12),
                (got, expected) => prop_assert_eq!(got.is_err(), expected.is_err()),
            }
        }
    }
}
