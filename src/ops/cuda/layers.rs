//! Linear layers with their gradients on a GPU, in the number format of the rows: f32, or bf16 with f32 where things learn.
//!
//! No gradient and no transposed copy of a frozen weight; gradients of what learns are f32 sums of products. A weight in
//! training is f32 and is rounded for a product.
//! Shapes: `x` is `[rows, input]`, a weight `[output, input]`, Aᵀ `[input, r]`, s·Bᵀ `[r, output]`.

use candle_core::{DType, Result, Tensor, bail};

use super::device::Gpu;
use crate::ops::explicit::explicit;
use crate::ops::learning::{Layer, Learnt, Weight};
use crate::ops::linear::Linear;

/// Low-rank matrices as products take them: A `[r, input]` and s·Bᵀ `[r, output]` in the format of the rows.
struct LowRank {
    a: Tensor,
    b: Tensor,
}

impl LowRank {
    fn new((a, b): (&Tensor, &Tensor), of: DType) -> Result<Self> {
        // A lies in memory as PEFT stores it: turned back, nothing is copied but to round it.
        let a = a.detach().t()?.contiguous()?.to_dtype(of)?;
        Ok(Self { a, b: b.detach().contiguous()?.to_dtype(of)? })
    }

    fn rank(&self) -> Result<usize> {
        self.a.dim(0)
    }

    /// Adds x·Aᵀ·s·Bᵀ to `out`; returns x·Aᵀ `[rows, r]`.
    fn forward(&self, gpu: &Gpu, x: &Tensor, out: &Tensor) -> Result<Tensor> {
        let ((rows, _), rank) = (x.dims2()?, self.rank()?);
        let inner = gpu.tensor((rows, rank), x.dtype())?;
        gpu.product(x, &self.a, 0.0, &inner)?;
        gpu.gemm([(&inner, false), (&self.b, false)], (rows, self.b.dim(1)?, rank), 1.0, out)?;
        Ok(inner)
    }

    /// Adds the gradient of `x` to `for_x`; returns those of Aᵀ and s·Bᵀ, f32.
    fn backward(&self, gpu: &Gpu, [x, inner]: [&Tensor; 2], gradient: &Tensor, for_x: &Tensor) -> Result<[Tensor; 2]> {
        let ((rows, input), (rank, output)) = (x.dims2()?, self.b.dims2()?);
        let for_inner = gpu.tensor((rows, rank), x.dtype())?;
        gpu.product(gradient, &self.b, 0.0, &for_inner)?;
        gpu.gemm([(&for_inner, false), (&self.a, false)], (rows, input, rank), 1.0, for_x)?;
        // As PEFT stores them: what is learnt are their transposes.
        let (for_a, for_b) = (gpu.tensor((rank, input), DType::F32)?, gpu.tensor((output, rank), DType::F32)?);
        gpu.gemm([(&for_inner, true), (x, false)], (rank, input, rows), 0.0, &for_a)?;
        gpu.gemm([(gradient, true), (inner, false)], (output, rank, rows), 0.0, &for_b)?;
        Ok([for_a.t()?, for_b.t()?])
    }
}

/// Returns the weight of a layer in the format of the rows.
fn rounded(weight: &Tensor, of: DType) -> Result<Tensor> {
    let flat = if weight.rank() == 2 { weight.detach() } else { weight.detach().flatten_from(1)? };
    flat.contiguous()?.to_dtype(of)
}

/// Returns gradient·W for a weight in the format of the gradient; added to `beside`, which it takes the place of.
fn back(gpu: &Gpu, gradient: &Tensor, weight: &Tensor, beside: Option<Tensor>) -> Result<Tensor> {
    let ((rows, _), (output, input)) = (gradient.dims2()?, weight.dims2()?);
    let keep = if beside.is_some() { 1.0 } else { 0.0 };
    let for_x = match beside {
        Some(beside) => beside,
        None => gpu.tensor((rows, input), gradient.dtype())?,
    };
    gpu.gemm([(gradient, false), (weight, false)], (rows, input, output), keep, &for_x)?;
    Ok(for_x)
}

/// Returns gradientᵀ·x, the gradient of a weight, f32.
fn of_weight(gpu: &Gpu, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let ((rows, input), output) = (x.dims2()?, gradient.dim(1)?);
    let for_weight = gpu.tensor((output, input), DType::F32)?;
    gpu.gemm([(gradient, true), (x, false)], (output, input, rows), 0.0, &for_weight)?;
    Ok(for_weight)
}

