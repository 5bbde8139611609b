//! The pass without gradients on the CPU: the same blocks as `pass_block`, on slices that are used again.
//!
//! One scratch for all layers and passes, keys and values written where attention reads them, adapters added in place: a
//! block takes no memory of the system (but keys and values grow). It runs on
//! the threads of the pool, so that its parts start within microseconds. Chooses nothing: who calls has the batch.
//! A row's result depends on its own sequence and adapter only, not on what else is in the batch (`ops::cpu`).
//! Shapes: `[tokens, …]`, packed.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};

use super::sites::{asked_rows, heads};
use super::{EMBEDDING, Llama, Seen};
use crate::lora::{LoraBatch, OpenBatch};
use crate::model::cache::KvCache;
use crate::model::layers::project;
use crate::model::{Batch, ModelError};
use crate::ops::buffer::reclaim;
use crate::ops::cpu::{Heads, Prepared, Sequence, attend, each_part, emptied, threads};
use crate::ops::with_slices;

/// Rows of the last block that somebody asks for.
pub(super) enum Wanted<'a> {
    /// All, and whoever asks sees the input of each block too.
    All(Seen<'a>),
    /// Those of each segment.
    Rows(&'a [Range<usize>]),
}

/// Rows of a pass whose scratch is kept for the next one: more than a step of the engine has by default.
const KEPT: usize = 2048;

/// Numbers of logits whose memory is kept for the next ones, and how many such are.
const KEPT_LOGITS: (usize, usize) = (1 << 23, 2);

/// What is used again by later passes.
#[derive(Debug, Default)]
pub(super) struct Idle {
    scratches: Mutex<Vec<Scratch>>,
    logits: Mutex<Vec<Vec<f32>>>,
}

/// Buffers of a pass. A buffer holds anything until it is written.
#[derive(Debug, Default)]
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
    gated: Vec<f32>,
    prepared: Prepared,
    /// Empty between two layers.
    sequences: Vec<Sequence<'static>>,
}

impl Idle {
    /// Runs a pass of some rows with a scratch.
    fn with<R>(&self, rows: usize, pass: impl FnOnce(&mut Scratch) -> R) -> R {
        let mut scratch = lock(&self.scratches).pop().unwrap_or_default();
        let result = pass(&mut scratch);
        if rows <= KEPT {
            lock(&self.scratches).push(scratch);
        }
        result
    }

    /// Returns memory for logits.
    fn logits(&self) -> Vec<f32> {
        lock(&self.logits).pop().unwrap_or_default()
    }

    /// Keeps the memory of logits.
    pub(super) fn keep(&self, logits: Tensor) {
        let mut all = lock(&self.logits);
        let fits = (1..=KEPT_LOGITS.0).contains(&logits.elem_count());
        if fits && all.len() < KEPT_LOGITS.1 && logits.device().is_cpu() {
            all.extend(reclaim(logits));
        }
    }
}

fn lock<T>(all: &Mutex<T>) -> MutexGuard<'_, T> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all blocks of a pass share.
struct Pass<'a> {
    lora: Cow<'a, LoraBatch>,
    rows: usize,
    heads: Heads,
    /// Radians a token.
    frequencies: &'a [f32],
    /// Angles of rotation, `[tokens, head_dim/2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Rows of each sequence, and the position of the first.
    places: Vec<(Range<usize>, usize)>,
}

/// A pass, and what its adapters add.
type Opened<'a> = (&'a Pass<'a>, &'a OpenBatch<'a>);

impl Llama {
    /// Returns the rows of each segment that get logits.
    ///
    /// # Errors
    /// When no language head is there, or a segment has fewer rows.
    pub(super) fn asked(&self, batch: &Batch<'_>) -> Result<Vec<Range<usize>>, ModelError> {
        if self.info.labels.is_some() {
            return Err(ModelError::Unsupported("generation with a classification head".into()));
        }
        asked_rows(batch.segments)
    }

