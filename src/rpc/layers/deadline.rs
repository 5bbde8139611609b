//! Bounds calls by their `grpc-timeout`, response streams included, and ends them with DEADLINE_EXCEEDED.
//!
//! tonic's own bound answers CANCELLED and leaves streams alone. Here the work behind a call is dropped when its time is
//! over, which is how the engine learns of it; handlers find the instant in the request's extensions.
//! Source: gRPC over HTTP/2, `Timeout → TimeoutValue TimeoutUnit`, 1 to 8 digits and one of H M S m u n.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

use super::trailers;
use crate::rpc::context::Deadline;
use crate::rpc::status::{self, Reason};

const HEADER: &str = "grpc-timeout";

pub(super) async fn bound(mut request: Request, next: Next) -> Response {
    let arrival = Instant::now();
    let mut values = request.headers().get_all(HEADER).iter();
    let timeout = match (values.next(), values.next()) {
        (None, _) => return next.run(request).await,
        (Some(value), None) => value.to_str().ok().and_then(parse),
        (Some(_), Some(_)) => None,
    };
    let Some(timeout) = timeout else {
        return trailers::only(&status::field(Reason::BadMetadata, HEADER, "must be 1 to 8 digits and one of HMSmun"));
    };
    // Eight digits of hours are eleven thousand years: what a clock cannot hold is no bound.
    let Some(deadline) = arrival.checked_add(timeout) else { return next.run(request).await };
    if timeout.is_zero() {
        return trailers::only(&status::deadline_exceeded());
    }
    request.extensions_mut().insert(Deadline(deadline));
    let deadline = tokio::time::Instant::from_std(deadline);
    match tokio::time::timeout_at(deadline, next.run(request)).await {
        Err(_) => trailers::only(&status::deadline_exceeded()),
        // A response whose status is known has no work behind it.
        Ok(response) if trailers::code(response.headers()).is_some() => response,
        Ok(response) => response.map(|body| {
            let sleep = Box::pin(tokio::time::sleep_until(deadline));
            Body::new(Bounded { body: Some(body), sleep })
        }),
    }
}

/// Reads the value of `grpc-timeout`.
fn parse(text: &str) -> Option<Duration> {
    let (unit, digits) = text.as_bytes().split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(value * 3600)),
        b'M' => Some(Duration::from_secs(value * 60)),
        b'S' => Some(Duration::from_secs(value)),
        b'm' => Some(Duration::from_millis(value)),
        b'u' => Some(Duration::from_micros(value)),
        b'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// A body that ends at its deadline.
struct Bounded {
    /// `None` once the deadline has passed: what produced it is gone.
    body: Option<Body>,
    sleep: Pin<Box<Sleep>>,
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(body) = this.body.as_mut() else { return Poll::Ready(None) };
        // The clock first: a body that is always ready must end too.
        if this.sleep.as_mut().poll(cx).is_ready() {
            this.body = None;
            let end = trailers::trailers(&status::deadline_exceeded());
            return Poll::Ready(Some(Ok(Frame::trailers(end))));
        }
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::Router;
    use axum::routing::any;
    use http_body::Body as _;
    use proptest::prelude::*;
    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_says() {
        let good = [
            ("0n", Duration::ZERO),
            ("1n", Duration::from_nanos(1)),
            ("99999999u", Duration::from_micros(99_999_999)),
            ("5m", Duration::from_millis(5)),
            ("7S", Duration::from_secs(7)),
            ("2M", Duration::from_secs(120)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ];
        for (text, expected) in good {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for bad in ["", "S", "1", "123456789S", "-1S", "+1S", "1.5S", " 1S", "1 S", "1s", "1X", "１S", "SS"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,12}") {
            let _ = parse(&text);
        }
    }

    struct OnDrop(Arc<AtomicBool>);

    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    async fn call(timeout: &str, started: &Arc<AtomicBool>, dropped: &Arc<AtomicBool>, stream: bool) -> Response {
        let (started, dropped) = (Arc::clone(started), Arc::clone(dropped));
        let handler = move || {
            let guard = OnDrop(Arc::clone(&dropped));
            started.store(true, Ordering::SeqCst);
            async move {
                if !stream {
                    std::future::pending::<()>().await;
                }
                let endless = futures_util::stream::unfold(guard, |guard| async move {
                    std::future::pending::<()>().await;
                    Some((Ok::<_, axum::Error>(Bytes::new()), guard))
                });
                Response::new(Body::from_stream(endless))
            }
        };
        let app = Router::new().fallback(any(handler)).layer(axum::middleware::from_fn(bound));
        let request = http::Request::post("/").header(HEADER, timeout).body(Body::empty()).unwrap();
        app.oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn calls_and_streams_end_at_their_deadline_and_their_work_is_dropped() {
        let (started, dropped) = (Arc::default(), Arc::default());
        let response = call("50m", &started, &dropped, false).await;
        assert_eq!(trailers::code(response.headers()), Some(Code::DeadlineExceeded));
        assert!(dropped.load(Ordering::SeqCst));

        dropped.store(false, Ordering::SeqCst);
        let mut body = call("50m", &started, &dropped, true).await.into_body();
        assert!(!dropped.load(Ordering::SeqCst));
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        assert_eq!(trailers::code(frame.trailers_ref().unwrap()), Some(Code::DeadlineExceeded));
        assert!(dropped.load(Ordering::SeqCst), "the stream's work is dropped while the body is still held");
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn no_time_at_all_starts_no_work_and_malformed_time_is_refused() {
        let (started, dropped) = (Arc::default(), Arc::default());
        let response = call("0n", &started, &dropped, false).await;
        assert_eq!(trailers::code(response.headers()), Some(Code::DeadlineExceeded));
        let response = call("soon", &started, &dropped, false).await;
        assert_eq!(trailers::code(response.headers()), Some(Code::InvalidArgument));
        assert!(!started.load(Ordering::SeqCst));
    }
}
