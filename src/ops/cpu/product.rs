//! Products with packed weights: divided among threads, forward, backward, and without rounding the rows.
//!
//! A result is cut into columns of tiles, so that each weight is read once; threads take the pieces as they come.
//! Shapes: `x` `[rows, inputs]`, results `[rows, outputs]`, all packed.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::amx::{self, Part};
use super::blocks::{BLOCK, Format};
use super::low_rank::{Changes, LowRank};
use super::packed::Packed;
use super::prepared::{Prepared, emptied};
use super::quants::Quants;
use super::simd::{LANES, Level, Simd, Work};
use super::team::{each_number, each_with};
use super::tile::{Ahead, Brains, Floats, Halves, Kernel, Out, Sweep};

/// Products of numbers below which threads are not asked to help.
const ALONE: usize = 1 << 16;
/// Pieces of work for each thread: the last ones even out what the first ones took.
const PIECES: usize = 4;
/// Tiles of a piece whose weights are unpacked first.
const UNPACKED: usize = 3;
/// Their inputs that are unpacked at a time, a multiple of those of any block: the second cache of most CPUs has room for
/// them beside rows.
const UNPACKED_INPUTS: usize = 1024;
/// Rows up to which waiting for weights counts beside multiplying with them.
const FEW: usize = 64;
/// Rows below which a piece of an unpacked product is not divided further: unpacking costs as much as some rows.
const UNPACKED_ROWS: usize = 256;

/// Shapes that do not fit each other.
#[derive(Debug, thiserror::Error)]
#[error("{got} numbers do not fit {rows} rows of {width}")]
pub struct Misfit {
    got: usize,
    rows: usize,
    width: usize,
}

impl From<Misfit> for candle_core::Error {
    fn from(misfit: Misfit) -> Self {
        Self::wrap(misfit)
    }
}

impl Misfit {
    pub(super) fn of(got: usize, rows: usize, width: usize) -> Self {
        Self { got, rows, width }
    }
}

/// Checks that `got` numbers are `rows` rows of `width`.
pub(super) fn fits(got: usize, rows: usize, width: usize) -> Result<(), Misfit> {
    if rows.checked_mul(width) == Some(got) { Ok(()) } else { Err(Misfit { got, rows, width }) }
}

/// Writes x·Wᵀ.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn product(
    weights: &Packed,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    prepared: &mut Prepared,
) -> Result<(), Misfit> {
    products(x, rows, [Job { weights, out, changes: &[] }], prepared)
}

/// A product to be written.
pub(in crate::ops) struct Job<'a> {
    pub(in crate::ops) weights: &'a Packed,
    /// `[rows, outputs]`.
    pub(in crate::ops) out: &'a mut [f32],
    /// What is added to rows of it.
    pub(in crate::ops) changes: &'a [LowRank<'a>],
}

/// Writes the products of the same rows with several weights, in one go, with what is added to them.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn products<'a>(
    x: &'a [f32],
    rows: usize,
    jobs: impl IntoIterator<Item = Job<'a>>,
    prepared: &mut Prepared,
) -> Result<(), Misfit> {
    products_at(Level::best(), x, rows, jobs, prepared)
}

/// A piece of a product.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    job: usize,
    tiles: Range<usize>,
    rows: Range<usize>,
}

impl Piece {
    /// Returns where its first column of a result stands, and how many of `outputs` there are from that one on.
    fn columns(&self, out: Out, outputs: usize) -> (Out, usize) {
        let first = self.tiles.start * LANES;
        // SAFETY: the first column of a piece lies in the result.
        (Out(unsafe { out.0.add(first) }), outputs - first)
    }

    /// Writes it, or adds it to what is there, by a kernel of which it has all tiles.
    fn sweep<K: Kernel>(&self, level: Level, kernel: K, (out, outputs): (Out, usize), add: bool) {
        let (rows, tiles) = (self.rows.clone(), 0..self.tiles.len());
        let (out, columns) = self.columns(out, outputs);
        level.run(Sweep { kernel, rows, tiles, outputs: columns, out, width: outputs, add });
    }
}

