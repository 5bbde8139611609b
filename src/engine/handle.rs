//! The caller's side: checks what can be refused at once, and hands the rest to the engine's thread.
//!
//! Does not compute, and shares only counters with the thread: everything else goes through one bounded channel.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::classify;
use super::pass::fault;
use super::scheduler::{Demand, Work};
use super::score::{self, Answer};
use super::sequence::{Detokenizer, Times};
use super::step::Core;
use super::{ClassLogits, ClassifyRequest, EngineError, Event, GenerateRequest, ScoreRequest, Scored};
use crate::config::EngineSettings;
use crate::lora::Adapter;
use crate::metrics::Metrics;
use crate::model::tokenizer::Tokenizer;
use crate::model::{CausalLm, KvCache, ModelError};
use crate::turns::Turns;

/// Bounds of the time after which to try again, and the guess while nothing was measured.
const RETRY_AFTER: (Duration, Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(60), Duration::from_secs(1));

/// What goes to the engine's thread.
#[derive(Debug)]
pub(super) enum Command {
    Generate(Box<Submission<GenerateRequest, mpsc::Sender<Event>>>),
    Score(Box<Submission<ScoreRequest, Answer>>),
    Classify(Box<Submission<ClassifyRequest, classify::Answer>>),
    Drain { deadline: Instant, done: oneshot::Sender<()> },
}

/// An accepted request.
#[derive(Debug)]
pub(super) struct Submission<R, A> {
    pub(super) request: R,
    pub(super) answer: A,
    pub(super) demand: Demand,
    pub(super) ticket: Ticket,
    pub(super) times: Times,
    pub(super) span: Span,
}

/// Counters that handles and thread share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Sequences accepted and not admitted yet.
    pub(super) waiting: AtomicUsize,
    /// Tokens that they may need.
    waiting_tokens: AtomicU64,
    draining: AtomicBool,
    /// Tokens computed a second of late, f64 bits; 0: not measured.
    rate: AtomicU64,
}

impl Shared {
    /// Takes a measured step into the recent throughput.
    pub(super) fn measure(&self, tokens: usize, elapsed: Duration) {
        if tokens == 0 || elapsed.is_zero() {
            return;
        }
        let now = tokens as f64 / elapsed.as_secs_f64();
        let old = f64::from_bits(self.rate.load(Ordering::Relaxed));
        let rate = if old > 0.0 { 0.9 * old + 0.1 * now } else { now };
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
    }

    /// Returns how long the sequences in front of the queue take to make `places` places.
    fn retry_after(&self, places: usize) -> Duration {
        let (least, most, guess) = RETRY_AFTER;
        let rate = f64::from_bits(self.rate.load(Ordering::Relaxed));
        let waiting = self.waiting.load(Ordering::Relaxed);
        if rate <= 0.0 || waiting == 0 {
            return guess;
        }
        let tokens = self.waiting_tokens.load(Ordering::Relaxed) as f64 / waiting as f64 * places as f64;
        Duration::try_from_secs_f64(tokens / rate).unwrap_or(most).clamp(least, most)
    }
}

/// Places in the queue, given back when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    sequences: usize,
    tokens: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(self.sequences, Ordering::AcqRel);
        self.shared.waiting_tokens.fetch_sub(self.tokens, Ordering::AcqRel);
    }
}

