//! Log-probabilities of candidates after one prompt, the same bits on every repeat.
//!
//! On the CPU no row of a product depends on those beside it (`ops::cpu`), so requests share passes there: prompts of
//! several, then their candidates on forks of the prompts' caches. On a GPU a product's last bits depend on the number of
//! rows that it is computed with, so there the prompt is computed alone in chunks of a fixed size, and each candidate on
//! a fork of the prompt's cache, in chunks of a fixed size. A score depends on prompt, candidate and adapter only.
//! Does not decide when it runs, or with whom: one call of [`advance`] is one slice.
//! Units: tokens; natural logarithms in f64.

use std::sync::Arc;

use rayon::prelude::*;
use tokio::sync::oneshot;
use tracing::Span;

use super::alone::{Outcomes, Room};
use super::handle::Ticket;
use super::pass::{fault, fork, forward, rows};
use super::sampler::{first_maximum, log_sum_exp};
use super::scheduler::Id;
use super::sequence::Times;
use super::{EngineError, ScoreRequest, Scored};
use crate::lora::{Adapter, LoraBatch, Run};
use crate::model::{Batch, CausalLm, KvCache, Rows, Segment};

/// Where the scores go.
pub(super) type Answer = oneshot::Sender<Result<Vec<Scored>, EngineError>>;

/// What a slice computed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slice {
    /// Prompt tokens.
    pub(super) prompt: usize,
    /// Candidate tokens, those scored without a pass of their own included.
    pub(super) scored: usize,
    /// Tokens that went through the model.
    pub(super) computed: usize,
}

/// A scoring request on its way.
#[derive(Debug)]
pub(super) struct ScoreTask {
    pub(super) request: ScoreRequest,
    pub(super) reply: Answer,
    /// Held while the request waits.
    pub(super) ticket: Option<Ticket>,
    pub(super) span: Span,
    pub(super) times: Times,
    /// Of the prompt.
    cache: KvCache,
    /// After the prompt; empty until it is computed.
    first_row: Vec<f32>,
    first_sum: f64,
    /// Fork for the candidate that is being computed.
    fork: Option<KvCache>,
    scored: Vec<Scored>,
    /// The candidate that is being computed.
    current: Scored,
}

/// What a request computes in a slice.
struct Piece {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
    /// One a segment.
    caches: Vec<KvCache>,
    rows: usize,
    what: What,
}

enum What {
    /// The next tokens of the prompt.
    Prompt,
    /// This many whole candidates.
    Candidates(usize),
    /// The next tokens of one candidate.
    Chunk,
}

/// Returns the tokens of cache that a request needs: the prompt's, and a fork with the longest candidate.
pub(super) fn cache_tokens(request: &ScoreRequest) -> usize {
    let longest = request.candidates.iter().map(Vec::len).max().unwrap_or(0);
    let prompt = request.prompt.len();
    let fork = if longest > 1 { KvCache::capacity(prompt.saturating_add(longest)) } else { 0 };
    KvCache::capacity(prompt).saturating_add(fork)
}

impl ScoreTask {
    /// Begins with an empty cache.
    pub(super) fn new(
        request: ScoreRequest,
        reply: Answer,
        ticket: Ticket,
        times: Times,
        model: &dyn CausalLm,
    ) -> Self {
        Self {
            request,
            reply,
            ticket: Some(ticket),
            span: Span::current(),
            times,
            cache: model.new_cache(),
            first_row: Vec::new(),
            first_sum: 0.0,
            fork: None,
            scored: Vec::new(),
            current: Scored { logprobs: Vec::new(), is_greedy: true },
        }
    }

    /// Returns whether every candidate is scored.
    pub(super) fn is_done(&self) -> bool {
        !self.first_row.is_empty() && self.scored.len() == self.request.candidates.len()
    }

    /// Returns the adapter, the prompt, and what is computed of it.
    pub(super) fn beginning(&mut self) -> (Option<&Arc<Adapter>>, &Vec<u32>, &mut KvCache) {
        (self.request.adapter.as_ref(), &self.request.prompt, &mut self.cache)
    }

    /// Answers the caller.
    pub(super) fn finish(self) {
        // Whoever hears of the end finds the adapter free.
        drop(self.request);
        // The caller may have left: then nobody wants to know.
        let _ = self.reply.send(Ok(self.scored));
    }

