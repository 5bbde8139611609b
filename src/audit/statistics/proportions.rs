//! Two proportions of different rows: intervals of their difference and ratio, tests, and what could have been seen.
//!
//! Rows of the two must not be shared (for one set of rows under two models see [`super::hypothesis`]). The first minus,
//! or over, the second.
//! After: statsmodels 0.15 `confint_proportions_2indep`, `test_proportions_2indep`, `tost_proportions_2indep`,
//! `NormalIndPower`; scipy 1.17 `fisher_exact`; Miettinen and Nurminen 1985, Newcombe 1998, Koopman 1984.

use super::distributions::{hypergeometric_pmf, invert, normal_cdf, normal_quantile};
use super::intervals::{Interval, Proportion, proportion};
use super::{Measured, Undefined, divide};

/// Two counts and their rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwoProportions {
    /// Hits among the first rows.
    pub hits_1: u64,
    /// First rows, not 0.
    pub rows_1: u64,
    /// Hits among the second rows.
    pub hits_2: u64,
    /// Second rows, not 0.
    pub rows_2: u64,
}

/// How to compute the interval of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Newcombe's, from two Wilson intervals: the default of reports.
    Newcombe,
    /// Miettinen and Nurminen's score interval.
    Score,
    /// What statsmodels 0.15 calls so: its cubic has the hits of the second rows where their number belongs, so that
    /// the ends are off in the third digit and depend on which rows come first. Only to check a result against it.
    ScoreOfStatsmodels,
    /// Agresti and Caffo: normal after one more hit and miss each.
    AgrestiCaffo,
    /// Normal; of length 0 where both proportions are 0 or 1.
    Wald,
}

/// How to compute the interval of a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ratio {
    /// Normal on the log scale.
    Log,
    /// Koopman's score interval with Miettinen and Nurminen's correction.
    Score,
}

/// Statistic and p-value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Test {
    /// The statistic.
    pub statistic: f64,
    /// Probability of one at least as extreme where nothing differs.
    pub p: f64,
}

/// The three p-values of Fisher's exact test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fisher {
    /// The sum over tables no more likely than this one.
    pub two_sided: f64,
    /// The first proportion is smaller.
    pub less: f64,
    /// The first proportion is larger.
    pub greater: f64,
}

impl TwoProportions {
    fn parts(&self) -> (f64, f64, f64, f64) {
        (self.hits_1 as f64, self.rows_1 as f64, self.hits_2 as f64, self.rows_2 as f64)
    }

    fn proportions(&self) -> Result<(f64, f64), Undefined> {
        let (x1, n1, x2, n2) = self.parts();
        Ok((divide(x1, n1, Undefined::NoRows)?, divide(x2, n2, Undefined::NoRows)?))
    }

