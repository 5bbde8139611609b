//! Llama and Mistral: RMS norm, rotary positions, grouped-query attention (with a sliding window), gated MLP.
//!
//! Reads like the papers; serves any head that the configuration names. Where weights come from is `weights.rs` and
//! `gguf.rs`; which tokens are computed when is the engine's business.
//! Shapes: `[tokens, hidden]` between blocks, tokens of all sequences packed without padding.
//! After: Touvron et al. 2023 (arXiv 2302.13971), Jiang et al. 2023 (arXiv 2310.06825), transformers `modeling_llama`.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::cache::KvCache;
use super::config::{Config, Head, Module};
use super::layers::{Angles, Projection, Span, attend, attend_all};
use super::weights::Parts;
use super::{
    BaseModel, Batch, CausalLm, Computed, Differentiable, Ends, Input, Layout, ModelError, ModelInfo, Reserve,
    Sequences,
};
#[cfg(feature = "cuda")]
use super::{Read, Reserved};
use crate::lora::{self, Adapter, Base, LoraBatch, LoraError, Run, Site, SiteId};
use crate::ops::cpu::together;
use crate::ops::{Linear, rope, silu_mul};

mod base;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod gpu_learning;
mod learning;
mod serving;
mod sites;
#[cfg(test)]
mod tests;

use self::serving::Wanted;
use self::sites::{classified_rows, info, site_of, sites};

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
    idle: serving::Idle,
    /// What it has set aside on its device.
    #[cfg(feature = "cuda")]
    resident: Option<gpu::Resident>,
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

impl Block {
    fn projection(&self, module: Module) -> &Projection {
        match module {
            Module::Query => &self.query,
            Module::Key => &self.key,
            Module::Value => &self.value,
            Module::Output => &self.output,
            Module::Gate => &self.gate,
            Module::Up => &self.up,
            Module::Down => &self.down,
        }
    }
}

/// Gets the input of each block.
type Seen<'a> = &'a mut (dyn FnMut(&Tensor) + Send);

