//! The demo's fine-tuning: a bundled set of synthetic reviews, a LoRA job with a progress bar, the answers side by side.
//!
//! Knows the server through gRPC only. The reviews are synthetic and say so (`reviews/README.md`): what is shown is
//! that training works and is live at once, nothing about real text.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use tonic::transport::Channel;

use super::{line, short, title};
use crate::rpc::pb::dataset_service_client::DatasetServiceClient;
use crate::rpc::pb::fine_tuning_service_client::FineTuningServiceClient;
use crate::rpc::pb::inference_service_client::InferenceServiceClient;
use crate::rpc::pb::job_service_client::JobServiceClient;
use crate::rpc::pb::{
    Candidate, CreateFineTuningJobRequest, DatasetChunk, DatasetDeclaration, DatasetFormat, GenerateRequest, Job,
    JobState, LoraMethod, SamplingParams, ScoreRequest, TrainingProgress, TrainingSettings, TrainingTask,
    UploadDatasetHeader, UploadDatasetRequest, WatchJobRequest, candidate, dataset_declaration, training_settings,
    upload_dataset_request, watch_job_response,
};

const REVIEWS: &[u8] = include_bytes!("reviews/reviews.jsonl");
/// Optimiser steps of 8 reviews: one and a half passes.
const STEPS: u64 = 45;
/// Validation rows whose labels are compared.
const COMPARED: usize = 30;
/// Rows whose answers are shown.
const SHOWN: usize = 4;
const LABELS: [&str; 2] = [" positive", " negative"];

/// A row of the bundled set.
#[derive(Debug, Deserialize)]
struct Review {
    prompt: String,
    completion: String,
    split: String,
}

/// The services that training needs.
pub(super) struct Training {
    datasets: DatasetServiceClient<Channel>,
    tuning: FineTuningServiceClient<Channel>,
    jobs: JobServiceClient<Channel>,
    inference: InferenceServiceClient<Channel>,
}

impl Training {
    pub(super) fn new(channel: &Channel) -> Self {
        Self {
            datasets: DatasetServiceClient::new(channel.clone()),
            tuning: FineTuningServiceClient::new(channel.clone()),
            jobs: JobServiceClient::new(channel.clone()),
            inference: InferenceServiceClient::new(channel.clone()),
        }
    }

    /// Uploads, trains, and compares base and adapter.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        title("6. Fine-tuning on the server");
        println!(
            "   The data: 300 short reviews, synthetic: a script wrote them from lists of phrases (src/demo/reviews)."
        );
        let rows = String::from_utf8_lossy(REVIEWS);
        let rows = rows.lines().map(serde_json::from_str).collect::<Result<Vec<Review>, _>>()?;
        let validation: Vec<&Review> = rows.iter().filter(|row| row.split == "validation").collect();
        ensure!(validation.len() >= COMPARED, "the bundled set has {} validation rows", validation.len());
        // Spread over the set, which is sorted by nothing.
        let compared: Vec<&Review> = validation.into_iter().step_by(2).take(COMPARED).collect();

        self.upload().await?;
        let before = self.right("", &compared).await?;
        println!("   before: the base model prefers the right label in {before} of {} validation rows", compared.len());
        let adapter = self.train().await?;
        let after = self.right("sentiment", &compared).await?;
        println!("   after:  {after} of {}", compared.len());
        ensure!(after > before, "the adapter is no better than the base model");

