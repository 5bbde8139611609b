//! Tests of jobs on a scripted training: real store, real registry, a model that makes adapters from a line of text.
//!
//! The script's state is a hash that each step mixes on, so that a step computed twice, left out or done from a wrong
//! checkpoint ends in another generation. A hook sees every moment of a run, on the runner's thread, before it happens:
//! there a test cancels, fails, panics, or takes an image of the data directory, which is what a kill -9 would leave.

mod audits;
mod checkpoints;
mod ends;
mod estimates;
mod kills;
mod queue;
mod script;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::*;
use crate::config::{AuditSettings, JobsSettings, RegistrySettings};
use crate::dataset::{Content, Dataset, Row, Split};
use crate::lora::{Adapter, AdapterInfo, LoraError};
use crate::metrics::Metrics;
use crate::model::{BaseModel, ModelError, ModelInfo};
use crate::registry::{NamedBase, Registry, RequestKey};
use crate::reports::Reports;
use crate::store::Store;
use crate::train::{
    Average, Evaluation, Figure, Length, Method, Output, Progress, Schedule, Task as TrainingTask, TrainError,
};
use crate::turns::{Slices, Turns};

/// Steps of a job of the script.
const STEPS: u64 = 7;

/// What is about to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Start,
    Advance(u64),
    Checkpoint(u64),
    /// A checkpoint is to be published.
    Latest(u64),
    Output,
    Publish,
    /// Of an audit.
    Begin,
    Score(u64),
    Written(u64),
    Report,
}

pub(crate) type Hook = Box<dyn FnMut(Moment) -> Result<(), TrainError> + Send>;

/// The hook of a house; shared by its script and its model.
#[derive(Clone, Default)]
struct Hooks(Arc<Mutex<Option<Hook>>>);

impl Hooks {
    fn at(&self, moment: Moment) -> Result<(), TrainError> {
        // Taken out while it runs: it may panic, and it may take its time.
        let hook = self.0.lock().unwrap().take();
        let Some(mut hook) = hook else { return Ok(()) };
        let result = hook(moment);
        self.0.lock().unwrap().get_or_insert(hook);
        result
    }
}

struct Script {
    hooks: Hooks,
}

struct Play {
    hooks: Hooks,
    step: u64,
    state: [u8; 32],
    /// Bytes that make a checkpoint larger.
    padding: usize,
    /// Of a step; images have none.
    tokens: u64,
    /// The last step: [`STEPS`], or the patience, which stands for a run that stops early.
    end: u64,
}

impl Training for Script {
    fn start(
        &self,
        _: &str,
        dataset: &Dataset,
        settings: &Settings,
        checkpoint: Option<&[u8]>,
    ) -> Result<Box<dyn Work>, TrainError> {
        self.hooks.at(Moment::Start)?;
        let hooks = self.hooks.clone();
        let subset = serde_json::to_string(&settings.subset).unwrap();
        let begin = Sha256::new().chain_update(&dataset.id).chain_update(settings.seed.to_be_bytes());
        let begin = begin.chain_update(subset).finalize();
        let (step, state) = match checkpoint {
            None => (0, begin.into()),
            Some(bytes) => {
                let (step, state) = bytes.split_at_checked(8).ok_or(TrainError::Checkpoint("is short".into()))?;
                (u64::from_be_bytes(step.try_into().unwrap()), state[..32].try_into().unwrap())
            }
        };
        let tokens = if settings.task == crate::train::Task::ImageClassification { 0 } else { 10 };
        let end = if settings.patience > 0 { settings.patience } else { STEPS };
        Ok(Box::new(Play { hooks, step, state, padding: settings.max_tokens, tokens, end }))
    }

    fn size(&self, base: &str, settings: &Settings, _: usize) -> Option<u64> {
        (base == "base").then_some(100 + settings.seed)
    }
}

impl Work for Play {
    fn advance(&mut self, slices: &dyn Slices) -> Result<Progress, TrainError> {
        self.step += 1;
        let hooks = self.hooks.clone();
        // Two slices, and what the hook does falls between them.
        slices.run(|| hooks.at(Moment::Advance(self.step)))?;
        slices.run(|| {
            let next = Sha256::new().chain_update(self.state).chain_update(self.step.to_be_bytes()).finalize();
            self.state = next.into();
            Ok::<_, TrainError>(())
        })?;
        let loss = f64::from(self.state[0]) / 256.0;
        let figure = |rows| Figure { column: "sex".into(), value: None, rows, loss, accuracy: Some(0.5) };
        let empty = Figure { loss: f64::NAN, ..figure(0) };
        Ok(Progress {
            step: self.step,
            total_steps: STEPS,
            epoch: self.step as f64 / STEPS as f64,
            loss,
            learning_rate: 1e-3,
            grad_norm: 0.1,
            tokens: self.tokens,
            groups: vec![figure(3), empty],
            truncated_rows: 0,
            evaluation: (self.step == 4).then(|| Evaluation { figures: vec![figure(5)], best: true }),
            last: self.step == self.end,
        })
    }

