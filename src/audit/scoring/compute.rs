//! Computes one unit with one model: the same bits on every repeat.
//!
//! A product's last bits depend on the number of rows that it is computed with. So nothing is packed with other units:
//! a prompt is computed alone in chunks of a fixed size; its answers follow on forks of its cache, packed in an order
//! and number that the unit alone decides. A result depends on unit and model only, not on what was computed before it.
//! The prompt of the unit before is kept, since many rows share theirs. Every pass is a slice of its own.
//! Units: tokens; natural logarithms in f64.

use std::sync::Arc;

use rayon::prelude::*;

use super::super::AuditError;
use super::super::statistics::mink::{TokenStats, min_k, min_k_plus_plus};
use super::plan::Unit;
use crate::lora::{Adapter, LoraBatch, Run};
use crate::model::logits::{check, first_maximum, log_sum_exp};
use crate::model::{Batch, CausalLm, KvCache, ModelError, Rows, Segment, pass};
use crate::turns::Slices;

/// Most tokens of a pass.
const CHUNK: usize = 128;
/// Most answers of a pass: each has a copy of the prompt's cache.
const TOGETHER: usize = 16;

/// What is kept of a text besides the sum of its log-probabilities, for attacks on membership.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Detail {
    /// Shares of Min-K%.
    pub(super) min_k: Vec<f64>,
    /// Shares of Min-K%++.
    pub(super) plus_plus: Vec<f64>,
}

/// One model at work.
pub(super) struct Runner {
    model: Arc<dyn CausalLm>,
    /// With the factor of its change.
    adapter: Option<(Arc<Adapter>, f32)>,
    /// Index into the head's logits of each class of the data set.
    order: Vec<usize>,
    detail: Detail,
    /// The last prompt.
    prompt: Option<Prompt>,
}

/// A computed prompt.
struct Prompt {
    tokens: Vec<u32>,
    cache: KvCache,
    /// Logits after it, and the logarithm of the sum of their exponentials.
    last: (Vec<f32>, f64),
}

impl Runner {
    pub(super) fn new(
        model: Arc<dyn CausalLm>,
        adapter: Option<(Arc<Adapter>, f32)>,
        order: Vec<usize>,
        detail: Detail,
    ) -> Self {
        Self { model, adapter, order, detail, prompt: None }
    }

    /// Returns the result of a unit: logits in the order of the data set's classes; a log-probability an answer; sum and
    /// number of a text's log-probabilities, then Min-K% and Min-K%++ by share (NaN where undefined); ids of a completion.
    ///
    /// # Errors
    /// When the model fails, its logits are no numbers, or it was told to stop.
    pub(super) fn run(&mut self, unit: &Unit, slices: &dyn Slices) -> Result<Vec<f64>, AuditError> {
        match unit {
            Unit::Classes(tokens) => self.classes(tokens, slices),
            Unit::Answers { prompt, answers } => self.answers(prompt, answers, slices),
            Unit::Text { tokens, learnt } => self.text(tokens, learnt, slices),
            Unit::Completion { prompt, new } => self.completion(prompt, *new, slices),
        }
    }

    fn classes(&self, tokens: &[u32], slices: &dyn Slices) -> Result<Vec<f64>, AuditError> {
        slices.run(|| {
            let segments = [Segment { len: tokens.len(), logits: Rows::None }];
            let logits =
                pass::classify(&*self.model, &Batch { tokens, segments: &segments, lora: &self.lora(tokens) })?;
            let row = pass::rows(&logits, 1, |row, _| row.to_vec())?;
            let logit = |index: &usize| row.get(*index).copied().filter(|logit| logit.is_finite()).map(f64::from);
            let ordered: Option<Vec<f64>> = self.order.iter().map(logit).collect();
            Ok(ordered.ok_or_else(|| pass::fault("the model returned a logit that is no finite number, or too few"))?)
        })
    }

