//! Adapters on a GPU: each has a slot in a table that kernels read, so that a step that was recorded serves whoever is in it.
//!
//! An adapter comes into a slot when a step has rows of it, and stays until another one needs the place: a swap is one
//! launch that copies its matrices into memory that was set aside, and one line of the table. Only low-rank changes of the
//! linear layers of blocks are here; who has others, or finds no room, goes through tensors (`lora::LoraBatch`).
//! Shapes: A `[rank, input]` and s·B `[output, rank]` in the number format of the model.
//! After: S-LoRA (Sheng et al. 2023, arXiv 2311.03285), Punica (Chen et al. 2023, arXiv 2310.18547).

use std::ops::Range;
use std::sync::{Arc, Weak};

use candle_core::{DType, Result, Tensor};

use crate::lora::{Adapter, Change, LinearDelta, LoraBatch, SiteId};
use crate::ops::cuda::{Adapters, Gpu, place};

/// Numbers that a matrix begins at a multiple of: kernels read 16 bytes at once.
const TOGETHER: usize = 8;

/// What is in the table.
#[derive(Debug)]
pub(super) struct Slots {
    /// Addresses of A and B, i64 `[slots, sites, 2]`.
    addresses: Tensor,
    /// u32 `[slots, sites]`.
    ranks: Tensor,
    /// f32 `[slots, sites]`.
    factors: Tensor,
    /// Memory of the matrices of all slots.
    room: Tensor,
    /// For copies into it.
    orders: Tensor,
    /// The sites of the table's columns.
    sites: Range<usize>,
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
    /// Where its matrices lie, in numbers of the room.
    place: Range<usize>,
}

/// Slots of the runs of a step, and the largest rank among them.
#[derive(Debug)]
pub(super) struct Placed {
    /// One a run.
    pub(super) slots: Vec<u32>,
    pub(super) rank: usize,
}

impl Slots {
    /// Begins empty; the columns are `sites`, and there is room for `numbers` of `dtype`.
    pub(super) fn new(gpu: &Gpu, slots: usize, sites: Range<usize>, (numbers, dtype): (usize, DType)) -> Result<Self> {
        let device = gpu.device();
        Ok(Self {
            addresses: Tensor::zeros((slots, sites.len(), 2), DType::I64, &device)?,
            ranks: Tensor::zeros((slots, sites.len()), DType::U32, &device)?,
            factors: Tensor::zeros((slots, sites.len()), DType::F32, &device)?,
            room: gpu.tensor(numbers.max(1), dtype)?,
            orders: Tensor::zeros((2 * sites.len(), 4), DType::I64, &device)?,
            sites,
            held: std::iter::repeat_with(|| None).take(slots).collect(),
            now: 0,
        })
    }

    /// Returns the bytes set aside for matrices.
    pub(super) fn bytes(&self) -> u64 {
        (self.room.elem_count() * self.room.dtype().size_in_bytes()) as u64
    }

    /// Returns what kernels read.
    pub(super) fn tables(&self) -> Adapters<'_> {
        let Self { addresses, ranks, factors, room, .. } = self;
        Adapters { addresses, ranks, factors, format: room.dtype() }
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

    /// Puts the adapters of a step into slots, if they find room.
    pub(super) fn place(&mut self, gpu: &Gpu, lora: &LoraBatch) -> Result<Option<Placed>> {
        self.now += 1;
        for held in &mut self.held {
            // What nobody has any more takes no room either.
            if held.as_ref().is_some_and(|held| held.adapter.strong_count() == 0) {
                *held = None;
            }
        }
        let mut placed = Placed { slots: Vec::with_capacity(lora.runs.len()), rank: 0 };
        for run in &lora.runs {
            let slot = match self.find(&run.adapter, run.scale) {
                Some(slot) => slot,
                None => match self.fill(gpu, &run.adapter, run.scale)? {
                    Some(slot) => slot,
                    None => return Ok(None),
                },
            };
            if let Some(held) = &mut self.held[slot] {
                held.used = self.now;
                placed.rank = placed.rank.max(held.rank);
            }
            placed.slots.push(slot as u32);
        }
        Ok(Some(placed))
    }

    fn find(&self, adapter: &Arc<Adapter>, scale: f32) -> Option<usize> {
        let same = |held: &Held| {
            std::ptr::eq(held.adapter.as_ptr(), Arc::as_ptr(adapter)) && held.scale.to_bits() == scale.to_bits()
        };
        self.held.iter().position(|held| held.as_ref().is_some_and(same))
    }

