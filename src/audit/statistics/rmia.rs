//! The robust membership inference attack: does a point beat population points in p(target) / p(references)?
//!
//! Few references suffice. Works on probabilities: of the true class, or for text the geometric mean over tokens (the
//! product over a sequence is 0 in any format). Higher = member. After: Zarifzadeh et al. 2024 (arXiv 2312.03262),
//! ml_privacy_meter `run_rmia`.

use super::{Measured, Undefined};

/// Returns p(target) / p(references) where no reference was trained on the point ("offline").
///
/// `outside` are the probabilities under references without it. As they lie below what references with it would say,
/// the mean m is lifted to (1 + a)/2·m + (1 − a)/2; `a` in [0, 1] depends on model and data, 0.3 is usual. The mean is
/// over the `largest` of them: ml_privacy_meter takes half the number of references, if every point was in half of them.
///
/// # Errors
///
/// [`Undefined::TooFewShadows`] without references, [`Undefined::DivisionByZero`] if their probability is 0.
pub fn offline_ratio(target: f64, outside: &[f64], a: f64, largest: usize) -> Measured {
    let mut sorted = outside.to_vec();
    sorted.sort_by(|x, y| y.total_cmp(x));
    sorted.truncate(largest);
    let mean = mean(&sorted)?;
    divide(target, (1.0 + a) / 2.0 * mean + (1.0 - a) / 2.0)
}

/// Returns p(target) / p(references) where some references were trained on the point and some were not ("online"):
/// p(references) is the mean of the two means, whatever their numbers.
///
/// # Errors
///
/// [`Undefined::TooFewShadows`] if a side is empty, [`Undefined::DivisionByZero`] if their probability is 0.
pub fn online_ratio(target: f64, inside: &[f64], outside: &[f64]) -> Measured {
    divide(target, f64::midpoint(mean(inside)?, mean(outside)?))
}

/// Ratios of points that no model was trained on.
#[derive(Debug, Clone)]
pub struct Population {
    /// Rising.
    ratios: Vec<f64>,
}

impl Population {
    /// Takes the ratios of population points, at least one.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`].
    pub fn new(mut ratios: Vec<f64>) -> Result<Self, Undefined> {
        if ratios.is_empty() {
            return Err(Undefined::NoRows);
        }
        ratios.sort_by(f64::total_cmp);
        Ok(Self { ratios })
    }

    /// Returns the share of population points z with ratio / ratio(z) > `gamma`. γ = 1 is usual.
    pub fn score(&self, ratio: f64, gamma: f64) -> f64 {
        self.ratios.partition_point(|z| ratio / z > gamma) as f64 / self.ratios.len() as f64
    }
}

fn mean(values: &[f64]) -> Measured {
    if values.is_empty() { Err(Undefined::TooFewShadows) } else { Ok(values.iter().sum::<f64>() / values.len() as f64) }
}

fn divide(target: f64, references: f64) -> Measured {
    if references > 0.0 { Ok(target / references) } else { Err(Undefined::DivisionByZero) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_beaten_points_rises_with_the_ratio_and_falls_with_gamma() {
        let population = Population::new(vec![0.5, 2.0, 1.0, 0.0]).unwrap();
        assert_eq!([0.1, 0.6, 1.5, 3.0].map(|ratio| population.score(ratio, 1.0)), [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(population.score(1.0, 1.0), 0.5);
        assert_eq!(population.score(1.5, 2.0), 0.5);
        assert_eq!(Population::new(vec![]).map(|_| ()), Err(Undefined::NoRows));
    }

    #[test]
    fn references_are_averaged_by_side() {
        assert_eq!(online_ratio(0.5, &[1.0, 0.5], &[0.25]), Ok(1.0));
        assert_eq!(online_ratio(0.6, &[], &[0.4]), Err(Undefined::TooFewShadows));
        // a = 1 takes the mean as it is, a = 0 half-way to 1.
        assert_eq!(offline_ratio(0.5, &[0.25, 0.75], 1.0, 2), Ok(1.0));
        assert_eq!(offline_ratio(0.75, &[0.25, 0.75, 0.1], 0.0, 2), Ok(1.0));
        assert_eq!(offline_ratio(0.5, &[0.0], 1.0, 1), Err(Undefined::DivisionByZero));
        assert_eq!(offline_ratio(0.5, &[], 1.0, 1), Err(Undefined::TooFewShadows));
    }
}