impl Layer<'_> {
    /// Returns the product `[rows, output]`, and x·Aᵀ `[rows, r]` for the backward where there is an adapter.
    ///
    /// # Errors
    /// When shapes or formats do not fit, or the device fails.
    pub fn forward_on(&self, gpu: &Gpu, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let (rows, of) = (x.dim(0)?, x.dtype());
        let weight = match self.weight {
            Weight::Frozen(weight, _) => weight.to_dense(x)?,
            Weight::Whole(weight) => rounded(weight, of)?,
        };
        let out = gpu.tensor((rows, weight.dim(0)?), of)?;
        gpu.product(x, &weight, 0.0, &out)?;
        let inner = match self.weight {
            Weight::Frozen(_, Some(change)) => Some(LowRank::new(change, of)?.forward(gpu, x, &out)?),
            Weight::Frozen(_, None) | Weight::Whole(_) => None,
        };
        let out = match self.bias {
            Some((bias, _)) => out.broadcast_add(&bias.detach().to_dtype(of)?)?,
            None => out,
        };
        Ok((out, inner))
    }

    /// Returns the gradient of the input, added to another one where that is given, and adds to `learnt` those of what
    /// learns; `inner` is that of the forward.
    ///
    /// # Errors
    /// As [`Self::forward_on`].
    pub fn backward_on(
        &self,
        gpu: &Gpu,
        (x, inner): (&Tensor, Option<&Tensor>),
        (gradient, beside): (&Tensor, Option<Tensor>),
        learnt: &mut Vec<Learnt>,
    ) -> Result<Tensor> {
        let of = x.dtype();
        if let Some((bias, true)) = self.bias {
            learnt.push((bias.clone(), gradient.to_dtype(DType::F32)?.sum(0)?));
        }
        match (self.weight, inner) {
            (Weight::Whole(weight), _) => {
                learnt.push((weight.clone(), of_weight(gpu, x, gradient)?.reshape(weight.shape())?));
                back(gpu, gradient, &rounded(weight, of)?, beside)
            }
            (Weight::Frozen(weight, None), _) => back(gpu, gradient, &weight.to_dense(gradient)?, beside),
            (Weight::Frozen(weight, Some((a, b))), Some(inner)) => {
                let for_x = back(gpu, gradient, &weight.to_dense(gradient)?, beside)?;
                let change = LowRank::new((a, b), of)?;
                let [for_a, for_b] = change.backward(gpu, [x, inner], gradient, &for_x)?;
                learnt.extend([(a.clone(), for_a), (b.clone(), for_b)]);
                Ok(for_x)
            }
            (Weight::Frozen(_, Some(_)), None) => bail!("a backward of an adapter without its forward"),
        }
    }
}

fn known(x: &Tensor) -> bool {
    matches!(x.dtype(), DType::F32 | DType::BF16) && x.rank() == 2
}

/// Returns x·Wᵀ + (x·a)·b + bias in candle's graph, with gradients of `x`, `a` and `b` only, those of `a` and `b` f32;
/// `None` where that is not known.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub(in crate::ops) fn adapted(
    weight: &Linear,
    x: &Tensor,
    (a, b): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let (Some(gpu), true) = (Gpu::of(x.device()), known(x)) else { return Ok(None) };
    let [frozen, of_x, of_a, of_b] = [x.detach().contiguous()?, x.detach().contiguous()?, a.detach(), b.detach()];
    let bias = bias.map(Tensor::detach);
    let layer =
        Layer { weight: Weight::Frozen(weight, Some((&of_a, &of_b))), bias: bias.as_ref().map(|bias| (bias, false)) };
    let (out, inner) = layer.forward_on(&gpu, &frozen)?;
    let weight = weight.clone();
    explicit(&[x, a, b], out, move |gradient| {
        let layer = Layer { weight: Weight::Frozen(&weight, Some((&of_a, &of_b))), bias: None };
        let mut learnt = Vec::with_capacity(2);
        let for_x = layer.backward_on(&gpu, (&of_x, inner.as_ref()), (gradient, None), &mut learnt)?;
        Ok([for_x].into_iter().chain(learnt.into_iter().map(|(_, gradient)| gradient)).map(Some).collect())
    })
    .map(Some)
}

/// Returns x·Wᵀ in candle's graph for a weight `[output, input]`, f32 whatever the rows are, that may be in training:
/// with gradients of both, the weight's f32. `None` where that is not known.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub(in crate::ops) fn dense(x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
    let (Some(gpu), true) = (Gpu::of(x.device()), known(x) && weight.rank() == 2) else { return Ok(None) };
    let (of_x, of_weight_, learns) = (x.detach().contiguous()?, weight.detach(), weight.track_op());
    let own = rounded(&of_weight_, x.dtype())?;
    let out = gpu.tensor((x.dim(0)?, own.dim(0)?), x.dtype())?;
    gpu.product(&of_x, &own, 0.0, &out)?;
    explicit(&[x, weight], out, move |gradient| {
        let for_weight = learns.then(|| of_weight(&gpu, &of_x, gradient)?.to_dtype(of_weight_.dtype())).transpose()?;
        Ok(vec![Some(back(&gpu, gradient, &rounded(&of_weight_, gradient.dtype())?, None)?), for_weight])
    })
    .map(Some)
}
