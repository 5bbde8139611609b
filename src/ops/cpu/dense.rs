//! Products of f32 matrices that nobody packed: adapters, gradients, weights in training.
//!
//! The right factor is copied into tiles, or read where it stands when its rows are; the left one is read with whatever
//! distances it has, so that no matrix is ever transposed in memory. Shapes stand at each function.

use std::ops::Range;

use super::product::{Misfit, fits};
use super::simd::{LANES, Level, Number, Simd, Work};
use super::team::{each, each_with};
use super::tile::{Floats, Out, Sweep};

/// Products of numbers below which threads are not asked to help.
const ALONE: usize = 1 << 16;
/// Pieces of work for each thread: the last ones even out what the first ones took.
const PIECES: usize = 4;
/// Tiles that a thread packs and multiplies with at a time.
const TOGETHER: usize = 3;
/// Rows below which a piece is not divided further: packing its columns costs as much as some rows.
const ROWS: usize = 256;
/// Inputs whose rows of a right factor stay in the second cache while rows are multiplied with them.
const LONG: usize = 128;
/// Inputs whose share of a long sum is summed by itself.
const SHARE: usize = 4096;
/// Numbers of a right factor that is packed once for all threads: half of the second cache of most CPUs.
const SMALL: usize = 1 << 17;

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

    /// Writes a tile, `[rows, 16]`; columns that it has not are left as they are.
    fn pack(self, tile: usize, out: &mut [f32]) {
        let columns = self.columns.min((tile + 1) * LANES) - tile * LANES;
        let first = tile * LANES * self.strides.1;
        if self.strides.1 == 1 {
            for (row, out) in out.chunks_exact_mut(LANES).enumerate() {
                let first = row * self.strides.0 + first;
                out[..columns].copy_from_slice(&self.data[first..first + columns]);
            }
            return;
        }
        if self.strides.0 == 1 {
            return turn((&self.data[first..], columns, self.strides.1), self.rows, (out, LANES));
        }
        for (row, out) in out.chunks_exact_mut(LANES).enumerate() {
            for (column, out) in out[..columns].iter_mut().enumerate() {
                *out = self.data[row * self.strides.0 + first + column * self.strides.1];
            }
        }
    }
}

/// Writes the transpose of up to 16 rows of some numbers: rows begin `stride` apart, those of the result `width` apart.
pub(super) fn turn((from, rows, stride): (&[f32], usize, usize), count: usize, (to, width): (&mut [f32], usize)) {
    struct Turn<'a> {
        from: &'a [f32],
        count: usize,
        stride: usize,
        to: &'a mut [f32],
        width: usize,
    }

    impl Work for Turn<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Self { from, count, stride, to, width } = self;
            let (from, to) = (&from[..(LANES - 1) * stride + count], &mut to[..(count - 1) * width + LANES]);
            for at in (0..count).step_by(LANES) {
                // SAFETY: all that is read and written was just seen to be there.
                unsafe { s.transpose(from.as_ptr().add(at), stride, to.as_mut_ptr().add(at * width), width) };
            }
        }
    }

    let whole = if rows == LANES { count / LANES * LANES } else { 0 };
    if whole > 0 {
        Level::best().run(Turn { from, count: whole, stride, to, width });
    }
    for at in whole..count {
        for row in 0..rows {
            to[at * width + row] = from[row * stride + at];
        }
    }
}

/// Writes the transpose of `[rows, columns]`.
pub(in crate::ops) fn transpose(from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
    let parts = to.chunks_mut((LANES * rows).max(1)).enumerate().collect();
    each(parts, |(part, to): (usize, &mut [f32])| {
        let (first, count) = (part * LANES, to.len() / rows);
        for row in (0..rows).step_by(LANES) {
            let from = &from[row * columns + first..];
            turn((from, LANES.min(rows - row), columns), count, (&mut to[row..], rows));
        }
    });
}

