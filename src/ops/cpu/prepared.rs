//! Rows of activations in the forms that packed weights are multiplied with: bf16, or bytes with a scale for 32.
//!
//! Buffers are kept for the next rows. Multiplies nothing.
//! Shapes: rows packed `[rows, inputs]`.

use super::blocks::{BLOCK, Format};
use super::packed::Packed;
use super::simd::{Level, Simd, TILE_INPUTS, TILE_ROWS, Work};
use super::team::each;

/// Values below which threads are not asked to help.
const ALONE: usize = 1 << 15;

/// Rows of activations, ready to be multiplied.
#[derive(Debug, Default)]
pub struct Prepared {
    /// An even number a row, the last may be 0; in blocks of 16 rows and 32 inputs for tiles.
    pub(super) narrow: Vec<u16>,
    pub(super) quants: Vec<i8>,
    pub(super) steps: Vec<f32>,
    pub(super) sums: Vec<[i32; 2]>,
    /// Place of what adapters make of the rows.
    pub(super) inner: Vec<f32>,
}

struct Narrow<'a> {
    x: &'a [f32],
    inputs: usize,
    out: &'a mut [u16],
}

impl Work for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.x.chunks_exact(self.inputs).zip(self.out.chunks_exact_mut(self.inputs.next_multiple_of(2)));
        for (x, out) in rows {
            let whole = self.inputs / 16 * 16;
            for at in (0..whole).step_by(16) {
                // SAFETY: 16 numbers stand there in both.
                unsafe { s.to_bf16(x.as_ptr().add(at), out.as_mut_ptr().add(at)) };
            }
            for (at, out) in out.iter_mut().enumerate().skip(whole) {
                *out = x.get(at).map_or(0, |x| half::bf16::from_f32(*x).to_bits());
            }
        }
    }
}

/// Up to 16 rows, of a multiple of 32 inputs.
struct NarrowBlock<'a> {
    x: &'a [f32],
    inputs: usize,
    out: &'a mut [u16],
}

impl Work for NarrowBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            for (block, x) in x.chunks_exact(TILE_INPUTS).enumerate() {
                let out = &mut self.out[(block * TILE_ROWS + row) * TILE_INPUTS..][..TILE_INPUTS];
                // SAFETY: 32 numbers stand there in both.
                unsafe {
                    s.to_bf16(x.as_ptr(), out.as_mut_ptr());
                    s.to_bf16(x.as_ptr().add(16), out.as_mut_ptr().add(16));
                }
            }
        }
    }
}

struct Quantise<'a> {
    x: &'a [f32],
    quants: &'a mut [i8],
    steps: &'a mut [f32],
    sums: &'a mut [[i32; 2]],
}

impl Work for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.x.chunks_exact(BLOCK).zip(self.quants.chunks_exact_mut(BLOCK));
        for ((x, quants), (step, sums)) in blocks.zip(self.steps.iter_mut().zip(self.sums)) {
            // SAFETY: 32 numbers stand there in both.
            (*step, *sums) = unsafe { s.quantise(x.as_ptr(), quants.as_mut_ptr()) };
        }
    }
}

impl Prepared {
    /// Prepares rows for weights of some formats.
    pub(super) fn fill<'a>(
        &mut self,
        level: Level,
        x: &[f32],
        inputs: usize,
        weights: impl Iterator<Item = &'a Packed> + Clone,
    ) {
        if level.narrows(inputs) && weights.clone().any(|weights| weights.format() == Format::Bf16) {
            self.fill_narrow(level, x, inputs);
        }
        if weights.into_iter().any(|weights| weights.shape().is_some()) {
            self.fill_quants(level, x);
        }
    }

    pub(super) fn fill_narrow(&mut self, level: Level, x: &[f32], inputs: usize) {
        if level == Level::Amx {
            // What fills up the last block is left of an earlier product: its results are dropped.
            let block = TILE_ROWS * inputs;
            let narrow = room(&mut self.narrow, x.len().next_multiple_of(block));
            let part = ALONE.div_ceil(4 * block) * block;
            each(x.chunks(part).zip(narrow.chunks_mut(part)).collect(), |(x, out)| {
                let blocks = x.chunks(block).zip(out.chunks_mut(block));
                blocks.for_each(|(x, out)| level.run(NarrowBlock { x, inputs, out }));
            });
            return;
        }
        let width = inputs.next_multiple_of(2);
        let narrow = room(&mut self.narrow, x.len() / inputs * width);
        if x.len() < ALONE {
            level.run(Narrow { x, inputs, out: narrow });
            return;
        }
        let rows = ALONE.div_ceil(4 * inputs);
        let parts = x.chunks(rows * inputs).zip(narrow.chunks_mut(rows * width));
        each(parts.collect(), |(x, out)| level.run(Narrow { x, inputs, out }));
    }

    fn fill_quants(&mut self, level: Level, x: &[f32]) {
        let blocks = x.len() / BLOCK;
        let (quants, steps) = (room(&mut self.quants, x.len()), room(&mut self.steps, blocks));
        let sums = room(&mut self.sums, blocks);
        if x.len() < ALONE {
            level.run(Quantise { x, quants, steps, sums });
            return;
        }
        let size = ALONE / 4;
        let parts = x.chunks(size).zip(quants.chunks_mut(size));
        let scales = steps.chunks_mut(size / BLOCK).zip(sums.chunks_mut(size / BLOCK));
        each(parts.zip(scales).collect(), |((x, quants), (steps, sums))| {
            level.run(Quantise { x, quants, steps, sums });
        });
    }
}

/// Returns the first `len` of numbers that are left of earlier rows, and not cleared.
fn room<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    buffer.resize(len.max(buffer.len()), T::default());
    &mut buffer[..len]
}
