//! Attention of whole sequences packed behind each other, with its gradients: what training and scoring do.
//!
//! Shapes: queries, results and their gradients `[tokens, heads, head_dim]`, keys and values
//! `[tokens, kv_heads, head_dim]`, all of one format, f32 or bf16; nothing of size tokens² exists.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;
use crate::ops::cpu::Groups;
use crate::ops::explicit::explicit;

/// Rows of queries or of keys that a block takes (`flash.cuh`).
const ROWS: usize = 64;
/// Rows of the four tiles that a step fills or works on.
const SEEN: usize = 4 * 32;
const THREADS: u32 = 128;
/// Bytes between two rows of a tile beside their numbers.
const PAD: usize = 16;
/// Heads that a block of the deltas takes.
const DELTA_HEADS: usize = 4;

/// What a token sees of its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// All of it.
    All,
    /// Itself and what lies before it; with a window up to window-1 tokens of that.
    Before(Option<usize>),
}

/// Sequences packed behind each other.
#[derive(Debug, Clone)]
pub struct Whole {
    /// Rows at which sequences begin, and their end: u32 `[sequences + 1]`.
    pub starts: Tensor,
    /// Tokens of the longest.
    pub longest: usize,
    /// What their tokens see.
    pub sight: Sight,
}

/// Sizes of what comes.
struct Sizes {
    sequences: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Whole {
    /// Puts the starts of sequences of `lengths` on the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(gpu: &Gpu, lengths: &[usize], sight: Sight) -> Result<Self> {
        let mut starts = vec![0];
        let mut end = 0;
        for length in lengths {
            end += *length as u32;
            starts.push(end);
        }
        let starts = Tensor::new(starts, &gpu.device())?;
        Ok(Self { starts, longest: lengths.iter().copied().max().unwrap_or(0), sight })
    }

    fn sizes(&self, [q, k, v]: [&Tensor; 3]) -> Result<Sizes> {
        let ((tokens, heads, head_dim), kv_heads) = (q.dims3()?, k.dim(1)?);
        let shared = (tokens, kv_heads, head_dim);
        if k.dims3()? != shared || v.dims3()? != shared || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("queries {:?} do not fit keys {:?} and values {:?}", q.shape(), k.shape(), v.shape());
        }
        if k.dtype() != q.dtype() || v.dtype() != q.dtype() || self.starts.dtype() != DType::U32 {
            bail!("queries, keys and values of {:?}, {:?} and {:?}", q.dtype(), k.dtype(), v.dtype());
        }
        if !has_kernels(head_dim) {
            bail!("no attention of heads of {head_dim}");
        }
        Ok(Sizes { sequences: self.starts.elem_count().saturating_sub(1), tokens, heads, kv_heads, head_dim })
    }

    /// The arguments that every kernel takes.
    fn arguments(&self, sizes: &Sizes) -> [Argument<'_>; 6] {
        let [tokens, heads, kv_heads] =
            [sizes.tokens, sizes.heads, sizes.kv_heads].map(|count| Argument::U32(count as u32));
        // A window of 0 would see nothing: it means all.
        let window = match self.sight {
            Sight::All => 0,
            Sight::Before(window) => window.map_or(u32::MAX, |window| window.max(1) as u32),
        };
        let scale = (1.0 / (sizes.head_dim as f64).sqrt()) as f32;
        [Argument::Tensor(&self.starts), tokens, heads, kv_heads, Argument::U32(window), Argument::F32(scale)]
    }
}

impl Sizes {
    /// Returns the launch of a kernel whose blocks hold `rows` of tiles in shared memory.
    fn launch(
        &self,
        gpu: &Gpu,
        kernel: &str,
        dtype: DType,
        (grid, rows): ((usize, usize, usize), usize),
        arguments: &[Argument<'_>],
    ) -> Result<()> {
        let file = if dtype == DType::F32 { ("flash_f32", ptx::FLASH_F32) } else { ("flash_bf16", ptx::FLASH_BF16) };
        let function = named(&format!("{kernel}_{}", self.head_dim), [dtype])?;
        let shared = rows * (self.head_dim * dtype.size_in_bytes() + PAD);
        let grid = (grid.0 as u32, grid.1 as u32, grid.2 as u32);
        if grid.0 == 0 || grid.2 == 0 {
            return Ok(());
        }
        let launch = Launch { file, function: &function, grid, block: (THREADS, 1, 1), shared: shared as u32 };
        gpu.launch(launch, arguments)
    }
}

/// Returns whether there are kernels for a head size.
#[must_use]
pub fn has_kernels(head_dim: usize) -> bool {
    matches!(head_dim, 16 | 32 | 64 | 80 | 96 | 128)
}

/// Writes softmax(q·kᵀ/√head_dim)·v of each sequence to `out`, and to `log_sums`, f32 `[heads, tokens]`, what the backward
/// needs.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn attend_whole(gpu: &Gpu, [q, k, v]: [&Tensor; 3], whole: &Whole, out: &Tensor, log_sums: &Tensor) -> Result<()> {
    let sizes = whole.sizes([q, k, v])?;
    if out.elem_count() != q.elem_count() || out.dtype() != q.dtype() {
        bail!("queries {:?} do not fit results {:?}", q.shape(), out.shape());
    }
    check_sums(log_sums, &sizes)?;
    let mut arguments = [q, k, v].map(Argument::Tensor).to_vec();
    arguments.extend(whole.arguments(&sizes));
    arguments.extend([out, log_sums].map(Argument::Tensor));
    let grid = (whole.longest.div_ceil(ROWS), sizes.heads, sizes.sequences);
    sizes.launch(gpu, "attend", q.dtype(), (grid, ROWS + SEEN), &arguments)
}

