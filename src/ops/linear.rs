//! Products of activations with frozen weights, dense or quantised, behind one interface.
//!
//! Knows neither bias nor adapter: those are added by who calls. On the CPU weights are packed once for the kernels of
//! `cpu`, which take the place of the original; a format that those lack stays candle's.
//! Shapes: `x` is `[rows, input]`, a weight is `[output, input]`, a product is `[rows, output]`.

use std::sync::Arc;

use super::cpu::{
    self, Format, Job, LowRank, Packed, Prepared, each, product, product_exact, product_transposed, threads,
};
use super::elements::add_bias;
use super::explicit::{Value, explicit};
use super::learning::add_low_rank;
use super::packing::{pack, pack_quantized, packed_format};
use super::slices::{is_plain, product_of, with_slices};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};

/// A frozen weight matrix `[output, input]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
}

/// A product x·Wᵀ to be written.
#[derive(Debug)]
pub struct Product<'a> {
    /// W.
    pub linear: &'a Linear,
    /// `[rows, output]`.
    pub out: &'a mut [f32],
    /// What is added to rows of it.
    pub changes: &'a [LowRank<'a>],
}

#[derive(Debug, Clone)]
enum Weight {
    Dense(Tensor),
    Quantized(Arc<QTensor>),
    Packed(Arc<Packed>),
}

impl Linear {
    /// Takes an f32, f16 or bf16 weight `[output, input]`.
    pub fn dense(weight: Tensor) -> Self {
        let packed = if weight.device().is_cpu() { pack(&weight) } else { None };
        Self { weight: packed.map_or(Weight::Dense(weight), |packed| Weight::Packed(packed.into())) }
    }

    /// Takes a quantised weight `[output, input]`.
    pub fn quantized(weight: Arc<QTensor>) -> Self {
        let packed = if weight.device().is_cpu() { pack_quantized(&weight) } else { None };
        Self { weight: packed.map_or(Weight::Quantized(weight), |packed| Weight::Packed(packed.into())) }
    }

    /// Takes rows of a GGUF file as they are stored, for the CPU; `None` when there are no kernels for the format.
    pub fn stored(format: GgmlDType, (outputs, inputs): (usize, usize), bytes: &[u8]) -> Option<Self> {
        let packed = Packed::new(packed_format(format)?, outputs, inputs, bytes)?;
        Some(Self { weight: Weight::Packed(packed.into()) })
    }

    /// Returns the weight as the kernels have it.
    pub(super) fn packed(&self) -> Option<&Packed> {
        match &self.weight {
            Weight::Packed(packed) => Some(packed),
            Weight::Dense(_) | Weight::Quantized(_) => None,
        }
    }

    /// Returns the weight as one tensor, where it is: dense, and not on the CPU.
    #[cfg(feature = "cuda")]
    pub fn tensor(&self) -> Option<&Tensor> {
        match &self.weight {
            Weight::Dense(weight) => Some(weight),
            Weight::Packed(_) | Weight::Quantized(_) => None,
        }
    }

    /// Returns the number format of low-rank matrices beside it: U8 for 8 bits, where the kernels have it quantised.
    pub fn low_rank_format(&self) -> DType {
        let narrow = |packed: &Packed| if packed.is_quantised() { DType::U8 } else { DType::BF16 };
        let packed = self.packed().filter(|packed| packed.is_quantised() || packed.format() == Format::Bf16);
        packed.map_or(DType::F32, narrow)
    }

    /// Returns whether the weight is in a GPU's memory.
    pub(super) fn is_on_gpu(&self) -> bool {
        match &self.weight {
            Weight::Dense(weight) => weight.device().is_cuda(),
            Weight::Quantized(weight) => weight.device().is_cuda(),
            Weight::Packed(_) => false,
        }
    }

    /// Returns the number of output rows.
    ///
    /// # Errors
    /// When the weight is no matrix.
    pub fn outputs(&self) -> Result<usize> {
        match &self.weight {
            Weight::Dense(weight) => weight.dim(0),
            Weight::Quantized(weight) => Ok(weight.shape().dims2()?.0),
            Weight::Packed(weight) => Ok(weight.outputs()),
        }
    }

