//! Scores that were made elsewhere: no model, no job, the same statistics.

use evenkeel::rpc::pb::audit_scores_request::Part;
use tonic::{Code, Status};

use super::*;
use crate::client::{refused, violations};

/// 40 rows of two models, two attributes (one of overlapping groups), by a fixed rule.
pub(super) fn parts(name: &str) -> Vec<Part> {
    let header = pb::ScoresHeader {
        name: name.into(),
        labels: vec!["no".into(), "yes".into()],
        models: vec!["old".into(), "new".into()],
        attributes: vec!["sex".into(), "faith".into()],
        settings: Some(AuditSettings {
            statistics: Some(pb::AuditStatistics {
                resamples: Some(200),
                permutations: Some(200),
                min_group: Some(5),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let rows = |from: usize, to: usize| {
        let range = from..to;
        let scores =
            |shift: usize| -> Vec<f64> { range.clone().map(|i| ((i * 37 + shift) % 101) as f64 / 101.0).collect() };
        Part::Rows(pb::ScoresRows {
            labels: range.clone().map(|i| u32::from(i % 3 == 0)).collect(),
            models: vec![
                pb::ModelScores { probabilities: scores(0), ..Default::default() },
                pb::ModelScores { probabilities: scores(50), ..Default::default() },
            ],
            attributes: vec![
                pb::GroupValues {
                    dictionary: vec!["f".into(), "m".into()],
                    values: range.clone().map(|i| [1, 2, 2, 1, 0][i % 5]).collect(),
                    ..Default::default()
                },
                pb::GroupValues {
                    dictionary: vec!["x".into(), "y".into()],
                    flags: range.clone().flat_map(|i| [i % 2 == 0, i % 4 < 3]).collect(),
                    ..Default::default()
                },
            ],
            weights: range.map(|i| 1.0 + (i % 2) as f64).collect(),
            ..Default::default()
        })
    };
    vec![Part::Header(header), rows(0, 25), rows(25, 40)]
}

pub(super) async fn send(client: &Client, parts: Vec<Part>) -> Result<AuditReport, Status> {
    let messages = parts.into_iter().map(|part| pb::AuditScoresRequest { part: Some(part) });
    Ok(audits(client).audit_scores(tokio_stream::iter(messages)).await?.into_inner())
}

#[tokio::test]
async fn uploaded_scores_make_the_same_report_however_they_are_cut() {
    let server = client::start().await;
    let client = &server.client;
    let report = send(client, parts("scores")).await.unwrap();
    sound(&report);
    assert!(report.base.is_none());
    assert_eq!(report.data.as_ref().unwrap().rows, 40);
    let names: Vec<&str> = report.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["old", "new"]);
    // By hand: weighted share of rows with a score of at least one half among those with sex f.
    let (mut selected, mut all) = (0.0, 0.0);
    for i in (0..40).filter(|i| [0, 3].contains(&(i % 5))) {
        let weight = 1.0 + (i % 2) as f64;
        all += weight;
        selected += if ((i * 37) % 101) as f64 / 101.0 >= 0.5 { weight } else { 0.0 };
    }
    let rate = report.figures.iter().find(|figure| {
        figure.measure == "selection_rate"
            && figure.attribute == "sex"
            && figure.scope() == FigureScope::Group
            && figure.group.as_deref() == Some("f")
            && figure.model == 0
            && figure.versus.is_none()
    });
    assert!((rate.unwrap().value.unwrap() - selected / all).abs() < 1e-12, "{rate:?} {selected} {all}");
    assert_eq!(get(client, "scores", pb::ReportFormat::Unspecified).await.unwrap().report.unwrap(), report);

    // A name is no part of a report, and neither is how rows were cut.
    let mut again = parts("");
    let (Part::Rows(second), Part::Rows(first)) = (again.pop().unwrap(), again.pop().unwrap()) else { panic!() };
    let mut whole = first;
    whole.labels.extend(second.labels);
    whole.weights.extend(second.weights);
    for (mine, theirs) in whole.models.iter_mut().zip(second.models) {
        mine.probabilities.extend(theirs.probabilities);
    }
    for (mine, theirs) in whole.attributes.iter_mut().zip(second.attributes) {
        mine.values.extend(theirs.values);
        mine.flags.extend(theirs.flags);
    }
    again.push(Part::Rows(whole));
    assert_eq!(send(client, again).await.unwrap(), report);
}

#[tokio::test]
async fn faulty_scores_are_refused_by_place() {
    let server = client::start().await;
    let client = &server.client;
    type Change = fn(&mut pb::ScoresRows);
    let cases: [(Change, &str); 9] = [
        (|rows| rows.models[1].probabilities[2] = f64::NAN, "models[1].probabilities[2]"),
        (|rows| rows.models[0].probabilities[0] = 1.5, "models[0].probabilities[0]"),
        (|rows| rows.labels[3] = 2, "labels[3]"),
        (|rows| rows.weights[1] = -1.0, "weights[1]"),
        (|rows| rows.weights[1] = f64::INFINITY, "weights[1]"),
        (|rows| rows.attributes[0].values[4] = 9, "attributes[0].values[4]"),
        (|rows| drop(rows.models.pop()), "models"),
        (|rows| rows.models[0].probabilities.truncate(24), "models[0].probabilities"),
        (|rows| rows.attributes[1].flags.truncate(49), "attributes[1].flags"),
    ];
    for (change, field) in cases {
        let mut parts = parts("faulty");
        let Part::Rows(rows) = &mut parts[1] else { panic!() };
        change(rows);
        let status = refused(send(client, parts).await, Code::InvalidArgument, "SCORES_INVALID");
        assert!(violations(&status).iter().any(|found| found == field), "{field}: {status:?}");
    }
    let status = refused(send(client, parts("x")[..1].to_vec()).await, Code::InvalidArgument, "SCORES_INVALID");
    assert_eq!(violations(&status), ["rows"]);
    refused(send(client, parts("x")[1..].to_vec()).await, Code::InvalidArgument, "INVALID_FIELD");
    let mut three = parts("three");
    let Part::Header(header) = &mut three[0] else { panic!() };
    header.labels = vec!["a".into(), "b".into(), "c".into()];
    for part in &mut three[1..] {
        let Part::Rows(rows) = part else { panic!() };
        for model in &mut rows.models {
            model.probabilities = model.probabilities.iter().flat_map(|_| [0.5, 0.25, 0.26]).collect();
        }
    }
    let status = refused(send(client, three).await, Code::InvalidArgument, "SCORES_INVALID");
    assert!(violations(&status)[0].starts_with("models[0].probabilities"), "{status:?}");
}

#[tokio::test]
async fn more_rows_than_allowed_are_refused() {
    let server = client::start_with(client::MODEL, |settings| settings.audits.max_uploaded_rows = 39).await;
    refused(send(&server.client, parts("many")).await, Code::ResourceExhausted, "TOO_MANY_ROWS");
}

#[tokio::test]
async fn the_model_of_the_nearest_utility_is_named_with_its_tolerance() {
    let server = client::start().await;
    let client = &server.client;
    let asked = |measure: &str, tolerance: f64| {
        let mut parts = parts("");
        let Part::Header(header) = &mut parts[0] else { panic!() };
        let settings = header.settings.as_mut().unwrap();
        settings.measures = vec!["selection_rate".into()];
        settings.utility_match =
            Some(pb::AuditUtilityMatch { measure: measure.into(), tolerance: Some(tolerance), ..Default::default() });
        parts
    };
    let report = send(client, asked("", 1.0)).await.unwrap();
    let accuracy = |model| figure(&report, "accuracy", FigureScope::Overall, None, model).value.unwrap();
    let matched = report.matched.as_ref().unwrap();
    assert_eq!((matched.model, matched.versus, matched.measure.as_str()), (1, 0, "accuracy"));
    assert!((matched.difference - (accuracy(1) - accuracy(0))).abs() < 1e-12, "{matched:?}");
    assert!(matched.within && matched.interval.is_some(), "{matched:?}");
    let warns = |report: &AuditReport| report.warnings.iter().any(|warning| warning.kind == "utility_unmatched");
    assert!(!warns(&report));
    let report = send(client, asked("accuracy", 1e-6)).await.unwrap();
    assert!(!report.matched.as_ref().unwrap().within && warns(&report));
    assert!(send(client, parts("")).await.unwrap().matched.is_none());
    let named = |reference: &str| {
        let mut parts = asked("", 1.0);
        let Part::Header(header) = &mut parts[0] else { panic!() };
        header.settings.as_mut().unwrap().utility_match.as_mut().unwrap().reference = reference.into();
        parts
    };
    let turned = send(client, named("new")).await.unwrap().matched.unwrap();
    assert_eq!((turned.model, turned.versus, turned.difference), (0, 1, -matched.difference));
    let status = refused(send(client, named("nobody")).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["settings.utility_match.reference"]);
    let status = refused(send(client, asked("nothing", 0.0)).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["settings.utility_match.measure", "settings.utility_match.tolerance"]);
    // A measure that there is, but not of this task.
    let status = refused(send(client, asked("bits_per_byte", 0.1)).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["settings.utility_match.measure"]);
}

/// 50,000 rows of two models and one attribute, with so many resamples and permutations.
fn many(draws: u32) -> Vec<Part> {
    let mut parts = parts("");
    parts.truncate(2);
    let [Part::Header(header), Part::Rows(rows)] = &mut parts[..] else { panic!() };
    header.attributes.truncate(1);
    let statistics = header.settings.as_mut().unwrap().statistics.as_mut().unwrap();
    (statistics.resamples, statistics.permutations) = (Some(draws), Some(draws));
    header.settings.as_mut().unwrap().measures = vec!["accuracy".into()];
    rows.labels = rows.labels.repeat(2000);
    rows.weights = rows.weights.repeat(2000);
    rows.attributes.truncate(1);
    rows.attributes[0].values = rows.attributes[0].values.repeat(2000);
    for model in &mut rows.models {
        model.probabilities = model.probabilities.repeat(2000);
    }
    parts
}

#[tokio::test]
async fn what_a_client_that_has_left_asked_for_is_not_computed() {
    // One of them fits into memory, two do not.
    let server = client::start_with(client::MODEL, |settings| settings.audits.max_upload_bytes = 48 << 20).await;
    let client = server.client.clone();
    let endless = tokio::spawn(async move {
        loop {
            // Until its turn has come: the others hold the memory for a moment.
            match send(&client, many(100_000)).await {
                Err(status) if status.code() == Code::ResourceExhausted => {}
                other => return other,
            }
        }
    });
    let holds = async || match send(&server.client, many(0)).await {
        Ok(_) => None,
        Err(status) => Some(refused(Err::<(), _>(status), Code::ResourceExhausted, "QUEUE_FULL")),
    };
    client::eventually("its memory to be taken", holds).await;
    assert!(!endless.is_finished(), "{:?}", endless.await);
    endless.abort();
    let free = async || send(&server.client, many(0)).await.ok();
    sound(&client::eventually("its memory to be given back", free).await);
}

#[tokio::test]
async fn uploads_that_take_too_much_memory_are_refused_before_it_is_taken() {
    let server = client::start_with(client::MODEL, |settings| settings.audits.max_upload_bytes = 4 << 20).await;
    let client = &server.client;
    let changed = |change: fn(&mut pb::ScoresHeader, &mut pb::ScoresRows)| {
        let mut parts = parts("");
        parts.truncate(2);
        let [Part::Header(header), Part::Rows(rows)] = &mut parts[..] else { panic!() };
        change(header, rows);
        parts
    };
    sound(&send(client, changed(|_, _| ())).await.unwrap());
    let large: [fn(&mut pb::ScoresHeader, &mut pb::ScoresRows); 4] = [
        // A text counts for each row that has it.
        |_, rows| rows.attributes[0].dictionary[0] = "f".repeat(1 << 20),
        |header, rows| {
            header.models = (0..64).map(|i| format!("m{i}")).collect();
            rows.models = vec![rows.models[0].clone(); 64];
            rows.models[0].probabilities = vec![0.5; 300_000];
        },
        // Everybody is in all groups of both attributes: 64 × 64 lists of all rows.
        |header, rows| {
            header.settings.as_mut().unwrap().intersections =
                vec![pb::AuditIntersection { attributes: vec!["sex".into(), "faith".into()] }];
            let names: Vec<String> = (0..64).map(|i| format!("g{i}")).collect();
            for attribute in &mut rows.attributes {
                *attribute = pb::GroupValues {
                    dictionary: names.clone(),
                    flags: vec![true; 25 * 64 * 20],
                    ..Default::default()
                };
            }
            rows.labels = rows.labels.repeat(20);
            rows.weights = rows.weights.repeat(20);
            rows.models.iter_mut().for_each(|model| model.probabilities = model.probabilities.repeat(20));
        },
        // What statistics take counts too.
        |_, rows| {
            rows.labels = rows.labels.repeat(400);
            rows.weights = rows.weights.repeat(400);
            rows.models.iter_mut().for_each(|model| model.probabilities = model.probabilities.repeat(400));
            rows.attributes[0].values = rows.attributes[0].values.repeat(400);
            rows.attributes[1].flags = rows.attributes[1].flags.repeat(400);
        },
    ];
    for (i, change) in large.into_iter().enumerate() {
        let status = refused(send(client, changed(change)).await, Code::ResourceExhausted, "UPLOAD_TOO_LARGE");
        assert!(status.message().contains("4194304 bytes"), "{i}: {status:?}");
    }
    // Nothing of it stays taken.
    sound(&send(client, changed(|_, _| ())).await.unwrap());
}

/// Degenerate tables have figures with reasons, never numbers that are none.
#[tokio::test]
async fn one_group_one_class_and_one_row_are_defined_results() {
    let server = client::start().await;
    let client = &server.client;
    for change in [
        (|rows: &mut pb::ScoresRows| rows.labels.fill(0)) as fn(&mut pb::ScoresRows),
        |rows| rows.attributes[0].values.fill(1),
        |rows| rows.attributes[0].values.fill(0),
        |rows| rows.models[0].probabilities.fill(0.25),
        |rows| rows.attributes[1].flags.fill(false),
        |rows| rows.attributes[1].flags.fill(true),
    ] {
        let mut parts = parts("");
        for part in &mut parts[1..] {
            let Part::Rows(rows) = part else { panic!() };
            change(rows);
        }
        sound(&send(client, parts).await.unwrap());
    }
}

#[tokio::test]
async fn the_convention_of_fairlearn_gives_what_fairlearn_gives() {
    let file = std::fs::read(crate::golden::audit::folder().join("edge_cases.json")).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let server = client::start().await;
    let client = &server.client;
    let (mut compared, mut apart) = (0, 0);
    for case in file["cases"].as_array().unwrap() {
        let (inputs, expected) = (&case["inputs"], &case["expected"]["fairlearn"]);
        let (Some(groups), Some(expected)) = (inputs["group"].as_array(), expected.as_object()) else { continue };
        let list = |name: &str| inputs[name].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64);
        let of = |name: &str| -> u32 { u32::from(name == "b") + 1 };
        let parts = |convention: pb::AuditConvention| {
            let settings = AuditSettings {
                convention: convention.into(),
                measures: expected.keys().cloned().chain(["tpr".to_owned()]).collect(),
                statistics: Some(pb::AuditStatistics {
                    resamples: Some(0),
                    permutations: Some(0),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let header = pb::ScoresHeader {
                labels: vec!["0".into(), "1".into()],
                models: vec!["model".into()],
                attributes: vec!["group".into()],
                settings: Some(settings),
                ..Default::default()
            };
            let rows = pb::ScoresRows {
                labels: list("y_true").map(|label| label as u32).collect(),
                models: vec![pb::ModelScores { probabilities: list("y_pred").collect(), ..Default::default() }],
                attributes: vec![pb::GroupValues {
                    dictionary: vec!["a".into(), "b".into()],
                    values: groups.iter().map(|group| of(group.as_str().unwrap())).collect(),
                    ..Default::default()
                }],
                weights: list("weights").collect(),
                ..Default::default()
            };
            vec![Part::Header(header), Part::Rows(rows)]
        };
        let by_fairlearn = send(client, parts(pb::AuditConvention::Fairlearn)).await.unwrap();
        let by_rule = send(client, parts(pb::AuditConvention::Defined)).await.unwrap();
        sound(&by_fairlearn);
        assert!(by_fairlearn.warnings.iter().any(|warning| warning.kind == "convention_fairlearn"));
        for (name, value) in expected {
            // fairlearn refuses some, and has no number for others.
            let Some(value) = value["value"].as_f64() else { continue };
            let of = |report| figure(report, name, FigureScope::Attribute, None, 0).value;
            let got = of(&by_fairlearn).unwrap_or_else(|| panic!("{}: no {name}", case["id"]));
            assert!((got - value).abs() < 1e-9, "{}: {name} is {got}, expected {value}", case["id"]);
            compared += 1;
            apart += u32::from(of(&by_rule) != Some(got));
        }
    }
    assert!(compared > 20 && apart > 0 && apart < compared, "{compared} compared, {apart} apart from the rule");
}
