//! Which sets of rows are too small to be published, and which others must be held back so that none of them can be told.
//!
//! Sets come in families: the groups of an attribute, of a combination, the strata of a control, groups within strata. All
//! rows together are always published. A set of few rows is held back; so is another one where subtraction would tell it:
//! what is left of a published set without the published sets of one family inside it (all of them where they do not
//! overlap, and each alone) must be nobody, or at least as many rows as the bound and no set that is held back; and what
//! is held back must not be the sum of a family's published sets. Then the smallest of those goes too, the first of
//! equals, until nothing more can be told so. Last, small sets are looked for that any sums and differences of published
//! sets of all families tell (`span`); the smallest set of each such sum goes.
//! Counts rows, not weights; knows no figure.
//! After: Cox 1980, "Suppression methodology and statistical disclosure control" (JASA 75), complementary suppression.

mod span;

use self::span::Atoms;

/// A set: its family, and its place there.
type At = (usize, usize);

/// Sets of rows by family; rows ascending.
#[derive(Debug, Clone, Copy)]
pub struct Sets<'a> {
    /// `[families][sets]`.
    pub families: &'a [Vec<&'a [u32]>],
    /// Number of all rows.
    pub rows: usize,
}

/// Returns which sets are held back, `[families][sets]`: those of 1 to `below` − 1 rows, those that are in `held`
/// already, and those that would tell one of them; and whether the sums of all families could be searched to the end.
#[must_use]
pub fn suppressed(sets: Sets<'_>, below: u64, held: Vec<Vec<bool>>) -> (Vec<Vec<bool>>, bool) {
    let below = usize::try_from(below).unwrap_or(usize::MAX);
    let mut search = Search { sets, below, held, within: Vec::new(), marks: vec![0; sets.rows], mark: 0 };
    for (family, sets) in sets.families.iter().enumerate() {
        for (set, rows) in sets.iter().enumerate() {
            search.held[family][set] |= (1..below).contains(&rows.len());
        }
    }
    if search.held.iter().flatten().all(|held| !held) && below <= 1 {
        return (search.held, true);
    }
    search.within();
    let atoms = Atoms::new(sets);
    loop {
        while search.pass() {}
        let (told, all) = atoms.told(&search.held, below);
        if told.is_empty() {
            return (search.held, all);
        }
        told.iter().for_each(|shown| search.hold_smallest(shown));
    }
}

/// One set, or all rows, with the sets inside it by family, itself left out.
struct Within {
    of: Option<At>,
    families: Vec<Vec<usize>>,
}

struct Search<'a> {
    sets: Sets<'a>,
    below: usize,
    held: Vec<Vec<bool>>,
    within: Vec<Within>,
    /// `[rows]`: the last mark that the row was given.
    marks: Vec<u32>,
    mark: u32,
}

