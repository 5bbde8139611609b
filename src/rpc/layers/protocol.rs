//! Holds callers to the gRPC protocol, and gives details to what tonic refuses by itself.
//!
//! tonic takes any content type, says OUT_OF_RANGE for a long message and INTERNAL for one that cannot be decoded. Here
//! the first is 415, the others RESOURCE_EXHAUSTED (`MESSAGE_TOO_LARGE`) and INVALID_ARGUMENT (`MALFORMED_MESSAGE`). What
//! health says of a service that is not there gets details too (`SERVICE_NOT_FOUND`).

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use tonic::{Code, Status};

use super::trailers;
use crate::rpc::context::RequestId;
use crate::rpc::status::{self, Reason};

pub(super) async fn guard(request: Request, next: Next) -> Response {
    if !is_grpc(request.headers()) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let id = request.extensions().get::<RequestId>().cloned();
    let response = next.run(request).await;
    let id = id.as_ref().map_or("", |id| &*id.0);
    match Status::from_header_map(response.headers()).and_then(|bare| detailed(&bare, id)) {
        Some(status) => trailers::only(&status),
        None => response,
    }
}

/// `application/grpc`, or with a suffix or parameter; not `application/grpc-web`.
fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.strip_prefix("application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// Returns a status with details in the place of one without, which only tonic makes; `None` where all is well.
fn detailed(bare: &Status, id: &str) -> Option<Status> {
    if !bare.details().is_empty() {
        return None;
    }
    let message = bare.message();
    match bare.code() {
        Code::Ok | Code::Cancelled => None,
        Code::OutOfRange | Code::ResourceExhausted => Some(status::plain(Reason::MessageTooLarge, message)),
        Code::Unimplemented => {
            let text = if message.is_empty() { "there is no such method" } else { message };
            let mut status = status::plain(Reason::Unimplemented, text);
            // Tells which encodings are spoken.
            *status.metadata_mut() = bare.metadata().clone();
            Some(status)
        }
        Code::Internal
            if message.contains("decod") || message.contains("decompress") || message.contains("protobuf") =>
        {
            Some(status::plain(Reason::MalformedMessage, "the message cannot be decoded"))
        }
        Code::NotFound => Some(status::plain(Reason::ServiceNotFound, message)),
        Code::Internal
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => {
            // tonic: a missing message, a cut frame, a flag that is neither 0 nor 1.
            tracing::debug!(request_id = id, code = ?bare.code(), message, "refused by the transport");
            Some(status::plain(Reason::MalformedMessage, "the request is not a sound gRPC message"))
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use tonic_types::StatusExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn call(content_type: Option<&str>, answer: Status) -> Response {
        let app = Router::new()
            .fallback(move || std::future::ready(trailers::only(&answer)))
            .layer(axum::middleware::from_fn(guard));
        let mut request = http::Request::post("/evenkeel.v1.X/Y").body(Body::empty()).unwrap();
        if let Some(value) = content_type {
            request.headers_mut().insert(header::CONTENT_TYPE, value.parse().unwrap());
        }
        app.oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn only_grpc_comes_in() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert_eq!(call(Some(good), Status::ok("")).await.status(), StatusCode::OK, "{good}");
        }
        for bad in [None, Some("application/json"), Some("application/grpc-web"), Some("application/grpcx")] {
            let status = call(bad, Status::ok("")).await.status();
            assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn bare_errors_get_details_and_others_stay() {
        let cases = [
            (Status::out_of_range("decoded message length too large"), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            (Status::resource_exhausted("size limit"), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            (Status::unimplemented(""), Code::Unimplemented, "UNIMPLEMENTED"),
            (Status::not_found("service not registered"), Code::NotFound, "SERVICE_NOT_FOUND"),
            (Status::internal("failed to decode Protobuf message"), Code::InvalidArgument, "MALFORMED_MESSAGE"),
            (status::draining(), Code::Unavailable, "DRAINING"),
            (status::opaque("r"), Code::Internal, "INTERNAL"),
        ];
        for (answer, code, reason) in cases {
            let response = call(Some("application/grpc"), answer).await;
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), code);
            assert_eq!(status.get_details_error_info().unwrap().reason, reason);
        }
    }
}