    fn checkpoint(&self, out: &mut dyn Write) -> Result<(), TrainError> {
        self.hooks.at(Moment::Checkpoint(self.step))?;
        let padding = vec![0; self.padding];
        let content = [&self.step.to_be_bytes()[..], &self.state, &padding].concat();
        Ok(out.write_all(&content).map_err(candle_core::Error::from)?)
    }

    fn output(&self) -> Result<Output, TrainError> {
        self.hooks.at(Moment::Output)?;
        Ok(Output { config: b"{}".to_vec(), tensors: self.state.to_vec() })
    }

    fn latest(&self) -> Result<Output, TrainError> {
        self.hooks.at(Moment::Latest(self.step))?;
        Ok(Output { config: b"{}".to_vec(), tensors: self.state.to_vec() })
    }
}

/// Makes adapters of any bytes; each moves a logit.
struct Model {
    info: ModelInfo,
    hooks: Hooks,
}

impl BaseModel for Model {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn effect(&self, _: &Arc<Adapter>) -> Result<f64, ModelError> {
        Ok(0.5)
    }

    fn load_adapter(&self, config: &[u8], tensors: &[u8]) -> Result<Adapter, LoraError> {
        self.hooks.at(Moment::Publish).map_err(|error| LoraError::Invalid(error.to_string()))?;
        let info = AdapterInfo {
            kind: crate::lora::Kind::Lora,
            classes: None,
            rank: 2,
            alpha: 4.0,
            modules: vec!["model.layers.0.self_attn.q_proj".into()],
            task_type: "CAUSAL_LM".into(),
            bytes: 10,
        };
        let digest = Sha256::new().chain_update(config).chain_update(tensors).finalize();
        Ok(Adapter::hollow(Generation::from_digest(digest.into()), info))
    }
}

/// One data set.
struct OneSet;

impl Rows for OneSet {
    fn find(&self, reference: &str) -> Result<String, JobsError> {
        if reference == "rows" { Ok("digest".into()) } else { Err(JobsError::DatasetNotFound(reference.into())) }
    }

    fn read(&self, id: &str) -> Result<Arc<Dataset>, JobsError> {
        assert_eq!(id, "digest");
        let row = |i: usize| Row {
            content: Content::Text(String::new()),
            label: None,
            groups: vec![],
            split: [Split::Train, Split::Test][i % 2],
            hash: Sha256::digest(i.to_le_bytes()).into(),
        };
        let (labels, group_columns, rows) = (vec![], vec![], (0..200).map(row).collect());
        Ok(Arc::new(Dataset { id: id.into(), labels, multi_label: false, group_columns, rows }))
    }
}

/// A server's rooms around the jobs.
pub(crate) struct House {
    pub(crate) jobs: Jobs,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    reports: Arc<Reports>,
    hooks: Hooks,
    folder: Arc<tempfile::TempDir>,
}

fn limits() -> JobsSettings {
    JobsSettings { checkpoint_steps: 2, checkpoint_seconds: 86_400, max_queued: 3, ..Default::default() }
}

