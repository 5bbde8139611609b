//! Products of activations with frozen weights, dense or quantised, behind one interface.
//!
//! Knows neither bias nor adapter: those are added by who calls. Kernels that repack the weights at load take the place
//! of the bodies here, not of the interface.
//! Shapes: `x` is `[rows, input]`, a weight is `[output, input]`, a product is `[rows, output]`.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};

use super::explicit::explicit;

/// Rows of f32 on the CPU for which (W·xᵀ)ᵀ beats x·Wᵀ: candle's product is up to 19 times slower in the second form.
const TRANSPOSED_ROWS: std::ops::RangeInclusive<usize> = 2..=64;

/// A frozen weight matrix `[output, input]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
}

#[derive(Debug, Clone)]
enum Weight {
    Dense(Tensor),
    Quantized(Arc<QTensor>),
}

impl Linear {
    /// Takes an f32, f16 or bf16 weight `[output, input]`.
    pub fn dense(weight: Tensor) -> Self {
        Self { weight: Weight::Dense(weight) }
    }

    /// Takes a quantised weight `[output, input]`.
    pub fn quantized(weight: Arc<QTensor>) -> Self {
        Self { weight: Weight::Quantized(weight) }
    }

    /// Returns x·Wᵀ in the number format of `x`.
    ///
    /// Where `x` carries a gradient, W gets none, and a quantised W is computed with as it is: without rounding `x`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.track_op() {
            let product = dense_product(&self.to_dense(x)?, &x.detach())?;
            let (frozen, like) = (self.clone(), x.detach());
            return explicit(&[x], product, move |gradient| {
                Ok(vec![Some(matmul(gradient, &frozen.to_dense(&like)?)?)])
            });
        }
        match &self.weight {
            Weight::Dense(weight) => dense_product(weight, x),
            Weight::Quantized(weight) => {
                let wide = x.to_dtype(DType::F32)?.contiguous()?;
                QMatMul::QTensor(Arc::clone(weight)).forward(&wide)?.to_dtype(x.dtype())
            }
        }
    }

    /// Returns x·Wᵀ + (x·a)·b as one operation, with gradients of `x`, `a` `[input, r]` and `b` `[r, output]` only; all f32.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn adapted(&self, x: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let frozen = self.clone();
        let [detached_x, detached_a, detached_b] = [x.detach(), a.detach(), b.detach()];
        let inner = detached_x.matmul(&detached_a)?;
        let product = (dense_product(&self.to_dense(x)?, &detached_x)? + inner.matmul(&detached_b)?)?;
        explicit(&[x, a, b], product, move |gradient| {
            let (x, a, b) = (&detached_x, &detached_a, &detached_b);
            let for_inner = gradient.matmul(&b.t()?)?;
            let for_x = (gradient.matmul(&frozen.to_dense(x)?)? + for_inner.matmul(&a.t()?)?)?;
            let (for_a, for_b) = (x.t()?.matmul(&for_inner)?, inner.t()?.matmul(gradient)?);
            Ok(vec![Some(for_x), Some(for_a), Some(for_b)])
        })
    }

    /// Returns the rows `ids` of the weight, `[ids, input]`, as an embedding does; the format is `dtype`.
    ///
    /// # Errors
    /// When an id is out of range or the device fails.
    pub fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => weight.index_select(ids, 0)?.to_dtype(dtype),
            Weight::Quantized(weight) => weight.embedding(ids)?.to_dtype(dtype),
        }
    }

    /// Returns the weight in the number format and on the device of `x`.
    fn to_dense(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => Ok(weight.clone()),
            Weight::Quantized(weight) => weight.dequantize(x.device())?.to_dtype(x.dtype()),
        }
    }

    /// Returns the weight as f32 `[output, input]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_f32(&self) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => weight.to_dtype(DType::F32),
            Weight::Quantized(weight) => weight.dequantize(&weight.device()),
        }
    }
}

fn dense_product(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let transposed = matches!(x.device(), Device::Cpu) && x.dtype() == DType::F32;
    if transposed && TRANSPOSED_ROWS.contains(&x.dim(0)?) {
        return weight.matmul(&x.t()?)?.t()?.contiguous();
    }
    matmul(x, &weight.t()?)
}

