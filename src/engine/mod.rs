//! Continuous batching: many requests, one thread, tokens out.
//!
//! The contract: requests in, events out. [`Engine`] (`handle`) queues; the thread behind it (`step`) owns all caches
//! and sequences, asks `scheduler` what to compute, `sampler` for the next token and `stop` whether the text ends;
//! `score` and `classify` compute log-probabilities and classes apart from the rest (`alone`); `pass` runs the model for
//! all; `prefix` keeps what ended requests computed. Classifiers of images have a queue and a thread of their own
//! ([`ImageEngine`]). Nothing here knows gRPC, names of adapters or templates.

mod alone;
mod classify;
mod handle;
mod images;
mod pass;
mod prefix;
pub mod sampler;
mod scheduler;
mod score;
mod sequence;
mod step;
mod stop;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lora::Adapter;
use crate::metrics::AdapterUse;
use crate::model::ModelError;

pub use handle::{Engine, Place};
pub use images::{ImageEngine, ImageRequest};

/// How the next token is chosen; every field is checked at the border.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Largest number of new tokens, 1 or more.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Above 0, at most 1.
    pub top_p: f64,
    /// 0 keeps all.
    pub top_k: usize,
    /// 0 to 1.
    pub min_p: f64,
    /// Above 0; 1 is off.
    pub repetition_penalty: f64,
    /// 0 is off.
    pub presence_penalty: f64,
    /// 0 is off.
    pub frequency_penalty: f64,
    /// Seed of completion 0; completion i draws from stream i of the same seed.
    pub seed: u64,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f64)>,
}

/// When a completion ends.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stopping {
    /// Strings that end the text.
    pub strings: Vec<String>,
    /// Token ids that end the text, besides the model's own.
    pub token_ids: Vec<u32>,
    /// Goes on after the model's end tokens.
    pub ignore_eos: bool,
    /// Returns the stop string too.
    pub include_stop_string: bool,
    /// No end or stop before this many new tokens.
    pub min_new_tokens: usize,
}

/// A checked request for text.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Prompt, at least one token.
    pub prompt: Vec<u32>,
    /// Pinned for the life of the request.
    pub adapter: Option<Arc<Adapter>>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When it ends.
    pub stopping: Stopping,
    /// Number of completions, at least 1.
    pub n: usize,
    /// Number of alternatives to report with each token's log-probability.
    pub logprobs: Option<usize>,
    /// Tells the metrics that the adapter is used.
    pub adapter_use: Option<Arc<AdapterUse>>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
}

/// A checked request for log-probabilities.
#[derive(Debug, Clone)]
pub struct ScoreRequest {
    /// Prompt, at least one token.
    pub prompt: Vec<u32>,
    /// Candidates, each at least one token.
    pub candidates: Vec<Vec<u32>>,
    /// Pinned for the life of the request.
    pub adapter: Option<Arc<Adapter>>,
    /// Tells the metrics that the adapter is used.
    pub adapter_use: Option<Arc<AdapterUse>>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
}

/// A checked request for classes; base model or adapter have a classification head.
#[derive(Debug, Clone)]
pub struct ClassifyRequest {
    /// Sequences, each at least one token.
    pub sequences: Vec<Vec<u32>>,
    /// Pinned for the life of the request.
    pub adapter: Option<Arc<Adapter>>,
    /// Tells the metrics that the adapter is used.
    pub adapter_use: Option<Arc<AdapterUse>>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
}

/// Logits of a classification head, one row a sequence.
pub type ClassLogits = Vec<Vec<f32>>;

/// Log-probabilities of one candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// One a token.
    pub logprobs: Vec<f64>,
    /// Whether every token was the most likely one.
    pub is_greedy: bool,
}

/// Token and log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub token: u32,
    /// Natural logarithm of the model's own probability.
    pub logprob: f64,
}

/// Why a completion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token, or the stop string given.
    Stop(Option<String>),
    /// The largest number of tokens.
    Length,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Token id.
    pub id: u32,
    /// The token's own log-probability and the best alternatives, when asked for.
    pub logprobs: Option<(f64, Vec<TokenLogprob>)>,
}

/// What the engine tells about a request, in order; the last is always `Done` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// Progress of one completion. Text may lag behind tokens.
    Delta {
        /// Index of the completion.
        index: usize,
        /// Text that is certain now.
        text: String,
        /// Tokens since the last event of this completion.
        tokens: Vec<Token>,
        /// Set in the last event of this completion.
        finish: Option<FinishReason>,
    },
    /// All completions have ended.
    Done,
    /// The request failed.
    Failed(EngineError),
}

/// Why the engine refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Too many sequences wait.
    #[error("{waiting} sequences wait already, the limit is {limit}")]
    QueueFull {
        /// Sequences that wait.
        waiting: usize,
        /// Their limit.
        limit: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The request can never fit into the key and value cache.
    #[error("needs {needed} bytes of key and value cache, the server has {available}")]
    KvCacheTooSmall {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The deadline passed.
    #[error("deadline passed")]
    DeadlineExceeded,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine's thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}
