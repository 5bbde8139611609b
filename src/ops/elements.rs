//! What is computed number by number or vector by vector, with gradients: sums, biases, GELU, vectors of length 1.
//!
//! On the CPU in one pass on all threads, on GPUs by kernels where there are any; else candle's operations, which have
//! gradients of their own here.
//! Shapes stand at each function.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::cpu::steps;
use super::explicit::explicit;
use super::rows::by_rows;
use super::slices::{is_plain, with_slices};

/// Rows whose share of a sum over rows is added up by itself.
const SHARE: usize = 256;

/// Returns a + b of one shape.
///
/// # Errors
/// When shapes differ or the device fails.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let done = by_rows([&a.detach(), &b.detach()], |[a, b], [out]| {
        out.copy_from_slice(a);
        steps::add(out, b);
    })?;
    let Some([sum]) = done else { return a + b };
    explicit(&[a, b], sum, |gradient| Ok(vec![Some(gradient.clone()), Some(gradient.clone())]))
}

/// Returns x + bias for every row; `x` is `[rows, width]`, `bias` `[width]`.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.rank() != 2 {
        return x.broadcast_add(bias);
    }
    if bias.dims() != [x.dim(D::Minus1)?] {
        candle_core::bail!("a bias of {:?} for rows of {:?}", bias.dims(), x.dims());
    }
    let (learns, x_, bias_) = (bias.track_op(), x.detach(), bias.detach());
    let sum = match is_plain(x) && is_plain(bias) {
        true => with_slices([&bias_], |[bias]| {
            by_rows([&x_], |[x], [out]| {
                out.copy_from_slice(x);
                steps::add(out, bias);
            })
        })?,
        false => None,
    };
    let sum = match sum {
        Some([sum]) => sum,
        None => x_.broadcast_add(&bias_)?,
    };
    explicit(&[x, bias], sum, move |gradient| {
        let for_bias = if learns { Some(rows_summed(gradient)?) } else { None };
        Ok(vec![Some(gradient.clone()), for_bias])
    })
}

/// Returns the sum over rows of `[rows, width]`.
pub(super) fn rows_summed(x: &Tensor) -> Result<Tensor> {
    if !is_plain(x) {
        // Sums of half formats are f32.
        return x.to_dtype(DType::F32)?.sum(0)?.to_dtype(x.dtype());
    }
    let width = x.dim(D::Minus1)?;
    with_slices([x], |[numbers]| Tensor::from_vec(sum_of_rows(numbers, width), width, x.device()))
}

/// Returns the sum over rows of `[rows, width]` on the CPU; shares of rows are added in their order.
pub(super) fn sum_of_rows(x: &[f32], width: usize) -> Vec<f32> {
    let width = width.max(1);
    sum_of_shares(x.par_chunks(SHARE * width), width, |x, sum| {
        x.chunks_exact(width).for_each(|row| steps::add(sum, row));
    })
}

/// Adds up what `work` makes of parts, each by itself.
pub(super) fn sum_of_shares<P: Send>(
    parts: impl IndexedParallelIterator<Item = P>,
    width: usize,
    work: impl Fn(P, &mut [f32]) + Sync,
) -> Vec<f32> {
    let share = |part: P| {
        let mut sum = vec![0.0; width];
        work(part, &mut sum);
        sum
    };
    let shares: Vec<Vec<f32>> = parts.map(share).collect();
    let mut sum = vec![0.0; width];
    shares.iter().for_each(|share| steps::add(&mut sum, share));
    sum
}

/// Returns x·Φ(x), number by number (the exact form, by erf).
///
/// # Errors
/// When the device fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(value) = super::cuda::bent(x)? {
        return Ok(value);
    }
    let input = x.detach();
    let Some([value]) = by_rows([&input], |[x], [out]| steps::gelu(x, out))? else { return composed_gelu(x) };
    explicit(&[x], value, move |gradient| {
        let done = by_rows([&input, gradient], |[x, gradient], [out]| steps::gelu_backward(x, gradient, out))?;
        match done {
            Some([for_x]) => Ok(vec![Some(for_x)]),
            None => candle_core::bail!("a gradient of {:?} for {:?}", gradient.shape(), input.shape()),
        }
    })
}

/// The same elsewhere: candle's error function has a gradient.
fn composed_gelu(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let below = ((&wide * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?;
    ((wide * below)? * 0.5)?.to_dtype(x.dtype())
}

/// Returns x with every `size` numbers of a row divided by their length, which is taken as 1e-12 at least; `x` is
/// `[rows, vectors·size]`.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn unit(x: &Tensor, size: usize) -> Result<Tensor> {
    let input = x.detach();
    let Some([value]) = by_rows([&input], |[x], [out]| steps::unit(x, size, out))? else {
        return composed_unit(x, size);
    };
    explicit(&[x], value, move |gradient| {
        let step = |[x, gradient]: [&[f32]; 2], [out]: [&mut [f32]; 1]| steps::unit_backward(x, size, gradient, out);
        match by_rows([&input, gradient], step)? {
            Some([for_x]) => Ok(vec![Some(for_x)]),
            None => candle_core::bail!("a gradient of {:?} for {:?}", gradient.shape(), input.shape()),
        }
    })
}

/// The same elsewhere.
fn composed_unit(x: &Tensor, size: usize) -> Result<Tensor> {
    let vectors = x.to_dtype(DType::F32)?.reshape(((), size))?;
    // Inside of the root, so that a vector of zeros has a gradient.
    let length = (vectors.sqr()?.sum_keepdim(D::Minus1)? + 1e-24)?.sqrt()?;
    vectors.broadcast_div(&length)?.reshape(x.shape())?.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::fused::tests::{both_forms_agree, largest_difference, values};

    #[test]
    fn every_operation_has_a_gradient() {
        let other = values(&[3, 8], 1);
        both_forms_agree(&[3, 8], |x| add(x, &other).unwrap());
        both_forms_agree(&[3, 8], |x| add(&other, x).unwrap());
        both_forms_agree(&[3, 8], |x| add(x, x).unwrap());
        both_forms_agree(&[8], |bias| add_bias(&other, bias).unwrap());
        let bias = Var::from_tensor(&values(&[8], 2)).unwrap();
        both_forms_agree(&[3, 8], |x| add_bias(x, &bias).unwrap());
        both_forms_agree(&[3, 8], |x| gelu(&(x * 2.0).unwrap()).unwrap());
        both_forms_agree(&[3, 8], |x| unit(x, 4).unwrap());
    }

    #[test]
    fn the_composed_forms_are_the_same() {
        let x = (values(&[300, 24], 1) * 3.0).unwrap();
        assert!(largest_difference(&gelu(&x).unwrap(), &composed_gelu(&x).unwrap()) < 1e-6);
        assert!(largest_difference(&unit(&x, 8).unwrap(), &composed_unit(&x, 8).unwrap()) < 1e-6);
        assert!(largest_difference(&rows_summed(&x).unwrap(), &x.sum(0).unwrap()) < 1e-3);
        add_bias(&x, &values(&[23], 1)).unwrap_err();
    }
}
