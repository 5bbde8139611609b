//! Jobs that are killed, stopped with the server, or cancelled and resumed end with the bytes of one that never was.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};

use super::*;
use crate::client::{Server, eventually};

const STEPS: u64 = 400;
/// Kills that must hit a running job.
const KILLS: usize = 50;

fn long() -> CreateFineTuningJobRequest {
    let method = LoraMethod { rank: Some(2), dropout: 0.1, ..Default::default() };
    let settings = TrainingSettings {
        batch_size: Some(2),
        accumulation: Some(2),
        eval_every: 50,
        keep_best: true,
        groups: vec!["sex".into()],
        ..settings(STEPS, 2e-3, Method::Lora(method))
    };
    CreateFineTuningJobRequest { alias: "live".into(), ..request("colours", "facts", settings) }
}

async fn start() -> Server {
    let server = client::start_with(client::MODEL, |settings| settings.jobs.checkpoint_steps = 3).await;
    upload(&server.client, "facts", &facts(), of_facts()).await.unwrap();
    server
}

async fn restart(server: &mut Server) {
    server.process = client::spawn(&server.settings).await;
    server.client = Client::connect(&server.process).await;
}

/// Names of all files of a data directory.
fn files(data_dir: &Path) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for folder in [data_dir.to_owned(), data_dir.join("blobs")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            all.insert(entry.unwrap().file_name().into_string().unwrap());
        }
    }
    all
}

/// What of a step does not depend on the clock.
fn facts_of(events: &[pb::WatchJobResponse]) -> Vec<TrainingProgress> {
    let timeless =
        |step: &TrainingProgress| TrainingProgress { tokens_per_second: 0.0, eta_seconds: 0.0, ..step.clone() };
    steps(events).into_iter().map(timeless).collect()
}

/// The end of a job, its steps and the files that are left.
async fn ended(server: &Server, id: &str) -> (String, Vec<TrainingProgress>, BTreeSet<String>) {
    let events = watched(&server.client, id).await;
    let job = job(&server.client, id).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    let steps = facts_of(&events);
    assert_eq!(steps.iter().map(|step| step.step).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
    let generation = job.result.unwrap().generation;
    assert_eq!(server.client.complete(greedy("live", "Snow is", 1)).await.1, generation);
    // Watchers hear of the end before the checkpoint's file is removed; it is counted after.
    eventually("its files", || async {
        (server.client.metrics().await.sum("evenkeel_jobs_finished_total", &["succeeded"]) == 1.0).then_some(())
    })
    .await;
    (generation, steps, files(&server.settings.server.data_dir))
}

#[tokio::test]
async fn a_job_killed_fifty_times_ends_as_one_that_never_was() {
    let whole = start().await;
    let begin = Instant::now();
    let id = create(&whole.client, long()).await.unwrap().id;
    let expected = ended(&whole, &id).await;
    let longest = begin.elapsed() / 100;

    let mut server = start().await;
    let id = create(&server.client, long()).await.unwrap().id;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut seen: Vec<pb::WatchJobResponse> = Vec::new();
    let (mut hits, mut furthest) = (0, 0);
    while hits < KILLS {
        let token = seen.last().map_or_else(String::new, |event| event.token.clone());
        let (client, watched) = (server.client.clone(), id.clone());
        let following = tokio::spawn(async move { follow(&client, &watched, &token, |_| false).await });
        // Not to wait for anything: the moment of the kill is what is drawn.
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..longest.as_micros() as u64))).await;
        server.process.kill();
        seen.extend(following.await.unwrap());
        restart(&mut server).await;
        let now = job(&server.client, &id).await;
        // It has not ended after the kill, so it had not ended before.
        assert_eq!(now.state(), pb::JobState::Running, "it ended after {hits} kills: {:?}", now.error);
        hits += 1;
        furthest = now.checkpoint_step;
    }
    assert!(furthest > 0, "no kill came after a checkpoint");
    let token = seen.last().map_or_else(String::new, |event| event.token.clone());
    seen.extend(follow(&server.client, &id, &token, |_| false).await);
    assert_eq!(watched(&server.client, &id).await, seen, "what was shown changed");
    use pb::JobState::{Queued, Running, Succeeded};
    assert_eq!(states(&seen), [Queued, Running, Succeeded]);
    assert_eq!(ended(&server, &id).await, expected);
    println!("kills: {hits} of a running job, the last with {furthest} of {STEPS} steps in the checkpoint");
}

#[tokio::test]
async fn a_job_goes_on_after_sigterm_and_after_cancelling() {
    let whole = start().await;
    let id = create(&whole.client, long()).await.unwrap().id;
    let expected = ended(&whole, &id).await;

    let mut server = start().await;
    let id = create(&server.client, long()).await.unwrap().id;
    let mut jobs_client = jobs(&server.client);
    follow(&server.client, &id, "", at_step(20)).await;
    let cancel = pb::CancelJobRequest { id: id.clone(), request_id: "stop-it".into() };
    jobs_client.cancel_job(cancel.clone()).await.unwrap();
    let events = watched(&server.client, &id).await;
    let cancelled = job(&server.client, &id).await;
    assert_eq!((cancelled.state(), cancelled.cancelling, cancelled.resumable), (pb::JobState::Cancelled, false, true));
    assert!(cancelled.checkpoint_step >= 18 && steps(&events).len() < STEPS as usize);
    assert!(server.client.adapter("colours").await.is_err());
    // The same call again is the same call; another finds the job ended.
    jobs_client.cancel_job(cancel).await.unwrap();
    let again = pb::CancelJobRequest { id: id.clone(), request_id: String::new() };
    client::refused(jobs_client.cancel_job(again).await, tonic::Code::FailedPrecondition, "JOB_FINISHED");

    let resume = pb::ResumeJobRequest { id: id.clone(), request_id: "go-on".into() };
    let resumed = jobs_client.resume_job(resume.clone()).await.unwrap().into_inner();
    assert_eq!(resumed.state(), pb::JobState::Queued);
    let at = steps(&events).len() as u64;
    follow(&server.client, &id, &events.last().unwrap().token, at_step(at + 20)).await;
    server.process.terminate();
    let mut process = server.process;
    let status = tokio::task::spawn_blocking(move || process.wait()).await.unwrap();
    assert!(status.success(), "{status}");
    server.process = client::spawn(&server.settings).await;
    server.client = Client::connect(&server.process).await;
    let now = job(&server.client, &id).await;
    assert!(now.checkpoint_step >= at + 20, "the last step is in the checkpoint: {}", now.checkpoint_step);
    assert_eq!(ended(&server, &id).await, expected);
    let mut jobs_client = jobs(&server.client);
    let refused = jobs_client.resume_job(pb::ResumeJobRequest { id, request_id: String::new() }).await;
    client::refused(refused, tonic::Code::FailedPrecondition, "JOB_NOT_RESUMABLE");
}
