//! What is computed apart from the packed steps, slice by slice: scores and classes.
//!
//! Only tells them apart; neither computes nor decides when.

use std::time::Instant;

use tracing::Span;

use super::EngineError;
use super::classify::ClassifyTask;
use super::handle::Ticket;
use super::score::{ScoreTask, Slice};
use super::sequence::Times;
use crate::model::CausalLm;

/// A request that is computed alone.
#[derive(Debug)]
pub(super) enum Alone {
    /// Log-probabilities.
    Score(Box<ScoreTask>),
    /// Classes.
    Classify(Box<ClassifyTask>),
}

impl Alone {
    /// Computes one slice.
    ///
    /// # Errors
    /// When the model fails.
    pub(super) fn advance(&mut self, model: &dyn CausalLm) -> Result<Slice, EngineError> {
        match self {
            Self::Score(task) => task.advance(model),
            Self::Classify(task) => task.advance(model).map(|n| Slice { prompt: n, scored: 0, computed: n }),
        }
    }

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

    /// Returns its times, and its place in the queue.
    pub(super) fn admission(&mut self) -> (&mut Times, &mut Option<Ticket>) {
        match self {
            Self::Score(task) => (&mut task.times, &mut task.ticket),
            Self::Classify(task) => (&mut task.times, &mut task.ticket),
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