/// Writes the products with the instructions of a level.
pub(super) fn products_at<'a>(
    level: Level,
    x: &'a [f32],
    rows: usize,
    jobs: impl IntoIterator<Item = Job<'a>>,
    prepared: &mut Prepared,
) -> Result<(), Misfit> {
    let inputs = x.len() / rows.max(1);
    let mut outs: Vec<(&Packed, Out)> = std::mem::take(&mut prepared.lists.outs);
    let mut changes = Changes::new(level, (x, inputs), prepared);
    for Job { weights, out, changes: of_job } in jobs {
        fits(x.len(), rows, weights.inputs())?;
        fits(out.len(), rows, weights.outputs())?;
        changes.push(outs.len(), weights.outputs(), of_job)?;
        outs.push((weights, Out(out.as_mut_ptr())));
    }
    if rows == 0 || outs.is_empty() {
        return Ok(());
    }
    changes.begin();
    prepared.fill(level, (x, inputs), outs.iter().map(|(weights, _)| *weights), changes.take_bytes());
    let mut pieces = std::mem::take(&mut prepared.lists.pieces);
    let whole = Whole { level, rows: (x, prepared), changes: &changes, outs: &outs };
    whole.compute(rows, &mut pieces);
    changes.end(prepared);
    (prepared.lists.outs, prepared.lists.pieces) = (emptied(outs), pieces);
    Ok(())
}

/// Products of the same rows.
struct Whole<'a> {
    level: Level,
    /// As they are, and as weights are multiplied with.
    rows: (&'a [f32], &'a Prepared),
    changes: &'a Changes<'a>,
    outs: &'a [(&'a Packed, Out)],
}

impl Whole<'_> {
    fn compute(&self, rows: usize, pieces: &mut Vec<Piece>) {
        let total: usize = self.outs.iter().map(|(weights, _)| weights.tiles()).sum();
        let inputs = self.rows.0.len() / rows;
        if rows * inputs * total * LANES < ALONE {
            (0..self.changes.len()).for_each(|at| self.changes.piece(at, self.rows.1));
            let piece = |job: usize| Piece { job, tiles: 0..self.outs[job].0.tiles(), rows: 0..rows };
            (0..self.outs.len()).for_each(|job| self.piece(piece(job), std::ptr::null()));
            return;
        }
        self.divide(rows, total, pieces);
        // Threads take pieces in turn: what one takes next is most likely as many further as there are threads.
        let threads = rayon::current_num_threads();
        // Those of changes come first, so that nobody waits for one that nobody has begun.
        let changes = self.changes.len();
        each_number(changes + pieces.len(), |number| {
            let Some(number) = number.checked_sub(changes) else { return self.changes.piece(number, self.rows.1) };
            let start = |piece: &Piece| {
                let weights = self.outs[piece.job].0;
                weights.bytes().as_ptr().wrapping_add(piece.tiles.start * weights.tile_bytes())
            };
            let then = pieces.get(number + threads).map_or(std::ptr::null(), start);
            self.piece(pieces[number].clone(), then);
        });
    }

    /// Divides the results among threads.
    fn divide(&self, rows: usize, total: usize, list: &mut Vec<Piece>) {
        let pieces = rayon::current_num_threads() * PIECES;
        let step = total.div_ceil(pieces).next_multiple_of(3);
        // Few tiles and many rows are divided by rows.
        let parts = (pieces * step).div_ceil(total.next_multiple_of(step)).clamp(1, rows.div_ceil(64));
        let rows_step = rows.div_ceil(parts).next_multiple_of(16);
        list.clear();
        for (job, (weights, _)) in self.outs.iter().enumerate() {
            for first in (0..weights.tiles()).step_by(step) {
                for row in (0..rows).step_by(rows_step) {
                    let tiles = first..weights.tiles().min(first + step);
                    list.push(Piece { job, tiles, rows: row..rows.min(row + rows_step) });
                }
            }
        }
    }

    /// Computes a piece; `then` is what this thread probably reads after it.
    fn piece(&self, Piece { job, tiles, rows }: Piece, then: *const u8) {
        let (weights, out) = self.outs[job];
        let few = rows.len() <= FEW;
        if few {
            self.changes.ask(job, &rows, &tiles, weights.outputs());
        }
        let ahead = Ahead { row: if few { rows.start } else { usize::MAX }, end: tiles.end, then };
        sweep(self.level, weights, self.rows, (rows.clone(), tiles.clone()), ahead, out);
        self.changes.add(job, &rows, &tiles, (out, weights.outputs()));
    }
}

