//! What the blocks of a decoder are made of: projections, rotation angles, attention over packed sequences.
//!
//! Knows no architecture: who stacks these is in `llama.rs`. Attention of tensors loops over sequences; on the CPU the
//! kernels of `ops` take its place.
//! Shapes: rows are packed tokens; keys and values are `[kv_heads, tokens, head_dim]`.
//! After: Vaswani et al. 2017, Ainslie et al. 2023 (grouped queries), Jiang et al. 2023 (sliding window).

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::ModelError;
use crate::lora::{Change, Changed, LoraBatch, OpenBatch, SiteId};
use crate::ops::buffer::Buffer;
use crate::ops::cpu::{LowRank, Prepared, threads};
use crate::ops::learning::{Layer, Learnt, Weight};
use crate::ops::{self, Linear, Product, explicit, matmul, softmax, softmax_backward, with_slices};

/// A linear layer that adapters can change.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) site: SiteId,
    pub(super) weight: Linear,
    pub(super) bias: Option<Tensor>,
}

impl Projection {
    /// Returns Wx + bias `[rows, output]`, with the changes of the adapters of `lora`; `x` is `[rows, input]`.
    pub(super) fn forward(&self, x: &Tensor, lora: &LoraBatch) -> Result<Tensor> {
        if let Some(replaced) = lora.whole(self.site, x)? {
            return Ok(replaced);
        }
        let known = x.dtype() == DType::F32 || x.dtype() == DType::BF16 && !x.device().is_cpu();
        if x.track_op()
            && known
            && let Some(change) = lora.low_rank(self.site, x.dim(0)?)?
        {
            return self.weight.adapted(x, change, self.bias.as_ref());
        }
        if lora.changes(self.site) {
            return lora.linear(self.site, x, self.weight.forward(x)?, self.bias.as_ref());
        }
        self.weight.affine(x, self.bias.as_ref())
    }

    fn learning<'a>(&'a self, lora: &'a LoraBatch, rows: usize) -> Result<Option<Layer<'a>>> {
        let own = self.bias.as_ref().map(|bias| (bias, false));
        let layer = match lora.touching(self.site, rows)?.as_slice() {
            [] => Layer { weight: Weight::Frozen(&self.weight, None), bias: own },
            [(run, Change::Replaced { weight, bias })] if run.rows.len() == rows => {
                Layer { weight: Weight::Whole(weight), bias: bias.as_ref().map(|bias| (bias, true)) }
            }
            _ => match lora.low_rank(self.site, rows)? {
                Some(change) => Layer { weight: Weight::Frozen(&self.weight, Some(change)), bias: own },
                None => return Ok(None),
            },
        };
        Ok(layer.is_known().then_some(layer))
    }
}

/// Returns layers as a block's own backward takes them; none where only the graph knows how. `rows` are those that runs
/// count.
pub(super) fn learning<'a, const N: usize>(
    layers: [&'a Projection; N],
    lora: &'a LoraBatch,
    rows: usize,
) -> Result<Option<[Layer<'a>; N]>> {
    let layers = layers.map(|layer| layer.learning(lora, rows)).into_iter().collect::<Result<Option<Vec<_>>>>()?;
    Ok(layers.and_then(|layers| layers.try_into().ok()))
}

/// Runs a block's own backward on the threads of the pool: from the gradient of its output to that of `input`, and what
/// learnt with its gradients.
pub(super) fn run_backward(
    input: &Tensor,
    gradient: &Tensor,
    backward: impl FnOnce(&[f32], &[f32], &mut Vec<Learnt>) -> Result<Buffer> + Send,
) -> std::result::Result<(Tensor, Vec<Learnt>), ModelError> {
    let mut learnt = Vec::new();
    let for_input =
        rayon::scope(|_| with_slices([input, gradient], |[x, gradient]| backward(x, gradient, &mut learnt)))?;
    Ok((Tensor::from_vec(for_input.into_vec(), input.shape(), &Device::Cpu)?, learnt))
}

