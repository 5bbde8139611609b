//! `binary_groups.json`: fairlearn over scikit-learn, AIF360, Aequitas, holisticai, impact ratios.

use std::collections::BTreeMap;

use evenkeel::audit::settings::Settings;
use evenkeel::audit::statistics::confusion::Convention;
use evenkeel::audit::uploaded::Uploaded;
use serde_json::Value;

use super::figures::{Partition, Rows, compare_aggregates, compare_named, partition, plain};
use super::report::{self, Audited, Both, Place, joint};
use super::toolkits::{compare_aequitas, compare_aif360, compare_holistic, compare_impact};
use super::{Check, names, number};

/// The rows of a case with all of its groupings, as audits take them.
struct Audits {
    both: Both,
    unweighted: Audited,
    /// A row is selected where its score is above the median of all.
    above_median: Audited,
}

impl Audits {
    fn new(rows: &Rows, inputs: &Value, expected: &Value) -> Self {
        let (uploaded, threshold) = report::uploaded(rows);
        let groups = inputs["groups"].as_object().unwrap().iter();
        let attributes = groups.map(|(name, values)| report::attribute(name, values)).collect();
        let controls = names(&expected["control"]["control"]);
        let controls = controls.iter().map(|name| report::attribute(name, &inputs["groups"][name])).collect();
        let uploaded = Uploaded { attributes, controls, ..uploaded };
        let combined = expected["groupings"].as_object().unwrap().keys().filter(|name| name.contains('×'));
        let intersections = combined.map(|name| name.split('×').map(str::to_owned).collect()).collect();
        let settings = Settings { threshold, intersections, ..report::binary() };
        let unweighted = Uploaded { weights: None, ..uploaded.clone() };
        let medians = expected["impact"].as_object().unwrap().values().map(|of| number(&of["median_score"]));
        let median = medians.reduce(|a, b| if a == b { a } else { f64::NAN }).unwrap();
        let above_median = Settings { threshold: median.next_up(), ..settings.clone() };
        Self {
            both: Audited::both(&settings, &uploaded),
            above_median: Audited::new(&above_median, &unweighted),
            unweighted: Audited::new(&settings, &unweighted),
        }
    }
}

pub(super) fn binary_groups(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "inputs", "expected"]);
    check.keys("inputs", inputs, &["threshold", "y_true", "score", "y_pred", "groups", "weights"]);
    let rows = Rows::read(inputs);
    let selected: Vec<bool> = rows.score.iter().map(|score| *score >= number(&inputs["threshold"])).collect();
    check.equal("predictions", &selected, &rows.predicted);
    let attributes: BTreeMap<&str, Partition> =
        inputs["groups"].as_object().unwrap().iter().map(|(name, values)| (name.as_str(), partition(values))).collect();
    let grouping = |name: &str| {
        let parts = name.split('×').map(|part| attributes[part].clone());
        parts.reduce(|a, b| a.product(&b)).unwrap()
    };
    let audits = Audits::new(&rows, inputs, expected);
    for (part, expected) in expected.as_object().unwrap() {
        match part.as_str() {
            "groupings" => {
                for (name, expected) in expected.as_object().unwrap() {
                    let groups = grouping(name);
                    check.keys(name, expected, &["by_group", "aggregate"]);
                    by_group(name, &rows, &groups, &expected["by_group"], check);
                    let own = rows.groups(&groups);
                    aggregates(name, &rows, &own, &expected["aggregate"], check);
                    let (attribute, both) = (joint(name), &audits.both);
                    let place = Place::of(&attribute);
                    both.by_group(name, &place, &expected["by_group"], check);
                    for (measure, expected) in expected["aggregate"].as_object().unwrap() {
                        if both.defined.has(measure) {
                            both.aggregates(name, &place, measure, expected, check);
                        }
                    }
                }
            }
            "named" => {
                for (name, expected) in expected.as_object().unwrap() {
                    compare_named(name, &rows, &rows.groups(&grouping(name)), expected, check);
                    audits.both.named(name, &Place::of(&joint(name)), expected, check);
                }
            }
            "control" => {
                control(&rows, &attributes, expected, check);
                report_control(&audits.both, &attributes, expected, check);
            }
            "aif360" => {
                check.keys(part, expected, &["attribute", "privileged", "unprivileged", "values"]);
                let place = Place::of(expected["attribute"].as_str().unwrap());
                let privileged = expected["privileged"].as_str().unwrap();
                let reports = (&audits.both.defined, &audits.unweighted);
                compare_aif360(part, reports, (&place, privileged), &expected["values"], check);
            }
            "aequitas_unweighted" => {
                let place = Place::of(expected["attribute"].as_str().unwrap());
                compare_aequitas(part, &audits.unweighted, &place, expected, check);
            }
            "holisticai_unweighted" => {
                check.keys(part, expected, &["attribute", "group_b", "group_a", "values"]);
                let place = Place::of(expected["attribute"].as_str().unwrap());
                let second = expected["group_b"].as_str().unwrap();
                compare_holistic(part, &audits.unweighted, (&place, second), &expected["values"], check);
            }
            "impact" => {
                for (name, expected) in expected.as_object().unwrap() {
                    let reports = (&audits.unweighted, &audits.above_median);
                    compare_impact(&format!("impact, {name}"), reports, &Place::of(&joint(name)), expected, check);
                }
            }
            other => check.fault(&format!("{other} is not known")),
        }
    }
}

