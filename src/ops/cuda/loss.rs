//! Losses with the gradients that they hand back to the logits.
//!
//! Shapes: logits and their gradient `[rows, classes]`, f32 or bf16; losses f32 `[rows]`. Logits stay on the device: what
//! comes back is a number a row.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;

/// Threads of a block: a row each.
const THREADS: u32 = 512;

/// What a row should be.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a> {
    /// One class: u32 `[rows]`, each below the number of classes.
    Class(&'a Tensor),
    /// 0 or 1 for each class: f32 `[rows, classes]`.
    Each(&'a Tensor),
}

/// Writes the loss of each row to `losses`, and to `gradient`, if there is one, that of Σ weight·loss; it may be `logits`.
/// With one class the loss is `-log softmax(logits)[target]`, else the mean of the binary cross-entropies.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn cross_entropy(
    gpu: &Gpu,
    logits: &Tensor,
    targets: Targets<'_>,
    weight: f32,
    (losses, gradient): (&Tensor, Option<&Tensor>),
) -> Result<()> {
    let (rows, classes) = logits.dims2()?;
    let (kernel, target, count, dtype) = match targets {
        Targets::Class(targets) => ("cross_entropy", targets, rows, DType::U32),
        Targets::Each(targets) => ("binary_cross_entropy", targets, rows * classes, DType::F32),
    };
    if target.elem_count() != count || target.dtype() != dtype || losses.dims() != [rows] {
        bail!("targets {:?} and losses {:?} for logits {:?}", target.shape(), losses.shape(), logits.shape());
    }
    let fits = |gradient: &Tensor| gradient.dims() == logits.dims() && gradient.dtype() == logits.dtype();
    if !gradient.is_none_or(fits) || losses.dtype() != DType::F32 {
        bail!("losses {:?} and a gradient {:?} of logits {:?}", losses, gradient, logits.shape());
    }
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch {
        file: ("loss", ptx::LOSS),
        function: &named(kernel, [logits.dtype()])?,
        grid: (rows as u32, 1, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    let [logits, target, losses] = [logits, target, losses].map(Argument::Tensor);
    let gradient = gradient.map_or(Argument::Nothing, Argument::Tensor);
    gpu.launch(launch, &[logits, target, losses, gradient, Argument::U32(classes as u32), Argument::F32(weight)])
}

/// Returns the losses of rows and the gradient of the logits, both new; `targets` are on the CPU or the device.
///
/// # Errors
/// As [`cross_entropy`].
pub(in crate::ops) fn losses_of(
    gpu: &Gpu,
    logits: &Tensor,
    targets: Targets<'_>,
    weight: f32,
) -> Result<(Vec<f64>, Tensor)> {
    let logits = logits.detach().contiguous()?;
    let losses = gpu.tensor(logits.dim(0)?, DType::F32)?;
    let gradient = gpu.tensor(logits.shape(), logits.dtype())?;
    let device = gpu.device();
    match targets {
        Targets::Class(targets) => {
            let targets = targets.to_device(&device)?;
            cross_entropy(gpu, &logits, Targets::Class(&targets), weight, (&losses, Some(&gradient)))?;
        }
        Targets::Each(targets) => {
            let targets = targets.to_device(&device)?;
            cross_entropy(gpu, &logits, Targets::Each(&targets), weight, (&losses, Some(&gradient)))?;
        }
    }
    Ok((losses.to_vec1::<f32>()?.into_iter().map(f64::from).collect(), gradient))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::testing::{close, gpu, values};
    use crate::ops::{binary_cross_entropy as each, cross_entropy as of_class};

    fn compare(logits: &Tensor, dtype: DType, loss: impl Fn(&Tensor) -> (Vec<f64>, Tensor)) {
        let rounded = logits.to_dtype(dtype).unwrap();
        let (expected, theirs) = loss(&rounded.to_dtype(DType::F32).unwrap());
        let (got, ours) = loss(&rounded.to_device(&gpu().device()).unwrap());
        close(&ours, &theirs, dtype);
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-5 * expected.abs().max(1.0), "{got} instead of {expected}");
        }
    }

    #[test]
    fn on_gpu_losses_and_gradients_are_those_of_the_cpu() {
        for (rows, classes) in [(1, 2), (3, 5), (7, 1000), (2, 49153)] {
            let logits = (values(&[rows, classes], 1) * 5.0).unwrap();
            let targets: Vec<u32> = (0..rows).map(|row| ((row + 1) * classes / 3 % classes) as u32).collect();
            let wanted: Vec<f32> = (0..rows * classes).map(|i| if i % 3 == 0 { 1.0 } else { 0.0 }).collect();
            for dtype in [DType::F32, DType::BF16] {
                compare(&logits, dtype, |logits| of_class(logits, &targets, 0.7).unwrap());
                compare(&logits, dtype, |logits| each(logits, &wanted, 0.7).unwrap());
            }
        }
    }

    #[test]
    fn on_gpu_certain_answers_cost_nothing_and_infinite_ones_stay_finite() {
        let logits = Tensor::new(&[[1e4_f32, -1e4], [-1e4, 1e4]], &gpu().device()).unwrap();
        let (losses, gradient) = of_class(&logits, &[0, 0], 1.0).unwrap();
        assert_eq!(losses, [0.0, 2e4]);
        assert!(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|g| g.is_finite()));
        of_class(&logits, &[0, 2], 1.0).unwrap_err();
    }
}
