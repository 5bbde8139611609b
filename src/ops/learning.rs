//! Linear layers and norms with their gradients on slices: what a block's own backward on the CPU is made of.
//!
//! No graph, no tensor of zeros, no gradient of a frozen weight. Which layers a block has is the model's business.
//! Shapes: rows packed `[rows, input]`; all f32.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::buffer::Buffer;
use super::cpu::{View, dots, multiply, multiply_rows, product_transposed, steps, threads, transpose};
use super::elements::sum_of_rows;
use super::layer_norm::of_weight;
use super::linear::{Linear, trained_product};
use super::slices::{is_plain, with_slices};

/// Rows that a thread takes at a time.
const ROWS: usize = 64;
/// Rows whose share of a gradient of a low-rank matrix is summed by itself.
const SHARE: usize = 256;

/// A tensor in training, and its gradient.
pub type Learnt = (Tensor, Tensor);

/// A linear layer in training.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Its weight.
    pub weight: Weight<'a>,
    /// Its bias `[output]`, and whether that learns.
    pub bias: Option<(&'a Tensor, bool)>,
}

/// The weight of a layer in training.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// The base's own; with Aᵀ `[input, r]` and s·Bᵀ `[r, output]` of an adapter, the tensors that learn.
    Frozen(&'a Linear, Option<(&'a Tensor, &'a Tensor)>),
    /// One that learns itself, `[output, input]`.
    Whole(&'a Tensor),
}

impl Layer<'_> {
    /// Returns whether it can be computed here, or by `cuda`: dense or quantised weights with kernels.
    pub fn is_known(&self) -> bool {
        // Whatever the format on a GPU: it becomes that of the rows.
        let known = |tensor: &Tensor| is_plain(tensor) || tensor.device().is_cuda();
        let weight = match self.weight {
            Weight::Frozen(weight, _) => weight.packed().is_some() || weight.is_on_gpu(),
            Weight::Whole(weight) => known(weight),
        };
        weight && self.bias.is_none_or(|(bias, _)| known(bias))
    }

    /// Returns the product `[rows, output]`, and x·Aᵀ `[rows, r]` for the backward.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &[f32], rows: usize) -> Result<(Buffer, Buffer)> {
        let (mut out, inner) = self.weight.forward(x, rows)?;
        if let Some((bias, _)) = self.bias {
            with_slices([bias], |[bias]| {
                threads::add_bias(&mut out, bias);
                Ok(())
            })?;
        }
        Ok((out, inner))
    }

    /// Returns the gradient of the input, and adds to `learnt` those of what learns; `inner` is that of the forward.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn backward(
        &self,
        seen: (&[f32], &[f32]),
        gradient: &[f32],
        rows: usize,
        learnt: &mut Vec<Learnt>,
    ) -> Result<Buffer> {
        if let Some((bias, true)) = self.bias {
            let width = bias.elem_count();
            learnt.push((bias.clone(), Tensor::from_vec(sum_of_rows(gradient, width), width, &Device::Cpu)?));
        }
        self.weight.backward(seen, gradient, rows, learnt)
    }
}

impl Weight<'_> {
    fn forward(&self, x: &[f32], rows: usize) -> Result<(Buffer, Buffer)> {
        match self {
            Self::Whole(weight) => {
                let (output, input) = weight.dims2()?;
                let mut out = Buffer::new(rows * output);
                with_slices([weight], |[weight]| {
                    Ok(multiply(view(x, (rows, input))?, turned(weight, (input, output))?, &mut out, false)?)
                })?;
                Ok((out, Buffer::default()))
            }
            Self::Frozen(weight, change) => {
                let packed = known(weight)?;
                let mut out = Buffer::new(rows * packed.outputs());
                trained_product(packed, x, rows, &mut out)?;
                let Some((a, b)) = change else { return Ok((out, Buffer::default())) };
                let (input, rank) = a.dims2()?;
                let mut inner = Buffer::new(rows * rank);
                with_slices([&a.t()?, b], |[a, b]| {
                    dots_of(x, (a, input), &mut inner)?;
                    add_low_rank(&inner, rank, b, &mut out)
                })?;
                Ok((out, inner))
            }
        }
    }

    fn backward(
        &self,
        (x, inner): (&[f32], &[f32]),
        gradient: &[f32],
        rows: usize,
        learnt: &mut Vec<Learnt>,
    ) -> Result<Buffer> {
        match self {
            Self::Whole(weight) => {
                let (output, input) = weight.dims2()?;
                let (mut for_x, mut for_weight) = (Buffer::new(rows * input), Buffer::new(output * input));
                with_slices([weight], |[weight]| {
                    multiply(view(gradient, (rows, output))?, view(weight, (output, input))?, &mut for_x, false)?;
                    // Laid out anew: columns of many rows are far apart.
                    let mut turned = Buffer::new(gradient.len());
                    transpose(gradient, rows, output, &mut turned);
                    Ok(multiply(view(&turned, (output, rows))?, view(x, (rows, input))?, &mut for_weight, false)?)
                })?;
                learnt
                    .push(((*weight).clone(), Tensor::from_vec(for_weight.into_vec(), (output, input), &Device::Cpu)?));
                Ok(for_x)
            }
            Self::Frozen(weight, change) => {
                let packed = known(weight)?;
                let mut for_x = Buffer::new(rows * packed.inputs());
                product_transposed(packed, gradient, rows, &mut for_x)?;
                let Some((a, b)) = change else { return Ok(for_x) };
                let ((input, rank), output) = (a.dims2()?, b.dim(1)?);
                let mut for_inner = Buffer::new(rows * rank);
                with_slices([&a.t()?, b], |[a, b]| {
                    dots_of(gradient, (b, output), &mut for_inner)?;
                    add_low_rank(&for_inner, rank, a, &mut for_x)
                })?;
                let for_a = Tensor::from_vec(across(&for_inner, rank, x)?, (rank, input), &Device::Cpu)?.t()?;
                let for_b = Tensor::from_vec(across(inner, rank, gradient)?, (rank, output), &Device::Cpu)?;
                learnt.extend([((*a).clone(), for_a), ((*b).clone(), for_b)]);
                Ok(for_x)
            }
        }
    }
}

