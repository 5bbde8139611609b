//! Several models on the same rows: base, adapter, full fine-tune.
//!
//! Differences are the second model minus the first. Rows are resampled once for both, so that what is hard for both
//! cancels. Takes whether each answer was right; any other figure of each group enters through [`gap`].
//! After: fairlearn 0.15 (gaps), statsmodels 0.15 `mcnemar`; see `model_comparison.json` of the golden values.

use super::bootstrap::Sampler;
use super::confusion::Convention;
use super::disparity::Aggregates;
use super::hypothesis::PairedTable;
use super::intervals::Interval;
use super::multiplicity::Adjustment;
use super::{Measured, Undefined, divide};

/// Two models on the same rows.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// `[rows]`: whether the first model was right.
    pub first: &'a [bool],
    /// `[rows]`: whether the second model was right.
    pub second: &'a [bool],
    /// `[rows]`: group, below `groups`.
    pub group: &'a [u32],
    /// Number of groups.
    pub groups: usize,
}

/// What changed for one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupChange {
    /// Who was right where.
    pub table: PairedTable,
    /// Accuracy of the second minus that of the first.
    pub accuracy_difference: Measured,
    /// McNemar's exact p-value.
    pub p: f64,
}

/// What changed from one model to the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// `[groups]`.
    pub by_group: Vec<GroupChange>,
    /// Gap between groups of the second minus that of the first.
    pub gap_difference: Measured,
    /// Its paired percentile interval.
    pub interval: Result<Interval, Undefined>,
    /// Replicates in which a gap is undefined.
    pub undefined_replicates: usize,
}

/// Largest minus smallest figure of the groups that have one.
///
/// # Errors
/// [`Undefined::OneGroup`].
pub fn gap(by_group: &[Measured]) -> Measured {
    Aggregates::of(Err(Undefined::NoRows), by_group, Convention::Defined).difference_between_groups
}

/// Accuracy of every group, a row counting `weight(row)` times.
#[must_use]
pub fn accuracies(right: &[bool], group: &[u32], groups: usize, weight: impl Fn(usize) -> f64) -> Vec<Measured> {
    let mut sums = vec![(0.0, 0.0); groups];
    for (row, (right, group)) in right.iter().zip(group).enumerate() {
        let (hits, rows) = &mut sums[*group as usize];
        let weight = weight(row);
        *hits += weight * f64::from(u8::from(*right));
        *rows += weight;
    }
    sums.into_iter().map(|(hits, rows)| divide(hits, rows, Undefined::NoRows)).collect()
}

impl Pair<'_> {
    /// The 2 × 2 table of every group.
    #[must_use]
    pub fn tables(&self) -> Vec<PairedTable> {
        let mut tables = vec![PairedTable::default(); self.groups];
        for (row, group) in self.group.iter().enumerate() {
            tables[*group as usize].add(self.first[row], self.second[row]);
        }
        tables
    }

    /// Gap of accuracy of the second model minus that of the first, a row counting `weight(row)` times. A group without
    /// rows is left out of both gaps.
    ///
    /// # Errors
    /// [`Undefined::OneGroup`].
    pub fn gap_difference(&self, weight: impl Fn(usize) -> f64) -> Measured {
        let of = |right| gap(&accuracies(right, self.group, self.groups, &weight));
        Ok(of(self.second)? - of(self.first)?)
    }

    /// Compares the models: tables and tests by group, the difference of the gaps with its interval.
    #[must_use]
    pub fn compare(&self, sampler: &Sampler<'_>, resamples: u64, level: f64) -> Change {
        // Rows are read once: from then on a replicate is a sum over cells of group and outcome.
        let cell = |row: usize| self.group[row] * 4 + u32::from(self.first[row]) * 2 + u32::from(self.second[row]);
        let cells: Vec<u32> = (0..self.group.len()).map(cell).collect();
        let scratch = || vec![0_u64; self.groups * 4];
        let replicates = sampler.replicates(0..resamples, 1, scratch, |sums, counts, out| {
            sums.fill(0);
            cells.iter().zip(counts).for_each(|(cell, count)| sums[*cell as usize] += u64::from(*count));
            out[0] = gap_difference_of(sums);
        });
        let figure = replicates.figure(0);
        Change {
            by_group: self.tables().into_iter().map(GroupChange::of).collect(),
            gap_difference: self.gap_difference(|_| 1.0),
            interval: figure.percentile(level),
            undefined_replicates: figure.undefined,
        }
    }
}

