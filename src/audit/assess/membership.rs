//! Membership inference: how well each attack tells rows that a model was trained on, by group.
//!
//! The AUC goes the way of every other figure (bootstrap by cluster, paired differences of models, permutation null of
//! the gap between groups; groups are rearranged among members and among non-members apart). True-positive rates at a
//! false-positive rate come with Clopper and Pearson's interval, at the group's own threshold and at that of all rows.
//! A gap between attacks on groups is never negative and grows as groups shrink: read it beside its null (Kulynych et
//! al. 2022, arXiv 1906.00389). Rows count one each: weights are not used.
//! Two controls stand beside the attacks: shuffled membership, which nobody can tell, and planted members, which must
//! be found.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::base::At;
use super::figures::{Found, Place};
use super::measure::{Kind, Measure};
use super::part::Part;
use super::read::Support;
use super::view::{BinaryRows, View};
use super::warnings::warning;
use super::{AssessError, Assessment, Over, overall};
use crate::audit::report::{Interval, Roc as Curve, Scope, Test};
use crate::audit::settings::{Attack, Membership, Task};
use crate::audit::statistics::distributions::normal_quantile;
use crate::audit::statistics::intervals::{Proportion, proportion};
use crate::audit::statistics::lira::{Fit, Shadows as Fitted, Variant};
use crate::audit::statistics::rmia::{Population, offline_ratio, online_ratio};
use crate::audit::statistics::roc::Roc;
use crate::audit::statistics::{Measured, Undefined};
use crate::audit::table::{AttackScores, MembershipTable};

/// Points of a curve, at most.
const POINTS: usize = 200;
/// The level that a control is held to: it fails by chance once in a thousand audits.
const CONTROL_LEVEL: f64 = 0.999;
/// How far the mean over references without a point is lifted (Zarifzadeh et al. 2024).
const RMIA_A: f64 = 0.3;

impl Attack {
    /// The word for it in names of measures.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::MinK => "min_k",
            Self::MinKPlusPlus => "min_k_plus_plus",
            Self::Reference => "reference",
            Self::Rmia => "rmia",
            Self::LiraOnline => "lira_online",
            Self::LiraOnlineFixed => "lira_online_fixed",
            Self::LiraOffline => "lira_offline",
            Self::LiraOfflineFixed => "lira_offline_fixed",
        }
    }
}

/// `mia_loss`, `mia_min_k_0.2`, …
fn name_of(scores: &AttackScores) -> String {
    match scores.parameter {
        Some(parameter) => format!("mia_{}_{parameter}", scores.attack.word()),
        None => format!("mia_{}", scores.attack.word()),
    }
}

/// Scores of the attacks that need shadow models; higher is likelier a member.
fn with_shadows(table: &MembershipTable, model: usize, attack: Attack, language: bool) -> Option<AttackScores> {
    let (shadows, signals) = (table.shadows.get(model)?, table.signals.get(model)?);
    if shadows.signals.is_empty() {
        return None;
    }
    let scores: Vec<Measured> = match attack {
        Attack::Loss | Attack::MinK | Attack::MinKPlusPlus | Attack::Reference => return None,
        Attack::Rmia => rmia(table, model, language),
        Attack::LiraOnline | Attack::LiraOnlineFixed | Attack::LiraOffline | Attack::LiraOfflineFixed => {
            let (phi, member) = (shadows.signals.concat(), shadows.members.concat());
            let fit = Fit::new(Fitted { phi: &phi, member: &member, points: signals.len() });
            match attack {
                Attack::LiraOnline => fit.scores(Variant::Online, signals),
                Attack::LiraOnlineFixed => fit.scores(Variant::OnlineFixed, signals),
                Attack::LiraOffline => fit.scores(Variant::OfflineOneSided, signals),
                // With one spread for all points, the one-sided score is a rising function of the distance.
                Attack::LiraOfflineFixed
                | Attack::Loss
                | Attack::MinK
                | Attack::MinKPlusPlus
                | Attack::Reference
                | Attack::Rmia => {
                    let distance = |(point, phi): (usize, &f64)| match fit.point(point).1 {
                        side if side.count > 0 => Ok(phi - side.median),
                        _ => Err(Undefined::TooFewShadows),
                    };
                    signals.iter().enumerate().map(distance).collect()
                }
            }
        }
    };
    let finite = |score: Measured| score.ok().filter(|score| score.is_finite());
    Some(AttackScores { attack, parameter: None, scores: scores.into_iter().map(finite).collect() })
}

