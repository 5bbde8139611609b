//! Tokens chosen where the logits lie: on a GPU, so that not the whole vocabulary comes back but one number a row.
//!
//! The engine's sampler says what is to be chosen and remains the form of the CPU. Knows no request.
//! Shapes: logits `[rows, vocab]` f32.

use candle_core::Tensor;

use super::ModelError;

/// How the token of a row is chosen; names as the engine's `Sampling` has them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// 0 takes the most likely token.
    pub(crate) temperature: f64,
    /// 0 keeps all.
    pub(crate) top_k: usize,
    pub(crate) top_p: f64,
    pub(crate) min_p: f64,
    pub(crate) repetition_penalty: f64,
    pub(crate) frequency_penalty: f64,
    pub(crate) presence_penalty: f64,
    /// At least 0 and below 1.
    pub(crate) draw: f64,
    /// Tokens of prompt and output, each once, with how often it is in the output; empty without penalties.
    pub(crate) seen: Vec<(u32, u32)>,
    /// What is added to logits of tokens, each once; -infinity forbids one.
    pub(crate) biases: Vec<(u32, f32)>,
}

/// Returns whether tokens can be chosen where the logits lie.
pub(crate) fn is_possible(logits: &Tensor) -> bool {
    cfg!(feature = "cuda") && logits.device().is_cuda() && logits.dims().first().is_some_and(|rows| *rows > 0)
}

/// Chooses a token from each row; `None` for a row whose logits are faulty or all forbidden.
///
/// # Errors
/// When the logits are not on a GPU, shapes do not fit, or the device fails.
#[cfg(feature = "cuda")]
pub(crate) fn choose(logits: &Tensor, choices: &[Choice]) -> Result<Vec<Option<u32>>, ModelError> {
    use candle_core::DType;

    use crate::ops::cuda::{self, Gpu, Listed, NO_TOKEN, SETTINGS};

    let Some(gpu) = Gpu::of(logits.device()) else {
        return Err(ModelError::Unsupported("a choice of tokens on this device".into()));
    };
    let (rows, device) = (choices.len(), gpu.device());
    let words = choices.iter().flat_map(|choice| {
        let of = cuda::Choice {
            temperature: choice.temperature,
            top_k: choice.top_k,
            top_p: choice.top_p,
            min_p: choice.min_p,
            draw: choice.draw,
            repetition: choice.repetition_penalty,
            frequency: choice.frequency_penalty,
            presence: choice.presence_penalty,
        };
        of.words()
    });
    let settings = Tensor::from_vec(words.collect::<Vec<u32>>(), (rows, SETTINGS), &device)?;
    // Tokens, numbers and how many there are, each row as long as the longest.
    let listed = |of: &dyn Fn(&Choice) -> Vec<(u32, u32)>| {
        let lists: Vec<_> = choices.iter().map(of).collect();
        let most = lists.iter().map(Vec::len).max().unwrap_or(0);
        if most == 0 {
            return Ok(None);
        }
        let padded = |part: fn(&(u32, u32)) -> u32| {
            let row = |list: &Vec<(u32, u32)>| {
                list.iter().map(part).chain(std::iter::repeat(0)).take(most).collect::<Vec<_>>()
            };
            Tensor::from_vec(lists.iter().flat_map(row).collect::<Vec<u32>>(), (rows, most), &device)
        };
        let counts: Vec<u32> = lists.iter().map(|list| list.len() as u32).collect();
        Ok::<_, ModelError>(Some([padded(|one| one.0)?, padded(|one| one.1)?, Tensor::new(counts, &device)?]))
    };
    let seen = listed(&|choice| choice.seen.clone())?;
    let biases = listed(&|choice| choice.biases.iter().map(|(token, bias)| (*token, bias.to_bits())).collect())?;
    let adjusted = match (&seen, &biases) {
        (None, None) => logits.clone(),
        _ => {
            let adjusted = gpu.tensor(logits.shape(), DType::F32)?;
            fn of([tokens, numbers, counts]: &[Tensor; 3]) -> Listed<'_> {
                Listed { tokens, numbers, counts }
            }
            let (seen, biases) = (seen.as_ref().map(of), biases.as_ref().map(of));
            cuda::penalise(&gpu, logits, &settings, seen, biases, &adjusted)?;
            adjusted
        }
    };
    let (tokens, logprobs) = (gpu.tensor(rows, DType::U32)?, gpu.tensor(rows, DType::F32)?);
    cuda::choose(&gpu, logits, &adjusted, &settings, &tokens, &logprobs)?;
    let token = |id: u32| (id != NO_TOKEN).then_some(id);
    Ok(tokens.to_vec1::<u32>()?.into_iter().map(token).collect())
}

/// Without a GPU there is nothing to choose from.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub(crate) fn choose(_: &Tensor, _: &[Choice]) -> Result<Vec<Option<u32>>, ModelError> {
    Err(ModelError::Unsupported("a choice of tokens on this device".into()))
}

/// What the engine's tests compare its sampler with.
#[cfg(all(test, feature = "cuda"))]
pub(crate) mod kernels {
    pub(crate) use crate::ops::cuda::testing::{gpu, numbers, values};
    pub(crate) use crate::ops::cuda::{Choice, Listed, NO_TOKEN, SETTINGS, choose, penalise};
}