    /// Returns x·Wᵀ in the number format of `x`.
    ///
    /// Where `x` carries a gradient, W gets none, and a quantised W is computed with as it is: without rounding `x`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Weight::Packed(weight) = &self.weight {
            let dtype = x.dtype();
            let product = forward_packed(weight, &x.to_dtype(DType::F32)?, None)?;
            return product.to_dtype(dtype);
        }
        if x.track_op() {
            let product = matmul(&x.detach(), &self.to_dense(x)?.t()?)?;
            let (frozen, like) = (self.clone(), x.detach());
            return explicit(&[x], product, move |gradient| {
                Ok(vec![Some(matmul(gradient, &frozen.to_dense(&like)?)?)])
            });
        }
        match &self.weight {
            Weight::Dense(weight) => matmul(x, &weight.t()?),
            Weight::Quantized(weight) => {
                let wide = x.to_dtype(DType::F32)?.contiguous()?;
                QMatMul::QTensor(Arc::clone(weight)).forward(&wide)?.to_dtype(x.dtype())
            }
            Weight::Packed(_) => candle_core::bail!("packed weights are multiplied elsewhere"),
        }
    }

    /// Returns x·Wᵀ + bias; a bias `[output]` that carries a gradient gets one.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn affine(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let Some(bias) = bias else { return self.forward(x) };
        match &self.weight {
            Weight::Packed(weight) if is_plain(x) && is_plain(bias) && !bias.track_op() => {
                forward_packed(weight, x, Some(bias))
            }
            Weight::Packed(_) | Weight::Dense(_) | Weight::Quantized(_) => add_bias(&self.forward(x)?, bias),
        }
    }

    /// Writes x·Wᵀ for slices on the CPU, of several weights in one go, and adds low-rank products; `x` is `[rows, input]`.
    ///
    /// # Errors
    /// When shapes do not fit or a weight is not on the CPU.
    pub fn forward_all<'a>(
        x: &'a [f32],
        rows: usize,
        products: impl Iterator<Item = Product<'a>>,
        prepared: &mut Prepared,
    ) -> Result<()> {
        let mut fault = Ok(());
        let jobs = products.filter_map(|Product { linear, out, changes }| {
            if let Weight::Packed(weights) = &linear.weight {
                return Some(Job { weights, out, changes });
            }
            if let Err(error) = linear.forward_alone((x, rows), changes, out) {
                fault = Err(error);
            }
            None
        });
        cpu::products(x, rows, jobs, prepared)?;
        fault
    }

    /// Writes x·Wᵀ of a weight without kernels, and adds low-rank products.
    fn forward_alone(&self, (x, rows): (&[f32], usize), changes: &[LowRank<'_>], out: &mut [f32]) -> Result<()> {
        let inputs = x.len() / rows.max(1);
        let product = self.forward(&Tensor::from_slice(x, (rows, inputs), &Device::Cpu)?)?;
        with_slices([&product], |[product]| {
            out.copy_from_slice(product);
            Ok(())
        })?;
        Ok(cpu::add_low_rank((x, inputs), changes, (out, self.outputs()?))?)
    }

    /// Returns x·Wᵀ + (x·a)·b + bias as one operation, with gradients of `x`, `a` `[input, r]` and `b` `[r, output]` only;
    /// all f32, but on a GPU `x` may be bf16, and the product is then.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn adapted(&self, x: &Tensor, (a, b): (&Tensor, &Tensor), bias: Option<&Tensor>) -> Result<Tensor> {
        if let Weight::Packed(weight) = &self.weight
            && [x, a, b].into_iter().chain(bias).all(is_plain)
        {
            return adapted_packed(weight, x, (a, b), bias);
        }
        #[cfg(feature = "cuda")]
        if let Some(product) = super::cuda::adapted(self, x, (a, b), bias)? {
            return Ok(product);
        }
        let frozen = self.clone();
        let [detached_x, detached_a, detached_b] = [x.detach(), a.detach(), b.detach()];
        let inner = detached_x.matmul(&detached_a)?;
        let product = (matmul(&detached_x, &self.to_dense(x)?.t()?)? + inner.matmul(&detached_b)?)?;
        let product = match bias {
            Some(bias) => product.broadcast_add(&bias.detach())?,
            None => product,
        };
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
            Weight::Packed(weight) => {
                let ids = ids.to_vec1::<u32>()?;
                let mut out = vec![0.0; ids.len() * weight.inputs()];
                self.copy_rows(&ids, &mut out)?;
                Tensor::from_vec(out, (ids.len(), weight.inputs()), &Device::Cpu)?.to_dtype(dtype)
            }
        }
    }

    /// Writes the rows `ids` of the weight to a slice on the CPU, `[ids, input]`.
    ///
    /// # Errors
    /// When an id is out of range or the device fails.
    pub fn copy_rows(&self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let Weight::Packed(weight) = &self.weight else {
            let rows = self.rows(&Tensor::new(ids, &Device::Cpu)?, DType::F32)?;
            return with_slices([&rows], |[rows]| {
                out.copy_from_slice(rows);
                Ok(())
            });
        };
        if let Some(id) = ids.iter().find(|id| **id as usize >= weight.outputs()) {
            candle_core::bail!("row {id} of {}", weight.outputs());
        }
        let part = 8 * weight.inputs();
        each(ids.chunks(8).zip(out.chunks_mut(part)).collect(), |(ids, out): (&[u32], &mut [f32])| {
            let rows = ids.iter().zip(out.chunks_exact_mut(weight.inputs()));
            rows.for_each(|(id, out)| weight.row(*id as usize, out));
        });
        Ok(())
    }

    /// Returns the weight in the number format and on the device of `x`.
    pub(super) fn to_dense(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => weight.to_dtype(x.dtype()),
            Weight::Quantized(weight) => weight.dequantize(x.device())?.to_dtype(x.dtype()),
            Weight::Packed(_) => self.to_f32()?.to_dtype(x.dtype()),
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
            Weight::Packed(weight) => {
                Tensor::from_vec(weight.to_f32(), (weight.outputs(), weight.inputs()), &Device::Cpu)
            }
        }
    }
}

