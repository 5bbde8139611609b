//! Wire to domain, requests for inference: every field is checked here, once, and all faults are reported together.
//!
//! No tokenizer, model or registry is asked: what depends on the tokens of a prompt is checked in `prompt`.
//! Units: tokens and bytes. Ranges are those written in `proto/evenkeel/v1/inference.proto`.

use super::pb;
use super::violations::Violations;
use crate::engine::{Sampling, Stopping};
use crate::model::chat::Message;
use crate::registry::Reference;

/// Largest `n`.
pub(super) const MAX_N: u32 = 16;
/// Largest number of alternatives in `logprobs`.
pub(super) const MAX_LOGPROBS: u32 = 20;
/// Largest number of stop strings.
pub(super) const MAX_STOP: usize = 16;
/// Largest number of bytes of one stop string.
const MAX_STOP_BYTES: usize = 256;
/// Largest number of stop tokens and of biased tokens.
const MAX_TOKENS_LISTED: usize = 1024;
/// Largest number of candidates of one Score request.
pub(super) const MAX_CANDIDATES: usize = 1024;
/// Largest number of texts of one Classify request.
pub(super) const MAX_INPUTS: usize = 1024;
/// Largest number of images of one Classify request.
pub(super) const MAX_IMAGES: usize = 64;
/// Largest number of messages of a conversation.
const MAX_MESSAGES: usize = 1024;
/// Largest number of bytes of a message's role.
const MAX_ROLE_BYTES: usize = 64;
/// Largest number of bytes of a prompt, a conversation or a candidate.
pub(super) const MAX_PROMPT_BYTES: usize = 1 << 20;
/// New tokens when the request names no number.
pub(super) const DEFAULT_NEW_TOKENS: usize = 128;

/// What the checks need to know of the base model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Size of the vocabulary.
    pub(super) vocab: usize,
}

/// What stands before the first new token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    /// Plain text.
    Text(String),
    /// A conversation.
    Messages(Vec<Message>),
    /// Token ids.
    Ids(Vec<u32>),
}

/// A checked request for text.
#[derive(Debug, Clone)]
pub(super) struct Generate {
    /// The adapter; none is the base model.
    pub(super) adapter: Option<Reference>,
    /// The prompt.
    pub(super) source: Source,
    /// As asked for; its `max_new_tokens` holds the default where `explicit_length` is false.
    pub(super) sampling: Sampling,
    /// Whether the caller named `max_new_tokens`.
    pub(super) explicit_length: bool,
    /// When it ends.
    pub(super) stopping: Stopping,
    /// Number of completions.
    pub(super) n: usize,
    /// Alternatives to report.
    pub(super) logprobs: Option<usize>,
}

/// A continuation to score.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Continuation {
    /// Text that follows the prompt directly.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// A checked request for log-probabilities.
#[derive(Debug, Clone)]
pub(super) struct Score {
    /// The adapter; none is the base model.
    pub(super) adapter: Option<Reference>,
    /// The prompt.
    pub(super) source: Source,
    /// At least one.
    pub(super) candidates: Vec<Continuation>,
}

/// A checked request for token ids.
#[derive(Debug, Clone)]
pub(super) struct Tokenize {
    /// Text or messages, never ids.
    pub(super) source: Source,
    /// Whether to add the tokens that the model expects around a text.
    pub(super) special: bool,
}

/// Checks a request for text. A fresh seed is drawn where none is given.
pub(super) fn generate(request: pb::GenerateRequest, bounds: Bounds) -> Result<Generate, Violations> {
    let mut v = Violations::default();
    let adapter = adapter(&mut v, "adapter", &request.adapter);
    let source = source(&mut v, request.prompt, request.messages, request.prompt_token_ids, bounds);
    let wire = request.sampling.unwrap_or_default();
    let explicit_length = wire.max_new_tokens.is_some();
    let stopping = stopping(&mut v, &wire, bounds);
    let sampling = sampling(&mut v, wire, bounds);
    let n = v.check("n", request.n.unwrap_or(1), |n| (1..=MAX_N).contains(n), "must be 1 to 16");
    if let Some(count) = request.logprobs {
        v.require("logprobs", count <= MAX_LOGPROBS, "must be 0 to 20");
    }
    let logprobs = request.logprobs.map(|count| count as usize);
    v.finish(source.map(|source| Generate {
        adapter,
        source,
        sampling,
        explicit_length,
        stopping,
        n: n as usize,
        logprobs,
    }))
}

