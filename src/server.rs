//! Wires the rooms together: store → registry, data sets and reports → engine → jobs → services, and takes them down in
//! order.
//!
//! The model is loaded before: `bind` opens the listeners first, so that a taken port is found out before the adapters
//! are read, and is ready when it returns. Signals, logs and the ready line are `main`'s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::audit::scoring;
use crate::config::Settings;
use crate::dataset::{DatasetError, Datasets};
use crate::engine::{Engine, ImageEngine};
use crate::jobs::{Jobs, JobsError, Parts, Rows};
use crate::metrics::Metrics;
use crate::model::chat::ChatTemplate;
use crate::model::companions::Companion;
use crate::model::tokenizer::Tokenizer;
use crate::model::{CausalLm, ImageClassifier, Reserved};
use crate::registry::{NamedBase, Registry, RegistryError};
use crate::reports::{Reports, ReportsError};
use crate::rpc::decode::Decoder;
use crate::rpc::images::{Images, ServedImages};
use crate::rpc::listener::{Listener, Stop};
use crate::rpc::{Companions, Services, readiness_names};
use crate::store::{Store, StoreError};
use crate::train::{Context, Reader};
use crate::turns::Turns;

/// Time that calls outside of the engine get at least to end, however long the engine took.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// A base model, read and ready.
pub struct Loaded {
    /// Name shown to clients.
    pub name: String,
    /// The weights.
    pub model: Arc<dyn CausalLm>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to text, if the model has a template.
    pub chat: Option<Arc<ChatTemplate>>,
    /// Files that go with a whole model made from it.
    pub companions: Arc<[Companion]>,
    /// Classifiers of images beside it.
    pub images: Vec<ImageModel>,
}