/// Writes x·Wᵀ as training computes it: rows are rounded to bf16 where the weights are, and never to 8 bits.
pub(super) fn trained_product(weight: &Packed, x: &[f32], rows: usize, out: &mut [f32]) -> Result<()> {
    if weight.is_quantised() {
        product_exact(weight, x, rows, out)?;
    } else {
        product(weight, x, rows, out, &mut Prepared::default())?;
    }
    Ok(())
}

/// Returns gradient·W.
fn back(weight: &Packed, gradient: &Tensor) -> Result<Tensor> {
    let rows = gradient.dim(0)?;
    let mut out = vec![0.0; rows * weight.inputs()];
    with_slices([gradient], |[gradient]| Ok(product_transposed(weight, gradient, rows, &mut out)?))?;
    Tensor::from_vec(out, (rows, weight.inputs()), &Device::Cpu)
}

/// Returns x·Wᵀ + bias; the bias gets no gradient.
fn forward_packed(weight: &Arc<Packed>, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let shape = (rows, weight.outputs());
    let mut out = vec![0.0; rows * weight.outputs()];
    with_slices([&x.detach()], |[data]| {
        if x.track_op() {
            trained_product(weight, data, rows, &mut out)
        } else {
            Ok(product(weight, data, rows, &mut out, &mut Prepared::default())?)
        }
    })?;
    finish(&mut out, bias)?;
    let weight = Arc::clone(weight);
    explicit(&[x], Value::Owned(out, shape.into()), move |gradient| Ok(vec![Some(back(&weight, gradient)?)]))
}

/// Adds a bias to rows of a product.
fn finish(product: &mut [f32], bias: Option<&Tensor>) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    with_slices([bias], |[bias]| {
        threads::add_bias(product, bias);
        Ok(())
    })
}

fn adapted_packed(
    weight: &Arc<Packed>,
    x: &Tensor,
    (a, b): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let weight = Arc::clone(weight);
    let [x_, a_, b_] = [x.detach(), a.detach(), b.detach().contiguous()?];
    let (rows, rank) = (x_.dim(0)?, a_.dim(1)?);
    let inner = product_of(&x_, &a_)?;
    let mut out = vec![0.0; rows * weight.outputs()];
    with_slices([&x_, &b_], |[x, b]| {
        trained_product(&weight, x, rows, &mut out)?;
        add_low_rank(&inner, rank, b, &mut out)
    })?;
    finish(&mut out, bias)?;
    let shape = (rows, weight.outputs());
    let inner = Tensor::from_vec(inner, (rows, rank), &Device::Cpu)?;
    explicit(&[x, a, b], Value::Owned(out, shape.into()), move |gradient| {
        let for_inner = product_of(gradient, &b_.t()?)?;
        let for_inner = Tensor::from_vec(for_inner, (rows, rank), &Device::Cpu)?;
        let mut for_x = vec![0.0; rows * weight.inputs()];
        with_slices([gradient, &for_inner, &a_.t()?], |[gradient, for_inner, a]| {
            product_transposed(&weight, gradient, rows, &mut for_x)?;
            add_low_rank(for_inner, rank, a, &mut for_x)
        })?;
        let for_x = Tensor::from_vec(for_x, (rows, weight.inputs()), &Device::Cpu)?;
        let for_a = Tensor::from_vec(product_of(&x_.t()?, &for_inner)?, a_.shape(), &Device::Cpu)?;
        let for_b = Tensor::from_vec(product_of(&inner.t()?, gradient)?, b_.shape(), &Device::Cpu)?;
        Ok(vec![Some(for_x), Some(for_a), Some(for_b)])
    })
}

