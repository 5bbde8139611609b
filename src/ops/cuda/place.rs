//! Copies of matrices into memory that was taken before, all in one launch.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;

/// Threads of a block: a square's width, and rows at a time.
const THREADS: (u32, u32, u32) = (32, 8, 1);
/// Blocks that share a matrix.
const BLOCKS: u32 = 16;
/// Numbers of an order.
const ORDER: usize = 4;

/// Writes the transpose of each f32 matrix `[rows, columns]` to `room` `[numbers]`, f32 or bf16, from the number beside it on.
///
/// `orders` is i64 `[matrices or more, 4]`, for the launch alone.
///
/// # Errors
/// When a matrix or its place does not fit, or the device fails.
pub fn place(gpu: &Gpu, matrices: &[(&Tensor, usize)], orders: &Tensor, room: &Tensor) -> Result<()> {
    let mut numbers = Vec::with_capacity(ORDER * matrices.len());
    for (matrix, at) in matrices {
        let (rows, columns) = matrix.dims2()?;
        if matrix.dtype() != DType::F32 || at + rows * columns > room.elem_count() {
            bail!("{:?} of {:?} at {at} of {:?}", matrix.shape(), matrix.dtype(), room.shape());
        }
        let to = gpu.address(room)? + (at * room.dtype().size_in_bytes()) as u64;
        numbers.extend([gpu.address(matrix)? as i64, to as i64, rows as i64, columns as i64]);
    }
    if matrices.is_empty() {
        return Ok(());
    }
    gpu.upload(&numbers, orders)?;
    let launch = Launch {
        file: ("place", ptx::PLACE),
        function: &named("place", [room.dtype()])?,
        grid: (BLOCKS, matrices.len() as u32, 1),
        block: THREADS,
        shared: 0,
    };
    gpu.launch(launch, &[Argument::Tensor(orders)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::testing::{close, gpu, on, values};

    #[test]
    fn on_gpu_matrices_are_turned_into_their_places() {
        let gpu = gpu();
        let shapes = [[70, 3], [1, 1], [33, 64], [8, 600], [1, 900], [77, 1]];
        let matrices: Vec<_> = (0..).zip(&shapes).map(|(seed, shape)| values(shape, seed)).collect();
        for dtype in [DType::F32, DType::BF16] {
            let room = Tensor::full(7.0_f32, 10_000, &gpu.device()).unwrap().to_dtype(dtype).unwrap();
            let orders = Tensor::zeros((7, 4), DType::I64, &gpu.device()).unwrap();
            let places = [0, 216, 224, 3000, 8000, 9000];
            let held: Vec<_> = matrices.iter().map(|matrix| on(&gpu, matrix, DType::F32)).collect();
            let all: Vec<_> = held.iter().zip(places).collect();
            place(&gpu, &all, &orders, &room).unwrap();
            for (matrix, at) in matrices.iter().zip(places) {
                let turned = matrix.t().unwrap().contiguous().unwrap();
                close(&room.narrow(0, at, matrix.elem_count()).unwrap(), &turned.flatten_all().unwrap(), dtype);
            }
            // What lies between them stays.
            let between = Tensor::full(7.0_f32, 6, &candle_core::Device::Cpu).unwrap();
            close(&room.narrow(0, 210, 6).unwrap(), &between, dtype);
            place(&gpu, &[(&held[3], 5201)], &orders, &room).unwrap_err();
            place(&gpu, &[(&held[0].to_dtype(DType::BF16).unwrap(), 0)], &orders, &room).unwrap_err();
        }
    }
}
