//! Products of rows of bytes with tiles of quantised weights, one kernel for all their shapes.
//!
//! Sums within a block are integers, scales come after; what a shape is says `blocks.rs`, who walks tiles `tile.rs`.

use super::blocks::{BLOCK, Header, Shape};
use super::simd::{LANES, Simd};
use super::tile::{Ahead, Kernel, begin, end};

/// Quantised weights times quantised rows; `HEADER` and `NIBBLES` are those of `shape`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quants<const HEADER: u8, const NIBBLES: bool> {
    /// Rows of signed bytes.
    pub(super) quants: *const i8,
    /// What a step is worth, a block.
    pub(super) steps: *const f32,
    /// Sums of the halves of a block.
    pub(super) sums: *const [i32; 2],
    pub(super) weights: *const u8,
    pub(super) blocks: usize,
    /// Groups of 4 inputs of a block: 8.
    pub(super) groups: usize,
    pub(super) ahead: Ahead,
}

impl<const HEADER: u8, const NIBBLES: bool> Quants<HEADER, NIBBLES> {
    /// The shape, known when this is compiled.
    pub(super) const SHAPE: Shape = Shape {
        header: match HEADER {
            0 => Header::Scale,
            1 => Header::Minimum,
            2 => Header::Pairs,
            _ => Header::Halves,
        },
        nibbles: NIBBLES,
        offset: match (HEADER, NIBBLES) {
            (0, true) => 8,
            (0, false) => 128,
            (3, _) => 32,
            _ => 0,
        },
    };
    const HALVES: usize = if HEADER == 3 { 2 } else { 1 };

    /// Scales of the halves, and the minimum.
    ///
    /// # Safety
    /// `header` must be one.
    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, header: *const u8, inside: usize) -> ([S::F; 2], S::F) {
        let small = 64 + 32 * inside;
        // SAFETY: the caller's promise.
        unsafe {
            match Self::SHAPE.header {
                Header::Scale => ([s.halves(header.add(32 * inside)); 2], s.zero()),
                Header::Minimum => ([s.halves(header.add(32 * inside)); 2], s.halves(header.add(small))),
                Header::Pairs => {
                    let scale = s.mul(s.halves(header), s.bytes(header.add(small)));
                    let minimum = s.mul(s.halves(header.add(32)), s.bytes(header.add(small + LANES)));
                    ([scale; 2], s.sub(s.zero(), minimum))
                }
                Header::Halves => {
                    let (factor, middle) = (s.halves(header), s.splat(128.0));
                    let first = s.mul(factor, s.sub(s.bytes(header.add(small)), middle));
                    let second = s.mul(factor, s.sub(s.bytes(header.add(small + LANES)), middle));
                    ([first, second], s.zero())
                }
            }
        }
    }

    /// Products of one half of a block (all of it, where there is one scale), as integers.
    ///
    /// # Safety
    /// As [`Kernel::tile`].
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "see the comment below")]
    unsafe fn integers<S: Simd, const R: usize, const T: usize>(
        self,
        s: S,
        (row, block, half): (usize, usize, usize),
        weights: [*const u8; T],
    ) -> [[S::I; T]; R] {
        let shape = Self::SHAPE;
        let bytes = HEADER == 0 && !NIBBLES;
        let offset = if bytes { S::BYTE_OFFSET } else { shape.offset as i32 };
        // Loops over numbers, and over one that is not known when this is compiled: unrolled iterators spill registers.
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[s.splat_i32(0); T]; R];
            if offset != 0 {
                for r in 0..R {
                    let of_x = *self.sums.add((row + r) * self.blocks + block);
                    let of_x = if Self::HALVES == 2 { of_x[half] } else { of_x[0] + of_x[1] };
                    for t in 0..T {
                        sums[r][t] = s.splat_i32(-offset * of_x);
                    }
                }
            }
            let groups = self.groups / Self::HALVES;
            let x = self.quants.cast::<i32>().add((row * self.blocks + block) * (BLOCK / 4) + half * groups);
            let next = self.blocks * (BLOCK / 4);
            if NIBBLES {
                for group in 0..groups / 2 {
                    let mut w = [(s.splat_i32(0), s.splat_i32(0)); T];
                    for t in 0..T {
                        w[t] = s.nibbles(s.load_bytes(weights[t].add(group * 64)));
                    }
                    for r in 0..R {
                        let x = x.add(r * next + 2 * group);
                        let lower = s.splat_i32(x.read_unaligned());
                        for t in 0..T {
                            sums[r][t] = s.dot_small(sums[r][t], w[t].0, lower);
                        }
                        let upper = s.splat_i32(x.add(1).read_unaligned());
                        for t in 0..T {
                            sums[r][t] = s.dot_small(sums[r][t], w[t].1, upper);
                        }
                    }
                }
                return sums;
            }
            for group in 0..groups {
                let mut w = [s.splat_i32(0); T];
                for t in 0..T {
                    w[t] = s.load_bytes(weights[t].add((half * groups + group) * 64));
                }
                for r in 0..R {
                    let x = s.splat_i32(x.add(r * next + group).read_unaligned());
                    for t in 0..T {
                        sums[r][t] =
                            if bytes { s.dot_bytes(sums[r][t], w[t], x) } else { s.dot_small(sums[r][t], w[t], x) };
                    }
                }
            }
            sums
        }
    }
}

impl<const HEADER: u8, const NIBBLES: bool> Kernel for Quants<HEADER, NIBBLES> {
    const INTEGER: bool = true;

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "as in `integers`")]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(
        self,
        s: S,
        (row, tile): (usize, usize),
        out: (*mut f32, usize),
        add: bool,
    ) {
        let shape = Self::SHAPE;
        let tile_bytes = shape.tile_bytes(self.blocks);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = begin::<S, R, T>(s, out, add);
            let tiles = self.weights.add(tile * tile_bytes);
            let next = self.ahead.next::<T>((row, tile), self.weights, tile_bytes);
            let lines = (tile_bytes / 64).div_ceil(self.blocks);
            for block in 0..self.blocks {
                if let Some(next) = next {
                    for line in block * lines..(block + 1) * lines {
                        for t in 0..T {
                            s.prefetch(next.wrapping_add(t * tile_bytes + line * 64));
                        }
                    }
                }
                let header = block / shape.group() * shape.group_bytes();
                let mut quants = [tiles; T];
                for t in 0..T {
                    quants[t] = tiles.add(t * tile_bytes + shape.quants_at(block));
                }
                for half in 0..Self::HALVES {
                    let integers = self.integers::<S, R, T>(s, (row, block, half), quants);
                    for t in 0..T {
                        let header = tiles.add(t * tile_bytes + header);
                        let (scales, minimum) = Self::scales(s, header, block % shape.group());
                        for r in 0..R {
                            let at = (row + r) * self.blocks + block;
                            let step = *self.steps.add(at);
                            let scale = s.mul(scales[half], s.splat(step));
                            sums[r][t] = s.fma(s.to_float(integers[r][t]), scale, sums[r][t]);
                            if const { matches!(Self::SHAPE.header, Header::Minimum | Header::Pairs) } {
                                let of_x = *self.sums.add(at);
                                let of_x = s.splat(step * (of_x[0] + of_x[1]) as f32);
                                sums[r][t] = s.fma(minimum, of_x, sums[r][t]);
                            }
                        }
                    }
                }
            }
            end(s, out, sums);
        }
    }
}
