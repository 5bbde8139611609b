//! Temperature scaling: one number T by which logits are divided so that confidences fit the hits.
//!
//! Fits and applies; measures nothing. Fit on rows that are not the audited ones: on its own rows T looks better than it
//! is. Shapes: logits [rows, classes]. After: Guo et al. 2017 (arXiv 1706.04599), with an exact minimum: the log loss is
//! convex in 1/T, so its slope has one root, which a Newton step finds, held inside a shrinking bracket.

use crate::audit::statistics::{Undefined, weights_or_ones};

/// 1/T outside of this is taken for infinite: the log loss has no minimum.
const INVERSE: (f64, f64) = (1e-6, 1e6);

/// A fitted temperature, above 0. Above 1 the model was over-confident.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature(f64);

impl Temperature {
    /// Finds the T of least weighted log loss of `logits` [rows, classes] for the labels.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`]; [`Undefined::Unbounded`] if the loss falls without end: every label is the largest logit
    /// (T → 0), or logits are no better than chance (T → ∞).
    pub fn fit(logits: &[f64], classes: usize, label: &[usize], weights: Option<&[f64]>) -> Result<Self, Undefined> {
        if weights_or_ones(weights).take(label.len()).sum::<f64>() <= 0.0 {
            return Err(Undefined::NoRows);
        }
        let slope = |inverse: f64| slope(logits, classes, label, weights, inverse);
        let (mut low, mut high) = INVERSE;
        if slope(low).0 >= 0.0 || slope(high).0 <= 0.0 {
            return Err(Undefined::Unbounded);
        }
        let mut inverse = 1.0_f64;
        for _ in 0..200 {
            let (first, second) = slope(inverse);
            if first > 0.0 {
                high = inverse
            } else {
                low = inverse
            }
            let newton = inverse - first / second;
            let next = if newton > low && newton < high { newton } else { (low * high).sqrt() };
            let moved = (next - inverse).abs();
            inverse = next;
            if moved <= 1e-14 * inverse {
                break;
            }
        }
        Ok(Self(1.0 / inverse))
    }

    /// Returns T.
    pub fn value(self) -> f64 {
        self.0
    }

    /// Returns the standard error of ln T of a fit on these rows, which come in `clusters` or stand alone: the sandwich of
    /// Huber (1967) and White (1982), which does not take probabilities for right.
    ///
    /// # Errors
    ///
    /// [`Undefined::DivisionByZero`] where the loss is flat.
    pub fn log_error(
        self,
        logits: &[f64],
        classes: usize,
        label: &[usize],
        (weights, clusters): (Option<&[f64]>, Option<&[u32]>),
    ) -> Result<f64, Undefined> {
        let inverse = 1.0 / self.0;
        let mut slopes = std::collections::BTreeMap::new();
        let mut curvature = 0.0;
        let rows = logits.chunks_exact(classes.max(1)).zip(label).zip(weights_or_ones(weights));
        for (at, ((row, label), weight)) in rows.enumerate() {
            let (first, second) = slope(row, classes, &[*label], Some(&[weight]), inverse);
            *slopes.entry(clusters.map_or(at as u32, |clusters| clusters[at])).or_insert(0.0) += first;
            curvature += second;
        }
        let squares: f64 = slopes.values().map(|slope: &f64| slope * slope).sum();
        let error = squares.sqrt() / (curvature * inverse);
        if error.is_finite() { Ok(error) } else { Err(Undefined::DivisionByZero) }
    }

    /// Returns softmax(logits / T) [rows, classes].
    pub fn apply(self, logits: &[f64], classes: usize) -> Vec<f64> {
        logits.chunks_exact(classes.max(1)).flat_map(|row| softmax(row, 1.0 / self.0)).collect()
    }

    /// Returns logits of probabilities: their logarithms, 0 as the smallest normal number. Serves rows of
    /// probabilities, and (1 − p, p) pairs of binary scores ([`Temperature::binary`]).
    pub fn logits(probabilities: &[f64]) -> Vec<f64> {
        probabilities.iter().map(|p| p.max(f64::MIN_POSITIVE).ln()).collect()
    }

    /// Returns logits [rows, 2] of scores of the positive class.
    pub fn binary(score: &[f64]) -> Vec<f64> {
        score.iter().flat_map(|p| Self::logits(&[1.0 - p, *p])).collect()
    }
}

/// First and second derivative of the weighted log loss by 1/T: the mean over the model's own distribution of the
/// logit, minus the label's, and its variance.
fn slope(logits: &[f64], classes: usize, label: &[usize], weights: Option<&[f64]>, inverse: f64) -> (f64, f64) {
    let (mut first, mut second) = (0.0, 0.0);
    for ((row, label), weight) in logits.chunks_exact(classes.max(1)).zip(label).zip(weights_or_ones(weights)) {
        let p = softmax(row, inverse);
        let mean: f64 = p.iter().zip(row).map(|(p, z)| p * z).sum();
        let variance: f64 = p.iter().zip(row).map(|(p, z)| p * (z - mean).powi(2)).sum();
        first += weight * (mean - row[*label]);
        second += weight * variance;
    }
    (first, second)
}

fn softmax(row: &[f64], inverse: f64) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut p: Vec<f64> = row.iter().map(|z| ((z - most) * inverse).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}