/// Returns the product of two matrices, or batches of them, in the number format of `a`.
///
/// On the CPU the half formats are computed in f32: candle has no bf16 product there.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let half = matches!(a.dtype(), DType::BF16 | DType::F16);
    if half && a.device().is_cpu() {
        return a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?.to_dtype(a.dtype());
    }
    a.matmul(b)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::ops::fused::tests::{both_forms_agree, largest_difference, values};

    #[test]
    fn every_number_of_rows_gives_the_plain_product() {
        let weight = values(&[96, 40], 1);
        let linear = Linear::dense(weight.clone());
        for rows in [1, 2, 3, 64, 65] {
            let x = values(&[rows, 40], rows as u64);
            let got = linear.forward(&x).unwrap();
            let expected = x.matmul(&weight.t().unwrap()).unwrap();
            assert!(got.is_contiguous());
            assert!(largest_difference(&got, &expected) < 1e-5, "{rows} rows");
        }
    }

    #[test]
    fn half_formats_stay_close_to_f32() {
        let (weight, x) = (values(&[32, 64], 1), values(&[5, 64], 2));
        let expected = Linear::dense(weight.clone()).forward(&x).unwrap();
        for (dtype, tolerance) in [(DType::BF16, 0.03), (DType::F16, 0.004)] {
            let got = Linear::dense(weight.to_dtype(dtype).unwrap()).forward(&x.to_dtype(dtype).unwrap()).unwrap();
            assert_eq!(got.dtype(), dtype);
            assert!(largest_difference(&got.to_dtype(DType::F32).unwrap(), &expected) < tolerance);
        }
    }

    #[test]
    fn an_adapted_product_is_the_composed_one_with_its_gradients() {
        let linear = Linear::dense(values(&[6, 5], 1));
        let [x, a, b] = [(&[70, 5], 2), (&[5, 2], 3), (&[2, 6], 4)]
            .map(|(shape, seed)| Var::from_tensor(&values(shape, seed)).unwrap());
        let weights = values(&[70, 6], 5);
        let composed = (linear.forward(&x).unwrap() + x.matmul(&a).unwrap().matmul(&b).unwrap()).unwrap();
        let fused = linear.adapted(&x, &a, &b).unwrap();
        assert!(largest_difference(&fused, &composed) < 1e-5);
        let [fused, composed] =
            [fused, composed].map(|y| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap());
        for var in [&x, &a, &b] {
            let gradient = fused.get(var.as_tensor()).unwrap();
            assert!(largest_difference(gradient, composed.get(var.as_tensor()).unwrap()) < 1e-4);
        }
    }

    #[test]
    fn products_have_the_gradients_of_finite_differences() {
        let linear = Linear::dense(values(&[6, 5], 1));
        let [x, a, b] = [(&[7, 5], 2), (&[5, 2], 3), (&[2, 6], 4)].map(|(shape, seed)| values(shape, seed));
        both_forms_agree(&[7, 5], |x| linear.forward(x).unwrap());
        both_forms_agree(&[7, 5], |x| linear.adapted(x, &a, &b).unwrap());
        both_forms_agree(&[5, 2], |a| linear.adapted(&x, a, &b).unwrap());
        both_forms_agree(&[2, 6], |b| linear.adapted(&x, &a, b).unwrap());
    }

    #[test]
    fn a_quantised_weight_multiplies_looks_up_and_carries_gradients() {
        let weight = Arc::new(QTensor::quantize(&values(&[48, 64], 1), GgmlDType::Q8_0).unwrap());
        let plain = weight.dequantize(&Device::Cpu).unwrap();
        let linear = Linear::quantized(weight);
        assert_eq!(largest_difference(&linear.to_f32().unwrap(), &plain), 0.0);

        let x = values(&[3, 64], 2);
        let expected = x.matmul(&plain.t().unwrap()).unwrap();
        // The activations are rounded to 8 bits: 1/254 of the largest of 64 products of size about 1.
        assert!(largest_difference(&linear.forward(&x).unwrap(), &expected) < 0.05);

        let ids = Tensor::new(&[7_u32, 0, 47], &Device::Cpu).unwrap();
        let rows = linear.rows(&ids, DType::F32).unwrap();
        assert_eq!(largest_difference(&rows, &plain.index_select(&ids, 0).unwrap()), 0.0);

        let x = Var::from_tensor(&x).unwrap();
        let gradients = linear.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = plain.sum(0).unwrap().broadcast_as((3, 64)).unwrap();
        assert!(largest_difference(gradients.get(&x).unwrap(), &expected) < 1e-4);
    }
}
