//! Counts, times and logs every call: the only place that records `grpc_server_*`.
//!
//! What changed something is logged at `info`, all else at `debug`, under the call's span, which has its request id. A
//! stream is measured to its end and has the code of its trailers; one that the caller leaves counts as Canceled.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tonic::Code;

use super::methods::{Labels, Methods};
use super::trailers;
use crate::metrics::Metrics;

/// What the layer needs.
#[derive(Debug, Clone)]
pub(super) struct Counted {
    pub(super) metrics: Arc<Metrics>,
    pub(super) methods: Arc<Methods>,
}

pub(super) async fn count(State(counted): State<Counted>, request: Request, next: Next) -> Response {
    let call = Call::begin(counted, request.uri().path().to_owned());
    let response = next.run(request).await;
    match trailers::code(response.headers()) {
        Some(code) => {
            call.end(code);
            response
        }
        None if response.body().is_end_stream() => {
            // No status at all, such as the 415 of a request that is no gRPC.
            call.end(Code::Unknown);
            response
        }
        None => response.map(|body| Body::new(Measured { body, call: Some(call) })),
    }
}

/// A call that runs; dropped before its end, it was cancelled.
struct Call {
    counted: Counted,
    path: String,
    span: tracing::Span,
    began: Instant,
    ended: bool,
}

impl Call {
    fn begin(counted: Counted, path: String) -> Self {
        let Labels { kind, service, method, .. } = counted.methods.labels(&path);
        counted.metrics.grpc_started.with_label_values(&[*kind, service, method]).inc();
        Self { counted, path, span: tracing::Span::current(), began: Instant::now(), ended: false }
    }

    fn end(mut self, code: Code) {
        self.record(code);
    }

    fn record(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let Labels { kind, service, method, changes } = self.counted.methods.labels(&self.path);
        let (metrics, code, seconds) = (&self.counted.metrics, text(code), self.began.elapsed().as_secs_f64());
        metrics.grpc_handled.with_label_values(&[*kind, service, method, code]).inc();
        metrics.grpc_handling.with_label_values(&[*kind, service, method]).observe(seconds);
        if *changes {
            tracing::info!(parent: &self.span, code, seconds, "call ended");
        } else {
            tracing::debug!(parent: &self.span, code, seconds, "call ended");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.record(Code::Cancelled);
    }
}

/// A body that tells its end.
struct Measured {
    body: Body,
    call: Option<Call>,
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let code = match &frame {
            Some(Ok(frame)) => frame.trailers_ref().map(|t| trailers::code(t).unwrap_or(Code::Unknown)),
            Some(Err(_)) | None => Some(Code::Unknown),
        };
        if let Some(code) = code
            && let Some(call) = self.call.take()
        {
            call.end(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The names of go-grpc-prometheus, which dashboards expect.
fn text(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::any;
    use tonic::Status;
    use tower::ServiceExt as _;

    use super::*;
    use crate::rpc::pb;

    const METHOD: &str = "/evenkeel.v1.InferenceService/GenerateStream";

    async fn call(metrics: &Arc<Metrics>, path: &str, respond: fn() -> Response) -> Response {
        let methods = Arc::new(Methods::from_descriptors(pb::FILE_DESCRIPTOR_SET));
        let counted = Counted { metrics: Arc::clone(metrics), methods };
        let app = Router::new()
            .fallback(any(move || std::future::ready(respond())))
            .layer(axum::middleware::from_fn_with_state(counted, count));
        app.oneshot(http::Request::post(path).body(Body::empty()).unwrap()).await.unwrap()
    }

    fn handled(metrics: &Metrics, labels: &[&str; 4]) -> u64 {
        metrics.grpc_handled.with_label_values(labels).get()
    }

    #[tokio::test]
    async fn a_stream_has_the_code_of_its_end() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let labels = |code| ["server_stream", "evenkeel.v1.InferenceService", "GenerateStream", code];
        let open = || {
            let parts = futures_util::stream::iter([Ok::<_, axum::Error>(Bytes::from_static(b"x"))]);
            Response::new(Body::from_stream(parts))
        };
        let response = call(&metrics, METHOD, open).await;
        assert_eq!(handled(&metrics, &labels("Canceled")), 0, "it still runs");
        drop(response);
        assert_eq!(handled(&metrics, &labels("Canceled")), 1);
        let refused = || trailers::only(&Status::not_found("x"));
        drop(call(&metrics, METHOD, refused).await);
        assert_eq!(handled(&metrics, &labels("NotFound")), 1);
        assert_eq!(handled(&metrics, &labels("Canceled")), 1, "a call is counted once");
        let started = metrics.grpc_started.with_label_values(&labels("")[..3]).get();
        assert_eq!(started, 2);
    }

    #[tokio::test]
    async fn paths_of_no_method_share_one_label() {
        let metrics = Arc::new(Metrics::new().unwrap());
        for i in 0..50 {
            drop(call(&metrics, &format!("/x{i}/y{i}"), || trailers::only(&Status::unimplemented("x"))).await);
        }
        assert_eq!(handled(&metrics, &["unary", "unknown", "unknown", "Unimplemented"]), 50);
    }
}