impl Search<'_> {
    fn size(&self, (family, set): At) -> usize {
        self.sets.families[family][set].len()
    }

    /// Holds the smallest of sets back, unless one of them is already.
    fn hold_smallest(&mut self, shown: &[At]) {
        if shown.iter().any(|(family, set)| self.held[*family][*set]) {
            return;
        }
        let smallest = shown.iter().min_by_key(|at| (self.size(**at), **at));
        smallest.into_iter().for_each(|(family, set)| self.held[*family][*set] = true);
    }

    /// Finds out which sets lie inside which.
    fn within(&mut self) {
        let Sets { families, rows } = self.sets;
        let filled = |sets: &Vec<&[u32]>| (0..sets.len()).filter(|set| !sets[*set].is_empty()).collect();
        self.within.push(Within { of: None, families: families.iter().map(filled).collect() });
        let of_row: Vec<Members> = families.iter().map(|sets| Members::new(sets, rows)).collect();
        for (family, sets) in families.iter().enumerate() {
            for (set, of) in sets.iter().enumerate().filter(|(_, of)| !of.is_empty()) {
                let inside = |(other, members): (usize, &Members)| {
                    let sizes = &families[other];
                    let mut shared = std::collections::BTreeMap::new();
                    for row in *of {
                        members.of(*row).iter().for_each(|set| *shared.entry(*set as usize).or_insert(0) += 1);
                    }
                    let whole = shared.into_iter().filter(|(set, count)| sizes[*set].len() == *count);
                    whole.map(|(inside, _)| inside).filter(|inside| (other, *inside) != (family, set)).collect()
                };
                let families = of_row.iter().enumerate().map(inside).collect();
                self.within.push(Within { of: Some((family, set)), families });
            }
        }
    }

    /// Looks at every set once; returns whether something more is held back.
    fn pass(&mut self) -> bool {
        let mut changed = false;
        let all = std::mem::take(&mut self.within);
        for Within { of, families } in &all {
            for (family, inside) in families.iter().enumerate() {
                let visible =
                    |search: &Self| inside.iter().copied().filter(|set| !search.held[family][*set]).collect::<Vec<_>>();
                // Together, the smallest first to go.
                loop {
                    let shown = visible(self);
                    if shown.is_empty() || !self.tells(*of, family, &shown) {
                        break;
                    }
                    let smallest = shown.into_iter().min_by_key(|set| (self.size((family, *set)), *set));
                    smallest.into_iter().for_each(|set| self.held[family][set] = true);
                    changed = true;
                }
                for set in visible(self) {
                    if self.tells(*of, family, &[set]) {
                        self.held[family][set] = true;
                        changed = true;
                    }
                }
            }
        }
        self.within = all;
        changed
    }

    /// Returns whether sets inside a set, or inside all rows, tell what is not to be told.
    fn tells(&mut self, of: Option<At>, family: usize, shown: &[usize]) -> bool {
        let total = of.map_or(self.sets.rows, |at| self.size(at));
        let sum: usize = shown.iter().map(|set| self.size((family, *set))).sum();
        let published = of.is_none_or(|(family, set)| !self.held[family][set]);
        // Overlapping sets cannot be added up.
        let Some(left) = total.checked_sub(sum) else { return false };
        if !published {
            return left == 0 && self.disjoint(family, shown);
        }
        if left == 0 {
            return false;
        }
        if left < self.below {
            return self.disjoint(family, shown);
        }
        let candidates = self.sets.families.iter().zip(&self.held);
        let alike =
            candidates.flat_map(|(sets, held)| sets.iter().zip(held).filter(|(s, held)| **held && s.len() == left));
        let alike: Vec<&[u32]> = alike.map(|(set, _)| *set).collect();
        if alike.is_empty() || !self.disjoint(family, shown) {
            return false;
        }
        // The rows of `shown` are marked now.
        let (marks, mark) = (&self.marks, self.mark);
        let is_rest = |row: &&u32| marks[**row as usize] != mark;
        alike.into_iter().any(|set| match of {
            None => set.iter().filter(is_rest).count() == left,
            Some((family, of)) => self.sets.families[family][of].iter().filter(is_rest).eq(set.iter()),
        })
    }

    /// Marks the rows of sets of a family; returns whether no row is in two of them.
    fn disjoint(&mut self, family: usize, shown: &[usize]) -> bool {
        self.mark += 1;
        for set in shown {
            for row in self.sets.families[family][*set] {
                if std::mem::replace(&mut self.marks[*row as usize], self.mark) == self.mark {
                    return false;
                }
            }
        }
        true
    }
}

/// The sets of one family that each row is in.
struct Members {
    starts: Vec<u32>,
    sets: Vec<u32>,
}

impl Members {
    fn new(sets: &[&[u32]], rows: usize) -> Self {
        let mut starts = vec![0_u32; rows + 1];
        sets.iter().flat_map(|set| set.iter()).for_each(|row| starts[*row as usize + 1] += 1);
        (0..rows).for_each(|row| starts[row + 1] += starts[row]);
        let mut next = starts.clone();
        let mut all = vec![0; starts.last().map_or(0, |total| *total as usize)];
        for (number, set) in sets.iter().enumerate() {
            for row in *set {
                let place = &mut next[*row as usize];
                all[*place as usize] = number as u32;
                *place += 1;
            }
        }
        Self { starts, sets: all }
    }

