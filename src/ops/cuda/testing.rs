//! What the tests of kernels share. They need a device, a real one or the emulated one (`tests/gpu/README.md`), and fail
//! without; their names begin with `on_gpu`, so that they can be left out.

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

/// Compares with what the CPU computed in f32, as exactly as the format allows.
pub(crate) fn close(got: &Tensor, expected: &Tensor, dtype: DType) {
    let tolerance = if dtype == DType::F32 { 2e-5 } else { 3e-2 };
    assert_eq!(got.dims(), expected.dims());
    let flat = |tensor: &Tensor| {
        tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>()
    };
    let (got, expected) = (flat(got).unwrap(), flat(expected).unwrap());
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let difference = (got - expected).abs();
        assert!(difference <= tolerance * expected.abs().max(1.0), "{i}: {got} instead of {expected}, {dtype:?}");
    }
}
