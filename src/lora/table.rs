//! An adapter on the CPU as steps read it: its low-rank matrices one behind the other, found without a search.
//!
//! A step of few rows takes some microseconds a layer, and the model's weights, which pass meanwhile, leave little else in
//! the caches: what an adapter adds should cost the memory of its matrices and not much more. The changes of such an
//! adapter are views of that memory. Computes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};

use super::{Adapter, Change, LinearDelta, SiteId};
use crate::ops::Pair;
use crate::ops::cpu::Factors;

/// Numbers that a matrix begins at a multiple of: a line of the caches, and more.
const TOGETHER: usize = 32;

/// What an adapter does, by site.
#[derive(Debug)]
pub(super) struct Table {
    /// By site: one more than the index of its entry, 0 where there is none.
    index: Vec<u16>,
    entries: Vec<Entry>,
    /// Matrices of f32, then those of bf16.
    numbers: [Option<Tensor>; 2],
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
    /// s·B, by rows.
    b: Range<usize>,
}

impl Table {
    /// Puts low-rank matrices behind each other and returns the changes, of which they are views then; no table where there
    /// is nothing on the CPU to put.
    pub(super) fn of(changes: BTreeMap<SiteId, Change>) -> Result<(BTreeMap<SiteId, Change>, Option<Self>)> {
        let formats = [DType::F32, DType::BF16];
        let plain = |change: &Change| match change {
            Change::Linear(LinearDelta { a, b, b_bias: None, magnitude: None, bias: None, .. }) => {
                let same = a.dtype() == b.dtype() && a.device().is_cpu() && b.device().is_cpu();
                let of = formats.iter().position(|format| same && *format == a.dtype())?;
                Some((of, reach(a), reach(b)))
            }
            Change::Linear(_) | Change::Embedding { .. } | Change::Replaced { .. } | Change::Bias(_) => None,
        };
        let mut totals = [0; 2];
        for (of, a, b) in changes.values().filter_map(plain) {
            totals[of] += a + b;
        }
        let sites = changes.keys().next_back().map_or(0, |site| site.0 + 1);
        if totals == [0; 2] || changes.len() >= usize::from(u16::MAX) {
            return Ok((changes, None));
        }
        let mut numbers = [None, None];
        for ((numbers, total), format) in numbers.iter_mut().zip(totals).zip(formats) {
            *numbers = (total > 0).then(|| Tensor::zeros(total, format, &Device::Cpu)).transpose()?;
        }
        let (mut index, mut entries, mut views, mut ends) = (vec![0; sites], Vec::new(), BTreeMap::new(), [0; 2]);
        for (site, change) in changes {
            let of = plain(&change).map(|(of, ..)| of);
            let (entry, change) = match (of.and_then(|of| Some((of, numbers[of].as_ref()?))), change) {
                (Some((of, numbers)), Change::Linear(delta)) => {
                    let mut put = |matrix: &Tensor| {
                        let (begin, count) = (ends[of], matrix.elem_count());
                        numbers.slice_set(&matrix.flatten_all()?, 0, begin)?;
                        ends[of] += reach(matrix);
                        let view = numbers.narrow(0, begin, count)?.reshape(matrix.shape())?;
                        Ok::<_, candle_core::Error>((begin..begin + count, view))
                    };
                    let ((a, own_a), (b, own_b)) = (put(&delta.a.t()?)?, put(&delta.b)?);
                    let views = LinearDelta { a: own_a.t()?, b: own_b, ..delta };
                    (Entry::LowRank(Part { of, a, b }), Change::Linear(views))
                }
                (_, change) => (Entry::Other, change),
            };
            entries.push(entry);
            index[site.0] = entries.len() as u16;
            views.insert(site, change);
        }
        Ok((views, Some(Self { index, entries, numbers })))
    }

    /// Returns what happens at a site.
    fn at(&self, site: SiteId) -> Option<&Entry> {
        let number = usize::from(*self.index.get(site.0)?);
        self.entries.get(number.checked_sub(1)?)
    }

    /// Returns matrices, if they are of this table.
    fn pair(&self, part: &Part) -> Option<Pair<'_>> {
        let numbers = self.numbers[part.of].as_ref()?;
        Some(Pair::within(numbers, [part.a.clone(), part.b.clone()]))
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
    numbers: [Option<Guard<'a>>; 2],
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
        let numbers = self.numbers[part.of].as_ref();
        numbers.and_then(|numbers| factors(numbers, &part.a, &part.b)).map_or(Found::Other, Found::LowRank)
    }
}

/// Returns matrices that begin at the start of their storage.
fn factors<'a>(numbers: &'a Storage, a: &Range<usize>, b: &Range<usize>) -> Option<Factors<'a>> {
    match numbers {
        Storage::Cpu(CpuStorage::F32(all)) => Some(Factors::F32([&all[a.clone()], &all[b.clone()]])),
        Storage::Cpu(CpuStorage::BF16(all)) => Some(Factors::Bf16([&all[a.clone()], &all[b.clone()]])),
        Storage::Cpu(_) | Storage::Cuda(_) | Storage::Metal(_) => None,
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

    /// Returns the low-rank matrices of a site where its table has them and they are all that it does there.
    pub(super) fn plain(&self, site: SiteId) -> Option<Pair<'_>> {
        let table = self.table.as_ref()?;
        match table.at(site)? {
            Entry::LowRank(part) => table.pair(part),
            Entry::Other => None,
        }
    }
}

/// Returns how many numbers a matrix takes.
fn reach(matrix: &Tensor) -> usize {
    matrix.elem_count().next_multiple_of(TOGETHER)
}