/// The population are the rows that the model was not trained on.
fn rmia(table: &MembershipTable, model: usize, language: bool) -> Vec<Measured> {
    let (shadows, signals) = (&table.shadows[model], &table.signals[model]);
    let probability = |signal: f64| if language { signal.exp() } else { 1.0 / (1.0 + (-signal).exp()) };
    let ratio = |row: usize| -> Measured {
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        for (signals, members) in shadows.signals.iter().zip(&shadows.members) {
            let side = if members[row] { &mut inside } else { &mut outside };
            side.push(probability(signals[row]));
        }
        let target = probability(signals[row]);
        match inside.is_empty() {
            true => offline_ratio(target, &outside, RMIA_A, outside.len()),
            false => online_ratio(target, &inside, &outside),
        }
    };
    let ratios: Vec<Measured> = (0..signals.len()).map(ratio).collect();
    let outside = ratios.iter().zip(&table.members[model]).filter(|(_, member)| !**member);
    let population = Population::new(outside.filter_map(|(ratio, _)| ratio.ok()).collect());
    ratios.into_iter().map(|ratio| Ok(population.as_ref().map_err(|why| *why)?.score(ratio?, 1.0))).collect()
}

/// One attack on one model: scores and memberships of the rows that have a score.
struct Attacked {
    model: usize,
    rows: Vec<u32>,
    scores: Vec<f64>,
    members: Vec<bool>,
}

/// Computes all figures of membership and adds them; returns the curves.
pub(super) fn assess(
    assessment: &mut Assessment<'_>,
    table: &MembershipTable,
    settings: &Membership,
) -> Result<Vec<Curve>, AssessError> {
    let language = match assessment.settings.task {
        Task::Perplexity | Task::Generation { .. } | Task::Pairs { .. } => true,
        Task::Head | Task::LabelWords { .. } | Task::Choice(_) | Task::Bbq { .. } | Task::Uploaded => false,
    };
    // By attack: models that it was tried on.
    let mut attacks: Vec<(String, Attack, Vec<Attacked>)> = Vec::new();
    for model in 0..table.members.len() {
        let given = table.scores.get(model).into_iter().flatten().filter(|s| settings.attacks.contains(&s.attack));
        let mut all: Vec<AttackScores> = given.cloned().collect();
        for attack in &settings.attacks {
            if !all.iter().any(|scores| scores.attack == *attack) {
                match with_shadows(table, model, *attack, language) {
                    Some(scores) => all.push(scores),
                    None => {
                        let name = format!("mia_{}_auc", attack.word());
                        assessment.figures.not_measured(model, &name, "not_available");
                    }
                }
            }
        }
        for scores in all {
            let defined = scores.scores.iter().enumerate();
            let defined: Vec<(u32, f64)> =
                defined.filter_map(|(row, s)| Some((row as u32, s.filter(|s| s.is_finite())?))).collect();
            let attacked = Attacked {
                model,
                rows: defined.iter().map(|(row, _)| *row).collect(),
                scores: defined.iter().map(|(_, score)| *score).collect(),
                members: defined.iter().map(|(row, _)| table.members[model][*row as usize]).collect(),
            };
            let name = name_of(&scores);
            match attacks.iter_mut().find(|(known, _, _)| *known == name) {
                Some((_, _, models)) => models.push(attacked),
                None => attacks.push((name, scores.attack, vec![attacked])),
            }
        }
    }
    let mut curves = Vec::new();
    for (name, attack, models) in &attacks {
        let seen = curves.iter().any(|curve: &Curve| curve.attack == *attack);
        for paired in same_rows(models) {
            attack_on(assessment, (name, *attack), &paired, &settings.false_positive_rates, &mut |curve| {
                if !seen {
                    curves.push(curve);
                }
            })?;
        }
    }
    controls(assessment, table, &attacks);
    Ok(curves)
}

/// Models whose scores are of the same rows are compared with one another.
fn same_rows(models: &[Attacked]) -> Vec<Vec<&Attacked>> {
    let mut sets: Vec<Vec<&Attacked>> = Vec::new();
    for attacked in models {
        match sets.iter_mut().find(|set| set[0].rows == attacked.rows) {
            Some(set) => set.push(attacked),
            None => sets.push(vec![attacked]),
        }
    }
    sets
}

