//! Attention within groups of rows that all see each other, forward and backward: images, or windows of them.
//!
//! One piece of work is a head of a group; each gathers what its products walk, so that nothing is laid out anew for
//! all rows. A row's result depends on its own group only. What scores mean (plain or cosine, which bias) is the
//! caller's: here they are scaled by head, and numbers are added.
//! Shapes: queries, keys, values, results `[groups·rows, heads·dim]`, packed.
//! After: Vaswani et al. 2017, Liu et al. 2021 (windows), Dao 2023 (the backward computes shares again).

use rayon::prelude::*;

use super::product::{Misfit, fits};
use super::simd::{LANES, Level};
use super::steps::{add, dot, powers, scale as multiply_by, shift, softmax_backward};
use super::tile::{Floats, Out, Sweep};

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Rows of a group.
    pub rows: usize,
    /// Heads.
    pub heads: usize,
    /// Numbers of a head.
    pub dim: usize,
}

/// What becomes of the products of queries and keys before their softmax.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// Factors, `[heads]`.
    pub scales: &'a [f32],
    /// Added by head, `[heads, rows, rows]`; may be empty.
    pub bias: &'a [f32],
    /// Added by group, `[kinds, rows, rows]`: group g has kind g modulo kinds; may be empty.
    pub mask: &'a [f32],
}

/// Gradients of factors and biases, `[heads]` and `[heads, rows, rows]`.
type Learnt<'a> = (&'a mut [f32], &'a mut [f32]);

impl Groups {
    fn width(self) -> usize {
        self.heads * self.dim
    }

    fn check(self, inputs: &[&[f32]], scores: Scores<'_>) -> Result<usize, Misfit> {
        let area = self.rows * self.rows;
        let group = (self.rows * self.width()).max(1);
        let groups = inputs.first().map_or(0, |input| input.len() / group);
        for input in inputs {
            fits(input.len(), groups * self.rows, self.width())?;
        }
        fits(scores.scales.len(), 1, self.heads)?;
        if !scores.bias.is_empty() {
            fits(scores.bias.len(), self.heads, area)?;
        }
        fits(scores.mask.len(), scores.mask.len() / area.max(1), area)?;
        Ok(groups)
    }
}

/// Writes softmax(scale·q·kᵀ + bias + mask)·v of every head of every group.
///
/// # Errors
/// When shapes do not fit.
pub fn attend_groups(
    groups: Groups,
    [q, k, v]: [&[f32]; 3],
    scores: Scores<'_>,
    out: &mut [f32],
) -> Result<(), Misfit> {
    let count = groups.check(&[q, k, v, out], scores)?;
    let out = Out(out.as_mut_ptr());
    let pieces = (0..count * groups.heads).into_par_iter().with_max_len(4);
    pieces.for_each_init(Scratch::default, |scratch, piece| {
        let head = Head { groups, scores, group: piece / groups.heads, head: piece % groups.heads };
        head.forward([q, k, v], out, scratch);
    });
    Ok(())
}

/// Writes the gradients of queries, keys and values, and adds those of factors and biases where they are wanted.
///
/// # Errors
/// When shapes do not fit.
pub fn attend_groups_backward(
    groups: Groups,
    inputs: [&[f32]; 3],
    scores: Scores<'_>,
    gradient: &[f32],
    [for_q, for_k, for_v]: [&mut [f32]; 3],
    learnt: Option<Learnt<'_>>,
) -> Result<(), Misfit> {
    let [q, k, v] = inputs;
    let count = groups.check(&[q, k, v, gradient, for_q, for_k, for_v], scores)?;
    let outs = [Out(for_q.as_mut_ptr()), Out(for_k.as_mut_ptr()), Out(for_v.as_mut_ptr())];
    let at = |group, head| Head { groups, scores, group, head };
    let Some((for_scales, for_bias)) = learnt else {
        let pieces = (0..count * groups.heads).into_par_iter().with_max_len(2);
        pieces.for_each_init(Scratch::default, |scratch, piece| {
            at(piece / groups.heads, piece % groups.heads).backward(inputs, gradient, outs, None, scratch);
        });
        return Ok(());
    };
    let area = groups.rows * groups.rows;
    fits(for_scales.len(), 1, groups.heads)?;
    fits(for_bias.len(), groups.heads, area)?;
    // Sums over groups in their order, whoever computes them.
    let heads = for_scales.par_iter_mut().zip(for_bias.par_chunks_mut(area.max(1))).enumerate().with_max_len(1);
    heads.for_each_init(Scratch::default, |scratch, (head, (for_scale, for_bias))| {
        for group in 0..count {
            let sums = Some((&mut *for_scale, &mut *for_bias));
            at(group, head).backward(inputs, gradient, outs, sums, scratch);
        }
    });
    Ok(())
}

