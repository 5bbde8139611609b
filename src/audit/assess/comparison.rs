//! Two models on the same rows, and groups within strata: tests that counting answers.
//!
//! McNemar's test where rows are independent and count one each; where they come in clusters or have weights, the signs
//! of the differences of clusters are turned at random instead (the same hypothesis: the models are exchangeable).
//! Equivalence, of models or of groups, is two one-sided tests (Schuirmann 1987) with the bootstrap's standard error, or
//! that of Agresti and Caffo for shares of rows that are independent and count one each.

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::base::{At, Spec, What};
use super::figures::{Figures, Found, Place};
use super::measure::Kind;
use super::part::{Part, Resampled, permutation_test};
use super::read::Support;
use super::view::View;
use crate::audit::report::{Interval, Test};
use crate::audit::statistics::Measured;
use crate::audit::statistics::confusion::Rate;
use crate::audit::statistics::distributions::{normal_cdf, normal_quantile};
use crate::audit::statistics::hypothesis::{
    PairedTable, Stratum, cochran_mantel_haenszel, pooled_odds_error, pooled_odds_influence, pooled_odds_ratio,
};
use crate::audit::statistics::proportions::TwoProportions;
use crate::audit::table::Formula;

/// Ends the name of a difference whose test is that of equivalence.
pub(super) const EQUIVALENCE: &str = "_equivalence";

/// Whether each row is right, for a measure that is a share of right rows; none for a row that does not count.
fn right(view: &View, kind: Kind) -> Option<Box<dyn Fn(usize) -> Option<bool> + '_>> {
    let key = |row: usize| &view.keys[view.cells[row] as usize];
    match kind {
        Kind::Rate(Rate::Accuracy) => Some(Box::new(move |row| Some(key(row).label == key(row).predicted))),
        Kind::ClassAccuracy => Some(Box::new(move |row| Some(key(row).hit))),
        Kind::Ratio(Formula::Ratio(column), true) => Some(Box::new(move |row| {
            let values = &view.values[row * view.width..(row + 1) * view.width];
            (key(row).counted >> column & 1 == 1).then(|| values[1 + 2 * column] > 0.5 * values[2 + 2 * column])
        })),
        Kind::Rate(_)
        | Kind::Ratio(..)
        | Kind::MeanScore
        | Kind::LogLoss
        | Kind::Brier
        | Kind::Auc
        | Kind::Ece(..)
        | Kind::Mce(_)
        | Kind::Overconfidence(_)
        | Kind::ClassBalanced
        | Kind::PooledAuc
        | Kind::Micro(_)
        | Kind::Curve(_)
        | Kind::Macro(..) => None,
    }
}

/// Adds tests of differences of accuracy, overall and by group.
pub(super) fn add_tests(part: &Part<'_>, specs: &[Spec], mut add: impl FnMut(usize, Test)) {
    for (i, spec) in specs.iter().enumerate() {
        let (Some(versus), What::Measure(measure)) = (spec.versus, spec.what) else { continue };
        let inside: Vec<usize> = match spec.at {
            At::Overall => (0..part.views[spec.view].rows()).collect(),
            At::Group(group) if !part.suppressed[group] => rows_of(part, group),
            At::Group(_)
            | At::Complement(_)
            | At::MemberMinusRest(_)
            | At::Minimum
            | At::Maximum
            | At::Difference
            | At::Ratio
            | At::DifferenceToOverall
            | At::RatioToOverall
            | At::Attribute => continue,
        };
        let of = |view: usize| right(&part.views[view], part.views[view].measures[measure].kind);
        let (Some(first), Some(second)) = (of(versus), of(spec.view)) else { continue };
        let pairs = inside.iter().filter_map(|row| Some((*row, first(*row)?, second(*row)?)));
        if part.clusters.is_none() && part.weights.is_none() {
            let mut table = PairedTable::default();
            pairs.for_each(|(_, first, second)| table.add(first, second));
            if table.rows() > 0 {
                add(i, test("mcnemar", table.mcnemar_exact().p));
            }
        } else if let Some(found) = sign_flip(part, pairs) {
            add(i, found);
        }
    }
}

pub(super) fn test(name: &str, p: f64) -> Test {
    Test { name: name.to_owned(), p, adjusted: None, null: None, detectable: None }
}

pub(super) fn rows_of(part: &Part<'_>, group: usize) -> Vec<usize> {
    let set = part.layout.sets.iter().find(|set| set.groups.contains(&group));
    let Some((set, at)) = set.and_then(|set| Some((set, set.groups.iter().position(|g| *g == group)?))) else {
        return Vec::new();
    };
    let inside = set.patterns.iter().map(|pattern| set.member[*pattern as usize][at]);
    inside.enumerate().filter(|(_, inside)| *inside).map(|(row, _)| row).collect()
}

