//! What the server refuses or gives up, with code, reason and details: fields, budgets, deadlines, readers that do not
//! read, callers that leave. Reasons of single adapter calls are tested beside them (`adapters`, `uploads`).

use std::time::Duration;

use evenkeel::rpc::pb::{self, GenerateRequest, SamplingParams, TokenIds};
use prost::Message;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::client::{
    self, Client, Server, eventually, files, greedy, precondition, quota, refused, same_text, violations,
};
use super::wire;

const GENERATE: &str = "/evenkeel.v1.InferenceService/Generate";
const GENERATE_STREAM: &str = "/evenkeel.v1.InferenceService/GenerateStream";
const SCORE: &str = "/evenkeel.v1.InferenceService/Score";

/// A request that runs for some hundred steps.
fn long(n: u32) -> GenerateRequest {
    let sampling =
        SamplingParams { max_new_tokens: Some(240), ignore_eos: Some(true), seed: Some(3), ..Default::default() };
    GenerateRequest { prompt: Some("once".into()), sampling: Some(sampling), n: Some(n), ..Default::default() }
}

#[tokio::test]
async fn all_faulty_fields_are_named_at_once() {
    let server = client::start().await;
    let client = &server.client;
    let sampling = SamplingParams {
        max_new_tokens: Some(0),
        temperature: Some(f64::NAN),
        top_p: Some(0.0),
        min_p: Some(-0.5),
        repetition_penalty: Some(f64::INFINITY),
        presence_penalty: Some(2.5),
        frequency_penalty: Some(-2.5),
        stop: vec![String::new()],
        logit_bias: [(7, f64::NAN), (9999, 1.0)].into(),
        stop_token_ids: vec![512],
        ..Default::default()
    };
    let request = GenerateRequest {
        adapter: "../etc".into(),
        prompt: Some("x".into()),
        prompt_token_ids: Some(TokenIds { ids: vec![512] }),
        sampling: Some(sampling),
        n: Some(0),
        logprobs: Some(21),
        ..Default::default()
    };
    let status = refused(client.generate(request.clone()).await, Code::InvalidArgument, "INVALID_FIELD");
    let fields = violations(&status).join(" ");
    for field in [
        "adapter",
        "prompt",
        "n",
        "logprobs",
        "sampling.max_new_tokens",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.min_p",
        "sampling.repetition_penalty",
        "sampling.presence_penalty",
        "sampling.frequency_penalty",
        "sampling.stop",
        "sampling.logit_bias",
        "sampling.stop_token_ids",
    ] {
        assert!(
            fields.split(' ').any(|named| named == field || named.starts_with(&format!("{field}["))),
            "{field}: {fields}"
        );
    }
    let streamed = client.stream(request).await.map(|_| ());
    assert_eq!(violations(&refused(streamed, Code::InvalidArgument, "INVALID_FIELD")).join(" "), fields);

    let bad = |change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = greedy("", "x", 4);
        change(&mut request);
        request
    };
    let sampling = |change: &dyn Fn(&mut SamplingParams)| bad(&|request| change(request.sampling.as_mut().unwrap()));
    for (what, request) in [
        ("no prompt", bad(&|r| r.prompt = None)),
        ("no token ids", bad(&|r| (r.prompt, r.prompt_token_ids) = (None, Some(TokenIds::default())))),
        (
            "an id above the vocabulary",
            bad(&|r| (r.prompt, r.prompt_token_ids) = (None, Some(TokenIds { ids: vec![1, 512] }))),
        ),
        ("too many completions", bad(&|r| r.n = Some(u32::MAX))),
        ("too hot", sampling(&|s| s.temperature = Some(2.1))),
        ("below zero", sampling(&|s| s.temperature = Some(-0.1))),
        ("no number", sampling(&|s| s.top_p = Some(f64::NAN))),
        ("too many stop strings", sampling(&|s| s.stop = vec!["a".into(); 17])),
        ("a long stop string", sampling(&|s| s.stop = vec!["a".repeat(257)])),
        ("a large bias", sampling(&|s| s.logit_bias = [(3, 100.5)].into())),
        ("a half generation", bad(&|r| r.adapter = "poet@123".into())),
        ("an empty generation", bad(&|r| r.adapter = "poet@".into())),
        ("upper case", bad(&|r| r.adapter = "Poet".into())),
        ("a long name", bad(&|r| r.adapter = "a".repeat(64))),
    ] {
        let result = client.generate(request).await;
        assert!(result.is_err(), "{what} was taken");
        let status = refused(result, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status).len(), 1, "{what}: {status:?}");
    }
    client.idle().await;
}