fn known(weight: &Linear) -> Result<&super::cpu::Packed> {
    let Some(packed) = weight.packed() else { bail!("a weight without kernels of our own") };
    Ok(packed)
}

pub(super) fn view(data: &[f32], shape: (usize, usize)) -> Result<View<'_>> {
    let Some(view) = View::new(data, shape, (shape.1, 1)) else { bail!("{} numbers are not {shape:?}", data.len()) };
    Ok(view)
}

/// The transpose of what lies there, whose shape is `shape`.
pub(super) fn turned(data: &[f32], shape: (usize, usize)) -> Result<View<'_>> {
    let Some(view) = View::new(data, shape, (1, shape.0)) else { bail!("{} numbers are not {shape:?}", data.len()) };
    Ok(view)
}

/// Writes x·aᵀ; `a` is `[r, inputs]`.
fn dots_of(x: &[f32], (a, inputs): (&[f32], usize), out: &mut [f32]) -> Result<()> {
    let rank = a.len() / inputs.max(1);
    let parts = x.par_chunks((ROWS * inputs).max(1)).zip(out.par_chunks_mut((ROWS * rank).max(1)));
    parts.try_for_each(|(x, out)| Ok(dots((x, x.len() / inputs, inputs), (a, inputs), out)?))
}

/// Adds inner·b to `out`, rows of it on each thread; `inner` is `[rows, rank]`, `b` `[rank, width]`.
pub(super) fn add_low_rank(inner: &[f32], rank: usize, b: &[f32], out: &mut [f32]) -> Result<()> {
    let width = b.len() / rank.max(1);
    if width == 0 {
        return Ok(());
    }
    out.par_chunks_mut(ROWS * width).zip(inner.par_chunks(ROWS * rank)).try_for_each(|(out, inner)| {
        Ok(multiply_rows((inner, inner.len() / rank, rank), (b, width), (out, width), true)?)
    })
}

/// Returns innerᵀ·x, `[rank, width]`: shares of rows, added in their order.
fn across(inner: &[f32], rank: usize, x: &[f32]) -> Result<Vec<f32>> {
    let rows = inner.len() / rank.max(1);
    let width = x.len() / rows.max(1);
    let share = |(inner, x): (&[f32], &[f32])| {
        let count = inner.len() / rank;
        let turned: Vec<f32> = (0..inner.len()).map(|i| inner[i % count * rank + i / count]).collect();
        let mut out = vec![0.0; rank * width];
        multiply_rows((&turned, rank, count), (x, width), (&mut out, width), false)?;
        Ok(out)
    };
    let shares = inner.par_chunks((SHARE * rank).max(1)).zip(x.par_chunks((SHARE * width).max(1)));
    let shares: Vec<Vec<f32>> = shares.map(share).collect::<Result<_>>()?;
    let mut sum = vec![0.0; rank * width];
    shares.iter().for_each(|share| steps::add(&mut sum, share));
    Ok(sum)
}

/// A norm in training: its weight `[hidden]`, and whether it learns.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// The base's or the adapter's.
    pub weight: &'a Tensor,
    /// Whether its gradient is wanted.
    pub learns: bool,
    /// Added to the mean of squares.
    pub eps: f32,
}

