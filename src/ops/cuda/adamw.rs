//! AdamW over many tensors in one launch, and the squares of their gradients with one copy to the CPU.
//!
//! Knows neither schedules nor clipping. Shapes: any, all f32; a tensor has one weight, gradient and two moments of one
//! shape.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::ptx;

/// Threads of a block.
const THREADS: u32 = 512;
/// Values that a block takes (`adamw.cu`).
const CHUNK: usize = 1 << 14;
/// Numbers of an entry of the table: four addresses, count, decay, first block, one unused.
const ENTRY: usize = 12;

/// A tensor in training; weight and moments change.
#[derive(Debug, Clone, Copy)]
pub struct Trained<'a> {
    /// Its value.
    pub weight: &'a Tensor,
    /// Its gradient.
    pub gradient: &'a Tensor,
    /// Mean of gradients, and of squared ones.
    pub moments: [&'a Tensor; 2],
    /// Whether weights decay.
    pub decays: bool,
}

/// Constants of an update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Factor of gradients.
    pub factor: f64,
    /// β₁ and β₂.
    pub betas: [f64; 2],
    /// What weights that decay are multiplied with.
    pub keep: f64,
    /// Factor of the change.
    pub step: f64,
    /// What the root of the second moment is divided by.
    pub root: f64,
    /// ε.
    pub epsilon: f64,
}

/// The table of tensors on the device, and its number of blocks.
struct Table {
    entries: Tensor,
    tensors: usize,
    blocks: usize,
}

impl Table {
    /// Makes it of tensors of one shape each: `None` has no address.
    fn new<'a>(gpu: &Gpu, all: impl Iterator<Item = ([Option<&'a Tensor>; 4], bool)>) -> Result<Self> {
        let (mut words, mut blocks) = (Vec::new(), 0);
        for (tensors, decays) in all {
            let mut count = None;
            for tensor in tensors {
                let Some(tensor) = tensor else {
                    words.extend([0, 0]);
                    continue;
                };
                let own = tensor.elem_count();
                if tensor.dtype() != DType::F32 || *count.get_or_insert(own) != own || u32::try_from(own).is_err() {
                    bail!("an optimiser's tensor {:?} of {:?}", tensor.shape(), tensor.dtype());
                }
                let address = gpu.address(tensor)?;
                words.extend([address as u32, (address >> 32) as u32]);
            }
            let count = count.unwrap_or(0);
            words.extend([count as u32, u32::from(decays), blocks as u32, 0]);
            blocks += count.div_ceil(CHUNK);
        }
        let tensors = words.len() / ENTRY;
        Ok(Self { entries: Tensor::new(words, &gpu.device())?, tensors, blocks })
    }

    fn arguments(&self) -> [Argument<'_>; 2] {
        [Argument::Tensor(&self.entries), Argument::U32(self.tensors as u32)]
    }
}

fn launch_of(function: &str, blocks: usize) -> Launch<'_> {
    Launch { file: ("adamw", ptx::ADAMW), function, grid: (blocks as u32, 1, 1), block: (THREADS, 1, 1), shared: 0 }
}

/// Changes weights and moments of all tensors, each in its place.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn adamw(gpu: &Gpu, trained: &[Trained<'_>], update: Update) -> Result<()> {
    let tensors = trained.iter().map(|one| {
        let [m, v] = one.moments;
        ([Some(one.weight), Some(one.gradient), Some(m), Some(v)], one.decays)
    });
    let table = Table::new(gpu, tensors)?;
    if table.blocks == 0 {
        return Ok(());
    }
    let Update { factor, betas: [beta1, beta2], keep, step, root, epsilon } = update;
    let numbers = [factor, beta1, 1.0 - beta1, beta2, 1.0 - beta2, keep, step, root, epsilon];
    let mut arguments = table.arguments().to_vec();
    arguments.extend(numbers.map(|number| Argument::F32(number as f32)));
    gpu.launch(launch_of("adamw", table.blocks), &arguments)
}

