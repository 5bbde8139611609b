//! Tokens of a step that are chosen on the device: the logits stay there.
//!
//! For requests that want a token and nothing else. Whoever wants to see logits (`logprobs`, several completions of one
//! row) is the sampler's, with the whole row; so is a row whose logits are faulty, for the error's sake.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::Core;
use crate::engine::pass::{rows, step};
use crate::engine::sampler::{Draws, GREEDY_BELOW, History, ignores_history};
use crate::engine::scheduler::{Chunk, Id};
use crate::engine::sequence::masked;
use crate::model::choice::{Choice, choose, is_possible};
use crate::model::{Batch, Desk, KvCache, ModelError};

/// What is known of a step's logits.
pub(super) enum Seen {
    /// The token of each chunk that is complete.
    Chosen(Vec<Chosen>),
    /// `[complete chunks, vocab]` in the host's memory.
    Logits(Tensor),
}

/// What a sequence wanted, and its token.
type Chosen = (Wanted, u32);

/// What a sequence is to be given, and its random numbers after that.
pub(super) struct Wanted {
    id: Id,
    choice: Choice,
    draws: Draws,
}

impl Core {
    /// Computes what was packed, and the tokens of all chunks that are complete where their logits lie; takes the logits to
    /// the host where it cannot.
    pub(super) fn computed(&self, chunks: &[Chunk], caches: &mut [&mut KvCache]) -> Result<Seen, ModelError> {
        let batch = Batch { tokens: &self.tokens, segments: &self.segments, lora: &self.lora };
        let mut seen = None;
        step(self.model.as_ref(), &batch, caches, &mut |logits, desk| {
            seen = Some(self.seen(chunks, logits, desk)?);
            Ok(())
        })?;
        seen.ok_or_else(|| ModelError::Unsupported("a pass without logits".into()))
    }

    fn seen(&self, chunks: &[Chunk], logits: &Tensor, desk: Option<&Desk>) -> Result<Seen, ModelError> {
        if is_possible(logits)
            && let Some(chosen) = self.chosen(chunks, logits, desk)?
        {
            return Ok(Seen::Chosen(chosen));
        }
        // What lies in the host's memory is nobody else's.
        let own = if logits.device().is_cpu() { logits.clone() } else { logits.force_contiguous()? };
        Ok(Seen::Logits(own.to_device(&Device::Cpu)?))
    }

    fn chosen(
        &self,
        chunks: &[Chunk],
        logits: &Tensor,
        desk: Option<&Desk>,
    ) -> Result<Option<Vec<Chosen>>, ModelError> {
        let vocab = logits.dims2()?.1;
        let wanted = chunks.iter().filter(|chunk| chunk.complete).map(|chunk| self.wanted(chunk.id, vocab));
        let Some(wanted) = wanted.collect::<Option<Vec<_>>>() else { return Ok(None) };
        let choices: Vec<Choice> = wanted.iter().map(|wanted| wanted.choice.clone()).collect();
        let tokens = choose(logits, &choices, desk)?.into_iter().collect::<Option<Vec<u32>>>();
        Ok(tokens.map(|tokens| wanted.into_iter().zip(tokens).collect()))
    }

    /// Gives every sequence that is complete its token.
    pub(super) fn give(&mut self, chunks: &[Chunk], seen: Seen) -> Result<(), ModelError> {
        let chosen = match seen {
            Seen::Chosen(chosen) => chosen,
            Seen::Logits(logits) => {
                let wanted = chunks.iter().filter(|chunk| chunk.complete).count();
                let done = rows(&logits, wanted, |all, vocab| self.sample_rows(chunks, all, vocab));
                self.model.reuse(logits);
                return done;
            }
        };
        for chunk in chunks {
            self.scheduler.advance(chunk.id, chunk.tokens, chunk.complete);
        }
        for (Wanted { id, draws, .. }, token) in chosen {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            sequence.draws = draws;
            let group = sequence.group;
            if let Err(error) = self.push_token(id, token, None) {
                tracing::error!(error = &error as &dyn std::error::Error, "request failed");
                self.fail(group, Some(error));
            }
        }
        Ok(())
    }

    /// Returns what is to be chosen for a sequence, if a token is all that it wants.
    fn wanted(&self, id: Id, vocab: usize) -> Option<Wanted> {
        let sequence = self.sequences.get(&id)?;
        let group = self.groups.get(&sequence.group)?;
        let request = &group.request;
        if request.logprobs.is_some() || (sequence.output.is_empty() && request.n > 1) {
            return None;
        }
        let (sampling, mut draws) = (&request.sampling, sequence.draws.clone());
        let inside = |id: u32| (id as usize) < vocab;
        let mut biases: BTreeMap<u32, f32> = BTreeMap::new();
        for (token, bias) in sampling.logit_bias.iter().filter(|(token, _)| inside(*token)) {
            *biases.entry(*token).or_default() += *bias as f32;
        }
        biases.extend(
            masked(sequence, group).iter().filter(|token| inside(**token)).map(|token| (*token, f32::NEG_INFINITY)),
        );
        let greedy = sampling.temperature < GREEDY_BELOW;
        let seen = |history: &History| history.seen().filter(|(token, _)| inside(*token)).collect();
        let choice = Choice {
            temperature: if greedy { 0.0 } else { sampling.temperature },
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            draw: if greedy { 0.0 } else { draws.uniform() },
            seen: if ignores_history(sampling) { Vec::new() } else { seen(&sequence.history) },
            biases: biases.into_iter().collect(),
        };
        Some(Wanted { id, choice, draws })
    }
}
