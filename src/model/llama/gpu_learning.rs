//! A block with a backward of its own, on a GPU: the same block as `pass_block`, by kernels, without candle's graph.
//!
//! The graph copies every result and makes a tensor of zeros and a sum of every gradient; here each is written once.
//! What is not known here (dropout, DoRA, other head sizes) goes through the graph; a test compares the two.
//! Shapes: `[tokens, …]`, packed; every segment is a whole sequence. Numbers are those of the model, f32 or bf16.

use candle_core::{DType, Result, Tensor};

use super::Llama;
use super::learning::norm_at;
use crate::lora::LoraBatch;
use crate::model::layers::learning;
use crate::model::{Computed, ModelError, Sequences};
use crate::ops::cuda::{
    Gpu, Sight, Whole, attend_whole, attend_whole_backward, has_kernels, rope, silu_mul, silu_mul_backward,
};
use crate::ops::learning::{Layer, Learnt, Norm};

/// A block in training.
struct Learning<'a> {
    gpu: Gpu,
    /// Query heads, key and value heads, numbers of a head.
    heads: (usize, usize, usize),
    whole: Whole,
    angles: [&'a Tensor; 2],
    norms: [Norm<'a>; 2],
    /// Query, key, value, output, gate, up, down.
    layers: [Layer<'a>; 7],
}

/// What the backward needs of the forward.
struct Kept {
    input: Tensor,
    /// Queries and keys after rotation, and values: `[tokens, heads, head_dim]`.
    seen: [Tensor; 3],
    /// What attention mixed, and f32 `[heads, tokens]` of it.
    mixed: Tensor,
    log_sums: Tensor,
    /// Between attention and MLP.
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
    /// x·Aᵀ of each layer.
    inner: [Option<Tensor>; 7],
}

impl Llama {
    /// Returns the output of a block and its backward, or `None` where only the graph knows how.
    pub(super) fn learn_block_on_gpu<'a>(
        &'a self,
        layer: usize,
        x: &Tensor,
        layout: &'a Sequences,
        lora: &'a LoraBatch,
    ) -> std::result::Result<Option<Computed<'a>>, ModelError> {
        let (block, rows, config) = (&self.blocks[layer], x.dim(0)?, &self.config);
        let known = matches!(x.dtype(), DType::F32 | DType::BF16) && has_kernels(config.head_dim);
        let (Some(gpu), true) = (Gpu::of(x.device()), known) else { return Ok(None) };
        let [attention_site, mlp_site] = self.norms_of(layer);
        let norms = [(attention_site, &block.attention_norm), (mlp_site, &block.mlp_norm)];
        let [first, second] = norms.map(|(site, weight)| norm_at(lora, site, weight, config.rms_norm_eps, rows));
        let (Some(first), Some(second)) = (first?, second?) else { return Ok(None) };
        let projections = [&block.query, &block.key, &block.value, &block.output, &block.gate, &block.up, &block.down];
        let Some(layers) = learning(projections, lora, rows)? else { return Ok(None) };
        let lengths: Vec<usize> = layout.spans.iter().map(|span| span.rows.len()).collect();
        let learning = Learning {
            whole: Whole::new(&gpu, &lengths, Sight::Before(config.sliding_window))?,
            gpu,
            heads: (config.heads, config.kv_heads, config.head_dim),
            angles: [&layout.angles.cos, &layout.angles.sin],
            norms: [first, second],
            layers,
        };
        let (output, kept) = learning.forward(&x.detach().contiguous()?)?;
        Ok(Some((
            output,
            Box::new(move |gradient| {
                let mut learnt = Vec::new();
                let for_input = learning.backward(&kept, &gradient.contiguous()?, &mut learnt)?;
                Ok((for_input, learnt))
            }),
        )))
    }
}

