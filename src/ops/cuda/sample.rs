//! Chooses tokens from logits on the device, as the engine's sampler does on the CPU.
//!
//! For the same logits, settings and draw both choose the same token but where a running sum ends within rounding of
//! the draw. Knows no request: what changes from step to step stands in tensors, so that launches can be recorded.
//! Shapes: logits are f32 `[rows, vocab]`; lists of a row are as long as the longest may be.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::ptx;

/// The token of a row whose logits are faulty, or that has no token left.
pub const NO_TOKEN: u32 = u32::MAX;
/// Words of the settings of a row.
pub const SETTINGS: usize = 9;
/// Tokens that a block of [`penalise`] takes, and its threads.
const PART: usize = 8192;
const THREADS: u32 = 256;
/// Threads of a block of [`choose`].
const MOST_THREADS: u32 = 1024;

/// How the token of a row is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Divides logits; 0 takes the most likely token, the first on a tie.
    pub temperature: f64,
    /// Tokens to keep, those that tie with the last one too; 0 keeps all.
    pub top_k: usize,
    /// Probability to keep; 1 keeps all.
    pub top_p: f64,
    /// Probability of a token at least, in parts of the largest.
    pub min_p: f64,
    /// At least 0 and below 1: where the running sum of probabilities ends.
    pub draw: f64,
    /// Divides positive logits of tokens that occurred and multiplies negative ones; 1 is off.
    pub repetition: f64,
    /// Is taken off for each time that a token occurred in the output.
    pub frequency: f64,
    /// Is taken off once for a token that occurred in the output.
    pub presence: f64,
}

impl Choice {
    /// Returns it as the device reads it: a row of a u32 tensor `[rows, SETTINGS]`.
    #[must_use]
    pub fn words(&self) -> [u32; SETTINGS] {
        let bits = |number: f64| (number as f32).to_bits();
        let draw = self.draw.to_bits();
        let top_k = u32::try_from(self.top_k).unwrap_or(0);
        let (temperature, left_out, min_p) = (bits(self.temperature), bits(1.0 - self.top_p), bits(self.min_p));
        let [repetition, frequency, presence] = [self.repetition, self.frequency, self.presence].map(bits);
        [temperature, left_out, min_p, top_k, draw as u32, (draw >> 32) as u32, repetition, frequency, presence]
    }
}

/// What is listed of each row: different tokens, with a number each.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// u32 `[rows, most]`.
    pub tokens: &'a Tensor,
    /// u32 `[rows, most]`: times that a token occurred in the output, or the bits of a bias in f32.
    pub numbers: &'a Tensor,
    /// How many are listed, u32 `[rows]`.
    pub counts: &'a Tensor,
}

impl<'a> Listed<'a> {
    /// Checks a list and returns its arguments; nothing is listed without one.
    fn arguments(list: Option<Self>, rows: usize) -> Result<[Argument<'a>; 4]> {
        let Some(Listed { tokens, numbers, counts }) = list else {
            return Ok([Argument::Nothing, Argument::Nothing, Argument::Nothing, Argument::U32(0)]);
        };
        let most = tokens.dims2()?.1;
        let known = [tokens, numbers, counts].iter().all(|tensor| tensor.dtype() == DType::U32);
        if !known || tokens.dims()[0] != rows || numbers.dims() != tokens.dims() || counts.dims() != [rows] {
            bail!("lists {:?} and {:?} for {rows} rows", tokens.shape(), numbers.shape());
        }
        let [tokens, numbers, counts] = [tokens, numbers, counts].map(Argument::Tensor);
        Ok([tokens, numbers, counts, Argument::U32(most as u32)])
    }
}

/// Checks logits and settings, and returns rows and vocabulary.
fn sizes(logits: &Tensor, adjusted: &Tensor, settings: &Tensor) -> Result<(usize, usize)> {
    let (rows, vocab) = logits.dims2()?;
    let known = [logits, adjusted].iter().all(|tensor| tensor.dtype() == DType::F32) && settings.dtype() == DType::U32;
    if !known || adjusted.dims() != logits.dims() || settings.dims() != [rows, SETTINGS] || vocab == 0 {
        bail!("settings {:?} for logits {:?} and {:?}", settings.shape(), logits.shape(), adjusted.shape());
    }
    Ok((rows, vocab))
}

/// Writes logits with penalties of the tokens `seen`, those of the prompt too, and with biases to `adjusted`, which may
/// be the same tensor. A bias of -infinity forbids a token. `settings` is u32 `[rows, SETTINGS]`, of [`Choice::words`].
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn penalise(
    gpu: &Gpu,
    logits: &Tensor,
    settings: &Tensor,
    seen: Option<Listed<'_>>,
    biases: Option<Listed<'_>>,
    adjusted: &Tensor,
) -> Result<()> {
    let (rows, vocab) = sizes(logits, adjusted, settings)?;
    let (seen, biases) = (Listed::arguments(seen, rows)?, Listed::arguments(biases, rows)?);
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch {
        file: ("sample", ptx::SAMPLE),
        function: "penalise",
        grid: (vocab.div_ceil(PART) as u32, rows as u32, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    let tensors = [logits, adjusted, settings].map(Argument::Tensor);
    gpu.launch(launch, &[&tensors[..], &seen, &biases, &[Argument::U32(vocab as u32)]].concat())
}

/// Writes the token of each row, u32 `[rows]`, and its natural logarithmic probability among `logits`, f32 `[rows]`.
/// The token is chosen from `adjusted`, which may be the same tensor; it is [`NO_TOKEN`] where logits hold NaN or
/// +infinity, or nothing is left.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn choose(
    gpu: &Gpu,
    logits: &Tensor,
    adjusted: &Tensor,
    settings: &Tensor,
    tokens: &Tensor,
    logprobs: &Tensor,
) -> Result<()> {
    let (rows, vocab) = sizes(logits, adjusted, settings)?;
    let outs = [(tokens, DType::U32), (logprobs, DType::F32)];
    if outs.iter().any(|(out, dtype)| out.dims() != [rows] || out.dtype() != *dtype) {
        bail!("{:?} tokens of {rows} rows", tokens.shape());
    }
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch {
        file: ("sample", ptx::SAMPLE),
        function: "choose",
        grid: (rows as u32, 1, 1),
        block: (MOST_THREADS, 1, 1),
        shared: 0,
    };
    let tensors = [logits, adjusted, settings, tokens, logprobs].map(Argument::Tensor);
    gpu.launch(launch, &[&tensors[..], &[Argument::U32(vocab as u32)]].concat())
}
