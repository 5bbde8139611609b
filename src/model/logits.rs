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
    // Eight sums side by side: one would wait for itself.
    let (eights, rest) = logits.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        for (sum, logit) in sums.iter_mut().zip(eight) {
            *sum += exp_below_zero(f64::from(*logit) - max);
        }
    }
    let rest: f64 = rest.iter().map(|logit| exp_below_zero(f64::from(*logit) - max)).sum();
    Ok(max + (sums.iter().sum::<f64>() + rest).ln())
}

/// Returns eˣ for x ≤ 0 to about 1 unit in the last place, and 0 as good as exactly below -700: without a call, so that
/// it is computed for several numbers at once.
fn exp_below_zero(x: f64) -> f64 {
    /// Adding it leaves a whole number in the lowest bits.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    /// 1/13!, 1/12!, … 1/0!: the series of eʳ for |r| ≤ ln 2 / 2.
    const SERIES: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let x = if x > -700.0 { x } else { -700.0 };
    let shifted = x * std::f64::consts::LOG2_E + WHOLE;
    let n = shifted - WHOLE;
    // ln 2 in two parts, the first of few bits (Cody and Waite 1980).
    let r = (x - n * 6.931_457_519_531_25e-1) - n * 1.428_606_820_309_417_2e-6;
    let series = SERIES.iter().fold(0.0, |sum, c| sum * r + c);
    series * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_below_zero_are_those_of_the_library() {
        for i in 0..70_000 {
            let x = -0.01 * f64::from(i);
            assert!((exp_below_zero(x) / x.exp() - 1.0).abs() < 4e-16, "{x}: {} {}", exp_below_zero(x), x.exp());
        }
        assert!(exp_below_zero(f64::NEG_INFINITY) < 1e-300);
    }
}
