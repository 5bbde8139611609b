//! Tensor operations of our own.
//!
//! candle's fused operations cut the gradient without an error, its matrix product is slow for some shapes and missing
//! in bf16 on the CPU; every caller takes these instead. Nothing here knows a model, an adapter or a cache.

mod fused;
mod linear;

pub use fused::{rms_norm, rope, silu_mul, softmax};
pub use linear::{Linear, matmul};
