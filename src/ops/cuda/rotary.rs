//! Rotary embedding, and the way of new keys and values into the pool.
//!
//! Pairs are (i, i + head_dim/2). Shapes stand at each function; the pool of a layer is `[blocks, kv_heads, BLOCK,
//! head_dim]` for the keys and the same for the values.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;

/// Tokens of a block of the pool.
pub const BLOCK: usize = 16;
/// Heads that one block of threads takes.
const PART: usize = 8;
/// Threads of a block.
const THREADS: u32 = 128;
/// Numbers of a head at most.
pub const MOST_NUMBERS: usize = 256;

/// Where the tokens of a step stand, u32 `[rows]` each.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// Positions in their sequences.
    pub positions: &'a Tensor,
    /// Places in the pool, block·[`BLOCK`] + offset; `u32::MAX`, as any beyond the pool, is not stored.
    pub slots: &'a Tensor,
}

/// Turns queries in place by position·frequency, and writes the keys, turned, and the values to their places in the
/// pool.
///
/// `q` is `[rows, heads·head_dim]`, `k` and `v` are `[rows, kv_heads·head_dim]`, `frequencies` is f32 `[head_dim/2]`;
/// head_dim is a multiple of 8, at most 256. All but the frequencies are of one format.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn rope_and_store(
    gpu: &Gpu,
    [q, k, v]: [&Tensor; 3],
    places: Places<'_>,
    frequencies: &Tensor,
    [keys, values]: [&Tensor; 2],
) -> Result<()> {
    let (blocks, kv_heads, block, head_dim) = keys.dims4()?;
    let ((rows, width), shared) = (q.dims2()?, kv_heads * head_dim);
    let of = q.dtype();
    let alike = [k, v, keys, values].iter().all(|tensor| tensor.dtype() == of) && frequencies.dtype() == DType::F32;
    let listed =
        [places.positions, places.slots].iter().all(|list| list.dims() == [rows] && list.dtype() == DType::U32);
    let fits = block == BLOCK && values.dims() == keys.dims() && [k, v].iter().all(|own| own.dims() == [rows, shared]);
    let known = head_dim.is_multiple_of(8) && head_dim <= MOST_NUMBERS && frequencies.dims() == [head_dim / 2];
    if !alike || !listed || !fits || !known || !width.is_multiple_of(head_dim) {
        bail!("queries {:?} and keys {:?} for a pool of {:?}", q.shape(), k.shape(), keys.shape());
    }
    let heads = width / head_dim;
    let launch = Launch {
        file: ("rotary", ptx::ROTARY),
        function: &named("rope_and_store", [of])?,
        grid: (rows as u32, (heads + 2 * kv_heads).div_ceil(PART) as u32, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    let tensors = [q, k, v, places.positions, places.slots, frequencies, keys, values].map(Argument::Tensor);
    let counts = [blocks, heads, kv_heads, head_dim].map(|count| Argument::U32(count as u32));
    gpu.launch(launch, &[&tensors[..], &counts[..]].concat())
}

/// Writes `x`, turned, to `out`: both are `[tokens, heads, head_dim]`, `angles` are cosines and sines
/// `[tokens, head_dim/2]`, f32 or of the format of `x`; turned `back` where that is true, which is the way of
/// gradients.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn rope(gpu: &Gpu, x: &Tensor, [cosines, sines]: [&Tensor; 2], back: bool, out: &Tensor) -> Result<()> {
    let (tokens, heads, head_dim) = x.dims3()?;
    let fits = cosines.dims() == [tokens, head_dim / 2] && sines.dims() == cosines.dims() && out.dims() == x.dims();
    if !fits || sines.dtype() != cosines.dtype() || out.dtype() != x.dtype() {
        bail!("a rotation of {:?} by {:?} for {:?}", x.shape(), cosines.shape(), out.shape());
    }
    let launch = Launch {
        file: ("rotary", ptx::ROTARY),
        function: &named("rope", [x.dtype(), cosines.dtype()])?,
        grid: (tokens as u32, 1, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    let [x, cosines, sines, out] = [x, cosines, sines, out].map(Argument::Tensor);
    let [heads, head_dim] = [heads, head_dim].map(|count| Argument::U32(count as u32));
    let direction = Argument::F32(if back { -1.0 } else { 1.0 });
    gpu.launch(launch, &[x, cosines, sines, out, heads, head_dim, direction])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::cuda::testing::{close, counts, gpu, numbers, on, values};

    /// Cosines and sines of positions, `[tokens, pairs]`, as the CPU computes them.
    fn angles(positions: &[u32], frequencies: &[f32]) -> [Tensor; 2] {
        let angles = positions.iter().flat_map(|position| frequencies.iter().map(move |f| *position as f32 * f));
        let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let shape = (positions.len(), frequencies.len());
        [cosines, sines].map(|numbers| Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap())
    }

    #[test]
    fn on_gpu_rows_are_turned_and_stored() {
        let gpu = gpu();
        let (positions, slots) = ([0, 7, 3000, 1], [5, 40, u32::MAX, 16]);
        for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 3, 24), (9, 3, 64), (2, 1, 80), (16, 2, 128), (1, 1, 256)] {
            let frequencies: Vec<f32> =
                (0..head_dim / 2).map(|i| 1e4_f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
            let [cosines, sines] = angles(&positions, &frequencies);
            let q = values(&[4, heads * head_dim], 1);
            let [k, v] = [2, 3].map(|seed| values(&[4, kv_heads * head_dim], seed));
            let turned = |x: &Tensor, heads: usize| {
                let by_head = x.reshape((4, heads, head_dim)).unwrap();
                crate::ops::rope(&by_head, &cosines, &sines).unwrap().reshape(x.shape()).unwrap()
            };
            for dtype in [DType::F32, DType::BF16] {
                let [q_, k_, v_] = [&q, &k, &v].map(|x| on(&gpu, x, dtype));
                let pool = [0, 1].map(|_| Tensor::zeros((3, kv_heads, BLOCK, head_dim), dtype, &gpu.device()).unwrap());
                let [positions, slots_] = [&positions, &slots].map(|list| counts(&gpu, list));
                let places = Places { positions: &positions, slots: &slots_ };
                let frequencies = Tensor::new(frequencies.as_slice(), &gpu.device()).unwrap();
                rope_and_store(&gpu, [&q_, &k_, &v_], places, &frequencies, pool.each_ref()).unwrap();
                close(&q_, &turned(&q, heads), dtype);
                for (pool, rows) in pool.iter().zip([turned(&k, kv_heads), v.clone()]) {
                    let (pool, rows) = (numbers(pool), numbers(&rows));
                    let mut expected = vec![0.0; pool.len()];
                    for (row, slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != u32::MAX) {
                        for head in 0..kv_heads {
                            let (block, offset) = (*slot as usize / BLOCK, *slot as usize % BLOCK);
                            let to = ((block * kv_heads + head) * BLOCK + offset) * head_dim;
                            let from = (row * kv_heads + head) * head_dim;
                            expected[to..to + head_dim].copy_from_slice(&rows[from..from + head_dim]);
                        }
                    }
                    let tensor = |data| Tensor::from_vec(data, pool.len(), &Device::Cpu).unwrap();
                    close(&tensor(pool.clone()), &tensor(expected), dtype);
                }
            }
        }
    }

    #[test]
    fn on_gpu_a_rotation_is_that_of_the_cpu_and_turns_back() {
        let gpu = gpu();
        let frequencies: Vec<f32> = (0..5).map(|i| 0.3 / (1.0 + i as f32)).collect();
        let [cosines, sines] = angles(&[3, 0, 1000], &frequencies);
        let x = values(&[3, 7, 10], 1);
        let expected = crate::ops::rope(&x, &cosines, &sines).unwrap();
        for (dtype, of_angles) in [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)] {
            let [cosines, sines] = [&cosines, &sines].map(|own| on(&gpu, own, of_angles));
            let [turned, back] = [0, 1].map(|_| gpu.tensor((3, 7, 10), dtype).unwrap());
            rope(&gpu, &on(&gpu, &x, dtype), [&cosines, &sines], false, &turned).unwrap();
            close(&turned, &expected, dtype);
            rope(&gpu, &turned, [&cosines, &sines], true, &back).unwrap();
            close(&back, &x, dtype);
        }
    }
}