/// Checks a request for log-probabilities.
pub(super) fn score(request: pb::ScoreRequest, bounds: Bounds) -> Result<Score, Violations> {
    let mut v = Violations::default();
    let adapter = adapter(&mut v, "adapter", &request.adapter);
    let source = source(&mut v, request.prompt, request.messages, request.prompt_token_ids, bounds);
    let count = request.candidates.len();
    v.require("candidates", (1..=MAX_CANDIDATES).contains(&count), "must have 1 to 1024 entries");
    let mut candidates = Vec::new();
    for (i, candidate) in request.candidates.into_iter().take(MAX_CANDIDATES).enumerate() {
        match candidate.continuation {
            Some(pb::candidate::Continuation::Text(text)) => {
                let field = format!("candidates[{i}].text");
                v.require(&field, !text.is_empty(), "must not be empty");
                v.require(&field, text.len() <= MAX_PROMPT_BYTES, "must be at most 1 MiB");
                candidates.push(Continuation::Text(text));
            }
            Some(pb::candidate::Continuation::TokenIds(ids)) => {
                let field = format!("candidates[{i}].token_ids");
                v.require(&field, !ids.ids.is_empty(), "must not be empty");
                token_ids(&mut v, &field, &ids.ids, bounds);
                candidates.push(Continuation::Ids(ids.ids));
            }
            None => v.add(format!("candidates[{i}]"), "must have text or token_ids"),
        }
    }
    v.finish(source.map(|source| Score { adapter, source, candidates }))
}

/// Checks a request for token ids.
pub(super) fn tokenize(request: pb::TokenizeRequest) -> Result<Tokenize, Violations> {
    let mut v = Violations::default();
    let of_messages = !request.messages.is_empty();
    if of_messages && request.add_special_tokens == Some(true) {
        v.add("add_special_tokens", "must not be true for messages: the template writes them itself");
    }
    let source = match (request.text, of_messages) {
        (Some(text), false) => {
            v.require("text", text.len() <= MAX_PROMPT_BYTES, "must be at most 1 MiB");
            Some(Source::Text(text))
        }
        (None, true) => Some(Source::Messages(messages(&mut v, request.messages))),
        (_, _) => {
            v.add("text", "exactly one of text and messages must be given");
            None
        }
    };
    let special = request.add_special_tokens.unwrap_or(!of_messages);
    v.finish(source.map(|source| Tokenize { source, special }))
}

/// Checks the name of what to run; empty is the base model.
pub(super) fn adapter(v: &mut Violations, field: &str, text: &str) -> Option<Reference> {
    if text.is_empty() {
        return None;
    }
    let reference = Reference::parse(text);
    v.require(field, reference.is_some(), "must be a name, or name@ and 8 to 64 hexadecimal digits");
    reference
}

/// Checks what stands before the first new token, or what is classified.
pub(super) fn source(
    v: &mut Violations,
    prompt: Option<String>,
    conversation: Vec<pb::ChatMessage>,
    ids: Option<pb::TokenIds>,
    bounds: Bounds,
) -> Option<Source> {
    match (prompt, conversation.is_empty(), ids) {
        (Some(text), true, None) => {
            v.require("prompt", text.len() <= MAX_PROMPT_BYTES, "must be at most 1 MiB");
            Some(Source::Text(text))
        }
        (None, false, None) => Some(Source::Messages(messages(v, conversation))),
        (None, true, Some(ids)) => {
            v.require("prompt_token_ids.ids", !ids.ids.is_empty(), "must not be empty");
            token_ids(v, "prompt_token_ids.ids", &ids.ids, bounds);
            Some(Source::Ids(ids.ids))
        }
        (_, _, _) => {
            v.add("prompt", "exactly one of prompt, messages and prompt_token_ids must be given");
            None
        }
    }
}

fn messages(v: &mut Violations, wire: Vec<pb::ChatMessage>) -> Vec<Message> {
    v.require("messages", wire.len() <= MAX_MESSAGES, "must have at most 1024 entries");
    let bytes: usize = wire.iter().map(|m| m.content.len()).sum();
    v.require("messages", bytes <= MAX_PROMPT_BYTES, "must have at most 1 MiB of content together");
    for (i, message) in wire.iter().take(MAX_MESSAGES).enumerate() {
        let sound = (1..=MAX_ROLE_BYTES).contains(&message.role.len());
        v.require(&format!("messages[{i}].role"), sound, "must be 1 to 64 bytes");
    }
    wire.into_iter().map(|m| Message { role: m.role, content: m.content }).collect()
}

