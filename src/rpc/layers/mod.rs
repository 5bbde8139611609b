//! What is the same for every call, once: outermost first request id, metrics, panics, protocol, deadline, drain.
//!
//! Metrics stand outside of the panic layer so that a panic is counted as the INTERNAL that the caller sees.
//! No layer knows a message type; handlers read what a layer found out from the request's extensions.

mod deadline;
mod drain;
mod methods;
mod metrics;
mod panic;
mod protocol;
mod request_id;
mod trailers;

use std::sync::Arc;

use axum::middleware::{from_fn, from_fn_with_state};
use tokio::sync::watch;

pub use methods::Methods;

use crate::metrics::Metrics;

/// Wraps the services' routes in all layers.
pub fn wrap(
    routes: axum::Router,
    methods: Methods,
    metrics: Arc<Metrics>,
    draining: watch::Receiver<bool>,
) -> axum::Router {
    let counted = metrics::Counted { metrics, methods: Arc::new(methods) };
    routes
        .layer(from_fn_with_state(draining, drain::refuse))
        .layer(from_fn(deadline::bound))
        .layer(from_fn(protocol::guard))
        .layer(from_fn(panic::catch))
        .layer(from_fn_with_state(counted, metrics::count))
        .layer(from_fn(request_id::name))
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;
    use tonic::{Code, Request};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::health_server::HealthServer;
    use tonic_health::server::{HealthReporter, HealthService};
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::config::ServerSettings;
    use crate::rpc::listener::{Listener, Stop};
    use crate::rpc::pb;
    use crate::rpc::pb::server_service_client::ServerServiceClient;

    /// All layers and the listener, over a real connection, around the health service.
    #[tokio::test]
    async fn calls_pass_all_layers_over_a_real_connection() {
        let health = HealthServer::new(HealthService::from_health_reporter(HealthReporter::new()));
        let routes = tonic::service::Routes::new(health).into_axum_router();
        let metrics = Arc::new(Metrics::new().unwrap());
        let (set_draining, draining) = watch::channel(false);
        let methods = Methods::from_descriptors(pb::FILE_DESCRIPTOR_SET);
        let router = wrap(routes, methods, Arc::clone(&metrics), draining);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Stop::default();
        let settings = ServerSettings::default();
        let listener = Listener::new(listener, router, &settings, Arc::clone(&metrics), stop.clone());
        let running = tokio::spawn(listener.run());
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();

        let mut client = HealthClient::new(channel.clone());
        let mut check = Request::new(HealthCheckRequest::default());
        check.metadata_mut().insert("x-request-id", "mine-1".parse().unwrap());
        let response = client.check(check).await.unwrap();
        assert_eq!(response.metadata().get("x-request-id").unwrap(), "mine-1");
        let labels = ["unary", "grpc.health.v1.Health", "Check", "OK"];
        assert_eq!(metrics.grpc_handled.with_label_values(&labels).get(), 1);

        let mut info = ServerServiceClient::new(channel.clone());
        let missing = info.get_server_info(pb::GetServerInfoRequest {}).await.unwrap_err();
        assert_eq!(missing.code(), Code::Unimplemented);
        assert_eq!(missing.get_details_error_info().unwrap().reason, "UNIMPLEMENTED");

        // A watch has no end of its own: the deadline ends it, with its own code.
        let mut watch = Request::new(HealthCheckRequest::default());
        watch.metadata_mut().insert("grpc-timeout", "50m".parse().unwrap());
        let mut stream = client.watch(watch).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        let end = stream.message().await.unwrap_err();
        assert_eq!(
            (end.code(), end.get_details_error_info().unwrap().reason.as_str()),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
        );

        let mut inference = crate::rpc::pb::inference_service_client::InferenceServiceClient::new(channel);
        set_draining.send_replace(true);
        let refused = inference.generate(pb::GenerateRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.get_details_retry_info().is_some());

        stop.graceful.cancel();
        running.await.unwrap();
    }
}
