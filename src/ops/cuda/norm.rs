//! RMS norm of rows.
//!
//! Shapes: `[rows, width]`; sums are f32.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::ptx;

/// Threads of a block: a row each.
const THREADS: u32 = 256;

/// Returns the name of a kernel for a number format.
pub(super) fn named(kernel: &str, dtype: DType) -> Result<String> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "kernels exist for these formats")]
    match dtype {
        DType::F32 => Ok(format!("{kernel}_f32")),
        DType::BF16 => Ok(format!("{kernel}_bf16")),
        other => bail!("{kernel} knows no {other:?}"),
    }
}

/// Writes x / √(mean(x²) + eps) · weight to `out`; `x` and `out` are `[rows, width]`, `weight` `[width]`, of one format,
/// f32 or bf16.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn rms_norm(gpu: &Gpu, x: &Tensor, weight: &Tensor, eps: f64, out: &Tensor) -> Result<()> {
    let (rows, width) = x.dims2()?;
    let of = x.dtype();
    if weight.dims() != [width] || out.dims() != x.dims() || weight.dtype() != of || out.dtype() != of {
        bail!("a norm of {:?} with {:?} for {:?}", x.shape(), weight.shape(), out.shape());
    }
    let launch = Launch {
        file: ("norm", ptx::NORM),
        function: &named("rms_norm", of)?,
        grid: (rows as u32, 1, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    let [x, weight, out] = [x, weight, out].map(Argument::Tensor);
    gpu.launch(launch, &[x, weight, out, Argument::U32(width as u32), Argument::F32(eps as f32)])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::cuda::testing::{close, gpu, values};

    #[test]
    fn on_gpu_a_norm_is_that_of_the_cpu() {
        let gpu = gpu();
        for (rows, width) in [(1, 64), (5, 100), (33, 576), (2, 4097)] {
            let (x, weight) = (values(&[rows, width], 1), values(&[width], 2));
            let expected = crate::ops::rms_norm(&x, &weight, 1e-5).unwrap();
            for dtype in [DType::F32, DType::BF16] {
                let on = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap().to_device(&gpu.device()).unwrap();
                let out = gpu.tensor((rows, width), dtype).unwrap();
                rms_norm(&gpu, &on(&x), &on(&weight), 1e-5, &out).unwrap();
                close(&out.to_device(&Device::Cpu).unwrap(), &expected, dtype);
            }
        }
    }
}
