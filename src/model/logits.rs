//! One row of logits as log-probabilities: numbers only, in f64.
//!
//! Draws nothing (see the engine's sampler) and knows no tensor.
//! Shapes: logits `[vocab]`; natural logarithms.

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
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    Ok(max + sum.ln())
}

/// Returns the index of the largest logit, the first on a tie.
///
/// # Errors
/// When there is none above -infinity.
pub fn first_maximum(logits: &[f32]) -> Result<u32, LogitsError> {
    let mut best = f32::NEG_INFINITY;
    let mut index = None;
    for (id, &logit) in (0u32..).zip(logits) {
        if logit > best {
            (best, index) = (logit, Some(id));
        }
    }
    index.ok_or(LogitsError::NothingLeft)
}

/// Refuses NaN and +infinity.
///
/// # Errors
/// Names the first.
pub fn check(logits: &[f32]) -> Result<(), LogitsError> {
    match logits.iter().position(|&l| l.is_nan() || l == f32::INFINITY) {
        Some(index) => Err(LogitsError::NotFinite { index }),
        None => Ok(()),
    }
}
