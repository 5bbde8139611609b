//! Tokens chosen where the logits lie: on a GPU, so that not the whole vocabulary comes back but one number a row.
//!
//! The engine's sampler says what is to be chosen and remains the form of the CPU. Knows no request.
//! Shapes: logits `[rows, vocab]` f32.

use candle_core::Tensor;
#[cfg(feature = "cuda")]
use candle_core::{DType, Shape};

use super::ModelError;
#[cfg(feature = "cuda")]
use crate::ops::cuda::{self, Gpu, Listed, NO_TOKEN, SETTINGS};

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

/// Memory of a device that tokens are chosen in, so that a step takes none. One choice at a time.
#[derive(Debug)]
pub struct Desk {
    /// Settings and lists of all rows, u32.
    #[cfg(feature = "cuda")]
    words: Tensor,
    /// u32 `[rows]`, by itself: what is read of a tensor is all its memory.
    #[cfg(feature = "cuda")]
    tokens: Tensor,
    /// Logits after penalties, and logarithmic probabilities, f32.
    #[cfg(feature = "cuda")]
    numbers: Tensor,
}

/// Tokens that a row may list of each kind; who lists more takes memory.
#[cfg(feature = "cuda")]
const LISTED: usize = 512;

#[cfg(feature = "cuda")]
impl Desk {
    /// Takes memory for `rows` rows of a vocabulary.
    ///
    /// # Errors
    /// When the device has none.
    pub(super) fn new(gpu: &Gpu, rows: usize, vocab: usize) -> candle_core::Result<Self> {
        // Of each of two lists tokens, numbers and how many.
        let words = gpu.tensor(rows * (SETTINGS + 2 * (2 * LISTED + 1)), DType::U32)?;
        let tokens = gpu.tensor(rows, DType::U32)?;
        Ok(Self { words, tokens, numbers: gpu.tensor(rows * (vocab + 1), DType::F32)? })
    }

    /// Returns the bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        4 * (self.words.elem_count() + self.tokens.elem_count() + self.numbers.elem_count()) as u64
    }
}

/// What is not taken yet of a desk.
#[cfg(feature = "cuda")]
struct Rest<'a> {
    gpu: &'a Gpu,
    desk: Option<&'a Desk>,
    words: usize,
    numbers: usize,
}

#[cfg(feature = "cuda")]
impl Rest<'_> {
    /// Returns memory for a tensor: of the desk, or of its own.
    fn tensor(&mut self, shape: impl Into<Shape>, dtype: DType) -> candle_core::Result<Tensor> {
        let shape = shape.into();
        let count = shape.elem_count();
        if let Some(desk) = self.desk {
            let (all, at) =
                if dtype == DType::U32 { (&desk.words, &mut self.words) } else { (&desk.numbers, &mut self.numbers) };
            if *at + count <= all.elem_count() {
                *at += count;
                return all.narrow(0, *at - count, count)?.reshape(shape);
            }
        }
        self.gpu.tensor(shape, dtype)
    }

    fn put(&mut self, data: &[u32], shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
        let tensor = self.tensor(shape, DType::U32)?;
        self.gpu.upload(data, &tensor)?;
        Ok(tensor)
    }
}

/// Returns whether tokens can be chosen where the logits lie.
pub(crate) fn is_possible(logits: &Tensor) -> bool {
    cfg!(feature = "cuda") && logits.device().is_cuda() && logits.dims().first().is_some_and(|rows| *rows > 0)
}

/// Chooses a token from each row, on a desk where there is one; `None` for a row whose logits are faulty or all forbidden.
///
/// # Errors
/// When the logits are not on a GPU, shapes do not fit, or the device fails.
#[cfg(feature = "cuda")]
pub(crate) fn choose(logits: &Tensor, choices: &[Choice], desk: Option<&Desk>) -> Result<Vec<Option<u32>>, ModelError> {
    let Some(gpu) = Gpu::of(logits.device()) else {
        return Err(ModelError::Unsupported("a choice of tokens on this device".into()));
    };
    let rows = choices.len();
    let mut rest = Rest { gpu: &gpu, desk, words: 0, numbers: 0 };
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
    let settings = rest.put(&words.collect::<Vec<u32>>(), (rows, SETTINGS))?;
    // Tokens, numbers and how many there are, each row as long as the longest.
    let mut listed = |of: &dyn Fn(&Choice) -> Vec<(u32, u32)>| {
        let lists: Vec<_> = choices.iter().map(of).collect();
        let most = lists.iter().map(Vec::len).max().unwrap_or(0);
        if most == 0 {
            return Ok(None);
        }
        let mut padded = |part: fn(&(u32, u32)) -> u32| {
            let row = |list: &Vec<(u32, u32)>| {
                list.iter().map(part).chain(std::iter::repeat(0)).take(most).collect::<Vec<_>>()
            };
            rest.put(&lists.iter().flat_map(row).collect::<Vec<u32>>(), (rows, most))
        };
        let (tokens, numbers) = (padded(|one| one.0)?, padded(|one| one.1)?);
        let counts: Vec<u32> = lists.iter().map(|list| list.len() as u32).collect();
        Ok::<_, ModelError>(Some([tokens, numbers, rest.put(&counts, rows)?]))
    };
    let seen = listed(&|choice| choice.seen.clone())?;
    let biases = listed(&|choice| choice.biases.iter().map(|(token, bias)| (*token, bias.to_bits())).collect())?;
    let adjusted = match (&seen, &biases) {
        (None, None) => logits.clone(),
        _ => {
            let adjusted = rest.tensor(logits.shape(), DType::F32)?;
            fn of([tokens, numbers, counts]: &[Tensor; 3]) -> Listed<'_> {
                Listed { tokens, numbers, counts }
            }
            let (seen, biases) = (seen.as_ref().map(of), biases.as_ref().map(of));
            cuda::penalise(&gpu, logits, &settings, seen, biases, &adjusted)?;
            adjusted
        }
    };
    let tokens = match desk {
        Some(desk) if rows <= desk.tokens.elem_count() => desk.tokens.narrow(0, 0, rows)?,
        Some(_) | None => gpu.tensor(rows, DType::U32)?,
    };
    let logprobs = rest.tensor(rows, DType::F32)?;
    cuda::choose(&gpu, logits, &adjusted, &settings, &tokens, &logprobs)?;
    let token = |id: u32| (id != NO_TOKEN).then_some(id);
    Ok(tokens.to_vec1::<u32>()?.into_iter().map(token).collect())
}

/// Without a GPU there is nothing to choose from.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub(crate) fn choose(_: &Tensor, _: &[Choice], _: Option<&Desk>) -> Result<Vec<Option<u32>>, ModelError> {
    Err(ModelError::Unsupported("a choice of tokens on this device".into()))
}

/// What the engine's tests compare its sampler with.
#[cfg(all(test, feature = "cuda"))]
pub(crate) mod kernels {
    pub(crate) use crate::ops::cuda::testing::{gpu, numbers, values};
    pub(crate) use crate::ops::cuda::{Choice, Listed, NO_TOKEN, SETTINGS, choose, penalise};
}
