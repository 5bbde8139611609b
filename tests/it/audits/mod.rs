//! Audits on the real server: rows in, a job watched to its end, a report that holds together, out in every format.
//!
//! Uploaded scores are in `scores`, uploaded signals of membership in `signals`, policies and gates in `gates`, trained models, sweeps and shadows in `trained`, sweeps
//! over checkpoints in `checkpoints`, kills in `kills`, refusals in `refusals` and `rejected`. Models are the small golden ones: what they prefer means nothing.

mod checkpoints;
mod gates;
mod kills;
mod refusals;
mod rejected;
mod scores;
mod signals;
mod trained;

use evenkeel::rpc::pb::audit_service_client::AuditServiceClient;
use evenkeel::rpc::pb::watch_job_response::Event;
use evenkeel::rpc::pb::{
    self, AuditAttribute, AuditFigure, AuditModel, AuditReport, AuditSettings, AuditTask, CreateAuditRequest,
    DatasetDeclaration, FigureScope, audit_attribute, audit_model, audit_task,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::Status;
use tonic::transport::Channel;

use super::client::{self, Client, sha256};
use super::{datasets, fine_tuning};

pub(crate) fn audits(client: &Client) -> AuditServiceClient<Channel> {
    AuditServiceClient::new(client.channel.clone()).max_decoding_message_size(64 << 20)
}

/// 96 rows with two labels, two groups, and one row in eight without a group.
fn rows() -> String {
    let subjects = ["The sky", "The grass", "Snow", "Coal", "The sea", "Ash"];
    let mut rows = String::new();
    for i in 0..96_usize {
        let group = [Some("north"), Some("south"), Some("north"), None][if i % 8 == 3 { 3 } else { i % 3 }];
        let row = json!({
            "prompt": format!("{} number {i} is", subjects[i % 6]),
            "completion": if i % 5 < 2 { " blue" } else { " red" },
            "label": if i % 5 < 2 { "blue" } else { "red" },
            "region": group, "author": format!("a{}", i / 2), "weight": 1 + i % 3,
        });
        rows.push_str(&row.to_string());
        rows.push('\n');
    }
    rows
}

fn declaration() -> DatasetDeclaration {
    DatasetDeclaration {
        format: pb::DatasetFormat::Jsonl.into(),
        prompt_column: "prompt".into(),
        completion_column: "completion".into(),
        label_column: "label".into(),
        label_names: vec!["blue".into(), "red".into()],
        group_columns: vec!["region".into(), "author".into(), "weight".into()],
        ..Default::default()
    }
}

pub(crate) async fn upload(client: &Client, name: &str, file: &str, declaration: DatasetDeclaration) -> pb::Dataset {
    let header = pb::UploadDatasetHeader {
        name: name.into(),
        size: file.len() as u64,
        sha256: sha256(file.as_bytes()),
        declaration: Some(declaration),
        ..Default::default()
    };
    datasets::send(client, datasets::parts(header, file.as_bytes(), 1000)).await.unwrap()
}

fn base() -> AuditModel {
    AuditModel { source: Some(audit_model::Source::Base(pb::BaseSource {})), ..Default::default() }
}

fn adapter(name: &str) -> AuditModel {
    AuditModel { source: Some(audit_model::Source::Adapter(name.into())), ..Default::default() }
}

fn by_region() -> AuditAttribute {
    let source = audit_attribute::Source::ValuesColumn("region".into());
    AuditAttribute { source: Some(source), ..Default::default() }
}

/// Settings of an audit by label words, small enough for a test.
fn settings() -> AuditSettings {
    let words = pb::LabelWordsTask { words: vec![" blue".into(), " red".into()], ..Default::default() };
    AuditSettings {
        task: Some(AuditTask { kind: Some(audit_task::Kind::LabelWords(words)) }),
        attributes: vec![by_region()],
        cluster_column: "author".into(),
        statistics: Some(pb::AuditStatistics {
            resamples: Some(200),
            permutations: Some(200),
            min_group: Some(10),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn request(name: &str, models: Vec<AuditModel>, settings: AuditSettings) -> CreateAuditRequest {
    let (name, dataset) = (name.into(), "rows".into());
    CreateAuditRequest { name, dataset, models, settings: Some(settings), ..Default::default() }
}

pub(crate) async fn create(client: &Client, request: CreateAuditRequest) -> Result<pb::Job, Status> {
    Ok(audits(client).create_audit(request).await?.into_inner())
}

/// The job when it has ended, and all of its events.
pub(crate) async fn finished(client: &Client, id: &str) -> (pb::Job, Vec<pb::WatchJobResponse>) {
    let events = fine_tuning::watched(client, id).await;
    (fine_tuning::job(client, id).await, events)
}

/// The report of a job that succeeds.
pub(crate) async fn reported(client: &Client, id: &str) -> AuditReport {
    let (job, _) = finished(client, id).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    let id = job.result.unwrap().report;
    assert!(!id.is_empty());
    get(client, &id, pb::ReportFormat::Unspecified).await.unwrap().report.unwrap()
}

pub(crate) async fn get(
    client: &Client,
    name: &str,
    format: pb::ReportFormat,
) -> Result<pb::GetAuditReportResponse, Status> {
    let request = pb::GetAuditReportRequest { name: name.into(), format: format.into() };
    Ok(audits(client).get_audit_report(request).await?.into_inner())
}

/// The one figure of a measure, scope, group and model that compares nothing.
pub(crate) fn figure<'a>(
    report: &'a AuditReport,
    measure: &str,
    scope: FigureScope,
    group: Option<&str>,
    model: u32,
) -> &'a AuditFigure {
    let mut found = report.figures.iter().filter(|figure| {
        figure.measure == measure
            && figure.scope() == scope
            && figure.group.as_deref() == group
            && figure.model == model
            && figure.versus.is_none()
            && figure.class.is_empty()
            && figure.control.is_none()
    });
    let first = found.next().unwrap_or_else(|| panic!("no figure {measure} {scope:?} {group:?} of {model}"));
    assert!(found.next().is_none(), "two figures {measure} {scope:?} {group:?} of {model}");
    first
}

/// What every report has to be.
pub(crate) fn sound(report: &AuditReport) {
    assert!(!report.figures.is_empty());
    for figure in &report.figures {
        assert!((figure.model as usize) < report.models.len());
        let value = figure.value;
        assert!(value.is_none_or(f64::is_finite), "{figure:?}");
        let needs_value = matches!(figure.status(), pb::FigureStatus::Ok | pb::FigureStatus::LowSupport);
        assert_eq!(value.is_some(), needs_value, "{figure:?}");
        assert_eq!(figure.reason.is_empty(), figure.status() == pb::FigureStatus::Ok, "{figure:?}");
        if let Some(interval) = &figure.interval {
            assert!(
                interval.low.is_finite() && interval.high.is_finite() && interval.low <= interval.high,
                "{figure:?}"
            );
        }
        if let Some(test) = &figure.test {
            assert!((0.0..=1.0).contains(&test.p), "{figure:?}");
            assert!(test.adjusted.is_none_or(|p| (test.p..=1.0).contains(&p)), "{figure:?}");
        }
    }
}

#[tokio::test]
async fn base_and_adapter_are_audited_on_the_same_rows() {
    let server = client::start().await;
    let client = &server.client;
    let dataset = upload(client, "rows", &rows(), declaration()).await;
    let published = client.publish("poet", "lora_qv").await;
    let job = create(client, request("first", vec![base(), adapter("poet")], settings())).await.unwrap();
    assert_eq!(job.kind(), pb::JobKind::Audit);
    let (job, events) = finished(client, &job.id).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    assert!(events.iter().any(|event| matches!(event.event, Some(Event::AuditProgress(_)))));
    let id = job.result.unwrap().report;
    let answer = get(client, "first", pb::ReportFormat::Json).await.unwrap();
    assert_eq!(answer.summary.as_ref().unwrap().id, id);
    assert_eq!(hex::encode(Sha256::digest(&answer.file)), id, "the id is the digest of the JSON");
    let report = answer.report.unwrap();
    sound(&report);

    let names: Vec<&str> = report.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["base", "poet"]);
    assert_eq!(report.models[1].generation, published.generations[0].id);
    let data = report.data.as_ref().unwrap();
    assert_eq!((data.rows, data.clusters, data.dataset.as_str()), (96, 48, dataset.id.as_str()));
    let missing = report.groups.iter().find(|group| group.value.is_none()).unwrap();
    assert_eq!((missing.attribute.as_str(), missing.rows), ("region", 12));

    // What the report says equals what Score says of the same rows.
    for (model, adapter) in [(0, ""), (1, "poet")] {
        let (mut right, mut north) = (0, (0, 0));
        for line in rows().lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let candidate =
                |text: &str| pb::Candidate { continuation: Some(pb::candidate::Continuation::Text(text.into())) };
            let request = pb::ScoreRequest {
                adapter: adapter.into(),
                prompt: Some(row["prompt"].as_str().unwrap().into()),
                candidates: vec![candidate(" blue"), candidate(" red")],
                ..Default::default()
            };
            let scores = client.inference.clone().score(request).await.unwrap().into_inner().candidates;
            let blue = scores[0].sum_logprob > scores[1].sum_logprob;
            let hit = usize::from(blue == (row["label"] == "blue"));
            right += hit;
            if row["region"] == "north" {
                north = (north.0 + hit, north.1 + 1);
            }
        }
        let overall = figure(&report, "accuracy", FigureScope::Overall, None, model);
        assert!((overall.value.unwrap() - right as f64 / 96.0).abs() < 1e-12, "{overall:?} {right}");
        let group = figure(&report, "accuracy", FigureScope::Group, Some("north"), model);
        assert_eq!(group.n, north.1);
        assert!((group.value.unwrap() - north.0 as f64 / north.1 as f64).abs() < 1e-12, "{group:?} {north:?}");
    }
    let paired = report.figures.iter().find(|figure| figure.versus == Some(0) && figure.measure == "accuracy").unwrap();
    assert_eq!(paired.model, 1);
}

#[tokio::test]
async fn the_same_audit_has_the_same_bytes_beside_requests() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &rows(), declaration()).await;
    client.publish("poet", "lora_qv").await;
    let models = || vec![base(), adapter("poet")];
    let alone = create(client, request("alone", models(), settings())).await.unwrap();
    let alone = reported(client, &alone.id).await;
    let tasks = client::busy(client, "poet").await;
    let beside = create(client, request("beside", models(), settings())).await.unwrap();
    let beside = reported(client, &beside.id).await;
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(alone.id, beside.id);
    assert_eq!(alone, beside);
    let mut other = settings();
    other.seed = Some(43);
    let other = create(client, request("other", models(), other)).await.unwrap();
    assert_ne!(reported(client, &other.id).await.id, alone.id, "the seed is part of the report");
}

