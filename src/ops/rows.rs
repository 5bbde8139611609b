//! Loops over rows of f32 on the CPU: one pass where a composition of tensor operations takes ten.
//!
//! Says which tensors it can take and leaves the others to the caller's composition. Knows no mathematics.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use rayon::prelude::*;

/// Values that one thread takes at a time, at least.
const CHUNK: usize = 1 << 13;

/// Calls `work` with the same row of each input and of each output; all have one shape, the last dimension is a row.
///
/// Returns `None` when an input is not f32 on the CPU, or shapes differ.
///
/// # Errors
/// When a tensor cannot be made contiguous.
pub(super) fn by_rows<const N: usize, const M: usize>(
    inputs: [&Tensor; N],
    work: impl Fn([&[f32]; N], [&mut [f32]; M]) + Sync,
) -> Result<Option<[Tensor; M]>> {
    let Some(first) = inputs.first() else { return Ok(None) };
    let fits = |tensor: &&Tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32;
    let (count, width) = (first.elem_count(), first.dims().last().copied().unwrap_or(0));
    if !inputs.iter().all(|tensor| fits(tensor) && tensor.dims() == first.dims()) || count == 0 {
        return Ok(None);
    }
    let contiguous = inputs.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = contiguous.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) = (&**storage, layout.contiguous_offsets())
        else {
            return Ok(None);
        };
        *slice = &data[start..end];
    }
    let mut outputs: [Vec<f32>; M] = std::array::from_fn(|_| vec![0.0; count]);
    let step = width * CHUNK.div_ceil(width);
    let mut parts: Vec<[&mut [f32]; M]> = Vec::with_capacity(count.div_ceil(step));
    let mut rest: [&mut [f32]; M] = outputs.each_mut().map(Vec::as_mut_slice);
    for start in (0..count).step_by(step) {
        let len = step.min(count - start);
        parts.push(rest.each_mut().map(|slice| {
            let (part, left) = std::mem::take(slice).split_at_mut(len);
            *slice = left;
            part
        }));
    }
    parts.into_par_iter().enumerate().for_each(|(i, mut part)| {
        let rows = part.first().map_or(0, |part| part.len() / width);
        for row in 0..rows {
            let at = i * step + row * width;
            let outputs = part.each_mut().map(|slice| &mut slice[row * width..(row + 1) * width]);
            work(slices.map(|slice| &slice[at..at + width]), outputs);
        }
    });
    drop(guards);
    let tensors = outputs.into_iter().map(|data| Tensor::from_vec(data, first.dims(), &Device::Cpu));
    Ok(tensors.collect::<Result<Vec<_>>>()?.try_into().ok())
}
