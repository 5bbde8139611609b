//! Layer norm with its gradient.
//!
//! candle's fused form cuts the gradient without an error: nobody calls it. Where there are no kernels it is composed.
//! After: Ba et al. 2016.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::cpu::steps;
use super::elements::{rows_summed, sum_of_shares};
use super::explicit::explicit;
use super::rows::by_rows;
use super::slices::{is_plain, with_slices};

/// Rows whose share of the gradient of a weight is added up by itself.
const SHARE: usize = 64;

/// Returns (x - mean) / √(variance + eps) · weight + bias of each row; `x` is `[rows, hidden]`, `weight` and `bias`
/// `[hidden]`, of the format of `x` or of another one, as in training.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let hidden = x.dim(D::Minus1)?;
    if weight.dims() != [hidden] || bias.dims() != [hidden] {
        candle_core::bail!("a norm of {:?} and {:?} for rows of {hidden}", weight.dims(), bias.dims());
    }
    #[cfg(feature = "cuda")]
    if let Some(normed) = super::cuda::norm_of(x, weight, Some(bias), eps)? {
        return Ok(normed);
    }
    if ![x, weight, bias].into_iter().all(is_plain) || x.elem_count() == 0 {
        return composed(x, weight, bias, eps);
    }
    let [input, weight_, bias_] = [x.detach().contiguous()?, weight.detach(), bias.detach()];
    let eps = eps as f32;
    let normed = with_slices([&weight_, &bias_], |[weight, bias]| {
        by_rows([&input], |[x], [out]| steps::layer_norm(x, weight, bias, eps, out))
    })?;
    let Some([normed]) = normed else { candle_core::bail!("a norm of {:?}", x.shape()) };
    let (weight_learns, bias_learns) = (weight.track_op(), bias.track_op());
    explicit(&[x, weight, bias], normed, move |gradient| {
        let for_x = with_slices([&weight_], |[weight]| {
            by_rows([&input, gradient], |[x, gradient], [out]| {
                steps::layer_norm_backward(x, weight, eps, gradient, out);
            })
        })?;
        let for_weight = || {
            let sum = with_slices([&input, gradient], |[x, gradient]| Ok(of_weight(x, gradient, hidden, eps)))?;
            Tensor::from_vec(sum, hidden, input.device())
        };
        let for_weight = weight_learns.then(for_weight).transpose()?;
        let for_bias = if bias_learns { Some(rows_summed(gradient)?) } else { None };
        Ok(vec![for_x.map(|[for_x]| for_x), for_weight, for_bias])
    })
}

/// Returns Σ g·x̂ over rows `[rows, width]`.
pub(super) fn of_weight(x: &[f32], gradient: &[f32], width: usize, eps: f32) -> Vec<f32> {
    let width = width.max(1);
    let parts = x.par_chunks(SHARE * width).zip(gradient.par_chunks(SHARE * width));
    sum_of_shares(parts, width, |(x, gradient), sum| {
        for (x, gradient) in x.chunks_exact(width).zip(gradient.chunks_exact(width)) {
            steps::layer_norm_weight(x, eps, gradient, sum);
        }
    })
}

/// The same by operations of tensors.
fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (dtype, learn) = (x.dtype(), [weight.track_op(), bias.track_op()]);
    let wide = x.detach().to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let inverse = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    let unit = centred.broadcast_mul(&inverse)?;
    let factor = weight.detach().to_dtype(DType::F32)?;
    let normed = unit.broadcast_mul(&factor)?.broadcast_add(&bias.detach().to_dtype(DType::F32)?)?;
    let formats = [weight.dtype(), bias.dtype()];
    explicit(&[x, weight, bias], normed.to_dtype(dtype)?, move |gradient| {
        let gradient = gradient.to_dtype(DType::F32)?;
        // x̂ = (x - mean)·inverse, y = w·x̂ + b: dx = inverse·(w·g - mean(w·g) - x̂·mean(w·g·x̂)).
        let weighted = gradient.broadcast_mul(&factor)?;
        let along = (&weighted * &unit)?.mean_keepdim(D::Minus1)?;
        let rest = weighted.broadcast_sub(&weighted.mean_keepdim(D::Minus1)?)?;
        let for_x = (rest - unit.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?.to_dtype(dtype)?;
        let rows = |x: Tensor| x.reshape(((), factor.elem_count()))?.sum(0);
        let for_weight = || rows((&gradient * &unit)?)?.to_dtype(formats[0]);
        let for_bias = || rows(gradient.clone())?.to_dtype(formats[1]);
        Ok(vec![Some(for_x), learn[0].then(for_weight).transpose()?, learn[1].then(for_bias).transpose()?])
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::fused::tests::{both_forms_agree, largest_difference, values};

    #[test]
    fn layer_norm_has_a_gradient_of_each_of_its_inputs() {
        let [x, weight, bias] = [(&[3, 8][..], 1), (&[8], 2), (&[8], 3)].map(|(shape, seed)| values(shape, seed));
        both_forms_agree(&[3, 8], |x| layer_norm(x, &weight, &bias, 1e-5).unwrap());
        both_forms_agree(&[8], |weight| layer_norm(&x, weight, &bias, 1e-5).unwrap());
        both_forms_agree(&[8], |bias| layer_norm(&x, &weight, bias, 1e-5).unwrap());
        let learning = Var::from_tensor(&weight).unwrap();
        both_forms_agree(&[3, 8], |x| layer_norm(x, &learning, &bias, 1e-5).unwrap());
    }

    #[test]
    fn the_composed_form_is_the_same_with_its_gradients() {
        let vars = [(&[300, 20][..], 1), (&[20], 2), (&[20], 3)]
            .map(|(shape, seed)| Var::from_tensor(&values(shape, seed)).unwrap());
        let [x, weight, bias] = vars.each_ref().map(Var::as_tensor);
        let of = values(&[300, 20], 4);
        let forms = [layer_norm(x, weight, bias, 1e-5).unwrap(), composed(x, weight, bias, 1e-5).unwrap()];
        assert!(largest_difference(&forms[0], &forms[1]) < 1e-5);
        let [ours, theirs] = forms.map(|y| (y * &of).unwrap().sum_all().unwrap().backward().unwrap());
        for tensor in [x, weight, bias] {
            assert!(largest_difference(ours.get(tensor).unwrap(), theirs.get(tensor).unwrap()) < 1e-3);
        }
        layer_norm(x, &values(&[19], 1), bias, 1e-5).unwrap_err();
        // Nothing is formed for what is frozen.
        let [weight, bias] = [weight, bias].map(|tensor| tensor.detach());
        for y in [layer_norm(x, &weight, &bias, 1e-5).unwrap(), composed(x, &weight, &bias, 1e-5).unwrap()] {
            let gradients = y.sum_all().unwrap().backward().unwrap();
            assert!(gradients.get(x).is_some());
            assert!(gradients.get(&weight).is_none() && gradients.get(&bias).is_none());
        }
    }
}
