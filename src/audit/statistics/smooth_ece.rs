//! The smooth calibration error: no bins, a Gaussian kernel whose width follows from the data.
//!
//! Deterministic. Takes (confidence, hit) pairs as [`calibration`](super::calibration) does. The value is
//! relplot's to the last digits, its grid included: on scores at 0 and 1 that differs by up to 0.1 from the exact
//! integral. After: Błasiok and Nakkiran 2023 (arXiv 2309.12236), relplot 1.0.3. Weights are this file's addition: only
//! their proportions matter, since they are scaled to a mean of 1.

use super::{Measured, Undefined, weights_or_ones};

/// A smooth calibration error and the bandwidth at which it was read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SmoothEce {
    /// The error.
    pub value: f64,
    /// The standard deviation of the kernel, in units of confidence.
    pub bandwidth: f64,
}

/// Returns the smooth calibration error at the bandwidth where the two are equal.
///
/// # Errors
///
/// [`Undefined::NoRows`].
pub fn smooth_ece(confidence: &[f64], hit: &[bool], weights: Option<&[f64]>) -> Result<SmoothEce, Undefined> {
    let error_at = |bandwidth| smooth_ece_at(confidence, hit, weights, bandwidth);
    let (mut low, mut high) = (0.0, 1.0);
    if error_at(high)? < high {
        for _ in 0..10 {
            let middle = f64::midpoint(low, high);
            if middle < 0.001 || middle < error_at(middle)? { low = middle } else { high = middle }
        }
    }
    Ok(SmoothEce { value: error_at(high)?, bandwidth: high })
}

/// Returns the smooth calibration error at a bandwidth of at least 0.0001.
///
/// # Errors
///
/// [`Undefined::NoRows`].
pub fn smooth_ece_at(confidence: &[f64], hit: &[bool], weights: Option<&[f64]>, bandwidth: f64) -> Measured {
    let bandwidth = bandwidth.max(1e-4);
    let total: f64 = weights_or_ones(weights).take(confidence.len()).sum();
    if total <= 0.0 {
        return Err(Undefined::NoRows);
    }
    let scale = confidence.len() as f64 / total;
    let grid = Grid::new(confidence, hit, weights, bandwidth);
    let points = ((10.0 / bandwidth).round_ties_even() as usize).max(200);
    let (mut error, mut mass) = (0.0, 0.0);
    for point in 0..points {
        let (residual, ones) = grid.smoothed(point as f64 / (points - 1) as f64);
        error += residual.abs() * scale;
        mass += ones * scale + 1e-4;
    }
    Ok(error / mass)
}

/// The same error of many resamples of the same rows, at one bandwidth: a sum a point of a coarser grid, instead of a pass
/// for every bandwidth.
///
/// A step is at most a quarter of the bandwidth and the kernel ends at six standard deviations, which moves the value by
/// less than 1 % of itself: for intervals, not for the value.
#[derive(Debug, Clone)]
pub struct Smoother {
    points: usize,
    /// The kernel at 0, 1, 2… steps.
    kernel: Vec<f64>,
}

impl Smoother {
    /// Returns the points of a grid that is fine enough for this bandwidth and all larger ones.
    #[must_use]
    pub fn points(bandwidth: f64) -> usize {
        ((4.0 / bandwidth.max(1e-3)).ceil() as usize).max(100) + 1
    }

    /// Prepares to smooth sums over a grid of so many points on [0, 1].
    #[must_use]
    pub fn new(bandwidth: f64, points: usize) -> Self {
        let (bandwidth, step) = (bandwidth.max(1e-3), 1.0 / (points - 1) as f64);
        let reach = ((points - 1) / 2).min((6.0 * bandwidth / step) as usize + 1);
        let peak = 1.0 / ((2.0 * std::f64::consts::PI).sqrt() * bandwidth);
        let density = |k: usize| peak * (-(k as f64 * step / bandwidth).powi(2) / 2.0).exp();
        Self { points, kernel: (0..=reach).map(density).collect() }
    }

