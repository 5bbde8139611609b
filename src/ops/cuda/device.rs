//! The device: launches, products of cuBLAS, recordings.
//!
//! Besides `memory` and `side` the only place that hands addresses to the device. All work goes into one stream, in the order
//! of the calls; during a capture into another one, which records it. Only copies from the host may run beside it (`side`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{self, CudaBlas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaGraph, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, sys,
};
use candle_core::{CudaDevice, DType, Device, Result, Storage, Tensor, bail};
use half::{bf16, f16};

use super::memory::keep_memory;

/// Opens a device, once a process. Its work goes into one stream, and is ordered by that alone.
///
/// # Errors
/// When there is no driver, no such device, or a library of NVIDIA's is missing.
pub fn open(index: usize) -> Result<Device> {
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&index) {
        return Ok(device.clone());
    }
    let device = open_first(index)?;
    open.insert(index, device.clone());
    Ok(device)
}

fn open_first(index: usize) -> Result<Device> {
    #[expect(unsafe_code, reason = "looks whether the driver's library can be opened")]
    if !unsafe { sys::is_culib_present() } {
        return Err(candle_core::Error::Msg("no NVIDIA driver here: libcuda.so.1 was not found".into()));
    }
    // A library that is not there, or lacks a function, makes cudarc panic.
    let device = match std::panic::catch_unwind(|| Device::new_cuda_with_stream(index)) {
        Ok(device) => device?,
        Err(panic) => {
            let why = panic.downcast_ref::<String>().map_or("cuBLAS or cuRAND cannot be opened", String::as_str);
            let incomplete = "the libraries of NVIDIA are not complete (LD_LIBRARY_PATH names their folders)";
            return Err(candle_core::Error::Msg(format!("{incomplete}: {why}")));
        }
    };
    if let Device::Cuda(device) = &device {
        #[expect(unsafe_code, reason = "all work is in the order of one stream, and recordings join it")]
        unsafe {
            device.disable_event_tracking();
        }
        keep_memory(device)?;
    }
    Ok(device)
}

/// A device, and the stream that work goes to.
#[derive(Clone)]
pub struct Gpu {
    pub(super) device: CudaDevice,
    pub(super) stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    /// Memory that products compute in; none is cuBLAS's own.
    #[expect(dead_code, reason = "it is memory that the device uses")]
    workspace: Option<Tensor>,
}

/// Bytes that products compute in; what NVIDIA advises for compute capability 9.0.
const WORKSPACE: usize = 32 << 20;

/// What a kernel is launched with.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// Memory of a tensor.
    Tensor(&'a Tensor),
    /// No memory: the kernel tests for it.
    Nothing,
    /// A count or an index.
    U32(u32),
    /// A number.
    F32(f32),
}

