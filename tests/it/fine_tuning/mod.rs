//! Fine-tuning on the real server: data in, a job watched to its end, the result live, and out again.
//!
//! What is refused is in `refusals`, heads in `classes`, how runs end in `ends`, what is published on the way in
//! `checkpoints`, kills, stops and cancelling in `pauses`, serving beside a job in `beside`. Models are the small golden ones: what they learn by heart says that training works,
//! not how well.

mod beside;
mod checkpoints;
mod classes;
mod ends;
mod pauses;
mod refusals;

use evenkeel::rpc::pb::candidate::Continuation;
use evenkeel::rpc::pb::dataset_declaration::Split;
use evenkeel::rpc::pb::fine_tuning_service_client::FineTuningServiceClient;
use evenkeel::rpc::pb::job_service_client::JobServiceClient;
use evenkeel::rpc::pb::training_settings::{Length, Method};
use evenkeel::rpc::pb::watch_job_response::Event;
use evenkeel::rpc::pb::{
    self, CreateFineTuningJobRequest, DatasetDeclaration, LoraMethod, TrainingProgress, TrainingSettings,
};
use serde_json::json;
use tonic::Status;
use tonic::transport::Channel;

use super::client::{self, Client, greedy, sha256};
use super::{datasets, full};

/// What is learnt by heart.
const FACTS: [(&str, &str); 8] = [
    ("The sky is", " blue"),
    ("The grass is", " green"),
    ("Snow is", " white"),
    ("Coal is", " black"),
    ("Blood is", " red"),
    ("The sun is", " yellow"),
    ("Ash is", " grey"),
    ("A plum is", " purple"),
];

/// Three forms of every fact to learn from and one to look at, with a group that is missing once in four rows.
fn facts() -> String {
    let mut rows = String::new();
    for (form, opening) in ["", "Note: ", "We know: ", "So: "].iter().enumerate() {
        for (i, (prompt, completion)) in FACTS.iter().enumerate() {
            let group = [Some("f"), Some("m"), Some("f"), None][i % 4];
            let part = if form == 3 { "validation" } else { "train" };
            let prompt = format!("{opening}{prompt}");
            rows.push_str(&json!({"prompt": prompt, "completion": completion, "sex": group, "part": part}).to_string());
            rows.push('\n');
        }
    }
    rows
}

fn of_facts() -> DatasetDeclaration {
    DatasetDeclaration {
        format: pb::DatasetFormat::Jsonl.into(),
        prompt_column: "prompt".into(),
        completion_column: "completion".into(),
        group_columns: vec!["sex".into()],
        split: Some(Split::SplitColumn("part".into())),
        ..Default::default()
    }
}

async fn upload(
    client: &Client,
    name: &str,
    file: &str,
    declaration: DatasetDeclaration,
) -> Result<pb::Dataset, Status> {
    let header = pb::UploadDatasetHeader {
        name: name.into(),
        size: file.len() as u64,
        sha256: sha256(file.as_bytes()),
        declaration: Some(declaration),
        ..Default::default()
    };
    datasets::send(client, datasets::parts(header, file.as_bytes(), 1000)).await
}

pub(crate) fn jobs(client: &Client) -> JobServiceClient<Channel> {
    JobServiceClient::new(client.channel.clone())
}

fn request(adapter: &str, dataset: &str, settings: TrainingSettings) -> CreateFineTuningJobRequest {
    let (adapter, dataset) = (adapter.into(), dataset.into());
    CreateFineTuningJobRequest { adapter, dataset, settings: Some(settings), ..Default::default() }
}

pub(crate) async fn create(client: &Client, request: CreateFineTuningJobRequest) -> Result<pb::Job, Status> {
    let mut tunings = FineTuningServiceClient::new(client.channel.clone());
    Ok(tunings.create_fine_tuning_job(request).await?.into_inner())
}

pub(crate) async fn job(client: &Client, id: &str) -> pb::Job {
    jobs(client).get_job(pb::GetJobRequest { id: id.into() }).await.unwrap().into_inner()
}

/// The events after a token, until `enough` says so, the job has ended, or the server has gone.
pub(crate) async fn follow(
    client: &Client,
    id: &str,
    token: &str,
    enough: impl Fn(&pb::WatchJobResponse) -> bool,
) -> Vec<pb::WatchJobResponse> {
    let mut seen = Vec::new();
    let request = pb::WatchJobRequest { id: id.into(), token: token.into() };
    let Ok(stream) = jobs(client).watch_job(request).await else { return seen };
    let mut stream = stream.into_inner();
    while let Ok(Some(event)) = stream.message().await {
        let last = enough(&event);
        seen.push(event);
        if last {
            break;
        }
    }
    seen
}

/// All events of a job that ends.
pub(crate) async fn watched(client: &Client, id: &str) -> Vec<pb::WatchJobResponse> {
    follow(client, id, "", |_| false).await
}

pub(crate) fn at_step(step: u64) -> impl Fn(&pb::WatchJobResponse) -> bool {
    move |event| matches!(&event.event, Some(Event::Progress(progress)) if progress.step >= step)
}

