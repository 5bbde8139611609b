//! The ECE that a perfectly calibrated model would show on so few rows.
//!
//! A binned ECE is never negative, so it is above 0 by chance alone: about 0.09 at 100 rows and 10 bins. Here hits are
//! drawn with the given confidences as their probabilities, so that nothing but chance is left. The bins stay as given.
//! Cost: one random number a row and draw.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::edges::quantile;
use super::{Bins, Edges};
use crate::audit::statistics::{Undefined, weights_or_ones};

/// ECEs under perfect calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct Null {
    /// Rising.
    sorted: Vec<f64>,
}

impl Null {
    /// Returns the mean: what a perfectly calibrated model shows on average.
    pub fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }

    /// Returns a quantile, `q` in [0, 1]; 0.95 is the usual bound above which miscalibration is more than chance.
    pub fn quantile(&self, q: f64) -> f64 {
        quantile(&self.sorted, q.clamp(0.0, 1.0))
    }

    /// Returns how often perfect calibration shows an ECE of at least `ece`: (count + 1) / (draws + 1).
    pub fn p_value(&self, ece: f64) -> f64 {
        // Sums in another order differ in their last bits: such a tie counts.
        let below = self.sorted.partition_point(|drawn| *drawn < ece - 1e-12);
        (self.sorted.len() - below + 1) as f64 / (self.sorted.len() + 1) as f64
    }
}

/// Draws the ECE of a perfectly calibrated model with these confidences and weights, `draws` times (at least once).
///
/// # Errors
///
/// [`Undefined::NoRows`] if nothing has weight.
pub fn null_ece(
    edges: &Edges,
    confidence: &[f64],
    weights: Option<&[f64]>,
    draws: usize,
    seed: u64,
) -> Result<Null, Undefined> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let two_to_32 = f64::from(u32::MAX) + 1.0;
    let rows = confidence.iter().zip(weights_or_ones(weights)).filter(|(_, weight)| *weight > 0.0);
    let rows: Vec<(usize, u64, f64, f64)> =
        rows.map(|(c, w)| (edges.bin(*c), (c * two_to_32).round() as u64, *c, w)).collect();
    let mut bins = Bins::new(edges);
    let mut sorted = Vec::with_capacity(draws);
    for _ in 0..draws.max(1) {
        bins.clear();
        for (bin, threshold, confidence, weight) in &rows {
            bins.add_to(*bin, *confidence, u64::from(rng.next_u32()) < *threshold, *weight);
        }
        sorted.push(bins.ece()?);
    }
    sorted.sort_by(f64::total_cmp);
    Ok(Null { sorted })
}
