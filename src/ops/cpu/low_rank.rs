//! What adapters add to products: x·A·B for some rows, with matrices of f32, bf16 or 8 bits.
//!
//! x·A is computed by pieces of its own, which stand before those of the product that it changes; whoever has columns of
//! the product adds those of (x·A)·B to them, while they are at hand. Beside floats sums are f32; beside matrices of 8 bits
//! rows are bytes too, as quantised weights take them (where inputs are a multiple of 32), and x·A words of 16 bits. A row's result depends on no other.
//! Knows no adapter.
//! Shapes: `x` `[rows, inputs]`, Aᵀ `[rank, inputs]`, B `[rank, outputs]` (of 8 bits `[⌈rank/2⌉, outputs, 2]`, see `bytes`),
//! results `[rows, outputs]`, all packed.
//! After: Hu et al. 2021 (arXiv 2106.09685); S-LoRA (Sheng et al. 2023, arXiv 2311.03285).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use half::bf16;

use super::blocks::BLOCK;
use super::bytes::{ByteDots, Words, words};
use super::dense::{dots, multiply_columns};
use super::prepared::{Prepared, emptied};
use super::product::{Misfit, fits};
use super::simd::{LANES, Level, Number, Simd, Work};
use super::steps;
use super::team::each_number;
use super::tile::Out;

/// Rows of x·A that are one piece.
const ROWS: usize = 32;
/// Looks at a piece that another thread computes before others may have the core.
const LOOKS: usize = 1 << 12;

