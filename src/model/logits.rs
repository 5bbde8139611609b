//! One row of logits as log-probabilities: numbers only, in f64.
//!
//! Draws nothing (see the engine's sampler) and knows no tensor.
//! Shapes: logits `[vocab]`; natural logarithms.

use crate::ops::cpu::steps;

/// Why nothing can be read from logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogitsError {
    /// The model returned NaN or +infinity.
    #[error("logit {index} is not a number or infinite")]
    NotFinite {
        /// Its index.
        index: usize,
    },
    /// Every logit is -infinity.
    #[error("no token has a probability above zero")]
    NothingLeft,
}

/// Returns the natural logarithm of the sum of exponentials, in f64.
///
/// # Errors
/// When a logit is NaN or +infinity, or all are -infinity.
pub fn log_sum_exp(logits: &[f32]) -> Result<f64, LogitsError> {
    check(logits)?;
    let max = f64::from(logits[first_maximum(logits)? as usize]);
    Ok(max + steps::sum_of_powers(logits, max).ln())
}

/// Returns the index of the largest logit, the first on a tie.
///
/// # Errors
/// When there is none above -infinity.
pub fn first_maximum(logits: &[f32]) -> Result<u32, LogitsError> {
    steps::first_largest(logits).map(|index| index as u32).ok_or(LogitsError::NothingLeft)
}

/// Refuses NaN and +infinity.
///
/// # Errors
/// Names the first.
pub fn check(logits: &[f32]) -> Result<(), LogitsError> {
    steps::first_fault(logits).map_or(Ok(()), |index| Err(LogitsError::NotFinite { index }))
}
