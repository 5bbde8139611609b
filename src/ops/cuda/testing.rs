//! What the tests of kernels share. They need a device, a real one or the emulated one (`tests/gpu/README.md`), and
//! fail without; their names begin with `on_gpu`, so that they can be left out.

use candle_core::{DType, Device, Tensor};

use super::{Gpu, open};

/// Opens the first device.
pub(crate) fn gpu() -> Gpu {
    Gpu::of(&open(0).unwrap()).unwrap()
}

/// Numbers between -1 and 1 on the CPU, others for another seed.
pub(crate) fn values(shape: &[usize], seed: u64) -> Tensor {
    crate::ops::fused::tests::values(shape, seed)
}

/// Copies a tensor to the device, in a number format.
pub(crate) fn on(gpu: &Gpu, tensor: &Tensor, dtype: DType) -> Tensor {
    tensor.to_dtype(dtype).unwrap().to_device(&gpu.device()).unwrap()
}

/// Copies counts to the device.
pub(crate) fn counts(gpu: &Gpu, counts: &[u32]) -> Tensor {
    Tensor::new(counts, &gpu.device()).unwrap()
}

/// Returns the numbers of a tensor of any device as f32.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

/// Compares with what the CPU computed in f32, as exactly as the format allows.
pub(crate) fn close(got: &Tensor, expected: &Tensor, dtype: DType) {
    let tolerance = if dtype == DType::F32 { 2e-5 } else { 3e-2 };
    assert_eq!(got.dims(), expected.dims());
    for (i, (got, expected)) in numbers(got).iter().zip(&numbers(expected)).enumerate() {
        let difference = (got - expected).abs();
        assert!(difference <= tolerance * expected.abs().max(1.0), "{i}: {got} instead of {expected}, {dtype:?}");
    }
}
