//! Kernels for NVIDIA GPUs, on tensors of one device.
//!
//! Each is written in CUDA C++ (`kernels/*.cu`), compiled to PTX by `build.rs` and has a form on the CPU or of tensor
//! operations with the same interface, with which its tests compare it. A function here checks shapes and number
//! formats and launches; what it writes are tensors that the caller owns alone. Knows no model and no adapter. Shapes
//! stand at each function; every tensor is contiguous, rows are packed.

mod device;
mod gate;
mod gemv;
mod lookup;
mod lora;
mod norm;
mod paged;
mod rotary;
mod sample;
#[cfg(test)]
pub(crate) mod testing;

pub use device::{Gpu, Recording, open};
pub use gate::{gelu, gelu_backward, silu_mul, silu_mul_backward};
pub use gemv::{MOST_ROWS, small_product};
pub use lora::{Adapters, NO_SLOT, low_rank_expand, low_rank_shrink};
pub use lookup::{add_bias, take};
pub use norm::{add_rms_norm, add_rows, layer_norm, rms_norm};
pub use paged::{Rows, Seen, attend_decode, attend_rows, decode_scratch};
pub use rotary::{BLOCK, MOST_NUMBERS, Places, rope, rope_and_store};
pub use sample::{Choice, Listed, NO_TOKEN, SETTINGS, choose, penalise};

/// The PTX of each file in `kernels`, by its name in capitals.
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}
