//! Orders in which answers are shown.
//!
//! Knows no answers. An order is the content at each place; the first is as given. All orders where they are asked for,
//! else whole sets of rotations, in which every content stands at every place equally often, as long as they fit, else
//! as many others as wanted. What is drawn follows from the seed.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Returns up to `wanted` orders of `count` answers, no two alike.
pub(super) fn orders(count: usize, wanted: usize, seed: u64) -> Vec<Vec<usize>> {
    let all = (1..=count).try_fold(1_usize, usize::checked_mul).unwrap_or(usize::MAX);
    if all <= wanted {
        return permutations(count);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut found = Vec::with_capacity(wanted);
    let mut seen = BTreeSet::new();
    let mut next: Vec<usize> = (0..count).collect();
    // Fewer than all are wanted, so that another one is always found; of rotations too, as they divide all evenly.
    let (size, target) = if wanted >= count { (count, wanted - wanted % count) } else { (1, wanted.max(1)) };
    while found.len() < target {
        if !seen.contains(&next) {
            for by in 0..size {
                let rotated: Vec<usize> = (0..count).map(|place| next[(place + by) % count]).collect();
                seen.insert(rotated.clone());
                found.push(rotated);
            }
        }
        for last in (1..count).rev() {
            next.swap(last, rng.random_range(0..=last));
        }
    }
    found
}

/// Returns all orders, ascending.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        let longer = all.iter().flat_map(|order: &Vec<usize>| {
            (0..count).filter(|content| !order.contains(content)).map(|content| [order.as_slice(), &[content]].concat())
        });
        all = longer.collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_as_given_and_no_two_are_alike() {
        for count in 2..=6 {
            for wanted in [1, 2, 3, 4, 6, 7, 12, 24, 100, 720] {
                let found = orders(count, wanted, 5);
                assert_eq!(found[0], (0..count).collect::<Vec<_>>());
                assert_eq!(found, orders(count, wanted, 5));
                let distinct: BTreeSet<_> = found.iter().collect();
                assert!(distinct.len() == found.len() && found.len() <= wanted, "{count} {wanted}");
                for order in &found {
                    let mut sorted = order.clone();
                    sorted.sort_unstable();
                    assert_eq!(sorted, found[0]);
                }
                if wanted < count {
                    continue;
                }
                for place in 0..count {
                    for content in 0..count {
                        let times = found.iter().filter(|order| order[place] == content).count();
                        assert_eq!(times, found.len() / count, "{count} {wanted}");
                    }
                }
            }
        }
        assert_eq!(orders(3, 6, 1).len(), 6);
        assert_eq!(orders(4, 11, 1).len(), 8);
        assert_ne!(orders(5, 50, 1), orders(5, 50, 2));
    }
}
