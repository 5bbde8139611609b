//! Attention of whole sequences with its gradient, on the CPU and on GPUs.
//!
//! Puts the kernels of `cpu` into tensors; those of `cuda` come in them. What neither knows is composed
//! (`model/layers.rs`).

use candle_core::{Device, Result, Tensor};

use super::buffer::Buffer;
use super::cpu::{Heads, KeysValues, Sequence, attend, attend_backward};
use super::explicit::{Value, explicit};
use super::slices::{is_plain, with_slices};

/// Returns softmax(q·kᵀ/√head_dim)·v of sequences of `lengths` behind each other, `[tokens, heads·head_dim]`, or `None`
/// where there are no kernels for it: on the CPU they are f32; `q` is `[tokens, heads, head_dim]`, `k` and `v` are
/// `[tokens, kv_heads, head_dim]`.
///
/// Each token sees itself and, with a window, up to window-1 before it. The backward computes the shares again: nothing
/// of size tokens² is kept.
///
/// # Errors
/// When shapes do not fit.
pub fn attend_all(
    lengths: &[usize],
    window: Option<usize>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if let Some(mixed) = super::cuda::attend_all(lengths, super::cuda::Sight::Before(window), q, k, v)? {
        return Ok(Some(mixed));
    }
    let inputs = [q.detach(), k.detach(), v.detach()];
    if !inputs.iter().all(is_plain) {
        return Ok(None);
    }
    let ((tokens, query_heads, head_dim), kv_heads) = (q.dims3()?, k.dim(1)?);
    let total: usize = lengths.iter().sum();
    let shared = (tokens, kv_heads, head_dim);
    if total != tokens || k.dims3()? != shared || v.dims3()? != shared || !query_heads.is_multiple_of(kv_heads) {
        candle_core::bail!("queries {:?} do not fit keys {:?} and values {:?}", q.shape(), k.shape(), v.shape());
    }
    let heads = Heads { heads: query_heads, kv_heads, head_dim, window };
    let out = with_slices(inputs.each_ref(), |[q, k, v]| Ok(attend_whole(heads, lengths, [q, k, v])))?;
    let lengths = lengths.to_vec();
    let value = Value::Owned(out.into_vec(), (tokens, query_heads * head_dim).into());
    let mixed = explicit(&[q, k, v], value, move |gradient| {
        let [q, k, v] = &inputs;
        let outs = with_slices([q, k, v, gradient], |[q, k, v, gradient]| {
            Ok(attend_whole_backward(heads, &lengths, [q, k, v], gradient))
        })?;
        let tensors = outs.into_iter().zip(&inputs);
        tensors.map(|(data, like)| Tensor::from_vec(data.into_vec(), like.shape(), &Device::Cpu).map(Some)).collect()
    })?;
    Ok(Some(mixed))
}

/// Returns what the sequences of `lengths` mix, `[tokens, heads·head_dim]`; slices are shaped as in [`attend_all`].
pub fn attend_whole(heads: Heads, lengths: &[usize], [q, k, v]: [&[f32]; 3]) -> Buffer {
    let width = heads.kv_heads * heads.head_dim;
    let mut first = 0;
    let own = |len: &usize| {
        let rows = first..first + len;
        first += len;
        let mut own = KeysValues::new(heads);
        own.write(0, &k[rows.start * width..rows.end * width], &v[rows.start * width..rows.end * width]);
        (rows, own)
    };
    let seen: Vec<_> = lengths.iter().map(own).collect();
    let sequences: Vec<_> =
        seen.iter().map(|(rows, own)| Sequence { rows: rows.clone(), past: 0, seen: own }).collect();
    let mut out = Buffer::new(q.len());
    attend(heads, q, &sequences, &mut out);
    out
}

/// Returns the gradients of queries, keys and values.
pub fn attend_whole_backward(heads: Heads, lengths: &[usize], [q, k, v]: [&[f32]; 3], gradient: &[f32]) -> [Buffer; 3] {
    let mut outs = [q, k, v].map(|x| Buffer::new(x.len()));
    let [for_q, for_k, for_v] = &mut outs;
    attend_backward(heads, [q, k, v], gradient, lengths, [for_q, for_k, for_v]);
    outs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::fused::tests::{both_forms_agree, values};

    #[test]
    fn attention_of_sequences_has_the_gradients_of_finite_differences() {
        let [q, k, v] = [([9, 4, 4], 1), ([9, 2, 4], 2), ([9, 2, 4], 3)].map(|(shape, seed)| values(&shape, seed));
        for window in [None, Some(2)] {
            let attend = |q: &Tensor, k: &Tensor, v: &Tensor| attend_all(&[3, 1, 5], window, q, k, v).unwrap().unwrap();
            both_forms_agree(&[9, 4, 4], |q| attend(q, &k, &v));
            both_forms_agree(&[9, 2, 4], |k| attend(&q, k, &v));
            both_forms_agree(&[9, 2, 4], |v| attend(&q, &k, v));
        }
    }
}
