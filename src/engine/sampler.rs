//! Chooses the next token from one row of logits.
//!
//! Pure: knows no tensor, no request and no batch, so a token depends on its logits, its history and its seed alone.
//! Order: repetition, frequency and presence penalty, logit bias, temperature, min_p, top_k, top_p. Nothing is sorted
//! that need not be: greedy is one scan, top_k a partial selection, top_p sorts only as many tokens as it keeps.
//! Shapes: logits `[vocab]`. After: vLLM v1 `Sampler.forward`, `apply_top_k_top_p`.

use std::cmp::Ordering;
use std::collections::HashMap;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{Sampling, TokenLogprob};
use crate::model::logits::check;
pub use crate::model::logits::{LogitsError as SampleError, first_maximum, log_sum_exp};

/// Below this temperature the most likely token is taken, as vLLM does.
pub(super) const GREEDY_BELOW: f64 = 1e-5;

/// Tokens that top_p looks at first; many more are needed only by flat distributions.
const NUCLEUS_GUESS: usize = 64;

/// Tokens that occurred in prompt and output of one completion.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// How often each occurred in the output; 0 for tokens of the prompt only.
    counts: HashMap<u32, u32>,
}

impl History {
    /// Begins with a prompt.
    pub fn new(prompt: &[u32]) -> Self {
        Self { counts: prompt.iter().map(|&id| (id, 0)).collect() }
    }

    /// Returns each token with how often it occurred in the output.
    pub(super) fn seen(&self) -> impl Iterator<Item = (u32, u32)> {
        self.counts.iter().map(|(&id, &count)| (id, count))
    }

    /// Adds a token of the output.
    pub fn push(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
    }
}

/// Buffers of the size of the vocabulary, used again for every row.
#[derive(Debug, Default)]
pub struct Scratch {
    logits: Vec<f32>,
    order: Vec<f32>,
    /// Token id and weight, exp of the scaled logit less the largest.
    kept: Vec<(u32, f32)>,
}

/// The random numbers of one completion: one a token.
#[derive(Debug, Clone)]
pub struct Draws(ChaCha12Rng);

impl Draws {
    /// Returns stream `completion` of `seed`.
    pub fn new(seed: u64, completion: u64) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        rng.set_stream(completion);
        Self(rng)
    }

    /// Returns the next number, at least 0 and below 1, of 53 bits.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Returns whether every setting that looks at the history is off.
pub fn ignores_history(sampling: &Sampling) -> bool {
    sampling.repetition_penalty == 1.0 && sampling.presence_penalty == 0.0 && sampling.frequency_penalty == 0.0
}

/// Chooses the next token; `masked` tokens cannot be chosen.
///
/// # Errors
/// When the logits hold NaN or +infinity, or nothing but -infinity.
pub fn sample(
    logits: &[f32],
    sampling: &Sampling,
    history: &History,
    masked: &[u32],
    draws: &mut Draws,
    scratch: &mut Scratch,
) -> Result<u32, SampleError> {
    check(logits)?;
    let plain = masked.is_empty() && sampling.logit_bias.is_empty() && ignores_history(sampling);
    let mut adjusted = std::mem::take(&mut scratch.logits);
    let logits = if plain {
        logits
    } else {
        adjust(logits, sampling, history, masked, &mut adjusted);
        &adjusted
    };
    let chosen = if sampling.temperature < GREEDY_BELOW {
        first_maximum(logits)
    } else {
        truncate(logits, sampling, scratch).map(|()| pick(&scratch.kept, draws.uniform()))
    };
    scratch.logits = adjusted;
    chosen
}

