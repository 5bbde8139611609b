//! Tests by rearranging rows: could this statistic come about where groups, or models, do not matter?
//!
//! A gap between the best and the worst group is never negative and grows as groups shrink, so that its interval says
//! how large it is but not whether it is there; this does. Everything is enumerated where that is feasible, otherwise
//! sampled, and a sampled p-value is (count + 1) / (B + 1): never 0. Two-sided is 2 · the smaller tail, at most 1. An
//! arrangement whose statistic is undefined counts as extreme, which can only raise a p-value. Arrangement b of a
//! sampled test uses stream b of the seed: results do not depend on threads.
//! After: scipy 1.17 `permutation_test`; Phipson and Smyth 2010 for the added one.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::distributions::{hypergeometric_pmf, ln_choose};
use super::{Measured, Undefined};

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Enumerate where there are at most this many arrangements.
    pub max_exact: u64,
    /// Sample this many otherwise.
    pub resamples: u64,
    /// Seed of the sample.
    pub seed: u64,
}

/// The observed statistic among its rearrangements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PermutationTest {
    /// As observed.
    pub statistic: f64,
    /// Share of arrangements with this or more.
    pub greater: f64,
    /// Share of arrangements with this or less.
    pub less: f64,
    /// 2 · the smaller of both, at most 1.
    pub two_sided: f64,
    /// Share of arrangements as far from 0.
    pub two_sided_absolute: f64,
    /// Arrangements looked at.
    pub permutations: u64,
    /// Whether these are all there are.
    pub exact: bool,
}

/// Arrangements by how they compare with the observed statistic.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    all: u64,
    greater: u64,
    less: u64,
    absolute: u64,
}

impl Tally {
    fn of(statistic: Measured, observed: f64) -> Self {
        // The same number summed in another order is the same number.
        let slack = 1e-12 * observed.abs().max(1e-2);
        let compared = statistic
            .map_or([true; 3], |s| [s >= observed - slack, s <= observed + slack, s.abs() >= observed.abs() - slack]);
        let [greater, less, absolute] = compared.map(u64::from);
        Self { all: 1, greater, less, absolute }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            greater: self.greater + other.greater,
            less: self.less + other.less,
            absolute: self.absolute + other.absolute,
        }
    }

    fn test(self, statistic: f64, exact: bool) -> PermutationTest {
        let added = if exact { 0.0 } else { 1.0 };
        let share = |count: u64| (count as f64 + added) / (self.all as f64 + added);
        let (greater, less) = (share(self.greater), share(self.less));
        PermutationTest {
            statistic,
            greater,
            less,
            two_sided: (2.0 * greater.min(less)).min(1.0),
            two_sided_absolute: share(self.absolute),
            permutations: self.all,
            exact,
        }
    }
}

/// Generator of one replicate.
pub(super) fn stream(seed: u64, replicate: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(replicate);
    rng
}

/// Rearranges the groups of rows (or of clusters of rows): `labels` `[units]`, the statistic of any arrangement of them.
///
/// # Errors
/// [`Undefined`] where the observed statistic is; [`Undefined::OneGroup`] where there is one arrangement only.
pub fn permute_labels(
    labels: &[u32],
    plan: &Plan,
    statistic: impl Fn(&[u32]) -> Measured + Sync,
) -> Result<PermutationTest, Undefined> {
    let observed = statistic(labels)?;
    let arrangements = ln_arrangements(labels);
    if arrangements <= 0.0 {
        return Err(Undefined::OneGroup);
    }
    if arrangements <= (plan.max_exact as f64).ln() {
        let mut arranged = labels.to_vec();
        arranged.sort_unstable();
        let mut tally = Tally::default();
        loop {
            tally = tally.plus(Tally::of(statistic(&arranged), observed));
            if !next_arrangement(&mut arranged) {
                return Ok(tally.test(observed, true));
            }
        }
    }
    let sampled = (0..plan.resamples).into_par_iter().map_init(Vec::new, |arranged, replicate| {
        arranged.clear();
        arranged.extend_from_slice(labels);
        let mut rng = stream(plan.seed, replicate);
        for i in (1..arranged.len()).rev() {
            arranged.swap(i, rng.random_range(0..=i));
        }
        Tally::of(statistic(arranged), observed)
    });
    Ok(sampled.reduce(Tally::default, Tally::plus).test(observed, false))
}

/// Swaps the two models within rows: the statistic of any choice of the `rows` to swap.
///
/// # Errors
/// [`Undefined`] where the observed statistic is.
pub fn permute_pairs(
    rows: usize,
    plan: &Plan,
    statistic: impl Fn(&[bool]) -> Measured + Sync,
) -> Result<PermutationTest, Undefined> {
    let observed = statistic(&vec![false; rows])?;
    if rows < 64 && 1_u64 << rows <= plan.max_exact {
        let mut swapped = vec![false; rows];
        let mut tally = Tally::default();
        for choice in 0..1_u64 << rows {
            for (row, swap) in swapped.iter_mut().enumerate() {
                *swap = choice >> row & 1 == 1;
            }
            tally = tally.plus(Tally::of(statistic(&swapped), observed));
        }
        return Ok(tally.test(observed, true));
    }
    let sampled = (0..plan.resamples).into_par_iter().map_init(
        || vec![false; rows],
        |swapped, replicate| {
            let mut rng = stream(plan.seed, replicate);
            for rows in swapped.chunks_mut(32) {
                let bits = rng.next_u32();
                for (row, swap) in rows.iter_mut().enumerate() {
                    *swap = bits >> row & 1 == 1;
                }
            }
            Tally::of(statistic(swapped), observed)
        },
    );
    Ok(sampled.reduce(Tally::default, Tally::plus).test(observed, false))
}

