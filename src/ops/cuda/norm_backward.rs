//! Gradients of RMS norm and layer norm, and both in candle's graph.
//!
//! Shapes: `[rows, width]`, weights `[width]`, of one format, f32 or bf16; gradients of weights are f32.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::{layer_norm, named, rms_norm};
use super::ptx;
use crate::ops::explicit::explicit;
use crate::ops::learning::{self, Learnt};

/// Threads of a block: a row each, or a part of columns.
const THREADS: u32 = 256;
/// Rows and columns of a share of a weight's gradient (`norm_backward.cu`).
const SHARE: usize = 128;
const COLUMNS: usize = 32;

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// x / √(mean(x²) + eps) · weight.
    Rms,
    /// (x - mean) / √(variance + eps) · weight + bias.
    Layer,
}

/// What a norm's backward writes.
#[derive(Debug, Clone, Copy)]
pub struct NormGradients<'a> {
    /// Added to the gradient of the input: that of what goes past the norm.
    pub beside: Option<&'a Tensor>,
    /// Of the input; may be `beside`.
    pub for_x: &'a Tensor,
    /// Of the weight, f32 `[width]`.
    pub for_weight: Option<&'a Tensor>,
    /// Of the bias of a layer norm, f32 `[width]`.
    pub for_bias: Option<&'a Tensor>,
}

fn launch_of(function: &str, grid: (usize, usize)) -> Launch<'_> {
    Launch {
        file: ("norm_backward", ptx::NORM_BACKWARD),
        function,
        grid: (grid.0 as u32, grid.1 as u32, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    }
}

/// Writes the gradients of a norm of `x` from that of its result.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn norm_backward(
    gpu: &Gpu,
    (norm, eps): (Norm, f64),
    [x, weight, gradient]: [&Tensor; 3],
    outs: NormGradients<'_>,
) -> Result<()> {
    let ((rows, width), of) = (x.dims2()?, x.dtype());
    let NormGradients { beside, for_x, for_weight, for_bias } = outs;
    for tensor in [gradient, for_x].into_iter().chain(beside) {
        if tensor.elem_count() != x.elem_count() || tensor.dtype() != of {
            bail!("a gradient {:?} of a norm of {:?}", tensor.shape(), x.shape());
        }
    }
    let sums = || for_weight.into_iter().chain(for_bias);
    let flat = sums().all(|tensor| tensor.dims() == [width] && tensor.dtype() == DType::F32);
    if weight.dims() != [width] || weight.dtype() != of || !flat || norm == Norm::Rms && for_bias.is_some() {
        bail!("a norm of {:?} with {:?}", x.shape(), weight.shape());
    }
    if rows == 0 {
        bail!("a norm of no rows");
    }
    let statistics = if sums().next().is_some() { Some(gpu.tensor((rows, 2), DType::F32)?) } else { None };
    let kernel = if norm == Norm::Rms { "rms_norm_back" } else { "layer_norm_back" };
    let [of_x, of_weight, of_gradient, to] = [x, weight, gradient, for_x].map(Argument::Tensor);
    let (of_width, eps) = (Argument::U32(width as u32), Argument::F32(eps as f32));
    let arguments = [of_x, of_weight, of_gradient, given(beside), to, given(statistics.as_ref()), of_width, eps];
    gpu.launch(launch_of(&named(kernel, [of])?, (rows, 1)), &arguments)?;
    let Some(statistics) = &statistics else { return Ok(()) };

    let parts = rows.div_ceil(SHARE);
    let shares = gpu.tensor((parts, 2, width), DType::F32)?;
    let [known, share] = [statistics, &shares].map(Argument::Tensor);
    let launch = (named("weight_shares", [of])?, (width.div_ceil(COLUMNS), parts));
    let arguments = [of_x, of_gradient, known, share, Argument::U32(rows as u32), of_width];
    gpu.launch(launch_of(&launch.0, launch.1), &arguments)?;
    let launch = launch_of("weight_sums", (width.div_ceil(THREADS as usize), 1));
    gpu.launch(launch, &[share, given(for_weight), given(for_bias), Argument::U32(parts as u32), of_width])
}

