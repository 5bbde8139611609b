//! Llama and Mistral: RMS norm, rotary positions, grouped-query attention (with a sliding window), gated MLP.
//!
//! Reads like the papers; serves any head that the configuration names. Where weights come from is `weights.rs` and
//! `gguf.rs`; which tokens are computed when is the engine's business.
//! Shapes: `[tokens, hidden]` between blocks, tokens of all sequences packed without padding.
//! After: Touvron et al. 2023 (arXiv 2302.13971), Jiang et al. 2023 (arXiv 2310.06825), transformers `modeling_llama`.

use candle_core::{DType, Device, DeviceLocation, Tensor};

use super::cache::KvCache;
use super::config::{Config, Head, Module};
use super::layers::{Angles, Projection, Span, attend};
use super::weights::Parts;
use super::{Batch, CausalLm, ModelError, ModelInfo, Rows, Segment};
use crate::lora::{self, Adapter, Base, LoraBatch, LoraError, Site, SiteId, SiteKind};
use crate::ops::{Linear, rms_norm, rope, silu_mul};

/// Site of the token embedding; the sites of the blocks follow, that of the head is the last.
const EMBEDDING: SiteId = SiteId(0);

/// A model of the Llama family with its head.
#[derive(Debug)]
pub struct Llama {
    config: Config,
    info: ModelInfo,
    sites: Vec<Site>,
    device: Device,
    dtype: DType,
    frequencies: Vec<f32>,
    embedding: Linear,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Projection,
}

#[derive(Debug)]
struct Block {
    attention_norm: Tensor,
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    mlp_norm: Tensor,
    gate: Projection,
    up: Projection,
    down: Projection,
}

/// What all blocks of one pass share.
struct Pass<'a> {
    lora: &'a LoraBatch,
    spans: Vec<Span>,
    angles: Angles,
}

