//! Tests of attention over the pool, against plain loops on the CPU.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::ops::cuda::testing::{close, counts, gpu, numbers, on, values};

/// Heads, heads of keys, numbers of a head.
const FORMS: [(usize, usize, usize); 10] = [
    (4, 2, 16),
    (9, 3, 64),
    (3, 3, 32),
    (16, 1, 64),
    (12, 1, 128),
    (20, 1, 80),
    (4, 4, 96),
    (2, 1, 24),
    (8, 1, 128),
    (2, 1, 256),
];

/// Sequences in a pool, block by block in an order of their own.
struct Pool {
    /// Keys and values, `[blocks, kv_heads, BLOCK, head_dim]`, of which those beyond a sequence are no numbers.
    tensors: [Tensor; 2],
    /// `[sequences, most_blocks]`.
    table: Vec<u32>,
    most_blocks: usize,
    /// `[tokens, kv_heads, head_dim]` of each sequence.
    sequences: Vec<[Vec<f32>; 2]>,
}

impl Pool {
    fn new(lengths: &[usize], kv_heads: usize, head_dim: usize) -> Self {
        let most_blocks = lengths.iter().max().unwrap().div_ceil(BLOCK) + 1;
        let blocks = lengths.len() * most_blocks;
        // An order of their own: the stride has no factor in common with the count.
        let stride = (1..blocks)
            .rev()
            .find(|stride| (2..=*stride).all(|d| !stride.is_multiple_of(d) || !blocks.is_multiple_of(d)))
            .unwrap_or(1);
        let table: Vec<u32> = (0..blocks).map(|i| (i * stride % blocks) as u32).collect();
        let width = kv_heads * head_dim;
        let sequence =
            |(seed, length): (u64, &usize)| [0, 100].map(|of| numbers(&values(&[length.max(&1) * width], seed + of)));
        let sequences: Vec<_> = (1..).zip(lengths).map(sequence).collect();
        let tensors = [0, 1].map(|of: usize| {
            let mut pool = vec![f32::NAN; blocks * BLOCK * width];
            for (i, length) in lengths.iter().enumerate() {
                for token in 0..*length {
                    let block = table[i * most_blocks + token / BLOCK] as usize;
                    for head in 0..kv_heads {
                        let to = ((block * kv_heads + head) * BLOCK + token % BLOCK) * head_dim;
                        let from = token * width + head * head_dim;
                        pool[to..to + head_dim].copy_from_slice(&sequences[i][of][from..from + head_dim]);
                    }
                }
            }
            Tensor::from_vec(pool, (blocks, kv_heads, BLOCK, head_dim), &Device::Cpu).unwrap()
        });
        Self { tensors, table, most_blocks, sequences }
    }

    /// What a query row at `position` mixes, `[heads, head_dim]`.
    fn mix(
        &self,
        sequence: usize,
        q: &[f32],
        (kv_heads, head_dim): (usize, usize),
        seen: std::ops::Range<usize>,
    ) -> Vec<f32> {
        let [keys, values] = &self.sequences[sequence];
        let heads = q.len() / head_dim;
        let mut out = vec![0.0; q.len()];
        for head in 0..heads {
            let own = |of: &[f32], token: usize| {
                let from = (token * kv_heads + head * kv_heads / heads) * head_dim;
                of[from..from + head_dim].to_vec()
            };
            let query = &q[head * head_dim..][..head_dim];
            let score = |token| {
                let product: f64 = query.iter().zip(own(keys, token)).map(|(a, b)| f64::from(a * b)).sum();
                product / (head_dim as f64).sqrt()
            };
            let shares: Vec<f64> = seen.clone().map(|token| score(token).exp()).collect();
            let total: f64 = shares.iter().sum();
            for (token, share) in seen.clone().zip(shares) {
                let mixed = out[head * head_dim..][..head_dim].iter_mut().zip(own(values, token));
                mixed.for_each(|(out, value)| *out += (share / total) as f32 * value);
            }
        }
        out
    }
}

