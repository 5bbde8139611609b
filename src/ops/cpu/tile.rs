//! Products of some rows with some tiles, one kernel a layout.
//!
//! A kernel computes `R` rows times `T` tiles with all sums in registers; [`Sweep`] walks a part of the result with it.
//! Neither prepares activations nor knows threads.
//! Every sum runs over the inputs in ascending order, so that it depends on neither `R` nor `T`.

use std::ops::Range;

use super::simd::{LANES, Number, Simd, Work};

/// What is asked of memory before it is needed: tiles are short, and the CPU begins anew to guess with each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    /// The row with which the next tiles are asked for.
    pub(super) row: usize,
    /// The end of this piece's tiles.
    pub(super) end: usize,
    /// Tiles that this thread will probably read after them; may be null.
    pub(super) then: *const u8,
}

impl Ahead {
    /// For rows so many that waiting for weights does not count.
    pub(super) const NOTHING: Self = Self { row: usize::MAX, end: 0, then: std::ptr::null() };

    /// Returns where the tiles after the `T` ones from `tile` on begin, if they are to be asked for now; those of this
    /// matrix, `tile_bytes` each, begin at `weights`.
    #[inline(always)]
    pub(super) fn next<const T: usize>(
        self,
        (row, tile): (usize, usize),
        weights: *const u8,
        tile_bytes: usize,
    ) -> Option<*const u8> {
        if row != self.row {
            return None;
        }
        let inside = tile + 2 * T <= self.end;
        let next = if inside { weights.wrapping_add((tile + T) * tile_bytes) } else { self.then };
        (inside || tile + T >= self.end && !next.is_null()).then_some(next)
    }
}

/// Where a result goes: threads write disjoint parts of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out(pub(super) *mut f32);

// SAFETY: whoever makes one sees to it that no two threads write the same number.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// The product of `R` rows with `T` tiles.
pub(super) trait Kernel: Copy {
    /// Whether its sums are integers.
    const INTEGER: bool = false;
    /// Whether it multiplies bf16.
    const BF16: bool = false;

    /// Writes `[R, 16·T]` to `out`, whose rows are `width` apart; with `add` on top of what is there.
    ///
    /// # Safety
    /// Rows, tiles and `out` must exist.
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(
        self,
        s: S,
        at: (usize, usize),
        out: (*mut f32, usize),
        add: bool,
    );
}

/// Walks rows and tiles of a product.
#[derive(Debug, Clone)]
pub(super) struct Sweep<K> {
    pub(super) kernel: K,
    pub(super) rows: Range<usize>,
    pub(super) tiles: Range<usize>,
    /// Columns of the result.
    pub(super) outputs: usize,
    /// The result, of all rows and tiles.
    pub(super) out: Out,
    /// Distance of its rows.
    pub(super) width: usize,
    pub(super) add: bool,
}

impl<K: Kernel> Work for Sweep<K> {
    type Output = ();
    const BF16: bool = K::BF16;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut tile = self.tiles.start;
        while tile < self.tiles.end {
            if (tile + 1) * LANES > self.outputs {
                self.cut(s, tile);
                tile += 1;
                continue;
            }
            // What is never used is never compiled: hence the constants.
            if const { S::TILES == 3 } && tile + 3 <= self.tiles.end && (tile + 3) * LANES <= self.outputs {
                self.column::<S, 3>(s, tile);
                tile += 3;
                continue;
            }
            self.column::<S, 1>(s, tile);
            tile += 1;
        }
    }
}

impl<K: Kernel> Sweep<K> {
    /// All rows of `T` whole tiles.
    #[inline(always)]
    fn column<S: Simd, const T: usize>(&self, s: S, tile: usize) {
        let mut row = self.rows.start;
        if const { Self::most::<S>() >= 8 } {
            row = self.some::<S, 8, T>(s, row, tile);
        }
        if const { Self::most::<S>() >= 4 } {
            row = self.some::<S, 4, T>(s, row, tile);
        }
        if const { Self::most::<S>() >= 2 } {
            row = self.some::<S, 2, T>(s, row, tile);
        }
        self.some::<S, 1, T>(s, row, tile);
    }

    const fn most<S: Simd>() -> usize {
        if K::INTEGER { S::INTEGER_ROWS } else { S::ROWS }
    }

    /// `R` rows at a time, as long as there are as many; returns the next row.
    #[inline(always)]
    fn some<S: Simd, const R: usize, const T: usize>(&self, s: S, mut row: usize, tile: usize) -> usize {
        while row + R <= self.rows.end {
            // SAFETY: whoever made the sweep vouches for its ranges.
            unsafe {
                let out = (self.out.0.add(row * self.width + tile * LANES), self.width);
                self.kernel.tile::<S, R, T>(s, (row, tile), out, self.add);
            }
            row += R;
        }
        row
    }

    /// All rows of a tile of which the result has only some columns.
    #[inline(always)]
    fn cut<S: Simd>(&self, s: S, tile: usize) {
        let columns = self.outputs - tile * LANES;
        for row in self.rows.clone() {
            let mut whole = [0.0_f32; LANES];
            // SAFETY: whoever made the sweep vouches for its ranges; only the columns that exist are touched.
            unsafe {
                let out = self.out.0.add(row * self.width + tile * LANES);
                if self.add {
                    std::ptr::copy_nonoverlapping(out, whole.as_mut_ptr(), columns);
                }
                self.kernel.tile::<S, 1, 1>(s, (row, tile), (whole.as_mut_ptr(), LANES), self.add);
                std::ptr::copy_nonoverlapping(whole.as_ptr(), out, columns);
            }
        }
    }
}

