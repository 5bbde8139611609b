//! Adapters on a GPU: each has a slot in a table that kernels read, so that a step that was recorded serves whoever is in it.
//!
//! An adapter comes into a slot when a step has rows of it, and stays until another one needs the place: a swap writes
//! matrices to memory of their own and one line of the table. Only low-rank changes of the linear layers of blocks are
//! here; who has others goes through tensors (`lora::LoraBatch`).
//! Shapes: A `[rank, input]` and s·B `[output, rank]` in the number format of the model.
//! After: S-LoRA (Sheng et al. 2023, arXiv 2311.03285), Punica (Chen et al. 2023, arXiv 2310.18547).

use std::ops::Range;
use std::sync::{Arc, Weak};

use candle_core::{DType, Result, Tensor, bail};

use crate::lora::{Adapter, Change, LinearDelta, LoraBatch, SiteId};
use crate::ops::cuda::{Adapters, Gpu};

/// What is in the table.
#[derive(Debug)]
pub(super) struct Slots {
    /// Addresses of A and B, i64 `[slots, sites, 2]`.
    addresses: Tensor,
    /// u32 `[slots, sites]`.
    ranks: Tensor,
    /// f32 `[slots, sites]`.
    factors: Tensor,
    /// The sites of the table's columns.
    sites: Range<usize>,
    dtype: DType,
    held: Vec<Option<Held>>,
    /// Steps so far.
    now: u64,
}

#[derive(Debug)]
struct Held {
    adapter: Weak<Adapter>,
    scale: f32,
    /// The step that used it last.
    used: u64,
    rank: usize,
    /// By column: A and B, whose addresses the table has.
    #[expect(dead_code, reason = "it is memory that the device reads")]
    matrices: Vec<Option<(Tensor, Tensor)>>,
}

/// Slots of the runs of a step, and the largest rank among them.
#[derive(Debug)]
pub(super) struct Placed {
    /// One a run.
    pub(super) slots: Vec<u32>,
    pub(super) rank: usize,
}

impl Slots {
    /// Begins empty; the columns are `sites`.
    pub(super) fn new(gpu: &Gpu, slots: usize, sites: Range<usize>, dtype: DType) -> Result<Self> {
        let device = gpu.device();
        Ok(Self {
            addresses: Tensor::zeros((slots, sites.len(), 2), DType::I64, &device)?,
            ranks: Tensor::zeros((slots, sites.len()), DType::U32, &device)?,
            factors: Tensor::zeros((slots, sites.len()), DType::F32, &device)?,
            sites,
            dtype,
            held: std::iter::repeat_with(|| None).take(slots).collect(),
            now: 0,
        })
    }

    /// Returns what kernels read.
    pub(super) fn tables(&self) -> Adapters<'_> {
        let Self { addresses, ranks, factors, dtype, .. } = self;
        Adapters { addresses, ranks, factors, format: *dtype }
    }

    /// Returns the column of a site.
    pub(super) fn column(&self, site: SiteId) -> usize {
        site.0 - self.sites.start
    }

    /// Returns whether all adapters of a batch can be in slots.
    pub(super) fn take(&self, lora: &LoraBatch) -> bool {
        let simple = |(site, change): (&SiteId, &Change)| match change {
            Change::Linear(LinearDelta { b_bias: None, magnitude: None, bias: None, .. }) => {
                self.sites.contains(&site.0)
            }
            Change::Linear(_) | Change::Embedding { .. } | Change::Replaced { .. } | Change::Bias(_) => false,
        };
        lora.runs.len() <= self.held.len() && lora.runs.iter().all(|run| run.adapter.changes().iter().all(simple))
    }

    /// Puts the adapters of a step into slots.
    pub(super) fn place(&mut self, gpu: &Gpu, lora: &LoraBatch) -> Result<Placed> {
        self.now += 1;
        for held in &mut self.held {
            // What nobody has any more takes no memory either.
            if held.as_ref().is_some_and(|held| held.adapter.strong_count() == 0) {
                *held = None;
            }
        }
        let mut placed = Placed { slots: Vec::with_capacity(lora.runs.len()), rank: 0 };
        for run in &lora.runs {
            let slot = match self.find(&run.adapter, run.scale) {
                Some(slot) => slot,
                None => self.fill(gpu, &run.adapter, run.scale)?,
            };
            if let Some(held) = &mut self.held[slot] {
                held.used = self.now;
                placed.rank = placed.rank.max(held.rank);
            }
            placed.slots.push(slot as u32);
        }
        Ok(placed)
    }

    fn find(&self, adapter: &Arc<Adapter>, scale: f32) -> Option<usize> {
        let same = |held: &Held| {
            std::ptr::eq(held.adapter.as_ptr(), Arc::as_ptr(adapter)) && held.scale.to_bits() == scale.to_bits()
        };
        self.held.iter().position(|held| held.as_ref().is_some_and(same))
    }

    /// Writes an adapter into a free slot, or into the one that was used least recently.
    fn fill(&mut self, gpu: &Gpu, adapter: &Arc<Adapter>, scale: f32) -> Result<usize> {
        let age = |held: &Option<Held>| held.as_ref().map_or(0, |held| held.used);
        let free = (0..self.held.len()).filter(|slot| age(&self.held[*slot]) < self.now);
        let Some(slot) = free.min_by_key(|slot| age(&self.held[*slot])) else {
            bail!("more adapters in a step than the {} slots", self.held.len());
        };
        self.held[slot] = None;
        let mut matrices: Vec<Option<(Tensor, Tensor)>> = self.sites.clone().map(|_| None).collect();
        let mut rank = 0;
        for (site, change) in adapter.changes() {
            let Change::Linear(delta) = change else { continue };
            let of = |matrix: &Tensor| matrix.t()?.contiguous()?.to_dtype(self.dtype);
            let (a, b) = (of(&delta.a)?, of(&delta.b)?);
            rank = rank.max(a.dim(0)?);
            matrices[self.column(*site)] = Some((a, b));
        }
        self.write(gpu, slot, &matrices, scale)?;
        self.held[slot] = Some(Held { adapter: Arc::downgrade(adapter), scale, used: self.now, rank, matrices });
        Ok(slot)
    }

    /// Writes a line of the table.
    fn write(&self, gpu: &Gpu, slot: usize, matrices: &[Option<(Tensor, Tensor)>], scale: f32) -> Result<()> {
        let (mut addresses, mut ranks) = (Vec::with_capacity(2 * matrices.len()), Vec::with_capacity(matrices.len()));
        for own in matrices {
            match own {
                Some((a, b)) => {
                    addresses.extend([gpu.address(a)? as i64, gpu.address(b)? as i64]);
                    ranks.push(a.dim(0)? as u32);
                }
                None => {
                    addresses.extend([0; 2]);
                    ranks.push(0);
                }
            }
        }
        gpu.upload(&addresses, &self.addresses.narrow(0, slot, 1)?)?;
        gpu.upload(&ranks, &self.ranks.narrow(0, slot, 1)?)?;
        gpu.upload(&vec![scale; matrices.len()], &self.factors.narrow(0, slot, 1)?)
    }
}
