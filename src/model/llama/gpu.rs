//! The pass without gradients on a GPU: the same blocks as `pass_block`, by kernels of our own on memory that stays.
//!
//! Keys and values lie in pages of one pool; rows of all sequences go through a layer together, and through their adapters
//! by the slots of a table. A step in which every sequence computes one token is recorded once for each [`Form`] and run
//! again from then on: one launch instead of a thousand. The stream between blocks is f32, products are in the number
//! format of the model with f32 sums.
//! Shapes: `[rows, …]`, packed.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor};

use self::pass::Pass;
use self::room::{Form, NONE, Numbers, Part, Room, pages};
use self::shares::{Shares, Sizes};
use self::slots::{Placed, Slots};
use super::{Llama, Seen, site_of};
use crate::lora::{Adapter, SiteId};
use crate::model::cache::KvCache;
use crate::model::config::Module;
use crate::model::pages::{PAGE, Pool};
use crate::model::{Batch, Desk, ModelError, Read, Reserve, Reserved};
use crate::ops::cuda::{self, Gpu, MOST_NUMBERS, Recording};

mod pass;
mod room;
mod shares;
mod slots;
#[cfg(test)]
mod swaps;

// The pool's pages are what the kernels take for blocks.
const _: () = assert!(PAGE == cuda::BLOCK);
/// Largest rank for which steps are recorded.
const RANK: usize = 64;
/// Where nothing is said, slots have room for adapters of this rank on all linear layers.
const USUAL_RANK: usize = 16;

/// What a model has reserved on its device.
#[derive(Debug)]
pub(super) struct Resident {
    gpu: Gpu,
    /// Records steps.
    aside: Gpu,
    pool: Arc<Pool>,
    /// Keys of each layer, `[pages, kv_heads, PAGE, head_dim]`.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    /// Radians a token, f32 `[head_dim/2]`.
    frequencies: Tensor,
    reserved: Reserved,
    slots: Slots,
    /// Memory to choose tokens in; used under the lock of `state`.
    desk: Desk,
    /// The number format and the sites of the slots.
    slot_format: (DType, Range<usize>),
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// For steps that are recorded.
    decoding: Room,
    /// For all others; grows.
    other: Room,
    /// Steps, by what they are recorded for; none where the device did not record it.
    recorded: HashMap<(Form, usize), Option<Recording>>,
}

impl Resident {
    /// Returns the pool of keys and values.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Returns what is set aside.
    pub(super) fn reserved(&self) -> Reserved {
        self.reserved
    }

    /// Returns the number format of the slots for adapters, where they take a site.
    pub(super) fn slot_format(&self, site: SiteId) -> Option<DType> {
        self.slot_format.1.contains(&site.0).then_some(self.slot_format.0)
    }

    /// Returns how many numbers the slots have room for.
    pub(super) fn slot_numbers(&self) -> usize {
        self.slots.tables().numbers()
    }

    /// Brings an adapter into a slot, as far as nobody has to leave for it who is needed.
    pub(super) fn prefetch(&self, adapter: &Arc<Adapter>) {
        if let Err(error) = self.slots.prefetch(adapter) {
            // The step that needs it meets the same error, and tells who asked.
            tracing::debug!(error = &error as &dyn std::error::Error, "an adapter was not brought into a slot");
        }
    }

    /// Copies what a page holds in all layers.
    fn copy_page(&self, from: u32, to: u32) -> Result<()> {
        for pool in self.keys.iter().chain(&self.values) {
            self.gpu.copy(&pool.narrow(0, from as usize, 1)?, &pool.narrow(0, to as usize, 1)?)?;
        }
        Ok(())
    }
}

