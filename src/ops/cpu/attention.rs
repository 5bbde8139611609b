//! Attention over keys and values of the sequences themselves, forward and backward.
//!
//! Keys stand in tiles of 16 positions, values in rows, so that both products walk memory as the kernels like it. The
//! forward takes rows of many sequences in one call. A row's result depends on its own query and on the positions that
//! it sees, not on how its sequence was cut into calls. Knows neither rotations nor batches of adapters.
//! Shapes: queries and results `[tokens, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]`, packed.
//! After: Ainslie et al. 2023 (grouped queries), Dao 2023 (the backward computes shares again).

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::keys_values::{KeysValues, Part};
use super::simd::{LANES, Level};
use super::steps::{powers, scale as multiply_by, softmax_backward};
use super::team::each_number;
use super::tile::{Floats, Out, Sweep};

/// Positions of a sequence that are computed together.
const QUERIES: usize = 16;

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Positions that a token sees, itself included; all before it when there is none.
    pub window: Option<usize>,
}

impl Heads {
    pub(super) fn padded(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    fn first_seen(self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn scale(self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    fn group(self) -> usize {
        self.heads / self.kv_heads.max(1)
    }
}

/// New tokens of one sequence: their rows of the batch, the position of the first, and what they see.
#[derive(Debug, Clone)]
pub struct Sequence<'a> {
    /// Rows of queries and results.
    pub rows: Range<usize>,
    /// Position of the first.
    pub past: usize,
    /// Holds all positions up to the last.
    pub seen: &'a KeysValues,
}

/// A block of queries of one sequence, for the heads that share keys and values.
struct Piece<'a> {
    sequence: &'a Sequence<'a>,
    head: usize,
    /// Positions within the rows of the sequence.
    queries: Range<usize>,
}

thread_local! {
    /// Where pieces lie: the number of the sequence, the head, the queries. What a thread had is used again.
    static PLACES: Cell<Vec<(usize, usize, Range<usize>)>> = const { Cell::new(Vec::new()) };
    /// Scores and mixed values of a piece.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Writes softmax(q·kᵀ/√head_dim)·v of all rows of the sequences.
pub fn attend(heads: Heads, q: &[f32], sequences: &[Sequence<'_>], out: &mut [f32]) {
    let width = heads.heads * heads.head_dim;
    let mut places = PLACES.take();
    places.clear();
    let (mut work, mut next) = (0, 0);
    for (number, sequence) in sequences.iter().enumerate() {
        // No two may write one row.
        let is_behind = sequence.rows.start >= next;
        next = next.max(sequence.rows.end);
        let fits = is_behind
            && sequence.rows.end * width <= q.len().min(out.len())
            && sequence.past + sequence.rows.len() <= sequence.seen.room()
            && sequence.seen.heads() == heads;
        let len = if fits { sequence.rows.len() } else { 0 };
        work += len * (sequence.past + len) * width;
        for first in (0..len).step_by(QUERIES) {
            places.extend((0..heads.kv_heads).map(|head| (number, head, first..len.min(first + QUERIES))));
        }
    }
    // The last pieces of a sequence see the most.
    places.reverse();
    let out = Out(out.as_mut_ptr());
    let compute = |at: usize| {
        let (number, head, queries) = places[at].clone();
        let mut scratch = SCRATCH.take();
        Piece { sequence: &sequences[number], head, queries }.compute(heads, q, out, &mut scratch);
        SCRATCH.set(scratch);
    };
    if work < 1 << 14 {
        (0..places.len()).for_each(compute);
    } else {
        each_number(places.len(), compute);
    }
    PLACES.set(places);
}

impl Piece<'_> {
    fn compute(&self, heads: Heads, q: &[f32], out: Out, scratch: &mut Vec<f32>) {
        let Heads { head_dim: dim, .. } = heads;
        let (group, padded, width) = (heads.group(), heads.padded(), heads.heads * dim);
        let first_row = self.sequence.rows.start + self.queries.start;
        let count = self.queries.len();
        let position = self.sequence.past + self.queries.start;
        if count == 1 {
            // One position: the heads are the rows.
            let at = first_row * width + self.head * group * dim;
            let rows = Rows { first: at, stride: dim, count: group };
            self.rows(heads, q, &rows, position..position + 1, scratch);
            copy_rows(&scratch[..group * padded], (padded, dim), out, (at, dim));
            return;
        }
        for head in self.head * group..(self.head + 1) * group {
            let at = first_row * width + head * dim;
            let rows = Rows { first: at, stride: width, count };
            self.rows(heads, q, &rows, position..position + count, scratch);
            copy_rows(&scratch[..count * padded], (padded, dim), out, (at, width));
        }
    }

    /// Writes the results of rows to the beginning of `scratch`, `[rows, head_dim padded]`.
    fn rows(&self, heads: Heads, q: &[f32], rows: &Rows, positions: Range<usize>, scratch: &mut Vec<f32>) {
        let padded = heads.padded();
        let first = heads.first_seen(positions.start) / LANES * LANES;
        let seen = positions.end - first;
        let width = seen.next_multiple_of(LANES);
        scratch.resize((rows.count * (padded + width)).max(scratch.len()), 0.0);
        let (mixed, scores) = scratch.split_at_mut(rows.count * padded);
        let scores = &mut scores[..rows.count * width];
        let inside = |part: &Part<'_>| part.positions.start.max(first)..part.positions.end.min(positions.end);
        self.sequence.seen.each_part(|part| {
            let (keys, range) = (part.keys(self.head), inside(&part));
            if !range.is_empty() {
                let from = range.start - part.positions.start;
                let (columns, count) = (range.start - first, range.len().next_multiple_of(LANES));
                score(
                    heads,
                    (&q[rows.first..], rows.stride, rows.count),
                    (keys, from, count),
                    (&mut scores[columns..], width),
                );
            }
        });
        for (i, scores) in scores.chunks_exact_mut(width).enumerate() {
            let position = positions.start + if positions.len() == 1 { 0 } else { i };
            let sum = shares(scores, heads.first_seen(position) - first..position + 1 - first, heads.scale());
            multiply_by(scores, 1.0 / sum);
        }
        let mut add = false;
        self.sequence.seen.each_part(|part| {
            let (values, range) = (part.values(self.head), inside(&part));
            if range.is_empty() {
                return;
            }
            let kernel = Floats {
                x: scores[range.start - first..].as_ptr(),
                row: width,
                input: 1,
                weights: values[(range.start - part.positions.start) * padded..].as_ptr(),
                tile: LANES,
                step: padded,
                inputs: range.len(),
            };
            run(kernel, rows.count, padded, (mixed, padded), add);
            add = true;
        });
    }
}

/// Rows of queries: where the first begins, their distance, their number.
struct Rows {
    first: usize,
    stride: usize,
    count: usize,
}

/// Copies the first `of.1` numbers of rows `of.0` wide to rows `to.1` apart from `to.0` on.
fn copy_rows(from: &[f32], of: (usize, usize), out: Out, to: (usize, usize)) {
    for (i, row) in from.chunks_exact(of.0).enumerate() {
        // SAFETY: the caller's rows and heads lie in the result, and no two pieces share one.
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out.0.add(to.0 + i * to.1), of.1) };
    }
}