/// How a kernel is launched: a file of `kernels` with its name, a function of it, blocks, threads of a block and bytes of
/// shared memory.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Name and PTX of the file.
    pub file: (&'static str, &'static str),
    /// Name of the function.
    pub function: &'a str,
    /// Blocks in three dimensions.
    pub grid: (u32, u32, u32),
    /// Threads of a block in three dimensions.
    pub block: (u32, u32, u32),
    /// Bytes of shared memory that the function asks for itself.
    pub shared: u32,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Returns the device of a tensor, or `None` for the CPU.
    #[must_use]
    pub fn of(device: &Device) -> Option<Self> {
        match device {
            Device::Cuda(device) => {
                let (stream, blas) = (device.cuda_stream(), device.cublas_handle());
                Some(Self { device: device.clone(), stream, blas, workspace: None })
            }
            Device::Cpu | Device::Metal(_) => None,
        }
    }

    /// Returns the device as candle names it.
    #[must_use]
    pub fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    /// Returns the same device with a stream, a handle of cuBLAS and memory for its products of its own, so that what is
    /// recorded takes none.
    ///
    /// # Errors
    /// When the device fails.
    pub fn aside(&self) -> Result<Self> {
        let stream = self.stream.context().new_stream().w()?;
        let blas = CudaBlas::new(Arc::clone(&stream)).w()?;
        let workspace = self.tensor(WORKSPACE / size_of::<f32>(), DType::F32)?;
        let address = self.address(&workspace)? as *mut std::ffi::c_void;
        #[expect(unsafe_code, reason = "the memory lives as long as the handle, beside which it is kept")]
        unsafe { cublas::sys::cublasSetWorkspace_v2(*blas.handle(), address, WORKSPACE) }.result().w()?;
        Ok(Self { device: self.device.clone(), stream, blas: Arc::new(blas), workspace: Some(workspace) })
    }

    /// Makes the device that of calls in this thread: any thread may be the first to give it work.
    pub(super) fn bind(&self) -> Result<()> {
        self.stream.context().bind_to_thread().w()
    }

    /// Launches a kernel.
    ///
    /// # Errors
    /// When a tensor is not contiguous or elsewhere, or the device refuses.
    pub fn launch(&self, launch: Launch<'_>, arguments: &[Argument<'_>]) -> Result<()> {
        self.bind()?;
        let (name, ptx) = launch.file;
        let function: CudaFunction =
            self.device.get_or_load_custom_func(launch.function, name, ptx)?.into_cuda_function();
        if launch.shared > 48 << 10 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, launch.shared as i32).w()?;
        }
        /// Numbers as the device reads them.
        enum Word {
            Long(u64),
            Int(u32),
            Real(f32),
        }
        let word = |argument: &Argument<'_>| {
            Ok(match *argument {
                Argument::Tensor(tensor) => Word::Long(self.address(tensor)?),
                Argument::Nothing => Word::Long(0),
                Argument::U32(number) => Word::Int(number),
                Argument::F32(number) => Word::Real(number),
            })
        };
        let words = arguments.iter().map(word).collect::<Result<Vec<_>>>()?;
        let mut builder = self.stream.launch_builder(&function);
        for word in &words {
            match word {
                Word::Long(number) => builder.arg(number),
                Word::Int(number) => builder.arg(number),
                Word::Real(number) => builder.arg(number),
            };
        }
        let Launch { grid, block, shared, .. } = launch;
        let config = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: shared };
        #[expect(unsafe_code, reason = "each function of this folder checks what its kernel is given")]
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    /// Writes x·Wᵀ + keep·out to `out`: `x` is `[rows, input]`, `weight` `[output, input]`, `out` `[rows, output]`; sums are
    /// f32. `x` and `weight` are of one format, f32 or bf16; `out` is f32 or that one.
    ///
    /// # Errors
    /// When shapes or formats do not fit, or the device fails.
    pub fn product(&self, x: &Tensor, weight: &Tensor, keep: f32, out: &Tensor) -> Result<()> {
        let ((rows, input), (output, inner)) = (x.dims2()?, weight.dims2()?);
        if inner != input || out.dims() != [rows, output] {
            bail!("a product of {:?} and {:?} for {:?}", x.shape(), weight.shape(), out.shape());
        }
        self.gemm([(x, false), (weight, true)], (rows, output, input), keep, out)
    }

    /// Writes a·b + keep·out to `out` `[rows, columns]`; a side is `[rows, inner]`, or with `true` its transpose lies there.
    ///
    /// # Errors
    /// As [`Self::product`].
    pub fn gemm(
        &self,
        [(a, a_turned), (b, b_turned)]: [(&Tensor, bool); 2],
        (rows, columns, inner): (usize, usize, usize),
        keep: f32,
        out: &Tensor,
    ) -> Result<()> {
        use cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t};

        let sizes = [(a, rows * inner), (b, inner * columns), (out, rows * columns)];
        if a.dtype() != b.dtype() || sizes.iter().any(|(tensor, count)| tensor.elem_count() != *count) {
            bail!("a product {rows}×{inner}×{columns} of {:?} and {:?}", a.shape(), b.shape());
        }
        let [left, right, target] = [a, b, out].map(|tensor| self.address(tensor));
        let (left, right, target) = (left?, right?, target?);
        let (number, to) = (data_type(a.dtype())?, data_type(out.dtype())?);
        self.bind()?;
        let turned =
            |turned: bool| if turned { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N };
        let (m, n, k) = (columns as i32, rows as i32, inner as i32);
        let (leading_b, leading_a) = (if b_turned { k } else { m }, if a_turned { n } else { k });
        let (one, keep) = (1.0_f32, keep);
        // Column by column, as cuBLAS counts: outᵀ = bᵀ·aᵀ.
        #[expect(unsafe_code, reason = "sizes were checked, and the addresses are of tensors that live")]
        let done = unsafe {
            cublas::result::gemm_ex(
                *self.blas.handle(),
                turned(b_turned),
                turned(a_turned),
                m,
                n,
                k,
                (&raw const one).cast(),
                right as *const _,
                number,
                leading_b,
                left as *const _,
                number,
                leading_a,
                (&raw const keep).cast(),
                target as *mut _,
                to,
                m,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.w()
    }

    /// Does some work once, behind what was given so far, and records it to run again; it is given `aside` to launch on.
    /// What is returned says why, where the work was done but not recorded: for want of memory, or because it took some,
    /// or waited for something.
    ///
    /// # Errors
    /// When `work` fails.
    pub fn record(&self, aside: &Self, work: impl Fn(&Self) -> Result<()>) -> Result<Result<Recording>> {
        aside.stream.join(&self.stream).w()?;
        // Kernels are loaded where they are launched at first, which cannot be recorded.
        let done = work(aside);
        // What follows here follows what was launched there, even if that was not all.
        self.stream.join(&aside.stream).w()?;
        done?;
        Ok(aside.recorded(work))
    }

    fn recorded(&self, work: impl Fn(&Self) -> Result<()>) -> Result<Recording> {
        self.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let outcome = work(self);
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).w();
        outcome?;
        match graph? {
            Some(graph) => Ok(Recording { graph, aside: self.clone() }),
            None => bail!("the device recorded nothing"),
        }
    }

    /// Waits until everything given so far is done.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(&self) -> Result<()> {
        self.stream.synchronize().w()
    }

    /// Returns the address of a contiguous tensor on this device, for tables that kernels read.
    ///
    /// # Errors
    /// When the tensor is not contiguous or elsewhere.
    pub fn address(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cuda(storage), true) = (&*storage, layout.is_contiguous()) else {
            bail!("a kernel takes contiguous tensors of its device, not {:?}", tensor.shape());
        };
        let dtype = storage.dtype();
        let at = |(address, _): (u64, _)| address + (layout.start_offset() * dtype.size_in_bytes()) as u64;
        #[expect(clippy::wildcard_enum_match_arm, reason = "kernels know no other format")]
        Ok(match dtype {
            DType::F32 => at(storage.as_cuda_slice::<f32>()?.device_ptr(&self.stream)),
            DType::BF16 => at(storage.as_cuda_slice::<bf16>()?.device_ptr(&self.stream)),
            DType::F16 => at(storage.as_cuda_slice::<f16>()?.device_ptr(&self.stream)),
            DType::U32 => at(storage.as_cuda_slice::<u32>()?.device_ptr(&self.stream)),
            DType::I64 => at(storage.as_cuda_slice::<i64>()?.device_ptr(&self.stream)),
            other => bail!("kernels know no tensors of {other:?}"),
        })
    }
}

