//! The passes over all rows: sums by pattern and cell, and the area under the ROC curve of every group at once.
//!
//! A replicate of a bootstrap is a multiplicity a row; a permutation is another pattern a row. Each pass reads its
//! columns once, front to back where it can, and allocates nothing: this is where the time of an audit goes.

use super::layout::PatternSet;
use super::view::{LABELLED, Marks, POSITIVE, PREDICTED, Rank, TIE, View};
use crate::audit::statistics::{Measured, Undefined};

/// Adds up the rows by pattern: `sums` `[patterns, stride]`; `counts` says how often each row is there.
pub(super) fn sum_rows(view: &View, patterns: &[u16], counts: Option<&[u16]>, sums: &mut [f64]) {
    sums.fill(0.0);
    match (counts, view.width) {
        (Some(counts), 4) => sum_four(view, patterns, |row| f64::from(counts[row]), sums),
        (None, 4) => sum_four(view, patterns, |_| 1.0, sums),
        (Some(counts), _) => sum_any(view, patterns, |row| f64::from(counts[row]), sums),
        (None, _) => sum_any(view, patterns, |_| 1.0, sums),
    }
    if let Some(classes) = &view.classes {
        let (stride, first) = (view.stride(), view.keys.len() * view.width);
        for row in 0..view.cells.len() {
            let times = counts.map_or(1.0, |counts| f64::from(counts[row])) * view.values[row * view.width];
            let at = patterns[row] as usize * stride + first;
            match &classes.marks {
                Marks::One { labels, predicted } => {
                    let (label, predicted) = (labels[row] as usize, predicted[row] as usize);
                    sums[at + label] += times;
                    sums[at + classes.count + predicted] += times;
                    if label == predicted {
                        sums[at + 2 * classes.count + label] += times;
                    }
                }
                Marks::Several(marks) => {
                    let marks = &marks[row * classes.count..(row + 1) * classes.count];
                    for (class, mark) in marks.iter().enumerate().filter(|(_, mark)| **mark != 0) {
                        for (part, wanted) in [LABELLED, PREDICTED, LABELLED | PREDICTED].into_iter().enumerate() {
                            if mark & wanted == wanted {
                                sums[at + part * classes.count + class] += times;
                            }
                        }
                    }
                }
            }
        }
    }
}

fn sum_four(view: &View, patterns: &[u16], times: impl Fn(usize) -> f64, sums: &mut [f64]) {
    let stride = view.stride();
    let rows = view.values.as_chunks::<4>().0.iter().zip(&view.cells).zip(patterns);
    for (row, ((values, cell), pattern)) in rows.enumerate() {
        let times = times(row);
        let at = *pattern as usize * stride + *cell as usize * 4;
        if let Some(sums) = sums[at..].first_chunk_mut::<4>() {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += times * value;
            }
        }
    }
}

fn sum_any(view: &View, patterns: &[u16], times: impl Fn(usize) -> f64, sums: &mut [f64]) {
    let stride = view.stride();
    let rows = view.values.chunks_exact(view.width).zip(&view.cells).zip(patterns);
    for (row, ((values, cell), pattern)) in rows.enumerate() {
        let times = times(row);
        let at = *pattern as usize * stride + *cell as usize * view.width;
        for (sum, value) in sums[at..at + view.width].iter_mut().zip(values) {
            *sum += times * value;
        }
    }
}

/// Folds sums by pattern into those of all rows, of each group of the set, and of each of their complements:
/// `folded` `[1 + 2·groups, stride]`.
pub(super) fn fold(set: &PatternSet, groups: usize, stride: usize, sums: &[f64], folded: &mut [f64]) {
    let mut add = |scope: usize, part: &[f64]| {
        for (sum, value) in folded[scope * stride..(scope + 1) * stride].iter_mut().zip(part) {
            *sum += value;
        }
    };
    let first = set.groups.first().is_none_or(|group| *group == 0);
    for (member, part) in set.member.iter().zip(sums.chunks_exact(stride.max(1))) {
        if first {
            add(0, part);
        }
        for (group, inside) in set.groups.iter().zip(member) {
            add(if *inside { 1 + group } else { 1 + groups + group }, part);
        }
    }
}