impl Llama {
    /// Reserves memory on the device for a pool of keys and values and for steps; does nothing on the CPU, nor where
    /// weights are of formats that the kernels lack.
    pub(super) fn reserve_on_gpu(&self, reserve: &Reserve) -> std::result::Result<Option<Resident>, ModelError> {
        let Some(gpu) = Gpu::of(&self.device) else { return Ok(None) };
        let dense = self
            .blocks
            .iter()
            .all(|block| Module::ALL.iter().all(|module| block.projection(*module).weight.tensor().is_some()));
        let config = &self.config;
        let known = [DType::F32, DType::BF16].contains(&self.dtype) && self.embedding.tensor().is_some();
        let heads = config.head_dim.is_multiple_of(8) && config.head_dim <= MOST_NUMBERS;
        // Rows that kernels read in pieces of 16 bytes.
        let sides = [config.hidden_size, config.intermediate_size, config.heads * config.head_dim];
        let even = sides.iter().all(|side| side.is_multiple_of(8));
        if !dense || !known || !heads || !even || config.layers == 0 {
            return Ok(None);
        }
        let linear = site_of(0, Module::ALL[0])..site_of(config.layers, Module::ALL[0]);
        let both_sides: usize = self.sites[linear.clone()].iter().map(|site| site.input + site.output).sum();
        let number = self.dtype.size_in_bytes() as u64;
        let few = bucket(reserve.sequences);
        let sizes = Sizes {
            page: self.info.kv_bytes_per_token * PAGE as u64,
            usual_adapters: (few * USUAL_RANK * both_sides) as u64 * number,
        };
        let Shares { served, audits, adapters, jobs } =
            Shares::of(gpu.memory()?.0 as u64, reserve, sizes).map_err(ModelError::Device)?;
        let total = served.saturating_add(audits);
        let layer = || gpu.tensor((total, config.kv_heads, PAGE, config.head_dim), self.dtype);
        let keys = (0..config.layers).map(|_| layer()).collect::<Result<Vec<_>>>()?;
        let values = (0..config.layers).map(|_| layer()).collect::<Result<Vec<_>>>()?;
        let outputs = self.head.weight.outputs()?;
        let width = pages(config.context_length).min(total);
        let rows = reserve.rows.max(reserve.sequences);
        let new_room = |sizes, chosen| Room::new(&gpu, config, self.dtype, sizes, (chosen, outputs), RANK);
        let mut scratch = 0;
        for rows in (1..=reserve.sequences).map(bucket) {
            let queries = gpu.tensor((rows, config.heads * config.head_dim), self.dtype)?;
            for width in widths(width) {
                scratch = scratch.max(cuda::decode_scratch(&queries, &keys[0], width)?);
            }
        }
        let numbers = |rows: usize, sequences: usize| {
            let width = widths(width).last().unwrap_or(width);
            Form { rows, sequences, width, chosen: sequences }.len()
        };
        let decoding = new_room((few, numbers(few, few), scratch), few)?;
        let other = new_room((rows, numbers(rows, reserve.sequences), 0), reserve.sequences)?;
        let size = (usize::try_from(adapters / number).unwrap_or(usize::MAX), self.dtype);
        let slots = Slots::new(&gpu, few, linear.clone(), size)?;
        let desk = Desk::new(&gpu, few, outputs)?;
        let reserved = Reserved {
            weights: self.info.parameters * number,
            kv_cache: served as u64 * sizes.page,
            audits: audits as u64 * sizes.page,
            steps: decoding.bytes() + other.bytes() + desk.bytes(),
            adapters: slots.tables().bytes(),
            jobs,
        };
        // Behind all that serving takes, so that it is not of the same memory.
        if let Err(error) = gpu.claim(usize::try_from(jobs).unwrap_or(usize::MAX)) {
            let what =
                format!("the device has not the {jobs} bytes for jobs (jobs.memory_bytes) beside what serving takes");
            return Err(ModelError::Device(format!("{what}: {error}")));
        }
        let free = gpu.memory()?.0;
        tracing::info!(device = self.info.device, ?reserved, free, "memory of the device is set aside");
        Ok(Some(Resident {
            aside: gpu.aside()?,
            pool: Pool::new(total),
            keys,
            values,
            frequencies: Tensor::new(&self.frequencies[..], &self.device)?,
            reserved,
            slots,
            desk,
            slot_format: (self.dtype, linear),
            state: Mutex::new(State { decoding, other, recorded: HashMap::new() }),
            gpu,
        }))
    }