/// A cheap handle to the engine's thread, which ends with the last handle and request.
#[derive(Clone)]
pub struct Engine {
    model: Arc<dyn CausalLm>,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    settings: EngineSettings,
    metrics: Arc<Metrics>,
    context_length: usize,
    vocab_size: usize,
    kv_bytes_per_token: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engine's thread; its steps take their turns from `turns`.
    pub fn start(
        model: Arc<dyn CausalLm>,
        tokenizer: Arc<Tokenizer>,
        settings: EngineSettings,
        metrics: Arc<Metrics>,
        turns: Arc<Turns>,
    ) -> Self {
        let text = Box::new(move || -> Box<dyn Detokenizer> { Box::new(tokenizer.stream()) });
        let (engine, core, commands) = Self::parts(model, text, settings, metrics);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || run(core, commands, &turns));
        if let Err(error) = thread {
            // Its end of the channel is gone with it: every call is answered with `Stopped`.
            tracing::error!(%error, "cannot start the engine's thread");
        }
        engine
    }

    /// Returns the handle and what the thread owns.
    pub(super) fn parts(
        model: Arc<dyn CausalLm>,
        text: Box<dyn Fn() -> Box<dyn Detokenizer> + Send>,
        settings: EngineSettings,
        metrics: Arc<Metrics>,
    ) -> (Self, Core, mpsc::Receiver<Command>) {
        // A request has at least one place in the queue, so the queue's limit bounds the requests in the channel.
        let (commands, receiver) = mpsc::channel(settings.max_waiting_sequences.clamp(1, 1 << 20) + 1);
        let shared = Arc::new(Shared::default());
        // Each sequence may have an adapter of its own.
        metrics.adapter_uses.most.store(settings.max_running_sequences, Ordering::Relaxed);
        let engine = Self {
            model: model.clone(),
            commands,
            shared: shared.clone(),
            settings: settings.clone(),
            metrics: metrics.clone(),
            context_length: model.info().context_length,
            vocab_size: model.info().vocab_size,
            kv_bytes_per_token: model.info().kv_bytes_per_token,
        };
        (engine, Core::new(model, text, &settings, (metrics, shared)), receiver)
    }

    /// Takes places in the queue for a request that becomes `sequences`, before anything is spent on it.
    ///
    /// # Errors
    /// At once when the queue is full, or the server drains.
    pub fn enter(&self, sequences: usize) -> Result<Place, EngineError> {
        self.check_draining()?;
        let limit = self.settings.max_waiting_sequences;
        // Nobody waits: more completions than the queue is long have their turn too.
        let fits =
            |waiting: usize| (waiting == 0 || waiting.saturating_add(sequences) <= limit).then(|| waiting + sequences);
        self.shared
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .map_err(|_| self.full(sequences))?;
        Ok(Place { engine: self.clone(), ticket: Ticket { shared: self.shared.clone(), sequences, tokens: 0 } })
    }

    /// Takes no more requests and returns when the last one has ended; whatever runs after `grace` fails with
    /// [`EngineError::Draining`].
    pub async fn drain(&self, grace: Duration) {
        self.shared.draining.store(true, Ordering::Release);
        let now = Instant::now();
        // A grace beyond the clock's range is as good as a year.
        let deadline = now.checked_add(grace).unwrap_or(now + Duration::from_secs(365 * 24 * 3600));
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::Drain { deadline, done }).await.is_ok() {
            // An error means that the thread has ended, and all requests with it.
            let _ = ended.await;
        }
    }

    fn check_draining(&self) -> Result<(), EngineError> {
        if self.shared.draining.load(Ordering::Acquire) { Err(EngineError::Draining) } else { Ok(()) }
    }

    fn full(&self, sequences: usize) -> EngineError {
        EngineError::QueueFull {
            waiting: self.shared.waiting.load(Ordering::Acquire),
            limit: self.settings.max_waiting_sequences,
            retry_after: self.shared.retry_after(sequences),
        }
    }

    /// Brings an adapter to the device while other steps run.
    fn prefetch(&self, adapter: Option<&Arc<Adapter>>) {
        if let Some(adapter) = adapter {
            self.model.prefetch(adapter);
        }
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        self.commands.try_send(command).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => self.full(1),
            mpsc::error::TrySendError::Closed(_) => EngineError::Stopped,
        })
    }
}

/// A place in the queue: the right to have one request computed, given back when dropped.
#[derive(Debug)]
pub struct Place {
    engine: Engine,
    ticket: Ticket,
}

impl Place {
    /// Hands a request over; dropping the receiver cancels it.
    ///
    /// # Errors
    /// At once when the request can never fit, or the server drains.
    pub fn generate(self, request: GenerateRequest) -> Result<mpsc::Receiver<Event>, EngineError> {
        self.check_tokens(&request.prompt)?;
        let room = self.engine.context_length.saturating_sub(request.prompt.len());
        if room == 0 || request.n == 0 || request.sampling.max_new_tokens == 0 {
            let length = request.prompt.len();
            let what = format!("nothing to generate after {length} tokens of {} is", self.engine.context_length);
            return Err(ModelError::Unsupported(what).into());
        }
        let new = request.sampling.max_new_tokens.min(room);
        let kv_bytes = self.kv_bytes(cache_tokens(request.prompt.len(), new, request.n));
        let work = Work::Packed(request.prompt.len());
        let demand = Demand { work, sequences: request.n, kv_bytes };
        let (engine, ticket) =
            self.reserve(&demand, request.prompt.len().saturating_add(new.saturating_mul(request.n)))?;
        engine.metrics.request_params_n.observe(request.n as f64);
        engine.metrics.request_params_max_tokens.observe(request.sampling.max_new_tokens as f64);
        engine.metrics.request_prompt_tokens.observe(request.prompt.len() as f64);
        // Room for every event that there can be: the engine never waits for a reader.
        let capacity = new.saturating_add(1).saturating_mul(request.n).saturating_add(2);
        let (events, receiver) = mpsc::channel(capacity.min(tokio::sync::Semaphore::MAX_PERMITS));
        let times = Times::start();
        let span = Span::current();
        engine.prefetch(request.adapter.as_ref());
        engine.send(Command::Generate(Box::new(Submission {
            request,
            answer: events,
            demand,
            ticket,
            times,
            span,
        })))?;
        Ok(receiver)
    }