    /// Returns what comes next, as much of it as there is room for.
    fn next(&mut self, room: &Room) -> Result<Piece, EngineError> {
        if self.first_row.is_empty() {
            let rest = &self.request.prompt[self.cache.len()..];
            let chunk = &rest[..rest.len().min(room.tokens)];
            let rows = usize::from(chunk.len() == rest.len());
            let logits = if rows == 1 { Rows::Last(1) } else { Rows::None };
            let segments = vec![Segment { len: chunk.len(), logits }];
            let (tokens, caches) = (chunk.to_vec(), vec![std::mem::take(&mut self.cache)]);
            return Ok(Piece { tokens, segments, caches, rows, what: What::Prompt });
        }
        match self.together(room) {
            0 => self.chunk(room),
            count => self.candidates(count),
        }
    }

    /// Returns how many of the next candidates share a pass: as many as there is room for, and as fit into the memory of
    /// one fork that shares nothing with the prompt, which is what was reserved.
    fn together(&self, room: &Room) -> usize {
        if !room.packs || !self.current.logprobs.is_empty() {
            return 0;
        }
        let prompt = self.cache.len();
        let longest = self.request.candidates.iter().map(Vec::len).max().unwrap_or(0);
        let (mut tokens, mut memory) = (room.rows.min(room.tokens), KvCache::capacity(prompt + longest));
        let mut count = 0;
        for candidate in &self.request.candidates[self.scored.len()..] {
            let more = candidate.len() - 1;
            let fork = if more > 0 { KvCache::fork_capacity(prompt, more) } else { 0 };
            if more > tokens || fork > memory {
                break;
            }
            (tokens, memory, count) = (tokens - more, memory - fork, count + 1);
        }
        count
    }

    fn candidates(&self, count: usize) -> Result<Piece, EngineError> {
        let (mut tokens, mut segments, mut caches) = (Vec::new(), Vec::new(), Vec::new());
        for candidate in &self.request.candidates[self.scored.len()..][..count] {
            let known = &candidate[..candidate.len() - 1];
            if !known.is_empty() {
                tokens.extend_from_slice(known);
                segments.push(Segment { len: known.len(), logits: Rows::Last(known.len()) });
                caches.push(fork(&self.cache)?);
            }
        }
        let rows = tokens.len();
        Ok(Piece { tokens, segments, caches, rows, what: What::Candidates(count) })
    }

    fn chunk(&mut self, room: &Room) -> Result<Piece, EngineError> {
        let candidate = &self.request.candidates[self.scored.len()];
        let rest = &candidate[self.current.logprobs.len().saturating_sub(1)..candidate.len() - 1];
        let tokens = rest[..rest.len().min(room.rows).min(room.tokens)].to_vec();
        let cache = match self.fork.take() {
            Some(cache) => cache,
            None => fork(&self.cache)?,
        };
        let rows = tokens.len();
        let segments = vec![Segment { len: rows, logits: Rows::Last(rows) }];
        Ok(Piece { tokens, segments, caches: vec![cache], rows, what: What::Chunk })
    }

    /// Takes what a slice computed: `all` is `[rows of the piece, vocab]`.
    fn absorb(&mut self, mut piece: Piece, all: &[f32], vocab: usize) -> Result<Slice, EngineError> {
        let mut slice = Slice { computed: piece.tokens.len(), ..Slice::default() };
        match piece.what {
            What::Prompt => {
                slice.prompt = piece.tokens.len();
                self.cache = piece.caches.pop().unwrap_or_default();
                if piece.rows == 1 {
                    self.first_row = all.to_vec();
                    self.first_sum = log_sum_exp(all)?;
                }
            }
            What::Candidates(count) => {
                let candidates = &self.request.candidates[self.scored.len()..][..count];
                let targets: Vec<u32> = candidates.iter().flat_map(|candidate| &candidate[1..]).copied().collect();
                let mut judged = judge(all, vocab, &targets)?.into_iter();
                let mut scored = Vec::with_capacity(count);
                for candidate in candidates {
                    let mut begun = self.begun(candidate[0])?;
                    begun.extend(judged.by_ref().take(candidate.len() - 1));
                    slice.scored += candidate.len();
                    scored.push(begun);
                }
                self.scored.append(&mut scored);
            }
            What::Chunk => {
                let candidate = &self.request.candidates[self.scored.len()];
                if self.current.logprobs.is_empty() {
                    self.current = self.begun(candidate[0])?;
                    slice.scored += 1;
                }
                let done = self.current.logprobs.len();
                let judged = judge(all, vocab, &candidate[done..done + piece.rows])?;
                self.current.extend(judged.into_iter());
                slice.scored += piece.rows;
                if self.current.logprobs.len() == candidate.len() {
                    let next = Scored { logprobs: Vec::new(), is_greedy: true };
                    self.scored.push(std::mem::replace(&mut self.current, next));
                } else {
                    self.fork = piece.caches.pop();
                }
            }
        }
        // Candidates of one token need no pass: the row after the prompt has them all.
        while !self.first_row.is_empty()
            && self.current.logprobs.is_empty()
            && let Some([only]) = self.request.candidates.get(self.scored.len()).map(Vec::as_slice)
        {
            let scored = self.begun(*only)?;
            self.scored.push(scored);
            slice.scored += 1;
        }
        Ok(slice)
    }

