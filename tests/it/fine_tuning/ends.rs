//! How a run ends and what of it is kept: early, with its best weights, by numbers that are none, by memory.
//!
//! Where two runs must be the same they are compared by generation, which is the digest of the tensors.

use tonic::Code;

use super::*;
use crate::client::{Server, refused};

const RATE: f64 = 1e-2;

/// The facts to learn from, and other answers to look at: what is learnt makes the look worse in the end.
fn contradicted() -> String {
    let answers = FACTS.iter().cycle().skip(1);
    let row = |prompt: &str, completion: &str, part: &str| {
        format!("{}\n", json!({"prompt": prompt, "completion": completion, "sex": "f", "part": part}))
    };
    let rows = FACTS.iter().zip(answers);
    rows.map(|(fact, other)| row(fact.0, fact.1, "train") + &row(fact.0, other.1, "validation")).collect()
}

/// At a constant rate a run of more steps begins as a run of fewer.
fn constant(steps: u64) -> TrainingSettings {
    let method = LoraMethod { rank: Some(4), ..Default::default() };
    TrainingSettings { schedule: pb::TrainingSchedule::Constant.into(), ..settings(steps, RATE, Method::Lora(method)) }
}

#[tokio::test]
async fn a_run_stops_when_looks_get_no_better_and_keeps_the_best() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "facts", &contradicted(), of_facts()).await.unwrap();
    const PATIENCE: usize = 3;
    let wanted = TrainingSettings { eval_every: 2, patience: PATIENCE as u64, keep_best: true, ..constant(400) };
    let (job, events) = run(client, request("best", "facts", wanted.clone())).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    let steps = steps(&events);
    let looks: Vec<_> = steps.iter().filter_map(|s| Some((s.step, s.evaluation.as_ref()?))).collect();
    let losses: Vec<f64> = looks.iter().map(|(_, look)| look.figures[0].loss).collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best = losses.iter().position(|loss| *loss == lowest).unwrap();
    assert!(best > 0, "training never helped: {losses:?}");
    // It went on for as many looks as it had patience after the best, and no step more.
    assert_eq!(looks.len(), best + 1 + PATIENCE, "{losses:?}");
    assert_eq!(steps.len() as u64, looks.last().unwrap().0);
    assert!(steps.len() < 400);
    for (i, (_, look)) in looks.iter().enumerate() {
        let before = losses[..i].iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(look.best, losses[i] < before, "look {i} of {losses:?}");
    }
    // What is published is what a run to the best look makes, and without `keep_best` what one to the last makes.
    let made = job.result.unwrap().generation;
    let to_the_best = generation(client, request("a", "facts", constant(looks[best].0))).await;
    assert_eq!(made, to_the_best, "step {} of {losses:?}", looks[best].0);
    let to_the_end = generation(client, request("b", "facts", constant(steps.len() as u64))).await;
    let last = generation(client, request("c", "facts", TrainingSettings { keep_best: false, ..wanted })).await;
    assert_eq!(last, to_the_end);
    assert_ne!(made, last);
}

#[tokio::test]
async fn packed_rows_are_learnt_as_rows_of_their_own() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "facts", &contradicted(), of_facts()).await.unwrap();
    // All 8 rows in one step either way: as 8 sequences, or as one of up to 256 tokens.
    let apart = TrainingSettings { batch_size: Some(8), max_tokens: Some(256), ..constant(6) };
    let packed = TrainingSettings { batch_size: Some(1), packing: true, ..apart.clone() };
    let (job, events) = run(client, request("apart", "facts", apart)).await;
    let (packed_job, packed_events) = run(client, request("packed", "facts", packed)).await;
    assert_eq!((job.state(), packed_job.state()), (pb::JobState::Succeeded, pb::JobState::Succeeded));
    for (a, b) in steps(&events).iter().zip(steps(&packed_events)) {
        assert_eq!((a.epoch, a.tokens), (b.epoch, b.tokens), "a step is an epoch");
        // f32 sums in another order.
        assert!((a.loss - b.loss).abs() < 1e-4, "step {}: {} and {}", a.step, a.loss, b.loss);
        assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-3, "step {}", a.step);
    }
    for (a, b) in scores(client, "apart").await.iter().zip(scores(client, "packed").await) {
        assert!((a - b).abs() < 1e-2, "{a} and {b}");
    }
}

/// The bytes that a refused job says it needs.
async fn needed(client: &Client, settings: TrainingSettings) -> u64 {
    let (job, _) = run(client, request("never", "facts", settings)).await;
    let error = job.error.unwrap();
    assert_eq!(error.reason, "TRAINING_MEMORY", "{error:?}");
    error.message.split(' ').find_map(|word| word.parse().ok()).unwrap()
}

async fn with_memory(bytes: u64) -> Server {
    let server = client::start_with(client::MODEL, |settings| settings.jobs.memory_bytes = Some(bytes)).await;
    upload(&server.client, "facts", &facts(), of_facts()).await.unwrap();
    server
}

#[tokio::test]
async fn blocks_are_computed_again_where_memory_needs_it_and_only_there() {
    let with = |recompute| TrainingSettings { recompute, ..constant(4) };
    let small = with_memory(1000).await;
    let kept = needed(&small.client, with(Some(false))).await;
    let recomputed = needed(&small.client, with(Some(true))).await;
    assert!(recomputed < kept, "{recomputed} and {kept}");
    assert_eq!(needed(&small.client, with(None)).await, recomputed);
    // Room for the one and not for the other.
    let between = with_memory(recomputed.midpoint(kept)).await;
    assert_eq!(needed(&between.client, with(Some(false))).await, kept);
    let made = generation(&between.client, request("fits", "facts", with(None))).await;
    let large = with_memory(0).await;
    assert_eq!(generation(&large.client, request("fits", "facts", with(None))).await, made);
}

