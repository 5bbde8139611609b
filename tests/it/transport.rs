//! The outside of the server: health, reflection, readiness, and peers that speak badly or not at all.
//!
//! Every theme ends with a healthy call: whatever a peer does, the others are served.

use std::collections::BTreeSet;

use bytes::Bytes;
use evenkeel::rpc::pb;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use super::client::{self, greedy, refused};
use super::wire;

const GENERATE: &str = "/evenkeel.v1.InferenceService/Generate";
pub(crate) const SERVICES: [&str; 7] = [
    "evenkeel.v1.AdapterService",
    "evenkeel.v1.AuditService",
    "evenkeel.v1.DatasetService",
    "evenkeel.v1.FineTuningService",
    "evenkeel.v1.InferenceService",
    "evenkeel.v1.JobService",
    "evenkeel.v1.ServerService",
];

#[tokio::test]
async fn health_is_told_by_service() {
    let server = client::start().await;
    let mut health = HealthClient::new(server.client.channel.clone());
    for service in SERVICES.into_iter().chain([""]) {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request.clone()).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
        let mut watch = health.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    }
    let unknown = HealthCheckRequest { service: "evenkeel.v1.Nothing".into() };
    refused(health.check(unknown).await, Code::NotFound, "SERVICE_NOT_FOUND");
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/debug", 404)] {
        assert_eq!(server.client.get(path).await.0, status, "{path}");
    }
}

/// Services and the files that define a symbol, by one version of reflection.
macro_rules! reflect {
    ($version:ident, $channel:expr, $symbols:expr) => {{
        use $version::server_reflection_client::ServerReflectionClient;
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let mut client = ServerReflectionClient::new($channel);
        let mut ask = async |message_request| {
            let request =
                $version::ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
            let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
            answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap()
        };
        let services = match ask(MessageRequest::ListServices(String::new())).await {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|s| s.name).collect::<BTreeSet<_>>()
            }
            other => panic!("{other:?}"),
        };
        for symbol in $symbols {
            match ask(MessageRequest::FileContainingSymbol(symbol.into())).await {
                MessageResponse::FileDescriptorResponse(files) => {
                    let decoded = files
                        .file_descriptor_proto
                        .iter()
                        .map(|file| prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap());
                    let package = symbol.rsplit_once('.').unwrap().0;
                    assert!(decoded.into_iter().any(|file| file.package() == package), "{symbol}");
                }
                other => panic!("{symbol}: {other:?}"),
            }
        }
        services
    }};
}

