//! Calibration: does a confidence of 0.8 hit in 80 of 100 cases?
//!
//! Takes (confidence, hit) pairs and does not know what a hit is: the label, if the confidence is the score of the
//! positive class; "the prediction was right", if it is that of the top label. These give different figures for one
//! model: never mix them, and name which one it is. [`top_label`] makes the second kind of pairs.
//! Units: confidences in [0, 1], weights ≥ 0. After: netcal (ECE, MCE, ACE), torchmetrics (RMSCE), scikit-learn.

mod edges;
mod null;
mod temperature;
#[cfg(test)]
mod tests;

pub use edges::{Closure, Edges};
pub use null::{Null, null_ece};
pub use temperature::Temperature;

use super::{Measured, Undefined, weights_or_ones};

/// What a bin holds: enough to compute every binned figure.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Cell {
    weight: f64,
    confidence: f64,
    hit: f64,
}

impl Cell {
    /// |Mean confidence − rate of hits|, if the bin is occupied.
    fn gap(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| ((self.confidence - self.hit) / self.weight).abs())
    }
}

/// Sums per bin: of weights, confidences and hits. A resample clears them and adds its rows again.
#[derive(Debug, Clone)]
pub struct Bins<'e> {
    edges: &'e Edges,
    cells: Vec<Cell>,
}

/// A line of a reliability table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReliabilityRow {
    /// The bin, from 0.
    pub bin: usize,
    /// Its low edge.
    pub low: f64,
    /// Its high edge.
    pub high: f64,
    /// Sum of the weights of its rows; above 0.
    pub weight: f64,
    /// Mean confidence of its rows.
    pub confidence: f64,
    /// Share of hits among its rows.
    pub rate: f64,
}

impl<'e> Bins<'e> {
    /// Returns empty bins.
    pub fn new(edges: &'e Edges) -> Self {
        Self { edges, cells: vec![Cell::default(); edges.bins()] }
    }

    /// Returns bins that hold these rows.
    pub fn of(edges: &'e Edges, confidence: &[f64], hit: &[bool], weights: Option<&[f64]>) -> Self {
        let mut bins = Self::new(edges);
        for ((confidence, hit), weight) in confidence.iter().zip(hit).zip(weights_or_ones(weights)) {
            bins.add(*confidence, *hit, weight);
        }
        bins
    }

    /// Adds a row.
    pub fn add(&mut self, confidence: f64, hit: bool, weight: f64) {
        self.add_to(self.edges.bin(confidence), confidence, hit, weight);
    }

    /// Adds a row whose bin ([`Edges::bin`]) is known already: resamples need not search it again.
    pub fn add_to(&mut self, bin: usize, confidence: f64, hit: bool, weight: f64) {
        let cell = &mut self.cells[bin];
        cell.weight += weight;
        cell.confidence += weight * confidence;
        if hit {
            cell.hit += weight;
        }
    }

    /// Empties the bins.
    pub fn clear(&mut self) {
        self.cells.fill(Cell::default());
    }

    /// Returns the sum of the weights.
    pub fn weight(&self) -> f64 {
        self.cells.iter().map(|cell| cell.weight).sum()
    }

    /// Returns the expected calibration error: the weighted mean of |mean confidence − rate| over bins.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`], as all figures here.
    pub fn ece(&self) -> Measured {
        self.per_weight(self.cells.iter().map(|cell| (cell.confidence - cell.hit).abs()).sum())
    }

    /// Returns the maximum calibration error: the largest |mean confidence − rate| of a bin.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`].
    pub fn mce(&self) -> Measured {
        self.gaps().fold(None, |most: Option<f64>, gap| Some(most.map_or(gap, |m| m.max(gap)))).ok_or(Undefined::NoRows)
    }

    /// Returns the average calibration error: the plain mean of |mean confidence − rate| over occupied bins.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`].
    pub fn ace(&self) -> Measured {
        let (occupied, sum) = self.gaps().fold((0, 0.0), |(n, sum), gap| (n + 1, sum + gap));
        if occupied == 0 { Err(Undefined::NoRows) } else { Ok(sum / f64::from(occupied)) }
    }

    /// Returns the root of the weighted mean square of (mean confidence − rate).
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`].
    pub fn rmsce(&self) -> Measured {
        let squares = self.cells.iter().filter_map(|cell| Some(cell.weight * cell.gap()?.powi(2))).sum();
        self.per_weight(squares).map(f64::sqrt)
    }

    /// Returns mean confidence − rate of hits: above 0, the model is over-confident. Does not depend on the bins.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`].
    pub fn over_confidence(&self) -> Measured {
        self.per_weight(self.cells.iter().map(|cell| cell.confidence - cell.hit).sum())
    }

    /// Returns the reliability table: the occupied bins, rising.
    pub fn table(&self) -> Vec<ReliabilityRow> {
        let occupied = self.cells.iter().enumerate().filter(|(_, cell)| cell.weight > 0.0);
        let row = |(bin, cell): (usize, &Cell)| {
            let (low, high) = self.edges.range(bin);
            let (confidence, rate) = (cell.confidence / cell.weight, cell.hit / cell.weight);
            ReliabilityRow { bin, low, high, weight: cell.weight, confidence, rate }
        };
        occupied.map(row).collect()
    }

    fn gaps(&self) -> impl Iterator<Item = f64> {
        self.cells.iter().filter_map(Cell::gap)
    }

    fn per_weight(&self, sum: f64) -> Measured {
        let weight = self.weight();
        if weight > 0.0 { Ok(sum / weight) } else { Err(Undefined::NoRows) }
    }
}

/// Returns (confidence, hit) of the top label of each row of `probabilities` [rows, classes]; the first index wins a tie.
pub fn top_label(probabilities: &[f64], classes: usize, label: &[usize]) -> (Vec<f64>, Vec<bool>) {
    let pairs = probabilities.chunks_exact(classes.max(1)).zip(label).map(|(row, label)| {
        let mut best = 0;
        for (class, p) in row.iter().enumerate() {
            if *p > row[best] {
                best = class;
            }
        }
        (row[best], best == *label)
    });
    pairs.unzip()
}