/// Turns the sign of each cluster's difference at random: [`Test`] of the difference of weighted shares.
fn sign_flip(part: &Part<'_>, pairs: impl Iterator<Item = (usize, bool, bool)>) -> Option<Test> {
    let count = part.statistics.permutations;
    let units = part.clusters.map_or(part.views[0].rows(), |c| c.iter().max().map_or(0, |last| *last as usize + 1));
    let mut differences = vec![0.0; units];
    let mut total = 0.0;
    for (row, first, second) in pairs {
        let weight = part.weights.map_or(1.0, |weights| weights[row]);
        let unit = part.clusters.map_or(row, |clusters| clusters[row] as usize);
        differences[unit] += weight * (f64::from(u8::from(second)) - f64::from(u8::from(first)));
        total += weight;
    }
    if total <= 0.0 || count == 0 {
        return None;
    }
    differences.retain(|difference| *difference != 0.0);
    let observed = differences.iter().sum::<f64>() / total;
    let flipped = |mut turn: Box<dyn FnMut(usize) -> bool + '_>| {
        differences.iter().enumerate().map(|(i, d)| if turn(i) { -d } else { *d }).sum::<f64>() / total
    };
    let exact = differences.len() < 63 && 1_usize << differences.len() <= count;
    let null: Vec<f64> = if exact {
        (0..1_u64 << differences.len()).map(|choice| flipped(Box::new(move |i| choice >> i & 1 == 1))).collect()
    } else {
        let mut rng = ChaCha8Rng::seed_from_u64(part.seed ^ 0x7369_676e_0000_0000);
        (0..count).map(|_| flipped(Box::new(|_| !rng.random::<bool>()))).collect()
    };
    Some(Test { name: "sign_flip".to_owned(), ..permutation_test(observed, (null, exact), None) })
}

/// The figure of the same measure of other rows, which is listed before.
fn beside(specs: &[Spec], i: usize, at: At) -> Option<usize> {
    let spec = Spec { at, ..specs[i] };
    specs[..i].iter().rposition(|other| *other == spec)
}

/// The groups with the smallest and the largest value that a figure is of, the first of equals.
pub(super) fn extremes(part: &Part<'_>, (specs, i): (&[Spec], usize), values: &[Measured]) -> Vec<Option<String>> {
    let (spec, name) = (&specs[i], |(group, _): (usize, f64)| part.values[group].map(str::to_owned));
    let of_groups = || {
        let value = |group: usize| Some((group, values[beside(specs, i, At::Group(group))?].ok()?));
        (0..part.layout.groups).filter(|group| !part.suppressed[*group]).filter_map(value)
    };
    let smallest = || of_groups().reduce(|a, b| if b.1 < a.1 { b } else { a }).map(name);
    let largest = || of_groups().reduce(|a, b| if b.1 > a.1 { b } else { a }).map(name);
    match (spec.versus, spec.at) {
        (None, At::Minimum) => smallest().into_iter().collect(),
        (None, At::Maximum) => largest().into_iter().collect(),
        (None, At::Difference | At::Ratio) => smallest().into_iter().chain(largest()).collect(),
        (_, _) => Vec::new(),
    }
}

/// Hits and rows of a group and of the others, for the difference of their shares.
pub(super) fn two_proportions(specs: &[Spec], i: usize, resampled: &[Resampled]) -> Option<TwoProportions> {
    let At::MemberMinusRest(group) = specs[i].at else { return None };
    let counts = |at: At| resampled[beside(specs, i, at)?].counts;
    let ((hits_1, rows_1), (hits_2, rows_2)) = (counts(At::Group(group))?, counts(At::Complement(group))?);
    Some(TwoProportions { hits_1, rows_1, hits_2, rows_2 })
}

/// p of two one-sided tests that a difference is smaller than the margin.
fn tost(difference: f64, error: f64, margin: f64) -> f64 {
    let tail = |distance: f64| match error > 0.0 {
        true => normal_cdf(distance / error),
        false => f64::from(u8::from(distance >= 0.0)),
    };
    tail(-(difference + margin)).max(tail(difference - margin))
}

