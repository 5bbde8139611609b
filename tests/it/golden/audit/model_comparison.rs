//! `model_comparison.json`: several models on the same rows, by fairlearn, scipy and statsmodels.

use evenkeel::audit::statistics::Measured;
use evenkeel::audit::statistics::bootstrap::{Distribution, Resampling, Sampler};
use evenkeel::audit::statistics::comparison::{Change, Pair, accuracies, family, gap};
use evenkeel::audit::statistics::hypothesis::PairedTable;
use evenkeel::audit::statistics::multiplicity::Adjustment;
use serde_json::Value;

use super::attacks::{flags, flat};
use super::figures::{Rows, compare_named, partition};
use super::{Check, indices, names, number};

pub(super) fn model_comparison(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "inputs", "expected", "method"]);
    check.keys("inputs", inputs, &["y_true", "y_pred", "group", "resample_indices"]);
    check.keys("expected", expected, &["models", "pairs", "family"]);
    let groups = partition(&inputs["group"]);
    let truth = flags(&inputs["y_true"]);
    let predicted = |model: &str| flags(&inputs["y_pred"][model]);
    let right = |model: &str| -> Vec<bool> { predicted(model).iter().zip(&truth).map(|(p, t)| p == t).collect() };
    for (model, expected) in expected["models"].as_object().unwrap() {
        let rows = Rows { truth: truth.clone(), predicted: predicted(model), score: Vec::new(), weights: None };
        let by_group = accuracies(&right(model), &groups.of, groups.len(), |_| 1.0);
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("{model}, {name}");
            match name.as_str() {
                "accuracy" => {
                    let overall = accuracies(&right(model), &vec![0; truth.len()], 1, |_| 1.0)[0];
                    check.measured(&what, overall, value);
                }
                "by_group" => {
                    check.equal(&what, &groups.len(), &value.as_object().unwrap().len());
                    for (group, got) in groups.names.iter().zip(&by_group) {
                        check.measured(&format!("{what}, {group}"), *got, &value[group]);
                    }
                }
                "gap" => check.measured(&what, gap(&by_group), value),
                "worst" => {
                    let worst = Distribution::new(by_group.iter().copied()).quantile(0.0);
                    check.measured(&what, worst, value);
                }
                _ => {
                    let expected = serde_json::json!({ name: value });
                    compare_named(model, &rows, &rows.groups(&groups), &expected, check);
                }
            }
        }
    }
    let resamples: Vec<Vec<usize>> = inputs["resample_indices"].as_array().unwrap().iter().map(indices).collect();
    let sampler = Sampler::new(Resampling { rows: truth.len(), ..Resampling::default() });
    let compare = |name: &str| -> (Change, Distribution) {
        let (first, second) = name.split_once("->").unwrap();
        let (first, second) = (right(first), right(second));
        let pair = Pair { first: &first, second: &second, group: &groups.of, groups: groups.len() };
        let replicate = |rows: &Vec<usize>| -> Measured {
            let mut counts = vec![0.0; truth.len()];
            rows.iter().for_each(|row| counts[*row] += 1.0);
            pair.gap_difference(|row| counts[row])
        };
        (pair.compare(&sampler, 1, 0.5), Distribution::new(resamples.iter().map(replicate)))
    };
    for (name, expected) in expected["pairs"].as_object().unwrap() {
        let (change, distribution) = compare(name);
        for (field, value) in expected.as_object().unwrap() {
            let what = format!("{name}, {field}");
            let level = field.strip_prefix("gap_difference_ci").and_then(|rest| rest.strip_suffix("_percentile"));
            match (field.as_str(), level) {
                ("gap_difference", _) => check.measured(&what, change.gap_difference, value),
                ("by_group", _) => {
                    check.equal(&what, &groups.len(), &value.as_object().unwrap().len());
                    for (group, got) in groups.names.iter().zip(&change.by_group) {
                        let (what, value) = (format!("{what}, {group}"), &value[group]);
                        check.keys(&what, value, &["n", "accuracy_difference", "table", "mcnemar_exact_p"]);
                        let PairedTable { both, only_first, only_second, neither } = got.table;
                        let cells = [both, only_first, only_second, neither].map(|count| count as f64);
                        check.equal(&what, &(got.table.rows() as f64), &number(&value["n"]));
                        check.numbers(&what, &cells, &flat(&value["table"]).into());
                        check.measured(&what, got.accuracy_difference, &value["accuracy_difference"]);
                        check.number(&what, got.p, number(&value["mcnemar_exact_p"]));
                    }
                }
                (_, Some(level)) => {
                    let interval = distribution.percentile(level.parse::<f64>().unwrap() / 100.0).unwrap();
                    check.numbers(&what, &[interval.low, interval.high], value);
                }
                (_, None) => check.fault(&format!("{what} is not known")),
            }
        }
    }
    whole_family(&groups.names, &expected["family"], |name| compare(name).0, check);
}

/// All tests of all pairs, in the order that the file gives.
fn whole_family(groups: &[String], expected: &Value, compare: impl Fn(&str) -> Change, check: &mut Check) {
    check.keys("family", expected, &["order", "p", "holm", "bh"]);
    let order: Vec<Vec<String>> = expected["order"].as_array().unwrap().iter().map(names).collect();
    let mut pairs: Vec<&str> = order.iter().map(|test| test[0].as_str()).collect();
    pairs.dedup();
    let changes: Vec<Change> = pairs.iter().map(|pair| compare(pair)).collect();
    let of_order = |by_pair: &[Vec<f64>]| -> Vec<f64> {
        let find = |test: &Vec<String>| {
            let pair = pairs.iter().position(|pair| *pair == test[0]).unwrap();
            by_pair[pair][groups.iter().position(|group| *group == test[1]).unwrap()]
        };
        order.iter().map(find).collect()
    };
    let p: Vec<Vec<f64>> = changes.iter().map(|change| change.by_group.iter().map(|group| group.p).collect()).collect();
    check.numbers("family, p", &of_order(&p), &expected["p"]);
    let changes: Vec<_> = changes.iter().map(|change| &change.by_group[..]).collect();
    check.numbers("family, holm", &of_order(&family(&changes, Adjustment::Holm)), &expected["holm"]);
    check.numbers("family, bh", &of_order(&family(&changes, Adjustment::BenjaminiHochberg)), &expected["bh"]);
}