    /// Writes an adapter into a free slot; those that were used least recently make room, but none of this step.
    fn fill(&mut self, gpu: &Gpu, adapter: &Arc<Adapter>, scale: f32) -> Result<Option<usize>> {
        let own = adapter.changes().iter().filter_map(|(site, change)| self.own(*site, change).transpose());
        let own = own.collect::<Result<Vec<Own>>>()?;
        let numbers = own.iter().flat_map(|own| [&own.a, &own.b]).map(reach).sum();
        let (slot, start) = loop {
            let free = self.held.iter().position(Option::is_none);
            if let Some(found) = free.zip(self.gap(numbers)) {
                break found;
            }
            let old = self.held.iter_mut().filter(|held| held.as_ref().is_some_and(|held| held.used < self.now));
            match old.min_by_key(|held| held.as_ref().map_or(0, |held| held.used)) {
                Some(oldest) => *oldest = None,
                None => return Ok(None),
            }
        };
        let mut at = start;
        let mut matrices = Vec::with_capacity(2 * own.len());
        let columns = self.sites.len();
        let (mut addresses, mut ranks) = (vec![0_i64; 2 * columns], vec![0_u32; columns]);
        for Own { column, a, b } in &own {
            ranks[*column] = b.dim(0)? as u32;
            for (side, matrix) in [a, b].into_iter().enumerate() {
                addresses[2 * column + side] = gpu.address(&self.room.narrow(0, at, matrix.elem_count())?)? as i64;
                matrices.push((matrix, at));
                at += reach(matrix);
            }
        }
        place(gpu, &matrices, &self.orders, &self.room)?;
        gpu.upload(&addresses, &self.addresses.narrow(0, slot, 1)?)?;
        gpu.upload(&ranks, &self.ranks.narrow(0, slot, 1)?)?;
        gpu.upload(&vec![scale; columns], &self.factors.narrow(0, slot, 1)?)?;
        let rank = ranks.into_iter().max().unwrap_or(0) as usize;
        self.held[slot] =
            Some(Held { adapter: Arc::downgrade(adapter), scale, used: self.now, rank, place: start..at });
        Ok(Some(slot))
    }

    /// Returns what an adapter has at a site.
    fn own(&self, site: SiteId, change: &Change) -> Result<Option<Own>> {
        let Change::Linear(LinearDelta { a, b, .. }) = change else { return Ok(None) };
        // Of an adapter that was read, A lies in the rows that it shall have: it is copied as one row.
        let a = if a.is_contiguous() { a.clone() } else { a.t()?.flatten_all()?.unsqueeze(0)? };
        Ok(Some(Own { column: self.column(site), a, b: b.contiguous()? }))
    }

    /// Returns where `numbers` of the room are nobody's, one behind the other.
    fn gap(&self, numbers: usize) -> Option<usize> {
        let mut taken: Vec<_> = self.held.iter().flatten().map(|held| (held.place.start, held.place.end)).collect();
        taken.sort_unstable();
        gap(&taken, numbers, self.room.elem_count())
    }
}

/// What an adapter has at a site: Aᵀ and s·Bᵀ, in one piece each; or A as one row.
struct Own {
    column: usize,
    a: Tensor,
    b: Tensor,
}

/// Returns how far the next matrix begins behind the beginning of this one.
fn reach(matrix: &Tensor) -> usize {
    matrix.elem_count().next_multiple_of(TOGETHER)
}

/// Returns the first place for `wanted` of `total` numbers beside those that are taken, in ascending order.
fn gap(taken: &[(usize, usize)], wanted: usize, total: usize) -> Option<usize> {
    let mut free = 0;
    for (start, end) in taken {
        if start - free >= wanted {
            break;
        }
        free = *end;
    }
    (total - free >= wanted).then_some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_the_first_that_is_wide_enough() {
        assert_eq!(gap(&[], 10, 10), Some(0));
        assert_eq!(gap(&[], 11, 10), None);
        assert_eq!(gap(&[(2, 4), (9, 10)], 2, 10), Some(0));
        assert_eq!(gap(&[(2, 4), (9, 10)], 5, 10), Some(4));
        assert_eq!(gap(&[(2, 4), (9, 10)], 6, 20), Some(10));
        assert_eq!(gap(&[(2, 4), (9, 10)], 6, 15), None);
        // What needs nothing is everywhere.
        assert_eq!(gap(&[(0, 10)], 0, 10), Some(0));
    }
}