    fn answers(&mut self, prompt: &[u32], answers: &[Vec<u32>], slices: &dyn Slices) -> Result<Vec<f64>, AuditError> {
        let computed = self.prompt(prompt, slices)?;
        let (row, sum) = &computed.last;
        let first = |answer: &Vec<u32>| finite(f64::from(row[answer[0] as usize]) - sum);
        let mut sums = answers.iter().map(first).collect::<Result<Vec<f64>, _>>()?;
        // Answers of one token need no pass: the row after the prompt has them all.
        let longer: Vec<usize> = (0..answers.len()).filter(|i| answers[*i].len() > 1).collect();
        for together in packs(&longer, |i| answers[i].len() - 1) {
            let mut caches = Vec::with_capacity(together.len());
            for _ in &together {
                caches.push(pass::fork(&computed.cache)?);
            }
            let longest = together.iter().map(|i| answers[*i].len() - 1).max().unwrap_or(0);
            // One that is longer than a pass stands alone.
            for from in (0..longest).step_by(CHUNK) {
                let parts = together.iter().map(|i| {
                    let (known, next) = (&answers[*i][..answers[*i].len() - 1], &answers[*i][1..]);
                    let to = known.len().min(from + CHUNK);
                    (&known[from..to], &next[from..to])
                });
                let (known, next): (Vec<&[u32]>, Vec<&[u32]>) = parts.unzip();
                let mut caches: Vec<&mut KvCache> = caches.iter_mut().collect();
                let scores = self.scores(&known, &next, &mut caches, slices)?;
                let mut scores = scores.iter();
                for (i, part) in together.iter().zip(&known) {
                    sums[*i] += scores.by_ref().take(part.len()).sum::<f64>();
                }
            }
        }
        self.prompt = Some(computed);
        Ok(sums)
    }

    fn text(&self, tokens: &[u32], learnt: &[bool], slices: &dyn Slices) -> Result<Vec<f64>, AuditError> {
        let mut cache = self.model.new_cache();
        let (mut scores, mut stats) = (Vec::new(), Vec::new());
        let known = &tokens[..tokens.len() - 1];
        for (at, chunk) in known.chunks(CHUNK).enumerate() {
            let from = at * CHUNK + 1;
            let (next, learnt) = (&tokens[from..from + chunk.len()], &learnt[from..from + chunk.len()]);
            // Rows before the first that counts need no logits.
            let wanted = learnt.iter().position(|learnt| *learnt).map_or(0, |first| chunk.len() - first);
            slices.run(|| {
                let asked = if wanted == 0 { Rows::None } else { Rows::Last(wanted) };
                let segments = [Segment { len: chunk.len(), logits: asked }];
                let batch = Batch { tokens: chunk, segments: &segments, lora: &self.lora(chunk) };
                let logits = pass::forward(&*self.model, &batch, &mut [&mut cache])?;
                let skipped = chunk.len() - wanted;
                let counted: Vec<usize> = (0..wanted).filter(|row| learnt[skipped + row]).collect();
                pass::rows(&logits, wanted, |all, vocab| -> Result<(), AuditError> {
                    let row = |row: &usize| (&all[row * vocab..(row + 1) * vocab], next[skipped + row] as usize);
                    if self.detail.plus_plus.is_empty() {
                        let part = counted.par_iter().map(row).map(|(row, target)| score(row, target));
                        scores.extend(part.collect::<Result<Vec<f64>, _>>()?);
                    } else {
                        let of = |(row, target): (&[f32], usize)| -> Result<TokenStats, AuditError> {
                            check(row).map_err(ModelError::from)?;
                            let stats = TokenStats::new(row, target);
                            finite(stats.log_probability).map(|_| stats)
                        };
                        let part = counted.par_iter().map(row).map(of).collect::<Result<Vec<_>, _>>()?;
                        scores.extend(part.iter().map(|stats| stats.log_probability));
                        stats.extend(part);
                    }
                    Ok(())
                })?
            })?;
        }
        let mut result = vec![scores.iter().sum(), scores.len() as f64];
        result.extend(self.detail.min_k.iter().map(|share| min_k(&scores, *share).unwrap_or(f64::NAN)));
        result.extend(self.detail.plus_plus.iter().map(|share| min_k_plus_plus(&stats, *share).unwrap_or(f64::NAN)));
        Ok(result)
    }

