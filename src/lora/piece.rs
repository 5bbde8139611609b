//! An adapter in one piece of the host's memory, as the slots of a device take it: one copy brings all of it there.
//!
//! For adapters that low-rank matrices are all of, where the base model has slots for them. Each matrix begins at a
//! multiple of [`TOGETHER`] numbers: of each site in order A `[rank, input]`, then s·B `[output, rank]`. The changes of such
//! an adapter are views of the piece; what computes with tensors on the device brings them there matrix by matrix. Copies
//! nothing to slots itself: that is the model's.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, bail};

use super::{Base, Change, LinearDelta, SiteId};
use crate::ops::Staged;

/// Numbers that a matrix begins at a multiple of: kernels read 16 bytes at once.
const TOGETHER: usize = 8;

/// The matrices of an adapter, one behind the other in the number format of the slots.
#[derive(Debug)]
pub struct Piece {
    numbers: Staged,
    parts: Vec<Part>,
}

/// Where the matrices of a site lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The site.
    pub site: SiteId,
    /// Rows of A.
    pub rank: usize,
    /// First number of A `[rank, input]`.
    pub a: usize,
    /// First number of s·B `[output, rank]`.
    pub b: usize,
}

impl Piece {
    /// Returns its numbers.
    pub fn numbers(&self) -> &Staged {
        &self.numbers
    }

    /// Returns where what lies, by site in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns the bytes that it takes, on the host or in slots.
    pub fn bytes(&self) -> u64 {
        let numbers = self.numbers.tensor();
        (numbers.elem_count() * numbers.dtype().size_in_bytes()) as u64
    }
}

/// Puts the matrices of an adapter into one piece, where that is all it has and `base` has slots for all of it; else what
/// the binder kept in the host's memory goes to the device. Returns the changes as they lie then.
pub(super) fn in_one(
    changes: BTreeMap<SiteId, Change>,
    base: &dyn Base,
) -> Result<(BTreeMap<SiteId, Change>, Option<Piece>)> {
    let format = changes.keys().next().and_then(|site| base.slot_format(*site));
    let reach = |matrix: &Tensor| matrix.elem_count().next_multiple_of(TOGETHER);
    let total = changes.values().filter_map(matrices).flatten().map(reach).sum::<usize>();
    // One that would never be in a slot is brought to the device once, and not in every step.
    let has_room = total <= base.slot_numbers();
    if format.is_some() && !has_room {
        let help = "more engine.adapter_slot_bytes make room";
        tracing::warn!(numbers = total, help, "an adapter is larger than all slots: its steps are slow");
    }
    let taken = has_room && changes.iter().all(|(site, change)| fits(base, *site, change));
    let (Some(format), true) = (format, taken) else {
        let on_device = |(site, change)| Ok((site, on_device(site, change, base)?));
        return Ok((changes.into_iter().map(on_device).collect::<Result<_>>()?, None));
    };
    let numbers = Tensor::zeros(total, format, &Device::Cpu)?;
    let mut at = 0;
    let mut put = |matrix: &Tensor| {
        let (begin, count) = (at, matrix.elem_count());
        numbers.slice_set(&matrix.flatten_all()?.to_dtype(format)?, 0, begin)?;
        at += reach(matrix);
        Ok::<_, candle_core::Error>((begin, numbers.narrow(0, begin, count)?.reshape(matrix.shape())?))
    };
    let (mut parts, mut views) = (Vec::with_capacity(changes.len()), BTreeMap::new());
    for (site, change) in changes {
        let Change::Linear(delta) = change else { bail!("a change that no slot takes") };
        let rank = delta.b.dim(0)?;
        let ((a, own_a), (b, own_b)) = (put(&delta.a.t()?)?, put(&delta.b.t()?)?);
        parts.push(Part { site, rank, a, b });
        views.insert(site, Change::Linear(LinearDelta { a: own_a.t()?, b: own_b.t()?, ..delta }));
    }
    let numbers = Staged::new(numbers, base.device())?;
    Ok((views, Some(Piece { numbers, parts })))
}

/// Returns whether a change is one that slots take, and lies in the host's memory.
fn fits(base: &dyn Base, site: SiteId, change: &Change) -> bool {
    match change {
        Change::Linear(delta) => delta.is_plain() && base.slot_format(site).is_some() && delta.b.device().is_cpu(),
        Change::Embedding { .. } | Change::Replaced { .. } | Change::Bias(_) => false,
    }
}

fn matrices(change: &Change) -> Option<[&Tensor; 2]> {
    match change {
        Change::Linear(LinearDelta { a, b, .. }) => Some([a, b]),
        Change::Embedding { .. } | Change::Replaced { .. } | Change::Bias(_) => None,
    }
}

/// Brings a low-rank change to the base's device, in the format and order that it has there.
fn on_device(site: SiteId, change: Change, base: &dyn Base) -> Result<Change> {
    match change {
        Change::Linear(delta) if !delta.b.device().same_device(base.device()) => {
            let [a, b] = [&delta.a, &delta.b].map(|matrix| brought(matrix, base.device()));
            let delta = LinearDelta { a: a?, b: b?.contiguous()?, ..delta };
            Ok(Change::Linear(delta.in_format(base.low_rank_format(site))?))
        }
        Change::Linear(_) | Change::Embedding { .. } | Change::Replaced { .. } | Change::Bias(_) => Ok(change),
    }
}

/// Returns a matrix on a device: itself where it is there already, else a copy of it alone.
pub(super) fn brought(matrix: &Tensor, device: &Device) -> Result<Tensor> {
    if matrix.device().same_device(device) {
        return Ok(matrix.clone());
    }
    // What is moved is all memory that a tensor is a view of.
    match matrix.is_contiguous() {
        true => matrix.force_contiguous()?.to_device(device),
        false => matrix.t()?.force_contiguous()?.to_device(device)?.t(),
    }
}
