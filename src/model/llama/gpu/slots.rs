//! Adapters on a GPU: each has a slot in a table that kernels read, so that a step that was recorded serves whoever is in it.
//!
//! An adapter waits in one piece of the host's memory (`lora::Piece`) and comes into a slot when a step has rows of it, or
//! somebody says that one will have; it stays until another one needs the place. A swap is a copy of the piece into memory
//! that was set aside, and a line of the table, on a stream of its own: it waits for the last step that used what it
//! overwrites, and the step that needs it waits for it. Who has other changes, or finds no room, goes through tensors
//! (`lora::LoraBatch`). Decides only who is where: what a step computes is `pass`'s.
//! Shapes: A `[rank, input]` and s·B `[output, rank]` in the number format of the model.
//! After: S-LoRA (Sheng et al. 2023, arXiv 2311.03285), Punica (Chen et al. 2023, arXiv 2310.18547).

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use candle_core::{DType, Device, Result, Tensor};

use crate::lora::{Adapter, LoraBatch, Piece, Run, SiteId};
use crate::ops::Staged;
use crate::ops::cuda::{Adapters, Gpu, Mark, PageLock, Side};

/// What kernels read of the slots, at addresses that stay.
#[derive(Debug)]
pub(super) struct Tables {
    /// Addresses of A and B, i64 `[slots, sites, 2]`.
    addresses: Tensor,
    /// u32 `[slots, sites]`.
    ranks: Tensor,
    /// f32 `[slots, sites]`.
    factors: Tensor,
    /// Memory of the matrices of all slots.
    room: Tensor,
    /// The sites of the tables' columns.
    sites: Range<usize>,
}

impl Tables {
    /// Returns what kernels read.
    pub(super) fn adapters(&self) -> Adapters<'_> {
        let Self { addresses, ranks, factors, room, .. } = self;
        Adapters { addresses, ranks, factors, format: room.dtype() }
    }

    /// Returns the column of a site.
    pub(super) fn column(&self, site: SiteId) -> usize {
        site.0 - self.sites.start
    }

    /// Returns the numbers of matrices that there is room for.
    pub(super) fn numbers(&self) -> usize {
        self.room.elem_count()
    }

    /// Returns the bytes set aside for matrices.
    pub(super) fn bytes(&self) -> u64 {
        (self.room.elem_count() * self.room.dtype().size_in_bytes()) as u64
    }
}

/// The slots: the tables, and who is in them.
#[derive(Debug)]
pub(super) struct Slots {
    gpu: Gpu,
    // Not held while a step is given to the device.
    state: Mutex<State>,
    tables: Tables,
}

#[derive(Debug)]
struct State {
    side: Side,
    /// Lines of the tables as they were copied last.
    lines: [Staged; 3],
    /// Behind the copy of each line.
    copied: Vec<Option<Mark>>,
    held: Vec<Option<Held>>,
    /// What left while a step may have been reading it.
    left: Vec<Left>,
    /// Steps with adapters so far.
    now: u64,
    /// Adapters that found no room once, so that it is said once of each.
    told: Vec<Weak<Adapter>>,
}

#[derive(Debug)]
struct Held {
    adapter: Weak<Adapter>,
    scale: f32,
    rank: usize,
    /// Where its matrices lie, in numbers of the room.
    place: Range<usize>,
    /// Behind its copy, until a step followed it.
    coming: Option<Mark>,
    /// The last step that used it, or was the last when it came.
    used: u64,
    /// Whether a step that uses it is being given to the device.
    busy: bool,
    /// Behind the last step that used it.
    read: Option<Mark>,
}

impl Held {
    /// Returns whether somebody besides the registry has the adapter: a request that runs or waits.
    fn is_wanted(&self) -> bool {
        self.adapter.strong_count() > 1
    }
}

/// A slot and a place in the room that somebody left.
#[derive(Debug)]
struct Left {
    slot: usize,
    place: Range<usize>,
    read: Mark,
}