    fn completion(&mut self, prompt: &[u32], new: usize, slices: &dyn Slices) -> Result<Vec<f64>, AuditError> {
        let computed = self.prompt(prompt, slices)?;
        let mut cache = pass::fork(&computed.cache)?;
        let mut next = first_maximum(&computed.last.0).map_err(ModelError::from)?;
        self.prompt = Some(computed);
        let mut written = Vec::new();
        while written.len() < new && !self.model.info().eos_token_ids.contains(&next) {
            written.push(f64::from(next));
            if written.len() == new {
                break;
            }
            let token = [next];
            next = slices.run(|| -> Result<u32, AuditError> {
                let segments = [Segment { len: 1, logits: Rows::Last(1) }];
                let batch = Batch { tokens: &token, segments: &segments, lora: &self.lora(&token) };
                let logits = pass::forward(&*self.model, &batch, &mut [&mut cache])?;
                pass::rows(&logits, 1, |row, _| {
                    check(row).map_err(ModelError::from)?;
                    Ok(first_maximum(row).map_err(ModelError::from)?)
                })?
            })?;
        }
        Ok(written)
    }

    /// Computes a prompt, or takes that of the unit before.
    fn prompt(&mut self, tokens: &[u32], slices: &dyn Slices) -> Result<Prompt, AuditError> {
        if let Some(held) = self.prompt.take()
            && held.tokens == tokens
        {
            return Ok(held);
        }
        let mut cache = self.model.new_cache();
        let mut last = (Vec::new(), 0.0);
        for (at, chunk) in tokens.chunks(CHUNK).enumerate() {
            let ends = at * CHUNK + chunk.len() == tokens.len();
            slices.run(|| -> Result<(), AuditError> {
                let segments = [Segment { len: chunk.len(), logits: if ends { Rows::Last(1) } else { Rows::None } }];
                let batch = Batch { tokens: chunk, segments: &segments, lora: &self.lora(chunk) };
                let logits = pass::forward(&*self.model, &batch, &mut [&mut cache])?;
                if ends {
                    let row = pass::rows(&logits, 1, |row, _| row.to_vec())?;
                    let sum = log_sum_exp(&row).map_err(ModelError::from)?;
                    last = (row, sum);
                }
                Ok(())
            })?;
        }
        Ok(Prompt { tokens: tokens.to_vec(), cache, last })
    }

    /// Returns the log-probabilities of `next`, each after the token of the same place in `known`, part after part.
    fn scores(
        &self,
        known: &[&[u32]],
        next: &[&[u32]],
        caches: &mut [&mut KvCache],
        slices: &dyn Slices,
    ) -> Result<Vec<f64>, AuditError> {
        let (tokens, targets) = (known.concat(), next.concat());
        let segment = |part: &&[u32]| Segment { len: part.len(), logits: Rows::Last(part.len()) };
        let segments: Vec<Segment> = known.iter().map(segment).collect();
        slices.run(|| {
            let batch = Batch { tokens: &tokens, segments: &segments, lora: &self.lora(&tokens) };
            let logits = pass::forward(&*self.model, &batch, caches)?;
            pass::rows(&logits, tokens.len(), |all, vocab| {
                let pairs = all.par_chunks_exact(vocab).zip(&targets);
                pairs.map(|(row, target)| score(row, *target as usize)).collect()
            })?
        })
    }

    /// Returns the adapter over all tokens.
    fn lora(&self, tokens: &[u32]) -> LoraBatch {
        let run = |(adapter, scale): &(Arc<Adapter>, f32)| Run {
            adapter: Arc::clone(adapter),
            rows: 0..tokens.len(),
            scale: *scale,
        };
        LoraBatch { runs: self.adapter.iter().map(run).collect(), dropout: None }
    }
}

/// Divides answers into passes, in their order; one that is longer than a pass stands alone.
fn packs(answers: &[usize], length: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0;
    for answer in answers {
        match packs.last_mut() {
            Some(pack) if pack.len() < TOGETHER && filled + length(*answer) <= CHUNK => {
                pack.push(*answer);
                filled += length(*answer);
            }
            _ => {
                packs.push(vec![*answer]);
                filled = length(*answer);
            }
        }
    }
    packs
}

/// Returns the log-probability of a token under a row of logits.
fn score(row: &[f32], target: usize) -> Result<f64, AuditError> {
    let sum = log_sum_exp(row).map_err(ModelError::from)?;
    finite(f64::from(row[target]) - sum)
}

/// A token that the model rules out would make sums and shares infinite.
fn finite(score: f64) -> Result<f64, AuditError> {
    if score.is_finite() { Ok(score) } else { Err(pass::fault("the model gives a token no probability at all").into()) }
}

#[cfg(test)]
mod tests;
