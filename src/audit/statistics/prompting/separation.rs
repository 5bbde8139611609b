//! The rule for "not separable from token preference".
//!
//! **Definition.** A question has an effect in each wording (an alphabet of tokens and a polarity of the question): the
//! mean over balanced permutations of ln p(one content) − ln p(the other) ([`content_effect`]). If ln p is a sum of a
//! preference for the content, one for the token and one for the place, then the latter two cancel exactly. Where the
//! polarity is inverted ("which is *not*…") the caller exchanges the contents, so that a true effect has one sign.
//! The effect is *separable* from token preference if, and only if,
//! 1. the Student interval of its mean over questions (each the mean over its wordings) does not hold 0, and
//! 2. its mean over questions has the same sign, not 0, in every wording.
//!
//! Otherwise nothing may be said about content. Questions, not askings, are the units: askings of one question are not
//! independent. One wording only cannot show that the sign is kept: at least two are asked for.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::permutations::{Asked, balanced};
use super::{Measured, Undefined, ln};

/// Returns the mean over permutations of ln p(`one`) − ln p(`other`), both contents.
///
/// # Errors
///
/// [`Undefined::NoRows`], [`Undefined::Unbalanced`] if the permutations are not [`balanced`].
pub fn content_effect(permutations: &[Asked], one: usize, other: usize) -> Measured {
    if permutations.is_empty() {
        return Err(Undefined::NoRows);
    }
    if !balanced(permutations) {
        return Err(Undefined::Unbalanced);
    }
    let log_of = |asked: &Asked, wanted: usize| {
        asked.content.iter().position(|content| *content == wanted).map(|place| ln(asked.probability[place]))
    };
    let mut sum = 0.0;
    for asked in permutations {
        let (Some(one), Some(other)) = (log_of(asked, one), log_of(asked, other)) else {
            return Err(Undefined::Unbalanced);
        };
        sum += one - other;
    }
    Ok(sum / permutations.len() as f64)
}

/// What may be said about content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The effect is one of content.
    Separable,
    /// Not separable: the interval holds 0.
    IntervalHoldsZero,
    /// Not separable: the sign changes with the wording.
    SignChanges,
}

/// An effect of content and what may be said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Separation {
    /// Mean over questions and wordings, in natural logarithms of odds.
    pub effect: f64,
    /// Low end of its interval.
    pub low: f64,
    /// High end of its interval.
    pub high: f64,
    /// Mean over questions in each wording.
    pub by_wording: Vec<f64>,
    /// The rule of this file, applied.
    pub verdict: Verdict,
}

/// Applies the rule to `effects` [questions, wordings] with an interval of `level` (0.95 is usual).
///
/// # Errors
///
/// [`Undefined::NoRows`] for fewer than two questions, [`Undefined::OneGroup`] for fewer than two wordings.
pub fn separation(effects: &[f64], wordings: usize, level: f64) -> Result<Separation, Undefined> {
    if wordings < 2 {
        return Err(Undefined::OneGroup);
    }
    let questions: Vec<&[f64]> = effects.chunks_exact(wordings).collect();
    if questions.len() < 2 {
        return Err(Undefined::NoRows);
    }
    let n = questions.len() as f64;
    let by_wording: Vec<f64> = (0..wordings).map(|w| questions.iter().map(|q| q[w]).sum::<f64>() / n).collect();
    let means: Vec<f64> = questions.iter().map(|q| q.iter().sum::<f64>() / wordings as f64).collect();
    let effect = means.iter().sum::<f64>() / n;
    let error = (means.iter().map(|mean| (mean - effect).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
    let student = StudentsT::new(0.0, 1.0, n - 1.0).map_err(|_| Undefined::NoRows)?;
    let reach = error * student.inverse_cdf(f64::midpoint(1.0, level.clamp(0.0, 1.0 - 1e-9)));
    let (low, high) = (effect - reach, effect + reach);
    let verdict = if low <= 0.0 && high >= 0.0 {
        Verdict::IntervalHoldsZero
    } else if by_wording.iter().any(|mean| *mean == 0.0 || mean.is_sign_positive() != effect.is_sign_positive()) {
        Verdict::SignChanges
    } else {
        Verdict::Separable
    };
    Ok(Separation { effect, low, high, by_wording, verdict })
}
