//! A block with a backward of its own, on the CPU: the same block as `pass_block`, on slices, without candle's graph.
//!
//! On a GPU `gpu_learning` does the same. What is not known here (dropout, DoRA, other formats) goes through the graph;
//! a test compares the two.
//! Shapes: `[images·rows, …]`; behind the attention of the last block class tokens alone, `[images, …]`.

use candle_core::{DType, Device, Result, Tensor};

use super::serving::{keep_class_tokens, scales, scores};
use super::{Part, Vit};
use crate::lora::LoraBatch;
use crate::model::layers::{learning, run_backward};
use crate::model::{Computed, ModelError};
use crate::ops::buffer::Buffer;
use crate::ops::cpu::threads::{add, gelu, gelu_backward};
use crate::ops::cpu::{Groups, attend_groups, attend_groups_backward};
use crate::ops::learning::{Layer, LayerNorm, Learnt};
use crate::ops::with_slices;

/// A block, and what its backward needs of its forward.
struct Learning<'a> {
    groups: Groups,
    images: usize,
    wanted: Part,
    norms: [LayerNorm<'a>; 2],
    /// Query, key, value, output, up, down.
    layers: [Layer<'a>; 6],
    input: Tensor,
    query: Buffer,
    key: Buffer,
    value: Buffer,
    mixed: Buffer,
    /// Between attention and MLP.
    middle: Buffer,
    up: Buffer,
    /// x·Aᵀ of each layer.
    inner: [Buffer; 6],
}

impl Vit {
    /// Returns the output of a block and its backward, or `None` where only the graph knows how; a row of `lora` is an
    /// image.
    pub(super) fn learn_block<'a>(
        &'a self,
        layer: usize,
        x: &Tensor,
        images: usize,
        lora: &'a LoraBatch,
    ) -> std::result::Result<Option<Computed<'a>>, ModelError> {
        #[cfg(feature = "cuda")]
        if let Some(computed) = self.learn_block_on_gpu(layer, x, images, lora)? {
            return Ok(Some(computed));
        }
        let block = &self.blocks[layer];
        if !x.device().is_cpu() || x.dtype() != DType::F32 {
            return Ok(None);
        }
        let [first, second] = [&block.attention_norm, &block.mlp_norm].map(|norm| norm.learning(lora, images));
        let layers = [&block.query, &block.key, &block.value, &block.output, &block.up, &block.down];
        let (Some(first), Some(second), Some(layers)) = (first?, second?, learning(layers, lora, images)?) else {
            return Ok(None);
        };
        let mut learning = Learning {
            groups: self.groups(),
            images,
            wanted: self.wanted(layer),
            norms: [first, second],
            layers,
            input: x.detach(),
            query: Buffer::default(),
            key: Buffer::default(),
            value: Buffer::default(),
            mixed: Buffer::default(),
            middle: Buffer::default(),
            up: Buffer::default(),
            inner: Default::default(),
        };
        let output = rayon::scope(|_| with_slices([&x.detach()], |[x]| learning.forward(x)))?;
        let shape = (output.len() / x.dim(1)?, x.dim(1)?);
        let output = Tensor::from_vec(output.into_vec(), shape, &Device::Cpu)?;
        Ok(Some((
            output,
            Box::new(move |gradient| {
                run_backward(&learning.input, gradient, |x, gradient, learnt| learning.backward(x, gradient, learnt))
            }),
        )))
    }
}