/// Slots of the runs of a step, and the largest rank among them. They are the step's until this is dropped, behind the last
/// of its work.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    /// One a run.
    pub(super) slots: Vec<u32>,
    pub(super) rank: usize,
    of: &'a Slots,
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        if self.slots.is_empty() {
            return;
        }
        let read = self.of.gpu.mark();
        if let Err(error) = &read {
            // Then no later step or copy succeeds either.
            tracing::warn!(error = error as &dyn std::error::Error, "the end of a step was not marked");
        }
        let read = read.ok();
        let mut state = self.of.lock();
        for slot in &self.slots {
            if let Some(held) = &mut state.held[*slot as usize] {
                (held.busy, held.read) = (false, read.clone());
            }
        }
    }
}

/// Who asks for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// A step: all but its own adapters make room.
    Step,
    /// One that will come: those that nobody wants make room.
    Later,
}

impl Slots {
    /// Begins empty; the columns are `sites`, and there is room for `numbers` of `dtype`.
    pub(super) fn new(gpu: &Gpu, slots: usize, sites: Range<usize>, (numbers, dtype): (usize, DType)) -> Result<Self> {
        let columns = sites.len();
        let line = |shape: &[usize], dtype| {
            let staged =
                Staged::new(Tensor::zeros(shape.iter().product::<usize>(), dtype, &Device::Cpu)?, &gpu.device())?;
            Ok::<_, candle_core::Error>((Tensor::zeros(shape, dtype, &gpu.device())?, staged))
        };
        let (addresses, of_addresses) = line(&[slots, columns, 2], DType::I64)?;
        let (ranks, of_ranks) = line(&[slots, columns], DType::U32)?;
        let (factors, of_factors) = line(&[slots, columns], DType::F32)?;
        let tables = Tables { addresses, ranks, factors, room: gpu.tensor(numbers.max(1), dtype)?, sites };
        let state = State {
            side: gpu.side()?,
            lines: [of_addresses, of_ranks, of_factors],
            copied: vec![None; slots],
            held: std::iter::repeat_with(|| None).take(slots).collect(),
            left: Vec::new(),
            now: 0,
            told: Vec::new(),
        };
        // Memory is there for other streams when the one that took it has come so far.
        gpu.wait()?;
        Ok(Self { gpu: gpu.clone(), state: Mutex::new(state), tables })
    }

    /// Returns what kernels read.
    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Returns whether an adapter is in a slot.
    #[cfg(test)]
    pub(super) fn has(&self, adapter: &Arc<Adapter>) -> bool {
        self.lock().find(adapter, 1.0).is_some()
    }

    /// Does something that must not need the slots.
    #[cfg(test)]
    pub(super) fn while_locked(&self, work: impl FnOnce()) {
        let held = self.lock();
        work();
        drop(held);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the adapters of a step into slots, if all of them are of that kind and find room; the step's work begins after
    /// their copies.
    pub(super) fn place(&self, lora: &LoraBatch) -> Result<Option<Placed<'_>>> {
        let mut placed = Placed { slots: Vec::with_capacity(lora.runs.len()), rank: 0, of: self };
        if lora.runs.is_empty() {
            return Ok(Some(placed));
        }
        if lora.runs.iter().any(|run| run.adapter.piece().is_none()) {
            return Ok(None);
        }
        let mut state = self.lock();
        state.now += 1;
        let now = state.now;
        if !state.has_room(lora, self.tables.room.elem_count()) {
            lora.runs.iter().for_each(|run| state.tell(run));
            return Ok(None);
        }
        let mut found = state.fill_all(&self.tables, &self.gpu, lora)?;
        if found.is_none() {
            // There is room, but not in one piece: all but those of other passes leave, and come again side by side.
            state.clear();
            found = state.fill_all(&self.tables, &self.gpu, lora)?;
        }
        let Some(found) = found else {
            lora.runs.iter().for_each(|run| state.tell(run));
            return Ok(None);
        };
        for slot in found {
            let Some(held) = &mut state.held[slot] else { continue };
            held.used = now;
            placed.rank = placed.rank.max(held.rank);
            placed.slots.push(slot as u32);
        }
        let mut coming = Vec::new();
        for slot in &placed.slots {
            if let Some(held) = &mut state.held[*slot as usize] {
                held.busy = true;
                coming.extend(held.coming.take());
            }
        }
        drop(state);
        coming.iter().try_for_each(|mark| self.gpu.follow(mark))?;
        Ok(Some(placed))
    }

