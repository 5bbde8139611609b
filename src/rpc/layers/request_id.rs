//! Gives each call a name: the caller's `x-request-id` where it is sane, else a new UUID; echoed in the response.
//!
//! Opens the call's span. Neither prompts nor metadata values other than this one are logged.

use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderValue;
use tracing::Instrument as _;

use crate::rpc::context::RequestId;

const HEADER: &str = "x-request-id";
/// Longest id taken from a caller.
const LONGEST: usize = 128;

pub(super) async fn name(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(HEADER).and_then(sane).unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let span = tracing::info_span!("rpc", request_id = %id, method = %request.uri().path());
    request.extensions_mut().insert(RequestId(Arc::from(id.as_str())));
    let mut response = next.run(request).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

/// Returns an id of 1 to 128 visible ASCII characters.
fn sane(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let sound = (1..=LONGEST).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic());
    sound.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::any;
    use tower::ServiceExt as _;

    use super::*;

    async fn echoed(sent: Option<&str>) -> String {
        let handler = |request: Request| async move {
            request.extensions().get::<RequestId>().map(|id| id.0.to_string()).unwrap_or_default()
        };
        let app = Router::new().route("/", any(handler)).layer(axum::middleware::from_fn(name));
        let mut request = http::Request::new(Body::empty());
        if let Some(sent) = sent {
            request.headers_mut().insert(HEADER, HeaderValue::from_str(sent).unwrap());
        }
        let response = app.oneshot(request).await.unwrap();
        let header = response.headers()[HEADER].to_str().unwrap().to_owned();
        let seen = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        assert_eq!(seen, header.as_bytes(), "handler and caller see the same id");
        header
    }

    #[tokio::test]
    async fn a_sane_id_is_kept_and_any_other_replaced() {
        assert_eq!(echoed(Some("abc-1")).await, "abc-1");
        for insane in [None, Some(""), Some("a b"), Some(&*"x".repeat(129))] {
            let id = echoed(insane).await;
            assert!(uuid::Uuid::parse_str(&id).is_ok(), "{insane:?} gave {id}");
        }
    }
}