#[tokio::test]
async fn prompts_that_cannot_run_are_refused() {
    let server = client::start().await;
    let client = &server.client;
    let ids = |count| GenerateRequest {
        prompt: None,
        prompt_token_ids: Some(TokenIds { ids: vec![5; count] }),
        ..greedy("", "", 57)
    };
    let status = refused(client.generate(ids(200)).await, Code::InvalidArgument, "CONTEXT_LENGTH");
    assert_eq!(violations(&status), ["sampling.max_new_tokens"]);
    let status = refused(client.stream(ids(256)).await.map(|_| ()), Code::InvalidArgument, "CONTEXT_LENGTH");
    assert_eq!(violations(&status), ["prompt"]);
    let status = refused(client.generate(greedy("", "x", u32::MAX)).await, Code::InvalidArgument, "CONTEXT_LENGTH");
    assert_eq!(violations(&status), ["sampling.max_new_tokens"]);
    client.generate(ids(199)).await.unwrap();

    let said = |role: &str| pb::ChatMessage { role: role.into(), content: "x".into() };
    let messages = vec![said("user"), said("user")];
    let request = GenerateRequest { prompt: None, messages: messages.clone(), ..greedy("", "", 4) };
    let status = refused(client.generate(request).await, Code::InvalidArgument, "CHAT_TEMPLATE");
    assert!(status.message().contains("must alternate"), "{}", status.message());
    assert_eq!(violations(&status), ["messages"]);
    let request = pb::TokenizeRequest { messages, ..Default::default() };
    let status = refused(client.inference.clone().tokenize(request).await, Code::InvalidArgument, "CHAT_TEMPLATE");
    assert_eq!(violations(&status), ["messages"]);

    let status = refused(client.generate(greedy("nobody", "x", 4)).await, Code::NotFound, "ADAPTER_NOT_FOUND");
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, "nobody");
    client.publish("poet", "lora_qv").await;
    refused(client.generate(greedy("poet@0123456789ab", "x", 4)).await, Code::NotFound, "ADAPTER_NOT_FOUND");
}

#[tokio::test]
async fn a_model_without_a_language_head_does_not_generate() {
    let server = client::start_with("llama_seqcls", |_| {}).await;
    let client = &server.client;
    let status = refused(client.generate(greedy("", "x", 4)).await, Code::FailedPrecondition, "WRONG_HEAD");
    assert_eq!(precondition(&status, "WRONG_HEAD"), "base_model");
    refused(client.stream(greedy("", "x", 4)).await.map(|_| ()), Code::FailedPrecondition, "WRONG_HEAD");
    let candidate = pb::candidate::Continuation::Text("y".into());
    let score = pb::ScoreRequest {
        prompt: Some("x".into()),
        candidates: vec![pb::Candidate { continuation: Some(candidate) }],
        ..Default::default()
    };
    refused(client.inference.clone().score(score).await, Code::FailedPrecondition, "WRONG_HEAD");
    assert!(!client.tokenize("x").await.is_empty());
    client.publish("judge", "seqcls_llama").await;
}

