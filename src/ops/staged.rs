//! Numbers in the host's memory that wait for a device to copy them.
//!
//! For a GPU their pages are locked, so that the device copies by itself while the host goes on; where the system refuses
//! that, copies take longer and are right all the same. The memory outlives every copy of it.

use candle_core::{Device, Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda::PageLock;

/// Numbers that stay where they are, on the CPU.
#[derive(Debug)]
pub struct Staged {
    // Dropped before the memory is.
    #[cfg(feature = "cuda")]
    lock: Option<PageLock>,
    numbers: Tensor,
}

impl Staged {
    /// Keeps `numbers`, a tensor of the CPU in one piece, for copies to `device`.
    ///
    /// # Errors
    /// When the tensor is elsewhere or not in one piece.
    pub fn new(numbers: Tensor, device: &Device) -> Result<Self> {
        if !numbers.device().is_cpu() || !numbers.is_contiguous() {
            candle_core::bail!("{:?} is not in one piece of the host's memory", numbers.shape());
        }
        #[cfg(feature = "cuda")]
        let lock = PageLock::new(&numbers, device)?;
        let _ = device;
        Ok(Self {
            #[cfg(feature = "cuda")]
            lock,
            numbers,
        })
    }

    /// Returns the numbers.
    pub fn tensor(&self) -> &Tensor {
        &self.numbers
    }

    /// Returns what a device copies from, where one does.
    #[cfg(feature = "cuda")]
    pub fn lock(&self) -> Option<&PageLock> {
        self.lock.as_ref()
    }
}
