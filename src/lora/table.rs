//! An adapter on the CPU as steps read it: its low-rank matrices one behind the other, found without a search.
//!
//! A step of few rows takes some microseconds a layer, and the model's weights, which pass meanwhile, leave little else in
//! the caches: what an adapter adds should cost the memory of its matrices and not much more. The changes of such an
//! adapter are views of that memory. Computes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};

use super::{Adapter, Change, LinearDelta, SiteId};
use crate::ops::cpu::Factors;

/// Bytes that a matrix begins at a multiple of: a line of the caches.
const LINE: usize = 64;

/// What an adapter does, by site.
#[derive(Debug)]
pub(super) struct Table {
    /// By site: one more than the index of its entry, 0 where there is none.
    index: Vec<u32>,
    entries: Vec<Entry>,
    /// Matrices of f32 and what those of 8 bits are worth, matrices of bf16, and those of 8 bits.
    numbers: [Option<Tensor>; 3],
}

/// What an adapter does at a site.
#[derive(Debug)]
enum Entry {
    /// It adds low-rank matrices, and nothing else.
    LowRank(Part),
    /// Something that its change tells.
    Other,
}

/// Where the matrices of a site lie.
#[derive(Debug)]
struct Part {
    /// Which of the numbers they are in.
    of: usize,
    /// A, by columns.
    a: Range<usize>,
    /// s·B, by rows, or by pairs of them in 8 bits.
    b: Range<usize>,
    /// What numbers of 8 bits are worth, among those of f32.
    worth: Range<usize>,
}

/// Number formats in their order.
const FORMATS: [DType; 3] = [DType::F32, DType::BF16, DType::U8];

impl Table {
    /// Puts low-rank matrices behind each other and returns the changes, of which they are views then; no table where there
    /// is nothing on the CPU to put.
    pub(super) fn of(changes: BTreeMap<SiteId, Change>) -> Result<(BTreeMap<SiteId, Change>, Option<Self>)> {
        let mut totals = [0; FORMATS.len()];
        for (of, delta) in changes.values().filter_map(plain) {
            totals[of] += reach(&delta.a) + reach(&delta.b);
            totals[0] += delta.worth.as_ref().map_or(0, reach);
        }
        let sites = changes.keys().next_back().map_or(0, |site| site.0 + 1);
        if totals.iter().all(|total| *total == 0) {
            return Ok((changes, None));
        }
        let mut numbers = [const { None }; FORMATS.len()];
        for ((numbers, total), format) in numbers.iter_mut().zip(totals).zip(FORMATS) {
            *numbers = (total > 0).then(|| Tensor::zeros(total, format, &Device::Cpu)).transpose()?;
        }
        let mut ends = [0; FORMATS.len()];
        let mut put = |of: usize, matrix: &Tensor| {
            let Some(numbers) = &numbers[of] else { bail!("a table without place for {:?}", matrix.shape()) };
            let (begin, count) = (ends[of], matrix.elem_count());
            numbers.slice_set(&matrix.flatten_all()?, 0, begin)?;
            ends[of] += reach(matrix);
            Ok((begin..begin + count, numbers.narrow(0, begin, count)?.reshape(matrix.shape())?))
        };
        let (mut index, mut entries, mut views) = (vec![0; sites], Vec::new(), BTreeMap::new());
        for (site, change) in changes {
            let of = plain(&change).map(|(of, _)| of);
            let (entry, change) = match (of, change) {
                (Some(of), Change::Linear(delta)) => {
                    let ((a, own_a), (b, own_b)) = (put(of, &delta.a.t()?)?, put(of, &delta.b)?);
                    let (worth, own_worth) = delta.worth.as_ref().map(|worth| put(0, worth)).transpose()?.unzip();
                    let views = LinearDelta { a: own_a.t()?, b: own_b, worth: own_worth, ..delta };
                    let worth = worth.unwrap_or_default();
                    (Entry::LowRank(Part { of, a, b, worth }), Change::Linear(views))
                }
                (_, change) => (Entry::Other, change),
            };
            entries.push(entry);
            index[site.0] = entries.len() as u32;
            views.insert(site, change);
        }
        Ok((views, Some(Self { index, entries, numbers })))
    }

    /// Returns what happens at a site.
    fn at(&self, site: SiteId) -> Option<&Entry> {
        let number = *self.index.get(site.0)? as usize;
        self.entries.get(number.checked_sub(1)?)
    }

    /// Begins to read it.
    pub(super) fn open(&self) -> Opened<'_> {
        fn read(numbers: &Tensor) -> Guard<'_> {
            Box::new(numbers.storage_and_layout().0)
        }
        Opened { table: self, numbers: self.numbers.each_ref().map(|numbers| numbers.as_ref().map(read)) }
    }
}

type Guard<'a> = Box<dyn Deref<Target = Storage> + 'a>;

/// A table that is read.
pub(super) struct Opened<'a> {
    table: &'a Table,
    numbers: [Option<Guard<'a>>; FORMATS.len()],
}

impl fmt::Debug for Opened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("table", self.table).finish_non_exhaustive()
    }
}

/// What a table says of a site.
pub(super) enum Found<'a> {
    /// The adapter does nothing there.
    Nothing,
    /// It adds low-rank matrices, and nothing else.
    LowRank(Factors<'a>),
    /// Something that its change tells.
    Other,
}

impl Opened<'_> {
    /// Returns what happens at a site.
    pub(super) fn at(&self, site: SiteId) -> Found<'_> {
        let part = match self.table.at(site) {
            None => return Found::Nothing,
            Some(Entry::Other) => return Found::Other,
            Some(Entry::LowRank(part)) => part,
        };
        self.factors(part).map_or(Found::Other, Found::LowRank)
    }

    fn factors(&self, part: &Part) -> Option<Factors<'_>> {
        let Storage::Cpu(numbers) = &**self.numbers[part.of].as_deref()? else { return None };
        let Part { a, b, worth, .. } = part;
        if let CpuStorage::F32(all) = numbers {
            return Some(Factors::F32([&all[a.clone()], &all[b.clone()]]));
        }
        if let CpuStorage::BF16(all) = numbers {
            return Some(Factors::Bf16([&all[a.clone()], &all[b.clone()]]));
        }
        let (CpuStorage::U8(all), Storage::Cpu(CpuStorage::F32(wide))) = (numbers, &**self.numbers[0].as_deref()?)
        else {
            return None;
        };
        let matrices = [&all[a.clone()], &all[b.clone()]].map(bytemuck::cast_slice);
        Some(Factors::Int8 { matrices, worth: &wide[worth.clone()] })
    }
}

impl Adapter {
    /// Returns what it does at a site.
    pub(super) fn change(&self, site: SiteId) -> Option<&Change> {
        if self.table.as_ref().is_some_and(|table| table.at(site).is_none()) {
            return None;
        }
        self.changes.get(&site)
    }
}

/// Returns the format of matrices that are all that happens at a layer, by its number, if they are on the CPU.
fn plain(change: &Change) -> Option<(usize, &LinearDelta)> {
    let Change::Linear(delta) = change else { return None };
    let lies = delta.is_plain() && delta.a.dtype() == delta.b.dtype() && delta.a.device().is_cpu();
    let of = FORMATS.iter().position(|format| lies && *format == delta.a.dtype())?;
    Some((of, delta))
}

/// Returns how many numbers a matrix takes, with those up to the next one.
fn reach(matrix: &Tensor) -> usize {
    matrix.elem_count().next_multiple_of(LINE / matrix.dtype().size_in_bytes())
}
