//! Rows of activations in the forms that packed weights are multiplied with: bf16, or bytes with a scale for 32.
//!
//! Buffers are kept for the next rows, and the lists that a loop of products makes too. Multiplies nothing.
//! Shapes: rows packed `[rows, inputs]`.

use std::ops::Range;

use super::blocks::{BLOCK, Format};
use super::low_rank::{LowRank, Part};
use super::packed::Packed;
use super::product::Piece;
use super::simd::{Level, Simd, TILE_INPUTS, TILE_ROWS, Work};
use super::team::{Parts, each_number, each_part};
use super::tile::Out;

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
    pub(super) lists: Lists,
}

/// Memory of lists; empty between two loops.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) low_ranks: Vec<LowRank<'static>>,
    pub(super) parts: Vec<Part<'static>>,
    pub(super) outs: Vec<(&'static Packed, Out)>,
    pub(super) pieces: Vec<Piece>,
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
    /// Takes memory for a list of changes, empty; [`Self::keep`] gives it back.
    pub fn list(&mut self) -> Vec<LowRank<'static>> {
        std::mem::take(&mut self.lists.low_ranks)
    }

    /// Keeps the memory of a list for the next one.
    pub fn keep(&mut self, list: Vec<LowRank<'_>>) {
        self.lists.low_ranks = emptied(list);
    }

    /// Prepares rows for weights of some formats, and as bytes where those are wanted anyway.
    pub(super) fn fill<'a>(
        &mut self,
        level: Level,
        (x, inputs): (&[f32], usize),
        weights: impl Iterator<Item = &'a Packed> + Clone,
        as_bytes: bool,
    ) {
        if level.narrows(inputs) && weights.clone().any(|weights| weights.format() == Format::Bf16) {
            self.fill_narrow(level, x, inputs);
        }
        if as_bytes || weights.into_iter().any(|weights| weights.shape().is_some()) {
            self.fill_quants(level, x);
        }
    }

    /// Returns some rows as bytes, and what one of each 32 is worth.
    pub(super) fn bytes(&self, rows: &Range<usize>, inputs: usize) -> (&[i8], &[f32]) {
        let (start, end) = (rows.start * inputs, rows.end * inputs);
        (&self.quants[start..end], &self.steps[start / BLOCK..end / BLOCK])
    }

    pub(super) fn fill_narrow(&mut self, level: Level, x: &[f32], inputs: usize) {
        if level == Level::Amx {
            // What fills up the last block is left of an earlier product: its results are dropped.
            let block = TILE_ROWS * inputs;
            let narrow = room(&mut self.narrow, x.len().next_multiple_of(block));
            let part = ALONE.div_ceil(4 * block) * block;
            each_part(narrow, part, |number, out| {
                let x = &x[number * part..x.len().min((number + 1) * part)];
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
        each_part(narrow, rows * width, |number, out| {
            let first = number * rows * inputs;
            level.run(Narrow { x: &x[first..x.len().min(first + rows * inputs)], inputs, out });
        });
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
        let (quants, steps) = (Parts::new(quants, size), Parts::new(steps, size / BLOCK));
        let sums = Parts::new(sums, size / BLOCK);
        each_number(quants.count(), |number| {
            let x = &x[number * size..x.len().min((number + 1) * size)];
            // SAFETY: every number comes once.
            let (quants, steps, sums) = unsafe { (quants.get(number), steps.get(number), sums.get(number)) };
            level.run(Quantise { x, quants, steps, sums });
        });
    }
}

/// Returns the memory of a list for items of another lifetime.
pub fn emptied<T, U>(mut list: Vec<T>) -> Vec<U> {
    list.clear();
    // The standard library collects items of one size in place.
    list.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

/// Returns the first `len` of numbers that are left of earlier rows, and not cleared.
fn room<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    buffer.resize(len.max(buffer.len()), T::default());
    &mut buffer[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_list_is_kept_for_items_of_another_lifetime() {
        let text = String::from("here");
        let list: Vec<&str> = vec![&text; 100];
        let memory = list.as_ptr() as usize;
        let again: Vec<&'static str> = emptied(list);
        assert!(again.is_empty() && again.capacity() >= 100 && again.as_ptr() as usize == memory);
    }
}
