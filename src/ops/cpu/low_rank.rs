//! What an adapter adds to a product: x·A·B, with matrices of f32 or bf16.
//!
//! On one thread, for as many rows as it is given at a time; sums are f32 whatever the matrices are. A row's result depends
//! on no other. Knows no adapter.
//! Shapes: `x` `[rows, inputs]`, Aᵀ `[rank, inputs]`, B `[rank, outputs]`, results `[rows, outputs]`, all packed.
//! After: Hu et al. 2021 (arXiv 2106.09685).

use half::bf16;

use super::dense::{dots, multiply_rows};
use super::product::{Misfit, fits};
use super::simd::{LANES, Level, Number, Simd, Work};
use super::steps;

/// Numbers of x·A that need no memory of their own: 32 rows of rank 16.
const FEW: usize = 512;

/// Aᵀ and B.
#[derive(Debug, Clone, Copy)]
pub enum Factors<'a> {
    /// 32-bit floats.
    F32([&'a [f32]; 2]),
    /// Their upper halves.
    Bf16([&'a [bf16]; 2]),
}

/// Adds scale·x·A·B to `rows` rows.
///
/// # Errors
/// When shapes do not fit.
pub fn add_low_rank(
    (x, rows): (&[f32], usize),
    factors: Factors<'_>,
    scale: f32,
    out: &mut [f32],
) -> Result<(), Misfit> {
    match factors {
        Factors::F32(factors) => add((x, rows), factors, scale, out),
        Factors::Bf16(factors) => add((x, rows), factors, scale, out),
    }
}

fn add<N: Number>((x, rows): (&[f32], usize), [a, b]: [&[N]; 2], scale: f32, out: &mut [f32]) -> Result<(), Misfit> {
    let (inputs, outputs) = (x.len() / rows.max(1), out.len() / rows.max(1));
    let rank = a.len() / inputs.max(1);
    fits(b.len(), rank, outputs)?;
    // All at once: what lies in short rows would be waited for row by row.
    Level::best().run(Ask([a, b]));
    let (mut few, mut many) = ([0.0; FEW], Vec::new());
    let inner = match few.get_mut(..rows * rank) {
        Some(few) => few,
        None => {
            many.resize(rows * rank, 0.0);
            &mut many[..]
        }
    };
    dots((x, rows, inputs), (a, inputs), inner)?;
    if (scale - 1.0).abs() > 0.0 {
        steps::scale(inner, scale);
    }
    multiply_rows((inner, rows, rank), (b, outputs), (out, outputs), true)
}

/// Asks for numbers that are read soon.
struct Ask<'a, N>([&'a [N]; 2]);

impl<N: Number> Work for Ask<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for numbers in self.0 {
            numbers.chunks(LANES * 4 / size_of::<N>()).for_each(|line| s.prefetch(line.as_ptr().cast()));
        }
    }
}