/// Returns Σ g² of each tensor.
///
/// # Errors
/// As [`adamw`].
pub fn squares(gpu: &Gpu, gradients: &[Tensor]) -> Result<Vec<f32>> {
    let table = Table::new(gpu, gradients.iter().map(|gradient| ([None, Some(gradient), None, None], false)))?;
    if table.blocks == 0 {
        return Ok(vec![0.0; gradients.len()]);
    }
    let (parts, sums) = (gpu.tensor(table.blocks, DType::F32)?, gpu.tensor(table.tensors, DType::F32)?);
    let [entries, tensors] = table.arguments();
    let [of_parts, of_sums] = [&parts, &sums].map(Argument::Tensor);
    gpu.launch(launch_of("squares", table.blocks), &[entries, tensors, of_parts])?;
    gpu.launch(launch_of("square_sums", table.tensors), &[entries, tensors, of_parts, of_sums])?;
    sums.to_vec1()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::cuda::testing::{close, gpu, values};

    const UPDATE: Update =
        Update { factor: 0.5, betas: [0.9, 0.99], keep: 0.999, step: 0.01, root: 0.3, epsilon: 1e-3 };

    #[test]
    fn on_gpu_an_update_changes_every_tensor_as_the_formula_says() {
        let gpu = gpu();
        let shapes: [&[usize]; 4] = [&[3], &[CHUNK], &[5, 7], &[2, CHUNK + 5]];
        let make = |i: usize, seed: u64| values(shapes[i], 4 * i as u64 + seed);
        let host: Vec<[Tensor; 4]> =
            (0..4).map(|i| [make(i, 1), make(i, 2), make(i, 3), make(i, 4).abs().unwrap()]).collect();
        let tensors: Vec<_> =
            host.iter().map(|all| all.each_ref().map(|x| x.to_device(&gpu.device()).unwrap())).collect();
        let trained = tensors.iter().enumerate();
        let trained: Vec<_> = trained
            .map(|(i, [weight, gradient, m, v])| Trained { weight, gradient, moments: [m, v], decays: i % 2 == 0 })
            .collect();
        adamw(&gpu, &trained, UPDATE).unwrap();
        for (i, ([w, g, m, v], got)) in host.iter().zip(&tensors).enumerate() {
            let g = (g * 0.5).unwrap();
            let m = ((m * 0.9).unwrap() + (&g * 0.1).unwrap()).unwrap();
            let v = ((v * 0.99).unwrap() + (g.sqr().unwrap() * 0.01).unwrap()).unwrap();
            let below = ((v.sqrt().unwrap() / 0.3).unwrap() + 1e-3).unwrap();
            let kept = (w * if i % 2 == 0 { 0.999 } else { 1.0 }).unwrap();
            let w = (kept - (&m / &below).unwrap().affine(0.01, 0.0).unwrap()).unwrap();
            for (got, expected) in [(&got[0], w), (&got[2], m), (&got[3], v)] {
                close(got, &expected, DType::F32);
            }
        }
    }

    #[test]
    fn on_gpu_squares_are_summed_by_tensor() {
        let gpu = gpu();
        let host: Vec<Tensor> = [3, 40_000, 1].iter().map(|count| values(&[*count], *count as u64)).collect();
        let tensors: Vec<_> = host.iter().map(|x| x.to_device(&gpu.device()).unwrap()).collect();
        let got = squares(&gpu, &tensors).unwrap();
        for (got, x) in got.iter().zip(&host) {
            let expected: f32 =
                x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() as f32;
            assert!((got - expected).abs() < 1e-5 * expected.max(1.0), "{got} instead of {expected}");
        }
        let missing = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap().to_device(&gpu.device()).unwrap();
        assert!(squares(&gpu, &[missing]).unwrap()[0].is_nan());
    }
}
