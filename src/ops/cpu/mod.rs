//! Products and steps of a model on the CPU, written for its vector instructions.
//!
//! Weights are packed once into tiles of 16 output rows (`Packed`); every product walks tiles with the form of the best
//! instructions that this CPU has (`Level`): AMX, AVX-512 with VNNI (and BF16), AVX2 with FMA, or plain Rust. Knows slices,
//! no tensors, models or adapters. Needs `unsafe`: raw pointers, so that threads may write into disjoint columns of one
//! result and inner loops check no bounds; what is public here is safe.
//!
//! **A row's result does not depend on the rows beside it**, nor on the number of threads: each value is one sum over
//! the input in ascending order, whoever computes it. So packed equals one by one, bit for bit. Different levels may
//! round differently.
//! After: the layouts of llama.cpp's repacked formats and oneDNN's blocked weights; Goto and van de Geijn 2008.

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "instructions that have no functions yet")]
mod amx;
#[expect(unsafe_code, reason = "threads write disjoint rows and heads of one result")]
mod attention;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
mod avx512;
mod blocks;
#[expect(unsafe_code, reason = "inner loops without checks of bounds")]
mod bytes;
#[expect(unsafe_code, reason = "inner loops without checks of bounds")]
mod dense;
#[expect(unsafe_code, reason = "threads write disjoint rows and heads of one result")]
mod groups;
mod keys_values;
#[expect(unsafe_code, reason = "threads write disjoint rows and columns of one result")]
mod low_rank;
#[expect(unsafe_code, reason = "memory that holds bytes and numbers of several formats")]
mod packed;
#[expect(unsafe_code, reason = "the form without vector instructions has the interface of those with them")]
mod plain;
#[expect(unsafe_code, reason = "inner loops without checks of bounds")]
mod prepared;
#[expect(unsafe_code, reason = "threads write disjoint columns of one result")]
mod product;
#[expect(unsafe_code, reason = "inner loops without checks of bounds")]
mod quants;
#[expect(unsafe_code, reason = "loads and stores of vectors")]
mod simd;
#[expect(unsafe_code, reason = "loads and stores of vectors")]
pub mod steps;
#[expect(unsafe_code, reason = "threads run what lies on the stack of one that waits for them")]
mod team;
#[cfg(test)]
mod tests;
pub mod threads;
#[expect(unsafe_code, reason = "inner loops without checks of bounds")]
mod tile;

pub(super) use attention::attend_backward;
pub use attention::{Heads, Sequence, attend};
pub(super) use blocks::Format;
pub(super) use dense::{View, multiply, multiply_long, transpose};
pub(super) use dense::{dots, multiply_rows};
pub use groups::{Groups, Scores, attend_groups, attend_groups_backward};
pub use keys_values::KeysValues;
pub use low_rank::{Factors, LowRank, add_low_rank};
pub(super) use packed::Packed;
pub use prepared::{Prepared, emptied};
pub use product::Misfit;
pub(super) use product::{Job, product, product_exact, product_transposed, products};
#[cfg(test)]
use simd::Level;
pub use team::{each, each_part, together};
