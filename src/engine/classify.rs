//! Class logits of whole sequences.
//!
//! As with scores, sequences share passes on the CPU, with those of other requests for the same adapter too, and each is
//! computed alone on a GPU: a result depends on text and adapter only. Does not decide when it runs, or with whom: one
//! call of [`advance`] is one slice. A sequence has to be computed at once because its class stands at its end. Turns no
//! logit into a probability.
//! Units: tokens; logits in f32.

use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::Span;

use super::alone::{FREE, Outcomes, Room};
use super::handle::Ticket;
use super::pass::{classify, fault, rows};
use super::scheduler::Id;
use super::score::Slice;
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
    /// Tokens of cache reserved: a pass on the CPU holds keys and values of all its sequences.
    memory: usize,
}

/// Returns the tokens of cache that a request needs of `available`: its longest sequence's, or more where several of its
/// sequences share a pass, up to those of a slice.
pub(super) fn cache_tokens(request: &ClassifyRequest, available: usize) -> usize {
    let longest = KvCache::capacity(request.sequences.iter().map(Vec::len).max().unwrap_or(0));
    let all = request.sequences.iter().map(|sequence| KvCache::fork_capacity(0, sequence.len()));
    let slice = KvCache::capacity(FREE.0).min(available);
    longest.max(all.fold(0, usize::saturating_add).min(slice))
}

impl ClassifyTask {
    /// Begins with the first sequence; `memory` are the tokens of cache reserved.
    pub(super) fn new(request: ClassifyRequest, reply: Answer, ticket: Ticket, times: Times, memory: usize) -> Self {
        Self { request, reply, ticket: Some(ticket), span: Span::current(), times, done: Vec::new(), memory }
    }

    /// Returns how many of the next sequences there is room for; the first of a slice always has room.
    fn next(&self, room: &mut Room, first: bool) -> usize {
        let (mut count, mut memory) = (0, self.memory);
        for sequence in &self.request.sequences[self.done.len()..] {
            let taken = KvCache::fork_capacity(0, sequence.len());
            let fits = sequence.len() <= room.tokens && taken <= memory;
            if !(fits || (first && count == 0)) {
                break;
            }
            (count, memory) = (count + 1, memory.saturating_sub(taken));
            if !room.take(sequence.len(), 0) {
                break;
            }
        }
        count
    }

    /// Takes the logits `[sequences, labels]` of the next sequences.
    fn absorb(&mut self, all: &[f32], labels: usize) -> Result<Slice, EngineError> {
        if all.iter().any(|logit| !logit.is_finite()) {
            return Err(fault("the model returned a logit that is no finite number"));
        }
        let first = self.done.len();
        self.done.extend(all.chunks_exact(labels).map(<[f32]>::to_vec));
        let computed = self.request.sequences[first..self.done.len()].iter().map(Vec::len).sum();
        Ok(Slice { prompt: computed, scored: 0, computed })
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

/// Computes one slice: sequences of the first request, and of others for the same adapter, as many as there is room for.
///
/// An error of the model is that of all whose sequences it was given.
pub(super) fn advance(tasks: Vec<(Id, &mut ClassifyTask)>, model: &dyn CausalLm, mut room: Room) -> Outcomes {
    let mut parts: Vec<(Id, &mut ClassifyTask, usize)> = Vec::new();
    // A head that an adapter brings is the head of a whole pass.
    let adapter = |task: &ClassifyTask| task.request.adapter.as_ref().map(Arc::as_ptr);
    let shared = tasks.first().map(|(_, task)| adapter(task));
    for (id, task) in tasks {
        let count = if Some(adapter(task)) == shared { task.next(&mut room, parts.is_empty()) } else { 0 };
        if count > 0 {
            parts.push((id, task, count));
        }
        if !room.is_open() {
            break;
        }
    }
    let ids: Vec<Id> = parts.iter().map(|(id, ..)| *id).collect();
    compute(parts, model).unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, requests = ids.len(), "slice failed");
        ids.into_iter().map(|id| (id, Err(fault(&error.to_string())))).collect()
    })
}

/// Computes the next sequences of each request in one pass.
fn compute(parts: Vec<(Id, &mut ClassifyTask, usize)>, model: &dyn CausalLm) -> Result<Outcomes, EngineError> {
    let mut sequences: Vec<&[u32]> = Vec::new();
    for (_, task, count) in &parts {
        sequences.extend(task.request.sequences[task.done.len()..][..*count].iter().map(Vec::as_slice));
    }
    let tokens = sequences.concat();
    let segment = |sequence: &&[u32]| Segment { len: sequence.len(), logits: Rows::None };
    let segments: Vec<Segment> = sequences.iter().map(segment).collect();
    let run = |adapter: &Arc<_>| Run { adapter: Arc::clone(adapter), rows: 0..tokens.len(), scale: 1.0 };
    let adapter = parts.first().and_then(|(_, task, _)| task.request.adapter.as_ref());
    let lora = LoraBatch { runs: adapter.into_iter().map(run).collect(), dropout: None };
    let logits = classify(model, &Batch { tokens: &tokens, segments: &segments, lora: &lora })?;
    Ok(rows(&logits, segments.len(), |mut all, labels| {
        let absorb = |(id, task, count): (Id, &mut ClassifyTask, usize)| {
            let (own, rest) = all.split_at(count * labels);
            all = rest;
            (id, task.absorb(own, labels))
        };
        parts.into_iter().map(absorb).collect()
    })?)
}
