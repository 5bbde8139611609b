//! Copies from the host beside the stream of steps: locked pages, marks in a stream, and a stream that only copies.
//!
//! A copy on the side runs while steps run. Whoever asks for one says which marks have to be over before, since the memory
//! it writes may still be read, and gets a mark that the steps that need it follow. Knows neither steps nor adapters.

use std::ops::Range;
use std::sync::mpsc::{self, SendError, Sender};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};
use candle_core::{CpuStorage, Device, Result, Storage, Tensor, bail};

use super::device::Gpu;
use crate::ops::Staged;

/// A place in a stream: behind everything that it was given before.
#[derive(Debug, Clone)]
pub struct Mark(Arc<CudaEvent>);

impl Mark {
    fn of(stream: &CudaStream) -> Result<Self> {
        stream.record_event(None).w().map(|event| Self(Arc::new(event)))
    }

    /// Returns whether everything before it is done; also where the device cannot say.
    pub fn is_over(&self) -> bool {
        self.0.context().bind_to_thread().is_ok() && self.0.try_is_complete().unwrap_or(true)
    }

    /// Waits until everything before it is done.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(&self) -> Result<()> {
        self.0.synchronize().w()
    }
}

impl Gpu {
    /// Returns the place behind all work given so far.
    ///
    /// # Errors
    /// When the device fails.
    pub fn mark(&self) -> Result<Mark> {
        Mark::of(&self.stream)
    }

    /// Lets all work given from now on begin after a mark.
    ///
    /// # Errors
    /// When the device fails.
    pub fn follow(&self, mark: &Mark) -> Result<()> {
        self.stream.wait(&mark.0).w()
    }

    /// Returns a stream for copies beside that of this device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn side(&self) -> Result<Side> {
        Ok(Side { gpu: self.clone(), stream: self.stream.context().new_stream().w()? })
    }
}

/// A stream that copies from the host.
#[derive(Debug)]
pub struct Side {
    gpu: Gpu,
    stream: Arc<CudaStream>,
}

/// Numbers of the host, some of them, and the beginning of where they go.
pub type Upload<'a> = (&'a Staged, Range<usize>, &'a Tensor);

impl Side {
    /// Copies numbers to tensors of their format after some marks; returns the mark behind the copies. What is copied must
    /// not be written before it is over.
    ///
    /// # Errors
    /// When something does not fit, or the device fails.
    pub fn upload(&self, after: &[&Mark], copies: &[Upload<'_>]) -> Result<Mark> {
        let mut ready = Vec::with_capacity(copies.len());
        for (from, range, to) in copies {
            let (dtype, have) = (from.tensor().dtype(), from.tensor().elem_count());
            let Some(lock) = from.lock() else { bail!("numbers that were staged for another device") };
            if to.dtype() != dtype || range.end > have || range.len() > to.elem_count() {
                bail!("{range:?} of {have} numbers of {dtype:?} for {:?} of {:?}", to.shape(), to.dtype());
            }
            let number = dtype.size_in_bytes();
            ready.push((lock, range.start * number, range.len() * number, self.gpu.address(to)?));
        }
        self.gpu.bind()?;
        for mark in after {
            self.stream.wait(&mark.0).w()?;
        }
        let mut outcome = Ok(());
        for (lock, begin, bytes, to) in ready.iter().filter(|(_, _, bytes, _)| *bytes > 0) {
            #[expect(unsafe_code, reason = "both are of this size, and the lock waits for the copy before it lets go")]
            // SAFETY: the tensor that the address is of lives as long as its lock.
            let done = unsafe {
                let from = std::slice::from_raw_parts((lock.address + begin) as *const u8, *bytes);
                result::memcpy_htod_async(*to, from, self.stream.cu_stream())
            };
            outcome = outcome.and(done.w());
        }
        let mark = outcome.and_then(|()| Mark::of(&self.stream));
        match &mark {
            Ok(mark) => {
                for (lock, ..) in ready {
                    *lock.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark.clone());
                }
            }
            // What was begun reads memory that nobody marks: it has to be over. That the device fails is known already.
            Err(_) => drop(self.stream.synchronize()),
        }
        mark
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Whoever drops it drops what it writes to.
        if let Err(error) = self.stream.synchronize() {
            tracing::warn!(error = &error as &dyn std::error::Error, "copies did not end");
        }
    }
}

/// Memory of the host that a device copies from by itself.
pub struct PageLock {
    /// The memory.
    numbers: Tensor,
    address: usize,
    locked: bool,
    /// Behind the last copy.
    last: Mutex<Option<Mark>>,
    context: Arc<CudaContext>,
}

impl PageLock {
    /// Locks the pages of a tensor of the CPU in one piece for a device; `None` where that is no GPU.
    ///
    /// # Errors
    /// When there is no such tensor, or the device fails. A system that locks no pages is no error.
    pub fn new(numbers: &Tensor, device: &Device) -> Result<Option<Self>> {
        let Some(gpu) = Gpu::of(device) else { return Ok(None) };
        let (address, bytes) = memory_of(numbers)?;
        gpu.bind()?;
        #[expect(unsafe_code, reason = "the memory is a tensor's, which lives until the lock is gone")]
        // SAFETY: the range is within one allocation of the host.
        let done = unsafe { sys::cuMemHostRegister_v2(address as *mut _, bytes.max(1), 0) }.result();
        if let Err(error) = &done {
            tracing::debug!(
                error = error as &dyn std::error::Error,
                bytes,
                "pages were not locked: copies take longer"
            );
        }
        Ok(Some(Self {
            numbers: numbers.clone(),
            address,
            locked: done.is_ok(),
            last: Mutex::default(),
            context: Arc::clone(gpu.stream.context()),
        }))
    }

