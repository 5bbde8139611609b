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
const SERVICES: [&str; 6] = [
    "evenkeel.v1.AdapterService",
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
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
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

#[tokio::test]
async fn no_prompt_and_no_answer_is_logged() {
    let server = client::start().await;
    let prompt = "Thequickbrownfoxisasecret";
    let (choice, _) = server.client.complete(greedy("", prompt, 24)).await;
    let too_long = "Anothersecret".repeat(200);
    refused(server.client.generate(greedy("", &too_long, 24)).await, Code::InvalidArgument, "CONTEXT_LENGTH");
    let log = server.process.log();
    assert!(!log.contains(prompt) && !log.contains("Anothersecret"), "{log}");
    assert!(!log.contains(&choice.text) && log.len() > 20, "{log}");
}
