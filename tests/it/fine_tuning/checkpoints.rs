//! Checkpoints of a run that are published on the way: the bytes of shorter runs, told and kept whatever becomes of the job.
//!
//! Two runs are compared by generation, which is the digest of the tensors. At a constant rate a run of more steps begins
//! as a run of fewer: rows, dropout and initial values follow from seed and step alone.

use evenkeel::rpc::pb::PublishedCheckpoint;
use tonic::Code;

use super::*;
use crate::client::{refused, violations};

fn run_of(steps: u64, method: Method, publish_steps: &[u64]) -> TrainingSettings {
    TrainingSettings {
        schedule: pb::TrainingSchedule::Constant.into(),
        batch_size: Some(4),
        publish_steps: publish_steps.to_vec(),
        ..settings(steps, 5e-3, method)
    }
}

fn lora() -> Method {
    Method::Lora(LoraMethod { rank: Some(3), dropout: 0.1, ..Default::default() })
}

fn published(job: &pb::Job) -> Vec<PublishedCheckpoint> {
    job.result.clone().unwrap_or_default().checkpoints
}

fn steps_of(checkpoints: &[PublishedCheckpoint]) -> Vec<u64> {
    checkpoints.iter().map(|checkpoint| checkpoint.step).collect()
}

/// The checkpoints among events.
fn told(events: &[pb::WatchJobResponse]) -> Vec<PublishedCheckpoint> {
    let checkpoint = |event: &pb::WatchJobResponse| match &event.event {
        Some(Event::Checkpoint(checkpoint)) => Some(checkpoint.clone()),
        _ => None,
    };
    events.iter().filter_map(checkpoint).collect()
}

#[tokio::test]
async fn a_checkpoint_has_the_bytes_of_a_run_that_ends_there() {
    let server = client::start().await;
    let client = &server.client;
    let dataset = upload(client, "facts", &facts(), of_facts()).await.unwrap();
    for (adapter, method) in [("low", lora()), ("whole", Method::Full(pb::FullMethod {}))] {
        let wanted = TrainingSettings { keep_best: true, eval_every: 3, ..run_of(12, method.clone(), &[2, 7, 12]) };
        let (job, events) = run(client, request(adapter, "facts", wanted.clone())).await;
        assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
        let checkpoints = published(&job);
        assert_eq!((steps_of(&checkpoints), told(&events)), (vec![2, 7, 12], checkpoints.clone()), "{adapter}");
        assert!(job.result.as_ref().unwrap().unreached_steps.is_empty());
        // Each is told after its step and before the next.
        let order = |event: &pb::WatchJobResponse| match &event.event {
            Some(Event::Progress(progress)) => Some((progress.step, 0)),
            Some(Event::Checkpoint(checkpoint)) => Some((checkpoint.step, 1)),
            _ => None,
        };
        let order: Vec<_> = events.iter().filter_map(order).collect();
        assert!(order.len() == 15 && order.is_sorted(), "{order:?}");
        for checkpoint in &checkpoints {
            let short = run_of(checkpoint.step, method.clone(), &[]);
            let expected = generation(client, request("short", "facts", short)).await;
            assert_eq!(checkpoint.generation, expected, "{adapter} after step {}", checkpoint.step);
            let stored = client.adapter(&checkpoint.adapter).await.unwrap();
            assert_eq!(checkpoint.adapter, format!("{adapter}.checkpoint-{}", checkpoint.step));
            let lineage = stored.generations[0].lineage.clone().unwrap();
            assert_eq!((&lineage.job, &lineage.dataset, lineage.step), (&job.id, &dataset.id, Some(checkpoint.step)));
            assert_eq!(lineage.base_fingerprint, stored.base_fingerprint);
            assert_eq!(lineage.settings, job.settings);
            // It answers, as itself.
            let answer = client.complete(greedy(&checkpoint.adapter, FACTS[0].0, 1)).await;
            assert_eq!(answer.1, checkpoint.generation);
        }
        let result = client.adapter(adapter).await.unwrap();
        assert_eq!(result.generations[0].lineage.clone().unwrap().step, None);
        // The result is the same without them, and where the rate falls they are those of another run.
        let plain = TrainingSettings { publish_steps: vec![], ..wanted.clone() };
        assert_eq!(generation(client, request("plain", "facts", plain)).await, result.generation);
        let falling = TrainingSettings { schedule: pb::TrainingSchedule::Linear.into(), ..wanted };
        let (falling, _) = run(client, request("falling", "facts", falling)).await;
        for (one, other) in published(&falling).iter().zip(&checkpoints) {
            assert_ne!(one.generation, other.generation, "step {}", one.step);
        }
    }
}