#[tokio::test]
async fn both_reflections_list_services_and_error_details() {
    let server = client::start().await;
    let symbols =
        ["evenkeel.v1.GenerateRequest", "google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo"];
    let new = reflect!(v1, server.client.channel.clone(), symbols);
    let old = reflect!(v1alpha, server.client.channel.clone(), symbols);
    for services in [new, old] {
        for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
            assert!(services.contains(service), "{service} is not among {services:?}");
        }
    }
    let closed = client::start_with(client::MODEL, |settings| settings.server.reflection = false).await;
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(closed.client.channel.clone());
    let empty = tokio_stream::iter(Vec::<v1::ServerReflectionRequest>::new());
    assert_eq!(client.server_reflection_info(empty).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_call_by_hand_is_answered() {
    let server = client::start().await;
    let answer = wire::call(server.process.grpc, GENERATE, &[], wire::frame(&greedy("", "once", 4))).await;
    assert_eq!((answer.http, answer.status.code(), answer.messages.len()), (200, Code::Ok, 1));
    let response = pb::GenerateResponse::decode(answer.messages[0].clone()).unwrap();
    assert_eq!(response, {
        let expected = server.client.generate(greedy("", "once", 4)).await.unwrap();
        pb::GenerateResponse { seed: response.seed, ..expected }
    });
}

#[tokio::test]
async fn silent_and_senseless_connections_are_closed() {
    let server = client::start_with(client::MODEL, |settings| settings.server.handshake_timeout_seconds = 1).await;
    let half_preface = &b"PRI * HTTP/2.0\r\n"[..];
    let noise: Vec<u8> = (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let http1 = &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..];
    let tls = &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..];
    for (what, bytes) in
        [("nothing", &b""[..]), ("half a preface", half_preface), ("noise", &noise), ("HTTP/1.1", http1), ("TLS", tls)]
    {
        let mut socket = TcpStream::connect(server.process.grpc).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // The end of this call is the end of the connection; a reset is one too.
        let end = tokio::time::timeout(std::time::Duration::from_secs(60), socket.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "{what} holds a connection");
    }
    // The connection of a client that asks nothing for a while is not silent: it has shaken hands.
    server.client.complete(greedy("", "once", 4)).await;
    client::eventually("the connections to be closed", || async {
        (server.client.metrics().await.value("evenkeel_grpc_connections") == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_above_the_limit_are_closed_and_make_room_again() {
    let server = client::start_with(client::MODEL, |settings| settings.server.max_connections = 3).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(wire::connect(server.process.grpc).await);
    }
    client::eventually("both connections", || async {
        (server.client.metrics().await.value("evenkeel_grpc_connections") == 3.0).then_some(())
    })
    .await;
    let mut socket = TcpStream::connect(server.process.grpc).await.unwrap();
    let mut answer = Vec::new();
    let end = tokio::time::timeout(std::time::Duration::from_secs(60), socket.read_to_end(&mut answer)).await;
    assert!(end.is_ok() && answer.is_empty(), "{answer:?}");
    server.client.complete(greedy("", "once", 4)).await;
    drop(held);
    client::eventually("room", || async {
        (server.client.metrics().await.value("evenkeel_grpc_connections") == 1.0).then_some(())
    })
    .await;
    let answer = wire::call(server.process.grpc, GENERATE, &[], wire::frame(&greedy("", "once", 4))).await;
    assert_eq!(answer.status.code(), Code::Ok);
}

#[tokio::test]
async fn bad_calls_get_a_status_and_harm_nobody() {
    let server = client::start_with(client::MODEL, |settings| settings.server.max_message_bytes = 64 << 10).await;
    let good = wire::frame(&greedy("", "once", 4));
    let call = async |headers: &[(&'static str, &str)], body: Bytes| {
        wire::call(server.process.grpc, GENERATE, headers, body).await
    };

    let large = wire::frame(&greedy("", &"x".repeat(100_000), 4));
    refused(Err::<(), Status>(call(&[], large).await.status), Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let mut announced = vec![0];
    announced.extend(u32::MAX.to_be_bytes());
    refused(Err::<(), Status>(call(&[], announced.into()).await.status), Code::ResourceExhausted, "MESSAGE_TOO_LARGE");

    for timeout in ["abc", "-1S", "99999999999S", "", "1", "1 S", "S", "1.5S"] {
        let status = call(&[("grpc-timeout", timeout)], good.clone()).await.status;
        refused(Err::<(), Status>(status), Code::InvalidArgument, "BAD_METADATA");
    }
    for content_type in ["application/json", "text/plain", "application/grpcx"] {
        assert_eq!(call(&[("content-type", content_type)], good.clone()).await.http, 415, "{content_type}");
    }
    // A sound frame whose content is none: a cut field, wire type 7, bytes that are no UTF-8.
    for bytes in [&b"\x0a\x7f"[..], b"\x0f", b"\x0a\x02\xff\xfe", b"\x00"] {
        let mut body = vec![0];
        body.extend((bytes.len() as u32).to_be_bytes());
        body.extend(bytes);
        let status = call(&[], body.into()).await.status;
        refused(Err::<(), Status>(status), Code::InvalidArgument, "MALFORMED_MESSAGE");
    }
    // No message, half a frame, a compressed flag without an encoding, a flag that is none; an unknown encoding.
    for body in [&b""[..], b"\0\0\0\0\x09abc", b"\x01\0\0\0\x01a", b"\x02\0\0\0\x01a"] {
        let status = call(&[], Bytes::from_static(body)).await.status;
        refused(Err::<(), Status>(status), Code::InvalidArgument, "MALFORMED_MESSAGE");
    }
    let status = call(&[("grpc-encoding", "br")], good.clone()).await.status;
    refused(Err::<(), Status>(status), Code::Unimplemented, "UNIMPLEMENTED");
    for path in ["/evenkeel.v1.InferenceService/Nothing", "/evenkeel.v1.Nothing/Generate", "/", "/x"] {
        let answer = wire::call(server.process.grpc, path, &[], good.clone()).await;
        refused(Err::<(), Status>(answer.status), Code::Unimplemented, "UNIMPLEMENTED");
    }
    server.client.complete(greedy("", "once", 4)).await;
    let log = server.process.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn answers_carry_the_request_id() {
    let server = client::start().await;
    let mut request = tonic::Request::new(greedy("", "once", 2));
    request.metadata_mut().insert("x-request-id", "mine-1".parse().unwrap());
    let answer = server.client.inference.clone().generate(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "mine-1");
    let answer = server.client.inference.clone().generate(greedy("", "once", 2)).await.unwrap();
    assert!(!answer.metadata().get("x-request-id").unwrap().is_empty());
}

/// A call with an id of its own.
fn named<T>(id: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().unwrap());
    request
}

/// The log once it tells that the call of this id has ended.
async fn log_of(server: &client::Server, id: &str) -> String {
    client::eventually("the end of a call in the log", || async {
        let log = server.process.log();
        let ended = log.lines().any(|line| line.contains(id) && line.contains("call ended"));
        ended.then_some(log)
    })
    .await
}

#[tokio::test]
async fn calls_are_logged_with_their_id_and_without_prompt_or_answer() {
    for filter in ["info", "debug"] {
        let server = client::start_with(client::MODEL, |settings| settings.log.filter = filter.into()).await;
        let client = &server.client;
        let prompt = "Thequickbrownfoxisasecret";
        let asked = greedy("", prompt, 24);
        let answer = client.inference.clone().generate(named("mine-1", asked.clone())).await.unwrap().into_inner();
        let text = &answer.choices[0].text;
        assert!(text.trim().len() > 8, "{text:?}");
        let streamed = client.inference.clone().generate_stream(named("mine-2", asked)).await.unwrap();
        client::drain(&mut streamed.into_inner()).await.unwrap();
        let too_long = "Anothersecret".repeat(200);
        let failed = client.inference.clone().generate(named("mine-3", greedy("", &too_long, 24))).await;
        refused(failed, Code::InvalidArgument, "CONTEXT_LENGTH");
        let candidate = pb::candidate::Continuation::Text("Athirdsecret".into());
        let score = pb::ScoreRequest {
            prompt: Some(prompt.into()),
            candidates: vec![pb::Candidate { continuation: Some(candidate) }],
            ..Default::default()
        };
        client.inference.clone().score(named("mine-4", score)).await.unwrap();
        let tokens = pb::TokenizeRequest { text: Some(prompt.into()), ..Default::default() };
        client.inference.clone().tokenize(named("mine-5", tokens)).await.unwrap();
        // What changes something is told at either level.
        let unload = pb::UnloadAdapterRequest { name: "nobody".into(), ..Default::default() };
        let missing = client.adapters.clone().unload_adapter(named("mine-6", unload)).await;
        refused(missing, Code::NotFound, "ADAPTER_NOT_FOUND");
        let log = log_of(&server, "mine-6").await;
        for (id, method, code) in [
            ("mine-1", "Generate", "OK"),
            ("mine-2", "GenerateStream", "OK"),
            ("mine-3", "Generate", "InvalidArgument"),
            ("mine-4", "Score", "OK"),
            ("mine-5", "Tokenize", "OK"),
            ("mine-6", "UnloadAdapter", "NotFound"),
        ] {
            let told =
                |line: &&str| [id, &format!("/{method}"), code, "call ended"].iter().all(|word| line.contains(word));
            let lines = log.lines().filter(told).count();
            assert_eq!(lines, usize::from(filter == "debug" || id == "mine-6"), "{id} at {filter}:\n{log}");
        }
        for secret in [prompt, "Anothersecret", "Athirdsecret", text.trim()] {
            assert!(!log.contains(secret), "{secret} is in the log at {filter}:\n{log}");
        }
    }
}

#[tokio::test]
async fn changes_are_logged_as_json_with_the_id_of_their_call() {
    let files = client::files("lora_qv");
    let second = client::files("lora_qv_second");
    let sizes = client::start().await;
    let bytes = sizes.client.publish("clerk", "lora_qv_second").await.generations[0].bytes;
    let server = client::start_with(client::MODEL, |settings| {
        settings.log.format = "json".into();
        // Room for one: the second drives the first out.
        settings.registry.memory_bytes = bytes;
    })
    .await;
    let client = &server.client;
    let upload = |name: &str, files: &[(&str, Vec<u8>)]| {
        let parts = client::parts(client::header(name, files), files, 64 << 10);
        tokio_stream::iter(parts.into_iter().map(|part| pb::UploadAdapterRequest { part: Some(part) }))
    };
    let mut adapters = client.adapters.clone();
    let poet = adapters.upload_adapter(named("mine-1", upload("poet", &files))).await.unwrap().into_inner();
    let alias = pb::SetAliasRequest { name: "prod".into(), adapter: "poet".into(), ..Default::default() };
    adapters.set_alias(named("mine-2", alias)).await.unwrap();
    let unalias = pb::DeleteAliasRequest { name: "prod".into(), ..Default::default() };
    adapters.delete_alias(named("mine-3", unalias)).await.unwrap();
    let unload = pb::UnloadAdapterRequest { name: "poet".into(), ..Default::default() };
    adapters.unload_adapter(named("mine-4", unload)).await.unwrap();
    client.inference.clone().generate(named("mine-5", greedy("poet", "once", 2))).await.unwrap();
    adapters.upload_adapter(named("mine-6", upload("clerk", &second))).await.unwrap();
    let delete = pb::DeleteAdapterRequest { name: "poet".into(), ..Default::default() };
    adapters.delete_adapter(named("mine-7", delete)).await.unwrap();

    let log = log_of(&server, "mine-7").await;
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (id, message, field, value) in [
        ("mine-1", "adapter published", "adapter", "poet"),
        ("mine-2", "alias set", "alias", "prod"),
        ("mine-2", "alias set", "generation", &poet.generation),
        ("mine-3", "alias deleted", "alias", "prod"),
        ("mine-4", "adapter unloaded", "adapter", "poet"),
        ("mine-5", "adapter loaded", "adapter", "poet"),
        ("mine-6", "adapter evicted", "generation", &poet.generation),
        ("mine-6", "adapter published", "adapter", "clerk"),
        ("mine-7", "adapter deleted", "adapter", "poet"),
        ("mine-7", "call ended", "code", "OK"),
    ] {
        let told = |line: &&serde_json::Value| {
            let of_call = line["span"]["request_id"] == id && line["level"] == "INFO";
            of_call && line["message"] == message && line[field] == value
        };
        assert_eq!(lines.iter().filter(told).count(), 1, "{message} of {id}:\n{log}");
    }
}
