//! A block with a backward of its own, on the CPU: the same block as `pass_block`, on slices, without candle's graph.
//!
//! For what adapters change: linear layers and norms. Factors and biases of the attention learn in the graph, as does
//! what else is not known here (dropout, DoRA, other devices); a test compares the two.
//! Shapes: `[images·rows, …]`, in windows `[images·inner rows, …]`.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::Swin;
use crate::lora::LoraBatch;
use crate::model::layers::{learning, run_backward};
use crate::model::{Computed, ModelError};
use crate::ops::buffer::Buffer;
use crate::ops::cpu::threads::{add, gelu, gelu_backward, unit, unit_backward};
use crate::ops::cpu::{Groups, Scores, attend_groups, attend_groups_backward};
use crate::ops::learning::{Layer, LayerNorm, Learnt};
use crate::ops::{Arrangement, spread_table, with_slices};

/// What makes a row of four behind the last block of a stage.
struct Merge<'a> {
    arrangement: &'a Arrangement,
    reduction: Layer<'a>,
    norm: LayerNorm<'a>,
    /// What goes into it, and what its norm gets.
    input: Buffer,
    reduced: Buffer,
    inner: Buffer,
}

/// A block, and what its backward needs of its forward.
struct Learning<'a> {
    groups: Groups,
    images: usize,
    arrangement: Arc<Arrangement>,
    /// Factors, biases and mask of the attention.
    scores: [Tensor; 3],
    norms: [LayerNorm<'a>; 2],
    /// Query, key, value, output, up, down.
    layers: [Layer<'a>; 6],
    merge: Option<Merge<'a>>,
    input: Tensor,
    /// Before they are made 1 long.
    query: Buffer,
    key: Buffer,
    value: Buffer,
    mixed: Buffer,
    /// What attention adds, before its norm.
    attended: Buffer,
    /// Between attention and MLP.
    middle: Buffer,
    up: Buffer,
    /// What the MLP adds, before its norm.
    down: Buffer,
    /// x·Aᵀ of each layer.
    inner: [Buffer; 6],
}

impl Swin {
    /// Returns the output of a block and its backward, or `None` where only the graph knows how; a row of `lora` is an
    /// image.
    pub(super) fn learn_block<'a>(
        &'a self,
        layer: usize,
        x: &Tensor,
        images: usize,
        lora: &'a LoraBatch,
    ) -> std::result::Result<Option<Computed<'a>>, ModelError> {
        let Some((stage, at)) = self.place(layer) else { return Ok(None) };
        let (stage, block) = (&self.stages[stage], &self.stages[stage].blocks[at]);
        if !x.device().is_cpu() || x.dtype() != DType::F32 {
            return Ok(None);
        }
        let (scales, table) = block.positions.scores(images, lora)?;
        if scales.track_op() || table.track_op() {
            return Ok(None);
        }
        let [first, second] = block.norms.each_ref().map(|norm| norm.learning(lora, images));
        let layers = [&block.query, &block.key, &block.value, &block.output, &block.up, &block.down];
        let (Some(first), Some(second), Some(layers)) = (first?, second?, learning(layers, lora, images)?) else {
            return Ok(None);
        };
        let merge = match stage.merge.as_ref().filter(|_| at + 1 == stage.blocks.len()) {
            None => None,
            Some((arrangement, reduction, norm)) => {
                let (Some([reduction]), Some(norm)) =
                    (learning([reduction], lora, images)?, norm.learning(lora, images)?)
                else {
                    return Ok(None);
                };
                let (input, reduced, inner) = Default::default();
                Some(Merge { arrangement, reduction, norm, input, reduced, inner })
            }
        };
        let mask = block.windows.mask_on(&Device::Cpu)?;
        let mask = mask.map_or_else(|| Tensor::zeros(0, DType::F32, &Device::Cpu), Ok)?;
        let mut learning = Learning {
            groups: stage.groups,
            images,
            arrangement: Arc::clone(&block.windows.arrangement),
            scores: [scales, spread_table(&table, &block.positions.index)?, mask],
            norms: [first, second],
            layers,
            merge,
            input: x.detach(),
            query: Buffer::default(),
            key: Buffer::default(),
            value: Buffer::default(),
            mixed: Buffer::default(),
            attended: Buffer::default(),
            middle: Buffer::default(),
            up: Buffer::default(),
            down: Buffer::default(),
            inner: Default::default(),
        };
        let (output, width) = rayon::scope(|_| with_slices([&x.detach()], |[x]| learning.forward(x)))?;
        let shape = (output.len() / width, width);
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
    fn width(&self) -> usize {
        self.groups.heads * self.groups.dim
    }

    /// Lays rows out in windows, or `back`.
    fn laid(&self, x: Buffer, back: bool) -> Result<Buffer> {
        if self.arrangement.stays() { Ok(x) } else { self.arrangement.laid_out(&x, self.width(), back) }
    }

    /// Calls `work` with what becomes of the products of queries and keys.
    fn with_scores(&self, work: impl FnOnce(Scores<'_>) -> Result<()>) -> Result<()> {
        let [scales, bias, mask] = &self.scores;
        with_slices([scales, bias, mask], |[scales, bias, mask]| work(Scores { scales, bias, mask }))
    }

    /// Queries or keys, 1 long.
    fn units(&self, vectors: &[f32]) -> Buffer {
        let mut out = Buffer::new(vectors.len());
        unit(vectors, self.groups.dim, &mut out);
        out
    }

    fn activated(&self) -> Buffer {
        let mut out = Buffer::new(self.up.len());
        gelu(&self.up, &mut out);
        out
    }

    /// Returns the output and its width.
    fn forward(&mut self, x: &[f32]) -> Result<(Buffer, usize)> {
        let (layers, width, rows) = (self.layers, self.width(), x.len() / self.width());
        let windows = self.arrangement.laid_out(x, width, false)?;
        let inside = windows.len() / width;
        let [query, key, value] = [0, 1, 2].map(|layer| layers[layer].forward(&windows, inside));
        let (query, key, value) = (query?, key?, value?);
        drop(windows);
        let mut mixed = Buffer::new(query.0.len());
        let [unit_query, unit_key] = [&query.0, &key.0].map(|vectors| self.units(vectors));
        self.with_scores(|scores| {
            Ok(attend_groups(self.groups, [&unit_query, &unit_key, &value.0], scores, &mut mixed)?)
        })?;
        drop((unit_query, unit_key));
        let attended = layers[3].forward(&mixed, inside)?;
        self.attended = self.laid(attended.0, true)?;
        let mut middle = self.norms[0].forward(&self.attended)?;
        add(&mut middle, x);
        let up = layers[4].forward(&middle, rows)?;
        self.up = up.0;
        let down = layers[5].forward(&self.activated(), rows)?;
        let mut output = self.norms[1].forward(&down.0)?;
        add(&mut output, &middle);
        self.inner = [query.1, key.1, value.1, attended.1, up.1, down.1];
        (self.query, self.key, self.value, self.mixed) = (query.0, key.0, value.0, mixed);
        (self.middle, self.down) = (middle, down.0);
        match &mut self.merge {
            None => Ok((output, width)),
            Some(merge) => merge.forward(output, width, self.images),
        }
    }

    fn backward(&self, x: &[f32], gradient: &[f32], learnt: &mut Vec<Learnt>) -> Result<Buffer> {
        let (width, rows) = (self.width(), x.len() / self.width());
        let merged = match &self.merge {
            None => None,
            Some(merge) => Some(merge.backward(gradient, width, learnt)?),
        };
        let gradient = merged.as_deref().unwrap_or(gradient);
        let for_down = self.norms[1].backward(&self.down, gradient, learnt)?;
        let mut backward = |layer: usize, x: &[f32], gradient: &[f32], rows: usize| {
            self.layers[layer].backward((x, &self.inner[layer]), gradient, rows, learnt)
        };
        let for_active = backward(5, &self.activated(), &for_down, rows)?;
        let mut for_up = Buffer::new(self.up.len());
        gelu_backward(&self.up, &for_active, &mut for_up);
        drop(for_active);
        let mut for_middle = backward(4, &self.middle, &for_up, rows)?;
        drop(for_up);
        add(&mut for_middle, gradient);

        let for_attended = self.laid(self.norms[0].backward(&self.attended, &for_middle, learnt)?, false)?;
        let inside = for_attended.len() / width;
        let mut backward = |layer: usize, x: &[f32], gradient: &[f32]| {
            self.layers[layer].backward((x, &self.inner[layer]), gradient, inside, learnt)
        };
        let for_mixed = backward(3, &self.mixed, &for_attended)?;
        let [query, key] = [&self.query, &self.key].map(|vectors| self.units(vectors));
        let [mut for_query, mut for_key, mut for_value] = [(); 3].map(|()| Buffer::new(query.len()));
        self.with_scores(|scores| {
            let outs = [&mut for_query[..], &mut for_key, &mut for_value];
            Ok(attend_groups_backward(self.groups, [&query, &key, &self.value], scores, &for_mixed, outs, None)?)
        })?;
        // The units have done their part: their room is that of the gradients of what they were made of.
        let (mut for_raw_query, mut for_raw_key) = (query, key);
        unit_backward(&self.query, self.groups.dim, &for_query, &mut for_raw_query);
        unit_backward(&self.key, self.groups.dim, &for_key, &mut for_raw_key);
        let windows = self.arrangement.laid_out(x, width, false)?;
        let mut for_windows = backward(0, &windows, &for_raw_query)?;
        add(&mut for_windows, &backward(1, &windows, &for_raw_key)?);
        add(&mut for_windows, &backward(2, &windows, &for_value)?);
        let mut for_x = self.laid(for_windows, true)?;
        add(&mut for_x, &for_middle);
        Ok(for_x)
    }
}

impl Merge<'_> {
    /// Returns the output and its width.
    fn forward(&mut self, x: Buffer, width: usize, images: usize) -> Result<(Buffer, usize)> {
        let rows = images * self.arrangement.rows() / 4;
        let fours = self.arrangement.laid_out(&x, width, false)?;
        (self.reduced, self.inner) = self.reduction.forward(&fours, rows)?;
        self.input = x;
        Ok((self.norm.forward(&self.reduced)?, self.reduced.len() / rows.max(1)))
    }

    fn backward(&self, gradient: &[f32], width: usize, learnt: &mut Vec<Learnt>) -> Result<Buffer> {
        let for_reduced = self.norm.backward(&self.reduced, gradient, learnt)?;
        let fours = self.arrangement.laid_out(&self.input, width, false)?;
        let rows = fours.len() / (4 * width);
        let for_fours = self.reduction.backward((&fours, &self.inner), &for_reduced, rows, learnt)?;
        self.arrangement.laid_out(&for_fours, width, true)
    }
}
