//! What an audit refuses, at the call or when it begins, and what an odd but sound one says.

use tonic::Code;

use super::*;
use crate::client::{refused, violations};

/// Reason and message of a job that fails.
async fn failure(client: &Client, request: CreateAuditRequest) -> (String, String) {
    let job = create(client, request).await.unwrap();
    let (job, _) = finished(client, &job.id).await;
    assert_eq!(job.state(), pb::JobState::Failed, "{job:?}");
    let error = job.error.unwrap();
    (error.reason, error.message)
}

#[tokio::test]
async fn every_faulty_field_is_named() {
    let server = client::start().await;
    let mut wire = request("A", vec![AuditModel::default()], AuditSettings::default());
    wire.dataset = String::new();
    let settings = wire.settings.get_or_insert_default();
    settings.threshold = Some(f64::NAN);
    settings.measures = vec!["beauty".into()];
    settings.calibration_bins = Some(1);
    settings.statistics = Some(pb::AuditStatistics { level: Some(1.0), margin: f64::INFINITY, ..Default::default() });
    settings.attributes = vec![AuditAttribute::default()];
    settings.membership = Some(pb::AuditMembership {
        attacks: vec![pb::AuditAttack::LiraOnline.into()],
        min_k: vec![0.0],
        ..Default::default()
    });
    let status = refused(create(&server.client, wire).await, Code::InvalidArgument, "INVALID_FIELD");
    let expected = [
        "dataset",
        "models",
        "models[0].source",
        "name",
        "settings.attributes[0].source",
        "settings.calibration_bins",
        "settings.measures[0]",
        "settings.membership.attacks",
        "settings.membership.min_k",
        "settings.statistics.level",
        "settings.statistics.margin",
        "settings.task",
        "settings.threshold",
    ];
    let found = violations(&status);
    for field in expected {
        assert!(found.iter().any(|found| found == field), "{field} is not among {found:?}");
    }
}

/// What scoring would end in: figures that this task, or this data set, has not.
#[tokio::test]
async fn measures_that_an_audit_cannot_have_are_refused_before_it_is_a_job() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &rows(), declaration()).await;
    let head = Some(AuditTask { kind: Some(audit_task::Kind::Head(pb::HeadTask {})) });
    let words = settings().task;
    let asked = |task: &Option<AuditTask>, measures: &[&str]| {
        let measures = measures.iter().map(|name| (*name).to_owned()).collect();
        request("a", vec![base()], AuditSettings { task: task.clone(), measures, ..settings() })
    };
    let all = ["accuracy", "mia_loss_auc", "auc_equivalence", "accuracy_after_temperature", "male_rate", "f1_macro"];
    for (task, measures, places) in [
        (&words, &all[..], &[1, 2, 3, 4, 5][..]),
        (&head, &all[..5], &[1, 2, 3, 4]),
        // The labels of the data set are two.
        (&head, &["tpr", "f1_macro"], &[1]),
        (&words, &["membership_inference"], &[0]),
        (&words, &["selection_rate_common_odds_ratio"], &[0]),
    ] {
        let expected: Vec<String> = places.iter().map(|place| format!("settings.measures[{place}]")).collect();
        let status = refused(create(client, asked(task, measures)).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), expected, "{measures:?}");
        let estimate = pb::EstimateAuditRequest { audit: Some(asked(task, measures)) };
        let estimate = audits(client).estimate_audit(estimate).await;
        let status = refused(estimate, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), expected, "{measures:?}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_told_at_once() {
    let server = client::start().await;
    let client = &server.client;
    let result = create(client, request("a", vec![base()], settings())).await;
    refused(result, Code::NotFound, "DATASET_NOT_FOUND");
    upload(client, "rows", &rows(), declaration()).await;
    let result = create(client, request("a", vec![adapter("nobody")], settings())).await;
    refused(result, Code::NotFound, "ADAPTER_NOT_FOUND");
    refused(get(client, "nothing", pb::ReportFormat::Unspecified).await, Code::NotFound, "REPORT_NOT_FOUND");
    let request = pb::CompareAuditsRequest { before: "a".into(), after: "b".into() };
    refused(audits(client).compare_audits(request).await, Code::NotFound, "REPORT_NOT_FOUND");
}

#[tokio::test]
async fn a_head_that_is_not_there_and_columns_that_are_not_there_end_the_job() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &rows(), declaration()).await;
    let mut head = settings();
    head.task = Some(AuditTask { kind: Some(audit_task::Kind::Head(pb::HeadTask {})) });
    let (reason, message) = failure(client, request("head", vec![base()], head)).await;
    assert_eq!(reason, "AUDIT_SETTING", "{message}");
    let mut column = settings();
    column.cluster_column = "nowhere".into();
    let (reason, message) = failure(client, request("column", vec![base()], column)).await;
    assert!(reason == "AUDIT_SETTING" && message.contains("nowhere"), "{reason} {message}");
    let mut words = settings();
    let three = pb::LabelWordsTask { words: vec![" a".into(), " b".into(), " c".into()], ..Default::default() };
    words.task = Some(AuditTask { kind: Some(audit_task::Kind::LabelWords(three)) });
    let (reason, message) = failure(client, request("words", vec![base()], words)).await;
    assert_eq!(reason, "AUDIT_SETTING", "{message}");
    let mut weights = settings();
    weights.weight_column = "author".into();
    let (reason, message) = failure(client, request("weights", vec![base()], weights)).await;
    assert!(reason == "AUDIT_DATA" && message.contains("row 1"), "{reason} {message}");
}

#[tokio::test]
async fn small_groups_are_suppressed_and_still_counted() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &rows(), declaration()).await;
    let mut small = settings();
    small.statistics.get_or_insert_default().suppress_below = 20;
    let job = create(client, request("small", vec![base()], small)).await.unwrap();
    let report = reported(client, &job.id).await;
    sound(&report);
    let missing = report.groups.iter().find(|group| group.value.is_none()).unwrap();
    assert!(missing.suppressed && missing.rows == 12);
    let theirs = report.figures.iter().filter(|figure| figure.scope() == FigureScope::Group && figure.group.is_none());
    let mut count = 0;
    for figure in theirs {
        count += 1;
        assert!(figure.status() == pb::FigureStatus::Suppressed && figure.value.is_none(), "{figure:?}");
    }
    assert!(count > 0);
}

#[tokio::test]
async fn a_repeated_request_is_answered_once() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &rows(), declaration()).await;
    let mut wire = request("once", vec![base()], settings());
    wire.request_id = "the same".into();
    let first = create(client, wire.clone()).await.unwrap();
    assert_eq!(create(client, wire.clone()).await.unwrap().id, first.id);
    wire.name = "other".into();
    refused(create(client, wire).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    reported(client, &first.id).await;
}
