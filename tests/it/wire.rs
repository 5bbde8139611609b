//! gRPC by hand over HTTP/2, for what a well-behaved client never sends: odd headers, broken bodies, and deadlines
//! that the client itself does not enforce (tonic's ends a call locally and so hides the server's answer).

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;
use tonic::{Code, Status};

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) http: u16,
    /// Bodies of the messages.
    pub(crate) messages: Vec<Bytes>,
    /// From the trailers, or from the headers when there are no others.
    pub(crate) status: Status,
}

/// Opens a connection.
pub(crate) async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// The frame of one message.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    frame.into()
}

/// Calls a method, `/package.Service/Method`, with headers that replace the usual ones.
pub(crate) async fn call(address: SocketAddr, path: &str, headers: &[(&'static str, &str)], body: Bytes) -> Answer {
    let mut sender = connect(address).await;
    let mut request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    stream.send_data(body, true).unwrap();
    let response = response.await.unwrap();
    let http = response.status().as_u16();
    let first = response.headers().clone();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend(chunk);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or(first);
    Answer { http, messages: messages(&bytes), status: status(&trailers) }
}

fn messages(mut bytes: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let [_, a, b, c, d, rest @ ..] = bytes {
        let (message, rest) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        messages.push(Bytes::copy_from_slice(message));
        bytes = rest;
    }
    messages
}

fn status(trailers: &HeaderMap) -> Status {
    Status::from_header_map(trailers).unwrap_or_else(|| Status::new(Code::Unknown, "no grpc-status"))
}
