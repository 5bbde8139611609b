//! What passes over images without gradients share on the CPU: slices that are used again, norms and MLPs on them.
//!
//! The same mathematics as the blocks of `vit.rs` and `swin.rs`, whose tests compare the two. An image's result depends on
//! that image and its adapter only.
//! Shapes: `[rows, width]`, packed.

use candle_core::{DType, Device, Result, Tensor};

use super::Norm;
use crate::lora::LoraBatch;
use crate::model::layers::{Projection, project};
use crate::ops::cpu::{Prepared, threads};
use crate::ops::with_slices;

/// Buffers of a pass. A buffer holds anything until it is written.
#[derive(Default)]
pub(in crate::model) struct Scratch {
    /// What goes into a product, and what comes back to the stream.
    pub(in crate::model) normed: Vec<f32>,
    pub(in crate::model) back: Vec<f32>,
    pub(in crate::model) query: Vec<f32>,
    pub(in crate::model) key: Vec<f32>,
    pub(in crate::model) value: Vec<f32>,
    pub(in crate::model) mixed: Vec<f32>,
    /// Inside of an MLP.
    inner: [Vec<f32>; 2],
    pub(in crate::model) prepared: Prepared,
}

impl Scratch {
    /// Writes down(gelu(up(x))) to `back`; `x` is what `normed` holds, or else itself.
    pub(in crate::model) fn mlp(
        &mut self,
        [up, down]: [&Projection; 2],
        x: Option<&[f32]>,
        (rows, lora): (usize, &LoraBatch),
    ) -> Result<()> {
        let ([inner, active], lora) = (&mut self.inner, lora.open());
        project(&lora, (x.unwrap_or(&self.normed), rows), [(up, inner)], &mut self.prepared)?;
        active.resize(inner.len(), 0.0);
        threads::gelu(inner, active);
        project(&lora, (active, rows), [(down, &mut self.back)], &mut self.prepared)
    }
}

impl Norm {
    /// Normalises rows into a buffer.
    pub(in crate::model) fn write(&self, x: &[f32], lora: &LoraBatch, out: &mut Vec<f32>) -> Result<()> {
        out.resize(x.len(), 0.0);
        lora.layer_norm_rows(self.site, x, (&self.weight, &self.bias), self.eps, out)
    }
}

/// Returns whether passes of this model run on slices.
pub(in crate::model) fn on_slices(device: &Device, dtype: DType) -> bool {
    device.is_cpu() && dtype == DType::F32
}

/// Lets `pass` turn rows `[rows, width]` into those of the result, `[rows, width]` of any size, on the threads of the pool.
pub(in crate::model) fn on_rows(
    x: &Tensor,
    pass: impl FnOnce(&mut Vec<f32>) -> Result<(usize, usize)> + Send,
) -> Result<Tensor> {
    let mut rows = with_slices([x], |[x]| Ok(x.to_vec()))?;
    let shape = rayon::scope(|_| pass(&mut rows))?;
    Tensor::from_vec(rows, shape, &Device::Cpu)
}
