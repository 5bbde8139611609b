//! Products of f32 matrices that nobody packed: adapters, gradients, weights in training.
//!
//! The right factor is copied into tiles, or read where it stands when its rows are; the left one is read with whatever
//! distances it has, so that no matrix is ever transposed in memory. Shapes stand at each function.

use super::product::{Misfit, fits};
use super::simd::{LANES, Level, Number, Simd, Work};
use super::team::each;
use super::tile::{Floats, Out, Sweep};

/// Products of numbers below which threads are not asked to help.
const ALONE: usize = 1 << 16;

/// A matrix somewhere in memory.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    /// Distances of rows and of columns.
    strides: (usize, usize),
}

impl<'a> View<'a> {
    /// Returns a view, if all of it lies in `data`.
    pub(in crate::ops) fn new(
        data: &'a [f32],
        (rows, columns): (usize, usize),
        strides: (usize, usize),
    ) -> Option<Self> {
        let last = match (rows.checked_sub(1), columns.checked_sub(1)) {
            (Some(row), Some(column)) => row.checked_mul(strides.0)?.checked_add(column.checked_mul(strides.1)?)?,
            (None, _) | (_, None) => return Some(Self { data, rows, columns, strides }),
        };
        (last < data.len()).then_some(Self { data, rows, columns, strides })
    }

    fn pack(self, tile: usize, out: &mut [f32]) {
        let columns = self.columns.min((tile + 1) * LANES) - tile * LANES;
        for (row, out) in out.chunks_exact_mut(LANES).enumerate() {
            let first = row * self.strides.0 + tile * LANES * self.strides.1;
            if self.strides.1 == 1 {
                out[..columns].copy_from_slice(&self.data[first..first + columns]);
            } else {
                for (column, out) in out[..columns].iter_mut().enumerate() {
                    *out = self.data[first + column * self.strides.1];
                }
            }
        }
    }
}

/// Writes a·b, `[a.rows, b.columns]` packed.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn multiply(a: View<'_>, b: View<'_>, out: &mut [f32]) -> Result<(), Misfit> {
    fits(out.len(), a.rows, b.columns)?;
    fits(a.columns, 1, b.rows)?;
    let (rows, inputs, outputs) = (a.rows, a.columns, b.columns);
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    if inputs == 0 {
        out.fill(0.0);
        return Ok(());
    }
    let level = Level::best();
    let tiles = outputs.div_ceil(LANES);
    let mut packed = vec![0.0; tiles * inputs * LANES];
    let alone = rows * inputs * outputs < ALONE;
    if alone {
        packed.chunks_mut(inputs * LANES).enumerate().for_each(|(tile, out)| b.pack(tile, out));
    } else {
        each(packed.chunks_mut(inputs * LANES).enumerate().collect(), |(tile, out)| b.pack(tile, out));
    }
    let kernel = Floats {
        x: a.data.as_ptr(),
        row: a.strides.0,
        input: a.strides.1,
        weights: packed.as_ptr(),
        tile: inputs * LANES,
        step: LANES,
        inputs,
    };
    let whole = Sweep {
        kernel,
        rows: 0..rows,
        tiles: 0..tiles,
        outputs,
        out: Out(out.as_mut_ptr()),
        width: outputs,
        add: false,
    };
    if alone {
        level.run(whole);
        return Ok(());
    }
    let shared = Shared(whole);
    let pieces = rayon::current_num_threads() * 4;
    let step = tiles.div_ceil(pieces).next_multiple_of(3);
    let columns = tiles.div_ceil(step);
    let row_step = rows.div_ceil(pieces.div_ceil(columns)).next_multiple_of(8);
    let parts: Vec<_> =
        (0..tiles).step_by(step).flat_map(|tile| (0..rows).step_by(row_step).map(move |row| (tile, row))).collect();
    each(parts, |(tile, row)| {
        let mut part = shared.get();
        part.tiles = tile..tiles.min(tile + step);
        part.rows = row..rows.min(row + row_step);
        level.run(part);
    });
    Ok(())
}

/// A sweep that threads copy and narrow down.
struct Shared(Sweep<Floats>);

// SAFETY: its pointers lead to matrices that are only read, and to a result of which each thread writes its part.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> Sweep<Floats> {
        self.0.clone()
    }
}

