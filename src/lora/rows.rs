//! Applies the adapters of a packed batch to slices on the CPU, in place and without a gradient.
//!
//! The same mathematics as `batch.rs`, whose tests compare the two (rows that `ops::cpu` rounds beside matrices of 8 bits
//! are not rounded there); for serving, where a step should take no memory.
//! Shapes: rows packed; a row's result does not depend on the rows beside it.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result, Storage, Tensor, bail};

use super::batch::{as_matrix, is_scaled};
use super::table::{Found, Opened, Table};
use super::{Change, LinearDelta, LoraBatch, Run, SiteId};
use crate::ops::cpu::{LowRank, each, threads};
use crate::ops::{Pair, Reading, matmul, with_slices};

/// Rows that one thread takes at a time.
const ROWS: usize = 32;

/// What the adapters of a batch do to one linear layer.
#[derive(Debug)]
pub struct Changed<'a> {
    rows: usize,
    /// What tables add.
    found: Vec<LowRank<'a>>,
    /// Those that do more, or have no table.
    touching: Vec<(&'a Run, &'a Change)>,
    /// The matrices of those that have any.
    matrices: Vec<(&'a Run, Pair<'a>)>,
}

/// A batch whose adapters are read, for as many layers as have its rows.
#[derive(Debug)]
pub struct OpenBatch<'a> {
    batch: &'a LoraBatch,
    /// Of each run, where it has one.
    tables: Vec<Option<Opened<'a>>>,
}

impl LoraBatch {
    /// Begins to read what its adapters add.
    pub fn open(&self) -> OpenBatch<'_> {
        let tables = self.runs.iter().map(|run| run.adapter.table.as_ref().map(Table::open));
        OpenBatch { batch: self, tables: tables.collect() }
    }
}

impl OpenBatch<'_> {
    /// Adds to a list what low-rank matrices add to the base's product at a site of `rows` rows; returns whether that is all
    /// that adapters do there.
    ///
    /// # Errors
    /// When the runs do not fit the rows.
    pub fn low_ranks<'s>(&'s self, site: SiteId, rows: usize, list: &mut Vec<LowRank<'s>>) -> Result<bool> {
        let mut is_all = true;
        self.batch.check(rows)?;
        for (run, table) in self.batch.runs.iter().zip(&self.tables).filter(|(run, _)| !run.rows.is_empty()) {
            match table.as_ref().map(|table| table.at(site)) {
                Some(Found::Nothing) => {}
                Some(Found::LowRank(factors)) => {
                    list.push(LowRank { rows: run.rows.clone(), factors, scale: run.scale });
                }
                Some(Found::Other) => is_all = false,
                None => is_all &= run.adapter.change(site).is_none(),
            }
        }
        Ok(is_all)
    }

    /// Returns what happens to a linear layer of `rows` rows.
    ///
    /// # Errors
    /// When the runs do not fit the rows, or a DoRA adapter is scaled.
    pub fn changed(&self, site: SiteId, rows: usize) -> Result<Changed<'_>> {
        let (mut found, mut touching, mut matrices) = (Vec::new(), Vec::new(), Vec::new());
        self.low_ranks(site, rows, &mut found)?;
        for (run, table) in self.batch.runs.iter().zip(&self.tables).filter(|(run, _)| !run.rows.is_empty()) {
            if let Some(Found::LowRank(_)) = table.as_ref().map(|table| table.at(site)) {
                continue;
            }
            let Some(change) = run.adapter.change(site) else { continue };
            touching.push((run, change));
            let Change::Linear(delta) = change else { continue };
            if delta.magnitude.is_some() && is_scaled(run.scale) {
                bail!("a DoRA adapter cannot be scaled by {}: its norms hold for its own scaling", run.scale);
            }
            matrices.push((run, Pair::new(&delta.a, &delta.b)?));
        }
        Ok(Changed { rows, found, touching, matrices })
    }
}

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
        self.runs.iter().any(|run| run.adapter.change(site).is_some())
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