fn attack_on(
    assessment: &mut Assessment<'_>,
    (name, attack): (&str, Attack),
    models: &[&Attacked],
    rates: &[f64],
    draw: &mut dyn FnMut(Curve),
) -> Result<(), AssessError> {
    let Some(first) = models.first().filter(|attacked| !attacked.rows.is_empty()) else { return Ok(()) };
    let auc = Measure { name: format!("{name}_auc"), kind: Kind::Auc, tested: true, ratio: true };
    let view = |attacked: &&Attacked| {
        let rows = BinaryRows {
            labels: attacked.members.clone(),
            predicted: vec![false; attacked.members.len()],
            scores: attacked.scores.clone(),
            tie_is_positive: false,
        };
        View::binary(attacked.model, vec![auc.clone()], &rows, None, 1)
    };
    let views: Vec<View> = models.iter().map(view).collect();
    // Who is a member of which model: groups are rearranged among rows of equal memberships.
    let of_row = |row: usize| models.iter().map(|attacked| attacked.members[row]).collect::<Vec<bool>>();
    let mut numbers = BTreeMap::new();
    let strata: Vec<u32> = (0..first.rows.len())
        .map(|row| {
            let next = numbers.len() as u32;
            *numbers.entry(of_row(row)).or_insert(next)
        })
        .collect();
    let over = Over {
        rows: &first.rows,
        control: None,
        stratum: None,
        views: &views,
        models: views.len(),
        named: &[],
        class: None,
        strata: Some(&strata),
    };
    assessment.unweighted_attributes(&over, |figures, _, part, _| {
        for attacked in models {
            for found in of_scopes(part, attacked, name, rates) {
                let place = Place {
                    model: attacked.model,
                    versus: None,
                    attribute: if found.at == At::Overall { None } else { part.attribute },
                    at: found.at,
                    group: found.at.group().and_then(|group| part.values[group]),
                    control: None,
                    measure: &found.measure,
                    class: None,
                };
                match found.what {
                    What::Figure(figure) => {
                        figures.add(&place, *figure);
                    }
                    What::Test(test) => figures.attach(&place, test),
                    What::Curve(points, members, others) => draw(Curve {
                        model: attacked.model as u32,
                        attribute: place.attribute.map(|(_, name)| name.to_owned()),
                        scope: match found.at.group() {
                            Some(_) => Scope::Group(place.group.map(str::to_owned)),
                            None => Scope::Overall,
                        },
                        attack,
                        members,
                        others,
                        points,
                    }),
                }
            }
        }
        Ok(())
    })
}

/// A finding of one scope.
struct Finding {
    at: At,
    measure: String,
    what: What,
}

enum What {
    Figure(Box<Found>),
    /// Of the AUC.
    Test(Test),
    /// Points, members, others.
    Curve(Vec<(f64, f64)>, u64, u64),
}

/// Balanced accuracy, true-positive rates, the null of the AUC and the curve, of all rows and of each group.
fn of_scopes(part: &Part<'_>, attacked: &Attacked, name: &str, rates: &[f64]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let global = Roc::new(&attacked.scores, &attacked.members, None);
    let scopes = part.overall.then_some(At::Overall).into_iter().chain((0..part.layout.groups).map(At::Group));
    for at in scopes {
        let inside: Vec<usize> = match at.group() {
            Some(group) => super::comparison::rows_of(part, group),
            None => (0..attacked.rows.len()).collect(),
        };
        let suppressed = at.group().is_some_and(|group| part.suppressed[group]);
        let scores: Vec<f64> = inside.iter().map(|row| attacked.scores[*row]).collect();
        let members: Vec<bool> = inside.iter().map(|row| attacked.members[*row]).collect();
        let count = members.iter().filter(|member| **member).count() as u64;
        let others = members.len() as u64 - count;
        let support = |n: u64| Support { n, weight: n as f64, squares: n as f64 };
        let roc = Roc::new(&scores, &members, None);
        let mut add =
            |measure: String, what: What| findings.push(Finding { at, measure: format!("{name}_{measure}"), what });
        let figure = |found: Found| What::Figure(Box::new(Found { suppressed, ..found }));
        let balanced = roc.as_ref().map(Roc::balanced_accuracy).map_err(|why| *why);
        add("balanced_accuracy".to_owned(), figure(Found::new(balanced, support(count.min(others)))));
        for rate in rates {
            let own = roc.as_ref().map_err(|why| *why).and_then(|roc| {
                let tpr = roc.tpr_at_fpr(*rate);
                if tpr.resolvable { Ok(tpr.at_most_all_points) } else { Err(Undefined::Unreachable) }
            });
            let interval = exact(own, count, part.statistics.level);
            let found = Found { interval, ..Found::new(own, support(count.min(others))) };
            add(format!("tpr_at_fpr_{rate}"), figure(found));
            // The threshold of all rows, applied to these.
            let at_global = global.as_ref().map_err(|why| *why).and_then(|all| {
                if !all.tpr_at_fpr(*rate).resolvable {
                    return Err(Undefined::Unreachable);
                }
                roc.as_ref().map(|roc| roc.rates_at(all.threshold_at(*rate))).map_err(|why| *why)
            });
            for (what, value, n) in [("tpr", at_global.map(|r| r.0), count), ("fpr", at_global.map(|r| r.1), others)] {
                let interval = exact(value, n, part.statistics.level);
                let found = Found { interval, ..Found::new(value, support(n)) };
                add(format!("{what}_at_fpr_{rate}_global"), figure(found));
            }
        }
        if let Ok(roc) = &roc {
            if let (Ok(p), false) = (roc.auc_p_value(), suppressed) {
                add("auc".to_owned(), What::Test(null_test(roc, p)));
            }
            if !suppressed {
                add("auc".to_owned(), What::Curve(curve(roc, others), count, others));
            }
        }
    }
    findings
}

