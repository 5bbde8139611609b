//! The places of a Llama that adapters can change, in order, and what the model says of itself.
//!
//! Embedding, then the linear layers block by block, then the norms, a classifier that is not there, and the head. Also
//! says where a sequence is classified, and which rows get logits.

use std::ops::Range;

use candle_core::{Device, DeviceLocation};

use super::EMBEDDING;
use crate::lora::{Site, SiteKind};
use crate::model::config::{Config, Head, Module};
use crate::model::weights::Parts;
use crate::model::{ModelError, ModelInfo, Segment};
use crate::ops::cpu::{Heads, KeysValues};

pub(super) fn site_of(layer: usize, module: Module) -> usize {
    EMBEDDING.0 + 1 + layer * Module::ALL.len() + module as usize
}

pub(super) fn sites(config: &Config) -> Vec<Site> {
    let site = |path: String, kind, input, output, bias| Site { path, kind, input, output, bias };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let mut sites = vec![site("model.embed_tokens".into(), SiteKind::Embedding, vocab, hidden, false)];
    for layer in 0..config.layers {
        for module in Module::ALL {
            let (input, output) = module.shape(config);
            sites.push(site(module.path(layer), SiteKind::Linear, input, output, module.bias(config)));
        }
    }
    for layer in 0..config.layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            sites.push(site(format!("model.layers.{layer}.{norm}"), SiteKind::Norm, hidden, hidden, false));
        }
    }
    sites.push(site("model.norm".into(), SiteKind::Norm, hidden, hidden, false));
    if config.head == Head::Language {
        sites.push(site("score".into(), SiteKind::Classifier, hidden, 0, false));
    }
    let (path, output) = match config.head {
        Head::Language => ("lm_head", vocab),
        Head::Classifier(labels) => ("score", labels),
    };
    sites.push(site(path.into(), SiteKind::Head, hidden, output, false));
    sites
}

/// Returns the sizes of its attention.
pub(super) fn heads(config: &Config) -> Heads {
    Heads { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim, window: config.sliding_window }
}

pub(super) fn info(config: &Config, parts: &Parts, device: &Device) -> ModelInfo {
    let numbers =
        if device.is_cpu() { KeysValues::numbers(heads(config)) } else { 2 * config.kv_heads * config.head_dim };
    let cached = config.layers * numbers * parts.dtype.size_in_bytes();
    ModelInfo {
        architecture: config.architecture.clone(),
        fingerprint: parts.fingerprint.clone(),
        parameters: parts.parameters,
        dtype: parts.weight_format.clone(),
        context_length: config.context_length,
        vocab_size: config.vocab_size,
        eos_token_ids: config.eos_token_ids.clone(),
        labels: match config.head {
            Head::Language => None,
            Head::Classifier(labels) => Some(labels),
        },
        classes: config.classes.clone(),
        device: match device.location() {
            DeviceLocation::Cpu => "cpu".into(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        },
        kv_bytes_per_token: cached as u64,
        image_size: None,
    }
}

/// Returns the row at which each sequence is classified: the rightmost token that is not the padding token, as
/// transformers does; the first of a sequence of padding alone.
pub(super) fn classified_rows(pad: Option<u32>, tokens: &[u32], lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut start = 0;
    let row = |len: usize| {
        let sequence = &tokens[start..start + len];
        let scored = match pad {
            None => len - 1,
            Some(pad) => sequence.iter().rposition(|id| *id != pad).unwrap_or(0),
        };
        let row = start + scored;
        start += len;
        row
    };
    lengths.map(row).collect()
}

/// Returns the rows of each segment that get logits.
///
/// # Errors
/// When a segment has fewer.
pub(super) fn asked_rows(segments: &[Segment]) -> Result<Vec<Range<usize>>, ModelError> {
    let mut end = 0_usize;
    let rows = |segment: &Segment| {
        // A sum that is too large is refused where lengths are checked.
        end = end.saturating_add(segment.len);
        let count = segment.logits.count();
        match count <= segment.len {
            true => Ok(end - count..end),
            false => Err(ModelError::Input(format!("{count} rows asked of {} tokens", segment.len))),
        }
    };
    segments.iter().map(rows).collect()
}