    /// Returns whether the device copies while the host goes on.
    pub fn is_locked(&self) -> bool {
        self.locked
    }
}

impl Drop for PageLock {
    fn drop(&mut self) {
        let last = self.last.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let (numbers, context) = (self.numbers.clone(), Arc::clone(&self.context));
        let locked = Locked { numbers, address: self.address, locked: self.locked, last, context };
        // That may wait for the device: whoever drops the last of an adapter, the thread of steps perhaps, does not.
        if let Err(SendError(locked)) = UNLOCKER.send(locked) {
            locked.let_go();
        }
    }
}

/// The thread that lets pages go.
static UNLOCKER: LazyLock<Sender<Locked>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Locked>();
    // Without it, whoever drops a lock lets go itself.
    let _ = thread::Builder::new().name("unlock".into()).spawn(move || receiver.iter().for_each(|one| one.let_go()));
    sender
});

/// What is to be let go of a lock.
struct Locked {
    numbers: Tensor,
    address: usize,
    locked: bool,
    last: Option<Mark>,
    context: Arc<CudaContext>,
}

impl Locked {
    fn let_go(&self) {
        let over = self.last.as_ref().map_or(Ok(()), |mark| mark.0.synchronize());
        // The first call may only say what failed before.
        let bound = || self.context.bind_to_thread().or_else(|_| self.context.bind_to_thread());
        let done = over.and_then(|()| bound()).and_then(|()| match self.locked {
            #[expect(unsafe_code, reason = "the memory was locked here, and is still there")]
            // SAFETY: no copy reads it any more.
            true => unsafe { sys::cuMemHostUnregister(self.address as *mut _) }.result(),
            false => Ok(()),
        });
        if let Err(error) = done {
            tracing::warn!(error = &error as &dyn std::error::Error, "pages were not let go");
            // Memory that the device still knows may be nobody else's.
            std::mem::forget(self.numbers.clone());
        }
    }
}

impl std::fmt::Debug for PageLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageLock").field("locked", &self.locked).finish_non_exhaustive()
    }
}

/// Returns address and bytes of a tensor of the CPU in one piece.
fn memory_of(tensor: &Tensor) -> Result<(usize, usize)> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("{:?} is not in one piece of the host's memory", tensor.shape());
    };
    #[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is staged")]
    let first = match storage {
        CpuStorage::F32(numbers) => numbers.as_ptr() as usize,
        CpuStorage::BF16(numbers) => numbers.as_ptr() as usize,
        CpuStorage::U32(numbers) => numbers.as_ptr() as usize,
        CpuStorage::I64(numbers) => numbers.as_ptr() as usize,
        _ => bail!("{:?} is staged for no device", tensor.dtype()),
    };
    let number = tensor.dtype().size_in_bytes();
    Ok((first + start * number, (end - start) * number))
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::ops::cuda::add_rows;
    use crate::ops::cuda::testing::{gpu, numbers, on, values};

    fn staged(gpu: &Gpu, seed: u64) -> Staged {
        Staged::new(values(&[4, 8], seed), &gpu.device()).unwrap()
    }

    #[test]
    fn on_gpu_a_copy_on_the_side_is_seen_by_who_follows_it() {
        let gpu = gpu();
        let side = gpu.side().unwrap();
        let (out, add) = (on(&gpu, &values(&[2, 8], 1), DType::F32), on(&gpu, &values(&[2, 8], 2), DType::F32));
        let before = numbers(&out);
        let from = staged(&gpu, 3);
        let held = gpu.mark().unwrap();
        let mark = side.upload(&[&held], &[(&from, 8..24, &add)]).unwrap();
        gpu.follow(&mark).unwrap();
        add_rows(&gpu, &out, &add).unwrap();
        let expected: Vec<f32> = before.iter().zip(&numbers(from.tensor())[8..24]).map(|(a, b)| a + b).collect();
        assert_eq!(numbers(&out), expected);
        mark.wait().unwrap();
        assert!(mark.is_over());
    }

    #[test]
    fn on_gpu_memory_outlives_the_copies_of_it() {
        let gpu = gpu();
        let side = gpu.side().unwrap();
        let to = gpu.tensor((4, 8), DType::F32).unwrap();
        gpu.wait().unwrap();
        let from = staged(&gpu, 4);
        let expected = numbers(from.tensor());
        let mark = side.upload(&[], &[(&from, 0..32, &to)]).unwrap();
        drop(from);
        gpu.follow(&mark).unwrap();
        assert_eq!(numbers(&to), expected);
    }

    #[test]
    fn on_gpu_what_does_not_fit_is_not_copied() {
        let gpu = gpu();
        let (side, from) = (gpu.side().unwrap(), staged(&gpu, 5));
        let [small, other] = [(3, DType::F32), (64, DType::U32)].map(|(n, dtype)| gpu.tensor(n, dtype).unwrap());
        side.upload(&[], &[(&from, 0..4, &small)]).unwrap_err();
        side.upload(&[], &[(&from, 0..4, &other)]).unwrap_err();
        side.upload(&[], &[(&from, 30..33, &gpu.tensor(64, DType::F32).unwrap())]).unwrap_err();
        let elsewhere = Staged::new(values(&[4], 6), &Device::Cpu).unwrap();
        side.upload(&[], &[(&elsewhere, 0..2, &small)]).unwrap_err();
    }
}
