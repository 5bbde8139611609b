//! Tests of names, generations, leases, budget and repeated requests, on a model that makes adapters from a line of
//! text: `BYTES EFFECT` is the configuration.

mod budget;
mod durable;
mod naming;

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sha2::{Digest, Sha256};

use super::*;
use crate::lora::{Adapter, AdapterInfo, Kind};
use crate::metrics::ADAPTER_LABELS;
use crate::model::ModelInfo;

struct Fake {
    info: ModelInfo,
    loads: AtomicUsize,
    // Two meetings: a load has begun; it may go on.
    pause: Mutex<Option<Arc<Barrier>>>,
}

impl BaseModel for Fake {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn effect(&self, adapter: &Arc<Adapter>) -> Result<f64, ModelError> {
        Ok(adapter.info().alpha)
    }

    fn load_adapter(&self, config: &[u8], tensors: &[u8]) -> Result<Adapter, LoraError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let pause = self.pause.lock().unwrap().take();
        if let Some(pause) = pause {
            pause.wait();
            pause.wait();
        }
        let fault = || LoraError::Invalid("not a line".into());
        let (bytes, effect) = std::str::from_utf8(config).ok().and_then(|t| t.split_once(' ')).ok_or_else(fault)?;
        let info = AdapterInfo {
            kind: Kind::Lora,
            rank: 2,
            alpha: effect.parse().map_err(|_| fault())?,
            modules: vec!["model.layers.0.self_attn.q_proj".into()],
            task_type: "CAUSAL_LM".into(),
            bytes: bytes.parse().map_err(|_| fault())?,
            classes: None,
        };
        let digest = Sha256::new().chain_update(config).chain_update(tensors).chain_update(&self.info.fingerprint);
        Ok(Adapter::hollow(Generation::from_digest(digest.finalize().into()), info))
    }
}

struct House {
    registry: Registry,
    model: Arc<Fake>,
    metrics: Arc<Metrics>,
    folder: Arc<tempfile::TempDir>,
}

struct Plan {
    base: &'static str,
    settings: RegistrySettings,
}

impl Default for Plan {
    fn default() -> Self {
        Self { base: "base", settings: RegistrySettings { memory_bytes: 1000, ..Default::default() } }
    }
}

impl Plan {
    fn open(self, folder: Arc<tempfile::TempDir>) -> House {
        let info = ModelInfo {
            architecture: "Fake".into(),
            fingerprint: self.base.into(),
            parameters: 0,
            dtype: "f32".into(),
            context_length: 1,
            vocab_size: 1,
            eos_token_ids: vec![],
            labels: None,
            classes: None,
            device: "cpu".into(),
            kv_bytes_per_token: 0,
            image_size: None,
        };
        let model = Arc::new(Fake { info, loads: AtomicUsize::new(0), pause: Mutex::default() });
        let metrics = Arc::new(Metrics::new().unwrap());
        let store = Arc::new(Store::open(&folder.path().join("data")).unwrap());
        let bases = vec![NamedBase { name: "base".into(), model: model.clone() }];
        let registry = Registry::open(store, bases, self.settings, metrics.clone()).unwrap();
        House { registry, model, metrics, folder }
    }

    fn start(self) -> House {
        self.open(Arc::new(tempfile::tempdir().unwrap()))
    }

    fn memory(bytes: u64) -> Self {
        Self { settings: RegistrySettings { memory_bytes: bytes, ..Default::default() }, ..Default::default() }
    }
}

impl House {
    fn reopen(self, plan: Plan) -> Self {
        let folder = self.folder.clone();
        drop(self);
        plan.open(folder)
    }

    fn publish(&self, publish_as: &str, bytes: u64, tensors: &str) -> AdapterRecord {
        self.registry.publish(files(bytes, tensors), publish(publish_as)).unwrap()
    }

    fn lease(&self, reference: &str) -> Arc<Adapter> {
        self.registry.resolve(&self::reference(reference)).unwrap()
    }

    fn resident(&self, reference: &str) -> bool {
        self.registry.resident(&self::reference(reference)).is_some()
    }

    fn loads(&self) -> usize {
        self.model.loads.load(Ordering::SeqCst)
    }

    fn blobs(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("data/blobs")).unwrap().count()
    }

    /// Every acknowledged fact, without what is in memory.
    fn facts(&self) -> String {
        let mut adapters = self.registry.list(None, 1000).unwrap();
        for generation in adapters.iter_mut().flat_map(|adapter| &mut adapter.generations) {
            generation.resident = false;
            generation.leases = 0;
        }
        json(&(adapters, self.registry.aliases(None, 1000).unwrap()))
    }
}

fn files(bytes: u64, tensors: &str) -> AdapterFiles {
    AdapterFiles { config: format!("{bytes} 0.5").into_bytes(), tensors: tensors.into() }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn publish(text: &str) -> Publish {
    Publish {
        base: None,
        name: name(text),
        expected: Expected::Any,
        pinned: None,
        allow_no_effect: false,
        request: None,
        lineage: None,
    }
}

fn key(method: &'static str, id: &str, content: u8) -> Option<RequestKey> {
    Some(RequestKey { method, id: id.into(), fingerprint: [content; 32] })
}

fn generation(id: &str) -> Expected {
    Expected::Generation(Generation::parse(id).unwrap())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

fn at_once<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let (barrier, work) = (&barrier, &work);
        let run = move |index| {
            barrier.wait();
            work(index)
        };
        let threads: Vec<_> = (0..threads).map(|index| scope.spawn(move || run(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
