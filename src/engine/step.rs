//! The loop's body: decide, compute, account. Owns every cache, sequence and queue.
//!
//! Waits for nobody: events go into channels that have room for all of them. Does not decide order or budgets
//! (`scheduler`), tokens (`sampler`) or texts (`sequence`).
//! Shapes: tokens of a step packed `[tokens]`, rows of one adapter contiguous; logits `[rows, vocab]` f32.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::alone::Alone;
use super::classify::ClassifyTask;
use super::handle::{Command, Shared, Submission};
use super::pass::{fault, fork};
use super::prefix::Prefixes;
use super::sampler::{History, Scratch, ignores_history, sample, top_logprobs};
use super::scheduler::{Chunk, Id, Limits, Plan, Scheduler};
use super::score::ScoreTask;
use super::sequence::{Detokenizer, Group, Sequence, masked};
use super::{EngineError, Event, GenerateRequest, Token, TokenLogprob};
use crate::config::EngineSettings;
use crate::lora::{Adapter, LoraBatch, Run};
use crate::metrics::Metrics;
use crate::model::{CausalLm, KvCache, Rows, Segment};

mod choices;
mod slices;

/// What the engine's thread owns.
pub(super) struct Core {
    model: Arc<dyn CausalLm>,
    new_text: Box<dyn Fn() -> Box<dyn Detokenizer> + Send>,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    settings: EngineSettings,
    scheduler: Scheduler,
    /// By the id of their first sequence.
    groups: BTreeMap<Id, Group>,
    sequences: HashMap<Id, Sequence>,
    alone: BTreeMap<Id, Alone>,
    prefixes: Prefixes,
    /// Whether a token's bits do not depend on what it is computed with.
    exact: bool,
    next_id: Id,
    drain: Option<Instant>,
    drained: Vec<oneshot::Sender<()>>,
    // Used again in every step.
    plan: Plan,
    tokens: Vec<u32>,
    segments: Vec<Segment>,
    lora: LoraBatch,
    scratch: Scratch,
}

impl Core {
    /// Begins with nothing to do.
    pub(super) fn new(
        model: Arc<dyn CausalLm>,
        new_text: Box<dyn Fn() -> Box<dyn Detokenizer> + Send>,
        settings: &EngineSettings,
        watched: (Arc<Metrics>, Arc<Shared>),
    ) -> Self {
        let limits = Limits {
            step_tokens: settings.max_step_tokens,
            running: settings.max_running_sequences,
            kv_bytes: settings.kv_bytes(),
        };
        let (metrics, shared) = watched;
        let (info, exact) = (model.info(), model.info().device == "cpu");
        let kept = if exact || model.reserved().is_some() { settings.prefix_bytes() } else { 0 };
        let prefixes = Prefixes::new(kept, info.kv_bytes_per_token);
        Self {
            model,
            new_text,
            metrics,
            shared,
            settings: settings.clone(),
            scheduler: Scheduler::new(limits),
            groups: BTreeMap::new(),
            sequences: HashMap::new(),
            alone: BTreeMap::new(),
            prefixes,
            exact,
            next_id: 0,
            drain: None,
            drained: Vec::new(),
            plan: Plan::default(),
            tokens: Vec::new(),
            segments: Vec::new(),
            lora: LoraBatch::default(),
            scratch: Scratch::default(),
        }
    }

