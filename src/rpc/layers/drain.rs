//! Refuses new work while the server shuts down. Calls that only read, health and reflection are still answered.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::watch;

use super::trailers;
use crate::rpc::status;

/// Methods of ours that begin no work; a new method is refused unless it is named here.
const READS: [&str; 16] = [
    "/evenkeel.v1.ServerService/GetServerInfo",
    "/evenkeel.v1.AdapterService/GetAdapter",
    "/evenkeel.v1.AdapterService/ListAdapters",
    "/evenkeel.v1.AdapterService/DownloadAdapter",
    "/evenkeel.v1.AdapterService/GetAlias",
    "/evenkeel.v1.AdapterService/ListAliases",
    "/evenkeel.v1.JobService/GetJob",
    "/evenkeel.v1.JobService/ListJobs",
    "/evenkeel.v1.JobService/WatchJob",
    "/evenkeel.v1.DatasetService/GetDataset",
    "/evenkeel.v1.DatasetService/ListDatasets",
    "/evenkeel.v1.AuditService/GetAuditReport",
    "/evenkeel.v1.AuditService/ListAuditReports",
    "/evenkeel.v1.AuditService/CompareAudits",
    "/evenkeel.v1.AuditService/GetAuditPolicy",
    "/evenkeel.v1.AuditService/ListAuditPolicies",
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
    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;
    use crate::rpc::pb;

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
        let reads = ["Compare", "Download", "Get", "List", "Watch"];
        for file in FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap().file {
            for (service, method) in file.service.iter().flat_map(|s| s.method.iter().map(move |m| (s, m))) {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let refused = !reads.iter().any(|verb| method.name().starts_with(verb));
                assert_eq!(code(&path).await, refused.then_some(Code::Unavailable), "{path}");
            }
        }
    }
}