impl Norm<'_> {
    /// Returns x / √(mean(x²) + eps) · weight.
    ///
    /// # Errors
    /// When the weight is not f32 on the CPU.
    pub fn forward(&self, x: &[f32]) -> Result<Buffer> {
        let mut out = Buffer::new(x.len());
        with_slices([self.weight], |[weight]| {
            threads::rms_norm(x, weight, self.eps, &mut out);
            Ok(())
        })?;
        Ok(out)
    }

    /// Returns the gradient of the input, and adds that of the weight to `learnt`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn backward(&self, x: &[f32], gradient: &[f32], learnt: &mut Vec<Learnt>) -> Result<Buffer> {
        let mut for_x = Buffer::new(x.len());
        with_slices([self.weight], |[weight]| {
            let width = weight.len().max(1);
            let parts = x.par_chunks(ROWS * width).zip(gradient.par_chunks(ROWS * width));
            parts.clone().zip(for_x.par_chunks_mut(ROWS * width)).for_each(|((x, gradient), out)| {
                let rows = x.chunks_exact(width).zip(gradient.chunks_exact(width)).zip(out.chunks_exact_mut(width));
                rows.for_each(|((x, g), out)| steps::rms_norm_backward(x, weight, self.eps, g, out));
            });
            if self.learns {
                let share = |(x, gradient): (&[f32], &[f32])| {
                    let mut sum = vec![0.0; width];
                    for (x, gradient) in x.chunks_exact(width).zip(gradient.chunks_exact(width)) {
                        let mean = x.iter().map(|x| x * x).sum::<f32>() / width as f32;
                        let inverse = 1.0 / (mean + self.eps).sqrt();
                        sum.iter_mut().zip(x).zip(gradient).for_each(|((sum, x), g)| *sum += g * x * inverse);
                    }
                    sum
                };
                let shares: Vec<Vec<f32>> = parts.map(share).collect();
                let mut sum = vec![0.0; width];
                shares.iter().for_each(|share| steps::add(&mut sum, share));
                learnt.push((self.weight.clone(), Tensor::from_vec(sum, width, &Device::Cpu)?));
            }
            Ok(())
        })?;
        Ok(for_x)
    }
}

/// A layer norm in training: its weight and bias `[hidden]`, and whether they learn.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// The base's or the adapter's.
    pub weight: &'a Tensor,
    /// Of the same.
    pub bias: &'a Tensor,
    /// Whether their gradients are wanted.
    pub learns: bool,
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// Returns (x - mean) / √(variance + eps) · weight + bias of each row.
    ///
    /// # Errors
    /// When weight and bias are not f32 on the CPU.
    pub fn forward(&self, x: &[f32]) -> Result<Buffer> {
        let mut out = Buffer::new(x.len());
        with_slices([self.weight, self.bias], |parts| {
            threads::layer_norm(x, parts.into(), self.eps, &mut out);
            Ok(())
        })?;
        Ok(out)
    }

    /// Returns the gradient of the input, and adds those of weight and bias to `learnt`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn backward(&self, x: &[f32], gradient: &[f32], learnt: &mut Vec<Learnt>) -> Result<Buffer> {
        let width = self.weight.elem_count();
        if self.learns {
            let of = |numbers: Vec<f32>| Tensor::from_vec(numbers, width, &Device::Cpu);
            learnt.push((self.weight.clone(), of(of_weight(x, gradient, width, self.eps))?));
            learnt.push((self.bias.clone(), of(sum_of_rows(gradient, width))?));
        }
        let mut for_x = Buffer::new(x.len());
        with_slices([self.weight], |[weight]| {
            threads::layer_norm_backward(x, weight, self.eps, gradient, &mut for_x);
            Ok(())
        })?;
        Ok(for_x)
    }
}

#[cfg(test)]
mod tests {
    use super::super::explicit::explicit;
    use super::super::fused::tests::{both_forms_agree, values};
    use super::*;

    /// A layer of 5 inputs and 6 outputs: low-rank beside a frozen weight, or whole.
    #[derive(Clone)]
    struct Parts {
        linear: Linear,
        a: Tensor,
        b: Tensor,
        whole: Option<Tensor>,
        bias: Tensor,
    }

    impl Parts {
        fn new(whole: bool) -> Self {
            let whole = whole.then(|| values(&[6, 5], 1));
            let linear = Linear::dense(values(&[6, 5], 1));
            Self { linear, a: values(&[5, 2], 2), b: values(&[2, 6], 3), whole, bias: values(&[6], 4) }
        }

