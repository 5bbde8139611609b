//! A real server whose disk is full: what does not fit is refused by its reason, and what was acknowledged stays.
//!
//! The disk is a small one of its own; where nobody may mount one, that test says that it was not run. What the system
//! refuses for its size is refused in the same way, and can be tried everywhere.

use evenkeel::rpc::pb;
use tonic::{Code, Status};

use super::client::{self, Client, greedy, refused, sha256};
use super::datasets;
use super::fine_tuning;
use super::process::{self, Process};

/// Uploads one text of some bytes as a data set; no two are the same.
async fn store(client: &Client, number: usize, bytes: usize) -> Result<pb::Dataset, Status> {
    let file = format!("text\n{number} {}\n", "x".repeat(bytes));
    let declaration = pb::DatasetDeclaration {
        format: pb::DatasetFormat::Csv.into(),
        text_column: "text".into(),
        ..Default::default()
    };
    let header = pb::UploadDatasetHeader {
        name: format!("rows-{number}"),
        size: file.len() as u64,
        sha256: sha256(file.as_bytes()),
        declaration: Some(declaration),
        ..Default::default()
    };
    datasets::send(client, datasets::parts(header, file.as_bytes(), 100_000)).await
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let settings = process::settings(client::MODEL, &folder.path().join("data"));
    let start = move || Process::start_on_a_disk(&settings, 8);
    let Some(process) = tokio::task::spawn_blocking(start).await.unwrap() else {
        println!("not run: this system lets nobody mount a file system here");
        return;
    };
    let client = Client::connect(&process).await;
    client.publish("poet", "lora_qv").await;
    let answer = client.complete(greedy("poet", "once", 8)).await;

    let mut stored = Vec::new();
    // Ever smaller, until nothing fits.
    for bytes in [400_000, 50_000, 5000, 10] {
        loop {
            match store(&client, stored.len(), bytes).await {
                Ok(dataset) => stored.push(dataset),
                Err(status) => {
                    refused(Err::<(), _>(status), Code::ResourceExhausted, "STORAGE_FULL");
                    break;
                }
            }
            assert!(stored.len() < 10_000, "the disk is never full");
        }
    }
    assert!(stored.len() > 10, "{}", stored.len());
    let upload = client.upload("clerk", &client::files("all_linear")).await;
    refused(upload, Code::ResourceExhausted, "STORAGE_FULL");
    refused(client.adapter("clerk").await, Code::NotFound, "ADAPTER_NOT_FOUND");

    // Everything that was acknowledged is there and is read.
    for dataset in &stored {
        let request = pb::GetDatasetRequest { name: dataset.name.clone() };
        assert_eq!(client.datasets.clone().get_dataset(request).await.unwrap().into_inner().id, dataset.id);
    }
    client.unload("poet").await.unwrap();
    assert_eq!(client.complete(greedy("poet", "once", 8)).await, answer);

    // Deleting makes room, even now.
    for dataset in &stored[..3] {
        let request = pb::DeleteDatasetRequest { name: dataset.name.clone(), ..Default::default() };
        client.datasets.clone().delete_dataset(request).await.unwrap();
    }
    client.publish("clerk", "all_linear").await;
    client.complete(greedy("clerk", "once", 8)).await;
    assert_eq!(client.complete(greedy("poet", "once", 8)).await, answer);
    println!("full after {} data sets", stored.len());
}

#[tokio::test]
async fn what_the_system_lets_nobody_write_is_refused_and_ends_a_job_by_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = process::settings(client::MODEL, &folder.path().join("data"));
    settings.datasets.max_row_bytes = 8 << 20;
    settings.jobs.checkpoint_steps = 2;
    // A MiB: room for an adapter and for rows, not for a checkpoint of all weights.
    let start = move || Process::start_with_small_files(&settings, 2048);
    let process = tokio::task::spawn_blocking(start).await.unwrap();
    let client = Client::connect(&process).await;
    client.publish("poet", "lora_qv").await;
    let answer = client.complete(greedy("poet", "once", 8)).await;
    store(&client, 0, 100).await.unwrap();
    refused(store(&client, 1, 3 << 20).await, Code::ResourceExhausted, "STORAGE_FULL");
    let absent = client.datasets.clone().get_dataset(pb::GetDatasetRequest { name: "rows-1".into() }).await;
    refused(absent, Code::NotFound, "DATASET_NOT_FOUND");

    let training = |method| pb::TrainingSettings {
        method: Some(method),
        length: Some(pb::training_settings::Length::Steps(4)),
        max_tokens: Some(256),
        ..Default::default()
    };
    let wanted = |name: &str, method| pb::CreateFineTuningJobRequest {
        adapter: name.into(),
        dataset: "rows-0".into(),
        settings: Some(training(method)),
        ..Default::default()
    };
    let full = wanted("whole", pb::training_settings::Method::Full(pb::FullMethod {}));
    let (job, _) = fine_tuning::run(&client, full).await;
    assert_eq!(job.state(), pb::JobState::Failed, "{job:?}");
    assert_eq!(job.error.unwrap().reason, "STORAGE_FULL");
    refused(client.adapter("whole").await, Code::NotFound, "ADAPTER_NOT_FOUND");

    // The server goes on, and so does what is smaller.
    let lora = pb::LoraMethod { rank: Some(2), ..Default::default() };
    let (job, _) = fine_tuning::run(&client, wanted("small", pb::training_settings::Method::Lora(lora))).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
    client.complete(greedy("small", "once", 8)).await;
    client.unload("poet").await.unwrap();
    assert_eq!(client.complete(greedy("poet", "once", 8)).await, answer);
}
