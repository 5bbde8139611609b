//! What adapters add to products: x·A·B for some rows, with matrices of f32, bf16 or 8 bits.
//!
//! x·A is computed by pieces of its own, which stand before those of the product that it changes; whoever has columns of
//! the product adds those of (x·A)·B to them, while they are at hand. Sums are f32 whatever the matrices are. A row's
//! result depends on no other. Knows no adapter.
//! Shapes: `x` `[rows, inputs]`, Aᵀ `[rank, inputs]`, B `[rank, outputs]`, results `[rows, outputs]`, all packed.
//! After: Hu et al. 2021 (arXiv 2106.09685); S-LoRA (Sheng et al. 2023, arXiv 2311.03285).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use half::bf16;

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
    /// Whole numbers of 8 bits.
    Int8 {
        /// Aᵀ and B.
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
    let mut all = Changes::new((x, inputs), &mut Prepared::default());
    all.push(0, outputs, changes)?;
    all.begin();
    let out = Out(out.as_mut_ptr());
    each_number(all.len(), |number| {
        let part = &all.parts[number];
        all.compute(part);
        all.add_part(part, part.rows.clone(), 0..outputs.div_ceil(LANES), (out, outputs));
    });
    Ok(())
}

/// The low-rank products of a loop, in pieces.
#[derive(Debug)]
pub(super) struct Changes<'a> {
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
    scale: f32,
    /// Where its `[rows, rank]` begin.
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
        }
        fits(b, rank, outputs)?;
        Ok(rank)
    }
}

impl<'a> Changes<'a> {
    /// Begins with nothing that is added to products of `x` `[rows, inputs]`; takes its memory from `prepared`.
    pub(super) fn new((x, inputs): (&'a [f32], usize), prepared: &mut Prepared) -> Self {
        let (parts, inner) = (std::mem::take(&mut prepared.lists.parts), std::mem::take(&mut prepared.inner));
        Self { x, inputs, parts, inner, numbers: 0, place: Out(std::ptr::null_mut()) }
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
                self.numbers += rows.len() * rank;
                self.parts.push(Part { product, rows, factors: *factors, scale: *scale, at, is_done });
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

    /// Computes a piece; each once.
    pub(super) fn piece(&self, at: usize) {
        if let Some(part) = self.parts.get(at) {
            self.compute(part);
        }
    }

    fn compute(&self, part: &Part<'_>) {
        // Whoever waits is not left alone by a panic.
        let _done = Done(&part.is_done);
        match part.factors {
            Factors::F32([a, _]) => self.inner(part, a, &[]),
            Factors::Bf16([a, _]) => self.inner(part, a, &[]),
            Factors::Int8 { matrices: [a, _], worth } => self.inner(part, a, worth),
        }
    }

    fn inner<N: Number>(&self, part: &Part<'_>, a: &[N], worth: &[f32]) {
        // All at once: what lies in short rows would be waited for row by row.
        Level::best().run(Ask { rows: worth, width: worth.len(), tiles: 0..worth.len().div_ceil(LANES) });
        Level::best().run(Ask { rows: a, width: a.len(), tiles: 0..a.len().div_ceil(LANES) });
        let (x, inputs, count) = (&self.x[part.rows.start * self.inputs..], self.inputs, part.rows.len());
        // SAFETY: there is room for so many numbers from there on, for this part alone.
        let inner = unsafe { std::slice::from_raw_parts_mut(self.place.0.add(part.at), count * (a.len() / inputs)) };
        let fit = dots((x, count, inputs), (a, inputs), inner);
        debug_assert!(fit.is_ok());
        for row in inner.chunks_exact_mut(worth.len().max(1)).take_while(|_| !worth.is_empty()) {
            row.iter_mut().zip(worth).for_each(|(x, worth)| *x *= worth);
        }
        if (part.scale - 1.0).abs() > 0.0 {
            steps::scale(inner, part.scale);
        }
    }

    /// Asks for what will be added to columns of a product.
    pub(super) fn ask(&self, product: usize, rows: &Range<usize>, tiles: &Range<usize>, outputs: usize) {
        for part in self.of(product, rows) {
            match part.factors {
                Factors::F32([_, b]) => Level::best().run(Ask { rows: b, width: outputs, tiles: tiles.clone() }),
                Factors::Bf16([_, b]) => Level::best().run(Ask { rows: b, width: outputs, tiles: tiles.clone() }),
                Factors::Int8 { matrices: [_, b], .. } => {
                    Level::best().run(Ask { rows: b, width: outputs, tiles: tiles.clone() });
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

    fn add_part(&self, part: &Part<'_>, rows: Range<usize>, tiles: Range<usize>, out: (Out, usize)) {
        match part.factors {
            Factors::F32([_, b]) => self.expand(part, b, rows, tiles, out),
            Factors::Bf16([_, b]) => self.expand(part, b, rows, tiles, out),
            Factors::Int8 { matrices: [_, b], .. } => self.expand(part, b, rows, tiles, out),
        }
    }

    fn expand<N: Number>(
        &self,
        part: &Part<'_>,
        b: &[N],
        rows: Range<usize>,
        tiles: Range<usize>,
        (out, outputs): (Out, usize),
    ) {
        let rank = b.len() / outputs.max(1);
        let at = part.at + (rows.start - part.rows.start) * rank;
        // SAFETY: it has rows of `rank` numbers and is computed: nobody writes it any more.
        let inner = unsafe { std::slice::from_raw_parts(self.place.0.add(at), rows.len() * rank) };
        // SAFETY: the row lies in the result.
        let out = Out(unsafe { out.0.add(rows.start * outputs) });
        let fit = multiply_columns((inner, rows.len(), rank), (b, outputs), tiles, (out, outputs), true);
        debug_assert!(fit.is_ok());
    }

    fn of(&self, product: usize, rows: &Range<usize>) -> impl Iterator<Item = &Part<'a>> {
        let (start, end) = (rows.start, rows.end);
        let here = move |part: &&Part<'_>| part.product == product && part.rows.start < end && start < part.rows.end;
        self.parts.iter().filter(here)
    }
}

impl Part<'_> {
    fn wait(&self) {
        for look in 0_usize.. {
            if self.is_done.load(Ordering::Acquire) {
                return;
            }
            if look < LOOKS { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
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
