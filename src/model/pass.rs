//! One pass through the model: a panic becomes an error, logits become a slice.
//!
//! Does not know what is computed or why: engine and audits run the model through it.
//! Shapes: logits `[rows, vocab]` f32.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{Storage, Tensor};

use super::logits::LogitsError;
use super::{Batch, CausalLm, ImageClassifier, KvCache, ModelError, Read};
use crate::lora::LoraBatch;

/// Runs the model; a panic in it becomes an error.
///
/// # Errors
/// When the model fails or panics.
pub(crate) fn forward(
    model: &dyn CausalLm,
    batch: &Batch<'_>,
    caches: &mut [&mut KvCache],
) -> Result<Tensor, ModelError> {
    // Whoever ran in this step fails and its caches are dropped: no state half written is seen again.
    let outcome = catch_unwind(AssertUnwindSafe(|| model.forward(batch, caches)));
    outcome.unwrap_or_else(|_| Err(panicked()))
}

/// Runs the model and shows its logits to `read`; a panic in either becomes an error.
///
/// # Errors
/// When the model or `read` fails or panics.
pub(crate) fn step(
    model: &dyn CausalLm,
    batch: &Batch<'_>,
    caches: &mut [&mut KvCache],
    read: Read<'_>,
) -> Result<(), ModelError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| model.step(batch, caches, read)));
    outcome.unwrap_or_else(|_| Err(panicked()))
}

/// Runs the model up to its classification head; a panic in it becomes an error.
///
/// # Errors
/// When the model fails or panics.
pub(crate) fn classify(model: &dyn CausalLm, batch: &Batch<'_>) -> Result<Tensor, ModelError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| model.classify(batch)));
    outcome.unwrap_or_else(|_| Err(panicked()))
}

/// Classifies images; a panic in it becomes an error.
///
/// # Errors
/// When the model fails or panics.
pub(crate) fn see(model: &dyn ImageClassifier, pixels: &Tensor, lora: &LoraBatch) -> Result<Tensor, ModelError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| model.classify(pixels, lora)));
    outcome.unwrap_or_else(|_| Err(panicked()))
}

/// Forks a cache; a panic in it becomes an error.
///
/// # Errors
/// When memory cannot be had.
pub(crate) fn fork(cache: &KvCache) -> Result<KvCache, ModelError> {
    fork_at(cache, cache.len())
}

/// Forks a cache after its first `len` tokens; a panic in it becomes an error.
///
/// # Errors
/// When memory cannot be had.
pub(crate) fn fork_at(cache: &KvCache, len: usize) -> Result<KvCache, ModelError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| cache.fork_at(len)));
    outcome.unwrap_or_else(|_| Err(panicked()))
}

/// Calls `read` with logits as one slice `[rows, vocab]` and the size of the vocabulary; without a copy on the CPU.
///
/// # Errors
/// When the shape is another one, or the device fails.
pub(crate) fn rows<R>(logits: &Tensor, wanted: usize, read: impl FnOnce(&[f32], usize) -> R) -> Result<R, ModelError> {
    let shaped = if wanted == 0 { (0, 1) } else { logits.dims2()? };
    if shaped.0 != wanted || shaped.1 == 0 {
        return Err(fault(&format!("the model returned {} rows of logits, expected {wanted}", shaped.0)));
    }
    if wanted == 0 {
        return Ok(read(&[], 1));
    }
    let (storage, layout) = logits.storage_and_layout();
    if let (Storage::Cpu(cpu), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        let all = cpu.as_slice::<f32>()?;
        return Ok(read(&all[start..end], shaped.1));
    }
    drop(storage);
    let all = logits.flatten_all().and_then(|l| l.to_vec1::<f32>())?;
    Ok(read(&all, shaped.1))
}

/// Returns an error of the model that has no other type.
pub(crate) fn fault(what: &str) -> ModelError {
    ModelError::Tensor(candle_core::Error::Msg(what.to_owned()))
}

fn panicked() -> ModelError {
    fault("the model panicked")
}

impl From<LogitsError> for ModelError {
    fn from(error: LogitsError) -> Self {
        Self::Tensor(candle_core::Error::wrap(error))
    }
}