    /// Interval of the difference.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn difference(&self, level: f64, method: Difference) -> Result<Interval, Undefined> {
        let (p1, p2) = self.proportions()?;
        let (x1, n1, x2, n2) = self.parts();
        let z = -normal_quantile((1.0 - level) / 2.0);
        let wald = |p1: f64, n1: f64, p2: f64, n2: f64| {
            let reach = z * (p1 * (1.0 - p1) / n1 + p2 * (1.0 - p2) / n2).sqrt();
            Interval { low: p1 - p2 - reach, high: p1 - p2 + reach }
        };
        Ok(match method {
            Difference::Wald => wald(p1, n1, p2, n2),
            Difference::AgrestiCaffo => wald((x1 + 1.0) / (n1 + 2.0), n1 + 2.0, (x2 + 1.0) / (n2 + 2.0), n2 + 2.0),
            Difference::Newcombe => {
                let first = proportion(x1, n1, level, Proportion::Wilson)?;
                let second = proportion(x2, n2, level, Proportion::Wilson)?;
                Interval {
                    low: p1 - p2 - (p1 - first.low).hypot(second.high - p2),
                    high: p1 - p2 + (p2 - second.low).hypot(first.high - p1),
                }
            }
            Difference::Score => Interval {
                low: invert(|delta| z - self.difference_score(delta), -1.0, p1 - p2),
                high: invert(|delta| -z - self.difference_score(delta), p1 - p2, 1.0),
            },
            Difference::ScoreOfStatsmodels => Interval {
                low: invert(|delta| z - self.score_by_cubic(delta, x2), -1.0, p1 - p2),
                high: invert(|delta| -z - self.score_by_cubic(delta, x2), p1 - p2, 1.0),
            },
        })
    }

    /// Interval of the ratio.
    ///
    /// # Errors
    /// [`Undefined::NoRows`]; [`Undefined::DivisionByZero`] where the upper end is infinite, and for [`Ratio::Log`]
    /// where a count is 0.
    pub fn ratio(&self, level: f64, method: Ratio) -> Result<Interval, Undefined> {
        let (p1, p2) = self.proportions()?;
        let ratio = divide(p1, p2, Undefined::DivisionByZero)?;
        let (x1, n1, x2, n2) = self.parts();
        let z = -normal_quantile((1.0 - level) / 2.0);
        match method {
            Ratio::Log if self.hits_1 == 0 => Err(Undefined::DivisionByZero),
            Ratio::Log => {
                let reach = z * (1.0 / x1 - 1.0 / n1 + 1.0 / x2 - 1.0 / n2).sqrt();
                Ok(Interval { low: (ratio.ln() - reach).exp(), high: (ratio.ln() + reach).exp() })
            }
            Ratio::Score => {
                let mut outside = ratio.max(1.0);
                while self.ratio_score(outside) > -z {
                    outside *= 2.0;
                    if outside > 1e12 {
                        return Err(Undefined::DivisionByZero);
                    }
                }
                Ok(Interval {
                    low: invert(|phi| z - self.ratio_score(phi), 0.0, ratio),
                    high: invert(|phi| -z - self.ratio_score(phi), ratio, outside),
                })
            }
        }
    }

    /// Standardised distance of the observed difference from `delta`, the proportions being the likeliest two that
    /// differ by `delta` (the closed form of Miettinen and Nurminen's cubic).
    #[must_use]
    pub fn difference_score(&self, delta: f64) -> f64 {
        self.score_by_cubic(delta, self.rows_2 as f64)
    }

    /// The likeliest second proportion where the first is larger by `delta`; `square` stands before delta² in the cubic
    /// and is the number of the second rows.
    fn likeliest_second(&self, delta: f64, square: f64) -> f64 {
        let (x1, n1, x2, n2) = self.parts();
        let (n, x) = (n1 + n2, x1 + x2);
        let l2 = (n1 + 2.0 * n2) * delta - n - x;
        let l1 = (square * delta - n - 2.0 * x2) * delta + x;
        let l0 = x2 * delta * (1.0 - delta);
        let third = l2 / (3.0 * n);
        let q = third.powi(3) - l1 * l2 / (6.0 * n * n) + l0 / (2.0 * n);
        let size = (third * third - l1 / (3.0 * n)).max(0.0).sqrt();
        let p = if q < 0.0 { -size } else { size };
        let cosine = if p == 0.0 { 0.0 } else { (q / p.powi(3)).clamp(-1.0, 1.0) };
        let second = 2.0 * p * ((std::f64::consts::PI + cosine.acos()) / 3.0).cos() - third;
        second.clamp((-delta).max(0.0), (1.0 - delta).min(1.0))
    }

    fn score_by_cubic(&self, delta: f64, square: f64) -> f64 {
        let (x1, n1, x2, n2) = self.parts();
        let n = n1 + n2;
        let second = self.likeliest_second(delta, square);
        let first = (second + delta).clamp(0.0, 1.0);
        let variance = first * (1.0 - first) / n1 + second * (1.0 - second) / n2;
        standardised(x1 / n1 - x2 / n2 - delta, variance * n / (n - 1.0))
    }

    /// Standardised distance of the observed proportions from the ratio `phi`, the proportions being the likeliest two
    /// of that ratio.
    #[must_use]
    pub fn ratio_score(&self, phi: f64) -> f64 {
        let (x1, n1, x2, n2) = self.parts();
        let n = n1 + n2;
        let b = n1 * phi + x1 + n2 + x2 * phi;
        let root = (b * b - 4.0 * n * phi * (x1 + x2)).max(0.0).sqrt();
        // The smaller root, written without the difference of near equals: it also holds at phi = 0.
        let second = (2.0 * (x1 + x2) / (b + root)).clamp(0.0, if phi > 1.0 { 1.0 / phi } else { 1.0 });
        let first = (second * phi).clamp(0.0, 1.0);
        let variance = first * (1.0 - first) / n1 + phi * phi * second * (1.0 - second) / n2;
        standardised(x1 / n1 - phi * x2 / n2, variance * n / (n - 1.0))
    }

    /// Test of equal proportions with the pooled variance, two-sided.
    ///
    /// # Errors
    /// [`Undefined::NoRows`]; [`Undefined::DivisionByZero`] where nothing or everything is a hit.
    pub fn z_test(&self) -> Result<Test, Undefined> {
        let (p1, p2) = self.proportions()?;
        let (x1, n1, x2, n2) = self.parts();
        let pooled = (x1 + x2) / (n1 + n2);
        let error = (pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n2)).sqrt();
        let statistic = divide(p1 - p2, error, Undefined::DivisionByZero)?;
        Ok(Test { statistic, p: 2.0 * normal_cdf(-statistic.abs()) })
    }

    /// Fisher's exact test.
    #[must_use]
    pub fn fisher(&self) -> Fisher {
        let (total, hits) = (self.rows_1 + self.rows_2, self.hits_1 + self.hits_2);
        let pmf = |k: u64| hypergeometric_pmf(k, total, hits, self.rows_1);
        let range = hits.saturating_sub(self.rows_2)..=hits.min(self.rows_1);
        // Tables as likely as this one count, whatever the last bits say (R and scipy allow for rounding too).
        let observed = pmf(self.hits_1) * (1.0 + 1e-7);
        let sum = |counts: &dyn Fn(u64) -> bool| range.clone().filter(|k| counts(*k)).map(pmf).sum::<f64>().min(1.0);
        Fisher {
            two_sided: sum(&|k| pmf(k) <= observed),
            less: sum(&|k| k <= self.hits_1),
            greater: sum(&|k| k >= self.hits_1),
        }
    }

    /// Odds of a hit in the first rows over those in the second.
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`].
    pub fn odds_ratio(&self) -> Measured {
        let (x1, n1, x2, n2) = self.parts();
        divide(x1 * (n2 - x2), (n1 - x1) * x2, Undefined::DivisionByZero)
    }

    /// The proportions after one more hit and miss each, and the standard error of their difference (Agresti and Caffo
    /// 2000): above 0 even where nothing or everything is a hit.
    fn plus_one(&self) -> (f64, f64) {
        let (x1, n1, x2, n2) = self.parts();
        let (p1, p2) = ((x1 + 1.0) / (n1 + 2.0), (x2 + 1.0) / (n2 + 2.0));
        (p1 - p2, (p1 * (1.0 - p1) / (n1 + 2.0) + p2 * (1.0 - p2) / (n2 + 2.0)).sqrt())
    }

    /// Standard error of the difference, by Agresti and Caffo.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn standard_error(&self) -> Measured {
        self.proportions()?;
        Ok(self.plus_one().1)
    }

    /// Two one-sided tests: p-value against "the proportions differ by `margin` or more", with Agresti and Caffo's
    /// variance. Small means: the difference is below the margin.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn equivalence(&self, margin: f64) -> Measured {
        self.proportions()?;
        let (difference, error) = self.plus_one();
        let above_lower = normal_cdf(-(difference + margin) / error);
        let below_upper = normal_cdf((difference - margin) / error);
        Ok(above_lower.max(below_upper))
    }
}

fn standardised(distance: f64, variance: f64) -> f64 {
    match (distance == 0.0, variance > 0.0) {
        (true, _) => 0.0,
        (false, true) => distance / variance.sqrt(),
        (false, false) => distance.signum() * f64::INFINITY,
    }
}

/// What two groups of a size could show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SmallestGap {
    /// Cohen's h: 2·(asin √p₁ − asin √p₂).
    pub effect_size_h: f64,
    /// The second proportion, below the first, from which the test sees the gap with the asked power.
    pub lower_p_2: f64,
    /// The first proportion minus that.
    pub smallest_gap: f64,
}

/// The smallest gap below `p_1` that a two-sided test of level `alpha` finds with probability `power`, for groups of
/// `rows_1` and `rows_2` rows.
///
/// # Errors
/// [`Undefined::NoRows`]; [`Undefined::Unreachable`] where even a second proportion of 0 would not be seen.
pub fn smallest_gap(rows_1: f64, rows_2: f64, p_1: f64, power: f64, alpha: f64) -> Result<SmallestGap, Undefined> {
    if rows_1 <= 0.0 || rows_2 <= 0.0 {
        return Err(Undefined::NoRows);
    }
    let error = (1.0 / rows_1 + 1.0 / rows_2).sqrt();
    let z = -normal_quantile(alpha / 2.0);
    let seen = |h: f64| normal_cdf(h / error - z) + normal_cdf(-h / error - z);
    let effect_size_h = invert(|h| seen(h) - power, 0.0, 2.0 * std::f64::consts::PI);
    let angle = p_1.sqrt().asin() - effect_size_h / 2.0;
    if angle < 0.0 {
        return Err(Undefined::Unreachable);
    }
    let lower_p_2 = angle.sin().powi(2);
    Ok(SmallestGap { effect_size_h, lower_p_2, smallest_gap: p_1 - lower_p_2 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn two() -> impl Strategy<Value = TwoProportions> {
        (1_u64..60, 1_u64..60, 0.0..=1.0, 0.0..=1.0).prop_map(|(rows_1, rows_2, a, b)| TwoProportions {
            hits_1: f64::round(rows_1 as f64 * a) as u64,
            rows_1,
            hits_2: f64::round(rows_2 as f64 * b) as u64,
            rows_2,
        })
    }

    fn swapped(two: TwoProportions) -> TwoProportions {
        TwoProportions { hits_1: two.hits_2, rows_1: two.rows_2, hits_2: two.hits_1, rows_2: two.rows_1 }
    }

    proptest! {
        #[test]
        fn swapping_the_groups_turns_the_interval_round(two in two()) {
            let observed = two.hits_1 as f64 / two.rows_1 as f64 - two.hits_2 as f64 / two.rows_2 as f64;
            for method in [Difference::Newcombe, Difference::Score] {
                let interval = two.difference(0.95, method).unwrap();
                let turned = swapped(two).difference(0.95, method).unwrap();
                prop_assert!((interval.low + turned.high).abs() < 1e-9, "{:?} {:?}", interval, turned);
                prop_assert!(interval.low - 1e-9 <= observed && observed <= interval.high + 1e-9);
                prop_assert!(-1.0 - 1e-9 <= interval.low && interval.high <= 1.0 + 1e-9);
            }
            let (one, other) = (two.fisher(), swapped(two).fisher());
            prop_assert!((one.less - other.greater).abs() < 1e-9);
            prop_assert!((one.two_sided - other.two_sided).abs() < 1e-9);
        }

        #[test]
        fn the_score_takes_the_likeliest_proportions(two in two(), share in 0.001..0.999, delta in -0.95_f64..0.95) {
            let (x1, n1, x2, n2) = two.parts();
            let log = |count: f64, p: f64| if count == 0.0 { 0.0 } else { count * p.ln() };
            let likelihood = |p2: f64| {
                let p1 = p2 + delta;
                log(x1, p1) + log(n1 - x1, 1.0 - p1) + log(x2, p2) + log(n2 - x2, 1.0 - p2)
            };
            let (low, high) = (f64::max(0.0, -delta), f64::min(1.0, 1.0 - delta));
            let other = low + share * (high - low);
            prop_assert!(likelihood(two.likeliest_second(delta, n2)) >= likelihood(other) - 1e-9);
        }

        #[test]
        fn the_score_interval_ends_where_the_score_is_critical(two in two()) {
            let z = -normal_quantile(0.025);
            if let Ok(interval) = two.ratio(0.95, Ratio::Score) {
                prop_assert!(interval.low == 0.0 || two.ratio_score(interval.low * 0.999) >= z);
                prop_assert!(two.ratio_score(interval.high * 1.001) <= -z);
            }
        }
    }

    #[test]
    fn a_tiny_group_can_show_nothing() {
        assert_eq!(smallest_gap(1000.0, 3.0, 0.1, 0.8, 0.05), Err(Undefined::Unreachable));
        let gap = smallest_gap(1000.0, 1000.0, 0.5, 0.8, 0.05).unwrap().smallest_gap;
        assert!((0.05..0.08).contains(&gap), "{gap}");
    }

    #[test]
    fn the_smallest_gap_is_seen_with_the_power_that_was_asked() {
        for (rows_1, rows_2) in [(100.0, 100.0), (600.0, 40.0), (25.0, 3000.0)] {
            let h = smallest_gap(rows_1, rows_2, 0.95, 0.8, 0.05).unwrap().effect_size_h;
            let shift = h / f64::sqrt(1.0 / rows_1 + 1.0 / rows_2);
            // Beyond either critical value of a standard normal shifted by the effect.
            let z = 1.959_963_984_540_054;
            let seen = 1.0 - normal_cdf(z - shift) + normal_cdf(-z - shift);
            assert!((seen - 0.8).abs() < 1e-12, "{seen}");
        }
    }
}