    /// Runs all blocks and returns what the last one gives, before the final norm, `[rows, hidden]` of those wanted.
    pub(super) fn run_on_cpu(
        &self,
        batch: &Batch<'_>,
        lengths: &[usize],
        caches: Option<&mut [&mut KvCache]>,
        wanted: Wanted<'_>,
    ) -> Result<Tensor, ModelError> {
        let places = self.places(batch.tokens, lengths, caches.as_deref())?;
        match caches {
            Some(caches) => self.pass_on_cpu(batch, places, caches, wanted),
            None => {
                let mut own: Vec<KvCache> = lengths.iter().map(|_| KvCache::new(self.blocks.len())).collect();
                self.pass_on_cpu(batch, places, &mut own.iter_mut().collect::<Vec<_>>(), wanted)
            }
        }
    }

    fn pass_on_cpu(
        &self,
        batch: &Batch<'_>,
        places: Vec<(Range<usize>, usize)>,
        caches: &mut [&mut KvCache],
        mut wanted: Wanted<'_>,
    ) -> Result<Tensor, ModelError> {
        let (rows, hidden) = (batch.tokens.len(), self.config.hidden_size);
        let pass = Pass::new(Cow::Borrowed(batch.lora), (heads(&self.config), &self.frequencies), places);
        let mut x = vec![0.0; rows * hidden];
        self.embed_on_cpu(batch, &mut x)?;
        let last = self.blocks.len().saturating_sub(1);
        let asked = match &wanted {
            Wanted::Rows(wanted) => Some(pass.of(wanted)),
            Wanted::All(_) => None,
        };
        let (open, open_asked) = (pass.lora.open(), asked.as_ref().map(|asked| asked.lora.open()));
        self.idle.with(rows, |scratch| {
            for layer in 0..self.blocks.len() {
                if let Wanted::All(seen) = &mut wanted {
                    seen(&Tensor::from_slice(&x, (rows, hidden), &Device::Cpu)?);
                }
                let asked = asked.as_ref().zip(open_asked.as_ref()).filter(|_| layer == last);
                self.block_on_cpu(layer, &mut x, ((&pass, &open), asked), caches, scratch)?;
            }
            Ok::<_, ModelError>(())
        })?;
        for (cache, (rows, _)) in caches.iter_mut().zip(&pass.places) {
            cache.advance(rows.len());
        }
        let rows = x.len() / hidden;
        Ok(Tensor::from_vec(x, (rows, hidden), &Device::Cpu)?)
    }

    /// Returns f32 logits of the last block's output, all rows of it, from the language head.
    pub(super) fn logits_on_cpu(&self, last: &Tensor, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        let shape = (last.dim(0)?, self.head.weight.outputs()?);
        let mut logits = self.idle.logits();
        self.idle.with(shape.0, |Scratch { normed, prepared, .. }| {
            with_slices([last], |[x]| {
                normed.resize(x.len(), 0.0);
                lora.norm_rows(self.last_norm(), x, &self.norm, self.config.rms_norm_eps, normed)
            })?;
            project(&lora.open(), (normed, shape.0), [(&self.head, &mut logits)], prepared)
        })?;
        Ok(Tensor::from_vec(logits, shape, &Device::Cpu)?)
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

    /// Runs a block; where rows are asked for, `x` becomes those, and nothing but keys and values is computed of others.
    fn block_on_cpu(
        &self,
        layer: usize,
        x: &mut Vec<f32>,
        ((pass, open), asked): (Opened<'_>, Option<Opened<'_>>),
        caches: &mut [&mut KvCache],
        scratch: &mut Scratch,
    ) -> candle_core::Result<()> {
        let (block, eps) = (&self.blocks[layer], self.config.rms_norm_eps);
        let [attention_site, mlp_site] = self.norms_of(layer);
        let Scratch { normed, back, query, key, value, mixed, gate, up, gated, prepared, sequences } = scratch;

        normed.resize(x.len(), 0.0);
        pass.lora.norm_rows(attention_site, x, &block.attention_norm, eps, normed)?;
        let (keys, values) = ((&block.key, &mut *key), (&block.value, &mut *value));
        match asked {
            None => project(open, (normed, pass.rows), [(&block.query, query), keys, values], prepared)?,
            Some(_) => project(open, (normed, pass.rows), [keys, values], prepared)?,
        }
        threads::rope(key, (&pass.cos, &pass.sin), pass.rows, 1.0);
        pass.keep(layer, [key, value], caches)?;
        if let Some((asked, open)) = asked {
            pass.pick(asked, x);
            pass.pick(asked, normed);
            if asked.rows == 0 {
                return Ok(());
            }
            project(open, (normed, asked.rows), [(&block.query, &mut *query)], prepared)?;
        }
        let (pass, open) = asked.unwrap_or((pass, open));
        threads::rope(query, (&pass.cos, &pass.sin), pass.rows, 1.0);
        mixed.resize(query.len(), 0.0);
        pass.attend(layer, query, caches, (mixed, sequences))?;
        project(open, (mixed, pass.rows), [(&block.output, back)], prepared)?;
        threads::add(x, back);

        pass.lora.norm_rows(mlp_site, x, &block.mlp_norm, eps, normed)?;
        project(open, (normed, pass.rows), [(&block.gate, gate), (&block.up, up)], prepared)?;
        gated.resize(gate.len(), 0.0);
        threads::gated(gate, up, gated);
        project(open, (gated, pass.rows), [(&block.down, back)], prepared)?;
        threads::add(x, back);
        Ok(())
    }
}

impl<'a> Pass<'a> {
    fn new(lora: Cow<'a, LoraBatch>, model: (Heads, &'a [f32]), places: Vec<(Range<usize>, usize)>) -> Self {
        let (heads, frequencies) = model;
        let positions = places.iter().flat_map(|(rows, past)| *past..past + rows.len());
        let angles = positions.flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        let (cos, sin) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let rows = places.iter().map(|(rows, _)| rows.len()).sum();
        Self { lora, rows, heads, frequencies, cos, sin, places }
    }