/// Work that was recorded, to run again and again.
pub struct Recording {
    graph: CudaGraph,
    aside: Gpu,
}

#[expect(unsafe_code, reason = "a graph belongs to no thread; whoever runs it has it alone, as `Sync` is left out")]
// SAFETY: NVIDIA asks that calls on one graph do not overlap, whichever threads they come from.
unsafe impl Send for Recording {}

impl Recording {
    /// Runs it behind the work given to `gpu` so far, and before what comes after.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn run(&self, gpu: &Gpu) -> Result<()> {
        self.aside.stream.join(&gpu.stream).w()?;
        self.graph.launch().w()?;
        gpu.stream.join(&self.aside.stream).w()
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

fn data_type(dtype: DType) -> Result<cublas::sys::cudaDataType> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "products are of these formats")]
    Ok(match dtype {
        DType::F32 => cublas::sys::cudaDataType_t::CUDA_R_32F,
        DType::BF16 => cublas::sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => cublas::sys::cudaDataType_t::CUDA_R_16F,
        other => bail!("no product of {other:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::rms_norm;
    use super::super::testing::{close, gpu, values};
    use super::*;

    /// A tensor of the CPU as a format keeps it, there and on the device.
    fn both(gpu: &Gpu, shape: [usize; 2], seed: u64, dtype: DType) -> (Tensor, Tensor) {
        let kept = values(&shape, seed).to_dtype(dtype).unwrap();
        (kept.to_dtype(DType::F32).unwrap(), kept.to_device(&gpu.device()).unwrap())
    }

    #[test]
    fn on_gpu_products_are_those_of_the_cpu_whatever_lies_turned() {
        let gpu = gpu();
        let (rows, columns, inner) = (5, 33, 70);
        let turn = |turned: bool, [rows, columns]: [usize; 2]| if turned { [columns, rows] } else { [rows, columns] };
        let straight = |turned: bool, tensor: Tensor| if turned { tensor.t().unwrap() } else { tensor };
        for (case, (a_turned, b_turned)) in
            [(false, false), (false, true), (true, false), (true, true)].iter().enumerate()
        {
            for (of, to) in [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)] {
                let (a, on_a) = both(&gpu, turn(*a_turned, [rows, inner]), case as u64, of);
                let (b, on_b) = both(&gpu, turn(*b_turned, [inner, columns]), case as u64 + 9, of);
                let product = straight(*a_turned, a).matmul(&straight(*b_turned, b)).unwrap();
                // What new memory holds is not read.
                let out = gpu.tensor((rows, columns), to).unwrap();
                let sides = [(&on_a, *a_turned), (&on_b, *b_turned)];
                gpu.gemm(sides, (rows, columns, inner), 0.0, &out).unwrap();
                close(&out, &product, to);
                gpu.gemm(sides, (rows, columns, inner), 1.0, &out).unwrap();
                close(&out, &(&product + &product).unwrap(), to);
            }
        }
    }

    #[test]
    fn on_gpu_a_product_checks_what_it_is_given() {
        let gpu = gpu();
        let (_, x) = both(&gpu, [2, 8], 1, DType::F32);
        let (_, weight) = both(&gpu, [3, 8], 2, DType::F32);
        let out = gpu.tensor((2, 3), DType::F32).unwrap();
        gpu.product(&x, &weight, 0.0, &out).unwrap();
        for (x, weight, out) in [(&weight, &weight, &out), (&x, &x, &out), (&x, &out, &out)] {
            assert!(gpu.product(x, weight, 0.0, out).is_err());
        }
        assert!(gpu.product(&x, &weight.to_dtype(DType::BF16).unwrap(), 0.0, &out).is_err());
        let across = gpu.tensor((3, 2), DType::F32).unwrap().t().unwrap();
        assert!(gpu.product(&x, &weight, 0.0, &across).is_err());
    }

    #[test]
    fn on_gpu_what_was_recorded_runs_again_on_what_its_inputs_hold_then() {
        let gpu = gpu();
        let (rows, width) = (3, 64);
        let (_, x) = both(&gpu, [rows, width], 0, DType::F32);
        let (matrix, on_matrix) = both(&gpu, [5, width], 7, DType::F32);
        let ones = Tensor::ones(width, DType::F32, &gpu.device()).unwrap();
        let (normed, out) =
            (gpu.tensor((rows, width), DType::F32).unwrap(), gpu.tensor((rows, 5), DType::F32).unwrap());
        let work = |gpu: &Gpu| {
            rms_norm(gpu, &x, &ones, 1e-5, &normed)?;
            gpu.product(&normed, &on_matrix, 0.0, &out)
        };
        let aside = gpu.aside().unwrap();
        let recording = gpu.record(&aside, work).unwrap().unwrap();
        let before = out.to_vec2::<f32>().unwrap();
        for seed in 1..4 {
            let changed = values(&[rows, width], seed);
            x.slice_set(&changed.to_device(&gpu.device()).unwrap(), 0, 0).unwrap();
            recording.run(&gpu).unwrap();
            let ones = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
            let expected = crate::ops::rms_norm(&changed, &ones, 1e-5).unwrap().matmul(&matrix.t().unwrap()).unwrap();
            close(&out, &expected, DType::F32);
            assert_ne!(out.to_vec2::<f32>().unwrap(), before);
        }
        let refused = gpu.record(&aside, |_| bail!("changed its mind"));
        assert!(refused.unwrap_err().to_string().contains("changed its mind"));
        // What takes memory is done, and not recorded.
        let takes = |gpu: &Gpu| gpu.tensor(1, DType::F32).and_then(|_| work(gpu));
        gpu.record(&aside, takes).unwrap().unwrap_err();
        work(&gpu).unwrap();
    }

    #[test]
    fn on_gpu_numbers_go_to_the_beginning_of_a_tensor() {
        let gpu = gpu();
        let to = Tensor::zeros(5, DType::U32, &gpu.device()).unwrap();
        gpu.upload(&[3_u32, 1, 2], &to).unwrap();
        assert_eq!(to.to_vec1::<u32>().unwrap(), [3, 1, 2, 0, 0]);
        assert!(gpu.upload(&[0_u32; 6], &to).is_err());
    }
}
