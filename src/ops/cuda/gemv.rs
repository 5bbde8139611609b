//! Products of a few rows with weights: bound by reading the weights once.
//!
//! What follows a product in a block goes with it: biases, the changes of adapters, the gate. For more rows, or an
//! input that is no multiple of 8, there is [`Gpu::product`]. Sums are f32; a number depends neither on the other rows
//! nor on how many there are. Shapes: x is `[rows, input]`, a weight `[output, input]`.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::lora::Adapters;
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

/// A linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// `[output, input]`.
    pub weight: &'a Tensor,
    /// `[output]`, of the format of the weight.
    pub bias: Option<&'a Tensor>,
    /// Its site in the tables of adapters; of no meaning without.
    pub site: usize,
}

/// What adapters change in the products of rows.
#[derive(Debug, Clone, Copy)]
pub struct Changes<'a> {
    /// What [`super::low_rank_shrink`] wrote for the same rows and the sites of the layers, in their order.
    pub inner: &'a Tensor,
    /// Slots of the rows, u32 `[rows]`.
    pub row_slots: &'a Tensor,
    /// What stands in the slots, in the format of the weights.
    pub adapters: Adapters<'a>,
}

/// Writes x·Wᵀ + bias + inner·Bᵀ for up to three layers: `x` is `[rows, input]` with at most [`MOST_ROWS`] rows, weights are
/// `[output, input]` of the format of `x`, f32 or bf16; `outs` are `[rows, output]`, all f32 or all of the format of `x`.
/// The input is a multiple of 8. Changes are what [`super::low_rank_expand`] adds.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn adapted_product(
    gpu: &Gpu,
    x: &Tensor,
    layers: &[Layer<'_>],
    changes: Option<Changes<'_>>,
    outs: &[&Tensor],
) -> Result<()> {
    let Some(out) = outs.first() else { bail!("a product for nothing") };
    let rows = x.dims2()?.0;
    let arguments = arguments(x, layers, changes, outs)?;
    if rows == 0 {
        return Ok(());
    }
    let outputs = outs.iter().map(|out| out.dims()[1]);
    let (size, form) = match x.dtype() == DType::F32 {
        true => (8, ["_1_1", "_1_8", "_1_16"][usize::from(rows > 1) + usize::from(rows > 8)]),
        false if outputs.clone().sum::<usize>() < MANY_OUTPUTS => (8, ["_1_8", "_1_16"][usize::from(rows > 8)]),
        false => (16, ["_2_8", "_2_16"][usize::from(rows > 8)]),
    };
    let blocks = outputs.map(|output| output.div_ceil(size)).sum();
    launch(gpu, &(named("small_product", [x.dtype(), out.dtype()])? + form), blocks, &arguments)
}

/// Writes silu(x·Gᵀ) · (x·Uᵀ) to `out`, each product with its bias and its change as in [`adapted_product`]; `layers`
/// are those of gate and up. All are of one format.
///
/// # Errors
/// As [`adapted_product`].
pub fn gated_product(
    gpu: &Gpu,
    x: &Tensor,
    layers: [Layer<'_>; 2],
    changes: Option<Changes<'_>>,
    out: &Tensor,
) -> Result<()> {
    let rows = x.dims2()?.0;
    if out.dtype() != x.dtype() {
        bail!("a gate of {:?} for {:?}", x.dtype(), out.dtype());
    }
    let arguments = arguments(x, &layers, changes, &[out, out])?;
    if rows == 0 {
        return Ok(());
    }
    let form = if x.dtype() == DType::F32 || rows > 8 { "_16" } else { "_8" };
    launch(gpu, &(named("gated_product", [x.dtype()])? + form), out.dims()[1].div_ceil(8), &arguments)
}

/// Checks what is given to a product, and returns what its kernels are given.
fn arguments<'a>(
    x: &'a Tensor,
    layers: &[Layer<'a>],
    changes: Option<Changes<'a>>,
    outs: &[&'a Tensor],
) -> Result<Vec<Argument<'a>>> {
    let (rows, input) = x.dims2()?;
    let fits = |(layer, to): (&Layer<'_>, &&Tensor)| {
        let output = layer.weight.dims().first().copied().unwrap_or(0);
        let shapes = layer.weight.dims() == [output, input] && to.dims() == [rows, output] && output > 0;
        let biased = layer.bias.is_none_or(|bias| bias.dims() == [output] && bias.dtype() == x.dtype());
        shapes && biased && layer.weight.dtype() == x.dtype() && to.dtype() == outs[0].dtype()
    };
    let count = layers.len();
    if count != outs.len() || count > MOST_WEIGHTS || !layers.iter().zip(outs).all(fits) {
        bail!("a product of {:?} for {:?}", x.shape(), outs.iter().map(|out| out.shape()).collect::<Vec<_>>());
    }
    if rows > MOST_ROWS || !input.is_multiple_of(8) {
        bail!("a product of {rows} rows of {input} numbers is not a small one");
    }
    let number = |count: usize| Argument::U32(count as u32);
    let three = |list: &mut dyn Iterator<Item = Argument<'a>>| -> Vec<_> {
        list.chain([Argument::Nothing; MOST_WEIGHTS]).take(MOST_WEIGHTS).collect()
    };
    let mut arguments = vec![Argument::Tensor(x), number(rows), number(input)];
    arguments.extend(three(&mut layers.iter().map(|layer| Argument::Tensor(layer.weight))));
    arguments.extend(three(&mut layers.iter().map(|layer| layer.bias.map_or(Argument::Nothing, Argument::Tensor))));
    arguments.extend(three(&mut outs.iter().map(|out| Argument::Tensor(out))));
    let outputs = outs.iter().map(|out| out.dims()[1]).chain([0; MOST_WEIGHTS]).take(MOST_WEIGHTS);
    arguments.extend(outputs.map(number));
    let Some(Changes { inner, row_slots, adapters }) = changes else {
        arguments.extend([Argument::Nothing; 5]);
        arguments.extend([Argument::U32(0); 3 + MOST_WEIGHTS]);
        return Ok(arguments);
    };
    let (of, inner_rows, most_rank) = inner.dims3()?;
    if (of, inner_rows) != (count, rows) || inner.dtype() != DType::F32 || adapters.format != x.dtype() {
        bail!("changes {:?} of {count} products of {rows} rows", inner.shape());
    }
    let sites: Vec<usize> = layers.iter().map(|layer| layer.site).collect();
    let (tables, counts) = adapters.arguments(rows, row_slots, &sites)?;
    arguments.extend([Argument::Tensor(inner), Argument::Tensor(row_slots)]);
    arguments.extend(tables);
    arguments.extend(counts);
    arguments.push(number(most_rank));
    Ok(arguments)
}

fn launch(gpu: &Gpu, function: &str, blocks: usize, arguments: &[Argument<'_>]) -> Result<()> {
    let (grid, block) = ((blocks as u32, 1, 1), (THREADS, 1, 1));
    gpu.launch(Launch { file: ("gemv", ptx::GEMV), function, grid, block, shared: 0 }, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::testing::{close, gpu, numbers, on, values};

    fn small_product(gpu: &Gpu, x: &Tensor, weights: &[&Tensor], outs: &[&Tensor]) -> Result<()> {
        let layers: Vec<_> = weights.iter().map(|weight| Layer { weight, bias: None, site: 0 }).collect();
        adapted_product(gpu, x, &layers, None, outs)
    }

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
