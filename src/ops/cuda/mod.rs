//! Kernels for NVIDIA GPUs, on tensors of one device.
//!
//! Each is written in CUDA C++ (`kernels/*.cu`), compiled to PTX by `build.rs` and has a form on the CPU or of tensor
//! operations with the same interface, with which its tests compare it. A function here checks shapes and number
//! formats and launches; what it writes are tensors that the caller owns alone. Knows no model and no adapter. Shapes
//! stand at each function; every tensor is contiguous, rows are packed.

mod adamw;
mod attention;
mod device;
mod gate;
mod gemv;
mod graph;
mod layers;
mod lora;
mod loss;
mod norm;
mod norm_backward;
mod paged;
mod rotary;
mod sample;
#[cfg(test)]
pub(crate) mod testing;

pub use adamw::{Trained, Update, adamw, squares};
pub use attention::{Sight, Whole, attend_whole, attend_whole_backward, has_kernels};
pub use device::{Gpu, Recording, open};
pub use gate::{gelu, gelu_backward, silu_mul, silu_mul_backward};
pub use gemv::{MOST_ROWS, small_product};
pub use lora::{Adapters, NO_SLOT, low_rank_expand, low_rank_shrink};
pub use loss::{Targets, cross_entropy};
pub use norm::{add_rms_norm, add_rows, layer_norm, rms_norm};
pub use norm_backward::{Norm, NormGradients, norm_backward};
pub use paged::{Rows, Seen, attend_decode, attend_rows, decode_scratch};
pub(super) use attention::{attend_all, attend_groups};
pub(super) use graph::{bent, gated, turned};
pub(super) use layers::{adapted, dense};
pub(super) use loss::losses_of;
pub(super) use norm_backward::norm_of;
pub use rotary::{BLOCK, Places, rope, rope_and_store};
pub use sample::{Choice, Listed, NO_TOKEN, SETTINGS, choose, penalise};

/// The PTX of each file in `kernels`, by its name in capitals.
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}