#[tokio::test]
async fn the_cache_budget_holds_and_what_never_fits_is_refused() {
    let server = client::start_with(client::MODEL, |settings| settings.engine.kv_cache_bytes = Some(256 << 10)).await;
    let client = &server.client;
    let status = refused(client.generate(long(1)).await, Code::ResourceExhausted, "KV_CACHE_TOO_SMALL");
    assert!(status.get_details_retry_info().is_none(), "trying again cannot help: {status:?}");
    assert_eq!(quota(&status), "engine.kv_cache_bytes");
    // Many that fit one by one wait for each other.
    let alone = client.complete(greedy("", "She said", 60)).await;
    let many: Vec<_> = (0..12)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.complete(greedy("", "She said", 60)).await })
        })
        .collect();
    let over = async {
        loop {
            let used = client.metrics().await.value("evenkeel_kv_cache_bytes");
            assert!(used <= f64::from(256 << 10), "{used} bytes of cache");
            if many.iter().all(|task| task.is_finished()) {
                break;
            }
        }
    };
    over.await;
    for task in many {
        assert_eq!(task.await.unwrap(), alone);
    }
    client.idle().await;
}

#[tokio::test]
async fn a_full_queue_answers_at_once_with_a_time_to_retry() {
    let server = client::start_with(client::MODEL, |settings| {
        settings.engine.max_running_sequences = 1;
        settings.engine.max_waiting_sequences = 2;
    })
    .await;
    let client = &server.client;
    let tasks: Vec<_> = (0..24)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.generate(long(1)).await })
        })
        .collect();
    let (mut served, mut turned_away) = (0, 0);
    for task in tasks {
        match task.await.unwrap() {
            Ok(response) => {
                assert_eq!(response.choices[0].token_ids.len(), 240);
                served += 1;
            }
            Err(status) => {
                let status = refused(Err::<(), _>(status), Code::ResourceExhausted, "QUEUE_FULL");
                let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
                assert!(retry.is_some_and(|delay| delay > Duration::ZERO), "{status:?}");
                assert_eq!(quota(&status), "engine.max_waiting_sequences");
                turned_away += 1;
            }
        }
    }
    assert!(served >= 2 && turned_away >= 1, "{served} served, {turned_away} turned away");
    client.idle().await;
    client.generate(long(1)).await.unwrap();
}

