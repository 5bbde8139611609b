//! Membership of models that are elsewhere: members, signals of the model, of a reference and of shadows are uploaded.

use evenkeel::rpc::pb::audit_scores_request::Part;
use tonic::Code;

use super::scores::{parts, send};
use super::*;
use crate::client::{refused, violations};

const ROWS: usize = 80;

/// A number from −0.5 to 0.5, by a fixed rule.
fn noise(row: usize, stream: usize) -> f64 {
    ((row * 7919 + stream * 104_729 + row * row * 31 * (stream + 1)) % 1009) as f64 / 1009.0 - 0.5
}

/// Log-odds of the true answer: rows differ in how easy they are, and a row that was learnt is easier by 2.
fn signal(row: usize, stream: usize, learnt: bool) -> f64 {
    8.0 * noise(row, 1000) + noise(row, stream) + if learnt { 2.0 } else { 0.0 }
}

fn member(row: usize) -> bool {
    row.is_multiple_of(2)
}

/// Members and signals without labels or probabilities; no word of membership in the settings.
fn signals() -> Vec<Part> {
    let statistics =
        pb::AuditStatistics { resamples: Some(100), permutations: Some(100), min_group: Some(5), ..Default::default() };
    let header = pb::ScoresHeader {
        name: "signals".into(),
        models: vec!["target".into()],
        attributes: vec!["site".into()],
        settings: Some(AuditSettings { statistics: Some(statistics), ..Default::default() }),
        ..Default::default()
    };
    let rows = |from: usize, to: usize| {
        let scores = pb::ModelScores {
            members: (from..to).map(member).collect(),
            signals: (from..to).map(|row| signal(row, 0, member(row))).collect(),
            ..Default::default()
        };
        let sites = pb::GroupValues {
            dictionary: vec!["east".into(), "west".into()],
            values: (from..to).map(|row| 1 + u32::from(row % 5 < 2)).collect(),
            ..Default::default()
        };
        Part::Rows(pb::ScoresRows { models: vec![scores], attributes: vec![sites], ..Default::default() })
    };
    vec![Part::Header(header), rows(0, 50), rows(50, ROWS)]
}

/// Eight shadows, each trained on half of the rows.
fn shadows() -> Vec<Part> {
    let shadow = |shadow: usize| {
        let inside: Vec<bool> = (0..ROWS).map(|row| (row / 2 + shadow).is_multiple_of(2)).collect();
        Part::Shadows(pb::ShadowSignals {
            model: 0,
            signals: (0..ROWS).map(|row| signal(row, 1 + shadow, inside[row])).collect(),
            members: inside,
        })
    };
    (0..8).map(shadow).collect()
}

fn with_reference(mut parts: Vec<Part>) -> Vec<Part> {
    let mut row = 0;
    for part in &mut parts {
        let Part::Rows(rows) = part else { continue };
        let scores = &mut rows.models[0];
        scores.reference_signals = scores.members.iter().enumerate().map(|(i, _)| signal(row + i, 50, false)).collect();
        row += scores.members.len();
    }
    parts
}

fn asking(mut parts: Vec<Part>, attacks: &[pb::AuditAttack]) -> Vec<Part> {
    let Part::Header(header) = &mut parts[0] else { panic!() };
    let attacks = attacks.iter().map(|attack| i32::from(*attack)).collect();
    header.settings.as_mut().unwrap().membership = Some(pb::AuditMembership { attacks, ..Default::default() });
    parts
}

fn auc(report: &AuditReport, attack: &str) -> f64 {
    let auc = figure(report, &format!("mia_{attack}_auc"), FigureScope::Overall, None, 0);
    assert!(auc.interval.is_some(), "{auc:?}");
    auc.value.unwrap()
}

fn measured(report: &AuditReport) -> Vec<&str> {
    let own = |name: &str| name.strip_prefix("mia_").and_then(|name| name.strip_suffix("_auc")).is_some();
    let figures =
        report.figures.iter().filter(|f| f.scope() == FigureScope::Overall && f.versus.is_none() && own(&f.measure));
    let names = figures.map(|figure| figure.measure.as_str()).filter(|name| !name.contains("control"));
    names.collect()
}

#[tokio::test]
async fn signals_without_labels_are_audited_by_all_attacks_that_they_bear() {
    let server = client::start().await;
    let client = &server.client;
    let all = with_reference(signals()).into_iter().chain(shadows()).collect();
    let report = send(client, all).await.unwrap();
    sound(&report);
    let attacks =
        ["loss", "reference", "rmia", "lira_online", "lira_online_fixed", "lira_offline", "lira_offline_fixed"];
    assert_eq!(measured(&report), attacks.map(|attack| format!("mia_{attack}_auc")));
    let loss = auc(&report, "loss");
    for attack in &attacks[1..] {
        assert!(auc(&report, attack) > loss + 0.1, "{attack}: {} is not above {loss}", auc(&report, attack));
    }
    let asked = report.settings.as_ref().unwrap().membership.as_ref().unwrap();
    assert_eq!((asked.shadows, asked.attacks.len()), (Some(8), 7));
    assert!(!report.warnings.iter().any(|warning| warning.kind == "controls_failed"), "{:?}", report.warnings);
    let gap = figure(&report, "mia_lira_offline_fixed_tpr_at_fpr_0.1", FigureScope::Difference, None, 0);
    assert!(gap.value.is_some() && gap.interval.is_some(), "{gap:?}");
    let page = get(client, "signals", pb::ReportFormat::Html).await.unwrap().file;
    assert!(String::from_utf8(page).unwrap().contains("LiRA offline"));
    // Named like that, it is the same.
    let named: Vec<pb::AuditAttack> = asked.attacks().collect();
    let again = asking(with_reference(signals()), &named).into_iter().chain(shadows()).collect();
    assert_eq!(send(client, again).await.unwrap().figures, report.figures);
}

