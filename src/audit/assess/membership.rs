//! Membership inference: how well each attack tells rows that a model was trained on, by group.
//!
//! The figures go the way of every other figure (bootstrap by cluster, paired differences of models, permutation null of
//! the gap between groups; groups are rearranged among members and among non-members apart). True-positive rates at a
//! false-positive rate of all rows and of a group come with Clopper and Pearson's interval where rows are independent, at
//! the group's own threshold and at that of all rows; it takes the threshold as given.
//! A gap between attacks on groups is never negative and grows as groups shrink: read it beside its null (Kulynych et
//! al. 2022, arXiv 1906.00389). Rows count one each: weights are not used. Scores are made in `attacks`, controls stand in
//! `controls`.

use std::collections::BTreeMap;

use super::attacks::{Given, name_of};
use super::base::At;
use super::controls::controls;
use super::figures::Place;
use super::measure;
use super::part::Part;
use super::view::{BinaryRows, View};
use super::{AssessError, Assessment, Over};
use crate::audit::report::{Roc as Curve, Scope, Test};
use crate::audit::settings::{Attack, Membership, Task};
use crate::audit::statistics::distributions::normal_quantile;
use crate::audit::statistics::roc::Roc;
use crate::audit::table::{AttackScores, MembershipTable};

/// Points of a curve, at most.
const POINTS: usize = 200;

/// One attack on one model: scores and memberships of the rows that have a score.
struct Attacked {
    model: usize,
    rows: Vec<u32>,
    scores: Vec<f64>,
    members: Vec<bool>,
}

/// Rows, scores and memberships of the rows that have a score.
pub(super) fn defined(scores: &AttackScores, members: &[bool]) -> (Vec<u32>, Vec<f64>, Vec<bool>) {
    let (mut rows, mut values, mut of_rows) = (Vec::new(), Vec::new(), Vec::new());
    for (row, (score, member)) in scores.scores.iter().zip(members).enumerate() {
        if let Some(score) = score.filter(|score| score.is_finite()) {
            rows.push(row as u32);
            values.push(score);
            of_rows.push(*member);
        }
    }
    (rows, values, of_rows)
}

/// An attack with its parameter on all models that it was tried on.
struct Tried {
    name: String,
    attack: Attack,
    parameter: Option<f64>,
    models: Vec<Attacked>,
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
    let mut tried: Vec<Tried> = Vec::new();
    for model in 0..table.members.len() {
        let given = Given::of(table, model, language);
        for (attack, sets) in given.all(&settings.attacks) {
            if sets.is_empty() {
                assessment.figures.not_measured(model, &format!("mia_{}_auc", attack.word()), "not_available");
            }
            for scores in sets {
                let (rows, values, members) = defined(&scores, given.members);
                if rows.is_empty() {
                    let measure = format!("{}_auc", name_of(&scores));
                    let reason = if scores.attack >= Attack::Rmia { "too_few_shadows" } else { "not_available" };
                    assessment.figures.not_measured(model, &measure, reason);
                    continue;
                }
                let attacked = Attacked { model, rows, scores: values, members };
                let name = name_of(&scores);
                match tried.iter_mut().find(|known| known.name == name) {
                    Some(known) => known.models.push(attacked),
                    None => {
                        let (attack, parameter) = (scores.attack, scores.parameter);
                        tried.push(Tried { name, attack, parameter, models: vec![attacked] });
                    }
                }
            }
        }
    }
    let mut curves = Vec::new();
    for of in &tried {
        for paired in same_rows(&of.models) {
            attack_on(assessment, of, &paired, &settings.false_positive_rates, &mut curves)?;
        }
    }
    controls(assessment, table, settings, language)?;
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
    tried: &Tried,
    models: &[&Attacked],
    rates: &[f64],
    curves: &mut Vec<Curve>,
) -> Result<(), AssessError> {
    let Some(first) = models.first().filter(|attacked| !attacked.rows.is_empty()) else { return Ok(()) };
    let view = |attacked: &&Attacked| {
        let rows = BinaryRows {
            labels: attacked.members.clone(),
            predicted: vec![false; attacked.members.len()],
            scores: attacked.scores.clone(),
            tie_is_positive: false,
        };
        let view = View::binary(attacked.model, measure::attack(&tried.name, rates), &rows, None, 1);
        View { rates: rates.to_vec(), ..view }
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
    let auc = format!("{}_auc", tried.name);
    assessment.unweighted_attributes(&over, |figures, _, part, _| {
        for attacked in models {
            for Drawn { at, test, members, others, points } in of_scopes(part, attacked) {
                let place = Place {
                    model: attacked.model,
                    versus: None,
                    attribute: if at == At::Overall { None } else { part.attribute },
                    at,
                    group: at.group().and_then(|group| part.values[group]),
                    control: None,
                    measure: &auc,
                    class: None,
                };
                if let Some(test) = test {
                    figures.attach(&place, test);
                }
                curves.push(Curve {
                    model: attacked.model as u32,
                    attribute: place.attribute.map(|(_, name)| name.to_owned()),
                    scope: match at.group() {
                        Some(_) => Scope::Group(place.group.map(str::to_owned)),
                        None => Scope::Overall,
                    },
                    attack: tried.attack,
                    parameter: tried.parameter,
                    members,
                    others,
                    points,
                });
            }
        }
        Ok(())
    })
}

/// The curve of one scope, and the test of its AUC against chance.
struct Drawn {
    at: At,
    test: Option<Test>,
    members: u64,
    others: u64,
    points: Vec<(f64, f64)>,
}

/// Curves of all rows and of each published group that has both members and others.
fn of_scopes(part: &Part<'_>, attacked: &Attacked) -> Vec<Drawn> {
    let scopes = part.overall.then_some(At::Overall).into_iter().chain((0..part.layout.groups).map(At::Group));
    let drawn = scopes.filter_map(|at| {
        let inside: Vec<usize> = match at.group() {
            Some(group) if part.suppressed[group] => return None,
            Some(group) => super::comparison::rows_of(part, group),
            None => (0..attacked.rows.len()).collect(),
        };
        let scores: Vec<f64> = inside.iter().map(|row| attacked.scores[*row]).collect();
        let members: Vec<bool> = inside.iter().map(|row| attacked.members[*row]).collect();
        let count = members.iter().filter(|member| **member).count() as u64;
        let others = members.len() as u64 - count;
        let roc = Roc::new(&scores, &members, None).ok()?;
        let test = roc.auc_p_value().ok().map(|p| null_test(&roc, p));
        Some(Drawn { at, test, members: count, others, points: curve(&roc, others) })
    });
    drawn.collect()
}

fn null_test(roc: &Roc, p: f64) -> Test {
    let bound = 0.5 + normal_quantile(0.95) * roc.auc_null_deviation();
    Test { name: "auc_null".to_owned(), p: p.clamp(0.0, 1.0), adjusted: None, null: Some(bound), detectable: None }
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
