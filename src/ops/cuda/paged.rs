//! Attention over the pool of keys and values: of one query row a sequence, and of several.
//!
//! Softmax is f32. bf16 with heads of at most 128 numbers goes through tensor cores, the rest through plain kernels.
//! Shapes: queries and results are `[rows, heads·head_dim]`, the pool of a layer `[blocks, kv_heads, BLOCK, head_dim]`,
//! twice; head_dim is a multiple of 8, at most 256. All are of one format, f32 or bf16.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;
use super::rotary::{BLOCK, MOST_NUMBERS};

/// Numbers of a head for which there are tensor cores.
const MOST_FAST: usize = 128;
/// Threads of a block, and the pages that its warps take at a time.
const THREADS: u32 = 128;
const WARPS: usize = 4;
/// Blocks of threads that fill a device, and pages that one shall have at most.
const ENOUGH: usize = 396;
const MOST_PAGES: usize = 64;
/// Queries of a block of threads.
const TILE: usize = 64;

/// What the rows of a decode step see.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Keys of each row, its own included, u32 `[rows]`; a row of none becomes zeros.
    pub lengths: &'a Tensor,
    /// Blocks of the pool that hold them, u32 `[rows, most_blocks]`.
    pub blocks: &'a Tensor,
    /// Keys that a row sees at most, the last ones.
    pub window: Option<usize>,
}

/// Which query rows belong to which sequence.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// First query row of each sequence and the end of the last one, u32 `[sequences + 1]`.
    pub starts: &'a Tensor,
    /// Tokens of each sequence before its first query row, u32 `[sequences]`.
    pub pasts: &'a Tensor,
    /// Blocks of the pool that hold keys and values, those of the query rows too, u32 `[sequences, most_blocks]`.
    pub blocks: &'a Tensor,
    /// Query rows of a sequence at most.
    pub longest: usize,
    /// Keys that a row sees at most, its own the last one.
    pub window: Option<usize>,
}

/// Sizes that queries and a pool have together.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Sizes {
    /// Checks queries, pool and result.
    fn of(q: &Tensor, [keys, values]: [&Tensor; 2], out: &Tensor) -> Result<Self> {
        let (_, kv_heads, block, head_dim) = keys.dims4()?;
        let (rows, width) = q.dims2()?;
        let alike = [keys, values, out].iter().all(|tensor| tensor.dtype() == q.dtype());
        let known = head_dim > 0 && head_dim.is_multiple_of(8) && head_dim <= MOST_NUMBERS && block == BLOCK;
        let heads = width / head_dim.max(1);
        let fits = values.dims() == keys.dims() && out.dims() == q.dims() && heads * head_dim == width;
        if !alike || !known || !fits || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("queries {:?} over a pool of {:?} for {:?}", q.shape(), keys.shape(), out.shape());
        }
        Ok(Self { rows, heads, kv_heads, head_dim })
    }

    /// Returns whether tensor cores multiply.
    fn is_fast(self, dtype: DType) -> bool {
        dtype == DType::BF16 && self.head_dim <= MOST_FAST
    }

    fn scale(self) -> Argument<'static> {
        Argument::F32((1.0 / (self.head_dim as f64).sqrt()) as f32)
    }
}

/// Returns in how many splits a decode step divides the keys of a row.
fn splits(rows: usize, groups: usize, most_blocks: usize) -> usize {
    let wanted = ENOUGH.div_ceil((rows * groups).max(1)).max(most_blocks.div_ceil(MOST_PAGES));
    wanted.min(most_blocks.div_ceil(WARPS)).max(1)
}

/// Returns the blocks of threads that the heads of a row make, and the name of their kernel.
fn decode_form(sizes: Sizes, dtype: DType) -> Result<(usize, String)> {
    if !sizes.is_fast(dtype) {
        return Ok((sizes.heads, named("attend_decode_plain", [dtype])?));
    }
    let shared = sizes.heads / sizes.kv_heads;
    let (numbers, together) = (if sizes.head_dim <= 64 { 64 } else { MOST_FAST }, if shared <= 8 { 8 } else { 16 });
    Ok((sizes.kv_heads * shared.div_ceil(together), format!("attend_decode_bf16_{numbers}_{together}")))
}

/// Returns how many numbers the scratch of [`attend_decode`] needs for queries `[rows, heads·head_dim]`, a pool and
/// tables of `most_blocks` blocks.
///
/// # Errors
/// When shapes do not fit.
pub fn decode_scratch(q: &Tensor, keys: &Tensor, most_blocks: usize) -> Result<usize> {
    let sizes = Sizes::of(q, [keys, keys], q)?;
    let (groups, _) = decode_form(sizes, q.dtype())?;
    let splits = splits(sizes.rows, groups, most_blocks);
    Ok(if splits == 1 { 1 } else { sizes.rows * sizes.heads * splits * (sizes.head_dim + 2) })
}