    /// Hands over candidates to score; dropping the receiver cancels it.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn score(
        self,
        request: ScoreRequest,
    ) -> Result<oneshot::Receiver<Result<Vec<Scored>, EngineError>>, EngineError> {
        self.check_tokens(&request.prompt)?;
        let mut tokens = request.prompt.len();
        for candidate in &request.candidates {
            self.check_tokens(candidate)?;
            if request.prompt.len().saturating_add(candidate.len()) > self.engine.context_length {
                let length = request.prompt.len() + candidate.len();
                return Err(unsupported(format!(
                    "a sequence of {length} tokens, above {},",
                    self.engine.context_length
                )));
            }
            tokens = tokens.saturating_add(candidate.len());
        }
        let kv_bytes = self.kv_bytes(score::cache_tokens(&request));
        let demand = Demand { work: Work::Alone, sequences: 1, kv_bytes };
        let (engine, ticket) = self.reserve(&demand, tokens)?;
        engine.metrics.request_prompt_tokens.observe(request.prompt.len() as f64);
        let (answer, receiver) = oneshot::channel();
        let times = Times::start();
        let span = Span::current();
        engine.prefetch(request.adapter.as_ref());
        engine.send(Command::Score(Box::new(Submission { request, answer, demand, ticket, times, span })))?;
        Ok(receiver)
    }

    /// Hands over sequences to classify; dropping the receiver cancels it.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn classify(
        self,
        request: ClassifyRequest,
    ) -> Result<oneshot::Receiver<Result<ClassLogits, EngineError>>, EngineError> {
        let mut tokens = 0_usize;
        for sequence in &request.sequences {
            self.check_tokens(sequence)?;
            if sequence.len() > self.engine.context_length {
                let length = sequence.len();
                return Err(unsupported(format!(
                    "a sequence of {length} tokens, above {},",
                    self.engine.context_length
                )));
            }
            tokens = tokens.saturating_add(sequence.len());
        }
        let kv_bytes = self.kv_bytes(classify::cache_tokens(&request, self.available()));
        let demand = Demand { work: Work::Alone, sequences: 1, kv_bytes };
        let (engine, ticket) = self.reserve(&demand, tokens)?;
        engine.metrics.request_prompt_tokens.observe(tokens as f64);
        let (answer, receiver) = oneshot::channel();
        let times = Times::start();
        let span = Span::current();
        engine.send(Command::Classify(Box::new(Submission { request, answer, demand, ticket, times, span })))?;
        Ok(receiver)
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(unsupported("a sequence without tokens".into()));
        }
        match tokens.iter().find(|&&id| id as usize >= self.engine.vocab_size) {
            Some(id) => Err(unsupported(format!("token id {id} of a vocabulary of {}", self.engine.vocab_size))),
            None => Ok(()),
        }
    }

    fn kv_bytes(&self, tokens: usize) -> u64 {
        self.engine.kv_bytes_per_token.saturating_mul(tokens as u64)
    }

    /// Returns the tokens that the cache has room for.
    fn available(&self) -> usize {
        let tokens = self.engine.settings.kv_bytes() / self.engine.kv_bytes_per_token.max(1);
        usize::try_from(tokens).unwrap_or(usize::MAX)
    }

    /// Checks what is known of the request only when it is prepared: it may need up to `tokens`, all sequences together.
    fn reserve(mut self, demand: &Demand, tokens: usize) -> Result<(Engine, Ticket), EngineError> {
        self.engine.check_draining()?;
        let (needed, available) = (demand.total_bytes(), self.engine.settings.kv_bytes());
        if needed > available {
            return Err(EngineError::KvCacheTooSmall { needed, available });
        }
        self.ticket.tokens = tokens as u64;
        self.ticket.shared.waiting_tokens.fetch_add(tokens as u64, Ordering::AcqRel);
        Ok((self.engine, self.ticket))
    }
}

/// Returns the tokens of cache that each of `n` completions of `new` tokens may come to need.
///
/// The last of several that share a prompt holds it alone, with room behind it that nobody uses, and its own end.
fn cache_tokens(prompt: usize, new: usize, n: usize) -> usize {
    let whole = KvCache::capacity(prompt.saturating_add(new));
    if n == 1 {
        return whole;
    }
    whole.max(KvCache::fork_capacity(0, prompt).saturating_add(KvCache::fork_capacity(prompt, new)))
}

fn unsupported(what: String) -> EngineError {
    EngineError::Model(ModelError::Unsupported(what))
}

/// The thread: sleeps while there is nothing to do, ends when nobody can ask any more.
pub(super) fn run(mut core: Core, mut commands: mpsc::Receiver<Command>, turns: &Turns) {
    let mut steps = turns.steps();
    loop {
        if core.is_idle() {
            steps.rest();
            match commands.blocking_recv() {
                Some(command) => core.accept(command),
                None => return,
            }
        }
        while let Ok(command) = commands.try_recv() {
            core.accept(command);
        }
        let turn = steps.take();
        let done = catch_unwind(AssertUnwindSafe(|| core.turn()));
        drop(turn);
        if done.is_err() {
            tracing::error!("the engine's step panicked, everything that ran has failed");
            core.fail_all(|| fault("the step panicked"));
        }
    }
}