/// What a piece of work needs, used again by the next.
#[derive(Default)]
struct Scratch {
    /// Keys and values in columns, `[dim, width]`.
    keys: Vec<f32>,
    columns: Vec<f32>,
    /// Rows of some matrix, `[rows, padded]`.
    values: Vec<f32>,
    queries: Vec<f32>,
    gradients: Vec<f32>,
    /// `[rows, width]`.
    scores: Vec<f32>,
    others: Vec<f32>,
    raw: Vec<f32>,
    row: Vec<f32>,
    mixed: Vec<f32>,
    sums: Vec<f32>,
}

/// One head of one group.
struct Head<'a> {
    groups: Groups,
    scores: Scores<'a>,
    group: usize,
    head: usize,
}

impl Head<'_> {
    /// Width of rows of scores.
    fn width(&self) -> usize {
        self.groups.rows.next_multiple_of(LANES)
    }

    /// Width of rows of a head.
    fn padded(&self) -> usize {
        self.groups.dim.next_multiple_of(LANES)
    }

    /// Where the first row of this head begins.
    fn first(&self) -> usize {
        self.group * self.groups.rows * self.groups.width() + self.head * self.groups.dim
    }

    /// Lays the head out in columns, `[dim, width]`.
    fn columns(&self, from: &[f32], to: &mut Vec<f32>) {
        let (dim, width) = (self.groups.dim, self.width());
        to.resize(dim * width, 0.0);
        to.chunks_exact_mut(width).for_each(|to| to[self.groups.rows..].fill(0.0));
        for (row, from) in from[self.first()..].chunks(self.groups.width()).take(self.groups.rows).enumerate() {
            for (i, value) in from[..dim].iter().enumerate() {
                to[i * width + row] = *value;
            }
        }
    }

    /// Lays the head out in rows, `[rows, padded]`.
    fn rows(&self, from: &[f32], to: &mut Vec<f32>) {
        let (dim, padded) = (self.groups.dim, self.padded());
        to.resize(self.groups.rows * padded, 0.0);
        let rows = from[self.first()..].chunks(self.groups.width()).zip(to.chunks_exact_mut(padded));
        rows.for_each(|(from, to)| {
            to[..dim].copy_from_slice(&from[..dim]);
            to[dim..].fill(0.0);
        });
    }

    /// Writes q·kᵀ, `[rows, width]`; `columns` are those of the keys.
    fn products(&self, q: &[f32], columns: &[f32], out: &mut Vec<f32>) {
        let Groups { rows, dim, .. } = self.groups;
        let width = self.width();
        out.resize(rows * width, 0.0);
        let kernel = Floats {
            x: q[self.first()..].as_ptr(),
            row: self.groups.width(),
            input: 1,
            weights: columns.as_ptr(),
            tile: LANES,
            step: width,
            inputs: dim,
        };
        run(kernel, rows, width, (out, width));
    }

    /// Turns products into powers in place, and writes their sums by row.
    fn powers(&self, scores: &mut [f32], sums: &mut Vec<f32>) {
        let rows = self.groups.rows;
        let area = rows * rows;
        let scale = self.scores.scales[self.head];
        let kinds = (self.scores.mask.len() / area.max(1)).max(1);
        let bias = self.scores.bias.get(self.head * area..(self.head + 1) * area);
        let kind = self.group % kinds;
        let mask = self.scores.mask.get(kind * area..(kind + 1) * area);
        sums.clear();
        for (i, scores) in scores.chunks_exact_mut(self.width()).enumerate() {
            let scores = &mut scores[..rows];
            let mut left = scale;
            if let Some(bias) = bias {
                shift(scores, left, &bias[i * rows..(i + 1) * rows]);
                left = 1.0;
            }
            if let Some(mask) = mask {
                let mask = &mask[i * rows..(i + 1) * rows];
                if bias.is_some() {
                    add(scores, mask)
                } else {
                    shift(scores, left, mask)
                }
                left = 1.0;
            }
            sums.push(powers(scores, left).1);
        }
    }

    /// Writes x·w, `[rows, padded]`, or xᵀ·w; `x` is `[rows, width]`, `w` `[rows, padded]`.
    fn mix(&self, x: &[f32], w: &[f32], turned: bool, out: &mut Vec<f32>) {
        let (rows, width, padded) = (self.groups.rows, self.width(), self.padded());
        out.resize(rows * padded, 0.0);
        let (row, input) = if turned { (1, width) } else { (width, 1) };
        let kernel = Floats { x: x.as_ptr(), row, input, weights: w.as_ptr(), tile: LANES, step: padded, inputs: rows };
        run(kernel, rows, padded, (out, padded));
    }

    /// Copies rows of a head into the result.
    fn write(&self, from: &[f32], out: Out) {
        let rows = from.chunks_exact(self.padded()).take(self.groups.rows);
        for (i, row) in rows.enumerate() {
            // SAFETY: `check` saw that the result has all groups and heads, and no two pieces share one.
            unsafe {
                let to = out.0.add(self.first() + i * self.groups.width());
                std::ptr::copy_nonoverlapping(row.as_ptr(), to, self.groups.dim);
            }
        }
    }

    fn forward(&self, [q, k, v]: [&[f32]; 3], out: Out, scratch: &mut Scratch) {
        let Scratch { keys, values, scores, mixed, sums, .. } = scratch;
        self.columns(k, keys);
        self.rows(v, values);
        self.products(q, keys, scores);
        self.powers(scores, sums);
        self.mix(scores, values, false, mixed);
        for (row, sum) in mixed.chunks_exact_mut(self.padded()).zip(&*sums) {
            multiply_by(row, 1.0 / sum);
        }
        self.write(mixed, out);
    }

    fn backward(
        &self,
        [q, k, v]: [&[f32]; 3],
        gradient: &[f32],
        [for_q, for_k, for_v]: [Out; 3],
        learnt: Option<(&mut f32, &mut [f32])>,
        scratch: &mut Scratch,
    ) {
        let Scratch { keys, columns, values, queries, gradients, scores, others, raw, row, mixed, sums } = scratch;
        let (rows, width) = (self.groups.rows, self.width());
        self.columns(k, keys);
        self.products(q, keys, scores);
        if learnt.is_some() {
            raw.clone_from(scores);
        }
        self.powers(scores, sums);
        for (row, sum) in scores.chunks_exact_mut(width).zip(&*sums) {
            multiply_by(&mut row[..rows], 1.0 / sum);
        }
        self.columns(v, columns);
        self.products(gradient, columns, others);
        self.rows(gradient, gradients);
        self.mix(scores, gradients, true, mixed);
        self.write(mixed, for_v);

        let scale = self.scores.scales[self.head];
        let factor = if learnt.is_some() { 1.0 } else { scale };
        for (shares, for_shares) in scores.chunks_exact_mut(width).zip(others.chunks_exact(width)) {
            // In place of the shares: what the softmax hands back.
            row.clear();
            row.extend_from_slice(&shares[..rows]);
            softmax_backward(row, &for_shares[..rows], factor, &mut shares[..rows]);
        }
        if let Some((for_scale, for_bias)) = learnt {
            let each = scores.chunks_exact_mut(width).zip(raw.chunks_exact(width)).zip(for_bias.chunks_exact_mut(rows));
            for ((scores, raw), for_bias) in each {
                *for_scale += dot(&scores[..rows], &raw[..rows]);
                add(for_bias, &scores[..rows]);
                multiply_by(&mut scores[..rows], scale);
            }
        }
        self.rows(k, values);
        self.mix(scores, values, false, mixed);
        self.write(mixed, for_q);
        self.rows(q, queries);
        self.mix(scores, queries, true, mixed);
        self.write(mixed, for_k);
    }
}

/// Multiplies rows with whole tiles into `out`, whose rows are `width` apart; on this thread.
fn run(kernel: Floats, rows: usize, outputs: usize, (out, width): (&mut [f32], usize)) {
    debug_assert!(rows == 0 || out.len() >= (rows - 1) * width + outputs && outputs.is_multiple_of(LANES));
    let (tiles, out) = (0..outputs / LANES, Out(out.as_mut_ptr()));
    Level::best().run(Sweep { kernel, rows: 0..rows, tiles, outputs, out, width, add: false });
}