/// Writes the gradients of queries, keys and values; `out` and `log_sums` are those of the forward, `gradient` is that of
/// `out`.
///
/// # Errors
/// As [`attend_whole`].
pub fn attend_whole_backward(
    gpu: &Gpu,
    [q, k, v]: [&Tensor; 3],
    whole: &Whole,
    (out, log_sums, gradient): (&Tensor, &Tensor, &Tensor),
    [for_q, for_k, for_v]: [&Tensor; 3],
) -> Result<()> {
    let (sizes, of) = (whole.sizes([q, k, v])?, q.dtype());
    for (one, like) in [(out, q), (gradient, q), (for_q, q), (for_k, k), (for_v, v)] {
        if one.elem_count() != like.elem_count() || one.dtype() != of {
            bail!("{:?} of {:?} does not fit {:?}", one.shape(), one.dtype(), like.shape());
        }
    }
    check_sums(log_sums, &sizes)?;
    let deltas = gpu.tensor((sizes.heads, sizes.tokens), DType::F32)?;
    let [tokens, heads] = [sizes.tokens, sizes.heads].map(|count| Argument::U32(count as u32));
    let grid = (sizes.tokens, sizes.heads.div_ceil(DELTA_HEADS), 1);
    let [out, gradient] = [out, gradient].map(Argument::Tensor);
    sizes.launch(gpu, "deltas", of, (grid, 0), &[out, gradient, tokens, heads, Argument::Tensor(&deltas)])?;

    let mut arguments = [q, k, v].map(Argument::Tensor).to_vec();
    arguments.extend([gradient, Argument::Tensor(log_sums), Argument::Tensor(&deltas)]);
    arguments.extend(whole.arguments(&sizes));
    let (tiles, held) = (whole.longest.div_ceil(ROWS), 2 * ROWS + SEEN);
    let for_queries = [&arguments[..], &[Argument::Tensor(for_q)]].concat();
    sizes.launch(gpu, "queries_back", of, ((tiles, sizes.heads, sizes.sequences), held), &for_queries)?;
    let for_keys = [&arguments[..], &[for_k, for_v].map(Argument::Tensor)].concat();
    sizes.launch(gpu, "keys_back", of, ((tiles, sizes.kv_heads, sizes.sequences), held), &for_keys)
}

fn check_sums(log_sums: &Tensor, sizes: &Sizes) -> Result<()> {
    if log_sums.dims() != [sizes.heads, sizes.tokens] || log_sums.dtype() != DType::F32 {
        bail!("logarithms of sums {:?} for {} heads of {} tokens", log_sums.shape(), sizes.heads, sizes.tokens);
    }
    Ok(())
}

/// Returns [`attend_whole`] of sequences of `lengths` in candle's graph, `[tokens, heads·head_dim]`; `None` where there are
/// no kernels for it.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub(in crate::ops) fn attend_all(
    lengths: &[usize],
    sight: Sight,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Option<Tensor>> {
    let (tokens, heads, head_dim) = q.dims3()?;
    let Some(gpu) = Gpu::of(q.device()) else { return Ok(None) };
    let known = matches!(q.dtype(), DType::F32 | DType::BF16) && has_kernels(head_dim);
    if !known || k.dtype() != q.dtype() || v.dtype() != q.dtype() || lengths.iter().sum::<usize>() != tokens {
        return Ok(None);
    }
    let inputs = [q.detach().contiguous()?, k.detach().contiguous()?, v.detach().contiguous()?];
    let whole = Whole::new(&gpu, lengths, sight)?;
    let out = gpu.tensor((tokens, heads * head_dim), q.dtype())?;
    let log_sums = gpu.tensor((heads, tokens), DType::F32)?;
    attend_whole(&gpu, inputs.each_ref(), &whole, &out, &log_sums)?;
    let mixed = out.clone();
    explicit(&[q, k, v], mixed, move |gradient| {
        let outs = gpu.alike(inputs.each_ref())?;
        let known = (&out, &log_sums, gradient);
        attend_whole_backward(&gpu, inputs.each_ref(), &whole, known, outs.each_ref())?;
        Ok(outs.map(Some).into())
    })
    .map(Some)
}