/// What all blocks of one pass share.
struct Pass<'a> {
    lora: &'a LoraBatch,
    layout: &'a Sequences,
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
            idle: serving::Idle::default(),
            #[cfg(feature = "cuda")]
            resident: None,
        })
    }

    /// Sets memory of its device aside, and serves by the kernels of that device from then on; on the CPU nothing is to do.
    ///
    /// # Errors
    /// When the memory is not there.
    pub fn reserve(&mut self, reserve: &Reserve) -> Result<(), ModelError> {
        #[cfg(feature = "cuda")]
        {
            self.resident = self.reserve_on_gpu(reserve)?;
        }
        let _ = reserve;
        Ok(())
    }

    /// Returns the hidden states of all tokens as transformers counts them: the embedding, then the output of each
    /// block, the last one after the final norm; `[tokens, hidden]` each.
    ///
    /// # Errors
    /// As [`CausalLm::forward`].
    pub fn hidden_states(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache]) -> Result<Vec<Tensor>, ModelError> {
        let mut seen = Vec::with_capacity(self.blocks.len() + 1);
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            self.run_on_gpu(resident, batch, caches, Some(&mut |x: &Tensor| seen.push(x.clone())))?;
            let last = seen.pop().ok_or_else(|| ModelError::Unsupported("a model without blocks".into()))?;
            seen.push(batch.lora.rms_norm(self.last_norm(), &last, &self.norm, self.config.rms_norm_eps)?);
            return Ok(seen);
        }
        let last = self.run(batch, Some(caches), Wanted::All(&mut |x: &Tensor| seen.push(x.clone())))?;
        seen.push(batch.lora.rms_norm(self.last_norm(), &last, &self.norm, self.config.rms_norm_eps)?);
        Ok(seen)
    }

    /// Runs all blocks and returns what the last one gives, before the final norm, `[rows, hidden]` of those wanted.
    ///
    /// Without caches every segment is a whole sequence.
    fn run(
        &self,
        batch: &Batch<'_>,
        mut caches: Option<&mut [&mut KvCache]>,
        mut wanted: Wanted<'_>,
    ) -> Result<Tensor, ModelError> {
        batch.lora.check_base(&self.info.fingerprint)?;
        let lengths: Vec<usize> = batch.segments.iter().map(|segment| segment.len).collect();
        if self.device.is_cpu() {
            return self.run_on_cpu(batch, &lengths, caches, wanted);
        }
        let layout = self.plan(batch.tokens, &lengths, caches.as_deref())?;
        let pass = Pass { lora: batch.lora, layout: &layout };
        let mut x = self.embed_with(&layout, batch.lora)?;
        for layer in 0..self.blocks.len() {
            if let Wanted::All(seen) = &mut wanted {
                seen(&x);
            }
            x = self.pass_block(layer, &x, &pass, caches.as_deref_mut())?;
        }
        for (cache, segment) in caches.into_iter().flatten().zip(batch.segments) {
            cache.advance(segment.len);
        }
        match wanted {
            Wanted::Rows(rows) if rows.iter().any(|rows| !rows.is_empty()) => {
                let index: Vec<u32> = rows.iter().cloned().flatten().map(|row| row as u32).collect();
                Ok(x.index_select(&Tensor::new(index, &self.device)?, 0)?)
            }
            Wanted::Rows(_) | Wanted::All(_) => Ok(x),
        }
    }

    /// Runs a pass where it can be divided.
    fn on_threads<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        if self.device.is_cpu() { together(pass) } else { pass() }
    }

    fn embed_with(&self, layout: &Sequences, lora: &LoraBatch) -> candle_core::Result<Tensor> {
        let x = self.embedding.rows(&layout.ids, self.dtype)?;
        if lora.runs.is_empty() { Ok(x) } else { lora.embedding(EMBEDDING, &layout.ids, x) }
    }

    /// Checks the batch; returns the rows of each sequence and the position of the first.
    fn places(
        &self,
        tokens: &[u32],
        lengths: &[usize],
        caches: Option<&[&mut KvCache]>,
    ) -> Result<Vec<(Range<usize>, usize)>, ModelError> {
        let fault = |text: String| Err(ModelError::Input(text));
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return fault(format!("token id {id} is not in the vocabulary of {}", self.config.vocab_size));
        }
        let total = lengths.iter().try_fold(0_usize, |sum, len| sum.checked_add(*len));
        if total != Some(tokens.len()) || lengths.contains(&0) {
            return fault(format!("segments do not divide the {} tokens into parts", tokens.len()));
        }
        if let Some(caches) = caches
            && (caches.len() != lengths.len() || caches.iter().any(|c| c.layers() != self.blocks.len()))
        {
            return fault("every segment needs a cache of this model".into());
        }
        let mut places = Vec::with_capacity(lengths.len());
        let mut next = 0;
        for (i, &len) in lengths.iter().enumerate() {
            let past = caches.and_then(|c| c.get(i)).map_or(0, |cache| cache.len());
            if len > self.config.context_length.saturating_sub(past) {
                let total = past.saturating_add(len);
                return fault(format!("{total} tokens are more than the context of {}", self.config.context_length));
            }
            places.push((next..next + len, past));
            next += len;
        }
        Ok(places)
    }

    /// Checks the batch and lays out positions and spans.
    fn plan(
        &self,
        tokens: &[u32],
        lengths: &[usize],
        caches: Option<&[&mut KvCache]>,
    ) -> Result<Sequences, ModelError> {
        let mut spans = Vec::with_capacity(lengths.len());
        let mut positions = Vec::with_capacity(tokens.len());
        for (rows, past) in self.places(tokens, lengths, caches)? {
            positions.extend(past..past + rows.len());
            spans.push(Span::new(rows, past, self.config.sliding_window));
        }
        let angles = Angles::new(positions.into_iter(), &self.frequencies, self.dtype, &self.device)?;
        Ok(Sequences { ids: Tensor::new(tokens, &self.device)?, spans: Arc::new(spans), angles })
    }

    fn pass_block(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass<'_>,
        caches: Option<&mut [&mut KvCache]>,
    ) -> candle_core::Result<Tensor> {
        let Config { heads, kv_heads, head_dim, rms_norm_eps: eps, .. } = self.config;
        let (block, lora, angles) = (&self.blocks[layer], pass.lora, &pass.layout.angles);
        let tokens = x.dim(0)?;
        let [attention_site, mlp_site] = self.norms_of(layer);

        let h = lora.rms_norm(attention_site, x, &block.attention_norm, eps)?;
        let q = block.query.forward(&h, lora)?.reshape((tokens, heads, head_dim))?;
        let k = block.key.forward(&h, lora)?.reshape((tokens, kv_heads, head_dim))?;
        let v = block.value.forward(&h, lora)?.reshape((tokens, kv_heads, head_dim))?;
        let q = rope(&q, &angles.cos, &angles.sin)?;
        let k = rope(&k, &angles.cos, &angles.sin)?;
        let mixed = match caches {
            None => attend_all(&pass.layout.spans, &q, &k, &v)?,
            Some(caches) => mix(layer, &pass.layout.spans, &q, (&k.transpose(0, 1)?, &v.transpose(0, 1)?), caches)?,
        };
        let x = (x + block.output.forward(&mixed, lora)?)?;

        let h = lora.rms_norm(mlp_site, &x, &block.mlp_norm, eps)?;
        let gated = silu_mul(&block.gate.forward(&h, lora)?, &block.up.forward(&h, lora)?)?;
        x + block.down.forward(&gated, lora)?
    }

    /// Returns the sites of a block's two norms.
    fn norms_of(&self, layer: usize) -> [SiteId; 2] {
        let first = site_of(self.blocks.len(), Module::ALL[0]) + 2 * layer;
        [SiteId(first), SiteId(first + 1)]
    }

    /// Returns the site of the final norm.
    fn last_norm(&self) -> SiteId {
        SiteId(site_of(self.blocks.len(), Module::ALL[0]) + 2 * self.blocks.len())
    }

    /// Returns the site of the head that a language model lacks.
    fn classifier(&self) -> SiteId {
        SiteId(self.last_norm().0 + 1)
    }

    /// Returns f32 logits of the last block's output, that of `rows` of the batch; none are on the CPU, as CUDA cannot.
    fn logits(&self, last: &Tensor, rows: &[usize], lora: &LoraBatch) -> Result<Tensor, ModelError> {
        if rows.is_empty() {
            return Ok(Tensor::zeros((0, self.head.weight.outputs()?), DType::F32, &Device::Cpu)?);
        }
        let lora = lora.select(rows);
        if self.device.is_cpu() { self.logits_on_cpu(last, &lora) } else { Ok(self.head_on(last, &lora, false)?) }
    }

    /// Returns f32 logits of the last block's output, all rows of it, from the language head or a classifier's.
    fn head_on(&self, x: &Tensor, lora: &LoraBatch, classify: bool) -> candle_core::Result<Tensor> {
        let normed = lora.rms_norm(self.last_norm(), x, &self.norm, self.config.rms_norm_eps)?;
        if classify == self.info.labels.is_some() {
            return self.head.forward(&normed, lora)?.to_dtype(DType::F32);
        }
        match lora.whole(self.classifier(), &normed)? {
            Some(logits) if classify => logits.to_dtype(DType::F32),
            _ => candle_core::bail!("the base model has no such head, nor has one adapter for all rows"),
        }
    }
}

