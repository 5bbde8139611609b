//! `rejected_inputs.json`: what is refused, and what is taken with a figure undefined or a row in a group of its own.
//!
//! Tests the rule of the file, not the messages of the libraries.

use evenkeel::audit::statistics::auc::auc;
use evenkeel::audit::statistics::disparity::Combine;
use evenkeel::audit::statistics::groups::UNKNOWN;
use evenkeel::audit::statistics::inputs::{
    InputError, check_distributions, check_length, check_probabilities, check_weights, to_binary, to_classes,
};
use serde_json::Value;

use super::attacks::flat;
use super::figures::partition;
use super::{Check, numbers};

pub(super) fn rejected_inputs(case: &Value, check: &mut Check) {
    check.keys("case", case, &["id", "inputs", "library", "outcome", "server_rule", "why"]);
    let inputs = &case["inputs"];
    check.keys("inputs", inputs, &["y_true", "y_pred", "score", "proba", "group", "weights", "agg"]);
    let rule = case["server_rule"].as_str().unwrap();
    let taken = take(inputs);
    check.equal(&format!("is refused ({taken:?})"), &taken.is_err(), &rule.starts_with("reject"));
    if taken.is_err() {
        return;
    }
    // What is taken says what it lacks.
    let missing = inputs["group"].as_array().map_or(0, |rows| rows.iter().filter(|row| row.is_null()).count());
    if missing > 0 {
        let groups = partition(&inputs["group"]);
        let unknown = groups.names.iter().position(|name| name == UNKNOWN);
        check.equal("rows without a group", &unknown.map(|group| groups.rows(group).count()), &Some(missing));
        check.equal("the rule names the group", &rule.contains(UNKNOWN), &true);
    }
    if rule.contains("undefined") {
        let truth: Vec<bool> = numbers(&inputs["y_true"]).into_iter().map(|label| label == 1.0).collect();
        check.equal("is undefined", &auc(&truth, &numbers(&inputs["score"]), None).is_err(), &true);
    }
}

/// The checks of every column that is there.
fn take(inputs: &Value) -> Result<(), InputError> {
    let rows = inputs["y_true"].as_array().unwrap().len();
    let classes = inputs["proba"][0].as_array().map_or(2, Vec::len);
    for name in ["y_true", "y_pred", "score", "proba", "group", "weights"] {
        let Some(column) = inputs[name].as_array() else { continue };
        check_length("column", column.len(), rows)?;
        match name {
            "y_true" | "y_pred" if classes == 2 => drop(to_binary("label", &numbers(&inputs[name]))?),
            "y_true" | "y_pred" => drop(to_classes("label", &numbers(&inputs[name]), classes)?),
            "score" => check_probabilities("score", &numbers(&inputs[name]))?,
            "proba" => check_distributions("proba", &flat(&inputs[name]), rows, classes)?,
            "weights" => check_weights(&numbers(&inputs[name]))?,
            _ => {}
        }
    }
    inputs["agg"].as_str().map_or(Ok(()), |agg| Combine::named(agg).map(drop))
}