/// Sums of one group on the way through the ranked rows.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    /// Weight of negative rows so far; of the group.
    below: f64,
    positives: f64,
    /// Pairs of the group that are in the right order.
    wins: f64,
    /// Pairs of a positive of the group with any negative, in the right order.
    wins_over_all: f64,
    /// Pairs of a negative of the group with any positive, in the wrong order.
    losses_to_all: f64,
}

/// Room for [`areas`].
#[derive(Debug, Default)]
pub(super) struct Sides {
    sides: Vec<Side>,
    /// Where the groups of each pattern begin, and those groups.
    starts: Vec<u32>,
    groups: Vec<u32>,
}

/// Rows that count how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times<'a> {
    pub(super) counts: Option<&'a [u16]>,
    pub(super) weights: Option<&'a [f64]>,
}

impl Times<'_> {
    pub(super) fn of(&self, row: usize) -> f64 {
        self.counts.map_or(1.0, |counts| f64::from(counts[row])) * self.weights.map_or(1.0, |weights| weights[row])
    }
}

/// Areas under the ROC curve: of all rows, of each group of the set, and of each of their complements, into `areas`
/// `[1 + 2·groups]`. A tie counts half.
///
/// Pairs outside a group are all pairs without those of its positives and of its negatives, and with those of both:
/// one pass serves groups and complements, overlapping or not.
pub(super) fn areas(
    rank: &Rank,
    (set, patterns): (&PatternSet, &[u16]),
    times: Times<'_>,
    room: &mut Sides,
    areas: &mut [Measured],
) {
    let groups = set.groups.len();
    room.sides.clear();
    room.sides.resize(groups + 1, Side::default());
    room.starts.clear();
    room.groups.clear();
    for member in &set.member {
        room.starts.push(room.groups.len() as u32);
        room.groups.extend((0..groups as u32).filter(|group| member[*group as usize]));
        // The last side is that of all rows.
        room.groups.push(groups as u32);
    }
    room.starts.push(room.groups.len() as u32);
    let Sides { sides, starts, groups: lists } = room;
    let of = |row: u32| {
        let pattern = patterns[(row & !(TIE | POSITIVE)) as usize] as usize;
        &lists[starts[pattern] as usize..starts[pattern + 1] as usize]
    };
    let weight = |row: u32| times.of((row & !(TIE | POSITIVE)) as usize);
    let mut at = 0;
    while at < rank.order.len() {
        let mut end = at + 1;
        while end < rank.order.len() && rank.order[end] & TIE != 0 {
            end += 1;
        }
        if end == at + 1 {
            let row = rank.order[at];
            let (weight, groups_of) = (weight(row), of(row));
            let (below, above) = (sides[groups].below, sides[groups].positives);
            if row & POSITIVE != 0 {
                for group in groups_of {
                    let side = &mut sides[*group as usize];
                    side.wins += weight * side.below;
                    side.wins_over_all += weight * below;
                    side.positives += weight;
                }
            } else {
                for group in groups_of {
                    let side = &mut sides[*group as usize];
                    side.losses_to_all += weight * above;
                    side.below += weight;
                }
            }
        } else {
            let block = &rank.order[at..end];
            block.iter().for_each(|row| add(sides, of(*row), *row, weight(*row), 0.5));
            let (below, above) = (sides[groups].below, sides[groups].positives);
            block.iter().for_each(|row| win(sides, of(*row), *row, weight(*row), (below, above)));
            block.iter().for_each(|row| add(sides, of(*row), *row, weight(*row), 0.5));
        }
        at = end;
    }
    let all = sides[groups];
    let scopes = (areas.len() - 1) / 2;
    if set.groups.first().is_none_or(|group| *group == 0) {
        areas[0] = area(all.wins, (all.positives, all.below), (all.positives, all.below));
    }
    for (side, group) in sides.iter().zip(&set.groups) {
        areas[1 + group] = area(side.wins, (side.positives, side.below), (all.positives, all.below));
        let wins_of_negatives = side.below * all.positives - side.losses_to_all;
        let wins = all.wins - side.wins_over_all - wins_of_negatives + side.wins;
        let rest = (all.positives - side.positives, all.below - side.below);
        areas[1 + scopes + group] = area(wins, rest, (all.positives, all.below));
    }
}

