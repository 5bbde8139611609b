//! Computes units with one model: the same bits on every repeat, in whatever company.
//!
//! On the CPU no row of a product depends on those beside it (`ops::cpu`), so units share passes there: prompts of many
//! units, their answers on forks of the prompts' caches, texts, classes, and completions side by side. What prompts or
//! texts begin with alike is computed once. On a GPU a product's last bits depend on the number of rows that it is
//! computed with, so there each unit is computed alone, in chunks of a fixed size. A result depends on unit and model
//! only. The last prompt is kept, since many rows share theirs. Every pass is a slice of its own.
//! Units: tokens; natural logarithms in f64.

mod images;
mod packed;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::AuditError;
use super::super::statistics::mink::{TokenStats, min_k, min_k_plus_plus};
use super::plan::Unit;
use crate::lora::Adapter;
use crate::model::logits::{check, first_maximum, log_sum_exp};
use crate::model::{Batch, CausalLm, ModelError, Rows, Segment, pass};
use crate::turns::Slices;
use packed::{Computed, Packer, Part, Step, alike};

pub(super) use images::{ImageRunner, Running};

/// Bounds of passes and of what is computed together.
struct Bounds {
    /// Tokens of a pass.
    tokens: usize,
    /// Rows of logits of a pass, each of the size of the vocabulary.
    rows: usize,
    /// Answers that are computed together: each has a fork of its prompt's cache.
    answers: usize,
    /// Units that are computed together.
    units: usize,
}

/// Where units share passes.
const PACKED: Bounds = Bounds { tokens: 512, rows: 256, answers: 256, units: 64 };
/// Where each is computed alone.
const ALONE: Bounds = Bounds { tokens: 128, rows: 128, answers: 16, units: 1 };
/// Most tokens to compute of units that are computed together, tokens of completions aside.
const TOGETHER: usize = 1024;
/// Most tokens of prompts and completions that are written side by side: their caches are in memory together.
const WRITTEN: usize = 2048;

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
    packer: Packer,
    bounds: Bounds,
    /// Index into the head's logits of each class of the data set.
    order: Vec<usize>,
    detail: Detail,
    /// The last prompt.
    prompt: Option<Prompt>,
}

/// A computed prompt: logits after it, and the logarithm of the sum of their exponentials.
type Prompt = Computed<(Vec<f32>, f64)>;

/// Results, each with the place of its unit.
type Results = Vec<(usize, Vec<f64>)>;

impl Runner {
    pub(super) fn new(
        model: Arc<dyn CausalLm>,
        adapter: Option<(Arc<Adapter>, f32)>,
        order: Vec<usize>,
        detail: Detail,
    ) -> Self {
        let packs = model.info().device == "cpu";
        Self::bounded(model, adapter, packs, (order, detail))
    }

    /// Returns a runner that packs units, or one that computes each alone.
    fn bounded(
        model: Arc<dyn CausalLm>,
        adapter: Option<(Arc<Adapter>, f32)>,
        packs: bool,
        (order, detail): (Vec<usize>, Detail),
    ) -> Self {
        let bounds = if packs { PACKED } else { ALONE };
        let packer = Packer { model, adapter, tokens: bounds.tokens, rows: bounds.rows, packs };
        Self { packer, bounds, order, detail, prompt: None }
    }

    /// Returns how many of the first units to compute together: at least one, if there is one.
    pub(super) fn together(&self, units: &[Arc<Unit>]) -> usize {
        let mut seen: BTreeSet<&[u32]> = BTreeSet::new();
        let (mut tokens, mut written) = (0, 0);
        for (count, unit) in units.iter().take(self.bounds.units).enumerate() {
            tokens += match &**unit {
                Unit::Classes(tokens) => tokens.len(),
                Unit::Image { .. } => unit.tokens(),
                Unit::Answers { prompt, answers } => {
                    unseen(&mut seen, prompt) + answers.iter().map(|answer| answer.len() - 1).sum::<usize>()
                }
                Unit::Text { tokens, .. } => unseen(&mut seen, tokens),
                Unit::Completion { prompt, new } => {
                    written += prompt.len() + new;
                    unseen(&mut seen, prompt)
                }
            };
            if count > 0 && (tokens > TOGETHER || written > WRITTEN) {
                return count;
            }
        }
        units.len().min(self.bounds.units)
    }