/// Returns the probability with which each token would be chosen, `[vocab]`.
///
/// # Errors
/// As [`sample`].
pub fn probabilities(logits: &[f32], sampling: &Sampling, history: &History) -> Result<Vec<f32>, SampleError> {
    check(logits)?;
    let mut adjusted = Vec::new();
    adjust(logits, sampling, history, &[], &mut adjusted);
    let mut probabilities = vec![0.0; logits.len()];
    if sampling.temperature < GREEDY_BELOW {
        probabilities[first_maximum(&adjusted)? as usize] = 1.0;
        return Ok(probabilities);
    }
    let mut scratch = Scratch::default();
    truncate(&adjusted, sampling, &mut scratch)?;
    let total: f64 = scratch.kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    for (id, weight) in scratch.kept {
        probabilities[id as usize] = (f64::from(weight) / total) as f32;
    }
    Ok(probabilities)
}

/// Returns the `count` most likely tokens under the model's own distribution, best first, the lower id on a tie.
///
/// # Errors
/// As [`sample`].
pub fn top_logprobs(logits: &[f32], count: usize) -> Result<(f64, Vec<TokenLogprob>), SampleError> {
    let total = log_sum_exp(logits)?;
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in (0u32..).zip(logits) {
        if count > 0 && (best.len() < count || best.last().is_some_and(|&(_, worst)| logit > worst)) {
            let place = best.partition_point(|&(_, better)| better >= logit);
            best.insert(place, (id, logit));
            best.truncate(count);
        }
    }
    let logprob = |(token, logit)| TokenLogprob { token, logprob: f64::from(logit) - total };
    Ok((total, best.into_iter().map(logprob).collect()))
}