    /// Returns the point below a confidence, and the part of a row that goes to the next one.
    #[must_use]
    pub fn place(confidence: f64, points: usize) -> (usize, f64) {
        place(confidence, points)
    }

    /// Returns the error from weighted residuals and weights by point; `rows` is the number of rows that they are of.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn error(&self, residual: &[f64], ones: &[f64], rows: f64) -> Measured {
        let total: f64 = ones.iter().sum();
        if total <= 0.0 {
            return Err(Undefined::NoRows);
        }
        let scale = rows / total;
        let last = self.points - 1;
        let (mut error, mut mass) = (0.0, 0.0);
        for at in 0..self.points {
            let (mut r, mut o) = (self.kernel[0] * residual[at], self.kernel[0] * ones[at]);
            for (k, density) in self.kernel.iter().enumerate().skip(1) {
                let left = at.abs_diff(k);
                let right = if at + k <= last { at + k } else { 2 * last - at - k };
                r += density * (residual[left] + residual[right]);
                o += density * (ones[left] + ones[right]);
            }
            error += r.abs() * scale;
            mass += o * scale + 1e-4;
        }
        Ok(error / mass)
    }
}

/// Residuals and rows, spread over the points of a grid on [0, 1].
struct Grid {
    residual: Vec<f64>,
    ones: Vec<f64>,
    /// The kernel at 0, 1, 2… steps of the grid, as far as it matters.
    kernel: Vec<f64>,
}

impl Grid {
    fn new(confidence: &[f64], hit: &[bool], weights: Option<&[f64]>, bandwidth: f64) -> Self {
        let points = ((20.0 / bandwidth).round_ties_even() as usize).max(2000) / 2 + 1;
        let (mut residual, mut ones) = (vec![0.0; points], vec![0.0; points]);
        for ((confidence, hit), weight) in confidence.iter().zip(hit).zip(weights_or_ones(weights)) {
            let (at, part) = place(*confidence, points);
            let difference = confidence - f64::from(u8::from(*hit));
            for (at, part) in [(at, 1.0 - part), (at + 1, part)] {
                residual[at] += weight * part * difference;
                ones[at] += weight * part;
            }
        }
        let step = 1.0 / (points - 1) as f64;
        // Beyond 10 standard deviations the kernel is below 1e-21 of its peak; |x| ≤ ½ is relplot's own limit.
        let reach = ((points - 1) / 2).min((10.0 * bandwidth / step) as usize + 1);
        let peak = 1.0 / ((2.0 * std::f64::consts::PI).sqrt() * bandwidth);
        let density = |k: usize| peak * (-(k as f64 * step / bandwidth).powi(2) / 2.0).exp();
        Self { residual, ones, kernel: (0..=reach).map(density).collect() }
    }

    /// Smoothed residual and rows at a place in [0, 1], read off linearly between its neighbours on the grid.
    fn smoothed(&self, place_in_unit: f64) -> (f64, f64) {
        let (at, part) = place(place_in_unit, self.ones.len());
        let (low, high) = (self.smoothed_on(at), self.smoothed_on(at + 1));
        (low.0 * (1.0 - part) + high.0 * part, low.1 * (1.0 - part) + high.1 * part)
    }

    /// The same on a point of the grid. The array is reflected at its ends, each end standing once.
    fn smoothed_on(&self, at: usize) -> (f64, f64) {
        let last = self.ones.len() - 1;
        let (mut residual, mut ones) = (self.kernel[0] * self.residual[at], self.kernel[0] * self.ones[at]);
        for (k, density) in self.kernel.iter().enumerate().skip(1) {
            let left = at.abs_diff(k);
            let right = if at + k <= last { at + k } else { 2 * last - at - k };
            residual += density * (self.residual[left] + self.residual[right]);
            ones += density * (self.ones[left] + self.ones[right]);
        }
        (residual, ones)
    }
}

/// The point of the grid below, never the last one, and how far beyond it in steps.
fn place(value: f64, points: usize) -> (usize, f64) {
    let scaled = value.clamp(0.0, 1.0) * (points - 1) as f64;
    let at = (scaled as usize).min(points - 2);
    (at, scaled - at as f64)
}
