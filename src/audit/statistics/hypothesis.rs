//! Tests on tables of counts: paired models, several groups, strata.
//!
//! For two groups see [`super::proportions`], for tests by rearranging rows [`super::permutation`]. Counts, not weights.
//! After: statsmodels 0.15 `mcnemar`, `StratifiedTable`; scipy 1.17 `chi2_contingency`.

use super::distributions::{chi_squared_sf, fair_binomial_cdf};
use super::proportions::Test;
use super::{Measured, Undefined, divide};

/// Correctness of two models on the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PairedTable {
    /// Both right.
    pub both: u64,
    /// Only the first right.
    pub only_first: u64,
    /// Only the second right.
    pub only_second: u64,
    /// Both wrong.
    pub neither: u64,
}

impl PairedTable {
    /// Counts a row.
    pub fn add(&mut self, first: bool, second: bool) {
        *match (first, second) {
            (true, true) => &mut self.both,
            (true, false) => &mut self.only_first,
            (false, true) => &mut self.only_second,
            (false, false) => &mut self.neither,
        } += 1;
    }

    /// Its rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.both + self.only_first + self.only_second + self.neither
    }

    /// McNemar's test from the binomial of the rows in which the models differ: 1 where they never do.
    #[must_use]
    pub fn mcnemar_exact(&self) -> Test {
        let smaller = self.only_first.min(self.only_second);
        let p = 2.0 * fair_binomial_cdf(smaller, self.only_first + self.only_second);
        Test { statistic: smaller as f64, p: p.min(1.0) }
    }

    /// McNemar's test by χ², with or without Edwards' correction; the exact one is better below 25 differing rows.
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`] where the models never differ.
    pub fn mcnemar_chi_squared(&self, corrected: bool) -> Result<Test, Undefined> {
        let (first, second) = (self.only_first as f64, self.only_second as f64);
        let distance = (first - second).abs() - f64::from(u8::from(corrected));
        let statistic = divide(distance * distance, first + second, Undefined::DivisionByZero)?;
        Ok(Test { statistic, p: chi_squared_sf(statistic, 1.0) })
    }
}

/// A χ² test with its degrees of freedom.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChiSquared {
    /// The statistic.
    pub statistic: f64,
    /// The p-value.
    pub p: f64,
    /// Degrees of freedom.
    pub degrees: usize,
}

/// Tests whether all rows of a table of counts share one distribution over its columns; `yates` takes half a count off
/// every distance, for 2 × 2.
///
/// # Errors
/// [`Undefined::DivisionByZero`] where a row or a column is empty.
pub fn homogeneity<const COLUMNS: usize>(table: &[[u64; COLUMNS]], yates: bool) -> Result<ChiSquared, Undefined> {
    let column = |c: usize| table.iter().map(|row| row[c]).sum::<u64>() as f64;
    let total: f64 = (0..COLUMNS).map(column).sum();
    let mut statistic = 0.0;
    for row in table {
        let in_row = row.iter().sum::<u64>() as f64;
        for (c, count) in row.iter().enumerate() {
            let expected = divide(in_row * column(c), total, Undefined::DivisionByZero)?;
            let distance = (*count as f64 - expected).abs();
            let distance = if yates { distance - distance.min(0.5) } else { distance };
            statistic += divide(distance * distance, expected, Undefined::DivisionByZero)?;
        }
    }
    let degrees = table.len().saturating_sub(1) * (COLUMNS - 1);
    if degrees == 0 {
        return Err(Undefined::OneGroup);
    }
    Ok(ChiSquared { statistic, p: chi_squared_sf(statistic, degrees as f64), degrees })
}

/// One stratum: `[[hits, misses] of the first group, [hits, misses] of the second]`.
pub type Stratum = [[u64; 2]; 2];

/// Cochran, Mantel and Haenszel: do two groups differ within strata of a control feature?
///
/// # Errors
/// [`Undefined::DivisionByZero`] where no stratum can tell: one group alone, or all hits or all misses, in each.
pub fn cochran_mantel_haenszel(strata: &[Stratum], corrected: bool) -> Result<Test, Undefined> {
    let (mut distance, mut variance) = (0.0, 0.0);
    for (table, n) in sized(strata).filter(|(_, n)| *n > 1.0) {
        let [[a, b], [c, d]] = table;
        distance += a - (a + b) * (a + c) / n;
        variance += (a + b) * (c + d) * (a + c) * (b + d) / (n * n * (n - 1.0));
    }
    let distance = distance.abs() - if corrected { 0.5 } else { 0.0 };
    let statistic = divide(distance * distance, variance, Undefined::DivisionByZero)?;
    Ok(Test { statistic, p: chi_squared_sf(statistic, 1.0) })
}

/// Mantel and Haenszel's odds ratio over all strata.
///
/// # Errors
/// [`Undefined::DivisionByZero`].
pub fn pooled_odds_ratio(strata: &[Stratum]) -> Measured {
    let sum = |f: fn([[f64; 2]; 2]) -> f64| sized(strata).map(|(table, n)| f(table) / n).sum::<f64>();
    divide(sum(|[[a, _], [_, d]]| a * d), sum(|[[_, b], [c, _]]| b * c), Undefined::DivisionByZero)
}

/// The standard error of the logarithm of [`pooled_odds_ratio`] where rows are independent (Robins, Breslow and Greenland
/// 1986; statsmodels `logodds_pooled_se`).
///
/// # Errors
/// [`Undefined::DivisionByZero`] where the ratio is 0 or infinite.
pub fn pooled_odds_error(strata: &[Stratum]) -> Measured {
    let (mut right, mut wrong, mut sums) = (0.0, 0.0, [0.0; 3]);
    for ([[a, b], [c, d]], n) in sized(strata) {
        let (alike, crossed, r, s) = ((a + d) / n, (b + c) / n, a * d / n, b * c / n);
        right += r;
        wrong += s;
        for (sum, part) in sums.iter_mut().zip([alike * r, alike * s + crossed * r, crossed * s]) {
            *sum += part;
        }
    }
    if right <= 0.0 || wrong <= 0.0 {
        return Err(Undefined::DivisionByZero);
    }
    let [first, both, last] = sums;
    Ok(((first / (right * right) + both / (right * wrong) + last / (wrong * wrong)) / 2.0).sqrt())
}

/// How much one row more of each cell of each stratum changes the logarithm of [`pooled_odds_ratio`]. Summed over the
/// rows of a cluster they make the error where rows are not independent (infinitesimal jackknife, Efron 1982).
///
/// # Errors
/// [`Undefined::DivisionByZero`] where the ratio is 0 or infinite.
pub fn pooled_odds_influence(strata: &[Stratum]) -> Result<Vec<[[f64; 2]; 2]>, Undefined> {
    let sum = |f: fn([[f64; 2]; 2]) -> f64| sized(strata).map(|(table, n)| f(table) / n).sum::<f64>();
    let (right, wrong) = (sum(|[[a, _], [_, d]]| a * d), sum(|[[_, b], [c, _]]| b * c));
    if right <= 0.0 || wrong <= 0.0 {
        return Err(Undefined::DivisionByZero);
    }
    let influence = |stratum: &Stratum| {
        let [[a, b], [c, d]] = stratum.map(|row| row.map(|count| count as f64));
        let n = a + b + c + d;
        if n <= 0.0 {
            return [[0.0; 2]; 2];
        }
        let rest = b * c / (n * n * wrong) - a * d / (n * n * right);
        [[d / (n * right) + rest, rest - c / (n * wrong)], [rest - b / (n * wrong), a / (n * right) + rest]]
    };
    Ok(strata.iter().map(influence).collect())
}

/// Mantel and Haenszel's ratio of proportions over all strata.
///
/// # Errors
/// [`Undefined::DivisionByZero`].
pub fn pooled_risk_ratio(strata: &[Stratum]) -> Measured {
    let sum = |f: fn([[f64; 2]; 2]) -> f64| sized(strata).map(|(table, n)| f(table) / n).sum::<f64>();
    divide(sum(|[[a, _], [c, d]]| a * (c + d)), sum(|[[a, b], [c, _]]| c * (a + b)), Undefined::DivisionByZero)
}

/// Strata that have rows, with their number.
fn sized(strata: &[Stratum]) -> impl Iterator<Item = ([[f64; 2]; 2], f64)> {
    let table = strata.iter().map(|stratum| stratum.map(|row| row.map(|count| count as f64)));
    table.map(|t| (t, t.iter().flatten().sum::<f64>())).filter(|(_, n)| *n > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_that_never_differ_are_no_evidence() {
        let table = PairedTable { both: 10, neither: 2, ..PairedTable::default() };
        assert_eq!(table.mcnemar_exact().p, 1.0);
        assert_eq!(table.mcnemar_chi_squared(false), Err(Undefined::DivisionByZero));
    }

    #[test]
    fn strata_undo_simpsons_paradox() {
        // Within both strata the groups have the same rate; together they look far apart.
        let strata = [[[80, 20], [8, 2]], [[1, 9], [10, 90]]];
        assert!(cochran_mantel_haenszel(&strata, false).unwrap().statistic < 1e-20);
        let together = [[81, 29], [18, 92]];
        assert!(homogeneity(&together, false).unwrap().p < 1e-6);
        assert!((pooled_odds_ratio(&strata).unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_error_of_the_pooled_odds_ratio_is_that_of_statsmodels() {
        let strata = [[[12, 30], [20, 28]], [[5, 9], [14, 11]], [[25, 60], [31, 52]]];
        // statsmodels 0.15.0, StratifiedTable.logodds_pooled_se.
        assert!((pooled_odds_error(&strata).unwrap() - 0.247_176_335_508_370_23).abs() < 1e-14);
        assert_eq!(pooled_odds_error(&[[[3, 0], [4, 0]]]), Err(Undefined::DivisionByZero));
        // Of rows that stand alone the jackknife says nearly the same; a row more changes the ratio as foreseen.
        let influence = pooled_odds_influence(&strata).unwrap();
        let cells = strata.iter().flatten().flatten().zip(influence.iter().flatten().flatten());
        let error = cells.map(|(count, influence)| *count as f64 * influence * influence).sum::<f64>().sqrt();
        assert!((error / 0.247_176 - 1.0).abs() < 0.02, "{error}");
        let large = strata.map(|table| table.map(|row| row.map(|count| count * 1_000_000)));
        let mut more = large;
        more[1][0][1] += 1000;
        let change = (pooled_odds_ratio(&more).unwrap() / pooled_odds_ratio(&large).unwrap()).ln();
        let foreseen = pooled_odds_influence(&large).unwrap()[1][0][1] * 1000.0;
        assert!((change / foreseen - 1.0).abs() < 1e-3, "{change} {foreseen}");
    }

    #[test]
    fn an_empty_column_is_no_test() {
        assert_eq!(homogeneity(&[[3, 0], [4, 0]], false), Err(Undefined::DivisionByZero));
        assert_eq!(homogeneity(&[[3, 1]], false), Err(Undefined::OneGroup));
    }
}
