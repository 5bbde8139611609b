//! Log-probabilities of candidates after one prompt, the same bits on every repeat.
//!
//! On a GPU a product's last bits depend on the number of rows that it is computed with. So nothing here is packed with
//! other requests: the prompt is computed alone in chunks of a fixed size, and each candidate on a fork of the prompt's
//! cache, in chunks of a fixed size. On the CPU no row depends on those beside it (`ops::cpu`), so several short
//! candidates share a pass there. A score depends on prompt, candidate and adapter only.
//! Does not decide when it runs: one call of [`ScoreTask::advance`] is one slice.
//! Units: tokens; natural logarithms in f64.

use std::sync::Arc;

use rayon::prelude::*;
use tokio::sync::oneshot;
use tracing::Span;

use super::handle::Ticket;
use super::pass::{fork, forward, rows};
use super::sampler::{first_maximum, log_sum_exp};
use super::sequence::Times;
use super::{EngineError, ScoreRequest, Scored};
use crate::lora::{Adapter, LoraBatch, Run};
use crate::model::{Batch, CausalLm, KvCache, Rows, Segment};

/// Most prompt tokens of a slice.
const PROMPT_CHUNK: usize = 128;
/// Most candidate tokens of a slice: each has a row of logits of the size of the vocabulary.
const CANDIDATE_CHUNK: usize = 64;

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
    step_tokens: usize,
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
        model: (&dyn CausalLm, usize),
    ) -> Self {
        let (model, step_tokens) = model;
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
            step_tokens: step_tokens.max(1),
        }
    }

    /// Computes one slice.
    ///
    /// # Errors
    /// When the model fails or its logits are no numbers.
    pub(super) fn advance(&mut self, model: &dyn CausalLm) -> Result<Slice, EngineError> {
        if self.first_row.is_empty() {
            return self.advance_prompt(model);
        }
        let mut slice = Slice::default();
        // Candidates of one token need no pass: the row after the prompt has them all.
        while slice.computed == 0 && !self.is_done() {
            let together = self.together(model);
            if together > 1 {
                self.advance_together(model, together, &mut slice)?;
            } else {
                self.advance_candidate(model, &mut slice)?;
            }
        }
        Ok(slice)
    }

    /// Returns whether every candidate is scored.
    pub(super) fn is_done(&self) -> bool {
        !self.first_row.is_empty() && self.scored.len() == self.request.candidates.len()
    }

    /// Answers the caller.
    pub(super) fn finish(self) {
        // Whoever hears of the end finds the adapter free.
        drop(self.request);
        // The caller may have left: then nobody wants to know.
        let _ = self.reply.send(Ok(self.scored));
    }

    fn advance_prompt(&mut self, model: &dyn CausalLm) -> Result<Slice, EngineError> {
        let rest = &self.request.prompt[self.cache.len()..];
        let chunk = &rest[..rest.len().min(PROMPT_CHUNK).min(self.step_tokens)];
        let last = chunk.len() == rest.len();
        let wanted = if last { Rows::Last(1) } else { Rows::None };
        let lora = lora(&self.request, chunk.len());
        let segments = [Segment { len: chunk.len(), logits: wanted }];
        let batch = Batch { tokens: chunk, segments: &segments, lora: &lora };
        let logits = forward(model, &batch, &mut [&mut self.cache])?;
        if last {
            self.first_row = rows(&logits, 1, |row, _| row.to_vec())?;
            self.first_sum = log_sum_exp(&self.first_row)?;
        }
        Ok(Slice { prompt: chunk.len(), computed: chunk.len(), scored: 0 })
    }

    /// Returns how many of the next candidates share a pass: as many as fit into a chunk, and into the memory of one
    /// fork that shares nothing with the prompt, which is what was reserved.
    fn together(&self, model: &dyn CausalLm) -> usize {
        if model.info().device != "cpu" || !self.current.logprobs.is_empty() {
            return 1;
        }
        let prompt = self.cache.len();
        let longest = self.request.candidates.iter().map(Vec::len).max().unwrap_or(0);
        let (mut tokens, mut memory) = (CANDIDATE_CHUNK.min(self.step_tokens), KvCache::capacity(prompt + longest));
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

    /// Scores whole candidates in one pass.
    fn advance_together(&mut self, model: &dyn CausalLm, count: usize, slice: &mut Slice) -> Result<(), EngineError> {
        let first = self.scored.len();
        let candidates = &self.request.candidates[first..first + count];
        let (mut tokens, mut segments, mut caches) = (Vec::new(), Vec::new(), Vec::new());
        for candidate in candidates {
            let known = &candidate[..candidate.len() - 1];
            if !known.is_empty() {
                tokens.extend_from_slice(known);
                segments.push(Segment { len: known.len(), logits: Rows::Last(known.len()) });
                caches.push(fork(&self.cache)?);
            }
        }
        let best = first_maximum(&self.first_row)?;
        let begun = candidates.iter().map(|candidate| {
            let logprob = f64::from(self.first_row[candidate[0] as usize]) - self.first_sum;
            Scored { logprobs: vec![logprob], is_greedy: candidate[0] == best }
        });
        let mut scored: Vec<Scored> = begun.collect();
        if !tokens.is_empty() {
            let lora = lora(&self.request, tokens.len());
            let batch = Batch { tokens: &tokens, segments: &segments, lora: &lora };
            let logits = forward(model, &batch, &mut caches.iter_mut().collect::<Vec<_>>())?;
            rows(&logits, tokens.len(), |all, vocab| -> Result<(), EngineError> {
                let targets: Vec<u32> = candidates.iter().flat_map(|candidate| &candidate[1..]).copied().collect();
                let mut judged = judge(all, vocab, &targets)?.into_iter();
                for (candidate, scored) in candidates.iter().zip(&mut scored) {
                    scored.extend(judged.by_ref().take(candidate.len() - 1));
                }
                Ok(())
            })??;
        }
        slice.computed += tokens.len();
        slice.scored += tokens.len() + count;
        self.scored.append(&mut scored);
        Ok(())
    }

    fn advance_candidate(&mut self, model: &dyn CausalLm, slice: &mut Slice) -> Result<(), EngineError> {
        let candidate = &self.request.candidates[self.scored.len()];
        if self.current.logprobs.is_empty() {
            let first = candidate[0];
            self.current.logprobs.push(f64::from(self.first_row[first as usize]) - self.first_sum);
            self.current.is_greedy = first_maximum(&self.first_row)? == first;
            slice.scored += 1;
        }
        let done = self.current.logprobs.len();
        if done < candidate.len() {
            let chunk = &candidate[done - 1..candidate.len() - 1];
            let chunk = &chunk[..chunk.len().min(CANDIDATE_CHUNK).min(self.step_tokens)];
            let mut cache = match self.fork.take() {
                Some(cache) => cache,
                None => fork(&self.cache)?,
            };
            let lora = lora(&self.request, chunk.len());
            let segments = [Segment { len: chunk.len(), logits: Rows::Last(chunk.len()) }];
            let batch = Batch { tokens: chunk, segments: &segments, lora: &lora };
            let logits = forward(model, &batch, &mut [&mut cache])?;
            let targets = &candidate[done..done + chunk.len()];
            let current = &mut self.current;
            rows(&logits, chunk.len(), |all, vocab| -> Result<(), EngineError> {
                current.extend(judge(all, vocab, targets)?.into_iter());
                Ok(())
            })??;
            slice.computed += chunk.len();
            slice.scored += chunk.len();
            self.fork = Some(cache);
        }
        if self.current.logprobs.len() == candidate.len() {
            self.fork = None;
            let next = Scored { logprobs: Vec::new(), is_greedy: true };
            self.scored.push(std::mem::replace(&mut self.current, next));
        }
        Ok(())
    }
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

/// Returns the request's adapter over all rows.
fn lora(request: &ScoreRequest, rows: usize) -> LoraBatch {
    let run = |adapter: &Arc<Adapter>| Run { adapter: adapter.clone(), rows: 0..rows, scale: 1.0 };
    LoraBatch { runs: request.adapter.iter().map(run).collect(), dropout: None }
}
