//! Rows that are looked up or chosen, and biases.
//!
//! Shapes: `[rows, width]`.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;

/// Threads of a block: a row each.
const THREADS: u32 = 256;

fn launch(function: &str, rows: usize) -> Launch<'_> {
    Launch { file: ("lookup", ptx::LOOKUP), function, grid: (rows as u32, 1, 1), block: (THREADS, 1, 1), shared: 0 }
}

/// Writes the rows `ids` (u32 `[rows]`, each below the table's number of rows) of `table` `[entries, width]`, f32 or bf16,
/// to `out`, f32 `[rows, width]`.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn take(gpu: &Gpu, table: &Tensor, ids: &Tensor, out: &Tensor) -> Result<()> {
    let (rows, width) = out.dims2()?;
    if ids.dims() != [rows] || ids.dtype() != DType::U32 || out.dtype() != DType::F32 || table.dims2()?.1 != width {
        bail!("rows {:?} of {:?} for {:?}", ids.shape(), table.shape(), out.shape());
    }
    let kernel = named("take", [table.dtype()])?;
    let [table, ids, out] = [table, ids, out].map(Argument::Tensor);
    gpu.launch(launch(&kernel, rows), &[table, ids, out, Argument::U32(width as u32)])
}

/// Adds `bias` `[width]` to every row of `x` `[rows, width]`, of one format, f32 or bf16.
///
/// # Errors
/// As [`take`].
pub fn add_bias(gpu: &Gpu, x: &Tensor, bias: &Tensor) -> Result<()> {
    let (rows, width) = x.dims2()?;
    if bias.dims() != [width] || bias.dtype() != x.dtype() {
        bail!("a bias of {:?} for {:?}", bias.shape(), x.shape());
    }
    let kernel = named("add_bias", [x.dtype()])?;
    let [x, bias] = [x, bias].map(Argument::Tensor);
    gpu.launch(launch(&kernel, rows), &[x, bias, Argument::U32(width as u32)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::testing::{close, gpu, values};

    #[test]
    fn on_gpu_rows_are_looked_up_and_get_a_bias() {
        let gpu = gpu();
        let (table, bias) = (values(&[7, 300], 1), values(&[300], 2));
        let ids = Tensor::new(&[6_u32, 0, 3, 3], &candle_core::Device::Cpu).unwrap();
        let expected = table.index_select(&ids, 0).unwrap();
        let on = |tensor: &Tensor| tensor.to_device(&gpu.device()).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let of = |tensor: &Tensor| on(&tensor.to_dtype(dtype).unwrap());
            let out = gpu.tensor((4, 300), DType::F32).unwrap();
            take(&gpu, &of(&table), &on(&ids), &out).unwrap();
            close(&out, &expected, dtype);
            let x = of(&expected);
            add_bias(&gpu, &x, &of(&bias)).unwrap();
            close(&x, &expected.broadcast_add(&bias).unwrap(), dtype);
        }
        let out = gpu.tensor((4, 299), DType::F32).unwrap();
        take(&gpu, &on(&table), &on(&ids), &out).unwrap_err();
    }
}
