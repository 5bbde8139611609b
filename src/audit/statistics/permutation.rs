//! Tests by rearranging: could this statistic come about where groups, or models, do not matter?
//!
//! A gap between the best and the worst group is never negative and grows as groups shrink, so that its interval says
//! how large it is but not whether it is there; this does. All arrangements are gone through where there are few, else
//! some are drawn, and a p-value of drawn ones is (count + 1) / (B + 1): never 0. Two-sided is 2 · the smaller tail, at
//! most 1. An arrangement whose statistic is undefined counts as extreme, which can only raise a p-value.
//! After: scipy 1.17 `permutation_test`; Phipson and Smyth 2010 for the added one.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The observed statistic among those of its rearrangements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tails {
    /// Share of arrangements with this or more.
    pub greater: f64,
    /// Share of arrangements with this or less.
    pub less: f64,
    /// 2 · the smaller of both, at most 1.
    pub two_sided: f64,
    /// Share of arrangements as far from 0.
    pub two_sided_absolute: f64,
}

impl Tails {
    /// Compares with the statistics of arrangements, NaN where one is undefined; `exact`: these are all there are, the
    /// observed one among them.
    pub fn of(observed: f64, arranged: impl Iterator<Item = f64>, exact: bool) -> Self {
        // The same number summed in another order is the same number.
        let slack = 1e-12 * observed.abs().max(1e-2);
        let (mut all, mut greater, mut less, mut absolute) = (0_u64, 0_u64, 0_u64, 0_u64);
        for statistic in arranged {
            let undefined = statistic.is_nan();
            all += 1;
            greater += u64::from(undefined || statistic >= observed - slack);
            less += u64::from(undefined || statistic <= observed + slack);
            absolute += u64::from(undefined || statistic.abs() >= observed.abs() - slack);
        }
        let added = if exact { 0.0 } else { 1.0 };
        let share = |count: u64| (count as f64 + added) / (all as f64 + added);
        let (greater, less) = (share(greater), share(less));
        let two_sided = (2.0 * greater.min(less)).min(1.0);
        Self { greater, less, two_sided, two_sided_absolute: share(absolute) }
    }
}

/// Generator of one replicate.
pub(super) fn stream(seed: u64, replicate: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(replicate);
    rng
}

/// How often each label occurs.
fn counts(labels: &[u32]) -> Vec<u64> {
    let mut counts = vec![0; labels.iter().max().map_or(0, |last| *last as usize + 1)];
    labels.iter().for_each(|label| counts[*label as usize] += 1);
    counts
}

/// n! / (c₁! c₂! …); none where it is above `most`.
fn multinomial(counts: &[u64], most: u64) -> Option<u64> {
    let (mut placed, mut ways) = (0_u64, 1_u128);
    for count in counts {
        for i in 1..=*count {
            placed += 1;
            // The product of a binomial coefficient so far and the next factor is divisible by i.
            ways = ways * u128::from(placed) / u128::from(i);
            if ways > u128::from(most) {
                return None;
            }
        }
    }
    Some(ways as u64)
}

/// Number of different orders of the labels, 0, 1, …; none where they are more than `most`.
#[must_use]
pub fn arrangements(labels: &[u32], most: u64) -> Option<u64> {
    multinomial(&counts(labels), most)
}

/// The order of the labels with this number in the dictionary, below their [`arrangements`].
pub fn arrangement(labels: &[u32], mut number: u64) -> Vec<u32> {
    let mut left = counts(labels);
    let mut ways = multinomial(&left, u64::MAX).unwrap_or(u64::MAX);
    let mut arranged = Vec::with_capacity(labels.len());
    for placed in 0..labels.len() {
        let open = (labels.len() - placed) as u128;
        for (label, left) in left.iter_mut().enumerate() {
            // Of all orders of what is left, those that begin with this label.
            let begin = (u128::from(ways) * u128::from(*left) / open) as u64;
            if number < begin {
                arranged.push(label as u32);
                *left -= 1;
                ways = begin;
                break;
            }
            number -= begin;
        }
    }
    arranged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrangements_are_all_different_orders_in_turn() {
        let labels = [2, 0, 1, 1, 0, 2, 2];
        let count = arrangements(&labels, u64::MAX).unwrap();
        assert_eq!(count, 210);
        let all: Vec<Vec<u32>> = (0..count).map(|number| arrangement(&labels, number)).collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        for order in &all {
            assert_eq!(counts(order), counts(&labels));
        }
        assert_eq!(all[0], [0, 0, 1, 1, 2, 2, 2]);
        assert_eq!(arrangements(&labels, 209), None);
        assert_eq!((arrangements(&[1, 1, 1], 1), arrangement(&[1, 1, 1], 0)), (Some(1), vec![1, 1, 1]));
        // 200 over 100 is beyond any number here, and no reason to overflow.
        assert_eq!(arrangements(&(0..200).map(|i| i % 2).collect::<Vec<_>>(), u64::MAX), None);
    }

    #[test]
    fn drawn_arrangements_leave_no_p_of_zero_and_undefined_ones_raise_it() {
        let drawn = Tails::of(2.0, [0.0, 1.0, -2.0].into_iter(), false);
        assert_eq!((drawn.greater, drawn.less, drawn.two_sided_absolute), (0.25, 1.0, 0.5));
        let undefined = Tails::of(2.0, [0.0, f64::NAN, -2.0].into_iter(), false);
        assert_eq!((undefined.greater, undefined.two_sided, undefined.two_sided_absolute), (0.5, 1.0, 0.75));
        let exact = Tails::of(2.0, [0.0, 1.0, 2.0, -2.0].into_iter(), true);
        assert_eq!((exact.greater, exact.less, exact.two_sided), (0.25, 1.0, 0.5));
        // The same sum in another order.
        assert_eq!(Tails::of(0.1 + 0.2, [0.3].into_iter(), true).greater, 1.0);
    }
}
