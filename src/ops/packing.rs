//! Weights of tensors, packed for the kernels of the CPU.
//!
//! Says which formats have kernels; how they are laid out is `cpu::Packed`'s business.
//! Shapes: `[output, input]`.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, Storage, Tensor};

use super::cpu::{Format, Packed};

/// Packs a dense weight, where there are kernels for it.
pub(super) fn pack(weight: &Tensor) -> Option<Packed> {
    let (outputs, inputs) = weight.dims2().ok()?;
    let weight = weight.contiguous().ok()?;
    let (storage, layout) = weight.storage_and_layout();
    let (start, end) = layout.contiguous_offsets()?;
    let Storage::Cpu(storage) = &*storage else { return None };
    #[expect(clippy::wildcard_enum_match_arm, reason = "weights of other formats are not packed")]
    match storage {
        CpuStorage::F32(data) => Packed::from_f32(outputs, inputs, &data[start..end]),
        CpuStorage::BF16(data) => {
            let bytes: Vec<u8> = data[start..end].iter().flat_map(|x| x.to_le_bytes()).collect();
            Packed::new(Format::Bf16, outputs, inputs, &bytes)
        }
        CpuStorage::F16(data) => {
            let bytes: Vec<u8> = data[start..end].iter().flat_map(|x| x.to_le_bytes()).collect();
            Packed::new(Format::F16, outputs, inputs, &bytes)
        }
        _ => None,
    }
}

/// Packs a quantised weight, where there are kernels for it.
pub(super) fn pack_quantized(weight: &QTensor) -> Option<Packed> {
    let (outputs, inputs) = weight.shape().dims2().ok()?;
    Packed::new(packed_format(weight.dtype())?, outputs, inputs, &weight.data().ok()?)
}

/// Returns the kernels' name of a format of GGUF files.
pub(super) fn packed_format(format: GgmlDType) -> Option<Format> {
    match format {
        GgmlDType::F32 => Some(Format::F32),
        GgmlDType::F16 => Some(Format::F16),
        GgmlDType::BF16 => Some(Format::Bf16),
        GgmlDType::Q4_0 => Some(Format::Q40),
        GgmlDType::Q4_1 => Some(Format::Q41),
        GgmlDType::Q5_0 => Some(Format::Q50),
        GgmlDType::Q5_1 => Some(Format::Q51),
        GgmlDType::Q8_0 => Some(Format::Q80),
        GgmlDType::Q4K => Some(Format::Q4K),
        GgmlDType::Q5K => Some(Format::Q5K),
        GgmlDType::Q6K => Some(Format::Q6K),
        GgmlDType::Q8_1 | GgmlDType::Q2K | GgmlDType::Q3K | GgmlDType::Q8K => None,
    }
}