#[tokio::test]
async fn a_step_that_an_early_end_leaves_out_is_told() {
    let server = client::start().await;
    let client = &server.client;
    // What is looked at contradicts what is learnt, so that looks get worse in the end.
    let answers = FACTS.iter().cycle().skip(1);
    let row = |prompt: &str, completion: &str, part: &str| {
        format!("{}\n", json!({"prompt": prompt, "completion": completion, "sex": "f", "part": part}))
    };
    let rows: String = FACTS
        .iter()
        .zip(answers)
        .map(|(fact, other)| row(fact.0, fact.1, "train") + &row(fact.0, other.1, "validation"))
        .collect();
    upload(client, "facts", &rows, of_facts()).await.unwrap();
    let wanted = TrainingSettings { eval_every: 2, patience: 2, ..run_of(400, lora(), &[1, 4, 399, 400]) };
    let (job, events) = run(client, request("early", "facts", wanted)).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    let done = steps(&events).len() as u64;
    assert!((4..399).contains(&done), "it stopped after {done} steps");
    let result = job.result.clone().unwrap();
    assert_eq!((steps_of(&result.checkpoints), result.unreached_steps), (vec![1, 4], vec![399, 400]));
    refused(client.adapter("early.checkpoint-399").await, Code::NotFound, "ADAPTER_NOT_FOUND");
}

#[tokio::test]
async fn what_was_published_stays_when_the_job_ends_otherwise() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "facts", &facts(), of_facts()).await.unwrap();
    let endless = request("a", "facts", run_of(1_000_000, lora(), &[2, 5, 1_000_000]));
    let id = create(client, endless).await.unwrap().id;
    follow(client, &id, "", |event| matches!(&event.event, Some(Event::Checkpoint(kept)) if kept.step == 5)).await;
    let running = job(client, &id).await;
    let result = running.result.clone().unwrap();
    assert_eq!((result.adapter.as_str(), steps_of(&result.checkpoints)), ("", vec![2, 5]));
    jobs(client).cancel_job(pb::CancelJobRequest { id: id.clone(), request_id: String::new() }).await.unwrap();
    let events = watched(client, &id).await;
    let cancelled = job(client, &id).await;
    assert_eq!((cancelled.state(), cancelled.resumable), (pb::JobState::Cancelled, true));
    assert_eq!((published(&cancelled), told(&events)), (result.checkpoints.clone(), result.checkpoints.clone()));
    for checkpoint in &result.checkpoints {
        assert_eq!(client.adapter(&checkpoint.adapter).await.unwrap().generation, checkpoint.generation);
    }
    refused(client.adapter("a").await, Code::NotFound, "ADAPTER_NOT_FOUND");

    // One that does not come about fails the job, which says what came about before.
    let quiet = TrainingSettings { warmup_steps: 1, ..run_of(4, lora(), &[1, 2]) };
    let (failed, _) = run(client, request("quiet", "facts", quiet.clone())).await;
    assert_eq!(failed.error.unwrap().reason, "ADAPTER_NO_EFFECT", "the first step of a warm-up has the rate 0");
    let accepted = CreateFineTuningJobRequest { allow_no_effect: true, ..request("quiet", "facts", quiet) };
    let (job, _) = run(client, accepted).await;
    assert_eq!((job.state(), steps_of(&published(&job))), (pb::JobState::Succeeded, vec![1, 2]), "{:?}", job.error);
}

