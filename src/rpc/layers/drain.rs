//! Refuses new work while the server shuts down. Calls that only read, health and reflection are still answered.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::watch;

use super::trailers;
use crate::rpc::status;

/// Methods of ours that begin no work; a new method is refused unless it is named here.
const READS: [&str; 9] = [
    "/evenkeel.v1.ServerService/GetServerInfo",
    "/evenkeel.v1.AdapterService/GetAdapter",
    "/evenkeel.v1.AdapterService/ListAdapters",
    "/evenkeel.v1.AdapterService/DownloadAdapter",
    "/evenkeel.v1.AdapterService/GetAlias",
    "/evenkeel.v1.AdapterService/ListAliases",
    "/evenkeel.v1.JobService/GetJob",
    "/evenkeel.v1.JobService/ListJobs",
    "/evenkeel.v1.JobService/WatchJob",
];

pub(super) async fn refuse(State(draining): State<watch::Receiver<bool>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if *draining.borrow() && path.starts_with("/evenkeel.") && !READS.contains(&path) {
        return trailers::only(&status::draining());
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn only_new_work_is_refused_and_only_while_draining() {
        let (set, draining) = watch::channel(false);
        let app = Router::new()
            .fallback(|| std::future::ready("answered"))
            .layer(axum::middleware::from_fn_with_state(draining, refuse));
        let code = async |path: &str| {
            let request = http::Request::post(path).body(Body::empty()).unwrap();
            trailers::code(app.clone().oneshot(request).await.unwrap().headers())
        };
        assert_eq!(code("/evenkeel.v1.InferenceService/Generate").await, None);
        set.send(true).unwrap();
        assert_eq!(code("/evenkeel.v1.InferenceService/Generate").await, Some(Code::Unavailable));
        assert_eq!(code("/evenkeel.v1.AdapterService/SetAlias").await, Some(Code::Unavailable));
        assert_eq!(code("/evenkeel.v2.NewService/Anything").await, Some(Code::Unavailable));
        assert_eq!(code("/grpc.health.v1.Health/Check").await, None);
        for path in READS {
            assert_eq!(code(path).await, None, "{path}");
        }
    }
}
