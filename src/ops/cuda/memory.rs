//! Memory of the device: tensors that kernels write, copies, and what the driver's pool keeps.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, result, sys};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};

use super::device::Gpu;

/// Lets the device's pool keep what tensors give back; else it goes to the driver whenever a stream is waited for, and is
/// mapped again for the next ones.
pub(super) fn keep_memory(device: &CudaDevice) -> Result<()> {
    let mut most = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    #[expect(unsafe_code, reason = "the pool is the device's own, and the attribute is 64 bits")]
    unsafe { result::mem_pool::set_attribute(pool(device)?, attribute, (&raw mut most).cast()) }.w()
}

fn pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let context = Arc::clone(device.cuda_stream().context());
    context.bind_to_thread().w()?;
    #[expect(unsafe_code, reason = "the device is that of a context")]
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.w()
}

impl Gpu {
    /// Takes memory for a tensor; what it holds at first is not defined.
    ///
    /// # Errors
    /// When the device has no memory left, or the format is none of f32, bf16, f16 and u32.
    pub fn tensor(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let count = shape.elem_count();
        #[expect(clippy::wildcard_enum_match_arm, reason = "kernels know no other format")]
        let storage = match dtype {
            DType::F32 => self.wrapped::<f32>(count)?,
            DType::BF16 => self.wrapped::<bf16>(count)?,
            DType::F16 => self.wrapped::<f16>(count)?,
            DType::U32 => self.wrapped::<u32>(count)?,
            other => bail!("kernels know no tensors of {other:?}"),
        };
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }

    /// Takes memory for tensors of the shapes and formats of others.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn alike<const N: usize>(&self, tensors: [&Tensor; N]) -> Result<[Tensor; N]> {
        let made = tensors.iter().map(|like| self.tensor(like.shape(), like.dtype())).collect::<Result<Vec<_>>>()?;
        made.try_into().or_else(|_| bail!("as many tensors as there were"))
    }

    fn wrapped<T: candle_core::cuda_backend::CudaDType + DeviceRepr>(&self, count: usize) -> Result<CudaStorage> {
        #[expect(unsafe_code, reason = "memory is written before it is read: the callers' promise")]
        let slice: CudaSlice<T> = unsafe { self.device.alloc(count)? };
        Ok(CudaStorage::wrap_cuda_slice(slice, self.device.clone()))
    }

    /// Copies numbers to the beginning of a tensor, behind the work given so far.
    ///
    /// # Errors
    /// When the tensor is smaller or the device fails.
    pub fn upload<T: WithDType + DeviceRepr>(&self, data: &[T], to: &Tensor) -> Result<()> {
        if to.dtype() != T::DTYPE || to.elem_count() < data.len() {
            bail!("{} numbers for a tensor of {:?}", data.len(), to.shape());
        }
        let address = self.address(to)?;
        self.bind()?;
        #[expect(unsafe_code, reason = "the tensor has room, as was checked")]
        unsafe { result::memcpy_htod_async(address, data, self.stream.cu_stream()) }.w()
    }

    /// Copies a tensor to another one of the same format and size.
    ///
    /// # Errors
    /// When they differ or the device fails.
    pub fn copy(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        if from.dtype() != to.dtype() || from.elem_count() != to.elem_count() {
            bail!("{:?} {:?} for {:?} {:?}", from.dtype(), from.shape(), to.dtype(), to.shape());
        }
        let from = from.contiguous()?;
        let bytes = from.elem_count() * from.dtype().size_in_bytes();
        let (source, target) = (self.address(&from)?, self.address(to)?);
        self.bind()?;
        #[expect(unsafe_code, reason = "both are of this size, as was checked")]
        unsafe { result::memcpy_dtod_async(target, source, bytes, self.stream.cu_stream()) }.w()
    }

    /// Returns a copy of a tensor that has memory for what it holds alone; candle's has as much as what it is a part of.
    ///
    /// # Errors
    /// When the device fails.
    pub fn own(&self, from: &Tensor) -> Result<Tensor> {
        let to = self.tensor(from.shape(), from.dtype())?;
        self.copy(from, &to)?;
        Ok(to)
    }

    /// Returns free and total bytes of memory; what the device's pool keeps for the next tensors is free.
    ///
    /// # Errors
    /// When the device fails.
    pub fn memory(&self) -> Result<(usize, usize)> {
        use sys::CUmemPool_attribute::{CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT};

        let pool = pool(&self.device)?;
        let kept = |attribute| {
            let mut bytes = 0_u64;
            #[expect(unsafe_code, reason = "the pool is the device's own, and the attribute is 64 bits")]
            unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.w()?;
            Ok::<_, candle_core::Error>(bytes as usize)
        };
        let kept = kept(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?.saturating_sub(kept(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?);
        let (free, total) = result::mem_get_info().w()?;
        Ok((free + kept, total))
    }

    /// Returns the bytes that tensors have now and the most that they had since this was called last.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> Result<(u64, u64)> {
        use sys::CUmemPool_attribute::{CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_HIGH};

        let pool = pool(&self.device)?;
        let [mut now, mut most, mut none] = [0_u64; 3];
        #[expect(unsafe_code, reason = "the pool is the device's own, and the attributes are 64 bits")]
        unsafe {
            result::mem_pool::get_attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, (&raw mut now).cast()).w()?;
            result::mem_pool::get_attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut most).cast()).w()?;
            result::mem_pool::set_attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut none).cast()).w()?;
        }
        Ok((now, most))
    }

    /// Takes memory from the driver that the pool keeps for tensors of later.
    ///
    /// # Errors
    /// When the device has no such memory left.
    pub fn claim(&self, bytes: usize) -> Result<()> {
        if bytes > 0 { self.wrapped::<u8>(bytes).map(drop) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::cuda::add_rows;
    use crate::ops::cuda::testing::{close, counts, gpu, numbers, on, values};

    #[test]
    fn on_gpu_any_thread_may_be_the_first_to_give_work() {
        let gpu = gpu();
        let (x, weight) = (on(&gpu, &values(&[2, 8], 1), DType::F32), on(&gpu, &values(&[8, 8], 2), DType::F32));
        let (out, ids) = (gpu.tensor((2, 8), DType::F32).unwrap(), counts(&gpu, &[0, 0]));
        let works: [&(dyn Fn() -> Result<()> + Sync); 4] = [
            &|| gpu.upload(&[3_u32, 4], &ids),
            &|| gpu.copy(&x, &out),
            &|| gpu.product(&x, &weight, 0.0, &out),
            &|| add_rows(&gpu, &out, &x),
        ];
        for work in works {
            std::thread::scope(|scope| scope.spawn(work).join()).unwrap().unwrap();
        }
        assert_eq!(ids.to_vec1::<u32>().unwrap(), [3, 4]);
        let cpu = |tensor: &Tensor| tensor.to_device(&Device::Cpu).unwrap();
        let expected = (cpu(&x).matmul(&cpu(&weight).t().unwrap()).unwrap() + cpu(&x)).unwrap();
        close(&out, &expected, DType::F32);
    }

    #[test]
    fn on_gpu_what_is_one_s_own_is_no_larger_than_what_it_holds() {
        let gpu = gpu();
        let all = on(&gpu, &values(&[64, 8], 1), DType::F32);
        let own = gpu.own(&all.narrow(0, 5, 2).unwrap()).unwrap();
        assert_eq!(numbers(&own), numbers(&all)[40..56]);
        let (storage, _) = own.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { panic!("it is elsewhere") };
        assert_eq!(storage.as_cuda_slice::<f32>().unwrap().len(), 16);
    }
}