/// Writes softmax(q·kᵀ/√head_dim)·v to `out`, for one query row a sequence.
///
/// `scratch` is f32 with room for [`decode_scratch`]. How keys are divided depends on the sizes of the tensors alone,
/// so that the launches can be recorded; a row's result does not depend on what the other rows hold.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn attend_decode(
    gpu: &Gpu,
    q: &Tensor,
    pool: [&Tensor; 2],
    seen: Seen<'_>,
    scratch: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let sizes = Sizes::of(q, pool, out)?;
    let most_blocks = seen.blocks.dim(1)?;
    let counted = seen.lengths.dims() == [sizes.rows] && seen.blocks.dims() == [sizes.rows, most_blocks];
    let listed = counted && [seen.lengths, seen.blocks].iter().all(|list| list.dtype() == DType::U32);
    let room = scratch.dtype() == DType::F32 && scratch.elem_count() >= decode_scratch(q, pool[0], most_blocks)?;
    if !listed || !room {
        bail!("{:?} blocks and {:?} scratch for queries {:?}", seen.blocks.shape(), scratch.shape(), q.shape());
    }
    if sizes.rows == 0 {
        return Ok(());
    }
    let (groups, name) = decode_form(sizes, q.dtype())?;
    let splits = splits(sizes.rows, groups, most_blocks);
    let [q, keys, values, lengths, blocks, scratch] =
        [q, pool[0], pool[1], seen.lengths, seen.blocks, scratch].map(Argument::Tensor);
    let window = seen.window.unwrap_or(0);
    let counts = [sizes.heads, sizes.kv_heads, sizes.head_dim, most_blocks, window, splits];
    let counts = counts.map(|count| Argument::U32(count as u32));
    let launch =
        |function, grid| Launch { file: ("paged", ptx::PAGED), function, grid, block: (THREADS, 1, 1), shared: 0 };
    let to = Argument::Tensor(out);
    let arguments = [&[q, keys, values, lengths, blocks, scratch, to][..], &counts, &[sizes.scale()]].concat();
    gpu.launch(launch(&name, (splits as u32, groups as u32, sizes.rows as u32)), &arguments)?;
    if splits == 1 {
        return Ok(());
    }
    let name = named("join_splits", [out.dtype()])?;
    let grid = (1, sizes.heads as u32, sizes.rows as u32);
    gpu.launch(launch(&name, grid), &[&[lengths, scratch, to][..], &counts].concat())
}

/// Writes softmax(q·kᵀ/√head_dim)·v to `out`, for several query rows a sequence, each of which sees its own key and
/// those before it. Rows of no sequence stay as they are.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn attend_rows(gpu: &Gpu, q: &Tensor, pool: [&Tensor; 2], rows: Rows<'_>, out: &Tensor) -> Result<()> {
    let sizes = Sizes::of(q, pool, out)?;
    let (sequences, most_blocks) = rows.blocks.dims2()?;
    let lists = [(rows.starts, sequences + 1), (rows.pasts, sequences)];
    let listed = lists.iter().all(|(list, count)| list.dims() == [*count] && list.dtype() == DType::U32);
    if !listed || rows.blocks.dtype() != DType::U32 {
        bail!("{:?} starts and {:?} blocks for queries {:?}", rows.starts.shape(), rows.blocks.shape(), q.shape());
    }
    if sequences == 0 || rows.longest == 0 {
        return Ok(());
    }
    // Through tensor cores the heads that share keys go together.
    let together = rows.longest * sizes.heads / sizes.kv_heads;
    let (name, tiles, heads) = match sizes.is_fast(q.dtype()) {
        true if sizes.head_dim <= 64 => ("attend_rows_bf16_64".to_owned(), together.div_ceil(TILE), sizes.kv_heads),
        true => ("attend_rows_bf16_128".to_owned(), together.div_ceil(TILE), sizes.kv_heads),
        false => (named("attend_rows_plain", [q.dtype()])?, rows.longest.div_ceil(WARPS), sizes.heads),
    };
    let launch = Launch {
        file: ("rows", ptx::ROWS),
        function: &name,
        grid: (tiles as u32, heads as u32, sequences as u32),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    let tensors = [q, pool[0], pool[1], rows.starts, rows.pasts, rows.blocks, out].map(Argument::Tensor);
    let counts = [sizes.heads, sizes.kv_heads, sizes.head_dim, most_blocks, rows.window.unwrap_or(0)];
    let counts = counts.map(|count| Argument::U32(count as u32));
    gpu.launch(launch, &[&tensors[..], &counts, &[sizes.scale()]].concat())
}

#[cfg(test)]
#[path = "paged_tests.rs"]
mod tests;
