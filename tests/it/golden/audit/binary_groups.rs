//! `binary_groups.json`: fairlearn over scikit-learn, AIF360, Aequitas, holisticai, impact ratios.

use std::collections::BTreeMap;

use evenkeel::audit::statistics::confusion::Convention;
use evenkeel::audit::statistics::groups::Partition;
use evenkeel::audit::statistics::impact::impact;
use evenkeel::audit::statistics::others::{Privilege, TwoGroups};
use serde_json::Value;

use super::figures::{Rows, compare_aequitas, compare_aggregates, compare_aif360, compare_named, partition, plain};
use super::{Check, names, number};

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
    for (part, expected) in expected.as_object().unwrap() {
        match part.as_str() {
            "groupings" => {
                for (name, expected) in expected.as_object().unwrap() {
                    let groups = grouping(name);
                    check.keys(name, expected, &["by_group", "aggregate"]);
                    by_group(name, &rows, &groups, &expected["by_group"], check);
                    let own = rows.groups(&groups);
                    aggregates(name, &rows, &own, &expected["aggregate"], check);
                }
            }
            "named" => {
                for (name, expected) in expected.as_object().unwrap() {
                    compare_named(name, &rows, &rows.groups(&grouping(name)), expected, check);
                }
            }
            "control" => control(&rows, &attributes, expected, check),
            "aif360" => {
                check.keys(part, expected, &["attribute", "privileged", "unprivileged", "values"]);
                let privileged = is(&inputs["groups"], &expected["attribute"], &expected["privileged"]);
                compare_aif360(part, &rows, &privileged, &expected["values"], check);
            }
            "aequitas_unweighted" => {
                let values = &inputs["groups"][expected["attribute"].as_str().unwrap()];
                compare_aequitas(part, &rows, values, expected, check);
            }
            "holisticai_unweighted" => {
                check.keys(part, expected, &["attribute", "group_b", "group_a", "values"]);
                let second = is(&inputs["groups"], &expected["attribute"], &expected["group_b"]);
                holistic(part, &rows.unweighted(), &second, &expected["values"], check);
            }
            "impact" => {
                for (name, expected) in expected.as_object().unwrap() {
                    impacts(&format!("impact, {name}"), &rows, &grouping(name), expected, check);
                }
            }
            other => check.fault(&format!("{other} is not known")),
        }
    }
}

/// Which rows have a value of an attribute.
fn is(groups: &Value, attribute: &Value, value: &Value) -> Vec<bool> {
    let values = groups[attribute.as_str().unwrap()].as_array().unwrap();
    values.iter().map(|of_row| of_row == value).collect()
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
            let group = |group: usize| inside.iter().copied().filter(move |row| sensitive.of[*row] as usize == group);
            let groups: Vec<Rows> = (0..sensitive.len()).map(|g| rows.only(group(g))).collect();
            let own = rows.only(inside.iter().copied());
            let expected = &serde_json::json!({ name: expected });
            aggregates(&format!("control, {level}"), &own, &groups, expected, check);
        }
    }
}

fn holistic(of: &str, rows: &Rows, second: &[bool], expected: &Value, check: &mut Check) {
    let side = |wanted: bool| rows.only((0..second.len()).filter(move |row| second[*row] == wanted)).confusion();
    let (a, b) = (side(false), side(true));
    let (two, signed) = (TwoGroups { a, b }, Privilege { unprivileged: a, privileged: b });
    for (name, value) in expected.as_object().unwrap() {
        let got = match name.as_str() {
            "statistical_parity" => signed.statistical_parity_difference(),
            "disparate_impact" => signed.disparate_impact(),
            "four_fifths" => two.four_fifths(),
            "cohen_d" => two.cohen_d(),
            "z_test_diff" => two.z_test_diff(),
            "z_test_ratio" => two.z_test_ratio(),
            "equal_opportunity_diff" => signed.equal_opportunity_difference(),
            "false_positive_rate_diff" => signed.false_positive_rate_difference(),
            "average_odds_diff" => signed.average_odds_difference(),
            "accuracy_diff" => Ok(-signed.error_rate_difference()),
            _ => {
                check.fault(&format!("{of}, {name} is not known"));
                continue;
            }
        };
        check.measured(&format!("{of}, {name}"), got, &plain(value));
    }
}

fn impacts(of: &str, rows: &Rows, groups: &Partition, expected: &Value, check: &mut Check) {
    check.keys(of, expected, &["median_score", "groups", "highest_group", "impact_ratio_excluding_small"]);
    let got = impact(&rows.predicted, &rows.score, &groups.of, groups.len());
    check.measured(&format!("{of}, median"), got.median_score, &expected["median_score"]);
    let highest = got.highest.map(|group| groups.names[group].as_str());
    check.equal(&format!("{of}, highest"), &highest, &expected["highest_group"].as_str());
    for (group, own) in groups.names.iter().zip(&got.categories) {
        let large = expected["impact_ratio_excluding_small"].get(group);
        check.equal(&format!("{of}, {group} counts"), &own.impact_ratio_excluding_small.is_some(), &large.is_some());
        if let (Some(got), Some(expected)) = (own.impact_ratio_excluding_small, large) {
            check.measured(&format!("{of}, {group} without small ones"), got, expected);
        }
        let Some(expected) = expected["groups"].get(group) else {
            check.equal(&format!("{of}, {group} is left out"), &own.rows, &0);
            continue;
        };
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("{of}, {group}, {name}");
            match name.as_str() {
                "n" => check.equal(&what, &(own.rows as f64), &number(value)),
                "share" => check.number(&what, own.share, number(value)),
                "below_2_percent" => check.equal(&what, &Some(own.below_2_percent), &value.as_bool()),
                "selection_rate" => check.measured(&what, own.selection_rate, value),
                "impact_ratio" => check.measured(&what, own.impact_ratio, value),
                "four_fifths_ok" => check.equal(&what, &own.four_fifths_ok, &value.as_bool()),
                "scoring_rate" => check.measured(&what, own.scoring_rate, value),
                "scoring_impact_ratio" => check.measured(&what, own.scoring_impact_ratio, value),
                _ => check.fault(&format!("{what} is not known")),
            }
        }
    }
    for group in expected["groups"].as_object().unwrap().keys() {
        check.equal(&format!("{of}, {group} is a category"), &groups.names.contains(group), &true);
    }
}
