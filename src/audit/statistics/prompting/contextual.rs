//! Contextual calibration: what does the model answer to a question without content, and what is left after that?
//!
//! Builds no prompt: probabilities of labels for content-free inputs ("N/A", nothing, "[MASK]") come in.
//! After: Zhao et al. 2021 (arXiv 2102.09690) and its code: W = diag(p_cf)⁻¹, b = 0.

use super::{Undefined, normalise};

/// The mean answer to content-free inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct ContentFree {
    /// p_cf over labels; sums to 1, none is 0.
    prior: Vec<f64>,
}

impl ContentFree {
    /// Averages `probabilities` [inputs, labels] over inputs. Rows need not sum to 1: label tokens share with others.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`] without inputs, [`Undefined::DivisionByZero`] if a label is never given any probability.
    pub fn new(probabilities: &[f64], labels: usize) -> Result<Self, Undefined> {
        if labels == 0 || probabilities.len() < labels {
            return Err(Undefined::NoRows);
        }
        let mut sums = vec![0.0; labels];
        for row in probabilities.chunks_exact(labels) {
            for (sum, p) in sums.iter_mut().zip(row) {
                *sum += p;
            }
        }
        let prior = normalise(sums)?;
        if prior.contains(&0.0) { Err(Undefined::DivisionByZero) } else { Ok(Self { prior }) }
    }

    /// Returns p_cf over labels.
    pub fn prior(&self) -> &[f64] {
        &self.prior
    }

    /// Returns p / p_cf, scaled to a sum of 1.
    ///
    /// # Errors
    ///
    /// [`Undefined::DivisionByZero`] if every probability is 0.
    pub fn correct(&self, probabilities: &[f64]) -> Result<Vec<f64>, Undefined> {
        normalise(probabilities.iter().zip(&self.prior).map(|(p, prior)| p / prior).collect())
    }
}
