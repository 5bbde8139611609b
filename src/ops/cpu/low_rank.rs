//! What adapters add to products: x·A·B for some rows, with matrices of f32 or bf16.
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
use super::product::{Misfit, fits};
use super::simd::{LANES, Level, Number, Simd, Work};
use super::steps;
use super::team::each;
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
    let mut inner = Vec::new();
    let changes = Changes::new((x, inputs), [(outputs, changes)].into_iter(), &mut inner)?;
    let out = Out(out.as_mut_ptr());
    each(changes.parts.iter().collect(), |part: &Part<'_>| {
        changes.compute(part);
        part.add(part.rows.clone(), 0..outputs.div_ceil(LANES), (out, outputs));
    });
    Ok(())
}

/// The low-rank products of a loop, in pieces.
pub(super) struct Changes<'a> {
    x: &'a [f32],
    inputs: usize,
    parts: Vec<Part<'a>>,
}

/// x·A of some rows.
pub(super) struct Part<'a> {
    /// The product that it is added to.
    product: usize,
    rows: Range<usize>,
    factors: Factors<'a>,
    scale: f32,
    /// `[rows, rank]`.
    inner: Out,
    is_done: AtomicBool,
}

impl Factors<'_> {
    /// Returns the rank, if the matrices fit a product.
    fn rank(self, inputs: usize, outputs: usize) -> Result<usize, Misfit> {
        let (a, b) = match self {
            Self::F32([a, b]) => (a.len(), b.len()),
            Self::Bf16([a, b]) => (a.len(), b.len()),
        };
        let rank = a / inputs.max(1);
        fits(a, rank, inputs)?;
        fits(b, rank, outputs)?;
        Ok(rank)
    }
}

impl<'a> Changes<'a> {
    /// Divides what is added to products of `x` `[rows, inputs]`; of each there are the number of outputs and its changes.
    /// `inner` becomes the place of x·A.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub(super) fn new<'c>(
        (x, inputs): (&'a [f32], usize),
        products: impl Iterator<Item = (usize, &'c [LowRank<'a>])>,
        inner: &mut Vec<f32>,
    ) -> Result<Self, Misfit>
    where
        'a: 'c,
    {
        let (mut parts, mut places, mut numbers) = (Vec::new(), Vec::new(), 0);
        for (product, (outputs, changes)) in products.enumerate() {
            let mut next = 0;
            for LowRank { rows, factors, scale } in changes {
                let rank = factors.rank(inputs, outputs)?;
                // No two threads may add to one row.
                if rows.start < next || rows.start > rows.end || rows.end * inputs > x.len() {
                    return Err(Misfit::of(x.len(), rows.end, inputs));
                }
                next = rows.end;
                for start in rows.clone().step_by(ROWS).filter(|_| rank > 0) {
                    let rows = start..rows.end.min(start + ROWS);
                    places.push(numbers);
                    numbers += rows.len() * rank;
                    let (scale, is_done) = (*scale, AtomicBool::new(false));
                    let inner = Out(std::ptr::null_mut());
                    parts.push(Part { product, rows, factors: *factors, scale, inner, is_done });
                }
            }
        }
        inner.resize(numbers.max(inner.len()), 0.0);
        let place = inner.as_mut_ptr();
        for (part, at) in parts.iter_mut().zip(places) {
            // SAFETY: it was just made so long.
            part.inner = Out(unsafe { place.add(at) });
        }
        Ok(Self { x, inputs, parts })
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
        let rows = &self.x[part.rows.start * self.inputs..part.rows.end * self.inputs];
        match part.factors {
            Factors::F32([a, _]) => part.inner(rows, self.inputs, a),
            Factors::Bf16([a, _]) => part.inner(rows, self.inputs, a),
        }
    }

    /// Asks for what will be added to columns of a product.
    pub(super) fn ask(&self, product: usize, rows: &Range<usize>, tiles: &Range<usize>, outputs: usize) {
        for part in self.of(product, rows) {
            match part.factors {
                Factors::F32([_, b]) => Level::best().run(Ask { rows: b, width: outputs, tiles: tiles.clone() }),
                Factors::Bf16([_, b]) => Level::best().run(Ask { rows: b, width: outputs, tiles: tiles.clone() }),
            }
        }
    }

    /// Adds to `tiles` of `rows` of a product; waits for pieces that other threads compute.
    pub(super) fn add(&self, product: usize, rows: &Range<usize>, tiles: &Range<usize>, out: (Out, usize)) {
        for part in self.of(product, rows) {
            part.wait();
            let rows = part.rows.start.max(rows.start)..part.rows.end.min(rows.end);
            part.add(rows, tiles.clone(), out);
        }
    }

    fn of(&self, product: usize, rows: &Range<usize>) -> impl Iterator<Item = &Part<'a>> {
        let (start, end) = (rows.start, rows.end);
        let here = move |part: &&Part<'_>| part.product == product && part.rows.start < end && start < part.rows.end;
        self.parts.iter().filter(here)
    }
}

impl Part<'_> {
    fn inner<N: Number>(&self, x: &[f32], inputs: usize, a: &[N]) {
        // All at once: what lies in short rows would be waited for row by row.
        Level::best().run(Ask { rows: a, width: a.len(), tiles: 0..a.len().div_ceil(LANES) });
        let count = self.rows.len() * (a.len() / inputs.max(1));
        // SAFETY: the place was made for so many numbers, for this piece alone.
        let inner = unsafe { std::slice::from_raw_parts_mut(self.inner.0, count) };
        let fit = dots((x, self.rows.len(), inputs), (a, inputs), inner);
        debug_assert!(fit.is_ok());
        if (self.scale - 1.0).abs() > 0.0 {
            steps::scale(inner, self.scale);
        }
    }

    fn wait(&self) {
        for look in 0_usize.. {
            if self.is_done.load(Ordering::Acquire) {
                return;
            }
            if look < LOOKS { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }

    fn add(&self, rows: Range<usize>, tiles: Range<usize>, out: (Out, usize)) {
        match self.factors {
            Factors::F32([_, b]) => self.expand(b, rows, tiles, out),
            Factors::Bf16([_, b]) => self.expand(b, rows, tiles, out),
        }
    }

    fn expand<N: Number>(&self, b: &[N], rows: Range<usize>, tiles: Range<usize>, (out, outputs): (Out, usize)) {
        let rank = b.len() / outputs.max(1);
        let skipped = (rows.start - self.rows.start) * rank;
        // SAFETY: it has rows of `rank` numbers and is computed: nobody writes it any more.
        let inner = unsafe { std::slice::from_raw_parts(self.inner.0.add(skipped), rows.len() * rank) };
        // SAFETY: the row lies in the result.
        let out = Out(unsafe { out.0.add(rows.start * outputs) });
        let fit = multiply_columns((inner, rows.len(), rank), (b, outputs), tiles, (out, outputs), true);
        debug_assert!(fit.is_ok());
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