    /// Brings an adapter that a step will need into a slot, if there is one that nobody needs.
    pub(super) fn prefetch(&self, adapter: &Arc<Adapter>) -> Result<()> {
        // Who asks does not wait: neither for others, nor for a copy that the host has a part in.
        let (Some(piece), Ok(mut state)) = (adapter.piece(), self.state.try_lock()) else { return Ok(()) };
        let is_locked = piece.numbers().lock().is_some_and(PageLock::is_locked);
        if !is_locked || state.find(adapter, 1.0).is_some() {
            return Ok(());
        }
        state.fill(&self.tables, &self.gpu, (adapter, 1.0), For::Later).map(drop)
    }
}

impl State {
    /// Returns whether all adapters of a step can be in slots at once.
    fn has_room(&self, lora: &LoraBatch, total: usize) -> bool {
        let is_first = |i: usize| {
            let Run { adapter, scale, .. } = &lora.runs[i];
            let same = |run: &Run| Arc::ptr_eq(&run.adapter, adapter) && run.scale.to_bits() == scale.to_bits();
            !lora.runs[..i].iter().any(same)
        };
        let own: Vec<&Run> = lora.runs.iter().enumerate().filter(|(i, _)| is_first(*i)).map(|(_, run)| run).collect();
        let numbers = |run: &&Run| run.adapter.piece().map_or(0, |piece| piece.numbers().tensor().elem_count());
        own.len() <= self.held.len() && own.iter().map(numbers).sum::<usize>() <= total
    }

    /// Returns the slots of all runs of a step; those that are there already stay.
    fn fill_all(&mut self, tables: &Tables, gpu: &Gpu, lora: &LoraBatch) -> Result<Option<Vec<usize>>> {
        for run in &lora.runs {
            let slot = self.find(&run.adapter, run.scale);
            if let Some(held) = slot.and_then(|slot| self.held[slot].as_mut()) {
                held.used = self.now;
            }
        }
        let mut slots = Vec::with_capacity(lora.runs.len());
        for Run { adapter, scale, .. } in &lora.runs {
            let slot = match self.find(adapter, *scale) {
                Some(slot) => Some(slot),
                None => self.fill(tables, gpu, (adapter, *scale), For::Step)?,
            };
            let Some(slot) = slot else { return Ok(None) };
            slots.push(slot);
        }
        Ok(Some(slots))
    }

    /// Empties all slots but those of steps that are being given to the device.
    fn clear(&mut self) {
        for (slot, held) in self.held.iter_mut().enumerate() {
            if let Some(Held { place, read, .. }) = held.take_if(|held| !held.busy) {
                self.left.extend(read.map(|read| Left { slot, place, read }));
            }
        }
    }

    fn find(&self, adapter: &Arc<Adapter>, scale: f32) -> Option<usize> {
        let same = |held: &Held| {
            std::ptr::eq(held.adapter.as_ptr(), Arc::as_ptr(adapter)) && held.scale.to_bits() == scale.to_bits()
        };
        self.held.iter().position(|held| held.as_ref().is_some_and(same))
    }

    /// Writes an adapter into a free slot. Others make room: first who has left memory, then who nobody wants, of these who
    /// was used least recently. Nobody leaves where that does not help.
    fn fill(
        &mut self,
        tables: &Tables,
        gpu: &Gpu,
        (adapter, scale): (&Arc<Adapter>, f32),
        of: For,
    ) -> Result<Option<usize>> {
        let Some(piece) = adapter.piece() else { return Ok(None) };
        let numbers = piece.numbers().tensor().elem_count();
        let mut gone = Vec::new();
        let (slot, start) = loop {
            let free = self.held.iter().position(Option::is_none);
            if let Some(found) = free.zip(self.gap(numbers, tables.room.elem_count())) {
                break found;
            }
            let Some(oldest) = self.oldest(of) else {
                gone.into_iter().for_each(|(slot, held)| self.held[slot] = Some(held));
                return Ok(None);
            };
            gone.extend(self.held[oldest].take().map(|held| (oldest, held)));
        };
        let left = gone.into_iter().filter_map(|(slot, held)| Some(Left { slot, place: held.place, read: held.read? }));
        self.left.extend(left);
        self.left.retain(|left| !left.read.is_over());
        let place = start..start + numbers;
        let overwritten =
            |left: &&Left| left.slot == slot || (left.place.start < place.end && place.start < left.place.end);
        let after: Vec<Mark> = self.left.iter().filter(overwritten).map(|left| left.read.clone()).collect();
        let (coming, rank) = self.copy(tables, gpu, (piece, scale), (slot, start), &after)?;
        let adapter = Arc::downgrade(adapter);
        let (used, coming) = (self.now, Some(coming));
        self.held[slot] = Some(Held { adapter, scale, rank, place, coming, used, busy: false, read: None });
        Ok(Some(slot))
    }

