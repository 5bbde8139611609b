//! Attention within groups of rows with its gradient: plain, and Swin's cosine form with a bias for each pair.
//!
//! Puts the kernels of `cpu` into tensors; plain ones come from `cuda` too, the rest is composed.
//! Shapes: queries, keys, values `[groups·rows, heads·dim]`; the result too.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::cpu::{Groups, Scores, attend_groups as forward, attend_groups_backward};
use super::explicit::{Value, explicit};
use super::fused::softmax;
use super::linear::matmul;
use super::slices::{is_plain, with_slices};

/// What Swin's attention adds to the products of unit queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Cosine<'a> {
    /// Factors, f32 `[heads]`.
    pub scales: &'a Tensor,
    /// Biases by pair of rows, f32 `[heads, rows·rows]`.
    pub bias: &'a Tensor,
    /// Constants by kind of group and pair, f32 `[kinds, rows·rows]`: group g has kind g modulo kinds.
    pub mask: Option<&'a Tensor>,
}

/// Returns softmax(q·kᵀ/√dim)·v of every group.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn attend_groups(groups: Groups, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(mixed) = super::cuda::attend_groups(groups, q, k, v)? {
        return Ok(mixed);
    }
    let scale = (1.0 / (groups.dim as f64).sqrt()) as f32;
    let scales = Tensor::new(vec![scale; groups.heads], q.device())?;
    let inputs = [q.detach(), k.detach(), v.detach()];
    if !inputs.iter().all(is_plain) {
        return composed(groups, [q, k, v], &scales, None, None);
    }
    with_constants(groups, [q, k, v], scales, None, None)
}

/// Returns softmax(scale·q·kᵀ + bias + mask)·v of every group; `q` and `k` are of length 1 by head.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn attend_cosine(groups: Groups, q: &Tensor, k: &Tensor, v: &Tensor, how: Cosine<'_>) -> Result<Tensor> {
    let Cosine { scales, bias, mask } = how;
    if ![q, k, v, scales, bias].into_iter().chain(mask).all(is_plain) {
        return composed(groups, [q, k, v], scales, Some(bias), mask);
    }
    let learns = scales.track_op() || bias.track_op();
    if !learns {
        return with_constants(groups, [q, k, v], scales.clone(), Some(bias.clone()), mask.cloned());
    }
    // An operation has three inputs at most.
    let keys_values = Tensor::cat(&[k, v], 0)?;
    let table = Tensor::cat(&[&scales.flatten_all()?, &bias.flatten_all()?], 0)?;
    let inputs = [q.detach(), keys_values.detach(), table.detach()];
    let mask = mask.cloned();
    let out = with_all(groups, &inputs, mask.as_ref(), |inputs, scores| {
        let mut out = vec![0.0; inputs[0].len()];
        forward(groups, inputs, scores, &mut out)?;
        Ok(out)
    })?;
    let shape = q.shape().clone();
    explicit(&[q, &keys_values, &table], Value::Owned(out, shape), move |gradient| {
        let outs = with_all(groups, &inputs, mask.as_ref(), |[q, k, v], scores| {
            let mut for_q = vec![0.0; q.len()];
            let mut for_both = vec![0.0; k.len() + v.len()];
            let mut for_table = vec![0.0; scores.scales.len() + scores.bias.len()];
            let (for_k, for_v) = for_both.split_at_mut(k.len());
            let learnt = for_table.split_at_mut(scores.scales.len());
            with_slices([gradient], |[gradient]| {
                let outs = [&mut for_q[..], for_k, for_v];
                Ok(attend_groups_backward(groups, [q, k, v], scores, gradient, outs, Some(learnt))?)
            })?;
            Ok([for_q, for_both, for_table])
        })?;
        let tensors = outs.into_iter().zip(&inputs);
        tensors.map(|(data, like)| Tensor::from_vec(data, like.shape(), &Device::Cpu).map(Some)).collect()
    })
}