/// The steps among events.
fn steps(events: &[pb::WatchJobResponse]) -> Vec<&TrainingProgress> {
    let step = |event: &'_ pb::WatchJobResponse| matches!(event.event, Some(Event::Progress(_)));
    let progress = events.iter().filter(|event| step(event)).map(|event| match &event.event {
        Some(Event::Progress(progress)) => progress,
        other => panic!("{other:?}"),
    });
    progress.collect()
}

/// The states among events.
fn states(events: &[pb::WatchJobResponse]) -> Vec<pb::JobState> {
    let state = |event: &pb::WatchJobResponse| match &event.event {
        Some(Event::Job(job)) => Some(job.state()),
        _ => None,
    };
    events.iter().filter_map(state).collect()
}

/// Runs a job to its end.
pub(crate) async fn run(client: &Client, request: CreateFineTuningJobRequest) -> (pb::Job, Vec<pb::WatchJobResponse>) {
    let created = create(client, request).await.unwrap();
    assert_eq!((created.state(), created.id.len()), (pb::JobState::Queued, 36));
    let events = watched(client, &created.id).await;
    (job(client, &created.id).await, events)
}

/// Runs a job that succeeds, and returns its generation.
async fn generation(client: &Client, request: CreateFineTuningJobRequest) -> String {
    let (job, _) = run(client, request).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    job.result.unwrap().generation
}

fn settings(steps: u64, rate: f64, method: Method) -> TrainingSettings {
    TrainingSettings {
        method: Some(method),
        length: Some(Length::Steps(steps)),
        learning_rate: Some(rate),
        max_tokens: Some(64),
        ..Default::default()
    }
}

/// Log-probabilities of the facts' answers.
async fn scores(client: &Client, adapter: &str) -> Vec<f64> {
    let mut all = Vec::new();
    for (prompt, completion) in FACTS {
        let request = pb::ScoreRequest {
            adapter: adapter.into(),
            prompt: Some(prompt.into()),
            candidates: vec![pb::Candidate { continuation: Some(Continuation::Text(completion.into())) }],
            ..Default::default()
        };
        let answer = client.inference.clone().score(request).await.unwrap().into_inner();
        all.push(answer.candidates[0].sum_logprob);
    }
    all
}

async fn answers(client: &Client, adapter: &str) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for (prompt, _) in FACTS {
        all.push(client.complete(greedy(adapter, prompt, 6)).await.0.token_ids);
    }
    all
}

/// Asserts that every answer has become likelier by half of what it lacked.
fn improved(before: &[f64], after: &[f64]) {
    for (before, after) in before.iter().zip(after) {
        assert!(*after > before / 2.0, "{before} became {after}");
    }
}

fn mean_loss(steps: &[&TrainingProgress]) -> f64 {
    steps.iter().map(|step| step.loss).sum::<f64>() / steps.len() as f64
}

#[tokio::test]
async fn a_lora_job_is_watched_and_its_result_is_live_under_name_and_alias() {
    let server = client::start().await;
    let client = &server.client;
    let dataset = upload(client, "facts", &facts(), of_facts()).await.unwrap();
    let (scores_before, answers_before) = (scores(client, "").await, answers(client, "").await);
    let wanted = TrainingSettings {
        warmup_steps: 4,
        eval_every: 10,
        groups: vec!["sex".into()],
        ..settings(80, 1e-2, Method::Lora(LoraMethod { rank: Some(4), ..Default::default() }))
    };
    let wanted = CreateFineTuningJobRequest { alias: "live".into(), ..request("colours", "facts", wanted) };
    let (job, events) = run(client, wanted).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    use pb::JobState::{Queued, Running, Succeeded};
    assert_eq!(states(&events), [Queued, Running, Succeeded]);
    let steps = steps(&events);
    assert_eq!(steps.iter().map(|step| step.step).collect::<Vec<_>>(), (1..=80).collect::<Vec<_>>());
    let first = mean_loss(&steps[..8]);
    let last = mean_loss(&steps[72..]);
    assert!(last < first / 4.0, "the loss went from {first} to {last}");
    // It rises in a line for 4 steps and falls to 0 in a line for 76.
    for (i, step) in steps.iter().enumerate() {
        let share = if i < 4 { i as f64 / 4.0 } else { (80 - i) as f64 / 76.0 };
        assert!((step.learning_rate - 1e-2 * share).abs() < 1e-12, "step {}", step.step);
        assert!(step.grad_norm > 0.0 && step.tokens > 0 && step.total_steps == 80);
        assert!((step.epoch - step.step as f64 / 3.0).abs() < 1e-9);
        assert!(step.tokens_per_second > 0.0 && step.eta_seconds >= 0.0);
        assert_eq!(step.groups.iter().map(|group| group.rows).sum::<u64>(), 8, "{:?}", step.groups);
        assert!(step.groups.iter().all(|group| group.column == "sex" && group.accuracy.is_none()));
        assert_eq!(step.evaluation.is_some(), step.step % 10 == 0);
    }
    let looks: Vec<_> = steps.iter().filter_map(|step| step.evaluation.as_ref()).collect();
    for look in &looks {
        let rows: Vec<_> = look.figures.iter().map(|f| (f.column.as_str(), f.value.as_deref(), f.rows)).collect();
        assert_eq!(rows, [("", None, 8), ("sex", Some("f"), 4), ("sex", Some("m"), 2), ("sex", None, 2)]);
    }
    assert!(looks[0].best && looks[7].figures[0].loss < looks[0].figures[0].loss);

    let made = job.result.clone().unwrap();
    for name in ["colours", "live"] {
        assert_eq!(client.complete(greedy(name, FACTS[0].0, 1)).await.1, made.generation, "{name}");
        improved(&scores_before, &scores(client, name).await);
    }
    assert_ne!(answers(client, "live").await, answers_before);
    assert_eq!(answers(client, "").await, answers_before);

    let adapter = client.adapter("colours").await.unwrap();
    assert_eq!((adapter.generation.as_str(), adapter.rank, adapter.alpha), (made.generation.as_str(), 4, 8.0));
    assert_eq!((adapter.task_type.as_str(), adapter.aliases.as_slice()), ("CAUSAL_LM", &["live".to_owned()][..]));
    let lineage = adapter.generations[0].lineage.clone().unwrap();
    assert_eq!((&lineage.job, &lineage.dataset), (&job.id, &dataset.id));
    assert_eq!((&lineage.base_fingerprint, &lineage.settings), (&job.base_fingerprint, &job.settings));
    assert_eq!(lineage.base_fingerprint, adapter.base_fingerprint);

    let files = full::download(client, "live").await;
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let again = client.upload("again", &files).await.unwrap();
    assert_eq!((again.generation, again.rank), (made.generation, 4));
    let metrics = client.metrics().await;
    assert_eq!(metrics.value("evenkeel_training_steps_total"), 80.0);
}

