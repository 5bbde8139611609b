//! Rules of the engine against a scripted model: no weights, no clock, no thread where none is needed.
//!
//! The scripted model knows one rule: the logits after a token depend on that token, its position (which it takes from
//! the cache) and its adapter. It fails the test on a batch that breaks the contract.

mod classify;
mod generate;
mod life;
mod memory;
mod prefix;
mod score;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tokio::sync::{mpsc, oneshot};

use super::handle::{Command, run};
use super::sequence::Detokenizer;
use super::step::Core;
use super::*;
use crate::config::EngineSettings;
use crate::lora::{Adapter as LoraAdapter, LoraError};
use crate::metrics::Metrics;
use crate::model::tokenizer::Tokenizer;
use crate::model::{BaseModel, Batch, CausalLm, KvCache, ModelInfo, Rows};
use crate::turns::Turns;

const VOCAB: usize = 32;
const EOS: u32 = 31;
const CONTEXT: usize = 64;

type Rule = Box<dyn Fn(u32, usize) -> Vec<f32> + Send + Sync>;

struct Scripted {
    info: ModelInfo,
    rule: Rule,
    /// Fails passes that hold this token.
    poison: Mutex<Option<u32>>,
    panics: AtomicBool,
    /// Lengths of the segments of each pass.
    passes: Mutex<Vec<Vec<usize>>>,
    /// Tokens of each pass.
    tokens: Mutex<Vec<Vec<u32>>>,
    /// Positions that all caches hold memory for.
    held: Arc<AtomicUsize>,
    /// Most positions held at the end of a pass.
    most: AtomicUsize,
}

impl Scripted {
    /// Writes keys and values of the segments as a model does.
    fn fill<'a>(&self, batch: &Batch<'_>, caches: impl Iterator<Item = &'a mut KvCache>) {
        batch.segments.iter().zip(caches).for_each(|(segment, cache)| cache.fill(segment.len, &self.held));
        self.most.fetch_max(self.held.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl BaseModel for Scripted {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn load_adapter(&self, _: &[u8], _: &[u8]) -> Result<LoraAdapter, LoraError> {
        Err(LoraError::Unsupported("adapters in a script".into()))
    }

    fn effect(&self, _: &Arc<LoraAdapter>) -> Result<f64, ModelError> {
        Err(ModelError::Unsupported("adapters in a script".into()))
    }
}

impl CausalLm for Scripted {
    fn new_cache(&self) -> KvCache {
        KvCache::new(1)
    }

    fn forward(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache]) -> Result<Tensor, ModelError> {
        assert_eq!(batch.segments.len(), caches.len());
        assert_eq!(batch.segments.iter().map(|s| s.len).sum::<usize>(), batch.tokens.len());
        self.passes.lock().unwrap().push(batch.segments.iter().map(|s| s.len).collect());
        self.tokens.lock().unwrap().push(batch.tokens.to_vec());
        let poison = *self.poison.lock().unwrap();
        if poison.is_some_and(|p| batch.tokens.contains(&p)) {
            assert!(!self.panics.load(Ordering::Relaxed), "poisoned");
            return Err(ModelError::Device("poisoned".into()));
        }
        let mut shift = vec![0; batch.tokens.len()];
        let mut end = 0;
        for run in &batch.lora.runs {
            assert!(run.rows.start >= end && !run.rows.is_empty(), "runs ascend and do not overlap");
            end = run.rows.end;
            shift[run.rows.clone()].fill(rank_of(&run.adapter));
        }
        let adapters: Vec<_> = batch.lora.runs.iter().map(|run| Arc::as_ptr(&run.adapter)).collect();
        assert!((1..adapters.len()).all(|i| !adapters[..i].contains(&adapters[i])), "one run an adapter");
        let (mut start, mut logits) = (0, Vec::new());
        for (segment, cache) in batch.segments.iter().zip(caches.iter()) {
            let Rows::Last(rows) = segment.logits else {
                start += segment.len;
                continue;
            };
            for row in segment.len - rows..segment.len {
                let mut after = (self.rule)(batch.tokens[start + row], cache.len() + row);
                after.rotate_right(shift[start + row]);
                logits.extend(after);
            }
            start += segment.len;
        }
        self.fill(batch, caches.iter_mut().map(|cache| &mut **cache));
        let rows = logits.len() / VOCAB;
        Ok(Tensor::from_vec(logits, (rows, VOCAB), &Device::Cpu)?)
    }

    /// One label for each of the first three ids: how often it occurs; 100 more for each of the adapter's rank.
    fn classify(&self, batch: &Batch<'_>) -> Result<Tensor, ModelError> {
        assert_eq!(batch.segments.iter().map(|s| s.len).sum::<usize>(), batch.tokens.len());
        self.passes.lock().unwrap().push(batch.segments.iter().map(|s| s.len).collect());
        self.tokens.lock().unwrap().push(batch.tokens.to_vec());
        let poison = *self.poison.lock().unwrap();
        if poison.is_some_and(|p| batch.tokens.contains(&p)) {
            assert!(!self.panics.load(Ordering::Relaxed), "poisoned");
            return Err(ModelError::Device("poisoned".into()));
        }
        assert!(batch.lora.runs.iter().all(|run| run.rows == (0..batch.tokens.len())));
        let mut own: Vec<_> = batch.segments.iter().map(|_| self.new_cache()).collect();
        self.fill(batch, own.iter_mut());
        let shift: usize = batch.lora.runs.iter().map(|run| 100 * rank_of(&run.adapter)).sum();
        let logit = |tokens: &[u32], label: u32| match tokens.iter().filter(|id| **id == label).count() {
            13 => f32::NAN,
            count => (count + shift) as f32,
        };
        let (mut start, mut logits) = (0, Vec::new());
        for segment in batch.segments {
            let tokens = &batch.tokens[start..start + segment.len];
            logits.extend((0..3).map(|label| logit(tokens, label)));
            start += segment.len;
        }
        Ok(Tensor::from_vec(logits, (batch.segments.len(), 3), &Device::Cpu)?)
    }
}

/// An adapter moves the logits of its rows up by this many ids.
fn rank_of(adapter: &LoraAdapter) -> usize {
    usize::from_str_radix(&adapter.generation().to_string()[..2], 16).unwrap()
}

/// Token id as a letter; 26 is `€` in three tokens 26, 27, 28 of a byte each.
struct Letters(usize);

impl Detokenizer for Letters {
    fn push(&mut self, id: u32) -> String {
        match id {
            26 | 27 => {
                self.0 += 1;
                String::new()
            }
            28 => {
                self.0 = 0;
                "€".into()
            }
            _ => char::from(b'a' + u8::try_from(id).unwrap()).to_string(),
        }
    }

    fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.0);
        if held > 0 { "\u{fffd}".into() } else { String::new() }
    }
}

/// Logits that make `next` certain for greedy choice.
fn peak(next: u32) -> Vec<f32> {
    (0..VOCAB as u32).map(|id| if id == next { 9.0 } else { -(id as f32) / 8.0 }).collect()
}

/// The next letter, 25 letters round.
fn alphabet() -> Rule {
    Box::new(|token, _| peak((token + 1) % 25))
}

/// Rough logits that depend on token and position.
fn rough() -> Rule {
    Box::new(|token, at| (0..VOCAB).map(|id| ((id * 7 + at * 3 + token as usize * 5) % 11) as f32 / 4.0).collect())
}

/// Requests that nothing was spent on.
impl Engine {
    fn generate(&self, request: GenerateRequest) -> Result<mpsc::Receiver<Event>, EngineError> {
        self.enter(request.n)?.generate(request)
    }

    fn score(&self, request: ScoreRequest) -> Result<oneshot::Receiver<Result<Vec<Scored>, EngineError>>, EngineError> {
        self.enter(1)?.score(request)
    }

    fn classify(
        &self,
        request: ClassifyRequest,
    ) -> Result<oneshot::Receiver<Result<ClassLogits, EngineError>>, EngineError> {
        self.enter(1)?.classify(request)
    }
}

struct Bench {
    model: Arc<Scripted>,
    metrics: Arc<Metrics>,
    engine: Engine,
    core: Core,
    commands: mpsc::Receiver<Command>,
}

impl Bench {
    fn new(rule: Rule) -> Self {
        Self::with(rule, EngineSettings { kv_cache_bytes: Some(10_000), ..EngineSettings::default() })
    }

    fn with(rule: Rule, settings: EngineSettings) -> Self {
        Self::on("cpu", rule, settings)
    }

