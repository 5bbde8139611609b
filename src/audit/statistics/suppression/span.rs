//! Which small sets of rows follow from published ones by sums and differences of any number of them.
//!
//! Rows of the same memberships are one atom. A set is a vector of ones over atoms, and what adding and subtracting tells
//! lies in the span of the published vectors (all rows among them). Computed modulo a prime: what the rationals tell is
//! found; a chance of one in two thousand millions that something is held back for nothing. Above a bound of work nothing
//! is looked for, and of very many small sets those of the fewest atoms: the answer says so. Counts rows, holds nothing
//! back.
//! After: Cox 1980 (JASA 75), section 3.

use std::collections::HashMap;

use super::{At, Sets};

/// 2³¹ − 1.
const PRIME: u64 = 2_147_483_647;
/// Small sets looked at, those of the fewest atoms first.
const CANDIDATES: usize = 20_000;
/// Products of one elimination.
const WORK: usize = 500_000_000;

/// The atoms of all sets.
pub(super) struct Atoms {
    /// Rows of each.
    rows: Vec<usize>,
    /// Atoms of each set, `[families][sets]`.
    sets: Vec<Vec<Vec<usize>>>,
}

impl Atoms {
    pub(super) fn new(sets: Sets<'_>) -> Self {
        // Each set divides the atoms that it cuts.
        let mut of_row = vec![0_usize; sets.rows];
        let mut next = 1;
        for set in sets.families.iter().flatten() {
            let mut inside = HashMap::new();
            for row in *set {
                let atom = &mut of_row[*row as usize];
                *atom = *inside.entry(*atom).or_insert_with(|| {
                    next += 1;
                    next - 1
                });
            }
        }
        let (mut numbers, mut rows) = (HashMap::new(), Vec::new());
        for atom in &mut of_row {
            *atom = *numbers.entry(*atom).or_insert_with(|| {
                rows.push(0);
                rows.len() - 1
            });
            rows[*atom] += 1;
        }
        let atoms_of = |set: &&[u32]| {
            let mut there = vec![false; rows.len()];
            set.iter().for_each(|row| there[of_row[*row as usize]] = true);
            (0..rows.len()).filter(|atom| there[*atom]).collect()
        };
        let sets = sets.families.iter().map(|sets| sets.iter().map(atoms_of).collect()).collect();
        Self { rows, sets }
    }

    /// Returns, for each set of 1 to `below` − 1 rows that is told (but all rows), the published sets that tell it; and
    /// whether all such sets were looked at.
    pub(super) fn told(&self, held: &[Vec<bool>], below: usize) -> (Vec<Vec<At>>, bool) {
        let (candidates, all) = self.candidates(below);
        let shown: Vec<At> = held
            .iter()
            .enumerate()
            .flat_map(|(family, held)| {
                held.iter().enumerate().filter(|(_, held)| !**held).map(move |(set, _)| (family, set))
            })
            .filter(|(family, set)| !self.sets[*family][*set].is_empty())
            .collect();
        let (width, count) = (self.rows.len(), shown.len() + 1);
        let work = count.saturating_mul(count).saturating_mul(width + count);
        let nothing = candidates.is_empty() || shown.is_empty();
        if nothing || work > WORK {
            return (Vec::new(), nothing);
        }
        // Behind the atoms: of which sets a row is made.
        let mut matrix = vec![vec![0; width + count]; count];
        for (i, row) in matrix.iter_mut().enumerate() {
            match i.checked_sub(1).and_then(|i| shown.get(i)) {
                None => row[..width].fill(1),
                Some((family, set)) => self.sets[*family][*set].iter().for_each(|atom| row[*atom] = 1),
            }
            row[width + i] = 1;
        }
        let pivots = eliminate(&mut matrix, width);
        let made_of = |set: &Vec<usize>| {
            // A vector of the span is the sum of the rows whose pivots it has.
            let mut sum = vec![0; width + count];
            for row in set.iter().filter_map(|atom| pivots[*atom]) {
                sum.iter_mut().zip(&matrix[row]).for_each(|(sum, x)| *sum = (*sum + x) % PRIME);
            }
            let is_told = (0..width).all(|atom| sum[atom] == u64::from(set.contains(&atom)));
            is_told.then(|| shown.iter().zip(&sum[width + 1..]).filter(|(_, of)| **of > 0).map(|(at, _)| *at).collect())
        };
        (candidates.iter().filter_map(made_of).collect(), all)
    }

    /// Sets of atoms with 1 to `below` − 1 rows together, without that of all rows; and whether these are all.
    fn candidates(&self, below: usize) -> (Vec<Vec<usize>>, bool) {
        let mut found: Vec<(Vec<usize>, usize)> = Vec::new();
        let mut level = vec![(Vec::new(), 0)];
        while !level.is_empty() && found.len() < CANDIDATES {
            let larger = level.iter().flat_map(|(set, rows): &(Vec<usize>, usize)| {
                let (first, rows) = (set.last().map_or(0, |last| last + 1), *rows);
                let fits = (first..self.rows.len()).filter(move |atom| rows + self.rows[*atom] < below);
                fits.map(move |atom| ([&set[..], &[atom]].concat(), rows + self.rows[atom]))
            });
            let larger: Vec<_> = larger.take(CANDIDATES - found.len()).collect();
            found.extend(larger.iter().cloned());
            level = larger;
        }
        let all = found.len() < CANDIDATES;
        (found.into_iter().map(|(set, _)| set).filter(|set| set.len() < self.rows.len()).collect(), all)
    }
}

/// Brings the first `width` columns into reduced echelon form; returns the row of the pivot of each column.
fn eliminate(matrix: &mut [Vec<u64>], width: usize) -> Vec<Option<usize>> {
    let mut pivots = vec![None; width];
    let mut done = 0;
    for (column, pivot) in pivots.iter_mut().enumerate() {
        let Some(found) = (done..matrix.len()).find(|row| matrix[*row][column] != 0) else { continue };
        matrix.swap(done, found);
        let inverse = power(matrix[done][column], PRIME - 2);
        matrix[done].iter_mut().for_each(|x| *x = *x * inverse % PRIME);
        let own = matrix[done].clone();
        for (_, row) in matrix.iter_mut().enumerate().filter(|(i, row)| *i != done && row[column] != 0) {
            let factor = PRIME - row[column];
            row.iter_mut().zip(&own).for_each(|(x, own)| *x = (*x + factor * own) % PRIME);
        }
        *pivot = Some(done);
        done += 1;
    }
    pivots
}

/// Returns `base` to the power of `exponent` modulo the prime.
fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut product = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            product = product * base % PRIME;
        }
        base = base * base % PRIME;
        exponent >>= 1;
    }
    product
}