/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
pub(super) unsafe fn begin<S: Simd, const R: usize, const T: usize>(
    s: S,
    (out, width): (*mut f32, usize),
    add: bool,
) -> [[S::F; T]; R] {
    let mut sums = [[s.zero(); T]; R];
    if add {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (t, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *sum = unsafe { s.load(out.add(r * width + t * LANES)) };
            }
        }
    }
    sums
}

/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
pub(super) unsafe fn end<S: Simd, const R: usize, const T: usize>(
    s: S,
    (out, width): (*mut f32, usize),
    sums: [[S::F; T]; R],
) {
    for (r, sums) in sums.iter().enumerate() {
        for (t, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { s.store(out.add(r * width + t * LANES), *sum) };
        }
    }
}

/// f32 times f32, or what is read as such, whatever the distances: tiles need not be packed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Floats<N = f32> {
    /// Rows, and the distances of rows and of inputs.
    pub(super) x: *const f32,
    pub(super) row: usize,
    pub(super) input: usize,
    /// Weights, and the distances of tiles and of inputs.
    pub(super) weights: *const N,
    pub(super) tile: usize,
    pub(super) step: usize,
    pub(super) inputs: usize,
}

impl<N: Number> Kernel for Floats<N> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(
        self,
        s: S,
        (row, tile): (usize, usize),
        out: (*mut f32, usize),
        add: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = begin::<S, R, T>(s, out, add);
            let mut x = self.x.add(row * self.row);
            let mut weights = self.weights.add(tile * self.tile);
            for _ in 0..self.inputs {
                let mut w = [s.zero(); T];
                for (t, w) in w.iter_mut().enumerate() {
                    *w = N::load(s, weights.add(t * self.tile));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = s.splat(*x.add(r * self.row));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = s.fma(x, w, *sum);
                    }
                }
                x = x.wrapping_add(self.input);
                weights = weights.wrapping_add(self.step);
            }
            end(s, out, sums);
        }
    }
}

/// bf16 weights; rows are bf16 too where the CPU multiplies them, and f32 where not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Brains {
    /// Rows of f32, packed.
    pub(super) x: *const f32,
    /// The same in bf16, an even number of inputs a row; read only with [`Simd::BF16`].
    pub(super) narrow: *const u16,
    pub(super) weights: *const u8,
    pub(super) inputs: usize,
    pub(super) ahead: Ahead,
}

impl Kernel for Brains {
    const BF16: bool = true;

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(
        self,
        s: S,
        (row, tile): (usize, usize),
        out: (*mut f32, usize),
        add: bool,
    ) {
        let pairs = self.inputs.div_ceil(2);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = begin::<S, R, T>(s, out, add);
            let next = self.ahead.next::<T>((row, tile), self.weights, pairs * 64);
            let weights = self.weights.add(tile * pairs * 64);
            let (x, narrow) = (self.x.add(row * self.inputs), self.narrow.cast::<i32>().wrapping_add(row * pairs));
            for pair in 0..pairs {
                if let Some(next) = next {
                    for t in 0..T {
                        s.prefetch(next.wrapping_add((t * pairs + pair) * 64));
                    }
                }
                let mut w = [s.splat_i32(0); T];
                for (t, w) in w.iter_mut().enumerate() {
                    *w = s.load_bytes(weights.add((t * pairs + pair) * 64));
                }
                if S::BF16 {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = s.splat_i32(narrow.add(r * pairs + pair).read_unaligned());
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = s.dot_bf16(*sum, x, w);
                        }
                    }
                    continue;
                }
                let both = 2 * pair + 1 < self.inputs;
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = x.add(r * self.inputs + 2 * pair);
                    let (first, second) = (s.splat(*x), s.splat(if both { *x.add(1) } else { 0.0 }));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        let w = s.pairs(w);
                        *sum = s.fma(second, w.1, s.fma(first, w.0, *sum));
                    }
                }
            }
            end(s, out, sums);
        }
    }
}

/// f16 weights times f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Halves {
    /// Rows, packed.
    pub(super) x: *const f32,
    pub(super) weights: *const u8,
    pub(super) inputs: usize,
    pub(super) tile_bytes: usize,
}

impl Kernel for Halves {
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(
        self,
        s: S,
        (row, tile): (usize, usize),
        out: (*mut f32, usize),
        add: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = begin::<S, R, T>(s, out, add);
            let weights = self.weights.add(tile * self.tile_bytes);
            let x = self.x.add(row * self.inputs);
            for input in 0..self.inputs {
                let mut w = [s.zero(); T];
                for (t, w) in w.iter_mut().enumerate() {
                    *w = s.halves(weights.add(t * self.tile_bytes + input * 2 * LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = s.splat(*x.add(r * self.inputs + input));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = s.fma(x, w, *sum);
                    }
                }
            }
            end(s, out, sums);
        }
    }
}