impl Learning<'_> {
    /// Returns heads turned by the angles of their rows, or turned back.
    fn turn(&self, x: &Tensor, back: bool) -> Result<Tensor> {
        let x = x.reshape((x.dim(0)?, (), self.heads.2))?;
        let [out] = self.gpu.alike([&x])?;
        rope(&self.gpu, &x, self.angles, back, &out)?;
        Ok(out)
    }

    fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let [out] = self.gpu.alike([gate])?;
        silu_mul(&self.gpu, gate, up, &out)?;
        Ok(out)
    }

    fn forward(&self, x: &Tensor) -> Result<(Tensor, Kept)> {
        let (gpu, (tokens, _)) = (&self.gpu, x.dims2()?);
        let (heads, kv_heads, head_dim) = self.heads;
        let forward = |layer: usize, x: &Tensor| self.layers[layer].forward_on(gpu, x);
        let normed = self.norms[0].forward_on(gpu, x)?;
        let [(query, of_query), (key, of_key), (value, of_value)] =
            [forward(0, &normed)?, forward(1, &normed)?, forward(2, &normed)?];
        let value = value.reshape((tokens, kv_heads, head_dim))?;
        let seen = [self.turn(&query, false)?, self.turn(&key, false)?, value];
        let mixed = gpu.tensor((tokens, heads * head_dim), x.dtype())?;
        let log_sums = gpu.tensor((heads, tokens), DType::F32)?;
        attend_whole(gpu, seen.each_ref(), &self.whole, &mixed, &log_sums)?;
        let (product, of_output) = forward(3, &mixed)?;
        let middle = (x + product)?;
        let normed = self.norms[1].forward_on(gpu, &middle)?;
        let [(gate, of_gate), (up, of_up)] = [forward(4, &normed)?, forward(5, &normed)?];
        let (product, of_down) = forward(6, &self.gated(&gate, &up)?)?;
        let output = (&middle + product)?;
        let inner = [of_query, of_key, of_value, of_output, of_gate, of_up, of_down];
        Ok((output, Kept { input: x.clone(), seen, mixed, log_sums, middle, gate, up, inner }))
    }

    fn backward(&self, kept: &Kept, gradient: &Tensor, learnt: &mut Vec<Learnt>) -> Result<Tensor> {
        let (gpu, Kept { input, seen, mixed, middle, gate, up, .. }) = (&self.gpu, kept);
        let mut backward = |layer: usize, x: &Tensor, gradient: &Tensor, beside: Option<Tensor>| {
            let inner = kept.inner[layer].as_ref();
            self.layers[layer].backward_on(gpu, (x, inner), (gradient, beside), learnt)
        };
        let for_gated = backward(6, &self.gated(gate, up)?, gradient, None)?;
        let [for_gate, for_up] = gpu.alike([gate, up])?;
        silu_mul_backward(gpu, gate, up, &for_gated, [&for_gate, &for_up])?;
        let normed = self.norms[1].forward_on(gpu, middle)?;
        let for_normed = backward(4, &normed, &for_gate, None)?;
        let for_normed = backward(5, &normed, &for_up, Some(for_normed))?;
        let for_middle = self.norms[1].backward_on(gpu, middle, (&for_normed, gradient), learnt)?;

        let mut backward = |layer: usize, x: &Tensor, gradient: &Tensor, beside: Option<Tensor>| {
            let inner = kept.inner[layer].as_ref();
            self.layers[layer].backward_on(gpu, (x, inner), (gradient, beside), learnt)
        };
        let for_mixed = backward(3, mixed, &for_middle, None)?;
        let outs = gpu.alike(seen.each_ref())?;
        let known = (mixed, &kept.log_sums, &for_mixed);
        attend_whole_backward(gpu, seen.each_ref(), &self.whole, known, outs.each_ref())?;
        let [for_query, for_key, for_value] = &outs;
        let (for_query, for_key) = (self.turn(for_query, true)?, self.turn(for_key, true)?);
        let rows = |x: &Tensor| x.flatten_from(1);
        let normed = self.norms[0].forward_on(gpu, input)?;
        let for_normed = backward(0, &normed, &rows(&for_query)?, None)?;
        let for_normed = backward(1, &normed, &rows(&for_key)?, Some(for_normed))?;
        let for_normed = backward(2, &normed, &rows(for_value)?, Some(for_normed))?;
        self.norms[0].backward_on(gpu, input, (&for_normed, &for_middle), learnt)
    }
}