/// Aᵀ and B.
#[derive(Debug, Clone, Copy)]
pub enum Factors<'a> {
    /// 32-bit floats.
    F32([&'a [f32]; 2]),
    /// Their upper halves.
    Bf16([&'a [bf16]; 2]),
    /// Whole numbers from -127 to 127.
    Int8 {
        /// Aᵀ `[rank, inputs]`, and B `[⌈rank/2⌉, outputs, 2]`: two components beside each other.
        matrices: [&'a [i8]; 2],
        /// What one of A times one of B is worth, by component, `[rank]`.
        worth: &'a [f32],
    },
}

/// What is added to some rows of a product: scale·x·A·B.
#[derive(Debug, Clone)]
pub struct LowRank<'a> {
    /// Rows of the product.
    pub rows: Range<usize>,
    /// The matrices.
    pub factors: Factors<'a>,
    /// Multiplies x·A.
    pub scale: f32,
}

/// Adds low-rank products to rows of `out`, which are ascending and nobody else's; `x` has `inputs` columns.
///
/// # Errors
/// When shapes do not fit.
pub fn add_low_rank(
    (x, inputs): (&[f32], usize),
    changes: &[LowRank<'_>],
    (out, outputs): (&mut [f32], usize),
) -> Result<(), Misfit> {
    fits(out.len(), x.len() / inputs.max(1), outputs)?;
    let mut prepared = Prepared::default();
    let mut all = Changes::new(Level::best(), (x, inputs), &mut prepared);
    all.push(0, outputs, changes)?;
    all.begin();
    prepared.fill(all.level, (x, inputs), std::iter::empty(), all.take_bytes());
    let out = Out(out.as_mut_ptr());
    each_number(all.len(), |number| {
        let part = &all.parts[number];
        all.compute(part, &prepared);
        all.add_part(part, part.rows.clone(), 0..outputs.div_ceil(LANES), (out, outputs));
    });
    Ok(())
}

/// The low-rank products of a loop, in pieces.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    level: Level,
    x: &'a [f32],
    inputs: usize,
    parts: Vec<Part<'a>>,
    /// x·A of all parts, of which there are so many numbers, and where they are written.
    inner: Vec<f32>,
    numbers: usize,
    place: Out,
}

/// x·A of some rows.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// The product that it is added to.
    product: usize,
    rows: Range<usize>,
    factors: Factors<'a>,
    rank: usize,
    scale: f32,
    /// Where its `[rows, rank]` begin, and behind them the words, where matrices have 8 bits.
    at: usize,
    is_done: AtomicBool,
}

impl Factors<'_> {
    /// Returns the rank, if the matrices fit a product.
    fn rank(self, inputs: usize, outputs: usize) -> Result<usize, Misfit> {
        let (a, b) = match self {
            Self::F32([a, b]) => (a.len(), b.len()),
            Self::Bf16([a, b]) => (a.len(), b.len()),
            Self::Int8 { matrices: [a, b], .. } => (a.len(), b.len()),
        };
        let rank = a / inputs.max(1);
        fits(a, rank, inputs)?;
        if let Self::Int8 { worth, .. } = self {
            fits(worth.len(), rank, 1)?;
            fits(b, rank.next_multiple_of(2), outputs)?;
        } else {
            fits(b, rank, outputs)?;
        }
        Ok(rank)
    }
}

impl<'a> Changes<'a> {
    /// Begins with nothing that is added to products of `x` `[rows, inputs]`; takes its memory from `prepared`.
    pub(super) fn new(level: Level, (x, inputs): (&'a [f32], usize), prepared: &mut Prepared) -> Self {
        let (parts, inner) = (std::mem::take(&mut prepared.lists.parts), std::mem::take(&mut prepared.inner));
        Self { level, x, inputs, parts, inner, numbers: 0, place: Out(std::ptr::null_mut()) }
    }

    /// Divides what is added to a product of some outputs.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub(super) fn push(&mut self, product: usize, outputs: usize, changes: &[LowRank<'a>]) -> Result<(), Misfit> {
        let (inputs, mut next) = (self.inputs, 0);
        for LowRank { rows, factors, scale } in changes {
            let rank = factors.rank(inputs, outputs)?;
            // No two threads may add to one row.
            if rows.start < next || rows.start > rows.end || rows.end * inputs > self.x.len() {
                return Err(Misfit::of(self.x.len(), rows.end, inputs));
            }
            next = rows.end;
            for start in rows.clone().step_by(ROWS).filter(|_| rank > 0) {
                let rows = start..rows.end.min(start + ROWS);
                let (at, is_done) = (self.numbers, AtomicBool::new(false));
                let part = Part { product, rows, factors: *factors, rank, scale: *scale, at, is_done };
                self.numbers += part.numbers();
                self.parts.push(part);
            }
        }
        Ok(())
    }

    /// Makes room for x·A, when all has been pushed.
    pub(super) fn begin(&mut self) {
        self.inner.resize(self.numbers.max(self.inner.len()), 0.0);
        self.place = Out(self.inner.as_mut_ptr());
    }

    /// Gives the memory back.
    pub(super) fn end(self, prepared: &mut Prepared) {
        (prepared.lists.parts, prepared.inner) = (emptied(self.parts), self.inner);
    }

    /// Returns the number of pieces that have to be computed.
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Returns whether rows are read as bytes.
    pub(super) fn take_bytes(&self) -> bool {
        let in_bytes = |part: &Part<'_>| matches!(part.factors, Factors::Int8 { .. });
        self.inputs.is_multiple_of(BLOCK) && self.parts.iter().any(in_bytes)
    }

    /// Computes a piece; each once.
    pub(super) fn piece(&self, at: usize, prepared: &Prepared) {
        if let Some(part) = self.parts.get(at) {
            self.compute(part, prepared);
        }
    }

    fn compute(&self, part: &Part<'_>, prepared: &Prepared) {
        // Whoever waits is not left alone by a panic.
        let _done = Done(&part.is_done);
        let (rank, count, inputs) = (part.rank, part.rows.len(), self.inputs);
        // SAFETY: there is room for so many numbers from there on, for this part alone.
        let numbers = unsafe { std::slice::from_raw_parts_mut(self.place.0.add(part.at), part.numbers()) };
        let (inner, in_words) = numbers.split_at_mut(count * rank);
        let x = (&self.x[part.rows.start * inputs..], count, inputs);
        let (a, worth) = match part.factors {
            Factors::F32([a, _]) => return self.floats(x, a, (inner, part.scale)),
            Factors::Bf16([a, _]) => return self.floats(x, a, (inner, part.scale)),
            Factors::Int8 { matrices: [a, _], worth } => (a, worth),
        };
        self.ask_all(worth);
        let mut bytes = None;
        if inputs.is_multiple_of(BLOCK) {
            self.ask_all(a);
            bytes = Some(prepared.bytes(&part.rows, inputs));
        } else {
            self.floats(x, a, (inner, 1.0));
        }
        self.level.run(ByteDots { x: bytes, inputs, a, worth: (worth, part.scale), inner, words: in_words });
    }

    /// Writes x·A of rows of floats, times a scale.
    fn floats<N: Number>(&self, x: (&[f32], usize, usize), a: &[N], (out, scale): (&mut [f32], f32)) {
        self.ask_all(a);
        let fit = dots(x, (a, x.2), out);
        debug_assert!(fit.is_ok());
        if (scale - 1.0).abs() > 0.0 {
            steps::scale(out, scale);
        }
    }

    /// Asks for all of a matrix at once: what lies in short rows would be waited for row by row.
    fn ask_all<N: Number>(&self, matrix: &[N]) {
        self.level.run(Ask { rows: matrix, width: matrix.len(), tiles: 0..matrix.len().div_ceil(LANES) });
    }

    /// Asks for what will be added to columns of a product.
    pub(super) fn ask(&self, product: usize, rows: &Range<usize>, tiles: &Range<usize>, outputs: usize) {
        for part in self.of(product, rows) {
            match part.factors {
                Factors::F32([_, b]) => self.level.run(Ask { rows: b, width: outputs, tiles: tiles.clone() }),
                Factors::Bf16([_, b]) => self.level.run(Ask { rows: b, width: outputs, tiles: tiles.clone() }),
                // Two components beside each other.
                Factors::Int8 { matrices: [_, b], .. } => {
                    self.level.run(Ask { rows: b, width: 2 * outputs, tiles: 2 * tiles.start..2 * tiles.end });
                }
            }
        }
    }

    /// Adds to `tiles` of `rows` of a product; waits for pieces that other threads compute.
    pub(super) fn add(&self, product: usize, rows: &Range<usize>, tiles: &Range<usize>, out: (Out, usize)) {
        for part in self.of(product, rows) {
            part.wait();
            let rows = part.rows.start.max(rows.start)..part.rows.end.min(rows.end);
            self.add_part(part, rows, tiles.clone(), out);
        }
    }

    fn add_part(&self, part: &Part<'_>, rows: Range<usize>, tiles: Range<usize>, (out, outputs): (Out, usize)) {
        // SAFETY: the part is computed: nobody writes its numbers any more.
        let numbers = unsafe { std::slice::from_raw_parts(self.place.0.add(part.at), part.numbers()) };
        let (inner, in_words) = numbers.split_at(part.rows.len() * part.rank);
        let (first, count) = (rows.start - part.rows.start, rows.len());
        let inner = &inner[first * part.rank..];
        // SAFETY: the row lies in the result.
        let out = Out(unsafe { out.0.add(rows.start * outputs) });
        match part.factors {
            Factors::F32([_, b]) => expand((inner, count, part.rank), (b, outputs), tiles, out),
            Factors::Bf16([_, b]) => expand((inner, count, part.rank), (b, outputs), tiles, out),
            Factors::Int8 { matrices: [_, b], .. } => {
                let words = Words { words: &in_words[first * words(part.rank)..], rank: part.rank, b, outputs };
                // SAFETY: no two threads add to the same columns of a row.
                unsafe { words.add(self.level, count, tiles, out) };
            }
        }
    }

    fn of(&self, product: usize, rows: &Range<usize>) -> impl Iterator<Item = &Part<'a>> {
        let (start, end) = (rows.start, rows.end);
        let here = move |part: &&Part<'_>| part.rows.start < end && start < part.rows.end;
        // They were pushed product by product.
        let parts = &self.parts[self.parts.partition_point(|part| part.product < product)..];
        parts.iter().take_while(move |part| part.product == product).filter(here)
    }
}