/// Rearranges the groups of rows where only the hits of each group matter (any rate: take the rows of its denominator
/// alone). The same test as [`permute_labels`] in time independent of the number of rows: the hits of the groups are
/// drawn from their distribution, the multivariate hypergeometric.
///
/// `hits` and `rows` `[groups]`; the statistic of the hits of each group.
///
/// # Errors
/// As [`permute_labels`].
pub fn permute_hits(
    hits: &[u64],
    rows: &[u64],
    plan: &Plan,
    statistic: impl Fn(&[u64]) -> Measured + Sync,
) -> Result<PermutationTest, Undefined> {
    let observed = statistic(hits)?;
    let total: u64 = rows.iter().sum();
    let with_rows = rows.iter().filter(|n| **n > 0).count();
    if with_rows < 2 {
        return Err(Undefined::OneGroup);
    }
    let labels = || -> Vec<u32> {
        let of_group = |(g, n): (usize, &u64)| std::iter::repeat_n(g as u32, *n as usize);
        rows.iter().enumerate().flat_map(of_group).collect()
    };
    if total <= 64 && ln_arrangements(&labels()) <= (plan.max_exact as f64).ln() {
        let all: u64 = hits.iter().sum();
        // The first `all` places hold the hits: which group a place falls to is what is rearranged.
        let count = |labels: &[u32]| {
            let mut counts = vec![0; hits.len()];
            labels.iter().take(all as usize).for_each(|g| counts[*g as usize] += 1);
            counts
        };
        let mut arranged = labels();
        let mut tally = Tally::default();
        loop {
            tally = tally.plus(Tally::of(statistic(&count(&arranged)), observed));
            if !next_arrangement(&mut arranged) {
                return Ok(tally.test(observed, true));
            }
        }
    }
    let sampled = (0..plan.resamples).into_par_iter().map_init(
        || vec![0; hits.len()],
        |drawn, replicate| {
            let mut rng = stream(plan.seed, replicate);
            let (mut left, mut hits_left) = (total, hits.iter().sum::<u64>());
            for (drawn, rows) in drawn.iter_mut().zip(rows) {
                *drawn = hypergeometric(&mut rng, left, hits_left, *rows);
                left -= rows;
                hits_left -= *drawn;
            }
            Tally::of(statistic(drawn), observed)
        },
    );
    Ok(sampled.reduce(Tally::default, Tally::plus).test(observed, false))
}

/// Draws how many of `marked` marked ones are among `drawn` out of `total`: inverts the distribution function outwards
/// from the mode, in steps of about a standard deviation.
fn hypergeometric(rng: &mut ChaCha8Rng, total: u64, marked: u64, drawn: u64) -> u64 {
    let (lowest, highest) = ((drawn + marked).saturating_sub(total), drawn.min(marked));
    if lowest == highest {
        return lowest;
    }
    let mode = ((drawn + 1) as f64 * (marked + 1) as f64 / (total + 2) as f64) as u64;
    let mode = mode.clamp(lowest, highest);
    let at_mode = hypergeometric_pmf(mode, total, marked, drawn);
    let mut left: f64 = rng.random::<f64>() - at_mode;
    let (mut below, mut above) = (mode, mode);
    let (mut p_below, mut p_above) = (at_mode, at_mode);
    while left >= 0.0 && (below > lowest || above < highest) {
        if above < highest {
            let k = above as f64;
            p_above *= (marked as f64 - k) * (drawn as f64 - k)
                / ((k + 1.0) * (total as f64 - marked as f64 - drawn as f64 + k + 1.0));
            above += 1;
            left -= p_above;
            if left < 0.0 {
                return above;
            }
        }
        if below > lowest {
            let k = below as f64;
            p_below *= k * (total as f64 - marked as f64 - drawn as f64 + k)
                / ((marked as f64 - k + 1.0) * (drawn as f64 - k + 1.0));
            below -= 1;
            left -= p_below;
            if left < 0.0 {
                return below;
            }
        }
        if p_above.max(p_below) < 1e-300 {
            break;
        }
    }
    mode
}

/// ln of the number of different orders of the labels.
fn ln_arrangements(labels: &[u32]) -> f64 {
    let mut sorted = labels.to_vec();
    sorted.sort_unstable();
    let (mut left, mut ln) = (sorted.len() as u64, 0.0);
    for group in sorted.chunk_by(|a, b| a == b) {
        ln += ln_choose(left, group.len() as u64);
        left -= group.len() as u64;
    }
    // A whole number of arrangements is not to fall short of itself by rounding.
    ln - 1e-9
}