/// Figures of every group, and which of them are undefined.
pub(super) fn by_group(of: &str, rows: &Rows, groups: &Partition, expected: &Value, check: &mut Check) {
    let listed: Vec<String> = expected.as_object().unwrap().keys().cloned().collect();
    check.equal(&format!("{of}, groups"), &groups.names, &listed);
    for (group, own) in groups.names.iter().zip(rows.groups(groups)) {
        let expected = &expected[group];
        let missing = expected.get("undefined").map(names).unwrap_or_default();
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("{of}, {group}, {name}");
            let count = |flags: &[bool]| flags.iter().filter(|flag| **flag).count() as f64;
            let table = own.confusion();
            match name.as_str() {
                "n" => check.equal(&what, &(own.truth.len() as f64), &number(value)),
                "n_pos" => check.equal(&what, &count(&own.truth), &number(value)),
                "n_neg" => check.equal(&what, &(own.truth.len() as f64 - count(&own.truth)), &number(value)),
                "n_selected" => check.equal(&what, &count(&own.predicted), &number(value)),
                "empty" => check.equal(&what, &own.truth.is_empty(), &value.as_bool().unwrap()),
                "weight_sum" => check.number(&what, table.total(), number(value)),
                "confusion" => {
                    check.keys(&what, value, &["tp", "fp", "tn", "fn"]);
                    check.number(&what, table.true_positive, number(&value["tp"]));
                    check.number(&what, table.false_positive, number(&value["fp"]));
                    check.number(&what, table.true_negative, number(&value["tn"]));
                    check.number(&what, table.false_negative, number(&value["fn"]));
                }
                "undefined" => {}
                other => match (own.figure(other, Convention::Fairlearn), own.figure(other, Convention::Defined)) {
                    (Some(fairlearn), Some(defined)) => {
                        check.measured(&what, fairlearn, &plain(value));
                        let rule = if missing.contains(name) { Value::Null } else { plain(value) };
                        check.measured(&format!("{what} by the rule"), defined, &rule);
                    }
                    (_, _) => check.fault(&format!("{what} is not known")),
                },
            }
        }
    }
}

fn aggregates(of: &str, all: &Rows, groups: &[Rows], expected: &Value, check: &mut Check) {
    for (name, expected) in expected.as_object().unwrap() {
        let figure = |convention| all.aggregates(groups, name, convention);
        match (figure(Convention::Fairlearn), figure(Convention::Defined)) {
            (Some(fairlearn), Some(defined)) => {
                compare_aggregates(&format!("{of}, {name}"), &fairlearn, &defined, expected, check);
            }
            (_, _) => check.fault(&format!("{of}, {name} is not known")),
        }
    }
}

/// Groups within every level of the control feature.
fn control(rows: &Rows, attributes: &BTreeMap<&str, Partition>, expected: &Value, check: &mut Check) {
    check.keys("control", expected, &["control", "by_group", "aggregate_by_control"]);
    let control = names(&expected["control"]);
    let levels = &attributes[control[0].as_str()];
    let (_, sensitive) = attributes.iter().find(|(name, _)| !control.contains(&(**name).to_owned())).unwrap();
    by_group("control", rows, &levels.product(sensitive), &expected["by_group"], check);
    for (name, by_level) in expected["aggregate_by_control"].as_object().unwrap() {
        for (level, expected) in by_level.as_object().unwrap() {
            let index = levels.names.iter().position(|known| known == level).unwrap();
            let inside: Vec<usize> = levels.rows(index).collect();
            let group = |group: usize| inside.iter().copied().filter(move |row| sensitive.of[*row] == group);
            let groups: Vec<Rows> = (0..sensitive.len()).map(|g| rows.only(group(g))).collect();
            let own = rows.only(inside.iter().copied());
            let expected = &serde_json::json!({ name: expected });
            aggregates(&format!("control, {level}"), &own, &groups, expected, check);
        }
    }
}

/// The same in strata of a report.
fn report_control(both: &Both, attributes: &BTreeMap<&str, Partition>, expected: &Value, check: &mut Check) {
    let control = names(&expected["control"]);
    let sensitive = attributes.keys().find(|name| !control.contains(&(**name).to_owned())).unwrap();
    let within = |level| Place { control: Some((control[0].as_str(), level)), ..Place::of(sensitive) };
    both.by_group("control", &within(""), &expected["by_group"], check);
    for (name, by_level) in expected["aggregate_by_control"].as_object().unwrap() {
        for (level, expected) in by_level.as_object().unwrap().iter().filter(|_| both.defined.has(name)) {
            both.aggregates(&format!("control, {level}"), &within(level), name, expected, check);
        }
    }
}
