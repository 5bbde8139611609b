//! What thresholds on a score find: the pass over ranked rows that gives every group its true-positive rates at
//! false-positive rates, of its own threshold and of that of all rows, and its best balanced accuracy.
//!
//! The highest scores come first; rows of equal scores come together. Overlapping groups and complements are served at
//! once. The same figures as `statistics::roc` of the rows of each scope, here of multiplicities. Units: rows.

use super::accumulate::Times;
use super::layout::PatternSet;
use super::measure::Point;
use super::view::{POSITIVE, Rank, TIE};
use crate::audit::statistics::{Measured, Undefined};

/// Below one negative row a false-positive rate cannot be told; the slack forgives 0.001·1000 < 1.
const SLACK: f64 = 1e-9;

/// A scope on the way through the ranked rows.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    positives: f64,
    negatives: f64,
    /// Of them, those at or above the threshold.
    tp: f64,
    fp: f64,
    balanced: f64,
}

/// Found in every scope, and the room for the next pass.
#[derive(Debug, Default)]
pub(super) struct Thresholds {
    rates: usize,
    /// `[scopes]`
    sides: Vec<Side>,
    /// `[scopes, rates]`: positives found at the scope's own threshold; positives and negatives at that of all rows.
    own: Vec<f64>,
    global: Vec<(f64, f64)>,
    /// Scopes of each pattern of a set.
    lists: Vec<Vec<usize>>,
    /// Rates that all rows are not beyond yet.
    open: Vec<bool>,
}

impl Thresholds {
    /// Begins a resample: weights of positive and negative rows by scope (all rows first), and how many rates.
    pub(super) fn begin(&mut self, totals: impl Iterator<Item = (f64, f64)>, rates: usize) {
        let side = |(positives, negatives)| Side { positives, negatives, balanced: 0.5, ..Side::default() };
        self.sides.clear();
        self.sides.extend(totals.map(side));
        self.rates = rates;
        self.own.clear();
        self.own.resize(self.sides.len() * rates, 0.0);
        self.global.clear();
        self.global.resize(self.sides.len() * rates, (0.0, 0.0));
    }

    /// Goes through the rows once for all rows and the groups and complements of one set.
    pub(super) fn pass(
        &mut self,
        rank: &Rank,
        (set, patterns): (&PatternSet, &[u16]),
        times: Times<'_>,
        rates: &[f64],
    ) {
        let groups = (self.sides.len() - 1) / 2;
        self.lists.clear();
        for member in &set.member {
            let scope = |(group, inside): (&usize, &bool)| if *inside { 1 + group } else { 1 + groups + group };
            self.lists.push([0].into_iter().chain(set.groups.iter().zip(member).map(scope)).collect());
        }
        let mut scopes: Vec<usize> = set.groups.iter().flat_map(|group| [1 + group, 1 + groups + group]).collect();
        scopes.push(0);
        // All rows are in every set.
        self.sides[0] = Side { tp: 0.0, fp: 0.0, balanced: 0.5, ..self.sides[0] };
        self.open.clear();
        self.open.resize(rates.len(), true);
        let mut end = rank.order.len();
        while end > 0 {
            let mut start = end - 1;
            while start > 0 && rank.order[start] & TIE != 0 {
                start -= 1;
            }
            let block = &rank.order[start..end];
            end = start;
            let weight = |row: u32| times.of((row & !(TIE | POSITIVE)) as usize);
            let negatives: f64 = block.iter().filter(|row| **row & POSITIVE == 0).map(|row| weight(*row)).sum();
            self.note_global(&scopes, negatives, rates);
            for row in block {
                let weight = weight(*row);
                for scope in &self.lists[patterns[(row & !(TIE | POSITIVE)) as usize] as usize] {
                    let side = &mut self.sides[*scope];
                    if row & POSITIVE != 0 { side.tp += weight } else { side.fp += weight }
                }
            }
            match block {
                [row] => {
                    let pattern = patterns[(row & !(TIE | POSITIVE)) as usize] as usize;
                    for at in 0..self.lists[pattern].len() {
                        self.note(self.lists[pattern][at], rates);
                    }
                }
                _ => scopes.iter().for_each(|scope| self.note(*scope, rates)),
            }
        }
        self.note_global(&scopes, f64::INFINITY, rates);
    }

    /// Keeps what the threshold of all rows finds, where `more` negatives would be beyond a rate.
    fn note_global(&mut self, scopes: &[usize], more: f64, rates: &[f64]) {
        let all = self.sides[0];
        for (at, rate) in rates.iter().enumerate() {
            if self.open[at] && (all.fp + more) / all.negatives > *rate {
                self.open[at] = false;
                for scope in scopes {
                    self.global[scope * rates.len() + at] = (self.sides[*scope].tp, self.sides[*scope].fp);
                }
            }
        }
    }

    /// Keeps what a threshold here finds in the scope.
    fn note(&mut self, scope: usize, rates: &[f64]) {
        let side = &mut self.sides[scope];
        let (tpr, fpr) = (side.tp / side.positives, side.fp / side.negatives);
        side.balanced = side.balanced.max(f64::midpoint(tpr, 1.0 - fpr));
        for (at, rate) in rates.iter().enumerate() {
            if fpr <= *rate {
                self.own[scope * rates.len() + at] = side.tp;
            }
        }
    }

