//! A block with a backward of its own, on the CPU: the same block as `pass_block`, on slices, without candle's graph.
//!
//! The graph makes a tensor of zeros and a sum of every gradient; here each is written once. For what fine-tuning is
//! mostly made of: layers that an adapter changes by a low rank, or that learn whole. On a GPU `gpu_learning` does the
//! same. What is not known here (dropout, DoRA, other formats) goes through the graph; a test compares the two.
//! Shapes: `[tokens, …]`, packed; every segment is a whole sequence.

use candle_core::{DType, Device, Tensor};

use super::sites::heads;
use super::{EMBEDDING, Llama};
use crate::lora::{Change, LoraBatch, SiteId};
use crate::model::layers::{learning, run_backward};
use crate::model::{Computed, Ends, ModelError, Sequences};
use crate::ops::buffer::Buffer;
use crate::ops::cpu::Heads;
use crate::ops::cpu::threads::{add, gated, gated_backward, rope};
use crate::ops::learning::{Layer, Learnt, Norm};
use crate::ops::{Head, attend_whole, attend_whole_backward, with_slices};

/// A block, and what its backward needs of its forward.
struct Learning<'a> {
    heads: Heads,
    lengths: Vec<usize>,
    layout: &'a Sequences,
    norms: [Norm<'a>; 2],
    /// Query, key, value, output, gate, up, down.
    layers: [Layer<'a>; 7],
    rows: usize,
    input: Tensor,
    /// After rotation.
    query: Buffer,
    key: Buffer,
    value: Buffer,
    mixed: Buffer,
    /// Between attention and MLP.
    middle: Buffer,
    gate: Buffer,
    up: Buffer,
    /// x·Aᵀ of each layer.
    inner: [Buffer; 7],
}

impl Llama {
    /// Returns the output of a block and its backward, or `None` where only the graph knows how.
    pub(super) fn learn_block<'a>(
        &'a self,
        layer: usize,
        x: &Tensor,
        layout: &'a Sequences,
        lora: &'a LoraBatch,
    ) -> Result<Option<Computed<'a>>, ModelError> {
        #[cfg(feature = "cuda")]
        if let Some(computed) = self.learn_block_on_gpu(layer, x, layout, lora)? {
            return Ok(Some(computed));
        }
        let (block, rows) = (&self.blocks[layer], x.dim(0)?);
        if !self.device.is_cpu() || x.dtype() != DType::F32 {
            return Ok(None);
        }
        let [attention_site, mlp_site] = self.norms_of(layer);
        let norms = [(attention_site, &block.attention_norm), (mlp_site, &block.mlp_norm)];
        let eps = self.config.rms_norm_eps;
        let [first, second] = norms.map(|(site, weight)| norm_at(lora, site, weight, eps, rows));
        let (Some(first), Some(second)) = (first?, second?) else { return Ok(None) };
        if [first.weight, second.weight].iter().any(|weight| weight.dtype() != DType::F32) {
            return Ok(None);
        }
        let projections = [&block.query, &block.key, &block.value, &block.output, &block.gate, &block.up, &block.down];
        let Some(layers) = learning(projections, lora, rows)? else { return Ok(None) };
        let mut learning = Learning {
            heads: heads(&self.config),
            lengths: layout.spans.iter().map(|span| span.rows.len()).collect(),
            layout,
            norms: [first, second],
            layers,
            rows,
            input: x.detach(),
            query: Buffer::default(),
            key: Buffer::default(),
            value: Buffer::default(),
            mixed: Buffer::default(),
            middle: Buffer::default(),
            gate: Buffer::default(),
            up: Buffer::default(),
            inner: Default::default(),
        };
        let output = rayon::scope(|_| with_slices([&x.detach()], |[x]| learning.forward(x)))?;
        let output = Tensor::from_vec(output.into_vec(), x.shape(), &Device::Cpu)?;
        Ok(Some((
            output,
            Box::new(move |gradient| {
                run_backward(&learning.input, gradient, |x, gradient, learnt| learning.backward(x, gradient, learnt))
            }),
        )))
    }
}

impl Llama {
    /// Returns the ends that are known here: on the CPU, a head that is frozen, adapted or learns whole.
    pub(super) fn ends<'a>(&'a self, lora: &'a LoraBatch, rows: usize) -> candle_core::Result<Ends<'a>> {
        if !self.device.is_cpu() {
            return Ok(Ends::default());
        }
        let embedding = match lora.touching(EMBEDDING, rows)?.as_slice() {
            [(run, Change::Replaced { weight, .. })] if run.rows.len() == rows => Some(weight),
            _ => None,
        };
        let norm = norm_at(lora, self.last_norm(), &self.norm, self.config.rms_norm_eps, rows)?;
        let norm = norm.filter(|norm| norm.weight.dtype() == DType::F32 && self.info.labels.is_none());
        let layer = learning([&self.head], lora, rows)?;
        let head = norm.zip(layer).map(|(norm, [layer])| Head::new(norm, layer));
        Ok(Ends { head, embedding })
    }
}

