//! Tensor operations of our own.
//!
//! candle's fused operations cut the gradient without an error, its matrix product is slow for some shapes and missing
//! in bf16 on the CPU; every caller takes these instead. Nothing here knows a model, an adapter or a cache.

mod cpu;
mod explicit;
mod fused;
mod linear;
mod loss;
mod rows;

pub use explicit::{explicit, seed};
pub use fused::{rms_norm, rope, silu_mul, softmax, softmax_backward};
pub use linear::{Linear, matmul};
pub use loss::{binary_cross_entropy, cross_entropy};
