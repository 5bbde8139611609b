//! A real server whose disk is full: what does not fit is refused by its reason, and what was acknowledged stays.
//!
//! The disk is a small one of its own; where nobody may mount one, the test says that it was not run. A disk that fills
//! up in a checkpoint is tested beside `src/jobs`.

use evenkeel::rpc::pb;
use tonic::{Code, Status};

use super::client::{self, Client, greedy, refused, sha256};
use super::datasets;
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
