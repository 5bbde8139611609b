//! Low-rank matrices of 8 bits: products of rows of bytes with A, and of what comes of that, in 16 bits, with B.
//!
//! Rows are the bytes that quantised weights are multiplied with, each 32 with a step of their own. Sums are integers over
//! 4 inputs with A and over all components with B, then f32. One step serves all components of a row of x·A: what is far
//! below the largest one is rounded. A row that is not finite gives NaN. A row's result depends on no other. Knows neither
//! threads nor who asks.
//! Shapes: `x` `[rows, inputs]`, Aᵀ `[rank, inputs]`, B `[⌈rank/2⌉, outputs, 2]` (two components beside each other), x·A
//! `[rows, 1 + ⌈rank/2⌉]`: a step, and words in the bits of each other number, two components in each.

use std::ops::Range;

use super::blocks::BLOCK;
use super::simd::{LANES, Level, Simd, Work};
use super::tile::{Kernel, Out, Sweep, begin, end};

/// Inputs that a vector holds.
const WIDE: usize = 2 * BLOCK;

/// x·A of some rows, and its words.
pub(super) struct ByteDots<'a> {
    /// Bytes of the rows, and what one of each 32 is worth; none where `inner` holds x·A already.
    pub(super) x: Option<(&'a [i8], &'a [f32])>,
    pub(super) inputs: usize,
    pub(super) a: &'a [i8],
    /// What multiplies each component, and what all of them.
    pub(super) worth: (&'a [f32], f32),
    /// `[rows, rank]`.
    pub(super) inner: &'a mut [f32],
    /// `[rows, words(rank)]`.
    pub(super) words: &'a mut [f32],
}

impl Work for ByteDots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rank = self.worth.0.len();
        if let Some(x) = self.x {
            for row in 0..self.inner.len() / rank {
                let eights = rank / 8 * 8;
                (0..eights).step_by(8).for_each(|component| self.block::<S, 8>(s, x, (row, component)));
                (eights..rank).for_each(|component| self.block::<S, 1>(s, x, (row, component)));
            }
        }
        let (worth, scale) = self.worth;
        for (row, words) in self.inner.chunks_exact_mut(rank).zip(self.words.chunks_exact_mut(words(rank))) {
            row.iter_mut().zip(worth).for_each(|(x, worth)| *x *= worth * scale);
            to_words(row, words);
        }
    }
}

impl ByteDots<'_> {
    #[inline(always)]
    fn block<S: Simd, const C: usize>(
        &mut self,
        s: S,
        (bytes, steps): (&[i8], &[f32]),
        (row, component): (usize, usize),
    ) {
        let (inputs, rank) = (self.inputs, self.worth.0.len());
        let x = &bytes[row * inputs..][..inputs];
        let steps = &steps[row * (inputs / BLOCK)..][..inputs / BLOCK];
        let a: [&[i8]; C] = std::array::from_fn(|c| &self.a[(component + c) * inputs..][..inputs]);
        let mut sums = [s.zero(); C];
        let whole = inputs / WIDE * WIDE;
        for (at, steps) in (0..whole).step_by(WIDE).zip(steps.chunks_exact(2)) {
            let steps = s.two_halves(steps[0], steps[1]);
            // SAFETY: 64 bytes stand there in each.
            unsafe {
                let x = s.load_bytes(x.as_ptr().add(at).cast());
                for c in 0..C {
                    let products = s.dot_signed(x, s.load_bytes(a[c].as_ptr().add(at).cast()));
                    sums[c] = s.fma(s.to_float(products), steps, sums[c]);
                }
            }
        }
        if whole < inputs {
            let half = |from: &[i8]| {
                let mut bytes = [0_i8; WIDE];
                bytes[..BLOCK].copy_from_slice(&from[whole..]);
                // SAFETY: these are 64 bytes.
                unsafe { s.load_bytes(bytes.as_ptr().cast()) }
            };
            let (x, step) = (half(x), s.splat(steps[whole / BLOCK]));
            for c in 0..C {
                sums[c] = s.fma(s.to_float(s.dot_signed(x, half(a[c]))), step, sums[c]);
            }
        }
        for (inner, sum) in self.inner[row * rank + component..].iter_mut().zip(sums) {
            *inner = s.sum(sum);
        }
    }
}