    /// Returns what is left of it with some rows of each sequence.
    fn of(&self, wanted: &[Range<usize>]) -> Self {
        let (mut places, mut next) = (Vec::with_capacity(wanted.len()), 0);
        for (rows, (of, past)) in wanted.iter().zip(&self.places) {
            places.push((next..next + rows.len(), past + rows.start - of.start));
            next += rows.len();
        }
        let rows: Vec<usize> = wanted.iter().cloned().flatten().collect();
        Self::new(Cow::Owned(self.lora.select(&rows)), (self.heads, self.frequencies), places)
    }
}

impl Pass<'_> {
    /// Moves the rows of another pass, which has some of these, to the front.
    fn pick(&self, asked: &Self, x: &mut Vec<f32>) {
        let width = x.len() / self.rows.max(1);
        for ((to, position), (rows, past)) in asked.places.iter().zip(&self.places) {
            let first = rows.start + position - past;
            x.copy_within(first * width..(first + to.len()) * width, to.start * width);
        }
        x.truncate(asked.rows * width);
    }

    /// Writes keys and values behind those of the caches.
    fn keep(&self, layer: usize, [key, value]: [&[f32]; 2], caches: &mut [&mut KvCache]) -> candle_core::Result<()> {
        let width = self.heads.kv_heads * self.heads.head_dim;
        // Sequences lie far apart in memory: waiting for it is work for all threads.
        let fault = Mutex::new(Ok(()));
        each_part(caches, 1, |number, cache| {
            for (cache, (rows, _)) in cache.iter_mut().zip(&self.places[number..]) {
                let part = rows.start * width..rows.end * width;
                if let Err(error) = cache.write_slices(layer, self.heads, &key[part.clone()], &value[part]) {
                    *lock(&fault) = Err(error);
                }
            }
        });
        fault.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mixes values for all rows.
    fn attend(
        &self,
        layer: usize,
        query: &[f32],
        caches: &[&mut KvCache],
        (mixed, list): (&mut [f32], &mut Vec<Sequence<'static>>),
    ) -> candle_core::Result<()> {
        let mut sequences: Vec<Sequence<'_>> = std::mem::take(list);
        for ((rows, past), cache) in self.places.iter().zip(caches) {
            sequences.push(Sequence { rows: rows.clone(), past: *past, seen: cache.slices(layer)? });
        }
        attend(self.heads, query, &sequences, mixed);
        *list = emptied(sequences);
        Ok(())
    }
}
