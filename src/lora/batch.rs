//! Applies the adapters of a packed batch on top of the base model's products.
//!
//! Computes only on the rows of runs whose adapter changes the site at hand; the others pass untouched. Chooses no
//! rows and knows no model.
//! After: S-LoRA's runs of rows by adapter, any rank beside any other, no padding.

use candle_core::{DType, Device, Result, Tensor, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Change, Dropout, LinearDelta, LoraBatch, Run, SiteId};
use crate::ops::{add_bias, dense_product, matmul, rms_norm};

impl LoraBatch {
    /// Finishes a linear layer: `x` is `[rows, input]`, `product` is the base's W·x without bias `[rows, output]`.
    /// Rows in no run get `bias` alone.
    ///
    /// `product` has to be the caller's own: without a gradient its storage may be written.
    ///
    /// # Errors
    /// When the runs do not fit the rows, a DoRA adapter is scaled, or the device fails.
    pub fn linear(&self, site: SiteId, x: &Tensor, product: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let plain = |product: Tensor| match bias {
            Some(bias) => add_bias(&product, bias),
            None => Ok(product),
        };
        let runs = self.touching(site, product.dim(0)?)?;
        let dropout = self.dropout.map(|dropout| Dropout { seed: dropout.seed ^ ((site.0 as u64) << 40), ..dropout });
        if let [(run, change)] = runs.as_slice()
            && run.rows.len() == product.dim(0)?
        {
            return linear_rows(change, (run.scale, dropout), x, &product, bias);
        }
        let changed = runs.iter().map(|(run, change)| {
            let (start, len) = (run.rows.start, run.rows.len());
            let (x, product) = (x.narrow(0, start, len)?, product.narrow(0, start, len)?);
            linear_rows(change, (run.scale, dropout), &x, &product, bias)
        });
        let changed = changed.collect::<Result<Vec<_>>>()?;
        overlay(&runs, plain(product)?, changed)
    }