/// p of the test that a difference of groups or models, or a gap between groups, is smaller than the margin; none where
/// that was not asked.
///
/// A gap is smaller where all differences of two groups are: its p is the largest of theirs (Berger 1982), so that a
/// group of few rows leaves it open. Groups are taken as independent; those that share rows or clusters differ by less.
pub(super) fn equivalence(
    part: &Part<'_>,
    (specs, i): (&[Spec], usize),
    values: &[Measured],
    resampled: &[Resampled],
) -> Option<f64> {
    let (spec, margin) = (&specs[i], part.statistics.margin);
    let What::Measure(measure) = spec.what else { return None };
    let measure = &part.views[spec.view].measures[measure];
    // A margin is on the scale from 0 to 1.
    let asked = margin > 0.0 && measure.tested && !matches!(measure.kind, Kind::LogLoss | Kind::Brier);
    if !asked || part.is_suppressed(spec.at) || (spec.versus.is_none() && spec.view >= part.models) {
        return None;
    }
    let (value, error) = (values[i].ok()?, resampled[i].error);
    match (spec.versus, spec.at) {
        (None, At::MemberMinusRest(_)) => match two_proportions(specs, i, resampled) {
            Some(two) => two.equivalence(margin).ok(),
            None => Some(tost(value, error?, margin)),
        },
        (None, At::Difference) => {
            let group = |group: usize| {
                let at = beside(specs, i, At::Group(group)).filter(|_| !part.suppressed[group])?;
                values[at].ok().map(|value| (value, &resampled[at]))
            };
            let groups: Vec<(f64, &Resampled)> = (0..part.layout.groups).filter_map(group).collect();
            let pair =
                |(a, first): (f64, &Resampled), (b, second): (f64, &Resampled)| match (first.counts, second.counts) {
                    (Some((hits_1, rows_1)), Some((hits_2, rows_2))) => {
                        TwoProportions { hits_1, rows_1, hits_2, rows_2 }.equivalence(margin).ok()
                    }
                    (_, _) => Some(tost(a - b, first.error?.hypot(second.error?), margin)),
                };
            let pairs = (1..groups.len()).flat_map(|second| (0..second).map(move |first| (first, second)));
            pairs.map(|(first, second)| pair(groups[first], groups[second])).reduce(|a, b| Some(a?.max(b?)))?
        }
        (Some(_), _) => Some(tost(value, error?, margin)),
        (None, _) => None,
    }
}

/// Normal interval of the logarithm of a pooled odds ratio: Robins, Breslow and Greenland's error where rows are
/// independent, that of clusters by the infinitesimal jackknife.
fn odds_interval(
    part: &Part<'_>,
    tables: &[Stratum],
    cell: impl Fn(usize) -> (usize, usize, usize),
    ratio: Measured,
) -> Option<Interval> {
    let (method, error) = match part.clusters {
        None => ("robins_breslow_greenland", pooled_odds_error(tables).ok()?),
        Some(clusters) => {
            let influence = pooled_odds_influence(tables).ok()?;
            let count = clusters.iter().max().map_or(0, |last| *last as usize + 1);
            let mut sums = vec![0.0; count];
            for (row, cluster) in clusters.iter().enumerate() {
                let (stratum, side, miss) = cell(row);
                sums[*cluster as usize] += influence[stratum][side][miss];
            }
            let squares: f64 = sums.iter().map(|sum| sum * sum).sum();
            ("infinitesimal_jackknife", (count > 1).then(|| (squares * count as f64 / (count as f64 - 1.0)).sqrt())?)
        }
    };
    let (level, ratio) = (part.statistics.level, ratio.ok()?);
    let reach = normal_quantile(f64::midpoint(1.0, level)) * error;
    Some(Interval { method: method.to_owned(), level, low: ratio * (-reach).exp(), high: ratio * reach.exp() })
}

/// Common odds ratios over strata of controls of being right, and of being selected, in a group against the rest.
pub(super) fn common_odds(part: &Part<'_>, figures: &mut Figures) {
    let Some(strata) = part.strata else { return };
    let count = strata.iter().max().map_or(0, |last| *last as usize + 1);
    for view in &part.views[..part.models] {
        for group in (0..part.layout.groups).filter(|group| !part.suppressed[*group]) {
            let mut inside = vec![false; view.rows()];
            rows_of(part, group).into_iter().for_each(|row| inside[row] = true);
            for (name, kind) in [("accuracy", true), ("selection_rate", false)] {
                let asked = |m: &super::measure::Measure| {
                    matches!((m.kind, kind), (Kind::Rate(Rate::Accuracy) | Kind::ClassAccuracy, true))
                        || matches!((m.kind, kind), (Kind::Rate(Rate::SelectionRate), false))
                };
                if !view.measures.iter().any(asked) {
                    continue;
                }
                let several = view.classes.is_some();
                let mut tables: Vec<Stratum> = vec![[[0; 2]; 2]; count];
                let cell = |row: usize| {
                    let key = &view.keys[view.cells[row] as usize];
                    let hit = match (kind, several) {
                        (true, true) => key.hit,
                        (true, false) => key.label == key.predicted,
                        (false, _) => key.predicted,
                    };
                    (strata[row] as usize, usize::from(!inside[row]), usize::from(!hit))
                };
                for (stratum, side, miss) in (0..view.rows()).map(cell) {
                    tables[stratum][side][miss] += 1;
                }
                let shared = tables.iter().filter(|t| t.iter().all(|row| row.iter().sum::<u64>() > 0));
                let n: u64 = shared.flatten().flatten().sum();
                let measure = format!("{name}_common_odds_ratio");
                let place = Place {
                    model: view.model,
                    versus: None,
                    attribute: part.attribute,
                    at: At::MemberMinusRest(group),
                    group: part.values[group],
                    control: None,
                    measure: &measure,
                    class: part.class,
                };
                let support = Support { n, weight: n as f64, squares: n as f64 };
                let mut found = Found::new(pooled_odds_ratio(&tables), support);
                found.interval = odds_interval(part, &tables, cell, found.value);
                found.test = cochran_mantel_haenszel(&tables, false).ok().map(|cmh| test("cmh", cmh.p));
                figures.add(&place, found);
            }
        }
    }
}