    /// Runs a batch whose caches lie in the pool; returns f32 logits of the rows asked for.
    pub(super) fn run_on_gpu(
        &self,
        resident: &Resident,
        batch: &Batch<'_>,
        caches: &mut [&mut KvCache],
        seen: Option<Seen<'_>>,
    ) -> std::result::Result<Tensor, ModelError> {
        let mut own = None;
        self.run_and_show(resident, batch, caches, seen, &mut |logits, _| {
            // The room is the next step's.
            own = Some(if logits.device().is_cpu() { logits.clone() } else { resident.gpu.own(logits)? });
            Ok(())
        })?;
        own.ok_or_else(|| ModelError::Unsupported("a pass without logits".into()))
    }

    /// Runs a batch as [`Self::run_on_gpu`] does, and shows its logits where they lie.
    pub(super) fn run_and_show(
        &self,
        resident: &Resident,
        batch: &Batch<'_>,
        caches: &mut [&mut KvCache],
        seen: Option<Seen<'_>>,
        read: Read<'_>,
    ) -> std::result::Result<(), ModelError> {
        batch.lora.check_base(&self.info.fingerprint)?;
        let lengths: Vec<usize> = batch.segments.iter().map(|segment| segment.len).collect();
        let places = self.places(batch.tokens, &lengths, Some(&*caches))?;
        let mut state = resident.state.lock().unwrap_or_else(PoisonError::into_inner);
        for ((rows, past), cache) in places.iter().zip(caches.iter_mut()) {
            let own = cache.pages().ok_or_else(|| ModelError::Input("a cache of another pool".into()))?;
            let copy = own.extend(*past, rows.len()).map_err(|e| ModelError::Input(e.to_string()))?;
            if let Some((from, to)) = copy {
                resident.copy_page(from, to)?;
            }
        }
        let logits = self.step_on_gpu((resident, &mut state), batch, &places, caches, seen)?;
        for (cache, (rows, _)) in caches.iter_mut().zip(&places) {
            cache.advance(rows.len());
        }
        // Nobody else has the room, nor the desk, until this has read.
        read(&logits, Some(&resident.desk))
    }

    fn step_on_gpu(
        &self,
        (resident, state): (&Resident, &mut State),
        batch: &Batch<'_>,
        places: &[(Range<usize>, usize)],
        caches: &mut [&mut KvCache],
        seen: Option<Seen<'_>>,
    ) -> Result<Tensor> {
        let gpu = &resident.gpu;
        let asked = |i: usize| batch.segments[i].logits.count();
        let chosen: Vec<usize> =
            places.iter().enumerate().flat_map(|(i, (rows, _))| rows.end - asked(i)..rows.end).collect();
        let placed = resident.slots.place(batch.lora)?;
        let longest = places.iter().map(|(rows, _)| rows.len()).max().unwrap_or(0);
        let most = places.iter().map(|(rows, past)| pages(past + rows.len())).max().unwrap_or(1);
        let records = longest == 1
            && chosen.len() == places.len()
            && seen.is_none()
            && placed.as_ref().is_some_and(|placed| placed.rank <= RANK);
        let count = places.len();
        let form = match records {
            true => {
                let rows = bucket(count);
                Form { rows, sequences: rows, width: widths(most).last().unwrap_or(most), chosen: rows }
            }
            false => Form { rows: batch.tokens.len(), sequences: count, width: most, chosen: chosen.len() },
        };
        let numbers = numbers_of(form, batch, places, &chosen, placed.as_ref(), caches);
        let rank = placed.as_ref().map_or(0, |placed| placed.rank);
        let records = records && state.decoding.fits(form, RANK);
        if !records && !state.other.fits(form, rank) {
            let outputs = self.head.weight.outputs()?;
            let size = (form.rows, form.len(), 0);
            state.other = Room::new(gpu, &self.config, self.dtype, size, (form.chosen, outputs), rank.max(RANK))?;
        }
        let State { decoding, other, recorded } = state;
        let room = if records { decoding } else { &*other };
        room.upload(gpu, &numbers)?;
        let slots = (rank > 0).then_some((resident.slots.tables(), rank));
        let lora = (placed.is_none()).then_some(batch.lora);
        if records {
            // One recording serves every rank that its memory has room for.
            let slots = slots.map(|(slots, _)| (slots, RANK));
            let key = (form, slots.map_or(0, |(_, rank)| rank));
            let step = |gpu: &Gpu| {
                let pass = Pass { gpu, room, form, slots, lora: None, chosen: &[], longest: None };
                self.pass_on_gpu(resident, &pass, None)
            };
            match recorded.get(&key) {
                Some(Some(recording)) => recording.run(gpu)?,
                Some(None) => step(gpu)?,
                None => {
                    let recording = gpu.record(&resident.aside, step)?;
                    if let Err(error) = &recording {
                        tracing::warn!(error = error as &dyn std::error::Error, ?form, "a step was not recorded");
                    }
                    recorded.insert(key, recording.ok());
                }
            }
        } else {
            let pass = Pass { gpu, room, form, slots, lora, chosen: &chosen, longest: Some(longest) };
            self.pass_on_gpu(resident, &pass, seen)?;
        }
        if chosen.is_empty() {
            return Tensor::zeros((0, room.logits.dim(1)?), DType::F32, &candle_core::Device::Cpu);
        }
        room.logits.narrow(0, 0, chosen.len())
    }
}