        fn layer(&self) -> Layer<'_> {
            let weight = match &self.whole {
                Some(whole) => Weight::Whole(whole),
                None => Weight::Frozen(&self.linear, Some((&self.a, &self.b))),
            };
            Layer { weight, bias: Some((&self.bias, true)) }
        }
    }

    /// The gradient of `of`: that of the input, or one that was learnt.
    fn gradient(of: &Tensor, x: &Tensor, for_x: Buffer, learnt: Vec<Learnt>) -> Result<Vec<Option<Tensor>>> {
        if of.id() == x.id() {
            return Ok(vec![Some(Tensor::from_vec(for_x.into_vec(), x.shape(), &Device::Cpu)?)]);
        }
        let own = learnt.into_iter().find(|(tensor, _)| tensor.id() == of.id());
        own.map(|(_, gradient)| vec![Some(gradient)]).ok_or_else(|| candle_core::Error::msg("nothing was learnt"))
    }

    /// The layer's product, whose backward is asked for the gradient of `of` alone.
    fn product(parts: &Parts, x: &Tensor, of: &Tensor) -> Tensor {
        let rows = x.dim(0).unwrap();
        let (out, inner) = with_slices([x], |[x]| parts.layer().forward(x, rows)).unwrap();
        let value = Tensor::from_vec(out.into_vec(), (rows, 6), &Device::Cpu).unwrap();
        let (parts, x, own) = (parts.clone(), x.clone(), of.clone());
        let backward = move |g: &Tensor| {
            let mut learnt = Vec::new();
            let for_x = with_slices([&x, g], |[x, g]| parts.layer().backward((x, &inner), g, rows, &mut learnt))?;
            gradient(&own, &x, for_x, learnt)
        };
        explicit(&[of], value, backward).unwrap()
    }

    #[test]
    fn layers_have_the_gradients_of_finite_differences() {
        let x = values(&[7, 5], 9);
        for whole in [false, true] {
            let parts = Parts::new(whole);
            both_forms_agree(&[7, 5], |x| product(&parts, x, x));
            both_forms_agree(&[6], |bias| product(&Parts { bias: bias.clone(), ..parts.clone() }, &x, bias));
        }
        let (low, whole) = (Parts::new(false), Parts::new(true));
        both_forms_agree(&[5, 2], |a| product(&Parts { a: a.clone(), ..low.clone() }, &x, a));
        both_forms_agree(&[2, 6], |b| product(&Parts { b: b.clone(), ..low.clone() }, &x, b));
        both_forms_agree(&[6, 5], |w| product(&Parts { whole: Some(w.clone()), ..whole.clone() }, &x, w));
    }

    #[test]
    fn nothing_is_learnt_of_what_is_frozen() {
        let (x, g, parts) = (values(&[7, 5], 1), values(&[7, 6], 2), Parts::new(false));
        let layer = Layer { weight: Weight::Frozen(&parts.linear, None), bias: Some((&parts.bias, false)) };
        let mut learnt = Vec::new();
        let (_, inner) = with_slices([&x], |[x]| layer.forward(x, 7)).unwrap();
        with_slices([&x, &g], |[x, g]| layer.backward((x, &inner), g, 7, &mut learnt)).unwrap();
        assert!(learnt.is_empty());
    }

    /// A norm's result, RMS or of the layer, whose backward is asked for the gradient of `of` alone.
    fn normed(x: &Tensor, (weight, bias): (&Tensor, Option<&Tensor>), of: &Tensor) -> Tensor {
        fn norm<'a>(weight: &'a Tensor, bias: &'a Tensor) -> LayerNorm<'a> {
            LayerNorm { weight, bias, learns: true, eps: 1e-5 }
        }
        let out = with_slices([x], |[x]| match bias {
            Some(bias) => norm(weight, bias).forward(x),
            None => Norm { weight, learns: true, eps: 1e-5 }.forward(x),
        });
        let value = Tensor::from_vec(out.unwrap().into_vec(), x.shape(), &Device::Cpu).unwrap();
        let (x, weight, bias, own) = (x.clone(), weight.clone(), bias.cloned(), of.clone());
        let backward = move |g: &Tensor| {
            let mut learnt = Vec::new();
            let for_x = with_slices([&x, g], |[x, g]| match &bias {
                Some(bias) => norm(&weight, bias).backward(x, g, &mut learnt),
                None => Norm { weight: &weight, learns: true, eps: 1e-5 }.backward(x, g, &mut learnt),
            })?;
            gradient(&own, &x, for_x, learnt)
        };
        explicit(&[of], value, backward).unwrap()
    }

    #[test]
    fn norms_have_the_gradients_of_finite_differences() {
        let [x, weight, bias] = [(&[3, 8][..], 1), (&[8], 2), (&[8], 3)].map(|(shape, seed)| values(shape, seed));
        both_forms_agree(&[3, 8], |x| normed(x, (&weight, None), x));
        both_forms_agree(&[8], |weight| normed(&x, (weight, None), weight));
        both_forms_agree(&[3, 8], |x| normed(x, (&weight, Some(&bias)), x));
        both_forms_agree(&[8], |weight| normed(&x, (weight, Some(&bias)), weight));
        both_forms_agree(&[8], |bias| normed(&x, (&weight, Some(bias)), bias));
    }
}
