//! What goes into the first block: patches with the class token before them, plus positions.
//!
//! One operation with gradients of patches, class token and positions; images of other adapters are computed apart.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::{CLASS, POSITIONS, Vit};
use crate::lora::LoraBatch;
use crate::model::vision;
use crate::ops::cpu::steps;
use crate::ops::{Value, explicit, with_slices};

impl Vit {
    /// Returns the input of the first block, `[images·rows, hidden]`; a row of `lora` is an image.
    pub(super) fn embed_with(&self, pixels: &Tensor, lora: &LoraBatch) -> Result<Tensor> {
        let (images, patches) = (pixels.dim(0)?, self.config.rows() - 1);
        let rows = vision::patches(pixels, &self.config.images)?;
        let rows = self.patches.forward(&rows, &lora.spread(patches))?;
        let mut parts = Vec::new();
        for (images, adapter) in lora.pieces(&[CLASS, POSITIONS], images)? {
            let own = |site, base: &Tensor| {
                let changed = adapter.and_then(|adapter| adapter.parameter(site));
                changed.map_or_else(|| Ok(base.clone()), |own| own.to_dtype(self.dtype))
            };
            let (class, positions) = (own(CLASS, &self.class)?, own(POSITIONS, &self.positions)?);
            let rows = rows.narrow(0, images.start * patches, images.len() * patches)?;
            parts.push(assemble(&rows, &class, &positions)?);
        }
        if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 0) }
    }
}

/// Puts `class` before the patches of each image and adds `positions`: `patches` is `[images·(rows-1), hidden]`, `class`
/// `[1, 1, hidden]`, `positions` `[1, rows, hidden]`; the result is `[images·rows, hidden]`.
fn assemble(patches: &Tensor, class: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (_, rows, hidden) = positions.dims3()?;
    let count = patches.dim(0)?;
    if class.dims() != [1, 1, hidden] || rows < 2 || !count.is_multiple_of(rows - 1) || patches.dim(1)? != hidden {
        bail!("{:?} patches, a class token {:?}, positions {:?}", patches.shape(), class.shape(), positions.shape());
    }
    let images = count / (rows - 1);
    let plain = |tensor: &&Tensor| tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32;
    if ![patches, class, positions].iter().all(plain) {
        let classes = class.broadcast_as((images, 1, hidden))?;
        let rows_of = Tensor::cat(&[&classes.contiguous()?, &patches.reshape((images, rows - 1, hidden))?], 1)?;
        return rows_of.broadcast_add(positions)?.reshape((images * rows, hidden));
    }
    let mut out = vec![0.0; images * rows * hidden];
    with_slices([&patches.detach(), &class.detach(), &positions.detach()], |[patches, class, positions]| {
        let size = (rows - 1) * hidden;
        out.par_chunks_mut(rows * hidden).zip(patches.par_chunks(size)).for_each(|(out, patches)| {
            out[..hidden].copy_from_slice(class);
            out[hidden..].copy_from_slice(patches);
            steps::add(out, positions);
        });
        Ok(())
    })?;
    let learns = [class, positions].map(Tensor::track_op);
    explicit(&[patches, class, positions], Value::Owned(out, (images * rows, hidden).into()), move |gradient| {
        let gradient = gradient.reshape((images, rows, hidden))?;
        let for_patches = gradient.narrow(1, 1, rows - 1)?.contiguous()?.reshape((images * (rows - 1), hidden))?;
        let mut sum = vec![0.0; rows * hidden];
        if learns != [false; 2] {
            with_slices([&gradient], |[gradient]| {
                gradient.chunks_exact(rows * hidden).for_each(|image| steps::add(&mut sum, image));
                Ok(())
            })?;
        }
        let sum = Tensor::from_vec(sum, (1, rows, hidden), &Device::Cpu)?;
        let for_class = if learns[0] { Some(sum.narrow(1, 0, 1)?.contiguous()?) } else { None };
        Ok(vec![Some(for_patches), for_class, learns[1].then_some(sum)])
    })
}
