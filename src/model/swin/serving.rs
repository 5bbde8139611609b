//! The pass without gradients on the CPU: the same blocks as `pass_block`, on slices that are used again.

use candle_core::{DType, Device, Result, Tensor};

use super::{Block, Stage, Swin};
use crate::lora::LoraBatch;
use crate::model::layers::project;
use crate::model::vision::serving::{Scratch, on_rows};
use crate::ops::cpu::{Groups, Scores, attend_groups, threads};
use crate::ops::{spread_table, with_slices};

impl Swin {
    /// Returns what the last block gives for what goes into the first; a row of `lora` is an image.
    pub(super) fn run_on_cpu(&self, x: &Tensor, images: usize, lora: &LoraBatch) -> Result<Tensor> {
        let mut scratch = Scratch::default();
        on_rows(x, |x| {
            for stage in &self.stages {
                for block in &stage.blocks {
                    block.run_on_cpu(stage.groups, x, (images, lora), &mut scratch)?;
                }
                stage.merge_on_cpu(x, images, lora, &mut scratch)?;
            }
            let width = self.stages.last().map_or(1, |stage| stage.groups.heads * stage.groups.dim);
            Ok((x.len() / width, width))
        })
    }
}

impl Stage {
    /// Makes a row of four, where another stage follows.
    fn merge_on_cpu(&self, x: &mut Vec<f32>, images: usize, lora: &LoraBatch, scratch: &mut Scratch) -> Result<()> {
        let Some((arrangement, reduction, norm)) = &self.merge else { return Ok(()) };
        let (rows, lora) = (images * arrangement.rows() / 4, lora.spread(arrangement.rows() / 4));
        let Scratch { normed, back, prepared, .. } = scratch;
        let fours = arrangement.laid(x, self.groups.heads * self.groups.dim, false, normed)?;
        project(&lora.open(), (fours, rows), [(reduction, back)], prepared)?;
        norm.write(back, &lora, x)
    }
}

impl Block {
    fn run_on_cpu(
        &self,
        groups: Groups,
        x: &mut [f32],
        (images, lora): (usize, &LoraBatch),
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (width, arrangement) = (groups.heads * groups.dim, &self.windows.arrangement);
        let (scales, table) = self.positions.scores(images, lora)?;
        let bias = spread_table(&table, &self.positions.index)?;
        let mask = self.windows.mask_on(&Device::Cpu)?;
        let (inside, inner_rows) = (lora.spread(arrangement.rows()), images * arrangement.rows());
        let inside = inside.open();

        let Scratch { normed, back, query, key, value, mixed, prepared, .. } = scratch;
        let windows = arrangement.laid(x, width, false, normed)?;
        let layers = [(&self.query, &mut *query), (&self.key, &mut *key), (&self.value, &mut *value)];
        project(&inside, (windows, inner_rows), layers, prepared)?;
        for vectors in [&mut *query, &mut *key] {
            mixed.resize(vectors.len(), 0.0);
            threads::unit(vectors, groups.dim, mixed);
            std::mem::swap(vectors, mixed);
        }
        let none = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
        with_slices([&scales, &bias, mask.as_ref().unwrap_or(&none)], |[scales, bias, mask]| {
            Ok(attend_groups(groups, [query, key, value], Scores { scales, bias, mask }, mixed)?)
        })?;
        project(&inside, (mixed, inner_rows), [(&self.output, &mut *back)], prepared)?;

        let rows = x.len() / width;
        let lora = lora.spread(rows / images.max(1));
        let [attention_norm, mlp_norm] = &self.norms;
        attention_norm.write(arrangement.laid(back, width, true, normed)?, &lora, mixed)?;
        threads::add(x, mixed);
        scratch.mlp([&self.up, &self.down], Some(x), (rows, &lora))?;
        mlp_norm.write(&scratch.back, &lora, &mut scratch.normed)?;
        threads::add(x, &scratch.normed);
        Ok(())
    }
}