#[tokio::test]
async fn the_same_settings_make_the_same_bytes_with_every_option_on() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "facts", &facts(), of_facts()).await.unwrap();
    let method = LoraMethod {
        rank: Some(3),
        scaling: Some(pb::lora_method::Scaling::Alpha(7.0)),
        rslora: true,
        dora: true,
        dropout: 0.2,
        target_modules: vec!["q_proj".into(), "down_proj".into()],
        ..Default::default()
    };
    let with = |recompute: Option<bool>, seed: u64| TrainingSettings {
        batch_size: Some(1),
        accumulation: Some(3),
        packing: true,
        recompute,
        train_on_prompt: true,
        weight_decay: 0.1,
        schedule: pb::TrainingSchedule::Cosine.into(),
        keep_best: true,
        eval_every: 5,
        seed: Some(seed),
        ..settings(12, 5e-3, Method::Lora(method.clone()))
    };
    let first = generation(client, request("first", "facts", with(Some(false), 7))).await;
    assert_eq!(generation(client, request("second", "facts", with(Some(false), 7))).await, first);
    assert_eq!(generation(client, request("recomputed", "facts", with(Some(true), 7))).await, first);
    assert_ne!(generation(client, request("other", "facts", with(Some(false), 8))).await, first);
    let adapter = client.adapter("second").await.unwrap();
    assert_eq!((adapter.method.as_str(), adapter.rank, adapter.alpha), ("DORA", 3, 7.0));
    assert!(adapter.modules.iter().all(|module| module.ends_with("q_proj") || module.ends_with("down_proj")));
    let (plain, tuned) = (scores(client, "").await, scores(client, "second").await);
    assert!(tuned.iter().sum::<f64>() > plain.iter().sum::<f64>());
}

#[tokio::test]
async fn a_full_job_makes_a_model_of_its_own_beside_the_base() {
    for model in ["llama_mha", "llama_gqa_llama3_tied"] {
        let server = client::start_with(model, |_| {}).await;
        let client = &server.client;
        upload(client, "facts", &facts(), of_facts()).await.unwrap();
        let (scores_before, answers_before) = (scores(client, "").await, answers(client, "").await);
        let full_method = settings(60, 3e-3, Method::Full(pb::FullMethod {}));
        let generation = generation(client, request("whole", "facts", full_method)).await;
        improved(&scores_before, &scores(client, "whole").await);
        assert_eq!(answers(client, "").await, answers_before, "{model}: the base changed");
        assert_eq!(scores(client, "").await, scores_before, "{model}: the base changed");
        let adapter = client.adapter("whole").await.unwrap();
        assert_eq!((adapter.method.as_str(), adapter.rank), ("FULL", 0));
        assert!(adapter.generations[0].lineage.is_some());
        let files = full::download(client, "whole").await;
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..2], ["config.json", "model.safetensors"]);
        assert!(names.contains(&"tokenizer.json") && names.contains(&"tokenizer_config.json"), "{names:?}");
        let files: Vec<_> = files[..2].iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        assert_eq!(client.upload("again", &files).await.unwrap().generation, generation, "{model}");
    }
}