/// Multiplies rows with whole tiles into `out`, whose rows are `width` apart; on this thread.
fn run(kernel: Floats, rows: usize, outputs: usize, (out, width): (&mut [f32], usize), add: bool) {
    debug_assert!(out.len() >= (rows - 1) * width + outputs && outputs.is_multiple_of(LANES));
    let (tiles, out) = (0..outputs / LANES, Out(out.as_mut_ptr()));
    Level::best().run(Sweep { kernel, rows: 0..rows, tiles, outputs, out, width, add });
}

/// Writes the products of rows of queries with `count` keys from `from` on, both multiples of 16, to rows `width` apart.
fn score(
    heads: Heads,
    (q, stride, rows): (&[f32], usize, usize),
    (keys, from, count): (&[f32], usize, usize),
    out: (&mut [f32], usize),
) {
    let dim = heads.head_dim;
    let weights = keys[from * dim..(from + count) * dim].as_ptr();
    let kernel = Floats { x: q.as_ptr(), row: stride, input: 1, weights, tile: LANES * dim, step: LANES, inputs: dim };
    run(kernel, rows, count, out, false);
}

/// Turns scores into powers, those outside of `seen` into 0; returns their sum.
fn shares(scores: &mut [f32], seen: Range<usize>, scale: f32) -> f32 {
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    powers(scores, scale);
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    super::steps::sum(scores)
}

/// Writes the gradients of queries, keys and values of whole sequences, which lie in `lengths` behind each other.
pub(in crate::ops) fn attend_backward(
    heads: Heads,
    [q, k, v]: [&[f32]; 3],
    gradient: &[f32],
    lengths: &[usize],
    [for_q, for_k, for_v]: [&mut [f32]; 3],
) {
    let (width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let tokens: usize = lengths.iter().sum();
    let fits = q.len().min(gradient.len()).min(for_q.len()) >= tokens * width
        && k.len().min(v.len()).min(for_k.len()).min(for_v.len()) >= tokens * kv_width;
    debug_assert!(fits);
    if !fits {
        return;
    }
    let outs = [Out(for_q.as_mut_ptr()), Out(for_k.as_mut_ptr()), Out(for_v.as_mut_ptr())];
    let mut parts = Vec::new();
    let mut first = 0;
    for len in lengths {
        parts.extend((0..heads.kv_heads).map(|head| (first, *len, head)));
        first += len;
    }
    parts.into_par_iter().with_max_len(1).for_each(|(first, len, head)| {
        Backward::new(heads, [q, k, v], gradient, (first, len), head).compute(outs);
    });
}

/// The backward of one sequence for the heads that share keys and values.
struct Backward<'a> {
    heads: Heads,
    q: &'a [f32],
    gradient: &'a [f32],
    first: usize,
    len: usize,
    head: usize,
    /// Keys and values in tiles (for products over a head) and keys in rows.
    key_tiles: Vec<f32>,
    value_tiles: Vec<f32>,
    key_rows: Vec<f32>,
}