#[tokio::test]
async fn a_report_comes_in_every_format_and_over_http() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &rows(), declaration()).await;
    let job = create(client, request("formats", vec![base()], settings())).await.unwrap();
    let report = reported(client, &job.id).await;
    for (format, media, begins) in [
        (pb::ReportFormat::Json, "application/json", "{"),
        (pb::ReportFormat::Html, "text/html; charset=utf-8", "<!DOCTYPE html>"),
        (pb::ReportFormat::Markdown, "text/markdown; charset=utf-8", "# "),
        (pb::ReportFormat::Csv, "text/csv; charset=utf-8", ""),
    ] {
        let answer = get(client, &report.id, format).await.unwrap();
        let text = String::from_utf8(answer.file).unwrap();
        assert_eq!(answer.media_type, media);
        assert!(text.to_lowercase().starts_with(&begins.to_lowercase()), "{media}: {}", &text[..text.len().min(80)]);
        assert!(text.contains("accuracy"), "{media}");
    }
    let (status, page) = client.get("/reports/formats").await;
    assert_eq!(status, 200);
    assert!(page.contains("north") && !page.contains("http://") && !page.contains("https://www.w3.org/1999/xlink"));
    assert_eq!(client.get("/reports/nothing").await.0, 404);
    let scrape = client.metrics().await;
    let gap = figure(&report, "accuracy", FigureScope::Difference, None, 0);
    let series = [r#"measure="accuracy""#, r#"attribute="region""#];
    assert!((scrape.sum("evenkeel_audit_gap", &series) - gap.value.unwrap()).abs() < 1e-12);
}

