//! Gates and activations, number by number, with their gradients.
//!
//! Every tensor of a call has one shape and one format, f32 or bf16; computed in f32. Gradients are formed by the
//! caller's order: nothing here tracks them.

use candle_core::{Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;

/// Threads of a block.
const THREADS: u32 = 256;
/// Numbers that a block takes.
const PART: usize = 8 * THREADS as usize;

/// Writes gate·σ(gate)·up to `out`.
///
/// # Errors
/// When shapes or formats differ, or the device fails.
pub fn silu_mul(gpu: &Gpu, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
    each(gpu, "silu_mul", &[gate, up, out])
}

/// Writes the gradients of gate and up to `outs`, from that of [`silu_mul`].
///
/// # Errors
/// As [`silu_mul`].
pub fn silu_mul_backward(gpu: &Gpu, gate: &Tensor, up: &Tensor, gradient: &Tensor, outs: [&Tensor; 2]) -> Result<()> {
    each(gpu, "silu_mul_backward", &[gate, up, gradient, outs[0], outs[1]])
}

/// Writes x·Φ(x) to `out` (the exact form, by erf).
///
/// # Errors
/// As [`silu_mul`].
pub fn gelu(gpu: &Gpu, x: &Tensor, out: &Tensor) -> Result<()> {
    each(gpu, "gelu", &[x, out])
}

/// Writes the gradient of x to `out`, from that of [`gelu`].
///
/// # Errors
/// As [`silu_mul`].
pub fn gelu_backward(gpu: &Gpu, x: &Tensor, gradient: &Tensor, out: &Tensor) -> Result<()> {
    each(gpu, "gelu_backward", &[x, gradient, out])
}

/// Launches a kernel on tensors of one shape and format.
fn each(gpu: &Gpu, kernel: &str, tensors: &[&Tensor]) -> Result<()> {
    let Some((first, others)) = tensors.split_first() else { bail!("{kernel} of nothing") };
    let (dtype, count) = (first.dtype(), first.elem_count());
    if others.iter().any(|other| other.dims() != first.dims() || other.dtype() != dtype) || count > u32::MAX as usize {
        bail!("{kernel} of {:?}", tensors.iter().map(|tensor| tensor.shape()).collect::<Vec<_>>());
    }
    let launch = Launch {
        file: ("gate", ptx::GATE),
        function: &named(kernel, [dtype])?,
        grid: (count.div_ceil(PART).max(1) as u32, 1, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    let mut arguments: Vec<_> = tensors.iter().map(|tensor| Argument::Tensor(tensor)).collect();
    arguments.push(Argument::U32(count as u32));
    gpu.launch(launch, &arguments)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;
    use crate::ops::cuda::testing::{close, gpu, on, values};

    #[test]
    fn on_gpu_gates_and_their_gradients_are_those_of_the_cpu() {
        let gpu = gpu();
        for shape in [[1, 64], [3, 37], [40, 576]] {
            let vars = [1, 2].map(|seed| Var::from_tensor(&(values(&shape, seed) * 4.0).unwrap()).unwrap());
            let (gate, up, gradient) = (vars[0].as_tensor(), vars[1].as_tensor(), values(&shape, 3));
            let backward = |y: &Tensor| (y * &gradient).unwrap().sum_all().unwrap().backward().unwrap();
            let (product, activation) = (crate::ops::silu_mul(gate, up).unwrap(), crate::ops::gelu(gate).unwrap());
            let (of_product, of_activation) = (backward(&product), backward(&activation));
            for dtype in [DType::F32, DType::BF16] {
                let [x, y, g] = [gate, up, &gradient].map(|tensor| on(&gpu, &tensor.detach(), dtype));
                let [out, other] = [0, 1].map(|_| gpu.tensor(&shape, dtype).unwrap());
                silu_mul(&gpu, &x, &y, &out).unwrap();
                close(&out, &product, dtype);
                silu_mul_backward(&gpu, &x, &y, &g, [&out, &other]).unwrap();
                close(&out, of_product.get(gate).unwrap(), dtype);
                close(&other, of_product.get(up).unwrap(), dtype);
                gelu(&gpu, &x, &out).unwrap();
                close(&out, &activation, dtype);
                gelu_backward(&gpu, &x, &g, &out).unwrap();
                close(&out, of_activation.get(gate).unwrap(), dtype);
            }
        }
    }
}
