//! AdamW with decoupled weight decay, in f32, as torch's.
//!
//! Knows neither models nor learning rates' schedules. On the CPU weights and moments are changed in place, one pass
//! each; on GPUs all of a part in one launch; elsewhere by tensor operations.
//! After: Loshchilov and Hutter 2019 (arXiv 1711.05101), torch 2.15 `optim/adamw.py`.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::parameters::Parameter;
use crate::ops::cpu::steps;
#[cfg(feature = "cuda")]
use crate::ops::cuda::{self, Gpu, Trained, Update, adamw};
use crate::ops::with_slices;

/// Values that one thread changes at a time.
const CHUNK: usize = 1 << 14;

/// Constants of the optimiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constants {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
    /// λ of the decay.
    pub weight_decay: f64,
}

/// The moments of one parameter.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Mean of gradients.
    pub m: Tensor,
    /// Mean of squared gradients.
    pub v: Tensor,
}

/// AdamW over a list of parameters.
#[derive(Debug)]
pub struct AdamW {
    constants: Constants,
    /// Updates done or begun.
    pub steps: u64,
    /// In the order of the parameters.
    pub moments: Vec<Moments>,
}

impl AdamW {
    /// Begins with moments of zero.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(parameters: &[Parameter], constants: Constants) -> Result<Self> {
        let zero = |parameter: &Parameter| {
            let var = parameter.var.as_tensor();
            Ok(Moments { m: var.zeros_like()?, v: var.zeros_like()? })
        };
        Ok(Self { constants, steps: 0, moments: parameters.iter().map(zero).collect::<Result<_>>()? })
    }

    /// Changes a part of the parameters by their gradients times `factor`; `rate` is the learning rate. The update counts in
    /// `steps` already.
    ///
    /// # Errors
    /// When a gradient has another shape, or the device fails.
    pub fn update(
        &mut self,
        part: Range<usize>,
        parameters: &[Parameter],
        gradients: &[Tensor],
        (factor, rate): (f64, f64),
    ) -> Result<()> {
        let Constants { beta1, beta2, epsilon, weight_decay } = self.constants;
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (correction1, correction2) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
        #[cfg(feature = "cuda")]
        if let Some(gpu) = parameters.first().and_then(|first| Gpu::of(first.var.device())) {
            let update = Update {
                factor,
                betas: [beta1, beta2],
                keep: 1.0 - rate * weight_decay,
                step: rate / correction1,
                root: correction2.sqrt(),
                epsilon,
            };
            return self.update_on(&gpu, (part, parameters), gradients, update);
        }
        let all = parameters.iter().zip(gradients).zip(&mut self.moments);
        for ((parameter, gradient), moments) in all.skip(part.start).take(part.len()) {
            let change = Change {
                keep: if parameter.decays { 1.0 - rate * weight_decay } else { 1.0 },
                step: rate / correction1,
                root: correction2.sqrt(),
                epsilon,
            };
            if gradient.dims() != parameter.var.dims() {
                bail!("the gradient of {} has shape {:?}", parameter.name, gradient.dims());
            }
            let gradient = gradient.contiguous()?;
            if gradient.device().is_cpu() {
                moments.m.inplace_op2(&gradient, &Blend { beta: beta1, factor, square: false })?;
                moments.v.inplace_op2(&gradient, &Blend { beta: beta2, factor, square: true })?;
                parameter.var.as_tensor().inplace_op3(&moments.m, &moments.v, &change)?;
            } else {
                let gradient = (gradient * factor)?;
                moments.m = ((&moments.m * beta1)? + (&gradient * (1.0 - beta1))?)?;
                moments.v = ((&moments.v * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
                change.by_tensors(&parameter.var, moments)?;
            }
        }
        Ok(())
    }

    /// The same in one launch.
    #[cfg(feature = "cuda")]
    fn update_on(
        &self,
        gpu: &Gpu,
        (part, parameters): (Range<usize>, &[Parameter]),
        gradients: &[Tensor],
        update: Update,
    ) -> Result<()> {
        let all = parameters.iter().zip(gradients).zip(&self.moments);
        let mut trained = Vec::with_capacity(part.len());
        for ((parameter, gradient), moments) in all.skip(part.start).take(part.len()) {
            if gradient.dims() != parameter.var.dims() {
                bail!("the gradient of {} has shape {:?}", parameter.name, gradient.dims());
            }
            let moments = [&moments.m, &moments.v];
            trained.push(Trained { weight: parameter.var.as_tensor(), gradient, moments, decays: parameter.decays });
        }
        adamw(gpu, &trained, update)
    }
}

/// Returns the sum of squares of each tensor.
///
/// # Errors
/// When the device fails.
pub(super) fn squares(tensors: &[Tensor]) -> Result<Vec<f32>> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = tensors.first().and_then(|first| Gpu::of(first.device())) {
        return cuda::squares(&gpu, tensors);
    }
    let square = |tensor: &Tensor| {
        if !tensor.device().is_cpu() {
            return tensor.sqr()?.sum_all()?.to_scalar::<f32>();
        }
        with_slices([tensor], |[values]| {
            let parts: Vec<f32> = values.par_chunks(CHUNK).map(|part| steps::dot(part, part)).collect();
            Ok(parts.iter().map(|part| f64::from(*part)).sum::<f64>() as f32)
        })
    };
    tensors.iter().map(square).collect()
}