    /// Returns the layer that takes the place of the base's on all `rows`, if one adapter replaces it for all of them:
    /// then the base's product is not needed.
    ///
    /// # Errors
    /// When the runs do not fit the rows.
    pub fn whole(&self, site: SiteId, x: &Tensor) -> Result<Option<Tensor>> {
        let rows = x.dim(0)?;
        match self.touching(site, rows)?.as_slice() {
            [(run, Change::Replaced { weight, bias })] if run.rows.len() == rows => {
                let product = dense_product(&wide(x)?, &as_matrix(weight)?)?;
                let product = match bias {
                    Some(bias) => add_bias(&product, &bias.to_dtype(product.dtype())?)?,
                    None => product,
                };
                product.to_dtype(x.dtype()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Returns Aᵀ and s·Bᵀ of a site where they are all that happens to all of `rows`: the case that training is made of.
    ///
    /// # Errors
    /// When the runs do not fit the rows.
    pub fn low_rank(&self, site: SiteId, rows: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        if self.dropout.is_some() {
            return Ok(None);
        }
        match self.touching(site, rows)?.as_slice() {
            [(run @ Run { rows: of, scale, .. }, Change::Linear(delta))]
                if of.len() == rows
                    && !is_scaled(*scale)
                    && delta.a.dtype() == DType::F32
                    && delta.is_plain()
                    && run.adapter.piece.is_none() =>
            {
                Ok(Some((&delta.a, &delta.b)))
            }
            _ => Ok(None),
        }
    }

    /// Normalises `[rows, hidden]` with the base's weight `[hidden]`, or with that of the adapter of each row.
    ///
    /// # Errors
    /// When the runs do not fit the rows or the device fails.
    pub fn rms_norm(&self, site: SiteId, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let runs = self.touching(site, x.dim(0)?)?;
        let own = |change: &Change, x: &Tensor| match change {
            Change::Replaced { weight, .. } => rms_norm(x, weight, eps),
            Change::Linear(_) | Change::Bias(_) | Change::Embedding { .. } => {
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
        overlay(&runs, rms_norm(x, weight, eps)?, changed)
    }

    /// Finishes an embedding lookup: `ids` is `[tokens]`, `rows` is `[tokens, hidden]` as the base has it.
    ///
    /// `rows` has to be the caller's own: without a gradient its storage may be written.
    ///
    /// # Errors
    /// When the runs do not fit the rows or the device fails.
    pub fn embedding(&self, site: SiteId, ids: &Tensor, rows: Tensor) -> Result<Tensor> {
        let runs = self.touching(site, rows.dim(0)?)?;
        let changed = runs.iter().map(|(run, change)| {
            let (start, len) = (run.rows.start, run.rows.len());
            embedding_rows(change, run.scale, &ids.narrow(0, start, len)?, &rows.narrow(0, start, len)?)
        });
        let mut changed = changed.collect::<Result<Vec<_>>>()?;
        match (runs.as_slice(), changed.pop()) {
            ([(run, _)], Some(all)) if run.rows.len() == rows.dim(0)? => Ok(all),
            (_, last) => {
                changed.extend(last);
                overlay(&runs, rows, changed)
            }
        }
    }

    /// Refuses an adapter of another base model: its sites are other places here. `base` is the model's fingerprint.
    ///
    /// # Errors
    /// Names both.
    pub fn check_base(&self, base: &str) -> Result<()> {
        let strange = |run: &&Run| !run.adapter.base().is_empty() && run.adapter.base() != base;
        match self.runs.iter().find(strange) {
            Some(run) => bail!("an adapter of base model {} cannot run on {base}", run.adapter.base()),
            None => Ok(()),
        }
    }

    /// Returns the batch for a selection of rows, ascending.
    pub fn select(&self, rows: &[usize]) -> Self {
        let place = |row: usize| rows.partition_point(|selected| *selected < row);
        let runs = self.runs.iter().map(|run| Run { rows: place(run.rows.start)..place(run.rows.end), ..run.clone() });
        Self { runs: runs.filter(|run| !run.rows.is_empty()).collect(), dropout: self.dropout }
    }

    /// Returns the runs that change a site, after checking all of them.
    pub(crate) fn touching(&self, site: SiteId, rows: usize) -> Result<Vec<(&Run, &Change)>> {
        Ok(self.within(rows)?.filter_map(|run| Some((run, run.adapter.change(site)?))).collect())
    }

    /// Returns the runs that have rows, after checking all of them.
    pub(super) fn within(&self, rows: usize) -> Result<impl Iterator<Item = &Run>> {
        self.check(rows)?;
        Ok(self.runs.iter().filter(|run| !run.rows.is_empty()))
    }

    /// Checks that the runs lie in `rows` rows, each behind the one before it.
    pub(super) fn check(&self, rows: usize) -> Result<()> {
        let mut next = 0;
        for run in &self.runs {
            if run.rows.start < next || run.rows.end < run.rows.start || run.rows.end > rows {
                bail!("the run {:?} of a LoRA batch overlaps another or leaves its {rows} rows", run.rows);
            }
            next = run.rows.end;
        }
        Ok(())
    }
}

/// Puts changed rows in the place of `rows`.
pub(super) fn overlay(runs: &[(&Run, &Change)], rows: Tensor, changed: Vec<Tensor>) -> Result<Tensor> {
    if changed.is_empty() {
        return Ok(rows);
    }
    let tracked = rows.track_op() || changed.iter().any(Tensor::track_op);
    if !tracked && rows.is_contiguous() {
        for ((run, _), changed) in runs.iter().zip(&changed) {
            rows.slice_set(&changed.contiguous()?, 0, run.rows.start)?;
        }
        return Ok(rows);
    }
    let mut pieces = Vec::with_capacity(2 * changed.len() + 1);
    let mut next = 0;
    for ((run, _), changed) in runs.iter().zip(changed) {
        if next < run.rows.start {
            pieces.push(rows.narrow(0, next, run.rows.start - next)?);
        }
        pieces.push(changed);
        next = run.rows.end;
    }
    let total = rows.dim(0)?;
    if next < total {
        pieces.push(rows.narrow(0, next, total - next)?);
    }
    Tensor::cat(&pieces, 0)
}

/// Computes a linear layer on rows of one run.
fn linear_rows(
    change: &Change,
    how: (f32, Option<Dropout>),
    x: &Tensor,
    product: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let dtype = product.dtype();
    let (rows, bias) = match change {
        Change::Linear(delta) => (low_rank(delta, how, x, product)?, delta.bias.as_ref().or(bias)),
        Change::Replaced { weight, bias } => (dense_product(&wide(x)?, &as_matrix(weight)?)?, bias.as_ref()),
        Change::Bias(bias) => (product.clone(), Some(bias)),
        Change::Embedding { .. } => bail!("an embedding's change stands at a linear layer"),
    };
    let rows = rows.to_dtype(dtype)?;
    match bias {
        Some(bias) => add_bias(&rows, &bias.to_dtype(dtype)?),
        None => Ok(rows),
    }
}

/// Returns rows as products with f32 weights take them: on a GPU in bf16 too.
fn wide(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::BF16 && !x.device().is_cpu() { Ok(x.clone()) } else { x.to_dtype(DType::F32) }
}

/// Returns the weight of a convolution of patches as the matrix that it is.
pub(super) fn as_matrix(weight: &Tensor) -> Result<Tensor> {
    if weight.rank() == 2 { Ok(weight.clone()) } else { weight.flatten_from(1) }
}

/// Returns mag ⊙ (Wx + scale·s·(B(Ax) + b)), f32 until the sum with the base's product.
///
/// Dropout acts on the input of A alone. With DoRA, peft 0.21 drops inputs of W in (mag - 1)·Wx too.
fn low_rank(
    delta: &LinearDelta,
    (scale, dropout): (f32, Option<Dropout>),
    x: &Tensor,
    product: &Tensor,
) -> Result<Tensor> {
    let mut x = x.to_dtype(DType::F32)?;
    if let Some(dropout) = dropout {
        x = (x.clone() * kept(dropout, x.dims(), x.device())?)?;
    }
    let (a, b) = delta.matrices(x.device())?;
    let mut change = matmul(&matmul(&x, &a)?, &b)?;
    if let Some(bias) = &delta.b_bias {
        change = change.broadcast_add(bias)?;
    }
    if is_scaled(scale) {
        if delta.magnitude.is_some() {
            bail!("a DoRA adapter cannot be scaled by {scale}: its norms hold for its own scaling");
        }
        change = (change * f64::from(scale))?;
    }
    let sum = (product.to_dtype(DType::F32)? + change)?;
    match &delta.magnitude {
        Some(magnitude) => sum.broadcast_mul(magnitude),
        None => Ok(sum),
    }
}

/// Looks up embeddings for the tokens of one run.
fn embedding_rows(change: &Change, scale: f32, ids: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let found = match change {
        Change::Embedding { a, b, scaling: _ } => {
            let mut delta = matmul(&a.index_select(ids, 0)?, b)?;
            if is_scaled(scale) {
                delta = (delta * f64::from(scale))?;
            }
            (rows.to_dtype(DType::F32)? + delta)?
        }
        Change::Replaced { weight, .. } => weight.index_select(ids, 0)?,
        Change::Linear(_) | Change::Bias(_) => bail!("a linear layer's change stands at an embedding"),
    };
    found.to_dtype(rows.dtype())
}

/// Returns 0 where an input is dropped and 1/(1-rate) elsewhere.
fn kept(dropout: Dropout, shape: &[usize], device: &Device) -> Result<Tensor> {
    let mut bits = vec![0_u8; 2 * shape.iter().product::<usize>()];
    ChaCha8Rng::seed_from_u64(dropout.seed).fill_bytes(&mut bits);
    let (limit, up) = (dropout.rate * 65536.0, (1.0 / (1.0 - dropout.rate)) as f32);
    let factor = |pair: &[u8]| if f64::from(u16::from_le_bytes([pair[0], pair[1]])) < limit { 0.0 } else { up };
    Tensor::from_vec(bits.chunks_exact(2).map(factor).collect::<Vec<f32>>(), shape, device)
}

pub(super) fn is_scaled(scale: f32) -> bool {
    (scale - 1.0).abs() > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_drops_its_share_and_keeps_the_mean() {
        let of = |rate, seed| {
            let factors = kept(Dropout { rate, seed }, &[100, 1000], &Device::Cpu).unwrap();
            factors.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for rate in [0.1, 0.25, 0.5] {
            let factors = of(rate, 7);
            let up = (1.0 / (1.0 - rate)) as f32;
            assert!(factors.iter().all(|factor| [0.0, up].contains(factor)));
            let dropped = factors.iter().filter(|factor| **factor <= 0.0).count() as f64 / 1e5;
            // Five standard errors of a share of 100,000.
            assert!((dropped - rate).abs() < 5.0 * (rate * (1.0 - rate) / 1e5).sqrt(), "{dropped} of {rate}");
        }
        assert_eq!(of(0.5, 7), of(0.5, 7));
        let (a, b) = (of(0.5, 7), of(0.5, 8));
        let alike = a.iter().zip(&b).filter(|(a, b)| a == b).count();
        assert!((45_000..55_000).contains(&alike), "{alike}");
    }
}
