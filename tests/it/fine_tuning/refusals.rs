//! Jobs and data that cannot be: each ends with an error that names its cause, and the server goes on.

use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use crate::client::{refused, violations};

fn lora(method: LoraMethod) -> TrainingSettings {
    settings(2, 1e-3, Method::Lora(method))
}

fn classify() -> TrainingSettings {
    TrainingSettings { task: pb::TrainingTask::SequenceClassification.into(), ..lora(LoraMethod::default()) }
}

fn labelled() -> DatasetDeclaration {
    let format = pb::DatasetFormat::Csv.into();
    DatasetDeclaration { format, text_column: "text".into(), label_column: "label".into(), ..Default::default() }
}

/// Runs a job that fails, and returns why.
async fn fails(client: &Client, dataset: &str, settings: TrainingSettings) -> (String, String) {
    let (job, events) = run(client, request("never", dataset, settings)).await;
    assert_eq!(job.state(), pb::JobState::Failed, "{job:?}");
    assert_eq!(states(&events).last(), Some(&pb::JobState::Failed));
    assert!(job.result.is_none() && !job.resumable);
    refused(client.adapter("never").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    let error = job.error.unwrap();
    (error.reason, error.message)
}

#[tokio::test]
async fn faults_that_only_the_rows_and_the_model_show_end_the_job_and_are_named() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "facts", &facts(), of_facts()).await.unwrap();
    for (name, file) in [
        ("one", "text,label\nsnow,cold\n"),
        ("same", "text,label\nsnow,cold\nice,cold\n"),
        ("two", "text,label\nsnow,cold\nfire,hot\n"),
    ] {
        upload(client, name, file, labelled()).await.unwrap();
    }
    let test = DatasetDeclaration { split: Some(Split::SplitColumn("part".into())), ..labelled() };
    upload(client, "untrained", "text,label,part\nsnow,cold,test\nfire,hot,test\n", test).await.unwrap();
    let answer = "blue ".repeat(100);
    let long =
        format!("{}\n{}\n", json!({"prompt": "a", "completion": "b"}), json!({"prompt": "a", "completion": answer}));
    let declaration = DatasetDeclaration { group_columns: Vec::new(), split: None, ..of_facts() };
    upload(client, "long", &long, declaration).await.unwrap();

    let modules = |name: &str| LoraMethod { target_modules: vec![name.into()], ..Default::default() };
    let named = |column: &str| TrainingSettings { groups: vec![column.into()], ..lora(LoraMethod::default()) };
    let cases = [
        ("one", classify(), "TRAINING_DATA", "same label"),
        ("same", classify(), "TRAINING_DATA", "same label"),
        ("untrained", classify(), "TRAINING_DATA", "training split"),
        ("facts", classify(), "TRAINING_DATA", "label column"),
        ("long", lora(LoraMethod::default()), "TRAINING_DATA", "row 2"),
        ("facts", lora(modules("no_such_proj")), "TRAINING_SETTING", "`no_such_proj` is no layer"),
        ("facts", lora(LoraMethod { layers: vec![99], ..Default::default() }), "TRAINING_SETTING", "names no layer"),
        (
            "facts",
            lora(LoraMethod { modules_to_save: vec!["nothing".into()], ..Default::default() }),
            "TRAINING_SETTING",
            "nothing",
        ),
        ("facts", named("age"), "TRAINING_SETTING", "age"),
    ];
    for (dataset, settings, reason, part) in cases {
        let (got, message) = fails(client, dataset, settings).await;
        assert!(got == reason && message.contains(part), "{dataset}: {got}: {message}");
    }
    // One row can be learnt by heart; two labels can be told apart.
    let some_blocks = lora(LoraMethod { layers: vec![1], ..Default::default() });
    for (dataset, settings) in [("one", lora(LoraMethod::default())), ("two", classify()), ("facts", some_blocks)] {
        generation(client, request("ever", dataset, settings)).await;
    }
    assert_eq!(client.metrics().await.sum("evenkeel_jobs_finished_total", &["outcome=\"failed\""]), 9.0);
}

#[tokio::test]
async fn labels_that_a_head_does_not_have_are_refused() {
    let server = client::start_with("mistral_seqcls", |_| {}).await;
    let client = &server.client;
    upload(client, "three", "text,label\nsnow,a\nfire,b\nrain,c\n", labelled()).await.unwrap();
    let (reason, message) = fails(client, "three", classify()).await;
    assert!(reason == "TRAINING_DATA" && message.contains('3') && message.contains('2'), "{reason}: {message}");
}