/// moment ← β·moment + (1-β)·(factor·g), or its square.
struct Blend {
    beta: f64,
    factor: f64,
    square: bool,
}

impl InplaceOp2 for Blend {
    fn name(&self) -> &'static str {
        "blend"
    }

    fn cpu_fwd(&self, moment: &mut CpuStorage, lm: &Layout, gradient: &CpuStorage, lg: &Layout) -> Result<()> {
        let (beta, rest, factor) = (self.beta as f32, (1.0 - self.beta) as f32, self.factor as f32);
        let gradient = values(gradient, lg)?;
        values_mut(moment, lm)?.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).for_each(
            |(moments, gradients)| {
                for (moment, g) in moments.iter_mut().zip(gradients) {
                    let g = g * factor;
                    *moment = beta * *moment + rest * if self.square { g * g } else { g };
                }
            },
        );
        Ok(())
    }
}

/// w ← keep·w - step·m / (√v/root + ε).
struct Change {
    keep: f64,
    step: f64,
    root: f64,
    epsilon: f64,
}

impl Change {
    fn by_tensors(&self, var: &Var, moments: &Moments) -> Result<()> {
        let below = ((moments.v.sqrt()? / self.root)? + self.epsilon)?;
        var.set(&((var.as_tensor() * self.keep)? - (moments.m.div(&below)? * self.step)?)?)
    }
}

impl InplaceOp3 for Change {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        lw: &Layout,
        m: &CpuStorage,
        lm: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<()> {
        let (keep, step) = (self.keep as f32, self.step as f32);
        let (root, epsilon) = (self.root as f32, self.epsilon as f32);
        let moments = values(m, lm)?.par_chunks(CHUNK).zip(values(v, lv)?.par_chunks(CHUNK));
        values_mut(weight, lw)?.par_chunks_mut(CHUNK).zip(moments).for_each(|(weights, (m, v))| {
            for (weight, (m, v)) in weights.iter_mut().zip(m.iter().zip(v)) {
                *weight = keep * *weight - step * m / (v.sqrt() / root + epsilon);
            }
        });
        Ok(())
    }
}

pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => bail!("a tensor in training is not f32 in one piece"),
    }
}

pub(super) fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => bail!("a tensor in training is not f32 in one piece"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Three updates by hand, in f64.
    #[test]
    fn updates_follow_the_paper_and_both_forms_agree() {
        let constants = Constants { beta1: 0.9, beta2: 0.99, epsilon: 1e-3, weight_decay: 0.1 };
        let var = Var::new(&[1.0_f32, -2.0], &Device::Cpu).unwrap();
        let other = Var::new(&[1.0_f32, -2.0], &Device::Cpu).unwrap();
        let parameters = [Parameter { name: "w".into(), var: var.clone(), decays: true }];
        let mut adamw = AdamW::new(&parameters, constants).unwrap();
        let (mut w, mut m, mut v) = ([1.0_f64, -2.0], [0.0; 2], [0.0; 2]);
        for step in 1..=3 {
            let g = [0.3 * f64::from(step), -1.7];
            let gradient = Tensor::new(&[g[0] as f32, g[1] as f32], &Device::Cpu).unwrap();
            adamw.steps += 1;
            adamw.update(0..1, &parameters, &[gradient], (0.5, 0.01)).unwrap();
            for i in 0..2 {
                let g = g[i] * 0.5;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let (c1, c2) = (1.0 - 0.9_f64.powi(step), 1.0 - 0.99_f64.powi(step));
                w[i] = w[i] * (1.0 - 0.01 * 0.1) - 0.01 / c1 * m[i] / ((v[i] / c2).sqrt() + 1e-3);
            }
            let got = var.to_vec1::<f32>().unwrap();
            assert!(got.iter().zip(w).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{got:?} {w:?}");
            let (c1, c2) = (1.0 - 0.9_f64.powi(step), 1.0 - 0.99_f64.powi(step));
            let change = Change { keep: 1.0 - 0.001, step: 0.01 / c1, root: c2.sqrt(), epsilon: 1e-3 };
            change.by_tensors(&other, &adamw.moments[0]).unwrap();
            let other = other.to_vec1::<f32>().unwrap();
            assert!(got.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}
