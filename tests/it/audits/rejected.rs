//! `rejected_inputs.json` over the wire: what the golden file refuses, AuditScores refuses with a typed error, and what it
//! takes comes back with a figure undefined or a row in a group of its own.
//!
//! The statistics are held against the same file in `golden::audit`. A case that no message can say (a label that is no
//! whole number) is left out and counted.

use evenkeel::rpc::pb::audit_scores_request::Part;
use serde_json::Value;
use tonic::Code;

use super::scores::send;
use super::*;
use crate::client::{refused, violations};
use crate::golden::audit::{folder, number};

/// A list of a case; empty where it has none.
fn list<'c>(inputs: &'c Value, name: &str) -> &'c [Value] {
    inputs[name].as_array().map_or(&[], Vec::as_slice)
}

/// The messages of a case; none where a label has no place in one.
fn parts(case: &Value) -> Option<[Part; 2]> {
    let inputs = &case["inputs"];
    let label = |value: &Value| value.as_u64().and_then(|label| u32::try_from(label).ok());
    let labels = list(inputs, "y_true").iter().map(label).collect::<Option<Vec<u32>>>()?;
    let classes = list(inputs, "proba").first().and_then(Value::as_array).map_or(2, Vec::len);
    // A prediction without a score is a certain one.
    let columns = ["score", "y_pred", "proba"];
    let column = columns.into_iter().find(|name| inputs[name].is_array()).unwrap();
    let values = list(inputs, column)
        .iter()
        .flat_map(|value| value.as_array().map_or_else(|| vec![value], |row| row.iter().collect()));
    let group = list(inputs, "group");
    let mut dictionary: Vec<String> = group.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    dictionary.sort();
    dictionary.dedup();
    let place = |value: &Value| {
        let at = value.as_str().and_then(|name| dictionary.iter().position(|known| known == name));
        at.map_or(0, |at| at as u32 + 1)
    };
    let values_of_groups: Vec<u32> = group.iter().map(place).collect();
    let attributes = if inputs["group"].is_array() { vec!["group".to_owned()] } else { Vec::new() };
    // What combines two gaps is part of a measure's name here.
    let measure = case["library"].as_str().unwrap().rsplit('.').next().unwrap();
    let measures = inputs["agg"].as_str().map(|agg| format!("{measure}_{agg}"));
    let header = pb::ScoresHeader {
        labels: (0..classes).map(|class| class.to_string()).collect(),
        models: vec!["model".into()],
        settings: Some(AuditSettings {
            measures: measures.into_iter().collect(),
            statistics: Some(pb::AuditStatistics { resamples: Some(20), permutations: Some(20), ..Default::default() }),
            ..Default::default()
        }),
        attributes: attributes.clone(),
        ..Default::default()
    };
    let rows = pb::ScoresRows {
        labels,
        models: vec![pb::ModelScores { probabilities: values.map(number).collect(), ..Default::default() }],
        attributes: attributes
            .iter()
            .map(|_| pb::GroupValues {
                dictionary: dictionary.clone(),
                values: values_of_groups.clone(),
                ..Default::default()
            })
            .collect(),
        weights: list(inputs, "weights").iter().map(number).collect(),
        ..Default::default()
    };
    Some([Part::Header(header), Part::Rows(rows)])
}

/// Checks what a case that is taken says of what it lacks.
fn lacks(case: &Value, report: &AuditReport) {
    let id = &case["id"];
    let missing = list(&case["inputs"], "group").iter().filter(|value| value.is_null()).count() as u64;
    let unknown = report.groups.iter().find(|group| group.value.is_none()).map_or(0, |group| group.rows);
    assert_eq!(unknown, missing, "{id}");
    if case["server_rule"].as_str().unwrap().contains("undefined") {
        let auc = figure(report, "auc", FigureScope::Overall, None, 0);
        assert_eq!((auc.status(), auc.value), (pb::FigureStatus::Undefined, None), "{id}: {auc:?}");
        assert!(!auc.reason.is_empty(), "{id}");
    }
}

#[tokio::test]
async fn what_the_golden_file_refuses_is_refused_by_the_server() {
    let file = std::fs::read(folder().join("rejected_inputs.json")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let server = client::start().await;
    let client = &server.client;
    let (mut refusals, mut taken, mut unsayable) = (0, 0, 0);
    for case in file["cases"].as_array().unwrap() {
        let Some(parts) = parts(case) else {
            unsayable += 1;
            continue;
        };
        let id = case["id"].as_str().unwrap();
        let answer = send(client, parts.to_vec()).await;
        if !case["server_rule"].as_str().unwrap().starts_with("reject") {
            let report = answer.unwrap_or_else(|status| panic!("{id}: {status:?}"));
            sound(&report);
            lacks(case, &report);
            taken += 1;
            continue;
        }
        assert!(answer.is_err(), "{id} is taken");
        // A setting is refused by its field, rows by theirs.
        let reason = if case["inputs"]["agg"].is_string() { "INVALID_FIELD" } else { "SCORES_INVALID" };
        let status = refused(answer, Code::InvalidArgument, reason);
        assert!(!violations(&status).is_empty(), "{id}: {status:?}");
        refusals += 1;
    }
    assert!(refusals > taken && taken > 0 && unsayable < refusals, "{refusals} {taken} {unsayable}");
    println!("refused {refusals}, taken {taken}, not to be said in a message {unsayable}");
}
