//! Applies the adapters of a packed batch to slices on the CPU, in place and without a gradient.
//!
//! The same mathematics as `batch.rs`, whose tests compare the two; for serving, where a step should take no memory.
//! Shapes: rows packed; a row's result does not depend on the rows beside it.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::batch::{as_matrix, is_scaled};
use super::{Change, LinearDelta, LoraBatch, SiteId};
use crate::ops::cpu::{dots, multiply_rows, steps, threads};
use crate::ops::{matmul, with_slices};

/// Products of numbers below which threads are not asked to help.
const ALONE: usize = 1 << 18;
/// Rows that one thread takes at a time.
const ROWS: usize = 32;

impl LoraBatch {
    /// Returns whether some run changes a site.
    pub fn changes(&self, site: SiteId) -> bool {
        self.runs.iter().any(|run| run.adapter.changes.contains_key(&site))
    }

    /// Returns whether one adapter replaces a layer for all rows, so that nobody needs the base's product.
    ///
    /// # Errors
    /// When the runs do not fit the rows.
    pub fn is_replaced(&self, site: SiteId, rows: usize) -> Result<bool> {
        let touching = self.touching(site, rows)?;
        Ok(matches!(touching.as_slice(), [(run, Change::Replaced { .. })] if run.rows.len() == rows))
    }

    /// Finishes a linear layer in place: `x` is `[rows, input]`, `out` holds the base's W·x without bias.
    /// Rows in no run get `bias` alone.
    ///
    /// # Errors
    /// When the runs do not fit the rows or a DoRA adapter is scaled.
    pub fn finish_linear(
        &self,
        site: SiteId,
        x: &[f32],
        rows: usize,
        out: &mut [f32],
        bias: Option<&Tensor>,
    ) -> Result<()> {
        let (input, output) = (x.len() / rows.max(1), out.len() / rows.max(1));
        let runs = self.touching(site, rows)?;
        let mut parts = Vec::with_capacity(runs.len());
        let (mut next, mut rest) = (0, out);
        for (run, change) in runs {
            let (before, after) = rest.split_at_mut((run.rows.start - next) * output);
            add_bias(before, bias)?;
            let (own, after) = after.split_at_mut(run.rows.len() * output);
            parts.push((change, run.scale, &x[run.rows.start * input..run.rows.end * input], own));
            (next, rest) = (run.rows.end, after);
        }
        add_bias(rest, bias)?;
        let part = |(change, scale, x, out): (&Change, f32, &[f32], &mut [f32])| {
            change_rows(change, scale, (x, input), (out, output), bias)
        };
        if parts.len() > 1 { parts.into_par_iter().try_for_each(part) } else { parts.into_iter().try_for_each(part) }
    }

    /// Normalises `[rows, hidden]` with the base's weight `[hidden]`, or with that of the adapter of each row.
    ///
    /// # Errors
    /// When the runs do not fit the rows.
    pub fn norm_rows(&self, site: SiteId, x: &[f32], weight: &Tensor, eps: f64, out: &mut [f32]) -> Result<()> {
        let width = weight.elem_count();
        norm(x, weight, eps, out)?;
        for (run, change) in self.touching(site, x.len() / width.max(1))? {
            let Change::Replaced { weight, .. } = change else { bail!("a change of another layer stands at a norm") };
            let part = run.rows.start * width..run.rows.end * width;
            norm(&x[part.clone()], weight, eps, &mut out[part])?;
        }
        Ok(())
    }
}

/// Adds a bias to every row.
fn add_bias(out: &mut [f32], bias: Option<&Tensor>) -> Result<()> {
    let Some(bias) = bias.filter(|_| !out.is_empty()) else { return Ok(()) };
    with_slices([bias], |[bias]| {
        threads::add_bias(out, bias);
        Ok(())
    })
}

/// Finishes the rows of one run.
fn change_rows(
    change: &Change,
    scale: f32,
    (x, input): (&[f32], usize),
    (out, output): (&mut [f32], usize),
    bias: Option<&Tensor>,
) -> Result<()> {
    match change {
        Change::Linear(delta) => low_rank(delta, scale, (x, input), (out, output), bias),
        Change::Replaced { weight, bias } => {
            let x = Tensor::from_slice(x, (x.len() / input.max(1), input), &Device::Cpu)?;
            with_slices([&matmul(&x, &as_matrix(weight)?.t()?)?], |[product]| {
                out.copy_from_slice(product);
                Ok(())
            })?;
            add_bias(out, bias.as_ref())
        }
        Change::Bias(bias) => add_bias(out, Some(bias)),
        Change::Embedding { .. } => bail!("an embedding's change stands at a linear layer"),
    }
}

fn norm(x: &[f32], weight: &Tensor, eps: f64, out: &mut [f32]) -> Result<()> {
    with_slices([weight], |[weight]| {
        threads::rms_norm(x, weight, eps as f32, out);
        Ok(())
    })
}

/// Makes mag ⊙ (Wx + scale·s·(B(Ax) + b)) + bias of Wx.
fn low_rank(
    delta: &LinearDelta,
    scale: f32,
    (x, input): (&[f32], usize),
    (out, output): (&mut [f32], usize),
    bias: Option<&Tensor>,
) -> Result<()> {
    let rank = delta.b.dim(0)?;
    with_slices([&delta.a.t()?, &delta.b], |[a, b]| {
        let some = |(x, out): (&[f32], &mut [f32])| {
            let rows = x.len() / input.max(1);
            let mut inner = vec![0.0; rows * rank];
            dots((x, rows, input), (a, input), &mut inner)?;
            if is_scaled(scale) {
                steps::scale(&mut inner, scale);
            }
            multiply_rows((&inner, rows, rank), (b, output), (out, output), true)
        };
        if x.len() * rank < ALONE {
            some((x, out))?;
        } else {
            x.par_chunks(ROWS * input).zip(out.par_chunks_mut(ROWS * output)).try_for_each(some)?;
        }
        Ok(())
    })?;
    if let Some(b_bias) = &delta.b_bias {
        let b_bias = if is_scaled(scale) { (b_bias * f64::from(scale))? } else { b_bias.clone() };
        add_bias(out, Some(&b_bias))?;
    }
    if let Some(magnitude) = &delta.magnitude {
        if is_scaled(scale) {
            bail!("a DoRA adapter cannot be scaled by {scale}: its norms hold for its own scaling");
        }
        with_slices([magnitude], |[magnitude]| {
            let rows = out.chunks_exact_mut(output.max(1));
            rows.for_each(|row| row.iter_mut().zip(magnitude).for_each(|(x, magnitude)| *x *= magnitude));
            Ok(())
        })?;
    }
    add_bias(out, delta.bias.as_ref().or(bias))
}