fn given(tensor: Option<&Tensor>) -> Argument<'_> {
    tensor.map_or(Argument::Nothing, Argument::Tensor)
}

impl learning::Norm<'_> {
    /// Returns x / √(mean(x²) + eps) · weight in the format of `x`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward_on(&self, gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
        let [out] = gpu.alike([x])?;
        rms_norm(gpu, x, &rounded(self.weight, x.dtype())?, f64::from(self.eps), &out)?;
        Ok(out)
    }

    /// Returns the sum of `beside` and the gradient of the input, and adds that of the weight to `learnt`.
    ///
    /// # Errors
    /// As [`Self::forward_on`].
    pub fn backward_on(
        &self,
        gpu: &Gpu,
        x: &Tensor,
        (gradient, beside): (&Tensor, &Tensor),
        learnt: &mut Vec<Learnt>,
    ) -> Result<Tensor> {
        let ([for_x], weight) = (gpu.alike([x])?, rounded(self.weight, x.dtype())?);
        let sum = self.learns.then(|| gpu.tensor(self.weight.shape(), DType::F32)).transpose()?;
        let outs = NormGradients { beside: Some(beside), for_x: &for_x, for_weight: sum.as_ref(), for_bias: None };
        norm_backward(gpu, (Norm::Rms, f64::from(self.eps)), [x, &weight, gradient], outs)?;
        learnt.extend(sum.map(|sum| (self.weight.clone(), sum)));
        Ok(for_x)
    }
}

impl learning::LayerNorm<'_> {
    /// Returns (x - mean) / √(variance + eps) · weight + bias in the format of `x`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward_on(&self, gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
        let ([out], of) = (gpu.alike([x])?, x.dtype());
        let weights = [rounded(self.weight, of)?, rounded(self.bias, of)?];
        layer_norm(gpu, x, &weights[0], &weights[1], f64::from(self.eps), &out)?;
        Ok(out)
    }

    /// Returns the sum of `beside` and the gradient of the input, and adds those of weight and bias to `learnt`.
    ///
    /// # Errors
    /// As [`Self::forward_on`].
    pub fn backward_on(
        &self,
        gpu: &Gpu,
        x: &Tensor,
        (gradient, beside): (&Tensor, &Tensor),
        learnt: &mut Vec<Learnt>,
    ) -> Result<Tensor> {
        let ([for_x], weight) = (gpu.alike([x])?, rounded(self.weight, x.dtype())?);
        let sum = |own: &Tensor| self.learns.then(|| gpu.tensor(own.shape(), DType::F32)).transpose();
        let (for_weight, for_bias) = (sum(self.weight)?, sum(self.bias)?);
        let outs = NormGradients {
            beside: Some(beside),
            for_x: &for_x,
            for_weight: for_weight.as_ref(),
            for_bias: for_bias.as_ref(),
        };
        norm_backward(gpu, (Norm::Layer, f64::from(self.eps)), [x, &weight, gradient], outs)?;
        learnt.extend(for_weight.map(|sum| (self.weight.clone(), sum)));
        learnt.extend(for_bias.map(|sum| (self.bias.clone(), sum)));
        Ok(for_x)
    }
}

/// Returns a weight in the format of the rows: in training it is f32 whatever they are.
fn rounded(weight: &Tensor, of: DType) -> Result<Tensor> {
    weight.detach().to_dtype(of)?.contiguous()
}

