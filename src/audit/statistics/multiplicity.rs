//! Many tests at once: adjusted p-values.
//!
//! Takes the whole family; which tests belong to it is for the caller to say and to print. The order of the family is
//! kept. A claim holds at level α where its adjusted p-value is at most α.
//! After: statsmodels 0.15 `multipletests`; Holm 1979, Hochberg 1988, Benjamini and Hochberg 1995, Benjamini and
//! Yekutieli 2001.

use super::inputs::{InputError, option};

/// How to adjust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adjustment {
    /// Against any false claim, by the number of tests.
    Bonferroni,
    /// Against any false claim, step down: never worse than Bonferroni. The default for claims.
    Holm,
    /// The same for independent tests.
    HolmSidak,
    /// Step up, for independent or positively dependent tests.
    Hochberg,
    /// Share of false claims, independent or positively dependent tests. The default for screening.
    BenjaminiHochberg,
    /// Share of false claims, any dependence.
    BenjaminiYekutieli,
}

impl Adjustment {
    /// Every adjustment by the name that statsmodels gives it.
    pub const ALL: [(&'static str, Self); 6] = [
        ("bonferroni", Self::Bonferroni),
        ("holm", Self::Holm),
        ("holm-sidak", Self::HolmSidak),
        ("simes-hochberg", Self::Hochberg),
        ("fdr_bh", Self::BenjaminiHochberg),
        ("fdr_by", Self::BenjaminiYekutieli),
    ];

    /// Finds it by that name.
    ///
    /// # Errors
    /// [`InputError::UnknownOption`].
    pub fn named(name: &str) -> Result<Self, InputError> {
        option("adjustment", name, &Self::ALL)
    }

    /// Adjusts p-values in [0, 1], keeping their order.
    #[must_use]
    pub fn adjust(self, p: &[f64]) -> Vec<f64> {
        let tests = p.len() as f64;
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
        let harmonic: f64 = (1..=p.len()).map(|i| 1.0 / i as f64).sum();
        // Of the p-value with `rank` smaller ones before it.
        let raw = |rank: usize, p: f64| {
            let (rank, left) = (rank as f64 + 1.0, tests - rank as f64);
            match self {
                Self::Bonferroni => tests * p,
                Self::Holm | Self::Hochberg => left * p,
                Self::HolmSidak => -(left * (-p).ln_1p()).exp_m1(),
                Self::BenjaminiHochberg => tests / rank * p,
                Self::BenjaminiYekutieli => tests / rank * p * harmonic,
            }
        };
        let mut sorted: Vec<f64> = order.iter().enumerate().map(|(rank, test)| raw(rank, p[*test]).min(1.0)).collect();
        match self {
            Self::Bonferroni => {}
            // Step down: never below the one before.
            Self::Holm | Self::HolmSidak => {
                for rank in 1..sorted.len() {
                    sorted[rank] = sorted[rank].max(sorted[rank - 1]);
                }
            }
            // Step up: never above the one after.
            Self::Hochberg | Self::BenjaminiHochberg | Self::BenjaminiYekutieli => {
                for rank in (1..sorted.len()).rev() {
                    sorted[rank - 1] = sorted[rank - 1].min(sorted[rank]);
                }
            }
        }
        let mut adjusted = vec![0.0; p.len()];
        for (test, value) in order.into_iter().zip(sorted) {
            adjusted[test] = value;
        }
        adjusted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn adjusting_keeps_the_order_and_never_lowers(p in prop::collection::vec(0.0..=1.0, 1..20)) {
            let holm = Adjustment::Holm.adjust(&p);
            for (name, method) in Adjustment::ALL {
                let adjusted = method.adjust(&p);
                for (i, value) in adjusted.iter().enumerate() {
                    prop_assert!(*value >= p[i] * (1.0 - 1e-12) && *value <= 1.0, "{name}: {value} of {}", p[i]);
                    for (j, other) in adjusted.iter().enumerate() {
                        prop_assert!(p[i] > p[j] || value <= other, "{name}: order");
                    }
                }
            }
            let bonferroni = Adjustment::Bonferroni.adjust(&p);
            let hochberg = Adjustment::Hochberg.adjust(&p);
            for i in 0..p.len() {
                prop_assert!(hochberg[i] <= holm[i] && holm[i] <= bonferroni[i]);
            }
        }
    }
}
