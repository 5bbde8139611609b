//! Steps over many rows, divided among threads; few numbers stay on the caller's. But for backwards
//! with two results they take no memory.
//!
//! The same steps as in `steps.rs`, whose results do not depend on where rows are divided.

use super::steps;
use super::team::{each, each_part};

/// Numbers that a thread takes at a time.
const PART: usize = 1 << 14;

/// Adds `part` to `sum`.
pub fn add(sum: &mut [f32], part: &[f32]) {
    each_part(sum, PART, |number, sum| steps::add(sum, of(part, PART, number)));
}

/// Adds a bias to every row of `[rows, bias.len()]`.
pub fn add_bias(rows: &mut [f32], bias: &[f32]) {
    let width = bias.len().max(1);
    each_part(rows, rows_of(width) * width, |_, rows| {
        rows.chunks_exact_mut(width).for_each(|row| steps::add(row, bias));
    });
}

/// Writes x·Φ(x).
pub fn gelu(x: &[f32], out: &mut [f32]) {
    each_part(out, PART, |number, out| steps::gelu(of(x, PART, number), out));
}

/// Normalises rows `[rows, weight.len()]` to a mean of 0 and a variance of 1, times weight, plus bias.
pub fn layer_norm(x: &[f32], (weight, bias): (&[f32], &[f32]), eps: f32, out: &mut [f32]) {
    let part = rows_of(weight.len()) * weight.len().max(1);
    each_part(out, part, |number, out| steps::layer_norm(of(x, part, number), weight, bias, eps, out));
}

/// Writes the gradient of rows that were normalised so.
pub fn layer_norm_backward(x: &[f32], weight: &[f32], eps: f32, gradient: &[f32], out: &mut [f32]) {
    let width = weight.len().max(1);
    let part = rows_of(width) * width;
    each_part(out, part, |number, out| {
        let [x, gradient] = [x, gradient].map(|all| of(all, part, number));
        let rows = x.chunks_exact(width).zip(gradient.chunks_exact(width)).zip(out.chunks_exact_mut(width));
        rows.for_each(|((x, gradient), out)| steps::layer_norm_backward(x, weight, eps, gradient, out));
    });
}

/// Writes the gradient of x of x·Φ(x).
pub fn gelu_backward(x: &[f32], gradient: &[f32], out: &mut [f32]) {
    each_part(out, PART, |number, out| steps::gelu_backward(of(x, PART, number), of(gradient, PART, number), out));
}

/// Writes the gradient of vectors that were divided by their lengths.
pub fn unit_backward(x: &[f32], size: usize, gradient: &[f32], out: &mut [f32]) {
    let part = rows_of(size) * size.max(1);
    each_part(out, part, |number, out| {
        steps::unit_backward(of(x, part, number), size, of(gradient, part, number), out);
    });
}

/// Writes vectors of `size` numbers divided by their lengths.
pub fn unit(x: &[f32], size: usize, out: &mut [f32]) {
    let part = rows_of(size) * size.max(1);
    each_part(out, part, |number, out| steps::unit(of(x, part, number), size, out));
}

/// Writes gate·σ(gate)·up.
pub fn gated(gate: &[f32], up: &[f32], out: &mut [f32]) {
    each_part(out, PART, |number, out| steps::silu_mul(of(gate, PART, number), of(up, PART, number), out));
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
    each_part(out, part, |number, out| steps::rms_norm(of(x, part, number), weight, eps, out));
}

/// Rotates `rows` rows of heads by the angles of each, `[rows, head_dim/2]`, in place; back with a `direction` of -1.
pub fn rope(x: &mut [f32], (cos, sin): (&[f32], &[f32]), rows: usize, direction: f32) {
    let (width, half) = ((x.len() / rows.max(1)).max(1), (cos.len() / rows.max(1)).max(1));
    let part = rows_of(width);
    each_part(x, part * width, |number, rows| {
        let [cos, sin] = [cos, sin].map(|all| of(all, part * half, number).chunks(half));
        let each_row = rows.chunks_mut(width).zip(cos.zip(sin));
        each_row.for_each(|(row, (cos, sin))| steps::rope(row, cos, sin, direction));
    });
}

/// Returns a part of `size` numbers, the last of which may have fewer.
fn of(all: &[f32], size: usize, number: usize) -> &[f32] {
    &all[all.len().min(number * size)..all.len().min((number + 1) * size)]
}

fn rows_of(width: usize) -> usize {
    PART.div_ceil(width.max(1))
}