/// Writes x·b on one thread, or adds it to what is there; `x` is `[rows, inputs]` with rows `stride` apart, `b`
/// `[inputs, outputs]` packed, the result has rows `width` apart.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn multiply_rows<N: Number>(
    (x, rows, stride): (&[f32], usize, usize),
    (b, outputs): (&[N], usize),
    (out, width): (&mut [f32], usize),
    add: bool,
) -> Result<(), Misfit> {
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let inputs = b.len() / outputs;
    fits(b.len(), inputs, outputs)?;
    if x.len() < (rows - 1) * stride + inputs || out.len() < (rows - 1) * width + outputs {
        return Err(Misfit::of(x.len(), rows, stride));
    }
    let level = Level::best();
    let (tiles, out) = (outputs.div_ceil(LANES), Out(out.as_mut_ptr()));
    // A tile is read 16 wide, beyond the end of its row: that is the next row, but for the last ones.
    let inside = (b.len().saturating_sub(tiles * LANES) / outputs + usize::from(b.len() >= tiles * LANES)).min(inputs);
    let kernel = |x: *const f32, weights: *const N, step: usize, inputs: usize| Floats {
        x,
        row: stride,
        input: 1,
        weights,
        tile: LANES,
        step,
        inputs,
    };
    let sweep = |kernel, add| Sweep { kernel, rows: 0..rows, tiles: 0..tiles, outputs, out, width, add };
    level.run(sweep(kernel(x.as_ptr(), b.as_ptr(), outputs, inside), add));
    if inside < inputs {
        let mut rest = vec![N::ZERO; (inputs - inside) * tiles * LANES];
        for (to, from) in rest.chunks_exact_mut(tiles * LANES).zip(b[inside * outputs..].chunks_exact(outputs)) {
            to[..outputs].copy_from_slice(from);
        }
        level.run(sweep(kernel(x[inside..].as_ptr(), rest.as_ptr(), tiles * LANES, inputs - inside), true));
    }
    Ok(())
}

/// Writes x·aᵀ on one thread; `x` is `[rows, inputs]` with rows `stride` apart, `a` `[outputs, inputs]` packed, the result
/// `[rows, outputs]` packed. For few outputs: each number is summed by itself.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn dots<N: Number>(
    (x, rows, stride): (&[f32], usize, usize),
    (a, inputs): (&[N], usize),
    out: &mut [f32],
) -> Result<(), Misfit> {
    let outputs = a.len() / inputs.max(1);
    fits(a.len(), outputs, inputs)?;
    fits(out.len(), rows, outputs)?;
    if rows > 0 && x.len() < (rows - 1) * stride + inputs {
        return Err(Misfit::of(x.len(), rows, stride));
    }
    Level::best().run(Dots { x, rows, stride, a, inputs, outputs, out });
    Ok(())
}

struct Dots<'a, N> {
    x: &'a [f32],
    rows: usize,
    stride: usize,
    a: &'a [N],
    inputs: usize,
    outputs: usize,
    out: &'a mut [f32],
}

impl<N: Number> Work for Dots<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut row = 0;
        if const { S::ROWS >= 8 } {
            while row + 4 <= self.rows {
                self.columns::<S, 4>(s, row);
                row += 4;
            }
        }
        (row..self.rows).for_each(|row| self.columns::<S, 1>(s, row));
    }
}

impl<N: Number> Dots<'_, N> {
    /// All outputs of `R` rows.
    #[inline(always)]
    fn columns<S: Simd, const R: usize>(&mut self, s: S, row: usize) {
        let mut eights = 0;
        if const { S::ROWS >= 8 && R == 1 } {
            // One sum after another would wait for itself.
            eights = self.outputs / 8 * 8;
            (0..eights).step_by(8).for_each(|column| self.block::<S, R, 8>(s, row, column));
        }
        let fours = self.outputs / 4 * 4;
        (eights..fours).step_by(4).for_each(|column| self.block::<S, R, 4>(s, row, column));
        (fours..self.outputs).for_each(|column| self.block::<S, R, 1>(s, row, column));
    }

    #[inline(always)]
    fn block<S: Simd, const R: usize, const C: usize>(&mut self, s: S, row: usize, column: usize) {
        let x: [&[f32]; R] = std::array::from_fn(|r| &self.x[(row + r) * self.stride..][..self.inputs]);
        let a: [&[N]; C] = std::array::from_fn(|c| &self.a[(column + c) * self.inputs..][..self.inputs]);
        let whole = self.inputs / LANES * LANES;
        let mut sums = [[s.zero(); C]; R];
        for at in (0..whole).step_by(LANES) {
            // SAFETY: 16 numbers stand there in each.
            unsafe {
                let mut w = [s.zero(); C];
                for c in 0..C {
                    w[c] = N::load(s, a[c].as_ptr().add(at));
                }
                for r in 0..R {
                    let x = s.load(x[r].as_ptr().add(at));
                    for c in 0..C {
                        sums[r][c] = s.fma(x, w[c], sums[r][c]);
                    }
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                let rest = (whole..self.inputs).map(|at| x[r][at] * a[c][at].wide());
                self.out[(row + r) * self.outputs + column + c] = rest.fold(s.sum(sums[r][c]), |sum, x| sum + x);
            }
        }
    }
}