#[test]
fn on_gpu_a_decode_step_attends_as_plain_loops_do() {
    let gpu = gpu();
    // The second case is divided into splits of one page a warp.
    for lengths in [vec![1, 0, 16, 17, 100], vec![450], vec![5; 70]] {
        for (heads, kv_heads, head_dim) in FORMS.into_iter().take(if lengths.len() > 50 { 2 } else { FORMS.len() }) {
            let pool = Pool::new(&lengths, kv_heads, head_dim);
            let q = (values(&[lengths.len(), heads * head_dim], 9) * 2.0).unwrap();
            for window in [None, Some(20)] {
                let rows = lengths.iter().zip(q.to_vec2::<f32>().unwrap()).enumerate();
                let expected: Vec<f32> = rows
                    .flat_map(|(i, (length, q))| {
                        let first = window.map_or(0, |window| length.saturating_sub(window));
                        pool.mix(i, &q, (kv_heads, head_dim), first..*length)
                    })
                    .collect();
                let expected = Tensor::from_vec(expected, q.shape(), &Device::Cpu).unwrap();
                for dtype in [DType::F32, DType::BF16] {
                    let [keys, values] = pool.tensors.each_ref().map(|tensor| on(&gpu, tensor, dtype));
                    let live: Vec<u32> = lengths.iter().map(|length| *length as u32).collect();
                    let blocks = counts(&gpu, &pool.table).reshape((lengths.len(), pool.most_blocks)).unwrap();
                    let lengths = counts(&gpu, &live);
                    let q = on(&gpu, &q, dtype);
                    let room = decode_scratch(&q, &keys, pool.most_blocks).unwrap();
                    let scratch = gpu.tensor(room, DType::F32).unwrap();
                    let out = gpu.tensor(q.shape(), dtype).unwrap();
                    let seen = Seen { lengths: &lengths, blocks: &blocks, window };
                    attend_decode(&gpu, &q, [&keys, &values], seen, &scratch, &out).unwrap();
                    close(&out, &expected, dtype);
                }
            }
        }
    }
}

#[test]
fn on_gpu_rows_of_sequences_attend_as_plain_loops_do() {
    let gpu = gpu();
    // Query rows and tokens before them.
    for parts in [vec![(70, 0), (1, 33), (0, 5), (3, 0), (17, 100)], vec![(130, 7)]] {
        for (heads, kv_heads, head_dim) in FORMS {
            let lengths: Vec<usize> = parts.iter().map(|(rows, past)| rows + past).collect();
            let pool = Pool::new(&lengths, kv_heads, head_dim);
            let rows: usize = parts.iter().map(|(rows, _)| rows).sum();
            let q = (values(&[rows, heads * head_dim], 9) * 2.0).unwrap();
            for window in [None, Some(20)] {
                let mut next = q.to_vec2::<f32>().unwrap().into_iter();
                let mut expected = Vec::new();
                for (i, (rows, past)) in parts.iter().enumerate() {
                    for position in *past..past + rows {
                        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                        let own = next.next().unwrap();
                        expected.extend(pool.mix(i, &own, (kv_heads, head_dim), first..position + 1));
                    }
                }
                let expected = Tensor::from_vec(expected, q.shape(), &Device::Cpu).unwrap();
                for dtype in [DType::F32, DType::BF16] {
                    let [keys, values] = pool.tensors.each_ref().map(|tensor| on(&gpu, tensor, dtype));
                    let mut starts = vec![0];
                    parts.iter().for_each(|(rows, _)| starts.push(starts.last().unwrap() + *rows as u32));
                    let pasts: Vec<u32> = parts.iter().map(|(_, past)| *past as u32).collect();
                    let [starts, pasts] = [&starts, &pasts].map(|list| counts(&gpu, list));
                    let blocks = counts(&gpu, &pool.table).reshape((parts.len(), pool.most_blocks)).unwrap();
                    let longest = parts.iter().map(|(rows, _)| *rows).max().unwrap();
                    let rows = Rows { starts: &starts, pasts: &pasts, blocks: &blocks, longest, window };
                    let out = gpu.tensor(q.shape(), dtype).unwrap();
                    attend_rows(&gpu, &on(&gpu, &q, dtype), [&keys, &values], rows, &out).unwrap();
                    close(&out, &expected, dtype);
                }
            }
        }
    }
}

#[test]
fn on_gpu_attention_refuses_what_does_not_fit() {
    let gpu = gpu();
    let tensor = |shape: &[usize], dtype| gpu.tensor(shape, dtype).unwrap();
    let pool = tensor(&[4, 2, BLOCK, 16], DType::F32);
    let (q, scratch) = (tensor(&[1, 64], DType::F32), tensor(&[1], DType::F32));
    let (lengths, blocks) = (counts(&gpu, &[1]), tensor(&[1, 400], DType::U32));
    let seen = Seen { lengths: &lengths, blocks: &blocks, window: None };
    attend_decode(&gpu, &q, [&pool, &pool], seen, &scratch, &q).unwrap_err();
    let odd = tensor(&[1, 48], DType::F32);
    attend_decode(&gpu, &odd, [&pool, &pool], seen, &scratch, &odd).unwrap_err();
    let rows = Rows { starts: &lengths, pasts: &lengths, blocks: &blocks, longest: 1, window: None };
    attend_rows(&gpu, &q, [&pool, &pool], rows, &q).unwrap_err();
}