/// Returns x·Wᵀ for a weight `[output, input]` that may be in training, with gradients of both; on a GPU `x` may be bf16
/// where the weight is f32, and the product is then.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn dense_product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(product) = super::cuda::dense(x, weight)? {
        return Ok(product);
    }
    let [x_, weight_] = [x.detach(), weight.detach()];
    let product = matmul(&x_, &weight_.t()?)?;
    let learns = weight.track_op();
    explicit(&[x, weight], product, move |gradient| {
        let for_x = matmul(gradient, &weight_)?;
        let for_weight = if learns { Some(matmul(&gradient.t()?, &x_)?) } else { None };
        Ok(vec![Some(for_x), for_weight])
    })
}

/// Returns the product of two matrices, or batches of them, in the number format of `a`.
///
/// On the CPU the half formats are computed in f32: candle has no bf16 product there.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.rank() == 2 && b.rank() == 2 && is_plain(a) && is_plain(b) && !a.track_op() && !b.track_op() {
        return Tensor::from_vec(product_of(a, b)?, (a.dim(0)?, b.dim(1)?), &Device::Cpu);
    }
    let half = matches!(a.dtype(), DType::BF16 | DType::F16);
    if half && a.device().is_cpu() {
        return a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?.to_dtype(a.dtype());
    }
    a.matmul(b)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

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
        let bias = values(&[6], 6);
        let plain = linear.affine(&x, Some(&bias)).unwrap();
        assert!(largest_difference(&plain, &linear.forward(&x).unwrap().broadcast_add(&bias).unwrap()) < 1e-6);
        let composed = (plain + x.matmul(&a).unwrap().matmul(&b).unwrap()).unwrap();
        let fused = linear.adapted(&x, (&a, &b), Some(&bias)).unwrap();
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
        both_forms_agree(&[7, 5], |x| linear.adapted(x, (&a, &b), None).unwrap());
        both_forms_agree(&[5, 2], |a| linear.adapted(&x, (a, &b), None).unwrap());
        both_forms_agree(&[2, 6], |b| linear.adapted(&x, (&a, b), None).unwrap());
        let weight = values(&[6, 5], 1);
        both_forms_agree(&[7, 5], |x| dense_product(x, &weight).unwrap());
        both_forms_agree(&[6, 5], |weight| dense_product(&x, weight).unwrap());
    }

    #[test]
    fn a_weight_without_kernels_of_our_own_carries_gradients() {
        let weight = Arc::new(QTensor::quantize(&values(&[6, 256], 1), GgmlDType::Q2K).unwrap());
        let plain = weight.dequantize(&Device::Cpu).unwrap();
        let linear = Linear::quantized(weight);
        assert!(linear.packed().is_none());
        let [x, a, b] = [(&[7, 256], 2), (&[256, 2], 3), (&[2, 6], 4)]
            .map(|(shape, seed)| Var::from_tensor(&values(shape, seed)).unwrap());
        let weights = values(&[7, 6], 5);
        let got = linear.adapted(&x, (&a, &b), None).unwrap();
        let low_rank = x.matmul(&a).unwrap().matmul(&b).unwrap();
        let expected = (x.matmul(&plain.t().unwrap()).unwrap() + low_rank).unwrap();
        let [got, expected] = [got, expected].map(|y| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap());
        for var in [&x, &a, &b] {
            let expected = expected.get(var.as_tensor()).unwrap();
            assert!(largest_difference(got.get(var.as_tensor()).unwrap(), expected) < 1e-3);
        }
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