    fn of(&self, row: u32) -> &[u32] {
        let row = row as usize;
        &self.sets[self.starts[row] as usize..self.starts[row + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Groups of rows by their value.
    fn family(values: &[usize], groups: usize) -> Vec<Vec<u32>> {
        let rows = |group| (0..values.len() as u32).filter(|row| values[*row as usize] == group).collect();
        (0..groups).map(rows).collect()
    }

    fn held(families: &[Vec<Vec<u32>>], rows: usize, below: u64) -> Vec<Vec<bool>> {
        let sets: Vec<Vec<&[u32]>> = families.iter().map(|sets| sets.iter().map(Vec::as_slice).collect()).collect();
        let none = families.iter().map(|sets| vec![false; sets.len()]).collect();
        let (held, all) = suppressed(Sets { families: &sets, rows }, below, none);
        assert!(all);
        held
    }

    #[test]
    fn the_next_smallest_goes_with_the_only_small_one() {
        let values: Vec<usize> = (0..100).map(|row| if row < 3 { 0 } else { 1 + usize::from(row >= 30) }).collect();
        assert_eq!(held(&[family(&values, 4)], 100, 5), [[true, true, false, false]]);
        assert_eq!(held(&[family(&values, 4)], 100, 0), [[false; 4]]);
        assert_eq!(held(&[family(&values, 4)], 100, 1), [[false; 4]]);
    }

    #[test]
    fn a_group_of_nearly_all_rows_tells_the_few_outside() {
        let flags = vec![(0..98).collect(), (10..60).collect()];
        assert_eq!(held(std::slice::from_ref(&flags), 100, 5), [[true, false]]);
        assert_eq!(held(&[flags], 100, 2), [[false, false]]);
        // A group inside another: 3 rows between them.
        let nested = vec![(0..50).collect(), (0..47).collect()];
        assert_eq!(held(&[nested], 100, 5), [[false, true]]);
    }

    #[test]
    fn a_small_cell_of_a_table_takes_a_rectangle_with_it() {
        // Two attributes of two values each, 2 rows in the first cell.
        let a: Vec<usize> = (0..80).map(|row| row / 40).collect();
        let b: Vec<usize> = (0..80)
            .map(|row| {
                if row < 2 {
                    0
                } else if row < 40 {
                    1
                } else {
                    row % 2
                }
            })
            .collect();
        let cell: Vec<usize> = a.iter().zip(&b).map(|(a, b)| 2 * a + b).collect();
        let found = held(&[family(&a, 2), family(&b, 2), family(&cell, 4)], 80, 5);
        assert_eq!(found, [vec![false; 2], vec![false; 2], vec![true; 4]]);
        // The same rows as a group of another attribute are held back there too.
        let found = held(&[family(&cell, 4), vec![(0..2).collect(), (2..80).collect()]], 80, 5);
        assert_eq!(found[1], [true, true]);
    }

    #[test]
    fn two_families_do_not_tell_together_what_none_tells_alone() {
        let a = [1, 2, 1, 2, 1, 2, 2, 0, 1];
        let b = [1, 0, 1, 0, 1, 1, 1, 1, 0];
        let cell: Vec<usize> = a.iter().zip(&b).map(|(a, b)| 2 * a + b).collect();
        let families = [family(&a, 3), family(&b, 2), family(&cell, 6)];
        let found = held(&families, 9, 3);
        // All rows without {1, 3, 5, 6} and {0, 2, 4} would be {7, 8}.
        assert!(found[0][2] || found[2][3], "{found:?}");
    }

    #[test]
    fn what_is_too_much_to_search_is_said() {
        // Rows in pairs, in other pairs, and in tens: every row is an atom, and there are 179,700 pairs of atoms.
        let sets = |first: u32, size: u32| (0..600 / size).map(move |set| (first + size * set, size));
        let rows = |(first, size): (u32, u32)| (first..first + size).map(|row| row % 600).collect();
        let families = [(0, 2), (1, 2), (0, 10)].map(|(first, size)| sets(first, size).map(rows).map(sorted).collect());
        let families: [Vec<Vec<u32>>; 3] = families;
        let sets: Vec<Vec<&[u32]>> = families.iter().map(|sets| sets.iter().map(Vec::as_slice).collect()).collect();
        let none = sets.iter().map(|sets| vec![false; sets.len()]).collect();
        let (held, all) = suppressed(Sets { families: &sets, rows: 600 }, 3, none);
        assert!(!all);
        assert_eq!(held, [vec![true; 300], vec![true; 300], vec![false; 60]]);
    }

    fn sorted(mut rows: Vec<u32>) -> Vec<u32> {
        rows.sort_unstable();
        rows
    }

    proptest! {
        #[test]
        fn nobody_tells_a_small_set_by_adding_and_subtracting(
            rows in prop::collection::vec((0_usize..3, 0_usize..2), 1..12),
            below in 2_u64..4,
        ) {
            let n = rows.len();
            let a: Vec<usize> = rows.iter().map(|row| row.0).collect();
            let b: Vec<usize> = rows.iter().map(|row| row.1).collect();
            let cell: Vec<usize> = rows.iter().map(|row| 2 * row.0 + row.1).collect();
            let families = [family(&a, 3), family(&b, 2), family(&cell, 6)];
            let held = held(&families, n, below);
            let bits = |rows: &Vec<u32>| rows.iter().fold(0_u32, |bits, row| bits | 1 << row);
            let mut known = BTreeSet::from([(1_u32 << n) - 1]);
            for (sets, held) in families.iter().zip(&held) {
                known.extend(sets.iter().zip(held).filter(|(_, held)| !**held).map(|(set, _)| bits(set)));
            }
            // Differences of a set and one inside it, sums of two without a row in common.
            loop {
                let list: Vec<u32> = known.iter().copied().collect();
                let pairs = list.iter().flat_map(|a| list.iter().map(move |b| (*a, *b)));
                let told = pairs.flat_map(|(a, b)| {
                    [(a & b == b).then_some(a & !b), (a & b == 0).then_some(a | b)].into_iter().flatten()
                });
                let before = known.len();
                known.extend(told.collect::<Vec<_>>());
                if known.len() == before {
                    break;
                }
            }
            for set in known {
                // The whole may be small: it is published all the same.
                let small = (1..below).contains(&u64::from(set.count_ones())) && set != (1 << n) - 1;
                prop_assert!(!small, "{set:b} of {families:?}, held back {held:?}");
            }
        }
    }
}