    /// Returns the results of units in their order: logits in the order of the data set's classes; a log-probability an
    /// answer; sum and number of a text's log-probabilities, then Min-K% and Min-K%++ by share (NaN where undefined); ids
    /// of a completion.
    ///
    /// # Errors
    /// When the model fails, its logits are no numbers, or it was told to stop.
    pub(super) fn run(&mut self, units: &[&Unit], slices: &dyn Slices) -> Result<Vec<Vec<f64>>, AuditError> {
        let (mut classes, mut texts, mut prompts, mut asked) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (place, unit) in units.iter().enumerate() {
            match unit {
                Unit::Classes(tokens) => classes.push((place, &tokens[..])),
                Unit::Image { .. } => return Err(pass::fault("a language model was given an image").into()),
                Unit::Text { tokens, learnt } => texts.push((place, steps_of(tokens, learnt))),
                Unit::Answers { prompt, .. } | Unit::Completion { prompt, .. } => {
                    prompts.push(prompt_of(prompt));
                    asked.push((place, *unit));
                }
            }
        }
        let mut results = self.classes(&classes, slices)?;
        results.extend(self.texts(texts, slices)?);
        let prompts = self.prompts(prompts, slices)?;
        results.extend(self.answers(&asked, &prompts, slices)?);
        results.extend(self.completions(&asked, &prompts, slices)?);
        self.prompt = prompts.into_iter().next_back().or(self.prompt.take());
        results.sort_by_key(|(place, _)| *place);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    fn classes(&self, sequences: &[(usize, &[u32])], slices: &dyn Slices) -> Result<Results, AuditError> {
        let mut results = Vec::with_capacity(sequences.len());
        // A sequence goes into one pass, because its class stands at its end.
        for some in packs(sequences, |(_, tokens)| tokens.len(), (self.bounds.tokens, self.bounds.units)) {
            let tokens: Vec<u32> = some.iter().flat_map(|(_, tokens)| *tokens).copied().collect();
            let segment = |(_, tokens): &(usize, &[u32])| Segment { len: tokens.len(), logits: Rows::None };
            let segments: Vec<Segment> = some.iter().map(segment).collect();
            slices.run(|| -> Result<(), AuditError> {
                let batch = Batch { tokens: &tokens, segments: &segments, lora: &self.packer.lora(tokens.len()) };
                let logits = pass::classify(&*self.packer.model, &batch)?;
                pass::rows(&logits, some.len(), |all, labels| -> Result<(), AuditError> {
                    for ((place, _), row) in some.iter().zip(all.chunks_exact(labels)) {
                        results.push((*place, self.ordered(row)?));
                    }
                    Ok(())
                })?
            })?;
        }
        Ok(results)
    }

    /// Returns logits in the order of the data set's classes.
    fn ordered(&self, row: &[f32]) -> Result<Vec<f64>, AuditError> {
        ordered(row, &self.order)
    }

    fn texts(&self, texts: Vec<(usize, Vec<Step>)>, slices: &dyn Slices) -> Result<Results, AuditError> {
        let Detail { min_k: shares, plus_plus } = &self.detail;
        let read = |row: &[f32], target: u32| -> Result<(f64, Option<TokenStats>), AuditError> {
            if plus_plus.is_empty() {
                return Ok((score(row, target)?, None));
            }
            check(row).map_err(ModelError::from)?;
            let stats = TokenStats::new(row, target as usize);
            Ok((finite(stats.log_probability)?, Some(stats)))
        };
        let (places, sequences): (Vec<_>, Vec<_>) = texts.into_iter().unzip();
        let computed = self.packer.shared(sequences, None, slices, read)?;
        let result = |text: Computed<(f64, Option<TokenStats>)>| {
            let (scores, stats): (Vec<f64>, Vec<_>) = text.read.into_iter().unzip();
            let stats: Vec<TokenStats> = stats.into_iter().flatten().collect();
            let mut result = vec![scores.iter().sum(), scores.len() as f64];
            result.extend(shares.iter().map(|share| min_k(&scores, *share).unwrap_or(f64::NAN)));
            result.extend(plus_plus.iter().map(|share| min_k_plus_plus(&stats, *share).unwrap_or(f64::NAN)));
            result
        };
        Ok(places.into_iter().zip(computed.into_iter().map(result)).collect())
    }

    /// Computes prompts, but for what they share with the last one before.
    fn prompts(&self, prompts: Vec<Vec<Step>>, slices: &dyn Slices) -> Result<Vec<Prompt>, AuditError> {
        self.packer.shared(prompts, self.prompt.as_ref(), slices, |row, _| {
            let sum = log_sum_exp(row).map_err(ModelError::from)?;
            Ok((row.to_vec(), sum))
        })
    }

    fn answers(
        &self,
        asked: &[(usize, &Unit)],
        prompts: &[Prompt],
        slices: &dyn Slices,
    ) -> Result<Results, AuditError> {
        let (mut results, mut longer) = (Vec::new(), Vec::new());
        for ((place, unit), prompt) in asked.iter().zip(prompts) {
            let Unit::Answers { answers, .. } = unit else { continue };
            let (row, sum) = after(prompt)?;
            let first = |answer: &Vec<u32>| finite(f64::from(row[answer[0] as usize]) - sum);
            // Answers of one token need no pass: the row after the prompt has them all.
            for (i, answer) in answers.iter().enumerate().filter(|(_, answer)| answer.len() > 1) {
                longer.push((results.len(), i, &prompt.cache, steps_of(answer, &vec![true; answer.len()])));
            }
            results.push((*place, answers.iter().map(first).collect::<Result<Vec<_>, _>>()?));
        }
        // One that is longer than a pass stands alone.
        for some in packs(&longer, |(.., steps)| steps.len(), (self.bounds.rows, self.bounds.answers)) {
            let mut caches = some.iter().map(|(_, _, cache, _)| pass::fork(cache)).collect::<Result<Vec<_>, _>>()?;
            let parts = some.iter().zip(&mut caches).map(|((.., steps), cache)| Part { steps, cache });
            let scores = self.packer.advance(&mut parts.collect::<Vec<_>>(), slices, score)?;
            for ((unit, i, ..), scores) in some.iter().zip(scores) {
                results[*unit].1[*i] += scores.iter().sum::<f64>();
            }
        }
        Ok(results)
    }

    fn completions(
        &self,
        asked: &[(usize, &Unit)],
        prompts: &[Prompt],
        slices: &dyn Slices,
    ) -> Result<Results, AuditError> {
        let (mut results, mut open) = (Vec::new(), Vec::new());
        let ends = &self.packer.model.info().eos_token_ids;
        for ((place, unit), prompt) in asked.iter().zip(prompts) {
            let Unit::Completion { new, .. } = unit else { continue };
            let next = first_maximum(&after(prompt)?.0).map_err(ModelError::from)?;
            open.push((results.len(), *new, next, pass::fork(&prompt.cache)?));
            results.push((*place, Vec::new()));
        }
        loop {
            open.retain(|(at, new, next, _)| {
                let written: &mut Vec<f64> = &mut results[*at].1;
                if written.len() < *new && !ends.contains(next) {
                    written.push(f64::from(*next));
                    return written.len() < *new;
                }
                false
            });
            if open.is_empty() {
                return Ok(results);
            }
            let steps: Vec<Step> = open.iter().map(|(_, _, next, _)| Step { token: *next, target: Some(0) }).collect();
            let parts = steps.chunks(1).zip(&mut open).map(|(steps, (.., cache))| Part { steps, cache });
            let next = self.packer.advance(&mut parts.collect::<Vec<_>>(), slices, |row, _| {
                check(row).map_err(ModelError::from)?;
                Ok(first_maximum(row).map_err(ModelError::from)?)
            })?;
            open.iter_mut().zip(next.into_iter().flatten()).for_each(|(open, next)| open.2 = next);
        }
    }
}

/// Returns logits in the order of the data set's classes.
fn ordered(row: &[f32], order: &[usize]) -> Result<Vec<f64>, AuditError> {
    let logit = |index: &usize| row.get(*index).copied().filter(|logit| logit.is_finite()).map(f64::from);
    let ordered: Option<Vec<f64>> = order.iter().map(logit).collect();
    Ok(ordered.ok_or_else(|| pass::fault("the model returned a logit that is no finite number, or too few"))?)
}

/// Returns the steps of a prompt: only the row after it is read.
fn prompt_of(tokens: &[u32]) -> Vec<Step> {
    let target = |at: usize| (at + 1 == tokens.len()).then_some(0);
    tokens.iter().enumerate().map(|(at, token)| Step { token: *token, target: target(at) }).collect()
}

/// Returns the steps of a text: each token but the last, read for the token after it where that is `learnt`.
fn steps_of(tokens: &[u32], learnt: &[bool]) -> Vec<Step> {
    let next = tokens.iter().zip(learnt).skip(1);
    tokens
        .iter()
        .zip(next)
        .map(|(token, (next, learnt))| Step { token: *token, target: learnt.then_some(*next) })
        .collect()
}

/// Returns what was read after a prompt.
fn after(prompt: &Prompt) -> Result<&(Vec<f32>, f64), AuditError> {
    Ok(prompt.read.last().ok_or_else(|| pass::fault("a prompt has no logits"))?)
}

/// Adds a sequence to those seen, and returns how many of its tokens none of them begins with.
fn unseen<'a>(seen: &mut BTreeSet<&'a [u32]>, tokens: &'a [u32]) -> usize {
    let beside = [seen.range(..=tokens).next_back(), seen.range(tokens..).next()];
    let known = beside.into_iter().flatten().map(|other| alike(other, tokens)).max().unwrap_or(0);
    seen.insert(tokens);
    tokens.len() - known
}

/// Divides items into packs of at most `bounds.0` tokens and `bounds.1` items, in their order; one that is longer stands
/// alone.
fn packs<T>(items: &[T], length: impl Fn(&T) -> usize, bounds: (usize, usize)) -> Vec<&[T]> {
    let (mut packs, mut first, mut filled) = (Vec::new(), 0, 0);
    for (i, item) in items.iter().enumerate() {
        if i > first && (i - first == bounds.1 || filled + length(item) > bounds.0) {
            packs.push(&items[first..i]);
            (first, filled) = (i, 0);
        }
        filled += length(item);
    }
    packs.extend((first < items.len()).then(|| &items[first..]));
    packs
}

/// Returns the log-probability of a token under a row of logits.
fn score(row: &[f32], target: u32) -> Result<f64, AuditError> {
    let sum = log_sum_exp(row).map_err(ModelError::from)?;
    finite(f64::from(row[target as usize]) - sum)
}

/// A token that the model rules out would make sums and shares infinite.
fn finite(score: f64) -> Result<f64, AuditError> {
    if score.is_finite() { Ok(score) } else { Err(pass::fault("the model gives a token no probability at all").into()) }
}

#[cfg(test)]
mod tests;
