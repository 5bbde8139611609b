//! Steps over many rows, divided among threads; few numbers stay on the caller's.
//!
//! The same steps as in `steps.rs`, whose results do not depend on where rows are divided.

use super::steps;
use super::team::each;

/// Numbers that a thread takes at a time.
const PART: usize = 1 << 14;

/// Adds `part` to `sum`.
pub fn add(sum: &mut [f32], part: &[f32]) {
    each(sum.chunks_mut(PART).zip(part.chunks(PART)).collect(), |(sum, part)| steps::add(sum, part));
}

/// Adds a bias to every row of `[rows, bias.len()]`.
pub fn add_bias(rows: &mut [f32], bias: &[f32]) {
    let width = bias.len().max(1);
    each(rows.chunks_mut(rows_of(width) * width).collect(), |rows| {
        rows.chunks_exact_mut(width).for_each(|row| steps::add(row, bias));
    });
}

/// Writes x·Φ(x).
pub fn gelu(x: &[f32], out: &mut [f32]) {
    each(x.chunks(PART).zip(out.chunks_mut(PART)).collect(), |(x, out)| steps::gelu(x, out));
}

/// Normalises rows `[rows, weight.len()]` to a mean of 0 and a variance of 1, times weight, plus bias.
pub fn layer_norm(x: &[f32], (weight, bias): (&[f32], &[f32]), eps: f32, out: &mut [f32]) {
    let part = rows_of(weight.len()) * weight.len().max(1);
    let parts = x.chunks(part).zip(out.chunks_mut(part)).collect();
    each(parts, |(x, out)| steps::layer_norm(x, weight, bias, eps, out));
}

/// Writes the gradient of rows that were normalised so.
pub fn layer_norm_backward(x: &[f32], weight: &[f32], eps: f32, gradient: &[f32], out: &mut [f32]) {
    let width = weight.len().max(1);
    let part = rows_of(width) * width;
    let parts = x.chunks(part).zip(gradient.chunks(part)).zip(out.chunks_mut(part)).collect();
    each(parts, |((x, gradient), out): ((&[f32], &[f32]), &mut [f32])| {
        let rows = x.chunks_exact(width).zip(gradient.chunks_exact(width)).zip(out.chunks_exact_mut(width));
        rows.for_each(|((x, gradient), out)| steps::layer_norm_backward(x, weight, eps, gradient, out));
    });
}

/// Writes the gradient of x of x·Φ(x).
pub fn gelu_backward(x: &[f32], gradient: &[f32], out: &mut [f32]) {
    let parts = x.chunks(PART).zip(gradient.chunks(PART)).zip(out.chunks_mut(PART)).collect();
    each(parts, |((x, gradient), out)| steps::gelu_backward(x, gradient, out));
}

/// Writes the gradient of vectors that were divided by their lengths.
pub fn unit_backward(x: &[f32], size: usize, gradient: &[f32], out: &mut [f32]) {
    let part = rows_of(size) * size.max(1);
    let parts = x.chunks(part).zip(gradient.chunks(part)).zip(out.chunks_mut(part)).collect();
    each(parts, |((x, gradient), out)| steps::unit_backward(x, size, gradient, out));
}

/// Writes vectors of `size` numbers divided by their lengths.
pub fn unit(x: &[f32], size: usize, out: &mut [f32]) {
    let part = rows_of(size) * size.max(1);
    each(x.chunks(part).zip(out.chunks_mut(part)).collect(), |(x, out)| steps::unit(x, size, out));
}

/// Writes gate·σ(gate)·up.
pub fn gated(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let parts = gate.chunks(PART).zip(up.chunks(PART)).zip(out.chunks_mut(PART)).collect();
    each(parts, |((gate, up), out)| steps::silu_mul(gate, up, out));
}

/// Writes the gradients of gate and up.
pub fn gated_backward(gate: &[f32], up: &[f32], gradient: &[f32], for_gate: &mut [f32], for_up: &mut [f32]) {
    let from = gate.chunks(PART).zip(up.chunks(PART)).zip(gradient.chunks(PART));
    let to = for_gate.chunks_mut(PART).zip(for_up.chunks_mut(PART));
    each(from.zip(to).collect(), |(((gate, up), gradient), (for_gate, for_up))| {
        steps::silu_mul_backward(gate, up, gradient, for_gate, for_up);
    });
}

/// Writes x / √(mean(x²) + eps) · weight of rows `[rows, weight.len()]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let part = rows_of(weight.len()) * weight.len().max(1);
    each(x.chunks(part).zip(out.chunks_mut(part)).collect(), |(x, out)| steps::rms_norm(x, weight, eps, out));
}

/// Rotates `rows` rows of heads by the angles of each, `[rows, head_dim/2]`, in place; back with a `direction` of -1.
pub fn rope(x: &mut [f32], (cos, sin): (&[f32], &[f32]), rows: usize, direction: f32) {
    let (width, half) = ((x.len() / rows.max(1)).max(1), (cos.len() / rows.max(1)).max(1));
    let part = rows_of(width);
    let angles = cos.chunks(part * half).zip(sin.chunks(part * half));
    each(x.chunks_mut(part * width).zip(angles).collect(), |(rows, (cos, sin)): (&mut [f32], _)| {
        let angles: (&[f32], &[f32]) = (cos, sin);
        let each_row = rows.chunks_mut(width).zip(angles.0.chunks(half).zip(angles.1.chunks(half)));
        each_row.for_each(|(row, (cos, sin))| steps::rope(row, cos, sin, direction));
    });
}

fn rows_of(width: usize) -> usize {
    PART.div_ceil(width.max(1))
}
