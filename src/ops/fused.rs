//! Normalisation, rotation, softmax and gating, each with a backward of our own.
//!
//! On the CPU in one pass by the steps of `cpu`, on GPUs by the kernels of `cuda`; elsewhere candle's fused forms. Those
//! have no backward and say nothing about it (candle issues 2168, 3568, 3569), so nobody else calls them.
//! Shapes are given at each function; the last dimension is contiguous.

use candle_core::{D, DType, Result, Tensor};

use super::cpu::{steps, threads};
use super::explicit::explicit;
use super::rows::by_rows;
use super::slices::{is_plain, with_slices};

/// Returns x / √(mean(x²) + eps) · weight over the last dimension; `x` is `[rows, hidden]`, `weight` `[hidden]`, of
/// the format of `x` or of another one, as in training.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(normed) = super::cuda::norm_of(x, weight, None, eps)? {
        return Ok(normed);
    }
    let weight = &weight.to_dtype(x.dtype())?;
    let (wide_x, wide_weight) = (x.detach().contiguous()?, weight.detach());
    let on_cpu = wide_x.device().is_cpu() && wide_x.dim(D::Minus1)? == wide_weight.elem_count();
    let values = if on_cpu { wide_weight.to_dtype(DType::F32)?.to_vec1::<f32>()? } else { Vec::new() };
    let normed = match by_rows([&wide_x], |[x], [out]| steps::rms_norm(x, &values, eps as f32, out))? {
        Some([normed]) if on_cpu => normed,
        Some(_) | None =>
        {
            #[expect(clippy::disallowed_methods, reason = "it is detached: the backward is below")]
            candle_nn::ops::rms_norm(&wide_x, &wide_weight, eps as f32)?
        }
    };
    let weight_learns = weight.track_op();
    explicit(&[x, weight], normed, move |gradient| {
        if !weight_learns && on_cpu {
            let step = |[x, g]: [&[f32]; 2], [out]: [&mut [f32]; 1]| {
                steps::rms_norm_backward(x, &values, eps as f32, g, out);
            };
            if let Some([for_x]) = by_rows([&wide_x, gradient], step)? {
                return Ok(vec![Some(for_x), None]);
            }
        }
        let f32 = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        let (x, gradient, dtype) = (f32(&wide_x)?, f32(gradient)?, wide_x.dtype());
        let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
        let unit = x.broadcast_mul(&inverse)?;
        // x̂ = x·inverse, y = w·x̂: dx = inverse·(w·g - x̂·mean(w·g·x̂)), dw = Σ g·x̂.
        let weighted = gradient.broadcast_mul(&f32(&wide_weight)?)?;
        let along = (&weighted * &unit)?.mean_keepdim(D::Minus1)?;
        let for_x = (weighted - unit.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?.to_dtype(dtype)?;
        let for_weight = || (gradient * unit)?.sum(0)?.to_dtype(wide_weight.dtype());
        Ok(vec![Some(for_x), weight_learns.then(for_weight).transpose()?])
    })
}

/// Returns the softmax over the last dimension in the number format of `x`: f32 is wanted where it matters.
///
/// # Errors
/// When the device fails.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    #[expect(clippy::disallowed_methods, reason = "it is detached: the backward is below")]
    let shares = candle_nn::ops::softmax_last_dim(&x.detach().contiguous()?)?;
    let kept = shares.clone();
    explicit(&[x], shares, move |gradient| Ok(vec![Some(softmax_backward(&kept, gradient)?)]))
}

/// Returns the gradient of the input of a softmax: p·(g - Σ p·g).
///
/// # Errors
/// When shapes differ or the device fails.
pub fn softmax_backward(shares: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let done = by_rows([shares, gradient], |[shares, gradient], [out]| {
        steps::softmax_backward(shares, gradient, 1.0, out);
    });
    if let Some([done]) = done? {
        return Ok(done);
    }
    let along = (shares * gradient)?.sum_keepdim(D::Minus1)?;
    shares * gradient.broadcast_sub(&along)?
}

/// Rotates pairs (i, i + head_dim/2) of each head, as transformers lays them out.
///
/// `x` is `[tokens, heads, head_dim]`; `cos` and `sin` are `[tokens, head_dim/2]` in the number format of `x`.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(turned) = super::cuda::turned(x, cos, sin)? {
        return Ok(turned);
    }
    let turned = turn(&x.detach(), cos, sin)?;
    let (cos, back) = (cos.clone(), sin.clone());
    // The backward of a rotation is the rotation back.
    explicit(&[x], turned, move |gradient| Ok(vec![Some(turn(gradient, &cos, &back.neg()?)?)]))
}

fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if is_plain(x) && is_plain(cos) && is_plain(sin) {
        let (tokens, _, head_dim) = x.dims3()?;
        if cos.dims() == [tokens, head_dim / 2] && sin.dims() == cos.dims() {
            let mut turned = x.flatten_all()?.to_vec1::<f32>()?;
            with_slices([cos, sin], |[cos, sin]| {
                threads::rope(&mut turned, (cos, sin), tokens, 1.0);
                Ok(())
            })?;
            return Tensor::from_vec(turned, x.shape(), x.device());
        }
    }
    let x = x.contiguous()?.unsqueeze(0)?;
    #[expect(clippy::disallowed_methods, reason = "only detached tensors come here")]
    candle_nn::rotary_emb::rope_thd(&x, cos, sin)?.squeeze(0)
}

/// Returns gate·σ(gate)·up, element by element.
///
/// # Errors
/// When shapes differ or the device fails.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(product) = super::cuda::gated(gate, up)? {
        return Ok(product);
    }
    let (g, u) = (gate.detach(), up.detach());
    let product = match by_rows([&g, &u], |[g, u], [out]| steps::silu_mul(g, u, out))? {
        Some([product]) => product,
        None => (g.silu()? * &u)?,
    };
    explicit(&[gate, up], product, move |gradient| {
        let done = by_rows([&g, &u, gradient], |[g, u, gradient], [for_gate, for_up]| {
            steps::silu_mul_backward(g, u, gradient, for_gate, for_up);
        });
        if let Some(done) = done? {
            return Ok(done.map(Some).into());
        }
        // σ' of g·σ(g) is σ + σ·g·(1-σ).
        let sigma = (g.neg()?.exp()? + 1.0)?.recip()?;
        let silu = (&g * &sigma)?;
        let slope = ((silu.neg()? + 1.0)? * &sigma)?;
        let slope = (slope + &silu)?;
        Ok(vec![Some((gradient * (&u * slope)?)?), Some((gradient * silu)?)])
    })
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::{Device, Var};
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Values in -1..1 from a seed.
    pub(in crate::ops) fn values(shape: &[usize], seed: u64) -> Tensor {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let count = shape.iter().product();
        let data: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    pub(in crate::ops) fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// Checks that `f` gives the same with and without tracking, and that its gradient is that of finite differences.
    pub(in crate::ops) fn both_forms_agree(shape: &[usize], f: impl Fn(&Tensor) -> Tensor) {
        let x = values(shape, 5);
        let var = Var::from_tensor(&x).unwrap();
        let tracked = f(&var);
        assert!(largest_difference(&tracked, &f(&x)) < 1e-6);

        let weights = values(tracked.dims(), 6);
        let loss = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap();
        let gradients = loss(&tracked).backward().unwrap();
        let gradient = gradients.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(gradient.iter().any(|g| g.abs() > 1e-3));

        let start = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..start.len() {
            let moved = |step: f32| {
                let mut data = start.clone();
                data[i] += step;
                let y = f(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap());
                loss(&y).to_scalar::<f32>().unwrap()
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            // Central differences in f32 with step 1e-2: error about 1e-4 of curvature plus 1e-5 of rounding.
            assert!(
                (slope - gradient[i]).abs() < 5e-3,
                "element {i}: {slope} by differences, {} by gradient",
                gradient[i]
            );
        }
    }

    #[test]
    fn rms_norm_has_a_gradient() {
        let weight = values(&[8], 1);
        both_forms_agree(&[3, 8], |x| rms_norm(x, &weight, 1e-5).unwrap());
    }

    #[test]
    fn rms_norm_has_a_gradient_of_its_weight_and_beside_it() {
        let x = values(&[3, 8], 1);
        both_forms_agree(&[8], |weight| rms_norm(&x, weight, 1e-5).unwrap());
        let weight = Var::from_tensor(&values(&[8], 2)).unwrap();
        both_forms_agree(&[3, 8], |x| rms_norm(x, &weight, 1e-5).unwrap());
    }

    #[test]
    fn softmax_has_a_gradient() {
        both_forms_agree(&[2, 3, 5], |x| softmax(x).unwrap());
    }

    #[test]
    fn rope_has_a_gradient() {
        let angles = values(&[4, 3], 1);
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        both_forms_agree(&[4, 2, 6], |x| rope(x, &cos, &sin).unwrap());
    }

    #[test]
    fn silu_mul_has_a_gradient() {
        let up = values(&[3, 7], 1);
        both_forms_agree(&[3, 7], |x| silu_mul(x, &up).unwrap());
        both_forms_agree(&[3, 7], |x| silu_mul(&up, x).unwrap());
    }
}