/// Returns the number of rows that a recorded step has for `count` sequences.
fn bucket(count: usize) -> usize {
    match count {
        0..=2 => count.max(1),
        3..=4 => 4,
        5..=32 => count.next_multiple_of(8),
        _ => count.next_multiple_of(16),
    }
}

/// Returns the widths of tables of pages that steps are recorded for, up to the one that holds `pages`.
fn widths(pages: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(16), move |width| (*width < pages).then_some(2 * width))
}

/// Writes down the numbers of a step. Rows beyond those of the batch are nobody's.
fn numbers_of(
    form: Form,
    batch: &Batch<'_>,
    places: &[(Range<usize>, usize)],
    chosen: &[usize],
    placed: Option<&Placed<'_>>,
    caches: &mut [&mut KvCache],
) -> Numbers {
    let mut numbers = Numbers::new(form);
    numbers.part(Part::Ids)[..batch.tokens.len()].copy_from_slice(batch.tokens);
    let rows = chosen.iter().map(|row| *row as u32);
    numbers.part(Part::Chosen).iter_mut().zip(rows).for_each(|(to, row)| *to = row);
    // Sequences that are nobody's have no rows.
    numbers.part(Part::Starts).fill(batch.tokens.len() as u32);
    for (i, ((rows, past), cache)) in places.iter().zip(caches).enumerate() {
        numbers.part(Part::Starts)[i] = rows.start as u32;
        numbers.part(Part::Pasts)[i] = *past as u32;
        for (row, position) in rows.clone().zip(*past..) {
            numbers.part(Part::Positions)[row] = position as u32;
            numbers.part(Part::Lengths)[row] = position as u32 + 1;
        }
        let Some(own) = cache.pages() else { continue };
        for (row, position) in rows.clone().zip(*past..) {
            numbers.part(Part::Places)[row] = own.slot(position).unwrap_or(NONE);
        }
        let pages = &mut numbers.part(Part::Pages)[i * form.width..(i + 1) * form.width];
        pages.iter_mut().zip(own.ids()).for_each(|(to, page)| *to = page);
    }
    if let Some(placed) = placed {
        for (run, slot) in batch.lora.runs.iter().zip(&placed.slots) {
            numbers.part(Part::Slots)[run.rows.clone()].fill(*slot);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_step_has_room_for_its_sequences() {
        for count in 0..300 {
            assert!(bucket(count) >= count.max(1) && bucket(count) < count + 16);
            assert_eq!(bucket(bucket(count)), bucket(count));
            assert!(widths(count).last().is_some_and(|width| width >= count));
        }
    }
}