impl House {
    pub(crate) fn new() -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()), Hooks::default())
    }

    fn hooked(hook: impl FnMut(Moment) -> Result<(), TrainError> + Send + 'static) -> Self {
        let house = Self::new();
        house.hook(hook);
        house
    }

    fn at(folder: Arc<tempfile::TempDir>, hooks: Hooks) -> Self {
        Self::with(folder, hooks, limits(), "base")
    }

    fn with(folder: Arc<tempfile::TempDir>, hooks: Hooks, settings: JobsSettings, base: &str) -> Self {
        let (store, registry, metrics) = registry(folder.path(), hooks.clone(), base);
        let reports = Reports::open(Arc::clone(&store), AuditSettings::default(), Arc::clone(&metrics)).unwrap();
        let reports = Arc::new(reports);
        let parts = Parts {
            store,
            registry: Arc::clone(&registry),
            rows: Arc::new(OneSet),
            training: Arc::new(Script { hooks: hooks.clone() }),
            auditing: Arc::new(script::Script { hooks: hooks.clone() }),
            reports: Arc::clone(&reports),
            turns: Arc::new(Turns::new(std::time::Duration::MAX)),
            metrics: Arc::clone(&metrics),
            settings,
        };
        Self { jobs: Jobs::start(parts).unwrap(), registry, metrics, reports, hooks, folder }
    }

    pub(crate) fn hook(&self, hook: impl FnMut(Moment) -> Result<(), TrainError> + Send + 'static) {
        *self.hooks.0.lock().unwrap() = Some(Box::new(hook));
    }

    /// Stops the runner as a server that drains does, and returns the folder.
    fn stop(self) -> Arc<tempfile::TempDir> {
        block_on(self.jobs.drain(std::time::Duration::from_secs(60)));
        *self.hooks.0.lock().unwrap() = None;
        let Self { jobs, registry, reports, folder, .. } = self;
        // The runner lets go of the store a moment after it said that it ends.
        drop((jobs, registry, reports));
        until(|| !matches!(Store::open(folder.path()), Err(StoreError::Locked(_))));
        folder
    }

    pub(crate) fn create(&self, adapter: &str) -> Job {
        self.jobs.create(wanted(adapter), None).unwrap()
    }

    /// Returns a job once it has ended.
    pub(crate) fn ended(&self, id: JobId) -> Job {
        let mut shown = self.jobs.shown();
        loop {
            shown.borrow_and_update();
            let job = self.jobs.get(id).unwrap();
            if job.state.is_finished() {
                return job;
            }
            block_on(shown.changed()).unwrap();
        }
    }

    fn events(&self, id: JobId) -> Vec<(u64, Event)> {
        let events = self.jobs.events(id, 0, 1000).unwrap().events;
        events.into_iter().map(|(number, _, event)| (number, event)).collect()
    }

    fn blobs(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("blobs")).unwrap().count()
    }
}

fn registry(folder: &Path, hooks: Hooks, base: &str) -> (Arc<Store>, Arc<Registry>, Arc<Metrics>) {
    let info = ModelInfo {
        architecture: "Fake".into(),
        fingerprint: base.into(),
        parameters: 0,
        dtype: "f32".into(),
        context_length: 1,
        vocab_size: 1,
        eos_token_ids: vec![],
        labels: Some(2),
        classes: None,
        device: "cpu".into(),
        kv_bytes_per_token: 0,
        image_size: None,
    };
    let metrics = Arc::new(Metrics::new().unwrap());
    let store = Arc::new(Store::open(folder).unwrap());
    let model = Arc::new(Model { info, hooks });
    let settings = RegistrySettings::default();
    let bases = vec![NamedBase { name: "fake".into(), model }];
    let registry = Registry::open(Arc::clone(&store), bases, settings, Arc::clone(&metrics)).unwrap();
    (store, Arc::new(registry), metrics)
}

pub(super) fn settings() -> Settings {
    Settings {
        task: TrainingTask::CausalLm,
        method: Method::Full,
        length: Length::Steps(STEPS),
        batch_size: 1,
        accumulation: 1,
        max_tokens: 16,
        packing: false,
        train_on_prompt: false,
        learning_rate: 1e-3,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        weight_decay: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        max_grad_norm: 1.0,
        average: Average::Tokens,
        recompute: None,
        eval_every: 4,
        patience: 0,
        keep_best: false,
        seed: 5,
        groups: vec!["sex".into()],
        random_flip: false,
        publish_steps: vec![],
        subset: None,
    }
}

fn wanted(adapter: &str) -> FineTuning {
    FineTuning {
        adapter: name(adapter),
        expected: Expected::Any,
        alias: None,
        pinned: None,
        allow_no_effect: false,
        base: None,
        dataset: "rows".into(),
        settings: settings(),
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn key(method: &'static str, content: u8) -> RequestKey {
    RequestKey { method, id: "id".into(), fingerprint: [content; 32] }
}

/// States of the events of state, and steps of the events of steps.
fn story(events: &[(u64, Event)]) -> String {
    let word = |(_, event): &(u64, Event)| match event {
        Event::Job(job) => job.state.as_str().to_owned(),
        Event::Step(advance) => advance.progress.step.to_string(),
        Event::Audit(progress) => format!("{}:{}", progress.phase.as_str(), progress.done),
        Event::Published(kept) => format!("@{}", kept.step),
    };
    events.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

fn fails_in_step_three(moment: Moment) -> Result<(), TrainError> {
    if moment == Moment::Advance(3) { Err(TrainError::Data("no".into())) } else { Ok(()) }
}

/// The generation that a job has made.
fn generation(job: &Job) -> String {
    let Some(Made::Generation { generation, .. }) = &job.made else { panic!("{job:?}") };
    generation.clone()
}
