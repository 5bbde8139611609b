//! The HTTP listener's pages: metrics, liveness, readiness, reports.
//!
//! `/metrics` is Prometheus' text format 0.0.4. `/reports/{id}` shows a report of an audit, by id or name of the audit.
//! `/healthz` answers while the process lives; `/readyz` only while the server takes requests: 503 from the first sign
//! of a shutdown. No page changes anything, and none shows a prompt.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use crate::audit::render;
use crate::metrics::Metrics;
use crate::reports::{Reports, ReportsError};

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Clone)]
struct Pages {
    metrics: Arc<Metrics>,
    ready: watch::Receiver<bool>,
    reports: Arc<Reports>,
}

/// Nothing but the page itself: no script, no picture or font from elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'";

/// Returns the pages; `ready` is true while the server takes requests.
pub fn router(metrics: Arc<Metrics>, ready: watch::Receiver<bool>, reports: Arc<Reports>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(ready_page))
        .route("/reports/{id}", get(report_page))
        .with_state(Pages { metrics, ready, reports })
}

async fn metrics_page(State(pages): State<Pages>) -> Response {
    match pages.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(e) => {
            tracing::error!(error = %e, "metrics cannot be written");
            (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n").into_response()
        }
    }
}

async fn ready_page(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    // A sender that is gone means that the server has ended.
    if *pages.ready.borrow() && pages.ready.has_changed().is_ok() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// A report as a page, by its id or the name of its audit.
async fn report_page(State(pages): State<Pages>, Path(id): Path<String>) -> Response {
    let reports = Arc::clone(&pages.reports);
    let page = tokio::task::spawn_blocking(move || reports.get(&id).map(|(_, report)| render::html(&report))).await;
    match page {
        Ok(Ok(page)) => {
            let headers = [
                (CONTENT_TYPE, "text/html; charset=utf-8"),
                (CONTENT_SECURITY_POLICY, POLICY),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (headers, page).into_response()
        }
        Ok(Err(ReportsError::ReportNotFound(_))) => {
            (StatusCode::NOT_FOUND, "there is no such report\n").into_response()
        }
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a report cannot be read");
            (StatusCode::INTERNAL_SERVER_ERROR, "the report cannot be read\n").into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a report cannot be shown");
            (StatusCode::INTERNAL_SERVER_ERROR, "the report cannot be shown\n").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    /// No reports yet, and where they would be.
    fn reports() -> (Arc<Reports>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(crate::store::Store::open(folder.path()).unwrap());
        let metrics = Arc::new(Metrics::new().unwrap());
        (Arc::new(Reports::open(store, crate::config::AuditSettings::default(), metrics).unwrap()), folder)
    }

    async fn status(router: &Router, path: &str) -> StatusCode {
        let request = Request::get(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn ready_follows_the_server_and_alive_does_not() {
        let (sender, ready) = watch::channel(false);
        let (reports, _folder) = reports();
        let router = router(Arc::new(Metrics::new().unwrap()), ready, reports);
        assert_eq!(status(&router, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status(&router, "/healthz").await, StatusCode::OK);
        assert_eq!(status(&router, "/reports/none").await, StatusCode::NOT_FOUND);
        sender.send(true).unwrap();
        assert_eq!(status(&router, "/readyz").await, StatusCode::OK);
        sender.send(false).unwrap();
        assert_eq!(status(&router, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        sender.send(true).unwrap();
        drop(sender);
        assert_eq!(status(&router, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status(&router, "/healthz").await, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_say_their_format() {
        let (_sender, ready) = watch::channel(true);
        let metrics = Arc::new(Metrics::new().unwrap());
        metrics.prompt_tokens.inc_by(7);
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let (reports, _folder) = reports();
        let response = router(metrics, ready, reports).oneshot(request).await.unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], TEXT_FORMAT);
        let text = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let text = std::str::from_utf8(&text).unwrap();
        assert!(text.contains("evenkeel_prompt_tokens_total 7\n"), "{text}");
    }
}
