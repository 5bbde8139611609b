//! Normalisation, rotation, softmax and gating: candle's fused form where no gradient is wanted, the composed form
//! where one is.
//!
//! The fused forms have no backward and say nothing about it (candle issues 2168, 3568, 3569), so nobody else calls them.
//! Shapes are given at each function; the last dimension is contiguous.

use candle_core::{D, Result, Tensor};

/// Returns x / √(mean(x²) + eps) · weight over the last dimension; `x` is `[rows, hidden]`, `weight` `[hidden]`.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if !x.track_op() && !weight.track_op() {
        #[expect(clippy::disallowed_methods, reason = "no gradient is tracked here")]
        return candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32);
    }
    candle_nn::ops::rms_norm_slow(x, weight, eps as f32)
}

/// Returns the softmax over the last dimension in the number format of `x`: f32 is wanted where it matters.
///
/// # Errors
/// When the device fails.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if !x.track_op() {
        #[expect(clippy::disallowed_methods, reason = "no gradient is tracked here")]
        return candle_nn::ops::softmax_last_dim(&x.contiguous()?);
    }
    // The maximum only shifts the exponent: it takes no part in the gradient.
    let shift = x.detach().max_keepdim(D::Minus1)?;
    let exp = x.broadcast_sub(&shift)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Rotates pairs (i, i + head_dim/2) of each head, as transformers lays them out.
///
/// `x` is `[tokens, heads, head_dim]`; `cos` and `sin` are `[tokens, head_dim/2]` in the number format of `x`.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if !x.track_op() {
        let x = x.contiguous()?.unsqueeze(0)?;
        #[expect(clippy::disallowed_methods, reason = "no gradient is tracked here")]
        return candle_nn::rotary_emb::rope_thd(&x, cos, sin)?.squeeze(0);
    }
    let half = x.dim(D::Minus1)? / 2;
    let (left, right) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let new_left = (left.broadcast_mul(&cos)? - right.broadcast_mul(&sin)?)?;
    let new_right = (left.broadcast_mul(&sin)? + right.broadcast_mul(&cos)?)?;
    Tensor::cat(&[new_left, new_right], D::Minus1)
}

/// Returns gate·σ(gate)·up, element by element.
///
/// # Errors
/// When shapes differ or the device fails.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
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
    fn both_forms_agree(shape: &[usize], f: impl Fn(&Tensor) -> Tensor) {
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
    }
}
