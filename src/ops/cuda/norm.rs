//! Norms of rows, and the sums before them.
//!
//! `x` is the sum that blocks add to, f32 or bf16; the rest is of one format, that of the products around it. Sums are
//! f32. Shapes: `[rows, width]`; rows of a multiple of 8 numbers are read 16 bytes at a time.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::ptx;

/// Threads of a block that has a fixed number of them.
const THREADS: u32 = 256;
/// Numbers that a block of [`add_rows`] takes.
const PART: usize = 8 * THREADS as usize;

/// Returns the name of a kernel for number formats, in the order of its name.
pub(super) fn named<const N: usize>(kernel: &str, formats: [DType; N]) -> Result<String> {
    let mut name = kernel.to_owned();
    for format in formats {
        #[expect(clippy::wildcard_enum_match_arm, reason = "kernels exist for these formats")]
        name.push_str(match format {
            DType::F32 => "_f32",
            DType::BF16 => "_bf16",
            other => bail!("{kernel} knows no {other:?}"),
        });
    }
    Ok(name)
}

/// Returns a launch of one block of threads a row, as many as there are groups of 8 numbers, within bounds.
fn a_row_each(function: &str, rows: usize, width: usize) -> Launch<'_> {
    let threads = width.div_ceil(8).next_multiple_of(32).clamp(32, 1024);
    Launch { file: ("norm", ptx::NORM), function, grid: (rows as u32, 1, 1), block: (threads as u32, 1, 1), shared: 0 }
}

/// Writes x / √(mean(x²) + eps) · weight to `out`; `x` and `out` are `[rows, width]`, `weight` is `[width]` of the
/// format of `out`. Formats are f32 and bf16.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn rms_norm(gpu: &Gpu, x: &Tensor, weight: &Tensor, eps: f64, out: &Tensor) -> Result<()> {
    let (rows, width) = x.dims2()?;
    if weight.dims() != [width] || out.dims() != x.dims() || weight.dtype() != out.dtype() {
        bail!("a norm of {:?} with {:?} for {:?}", x.shape(), weight.shape(), out.shape());
    }
    let name = named("rms_norm", [x.dtype(), out.dtype()])?;
    let [x, weight, out] = [x, weight, out].map(Argument::Tensor);
    let numbers = [Argument::U32(width as u32), Argument::F32(eps as f32)];
    gpu.launch(a_row_each(&name, rows, width), &[x, weight, out, numbers[0], numbers[1]])
}

/// Adds `delta` to `x` and writes the norm of the sum to `out`, as [`rms_norm`]; `x` is f32, `delta` `[rows, width]`
/// and `weight` are of the format of `out`.
///
/// # Errors
/// As [`rms_norm`].
pub fn add_rms_norm(gpu: &Gpu, x: &Tensor, delta: &Tensor, weight: &Tensor, eps: f64, out: &Tensor) -> Result<()> {
    let (rows, width) = x.dims2()?;
    let alike = [delta.dtype(), weight.dtype()].iter().all(|dtype| *dtype == out.dtype());
    let fits = weight.dims() == [width] && out.dims() == x.dims() && delta.dims() == x.dims();
    if !alike || !fits || x.dtype() != DType::F32 {
        bail!("a norm of {:?} and {:?} with {:?} for {:?}", x.shape(), delta.shape(), weight.shape(), out.shape());
    }
    let name = named("add_rms_norm", [out.dtype()])?;
    let [x, delta, weight, out] = [x, delta, weight, out].map(Argument::Tensor);
    let numbers = [Argument::U32(width as u32), Argument::F32(eps as f32)];
    gpu.launch(a_row_each(&name, rows, width), &[x, delta, weight, out, numbers[0], numbers[1]])
}