/// Applies mask, penalties and bias.
fn adjust(logits: &[f32], sampling: &Sampling, history: &History, masked: &[u32], adjusted: &mut Vec<f32>) {
    adjusted.clear();
    adjusted.extend_from_slice(logits);
    let (repetition, frequency, presence) =
        (sampling.repetition_penalty as f32, sampling.frequency_penalty as f32, sampling.presence_penalty as f32);
    if !ignores_history(sampling) {
        for (&id, &count) in &history.counts {
            let Some(logit) = adjusted.get_mut(id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            *logit -= frequency * count as f32;
            *logit -= if count > 0 { presence } else { 0.0 };
        }
    }
    for &(id, bias) in &sampling.logit_bias {
        if let Some(logit) = adjusted.get_mut(id as usize) {
            *logit += bias as f32;
        }
    }
    for &id in masked {
        if let Some(logit) = adjusted.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    // A finite logit may leave the range of f32 under a penalty; it stays a number, and the largest.
    for logit in adjusted.iter_mut() {
        *logit = logit.min(f32::MAX);
    }
}

/// Fills `scratch.kept` with what temperature, min_p, top_k and top_p leave, in no order that matters.
fn truncate(logits: &[f32], sampling: &Sampling, scratch: &mut Scratch) -> Result<(), SampleError> {
    let max = logits[first_maximum(logits)? as usize];
    let temperature = sampling.temperature as f32;
    // Relative to the largest, so that nothing overflows however small the temperature.
    let scaled = |logit: f32| (logit - max) / temperature;
    let Scratch { order, kept, .. } = scratch;

    // min_p: p < min_p · p_max is exp(scaled) < min_p, as the largest has exp(0).
    let min_p = sampling.min_p as f32;
    let passes = |logit: f32| logit > f32::NEG_INFINITY && (min_p <= 0.0 || scaled(logit).exp() >= min_p);
    let mut floor = f32::NEG_INFINITY;
    if sampling.top_k > 0 && sampling.top_k < logits.len() {
        order.clear();
        order.extend(logits.iter().copied().filter(|&l| passes(l)));
        if sampling.top_k < order.len() {
            let (_, kth, _) = order.select_nth_unstable_by(sampling.top_k - 1, |a, b| b.total_cmp(a));
            floor = *kth;
        }
    }
    kept.clear();
    let ids = (0u32..).zip(logits.iter().copied());
    kept.extend(ids.filter(|&(_, l)| l >= floor && passes(l)).map(|(id, l)| (id, scaled(l).exp())));
    if sampling.top_p < 1.0 {
        let size = nucleus(kept, sampling.top_p);
        kept.truncate(size);
    }
    Ok(())
}

/// Brings the nucleus of `kept` to its front and returns its size, at least 1.
///
/// Dropped is, from the least likely upwards, whatever keeps the running sum at or below 1 - p. Sums are f64 rounded
/// to f32, as torch's cumulative sum on the CPU.
fn nucleus(kept: &mut [(u32, f32)], top_p: f64) -> usize {
    let total: f64 = kept.iter().map(|&(_, w)| f64::from(w)).sum();
    let probability = |weight: f32| f64::from((f64::from(weight) / total) as f32);
    let sum: f64 = kept.iter().map(|&(_, w)| probability(w)).sum();
    let limit = (1.0 - top_p) as f32;
    let likelier = |a: &(u32, f32), b: &(u32, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    let (mut sorted, mut before) = (0, 0.0);
    let mut guess = NUCLEUS_GUESS;
    while sorted < kept.len() {
        let rest = &mut kept[sorted..];
        let take = guess.min(rest.len());
        if take < rest.len() {
            rest.select_nth_unstable_by(take - 1, likelier);
        }
        rest[..take].sort_unstable_by(likelier);
        for (index, &(_, weight)) in rest[..take].iter().enumerate() {
            // What is left from this token downwards is the ascending running sum up to it.
            if (sum - before) as f32 <= limit {
                return (sorted + index).max(1);
            }
            before += probability(weight);
        }
        sorted += take;
        guess *= 8;
    }
    kept.len()
}

/// Returns the token at which the running sum of weights passes `draw` of the whole.
fn pick(kept: &[(u32, f32)], draw: f64) -> u32 {
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let target = draw * total;
    let mut sum = 0.0;
    let mut last = 0;
    for &(id, weight) in kept.iter().filter(|&&(_, weight)| weight > 0.0) {
        sum += f64::from(weight);
        last = id;
        if sum > target {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn plain() -> Sampling {
        Sampling {
            max_new_tokens: 1,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 7,
            logit_bias: Vec::new(),
        }
    }

    fn draw(logits: &[f32], sampling: &Sampling, masked: &[u32]) -> Result<u32, SampleError> {
        let mut draws = Draws::new(sampling.seed, 0);
        sample(logits, sampling, &History::default(), masked, &mut draws, &mut Scratch::default())
    }

    #[test]
    fn faulty_logits_are_refused_not_sampled() {
        for temperature in [0.0, 1.0] {
            let sampling = Sampling { temperature, ..plain() };
            assert_eq!(draw(&[0.0, f32::NAN], &sampling, &[]), Err(SampleError::NotFinite { index: 1 }));
            assert_eq!(draw(&[f32::INFINITY, 0.0], &sampling, &[]), Err(SampleError::NotFinite { index: 0 }));
            assert_eq!(draw(&[f32::NEG_INFINITY; 2], &sampling, &[]), Err(SampleError::NothingLeft));
            assert_eq!(draw(&[], &sampling, &[]), Err(SampleError::NothingLeft));
            assert_eq!(draw(&[1.0, 0.0], &sampling, &[0, 1]), Err(SampleError::NothingLeft));
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.5, -1.0, 2.0, 0.0, 1.5];
        let sampling = Sampling { temperature: 0.8, top_p: 0.9, ..plain() };
        let expected = probabilities(&logits, &sampling, &History::default()).unwrap();
        let (mut draws, mut scratch) = (Draws::new(3, 1), Scratch::default());
        let mut seen = [0.0; 5];
        for _ in 0..20_000 {
            let id = sample(&logits, &sampling, &History::default(), &[], &mut draws, &mut scratch).unwrap();
            seen[id as usize] += 1.0 / 20_000.0;
        }
        for (seen, expected) in seen.iter().zip(expected) {
            // Five standard deviations of a share of 20 000 draws.
            assert!((seen - f64::from(expected)).abs() < 5.0 * (0.25f64 / 20_000.0).sqrt(), "{seen} {expected}");
        }
    }

    #[test]
    fn completions_of_one_seed_draw_their_own_numbers_and_repeat_them() {
        let numbers = |seed, completion| {
            let mut draws = Draws::new(seed, completion);
            [draws.uniform(), draws.uniform(), draws.uniform()]
        };
        assert_eq!(numbers(5, 0), numbers(5, 0));
        assert_ne!(numbers(5, 0), numbers(5, 1));
        assert_ne!(numbers(5, 0), numbers(6, 0));
    }

    #[test]
    fn bias_and_mask_decide_greedy_too() {
        let greedy = Sampling { temperature: 0.0, logit_bias: vec![(2, 10.0)], ..plain() };
        assert_eq!(draw(&[1.0, 3.0, 0.0], &greedy, &[]), Ok(2));
        assert_eq!(draw(&[1.0, 3.0, 0.0], &greedy, &[2]), Ok(1));
    }

    #[test]
    fn extreme_settings_stay_numbers() {
        let logits = [f32::MAX, -f32::MAX, 0.0];
        let history = History::new(&[0, 1]);
        for temperature in [1e-4, 2.0] {
            let sampling = Sampling { temperature, repetition_penalty: 1e-3, min_p: 1.0, top_p: 1e-9, ..plain() };
            assert_eq!(probabilities(&logits, &sampling, &history), Ok(vec![1.0, 0.0, 0.0]));
        }
    }

    /// The definition, with a full sort, to compare the partial ones with.
    fn by_definition(logits: &[f32], top_k: usize, top_p: f64) -> usize {
        let mut sorted = logits.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let floor = if top_k > 0 && top_k < sorted.len() { sorted[top_k - 1] } else { f32::NEG_INFINITY };
        sorted.retain(|&l| l >= floor);
        let weights: Vec<f64> = sorted.iter().map(|l| f64::from(l - sorted[0]).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut running = 0.0;
        let dropped = weights.iter().rev().take_while(|w| {
            running += *w / total;
            top_p < 1.0 && running <= 1.0 - top_p
        });
        (sorted.len() - dropped.count()).max(1)
    }

    proptest! {
        #[test]
        fn partial_selection_keeps_what_the_definition_keeps(
            logits in prop::collection::vec(-6.0f32..6.0, 1..400),
            top_k in 0usize..300,
            top_p in 0.01f64..1.0,
        ) {
            let sampling = Sampling { top_k, top_p, ..plain() };
            let probabilities = probabilities(&logits, &sampling, &History::default()).unwrap();
            let kept = probabilities.iter().filter(|&&p| p > 0.0).count();
            // Sums in f32 and f64 may disagree by one token at the very cut.
            prop_assert!(kept.abs_diff(by_definition(&logits, top_k, top_p)) <= 1);
            prop_assert!((probabilities.iter().map(|&p| f64::from(p)).sum::<f64>() - 1.0).abs() < 1e-5);
            let lowest_kept = logits.iter().zip(&probabilities).filter(|(_, p)| **p > 0.0).map(|(l, _)| *l);
            let highest_dropped = logits.iter().zip(&probabilities).filter(|(_, p)| **p == 0.0).map(|(l, _)| *l);
            prop_assert!(lowest_kept.fold(f32::MAX, f32::min) >= highest_dropped.fold(f32::MIN, f32::max));
        }

        #[test]
        fn alternatives_are_the_best_of_a_full_sort(
            logits in prop::collection::vec(-3i8..3, 1..60),
            count in 0usize..25,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let (total, top) = top_logprobs(&logits, count).unwrap();
            let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
            ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            ids.truncate(count);
            prop_assert_eq!(top.iter().map(|t| t.token).collect::<Vec<_>>(), ids);
            for t in top {
                prop_assert_eq!(t.logprob, f64::from(logits[t.token as usize]) - total);
            }
        }
    }
}

#[cfg(feature = "cuda")]
#[cfg(test)]
#[path = "sampler_on_gpu.rs"]
mod on_gpu;
