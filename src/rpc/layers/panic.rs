//! A panic in a handler or in a response stream becomes INTERNAL; the connection and the server live on.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body::{Frame, SizeHint};

use super::trailers;
use crate::rpc::context::RequestId;
use crate::rpc::status;

pub(super) async fn catch(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().map_or_else(String::new, |id| id.0.to_string());
    // Nothing that was inside is used after a panic: the request is gone with it.
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response.map(|body| Body::new(Guarded { body: Some(body), id })),
        Err(_) => trailers::only(&panicked(&id)),
    }
}

/// The panic's own text goes to the log by the panic hook, and to nobody else.
fn panicked(id: &str) -> tonic::Status {
    tracing::error!(request_id = id, "handler panicked");
    status::opaque(id)
}

/// A body whose panic ends the stream with INTERNAL.
struct Guarded {
    /// `None` after a panic.
    body: Option<Body>,
    id: String,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(body) = this.body.as_mut() else { return Poll::Ready(None) };
        match std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx))) {
            Ok(frame) => frame,
            Err(_) => {
                this.body = None;
                Poll::Ready(Some(Ok(Frame::trailers(trailers::trailers(&panicked(&this.id))))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::any;
    use http_body::Body as _;
    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn panics_in_handler_and_stream_become_internal() {
        let stream = || async {
            let parts = futures_util::stream::iter([1, 2]).map(|i| {
                assert!(i < 2, "secret");
                Ok::<_, axum::Error>(Bytes::from_static(b"x"))
            });
            Response::new(Body::from_stream(parts))
        };
        use futures_util::StreamExt as _;
        let app = Router::new()
            .route("/handler", any(|| async { panic!("secret") as Response }))
            .route("/stream", any(stream))
            .layer(axum::middleware::from_fn(catch));
        let call = async |path: &str| {
            app.clone().oneshot(http::Request::post(path).body(Body::empty()).unwrap()).await.unwrap()
        };
        let response = call("/handler").await;
        assert_eq!(trailers::code(response.headers()), Some(Code::Internal));
        let mut body = call("/stream").await.into_body();
        let mut frames = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            frames.push(frame.unwrap());
        }
        assert_eq!(frames.len(), 2, "one piece, then trailers");
        assert_eq!(trailers::code(frames[1].trailers_ref().unwrap()), Some(Code::Internal));
    }
}