/// Writes (x - mean(x)) / √(variance(x) + eps) · weight + bias to `out`; `x` and `out` are `[rows, width]`, `weight`
/// and `bias` are `[width]` of the format of `out`.
///
/// # Errors
/// As [`rms_norm`].
pub fn layer_norm(gpu: &Gpu, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, out: &Tensor) -> Result<()> {
    let (rows, width) = x.dims2()?;
    let fits = [weight, bias].iter().all(|own| own.dims() == [width] && own.dtype() == out.dtype());
    if !fits || out.dims() != x.dims() {
        bail!("a norm of {:?} with {:?} and {:?} for {:?}", x.shape(), weight.shape(), bias.shape(), out.shape());
    }
    let name = named("layer_norm", [x.dtype(), out.dtype()])?;
    let [x, weight, bias, out] = [x, weight, bias, out].map(Argument::Tensor);
    let numbers = [Argument::U32(width as u32), Argument::F32(eps as f32)];
    gpu.launch(a_row_each(&name, rows, width), &[x, weight, bias, out, numbers[0], numbers[1]])
}

/// Adds `delta`, f32 or bf16, to `x`, f32 of the same shape.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn add_rows(gpu: &Gpu, x: &Tensor, delta: &Tensor) -> Result<()> {
    if x.dtype() != DType::F32 || x.dims() != delta.dims() {
        bail!("a sum of {:?} and {:?}", x.shape(), delta.shape());
    }
    let count = x.elem_count();
    let launch = Launch {
        file: ("norm", ptx::NORM),
        function: &named("add_rows", [delta.dtype()])?,
        grid: (count.div_ceil(PART).max(1) as u32, 1, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    gpu.launch(launch, &[Argument::Tensor(x), Argument::Tensor(delta), Argument::U32(count as u32)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::testing::{close, gpu, on, values};

    const SHAPES: [(usize, usize); 5] = [(1, 64), (5, 100), (33, 576), (2, 4097), (3, 9000)];
    const FORMATS: [DType; 2] = [DType::F32, DType::BF16];

    /// Every pair of formats, and the wider tolerance of the two.
    fn pairs() -> impl Iterator<Item = (DType, DType, DType)> {
        FORMATS.into_iter().flat_map(|x| FORMATS.map(|out| (x, out, if x == out { x } else { DType::BF16 })))
    }

    #[test]
    fn on_gpu_a_norm_is_that_of_the_cpu() {
        let gpu = gpu();
        for (rows, width) in SHAPES {
            let (x, weight, bias) = (values(&[rows, width], 1), values(&[width], 2), values(&[width], 3));
            let expected = crate::ops::rms_norm(&x, &weight, 1e-5).unwrap();
            let expected_of_layer = crate::ops::layer_norm(&x, &weight, &bias, 1e-5).unwrap();
            for (from, to, coarser) in pairs() {
                let out = gpu.tensor((rows, width), to).unwrap();
                rms_norm(&gpu, &on(&gpu, &x, from), &on(&gpu, &weight, to), 1e-5, &out).unwrap();
                close(&out, &expected, coarser);
                let [weight, bias] = [&weight, &bias].map(|own| on(&gpu, own, to));
                layer_norm(&gpu, &on(&gpu, &x, from), &weight, &bias, 1e-5, &out).unwrap();
                close(&out, &expected_of_layer, coarser);
            }
        }
    }

    #[test]
    fn on_gpu_a_sum_and_its_norm_are_those_of_the_cpu() {
        let gpu = gpu();
        for (rows, width) in SHAPES {
            let (x, delta, weight) = (values(&[rows, width], 1), values(&[rows, width], 2), values(&[width], 3));
            let sum = (&x + &delta).unwrap();
            let expected = crate::ops::rms_norm(&sum, &weight, 1e-6).unwrap();
            for to in FORMATS {
                let (own, delta) = (on(&gpu, &x, DType::F32), on(&gpu, &delta, to));
                let out = gpu.tensor((rows, width), to).unwrap();
                add_rms_norm(&gpu, &own, &delta, &on(&gpu, &weight, to), 1e-6, &out).unwrap();
                close(&own, &sum, to);
                close(&out, &expected, to);
                let own = on(&gpu, &x, DType::F32);
                add_rows(&gpu, &own, &delta).unwrap();
                close(&own, &sum, to);
            }
        }
    }
}