/// A classifier of images, read and ready.
#[derive(Clone)]
pub struct ImageModel {
    /// Name shown to clients.
    pub name: String,
    /// The weights.
    pub model: Arc<dyn ImageClassifier>,
    /// Files that go with a whole model made from it.
    pub companions: Arc<[Companion]>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("name", &self.name).field("model", self.model.info()).finish_non_exhaustive()
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address that others can reach, without authentication.
    #[error("{0} can be reached from outside and there is no authentication: use loopback, or set insecure")]
    Insecure(SocketAddr),
    /// An address cannot be had.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The instruments clash.
    #[error("cannot build the metrics")]
    Metrics(#[from] prometheus::Error),
    /// The data directory cannot be used.
    #[error("cannot open the data directory")]
    Store(#[from] StoreError),
    /// The adapters cannot be read.
    #[error("cannot open the registry")]
    Registry(#[from] RegistryError),
    /// The data sets cannot be read.
    #[error("cannot open the data sets")]
    Datasets(#[from] DatasetError),
    /// The reports cannot be read.
    #[error("cannot open the reports")]
    Reports(#[from] ReportsError),
    /// The jobs cannot be read.
    #[error("cannot open the jobs")]
    Jobs(#[from] JobsError),
    /// The descriptors cannot be read.
    #[error("cannot serve reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Opening failed unexpectedly.
    #[error("opening was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// A server that listens and has everything it needs.
pub struct Server {
    grpc: Listener,
    grpc_addr: SocketAddr,
    http: TcpListener,
    http_addr: SocketAddr,
    pages: axum::Router,
    engine: Engine,
    images: Images,
    jobs: Jobs,
    health: HealthReporter,
    ready: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    stop: Stop,
    drain: Duration,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { grpc_addr, http_addr, .. } = self;
        f.debug_struct("Server").field("grpc", grpc_addr).field("http", http_addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the listeners, the data directory and the adapters, and starts the engine.
    ///
    /// # Errors
    /// When an address is open to others without `insecure`, cannot be had, or something durable cannot be opened.
    pub async fn bind(mut settings: Settings, loaded: Loaded) -> Result<Self, ServerError> {
        let reserved = loaded.model.reserved();
        if let Some(reserved) = reserved {
            settings.engine.kv_cache_bytes = Some(reserved.kv_cache);
            settings.engine.prefix_cache_bytes.get_or_insert(reserved.kv_cache);
        }
        let settings = Arc::new(settings);
        let (listener, grpc_addr) = listen(settings.server.listen, settings.server.insecure).await?;
        let (http, http_addr) = listen(settings.server.http_listen, settings.server.insecure).await?;
        let metrics = Arc::new(Metrics::new()?);
        let info = loaded.model.info().clone();
        metrics.build_info(&loaded.name, &info.fingerprint, &info.device, &info.dtype)?;
        if let Some(Reserved { weights, kv_cache, audits, steps, adapters, jobs }) = reserved {
            let kept = [("weights", weights), ("kv_cache", kv_cache), ("audits", audits), ("steps", steps)];
            metrics.device_reserved(&[&kept[..], &[("adapters", adapters), ("jobs", jobs)]].concat())?;
        }

        let (opening, counts) = (Arc::clone(&settings), Arc::clone(&metrics));
        let mut bases = vec![NamedBase { name: loaded.name.clone(), model: Arc::clone(&loaded.model) as _ }];
        bases.extend(
            loaded
                .images
                .iter()
                .map(|image| NamedBase { name: image.name.clone(), model: Arc::clone(&image.model) as _ }),
        );
        // Reads and checks adapters: long, and blocking.
        let durable = tokio::task::spawn_blocking(move || {
            let store = Arc::new(Store::open(&opening.server.data_dir)?);
            let datasets = Datasets::open(Arc::clone(&store), opening.datasets.clone())?;
            let registry = Registry::open(Arc::clone(&store), bases, opening.registry.clone(), Arc::clone(&counts))?;
            let reports = Reports::open(Arc::clone(&store), opening.audits.clone(), counts)?;
            Ok::<_, ServerError>((store, Arc::new(registry), Arc::new(datasets), Arc::new(reports)))
        });
        let (store, registry, datasets, reports) = durable.await??;
        let turns = Arc::new(Turns::new(settings.jobs.patience()));
        let engine = Engine::start(
            Arc::clone(&loaded.model),
            Arc::clone(&loaded.tokenizer),
            settings.engine.clone(),
            Arc::clone(&metrics),
            Arc::clone(&turns),
        );
        let of = |image: &ImageModel| (image.model.info().fingerprint.clone(), Arc::clone(&image.companions));
        let mut companions: Companions = loaded.images.iter().map(of).collect();
        companions.insert(info.fingerprint.clone(), loaded.companions);
        let decoder = Decoder::new(&settings.engine);
        let images = loaded.images.iter().map(|ImageModel { name, model, .. }| {
            let (counts, turns) = (metrics.of_images(name)?, Arc::clone(&turns));
            let engine = ImageEngine::start(Arc::clone(model), &settings.engine, counts, turns);
            let (model, decoder) = (Arc::clone(model), decoder.clone());
            Ok::<_, ServerError>(ServedImages { name: name.clone(), model, engine, decoder })
        });
        let images = Images(images.collect::<Result<_, _>>()?);
        let mut auditing: Vec<scoring::Base> = vec![scoring::Base::Text(scoring::Context {
            model: Arc::clone(&loaded.model),
            name: loaded.name.clone(),
            tokenizer: Arc::clone(&loaded.tokenizer),
            chat: loaded.chat.clone(),
        })];
        auditing.extend(loaded.images.iter().map(|ImageModel { name, model, .. }| {
            scoring::Base::Images(scoring::ImageContext { model: Arc::clone(model), name: name.clone() })
        }));
        let memory_bytes = reserved.map_or_else(|| settings.jobs.memory_bytes.unwrap_or(0), |reserved| reserved.jobs);
        let spare_bytes = reserved.map_or(0, |_| settings.spare_bytes());
        let reader = Reader::Text { tokenizer: Arc::clone(&loaded.tokenizer), chat: loaded.chat.clone() };
        let mut training = vec![Context { model: loaded.model, reader, memory_bytes, spare_bytes }];
        training.extend(loaded.images.into_iter().map(|ImageModel { model, .. }| {
            let reader = Reader::Images(model.processor().clone());
            Context { model, reader, memory_bytes, spare_bytes }
        }));
        let parts = Parts {
            store,
            registry: Arc::clone(&registry),
            rows: Arc::clone(&datasets) as Arc<dyn Rows>,
            training: Arc::new(training),
            auditing: Arc::new(auditing),
            reports: Arc::clone(&reports),
            turns,
            metrics: Arc::clone(&metrics),
            settings: settings.jobs.clone(),
        };
        // Reads rows: blocking.
        let jobs = tokio::task::spawn_blocking(move || Jobs::start(parts)).await??;

        let services = Services {
            engine: engine.clone(),
            images: images.clone(),
            registry,
            datasets,
            jobs: jobs.clone(),
            reports: Arc::clone(&reports),
            tokenizer: loaded.tokenizer,
            chat: loaded.chat,
            companions: Arc::new(companions),
            model: info,
            model_name: loaded.name,
            settings: Arc::clone(&settings),
            metrics: Arc::clone(&metrics),
        };
        let health = HealthReporter::new();
        for name in readiness_names() {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        let (ready, is_ready) = watch::channel(true);
        let (draining, is_draining) = watch::channel(false);
        let router = services.router(health.clone(), is_draining)?;
        let stop = Stop::default();
        Ok(Self {
            grpc: Listener::new(listener, router, &settings.server, Arc::clone(&metrics), stop.clone()),
            grpc_addr,
            http,
            http_addr,
            pages: crate::http::router(metrics, is_ready, reports),
            engine,
            images,
            jobs,
            health,
            ready,
            draining,
            stop,
            drain: settings.server.drain(),
        })
    }

    /// Returns where gRPC listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Returns where the pages of metrics, health and reports are.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Serves until `shutdown` ends, then drains: health of each service and readiness say no, new work is refused,
    /// what runs gets `drain_seconds` to end, connections get GOAWAY, and both listeners close.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let grpc = tokio::spawn(self.grpc.run());
        let http_stop = self.stop.forced.clone();
        let http = tokio::spawn(async move {
            let serving = axum::serve(self.http, self.pages).with_graceful_shutdown(http_stop.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "the HTTP listener failed");
            }
        });
        shutdown.await;
        tracing::info!(seconds = self.drain.as_secs(), "draining");
        let began = Instant::now();
        // The server as a whole, "", goes on saying that it lives.
        for name in readiness_names() {
            self.health.set_service_status(name, ServingStatus::NotServing).await;
        }
        self.draining.send_replace(true);
        self.ready.send_replace(false);
        let images = self.images.0.iter().map(|served| served.engine.drain(self.drain));
        let images = futures_util::future::join_all(images);
        tokio::join!(self.engine.drain(self.drain), images, self.jobs.drain(self.drain));
        self.stop.graceful.cancel();
        // What is no matter of the engine (uploads, downloads, health watches) gets what is left of the time.
        let left = self.drain.saturating_sub(began.elapsed()).max(LAST_GRACE);
        let mut grpc = grpc;
        if tokio::time::timeout(left, &mut grpc).await.is_err() {
            tracing::warn!("connections are closed with calls still open");
            self.stop.forced.cancel();
            let _ = grpc.await;
        }
        self.stop.forced.cancel();
        // A scraper that keeps its connection open must not keep the process alive.
        let _ = tokio::time::timeout(LAST_GRACE, http).await;
        tracing::info!("stopped");
    }
}

/// Opens a listener, on loopback only unless `insecure`.
async fn listen(address: SocketAddr, insecure: bool) -> Result<(TcpListener, SocketAddr), ServerError> {
    if !insecure && !address.ip().is_loopback() {
        return Err(ServerError::Insecure(address));
    }
    let failed = |source| ServerError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_of_the_outside_are_refused_unless_meant() {
        let open = SocketAddr::from(([0, 0, 0, 0], 0));
        assert!(matches!(listen(open, false).await, Err(ServerError::Insecure(_))));
        assert!(listen(open, true).await.is_ok());
        let (_held, taken) = listen(SocketAddr::from(([127, 0, 0, 1], 0)), false).await.unwrap();
        assert!(matches!(listen(taken, false).await, Err(ServerError::Bind { .. })));
    }
}
