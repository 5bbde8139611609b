//! Kernels that go number by number, in candle's graph: gates, rotations, GELU.
//!
//! Each returns `None` where there is no kernel, and leaves that to the composition. Shapes stand at the functions of
//! `ops` that call these.

use candle_core::{DType, Result, Tensor};

use super::device::Gpu;
use super::{gate, rotary};
use crate::ops::explicit::explicit;

/// Returns the device where all tensors have kernels: of one format, f32 or bf16.
fn device_of(tensors: &[&Tensor]) -> Option<Gpu> {
    let first = tensors.first()?;
    let fits = |tensor: &&Tensor| tensor.dtype() == first.dtype() && tensor.device().same_device(first.device());
    let known = matches!(first.dtype(), DType::F32 | DType::BF16) && first.elem_count() > 0;
    if known && tensors.iter().all(fits) { Gpu::of(first.device()) } else { None }
}

/// Returns gate·σ(gate)·up.
///
/// # Errors
/// When shapes differ or the device fails.
pub(in crate::ops) fn gated(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let Some(gpu) = device_of(&[gate, up]) else { return Ok(None) };
    let (g, u) = (gate.detach().contiguous()?, up.detach().contiguous()?);
    let [out] = gpu.alike([&g])?;
    gate::silu_mul(&gpu, &g, &u, &out)?;
    explicit(&[gate, up], out, move |gradient| {
        let [for_gate, for_up] = gpu.alike([&g, &u])?;
        gate::silu_mul_backward(&gpu, &g, &u, gradient, [&for_gate, &for_up])?;
        Ok(vec![Some(for_gate), Some(for_up)])
    })
    .map(Some)
}

/// Returns x·Φ(x).
///
/// # Errors
/// When the device fails.
pub(in crate::ops) fn bent(x: &Tensor) -> Result<Option<Tensor>> {
    let Some(gpu) = device_of(&[x]) else { return Ok(None) };
    let input = x.detach().contiguous()?;
    let [out] = gpu.alike([&input])?;
    gate::gelu(&gpu, &input, &out)?;
    explicit(&[x], out, move |gradient| {
        let [for_x] = gpu.alike([&input])?;
        gate::gelu_backward(&gpu, &input, gradient, &for_x)?;
        Ok(vec![Some(for_x)])
    })
    .map(Some)
}

/// Returns heads turned by their angles.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub(in crate::ops) fn turned(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Option<Tensor>> {
    let Some(gpu) = device_of(&[x, cos, sin]) else { return Ok(None) };
    let angles = [cos.contiguous()?, sin.contiguous()?];
    let [out] = gpu.alike([x])?;
    rotary::rope(&gpu, &x.detach().contiguous()?, angles.each_ref(), false, &out)?;
    explicit(&[x], out, move |gradient| {
        let [for_x] = gpu.alike([gradient])?;
        rotary::rope(&gpu, gradient, angles.each_ref(), true, &for_x)?;
        Ok(vec![Some(for_x)])
    })
    .map(Some)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::cuda::testing::{close, gpu, values};
    use crate::ops::{gelu, rope, silu_mul};

    /// Compares results and gradients with those of the CPU.
    fn compare(shapes: &[&[usize]], dtype: DType, operation: impl Fn(&[Tensor]) -> Tensor) {
        let gpu = gpu();
        let run = |on: &dyn Fn(&Tensor) -> Tensor| {
            let all = shapes.iter().enumerate().map(|(i, shape)| (values(shape, i as u64) * 2.0).unwrap());
            let vars: Vec<Var> = all.map(|x| Var::from_tensor(&on(&x)).unwrap()).collect();
            let y = operation(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>());
            let weights = on(&values(y.dims(), 9));
            let gradients = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
            let gradients: Vec<_> = vars.iter().map(|var| gradients.get(var.as_tensor()).unwrap().clone()).collect();
            (y.detach(), gradients)
        };
        let (expected, theirs) = run(&|x| x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap());
        let (got, ours) = run(&|x| x.to_dtype(dtype).unwrap().to_device(&gpu.device()).unwrap());
        close(&got, &expected, dtype);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            close(ours, theirs, dtype);
        }
    }

    #[test]
    fn on_gpu_operations_of_the_graph_have_the_gradients_of_the_cpu() {
        for dtype in [DType::F32, DType::BF16] {
            for shape in [[3, 7], [5, 64], [130, 33]] {
                compare(&[&shape, &shape], dtype, |x| silu_mul(&x[0], &x[1]).unwrap());
                compare(&[&shape], dtype, |x| gelu(&x[0]).unwrap());
            }
            for shape in [[4, 2, 16], [9, 3, 64]] {
                let angles = values(&[shape[0], shape[2] / 2], 8).to_dtype(dtype).unwrap();
                compare(&[&shape], dtype, |x| {
                    let angles = angles.to_dtype(x[0].dtype()).unwrap().to_device(x[0].device()).unwrap();
                    rope(&x[0], &angles.cos().unwrap(), &angles.sin().unwrap()).unwrap()
                });
            }
        }
    }
}
