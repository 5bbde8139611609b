//! Reads GGUF files of architecture `llama` (Llama and Mistral); weights stay quantised.
//!
//! Turns names, shapes and the order of rows into those of transformers, so that nothing above knows where weights came
//! from: GGUF stores the query and key rows of a head for interleaved rotation (0, half, 1, half+1, …), and rows are
//! independent runs of quantised blocks, so they are put back by moving bytes. The tokenizer inside the file is not
//! read here. Every length is checked against what is left of the file before memory is taken.
//! After: ggml `docs/gguf.md`; llama.cpp `convert_hf_to_gguf.py` (`LlamaModel.permute`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use super::ModelError;
use super::config::{Config, Head, MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, RopeScaling};
use super::gguf_header::{Header, TensorInfo, Value};
use super::weights::{Fingerprint, Parts, activations, fault_in, instead_of_quantised, invalid, unreadable};
use crate::ops::Linear;

/// Reads configuration and weights of a file. With `dequantise` the weights are turned into that format; without, into
/// that of [`instead_of_quantised`], or else they stay as they are, and activations are f32.
pub(super) fn read(path: &Path, device: &Device, dequantise: Option<DType>) -> Result<(Config, Parts), ModelError> {
    let file = File::open(path).map_err(unreadable(path))?;
    let size = file.metadata().map_err(unreadable(path))?.len();
    let header = Header::read(BufReader::new(&file), size).map_err(|fault| invalid(path, fault))?;
    let mut source = Source { path, file, size, header };
    let config = source.config()?;
    let parameters: u64 = config.tensors().values().map(|shape| shape.iter().product::<usize>() as u64).sum();
    let dequantise = match dequantise {
        None => instead_of_quantised(device, parameters)?,
        named => named,
    };
    let dtype = dequantise.unwrap_or(DType::F32);
    let mut digest = Fingerprint::new(&config.canonical());
    let mut parts = Parts {
        matrices: BTreeMap::new(),
        vectors: BTreeMap::new(),
        fingerprint: String::new(),
        parameters,
        dtype: activations(device, dtype),
        weight_format: String::new(),
    };
    let mut formats = BTreeMap::<String, u64>::new();
    for (name, shape) in config.tensors() {
        let (format, mut bytes) = source.tensor(&stored_name(&name), &shape)?;
        digest.tensor(&name, format, &shape, &bytes);
        if name.contains(".q_proj.") || name.contains(".k_proj.") {
            bytes = rotation_halves(&bytes, shape[0], config.head_dim);
        }
        let weights = shape.iter().product::<usize>() as u64;
        *formats.entry(format!("{format:?}").to_lowercase()).or_default() += weights;
        match (plain(format), shape.len()) {
            (Some(stored), 2) => {
                let kept = dequantise.unwrap_or(if device.is_cpu() { stored } else { dtype });
                let tensor = Tensor::from_raw_buffer(&bytes, stored, &shape, device)?.to_dtype(kept)?;
                parts.matrices.insert(name, Linear::dense(tensor));
            }
            (None, 2) if dequantise.is_none() && device.is_cpu() && packs(format) => {
                let Some(linear) = Linear::stored(format, (shape[0], shape[1]), &bytes) else {
                    return Err(invalid(path, format!("`{}` does not fit its shape", stored_name(&name))));
                };
                parts.matrices.insert(name, linear);
            }
            (None, 2) => {
                let storage = QStorage::from_data(Cow::Owned(bytes), device, format)?;
                let quantised = QTensor::new(storage, shape.as_slice())?;
                let linear = if dequantise.is_some() {
                    Linear::dense(quantised.dequantize(device)?.to_dtype(dtype)?)
                } else {
                    Linear::quantized(Arc::new(quantised))
                };
                parts.matrices.insert(name, linear);
            }
            (Some(stored), _) => {
                let tensor = Tensor::from_raw_buffer(&bytes, stored, &shape, device)?.to_dtype(dtype)?;
                parts.vectors.insert(name, tensor.to_dtype(parts.dtype)?);
            }
            (None, _) => return Err(invalid(path, format!("`{}` is quantised as {format:?}", stored_name(&name)))),
        }
    }
    parts.fingerprint = digest.finish();
    let stored = formats.into_iter().max_by_key(|(_, weights)| *weights).map(|(format, _)| format);
    parts.weight_format = match (dequantise, stored) {
        (None, Some(stored)) => stored,
        _ => dtype.as_str().into(),
    };
    Ok((config, parts))
}