/// How many numbers hold the words of a row and what one of them is worth.
pub(super) fn words(rank: usize) -> usize {
    1 + rank.div_ceil(2)
}

/// Turns a row of x·A into words of 16 bits, two in each number's bits, behind what one of them is worth.
#[inline(always)]
fn to_words(row: &[f32], words: &mut [f32]) {
    // Sums with bytes from -127 to 127 are an i32 still: that is less than a word holds beyond rank 516.
    let most = (i16::MAX as usize).min(i32::MAX as usize / (127 * row.len())) as f32;
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let inverse = if largest > 0.0 { (most / largest).min(f32::MAX) } else { 0.0 };
    let is_number = row.iter().all(|x| x.is_finite());
    let (step, words) = words.split_at_mut(1);
    step[0] = if !is_number {
        f32::NAN
    } else if inverse > 0.0 {
        1.0 / inverse
    } else {
        0.0
    };
    for (pair, word) in row.chunks(2).zip(words) {
        let of = |at: usize| pair.get(at).map_or(0, |x| (x * inverse).round_ties_even() as i16).cast_unsigned();
        *word = f32::from_bits(u32::from(of(0)) | u32::from(of(1)) << 16);
    }
}

/// Words times B.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    /// Of each row, as [`ByteDots`] leaves them.
    pub(super) words: &'a [f32],
    pub(super) rank: usize,
    pub(super) b: &'a [i8],
    pub(super) outputs: usize,
}

impl Words<'_> {
    /// Adds to some tiles of the first rows of a result, which begins at `out`.
    ///
    /// # Safety
    /// There must be `rows` rows of words, and these columns of as many rows of the result, which are nobody else's.
    pub(super) unsafe fn add(self, level: Level, rows: usize, tiles: Range<usize>, out: Out) {
        let whole = tiles.start..tiles.end.min(self.outputs / LANES);
        if whole.len() < tiles.len() {
            for row in 0..rows {
                for column in whole.end * LANES..self.outputs {
                    // SAFETY: the caller's promise.
                    unsafe { *out.0.add(row * self.outputs + column) += self.number(row, column) };
                }
            }
        }
        let (rows, outputs) = (0..rows, self.outputs);
        level.run(Sweep { kernel: self, rows, tiles: whole, outputs, out, width: outputs, add: true });
    }

    /// One number of the product.
    fn number(self, row: usize, column: usize) -> f32 {
        let (step, words) = self.words[row * words(self.rank)..][..words(self.rank)].split_at(1);
        let products = words.iter().enumerate().map(|(pair, word)| {
            let (at, word) = ((pair * self.outputs + column) * 2, word.to_bits());
            let [first, second] = [word as u16, (word >> 16) as u16].map(|word| i32::from(word.cast_signed()));
            i32::from(self.b[at]) * first + i32::from(self.b[at + 1]) * second
        });
        products.sum::<i32>() as f32 * step[0]
    }
}

impl Kernel for Words<'_> {
    const INTEGER: bool = true;

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "unrolled iterators spill registers")]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(
        self,
        s: S,
        (row, tile): (usize, usize),
        out: (*mut f32, usize),
        add: bool,
    ) {
        let width = words(self.rank);
        // SAFETY: the caller's promise; whole tiles only.
        unsafe {
            let words = self.words.as_ptr().add(row * width);
            let mut sums = [[s.splat_i32(0); T]; R];
            for pair in 0..width - 1 {
                let b = self.b.as_ptr().add((pair * self.outputs + tile * LANES) * 2);
                let mut w = [s.splat_i32(0); T];
                for t in 0..T {
                    w[t] = s.byte_pairs(b.add(t * LANES * 2));
                }
                for r in 0..R {
                    let x = s.splat_i32((*words.add(r * width + 1 + pair)).to_bits().cast_signed());
                    for t in 0..T {
                        sums[r][t] = s.dot_words(sums[r][t], w[t], x);
                    }
                }
            }
            let mut all = begin::<S, R, T>(s, out, add);
            for r in 0..R {
                let step = s.splat(*words.add(r * width));
                for t in 0..T {
                    all[r][t] = s.fma(s.to_float(sums[r][t]), step, all[r][t]);
                }
            }
            end(s, out, all);
        }
    }
}
