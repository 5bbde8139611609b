//! Applies the adapters of a packed batch to slices on the CPU, in place and without a gradient.
//!
//! The same mathematics as `batch.rs`, whose tests compare the two; for serving, where a step should take no memory.
//! Shapes: rows packed; a row's result does not depend on the rows beside it.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result, Tensor, bail};

use super::batch::{as_matrix, is_scaled};
use super::{Change, LinearDelta, LoraBatch, SiteId};
use crate::ops::cpu::{add_low_rank, each, threads};
use crate::ops::{matmul, with_factors, with_slices};

/// Rows that one thread takes at a time.
const ROWS: usize = 32;

/// A linear layer's site, its bias, and the base's product without bias, which is finished in place.
pub type Product<'a> = (SiteId, Option<&'a Tensor>, &'a mut [f32]);

/// Rows of one run in one layer.
struct Part<'a> {
    change: &'a Change,
    scale: f32,
    /// Rows and their width.
    x: (&'a [f32], usize),
    out: (&'a mut [f32], usize),
    bias: Option<&'a Tensor>,
}

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
        // A run of some rows alone replaces nothing for all.
        if !matches!(self.runs.as_slice(), [run] if run.rows.len() == rows) {
            return Ok(false);
        }
        let touching = self.touching(site, rows)?;
        Ok(matches!(touching.as_slice(), [(run, Change::Replaced { .. })] if run.rows.len() == rows))
    }

    /// Finishes linear layers of the same rows in place: `x` is `[rows, input]`. Rows in no run get the bias alone.
    ///
    /// # Errors
    /// When the runs do not fit the rows or a DoRA adapter is scaled.
    pub fn finish_linear(&self, x: &[f32], rows: usize, layers: Vec<Product<'_>>) -> Result<()> {
        let input = x.len() / rows.max(1);
        let mut parts = Vec::with_capacity(layers.len() * self.runs.len());
        for (site, bias, out) in layers {
            let output = out.len() / rows.max(1);
            let (mut next, mut rest) = (0, out);
            for (run, change) in self.touching(site, rows)? {
                let (before, after) = rest.split_at_mut((run.rows.start - next) * output);
                add_bias(before, bias)?;
                let (own, after) = after.split_at_mut(run.rows.len() * output);
                let x = &x[run.rows.start * input..run.rows.end * input];
                let part = |(x, out)| Part { change, scale: run.scale, x: (x, input), out: (out, output), bias };
                // A layer that was replaced has threads of its own.
                let together = if matches!(change, Change::Replaced { .. }) { run.rows.len() } else { ROWS };
                let x = x.chunks((together * input).max(1));
                let own = own.chunks_mut((together * output).max(1));
                parts.extend(x.zip(own).map(part));
                (next, rest) = (run.rows.end, after);
            }
            add_bias(rest, bias)?;
        }
        let is_whole = |part: &Part<'_>| matches!(part.change, Change::Replaced { .. });
        if parts.iter().any(is_whole) {
            let whole;
            (whole, parts) = parts.into_iter().partition::<Vec<_>, _>(is_whole);
            whole.into_iter().try_for_each(Part::finish)?;
        }
        let fault = Mutex::new(None);
        each(parts, |part: Part<'_>| {
            if let Err(error) = part.finish() {
                fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        });
        fault.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
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

impl Part<'_> {
    fn finish(self) -> Result<()> {
        let Self { change, scale, x: (x, input), out: (out, output), bias } = self;
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
    let rows = x.len() / input.max(1);
    with_factors(&delta.a, &delta.b, |factors| Ok(add_low_rank((x, rows), factors, scale, out)?))?;
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
