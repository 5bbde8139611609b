//! Where one bin of confidence ends and the next begins.
//!
//! Knows no hit: edges depend on confidences alone, so one set serves a sample, its resamples and its null.
//! Units: confidences in [0, 1]. After: netcal, torchmetrics and scikit-learn for equal width, `numpy.quantile` for
//! quantiles, uncertainty-calibration for chunks (with edges half-way between scores, so that the closure is no matter).

use crate::audit::statistics::weights_or_ones;

/// To which bin a confidence that equals an edge belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closure {
    /// `[low, high)`, the last bin closed: netcal.
    Left,
    /// `(low, high]`, the first bin closed: scikit-learn.
    Right,
    /// `[low, high)`, and a bin of its own for exactly 1: torchmetrics.
    LeftOneApart,
}

/// The edges of bins, rising.
#[derive(Debug, Clone, PartialEq)]
pub struct Edges {
    edges: Vec<f64>,
    closure: Closure,
}

impl Edges {
    /// Returns `bins` bins of equal width; edge k is k·(1/bins) in f64. No bin at all is taken as one.
    pub fn width(bins: usize, closure: Closure) -> Self {
        let bins = bins.max(1);
        let step = 1.0 / bins as f64;
        let mut edges: Vec<f64> = (0..bins).map(|k| k as f64 * step).collect();
        edges.push(1.0);
        Self { edges, closure }
    }

    /// Returns `bins` bins between the linear ("type 7") quantiles of `confidence`.
    ///
    /// An edge may fall on a row, where the last bit decides: prefer [`Edges::chunks`].
    pub fn quantiles(confidence: &[f64], bins: usize, closure: Closure) -> Self {
        let bins = bins.max(1);
        let mut sorted = confidence.to_vec();
        sorted.sort_by(f64::total_cmp);
        let edges = (0..=bins).map(|k| quantile(&sorted, k as f64 / bins as f64)).collect();
        Self { edges, closure }
    }

    /// Returns at most `bins` bins of about equal weight that never split rows of one confidence.
    ///
    /// The sorted rows (those of positive weight) are cut into chunks whose sizes differ by one row of mean weight at
    /// most, the longer ones first; rows of one confidence go with the first of them. Fewer bins if chunks fall together.
    pub fn chunks(confidence: &[f64], weights: Option<&[f64]>, bins: usize) -> Self {
        let bins = bins.max(1);
        let mut rows: Vec<(f64, f64)> = confidence.iter().copied().zip(weights_or_ones(weights)).collect();
        rows.retain(|(_, weight)| *weight > 0.0);
        rows.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mean = rows.iter().map(|(_, weight)| weight).sum::<f64>() / rows.len().max(1) as f64;
        let (length, longer) = (rows.len() / bins, rows.len() % bins);
        let chunk_of = |before: f64| {
            let rows_before = before / mean + 0.5;
            (1..bins).take_while(|k| rows_before > (k * length + longer.min(*k)) as f64).count()
        };
        let mut edges = vec![0.0];
        let (mut before, mut last) = (0.0, None);
        for block in rows.chunk_by(|a, b| a.0 == b.0) {
            let (value, chunk) = (block[0].0, chunk_of(before));
            if let Some((lower, of)) = last
                && of != chunk
            {
                let middle = f64::midpoint(lower, value);
                edges.push(if middle > lower { middle } else { value });
            }
            before += block.iter().map(|(_, weight)| weight).sum::<f64>();
            last = Some((value, chunk));
        }
        edges.push(1.0);
        Self { edges, closure: Closure::Left }
    }

    /// Returns how many bins there are.
    pub fn bins(&self) -> usize {
        self.edges.len() - 1 + usize::from(self.closure == Closure::LeftOneApart)
    }

    /// Returns the bin of a confidence, from 0. What lies outside belongs to the first or last bin.
    pub fn bin(&self, confidence: f64) -> usize {
        let inner = &self.edges[1..self.edges.len() - 1];
        match self.closure {
            Closure::LeftOneApart if confidence >= 1.0 => self.edges.len() - 1,
            Closure::Left | Closure::LeftOneApart => inner.partition_point(|edge| *edge <= confidence),
            Closure::Right => inner.partition_point(|edge| *edge < confidence),
        }
    }

    /// Returns the low and high edge of a bin.
    pub fn range(&self, bin: usize) -> (f64, f64) {
        let at = |k: usize| self.edges.get(k).copied().unwrap_or(1.0);
        (at(bin), at(bin + 1))
    }
}

/// The linear ("type 7") quantile of sorted values; 0 for none. Rounds as numpy's does.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let low = (at.floor() as usize).min(last);
    let (from, to, part) = (sorted[low], sorted[(low + 1).min(last)], at - low as f64);
    if part < 0.5 { from + (to - from) * part } else { to - (to - from) * (1.0 - part) }
}