/// The next order of labels in the dictionary, false after the last.
fn next_arrangement(labels: &mut [u32]) -> bool {
    let Some(pivot) = labels.windows(2).rposition(|pair| pair[0] < pair[1]) else { return false };
    if let Some(next) = labels.iter().rposition(|label| *label > labels[pivot]) {
        labels.swap(pivot, next);
    }
    labels[pivot + 1..].reverse();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { max_exact: 0, resamples: 999, seed: 5 };

    /// Best minus worst rate.
    fn gap(hits: &[u64], rows: &[u64]) -> Measured {
        let rates = hits.iter().zip(rows).map(|(h, n)| *h as f64 / *n as f64);
        let (low, high) = rates.fold((f64::MAX, f64::MIN), |(low, high), r| (low.min(r), high.max(r)));
        Ok(high - low)
    }

    #[test]
    fn drawing_hits_is_rearranging_rows() {
        let (hits, rows) = ([4, 9, 3], [12, 14, 6]);
        let labels: Vec<u32> = rows.iter().enumerate().flat_map(|(g, n)| vec![g as u32; *n as usize]).collect();
        let hit: Vec<bool> = hits.iter().zip(rows).flat_map(|(h, n)| (0..n).map(move |i| i < *h)).collect();
        let by_labels = |labels: &[u32]| {
            let mut counts = [0; 3];
            labels.iter().zip(&hit).filter(|(_, hit)| **hit).for_each(|(g, _)| counts[*g as usize] += 1);
            gap(&counts, &rows)
        };
        let plan = Plan { resamples: 20_000, ..PLAN };
        let slow = permute_labels(&labels, &plan, by_labels).unwrap();
        let fast = permute_hits(&hits, &rows, &plan, |hits| gap(hits, &rows)).unwrap();
        assert_eq!(slow.statistic, fast.statistic);
        // Five standard errors of the difference of two shares of 20,000.
        assert!((slow.greater - fast.greater).abs() < 5.0 * (0.5_f64 / 20_000.0).sqrt(), "{slow:?} {fast:?}");
    }

    #[test]
    fn enumerating_hits_is_enumerating_rows() {
        let (hits, rows) = ([3, 1], [4, 5]);
        let exact = Plan { max_exact: 1000, ..PLAN };
        let fast = permute_hits(&hits, &rows, &exact, |hits| gap(hits, &rows)).unwrap();
        // All of the hits in the hypergeometric's tails: 3 or 4 of 4, or none in the first group.
        let p = |k| hypergeometric_pmf(k, 9, 4, 4);
        assert!(fast.exact);
        assert_eq!(fast.permutations, 126);
        let as_far: f64 = (0..=4).filter(|k| gap(&[*k, 4 - k], &rows).unwrap() >= 0.55 - 1e-12).map(p).sum();
        assert!((fast.greater - as_far).abs() < 1e-12);
    }

    #[test]
    fn a_sampled_p_is_never_zero_and_threads_do_not_matter() {
        let rows = [500, 500];
        let test = || permute_hits(&[0, 500], &rows, &PLAN, |hits| gap(hits, &rows)).unwrap();
        assert_eq!(test().greater, 1.0 / 1000.0);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let labels: Vec<u32> = (0..60).map(|i| i % 3).collect();
        let order = |labels: &[u32]| Ok(labels.iter().take(20).map(|l| f64::from(*l)).sum());
        let many = permute_labels(&labels, &PLAN, order).unwrap();
        assert_eq!(one.install(|| permute_labels(&labels, &PLAN, order).unwrap()), many);
    }

    #[test]
    fn one_group_has_no_test() {
        assert_eq!(permute_labels(&[1, 1, 1], &PLAN, |_| Ok(0.0)), Err(Undefined::OneGroup));
        assert_eq!(permute_hits(&[1, 0], &[3, 0], &PLAN, |_| Ok(0.0)), Err(Undefined::OneGroup));
    }

    /// Under the null the test of the largest gap rejects at 5 % as often as it says.
    #[test]
    fn under_the_null_one_test_in_twenty_rejects() {
        let rows = [120, 80, 50, 30];
        let plan = Plan { max_exact: 0, resamples: 199, seed: 0 };
        let trials = 2_000;
        let rejected = (0..trials).filter(|trial| {
            let mut rng = stream(77, *trial);
            let hits = rows.map(|n| (0..n).filter(|_| rng.random_bool(0.4)).count() as u64);
            let plan = Plan { seed: 1_000 + trial, ..plan };
            permute_hits(&hits, &rows, &plan, |hits| gap(hits, &rows)).unwrap().greater <= 0.05
        });
        let share = rejected.count() as f64 / trials as f64;
        // Three standard errors: 3 · √(0.05 · 0.95 / 2000) = 0.0146.
        assert!((share - 0.05).abs() < 0.0147, "{share}");
    }
}