/// Returns a norm of rows in candle's graph, with gradients of what learns; a layer norm has a bias. `None` where there
/// are no kernels for it.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub(in crate::ops) fn norm_of(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Option<Tensor>> {
    let (Some(gpu), of) = (Gpu::of(x.device()), x.dtype()) else { return Ok(None) };
    let width = weight.elem_count();
    if !matches!(of, DType::F32 | DType::BF16) || x.elem_count() == 0 || x.dims().last() != Some(&width) {
        return Ok(None);
    }
    let rows = x.detach().contiguous()?.reshape(((), width))?;
    let (own, learns) = (rounded(weight, of)?, [weight.track_op(), bias.is_some_and(Tensor::track_op)]);
    let out = gpu.tensor(x.shape(), of)?;
    let flat = out.reshape(rows.shape())?;
    match bias {
        Some(bias) => layer_norm(&gpu, &rows, &own, &rounded(bias, of)?, eps, &flat)?,
        None => rms_norm(&gpu, &rows, &own, eps, &flat)?,
    }
    let norm = if bias.is_some() { Norm::Layer } else { Norm::Rms };
    let (shape, formats) = (x.shape().clone(), [weight.dtype(), bias.map_or(of, Tensor::dtype)]);
    let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    let inputs_count = inputs.len();
    explicit(&inputs, out, move |gradient| {
        let for_x = gpu.tensor(rows.shape(), of)?;
        let sum = |learns: bool| learns.then(|| gpu.tensor(width, DType::F32)).transpose();
        let [for_weight, for_bias] = [sum(learns[0])?, sum(learns[1])?];
        let outs =
            NormGradients { beside: None, for_x: &for_x, for_weight: for_weight.as_ref(), for_bias: for_bias.as_ref() };
        norm_backward(&gpu, (norm, eps), [&rows, &own, gradient], outs)?;
        let cast = |sum: Option<Tensor>, dtype| sum.map(|sum| sum.to_dtype(dtype)).transpose();
        let mut all = vec![Some(for_x.reshape(&shape)?), cast(for_weight, formats[0])?, cast(for_bias, formats[1])?];
        all.truncate(inputs_count);
        Ok(all)
    })
    .map(Some)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::cuda::testing::{close, gpu, values};
    use crate::ops::{layer_norm as norm_of_layers, rms_norm as norm_of_rows};

    /// Compares results and gradients with those of the CPU.
    fn compare(shape: [usize; 2], dtype: DType, norm: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor) {
        let gpu = gpu();
        let weights = values(&shape, 4);
        let run = |on: &dyn Fn(&Tensor) -> Tensor| {
            let vars = [(&shape[..], 1), (&shape[1..], 2), (&shape[1..], 3)]
                .map(|(shape, seed)| Var::from_tensor(&on(&values(shape, seed))).unwrap());
            let [x, weight, bias] = vars.each_ref().map(Var::as_tensor);
            let y = norm(x, weight, bias);
            let gradients = (&y * on(&weights)).unwrap().sum_all().unwrap().backward().unwrap();
            let gradients = vars.each_ref().map(|var| gradients.get(var.as_tensor()).cloned());
            (y.detach(), gradients)
        };
        let (expected, theirs) = run(&|x| x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap());
        let (got, ours) = run(&|x| x.to_dtype(dtype).unwrap().to_device(&gpu.device()).unwrap());
        close(&got, &expected, dtype);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours.is_some(), theirs.is_some());
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                close(ours, theirs, dtype);
            }
        }
    }

    #[test]
    fn on_gpu_norms_have_the_gradients_of_the_cpu() {
        for shape in [[1, 64], [5, 100], [300, 40], [33, 576]] {
            for dtype in [DType::F32, DType::BF16] {
                compare(shape, dtype, |x, weight, bias| norm_of_layers(x, weight, bias, 1e-5).unwrap());
                compare(shape, dtype, |x, weight, _| norm_of_rows(x, weight, 1e-5).unwrap());
                compare(shape, dtype, |x, weight, _| norm_of_rows(x, &weight.detach(), 1e-5).unwrap());
            }
        }
    }

    #[test]
    fn on_gpu_what_goes_past_a_norm_is_added() {
        let gpu = gpu();
        let [x, gradient, beside] = [1, 2, 3].map(|seed| values(&[7, 50], seed).to_device(&gpu.device()).unwrap());
        let weight = values(&[50], 4).to_device(&gpu.device()).unwrap();
        let back = |beside, for_x: &Tensor| {
            let outs = NormGradients { beside, for_x, for_weight: None, for_bias: None };
            norm_backward(&gpu, (Norm::Rms, 1e-5), [&x, &weight, &gradient], outs).unwrap();
        };
        let plain = gpu.tensor((7, 50), DType::F32).unwrap();
        back(None, &plain);
        let expected = (&plain + &beside).unwrap();
        back(Some(&beside), &beside);
        close(&beside, &expected.to_device(&candle_core::Device::Cpu).unwrap(), DType::F32);
    }
}