/// Applies linear layers with their adapters to the same rows on the CPU, without a gradient: `x` is `[rows, input]`,
/// results take the place of what their buffers held. Takes no memory where weights
/// have kernels and adapters only add low-rank matrices.
pub(super) fn project<const N: usize>(
    lora: &OpenBatch<'_>,
    (x, rows): (&[f32], usize),
    mut layers: [(&Projection, &mut Vec<f32>); N],
    prepared: &mut Prepared,
) -> Result<()> {
    let (mut list, mut ends, mut is_all): (Vec<LowRank<'_>>, _, _) = (prepared.list(), [0; N], true);
    for ((layer, out), end) in layers.iter_mut().zip(&mut ends) {
        is_all &= lora.low_ranks(layer.site, rows, &mut list)?;
        *end = list.len();
        out.resize(rows * layer.weight.outputs()?, 0.0);
    }
    if !is_all {
        prepared.keep(list);
        return project_changed(lora, (x, rows), layers, prepared);
    }
    let mut next = 0;
    let products = layers.iter_mut().zip(ends).map(|((layer, out), end)| {
        let changes = &list[std::mem::replace(&mut next, end)..end];
        Product { linear: &layer.weight, out, changes }
    });
    Linear::forward_all(x, rows, products, prepared)?;
    prepared.keep(list);
    layers.into_iter().try_for_each(|(layer, out)| {
        let Some(bias) = &layer.bias else { return Ok(()) };
        with_slices([bias], |[bias]| {
            threads::add_bias(out, bias);
            Ok(())
        })
    })
}

/// The same with whatever adapters do; results have their length.
fn project_changed<const N: usize>(
    lora: &OpenBatch<'_>,
    (x, rows): (&[f32], usize),
    mut layers: [(&Projection, &mut Vec<f32>); N],
    prepared: &mut Prepared,
) -> Result<()> {
    let changed: Vec<_> = layers.iter().map(|(layer, _)| lora.changed(layer.site, rows)).collect::<Result<_>>()?;
    let read: Vec<_> = changed.iter().map(Changed::read).collect();
    let changes = changed.iter().zip(&read).map(|(changed, read)| changed.low_ranks(read));
    let changes = changes.collect::<Result<Vec<_>>>()?;
    let all = layers.iter_mut().zip(&changed).zip(&changes).filter(|((_, changed), _)| !changed.is_replaced());
    let products = all.map(|(((layer, out), _), changes)| Product { linear: &layer.weight, out, changes });
    Linear::forward_all(x, rows, products, prepared)?;
    layers.into_iter().zip(&changed).try_for_each(|((layer, out), changed)| changed.finish(x, layer.bias.as_ref(), out))
}

/// Cosine and sine of the rotation angles, `[tokens, head_dim/2]` each.
#[derive(Debug)]
pub(super) struct Angles {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Angles {
    /// Computes them for the positions of a packed batch; `frequencies` are radians a token. In f32, as transformers.
    pub(super) fn new(
        positions: impl ExactSizeIterator<Item = usize>,
        frequencies: &[f32],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (positions.len(), frequencies.len());
        let mut cos = Vec::with_capacity(shape.0 * shape.1);
        let mut sin = Vec::with_capacity(shape.0 * shape.1);
        for position in positions {
            for frequency in frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        let tensor = |data| Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device);
        Ok(Self { cos: tensor(cos)?, sin: tensor(sin)? })
    }
}

/// Queries computed together: bounds the memory of their scores, and skips keys that none of them sees.
const QUERY_BLOCK: usize = 128;

/// The rows of one sequence in a packed batch, and what each of them sees.
#[derive(Debug)]
pub(super) struct Span {
    /// Rows of the packed batch.
    pub(super) rows: Range<usize>,
    window: Option<usize>,
    blocks: Vec<QueryBlock>,
}

#[derive(Debug)]
struct QueryBlock {
    /// Rows within the span.
    rows: Range<usize>,
    /// Positions that at least one of the rows sees.
    keys: Range<usize>,
    /// Position of the first of the rows.
    position: usize,
    window: Option<usize>,
    /// 0 or -∞, `[rows, keys]`: kernels need none, so it is made when it is asked for.
    mask: OnceLock<Tensor>,
}

impl Span {
    /// Plans the attention of `rows` whose first has position `past`: the token at position i sees the positions
    /// i-window+1 to i.
    pub(super) fn new(rows: Range<usize>, past: usize, window: Option<usize>) -> Self {
        let mut blocks = Vec::with_capacity(rows.len().div_ceil(QUERY_BLOCK));
        for start in (0..rows.len()).step_by(QUERY_BLOCK) {
            let end = (start + QUERY_BLOCK).min(rows.len());
            let keys = first_seen(past + start, window)..past + end;
            let position = past + start;
            blocks.push(QueryBlock { rows: start..end, keys, position, window, mask: OnceLock::new() });
        }
        Self { rows, window, blocks }
    }
}

/// Returns the first position that the one at `position` sees.
fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Returns softmax(q·kᵀ/√head_dim)·v of one sequence, `[tokens, heads·head_dim]`.
///
/// `q` is `[tokens, heads, head_dim]`; `keys` and `values` hold the whole sequence up to its last token. Heads that
/// share a key and value head are stacked as rows of one product, so nothing is repeated.
pub(super) fn attend(span: &Span, q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (_, heads, head_dim) = q.dims3()?;
    let mut out = Vec::with_capacity(span.blocks.len());
    for block in &span.blocks {
        let rows = block.rows.len();
        let (_, shares) = block.shares(q, keys)?;
        let values = values.narrow(1, block.keys.start, block.keys.len())?;
        let mixed = matmul(&shares.to_dtype(values.dtype())?, &values)?;
        out.push(mixed.reshape((heads, rows, head_dim))?.transpose(0, 1)?.reshape((rows, heads * head_dim))?);
    }
    if out.len() == 1 { Ok(out.remove(0)) } else { Tensor::cat(&out, 0) }
}

/// Returns [`attend`] of whole sequences with a gradient; `q` is `[tokens, heads, head_dim]`, `k` and `v` are
/// `[tokens, kv_heads, head_dim]` of the packed batch.
///
/// The backward computes the shares again: nothing of size tokens² is kept.
pub(super) fn attend_all(spans: &Arc<Vec<Span>>, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let lengths: Vec<usize> = spans.iter().map(|span| span.rows.len()).collect();
    let window = spans.first().and_then(|span| span.window);
    if let Some(mixed) = ops::attend_all(&lengths, window, q, k, v)? {
        return Ok(mixed);
    }
    attend_all_composed(spans, q, k, v)
}

/// The same by operations of tensors.
fn attend_all_composed(spans: &Arc<Vec<Span>>, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (queries, keys, values) = (q.detach(), k.detach(), v.detach());
    let part = |tensor: &Tensor, span: &Span| tensor.narrow(0, span.rows.start, span.rows.len());
    let by_head = move |tensor: &Tensor, span: &Span| part(tensor, span)?.transpose(0, 1)?.contiguous();
    let mixed =
        spans.iter().map(|span| attend(span, &part(&queries, span)?, &by_head(&keys, span)?, &by_head(&values, span)?));
    let mixed = Tensor::cat(&mixed.collect::<Result<Vec<_>>>()?, 0)?;
    let spans = Arc::clone(spans);
    explicit(&[q, k, v], mixed, move |gradient| {
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for span in spans.iter() {
            let (keys, values) = (by_head(&keys, span)?, by_head(&values, span)?);
            let gradients = attend_backward(span, &part(&queries, span)?, &keys, &values, &part(gradient, span)?)?;
            for (all, one) in parts.iter_mut().zip(gradients) {
                all.push(one);
            }
        }
        parts.into_iter().map(|parts| Tensor::cat(&parts, 0).map(Some)).collect()
    })
}

/// Returns the gradients of queries, keys and values of one sequence, `[tokens, heads, head_dim]` each.
fn attend_backward(span: &Span, q: &Tensor, keys: &Tensor, values: &Tensor, gradient: &Tensor) -> Result<[Tensor; 3]> {
    let (_, heads, head_dim) = q.dims3()?;
    let (kv_heads, tokens, _) = keys.dims3()?;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let dtype = q.dtype();
    let mut for_q = Vec::with_capacity(span.blocks.len());
    let mut for_keys: Option<Tensor> = None;
    let mut for_values: Option<Tensor> = None;
    for block in &span.blocks {
        let (rows, seen) = (block.rows.len(), block.keys.len());
        let stacked = (kv_heads, heads / kv_heads * rows, head_dim);
        let (q, shares) = block.shares(q, keys)?;
        let gradient = gradient.narrow(0, block.rows.start, rows)?.reshape((rows, heads, head_dim))?;
        let gradient = gradient.transpose(0, 1)?.contiguous()?.reshape(stacked)?;
        let values = values.narrow(1, block.keys.start, seen)?;
        let keys = keys.narrow(1, block.keys.start, seen)?;

        let for_shares = matmul(&gradient, &values.t()?)?.to_dtype(DType::F32)?;
        let for_scores = softmax_backward(&shares, &for_shares)?.to_dtype(dtype)?;
        let turned = (matmul(&for_scores, &keys)? * scale)?;
        for_q.push(turned.reshape((heads, rows, head_dim))?.transpose(0, 1)?.contiguous()?);
        let widen = |part: Tensor| part.pad_with_zeros(1, block.keys.start, tokens - block.keys.end);
        // `q` comes scaled.
        let part = widen(matmul(&for_scores.t()?, &q)?)?;
        for_keys = Some(match for_keys {
            None => part,
            Some(sum) => (sum + part)?,
        });
        let part = widen(matmul(&shares.to_dtype(dtype)?.t()?, &gradient)?)?;
        for_values = Some(match for_values {
            None => part,
            Some(sum) => (sum + part)?,
        });
    }
    match (for_keys, for_values) {
        (Some(k), Some(v)) => Ok([Tensor::cat(&for_q, 0)?, k.transpose(0, 1)?, v.transpose(0, 1)?]),
        _ => bail!("a sequence without tokens"),
    }
}

impl QueryBlock {
    /// Returns what is added to scores; nothing when every row sees all keys.
    fn mask(&self, device: &Device) -> Result<Option<&Tensor>> {
        if self.rows.len() == 1 {
            return Ok(None);
        }
        if self.mask.get().is_none() {
            let mut mask = vec![f32::NEG_INFINITY; self.rows.len() * self.keys.len()];
            for (row, position) in mask.chunks_exact_mut(self.keys.len()).zip(self.position..) {
                row[first_seen(position, self.window) - self.keys.start..=position - self.keys.start].fill(0.0);
            }
            let mask = Tensor::from_vec(mask, (self.rows.len(), self.keys.len()), device)?;
            // Another thread may have been faster: theirs is the same.
            let _ = self.mask.set(mask);
        }
        Ok(self.mask.get())
    }

    /// Returns the scaled queries `[kv_heads, group·rows, head_dim]` and their shares `[kv_heads, group·rows, keys]`, f32.
    fn shares(&self, q: &Tensor, keys: &Tensor) -> Result<(Tensor, Tensor)> {
        let (_, heads, head_dim) = q.dims3()?;
        let kv_heads = keys.dim(0)?;
        let (rows, seen) = (self.rows.len(), self.keys.len());
        let scale = 1.0 / (head_dim as f64).sqrt();
        let stacked = (kv_heads, heads / kv_heads * rows, head_dim);
        let q = (q.narrow(0, self.rows.start, rows)?.transpose(0, 1)?.contiguous()?.reshape(stacked)? * scale)?;
        let keys = keys.narrow(1, self.keys.start, seen)?;
        let mut scores = matmul(&q, &keys.t()?)?.to_dtype(DType::F32)?;
        if let Some(mask) = self.mask(q.device())? {
            scores = scores.reshape((heads, rows, seen))?.broadcast_add(mask)?.reshape((kv_heads, (), seen))?;
        }
        Ok((q, softmax(&scores)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Var};
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn random(shape: (usize, usize, usize), seed: u64) -> Tensor {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let data: Vec<f32> = (0..shape.0 * shape.1 * shape.2).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// Attention of all sequences at once, of operations that have gradients of candle's own.
    fn composed(lengths: &[usize], window: Option<usize>, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (tokens, heads, head_dim) = q.dims3().unwrap();
        let kv_heads = k.dim(1).unwrap();
        let sequence: Vec<_> = lengths.iter().enumerate().flat_map(|(i, len)| vec![i; *len]).collect();
        let sees = |row: usize, key: usize| {
            sequence[row] == sequence[key] && key <= row && window.is_none_or(|window| row - key < window)
        };
        let mask = (0..tokens * tokens).map(|i| if sees(i / tokens, i % tokens) { 0.0 } else { f32::NEG_INFINITY });
        let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), (tokens, tokens), &Device::Cpu).unwrap();
        let head = |tensor: &Tensor, head: usize| tensor.narrow(1, head, 1).unwrap().squeeze(1).unwrap();
        let one = |i: usize| {
            let own = i / (heads / kv_heads);
            let scores = head(q, i).matmul(&head(k, own).t().unwrap()).unwrap();
            let scores = (scores * (1.0 / (head_dim as f64).sqrt())).unwrap().broadcast_add(&mask).unwrap();
            let powers = scores.exp().unwrap();
            let shares = powers.broadcast_div(&powers.sum_keepdim(D::Minus1).unwrap()).unwrap();
            shares.matmul(&head(v, own)).unwrap()
        };
        Tensor::cat(&(0..heads).map(one).collect::<Vec<_>>(), 1).unwrap()
    }

    #[test]
    fn attention_of_several_sequences_is_the_composed_one_with_its_gradients() {
        let lengths = [5, QUERY_BLOCK + 22, 1, 2 * QUERY_BLOCK, 3];
        let tokens: usize = lengths.iter().sum();
        for window in [None, Some(1), Some(7), Some(QUERY_BLOCK + 12)] {
            let mut end = 0;
            let spans = lengths.iter().map(|len| {
                end += len;
                Span::new(end - len..end, 0, window)
            });
            let spans = Arc::new(spans.collect::<Vec<_>>());
            let vars = [(4, 1), (2, 2), (2, 3)]
                .map(|(heads, seed)| Var::from_tensor(&random((tokens, heads, 6), seed)).unwrap());
            let [q, k, v] = vars.each_ref().map(Var::as_tensor);
            let weights = random((tokens, 24, 1), 4).squeeze(2).unwrap();
            let forms = [
                attend_all(&spans, q, k, v).unwrap(),
                attend_all_composed(&spans, q, k, v).unwrap(),
                composed(&lengths, window, q, k, v),
            ];
            assert!(difference(&forms[0], &forms[2]) < 1e-5, "{window:?}");
            assert!(difference(&forms[1], &forms[2]) < 1e-5, "{window:?}, of tensors");
            let gradients = forms.map(|mixed| (mixed * &weights).unwrap().sum_all().unwrap().backward().unwrap());
            for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
                let theirs = gradients[2].get(tensor).unwrap();
                let ours = gradients[0].get(tensor).unwrap();
                assert!(difference(gradients[1].get(tensor).unwrap(), theirs) < 1e-4, "{name}, {window:?}, of tensors");
                assert!(
                    theirs.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap() > 0.1
                        || window == Some(1) && name != "v"
                );
                assert!(difference(ours, theirs) < 1e-4, "{name}, {window:?}");
            }
        }
    }
}
