//! An operation whose result and backward are both given: how operations of our own enter candle's graph.
//!
//! The result is computed outside of the graph, on detached inputs, by whatever is fastest; the backward is a closure
//! over what it needs. So no intermediate tensor is kept unless the closure keeps it, and no gradient is formed for
//! what is no input. Works on every device that candle has, since both sides are written in tensors.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor,
    bail,
};

/// Gradients of the inputs, in their order; `None` where none flows.
pub(super) type Gradients = Vec<Option<Tensor>>;
type Backward = dyn Fn(&Tensor) -> Result<Gradients> + Send + Sync;

/// The result of an operation.
pub enum Value {
    /// Computed by tensor operations.
    Tensor(Tensor),
    /// Computed on the CPU, with its shape.
    Owned(Vec<f32>, Shape),
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl Value {
    pub(super) fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            Self::Owned(data, shape) => Tensor::from_vec(data, shape, &Device::Cpu),
        }
    }
}

/// Puts `value` into the graph as an operation of one to three `inputs`.
///
/// `backward` gets the gradient of the result, contiguous. Without a tracked input `value` is returned as it is.
///
/// # Errors
/// When there are more inputs, or the device fails.
pub fn explicit(
    inputs: &[&Tensor],
    value: impl Into<Value>,
    backward: impl Fn(&Tensor) -> Result<Gradients> + Send + Sync + 'static,
) -> Result<Tensor> {
    let value = value.into();
    if !inputs.iter().any(|input| input.track_op()) {
        return value.into_tensor();
    }
    let value = match value {
        Value::Tensor(value) => Value::Tensor(value.contiguous()?.detach()),
        Value::Owned(..) => value,
    };
    let node = Node { value: Mutex::new(Some(value)), backward: Box::new(backward) };
    match *inputs {
        [a] => a.apply_op1(node),
        [a, b] => a.apply_op2(b, node),
        [a, b, c] => a.apply_op3(b, c, node),
        _ => bail!("an operation of {} inputs", inputs.len()),
    }
}

/// Returns a scalar whose backward hands `gradient` to `output`: the start of a backward in the middle of a model.
///
/// # Errors
/// When the device fails.
pub fn seed(output: &Tensor, gradient: Tensor) -> Result<Tensor> {
    let zero = Tensor::zeros((), DType::F32, output.device())?;
    explicit(&[output], zero, move |_| Ok(vec![Some(gradient.clone())]))
}

struct Node {
    /// Until it has become the storage of the result.
    value: Mutex<Option<Value>>,
    backward: Box<Backward>,
}

impl Node {
    fn value(&self) -> Result<Value> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(value) => Ok(value),
            None => bail!("an operation ran twice"),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        let value = match self.value()? {
            Value::Tensor(value) => value,
            Value::Owned(data, shape) => return Ok((CpuStorage::F32(data), shape)),
        };
        let (storage, layout) = value.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(cpu), Some((start, end))) => Ok((part(cpu, start, end)?, layout.shape().clone())),
            _ => bail!("the result of an operation is on another device"),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;

        let value = self.value()?.into_tensor()?;
        // A storage is copied whole.
        let value = if fills(&value) { value } else { value.force_contiguous()? };
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cuda(cuda) => Ok((cuda.try_clone(layout)?, layout.shape().clone())),
            Storage::Cpu(_) | Storage::Metal(_) => bail!("the result of an operation is on another device"),
        }
    }

    /// Returns the gradients of exactly `N` inputs.
    fn gradients<const N: usize>(&self, gradient: &Tensor) -> Result<[Option<Tensor>; N]> {
        let gradients = (self.backward)(&gradient.contiguous()?)?;
        let found = gradients.len();
        gradients.try_into().or_else(|_| bail!("{found} gradients for {N} inputs"))
    }
}

/// Returns whether a tensor is all that its storage on a GPU holds.
#[cfg(feature = "cuda")]
fn fills(tensor: &Tensor) -> bool {
    use candle_core::cuda_backend::CudaStorageSlice;

    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return false };
    #[expect(clippy::wildcard_enum_match_arm, reason = "others are copied once more")]
    let len = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.len(),
        CudaStorageSlice::BF16(slice) => slice.len(),
        CudaStorageSlice::F16(slice) => slice.len(),
        _ => return false,
    };
    layout.contiguous_offsets() == Some((0, len))
}

#[cfg(not(feature = "cuda"))]
fn fills(_: &Tensor) -> bool {
    false
}

/// Copies a part of a storage.
fn part(storage: &CpuStorage, start: usize, end: usize) -> Result<CpuStorage> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "no operation of ours makes other formats")]
    Ok(match storage {
        CpuStorage::F32(data) => CpuStorage::F32(data[start..end].to_vec()),
        CpuStorage::BF16(data) => CpuStorage::BF16(data[start..end].to_vec()),
        CpuStorage::F16(data) => CpuStorage::F16(data[start..end].to_vec()),
        CpuStorage::F64(data) => CpuStorage::F64(data[start..end].to_vec()),
        _ => bail!("an operation whose result is no real number"),
    })
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        "explicit"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.gradients(gradient)?;
        Ok(a)
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        "explicit"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients(gradient)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        "explicit"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients(gradient)?;
        Ok((a, b, c))
    }
}