/// Attention of all sequences of the batch, `[tokens, heads·head_dim]`; `own` are their new keys and values,
/// `[kv_heads, tokens, head_dim]`.
fn mix(
    layer: usize,
    spans: &[Span],
    q: &Tensor,
    own: (&Tensor, &Tensor),
    caches: &mut [&mut KvCache],
) -> candle_core::Result<Tensor> {
    let mut mixed = Vec::with_capacity(spans.len());
    for (span, cache) in spans.iter().zip(caches) {
        let (start, len) = (span.rows.start, span.rows.len());
        let own = (own.0.narrow(1, start, len)?.contiguous()?, own.1.narrow(1, start, len)?.contiguous()?);
        let all = cache.write(layer, &own.0, &own.1)?;
        let (keys, values) = if cache.is_empty() { own } else { all };
        mixed.push(attend(span, &q.narrow(0, start, len)?, &keys, &values)?);
    }
    if mixed.len() == 1 { Ok(mixed.remove(0)) } else { Tensor::cat(&mixed, 0) }
}

impl BaseModel for Llama {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn load_adapter(&self, config: &[u8], tensors: &[u8]) -> Result<Adapter, LoraError> {
        if lora::full::is_full(config)? {
            return lora::full::read(self.config.replaced_by(config)?, tensors, self);
        }
        lora::peft::read(config, tensors, self)
    }

    fn effect(&self, adapter: &Arc<Adapter>) -> Result<f64, ModelError> {
        super::effect(self, adapter)
    }

    fn differentiable(&self) -> Option<&dyn Differentiable> {
        Some(self)
    }
}

