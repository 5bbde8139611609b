//! Jobs over the wire: what is refused, with code, reason and details. How they run is tested beside `src/jobs`.

use evenkeel::rpc::pb::fine_tuning_service_client::FineTuningServiceClient;
use evenkeel::rpc::pb::job_service_client::JobServiceClient;
use evenkeel::rpc::pb::training_settings::{Length, Method};
use evenkeel::rpc::pb::{self, CreateFineTuningJobRequest, LoraMethod, TrainingSettings};
use tonic::Code;
use tonic::transport::Channel;

use super::client::{self, Client, refused, violations};

/// The id of no job.
const NOBODY: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn calls(client: &Client) -> (FineTuningServiceClient<Channel>, JobServiceClient<Channel>) {
    (FineTuningServiceClient::new(client.channel.clone()), JobServiceClient::new(client.channel.clone()))
}

fn request(settings: TrainingSettings) -> CreateFineTuningJobRequest {
    let (adapter, dataset) = ("tuned".into(), "rows".into());
    CreateFineTuningJobRequest { adapter, dataset, settings: Some(settings), ..Default::default() }
}

fn lora(lora: LoraMethod) -> TrainingSettings {
    TrainingSettings { method: Some(Method::Lora(lora)), ..Default::default() }
}

#[tokio::test]
async fn all_faulty_fields_of_a_job_are_named_at_once() {
    let server = client::start().await;
    let (mut tunings, _) = calls(&server.client);
    let settings = TrainingSettings {
        method: Some(Method::Lora(LoraMethod {
            rank: Some(0),
            dropout: 1.0,
            target_modules: vec![String::new()],
            ..Default::default()
        })),
        length: Some(Length::Epochs(f64::NAN)),
        batch_size: Some(0),
        learning_rate: Some(f64::NAN),
        max_tokens: Some(u32::MAX),
        schedule: 99,
        groups: vec!["a".into(), "a".into()],
        ..Default::default()
    };
    let faulty = CreateFineTuningJobRequest {
        adapter: "../x".into(),
        dataset: String::new(),
        settings: Some(settings),
        expected_generation: Some("abc".into()),
        alias: "Ä".into(),
        request_id: "x".repeat(129),
        ..Default::default()
    };
    let status = refused(tunings.create_fine_tuning_job(faulty).await, Code::InvalidArgument, "INVALID_FIELD");
    let expected = [
        "adapter",
        "alias",
        "dataset",
        "expected_generation",
        "request_id",
        "settings.batch_size",
        "settings.epochs",
        "settings.groups",
        "settings.learning_rate",
        "settings.lora.dropout",
        "settings.lora.rank",
        "settings.lora.target_modules",
        "settings.max_tokens",
        "settings.schedule",
    ];
    assert_eq!(violations(&status), expected);
    for (field, settings) in [
        ("settings.lora.rank", lora(LoraMethod { rank: Some(1_000_000), ..Default::default() })),
        ("settings.learning_rate", TrainingSettings { learning_rate: Some(-1.0), ..Default::default() }),
        ("settings.steps", TrainingSettings { length: Some(Length::Steps(0)), ..Default::default() }),
    ] {
        let result = tunings.create_fine_tuning_job(request(settings)).await;
        let status = refused(result, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), [field]);
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = client::start().await;
    let (mut tunings, mut jobs) = calls(&server.client);
    let lost = tunings.create_fine_tuning_job(request(TrainingSettings::default())).await;
    refused(lost, Code::NotFound, "DATASET_NOT_FOUND");
    let (id, request_id) = (NOBODY.to_owned(), String::new());
    let get = pb::GetJobRequest { id: id.clone() };
    refused(jobs.get_job(get).await, Code::NotFound, "JOB_NOT_FOUND");
    let cancel = pb::CancelJobRequest { id: id.clone(), request_id: request_id.clone() };
    refused(jobs.cancel_job(cancel).await, Code::NotFound, "JOB_NOT_FOUND");
    let resume = pb::ResumeJobRequest { id: id.clone(), request_id };
    refused(jobs.resume_job(resume).await, Code::NotFound, "JOB_NOT_FOUND");
    let watch = |token: &str| pb::WatchJobRequest { id: id.clone(), token: token.into() };
    refused(jobs.watch_job(watch("")).await.map(|_| ()), Code::NotFound, "JOB_NOT_FOUND");
    refused(jobs.watch_job(watch("AAAA")).await.map(|_| ()), Code::InvalidArgument, "WATCH_TOKEN");
    for id in ["", "7", "01890A5D-AC96-774B-BCCE-B302099A8057", "../jobs"] {
        let status =
            refused(jobs.get_job(pb::GetJobRequest { id: id.into() }).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), ["id"]);
    }
}

#[tokio::test]
async fn lists_are_checked_and_empty_at_first() {
    let server = client::start().await;
    let (_, mut jobs) = calls(&server.client);
    let list =
        |page_size, page_token: &str, state| pb::ListJobsRequest { page_size, page_token: page_token.into(), state };
    let empty = jobs.list_jobs(list(0, "", 0)).await.unwrap().into_inner();
    assert_eq!((empty.jobs.len(), empty.next_page_token.as_str()), (0, ""));
    refused(jobs.list_jobs(list(0, "forged", 0)).await, Code::InvalidArgument, "PAGE_TOKEN");
    for (field, request) in [("page_size", list(-1, "", 0)), ("state", list(0, "", 77))] {
        let status = refused(jobs.list_jobs(request).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), [field]);
    }
}
