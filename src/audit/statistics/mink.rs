//! Membership from one pass over a text, no shadows: loss, Min-K%, Min-K%++, and the ratio to the base model.
//!
//! Runs no model. Higher = member in all of them. Units: natural logarithms. After: Shi et al. 2024 (arXiv 2310.16789),
//! Zhang et al. 2024 (arXiv 2404.02936), both official repositories; LoRA-Leak (arXiv 2507.18302) for the ratio.

use super::{Measured, Undefined};

/// A token under the model's own distribution of the next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenStats {
    /// ln p of the token that stands there.
    pub log_probability: f64,
    /// Mean of ln p over the distribution: minus its entropy.
    pub mean: f64,
    /// Standard deviation of ln p over the distribution.
    pub deviation: f64,
}

impl TokenStats {
    /// Reads logits over the vocabulary, where `token` is the one that stands in the text.
    pub fn new<T: Copy + Into<f64>>(logits: &[T], token: usize) -> Self {
        let most = logits.iter().map(|z| (*z).into()).fold(f64::NEG_INFINITY, f64::max);
        let log_sum = logits.iter().map(|z| ((*z).into() - most).exp()).sum::<f64>().ln();
        let log_p = |z: T| z.into() - most - log_sum;
        let expected = |of: &dyn Fn(f64) -> f64| -> f64 {
            let terms = logits.iter().map(|z| log_p(*z)).filter(|l| l.is_finite());
            terms.map(|l| l.exp() * of(l)).sum()
        };
        let mean = expected(&|l| l);
        let variance = expected(&|l| (l - mean).powi(2));
        Self { log_probability: log_p(logits[token]), mean, deviation: variance.sqrt() }
    }

    /// Returns (ln p − mean) / deviation, which Min-K%++ averages.
    ///
    /// # Errors
    ///
    /// [`Undefined::DivisionByZero`] if the distribution has one value only: one certain token, or all alike.
    pub fn standardised(&self) -> Measured {
        if self.deviation > 0.0 {
            Ok((self.log_probability - self.mean) / self.deviation)
        } else {
            Err(Undefined::DivisionByZero)
        }
    }
}

/// Returns minus the mean loss of a text: the mean of its log-probabilities.
///
/// # Errors
///
/// [`Undefined::NoRows`] for no token.
pub fn loss_score(log_probability: &[f64]) -> Measured {
    min_k(log_probability, 1.0)
}

/// Returns Min-K%: the mean of the k = ⌊length·ratio⌋ lowest log-probabilities.
///
/// # Errors
///
/// [`Undefined::NoRows`] for no token, [`Undefined::Unreachable`] if k is 0: the text is too short for the ratio.
pub fn min_k(log_probability: &[f64], ratio: f64) -> Measured {
    if log_probability.is_empty() {
        return Err(Undefined::NoRows);
    }
    let k = (log_probability.len() as f64 * ratio) as usize;
    if k == 0 {
        return Err(Undefined::Unreachable);
    }
    let mut sorted = log_probability.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.truncate(k);
    Ok(sorted.iter().sum::<f64>() / sorted.len() as f64)
}

/// Returns Min-K%++: Min-K% of the standardised log-probabilities.
///
/// # Errors
///
/// Those of [`min_k`] and of [`TokenStats::standardised`].
pub fn min_k_plus_plus(tokens: &[TokenStats], ratio: f64) -> Measured {
    let standardised = tokens.iter().map(TokenStats::standardised).collect::<Result<Vec<_>, _>>()?;
    min_k(&standardised, ratio)
}

/// Returns ln p(target) − ln p(base) of a text, over its tokens: how much training raised it. The base is a reference
/// that every adapter has for free. Divide by the number of tokens to compare texts of different length.
///
/// # Errors
///
/// [`Undefined::NoRows`] for no token.
pub fn base_ratio(target: &[f64], base: &[f64]) -> Measured {
    if target.is_empty() {
        return Err(Undefined::NoRows);
    }
    Ok(target.iter().zip(base).map(|(target, base)| target - base).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_of_one_value_has_no_standard_score() {
        assert_eq!(TokenStats::new(&[1.0, 1.0, 1.0, 1.0], 2).standardised(), Err(Undefined::DivisionByZero));
        let certain = TokenStats::new(&[0.0, f64::NEG_INFINITY], 0);
        assert_eq!((certain.log_probability, certain.standardised()), (0.0, Err(Undefined::DivisionByZero)));
        assert!(TokenStats::new(&[3.0_f32, 1.0, -2.0], 0).standardised().unwrap() > 0.0);
    }

    #[test]
    fn a_short_text_is_undefined_not_0() {
        assert_eq!(min_k(&[-1.0, -2.0], 0.4), Err(Undefined::Unreachable));
        assert_eq!(min_k(&[-1.0, -2.0], 0.5), Ok(-2.0));
        assert_eq!(min_k(&[], 1.0), Err(Undefined::NoRows));
        assert_eq!(loss_score(&[-1.0, -2.0]), Ok(-1.5));
    }

    #[test]
    fn what_training_raised_is_above_0() {
        assert_eq!(base_ratio(&[-1.0, -0.5], &[-2.0, -0.75]), Ok(1.25));
        assert_eq!(base_ratio(&[], &[]), Err(Undefined::NoRows));
    }
}