impl CausalLm for Llama {
    fn new_cache(&self) -> KvCache {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            return KvCache::in_pool(self.blocks.len(), resident.pool());
        }
        KvCache::new(self.blocks.len())
    }

    #[cfg(feature = "cuda")]
    fn reserved(&self) -> Option<Reserved> {
        self.resident.as_ref().map(gpu::Resident::reserved)
    }

    #[cfg(feature = "cuda")]
    fn prefetch(&self, adapter: &Arc<Adapter>) {
        self.resident.iter().for_each(|resident| resident.prefetch(adapter));
    }

    fn forward(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache]) -> Result<Tensor, ModelError> {
        let wanted = self.asked(batch)?;
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            return self.run_on_gpu(resident, batch, caches, None);
        }
        self.on_threads(|| {
            let last = self.run(batch, Some(caches), Wanted::Rows(&wanted))?;
            self.logits(&last, &wanted.into_iter().flatten().collect::<Vec<_>>(), batch.lora)
        })
    }

    #[cfg(feature = "cuda")]
    fn step(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache], read: Read<'_>) -> Result<(), ModelError> {
        let Some(resident) = &self.resident else { return read(&self.forward(batch, caches)?, None) };
        self.asked(batch)?;
        self.run_and_show(resident, batch, caches, None, read)
    }

    fn reuse(&self, logits: Tensor) {
        self.idle.keep(logits);
    }

    /// What the segments say of rows is not looked at.
    fn classify(&self, batch: &Batch<'_>) -> Result<Tensor, ModelError> {
        let brought = |run: &Run| run.adapter.changes().contains_key(&self.classifier());
        if self.info.labels.is_none() && !(batch.lora.runs.len() == 1 && batch.lora.runs.iter().all(brought)) {
            return Err(ModelError::Unsupported("classification without a classification head".into()));
        }
        // A head that an adapter brings may bring its padding token too.
        let brought = batch.lora.runs.first().and_then(|run| run.adapter.info().classes.as_ref());
        let pad = brought.and_then(|classes| classes.pad_token_id).or(self.config.pad_token_id);
        let lengths: Vec<usize> = batch.segments.iter().map(|segment| segment.len).collect();
        self.places(batch.tokens, &lengths, None)?;
        let rows = classified_rows(pad, batch.tokens, lengths.into_iter());
        let wanted: Vec<_> = rows.iter().map(|row| *row..row + 1).collect();
        let last = self.on_threads(|| self.run(batch, None, Wanted::Rows(&wanted)))?;
        Ok(self.head_on(&last, &batch.lora.select(&rows), true)?)
    }
}

impl Differentiable for Llama {
    fn layout(&self, input: &Input<'_>) -> Result<Layout, ModelError> {
        match *input {
            Input::Tokens { ids, lengths } => self.plan(ids, lengths, None).map(Layout::Tokens),
            Input::Pixels(_) => Err(ModelError::Input("a language model was given images".into())),
        }
    }

    fn depth(&self) -> usize {
        self.blocks.len()
    }

    fn embed(&self, layout: &Layout, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        Ok(self.embed_with(layout.tokens()?, lora)?)
    }

    fn block(&self, layer: usize, x: &Tensor, layout: &Layout, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        Ok(self.pass_block(layer, x, &Pass { lora, layout: layout.tokens()? }, None)?)
    }

    fn learn<'a>(
        &'a self,
        layer: usize,
        x: &Tensor,
        layout: &'a Layout,
        lora: &'a LoraBatch,
    ) -> Result<Option<Computed<'a>>, ModelError> {
        self.learn_block(layer, x, layout.tokens()?, lora)
    }

    fn learn_ends<'a>(&'a self, lora: &'a LoraBatch, rows: usize) -> Result<Ends<'a>, ModelError> {
        Ok(self.ends(lora, rows)?)
    }

    fn head(&self, x: &Tensor, lora: &LoraBatch, classify: bool) -> Result<Tensor, ModelError> {
        Ok(self.head_on(x, lora, classify)?)
    }

    fn classified(&self, input: &Input<'_>) -> Vec<usize> {
        match *input {
            Input::Tokens { ids, lengths } => classified_rows(self.config.pad_token_id, ids, lengths.iter().copied()),
            Input::Pixels(_) => Vec::new(),
        }
    }

    fn config_json(&self, labels: Option<&[String]>) -> Result<Vec<u8>, ModelError> {
        let map = self.config.written(labels).map_err(ModelError::Unsupported)?;
        Ok(serde_json::to_vec_pretty(&map).map_err(candle_core::Error::wrap)?)
    }

    fn base(&self) -> &dyn Base {
        self
    }
}
