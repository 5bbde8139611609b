//! Audits that are killed or cancelled end with the report of one that never was.

use std::time::Duration;

use rand::{RngExt, SeedableRng};

use super::*;
use crate::client::Server;

/// Kills of one audit.
const KILLS: usize = 20;

async fn start() -> Server {
    let server = client::start_with(client::MODEL, |settings| settings.jobs.checkpoint_steps = 1).await;
    upload(&server.client, "rows", &rows(), declaration()).await;
    server.client.publish("poet", "lora_qv").await;
    server
}

fn wanted() -> CreateAuditRequest {
    request("killed", vec![base(), adapter("poet")], settings())
}

async fn restart(server: &mut Server) {
    server.process = client::spawn(&server.settings).await;
    server.client = Client::connect(&server.process).await;
}

#[tokio::test]
async fn an_audit_killed_many_times_ends_with_the_same_report() {
    let whole = start().await;
    let begin = std::time::Instant::now();
    let job = create(&whole.client, wanted()).await.unwrap();
    let expected = reported(&whole.client, &job.id).await;
    let longest = (begin.elapsed() / 4).max(Duration::from_millis(20));

    let mut server = start().await;
    let id = create(&server.client, wanted()).await.unwrap().id;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let mut hits = 0;
    for _ in 0..KILLS {
        // Not to wait for anything: the moment of the kill is what is drawn.
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..longest.as_micros() as u64))).await;
        server.process.kill();
        restart(&mut server).await;
        let state = fine_tuning::job(&server.client, &id).await.state();
        hits += usize::from(matches!(state, pb::JobState::Queued | pb::JobState::Running));
    }
    assert!(hits > 0, "no kill came before the end");
    assert_eq!(reported(&server.client, &id).await, expected);
    println!("kills of an audit that had not ended: {hits}");
}

#[tokio::test]
async fn a_cancelled_audit_that_is_resumed_ends_with_the_same_report() {
    let server = start().await;
    let client = &server.client;
    let whole = create(client, wanted()).await.unwrap();
    let expected = reported(client, &whole.id).await;
    let job = create(client, wanted()).await.unwrap();
    let mut jobs = fine_tuning::jobs(client);
    jobs.cancel_job(pb::CancelJobRequest { id: job.id.clone(), ..Default::default() }).await.unwrap();
    let (ended, _) = finished(client, &job.id).await;
    assert!(ended.state() == pb::JobState::Cancelled && ended.resumable, "{ended:?}");
    jobs.resume_job(pb::ResumeJobRequest { id: job.id.clone(), ..Default::default() }).await.unwrap();
    assert_eq!(reported(client, &job.id).await.id, expected.id);
}