/// A server whose base's last norm is `factor` times as large, so that logits and gradients are, and its data.
async fn loud(factor: f64) -> Server {
    let mut model = full::Model::golden(client::MODEL);
    model.scale("model.norm.weight", factor);
    let server = model.serve_with(|settings| settings.jobs.checkpoint_steps = 1).await;
    upload(&server.client, "facts", &facts(), of_facts()).await.unwrap();
    server
}

#[tokio::test]
async fn numbers_that_are_none_end_the_job_and_its_last_checkpoint_is_kept() {
    // A gradient of B grows with A: at some step its squares are beyond f32. No answer is right for both rows.
    let server = loud(1e11).await;
    let client = &server.client;
    let row = |completion: &str| format!("{}\n", json!({"prompt": "The sky is", "completion": completion, "sex": "f"}));
    let declaration = DatasetDeclaration { split: None, ..of_facts() };
    upload(client, "torn", &(row(" blue") + &row(" grey")), declaration).await.unwrap();
    let method = LoraMethod {
        rank: Some(1),
        scaling: Some(pb::lora_method::Scaling::Alpha(1e6)),
        target_modules: vec!["lm_head".into()],
        ..Default::default()
    };
    let method = TrainingSettings {
        schedule: pb::TrainingSchedule::Constant.into(),
        ..settings(50, 10.0, Method::Lora(method))
    };
    let (job, events) = run(client, request("wild", "torn", method)).await;
    let error = job.error.clone().unwrap();
    assert_eq!((job.state(), error.reason.as_str()), (pb::JobState::Failed, "TRAINING_GRADIENT"), "{error:?}");
    assert!(error.message.contains("lm_head") && error.message.contains("not finite"), "{error:?}");
    let done = steps(&events);
    assert!(!done.is_empty() && done.iter().all(|step| step.loss.is_finite() && step.grad_norm.is_finite()));
    assert_eq!(job.checkpoint_step, done.len() as u64, "the last good step");
    assert!(job.resumable && job.result.is_none());
    refused(client.adapter("wild").await, Code::NotFound, "ADAPTER_NOT_FOUND");

    // Logits beyond f32: the loss is no number.
    let server = loud(1e38).await;
    let (job, events) = run(&server.client, request("wild", "facts", constant(2))).await;
    let error = job.error.clone().unwrap();
    assert_eq!((job.state(), error.reason.as_str()), (pb::JobState::Failed, "TRAINING_DIVERGED"), "{error:?}");
    assert!(steps(&events).is_empty() && !job.resumable);
}

#[tokio::test]
async fn a_layer_without_a_gradient_ends_the_job_by_its_name() {
    let server = client::start().await;
    // The head of a language model has no part in a classifier.
    let declared =
        DatasetDeclaration { text_column: "text".into(), label_column: "label".into(), ..Default::default() };
    upload(&server.client, "two", "text,label\nsnow,cold\nfire,hot\n", declared).await.unwrap();
    let idle = LoraMethod { target_modules: vec!["q_proj".into(), "lm_head".into()], ..Default::default() };
    let idle = TrainingSettings {
        task: pb::TrainingTask::SequenceClassification.into(),
        ..settings(2, 1e-3, Method::Lora(idle))
    };
    let (job, _) = run(&server.client, request("idle", "two", idle)).await;
    let error = job.error.unwrap();
    assert_eq!(error.reason, "TRAINING_GRADIENT", "{error:?}");
    assert!(error.message.contains("lm_head") && error.message.contains("missing"), "{error:?}");
}

#[tokio::test]
async fn results_are_published_by_compare_and_swap_and_know_their_parent() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "facts", &facts(), of_facts()).await.unwrap();
    let expecting = |generation: &str, seed| CreateFineTuningJobRequest {
        expected_generation: Some(generation.into()),
        ..request("colours", "facts", TrainingSettings { seed: Some(seed), ..constant(2) })
    };
    let first = generation(client, expecting("", 1)).await;
    let parent = async || {
        let adapter = client.adapter("colours").await.unwrap();
        let current = adapter.generations.iter().find(|generation| generation.id == adapter.generation);
        current.unwrap().lineage.clone().unwrap().parent_generation
    };
    assert_eq!(parent().await, "");
    for wrong in [String::new(), "0".repeat(64)] {
        let result = create(client, expecting(&wrong, 2)).await;
        refused(result, Code::Aborted, "GENERATION_MISMATCH");
    }
    let second = generation(client, expecting(&first, 2)).await;
    assert_ne!(first, second);
    assert_eq!(parent().await, first);

    // The name moves on while a job runs: its result is not published over that.
    let endless = TrainingSettings { length: Some(Length::Steps(300)), ..constant(2) };
    let late = CreateFineTuningJobRequest { settings: Some(endless), ..expecting(&second, 3) };
    let id = create(client, late).await.unwrap().id;
    follow(client, &id, "", at_step(1)).await;
    let other = client.publish("colours", "lora_qv").await.generation;
    watched(client, &id).await;
    let job = job(client, &id).await;
    assert_eq!((job.state(), job.error.unwrap().reason.as_str()), (pb::JobState::Failed, "GENERATION_MISMATCH"));
    assert_eq!(client.adapter("colours").await.unwrap().generation, other);
    assert!(job.resumable, "what was trained is lost");
}
