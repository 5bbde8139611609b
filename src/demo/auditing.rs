//! The demo's audit: base model and the freshly trained adapter on the reviews that were not trained on, by dialect.
//!
//! Knows the server through gRPC only. The reviews are synthetic: what is shown is how an audit is asked for and read.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tonic::transport::Channel;

use super::{short, title};
use crate::rpc::pb::audit_service_client::AuditServiceClient;
use crate::rpc::pb::job_service_client::JobServiceClient;
use crate::rpc::pb::{
    AuditAttribute, AuditFigure, AuditModel, AuditReport, AuditSettings, AuditStatistics, AuditTask, BaseSource,
    CreateAuditRequest, DatasetSplit, FigureScope, FigureStatus, GetAuditReportRequest, Job, JobState, LabelWordsTask,
    ReportFormat, WatchJobRequest, audit_attribute, audit_model, audit_task, watch_job_response,
};

const NAME: &str = "reviews";
/// Where the page is left for the reader.
const PAGE: &str = "evenkeel-demo-report.html";

/// Audits, prints the table, and leaves the page.
pub(super) async fn run(channel: &Channel) -> anyhow::Result<()> {
    title("7. An audit: base model and adapter, by group, on the same rows");
    let mut audits = AuditServiceClient::new(channel.clone());
    let began = Instant::now();
    let job = audits.create_audit(request()).await?.into_inner();
    let job = watch(channel, job).await?;
    let id = job.result.context("the job made nothing")?.report;
    let request = GetAuditReportRequest { name: NAME.into(), format: ReportFormat::Html.into() };
    let answer = audits.get_audit_report(request).await?.into_inner();
    let report = answer.report.context("there is no report")?;
    ensure!(report.id == id, "the newest report is another one");
    println!(
        "   {} rows, {} figures, {} tests, {:.1} s; report {}",
        report.data.as_ref().map_or(0, |data| data.rows),
        report.figures.len(),
        report.tests,
        began.elapsed().as_secs_f64(),
        short(&report.id)
    );
    table(&report)?;
    for warning in &report.warnings {
        println!("   note ({}): {}", warning.kind, warning.message);
    }
    let page: PathBuf = std::env::temp_dir().join(PAGE);
    tokio::fs::write(&page, &answer.file).await?;
    println!("   the whole report, with plots: {}", page.display());
    Ok(())
}

fn request() -> CreateAuditRequest {
    let words = LabelWordsTask { words: vec![" negative".into(), " positive".into()], ..LabelWordsTask::default() };
    let column = |name: &str| AuditAttribute {
        name: String::new(),
        source: Some(audit_attribute::Source::ValuesColumn(name.into())),
    };
    CreateAuditRequest {
        name: NAME.into(),
        dataset: "reviews".into(),
        models: vec![
            AuditModel { source: Some(audit_model::Source::Base(BaseSource {})), ..AuditModel::default() },
            AuditModel { source: Some(audit_model::Source::Adapter("reviewer".into())), ..AuditModel::default() },
        ],
        settings: Some(AuditSettings {
            task: Some(AuditTask { kind: Some(audit_task::Kind::LabelWords(words)) }),
            attributes: vec![column("dialect"), column("topic")],
            splits: vec![DatasetSplit::Validation.into()],
            statistics: Some(AuditStatistics { min_group: Some(10), ..AuditStatistics::default() }),
            ..AuditSettings::default()
        }),
        ..CreateAuditRequest::default()
    }
}

async fn watch(channel: &Channel, job: Job) -> anyhow::Result<Job> {
    let bar = ProgressBar::new(1);
    bar.set_style(ProgressStyle::with_template("   {bar:30} {msg}")?);
    let request = WatchJobRequest { id: job.id, token: String::new() };
    let mut events = JobServiceClient::new(channel.clone()).watch_job(request).await?.into_inner();
    let mut ended = None;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(watch_job_response::Event::AuditProgress(progress)) => {
                bar.set_length(progress.total.max(1));
                bar.set_position(progress.done);
                bar.set_message(format!("{} {}", progress.phase, progress.model));
            }
            Some(watch_job_response::Event::Job(job)) => ended = Some(*job),
            Some(watch_job_response::Event::Progress(_) | watch_job_response::Event::Checkpoint(_)) | None => {}
        }
    }
    bar.finish_and_clear();
    let job = ended.context("the job told nothing")?;
    let failure = job.error.clone().unwrap_or_default();
    ensure!(job.state() == JobState::Succeeded, "the audit did not succeed: {} {}", failure.reason, failure.message);
    Ok(job)
}

/// Prints the accuracy of both models by dialect, and what the tests say.
fn table(report: &AuditReport) -> anyhow::Result<()> {
    let figures = |scope: FigureScope, model: u32, versus: Option<u32>| {
        report.figures.iter().filter(move |figure| {
            figure.measure == "accuracy"
                && figure.scope() == scope
                && figure.model == model
                && figure.versus == versus
                && figure.class.is_empty()
                && figure.control.is_none()
                && ["", "dialect"].contains(&figure.attribute.as_str())
        })
    };
    println!("   {:<26} {:<30} adapter", "accuracy", "base model");
    for scope in [FigureScope::Overall, FigureScope::Group, FigureScope::Difference] {
        let pairs = figures(scope, 0, None).zip(figures(scope, 1, None));
        for (base, adapter) in pairs {
            let row = if scope == FigureScope::Overall {
                "all rows".to_owned()
            } else if scope == FigureScope::Group {
                format!("{} {}", base.attribute, base.group.as_deref().unwrap_or("missing"))
            } else {
                format!("gap over {}", base.attribute)
            };
            println!("   {row:<26} {:<30} {}", written(base), written(adapter));
        }
    }
    let change = figures(FigureScope::Overall, 1, Some(0)).next().context("the report compares no models")?;
    println!("   adapter minus base model, paired: {}", written(change));
    Ok(())
}

/// A value with its interval and p-value, or why there is none.
fn written(figure: &AuditFigure) -> String {
    let Some(value) = figure.value else { return format!("no value: {}", figure.reason) };
    let interval = figure.interval.as_ref().map(|i| format!(" [{:.2}, {:.2}]", i.low, i.high)).unwrap_or_default();
    let test =
        figure.test.as_ref().map(|test| format!(" p {:.2}", test.adjusted.unwrap_or(test.p))).unwrap_or_default();
    let few = if figure.status() == FigureStatus::LowSupport { " few rows" } else { "" };
    format!("{value:.2}{interval}{test}{few}")
}