impl Learning<'_> {
    /// Rows behind the attention.
    fn rows(&self) -> usize {
        match self.wanted {
            Part::All => self.images * self.groups.rows,
            Part::Class => self.images,
        }
    }

    /// Keeps what is wanted behind the attention.
    fn kept(&self, mut rows: Buffer) -> Buffer {
        if self.wanted == Part::Class {
            let kept = keep_class_tokens(&mut rows, self.groups);
            rows.truncate(kept);
        }
        rows
    }

    /// Puts the gradients of what was kept where they belong.
    fn put_back(&self, gradient: Buffer) -> Buffer {
        if self.wanted == Part::All {
            return gradient;
        }
        let width = self.groups.heads * self.groups.dim;
        let mut all = Buffer::zeros(self.images * self.groups.rows * width);
        let images = all.chunks_exact_mut(self.groups.rows * width).zip(gradient.chunks_exact(width));
        images.for_each(|(all, class)| all[..width].copy_from_slice(class));
        all
    }

    fn activated(&self) -> Buffer {
        let mut out = Buffer::new(self.up.len());
        gelu(&self.up, &mut out);
        out
    }

    fn forward(&mut self, x: &[f32]) -> Result<Buffer> {
        let (layers, all) = (self.layers, self.images * self.groups.rows);
        let normed = self.norms[0].forward(x)?;
        let [query, key, value] = [0, 1, 2].map(|layer| layers[layer].forward(&normed, all));
        let (query, key, value) = (query?, key?, value?);
        drop(normed);
        let mut mixed = Buffer::new(query.0.len());
        attend_groups(self.groups, [&query.0, &key.0, &value.0], scores(&scales(self.groups)), &mut mixed)?;
        let (mixed, rows) = (self.kept(mixed), self.rows());
        let mut middle = layers[3].forward(&mixed, rows)?;
        match self.wanted {
            Part::All => add(&mut middle.0, x),
            Part::Class => add(&mut middle.0, &self.kept(Buffer::copy(x))),
        }
        let up = layers[4].forward(&self.norms[1].forward(&middle.0)?, rows)?;
        self.up = up.0;
        let (mut output, down) = layers[5].forward(&self.activated(), rows)?;
        add(&mut output, &middle.0);
        self.inner = [query.1, key.1, value.1, middle.1, up.1, down];
        (self.query, self.key, self.value, self.mixed, self.middle) = (query.0, key.0, value.0, mixed, middle.0);
        Ok(output)
    }

    fn backward(&self, x: &[f32], gradient: &[f32], learnt: &mut Vec<Learnt>) -> Result<Buffer> {
        let mut backward = |layer: usize, x: &[f32], gradient: &[f32], rows: usize| {
            self.layers[layer].backward((x, &self.inner[layer]), gradient, rows, learnt)
        };
        let rows = self.rows();
        let for_active = backward(5, &self.activated(), gradient, rows)?;
        let mut for_up = Buffer::new(self.up.len());
        gelu_backward(&self.up, &for_active, &mut for_up);
        drop(for_active);
        let for_normed = backward(4, &self.norms[1].forward(&self.middle)?, &for_up, rows)?;
        drop(for_up);
        let mut for_middle = self.norms[1].backward(&self.middle, &for_normed, learnt)?;
        add(&mut for_middle, gradient);

        let mut backward = |layer: usize, x: &[f32], gradient: &[f32], rows: usize| {
            self.layers[layer].backward((x, &self.inner[layer]), gradient, rows, learnt)
        };
        let for_mixed = self.put_back(backward(3, &self.mixed, &for_middle, rows)?);
        let [mut for_query, mut for_key, mut for_value] = [(); 3].map(|()| Buffer::new(self.query.len()));
        attend_groups_backward(
            self.groups,
            [&self.query, &self.key, &self.value],
            scores(&scales(self.groups)),
            &for_mixed,
            [&mut for_query, &mut for_key, &mut for_value],
            None,
        )?;
        let (normed, all) = (self.norms[0].forward(x)?, self.images * self.groups.rows);
        let mut for_normed = backward(0, &normed, &for_query, all)?;
        add(&mut for_normed, &backward(1, &normed, &for_key, all)?);
        add(&mut for_normed, &backward(2, &normed, &for_value, all)?);
        let mut for_x = self.norms[0].backward(x, &for_normed, learnt)?;
        add(&mut for_x, &self.put_back(for_middle));
        Ok(for_x)
    }
}
