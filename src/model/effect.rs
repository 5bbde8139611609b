//! The proof that an adapter does something: what it changes of the logits of a fixed prompt.

use std::sync::Arc;

use candle_core::Device;

use super::{Batch, CausalLm, ModelError, Rows, Segment};
use crate::lora::{Adapter, LoraBatch, Run};

/// Tokens of the fixed prompt of [`effect`].
const EFFECT_TOKENS: usize = 16;

/// Returns the largest absolute change that `adapter` makes to a logit of a fixed prompt: [`super::BaseModel::effect`] of a
/// language model.
///
/// The prompt is up to 16 ids spread over the vocabulary; logits of all its positions are compared, or those of its
/// labels where the head is a classifier. The logits of a classifier that the adapter brings count from 0.
///
/// # Errors
/// When the pass fails, or when the adapter makes a logit NaN or infinite.
pub(super) fn effect(model: &dyn CausalLm, adapter: &Arc<Adapter>) -> Result<f64, ModelError> {
    let vocab = model.info().vocab_size;
    let count = EFFECT_TOKENS.min(vocab).min(model.info().context_length);
    // Odd numbers of sixteenths: neither the control tokens at the start nor the rare ones at the end alone.
    let tokens: Vec<u32> = (0..count).map(|i| ((2 * i + 1) * vocab / (2 * count)) as u32).collect();
    let logits = |lora: &LoraBatch| {
        let segments = [Segment { len: count, logits: Rows::Last(count) }];
        let batch = Batch { tokens: &tokens, segments: &segments, lora };
        match model.info().labels {
            Some(_) => model.classify(&batch),
            None => model.forward(&batch, &mut [&mut model.new_cache()]),
        }
    };
    let run = Run { adapter: Arc::clone(adapter), rows: 0..count, scale: 1.0 };
    let changed = logits(&LoraBatch { runs: vec![run], dropout: None })?.to_device(&Device::Cpu)?;
    let plain = logits(&LoraBatch::default())?.to_device(&Device::Cpu)?;
    let mut difference = (changed - plain)?.abs()?.flatten_all()?.to_vec1::<f32>()?;
    if model.info().labels.is_none() && adapter.info().classes.is_some() {
        // The base has no such logits: whatever the brought head says is a change.
        let run = Run { adapter: Arc::clone(adapter), rows: 0..count, scale: 1.0 };
        let segments = [Segment { len: count, logits: Rows::None }];
        let lora = LoraBatch { runs: vec![run], dropout: None };
        let brought = model.classify(&Batch { tokens: &tokens, segments: &segments, lora: &lora })?;
        difference.extend(brought.to_device(&Device::Cpu)?.abs()?.flatten_all()?.to_vec1::<f32>()?);
    }
    // `max` would pass over NaN.
    if difference.iter().any(|d| !d.is_finite()) {
        return Err(ModelError::Input("the adapter makes logits that are not finite numbers".into()));
    }
    Ok(difference.iter().fold(0.0, |a: f64, d| a.max(f64::from(*d))))
}