    fn on(device: &str, rule: Rule, settings: EngineSettings) -> Self {
        let info = ModelInfo {
            architecture: "Scripted".into(),
            fingerprint: String::new(),
            parameters: 0,
            dtype: "f32".into(),
            context_length: CONTEXT,
            vocab_size: VOCAB,
            eos_token_ids: vec![EOS],
            labels: None,
            classes: None,
            device: device.into(),
            kv_bytes_per_token: 10,
            image_size: None,
        };
        let (poison, panics) = (Mutex::default(), AtomicBool::new(false));
        let (passes, tokens) = (Mutex::default(), Mutex::default());
        let (held, most) = (Arc::default(), AtomicUsize::new(0));
        let model = Arc::new(Scripted { info, rule, poison, panics, passes, tokens, held, most });
        let metrics = Arc::new(Metrics::new().unwrap());
        let text = Box::new(|| -> Box<dyn Detokenizer> { Box::new(Letters(0)) });
        let (engine, core, commands) = Engine::parts(model.clone(), text, settings, metrics.clone());
        Self { model, metrics, engine, core, commands }
    }

    /// One round of the thread's loop; returns whether there is more to do.
    fn turn(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            self.core.accept(command);
        }
        self.core.turn();
        !self.core.is_idle()
    }

    fn run(&mut self) {
        let turns = (0..10_000).take_while(|_| self.turn()).count();
        assert!(turns < 10_000, "somebody never ends");
    }

    fn text(&mut self, request: GenerateRequest) -> Completion {
        let mut events = self.engine.generate(request).unwrap();
        self.run();
        completions(&mut events).unwrap().remove(0)
    }

    fn score(&mut self, prompt: &[u32], candidates: &[&[u32]]) -> Vec<Scored> {
        let mut answer = self.engine.score(score_request(prompt, candidates)).unwrap();
        self.run();
        answer.try_recv().unwrap().unwrap()
    }

    fn ended(&self, reason: &str) -> u64 {
        self.metrics.request_success.with_label_values(&[reason]).get()
    }

    /// Nothing is held once nothing runs.
    fn assert_empty(&self) {
        assert!(self.core.is_idle());
        assert_eq!(self.metrics.kv_cache_bytes.get(), 0);
        assert_eq!(self.metrics.requests_running.get(), 0);
        assert_eq!(self.metrics.requests_waiting.get(), 0);
    }
}

#[derive(Debug, Default, PartialEq)]
struct Completion {
    text: String,
    tokens: Vec<Token>,
    finish: Option<FinishReason>,
}

impl Completion {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.id).collect()
    }
}

fn completions(events: &mut mpsc::Receiver<Event>) -> Result<Vec<Completion>, EngineError> {
    let mut all: Vec<Completion> = Vec::new();
    loop {
        match events.try_recv().expect("the last event is Done or Failed") {
            Event::Delta { index, text, tokens, finish } => {
                all.resize_with(all.len().max(index + 1), Completion::default);
                assert_eq!(all[index].finish, None, "nothing comes after the end");
                all[index].text += &text;
                all[index].tokens.extend(tokens);
                all[index].finish = finish;
            }
            Event::Done => {
                assert!(all.iter().all(|c| c.finish.is_some()));
                return Ok(all);
            }
            Event::Failed(error) => return Err(error),
        }
    }
}

fn request(prompt: &[u32], max_new_tokens: usize) -> GenerateRequest {
    let sampling = Sampling {
        max_new_tokens,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 1,
        logit_bias: Vec::new(),
    };
    let (prompt, stopping) = (prompt.to_vec(), Stopping::default());
    GenerateRequest {
        prompt,
        adapter: None,
        sampling,
        stopping,
        n: 1,
        logprobs: None,
        adapter_use: None,
        deadline: None,
    }
}

fn sampled(prompt: &[u32], max_new_tokens: usize, seed: u64) -> GenerateRequest {
    let mut request = request(prompt, max_new_tokens);
    (request.sampling.temperature, request.sampling.seed) = (1.0, seed);
    request.stopping.ignore_eos = true;
    request
}

fn stopping_at(strings: &[&str]) -> Stopping {
    Stopping { strings: strings.iter().map(|s| (*s).to_owned()).collect(), ..Stopping::default() }
}

fn score_request(prompt: &[u32], candidates: &[&[u32]]) -> ScoreRequest {
    let candidates = candidates.iter().map(|c| c.to_vec()).collect();
    ScoreRequest { prompt: prompt.to_vec(), candidates, adapter: None, adapter_use: None, deadline: None }
}