/// Computes one piece.
fn sweep(
    level: Level,
    weights: &Packed,
    (x, prepared): (&[f32], &Prepared),
    (rows, tiles): (Range<usize>, Range<usize>),
    ahead: Ahead,
    out: Out,
) {
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    let bytes = weights.bytes().as_ptr();
    // The pieces of a product share no number of the result.
    macro_rules! sweep {
        ($kernel:expr) => {
            level.run(Sweep { kernel: $kernel, rows, tiles, outputs, out, width: outputs, add: false })
        };
    }
    macro_rules! quants {
        ($header:literal, $nibbles:literal) => {
            sweep!(Quants::<$header, $nibbles> {
                quants: prepared.quants.as_ptr(),
                steps: prepared.steps.as_ptr(),
                sums: prepared.sums.as_ptr(),
                weights: bytes,
                blocks: inputs / BLOCK,
                groups: inputs / 4 / (inputs / BLOCK).max(1),
                ahead,
            })
        };
    }
    match weights.format() {
        Format::F32 => sweep!(floats((x.as_ptr(), inputs, 1), (bytes.cast(), inputs))),
        Format::F16 => sweep!(Halves { x: x.as_ptr(), weights: bytes, inputs, tile_bytes: weights.tile_bytes() }),
        #[cfg(target_arch = "x86_64")]
        Format::Bf16 if level == Level::Amx && level.narrows(inputs) => {
            let part = Part { rows, tiles, outputs, width: outputs, out };
            // SAFETY: the level is there; rows and weights are as long as the part needs them.
            unsafe { amx::multiply(prepared.narrow.as_ptr(), bytes, inputs, &part) };
        }
        Format::Bf16 => {
            sweep!(Brains { x: x.as_ptr(), narrow: prepared.narrow.as_ptr(), weights: bytes, inputs, ahead })
        }
        Format::Q40 => quants!(0, true),
        Format::Q50 | Format::Q80 => quants!(0, false),
        Format::Q41 => quants!(1, true),
        Format::Q51 => quants!(1, false),
        Format::Q4K => quants!(2, true),
        Format::Q5K => quants!(2, false),
        Format::Q6K => quants!(3, false),
    }
}

/// The kernel of packed f32 tiles: `x` with the distances of rows and inputs, `weights` with their number of inputs.
fn floats((x, row, input): (*const f32, usize, usize), (weights, inputs): (*const f32, usize)) -> Floats {
    Floats { x, row, input, weights, tile: inputs * LANES, step: LANES, inputs }
}

/// Writes x·Wᵀ without rounding `x`: quantised weights are unpacked, a few tiles at a time.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn product_exact(weights: &Packed, x: &[f32], rows: usize, out: &mut [f32]) -> Result<(), Misfit> {
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    fits(x.len(), rows, inputs)?;
    fits(out.len(), rows, outputs)?;
    if weights.format() == Format::F32 {
        return product(weights, x, rows, out, &mut Prepared::default());
    }
    let unpack = |tiles: Range<usize>, part: Range<usize>, scratch: &mut [f32]| {
        let each = scratch.chunks_exact_mut(part.len() * LANES);
        tiles.zip(each).for_each(|(tile, scratch)| weights.unpack(tile, part.clone(), scratch));
    };
    unpacked(Level::best(), (x, rows), (inputs, outputs), unpack, out);
    Ok(())
}

/// Writes x·W: `x` is `[rows, outputs]`, the result `[rows, inputs]`. bf16 weights are multiplied as bf16 where the CPU
/// can, all others as f32.
///
/// # Errors
/// When shapes do not fit.
pub(in crate::ops) fn product_transposed(
    weights: &Packed,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
) -> Result<(), Misfit> {
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    fits(x.len(), rows, outputs)?;
    fits(out.len(), rows, inputs)?;
    let level = Level::best();
    if weights.format() == Format::Bf16 && level.narrows(outputs) {
        narrow(level, (x, rows), weights, out);
        return Ok(());
    }
    // What was an input is now an output: a tile of 16 of them holds outputs.
    let unpack = |tiles: Range<usize>, outputs: Range<usize>, out: &mut [f32]| {
        level.run(Turned { weights, columns: tiles.start * LANES..inputs.min(tiles.end * LANES), outputs, out });
    };
    unpacked(level, (x, rows), (outputs, inputs), unpack, out);
    Ok(())
}

/// Unpacks some inputs of some outputs, from a multiple of 16 on each: `[inputs/16, outputs, 16]`.
struct Turned<'a> {
    weights: &'a Packed,
    columns: Range<usize>,
    outputs: Range<usize>,
    out: &'a mut [f32],
}