/// Writes a·b, `[a.rows, b.columns]` packed, or adds it to what is there.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn multiply(a: View<'_>, b: View<'_>, out: &mut [f32], add: bool) -> Result<(), Misfit> {
    fits(out.len(), a.rows, b.columns)?;
    fits(a.columns, 1, b.rows)?;
    let (rows, inputs, outputs) = (a.rows, a.columns, b.columns);
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    if inputs == 0 {
        if !add {
            out.fill(0.0);
        }
        return Ok(());
    }
    let level = Level::best();
    let (tiles, tile) = (outputs.div_ceil(LANES), inputs * LANES);
    let kernel = Floats {
        x: a.data.as_ptr(),
        row: a.strides.0,
        input: a.strides.1,
        weights: std::ptr::null(),
        tile,
        step: LANES,
        inputs,
    };
    let whole = Shared(Sweep {
        kernel,
        rows: 0..rows,
        tiles: 0..tiles,
        outputs,
        out: Out(out.as_mut_ptr()),
        width: outputs,
        add,
    });
    let alone = rows * inputs * outputs < ALONE;
    if alone || tiles * tile <= SMALL {
        let mut packed = vec![0.0; tiles * tile];
        packed.chunks_mut(tile).enumerate().for_each(|(tile, out)| b.pack(tile, out));
        if alone {
            level.run(whole.part(0..rows, 0..tiles, &packed));
            return Ok(());
        }
        // So many that a thread's second cache holds them beside the right factor.
        let most = (SMALL / (inputs + outputs)).max(8);
        let step = rows.div_ceil(rayon::current_num_threads() * PIECES).min(most).next_multiple_of(8);
        let parts = (0..rows).step_by(step).map(|row| row..rows.min(row + step)).collect();
        each_with(parts, Vec::new, |scratch, rows: Range<usize>| {
            let mut part = whole.part(rows.clone(), 0..tiles, &packed);
            if a.strides.0 == 1 && a.strides.1 > 1 {
                part.read(a, rows, scratch);
            }
            level.run(part);
        });
        return Ok(());
    }
    // Threads pack what they multiply with; where there are few columns, rows are divided too, and columns packed again.
    let columns = tiles.div_ceil(TOGETHER);
    let parts = (rayon::current_num_threads() * PIECES).div_ceil(columns).clamp(1, rows.div_ceil(ROWS));
    let step = rows.div_ceil(parts).next_multiple_of(8);
    let parts = (0..tiles).step_by(TOGETHER).flat_map(|tile| (0..rows).step_by(step).map(move |row| (tile, row)));
    each_with(
        parts.collect(),
        || vec![0.0; TOGETHER * tile],
        |packed, (first, row)| {
            let here = first..tiles.min(first + TOGETHER);
            here.clone().zip(packed.chunks_mut(tile)).for_each(|(tile, out)| b.pack(tile, out));
            level.run(whole.part(row..rows.min(row + step), here, packed));
        },
    );
    Ok(())
}

/// A sweep that threads copy and narrow down.
struct Shared(Sweep<Floats>);

// SAFETY: its pointers lead to matrices that are only read, and to a result of which each thread writes its part.
unsafe impl Sync for Shared {}

impl Shared {
    /// Returns the part of some rows and tiles, of which `packed` holds the latter.
    fn part(&self, rows: Range<usize>, tiles: Range<usize>, packed: &[f32]) -> Sweep<Floats> {
        let Sweep { kernel, outputs, out, width, add, .. } = self.0.clone();
        let first = tiles.start * LANES;
        // SAFETY: the first column of the part lies in the result.
        let out = Out(unsafe { out.0.add(first) });
        let kernel = Floats { weights: packed.as_ptr(), ..kernel };
        Sweep { kernel, rows, tiles: 0..tiles.len(), outputs: outputs - first, out, width, add }
    }
}

impl Sweep<Floats> {
    /// Reads its rows from `scratch`, which becomes a copy of those of `a`, whose columns lie in one piece.
    fn read(&mut self, a: View<'_>, rows: Range<usize>, scratch: &mut Vec<f32>) {
        let inputs = a.columns;
        scratch.resize((rows.len() * inputs).max(scratch.len()), 0.0);
        for input in (0..inputs).step_by(LANES) {
            let from = &a.data[input * a.strides.1 + rows.start..];
            let count = LANES.min(inputs - input);
            turn((from, count, a.strides.1), rows.len(), (&mut scratch[input..], inputs));
        }
        // SAFETY: these rows lie in the result.
        self.out = Out(unsafe { self.out.0.add(rows.start * self.width) });
        self.rows = 0..rows.len();
        self.kernel = Floats { x: scratch.as_ptr(), row: inputs, input: 1, ..self.kernel };
    }
}

