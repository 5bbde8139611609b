//! Adapters by name: generations, aliases, leases, and the byte budget.
//!
//! Reads no PEFT file and runs no request: the model makes an adapter, the engine uses it. A change is on the disk
//! before the table in memory shows it, and in the table before it is acknowledged. `names` is that table, `lookup`
//! finds and loads, `changes` changes, `memory` keeps the budget, `directory` reads folders.
//!
//! Locks, in the order in which they are taken: `preparing` (one adapter is checked at a time, so that what is checked
//! but not yet counted is bounded), `changing` (commit and table change together), the store. `resident` takes none of
//! them. Guards of `names` may be held while the memory is asked, never the other way round. Units: bytes.

mod changes;
mod directory;
mod kind;
mod lookup;
mod memory;
mod names;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use dashmap::DashMap;

use crate::config::RegistrySettings;
use crate::lora::{Generation, Kind, LoraError};
use crate::metrics::Metrics;
use crate::model::{BaseModel, ModelError};
use crate::reports::GateError;
use crate::store::{RequestIdReused, Store, StoreError};
pub(crate) use changes::compare;
use memory::Memory;
use names::{Entry, Names};

pub use crate::store::{Name, RequestKey};

/// What a request calls an adapter: a name or alias, or one generation of an adapter (`name@` and at least 8
/// hexadecimal digits).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Adapter or alias.
    pub name: Name,
    /// Leading hexadecimal digits of the generation, lower case.
    pub generation: Option<String>,
}

impl Reference {
    /// Checks a reference.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, generation) = match text.split_once('@') {
            None => (text, None),
            Some((name, digits)) => {
                let hexadecimal = digits.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
                if !hexadecimal || !(8..=64).contains(&digits.len()) {
                    return None;
                }
                (name, Some(digits.to_owned()))
            }
        };
        Some(Self { name: Name::parse(name)?, generation })
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.generation {
            Some(digits) => write!(f, "{}@{digits}", self.name),
            None => self.name.fmt(f),
        }
    }
}

/// What must be current for a change to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Anything.
    Any,
    /// Nothing: the name is free.
    Absent,
    /// This generation.
    Generation(Generation),
}

/// The two files of a PEFT folder, or of a folder with a whole model.
#[derive(Debug, Clone)]
pub struct AdapterFiles {
    /// `adapter_config.json` or `config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors` or `model.safetensors`.
    pub tensors: Vec<u8>,
}

/// How a generation was made: by which job, from which data, and what it replaced.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Lineage {
    /// Id of the job.
    pub job: String,
    /// Id of the data set: its digest.
    pub dataset: String,
    /// Fingerprint of the base model that it was trained on.
    pub base: String,
    /// Settings of the training, as the job wrote them.
    pub settings: serde_json::Value,
    /// Generation that was current before it, if there was one. Filled in when it is published.
    pub parent: Option<String>,
    /// Id of the audit that the job was made for, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
    /// Steps after which it was published on the way; none: it is the result of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
}

/// A base model, and what clients call it.
#[derive(Clone)]
pub struct NamedBase {
    /// Its name.
    pub name: String,
    /// The weights; never written.
    pub model: Arc<dyn BaseModel>,
}

/// Publishes an adapter.
#[derive(Debug)]
pub struct Publish {
    /// Name to publish under.
    pub name: Name,
    /// Name or fingerprint of the base model that it is for; `None`: the first one.
    pub base: Option<String>,
    /// What must be current.
    pub expected: Expected,
    /// Keeps it in memory; `None` leaves it as it was.
    pub pinned: Option<bool>,
    /// Accepts an adapter that changes nothing.
    pub allow_no_effect: bool,
    /// Makes a repeated call harmless.
    pub request: Option<RequestKey>,
    /// How it was made; `None` leaves what is known of the same content.
    pub lineage: Option<Lineage>,
}

/// One stored generation.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct GenerationRecord {
    /// Hexadecimal id.
    pub id: String,
    /// When it was published.
    pub created: SystemTime,
    /// Whether it is in memory.
    pub resident: bool,
    /// Bytes of its tensors in memory.
    pub bytes: u64,
    /// Requests that run on it.
    pub leases: u32,
    /// Largest change of a logit of the fixed prompt.
    pub effect: f64,
    /// How it was made; none when it was brought.
    pub lineage: Option<Lineage>,
}

/// One adapter.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct AdapterRecord {
    /// Name.
    pub name: String,
    /// Id of the current generation.
    pub current: String,
    /// Base model it was checked against.
    pub base_fingerprint: String,
    /// How it changes weights.
    #[serde(alias = "dora", deserialize_with = "kind::read")]
    pub kind: Kind,
    /// Largest rank.
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// Modules it changes.
    pub modules: Vec<String>,
    /// PEFT task type.
    pub task_type: String,
    /// Stays in memory.
    pub pinned: bool,
    /// Newest first.
    pub generations: Vec<GenerationRecord>,
    /// Aliases that point to it.
    pub aliases: Vec<String>,
}

