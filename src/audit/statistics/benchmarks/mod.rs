//! Scores of published benchmarks, from answers and log-likelihoods.
//!
//! Reads no data set and runs no model: rows come in with what the model answered. Every score takes a weight a row, so
//! that a resample is a call with other weights. Each names the convention it follows.

mod bbq;
mod choice;
mod pairs;
#[cfg(test)]
mod tests;

pub use bbq::{Bbq, BbqRow, Tendency};
pub use choice::{Choice, ChoiceRow, Choices, answer};
pub use pairs::{CrowsPairs, Sentences, StereoSet, StereoSetTriple};

use super::{Measured, Undefined, weights_or_ones};

/// A weighted mean in the making.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.weight += weight;
    }

    fn add_flag(&mut self, flag: bool, weight: f64) {
        self.add(f64::from(u8::from(flag)), weight);
    }

    fn get(&self) -> Measured {
        if self.weight > 0.0 { Ok(self.sum / self.weight) } else { Err(Undefined::NoRows) }
    }
}
