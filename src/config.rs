//! Settings: defaults in code, overridden by file, environment and flags, in that order.
//!
//! This file says what can be set and which values make sense together; [`load`] reads the sources. It opens nothing
//! that a setting names: whether a model or a folder is there shows at start.

mod load;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Loaded, Override, Sources, load};

/// All settings of the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The base model.
    pub model: ModelSettings,
    /// The listeners.
    pub server: ServerSettings,
    /// The engine's budgets.
    pub engine: EngineSettings,
    /// Adapters.
    pub registry: RegistrySettings,
    /// Data sets.
    pub datasets: DatasetSettings,
    /// Long work.
    pub jobs: JobsSettings,
    /// Reports of audits.
    pub audits: AuditSettings,
    /// Logs.
    pub log: LogSettings,
}

/// Bytes of a GPU that steps compute with beside what they set aside: logits, and adapters of other kinds.
const STEP_BYTES: u64 = 512 << 20;

impl Settings {
    /// Returns the bytes of a GPU that neither caches nor jobs take: for adapters that lie there and no slot takes (DoRA,
    /// heads, whole models), of which there may be as many as adapters at all, and for steps.
    pub fn spare_bytes(&self) -> u64 {
        self.registry.memory_bytes.saturating_add(STEP_BYTES)
    }
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// Folder, GGUF file, or a name that `evenkeel pull` knows.
    pub path: String,
    /// Name shown to clients; default: the last part of `path`.
    pub name: Option<String>,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Number format of weights and activations: `auto`, `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// Classifiers of images beside it: folders, each as `NAME=FOLDER`, or called by the folder's last part.
    pub images: Vec<String>,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self { path: "smollm2-135m".into(), name: None, device: "cpu".into(), dtype: "auto".into(), images: Vec::new() }
    }
}

/// The listeners.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSettings {
    /// gRPC address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of /metrics, /healthz, /readyz and /reports/{id}; port 0 takes a free one.
    pub http_listen: SocketAddr,
    /// Allows other addresses than loopback without authentication.
    pub insecure: bool,
    /// Where everything durable is kept.
    pub data_dir: PathBuf,
    /// Largest request message.
    pub max_message_bytes: usize,
    /// Connections at a time; more are closed at once.
    pub max_connections: usize,
    /// Seconds a connection may take to send its first bytes.
    pub handshake_timeout_seconds: u64,
    /// Streams at a time on one connection.
    pub max_concurrent_streams: u32,
    /// Seconds given to running requests at shutdown.
    pub drain_seconds: u64,
    /// Serves reflection.
    pub reflection: bool,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50051)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            insecure: false,
            data_dir: PathBuf::from("evenkeel-data"),
            max_message_bytes: 4 << 20,
            max_connections: 1024,
            handshake_timeout_seconds: 10,
            max_concurrent_streams: 256,
            drain_seconds: 30,
            reflection: true,
        }
    }
}

impl ServerSettings {
    /// Returns the time given to running requests at shutdown.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

/// The engine's budgets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSettings {
    /// Sequences that may wait for their first step; an empty queue takes one request, however many it becomes.
    pub max_waiting_sequences: usize,
    /// Sequences computed in one step.
    pub max_running_sequences: usize,
    /// Tokens computed in one pass. Scores and classes have a smaller pass of their own after a step, in which a single
    /// text to classify is computed whole.
    pub max_step_tokens: usize,
    /// Bytes of key and value cache; none are 2 GiB on the CPU, and half of what is free and not spoken for on a GPU.
    pub kv_cache_bytes: Option<u64>,
    /// Bytes of a GPU for adapters that steps compute with: those used last stay there. None are room for as many as
    /// `max_running_sequences`, of rank 16 on all linear layers, and an eighth of what is free at most.
    pub adapter_slot_bytes: Option<u64>,
    /// Of the key and value cache, most bytes that keep what ended requests computed, for those that begin alike; 0
    /// keeps nothing. None are 128 MiB on the CPU, and all on a GPU.
    pub prefix_cache_bytes: Option<u64>,
    /// Images that may wait for their step, of each model.
    pub max_waiting_images: usize,
    /// Images computed in one step.
    pub max_step_images: usize,
    /// Largest image of a request, as its file.
    pub max_image_bytes: u64,
    /// Most pixels of an image of a request.
    pub max_image_pixels: u64,
    /// Most pixels of all images of one request.
    pub max_request_pixels: u64,
    /// Images of requests that are decoded at a time, each on a thread of its own.
    pub max_decoding_images: usize,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            max_waiting_sequences: 256,
            max_running_sequences: 64,
            max_step_tokens: 512,
            kv_cache_bytes: None,
            adapter_slot_bytes: None,
            prefix_cache_bytes: None,
            max_waiting_images: 256,
            max_step_images: 16,
            max_image_bytes: 10 << 20,
            max_image_pixels: MOST_IMAGE_PIXELS,
            max_request_pixels: 64 << 20,
            max_decoding_images: 2,
        }
    }
}

/// Adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Folder that `LoadAdapter` reads from; none: `LoadAdapter` takes stored adapters only.
    pub adapter_dir: Option<PathBuf>,
    /// Bytes of adapter weights kept in memory. A whole model counts as f32, four bytes a weight, and while it is being
    /// replaced old and new both count.
    pub memory_bytes: u64,
    /// Largest upload.
    pub max_upload_bytes: u64,
    /// Generations kept of one adapter, besides the current one and those that aliases point to or jobs need.
    pub keep_generations: usize,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self { adapter_dir: None, memory_bytes: 2 << 30, max_upload_bytes: 1 << 30, keep_generations: 8 }
    }
}

/// Most bytes that an image's file may be allowed.
pub const MOST_IMAGE_BYTES: u64 = 64 << 20;
/// Most pixels that an image may be allowed: 96 MiB once decoded, 256 MiB on the way there at worst.
pub const MOST_IMAGE_PIXELS: u64 = 32 << 20;

/// Most images of requests that may be decoded at a time.
pub const MOST_DECODING_IMAGES: u64 = 64;

/// Data sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetSettings {
    /// Folder below which `LoadDataset` reads images; none: it is refused.
    pub import_dir: Option<PathBuf>,
    /// Largest upload.
    pub max_upload_bytes: u64,
    /// Most rows of a data set.
    pub max_rows: u64,
    /// Largest row: a line of JSONL, the declared columns' text otherwise. An image does not count.
    pub max_row_bytes: u64,
    /// Largest image, as its file.
    pub max_image_bytes: u64,
    /// Most pixels of an image, width times height.
    pub max_image_pixels: u64,
    /// Most pixels of all images of a data set: each is decoded once when it comes, on one thread.
    pub max_total_pixels: u64,
    /// Most bytes of all declared columns together, decompressed.
    pub max_decoded_bytes: u64,
}

impl Default for DatasetSettings {
    fn default() -> Self {
        Self {
            import_dir: None,
            max_upload_bytes: 256 << 20,
            max_rows: 1_000_000,
            max_row_bytes: 1 << 20,
            max_image_bytes: 10 << 20,
            max_image_pixels: MOST_IMAGE_PIXELS,
            max_total_pixels: 4 << 30,
            max_decoded_bytes: 1 << 30,
        }
    }
}

/// Long work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobsSettings {
    /// Bytes that a job may take on top of the base model; a GPU sets them aside at start. None are a quarter of what a GPU
    /// has free beside the model and what is left to serving; on the CPU, as 0 on a GPU: what the device, the machine or
    /// the process's control group has free when the job begins.
    pub memory_bytes: Option<u64>,
    /// Jobs that may wait; those that were made for an audit do not count.
    pub max_queued: usize,
    /// Models that one audit may have trained before it, shadow models included.
    pub max_trained_models: usize,
    /// Finished jobs that are remembered, with their progress and checkpoints.
    pub keep_finished: usize,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: u64,
    /// Steps between checkpoints, if that is sooner; 0: by time only.
    pub checkpoint_steps: u64,
    /// Milliseconds that training waits for requests before it computes a slice between two of their steps.
    pub patience_milliseconds: u64,
}

impl Default for JobsSettings {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            max_queued: 64,
            max_trained_models: 256,
            keep_finished: 1000,
            checkpoint_seconds: 60,
            checkpoint_steps: 0,
            patience_milliseconds: 200,
        }
    }
}

/// Reports of audits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSettings {
    /// Most rows of uploaded scores.
    pub max_uploaded_rows: u64,
    /// Bytes of memory that uploaded scores take, all calls together, with what is computed of them.
    pub max_upload_bytes: u64,
    /// Reports that are kept.
    pub keep_reports: usize,
    /// Shows values of single groups as metrics, not only gaps.
    pub group_metrics: bool,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self { max_uploaded_rows: 2_000_000, max_upload_bytes: 4 << 30, keep_reports: 1000, group_metrics: false }
    }
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
    /// `text` or `json`.
    pub format: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".into(), format: "text".into() }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `section.key`.
    pub key: &'static str,
    /// What is wrong with its value.
    pub message: String,
}

impl Settings {
    /// Checks every value and what they mean together; returns all faults.
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        self.model.validate(&mut faults);
        self.server.validate(&mut faults);
        self.engine.validate(&mut faults);
        self.registry.validate(&mut faults);
        self.datasets.validate(&mut faults);
        self.jobs.validate(&mut faults);
        self.audits.validate(&mut faults);
        self.log.validate(&mut faults);
        faults.0
    }
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn unless(&mut self, sound: bool, key: &'static str, message: impl Into<String>) {
        if !sound {
            self.0.push(Fault { key, message: message.into() });
        }
    }

    /// TOML has no larger integers, so nothing larger could be printed or written into a file.
    fn count(&mut self, value: u64, key: &'static str) {
        self.unless((1..=i64::MAX as u64).contains(&value), key, format!("must be 1 to {}", i64::MAX));
    }
}

impl ModelSettings {
    fn validate(&self, faults: &mut Faults) {
        faults.unless(!self.path.is_empty(), "model.path", "must name a folder, a GGUF file or a model");
        faults.unless(self.name.as_deref() != Some(""), "model.name", "must not be empty");
        let sound = |entry: &String| !entry.is_empty() && !entry.starts_with('=') && !entry.ends_with('=');
        faults.unless(self.images.iter().all(sound), "model.images", "must be folders, each as NAME=FOLDER or FOLDER");
        let number = self.device.strip_prefix("cuda:").map(|n| n.bytes().all(|c| c.is_ascii_digit()) && n.len() <= 3);
        let known = match (self.device.as_str(), number) {
            ("cpu" | "cuda", _) => true,
            (_, sound) => sound == Some(true) && self.device != "cuda:",
        };
        faults.unless(known, "model.device", format!("must be cpu, cuda or cuda:N, not `{}`", self.device));
        let built = self.device == "cpu" || cfg!(feature = "cuda");
        faults.unless(!known || built, "model.device", "this program was built without CUDA");
        let dtypes = ["auto", "f32", "bf16", "f16"];
        let dtype = self.dtype.as_str();
        faults.unless(dtypes.contains(&dtype), "model.dtype", format!("must be auto, f32, bf16 or f16, not `{dtype}`"));
    }
}

impl ServerSettings {
    fn validate(&self, faults: &mut Faults) {
        for (key, address) in [("server.listen", self.listen), ("server.http_listen", self.http_listen)] {
            let message = format!(
                "{address} can be reached from other machines and nothing asks who calls; use a loopback address, or \
                 say --insecure if that is meant"
            );
            faults.unless(self.insecure || address.ip().is_loopback(), key, message);
        }
        let apart = self.listen != self.http_listen || self.listen.port() == 0;
        faults.unless(apart, "server.http_listen", "must differ from server.listen");
        faults.unless(!self.data_dir.as_os_str().is_empty(), "server.data_dir", "must not be empty");
        let message_bytes = (64 << 10)..=(1 << 30);
        let sound = message_bytes.contains(&self.max_message_bytes);
        faults.unless(sound, "server.max_message_bytes", "must be 65536 (64 KiB) to 1073741824 (1 GiB)");
        faults.count(self.max_connections as u64, "server.max_connections");
        let day = 86_400;
        let handshake = (1..=day).contains(&self.handshake_timeout_seconds);
        faults.unless(handshake, "server.handshake_timeout_seconds", format!("must be 1 to {day}"));
        faults.unless(self.drain_seconds <= day, "server.drain_seconds", format!("must be 0 to {day}"));
        faults.count(self.max_concurrent_streams.into(), "server.max_concurrent_streams");
    }
}

impl EngineSettings {
    /// Returns the bytes of key and value cache.
    pub fn kv_bytes(&self) -> u64 {
        self.kv_cache_bytes.unwrap_or(2 << 30)
    }

    /// Returns the bytes of it that keep what ended requests computed.
    pub fn prefix_bytes(&self) -> u64 {
        self.prefix_cache_bytes.unwrap_or(128 << 20)
    }

    fn validate(&self, faults: &mut Faults) {
        faults.count(self.max_waiting_sequences as u64, "engine.max_waiting_sequences");
        faults.count(self.max_running_sequences as u64, "engine.max_running_sequences");
        faults.count(self.max_step_tokens as u64, "engine.max_step_tokens");
        faults.count(self.kv_bytes(), "engine.kv_cache_bytes");
        faults.count(self.adapter_slot_bytes.unwrap_or(1), "engine.adapter_slot_bytes");
        let most = i64::MAX as u64;
        let kept = self.prefix_bytes() <= most;
        faults.unless(kept, "engine.prefix_cache_bytes", format!("must be 0 to {most}"));
        faults.count(self.max_waiting_images as u64, "engine.max_waiting_images");
        faults.count(self.max_step_images as u64, "engine.max_step_images");
        for (key, value, most) in [
            ("engine.max_image_bytes", self.max_image_bytes, MOST_IMAGE_BYTES),
            ("engine.max_image_pixels", self.max_image_pixels, MOST_IMAGE_PIXELS),
            ("engine.max_decoding_images", self.max_decoding_images as u64, MOST_DECODING_IMAGES),
        ] {
            faults.unless((1..=most).contains(&value), key, format!("must be 1 to {most}"));
        }
        faults.count(self.max_request_pixels, "engine.max_request_pixels");
        let running = self.max_running_sequences;
        let message = format!("must be at least engine.max_running_sequences ({running}): each may decode in a step");
        faults.unless(self.max_step_tokens == 0 || self.max_step_tokens >= running, "engine.max_step_tokens", message);
    }
}

impl RegistrySettings {
    fn validate(&self, faults: &mut Faults) {
        let empty = self.adapter_dir.as_ref().is_some_and(|dir| dir.as_os_str().is_empty());
        faults.unless(!empty, "registry.adapter_dir", "must not be empty");
        faults.count(self.memory_bytes, "registry.memory_bytes");
        faults.count(self.max_upload_bytes, "registry.max_upload_bytes");
        faults.count(self.keep_generations as u64, "registry.keep_generations");
    }
}

impl DatasetSettings {
    fn validate(&self, faults: &mut Faults) {
        let empty = self.import_dir.as_ref().is_some_and(|dir| dir.as_os_str().is_empty());
        faults.unless(!empty, "datasets.import_dir", "must not be empty");
        faults.count(self.max_upload_bytes, "datasets.max_upload_bytes");
        faults.count(self.max_rows, "datasets.max_rows");
        faults.count(self.max_row_bytes, "datasets.max_row_bytes");
        faults.count(self.max_decoded_bytes, "datasets.max_decoded_bytes");
        faults.count(self.max_total_pixels, "datasets.max_total_pixels");
        for (key, value, most) in [
            ("datasets.max_image_bytes", self.max_image_bytes, MOST_IMAGE_BYTES),
            ("datasets.max_image_pixels", self.max_image_pixels, MOST_IMAGE_PIXELS),
        ] {
            faults.unless((1..=most).contains(&value), key, format!("must be 1 to {most}"));
        }
    }
}

impl JobsSettings {
    /// Returns how long training waits for requests.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_milliseconds)
    }

    fn validate(&self, faults: &mut Faults) {
        let most = i64::MAX as u64;
        let sound = self.memory_bytes.unwrap_or(0) <= most;
        faults.unless(sound, "jobs.memory_bytes", format!("must be 0 to {most}"));
        faults.count(self.max_queued as u64, "jobs.max_queued");
        faults.count(self.max_trained_models as u64, "jobs.max_trained_models");
        faults.count(self.keep_finished as u64, "jobs.keep_finished");
        let day = 86_400;
        let seconds = (1..=day).contains(&self.checkpoint_seconds);
        faults.unless(seconds, "jobs.checkpoint_seconds", format!("must be 1 to {day}"));
        faults.unless(self.checkpoint_steps <= most, "jobs.checkpoint_steps", format!("must be 0 to {most}"));
        let minute = 60_000;
        let patience = self.patience_milliseconds <= minute;
        faults.unless(patience, "jobs.patience_milliseconds", format!("must be 0 to {minute}"));
    }
}

impl AuditSettings {
    fn validate(&self, faults: &mut Faults) {
        faults.count(self.max_uploaded_rows, "audits.max_uploaded_rows");
        faults.count(self.max_upload_bytes, "audits.max_upload_bytes");
        faults.count(self.keep_reports as u64, "audits.keep_reports");
    }
}

impl LogSettings {
    fn validate(&self, faults: &mut Faults) {
        if let Err(e) = tracing_subscriber::EnvFilter::builder().parse(&self.filter) {
            faults.unless(false, "log.filter", format!("`{}`: {e}", self.filter));
        }
        let format = self.format.as_str();
        let known = ["text", "json"].contains(&format);
        faults.unless(known, "log.format", format!("must be text or json, not `{format}`"));
    }
}
