//! The pass without gradients on the CPU: the same blocks as `pass_block`, on slices that are used again.
//!
//! One scratch for all layers, keys and values written where attention reads them, adapters added in place. It runs on
//! the threads of the pool, so that its parts start within microseconds. Chooses nothing: who calls has the batch.
//! A row's result depends on its own sequence and adapter only, not on what else is in the batch (`ops::cpu`).
//! Shapes: `[tokens, …]`, packed.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};

use super::{EMBEDDING, Llama, Seen};
use crate::lora::LoraBatch;
use crate::model::cache::KvCache;
use crate::model::layers::project;
use crate::model::{Batch, ModelError};
use crate::ops::cpu::{Heads, Prepared, Sequence, attend, each, threads};
use crate::ops::with_slices;

/// Buffers of a pass.
#[derive(Default)]
struct Scratch {
    /// What goes into a product, and what comes back to the stream.
    normed: Vec<f32>,
    back: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    mixed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    prepared: Prepared,
}

/// What all blocks of a pass share.
struct Pass<'a> {
    lora: &'a LoraBatch,
    rows: usize,
    heads: Heads,
    /// Angles of rotation, `[tokens, head_dim/2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Rows of each sequence, and the position of the first.
    places: Vec<(Range<usize>, usize)>,
}

impl Llama {
    /// Runs all blocks and returns what the last one gives, before the final norm, `[tokens, hidden]`.
    pub(super) fn run_on_cpu(
        &self,
        batch: &Batch<'_>,
        lengths: &[usize],
        caches: Option<&mut [&mut KvCache]>,
        seen: Option<Seen<'_>>,
    ) -> Result<Tensor, ModelError> {
        let places = self.places(batch.tokens, lengths, caches.as_deref())?;
        match caches {
            Some(caches) => self.pass_on_cpu(batch, places, caches, seen),
            None => {
                let mut own: Vec<KvCache> = lengths.iter().map(|_| KvCache::new(self.blocks.len())).collect();
                self.pass_on_cpu(batch, places, &mut own.iter_mut().collect::<Vec<_>>(), seen)
            }
        }
    }

    fn pass_on_cpu(
        &self,
        batch: &Batch<'_>,
        places: Vec<(Range<usize>, usize)>,
        caches: &mut [&mut KvCache],
        mut seen: Option<Seen<'_>>,
    ) -> Result<Tensor, ModelError> {
        let (rows, hidden) = (batch.tokens.len(), self.config.hidden_size);
        let (cos, sin) = self.angles_of(&places);
        let heads = Heads {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            window: self.config.sliding_window,
        };
        let pass = Pass { lora: batch.lora, rows, heads, cos, sin, places };
        let mut x = vec![0.0; rows * hidden];
        self.embed_on_cpu(batch, &mut x)?;
        let mut scratch = Scratch::default();
        for layer in 0..self.blocks.len() {
            if let Some(seen) = &mut seen {
                seen(&Tensor::from_slice(&x, (rows, hidden), &Device::Cpu)?);
            }
            self.block_on_cpu(layer, &mut x, &pass, caches, &mut scratch)?;
        }
        for (cache, (rows, _)) in caches.iter_mut().zip(&pass.places) {
            cache.advance(rows.len());
        }
        Ok(Tensor::from_vec(x, (rows, hidden), &Device::Cpu)?)
    }

    fn angles_of(&self, places: &[(Range<usize>, usize)]) -> (Vec<f32>, Vec<f32>) {
        let positions = places.iter().flat_map(|(rows, past)| *past..past + rows.len());
        let angles = positions.flat_map(|position| self.frequencies.iter().map(move |f| position as f32 * f));
        angles.map(|angle| (angle.cos(), angle.sin())).unzip()
    }

    fn embed_on_cpu(&self, batch: &Batch<'_>, x: &mut [f32]) -> candle_core::Result<()> {
        self.embedding.copy_rows(batch.tokens, x)?;
        if !batch.lora.changes(EMBEDDING) {
            return Ok(());
        }
        let ids = Tensor::new(batch.tokens, &Device::Cpu)?;
        let rows = Tensor::from_slice(x, (batch.tokens.len(), self.config.hidden_size), &Device::Cpu)?;
        with_slices([&batch.lora.embedding(EMBEDDING, &ids, rows)?], |[changed]| {
            x.copy_from_slice(changed);
            Ok(())
        })
    }

    fn block_on_cpu(
        &self,
        layer: usize,
        x: &mut [f32],
        pass: &Pass<'_>,
        caches: &mut [&mut KvCache],
        scratch: &mut Scratch,
    ) -> candle_core::Result<()> {
        let (block, eps) = (&self.blocks[layer], self.config.rms_norm_eps);
        let [attention_site, mlp_site] = self.norms_of(layer);
        let Scratch { normed, back, query, key, value, mixed, gate, up, prepared } = scratch;

        normed.resize(x.len(), 0.0);
        pass.lora.norm_rows(attention_site, x, &block.attention_norm, eps, normed)?;
        project(
            pass.lora,
            (normed, pass.rows),
            [(&block.query, query), (&block.key, key), (&block.value, value)],
            prepared,
        )?;
        threads::rope(query, (&pass.cos, &pass.sin), pass.rows, 1.0);
        threads::rope(key, (&pass.cos, &pass.sin), pass.rows, 1.0);
        mixed.resize(query.len(), 0.0);
        pass.attend(layer, [query, key, value], caches, mixed)?;
        project(pass.lora, (mixed, pass.rows), [(&block.output, back)], prepared)?;
        threads::add(x, back);

        pass.lora.norm_rows(mlp_site, x, &block.mlp_norm, eps, normed)?;
        project(pass.lora, (normed, pass.rows), [(&block.gate, gate), (&block.up, up)], prepared)?;
        mixed.resize(gate.len(), 0.0);
        threads::gated(gate, up, mixed);
        project(pass.lora, (mixed, pass.rows), [(&block.down, back)], prepared)?;
        threads::add(x, back);
        Ok(())
    }
}

impl Pass<'_> {
    /// Writes keys and values behind those of the caches, then mixes values for all rows.
    fn attend(
        &self,
        layer: usize,
        [query, key, value]: [&[f32]; 3],
        caches: &mut [&mut KvCache],
        mixed: &mut [f32],
    ) -> candle_core::Result<()> {
        let width = self.heads.kv_heads * self.heads.head_dim;
        // Sequences lie far apart in memory: waiting for it is work for all threads.
        let fault = Mutex::new(Ok(()));
        each(self.places.iter().zip(caches.iter_mut()).collect(), |((rows, _), cache): (&(Range<usize>, usize), _)| {
            let part = rows.start * width..rows.end * width;
            let cache: &mut &mut KvCache = cache;
            if let Err(error) = cache.write_slices(layer, self.heads, &key[part.clone()], &value[part]) {
                *fault.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
            }
        });
        fault.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        let mut sequences = Vec::with_capacity(self.places.len());
        for ((rows, past), cache) in self.places.iter().zip(caches.iter()) {
            sequences.push(Sequence { rows: rows.clone(), past: *past, seen: cache.slices(layer)? });
        }
        attend(self.heads, query, &sequences, mixed);
        Ok(())
    }
}