#[tokio::test]
async fn a_shadow_matrix_needs_no_number_of_shadows() {
    let server = client::start().await;
    let client = &server.client;
    let only = |parts: Vec<Part>| parts.into_iter().chain(shadows()).collect::<Vec<_>>();
    let report = send(client, only(asking(signals(), &[pb::AuditAttack::LiraOnlineFixed]))).await.unwrap();
    assert_eq!(measured(&report), ["mia_lira_online_fixed_auc"]);
    let report = send(client, only(asking(signals(), &[]))).await.unwrap();
    let attacks = ["loss", "rmia", "lira_online", "lira_online_fixed", "lira_offline", "lira_offline_fixed"];
    assert_eq!(measured(&report), attacks.map(|attack| format!("mia_{attack}_auc")));
    // With neither shadows nor a reference there is the loss; with a reference RMIA too, without shadows.
    assert_eq!(measured(&send(client, signals()).await.unwrap()), ["mia_loss_auc"]);
    let report = send(client, with_reference(signals())).await.unwrap();
    assert_eq!(measured(&report), ["mia_loss_auc", "mia_reference_auc", "mia_rmia_auc"]);
    assert!(auc(&report, "rmia") > auc(&report, "loss"));
}

#[tokio::test]
async fn members_beside_scores_are_audited_too() {
    let server = client::start().await;
    let mut parts = parts("both");
    for part in &mut parts[1..] {
        let Part::Rows(rows) = part else { panic!() };
        for model in &mut rows.models {
            model.members = rows.labels.iter().enumerate().map(|(row, _)| row % 2 == 0).collect();
        }
    }
    let report = send(&server.client, parts).await.unwrap();
    sound(&report);
    assert_eq!(measured(&report).len(), 2, "the loss of both models");
    assert!(report.figures.iter().any(|figure| figure.measure == "accuracy" && figure.value.is_some()));
}

#[tokio::test]
async fn signals_that_attacks_need_are_asked_for_by_name() {
    let server = client::start().await;
    let client = &server.client;
    let fields = |status: tonic::Status| violations(&status);
    for (attack, field) in [
        (pb::AuditAttack::LiraOnline, "shadows"),
        (pb::AuditAttack::LiraOffline, "shadows"),
        (pb::AuditAttack::Reference, "models[0].reference_signals"),
        (pb::AuditAttack::Rmia, "models[0].reference_signals"),
    ] {
        let sent = send(client, asking(signals(), &[attack])).await;
        assert_eq!(fields(refused(sent, Code::InvalidArgument, "SCORES_INVALID")), [field], "{attack:?}");
    }
    let sent = send(client, asking(signals(), &[pb::AuditAttack::MinK])).await;
    assert_eq!(fields(refused(sent, Code::InvalidArgument, "INVALID_FIELD")), ["settings.membership.attacks"]);
    // Membership is asked, and nobody is a member.
    let sent = send(client, asking(parts(""), &[])).await;
    assert_eq!(fields(refused(sent, Code::InvalidArgument, "SCORES_INVALID")), ["models[0].members"]);
    type Change = fn(&mut pb::ScoresRows);
    let cases: [(Change, &str); 6] = [
        (|rows| rows.models[0].signals.clear(), "models[0].signals"),
        (|rows| rows.models[0].signals[3] = f64::NAN, "models[0].signals[3]"),
        (|rows| rows.models[0].reference_signals[3] = f64::INFINITY, "models[0].reference_signals[3]"),
        (|rows| rows.models[0].reference_signals.truncate(49), "models[0].reference_signals"),
        (|rows| rows.models[0].probabilities = vec![0.5; 50], "models[0].probabilities"),
        (|rows| rows.labels = vec![0; 50], "labels"),
    ];
    for (change, field) in cases {
        let mut parts = with_reference(signals());
        let Part::Rows(rows) = &mut parts[1] else { panic!() };
        change(rows);
        let found = fields(refused(send(client, parts).await, Code::InvalidArgument, "SCORES_INVALID"));
        assert!(found.iter().any(|found| found == field), "{field}: {found:?}");
    }
    let mut nobody = signals();
    for part in &mut nobody[1..] {
        let Part::Rows(rows) = part else { panic!() };
        rows.models[0].members.clear();
    }
    let found = fields(refused(send(client, nobody).await, Code::InvalidArgument, "SCORES_INVALID"));
    assert!(found.contains(&"rows".to_owned()), "{found:?}");
}

#[tokio::test]
async fn measures_that_an_upload_cannot_have_are_refused_before_its_rows() {
    let server = client::start().await;
    let client = &server.client;
    let with = |measures: &[&str], mut parts: Vec<Part>| {
        let Part::Header(header) = &mut parts[0] else { panic!() };
        header.settings.as_mut().unwrap().measures = measures.iter().map(|name| (*name).to_owned()).collect();
        parts.truncate(1);
        parts
    };
    let asked =
        ["accuracy", "mia_loss_auc", "accuracy_equivalence", "brier_after_temperature", "some_rate", "f1_macro"];
    let status = refused(send(client, with(&asked, parts(""))).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), [1, 2, 3, 4, 5].map(|place| format!("settings.measures[{place}]")));
    let status = refused(send(client, with(&["accuracy"], signals())).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["settings.measures[0]"]);
}
