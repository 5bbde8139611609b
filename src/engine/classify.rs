//! Class logits of whole sequences, one after the other.
//!
//! As with scores nothing is packed with other requests, so that a result depends on text and adapter only. Does not
//! decide when it runs: one call of [`ClassifyTask::advance`] is one sequence, which has to be computed at once because
//! its class stands at its end. Turns no logit into a probability.
//! Units: tokens; logits in f32.

use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::Span;

use super::handle::Ticket;
use super::pass::{classify, rows};
use super::sequence::Times;
use super::{ClassLogits, ClassifyRequest, EngineError};
use crate::lora::{LoraBatch, Run};
use crate::model::{Batch, CausalLm, KvCache, Rows, Segment};

/// Where the logits go: one row a sequence.
pub(super) type Answer = oneshot::Sender<Result<ClassLogits, EngineError>>;

/// A request for classes on its way.
#[derive(Debug)]
pub(super) struct ClassifyTask {
    pub(super) request: ClassifyRequest,
    pub(super) reply: Answer,
    /// Held while the request waits.
    pub(super) ticket: Option<Ticket>,
    pub(super) span: Span,
    pub(super) times: Times,
    /// Logits of the sequences that are done.
    done: ClassLogits,
}

/// Returns the tokens of cache that a request may take the place of: keys and values of its longest sequence.
pub(super) fn cache_tokens(request: &ClassifyRequest) -> usize {
    KvCache::capacity(request.sequences.iter().map(Vec::len).max().unwrap_or(0))
}

impl ClassifyTask {
    /// Begins with the first sequence.
    pub(super) fn new(request: ClassifyRequest, reply: Answer, ticket: Ticket, times: Times) -> Self {
        Self { request, reply, ticket: Some(ticket), span: Span::current(), times, done: Vec::new() }
    }

    /// Computes one sequence and returns its length.
    ///
    /// # Errors
    /// When the model fails, or its logits are no numbers.
    pub(super) fn advance(&mut self, model: &dyn CausalLm) -> Result<usize, EngineError> {
        let Some(tokens) = self.request.sequences.get(self.done.len()) else { return Ok(0) };
        let run = |adapter: &Arc<_>| Run { adapter: Arc::clone(adapter), rows: 0..tokens.len(), scale: 1.0 };
        let lora = LoraBatch { runs: self.request.adapter.iter().map(run).collect(), dropout: None };
        let segments = [Segment { len: tokens.len(), logits: Rows::None }];
        let logits = classify(model, &Batch { tokens, segments: &segments, lora: &lora })?;
        let row = rows(&logits, 1, |row, _| row.to_vec())?;
        if row.iter().any(|logit| !logit.is_finite()) {
            return Err(super::pass::fault("the model returned a logit that is no finite number"));
        }
        self.done.push(row);
        Ok(tokens.len())
    }

    /// Returns whether every sequence is done.
    pub(super) fn is_done(&self) -> bool {
        self.done.len() == self.request.sequences.len()
    }

    /// Answers the caller.
    pub(super) fn finish(self) {
        // Whoever hears of the end finds the adapter free.
        drop(self.request);
        // The caller may have left: then nobody wants to know.
        let _ = self.reply.send(Ok(self.done));
    }
}
