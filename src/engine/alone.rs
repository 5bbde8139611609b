//! What is computed apart from the packed steps, slice by slice: scores and classes.
//!
//! Only tells them apart, and says how large a slice is; neither computes nor decides when.

use std::time::Instant;

use tracing::Span;

use super::EngineError;
use super::classify::{self, ClassifyTask};
use super::handle::Ticket;
use super::scheduler::Id;
use super::score::{self, ScoreTask, Slice};
use super::sequence::Times;
use crate::metrics::AdapterUse;
use crate::model::CausalLm;

/// Most tokens, and rows of logits, of a slice when nothing else runs.
pub(super) const FREE: (usize, usize) = (512, 256);
/// The same beside steps, which wait for it, and wherever a request is computed alone.
const BESIDE: (usize, usize) = (128, 64);

/// What a slice did for each request that had a part in it.
pub(super) type Outcomes = Vec<(Id, Result<Slice, EngineError>)>;

/// How much a slice may still take.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) tokens: usize,
    /// Of logits, each of the size of the vocabulary.
    pub(super) rows: usize,
    /// Whether several requests share it.
    pub(super) packs: bool,
}

impl Room {
    /// Returns that of a whole slice.
    pub(super) fn new(packs: bool, step_tokens: usize, beside_steps: bool) -> Self {
        let (tokens, rows) = if packs && !beside_steps { FREE } else { BESIDE };
        let most = step_tokens.max(1);
        Self { tokens: tokens.min(most), rows: rows.min(most), packs }
    }

    /// Takes some of it, and returns whether there is room for more.
    pub(super) fn take(&mut self, tokens: usize, rows: usize) -> bool {
        let left = |of: usize, taken: usize| if self.packs { of.saturating_sub(taken) } else { 0 };
        (self.tokens, self.rows) = (left(self.tokens, tokens), left(self.rows, rows));
        self.is_open()
    }

    /// Returns whether anything has room.
    pub(super) fn is_open(&self) -> bool {
        self.tokens > 0 && self.rows > 0
    }
}

/// A request that is computed apart from the steps.
#[derive(Debug)]
pub(super) enum Alone {
    /// Log-probabilities.
    Score(Box<ScoreTask>),
    /// Classes.
    Classify(Box<ClassifyTask>),
}

/// Computes one slice: of the first request, and of as many others of its kind as share it.
pub(super) fn advance(tasks: Vec<(Id, &mut Alone)>, model: &dyn CausalLm, room: Room) -> Outcomes {
    let (mut scores, mut classes) = (Vec::new(), Vec::new());
    let scores_first = matches!(tasks.first(), Some((_, Alone::Score(_))));
    for (id, task) in tasks {
        match task {
            Alone::Score(task) => scores.push((id, &mut **task)),
            Alone::Classify(task) => classes.push((id, &mut **task)),
        }
    }
    if scores_first { score::advance(scores, model, room) } else { classify::advance(classes, model, room) }
}

impl Alone {
    /// Returns whether nothing is left to compute.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Score(task) => task.is_done(),
            Self::Classify(task) => task.is_done(),
        }
    }

    /// Answers the caller.
    pub(super) fn finish(self) {
        match self {
            Self::Score(task) => task.finish(),
            Self::Classify(task) => task.finish(),
        }
    }

    /// Ends early; without an error nobody listens.
    pub(super) fn fail(self, error: Option<EngineError>) {
        // The caller may have left all the same.
        match (self, error) {
            (Self::Score(task), Some(error)) => drop(task.reply.send(Err(error))),
            (Self::Classify(task), Some(error)) => drop(task.reply.send(Err(error))),
            (Self::Score(_) | Self::Classify(_), None) => {}
        }
    }

    /// Returns whether the caller has left.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Score(task) => task.reply.is_closed(),
            Self::Classify(task) => task.reply.is_closed(),
        }
    }

    /// Returns when the caller stops waiting.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Score(task) => task.request.deadline,
            Self::Classify(task) => task.request.deadline,
        }
    }

    /// Returns its times, its place in the queue, and its use of an adapter.
    pub(super) fn admission(&mut self) -> (&mut Times, &mut Option<Ticket>, Option<&AdapterUse>) {
        match self {
            Self::Score(task) => (&mut task.times, &mut task.ticket, task.request.adapter_use.as_deref()),
            Self::Classify(task) => (&mut task.times, &mut task.ticket, task.request.adapter_use.as_deref()),
        }
    }

    /// Returns when it arrived.
    pub(super) fn arrival(&self) -> Instant {
        match self {
            Self::Score(task) => task.times.arrival,
            Self::Classify(task) => task.times.arrival,
        }
    }

    /// Returns the caller's span.
    pub(super) fn span(&self) -> &Span {
        match self {
            Self::Score(task) => &task.span,
            Self::Classify(task) => &task.span,
        }
    }
}