impl<'a> Backward<'a> {
    fn new(
        heads: Heads,
        [q, k, v]: [&'a [f32]; 3],
        gradient: &'a [f32],
        (first, len): (usize, usize),
        head: usize,
    ) -> Self {
        let one = Heads { heads: 1, kv_heads: 1, ..heads };
        let (keys, values) = (gather(heads, k, (first, len), head), gather(heads, v, (first, len), head));
        let mut by_keys = KeysValues::new(one);
        by_keys.write(0, &keys, &keys);
        let mut by_values = KeysValues::new(one);
        by_values.write(0, &values, &values);
        let ((key_tiles, key_rows), (value_tiles, _)) = (by_keys.into_parts(), by_values.into_parts());
        Self { heads, q, gradient, first, len, head, key_tiles, value_tiles, key_rows }
    }

    fn compute(&self, [for_q, for_k, for_v]: [Out; 3]) {
        let heads = self.heads;
        let (dim, padded, group) = (heads.head_dim, heads.padded(), heads.group());
        let (width, kv_width) = (heads.heads * dim, heads.kv_heads * dim);
        let [mut keys, mut values] = [(); 2].map(|()| vec![0.0; self.len * padded]);
        let mut scratch = [const { Vec::new() }; 5];
        for head in self.head * group..(self.head + 1) * group {
            for start in (0..self.len).step_by(2 * QUERIES) {
                let rows = start..self.len.min(start + 2 * QUERIES);
                self.block(head, rows.clone(), &mut scratch, (&mut keys, &mut values));
                let at = (self.first + start) * width + head * dim;
                copy_rows(&scratch[4][..rows.len() * padded], (padded, dim), for_q, (at, width));
            }
        }
        let at = self.first * kv_width + self.head * dim;
        copy_rows(&keys, (padded, dim), for_k, (at, kv_width));
        copy_rows(&values, (padded, dim), for_v, (at, kv_width));
    }

    /// Adds what a block of queries of one head gives; leaves the gradient of the queries in the last of `scratch`.
    fn block(&self, head: usize, rows: Range<usize>, scratch: &mut [Vec<f32>; 5], sums: (&mut [f32], &mut [f32])) {
        let heads = self.heads;
        let (dim, padded, count) = (heads.head_dim, heads.padded(), rows.len());
        let first = heads.first_seen(rows.start) / LANES * LANES;
        let (seen, width) = (rows.end - first, (rows.end - first).next_multiple_of(LANES));
        let [q, gradient, shares_of, scores, for_q] = scratch;
        for (scratch, from) in [(&mut *q, self.q), (&mut *gradient, self.gradient)] {
            scratch.clear();
            scratch.resize(count * padded, 0.0);
            for (i, scratch) in scratch.chunks_exact_mut(padded).enumerate() {
                let at = ((self.first + rows.start + i) * heads.heads + head) * dim;
                scratch[..dim].copy_from_slice(&from[at..at + dim]);
            }
        }
        shares_of.resize(count * width, 0.0);
        scores.resize(count * width, 0.0);
        for_q.resize(count * padded, 0.0);
        score(heads, (q, padded, count), (&self.key_tiles, first, width), (shares_of, width));
        score(heads, (gradient, padded, count), (&self.value_tiles, first, width), (scores, width));
        let each = shares_of.chunks_exact_mut(width).zip(scores.chunks_exact_mut(width)).zip(rows);
        for ((shares_of, for_shares), position) in each {
            let sum = shares(shares_of, heads.first_seen(position) - first..position + 1 - first, heads.scale());
            multiply_by(shares_of, 1.0 / sum);
            let (shares_of, copy) = (&*shares_of, for_shares.to_vec());
            softmax_backward(shares_of, &copy, heads.scale(), for_shares);
        }
        let keys = self.key_rows[first * padded..].as_ptr();
        let by_row =
            |x: *const f32| Floats { x, row: width, input: 1, weights: keys, tile: LANES, step: padded, inputs: seen };
        run(by_row(scores.as_ptr()), count, padded, (for_q, padded), false);
        let by_key = |x: *const f32, weights: *const f32| Floats {
            x,
            row: 1,
            input: width,
            weights,
            tile: LANES,
            step: padded,
            inputs: count,
        };
        run(by_key(scores.as_ptr(), q.as_ptr()), seen, padded, (&mut sums.0[first * padded..], padded), true);
        run(by_key(shares_of.as_ptr(), gradient.as_ptr()), seen, padded, (&mut sums.1[first * padded..], padded), true);
    }
}

/// Returns keys or values of one head of a sequence, `[len, head_dim]`.
fn gather(heads: Heads, from: &[f32], (first, len): (usize, usize), head: usize) -> Vec<f32> {
    let (dim, width) = (heads.head_dim, heads.kv_heads * heads.head_dim);
    let rows = from[first * width..(first + len) * width].chunks_exact(width);
    rows.flat_map(|row| &row[head * dim..(head + 1) * dim]).copied().collect()
}