    /// A figure of a scope. `reach` are the negatives of a scope among the rows themselves: a rate that they cannot
    /// tell stays out of every resample.
    pub(super) fn figure(&self, point: Point, scope: usize, rates: &[f64], reach: impl Fn(usize) -> f64) -> Measured {
        let side = &self.sides[scope];
        let told = |at: usize, scope: usize| match rates[at] * reach(scope) >= 1.0 - SLACK {
            true => Ok(()),
            false => Err(Undefined::Unreachable),
        };
        let both = match (side.positives > 0.0, side.negatives > 0.0) {
            (true, true) => Ok(()),
            (true, false) => Err(Undefined::NoNegatives),
            (false, true) => Err(Undefined::NoPositives),
            (false, false) => Err(Undefined::NoRows),
        };
        match point {
            Point::Balanced => both.map(|()| side.balanced),
            Point::Tpr(at) => {
                both?;
                told(at, scope)?;
                Ok(self.own[scope * self.rates + at] / side.positives)
            }
            Point::GlobalTpr(at) => {
                told(at, 0)?;
                let found = self.global[scope * self.rates + at].0;
                if side.positives > 0.0 { Ok(found / side.positives) } else { Err(Undefined::NoPositives) }
            }
            Point::GlobalFpr(at) => {
                told(at, 0)?;
                let found = self.global[scope * self.rates + at].1;
                if side.negatives > 0.0 { Ok(found / side.negatives) } else { Err(Undefined::NoNegatives) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::assess::layout::Layout;
    use crate::audit::statistics::roc::Roc;
    use crate::audit::table::{AttributeRows, GroupRows};

    proptest! {
        #[test]
        fn figures_of_every_scope_are_those_of_the_curve_of_its_rows(
            rows in prop::collection::vec((any::<bool>(), 0_u8..6, 0_u8..3), 1..50),
        ) {
            let n = rows.len();
            let positive: Vec<bool> = rows.iter().map(|r| r.0).collect();
            let scores: Vec<f64> = rows.iter().map(|r| f64::from(r.1) / 4.0).collect();
            let counts: Vec<u16> = rows.iter().map(|r| u16::from(r.2)).collect();
            let inside = |group: u32, row: u32| row.wrapping_mul(2_654_435_761) >> (20 + group) & 1 == 1;
            let groups = (0..3).map(|g| GroupRows { value: None, rows: (0..n as u32).filter(|r| inside(g, *r)).collect() });
            let attribute = AttributeRows { name: "a".to_owned(), combination: false, groups: groups.collect() };
            let all: Vec<u32> = (0..n as u32).collect();
            let layout = Layout::new(&attribute, &all, n);
            let rates = [0.1, 0.34, 0.5];
            let weights = |scope: u32| -> Vec<f64> {
                let counted = |row: u32| match scope {
                    0 => true,
                    1..=3 => inside(scope - 1, row),
                    _ => !inside(scope - 4, row),
                };
                (0..n as u32).map(|row| if counted(row) { f64::from(counts[row as usize]) } else { 0.0 }).collect()
            };
            let sum = |weights: &[f64], of: bool| -> f64 {
                weights.iter().zip(&positive).filter(|(_, p)| **p == of).map(|(w, _)| w).sum()
            };
            let mut found = Thresholds::default();
            found.begin((0..7).map(|s| (sum(&weights(s), true), sum(&weights(s), false))), rates.len());
            let rank = Rank::new(&scores, &positive);
            let times = Times { counts: Some(&counts), weights: None };
            for set in &layout.sets {
                found.pass(&rank, (set, &set.patterns), times, &rates);
            }
            let global = Roc::new(&scores, &positive, Some(&weights(0)));
            for scope in 0..7_u32 {
                let of_scope = weights(scope);
                let curve = Roc::new(&scores, &positive, Some(&of_scope));
                let figure = |point| found.figure(point, scope as usize, &rates, |s| sum(&weights(s as u32), false));
                prop_assert_eq!(figure(Point::Balanced).ok(), curve.as_ref().ok().map(Roc::balanced_accuracy));
                for (at, rate) in rates.iter().enumerate() {
                    let own = curve.as_ref().ok().map(|curve| curve.tpr_at_fpr(*rate)).filter(|own| own.resolvable);
                    prop_assert_eq!(figure(Point::Tpr(at)).ok(), own.map(|own| own.at_most_all_points));
                    if let (Ok(all), Ok(curve)) = (&global, &curve) {
                        let told = all.tpr_at_fpr(*rate).resolvable;
                        let (tpr, fpr) = curve.rates_at(all.threshold_at(*rate));
                        prop_assert_eq!(figure(Point::GlobalTpr(at)).ok(), told.then_some(tpr));
                        prop_assert_eq!(figure(Point::GlobalFpr(at)).ok(), told.then_some(fpr));
                    }
                }
            }
        }
    }
}
