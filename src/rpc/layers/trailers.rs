//! Reads and writes the gRPC status of an HTTP response, wherever it stands.

use axum::body::Body;
use axum::response::Response;
use http::HeaderMap;
use tonic::{Code, Status};

/// Returns the code in headers or trailers, if it is there.
pub(super) fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Returns a response that is this status and nothing else.
pub(super) fn only(status: &Status) -> Response {
    status.clone().into_http::<Body>()
}

/// Returns the trailers that end a stream with this status.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        // Only a message that is no header value can fail; the code alone still tells the caller.
        headers.insert(Status::GRPC_STATUS, http::HeaderValue::from(status.code() as i32));
    }
    headers
}
