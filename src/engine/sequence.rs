//! One completion on its way, and the request that it belongs to.
//!
//! Decides what a new token means: text that is certain, and whether the completion ends. Does not choose tokens and
//! does not compute them.
//! Units: tokens.

use std::time::Instant;

use tokio::sync::mpsc;
use tracing::Span;

use super::handle::Ticket;
use super::sampler::{Draws, History};
use super::scheduler::Id;
use super::stop::StopStrings;
use super::{Event, FinishReason, GenerateRequest};
use crate::model::KvCache;
use crate::model::tokenizer::TextStream;

/// Turns tokens into text that is never taken back: [`TextStream`], and the scripted one of the tests.
pub(super) trait Detokenizer: Send {
    /// Takes the next id and returns the text that is certain now.
    fn push(&mut self, id: u32) -> String;
    /// Returns what was held back.
    fn finish(&mut self) -> String;
}

impl Detokenizer for TextStream {
    fn push(&mut self, id: u32) -> String {
        Self::push(self, id)
    }

    fn finish(&mut self) -> String {
        Self::finish(self)
    }
}

/// When a request came, began and gave its first token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) arrival: Instant,
    pub(super) first_step: Option<Instant>,
    pub(super) first_token: Option<Instant>,
}

impl Times {
    /// Begins now.
    pub(super) fn start() -> Self {
        Self { arrival: Instant::now(), first_step: None, first_token: None }
    }
}

/// A request for text and what its sequences share.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) request: GenerateRequest,
    pub(super) events: mpsc::Sender<Event>,
    /// Held while the request waits.
    pub(super) ticket: Option<Ticket>,
    pub(super) span: Span,
    pub(super) times: Times,
    /// Ids that end a completion.
    pub(super) end_ids: Vec<u32>,
    /// Most tokens of a completion, within the context length.
    pub(super) max_tokens: usize,
    /// Completions that have not ended.
    pub(super) live: usize,
    /// Tokens of all completions.
    pub(super) generated: usize,
    /// Whether a completion ended by its length.
    pub(super) cut: bool,
}

/// One completion.
pub(super) struct Sequence {
    pub(super) group: Id,
    pub(super) index: usize,
    /// Out while a step computes.
    pub(super) cache: Option<KvCache>,
    pub(super) output: Vec<u32>,
    /// Empty when no setting looks at it.
    pub(super) history: History,
    pub(super) draws: Draws,
    pub(super) last_token: Option<Instant>,
    text: Box<dyn Detokenizer>,
    stops: StopStrings,
}

/// Returns the tokens that a completion cannot have next: those that would end it too early.
pub(super) fn masked<'a>(sequence: &Sequence, group: &'a Group) -> &'a [u32] {
    if sequence.output.len() < group.request.stopping.min_new_tokens { &group.end_ids } else { &[] }
}

impl Sequence {
    /// Begins completion `index` of `group`.
    pub(super) fn new(
        group: (Id, &GenerateRequest),
        index: usize,
        cache: KvCache,
        history: History,
        text: Box<dyn Detokenizer>,
    ) -> Self {
        let (id, request) = group;
        Self {
            group: id,
            index,
            cache: Some(cache),
            output: Vec::new(),
            history,
            draws: Draws::new(request.sampling.seed, index as u64),
            last_token: None,
            text,
            stops: StopStrings::new(&request.stopping.strings, request.stopping.include_stop_string),
        }
    }

    /// Adds known tokens from position `from` on, `count` of them, to a packed batch.
    pub(super) fn extend_batch(&self, prompt: &[u32], from: usize, count: usize, batch: &mut Vec<u32>) {
        let prompt_part = prompt.get(from..).unwrap_or(&[]);
        batch.extend(prompt_part.iter().chain(&self.output[from.saturating_sub(prompt.len())..]).take(count));
    }

    /// Takes the next token; returns the text that is certain now, and why the completion ends if it does.
    pub(super) fn push(&mut self, token: u32, group: &Group) -> (String, Option<FinishReason>) {
        self.output.push(token);
        let stopping = &group.request.stopping;
        let may_stop = self.output.len() > stopping.min_new_tokens;
        if may_stop && group.end_ids.contains(&token) {
            let rest = self.text.finish();
            let (text, stop) = self.flush(&rest);
            return (text, Some(FinishReason::Stop(stop)));
        }
        let piece = self.text.push(token);
        let mut text = if may_stop {
            let (text, stop) = self.stops.push(&piece);
            if stop.is_some() {
                return (text, Some(FinishReason::Stop(stop)));
            }
            text
        } else {
            self.stops.pass(&piece)
        };
        if self.output.len() < group.max_tokens {
            return (text, None);
        }
        let rest = self.text.finish();
        let (rest, stop) = if may_stop { self.flush(&rest) } else { (rest, None) };
        text.push_str(&rest);
        let reason = stop.map_or(FinishReason::Length, |stop| FinishReason::Stop(Some(stop)));
        (text, Some(reason))
    }

    /// Ends the text; a stop string may still be completed by what the decoder held back.
    fn flush(&mut self, rest: &str) -> (String, Option<String>) {
        let (mut text, stop) = self.stops.push(rest);
        if stop.is_none() {
            text.push_str(&self.stops.finish());
        }
        (text, stop)
    }
}
