//! Tensor operations of our own.
//!
//! candle's fused operations cut the gradient without an error, its products are slow on the CPU and missing in bf16;
//! every caller takes these instead. Nothing here knows a model, an adapter or a batch.
//! `cpu` has the kernels, on slices; the others put them, and candle's forms on other devices, into tensors with their
//! gradients.

mod arrangement;
mod attention;
pub mod buffer;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod elements;
mod explicit;
mod fused;
mod groups;
mod head;
mod layer_norm;
pub mod learning;
mod linear;
mod loss;
mod packing;
mod rows;
mod slices;
mod staged;

pub use arrangement::{Arrangement, spread_table};
pub use attention::{attend_all, attend_whole, attend_whole_backward};
pub use cpu::Groups;
pub use elements::{add, add_bias, gelu, unit};
pub use explicit::{Value, explicit, seed};
pub use fused::{rms_norm, rope, silu_mul, softmax, softmax_backward};
pub use groups::{Cosine, attend_cosine, attend_groups};
pub use head::Head;
pub use layer_norm::layer_norm;
pub use linear::{Linear, Product, dense_product, matmul};
pub use loss::{binary_cross_entropy, cross_entropy};
pub use slices::{Pair, Reading, with_slices};
pub use staged::Staged;
