//! The gRPC services as one router: what they share, and the layers around all of them.
//!
//! Listens to nothing and starts nothing; `server` does.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::{Code, Status};

use super::adapters::Adapters;
use super::audits::Audits;
use super::classify_rows::Rows;
use super::context::Context;
use super::datasets::DatasetApi;
use super::fine_tuning::FineTunings;
use super::images::Images;
use super::inference::Inference;
use super::info::Info;
use super::jobs::JobCalls;
use super::layers::{self, Methods};
use super::page::PageTokens;
use super::pb;
use super::pb::adapter_service_server::AdapterServiceServer;
use super::pb::audit_service_server::AuditServiceServer;
use super::pb::dataset_service_server::DatasetServiceServer;
use super::pb::fine_tuning_service_server::FineTuningServiceServer;
use super::pb::inference_service_server::InferenceServiceServer;
use super::pb::job_service_server::JobServiceServer;
use super::pb::server_service_server::ServerServiceServer;
use super::prompt::Prompts;
use super::status;
use super::upload;
use crate::config::Settings;
use crate::dataset::Datasets;
use crate::engine::Engine;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::model::ModelInfo;
use crate::model::chat::ChatTemplate;
use crate::model::companions::Companion;
use crate::model::tokenizer::Tokenizer;
use crate::registry::{Registry, RegistryError};
use crate::reports::Reports;

/// Files that go with a whole model, by the fingerprint of its base.
pub type Companions = HashMap<String, Arc<[Companion]>>;

/// What the services answer from; cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    /// Runs requests.
    pub engine: Engine,
    /// Classifiers of images.
    pub images: Images,
    /// Names adapters.
    pub registry: Arc<Registry>,
    /// Names data sets.
    pub datasets: Arc<Datasets>,
    /// Runs what is long.
    pub jobs: Jobs,
    /// Reports of audits.
    pub reports: Arc<Reports>,
    /// The base model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, if it has one.
    pub chat: Option<Arc<ChatTemplate>>,
    /// Files that go with whole models made from the base models.
    pub companions: Arc<Companions>,
    /// The base model.
    pub model: ModelInfo,
    /// Name of the base model shown to clients.
    pub model_name: String,
    /// Limits.
    pub settings: Arc<Settings>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Returns the names under which health is told by readiness: one a service.
pub fn readiness_names() -> [&'static str; 7] {
    use tonic::server::NamedService;
    [
        <ServerServiceServer<Info> as NamedService>::NAME,
        <InferenceServiceServer<Inference> as NamedService>::NAME,
        <AdapterServiceServer<Adapters> as NamedService>::NAME,
        <DatasetServiceServer<DatasetApi> as NamedService>::NAME,
        <FineTuningServiceServer<FineTunings> as NamedService>::NAME,
        <JobServiceServer<JobCalls> as NamedService>::NAME,
        <AuditServiceServer<Audits> as NamedService>::NAME,
    ]
}

impl Services {
    /// Builds the router of all services, layers included; `draining` turns true when new work is to be refused.
    ///
    /// # Errors
    /// When the descriptors cannot be read: a fault of the build.
    pub fn router(
        &self,
        health: tonic_health::server::HealthReporter,
        draining: watch::Receiver<bool>,
    ) -> Result<axum::Router, tonic_reflection::server::Error> {
        let most = self.settings.server.max_message_bytes;
        let prompts =
            Prompts { tokenizer: Arc::clone(&self.tokenizer), chat: self.chat.clone(), model: self.model.clone() };
        let info = ServerServiceServer::new(Info::new(self))
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd);
        let inference = Inference {
            engine: self.engine.clone(),
            images: self.images.clone(),
            model_name: self.model_name.clone(),
            registry: Arc::clone(&self.registry),
            prompts,
            rows: Rows::new(Arc::clone(&self.datasets)),
            metrics: Arc::clone(&self.metrics),
        };
        let inference = InferenceServiceServer::new(inference)
            .max_decoding_message_size(most)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd);
        let limit = self.settings.registry.max_upload_bytes;
        let adapters = Adapters {
            registry: Arc::clone(&self.registry),
            pages: PageTokens::new(),
            upload_memory: Arc::new(Semaphore::new(upload::permits(limit) as usize)),
            max_upload_bytes: limit,
            companions: Arc::clone(&self.companions),
        };
        // Tensors do not shrink: adapters are sent as they are.
        let adapters = AdapterServiceServer::new(adapters)
            .max_decoding_message_size(most)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let limit = self.settings.datasets.max_upload_bytes;
        let datasets = DatasetApi {
            datasets: Arc::clone(&self.datasets),
            pages: PageTokens::new(),
            upload_memory: Arc::new(Semaphore::new(upload::permits(limit) as usize)),
            max_upload_bytes: limit,
        };
        let datasets = DatasetServiceServer::new(datasets)
            .max_decoding_message_size(most)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd);
        let tunings = FineTunings { jobs: self.jobs.clone(), context_length: self.model.context_length };
        let tunings = FineTuningServiceServer::new(tunings)
            .max_decoding_message_size(most)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd);
        let jobs = JobServiceServer::new(JobCalls { jobs: self.jobs.clone(), pages: PageTokens::new() })
            .max_decoding_message_size(most)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd);
        let limit = self.settings.audits.max_upload_bytes;
        let audits = Audits {
            jobs: self.jobs.clone(),
            reports: Arc::clone(&self.reports),
            pages: PageTokens::new(),
            context_length: self.model.context_length,
            max_rows: self.settings.audits.max_uploaded_rows,
            upload_memory: Arc::new(Semaphore::new(upload::permits(limit) as usize)),
            max_upload_bytes: limit,
        };
        let audits = AuditServiceServer::new(audits)
            .max_decoding_message_size(most)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd);
        let health = tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(health),
        );
        let mut routes = Routes::builder();
        routes.add_service(info).add_service(inference).add_service(adapters).add_service(datasets);
        routes.add_service(tunings).add_service(jobs).add_service(audits).add_service(health);
        if self.settings.server.reflection {
            routes.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?);
        }
        let methods = Methods::from_descriptors(pb::FILE_DESCRIPTOR_SET);
        Ok(layers::wrap(routes.routes().into_axum_router(), methods, Arc::clone(&self.metrics), draining))
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

/// Runs blocking work off the async threads. It runs to its end even when the caller leaves: what was begun is
/// completed and recorded.
pub(super) async fn blocking<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|fault| status::internal(&fault, &context.request_id))
}

/// As [`blocking`], for the registry.
pub(super) async fn in_registry<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, Status> {
    blocking(context, work).await?.map_err(|error| {
        let status = status::registry(&error, context);
        if status.code() != Code::Internal {
            tracing::debug!(%error, "registry refused");
        }
        status
    })
}