/// Returns a norm as a block's own backward takes it; none where only the graph knows how.
pub(super) fn norm_at<'a>(
    lora: &'a LoraBatch,
    site: SiteId,
    weight: &'a Tensor,
    eps: f64,
    rows: usize,
) -> candle_core::Result<Option<Norm<'a>>> {
    let eps = eps as f32;
    Ok(match lora.touching(site, rows)?.as_slice() {
        [] => Some(Norm { weight, learns: false, eps }),
        [(run, Change::Replaced { weight, .. })] if run.rows.len() == rows => Some(Norm { weight, learns: true, eps }),
        _ => None,
    })
}

impl Learning<'_> {
    /// Rotates heads by the angles of their rows; back with a `direction` of -1.
    fn turn(&self, x: &mut [f32], direction: f32) -> candle_core::Result<()> {
        with_slices([&self.layout.angles.cos, &self.layout.angles.sin], |[cos, sin]| {
            rope(x, (cos, sin), self.rows, direction);
            Ok(())
        })
    }

    fn gated(&self) -> Buffer {
        let mut out = Buffer::new(self.gate.len());
        gated(&self.gate, &self.up, &mut out);
        out
    }

    fn forward(&mut self, x: &[f32]) -> candle_core::Result<Buffer> {
        let (layers, rows) = (self.layers, self.rows);
        let forward = |layer: usize, x: &[f32]| layers[layer].forward(x, rows);
        let normed = self.norms[0].forward(x)?;
        let [mut query, mut key, value] = [forward(0, &normed)?, forward(1, &normed)?, forward(2, &normed)?];
        self.turn(&mut query.0, 1.0)?;
        self.turn(&mut key.0, 1.0)?;
        let mixed = attend_whole(self.heads, &self.lengths, [&query.0, &key.0, &value.0]);
        let mut middle = forward(3, &mixed)?;
        add(&mut middle.0, x);
        let normed = self.norms[1].forward(&middle.0)?;
        let [gate, up] = [forward(4, &normed)?, forward(5, &normed)?];
        (self.gate, self.up) = (gate.0, up.0);
        let (mut output, inner) = forward(6, &self.gated())?;
        add(&mut output, &middle.0);
        self.inner = [query.1, key.1, value.1, middle.1, gate.1, up.1, inner];
        (self.query, self.key, self.value, self.mixed) = (query.0, key.0, value.0, mixed);
        self.middle = middle.0;
        Ok(output)
    }

    fn backward(&self, x: &[f32], gradient: &[f32], learnt: &mut Vec<Learnt>) -> candle_core::Result<Buffer> {
        let mut backward = |layer: usize, x: &[f32], gradient: &[f32]| {
            self.layers[layer].backward((x, &self.inner[layer]), gradient, self.rows, learnt)
        };
        let for_gated = backward(6, &self.gated(), gradient)?;
        let [mut for_gate, mut for_up] = [(); 2].map(|()| Buffer::new(self.gate.len()));
        gated_backward(&self.gate, &self.up, &for_gated, &mut for_gate, &mut for_up);
        let normed = self.norms[1].forward(&self.middle)?;
        let mut for_normed = backward(4, &normed, &for_gate)?;
        add(&mut for_normed, &backward(5, &normed, &for_up)?);
        let mut for_middle = self.norms[1].backward(&self.middle, &for_normed, learnt)?;
        add(&mut for_middle, gradient);

        let mut backward = |layer: usize, x: &[f32], gradient: &[f32]| {
            self.layers[layer].backward((x, &self.inner[layer]), gradient, self.rows, learnt)
        };
        let for_mixed = backward(3, &self.mixed, &for_middle)?;
        let seen = [&self.query[..], &self.key, &self.value];
        let [mut for_query, mut for_key, for_value] =
            attend_whole_backward(self.heads, &self.lengths, seen, &for_mixed);
        self.turn(&mut for_query, -1.0)?;
        self.turn(&mut for_key, -1.0)?;
        let normed = self.norms[0].forward(x)?;
        let mut for_normed = backward(0, &normed, &for_query)?;
        add(&mut for_normed, &backward(1, &normed, &for_key)?);
        add(&mut for_normed, &backward(2, &normed, &for_value)?);
        let mut for_x = self.norms[0].backward(x, &for_normed, learnt)?;
        add(&mut for_x, &for_middle);
        Ok(for_x)
    }
}