/// Calls `work` with queries, keys and values, and what becomes of their products.
fn with_all<R>(
    groups: Groups,
    [q, keys_values, table]: &[Tensor; 3],
    mask: Option<&Tensor>,
    work: impl FnOnce([&[f32]; 3], Scores<'_>) -> Result<R>,
) -> Result<R> {
    let none = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
    with_slices([q, keys_values, table, mask.unwrap_or(&none)], |[q, both, table, mask]| {
        let (k, v) = both.split_at(both.len() / 2);
        if table.len() < groups.heads {
            bail!("{} factors for {} heads", table.len(), groups.heads);
        }
        let (scales, bias) = table.split_at(groups.heads);
        work([q, k, v], Scores { scales, bias, mask })
    })
}

/// Attention whose factors and biases do not learn.
fn with_constants(
    groups: Groups,
    [q, k, v]: [&Tensor; 3],
    scales: Tensor,
    bias: Option<Tensor>,
    mask: Option<Tensor>,
) -> Result<Tensor> {
    let none = || Tensor::zeros(0, DType::F32, &Device::Cpu);
    let (bias, mask) = (bias.map_or_else(none, Ok)?.detach(), mask.map_or_else(none, Ok)?.detach());
    let inputs = [q.detach(), k.detach(), v.detach()];
    let scales = scales.detach();
    let [q_, k_, v_] = &inputs;
    let out = with_slices([q_, k_, v_, &scales, &bias, &mask], |[q, k, v, scales, bias, mask]| {
        let mut out = vec![0.0; q.len()];
        forward(groups, [q, k, v], Scores { scales, bias, mask }, &mut out)?;
        Ok(out)
    })?;
    let shape = q.shape().clone();
    explicit(&[q, k, v], Value::Owned(out, shape), move |gradient| {
        let [q, k, v] = &inputs;
        let slices = [q, k, v, &scales, &bias, &mask, gradient];
        let outs = with_slices(slices, |[q, k, v, scales, bias, mask, gradient]| {
            let mut outs = [q, k, v].map(|x| vec![0.0; x.len()]);
            let scores = Scores { scales, bias, mask };
            let to = outs.each_mut().map(Vec::as_mut_slice);
            attend_groups_backward(groups, [q, k, v], scores, gradient, to, None)?;
            Ok(outs)
        })?;
        let tensors = outs.into_iter().zip(&inputs);
        tensors.map(|(data, like)| Tensor::from_vec(data, like.shape(), &Device::Cpu).map(Some)).collect()
    })
}

/// The same by operations of tensors.
fn composed(
    groups: Groups,
    [q, k, v]: [&Tensor; 3],
    scales: &Tensor,
    bias: Option<&Tensor>,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let Groups { rows, heads, dim } = groups;
    let shape = q.shape().clone();
    // [groups·heads, rows, dim]
    let by_head =
        |x: &Tensor| x.reshape(((), rows, heads, dim))?.transpose(1, 2)?.contiguous()?.reshape(((), rows, dim));
    let [q, k, v] = [by_head(q)?, by_head(k)?, by_head(v)?];
    let scores = matmul(&q, &k.t()?.contiguous()?)?.to_dtype(DType::F32)?.reshape(((), heads, rows, rows))?;
    let mut scores = scores.broadcast_mul(&scales.to_dtype(DType::F32)?.reshape((1, heads, 1, 1))?)?;
    if let Some(bias) = bias {
        scores = scores.broadcast_add(&bias.reshape((1, heads, rows, rows))?)?;
    }
    if let Some(mask) = mask {
        let kinds = mask.elem_count() / (rows * rows);
        let mask = mask.reshape((1, kinds, 1, rows, rows))?;
        scores = scores.reshape(((), kinds, heads, rows, rows))?.broadcast_add(&mask)?;
    }
    let shares = softmax(&scores.reshape(((), rows, rows))?)?.to_dtype(v.dtype())?;
    let mixed = matmul(&shares, &v)?.reshape(((), heads, rows, dim))?;
    mixed.transpose(1, 2)?.contiguous()?.reshape(shape)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::fused::tests::{both_forms_agree, largest_difference, values};

    /// Compares the kernels' results and gradients with those of candle's operations.
    fn compare(groups: Groups, count: usize, kinds: usize) {
        let Groups { rows, heads, dim } = groups;
        let var = |shape: &[usize], seed| Var::from_tensor(&values(shape, seed)).unwrap();
        let [q, k, v] = [1, 2, 3].map(|seed| var(&[count * rows, heads * dim], seed));
        let (scales, bias) = (var(&[heads], 4), var(&[heads, rows * rows], 5));
        let mask = (kinds > 0).then(|| (values(&[kinds, rows * rows], 6) * 5.0).unwrap());
        let weights = values(&[count * rows, heads * dim], 7);
        let how = Cosine { scales: &scales, bias: &bias, mask: mask.as_ref() };
        let learning = attend_cosine(groups, &q, &k, &v, how).unwrap();
        let constant = Cosine { scales: &scales.detach(), bias: &bias.detach(), mask: mask.as_ref() };
        let fixed = attend_cosine(groups, &q, &k, &v, constant).unwrap();
        let theirs = composed(groups, [&q, &k, &v], &scales, Some(&bias), mask.as_ref()).unwrap();
        assert!(largest_difference(&learning, &theirs) < 1e-5, "{groups:?}");
        assert!(largest_difference(&fixed, &theirs) < 1e-5, "{groups:?}");
        let [learning, fixed, theirs] =
            [learning, fixed, theirs].map(|y| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap());
        for (name, tensor) in [("q", &q), ("k", &k), ("v", &v), ("scales", &scales), ("bias", &bias)] {
            let expected = theirs.get(tensor.as_tensor()).unwrap();
            let difference = largest_difference(learning.get(tensor.as_tensor()).unwrap(), expected);
            assert!(difference < 1e-4, "{groups:?} {name}: {difference}");
            if let Some(got) = fixed.get(tensor.as_tensor()) {
                assert!(largest_difference(got, expected) < 1e-4, "{groups:?} {name}");
            }
        }
        let plain = attend_groups(groups, &q, &k, &v).unwrap();
        let scales = Tensor::new(vec![1.0 / (dim as f32).sqrt(); heads], &Device::Cpu).unwrap();
        let expected = composed(groups, [&q, &k, &v], &scales, None, None).unwrap();
        assert!(largest_difference(&plain, &expected) < 1e-5, "{groups:?}");
    }

    #[test]
    fn attention_of_groups_is_the_composed_one_with_its_gradients() {
        compare(Groups { rows: 5, heads: 2, dim: 3 }, 4, 2);
        compare(Groups { rows: 16, heads: 3, dim: 16 }, 3, 0);
        compare(Groups { rows: 49, heads: 1, dim: 32 }, 4, 4);
        compare(Groups { rows: 1, heads: 2, dim: 20 }, 6, 1);
    }

    #[test]
    fn attention_of_groups_has_the_gradients_of_finite_differences() {
        let groups = Groups { rows: 3, heads: 2, dim: 4 };
        let [q, k, v] = [1, 2, 3].map(|seed| values(&[6, 8], seed));
        both_forms_agree(&[6, 8], |q| attend_groups(groups, q, &k, &v).unwrap());
        both_forms_agree(&[6, 8], |k| attend_groups(groups, &q, k, &v).unwrap());
        both_forms_agree(&[6, 8], |v| attend_groups(groups, &q, &k, v).unwrap());
        let (scales, bias, mask) = (values(&[2], 4), values(&[2, 9], 5), values(&[2, 9], 6));
        let cosine = |q: &Tensor, k: &Tensor, v: &Tensor, scales: &Tensor, bias: &Tensor| {
            attend_cosine(groups, q, k, v, Cosine { scales, bias, mask: Some(&mask) }).unwrap()
        };
        both_forms_agree(&[6, 8], |q| cosine(q, &k, &v, &scales, &bias));
        both_forms_agree(&[6, 8], |k| cosine(&q, k, &v, &scales, &bias));
        both_forms_agree(&[6, 8], |v| cosine(&q, &k, v, &scales, &bias));
        both_forms_agree(&[2], |scales| cosine(&q, &k, &v, scales, &bias));
        both_forms_agree(&[2, 9], |bias| cosine(&q, &k, &v, &scales, bias));
    }

    #[test]
    fn a_group_does_not_depend_on_those_beside_it() {
        let groups = Groups { rows: 50, heads: 3, dim: 20 };
        let [q, k, v] = [1, 2, 3].map(|seed| values(&[200, 60], seed));
        let all = attend_groups(groups, &q, &k, &v).unwrap();
        let part = |x: &Tensor| x.narrow(0, 100, 50).unwrap();
        let one = attend_groups(groups, &part(&q), &part(&k), &part(&v)).unwrap();
        assert_eq!(largest_difference(&part(&all), &one), 0.0);
        attend_groups(groups, &q.narrow(0, 0, 199).unwrap(), &k, &v).unwrap_err();
    }
}