/// Returns the format as candle's when it is not quantised.
fn plain(format: GgmlDType) -> Option<DType> {
    match format {
        GgmlDType::F32 => Some(DType::F32),
        GgmlDType::F16 => Some(DType::F16),
        GgmlDType::BF16 => Some(DType::BF16),
        GgmlDType::Q4_0
        | GgmlDType::Q4_1
        | GgmlDType::Q5_0
        | GgmlDType::Q5_1
        | GgmlDType::Q8_0
        | GgmlDType::Q8_1
        | GgmlDType::Q2K
        | GgmlDType::Q3K
        | GgmlDType::Q4K
        | GgmlDType::Q5K
        | GgmlDType::Q6K
        | GgmlDType::Q8K => None,
    }
}

/// Returns whether the CPU has kernels for a quantised format; candle computes the others.
fn packs(format: GgmlDType) -> bool {
    !matches!(format, GgmlDType::Q8_1 | GgmlDType::Q2K | GgmlDType::Q3K | GgmlDType::Q8K)
}

/// Returns GGUF's name of a tensor.
fn stored_name(name: &str) -> String {
    let renamed = [
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("model.layers.", "blk."),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("self_attn.q_proj.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("self_attn.o_proj.", "attn_output."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
    ];
    renamed.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}

/// Puts the rows of each head back from interleaved order (0, half, 1, half+1, …) into the order of transformers.
fn rotation_halves(bytes: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows;
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(head_dim * row_bytes) {
        for row in 0..head_dim {
            let from = (2 * (row % half) + row / half) * row_bytes;
            out.extend_from_slice(&head[from..from + row_bytes]);
        }
    }
    out
}

/// An open file with its header.
struct Source<'a> {
    path: &'a Path,
    file: File,
    size: u64,
    header: Header,
}