impl Llama {
    /// Puts the parts together; their names and shapes were checked where they were read.
    pub(super) fn new(config: Config, mut parts: Parts, device: Device) -> Result<Self, ModelError> {
        let missing = |name: &str| ModelError::Invalid { path: name.into(), fault: "tensor is missing".into() };
        let mut projection = |path: &str, site: usize| {
            let name = format!("{path}.weight");
            let weight = parts.matrices.remove(&name).ok_or_else(|| missing(&name))?;
            let bias = parts.vectors.remove(&format!("{path}.bias"));
            Ok::<_, ModelError>(Projection { site: SiteId(site), weight, bias })
        };
        let embedding = projection("model.embed_tokens", EMBEDDING.0)?.weight;
        let sites = sites(&config);
        let head = match config.head {
            Head::Language if config.tied => {
                Projection { site: SiteId(sites.len() - 1), weight: embedding.clone(), bias: None }
            }
            Head::Language => projection("lm_head", sites.len() - 1)?,
            Head::Classifier(_) => projection("score", sites.len() - 1)?,
        };
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let mut of = |module: Module| projection(&module.path(layer), site_of(layer, module));
            let [query, key, value] = [of(Module::Query)?, of(Module::Key)?, of(Module::Value)?];
            let [output, gate] = [of(Module::Output)?, of(Module::Gate)?];
            let [up, down] = [of(Module::Up)?, of(Module::Down)?];
            layers.push((query, key, value, output, gate, up, down));
        }
        let mut vector = |name: &str| parts.vectors.remove(name).ok_or_else(|| missing(name));
        let mut blocks = Vec::with_capacity(config.layers);
        for (layer, (query, key, value, output, gate, up, down)) in layers.into_iter().enumerate() {
            let attention_norm = vector(&format!("model.layers.{layer}.input_layernorm.weight"))?;
            let mlp_norm = vector(&format!("model.layers.{layer}.post_attention_layernorm.weight"))?;
            blocks.push(Block { attention_norm, query, key, value, output, mlp_norm, gate, up, down });
        }
        let norm = vector("model.norm.weight")?;
        Ok(Self {
            info: info(&config, &parts, &device),
            sites,
            dtype: parts.dtype,
            frequencies: config.rope_frequencies(),
            embedding,
            blocks,
            norm,
            head,
            device,
            config,
        })
    }

    /// Returns the hidden states of all tokens as transformers counts them: the embedding, then the output of each
    /// block, the last one after the final norm; `[tokens, hidden]` each.
    ///
    /// # Errors
    /// As [`CausalLm::forward`].
    pub fn hidden_states(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache]) -> Result<Vec<Tensor>, ModelError> {
        let mut seen = Vec::with_capacity(self.blocks.len() + 1);
        let last = self.run(batch, Some(caches), |x| seen.push(x.clone()))?;
        seen.push(rms_norm(&last, &self.norm, self.config.rms_norm_eps)?);
        Ok(seen)
    }

    /// Runs all blocks and returns what the last one gives, before the final norm, `[tokens, hidden]`.
    ///
    /// Without caches every segment is a whole sequence. `seen` gets the input of each block.
    fn run(
        &self,
        batch: &Batch<'_>,
        mut caches: Option<&mut [&mut KvCache]>,
        mut seen: impl FnMut(&Tensor),
    ) -> Result<Tensor, ModelError> {
        let pass = self.plan(batch, caches.as_deref())?;
        let ids = Tensor::new(batch.tokens, &self.device)?;
        let mut x = self.embedding.rows(&ids, self.dtype)?;
        if !batch.lora.runs.is_empty() {
            x = batch.lora.embedding(EMBEDDING, &ids, x)?;
        }
        for layer in 0..self.blocks.len() {
            seen(&x);
            x = self.block(layer, &x, &pass, caches.as_deref_mut())?;
        }
        for (cache, segment) in caches.into_iter().flatten().zip(batch.segments) {
            cache.advance(segment.len);
        }
        Ok(x)
    }

    /// Checks the batch and lays out positions and spans.
    fn plan<'a>(&self, batch: &Batch<'a>, caches: Option<&[&mut KvCache]>) -> Result<Pass<'a>, ModelError> {
        let fault = |text: String| Err(ModelError::Input(text));
        if let Some(id) = batch.tokens.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return fault(format!("token id {id} is not in the vocabulary of {}", self.config.vocab_size));
        }
        let lengths = batch.segments.iter().try_fold(0_usize, |sum, s| sum.checked_add(s.len));
        if lengths != Some(batch.tokens.len()) || batch.segments.iter().any(|s| s.len == 0) {
            return fault(format!("segments do not divide the {} tokens into parts", batch.tokens.len()));
        }
        if let Some(caches) = caches
            && (caches.len() != batch.segments.len() || caches.iter().any(|c| c.layers() != self.blocks.len()))
        {
            return fault("every segment needs a cache of this model".into());
        }
        let mut spans = Vec::with_capacity(batch.segments.len());
        let mut positions = Vec::with_capacity(batch.tokens.len());
        for (i, segment) in batch.segments.iter().enumerate() {
            let past = caches.and_then(|c| c.get(i)).map_or(0, |cache| cache.len());
            if segment.len > self.config.context_length.saturating_sub(past) {
                let total = past.saturating_add(segment.len);
                return fault(format!("{total} tokens are more than the context of {}", self.config.context_length));
            }
            let rows = positions.len()..positions.len() + segment.len;
            spans.push(Span::new(rows, past, self.config.sliding_window, &self.device)?);
            positions.extend(past..past + segment.len);
        }
        let angles = Angles::new(positions.into_iter(), &self.frequencies, self.dtype, &self.device)?;
        Ok(Pass { lora: batch.lora, spans, angles })
    }

    fn block(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass<'_>,
        caches: Option<&mut [&mut KvCache]>,
    ) -> candle_core::Result<Tensor> {
        let Config { heads, kv_heads, head_dim, rms_norm_eps: eps, .. } = self.config;
        let (block, lora, angles) = (&self.blocks[layer], pass.lora, &pass.angles);
        let tokens = x.dim(0)?;

        let h = rms_norm(x, &block.attention_norm, eps)?;
        let q = block.query.forward(&h, lora)?.reshape((tokens, heads, head_dim))?;
        let k = block.key.forward(&h, lora)?.reshape((tokens, kv_heads, head_dim))?;
        let v = block.value.forward(&h, lora)?.reshape((tokens, kv_heads, head_dim))?;
        let q = rope(&q, &angles.cos, &angles.sin)?;
        let k = rope(&k, &angles.cos, &angles.sin)?.transpose(0, 1)?; // [kv_heads, tokens, head_dim]
        let mixed = mix(layer, &pass.spans, &q, &k, &v.transpose(0, 1)?, caches)?;
        let x = (x + block.output.forward(&mixed, lora)?)?;

        let h = rms_norm(&x, &block.mlp_norm, eps)?;
        let gated = silu_mul(&block.gate.forward(&h, lora)?, &block.up.forward(&h, lora)?)?;
        x + block.down.forward(&gated, lora)?
    }

    /// Returns f32 logits of `rows` of the last block's output.
    fn logits(&self, last: &Tensor, rows: &[usize], lora: &LoraBatch) -> Result<Tensor, ModelError> {
        if rows.is_empty() {
            // On the CPU: CUDA has no empty tensors.
            let output = self.sites.last().map_or(0, |head| head.output);
            return Ok(Tensor::zeros((0, output), DType::F32, &Device::Cpu)?);
        }
        let normed = |x: &Tensor| rms_norm(x, &self.norm, self.config.rms_norm_eps);
        if rows.len() == last.dim(0)? {
            return Ok(self.head.forward(&normed(last)?, lora)?.to_dtype(DType::F32)?);
        }
        let index: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let x = normed(&last.index_select(&Tensor::new(index, &self.device)?, 0)?)?;
        let logits = match lora.runs.is_empty() {
            true => self.head.forward(&x, lora)?,
            false => self.head.forward(&x, &lora.select(rows))?,
        };
        Ok(logits.to_dtype(DType::F32)?)
    }
}

