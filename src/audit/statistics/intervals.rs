//! Intervals of one proportion.
//!
//! Knows counts only; a weighted rate brings its effective number of rows. Levels are confidence levels in (0, 1), 0.95
//! as a rule. Wilson is the default of reports: it never leaves [0, 1] and says something at 0 of n.
//! After: statsmodels 0.15 `proportion_confint`; Brown, Cai, DasGupta 2001.

use super::distributions::{beta_quantile, normal_quantile};
use super::{Undefined, divide};

/// A range with its ends.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether a value lies inside, ends included.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Centre ± reach, cut to [0, 1].
    fn cut(centre: f64, reach: f64) -> Self {
        Self { low: (centre - reach).max(0.0), high: (centre + reach).min(1.0) }
    }
}

/// How to compute the interval of a proportion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proportion {
    /// Wilson's score interval.
    Wilson,
    /// Clopper and Pearson: from the binomial itself, never too short.
    ClopperPearson,
    /// Beta posterior under the prior of Jeffreys.
    Jeffreys,
    /// Agresti and Coull: normal around Wilson's centre.
    AgrestiCoull,
    /// Normal around the proportion; of length 0 at 0 of n, kept for comparison.
    Normal,
}

/// Interval of `hits` of `rows` (0 ≤ hits ≤ rows).
///
/// # Errors
/// [`Undefined::NoRows`].
pub fn proportion(hits: f64, rows: f64, level: f64, method: Proportion) -> Result<Interval, Undefined> {
    let tail = (1.0 - level) / 2.0;
    let z = -normal_quantile(tail);
    let p = divide(hits, rows, Undefined::NoRows)?;
    let misses = rows - hits;
    Ok(match method {
        Proportion::Wilson => {
            let scale = 1.0 + z * z / rows;
            let centre = (p + z * z / (2.0 * rows)) / scale;
            let reach = z * (p * (1.0 - p) / rows + z * z / (4.0 * rows * rows)).sqrt() / scale;
            Interval { low: centre - reach, high: centre + reach }
        }
        Proportion::ClopperPearson => Interval {
            low: if hits <= 0.0 { 0.0 } else { beta_quantile(tail, hits, misses + 1.0) },
            high: if misses <= 0.0 { 1.0 } else { beta_quantile(1.0 - tail, hits + 1.0, misses) },
        },
        Proportion::Jeffreys => Interval {
            low: beta_quantile(tail, hits + 0.5, misses + 0.5),
            high: beta_quantile(1.0 - tail, hits + 0.5, misses + 0.5),
        },
        Proportion::AgrestiCoull => {
            let rows = rows + z * z;
            let p = (hits + z * z / 2.0) / rows;
            Interval::cut(p, z * (p * (1.0 - p) / rows).sqrt())
        }
        Proportion::Normal => Interval::cut(p, z * (p * (1.0 - p) / rows).sqrt()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_interval_holds_its_proportion_and_mirrors_with_it(rows in 1_u32..200, share in 0.0..=1.0) {
            let (rows, hits) = (f64::from(rows), f64::round(f64::from(rows) * share));
            for method in [Proportion::Wilson, Proportion::ClopperPearson, Proportion::AgrestiCoull] {
                let interval = proportion(hits, rows, 0.95, method).unwrap();
                let mirror = proportion(rows - hits, rows, 0.95, method).unwrap();
                prop_assert!(interval.low - 1e-12 <= hits / rows && hits / rows <= interval.high + 1e-12);
                prop_assert!((interval.low - (1.0 - mirror.high)).abs() < 1e-9);
                let wider = proportion(hits, rows, 0.99, method).unwrap();
                prop_assert!(wider.low <= interval.low + 1e-12 && interval.high <= wider.high + 1e-12);
            }
        }
    }

    /// Coverage over all outcomes of a binomial, exactly: no simulation.
    #[test]
    fn wilson_covers_about_and_clopper_pearson_at_least_what_they_promise() {
        use super::super::distributions::ln_choose;
        let coverage = |p: f64, n: u64, method| -> f64 {
            let chance = |k: u64| (ln_choose(n, k) + k as f64 * p.ln() + (n - k) as f64 * (1.0 - p).ln()).exp();
            let holds = |k: &u64| proportion(*k as f64, n as f64, 0.95, method).unwrap().contains(p);
            (0..=n).filter(holds).map(chance).sum()
        };
        let grid: Vec<f64> = (2..=18).map(|i| f64::from(i) / 20.0 + 0.003).collect();
        let wilson: Vec<f64> = grid.iter().map(|p| coverage(*p, 80, Proportion::Wilson)).collect();
        let mean = wilson.iter().sum::<f64>() / wilson.len() as f64;
        assert!((0.945..0.96).contains(&mean), "{mean}");
        assert!(wilson.iter().all(|c| (0.93..0.97).contains(c)), "{wilson:?}");
        assert!(grid.iter().all(|p| coverage(*p, 80, Proportion::ClopperPearson) >= 0.95));
    }
}
