//! A block with a backward of its own, on a GPU: the same block as `pass_block`, by kernels, without candle's graph.
//!
//! What is not known here (dropout, DoRA, other head sizes) goes through the graph; a test compares the two.
//! Shapes: `[images·rows, …]`; behind the attention of the last block class tokens alone, `[images, …]`. Numbers are those
//! of the model, f32 or bf16.

use candle_core::{DType, Result, Tensor};

use super::{Part, Vit};
use crate::lora::LoraBatch;
use crate::model::layers::learning;
use crate::model::{Computed, ModelError};
use crate::ops::Groups;
use crate::ops::cuda::{Gpu, Sight, Whole, attend_whole, attend_whole_backward, gelu, gelu_backward, has_kernels};
use crate::ops::learning::{Layer, LayerNorm, Learnt};

/// A block in training.
struct Learning<'a> {
    gpu: Gpu,
    groups: Groups,
    whole: Whole,
    wanted: Part,
    norms: [LayerNorm<'a>; 2],
    /// Query, key, value, output, up, down.
    layers: [Layer<'a>; 6],
}

/// What the backward needs of the forward.
struct Kept {
    input: Tensor,
    /// Queries, keys and values, `[images·rows, heads, dim]`.
    seen: [Tensor; 3],
    /// What attention mixed, f32 `[heads, images·rows]` of it, and what is kept of it.
    mixed: Tensor,
    log_sums: Tensor,
    kept: Tensor,
    /// Between attention and MLP.
    middle: Tensor,
    up: Tensor,
    /// x·Aᵀ of each layer.
    inner: [Option<Tensor>; 6],
}

impl Vit {
    /// Returns the output of a block and its backward, or `None` where only the graph knows how; a row of `lora` is an
    /// image.
    pub(super) fn learn_block_on_gpu<'a>(
        &'a self,
        layer: usize,
        x: &Tensor,
        images: usize,
        lora: &'a LoraBatch,
    ) -> std::result::Result<Option<Computed<'a>>, ModelError> {
        let (block, groups) = (&self.blocks[layer], self.groups());
        let known = matches!(x.dtype(), DType::F32 | DType::BF16) && has_kernels(groups.dim);
        let (Some(gpu), true) = (Gpu::of(x.device()), known) else { return Ok(None) };
        let [first, second] = [&block.attention_norm, &block.mlp_norm].map(|norm| norm.learning(lora, images));
        let layers = [&block.query, &block.key, &block.value, &block.output, &block.up, &block.down];
        let (Some(first), Some(second), Some(layers)) = (first?, second?, learning(layers, lora, images)?) else {
            return Ok(None);
        };
        let learning = Learning {
            whole: Whole::new(&gpu, &vec![groups.rows; images], Sight::All)?,
            gpu,
            groups,
            wanted: self.wanted(layer),
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
    /// Keeps what is wanted behind the attention.
    fn kept(&self, rows: &Tensor) -> Result<Tensor> {
        match self.wanted {
            Part::All => Ok(rows.clone()),
            Part::Class => {
                rows.reshape(((), self.groups.rows, rows.dim(1)?))?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
            }
        }
    }

    /// Puts the gradients of what was kept where they belong.
    fn put_back(&self, gradient: Tensor) -> Result<Tensor> {
        match self.wanted {
            Part::All => Ok(gradient),
            Part::Class => {
                gradient.unsqueeze(1)?.pad_with_zeros(1, 0, self.groups.rows - 1)?.flatten(0, 1)?.contiguous()
            }
        }
    }

    fn activated(&self, up: &Tensor) -> Result<Tensor> {
        let [out] = self.gpu.alike([up])?;
        gelu(&self.gpu, up, &out)?;
        Ok(out)
    }

    fn forward(&self, x: &Tensor) -> Result<(Tensor, Kept)> {
        let (gpu, Groups { heads, dim, .. }) = (&self.gpu, self.groups);
        let forward = |layer: usize, x: &Tensor| self.layers[layer].forward_on(gpu, x);
        let normed = self.norms[0].forward_on(gpu, x)?;
        let [(q, of_query), (k, of_key), (v, of_value)] =
            [forward(0, &normed)?, forward(1, &normed)?, forward(2, &normed)?];
        drop(normed);
        let by_head = |x: &Tensor| x.reshape(((), heads, dim));
        let seen = [by_head(&q)?, by_head(&k)?, by_head(&v)?];
        let [mixed] = gpu.alike([&q])?;
        let log_sums = gpu.tensor((heads, x.dim(0)?), DType::F32)?;
        attend_whole(gpu, seen.each_ref(), &self.whole, &mixed, &log_sums)?;
        let kept = self.kept(&mixed)?;
        let (product, of_output) = forward(3, &kept)?;
        let middle = (self.kept(x)? + product)?;
        let (up, of_up) = forward(4, &self.norms[1].forward_on(gpu, &middle)?)?;
        let (product, of_down) = forward(5, &self.activated(&up)?)?;
        let output = (&middle + product)?;
        let inner = [of_query, of_key, of_value, of_output, of_up, of_down];
        Ok((output, Kept { input: x.clone(), seen, mixed, log_sums, kept, middle, up, inner }))
    }

    fn backward(&self, forward: &Kept, gradient: &Tensor, learnt: &mut Vec<Learnt>) -> Result<Tensor> {
        let (gpu, Kept { input, seen, mixed, kept, middle, up, .. }) = (&self.gpu, forward);
        let mut backward = |layer: usize, x: &Tensor, gradient: &Tensor, beside: Option<Tensor>| {
            let inner = forward.inner[layer].as_ref();
            self.layers[layer].backward_on(gpu, (x, inner), (gradient, beside), learnt)
        };
        let for_active = backward(5, &self.activated(up)?, gradient, None)?;
        let [for_up] = gpu.alike([up])?;
        gelu_backward(gpu, up, &for_active, &for_up)?;
        let for_normed = backward(4, &self.norms[1].forward_on(gpu, middle)?, &for_up, None)?;
        let for_middle = self.norms[1].backward_on(gpu, middle, (&for_normed, gradient), learnt)?;

        let mut backward = |layer: usize, x: &Tensor, gradient: &Tensor, beside: Option<Tensor>| {
            let inner = forward.inner[layer].as_ref();
            self.layers[layer].backward_on(gpu, (x, inner), (gradient, beside), learnt)
        };
        let for_mixed = self.put_back(backward(3, kept, &for_middle, None)?)?;
        let outs = gpu.alike(seen.each_ref())?;
        let known = (mixed, &forward.log_sums, &for_mixed);
        attend_whole_backward(gpu, seen.each_ref(), &self.whole, known, outs.each_ref())?;
        let normed = self.norms[0].forward_on(gpu, input)?;
        let mut for_normed = None;
        for (layer, gradient) in outs.iter().enumerate() {
            for_normed = Some(backward(layer, &normed, &gradient.flatten_from(1)?, for_normed)?);
        }
        let Some(for_normed) = for_normed else { candle_core::bail!("an attention without queries") };
        self.norms[0].backward_on(gpu, input, (&for_normed, &self.put_back(for_middle)?), learnt)
    }
}
