//! Losses that give their gradient at once: the value and what it hands back to the logits are one pass.
//!
//! Averaging is the caller's: each row comes with its weight in the mean.
//! On a GPU logits stay where they are. Shapes: logits `[rows, classes]` f32, on a GPU bf16 too.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::steps;
#[cfg(feature = "cuda")]
use super::cuda;

/// Returns `-log softmax(logits)[target]` of each row, and the gradient of Σ weight·loss, `[rows, classes]`.
///
/// # Errors
/// When a target is out of range, shapes do not fit, or the device fails.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weight: f32) -> Result<(Vec<f64>, Tensor)> {
    let (rows, classes) = logits.dims2()?;
    if rows != targets.len() || targets.iter().any(|target| *target as usize >= classes) {
        bail!("{} targets do not fit logits [{rows}, {classes}]", targets.len());
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = cuda::Gpu::of(logits.device()) {
        let targets = Tensor::new(targets, &Device::Cpu)?;
        return cuda::losses_of(&gpu, logits, cuda::Targets::Class(&targets), weight);
    }
    with_rows(logits, |row, i| entropy(row, targets[i] as usize, weight))
}

/// Returns the loss of one row, which becomes the gradient of weight·loss.
fn entropy(row: &mut [f32], target: usize, weight: f32) -> f64 {
    let at_target = row[target];
    let (max, sum) = steps::powers(row, 1.0);
    steps::scale(row, weight / sum);
    row[target] -= weight;
    f64::from(max - at_target) + f64::from(sum).ln()
}

/// Returns `-log softmax(logits)[target]` of each row of `[targets, classes]` on the CPU, which becomes the gradient of
/// Σ weight·loss.
///
/// # Errors
/// When a target is out of range or shapes do not fit.
pub(super) fn cross_entropies(logits: &mut [f32], targets: &[u32], weight: f32) -> Result<Vec<f64>> {
    let classes = logits.len() / targets.len().max(1);
    if logits.len() != classes * targets.len() || targets.iter().any(|target| *target as usize >= classes) {
        bail!("{} targets do not fit {} logits", targets.len(), logits.len());
    }
    let rows = logits.par_chunks_mut(classes.max(1)).zip(targets);
    Ok(rows.map(|(row, target)| entropy(row, *target as usize, weight)).collect())
}

/// Returns the mean over classes of the binary cross-entropies of each row, and the gradient of Σ weight·loss.
///
/// `targets` is 0 or 1, row by row (torch `BCEWithLogitsLoss`).
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn binary_cross_entropy(logits: &Tensor, targets: &[f32], weight: f32) -> Result<(Vec<f64>, Tensor)> {
    let (rows, classes) = logits.dims2()?;
    if targets.len() != rows * classes {
        bail!("{} targets do not fit logits [{rows}, {classes}]", targets.len());
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = cuda::Gpu::of(logits.device()) {
        let targets = Tensor::new(targets, &Device::Cpu)?;
        return cuda::losses_of(&gpu, logits, cuda::Targets::Each(&targets), weight);
    }
    with_rows(logits, |row, i| {
        let mut sum = 0.0_f64;
        let classes = row.len() as f32;
        let targets = &targets[i * row.len()..];
        for (x, target) in row.iter_mut().zip(targets) {
            sum += f64::from(x.max(0.0) - *x * target + (-x.abs()).exp().ln_1p());
            *x = (1.0 / (1.0 + (-*x).exp()) - target) * weight / classes;
        }
        sum / f64::from(classes)
    })
}

/// Calls `work` on a copy of each row, which becomes the row of the gradient; returns what it returned.
fn with_rows(logits: &Tensor, work: impl Fn(&mut [f32], usize) -> f64 + Sync) -> Result<(Vec<f64>, Tensor)> {
    let (rows, classes) = logits.dims2()?;
    let mut data = logits.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let losses = data.par_chunks_mut(classes.max(1)).enumerate().map(|(i, row)| work(row, i)).collect();
    Ok((losses, Tensor::from_vec(data, (rows, classes), logits.device())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::fused::tests::values;

    /// Compares the gradient with central differences of Σ weight·loss.
    fn check(loss: impl Fn(&Tensor) -> (Vec<f64>, Tensor), weight: f64) {
        let logits = (values(&[3, 5], 4) * 3.0).unwrap();
        let (losses, gradient) = loss(&logits);
        assert!(losses.iter().all(|l| *l > 0.0), "{losses:?}");
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(gradient.iter().any(|g| g.abs() > 0.01));
        let start = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..start.len() {
            let at = |step: f32| {
                let mut moved = start.clone();
                moved[i] += step;
                let moved = Tensor::from_vec(moved, (3, 5), &Device::Cpu).unwrap();
                loss(&moved).0.iter().sum::<f64>() * weight
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope - f64::from(gradient[i])).abs() < 1e-3, "{i}: {slope} {}", gradient[i]);
        }
    }

    #[test]
    fn cross_entropy_hands_back_its_gradient() {
        check(|logits| cross_entropy(logits, &[4, 0, 2], 0.7).unwrap(), 0.7);
        cross_entropy(&values(&[2, 3], 1), &[0, 3], 1.0).unwrap_err();
        cross_entropy(&values(&[2, 3], 1), &[0], 1.0).unwrap_err();
    }

    #[test]
    fn binary_cross_entropy_hands_back_its_gradient() {
        let targets: Vec<f32> = (0..15).map(|i| if i % 3 == 0 { 1.0 } else { 0.0 }).collect();
        check(|logits| binary_cross_entropy(logits, &targets, 0.7).unwrap(), 0.7);
        binary_cross_entropy(&values(&[2, 3], 1), &[0.0], 1.0).unwrap_err();
    }

    #[test]
    fn certain_answers_cost_nothing_and_infinite_ones_stay_finite() {
        let logits = Tensor::new(&[[1e4_f32, -1e4], [-1e4, 1e4]], &Device::Cpu).unwrap();
        let (losses, gradient) = cross_entropy(&logits, &[0, 0], 1.0).unwrap();
        assert_eq!(losses[0], 0.0);
        assert_eq!(losses[1], 2e4);
        assert!(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|g| g.is_finite()));
    }
}
