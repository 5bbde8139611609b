//! Answers by option tokens ("A", "B", "yes"): what is the model's preference for a token, what for the content?
//!
//! Prompts nothing: probabilities come in. Raw answers stay the primary figure; corrections stand beside them.
//! A question is asked in several permutations of its options; [`Asked`] is one of them. Within a question, contents
//! and tokens are numbered from 0.

mod contextual;
mod permutations;
mod separation;
#[cfg(test)]
mod tests;

pub use contextual::ContentFree;
pub use permutations::{Asked, averaged, balanced, debiased, token_prior};
pub use permutations::{ChoiceRates, choice_rates, flip_rate, token_deviation};
pub use separation::{Separation, Verdict, content_effect, separation};

use super::{Measured, Undefined};

/// A logarithm that stays finite at 0.
fn ln(p: f64) -> f64 {
    p.max(f64::MIN_POSITIVE).ln()
}

/// Scales to a sum of 1.
fn normalise(mut values: Vec<f64>) -> Result<Vec<f64>, Undefined> {
    let sum: f64 = values.iter().sum();
    if sum > 0.0 && sum.is_finite() {
        values.iter_mut().for_each(|value| *value /= sum);
        Ok(values)
    } else {
        Err(Undefined::DivisionByZero)
    }
}