/// Returns softmax(q·kᵀ/√dim)·v of every group in candle's graph; queries, keys, values and the result are
/// `[groups·rows, heads·dim]`. `None` where there are no kernels for it.
///
/// # Errors
/// As [`attend_all`].
pub(in crate::ops) fn attend_groups(groups: Groups, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
    let Groups { rows, heads, dim } = groups;
    let all = q.dim(0)?;
    if !q.device().is_cuda() || !all.is_multiple_of(rows.max(1)) {
        return Ok(None);
    }
    let [q, k, v] = [q.reshape((all, heads, dim))?, k.reshape((all, heads, dim))?, v.reshape((all, heads, dim))?];
    attend_all(&vec![rows; all / rows.max(1)], Sight::All, &q, &k, &v)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::ops::cuda::testing::{close, gpu, values};

    /// Compares results and gradients with those of the CPU.
    fn compare(shapes: [[usize; 3]; 2], attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor) {
        let gpu = gpu();
        let inputs =
            [(shapes[0], 1), (shapes[1], 2), (shapes[1], 3)].map(|(shape, seed)| (values(&shape, seed) * 2.0).unwrap());
        let weights = values(&[shapes[0][0], shapes[0][1] * shapes[0][2]], 4);
        for dtype in [DType::F32, DType::BF16] {
            // The CPU computes with the same rounded numbers.
            let rounded = |x: &Tensor| x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            let run = |on: &dyn Fn(&Tensor) -> Tensor| {
                let vars = inputs.each_ref().map(|x| Var::from_tensor(&on(&rounded(x))).unwrap());
                let [q, k, v] = vars.each_ref().map(Var::as_tensor);
                let mixed = attend(q, k, v);
                let sum = (&mixed * on(&rounded(&weights))).unwrap().sum_all().unwrap();
                let gradients = sum.backward().unwrap();
                let gradients = vars.each_ref().map(|var| gradients.get(var.as_tensor()).unwrap().clone());
                (mixed.detach(), gradients)
            };
            let (expected, theirs) = run(&Tensor::clone);
            let (got, ours) = run(&|x| x.to_dtype(dtype).unwrap().to_device(&gpu.device()).unwrap());
            close(&got, &expected, dtype);
            for (ours, theirs) in ours.iter().zip(&theirs) {
                close(ours, theirs, dtype);
            }
        }
    }

    fn of_sequences(lengths: &[usize], (heads, kv_heads, head_dim): (usize, usize, usize), window: Option<usize>) {
        let tokens: usize = lengths.iter().sum();
        compare([[tokens, heads, head_dim], [tokens, kv_heads, head_dim]], |q, k, v| {
            crate::ops::attend_all(lengths, window, q, k, v).unwrap().unwrap()
        });
    }

    #[test]
    fn on_gpu_attention_of_sequences_is_that_of_the_cpu_with_its_gradients() {
        of_sequences(&[5, 70, 1, 64], (4, 2, 16), None);
        of_sequences(&[130, 3], (3, 3, 32), Some(7));
        of_sequences(&[33], (6, 2, 64), Some(1));
        of_sequences(&[100], (2, 1, 80), Some(64));
        of_sequences(&[65], (2, 2, 96), None);
        of_sequences(&[67, 20], (2, 1, 128), Some(33));
    }

    #[test]
    fn on_gpu_attention_of_groups_is_that_of_the_cpu_with_its_gradients() {
        for (count, groups) in [
            (3, Groups { rows: 50, heads: 2, dim: 16 }),
            (2, Groups { rows: 197, heads: 1, dim: 64 }),
            (4, Groups { rows: 1, heads: 2, dim: 32 }),
        ] {
            let shape = [count * groups.rows, groups.heads, groups.dim];
            compare([shape; 2], |q, k, v| {
                let [q, k, v] = [q, k, v].map(|x| x.flatten_from(1).unwrap());
                crate::ops::attend_groups(groups, &q, &k, &v).unwrap()
            });
        }
    }

    #[test]
    fn on_gpu_other_heads_are_left_to_the_composition() {
        let q = Tensor::zeros((3, 2, 24), DType::F32, &gpu().device()).unwrap();
        assert!(attend_all(&[3], Sight::All, &q, &q, &q).unwrap().is_none());
        let on_cpu = q.to_device(&Device::Cpu).unwrap();
        assert!(attend_all(&[3], Sight::All, &on_cpu, &on_cpu, &on_cpu).unwrap().is_none());
    }
}