fn add(sides: &mut [Side], groups: &[u32], row: u32, weight: f64, part: f64) {
    let positive = if row & POSITIVE != 0 { weight * part } else { 0.0 };
    let negative = weight * part - positive;
    for group in groups {
        let side = &mut sides[*group as usize];
        side.positives += positive;
        side.below += negative;
    }
}

fn win(sides: &mut [Side], groups: &[u32], row: u32, weight: f64, (below, above): (f64, f64)) {
    for group in groups {
        let side = &mut sides[*group as usize];
        if row & POSITIVE != 0 {
            side.wins += weight * side.below;
            side.wins_over_all += weight * below;
        } else {
            side.losses_to_all += weight * above;
        }
    }
}

/// A difference of sums that is this small beside them is rounding.
const ROUNDING: f64 = 1e-11;

fn area(wins: f64, (positives, negatives): (f64, f64), all: (f64, f64)) -> Measured {
    match (positives > ROUNDING * all.0, negatives > ROUNDING * all.1) {
        (true, true) => Ok((wins / (positives * negatives)).clamp(0.0, 1.0)),
        (false, true) => Err(Undefined::NoPositives),
        (true, false) => Err(Undefined::NoNegatives),
        (false, false) => Err(Undefined::NoRows),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::assess::layout::Layout;
    use crate::audit::statistics::auc::auc;
    use crate::audit::table::{AttributeRows, GroupRows};

    proptest! {
        #[test]
        fn areas_of_groups_and_complements_are_those_of_their_rows(
            rows in prop::collection::vec((any::<bool>(), 0_u8..5, 0_u8..4, 0_u8..8), 1..40),
        ) {
            let n = rows.len();
            let positive: Vec<bool> = rows.iter().map(|r| r.0).collect();
            let scores: Vec<f64> = rows.iter().map(|r| f64::from(r.1) / 4.0).collect();
            let counts: Vec<u16> = rows.iter().map(|r| u16::from(r.2)).collect();
            let weights: Vec<f64> = rows.iter().map(|r| f64::from(r.3) / 3.0).collect();
            let inside = |group: u8| move |row: &u32| rows_in(group, *row);
            let groups = (0..3).map(|g| GroupRows { value: None, rows: (0..n as u32).filter(inside(g)).collect() });
            let attribute = AttributeRows { name: "a".to_owned(), combination: false, groups: groups.collect() };
            let all: Vec<u32> = (0..n as u32).collect();
            let layout = Layout::new(&attribute, &all, n);
            let mut got = vec![Err(Undefined::NoRows); 7];
            let times = Times { counts: Some(&counts), weights: Some(&weights) };
            let rank = Rank::new(&scores, &positive);
            let mut room = Sides::default();
            areas(&rank, (&layout.sets[0], &layout.sets[0].patterns), times, &mut room, &mut got);
            for (scope, got) in got.into_iter().enumerate() {
                let counted = |row: usize| match scope {
                    0 => true,
                    1..=3 => rows_in(scope as u8 - 1, row as u32),
                    _ => !rows_in(scope as u8 - 4, row as u32),
                };
                let part = |row: usize| if counted(row) { f64::from(counts[row]) * weights[row] } else { 0.0 };
                let part: Vec<f64> = (0..n).map(part).collect();
                match (got, auc(&positive, &scores, Some(&part))) {
                    (Ok(got), Ok(expected)) => prop_assert!((got - expected).abs() < 1e-9, "{scope}: {got} {expected}"),
                    (got, expected) => prop_assert_eq!(got, expected),
                }
            }
        }
    }

    /// Overlapping groups: bits of a scrambled row number.
    fn rows_in(group: u8, row: u32) -> bool {
        row.wrapping_mul(2_654_435_761) >> (20 + group) & 1 == 1
    }
}
