//! The pass without gradients on the CPU: the same blocks as `pass_block`, on slices that are used again.

use candle_core::{Result, Tensor};

use super::{Part, Vit};
use crate::lora::LoraBatch;
use crate::model::layers::project;
use crate::model::vision::serving::{Scratch, on_rows};
use crate::ops::cpu::{Groups, Scores, attend_groups, threads};

impl Vit {
    /// Returns what the last block gives for what goes into the first; a row of `lora` is an image.
    pub(super) fn run_on_cpu(&self, x: &Tensor, lora: &LoraBatch) -> Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let images = rows / self.config.rows();
        let mut scratch = Scratch::default();
        on_rows(x, |x| {
            (0..self.blocks.len()).try_for_each(|layer| self.block_on_cpu(layer, (x, images), lora, &mut scratch))?;
            Ok((images, hidden))
        })
    }

    fn block_on_cpu(
        &self,
        layer: usize,
        (x, images): (&mut Vec<f32>, usize),
        lora: &LoraBatch,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (block, groups) = (&self.blocks[layer], self.groups());
        let (rows, all) = (images * groups.rows, lora.spread(groups.rows));
        block.attention_norm.write(x, &all, &mut scratch.normed)?;
        let Scratch { normed, back, query, key, value, mixed, prepared, .. } = scratch;
        let layers = [(&block.query, &mut *query), (&block.key, &mut *key), (&block.value, &mut *value)];
        project(&all.open(), (normed, rows), layers, prepared)?;
        mixed.resize(query.len(), 0.0);
        attend_groups(groups, [query, key, value], scores(&scales(groups)), mixed)?;
        let (rows, lora) = match self.wanted(layer) {
            Part::All => (rows, &all),
            Part::Class => {
                for rows in [&mut *x, &mut *mixed] {
                    let kept = keep_class_tokens(rows, groups);
                    rows.truncate(kept);
                }
                (images, lora)
            }
        };
        project(&lora.open(), (mixed, rows), [(&block.output, back)], prepared)?;
        threads::add(x, back);

        block.mlp_norm.write(x, lora, &mut scratch.normed)?;
        scratch.mlp([&block.up, &block.down], None, (rows, lora))?;
        threads::add(x, &scratch.back);
        Ok(())
    }
}

/// Factors of the products of queries and keys.
pub(super) fn scales(groups: Groups) -> Vec<f32> {
    vec![(1.0 / (groups.dim as f64).sqrt()) as f32; groups.heads]
}

/// Plain attention.
pub(super) fn scores(scales: &[f32]) -> Scores<'_> {
    Scores { scales, bias: &[], mask: &[] }
}

/// Moves the first row of every image to the front; returns how many numbers they are.
pub(super) fn keep_class_tokens(rows: &mut [f32], groups: Groups) -> usize {
    let width = groups.heads * groups.dim;
    let images = rows.len() / (groups.rows * width).max(1);
    for image in 1..images {
        let first = image * groups.rows * width;
        rows.copy_within(first..first + width, image * width);
    }
    images * width
}