#[tokio::test]
async fn a_full_queue_answers_before_anything_is_spent_on_the_request() {
    let server = client::start_with(client::MODEL, |settings| {
        settings.engine.max_running_sequences = 1;
        settings.engine.max_waiting_sequences = 1;
    })
    .await;
    let client = &server.client;
    client.publish("poet", "lora_qv").await;
    client.unload("poet").await.unwrap();
    let loads = async || client.metrics().await.sum("evenkeel_adapter_loads_total", &[]);
    let before = loads().await;
    // One runs, its completions one after the other; one waits, and an empty queue takes it though it is longer.
    let mut running = client.stream(long(16)).await.unwrap();
    running.message().await.unwrap().unwrap();
    let waiting = client.stream(long(16)).await.unwrap();

    let full = |status: Status| {
        let status = refused(Err::<(), _>(status), Code::ResourceExhausted, "QUEUE_FULL");
        assert!(status.get_details_retry_info().and_then(|info| info.retry_delay).is_some(), "{status:?}");
    };
    // Faults that only the tokenizer, the registry or the model find are not looked for.
    let words = "once ".repeat(20_000);
    for adapter in ["poet", "nobody", ""] {
        let asked = GenerateRequest { adapter: adapter.into(), prompt: Some(words.clone()), ..long(1) };
        full(client.generate(asked.clone()).await.unwrap_err());
        full(client.stream(asked).await.map(|_| ()).unwrap_err());
        let candidate = pb::candidate::Continuation::Text("x".into());
        let score = pb::ScoreRequest {
            adapter: adapter.into(),
            prompt: Some(words.clone()),
            candidates: vec![pb::Candidate { continuation: Some(candidate) }],
            ..Default::default()
        };
        full(client.inference.clone().score(score).await.unwrap_err());
        let input = pb::ClassifyInput { prompt: Some(words.clone()), ..Default::default() };
        let classify = pb::ClassifyRequest { adapter: adapter.into(), inputs: vec![input], ..Default::default() };
        full(client.inference.clone().classify(classify).await.unwrap_err());
    }
    let refused_field = client.generate(GenerateRequest { adapter: "../etc".into(), ..long(1) }).await;
    refused(refused_field, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(loads().await, before, "an adapter was read for a request that was refused");
    assert_eq!(client.adapter("poet").await.unwrap().generations[0].residency(), pb::Residency::OnDisk);
    drop((running, waiting));
    client.idle().await;
    client.complete(greedy("poet", "once", 4)).await;
}

#[tokio::test]
async fn an_expired_deadline_ends_calls_and_streams() {
    let server = client::start().await;
    let client = &server.client;
    client.publish("poet", "all_linear").await;
    let heavy = GenerateRequest { adapter: "poet".into(), ..long(8) };
    let many =
        vec![
            pb::Candidate { continuation: Some(pb::candidate::Continuation::TokenIds(TokenIds { ids: vec![9; 250] })) };
            64
        ];
    let score = pb::ScoreRequest { prompt: Some("x".into()), candidates: many, ..Default::default() };
    let calls = [(GENERATE, wire::frame(&heavy)), (GENERATE_STREAM, wire::frame(&heavy)), (SCORE, wire::frame(&score))];
    for (path, body) in calls {
        for timeout in ["1n", "0m", "20m"] {
            let answer = wire::call(server.process.grpc, path, &[("grpc-timeout", timeout)], body.clone()).await;
            refused(Err::<(), Status>(answer.status), Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        }
    }
    // A stream that began to run is ended too, with what it has.
    let timeout = [("grpc-timeout", "60m")];
    let answer = wire::call(
        server.process.grpc,
        GENERATE_STREAM,
        &timeout,
        wire::frame(&GenerateRequest { n: Some(16), ..heavy.clone() }),
    )
    .await;
    for message in &answer.messages {
        pb::GenerateStreamResponse::decode(message.clone()).unwrap();
    }
    refused(Err::<(), Status>(answer.status), Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    client.idle().await;
    let short = greedy("", "x", 2);
    let answer = wire::call(server.process.grpc, GENERATE, &[("grpc-timeout", "1M")], wire::frame(&short)).await;
    assert_eq!((answer.status.code(), answer.messages.len()), (Code::Ok, 1));
    let deadline = [r#"grpc_code="DeadlineExceeded""#];
    assert_eq!(client.metrics().await.sum("grpc_server_handled_total", &deadline), 10.0);
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_nobody() {
    let server = client::start().await;
    let client = &server.client;
    let request = GenerateRequest { logprobs: Some(20), ..long(4) };
    let whole = client.generate(request.clone()).await.unwrap();
    // A window of one kilobyte is full after a piece or two.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.process.grpc)).unwrap();
    let narrow = endpoint.initial_stream_window_size(1024).initial_connection_window_size(65_535);
    let slow = Client::over(narrow.connect().await.unwrap(), client.http);
    let mut stream = slow.stream(request).await.unwrap();

    for _ in 0..3 {
        client.complete(greedy("", "Winter light", 24)).await;
    }
    // All of it is computed and its memory free again, though nobody has read a byte.
    client.idle().await;
    let mut texts = vec![String::new(); 4];
    let mut ids = vec![Vec::new(); 4];
    let mut logprobs = vec![Vec::new(); 4];
    while let Some(piece) = stream.message().await.unwrap() {
        let index = piece.index as usize;
        texts[index].push_str(&piece.text);
        ids[index].extend(piece.token_ids);
        logprobs[index].extend(piece.logprobs);
    }
    for (i, choice) in whole.choices.iter().enumerate() {
        same_text(&texts[i], &choice.text);
        assert_eq!(ids[i], choice.token_ids);
        assert_eq!(logprobs[i].len(), choice.logprobs.len());
    }
}

#[tokio::test]
async fn callers_who_leave_free_everything() {
    let width = client::BUSY_SEQUENCES;
    let server = client::start_with(client::MODEL, |settings| settings.engine.max_running_sequences = width).await;
    let client = &server.client;
    client.publish("poet", "all_linear").await;
    let aborted = async || {
        let scrape = client.metrics().await;
        scrape.sum("evenkeel_request_success_total", &[r#"finished_reason="abort""#])
    };
    // Streams dropped on a connection that goes on, running ones and waiting ones.
    let load = client::busy(client, "poet").await;
    let started = load.len();
    for task in &load {
        task.abort();
    }
    client.idle().await;
    let first = aborted().await;
    assert!(first > 0.0);
    // Unary calls whose connection dies.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.process.grpc)).unwrap();
    let other = Client::over(endpoint.connect().await.unwrap(), client.http);
    let calls: Vec<_> = (0..started)
        .map(|_| {
            let (other, request) = (other.clone(), GenerateRequest { adapter: "poet".into(), ..long(width as u32) });
            tokio::spawn(async move { other.generate(request).await })
        })
        .collect();
    eventually("the calls to run", || async {
        (client.metrics().await.value("evenkeel_num_requests_running") > 0.0).then_some(())
    })
    .await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    drop(other);
    client.idle().await;
    assert!(aborted().await > first);
    eventually("leases", || async {
        (client.adapter("poet").await.unwrap().generations[0].active_leases == 0).then_some(())
    })
    .await;
    let tokens = client.metrics().await.value("evenkeel_generation_tokens_total");
    assert!(tokens < (2 * started * width * 240) as f64, "nothing was given up");
}

/// The stored file with these bytes.
fn stored(server: &Server, content: &[u8]) -> std::path::PathBuf {
    let mut folders = vec![server.settings.server.data_dir.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path).is_ok_and(|bytes| bytes == content) {
                return path;
            }
        }
    }
    panic!("the uploaded file is not stored as it is");
}

#[tokio::test]
async fn a_damaged_stored_adapter_is_data_loss_and_harms_no_other() {
    let server = client::start().await;
    let client = &server.client;
    client.publish("poet", "lora_qv").await;
    client.publish("clerk", "dora").await;
    let mut bytes = files("lora_qv")[1].1.clone();
    let path = stored(&server, &bytes);
    *bytes.last_mut().unwrap() ^= 1;
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&path, permissions).unwrap();
    std::fs::write(&path, &bytes).unwrap();

    client.complete(greedy("poet", "once", 4)).await; // still in memory, still right
    client.unload("poet").await.unwrap();
    refused(client.generate(greedy("poet", "once", 4)).await, Code::DataLoss, "DATA_CORRUPT");
    let load = pb::LoadAdapterRequest { name: "poet".into(), ..Default::default() };
    refused(client.adapters.clone().load_adapter(load).await, Code::DataLoss, "DATA_CORRUPT");
    let download = pb::DownloadAdapterRequest { name: "poet".into() };
    let status = match client.adapters.clone().download_adapter(download).await {
        Err(status) => status,
        Ok(stream) => {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Err(status) => break status,
                    Ok(message) => assert!(message.is_some(), "damaged bytes were sent as sound"),
                }
            }
        }
    };
    refused(Err::<(), _>(status), Code::DataLoss, "DATA_CORRUPT");
    client.complete(greedy("clerk", "once", 4)).await;
    // Publishing it again heals it.
    client.publish("poet", "lora_qv").await;
    client.unload("poet").await.unwrap();
    client.complete(greedy("poet", "once", 4)).await;
}

#[tokio::test]
async fn an_internal_fault_tells_its_request_id_and_no_more() {
    let server = client::start().await;
    let client = &server.client;
    // A file where the folder of stored files was: nothing that a caller does.
    let blobs = server.settings.server.data_dir.join("blobs");
    std::fs::remove_dir_all(&blobs).unwrap();
    std::fs::write(&blobs, b"in its place").unwrap();
    let status = refused(client.upload("poet", &files("lora_qv")).await, Code::Internal, "INTERNAL");
    let id = status.get_details_request_info().unwrap().request_id;
    let told = format!("{} {}", status.message(), String::from_utf8_lossy(status.details()));
    assert!(!told.contains("blobs") && !told.contains(server.settings.server.data_dir.to_str().unwrap()), "{told}");
    let log = server.process.log();
    assert!(log.lines().any(|line| line.contains(&id) && line.contains("ERROR")), "{id} is not in\n{log}");
    refused(client.adapter("poet").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    client.complete(greedy("", "once", 4)).await;
}
