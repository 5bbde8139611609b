//! `rejected_inputs.json`: what an audit refuses, and what it takes with a figure undefined or a row in a group of its own.
//!
//! Tests the rule of the file, not the messages of the libraries. Over the wire: `audits::rejected`.

use evenkeel::audit::report::Scope;
use evenkeel::audit::settings::Settings;
use evenkeel::audit::uploaded::{Labels, Scores, Uploaded, UploadedModel, audit};
use serde_json::Value;

use super::{Check, attacks, number, numbers, report};

pub(super) fn rejected_inputs(case: &Value, check: &mut Check) {
    check.keys("case", case, &["id", "inputs", "library", "outcome", "server_rule", "why"]);
    let inputs = &case["inputs"];
    check.keys("inputs", inputs, &["y_true", "y_pred", "score", "proba", "group", "weights", "agg"]);
    let rule = case["server_rule"].as_str().unwrap();
    // What combines two gaps is part of a measure's name here.
    let measure = case["library"].as_str().unwrap().rsplit('.').next().unwrap();
    let measures = inputs["agg"].as_str().map(|agg| format!("{measure}_{agg}")).into_iter().collect();
    let taken = audit(&Settings { measures, ..report::settings() }, &uploaded(inputs), "golden", &|| false);
    check.equal(&format!("is refused ({:?})", taken.as_ref().err()), &taken.is_err(), &rule.starts_with("reject"));
    let Ok(taken) = taken else { return };
    // What is taken says what it lacks.
    let missing = inputs["group"].as_array().map_or(0, |rows| rows.iter().filter(|row| row.is_null()).count());
    let unknown = taken.groups.iter().find(|group| group.value.is_none()).map_or(0, |group| group.rows);
    check.equal("rows without a group", &unknown, &(missing as u64));
    if rule.contains("undefined") {
        let auc = taken.figures.iter().find(|figure| figure.measure == "auc" && figure.scope == Scope::Overall);
        let auc = auc.map(|figure| (figure.value, figure.reason.is_some()));
        check.equal("is undefined, with a reason", &auc, &Some((None, true)));
    }
}

/// The columns that are there; a prediction without a score is a certain one.
fn uploaded(inputs: &Value) -> Uploaded {
    let classes = inputs["proba"][0].as_array().map_or(2, Vec::len);
    let scores = if inputs["proba"].is_array() {
        Scores::Classes(attacks::flat(&inputs["proba"]))
    } else {
        let column = if inputs["score"].is_array() { "score" } else { "y_pred" };
        Scores::Positive(numbers(&inputs[column]))
    };
    let label = |label: &Value| number(label).to_string();
    Uploaded {
        classes: (0..classes).map(|class| class.to_string()).collect(),
        labels: Labels::One(inputs["y_true"].as_array().unwrap().iter().map(label).collect()),
        models: vec![UploadedModel { name: "m".to_owned(), scores }],
        attributes: inputs["group"]
            .is_array()
            .then(|| report::attribute("group", &inputs["group"]))
            .into_iter()
            .collect(),
        weights: inputs["weights"].is_array().then(|| numbers(&inputs["weights"])),
        ..Uploaded::default()
    }
}
