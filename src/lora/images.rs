//! Adapters of images: a row of the batch is an image, of which a model makes many rows.
//!
//! Spreads runs over the rows inside, and finds the one adapter of what belongs to no row. Computes norms and patches
//! as `batch.rs` does linear layers. Knows no architecture.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::batch::overlay;
use super::{Adapter, Change, LoraBatch, Run, SiteId};
use crate::ops::cpu::threads;
use crate::ops::{layer_norm, with_slices};

impl LoraBatch {
    /// Returns the batch for `inner` rows of each row.
    #[must_use]
    pub fn spread(&self, inner: usize) -> Self {
        let runs = self.runs.iter();
        let runs = runs.map(|run| Run { rows: run.rows.start * inner..run.rows.end * inner, ..run.clone() });
        Self { runs: runs.collect(), dropout: self.dropout }
    }

    /// Returns the run of all `rows`, if it changes one of `sites`; none when no run does.
    ///
    /// # Errors
    /// When a run of some of the rows does: what stands there belongs to no row.
    pub fn of_all(&self, sites: &[SiteId], rows: usize) -> Result<Option<&Run>> {
        let touches = |run: &&Run| sites.iter().any(|site| run.adapter.changes.contains_key(site));
        match self.runs.iter().filter(|run| !run.rows.is_empty()).find(touches) {
            None => Ok(None),
            Some(run) if run.rows == (0..rows) => Ok(Some(run)),
            Some(run) => bail!(
                "an adapter of the images {:?} of {rows} changes what all images share: give it a batch of its own",
                run.rows
            ),
        }
    }

    /// Returns the batch for `inner` rows that belong to no row of this one.
    ///
    /// # Errors
    /// As [`Self::of_all`].
    pub fn aside(&self, sites: &[SiteId], rows: usize, inner: usize) -> Result<Self> {
        let run = self.of_all(sites, rows)?;
        let runs = run.map(|run| Run { rows: 0..inner, ..run.clone() });
        Ok(Self { runs: runs.into_iter().collect(), dropout: self.dropout })
    }

    /// Divides `rows` into runs whose adapter changes one of `sites`, and those between.
    ///
    /// # Errors
    /// When the runs do not fit the rows.
    pub fn pieces(&self, sites: &[SiteId], rows: usize) -> Result<Vec<(Range<usize>, Option<&Adapter>)>> {
        let mut pieces = Vec::new();
        let mut next = 0;
        for run in self.runs.iter().filter(|run| !run.rows.is_empty()) {
            if run.rows.start < next || run.rows.end > rows {
                bail!("the run {:?} of a LoRA batch overlaps another or leaves its {rows} rows", run.rows);
            }
            if !sites.iter().any(|site| run.adapter.changes.contains_key(site)) {
                continue;
            }
            if next < run.rows.start {
                pieces.push((next..run.rows.start, None));
            }
            pieces.push((run.rows.clone(), Some(&*run.adapter)));
            next = run.rows.end;
        }
        if next < rows {
            pieces.push((next..rows, None));
        }
        Ok(pieces)
    }

    /// Normalises `[rows, hidden]` with the base's weight and bias `[hidden]`, or with those of the adapter of each row.
    ///
    /// # Errors
    /// When the runs do not fit the rows or the device fails.
    pub fn layer_norm(&self, site: SiteId, x: &Tensor, (weight, bias): (&Tensor, &Tensor), eps: f64) -> Result<Tensor> {
        let runs = self.touching(site, x.dim(0)?)?;
        let own = |change: &Change, x: &Tensor| match change {
            Change::Replaced { weight, bias: Some(bias) } => layer_norm(x, weight, bias, eps),
            Change::Bias(bias) => layer_norm(x, weight, bias, eps),
            Change::Linear(_) | Change::Embedding { .. } | Change::Replaced { .. } => {
                bail!("a change of another layer stands at a norm")
            }
        };
        if let [(run, change)] = runs.as_slice()
            && run.rows.len() == x.dim(0)?
        {
            return own(change, x);
        }
        let changed = runs.iter().map(|(run, change)| own(change, &x.narrow(0, run.rows.start, run.rows.len())?));
        let changed = changed.collect::<Result<Vec<_>>>()?;
        overlay(&runs, layer_norm(x, weight, bias, eps)?, changed)
    }

    /// Normalises `[rows, hidden]` on the CPU without a gradient as [`Self::layer_norm`] does, into `out`.
    ///
    /// # Errors
    /// When the runs do not fit the rows.
    pub fn layer_norm_rows(
        &self,
        site: SiteId,
        x: &[f32],
        (weight, bias): (&Tensor, &Tensor),
        eps: f64,
        out: &mut [f32],
    ) -> Result<()> {
        let norm = |x: &[f32], parts: (&Tensor, &Tensor), out: &mut [f32]| {
            with_slices([parts.0, parts.1], |parts| {
                threads::layer_norm(x, parts.into(), eps as f32, out);
                Ok(())
            })
        };
        norm(x, (weight, bias), out)?;
        let width = weight.elem_count();
        for (run, change) in self.touching(site, x.len() / width.max(1))? {
            let parts = match change {
                Change::Replaced { weight, bias: Some(bias) } => (weight, bias),
                Change::Bias(bias) => (weight, bias),
                Change::Linear(_) | Change::Embedding { .. } | Change::Replaced { .. } => {
                    bail!("a change of another layer stands at a norm")
                }
            };
            let rows = run.rows.start * width..run.rows.end * width;
            norm(&x[rows.clone()], parts, &mut out[rows])?;
        }
        Ok(())
    }
}

impl Adapter {
    /// Returns what it puts in the place of a free parameter.
    pub fn parameter(&self, site: SiteId) -> Option<&Tensor> {
        match self.changes.get(&site) {
            Some(Change::Replaced { weight, .. }) => Some(weight),
            Some(Change::Linear(_) | Change::Embedding { .. } | Change::Bias(_)) | None => None,
        }
    }
}