/// Writes a·b for few rows and long sums: shares of inputs are summed by themselves and added in their order, so that
/// what threads hold stays small. `a` is `[rows, inputs]`, `b` `[inputs, outputs]`, both packed, and outputs are a
/// multiple of 16.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn multiply_long(
    (a, rows): (&[f32], usize),
    (b, outputs): (&[f32], usize),
    out: &mut [f32],
) -> Result<(), Misfit> {
    let inputs = a.len() / rows.max(1);
    fits(a.len(), rows, inputs)?;
    fits(b.len(), inputs, outputs)?;
    fits(out.len(), rows, outputs)?;
    fits(outputs, outputs / LANES, LANES)?;
    let share = |inputs_of: Range<usize>| {
        let mut sum = vec![0.0; rows * outputs];
        for first in inputs_of.clone().step_by(LONG) {
            let last = inputs_of.end.min(first + LONG);
            multiply_rows(
                (&a[first..], rows, inputs),
                (&b[first * outputs..last * outputs], outputs),
                (&mut sum, outputs),
                true,
            )?;
        }
        Ok(sum)
    };
    let mut shares: Vec<_> =
        (0..inputs).step_by(SHARE).map(|at| (at..inputs.min(at + SHARE), Ok(Vec::new()))).collect();
    each(shares.iter_mut().collect(), |(inputs, sum)| *sum = share(inputs.clone()));
    out.fill(0.0);
    for (_, sum) in shares {
        super::steps::add(out, &sum?);
    }
    Ok(())
}

/// Writes x·b on one thread, or adds it to what is there; `x` is `[rows, inputs]` with rows `stride` apart, `b`
/// `[inputs, outputs]` packed, the result has rows `width` apart.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn multiply_rows<N: Number>(
    x: (&[f32], usize, usize),
    (b, outputs): (&[N], usize),
    (out, width): (&mut [f32], usize),
    add: bool,
) -> Result<(), Misfit> {
    let rows = x.1;
    if rows > 0 && out.len() < (rows - 1) * width + outputs {
        return Err(Misfit::of(out.len(), rows, width));
    }
    multiply_columns(x, (b, outputs), 0..outputs.div_ceil(LANES), (Out(out.as_mut_ptr()), width), add)
}

/// As [`multiply_rows`], for some tiles of 16 columns; `out` is where the rows of the whole result begin.
///
/// # Errors
/// When shapes do not fit.
pub(super) fn multiply_columns<N: Number>(
    (x, rows, stride): (&[f32], usize, usize),
    (b, outputs): (&[N], usize),
    tiles: Range<usize>,
    (out, width): (Out, usize),
    add: bool,
) -> Result<(), Misfit> {
    if rows == 0 || outputs == 0 || tiles.is_empty() {
        return Ok(());
    }
    let inputs = b.len() / outputs;
    fits(b.len(), inputs, outputs)?;
    if x.len() < (rows - 1) * stride + inputs {
        return Err(Misfit::of(x.len(), rows, stride));
    }
    let level = Level::best();
    let (first, end, count) = (tiles.start * LANES, tiles.end * LANES, tiles.len());
    // A tile is read 16 wide, beyond the end of its row: that is the next row, but for the last ones.
    let inside = (b.len().saturating_sub(end) / outputs + usize::from(b.len() >= end)).min(inputs);
    let kernel = |x: *const f32, weights: *const N, step: usize, inputs: usize| Floats {
        x,
        row: stride,
        input: 1,
        weights,
        tile: LANES,
        step,
        inputs,
    };
    // SAFETY: the first column of the tiles lies in the result.
    let out = Out(unsafe { out.0.add(first) });
    let sweep =
        |kernel, add| Sweep { kernel, rows: 0..rows, tiles: 0..count, outputs: outputs - first, out, width, add };
    level.run(sweep(kernel(x.as_ptr(), b[first..].as_ptr(), outputs, inside), add));
    if inside < inputs {
        let mut rest = vec![N::ZERO; (inputs - inside) * count * LANES];
        for (to, from) in rest.chunks_exact_mut(count * LANES).zip(b[inside * outputs..].chunks_exact(outputs)) {
            let from = &from[first..outputs.min(end)];
            to[..from.len()].copy_from_slice(from);
        }
        level.run(sweep(kernel(x[inside..].as_ptr(), rest.as_ptr(), count * LANES, inputs - inside), true));
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