#[tokio::test]
async fn what_cannot_fit_is_refused_with_the_numbers() {
    let server = client::start_with(client::MODEL, |settings| settings.jobs.memory_bytes = Some(1000)).await;
    let client = &server.client;
    upload(client, "facts", &facts(), of_facts()).await.unwrap();
    for recompute in [None, Some(true)] {
        let settings = TrainingSettings { recompute, ..lora(LoraMethod::default()) };
        let (reason, message) = fails(client, "facts", settings).await;
        let numbers: Vec<u64> = message.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(reason == "TRAINING_MEMORY" && numbers.len() == 2, "{reason}: {message}");
        assert!(numbers[0] > 100_000 && numbers[1] == 1000, "{message}");
    }
}

#[tokio::test]
async fn what_can_be_told_at_once_is_told_by_the_call() {
    let server = client::start().await;
    let client = &server.client;
    let faulty =
        [("text,label\n", "file"), ("text,label\na,x\nb,\n", "rows[2].label"), ("text,klass\na,x\n", "columns.label")];
    for (file, field) in faulty {
        let status = refused(upload(client, "bad", file, labelled()).await, Code::InvalidArgument, "DATASET_INVALID");
        assert_eq!(violations(&status), [field]);
    }
    upload(client, "facts", &facts(), of_facts()).await.unwrap();
    let rank = |rank| lora(LoraMethod { rank: Some(rank), ..Default::default() });
    let invalid = [
        ("settings.lora.rank", rank(0)),
        ("settings.lora.rank", rank(1_000_000)),
        ("settings.learning_rate", TrainingSettings { learning_rate: Some(f64::NAN), ..rank(1) }),
        ("settings.max_tokens", TrainingSettings { max_tokens: Some(257), ..rank(1) }),
    ];
    for (field, settings) in invalid {
        let result = create(client, request("never", "facts", settings)).await;
        assert_eq!(violations(&refused(result, Code::InvalidArgument, "INVALID_FIELD")), [field]);
    }
    refused(create(client, request("never", "nothing", rank(1))).await, Code::NotFound, "DATASET_NOT_FOUND");

    let endless = settings(1_000_000, 1e-4, Method::Lora(LoraMethod::default()));
    let for_alias = |adapter: &str, alias: &str| CreateFineTuningJobRequest {
        alias: alias.into(),
        ..request(adapter, "facts", endless.clone())
    };
    let running = create(client, for_alias("one", "live")).await.unwrap();
    for (adapter, alias) in [("two", "live"), ("one", ""), ("live", ""), ("two", "one")] {
        let result = create(client, for_alias(adapter, alias)).await;
        let status = refused(result, Code::FailedPrecondition, "JOB_CONFLICT");
        assert!(status.message().contains(&running.id), "{adapter} {alias}: {status:?}");
    }
    let waiting = create(client, for_alias("two", "")).await.unwrap();
    follow(client, &running.id, "", at_step(1)).await;
    let delete = || async {
        let request = pb::DeleteDatasetRequest { name: "facts".into(), ..Default::default() };
        client.datasets.clone().delete_dataset(request).await
    };
    let status = refused(delete().await, Code::FailedPrecondition, "DATASET_IN_USE");
    assert!(status.message().contains(&running.id), "{status:?}");
    for id in [waiting.id, running.id] {
        let cancel = pb::CancelJobRequest { id: id.clone(), request_id: String::new() };
        jobs(client).cancel_job(cancel).await.unwrap();
        assert_eq!(states(&watched(client, &id).await).last(), Some(&pb::JobState::Cancelled));
        // No checkpoint: nobody can go on with it.
        assert!(!job(client, &id).await.resumable);
    }
    delete().await.unwrap();
}

#[tokio::test]
async fn a_full_queue_of_jobs_answers_at_once_with_a_time_to_retry() {
    let server = client::start_with(client::MODEL, |settings| settings.jobs.max_queued = 1).await;
    let client = &server.client;
    upload(client, "facts", &facts(), of_facts()).await.unwrap();
    let endless = |adapter: &str| {
        let method = Method::Lora(LoraMethod::default());
        request(adapter, "facts", settings(1_000_000, 1e-4, method))
    };
    let running = create(client, endless("one")).await.unwrap();
    follow(client, &running.id, "", at_step(1)).await;
    let waiting = create(client, endless("two")).await.unwrap();
    let status = refused(create(client, endless("three")).await, Code::ResourceExhausted, "QUEUE_FULL");
    assert!(status.get_details_retry_info().and_then(|info| info.retry_delay).is_some(), "{status:?}");
    // A place is free again when one leaves, and nothing is left of the refused one.
    let cancel = pb::CancelJobRequest { id: waiting.id, request_id: String::new() };
    jobs(client).cancel_job(cancel).await.unwrap();
    create(client, endless("three")).await.unwrap();
    let listed = jobs(client).list_jobs(pb::ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    assert_eq!(listed.len(), 3);
}