    /// Returns a candidate with its first token scored.
    fn begun(&self, first: u32) -> Result<Scored, EngineError> {
        let logprob = f64::from(self.first_row[first as usize]) - self.first_sum;
        Ok(Scored { logprobs: vec![logprob], is_greedy: first_maximum(&self.first_row)? == first })
    }
}

/// Computes one slice: of the first requests, as many as there is room for.
///
/// An error of the model is that of all whose tokens it was given.
pub(super) fn advance(tasks: Vec<(Id, &mut ScoreTask)>, model: &dyn CausalLm, mut room: Room) -> Outcomes {
    let (mut done, mut parts) = (Vec::new(), Vec::new());
    for (id, task) in tasks {
        match task.next(&room) {
            Ok(piece) => {
                let left = room.take(piece.tokens.len(), piece.rows);
                parts.push((id, task, piece));
                if !left {
                    break;
                }
            }
            Err(error) => done.push((id, Err(error))),
        }
    }
    parts.sort_by_key(|(_, task, _)| task.request.adapter.as_ref().map_or(0, |a| Arc::as_ptr(a) as usize));
    if parts.is_empty() {
        return done;
    }
    let ids: Vec<Id> = parts.iter().map(|(id, ..)| *id).collect();
    match compute(parts, model) {
        Ok(computed) => done.extend(computed),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, requests = ids.len(), "slice failed");
            done.extend(ids.into_iter().map(|id| (id, Err(fault(&error.to_string())))));
        }
    }
    done
}

/// Computes pieces in one pass; those of one adapter are neighbours.
fn compute(mut parts: Vec<(Id, &mut ScoreTask, Piece)>, model: &dyn CausalLm) -> Result<Outcomes, EngineError> {
    let (mut tokens, mut segments, mut lora, mut wanted) = (Vec::new(), Vec::new(), LoraBatch::default(), 0);
    for (_, task, piece) in &parts {
        let start = tokens.len();
        tokens.extend_from_slice(&piece.tokens);
        segments.extend_from_slice(&piece.segments);
        wanted += piece.rows;
        let Some(adapter) = &task.request.adapter else { continue };
        match lora.runs.last_mut() {
            Some(run) if Arc::ptr_eq(&run.adapter, adapter) => run.rows.end = tokens.len(),
            Some(_) | None => {
                lora.runs.push(Run { adapter: Arc::clone(adapter), rows: start..tokens.len(), scale: 1.0 });
            }
        }
    }
    let batch = Batch { tokens: &tokens, segments: &segments, lora: &lora };
    let mut caches: Vec<&mut KvCache> = parts.iter_mut().flat_map(|(.., piece)| &mut piece.caches).collect();
    let logits = forward(model, &batch, &mut caches)?;
    let outcomes = rows(&logits, wanted, |mut all, vocab| {
        let absorb = |(id, task, piece): (Id, &mut ScoreTask, Piece)| {
            let (own, rest) = all.split_at(piece.rows * vocab);
            all = rest;
            (id, task.absorb(piece, own, vocab))
        };
        parts.into_iter().map(absorb).collect()
    })?;
    model.reuse(logits);
    Ok(outcomes)
}

impl Scored {
    /// Adds tokens: the log-probability of each, and whether it is the likeliest.
    fn extend(&mut self, tokens: impl Iterator<Item = (f64, bool)>) {
        for (logprob, is_best) in tokens {
            self.logprobs.push(logprob);
            self.is_greedy &= is_best;
        }
    }
}

/// Returns the log-probability of the target of each row, and whether it is the likeliest.
fn judge(all: &[f32], vocab: usize, targets: &[u32]) -> Result<Vec<(f64, bool)>, EngineError> {
    let one = |(row, target): (&[f32], &u32)| {
        Ok((f64::from(row[*target as usize]) - log_sum_exp(row)?, first_maximum(row)? == *target))
    };
    all.par_chunks_exact(vocab).zip(targets).map(one).collect()
}