#[tokio::test]
async fn a_job_killed_between_checkpoints_publishes_what_one_that_was_not_does() {
    const KEPT: [u64; 6] = [1, 20, 21, 55, 90, 120];
    let start = || async {
        let server = client::start_with(client::MODEL, |settings| settings.jobs.checkpoint_steps = 7).await;
        upload(&server.client, "facts", &facts(), of_facts()).await.unwrap();
        server
    };
    let wanted = || request("a", "facts", run_of(120, lora(), &KEPT));
    let whole = start().await;
    let (expected, _) = run(&whole.client, wanted()).await;
    let expected = expected.result.unwrap();
    assert_eq!(steps_of(&expected.checkpoints), KEPT);

    let mut server = start().await;
    let id = create(&server.client, wanted()).await.unwrap().id;
    let mut seen: Vec<pb::WatchJobResponse> = Vec::new();
    // As soon as each is told, and a little before the next is due.
    for at in [1, 19, 20, 21, 50, 55, 89, 90, 119] {
        let reached = |event: &pb::WatchJobResponse| match &event.event {
            Some(Event::Progress(progress)) => progress.step >= at && !KEPT.contains(&at),
            Some(Event::Checkpoint(kept)) => kept.step >= at,
            _ => false,
        };
        if !seen.iter().any(reached) {
            let token = seen.last().map_or_else(String::new, |event| event.token.clone());
            seen.extend(follow(&server.client, &id, &token, reached).await);
        }
        server.process.kill();
        server.process = client::spawn(&server.settings).await;
        server.client = Client::connect(&server.process).await;
    }
    let token = seen.last().unwrap().token.clone();
    seen.extend(follow(&server.client, &id, &token, |_| false).await);
    let job = job(&server.client, &id).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    assert_eq!(job.result.unwrap(), expected);
    assert_eq!((told(&seen), watched(&server.client, &id).await), (expected.checkpoints.clone(), seen));
    for checkpoint in &expected.checkpoints {
        let stored = server.client.adapter(&checkpoint.adapter).await.unwrap();
        assert_eq!((&stored.generation, stored.generations.len()), (&checkpoint.generation, 1));
    }
}

#[tokio::test]
async fn steps_and_names_that_cannot_be_are_refused_by_field() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "facts", &facts(), of_facts()).await.unwrap();
    let long = "x".repeat(60);
    for (adapter, alias, steps, field) in [
        ("a", "", &[3, 2][..], "settings.publish_steps"),
        ("a", "", &[0], "settings.publish_steps"),
        ("a", "", &[13], "settings.publish_steps"),
        (&long, "", &[3], "adapter"),
        ("a", "a.checkpoint-3", &[3], "alias"),
    ] {
        let wire = request(adapter, "facts", run_of(12, lora(), steps));
        let result = create(client, CreateFineTuningJobRequest { alias: alias.into(), ..wire }).await;
        assert_eq!(violations(&refused(result, Code::InvalidArgument, "INVALID_FIELD")), [field]);
    }
    // 24 rows, 4 a step: how many steps two passes are is known when the rows are read.
    let epochs = |last| TrainingSettings { length: Some(Length::Epochs(2.0)), ..run_of(1, lora(), &[last]) };
    let (job, _) = run(client, request("a", "facts", epochs(13))).await;
    let error = job.error.unwrap();
    assert_eq!(error.reason, "TRAINING_SETTING");
    assert!(error.message.contains("publish_steps") && error.message.contains("has 12"), "{error:?}");
    let (job, _) = run(client, request("a", "facts", epochs(12))).await;
    assert_eq!(steps_of(&published(&job)), [12], "{:?}", job.error);

    // Names are taken when the job is made.
    let endless = run_of(1_000_000, lora(), &[999_999]);
    let running = create(client, request("b", "facts", endless)).await.unwrap();
    let result = create(client, request("b.checkpoint-999999", "facts", run_of(1, lora(), &[]))).await;
    let status = refused(result, Code::FailedPrecondition, "JOB_CONFLICT");
    assert!(status.message().contains(&running.id), "{status:?}");
    let alias = pb::SetAliasRequest { name: "c.checkpoint-1".into(), adapter: "a".into(), ..Default::default() };
    client.adapters.clone().set_alias(alias).await.unwrap();
    let result = create(client, request("c", "facts", run_of(1, lora(), &[1]))).await;
    refused(result, Code::AlreadyExists, "NAME_TAKEN");
    jobs(client).cancel_job(pb::CancelJobRequest { id: running.id, request_id: String::new() }).await.unwrap();
}