        println!("   the first words of both, by the alias `sentiment` that the job has set:");
        for review in compared.iter().take(SHOWN) {
            let text = review.prompt.lines().next().unwrap_or_default().trim_start_matches("Review: ");
            let (base, tuned) = (self.answer("", review).await?, self.answer("sentiment", review).await?);
            println!("   - {}", line(text));
            println!(
                "     base: {:<24} adapter: {:<12} label: {}",
                line(&base),
                line(&tuned),
                review.completion.trim()
            );
        }
        println!("   generation {} is live, can be downloaded, and loads in PEFT", short(&adapter));
        Ok(())
    }

    async fn upload(&mut self) -> anyhow::Result<()> {
        let declaration = DatasetDeclaration {
            format: DatasetFormat::Jsonl.into(),
            prompt_column: "prompt".into(),
            completion_column: "completion".into(),
            label_column: "label".into(),
            label_names: vec!["negative".into(), "positive".into()],
            group_columns: vec!["dialect".into(), "topic".into()],
            split: Some(dataset_declaration::Split::SplitColumn("split".into())),
            ..DatasetDeclaration::default()
        };
        let header = UploadDatasetHeader {
            name: "reviews".into(),
            size: REVIEWS.len() as u64,
            declaration: Some(declaration),
            ..UploadDatasetHeader::default()
        };
        let parts = [
            upload_dataset_request::Part::Header(header),
            upload_dataset_request::Part::Chunk(DatasetChunk { offset: 0, data: REVIEWS.to_vec() }),
        ];
        let messages = parts.map(|part| UploadDatasetRequest { part: Some(part) });
        let dataset = self.datasets.upload_dataset(tokio_stream::iter(messages)).await?.into_inner();
        println!("   uploaded `reviews`: {} rows, digest {}", dataset.rows, short(&dataset.id));
        Ok(())
    }

    /// Runs a job to its end and returns the generation that it made.
    async fn train(&mut self) -> anyhow::Result<String> {
        let lora = LoraMethod {
            rank: Some(8),
            target_modules: vec!["q_proj".into(), "v_proj".into()],
            ..LoraMethod::default()
        };
        let settings = TrainingSettings {
            task: TrainingTask::CausalLm.into(),
            method: Some(training_settings::Method::Lora(lora)),
            length: Some(training_settings::Length::Steps(STEPS)),
            learning_rate: Some(2e-3),
            warmup_steps: 3,
            groups: vec!["dialect".into()],
            ..TrainingSettings::default()
        };
        let request = CreateFineTuningJobRequest {
            adapter: "reviewer".into(),
            dataset: "reviews".into(),
            settings: Some(settings),
            alias: "sentiment".into(),
            ..CreateFineTuningJobRequest::default()
        };
        let job = self.tuning.create_fine_tuning_job(request).await?.into_inner();
        println!("   job {}: LoRA, rank 8, on queries and values, {STEPS} steps of 8 reviews", short(&job.id));
        let began = Instant::now();
        let bar = ProgressBar::new(STEPS);
        bar.set_style(ProgressStyle::with_template("   {bar:30} step {pos}/{len}  {msg}")?);
        let mut events = self.jobs.watch_job(WatchJobRequest { id: job.id, token: String::new() }).await?.into_inner();
        let (mut first, mut last, mut ended) = (None, None, None::<Job>);
        while let Some(event) = events.message().await? {
            match event.event {
                Some(watch_job_response::Event::Progress(progress)) => {
                    bar.set_position(progress.step);
                    bar.set_message(format!("loss {:.3}, {:.0} s left", progress.loss, progress.eta_seconds));
                    first.get_or_insert(progress.loss);
                    last = Some(progress);
                }
                Some(watch_job_response::Event::Job(job)) => ended = Some(*job),
                Some(watch_job_response::Event::AuditProgress(_) | watch_job_response::Event::Checkpoint(_)) | None => {
                }
            }
        }
        bar.finish_and_clear();
        let job = ended.context("the job told nothing")?;
        let failure = job.error.clone().unwrap_or_default();
        ensure!(job.state() == JobState::Succeeded, "the job did not succeed: {} {}", failure.reason, failure.message);
        let last = last.context("the job reported no step")?;
        println!(
            "   {:.0} s: training loss from {:.3} to {:.3}",
            began.elapsed().as_secs_f64(),
            first.unwrap_or_default(),
            last.loss
        );
        by_group(&last);
        Ok(job.result.context("the job made nothing")?.generation)
    }

    /// Returns in how many rows the right label is the more likely one.
    async fn right(&mut self, adapter: &str, reviews: &[&Review]) -> anyhow::Result<usize> {
        let candidates =
            LABELS.map(|label| Candidate { continuation: Some(candidate::Continuation::Text(label.into())) });
        let mut right = 0;
        for review in reviews {
            let request = ScoreRequest {
                adapter: adapter.into(),
                prompt: Some(review.prompt.clone()),
                candidates: candidates.to_vec(),
                ..ScoreRequest::default()
            };
            let scores = self.inference.score(request).await?.into_inner().candidates;
            let [positive, negative] = scores.as_slice() else { anyhow::bail!("two scores were asked for") };
            let preferred = LABELS[usize::from(negative.sum_logprob > positive.sum_logprob)];
            right += usize::from(preferred == review.completion);
        }
        Ok(right)
    }

    async fn answer(&mut self, adapter: &str, review: &Review) -> anyhow::Result<String> {
        let sampling = SamplingParams { temperature: Some(0.0), max_new_tokens: Some(4), ..SamplingParams::default() };
        let request = GenerateRequest {
            adapter: adapter.into(),
            prompt: Some(review.prompt.clone()),
            sampling: Some(sampling),
            ..GenerateRequest::default()
        };
        let response = self.inference.generate(request).await?.into_inner();
        Ok(response.choices.into_iter().next().context("the answer has no text")?.text)
    }
}

/// Prints the losses of the last evaluation.
fn by_group(progress: &TrainingProgress) {
    let Some(evaluation) = &progress.evaluation else { return };
    for figure in &evaluation.figures {
        let group = match (figure.column.as_str(), &figure.value) {
            ("", _) => "all validation rows".to_owned(),
            (column, Some(value)) => format!("{column} {value}"),
            (column, None) => format!("{column} missing"),
        };
        println!("   validation loss {:.3}  {:>3} rows  {group}", figure.loss, figure.rows);
    }
}
