//! Tokens of a step that are chosen on the device: the logits stay there.
//!
//! For requests that want a token and nothing else. Whoever wants to see logits (`logprobs`, several completions of one
//! row) is the sampler's, with the whole row; so is a row whose logits are faulty, for the error's sake.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::Core;
use crate::engine::sampler::{Draws, GREEDY_BELOW, History, ignores_history};
use crate::engine::scheduler::{Chunk, Id};
use crate::engine::sequence::masked;
use crate::model::ModelError;
use crate::model::choice::{Choice, choose, is_possible};

/// What a sequence is to be given, and its random numbers after that.
struct Wanted {
    id: Id,
    choice: Choice,
    draws: Draws,
}

impl Core {
    /// Chooses the tokens of all chunks that are complete; returns false where it cannot and has done nothing.
    pub(super) fn chosen_on_device(&mut self, chunks: &[Chunk], logits: &Tensor) -> Result<bool, ModelError> {
        if !is_possible(logits) {
            return Ok(false);
        }
        let vocab = logits.dims2()?.1;
        let wanted = chunks.iter().filter(|chunk| chunk.complete).map(|chunk| self.wanted(chunk.id, vocab));
        let Some(wanted) = wanted.collect::<Option<Vec<_>>>() else { return Ok(false) };
        let choices: Vec<Choice> = wanted.iter().map(|wanted| wanted.choice.clone()).collect();
        let Some(tokens) = choose(logits, &choices)?.into_iter().collect::<Option<Vec<u32>>>() else {
            return Ok(false);
        };
        for chunk in chunks {
            self.scheduler.advance(chunk.id, chunk.tokens, chunk.complete);
        }
        for (Wanted { id, draws, .. }, token) in wanted.into_iter().zip(tokens) {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            sequence.draws = draws;
            let group = sequence.group;
            if let Err(error) = self.push_token(id, token, None) {
                tracing::error!(error = &error as &dyn std::error::Error, "request failed");
                self.fail(group, Some(error));
            }
        }
        Ok(true)
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