    /// Copies a piece to where it has room, and the line of its slot; returns the mark behind that and the largest rank.
    fn copy(
        &mut self,
        tables: &Tables,
        gpu: &Gpu,
        (piece, scale): (&Piece, f32),
        (slot, start): (usize, usize),
        after: &[Mark],
    ) -> Result<(Mark, usize)> {
        let columns = tables.sites.len();
        let (mut addresses, mut ranks) = (vec![0_i64; 2 * columns], vec![0_u32; columns]);
        for part in piece.parts() {
            let column = tables.column(part.site);
            ranks[column] = part.rank as u32;
            for (side, at) in [part.a, part.b].into_iter().enumerate() {
                addresses[2 * column + side] = gpu.address(&tables.room.narrow(0, start + at, 1)?)? as i64;
            }
        }
        let rank = ranks.iter().copied().max().unwrap_or(0) as usize;
        // What is copied from there last has to be over before it is written.
        if let Some(mark) = self.copied[slot].take() {
            mark.wait()?;
        }
        let [of_addresses, of_ranks, of_factors] = &self.lines;
        let cpu = |line: &Staged, new: Tensor, at: usize| line.tensor().slice_set(&new, 0, at);
        cpu(of_addresses, Tensor::new(addresses, &Device::Cpu)?, 2 * slot * columns)?;
        cpu(of_ranks, Tensor::new(ranks, &Device::Cpu)?, slot * columns)?;
        cpu(of_factors, Tensor::new(vec![scale; columns], &Device::Cpu)?, slot * columns)?;
        let line = slot * columns..(slot + 1) * columns;
        let numbers = piece.numbers().tensor().elem_count();
        let after: Vec<&Mark> = after.iter().collect();
        let mark = self.side.upload(
            &after,
            &[
                (piece.numbers(), 0..numbers, &tables.room.narrow(0, start, numbers)?),
                (of_addresses, 2 * line.start..2 * line.end, &tables.addresses.narrow(0, slot, 1)?),
                (of_ranks, line.clone(), &tables.ranks.narrow(0, slot, 1)?),
                (of_factors, line, &tables.factors.narrow(0, slot, 1)?),
            ],
        )?;
        self.copied[slot] = Some(mark.clone());
        Ok((mark, rank))
    }

    /// Returns who is to make room next.
    fn oldest(&self, of: For) -> Option<usize> {
        let may = |held: &Held| match of {
            For::Step => !held.busy && held.used < self.now,
            For::Later => !held.busy && !held.is_wanted(),
        };
        let held = self.held.iter().enumerate().filter_map(|(slot, held)| Some((slot, held.as_ref()?)));
        let oldest =
            held.filter(|(_, held)| may(held)).min_by_key(|(_, held)| (held.adapter.strong_count().min(2), held.used));
        oldest.map(|(slot, _)| slot)
    }

    /// Returns where `numbers` of the room are nobody's, one behind the other.
    fn gap(&self, numbers: usize, total: usize) -> Option<usize> {
        let mut taken: Vec<_> = self.held.iter().flatten().map(|held| (held.place.start, held.place.end)).collect();
        taken.sort_unstable();
        gap(&taken, numbers, total)
    }

    /// Says once that an adapter finds no room.
    fn tell(&mut self, Run { adapter, scale, .. }: &Run) {
        if self.find(adapter, *scale).is_some() {
            return;
        }
        self.told.retain(|told| told.strong_count() > 0);
        if self.told.iter().any(|told| std::ptr::eq(told.as_ptr(), Arc::as_ptr(adapter))) {
            return;
        }
        self.told.push(Arc::downgrade(adapter));
        let (generation, bytes) = (adapter.generation(), adapter.info().bytes);
        let help = "more engine.adapter_slot_bytes make room";
        tracing::warn!(%generation, bytes, help, "an adapter finds no room in slots: its steps are slow");
    }
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
