//! Linear layers and norms with their gradients on slices: what a block's own backward on the CPU is made of.
//!
//! No graph, no tensor of zeros, no gradient of a frozen weight. Which layers a block has is the model's business.
//! Shapes: rows packed `[rows, input]`; all f32.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{View, dots, multiply, multiply_rows, product_transposed, steps, threads};
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
    /// Returns whether it can be computed here: dense or quantised weights with kernels.
    pub fn is_known(&self) -> bool {
        let weight = match self.weight {
            Weight::Frozen(weight, _) => weight.packed().is_some(),
            Weight::Whole(weight) => is_plain(weight),
        };
        weight && self.bias.is_none_or(|(bias, _)| is_plain(bias))
    }

    /// Returns the product `[rows, output]`, and x·Aᵀ `[rows, r]` for the backward.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &[f32], rows: usize) -> Result<(Vec<f32>, Vec<f32>)> {
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
    ) -> Result<Vec<f32>> {
        if let Some((bias, true)) = self.bias {
            let width = bias.elem_count();
            learnt.push((bias.clone(), Tensor::from_vec(sum_of_rows(gradient, width), width, &Device::Cpu)?));
        }
        self.weight.backward(seen, gradient, rows, learnt)
    }
}

impl Weight<'_> {
    fn forward(&self, x: &[f32], rows: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        match self {
            Self::Whole(weight) => {
                let (output, input) = weight.dims2()?;
                let mut out = vec![0.0; rows * output];
                with_slices([weight], |[weight]| {
                    Ok(multiply(view(x, (rows, input))?, turned(weight, (input, output))?, &mut out)?)
                })?;
                Ok((out, Vec::new()))
            }
            Self::Frozen(weight, change) => {
                let packed = known(weight)?;
                let mut out = vec![0.0; rows * packed.outputs()];
                trained_product(packed, x, rows, &mut out)?;
                let Some((a, b)) = change else { return Ok((out, Vec::new())) };
                let (input, rank) = a.dims2()?;
                let mut inner = vec![0.0; rows * rank];
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
    ) -> Result<Vec<f32>> {
        match self {
            Self::Whole(weight) => {
                let (output, input) = weight.dims2()?;
                let (mut for_x, mut for_weight) = (vec![0.0; rows * input], vec![0.0; output * input]);
                with_slices([weight], |[weight]| {
                    multiply(view(gradient, (rows, output))?, view(weight, (output, input))?, &mut for_x)?;
                    // Laid out anew: columns of many rows are far apart.
                    let turned = transposed(gradient, rows, output);
                    Ok(multiply(view(&turned, (output, rows))?, view(x, (rows, input))?, &mut for_weight)?)
                })?;
                learnt.push(((*weight).clone(), Tensor::from_vec(for_weight, (output, input), &Device::Cpu)?));
                Ok(for_x)
            }
            Self::Frozen(weight, change) => {
                let packed = known(weight)?;
                let mut for_x = vec![0.0; rows * packed.inputs()];
                product_transposed(packed, gradient, rows, &mut for_x)?;
                let Some((a, b)) = change else { return Ok(for_x) };
                let ((input, rank), output) = (a.dims2()?, b.dim(1)?);
                let mut for_inner = vec![0.0; rows * rank];
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

fn view(data: &[f32], shape: (usize, usize)) -> Result<View<'_>> {
    let Some(view) = View::new(data, shape, (shape.1, 1)) else { bail!("{} numbers are not {shape:?}", data.len()) };
    Ok(view)
}

/// The transpose of what lies there, whose shape is `shape`.
fn turned(data: &[f32], shape: (usize, usize)) -> Result<View<'_>> {
    let Some(view) = View::new(data, shape, (1, shape.0)) else { bail!("{} numbers are not {shape:?}", data.len()) };
    Ok(view)
}

/// Returns the transpose of `[rows, columns]`.
fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TOGETHER: usize = 16;
    let mut out = vec![0.0; data.len()];
    out.par_chunks_mut((TOGETHER * rows).max(1)).enumerate().for_each(|(part, out)| {
        let first = part * TOGETHER;
        for (row, data) in data.chunks_exact(columns).enumerate() {
            for (column, value) in data[first..columns.min(first + TOGETHER)].iter().enumerate() {
                out[column * rows + row] = *value;
            }
        }
    });
    out
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
    pub fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len()];
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
    pub fn backward(&self, x: &[f32], gradient: &[f32], learnt: &mut Vec<Learnt>) -> Result<Vec<f32>> {
        let mut for_x = vec![0.0; x.len()];
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
    pub fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len()];
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
    pub fn backward(&self, x: &[f32], gradient: &[f32], learnt: &mut Vec<Learnt>) -> Result<Vec<f32>> {
        let width = self.weight.elem_count();
        if self.learns {
            let of = |numbers: Vec<f32>| Tensor::from_vec(numbers, width, &Device::Cpu);
            learnt.push((self.weight.clone(), of(of_weight(x, gradient, width, self.eps))?));
            learnt.push((self.bias.clone(), of(sum_of_rows(gradient, width))?));
        }
        let mut for_x = vec![0.0; x.len()];
        with_slices([self.weight], |[weight]| {
            threads::layer_norm_backward(x, weight, self.eps, gradient, &mut for_x);
            Ok(())
        })?;
        Ok(for_x)
    }
}