/// One alias.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct AliasRecord {
    /// Name.
    pub name: String,
    /// Adapter.
    pub adapter: String,
    /// Generation.
    pub generation: String,
    /// When it was last set.
    pub updated: SystemTime,
    /// Audit policy that every target has to pass.
    #[serde(default)]
    pub policy: Option<String>,
}

/// What the targets of an alias have to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// What they had to pass before.
    AsItWas,
    /// Nothing from now on.
    Nothing,
    /// This audit policy, this target too.
    Policy(Name),
}

/// A stored file of an adapter, for download.
#[derive(Debug, Clone)]
pub struct StoredFile {
    /// Its name in the folder.
    pub name: &'static str,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub size: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// Why the registry refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The alias demands an audit policy that the target does not pass.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// No adapter or alias of this name, or no such generation.
    #[error("there is no adapter `{0}`")]
    AdapterNotFound(String),
    /// No base model of this name.
    #[error("there is no base model `{name}`, but {known}")]
    BaseNotFound {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// No alias of this name.
    #[error("there is no alias `{0}`")]
    AliasNotFound(String),
    /// An alias or adapter has the name already.
    #[error("`{0}` is taken by {1}")]
    NameTaken(String, &'static str),
    /// Something else is current.
    #[error("`{name}` is at generation `{actual}`, not `{expected}`")]
    GenerationMismatch {
        /// Adapter or alias.
        name: String,
        /// What the caller expected; empty: nothing.
        expected: String,
        /// What is; empty: nothing.
        actual: String,
    },
    /// The adapter's files are faulty, unsupported or do not fit.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The adapter changes no logit of the fixed prompt.
    #[error("the adapter changes no logit of a fixed prompt; allow_no_effect accepts it all the same")]
    NoEffect,
    /// Does not fit into the byte budget.
    #[error(
        "needs {needed} bytes of memory for adapters, registry.memory_bytes is {budget} and {busy} are pinned or in use"
    )]
    Budget {
        /// Bytes needed.
        needed: u64,
        /// The whole budget.
        budget: u64,
        /// Bytes that cannot leave now.
        busy: u64,
    },
    /// It is pinned.
    #[error("`{0}` is pinned")]
    Pinned(String),
    /// Aliases point to it.
    #[error("aliases point to `{name}`: {}", aliases.join(", "))]
    InUse {
        /// The adapter.
        name: String,
        /// The aliases.
        aliases: Vec<String>,
    },
    /// Jobs that are not finished need one of its generations.
    #[error("jobs need `{name}`: {}", jobs.join(", "))]
    Held {
        /// The adapter.
        name: String,
        /// Ids of the jobs.
        jobs: Vec<String>,
    },
    /// The server has no adapter folder.
    #[error("the server was started without an adapter folder")]
    NoAdapterDir,
    /// The folder or a file in it cannot be taken.
    #[error("{0}")]
    Directory(String),
    /// The request id was used for another request.
    #[error("request_id `{0}` was used for another request")]
    RequestIdReused(String),
    /// A pass of the model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<RequestIdReused> for RegistryError {
    fn from(RequestIdReused(id): RequestIdReused) -> Self {
        Self::RequestIdReused(id)
    }
}

/// Adapters by name. Methods block (disk, hashing, a pass of the model): call them off the async threads, except
/// [`Registry::resident`].
pub struct Registry {
    store: Arc<Store>,
    /// What adapters can be bound to; the first is meant where a request names none.
    bases: Vec<NamedBase>,
    settings: RegistrySettings,
    metrics: Arc<Metrics>,
    // Shows what the store holds; written under `changing` only.
    names: Names,
    memory: Memory,
    // Generations being read from disk: one reader each, the others wait for it.
    loading: DashMap<Generation, Arc<Mutex<()>>>,
    preparing: Mutex<()>,
    changing: Mutex<()>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("names", &self.names.len()).field("memory", &self.memory).finish()
    }
}

impl Registry {
    /// Opens the registry and forgets nothing that was acknowledged; pinned adapters are loaded.
    ///
    /// A pinned adapter that cannot be loaded (damaged, of another base model, over the budget) is logged and stays on
    /// disk: it is no reason not to serve the others.
    ///
    /// # Errors
    /// When the store fails.
    pub fn open(
        store: Arc<Store>,
        bases: Vec<NamedBase>,
        settings: RegistrySettings,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RegistryError> {
        metrics.adapter_bytes_limit.set(i64::try_from(settings.memory_bytes).unwrap_or(i64::MAX));
        let memory = Memory::new(settings.memory_bytes, metrics.adapter_bytes.clone());
        let registry = Self {
            store,
            bases,
            settings,
            metrics,
            names: Names::default(),
            memory,
            loading: DashMap::new(),
            preparing: Mutex::default(),
            changing: Mutex::default(),
        };
        registry.read_names()?;
        for (name, generation) in registry.names.pinned() {
            if let Err(error) = registry.bring(&name, generation) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(adapter = %name, %generation, error, "pinned adapter not loaded");
            }
        }
        registry.show();
        Ok(registry)
    }
}

#[cfg(test)]
mod tests;