fn null_test(roc: &Roc, p: f64) -> Test {
    let bound = 0.5 + normal_quantile(0.95) * roc.auc_null_deviation();
    Test { name: "auc_null".to_owned(), p: p.clamp(0.0, 1.0), adjusted: None, null: Some(bound), detectable: None }
}

/// Clopper and Pearson's interval of a share of `n`.
fn exact(share: Measured, n: u64, level: f64) -> Option<Interval> {
    let value = share.ok()?;
    let hits = (value * n as f64).round();
    let interval = proportion(hits, n as f64, level, Proportion::ClopperPearson).ok()?;
    Some(Interval { method: "clopper_pearson".to_owned(), level, low: interval.low, high: interval.high })
}

/// Points of the curve: dense at low false-positive rates, where attacks matter.
fn curve(roc: &Roc, others: u64) -> Vec<(f64, f64)> {
    let smallest = 1.0 / others.max(1) as f64;
    let half = POINTS / 2 - 1;
    let rising = (0..half).map(|i| smallest.powf(1.0 - i as f64 / half as f64));
    let even = (0..=half).map(|i| i as f64 / half as f64);
    let mut rates: Vec<f64> = [0.0, 1.0].into_iter().chain(rising).chain(even).collect();
    rates.sort_by(f64::total_cmp);
    let point = |rate: f64| {
        let (tpr, fpr) = roc.rates_at(roc.threshold_at(rate));
        (fpr, tpr)
    };
    let mut points: Vec<(f64, f64)> = rates.into_iter().map(point).collect();
    points.dedup();
    points
}

/// Shuffled and planted membership; a warning where they do not come out as they must.
fn controls(assessment: &mut Assessment<'_>, table: &MembershipTable, attacks: &[(String, Attack, Vec<Attacked>)]) {
    let mut failed = Vec::new();
    let z = normal_quantile(1.0 - (1.0 - CONTROL_LEVEL) / 2.0);
    for (name, _, models) in attacks {
        for attacked in models {
            let mut members = attacked.members.clone();
            members.shuffle(&mut ChaCha8Rng::seed_from_u64(assessment.settings.seed ^ 0x7368_7566_0000_0000));
            let Ok(roc) = Roc::new(&attacked.scores, &members, None) else { continue };
            let n = members.len() as u64;
            let mut found = Found::new(Ok(roc.auc()), Support { n, weight: n as f64, squares: n as f64 });
            let reach = z * roc.auc_null_deviation();
            let (low, high) = ((0.5 - reach).max(0.0), (0.5 + reach).min(1.0));
            found.interval = Some(Interval { method: "null".to_owned(), level: CONTROL_LEVEL, low, high });
            if !(low..=high).contains(&roc.auc()) {
                failed.push(format!(
                    "{name} tells shuffled members of model {} (AUC {:.3})",
                    attacked.model,
                    roc.auc()
                ));
            }
            let measure = format!("{name}_control_shuffled_auc");
            assessment.figures.add(&overall(attacked.model, &measure), found);
        }
    }
    if let Some((members, signals)) = &table.planted {
        let n = members.len() as u64;
        let roc = Roc::new(signals, members, None);
        let auc = roc.as_ref().map(Roc::auc).map_err(|why| *why);
        let succeeds = roc.as_ref().is_ok_and(|roc| roc.auc_p_value().is_ok_and(|p| p < 1.0 - CONTROL_LEVEL));
        if !succeeds {
            failed.push("the planted members are not found: the attacks have no power here".to_owned());
        }
        let support = Support { n, weight: n as f64, squares: n as f64 };
        assessment.figures.add(&overall(0, "mia_control_planted_auc"), Found::new(auc, support));
    }
    if !failed.is_empty() {
        assessment.warnings.push(warning("controls_failed", failed.join("; ")));
    }
}
