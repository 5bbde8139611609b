//! Products of a few rows with weights: bound by reading the weights once.
//!
//! For more rows, or an input that is no multiple of 8, there is [`Gpu::product`]. Sums are f32; a number depends
//! neither on the other rows nor on how many there are. Shapes: x is `[rows, input]`, a weight `[output, input]`.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;

/// Rows at most.
pub const MOST_ROWS: usize = 16;
/// Weights of one launch at most.
const MOST_WEIGHTS: usize = 3;
/// Threads of a block.
const THREADS: u32 = 256;
/// From so many outputs on a block takes twice as many: there are blocks enough.
const MANY_OUTPUTS: usize = 16 << 10;

/// Writes x·Wᵀ for up to three weights: `x` is `[rows, input]` with at most [`MOST_ROWS`] rows, the weights are
/// `[output, input]` of the format of `x`, f32 or bf16; `outs` are `[rows, output]`, all f32 or all of the format of
/// `x`. The input is a multiple of 8.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn small_product(gpu: &Gpu, x: &Tensor, weights: &[&Tensor], outs: &[&Tensor]) -> Result<()> {
    let (rows, input) = x.dims2()?;
    let Some(out) = outs.first() else { bail!("a product for nothing") };
    let fits = |(weight, to): (&&Tensor, &&Tensor)| {
        let output = weight.dims().first().copied().unwrap_or(0);
        let shapes = weight.dims() == [output, input] && to.dims() == [rows, output];
        shapes && weight.dtype() == x.dtype() && to.dtype() == out.dtype()
    };
    let count = weights.len();
    if count != outs.len() || count > MOST_WEIGHTS || !weights.iter().zip(outs).all(fits) {
        bail!("a product of {:?} for {:?}", x.shape(), outs.iter().map(|out| out.shape()).collect::<Vec<_>>());
    }
    if rows > MOST_ROWS || !input.is_multiple_of(8) {
        bail!("a product of {rows} rows of {input} numbers is not a small one");
    }
    if rows == 0 {
        return Ok(());
    }
    let mut outputs = [0; MOST_WEIGHTS];
    outputs.iter_mut().zip(weights).for_each(|(output, weight)| *output = weight.dims()[0]);
    let (size, form) = match x.dtype() == DType::F32 {
        true => (8, ["_1_1", "_1_8", "_1_16"][usize::from(rows > 1) + usize::from(rows > 8)]),
        false if outputs.iter().sum::<usize>() < MANY_OUTPUTS => (8, ["_1_8", "_1_16"][usize::from(rows > 8)]),
        false => (16, ["_2_8", "_2_16"][usize::from(rows > 8)]),
    };
    let launch = Launch {
        file: ("gemv", ptx::GEMV),
        function: &(named("small_product", [x.dtype(), out.dtype()])? + form),
        grid: (outputs.iter().map(|output| output.div_ceil(size)).sum::<usize>() as u32, 1, 1),
        block: (THREADS, 1, 1),
        shared: 0,
    };
    let mut arguments = vec![Argument::Tensor(x)];
    for list in [weights, outs] {
        let given = list.iter().map(|tensor| Argument::Tensor(tensor));
        arguments.extend(given.chain([Argument::Nothing; MOST_WEIGHTS]).take(MOST_WEIGHTS));
    }
    arguments.extend(outputs.into_iter().chain([rows, input]).map(|count| Argument::U32(count as u32)));
    gpu.launch(launch, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::testing::{close, gpu, numbers, on, values};

    #[test]
    fn on_gpu_a_small_product_is_that_of_the_cpu() {
        let gpu = gpu();
        let shapes: [(usize, usize, &[usize]); 6] = [
            (1, 64, &[8]),
            (3, 72, &[5, 17]),
            (8, 576, &[192, 192, 576]),
            (9, 1000, &[33, 1, 7]),
            (16, 40, &[100]),
            (2, 32, &[MANY_OUTPUTS + 3]),
        ];
        for (rows, input, outputs) in shapes {
            // So that sums stay about 1 and bf16 is off by little.
            let x = (values(&[rows, input], 1) / (input as f64).sqrt()).unwrap();
            let weights: Vec<_> = (2..).zip(outputs).map(|(seed, output)| values(&[*output, input], seed)).collect();
            for (dtype, of_outs) in [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)] {
                let x_ = on(&gpu, &x, dtype);
                let weights_: Vec<_> = weights.iter().map(|weight| on(&gpu, weight, dtype)).collect();
                let outs: Vec<_> = outputs.iter().map(|output| gpu.tensor((rows, *output), of_outs).unwrap()).collect();
                let (given, to): (Vec<_>, Vec<_>) = (weights_.iter().collect(), outs.iter().collect());
                small_product(&gpu, &x_, &given, &to).unwrap();
                for (weight, out) in weights.iter().zip(&outs) {
                    close(out, &x.matmul(&weight.t().unwrap()).unwrap(), dtype);
                }
                // A row alone has the same bits.
                let alone = gpu.tensor((1, outputs[0]), of_outs).unwrap();
                let last = x_.narrow(0, rows - 1, 1).unwrap().copy().unwrap();
                small_product(&gpu, &last, &given[..1], &[&alone]).unwrap();
                assert_eq!(numbers(&alone), numbers(&outs[0].narrow(0, rows - 1, 1).unwrap()));
            }
        }
        let x = values(&[17, 8], 1).to_device(&gpu.device()).unwrap();
        small_product(&gpu, &x, &[&x], &[&x]).unwrap_err();
    }
}
