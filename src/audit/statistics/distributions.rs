//! The distributions behind intervals and tests.
//!
//! Special functions come from `statrs` (error function, incomplete beta and gamma, log gamma: about 1e-14 relative).
//! Its quantile functions of the normal and beta distributions stop at a coarser tolerance than the golden values ask
//! (1e-9 relative), so quantiles here are that distribution function inverted to the last bits.

use statrs::function::beta::beta_reg;
use statrs::function::erf::erfc;
use statrs::function::factorial::ln_factorial;
use statrs::function::gamma::gamma_ur;

/// P(Z ≤ z) of a standard normal.
#[must_use]
pub fn normal_cdf(z: f64) -> f64 {
    0.5 * erfc(-z / std::f64::consts::SQRT_2)
}

/// The z with P(Z ≤ z) = `p`; infinite for 0 and 1.
#[must_use]
pub fn normal_quantile(p: f64) -> f64 {
    if p <= 0.0 {
        return f64::NEG_INFINITY;
    }
    if p >= 1.0 {
        return f64::INFINITY;
    }
    // By symmetry in the lower tail, where the distribution function keeps its relative precision.
    if p > 0.5 {
        return -normal_quantile(1.0 - p);
    }
    invert(|z| normal_cdf(z) - p, -40.0, 0.0)
}

/// P(X ≥ x) of a χ² with `degrees` degrees of freedom.
#[must_use]
pub fn chi_squared_sf(x: f64, degrees: f64) -> f64 {
    if x <= 0.0 { 1.0 } else { gamma_ur(degrees / 2.0, x / 2.0) }
}

/// The x with P(X ≤ x) = `p` of a beta distribution.
#[must_use]
pub fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    if p <= 0.0 {
        return 0.0;
    }
    if p >= 1.0 {
        return 1.0;
    }
    invert(|x| beta_reg(a, b, x) - p, 0.0, 1.0)
}

/// P(X ≤ k) of a fair coin thrown n times.
#[must_use]
pub fn fair_binomial_cdf(k: u64, n: u64) -> f64 {
    if k >= n {
        return 1.0;
    }
    let ln_half = n as f64 * std::f64::consts::LN_2;
    (0..=k).map(|i| (ln_choose(n, i) - ln_half).exp()).sum::<f64>().min(1.0)
}

/// ln of the number of ways to choose k of n.
#[must_use]
pub fn ln_choose(n: u64, k: u64) -> f64 {
    ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
}

/// P(X = k): k of `marked` marked ones among `drawn` drawn out of `total`.
#[must_use]
pub fn hypergeometric_pmf(k: u64, total: u64, marked: u64, drawn: u64) -> f64 {
    if k > marked || k > drawn || drawn - k > total - marked {
        return 0.0;
    }
    (ln_choose(marked, k) + ln_choose(total - marked, drawn - k) - ln_choose(total, drawn)).exp()
}

/// The root of an increasing function between two points, by halving until neighbours in floating point.
pub(super) fn invert(increasing: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    // 1,100 halvings reach any double from any other: no endless loop even on a NaN.
    for _ in 0..1100 {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            break;
        }
        if increasing(middle) < 0.0 { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_invert_the_distribution_functions() {
        for p in [1e-12, 1e-4, 0.025, 0.3, 0.5, 0.8, 0.999] {
            let z = normal_quantile(p);
            assert!((normal_cdf(z) - p).abs() <= 4e-15 * p.max(1e-3), "{p}: {z}");
            for (a, b) in [(0.5, 9.5), (3.0, 1.0), (31.0, 50.0)] {
                let x = beta_quantile(p, a, b);
                assert!((beta_reg(a, b, x) - p).abs() <= 1e-12, "{p} {a} {b}: {x}");
            }
        }
        // Abramowitz and Stegun, table 26.2.
        assert!((normal_quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-14);
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
    }

    #[test]
    fn probabilities_sum_to_one() {
        let sum: f64 = (0..=20).map(|k| hypergeometric_pmf(k, 57, 20, 31)).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((fair_binomial_cdf(4, 9) - 0.5).abs() < 1e-14);
        assert!((chi_squared_sf(3.841_458_820_694_124, 1.0) - 0.05).abs() < 1e-14);
    }
}