    /// Returns whether nothing waits or runs.
    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_empty()
    }

    /// Takes a command.
    pub(super) fn accept(&mut self, command: Command) {
        match command {
            // It slipped in between the refusal of new requests and the notice of it.
            Command::Generate(submission) if self.drain.is_some() => {
                let _ = submission.answer.try_send(Event::Failed(EngineError::Draining));
                self.metrics.request_success.with_label_values(&["abort"]).inc();
            }
            Command::Score(submission) if self.drain.is_some() => {
                let _ = submission.answer.send(Err(EngineError::Draining));
                self.metrics.request_success.with_label_values(&["abort"]).inc();
            }
            Command::Classify(submission) if self.drain.is_some() => {
                let _ = submission.answer.send(Err(EngineError::Draining));
                self.metrics.request_success.with_label_values(&["abort"]).inc();
            }
            Command::Generate(submission) => self.accept_generate(*submission),
            Command::Score(submission) => {
                let Submission { request, answer, demand, ticket, times, span } = *submission;
                let _entered = span.enter();
                let id = self.new_id();
                let task = ScoreTask::new(request, answer, ticket, times, self.model.as_ref());
                self.alone.insert(id, Alone::Score(Box::new(task)));
                self.scheduler.enqueue(id, demand);
            }
            Command::Classify(submission) => {
                let Submission { request, answer, demand, ticket, times, span } = *submission;
                let _entered = span.enter();
                let id = self.new_id();
                let memory = demand.kv_bytes / self.model.info().kv_bytes_per_token.max(1);
                let memory = usize::try_from(memory).unwrap_or(usize::MAX);
                let task = ClassifyTask::new(request, answer, ticket, times, memory);
                self.alone.insert(id, Alone::Classify(Box::new(task)));
                self.scheduler.enqueue(id, demand);
            }
            Command::Drain { deadline, done } => {
                self.drain = Some(self.drain.map_or(deadline, |earlier| earlier.min(deadline)));
                self.drained.push(done);
            }
        }
        self.publish();
    }

    fn accept_generate(&mut self, submission: Submission<GenerateRequest, mpsc::Sender<Event>>) {
        let Submission { request, answer, demand, ticket, times, span } = submission;
        let id = self.new_id();
        let mut end_ids = request.stopping.token_ids.clone();
        if !request.stopping.ignore_eos {
            end_ids.extend(&self.model.info().eos_token_ids);
        }
        let room = self.model.info().context_length.saturating_sub(request.prompt.len());
        let max_tokens = request.sampling.max_new_tokens.min(room);
        let used = !ignores_history(&request.sampling);
        let history = if used { History::new(&request.prompt) } else { History::default() };
        let cache = self.model.new_cache();
        self.sequences.insert(id, Sequence::new((id, &request), 0, cache, history, (self.new_text)()));
        let live = request.n;
        let (generated, cut, events, ticket) = (0, false, answer, Some(ticket));
        let group = Group { request, events, ticket, span, times, end_ids, max_tokens, live, generated, cut };
        self.groups.insert(id, group);
        self.scheduler.enqueue(id, demand);
    }

    /// Computes one step, and one slice of what is computed apart from steps.
    pub(super) fn turn(&mut self) {
        self.drop_ended(Instant::now());
        let mut plan = std::mem::take(&mut self.plan);
        self.schedule(&mut plan);
        self.note_admitted(&plan);
        if !plan.packed.is_empty() {
            self.packed_step(&mut plan.packed);
        }
        if !plan.alone.is_empty() {
            self.alone_slice(&plan);
        }
        self.plan = plan;
        self.publish();
    }

    /// Plans a step; who is admitted begins with what is kept of its prompt, in the memory that was reserved for it.
    fn schedule(&mut self, plan: &mut Plan) {
        let Self { scheduler, prefixes, groups, sequences, alone, metrics, settings, exact, .. } = self;
        scheduler.schedule(plan, |id, reserved| {
            prefixes.shrink(settings.kv_bytes().saturating_sub(reserved));
            let (adapter, prompt, cache) = match (groups.get(&id), sequences.get_mut(&id), alone.get_mut(&id)) {
                (Some(group), Some(sequence), _) => {
                    (group.request.adapter.as_ref(), &group.request.prompt, sequence.cache.get_or_insert_default())
                }
                (_, _, Some(Alone::Score(task))) if *exact => task.beginning(),
                (_, _, Some(Alone::Score(_) | Alone::Classify(_)) | None) => return 0,
            };
            metrics.prefix_cache_queries.inc_by(prompt.len() as u64);
            let Some(copy) = prefixes.begin(adapter, prompt) else { return 0 };
            metrics.prefix_cache_hits.inc_by(copy.len() as u64);
            metrics.prompt_tokens.inc_by(copy.len() as u64);
            *cache = copy;
            cache.len()
        });
    }

    /// Drops what nobody waits for any more, and fails what has run out of time.
    fn drop_ended(&mut self, now: Instant) {
        let drained = self.drain.is_some_and(|deadline| now >= deadline);
        let expired = |deadline: Option<Instant>| deadline.is_some_and(|d| now >= d);
        let mut failed = Vec::new();
        for (&id, group) in &self.groups {
            if group.events.is_closed() {
                failed.push((id, None));
            } else if expired(group.request.deadline) {
                failed.push((id, Some(EngineError::DeadlineExceeded)));
            } else if drained {
                failed.push((id, Some(EngineError::Draining)));
            }
        }
        for (&id, task) in &self.alone {
            if task.is_closed() {
                failed.push((id, None));
            } else if expired(task.deadline()) {
                failed.push((id, Some(EngineError::DeadlineExceeded)));
            } else if drained {
                failed.push((id, Some(EngineError::Draining)));
            }
        }
        for (id, error) in failed {
            self.fail(id, error);
        }
    }

    fn note_admitted(&mut self, plan: &Plan) {
        let now = Instant::now();
        for id in &plan.admitted {
            let (times, ticket, adapter_use) = match (self.groups.get_mut(id), self.alone.get_mut(id)) {
                (Some(group), _) => (&mut group.times, &mut group.ticket, group.request.adapter_use.as_deref()),
                (None, Some(task)) => task.admission(),
                (None, None) => continue,
            };
            *ticket = None;
            if let Some(adapter_use) = adapter_use {
                adapter_use.runs();
            }
            times.first_step = Some(now);
            self.metrics.request_queue_time.observe((now - times.arrival).as_secs_f64());
        }
    }

    /// Computes the chunks together; rows of one adapter become neighbours.
    fn packed_step(&mut self, chunks: &mut [Chunk]) {
        let started = Instant::now();
        chunks.sort_by_key(|chunk| self.adapter(chunk.id).map_or(0, |a| Arc::as_ptr(a) as usize));
        let mut caches = self.pack(chunks);
        let seen = self.computed(chunks, &mut caches.iter_mut().collect::<Vec<_>>());
        // A lease ends with its request, not with the next step.
        self.lora.runs.clear();
        let computed = self.tokens.len();
        self.metrics.iteration_tokens.observe(computed as f64);
        for (chunk, cache) in chunks.iter().zip(caches) {
            if let Some(sequence) = self.sequences.get_mut(&chunk.id) {
                if seen.is_ok() && sequence.output.is_empty() {
                    self.metrics.prompt_tokens.inc_by(chunk.tokens as u64);
                }
                sequence.cache = Some(cache);
            }
        }
        if let Err(error) = seen.and_then(|seen| self.give(chunks, seen)) {
            tracing::error!(error = &error as &dyn std::error::Error, sequences = chunks.len(), "step failed");
            for chunk in chunks.iter() {
                let group = self.sequences.get(&chunk.id).map(|s| s.group);
                if let Some(group) = group {
                    self.fail(group, Some(fault(&error.to_string())));
                }
            }
        }
        self.shared.measure(computed, started.elapsed());
    }

    /// Fills the step's buffers and returns the caches in the order of the chunks.
    fn pack(&mut self, chunks: &[Chunk]) -> Vec<KvCache> {
        self.tokens.clear();
        self.segments.clear();
        self.lora.runs.clear();
        let mut caches = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let Some(sequence) = self.sequences.get_mut(&chunk.id) else { continue };
            let Some(group) = self.groups.get(&sequence.group) else { continue };
            let Some(cache) = sequence.cache.take() else { continue };
            let start = self.tokens.len();
            sequence.extend_batch(&group.request.prompt, cache.len(), chunk.tokens, &mut self.tokens);
            let end = self.tokens.len();
            let logits = if chunk.complete { Rows::Last(1) } else { Rows::None };
            self.segments.push(Segment { len: end - start, logits });
            caches.push(cache);
            if let Some(adapter) = &group.request.adapter {
                match self.lora.runs.last_mut() {
                    Some(run) if Arc::ptr_eq(&run.adapter, adapter) => run.rows.end = end,
                    Some(_) | None => {
                        self.lora.runs.push(Run { adapter: adapter.clone(), rows: start..end, scale: 1.0 });
                    }
                }
            }
        }
        caches
    }

    /// Chooses a token from each row, `all` is `[rows, vocab]`.
    fn sample_rows(&mut self, chunks: &[Chunk], all: &[f32], vocab: usize) {
        let mut row = all.chunks_exact(vocab);
        for chunk in chunks {
            self.scheduler.advance(chunk.id, chunk.tokens, chunk.complete);
            if !chunk.complete {
                continue;
            }
            let (Some(row), Some(sequence)) = (row.next(), self.sequences.get(&chunk.id)) else { continue };
            let group = sequence.group;
            let outcome =
                if sequence.output.is_empty() { self.first_tokens(group, row) } else { self.next_token(chunk.id, row) };
            if let Err(error) = outcome {
                tracing::error!(error = &error as &dyn std::error::Error, "request failed");
                self.fail(group, Some(error));
            }
        }
    }

    /// The prompt is computed: each completion goes its own way from here.
    fn first_tokens(&mut self, id: Id, row: &[f32]) -> Result<(), EngineError> {
        let mut ids = vec![id];
        for index in 1..self.groups.get(&id).map_or(1, |group| group.request.n) {
            let sibling = self.new_id();
            let (Some(group), Some(first)) = (self.groups.get(&id), self.sequences.get(&id)) else { break };
            let Some(cache) = &first.cache else { break };
            let cache = fork(cache)?;
            let text = (self.new_text)();
            let sequence = Sequence::new((id, &group.request), index, cache, first.history.clone(), text);
            self.sequences.insert(sibling, sequence);
            self.scheduler.fork(id, sibling);
            ids.push(sibling);
        }
        for id in ids {
            self.next_token(id, row)?;
        }
        Ok(())
    }

    fn next_token(&mut self, id: Id, row: &[f32]) -> Result<(), EngineError> {
        let Some(sequence) = self.sequences.get_mut(&id) else { return Ok(()) };
        let Some(group) = self.groups.get(&sequence.group) else { return Ok(()) };
        let (sampling, masked) = (&group.request.sampling, masked(sequence, group));
        let token = sample(row, sampling, &sequence.history, masked, &mut sequence.draws, &mut self.scratch)?;
        let logprobs = match group.request.logprobs {
            Some(count) => {
                let (total, top) = top_logprobs(row, count)?;
                Some((f64::from(row[token as usize]) - total, top))
            }
            None => None,
        };
        self.push_token(id, token, logprobs)
    }

    /// Gives a completion its next token, and what was asked to be known of it.
    fn push_token(
        &mut self,
        id: Id,
        token: u32,
        logprobs: Option<(f64, Vec<TokenLogprob>)>,
    ) -> Result<(), EngineError> {
        let Some(sequence) = self.sequences.get_mut(&id) else { return Ok(()) };
        let Some(group) = self.groups.get_mut(&sequence.group) else { return Ok(()) };
        if !ignores_history(&group.request.sampling) {
            sequence.history.push(token);
        }
        let (text, finish) = sequence.push(token, group);
        group.generated += 1;
        self.metrics.generation_tokens.inc();
        let now = Instant::now();
        if group.times.first_token.is_none() {
            group.times.first_token = Some(now);
            self.metrics.time_to_first_token.observe((now - group.times.arrival).as_secs_f64());
            let first_step = group.times.first_step.unwrap_or(now);
            self.metrics.request_prefill_time.observe((now - first_step).as_secs_f64());
        }
        if let Some(last) = sequence.last_token.replace(now) {
            self.metrics.inter_token_latency.observe((now - last).as_secs_f64());
        }
        let ended = finish.is_some();
        group.cut |= finish == Some(super::FinishReason::Length);
        let tokens = vec![Token { id: token, logprobs }];
        let delta = Event::Delta { index: sequence.index, text, tokens, finish };
        if let Err(mpsc::error::TrySendError::Full(_)) = group.events.try_send(delta) {
            return Err(fault("the event channel is too small"));
        }
        if ended {
            let group = sequence.group;
            self.end_sequence(id, group);
        }
        Ok(())
    }

    /// Takes out a completion that ended, and its request with the last one.
    fn end_sequence(&mut self, id: Id, group_id: Id) {
        let ended = self.sequences.remove(&id);
        self.scheduler.remove(id);
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        if let Some(Sequence { cache: Some(cache), output, .. }) = ended {
            let tokens = [&group.request.prompt[..], &output].concat();
            let room = self.settings.kv_bytes().saturating_sub(self.scheduler.reserved_bytes());
            self.prefixes.keep(group.request.adapter.as_ref(), tokens, cache, room);
        }
        group.live -= 1;
        if group.live > 0 {
            return;
        }
        let Some(group) = self.groups.remove(&group_id) else { return };
        let now = Instant::now();
        self.metrics.e2e_request_latency.observe((now - group.times.arrival).as_secs_f64());
        self.metrics.request_generation_tokens.observe(group.generated as f64);
        let first_token = group.times.first_token.unwrap_or(now);
        self.metrics.request_decode_time.observe((now - first_token).as_secs_f64());
        let reason = if group.cut { "length" } else { "stop" };
        self.metrics.request_success.with_label_values(&[reason]).inc();
        tracing::debug!(parent: &group.span, tokens = group.generated, reason, "request ended");
        // Whoever hears of the end finds the adapter free.
        drop(group.request);
        // The caller may have left with all that it wanted.
        let _ = group.events.try_send(Event::Done);
    }

    /// Ends a request early; without an error nobody listens.
    fn fail(&mut self, id: Id, error: Option<EngineError>) {
        let reason = match &error {
            Some(EngineError::Model(_) | EngineError::Stopped) => "error",
            Some(
                EngineError::DeadlineExceeded
                | EngineError::Draining
                | EngineError::QueueFull { .. }
                | EngineError::KvCacheTooSmall { .. },
            )
            | None => "abort",
        };
        if let Some(group) = self.groups.remove(&id) {
            let members: Vec<Id> = self.sequences.iter().filter(|(_, s)| s.group == id).map(|(&id, _)| id).collect();
            for member in members {
                self.sequences.remove(&member);
                self.scheduler.remove(member);
            }
            drop(group.request);
            if let Some(error) = error {
                let _ = group.events.try_send(Event::Failed(error));
            }
        } else if let Some(task) = self.alone.remove(&id) {
            self.scheduler.remove(id);
            task.fail(error);
        } else {
            return;
        }
        self.metrics.request_success.with_label_values(&[reason]).inc();
    }

    /// Fails everything that runs or waits.
    pub(super) fn fail_all(&mut self, error: impl Fn() -> EngineError) {
        let ids: Vec<Id> = self.groups.keys().chain(self.alone.keys()).copied().collect();
        for id in ids {
            self.fail(id, Some(error()));
        }
        self.publish();
    }

    /// Brings the gauges up to date, and tells who waits for the end that it is there.
    fn publish(&mut self) {
        let running = i64::try_from(self.scheduler.running()).unwrap_or(i64::MAX);
        let waiting = i64::try_from(self.shared.waiting.load(Ordering::Acquire)).unwrap_or(i64::MAX);
        let reserved = self.scheduler.reserved_bytes();
        self.metrics.requests_running.set(running);
        self.metrics.requests_waiting.set(waiting);
        self.metrics.prefix_cache_bytes.set(i64::try_from(self.prefixes.bytes()).unwrap_or(i64::MAX));
        self.metrics.kv_cache_bytes.set(i64::try_from(reserved).unwrap_or(i64::MAX));
        self.metrics.kv_cache_usage.set(reserved as f64 / self.settings.kv_bytes().max(1) as f64);
        if self.is_idle() {
            for done in self.drained.drain(..) {
                let _ = done.send(());
            }
        }
    }

    fn adapter(&self, id: Id) -> Option<&Arc<Adapter>> {
        self.groups.get(&self.sequences.get(&id)?.group)?.request.adapter.as_ref()
    }

    fn new_id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }
}