/// From counts by group: neither right, the second, the first, both.
fn gap_difference_of(sums: &[u64]) -> Measured {
    let rates = |right: fn(&[u64]) -> u64| {
        let rate = |c: &[u64]| divide(right(c) as f64, c.iter().sum::<u64>() as f64, Undefined::NoRows);
        gap(&sums.chunks(4).map(rate).collect::<Vec<_>>())
    };
    Ok(rates(|c| c[1] + c[3])? - rates(|c| c[2] + c[3])?)
}

impl GroupChange {
    fn of(table: PairedTable) -> Self {
        let difference = table.only_second as f64 - table.only_first as f64;
        Self {
            table,
            accuracy_difference: divide(table.rows() as f64, table.rows() as f64, Undefined::NoRows)
                .map(|_| difference / table.rows() as f64),
            p: table.mcnemar_exact().p,
        }
    }
}

/// Adjusts the tests of all groups of all pairs as one family: `[pairs][groups]`.
#[must_use]
pub fn family(changes: &[&[GroupChange]], adjustment: Adjustment) -> Vec<Vec<f64>> {
    let p: Vec<f64> = changes.iter().flat_map(|groups| groups.iter().map(|group| group.p)).collect();
    let adjusted = adjustment.adjust(&p);
    let mut rest = &adjusted[..];
    let mut by_pair = Vec::with_capacity(changes.len());
    for groups in changes {
        let (of_pair, after) = rest.split_at(groups.len());
        by_pair.push(of_pair.to_vec());
        rest = after;
    }
    by_pair
}

#[cfg(test)]
mod tests {
    use super::super::bootstrap::Resampling;
    use super::*;

    #[test]
    fn a_model_against_itself_changes_nothing() {
        let right: Vec<bool> = (0..60).map(|i| i % 3 != 0).collect();
        let group: Vec<u32> = (0..60).map(|i| i / 20).collect();
        let pair = Pair { first: &right, second: &right, group: &group, groups: 3 };
        let sampler = Sampler::new(Resampling { rows: 60, seed: 1, ..Resampling::default() });
        let change = pair.compare(&sampler, 50, 0.95);
        assert_eq!(change.gap_difference, Ok(0.0));
        assert_eq!(change.interval, Ok(Interval { low: 0.0, high: 0.0 }));
        assert!(change.by_group.iter().all(|g| g.p == 1.0 && g.accuracy_difference == Ok(0.0)));
    }

    #[test]
    fn the_cells_of_a_replicate_are_the_rows_of_it() {
        let first: Vec<bool> = (0..90).map(|i| i % 4 != 0).collect();
        let second: Vec<bool> = (0..90).map(|i| i % 5 != 1 && i % 7 != 2).collect();
        let group: Vec<u32> = (0..90).map(|i| i * i % 11 % 3).collect();
        let pair = Pair { first: &first, second: &second, group: &group, groups: 3 };
        let sampler = Sampler::new(Resampling { rows: 90, seed: 8, ..Resampling::default() });
        let change = pair.compare(&sampler, 40, 0.9);
        let slow = sampler.replicates(
            0..40,
            1,
            || (),
            |(), counts, out| {
                out[0] = pair.gap_difference(|row| f64::from(counts[row]));
            },
        );
        assert_eq!(change.interval, slow.figure(0).percentile(0.9));
    }
}