#[tokio::test]
async fn reports_are_listed_compared_and_survive_a_restart() {
    let mut server = client::start().await;
    upload(&server.client, "rows", &rows(), declaration()).await;
    server.client.publish("poet", "lora_qv").await;
    let mut ids = Vec::new();
    for (name, models) in [("a", vec![base()]), ("b", vec![base(), adapter("poet")]), ("c", vec![adapter("poet")])] {
        let job = create(&server.client, request(name, models, settings())).await.unwrap();
        ids.push(reported(&server.client, &job.id).await.id);
    }
    server.process.kill();
    server.process = client::spawn(&server.settings).await;
    server.client = Client::connect(&server.process).await;
    let client = &server.client;
    let list = async |adapter: &str, token: String| {
        let request = pb::ListAuditReportsRequest {
            page_size: 1,
            adapter: adapter.into(),
            page_token: token,
            ..Default::default()
        };
        audits(client).list_audit_reports(request).await.unwrap().into_inner()
    };
    let first = list("poet", String::new()).await;
    let second = list("poet", first.next_page_token).await;
    let names: Vec<&str> = first.reports.iter().chain(&second.reports).map(|report| report.name.as_str()).collect();
    assert_eq!(names, ["c", "b"], "newest first, those on the adapter only");
    assert!(second.next_page_token.is_empty());

    let request = pb::CompareAuditsRequest { before: "b".into(), after: ids[1].clone() };
    let same = audits(client).compare_audits(request).await.unwrap().into_inner();
    assert!(same.comparable && same.differences.is_empty(), "{same:?}");
    assert!(!same.changes.is_empty() && same.changes.iter().all(|change| change.change.is_none_or(|c| c == 0.0)));
    let request = pb::CompareAuditsRequest { before: "a".into(), after: "b".into() };
    let other = audits(client).compare_audits(request).await.unwrap().into_inner();
    assert!(other.changes.iter().any(|change| change.before.is_none() && change.model == "poet"));
    let scrape = client.metrics().await;
    assert!(
        scrape.sum("evenkeel_audit_timestamp_seconds", &[r#"adapter="poet""#]) > 0.0,
        "shown again after a restart"
    );
}
