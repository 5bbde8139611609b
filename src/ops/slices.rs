//! Tensors of f32 on the CPU as slices, and products of them.
//!
//! The bridge between candle's tensors and the kernels of `cpu`. Everything else is left to the caller's composition.

use std::borrow::Cow;
use std::ops::{Deref, Range};

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
    let mut copied = Ok(());
    let contiguous = tensors.map(|tensor| {
        tensor.contiguous().unwrap_or_else(|error| {
            copied = Err(error);
            tensor.clone()
        })
    });
    copied?;
    let guards = contiguous.each_ref().map(Tensor::storage_and_layout);
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

/// Low-rank matrices as kernels read them: A `[input, r]` by columns, B `[r, output]` by rows. Copies where they lie otherwise.
#[derive(Debug)]
pub struct Pair<'a>([(Cow<'a, Tensor>, Range<usize>); 2]);

/// The same, while they are read.
#[derive(Debug)]
pub struct Reading<S>([(S, Range<usize>); 2]);

impl<'a> Pair<'a> {
    /// Takes A `[input, r]` and B `[r, output]`.
    ///
    /// # Errors
    /// When they are no matrices, or a copy fails.
    pub fn new(a: &'a Tensor, b: &'a Tensor) -> Result<Self> {
        let a = if by_columns(a.layout()).is_some() { Cow::Borrowed(a) } else { Cow::Owned(a.t()?.contiguous()?.t()?) };
        let b = if b.is_contiguous() { Cow::Borrowed(b) } else { Cow::Owned(b.contiguous()?) };
        let (Some(of_a), Some(of_b)) = (by_columns(a.layout()), b.layout().contiguous_offsets()) else {
            candle_core::bail!("A {:?} or B {:?} is no matrix", a.shape(), b.shape());
        };
        Ok(Self([(a, of_a), (b, of_b.0..of_b.1)]))
    }

    /// Begins to read them.
    pub fn read(&self) -> Reading<impl Deref<Target = Storage> + '_> {
        Reading(self.0.each_ref().map(|(tensor, place)| (tensor.storage_and_layout().0, place.clone())))
    }
}

impl<S: Deref<Target = Storage>> Reading<S> {
    /// Returns their numbers.
    ///
    /// # Errors
    /// When they are neither f32 nor bf16 on the CPU.
    pub fn factors(&self) -> Result<Factors<'_>> {
        let [(a, of_a), (b, of_b)] = &self.0;
        match (&**a, &**b) {
            (Storage::Cpu(CpuStorage::F32(a)), Storage::Cpu(CpuStorage::F32(b))) => {
                Ok(Factors::F32([&a[of_a.clone()], &b[of_b.clone()]]))
            }
            (Storage::Cpu(CpuStorage::BF16(a)), Storage::Cpu(CpuStorage::BF16(b))) => {
                Ok(Factors::Bf16([&a[of_a.clone()], &b[of_b.clone()]]))
            }
            _ => candle_core::bail!("low-rank matrices are neither f32 nor bf16 on the CPU"),
        }
    }
}

/// Returns where a matrix lies whose columns lie in one piece each, one behind the other.
fn by_columns(layout: &Layout) -> Option<Range<usize>> {
    let ([rows, columns], [row, column]) = (layout.dims(), layout.stride()) else { return None };
    let lies = (*row == 1 || *rows == 1) && (column == rows || *columns == 1);
    lies.then_some(layout.start_offset()..layout.start_offset() + rows * columns)
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