/// Checks ids against the vocabulary; their number against the context is checked with the whole request.
fn token_ids(v: &mut Violations, field: &str, ids: &[u32], bounds: Bounds) {
    if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= bounds.vocab) {
        v.add(format!("{field}[{i}]"), format!("{id} must be below the size of the vocabulary, {}", bounds.vocab));
    }
}

fn stopping(v: &mut Violations, wire: &pb::SamplingParams, bounds: Bounds) -> Stopping {
    v.require("sampling.stop", wire.stop.len() <= MAX_STOP, "must have at most 16 entries");
    for (i, stop) in wire.stop.iter().take(MAX_STOP).enumerate() {
        let sound = (1..=MAX_STOP_BYTES).contains(&stop.len());
        v.require(&format!("sampling.stop[{i}]"), sound, "must be 1 to 256 bytes");
    }
    let listed = wire.stop_token_ids.len() <= MAX_TOKENS_LISTED;
    v.require("sampling.stop_token_ids", listed, "must have at most 1024 entries");
    token_ids(v, "sampling.stop_token_ids", &wire.stop_token_ids, bounds);
    let least = wire.min_new_tokens.unwrap_or(0) as usize;
    let most = wire.max_new_tokens.map_or(DEFAULT_NEW_TOKENS, |most| most as usize);
    v.require("sampling.min_new_tokens", least <= most, "must be at most max_new_tokens");
    Stopping {
        strings: wire.stop.clone(),
        token_ids: wire.stop_token_ids.clone(),
        ignore_eos: wire.ignore_eos.unwrap_or(false),
        include_stop_string: wire.include_stop_str_in_output.unwrap_or(false),
        min_new_tokens: least,
    }
}

/// A comparison with NaN is false, so each range below refuses it.
fn sampling(v: &mut Violations, wire: pb::SamplingParams, bounds: Bounds) -> Sampling {
    let most = wire.max_new_tokens.map_or(DEFAULT_NEW_TOKENS, |most| most as usize);
    v.require("sampling.max_new_tokens", most >= 1, "must be 1 or more");
    let within = |low: f64, high: f64| move |x: &f64| (low..=high).contains(x);
    let temperature =
        v.check("sampling.temperature", wire.temperature.unwrap_or(1.0), within(0.0, 2.0), "must be 0 to 2");
    let top_p = wire.top_p.unwrap_or(1.0);
    v.require("sampling.top_p", top_p > 0.0 && top_p <= 1.0, "must be above 0 and at most 1");
    let min_p = v.check("sampling.min_p", wire.min_p.unwrap_or(0.0), within(0.0, 1.0), "must be 0 to 1");
    let repetition_penalty = wire.repetition_penalty.unwrap_or(1.0);
    let sound = repetition_penalty > 0.0 && repetition_penalty <= 10.0;
    v.require("sampling.repetition_penalty", sound, "must be above 0 and at most 10");
    let presence = wire.presence_penalty.unwrap_or(0.0);
    let presence_penalty = v.check("sampling.presence_penalty", presence, within(-2.0, 2.0), "must be -2 to 2");
    let frequency = wire.frequency_penalty.unwrap_or(0.0);
    let frequency_penalty = v.check("sampling.frequency_penalty", frequency, within(-2.0, 2.0), "must be -2 to 2");
    v.require("sampling.logit_bias", wire.logit_bias.len() <= MAX_TOKENS_LISTED, "must have at most 1024 entries");
    let mut logit_bias: Vec<(u32, f64)> = wire.logit_bias.into_iter().collect();
    logit_bias.sort_unstable_by_key(|(id, _)| *id);
    for (id, bias) in &logit_bias {
        let field = format!("sampling.logit_bias[{id}]");
        v.require(&field, (-100.0..=100.0).contains(bias), "must be -100 to 100");
        v.require(&field, (*id as usize) < bounds.vocab, "must name a token below the size of the vocabulary");
    }
    Sampling {
        max_new_tokens: most,
        temperature,
        top_p,
        top_k: wire.top_k.unwrap_or(0) as usize,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        seed: wire.seed.unwrap_or_else(rand::random),
        logit_bias,
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