impl Source<'_> {
    fn fault<T>(&self, fault: impl Into<String>) -> Result<T, ModelError> {
        Err(invalid(self.path, fault))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    fn whole(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Whole(n)) if (1..=max as u64).contains(n) => Ok(Some(*n as usize)),
            Some(other) => self.fault(format!("`{key}` is {other}, a whole number from 1 to {max} is needed")),
        }
    }

    fn needed(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        match self.whole(key, max)? {
            Some(n) => Ok(n),
            None => self.fault(format!("`{key}` is missing")),
        }
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() && *x > 0.0 => Ok(Some(*x)),
            Some(other) => self.fault(format!("`{key}` is {other}, a number above 0 is needed")),
        }
    }

    fn config(&mut self) -> Result<Config, ModelError> {
        match self.value("general.architecture") {
            Some(Value::Text(name)) if name == "llama" => {}
            Some(other) => return Err(ModelError::Unsupported(format!("GGUF architecture {other}"))),
            None => return self.fault("`general.architecture` is missing"),
        }
        for key in ["llama.expert_count", "split.count"] {
            if let Some(Value::Whole(2..)) = self.value(key) {
                return Err(ModelError::Unsupported(format!("GGUF with `{key}` above 1")));
            }
        }
        let hidden_size = self.needed("llama.embedding_length", MAX_WIDTH)?;
        let heads = self.needed("llama.attention.head_count", MAX_HEADS)?;
        let head_dim = match self.whole("llama.attention.key_length", MAX_WIDTH)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => return self.fault(format!("embedding length {hidden_size} is not a multiple of {heads} heads")),
        };
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if self.whole(key, MAX_WIDTH)?.is_some_and(|size| size != head_dim) {
                return Err(ModelError::Unsupported(format!("`{key}` other than the head size {head_dim}")));
            }
        }
        let Some(vocab_size) = self.header.tensors.get("token_embd.weight").and_then(|t| t.shape.first().copied())
        else {
            return self.fault("tensor `token_embd.weight` is missing");
        };
        if !(1..=MAX_VOCAB).contains(&vocab_size) {
            return self.fault(format!("a vocabulary of {vocab_size} is outside 1 to {MAX_VOCAB}"));
        }
        let has = |name: &str| self.header.tensors.contains_key(name);
        let config = Config {
            architecture: "LlamaForCausalLM".into(),
            head: Head::Language,
            vocab_size,
            hidden_size,
            intermediate_size: self.needed("llama.feed_forward_length", MAX_WIDTH)?,
            layers: self.needed("llama.block_count", MAX_LAYERS)?,
            heads,
            kv_heads: self.whole("llama.attention.head_count_kv", MAX_HEADS)?.unwrap_or(heads),
            head_dim,
            context_length: self.needed("llama.context_length", MAX_CONTEXT)?,
            rms_norm_eps: self.positive("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            rope_theta: self.positive("llama.rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: self.rope_scaling()?,
            sliding_window: self.whole("llama.attention.sliding_window", MAX_CONTEXT)?,
            attention_bias: has("blk.0.attn_q.bias"),
            mlp_bias: has("blk.0.ffn_up.bias"),
            tied: !has("output.weight"),
            eos_token_ids: self.eos(vocab_size)?,
            pad_token_id: None,
            dtype: None,
            classes: None,
            source: None,
        };
        config.check().map_err(|fault| fault_in(self.path, fault))?;
        self.with_frequency_factors(config)
    }

    fn rope_scaling(&self) -> Result<RopeScaling, ModelError> {
        let factor = match self.positive("llama.rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.positive("llama.rope.scale_linear")?,
        };
        match (self.value("llama.rope.scaling.type"), factor) {
            (Some(Value::Text(kind)), _) if kind == "none" => Ok(RopeScaling::Default),
            (Some(Value::Text(kind)), None) if kind == "linear" => self.fault("linear rope scaling has no factor"),
            (Some(Value::Text(kind)), Some(factor)) if kind == "linear" => Ok(RopeScaling::Linear(factor)),
            (Some(kind), _) => Err(ModelError::Unsupported(format!("rope scaling {kind}"))),
            (None, Some(factor)) => Ok(RopeScaling::Linear(factor)),
            (None, None) => Ok(RopeScaling::Default),
        }
    }

    /// Llama 3.1's scaling is stored as a tensor of factors.
    fn with_frequency_factors(&mut self, mut config: Config) -> Result<Config, ModelError> {
        if !self.header.tensors.contains_key("rope_freqs.weight") {
            return Ok(config);
        }
        let (format, bytes) = self.tensor("rope_freqs.weight", &[config.head_dim / 2])?;
        let (GgmlDType::F32, true) = (format, matches!(config.rope_scaling, RopeScaling::Default)) else {
            return Err(ModelError::Unsupported("`rope_freqs.weight` other than f32, or beside a rope scaling".into()));
        };
        let factors: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            return self.fault("`rope_freqs.weight` holds a factor that is not above 0");
        }
        config.rope_scaling = RopeScaling::Factors(factors);
        Ok(config)
    }

    fn eos(&self, vocab_size: usize) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        for kind in ["eos", "eot", "eom"] {
            let key = format!("tokenizer.ggml.{kind}_token_id");
            match self.value(&key) {
                None => {}
                Some(Value::Whole(id)) if *id < vocab_size as u64 => ids.push(*id as u32),
                Some(other) => return self.fault(format!("`{key}` is {other}, not in the vocabulary of {vocab_size}")),
            }
        }
        ids.dedup();
        Ok(ids)
    }

    /// Checks a tensor and reads its bytes.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<(GgmlDType, Vec<u8>), ModelError> {
        let Some(TensorInfo { format, shape: stored, offset }) = self.header.tensors.get(name) else {
            return self.fault(format!("tensor `{name}` is missing"));
        };
        if stored != shape {
            return self.fault(format!("tensor `{name}` has shape {stored:?}, the metadata need {shape:?}"));
        }
        let (format, row) = (*format, shape.last().copied().unwrap_or(0));
        if row == 0 || !row.is_multiple_of(format.block_size()) {
            return self.fault(format!("tensor `{name}` has rows of {row}, not whole blocks of {format:?}"));
        }
        // At most MAX_VOCAB · MAX_WIDTH weights: no product here overflows.
        let bytes = shape.iter().product::<usize>() / format.block_size() * format.type_size();
        let start = self.header.data.checked_add(*offset);
        let Some(start) = start.filter(|s| s.checked_add(bytes as u64).is_some_and(|end| end <= self.size)) else {
            return self.fault(format!("tensor `{name}` reaches beyond the end of the file"));
        };
        let mut buffer = vec![0; bytes];
        self.file.seek(SeekFrom::Start(start)).map_err(unreadable(self.path))?;
        self.file.read_exact(&mut buffer).map_err(unreadable(self.path))?;
        Ok((format, buffer))
    }
}

#[cfg(test)]
pub(super) mod tests;
