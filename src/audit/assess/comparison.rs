//! Two models on the same rows, and groups within strata: tests that counting answers.
//!
//! McNemar's test where rows are independent and count one each; where they come in clusters or have weights, the signs
//! of the differences of clusters are turned at random instead (the same hypothesis: the models are exchangeable).
//! Equivalence is two one-sided tests with the bootstrap's standard error (Schuirmann 1987).

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::base::{At, Spec, What};
use super::figures::{Figures, Found, Place};
use super::measure::Kind;
use super::part::{Part, permutation_test};
use super::read::Support;
use super::view::View;
use crate::audit::report::{Interval, Test};
use crate::audit::statistics::Measured;
use crate::audit::statistics::confusion::Rate;
use crate::audit::statistics::distributions::{normal_cdf, normal_quantile};
use crate::audit::statistics::hypothesis::{
    PairedTable, Stratum, cochran_mantel_haenszel, pooled_odds_error, pooled_odds_influence, pooled_odds_ratio,
};
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

fn test(name: &str, p: f64) -> Test {
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
    let observed = differences.iter().sum::<f64>().abs() / total;
    let mut rng = ChaCha8Rng::seed_from_u64(part.seed ^ 0x7369_676e_0000_0000);
    let mut flipped =
        || differences.iter().map(|d| if rng.random::<bool>() { *d } else { -d }).sum::<f64>().abs() / total;
    let null: Vec<f64> = (0..count).map(|_| flipped()).collect();
    Some(Test { name: "sign_flip".to_owned(), ..permutation_test(observed, &null, None) })
}

/// The difference of two models with the test that it is smaller than the margin; none where that was not asked.
pub(super) fn equivalence(part: &Part<'_>, spec: &Spec, found: &Found, error: Option<f64>) -> Option<Found> {
    let margin = part.statistics.margin;
    let asked = match spec.what {
        What::Measure(measure) => {
            let measure = &part.views[spec.view].measures[measure];
            // A margin is on the scale from 0 to 1.
            measure.tested && !matches!(measure.kind, Kind::LogLoss | Kind::Brier)
        }
        What::Named(_) => false,
    };
    spec.versus.filter(|_| asked && margin > 0.0 && !found.suppressed)?;
    let (difference, error) = (found.value.ok()?, error?);
    let tail = |distance: f64| match error > 0.0 {
        true => normal_cdf(distance / error),
        false => f64::from(u8::from(distance >= 0.0)),
    };
    let p = tail(-(difference + margin)).max(tail(difference - margin));
    Some(Found { test: Some(test("tost", p)), ..found.clone() })
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