impl Changed<'_> {
    /// Returns whether one adapter replaces the layer for all rows, so that nobody needs the base's product.
    pub fn is_replaced(&self) -> bool {
        matches!(self.touching.as_slice(), [(run, Change::Replaced { .. })] if run.rows.len() == self.rows)
    }

    /// Begins to read the low-rank matrices.
    pub fn read(&self) -> Vec<(&Run, Reading<impl Deref<Target = Storage> + '_>)> {
        self.matrices.iter().map(|(run, pair)| (*run, pair.read())).collect()
    }

    /// Returns what is added to rows of the base's product; `read` is [`Self::read`].
    ///
    /// # Errors
    /// When matrices are not on the CPU.
    pub fn low_ranks<'s, S>(&'s self, read: &'s [(&Run, Reading<S>)]) -> Result<Vec<LowRank<'s>>>
    where
        S: Deref<Target = Storage>,
    {
        let mut all = self.found.clone();
        for (run, reading) in read {
            all.push(LowRank { rows: run.rows.clone(), factors: reading.factors()?, scale: run.scale });
        }
        all.sort_by_key(|low_rank| low_rank.rows.start);
        Ok(all)
    }

    /// Does to the base's product `out` whatever else adapters do than to add [`Self::low_ranks`]; rows of nobody get `bias`.
    /// `x` is `[rows, input]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn finish(&self, x: &[f32], bias: Option<&Tensor>, out: &mut [f32]) -> Result<()> {
        let (input, output) = (x.len() / self.rows.max(1), out.len() / self.rows.max(1));
        let (mut parts, mut next, mut rest) = (Vec::new(), 0, out);
        for (run, change) in &self.touching {
            let (before, after) = rest.split_at_mut((run.rows.start - next) * output);
            add_bias(before, bias)?;
            let (own, after) = after.split_at_mut(run.rows.len() * output);
            let x = &x[run.rows.start * input..run.rows.end * input];
            let part = |(x, out)| Part { change, scale: run.scale, x: (x, input), out: (out, output), bias };
            if matches!(change, Change::Replaced { .. }) {
                // It has threads of its own.
                part((x, own)).finish()?;
            } else if !is_finished(change, bias) {
                let x = x.chunks((ROWS * input).max(1));
                parts.extend(x.zip(own.chunks_mut((ROWS * output).max(1))).map(part));
            }
            (next, rest) = (run.rows.end, after);
        }
        add_bias(rest, bias)?;
        let fault = Mutex::new(None);
        each(parts, |part: Part<'_>| {
            if let Err(error) = part.finish() {
                fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        });
        fault.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Returns whether nothing but low-rank matrices changes a layer.
fn is_finished(change: &Change, bias: Option<&Tensor>) -> bool {
    matches!(change, Change::Linear(delta) if delta.is_plain() && bias.is_none())
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
            Change::Linear(delta) => refine(delta, scale, (out, output), bias),
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

/// Makes mag ⊙ (Wx + scale·s·(B(Ax) + b)) + bias of Wx + scale·s·B(Ax).
fn refine(delta: &LinearDelta, scale: f32, (out, output): (&mut [f32], usize), bias: Option<&Tensor>) -> Result<()> {
    if let Some(b_bias) = &delta.b_bias {
        let b_bias = if is_scaled(scale) { (b_bias * f64::from(scale))? } else { b_bias.clone() };
        add_bias(out, Some(&b_bias))?;
    }
    if let Some(magnitude) = &delta.magnitude {
        with_slices([magnitude], |[magnitude]| {
            let rows = out.chunks_exact_mut(output.max(1));
            rows.for_each(|row| row.iter_mut().zip(magnitude).for_each(|(x, magnitude)| *x *= magnitude));
            Ok(())
        })?;
    }
    add_bias(out, delta.bias.as_ref().or(bias))
}