impl Work for Turned<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weights, columns, outputs, out } = self;
        let (mut part, mut turned) = ([0.0; LANES * LANES], [0.0; LANES * LANES]);
        let is_f32 = weights.format() == Format::F32;
        for first in outputs.clone().step_by(LANES) {
            let tile = first / LANES;
            let at = (first - outputs.start) * LANES..(outputs.end.min(first + LANES) - outputs.start) * LANES;
            if is_f32 && first + LANES < outputs.end {
                // The CPU begins anew to guess with each tile.
                let next = weights.tile(tile + 1)[columns.start * LANES * 4..columns.end * LANES * 4].chunks(64);
                next.for_each(|line| s.prefetch(line.as_ptr()));
            }
            for (column, out) in columns.clone().step_by(LANES).zip(out.chunks_exact_mut(outputs.len() * LANES)) {
                let (columns, out) = (column..columns.end.min(column + LANES), &mut out[at.clone()]);
                if is_f32 && columns.len() == LANES && out.len() == LANES * LANES {
                    let from = &weights.tile(tile)[column * LANES * 4..][..LANES * LANES * 4];
                    // SAFETY: a tile of f32 holds f32, 16 rows of 16 of them here, and so does the result.
                    unsafe { s.transpose(from.as_ptr().cast(), LANES, out.as_mut_ptr(), LANES) };
                    continue;
                }
                weights.unpack(tile, columns, &mut part);
                // SAFETY: both hold 16 rows of 16.
                unsafe { s.transpose(part.as_ptr(), LANES, turned.as_mut_ptr(), LANES) };
                out.copy_from_slice(&turned[..out.len()]);
            }
        }
    }
}

/// Divides columns of up to [`UNPACKED`] tiles among threads, and rows where there are many.
fn pieces(rows: usize, outputs: usize) -> Vec<Piece> {
    if rows == 0 || outputs == 0 {
        return Vec::new();
    }
    let tiles = outputs.div_ceil(LANES);
    let columns = tiles.div_ceil(UNPACKED);
    let wanted = (rayon::current_num_threads() * PIECES).div_ceil(columns).clamp(1, rows.div_ceil(UNPACKED_ROWS));
    let step = rows.div_ceil(wanted).next_multiple_of(16);
    let mut list = Vec::new();
    for first in (0..tiles).step_by(UNPACKED) {
        for row in (0..rows).step_by(step) {
            list.push(Piece { job: 0, tiles: first..tiles.min(first + UNPACKED), rows: row..rows.min(row + step) });
        }
    }
    list
}

/// Multiplies with tiles `[inputs, 16]` that `unpack` makes, some inputs of some tiles at a time.
fn unpacked(
    level: Level,
    (x, rows): (&[f32], usize),
    (inputs, outputs): (usize, usize),
    unpack: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync,
    out: &mut [f32],
) {
    let out = Out(out.as_mut_ptr());
    each_with(
        pieces(rows, outputs),
        || vec![0.0; UNPACKED * inputs.min(UNPACKED_INPUTS) * LANES],
        |scratch, piece| {
            for first in (0..inputs).step_by(UNPACKED_INPUTS) {
                let part = first..inputs.min(first + UNPACKED_INPUTS);
                let scratch = &mut scratch[..piece.tiles.len() * part.len() * LANES];
                unpack(piece.tiles.clone(), part.clone(), scratch);
                let kernel = floats((x[first..].as_ptr(), inputs, 1), (scratch.as_ptr(), part.len()));
                piece.sweep(level, kernel, (out, outputs), first > 0);
            }
        },
    );
}

/// Multiplies with the transpose of bf16 weights in bf16.
fn narrow(level: Level, (x, rows): (&[f32], usize), weights: &Packed, out: &mut [f32]) {
    let (inputs, outputs) = (weights.outputs(), weights.inputs());
    let mut prepared = Prepared::default();
    prepared.fill_narrow(level, x, inputs);
    let prepared = &prepared;
    let out = Out(out.as_mut_ptr());
    let tile = inputs.next_multiple_of(2) * LANES;
    each_with(
        pieces(rows, outputs),
        || vec![0_u16; UNPACKED * tile],
        |scratch, piece| {
            for (at, scratch) in piece.tiles.clone().zip(scratch.chunks_mut(tile)) {
                weights.transpose_brains(at * LANES..outputs.min((at + 1) * LANES), scratch);
            }
            let weights = scratch.as_ptr().cast();
            #[cfg(target_arch = "x86_64")]
            if level == Level::Amx {
                let (rows, tiles) = (piece.rows.clone(), 0..piece.tiles.len());
                let (out, columns) = piece.columns(out, outputs);
                let part = Part { rows, tiles, outputs: columns, width: outputs, out };
                // SAFETY: the level is there; rows and weights are as long as the part needs them.
                return unsafe { amx::multiply(prepared.narrow.as_ptr(), weights, inputs, &part) };
            }
            let (narrow, ahead) = (prepared.narrow.as_ptr(), Ahead::NOTHING);
            let kernel = Brains { x: x.as_ptr(), narrow, weights, inputs, ahead };
            piece.sweep(level, kernel, (out, outputs), false);
        },
    );
}