/// Attention of all sequences of the batch, `[tokens, heads·head_dim]`.
///
/// A sequence that has nothing in its cache attends to its own keys and values, which keeps gradients.
fn mix(
    layer: usize,
    spans: &[Span],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mut caches: Option<&mut [&mut KvCache]>,
) -> candle_core::Result<Tensor> {
    let mut mixed = Vec::with_capacity(spans.len());
    for (i, span) in spans.iter().enumerate() {
        let (start, len) = (span.rows.start, span.rows.len());
        let own = (k.narrow(1, start, len)?.contiguous()?, v.narrow(1, start, len)?.contiguous()?);
        let (keys, values) = match caches.as_deref_mut().and_then(|caches| caches.get_mut(i)) {
            None => own,
            Some(cache) => {
                let all = cache.write(layer, &own.0, &own.1)?;
                if cache.is_empty() { own } else { all }
            }
        };
        mixed.push(attend(span, &q.narrow(0, start, len)?, &keys, &values)?);
    }
    if mixed.len() == 1 { Ok(mixed.remove(0)) } else { Tensor::cat(&mixed, 0) }
}

impl CausalLm for Llama {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(self.blocks.len())
    }

    fn forward(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache]) -> Result<Tensor, ModelError> {
        if self.info.labels.is_some() {
            return Err(ModelError::Unsupported("generation with a classification head".into()));
        }
        let asked = |segment: &Segment| match segment.logits {
            Rows::None => 0,
            Rows::Last(count) => count,
        };
        if let Some(segment) = batch.segments.iter().find(|s| asked(s) > s.len) {
            return Err(ModelError::Input(format!("{} rows asked of {} tokens", asked(segment), segment.len)));
        }
        let last = self.run(batch, Some(caches), |_| ())?;
        let (mut rows, mut end) = (Vec::new(), 0);
        for segment in batch.segments {
            end += segment.len;
            rows.extend(end - asked(segment)..end);
        }
        self.logits(&last, &rows, batch.lora)
    }

    /// The score is taken at the rightmost token that is not the padding token, as transformers does; a sequence of
    /// padding alone is scored at its first token. What the segments say of rows is not looked at.
    fn classify(&self, batch: &Batch<'_>) -> Result<Tensor, ModelError> {
        if self.info.labels.is_none() {
            return Err(ModelError::Unsupported("classification with a language head".into()));
        }
        let last = self.run(batch, None, |_| ())?;
        let mut rows = Vec::with_capacity(batch.segments.len());
        let mut start = 0;
        for segment in batch.segments {
            let tokens = &batch.tokens[start..start + segment.len];
            let scored = match self.config.pad_token_id {
                None => segment.len - 1,
                Some(pad) => tokens.iter().rposition(|id| *id != pad).unwrap_or(0),
            };
            rows.push(start + scored);
            start += segment.len;
        }
        self.logits(&last, &rows, batch.lora)
    }

    fn load_adapter(&self, config: &[u8], tensors: &[u8]) -> Result<Adapter, LoraError> {
        lora::peft::read(config, tensors, self)
    }
}

impl Base for Llama {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn weight(&self, site: SiteId) -> candle_core::Result<Tensor> {
        let inside = site.0.checked_sub(1).map(|n| (n / Module::ALL.len(), n % Module::ALL.len()));
        let Some((layer, module)) = inside else { return self.embedding.to_f32() };
        let Some(block) = self.blocks.get(layer) else { return self.head.weight.to_f32() };
        let projection = match Module::ALL[module] {
            Module::Query => &block.query,
            Module::Key => &block.key,
            Module::Value => &block.value,
            Module::Output => &block.output,
            Module::Gate => &block.gate,
            Module::Up => &block.up,
            Module::Down => &block.down,
        };
        projection.weight.to_f32()
    }

    fn fingerprint(&self) -> &str {
        &self.info.fingerprint
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn dtype(&self) -> DType {
        self.dtype
    }
}

fn site_of(layer: usize, module: Module) -> usize {
    EMBEDDING.0 + 1 + layer * Module::ALL.len() + module as usize
}

fn sites(config: &Config) -> Vec<Site> {
    let site = |path: String, kind, input, output, bias| Site { path, kind, input, output, bias };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let mut sites = vec![site("model.embed_tokens".into(), SiteKind::Embedding, vocab, hidden, false)];
    for layer in 0..config.layers {
        for module in Module::ALL {
            let (input, output) = module.shape(config);
            sites.push(site(module.path(layer), SiteKind::Linear, input, output, module.bias(config)));
        }
    }
    let (path, output) = match config.head {
        Head::Language => ("lm_head", vocab),
        Head::Classifier(labels) => ("score", labels),
    };
    sites.push(site(path.into(), SiteKind::Head, hidden, output, false));
    sites
}

fn info(config: &Config, parts: &Parts, device: &Device) -> ModelInfo {
    let cached = 2 * config.layers * config.kv_heads * config.head_dim * parts.dtype.size_in_bytes();
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
        device: match device.location() {
            DeviceLocation::Cpu => "cpu".into(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        },
        kv_bytes_per_token: cached as u64,
    }
}

#[cfg(test)]
mod tests;