impl Part<'_> {
    /// How many numbers it makes.
    fn numbers(&self) -> usize {
        let words = if let Factors::Int8 { .. } = self.factors { words(self.rank) } else { 0 };
        self.rows.len() * (self.rank + words)
    }

    fn wait(&self) {
        for look in 0_usize.. {
            if self.is_done.load(Ordering::Acquire) {
                return;
            }
            if look < LOOKS { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

/// Adds (x·A)·B to tiles of the rows that begin at `out`.
fn expand<N: Number>(inner: (&[f32], usize, usize), (b, outputs): (&[N], usize), tiles: Range<usize>, out: Out) {
    let fit = multiply_columns(inner, (b, outputs), tiles, (out, outputs), true);
    debug_assert!(fit.is_ok());
}

/// Says that something is done when it goes.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Asks for tiles of rows that are read soon.
struct Ask<'a, N> {
    /// Behind each other, `width` numbers each.
    rows: &'a [N],
    width: usize,
    tiles: Range<usize>,
}

impl<N: Number> Work for Ask<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { rows, width, tiles } = self;
        for row in rows.chunks_exact(width.max(1)) {
            let part = &row[width.min(tiles.start * LANES)..width.min(tiles.end * LANES)];
            part.chunks(64 / size_of::<N>()).for_each(|line| s.prefetch(line.as_ptr().cast()));
        }
    }
}
