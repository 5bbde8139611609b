//! Numbers between two steps of a computation, whose memory is used again.
//!
//! A step of training fills and drops as much as the one before it (190 MB a block of ViT-Base with 8 images, forward and
//! back), and clearing it anew is work for one thread. What was dropped lies ready for the next one of about its size, and
//! goes back to the system when something larger is needed or [`clear`] is called. Computes nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

/// By length.
static IDLE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

/// `len` numbers; what they are at first is not defined.
#[derive(Debug, Default)]
pub struct Buffer {
    data: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// Takes memory for `len` numbers, which are to be written before they are read.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let mut buffer = Self { data: taken(len).unwrap_or_else(|| vec![0.0; len]), len };
        if cfg!(debug_assertions) {
            // Whoever reads them before shows.
            buffer.fill(f32::NAN);
        }
        buffer
    }

    /// The same with zeros.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::new(len);
        buffer.fill(0.0);
        buffer
    }

    /// The same with numbers of another place.
    #[must_use]
    pub fn copy(from: &[f32]) -> Self {
        let mut buffer = Self::new(from.len());
        buffer.copy_from_slice(from);
        buffer
    }

    /// Keeps the first `len` numbers.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Returns the numbers for good.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<f32> {
        let mut data = std::mem::take(&mut self.data);
        data.truncate(self.len);
        data
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        if !data.is_empty() {
            idle().entry(data.len()).or_default().push(data);
        }
    }
}

/// Gives all memory that nobody uses back to the system.
pub fn clear() {
    idle().clear();
}

/// Returns the memory of an f32 tensor on the CPU, after which neither it nor what shares its numbers may be read; nothing
/// of a tensor of another type.
///
/// # Errors
/// When it is on another device.
pub fn reclaim(tensor: Tensor) -> Result<Vec<f32>> {
    struct Take(Cell<Vec<f32>>);

    impl InplaceOp1 for Take {
        fn name(&self) -> &'static str {
            "reclaim"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
            if let CpuStorage::F32(numbers) = storage {
                self.0.set(std::mem::take(numbers));
            }
            Ok(())
        }
    }

    let taken = Take(Cell::default());
    tensor.inplace_op1(&taken)?;
    Ok(taken.0.into_inner())
}

fn idle() -> MutexGuard<'static, BTreeMap<usize, Vec<Vec<f32>>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes memory of `len` to twice as many numbers, or lets go of what the new memory will take.
fn taken(len: usize) -> Option<Vec<f32>> {
    let mut idle = idle();
    let fits = idle.range(len..=2 * len).next().map(|(size, _)| *size);
    if let Some(size) = fits {
        return pop(&mut idle, size);
    }
    let mut wanted = len;
    while wanted > 0 {
        let largest = *idle.keys().next_back()?;
        pop(&mut idle, largest);
        wanted = wanted.saturating_sub(largest);
    }
    None
}

fn pop(idle: &mut BTreeMap<usize, Vec<Vec<f32>>>, size: usize) -> Option<Vec<f32>> {
    let same = idle.get_mut(&size)?;
    let data = same.pop();
    if same.is_empty() {
        idle.remove(&size);
    }
    data
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_memory_of_a_tensor_comes_back() {
        let tensor = Tensor::from_vec(vec![1.0_f32, 2.0], 2, &Device::Cpu).unwrap();
        assert_eq!(reclaim(tensor).unwrap(), [1.0, 2.0]);
        assert!(reclaim(Tensor::new(&[1_u32], &Device::Cpu).unwrap()).unwrap().is_empty());
    }

    #[test]
    fn a_buffer_has_its_length_whatever_it_was_before() {
        let mut buffer = Buffer::copy(&[1.0, 2.0, 3.0, 4.0]);
        buffer.truncate(3);
        assert_eq!(*buffer, [1.0, 2.0, 3.0]);
        assert_eq!(buffer.into_vec(), [1.0, 2.0, 3.0]);
        for len in [0, 1, 5, 8, 1000] {
            drop(Buffer::copy(&vec![7.0; len]));
            let zeros = Buffer::zeros(len - len / 3);
            assert!(zeros.len() == len - len / 3 && zeros.iter().all(|x| *x == 0.0));
        }
        clear();
    }
}
