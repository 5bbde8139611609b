//! Tensors of f32 on the CPU as slices, and products of them.
//!
//! The bridge between candle's tensors and the kernels of `cpu`. Everything else is left to the caller's composition.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor};

use super::cpu::{Factors, View, multiply};

/// Returns whether a tensor is f32 on the CPU.
pub(super) fn is_plain(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// Calls `work` with the values of tensors, each made contiguous.
///
/// # Errors
/// When one is not f32 on the CPU, or `work` fails.
pub fn with_slices<const N: usize, R>(tensors: [&Tensor; N], work: impl FnOnce([&[f32]; N]) -> Result<R>) -> Result<R> {
    let contiguous = tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = contiguous.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) = (&**storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("a tensor is not f32 on the CPU");
        };
        *slice = &data[start..end];
    }
    work(slices)
}

/// Calls `work` with the numbers of `a` `[input, r]`, by columns, and of `b` `[r, output]`, by rows, without a copy where they
/// lie so: f32 or bf16 on the CPU.
///
/// # Errors
/// When they are something else, or `work` fails.
pub fn with_factors<R>(a: &Tensor, b: &Tensor, work: impl FnOnce(Factors<'_>) -> Result<R>) -> Result<R> {
    let by_columns = |layout: &Layout| {
        let [input, rank] = *layout.dims() else { return None };
        let [row, column] = *layout.stride() else { return None };
        let lies = (row == 1 || input == 1) && (column == input || rank == 1);
        lies.then_some(layout.start_offset()..layout.start_offset() + input * rank)
    };
    let by_rows = |layout: &Layout| layout.contiguous_offsets().map(|(start, end)| start..end);
    let (Some(of_a), Some(of_b)) = (by_columns(a.layout()), by_rows(b.layout())) else {
        return with_factors(&a.t()?.contiguous()?.t()?, &b.contiguous()?, work);
    };
    let (a, b) = (a.storage_and_layout().0, b.storage_and_layout().0);
    match (&*a, &*b) {
        (Storage::Cpu(CpuStorage::F32(a)), Storage::Cpu(CpuStorage::F32(b))) => {
            work(Factors::F32([&a[of_a], &b[of_b]]))
        }
        (Storage::Cpu(CpuStorage::BF16(a)), Storage::Cpu(CpuStorage::BF16(b))) => {
            work(Factors::Bf16([&a[of_a], &b[of_b]]))
        }
        _ => candle_core::bail!("low-rank matrices are neither f32 nor bf16 on the CPU"),
    }
}

/// Returns the product of two f32 matrices on the CPU, however they lie in memory.
///
/// # Errors
/// When shapes do not fit.
pub(super) fn product_of(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    let (rows, columns) = (a.dim(0)?, b.dim(1)?);
    let mut out = vec![0.0; rows * columns];
    let sides = [a.storage_and_layout(), b.storage_and_layout()];
    let mut views = Vec::with_capacity(2);
    for (storage, layout) in &sides {
        let Storage::Cpu(CpuStorage::F32(data)) = &**storage else {
            candle_core::bail!("a tensor is not f32 on the CPU");
        };
        let (shape, stride) = (layout.shape().dims2()?, layout.stride());
        views.extend(View::new(&data[layout.start_offset()..], shape, (stride[0], stride[1])));
    }
    let [a, b] = views[..] else { candle_core::bail!("a matrix reaches beyond its memory") };
    multiply(a, b, &mut out, false)?;
    Ok(out)
}
