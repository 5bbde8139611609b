//! Steps over many rows, divided among threads; few numbers stay on the caller's.
//!
//! The same steps as in `steps.rs`, whose results do not depend on where rows are divided.

use rayon::prelude::*;

use super::steps;

/// Numbers that a thread takes at a time.
const PART: usize = 1 << 14;

/// Adds `part` to `sum`.
pub fn add(sum: &mut [f32], part: &[f32]) {
    sum.par_chunks_mut(PART).zip(part.par_chunks(PART)).for_each(|(sum, part)| steps::add(sum, part));
}

/// Adds a bias to every row of `[rows, bias.len()]`.
pub fn add_bias(rows: &mut [f32], bias: &[f32]) {
    let width = bias.len().max(1);
    let rows = rows.par_chunks_mut(rows_of(width) * width);
    rows.for_each(|rows| rows.chunks_exact_mut(width).for_each(|row| steps::add(row, bias)));
}

/// Writes x·Φ(x).
pub fn gelu(x: &[f32], out: &mut [f32]) {
    x.par_chunks(PART).zip(out.par_chunks_mut(PART)).for_each(|(x, out)| steps::gelu(x, out));
}

/// Normalises rows `[rows, weight.len()]` to a mean of 0 and a variance of 1, times weight, plus bias.
pub fn layer_norm(x: &[f32], (weight, bias): (&[f32], &[f32]), eps: f32, out: &mut [f32]) {
    let part = rows_of(weight.len()) * weight.len().max(1);
    let parts = x.par_chunks(part).zip(out.par_chunks_mut(part));
    parts.for_each(|(x, out)| steps::layer_norm(x, weight, bias, eps, out));
}

/// Writes the gradient of rows that were normalised so.
pub fn layer_norm_backward(x: &[f32], weight: &[f32], eps: f32, gradient: &[f32], out: &mut [f32]) {
    let width = weight.len().max(1);
    let part = rows_of(width) * width;
    let parts = x.par_chunks(part).zip(gradient.par_chunks(part)).zip(out.par_chunks_mut(part));
    parts.for_each(|((x, gradient), out)| {
        let rows = x.chunks_exact(width).zip(gradient.chunks_exact(width)).zip(out.chunks_exact_mut(width));
        rows.for_each(|((x, gradient), out)| steps::layer_norm_backward(x, weight, eps, gradient, out));
    });
}

/// Writes the gradient of x of x·Φ(x).
pub fn gelu_backward(x: &[f32], gradient: &[f32], out: &mut [f32]) {
    let parts = x.par_chunks(PART).zip(gradient.par_chunks(PART)).zip(out.par_chunks_mut(PART));
    parts.for_each(|((x, gradient), out)| steps::gelu_backward(x, gradient, out));
}

/// Writes the gradient of vectors that were divided by their lengths.
pub fn unit_backward(x: &[f32], size: usize, gradient: &[f32], out: &mut [f32]) {
    let part = rows_of(size) * size.max(1);
    let parts = x.par_chunks(part).zip(gradient.par_chunks(part)).zip(out.par_chunks_mut(part));
    parts.for_each(|((x, gradient), out)| steps::unit_backward(x, size, gradient, out));
}

/// Writes vectors of `size` numbers divided by their lengths.
pub fn unit(x: &[f32], size: usize, out: &mut [f32]) {
    let part = rows_of(size) * size.max(1);
    x.par_chunks(part).zip(out.par_chunks_mut(part)).for_each(|(x, out)| steps::unit(x, size, out));
}

/// Writes gate·σ(gate)·up.
pub fn gated(gate: &[f32], up: &[f32], out: &mut [f32]) {
    if gate.len() <= PART {
        return steps::silu_mul(gate, up, out);
    }
    let parts = gate.par_chunks(PART).zip(up.par_chunks(PART)).zip(out.par_chunks_mut(PART));
    parts.for_each(|((gate, up), out)| steps::silu_mul(gate, up, out));
}

/// Writes the gradients of gate and up.
pub fn gated_backward(gate: &[f32], up: &[f32], gradient: &[f32], for_gate: &mut [f32], for_up: &mut [f32]) {
    let from = gate.par_chunks(PART).zip(up.par_chunks(PART)).zip(gradient.par_chunks(PART));
    let to = for_gate.par_chunks_mut(PART).zip(for_up.par_chunks_mut(PART));
    from.zip(to).for_each(|(((gate, up), gradient), (for_gate, for_up))| {
        steps::silu_mul_backward(gate, up, gradient, for_gate, for_up);
    });
}

/// Writes x / √(mean(x²) + eps) · weight of rows `[rows, weight.len()]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let part = rows_of(weight.len()) * weight.len().max(1);
    if x.len() <= part {
        return steps::rms_norm(x, weight, eps, out);
    }
    x.par_chunks(part).zip(out.par_chunks_mut(part)).for_each(|(x, out)| steps::rms_norm(x, weight, eps, out));
}

/// Rotates `rows` rows of heads by the angles of each, `[rows, head_dim/2]`, in place; back with a `direction` of -1.
pub fn rope(x: &mut [f32], (cos, sin): (&[f32], &[f32]), rows: usize, direction: f32) {
    let (width, half) = ((x.len() / rows.max(1)).max(1), (cos.len() / rows.max(1)).max(1));
    let angles = cos.par_chunks(half).zip(sin.par_chunks(half));
    let rows = x.par_chunks_mut(width).zip(angles).with_min_len(rows_of(width));
    rows.for_each(|(row, (cos, sin))| steps::rope(row, cos, sin, direction));
}

fn rows_of(width: usize) -> usize {
    PART.div_ceil(width.max(1))
}
