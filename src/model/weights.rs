//! Reads the weights of a transformers folder: `model.safetensors`, or shards with an index.
//!
//! Checks names, shapes and formats against the configuration before a byte is copied; tensors that the architecture
//! does not know are ignored. Does not know what the tensors compute.
//! Files are mapped, so that loading needs no second copy in memory; the base model's files must not change meanwhile.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::safetensors::{Load, MmapedSafetensors};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::ModelError;
use super::config::{Config, Fault};
use crate::ops::Linear;
#[cfg(feature = "cuda")]
use crate::ops::cuda::Gpu;

/// Largest JSON file read: a shard index of a model with a hundred thousand tensors has 10 MB.
const MAX_JSON: u64 = 64 << 20;

/// Weights by transformers' names, ready to be put together.
#[derive(Debug)]
pub(super) struct Parts {
    /// Tensors of two dimensions.
    pub(super) matrices: BTreeMap<String, Linear>,
    /// All others, in the compute format.
    pub(super) vectors: BTreeMap<String, Tensor>,
    /// SHA-256 of configuration and tensors, hexadecimal.
    pub(super) fingerprint: String,
    /// Number of weights.
    pub(super) parameters: u64,
    /// Format of activations.
    pub(super) dtype: DType,
    /// Format of the weights, in words.
    pub(super) weight_format: String,
}

/// Returns the device that `text` names.
pub(super) fn device(text: &str) -> Result<Device, ModelError> {
    let index = match text {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    let Some(index) = index else {
        return Err(ModelError::Device(format!("unknown device `{text}`; use cpu, cuda or cuda:N")));
    };
    open_cuda(index).map_err(|fault| ModelError::Device(format!("device `{text}`: {fault}")))
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> candle_core::Result<Device> {
    crate::ops::cuda::open(index)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<Device, &'static str> {
    Err("this binary was built without the feature `cuda`")
}

/// Returns the number format that `text` names; none for `auto`.
pub(super) fn dtype(text: &str) -> Result<Option<DType>, ModelError> {
    match text {
        "auto" => Ok(None),
        "f32" => Ok(Some(DType::F32)),
        "bf16" => Ok(Some(DType::BF16)),
        "f16" => Ok(Some(DType::F16)),
        other => Err(ModelError::Unsupported(format!("number format `{other}` (auto, f32, bf16, f16 are)"))),
    }
}

/// Returns the format of activations under weights of a format: the kernels of the CPU take f32.
pub(super) fn activations(device: &Device, weights: DType) -> DType {
    if device.is_cpu() { DType::F32 } else { weights }
}

/// Returns the format that quantised weights are turned into where nothing is said: bf16 on a GPU, whose kernels take no
/// other, if `parameters` of it are half of what is free there at most. Elsewhere, none: they stay as they are.
#[cfg(feature = "cuda")]
pub(super) fn instead_of_quantised(device: &Device, parameters: u64) -> Result<Option<DType>, ModelError> {
    let Some(gpu) = Gpu::of(device) else { return Ok(None) };
    let bytes = parameters.saturating_mul(DType::BF16.size_in_bytes() as u64);
    Ok((bytes <= gpu.memory()?.0 as u64 / 2).then_some(DType::BF16))
}

#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "as with the feature")]
pub(super) fn instead_of_quantised(_: &Device, _: u64) -> Result<Option<DType>, ModelError> {
    Ok(None)
}

/// What weights are checked against.
pub(super) struct Needed {
    /// Tensors with their shapes, by transformers' names.
    pub(super) tensors: BTreeMap<String, Vec<usize>>,
    /// Everything that decides what they compute, in one fixed form.
    pub(super) canonical: String,
    /// Number format of the checkpoint, when the configuration says.
    pub(super) dtype: Option<DType>,
}

/// Reads configuration and weights of a language model's folder.
pub(super) fn read(folder: &Path, device: &Device, dtype: Option<DType>) -> Result<(Config, Parts), ModelError> {
    let config = config(folder)?;
    let needed = Needed { tensors: config.tensors(), canonical: config.canonical(), dtype: config.dtype };
    let parts = read_parts(folder, needed, device, dtype)?;
    Ok((config, parts))
}

/// Reads the weights of a folder.
pub(super) fn read_parts(
    folder: &Path,
    needed: Needed,
    device: &Device,
    dtype: Option<DType>,
) -> Result<Parts, ModelError> {
    let Needed { tensors: needed, canonical, dtype: configured } = needed;
    let files = Files::open(folder)?;
    let mut digest = Fingerprint::new(&canonical);
    let mut stored = None;
    for (name, shape) in &needed {
        let (format, bytes) = files.check(name, shape)?;
        digest.tensor(name, format, shape, bytes);
        stored.get_or_insert(format);
    }
    let auto = match configured.or(stored.and_then(float)) {
        _ if device.is_cpu() => DType::F32,
        // The kernels know bf16.
        Some(DType::F16) => DType::BF16,
        own => own.unwrap_or(DType::F32),
    };
    let dtype = dtype.unwrap_or(auto);
    let mut parts = Parts {
        matrices: BTreeMap::new(),
        vectors: BTreeMap::new(),
        fingerprint: digest.finish(),
        parameters: needed.values().map(|shape| shape.iter().product::<usize>() as u64).sum(),
        dtype: activations(device, dtype),
        weight_format: dtype.as_str().into(),
    };
    for (name, shape) in needed {
        let tensor = files.view(&name)?.load(device)?;
        if shape.len() == 2 {
            parts.matrices.insert(name, Linear::dense(tensor.to_dtype(dtype)?));
        } else {
            parts.vectors.insert(name, tensor.to_dtype(dtype)?.to_dtype(parts.dtype)?);
        }
    }
    Ok(parts)
}

fn config(folder: &Path) -> Result<Config, ModelError> {
    let path = folder.join("config.json");
    let mut config = Config::parse(&read_json(&path)?).map_err(|fault| fault_in(&path, fault))?;
    let path = folder.join("generation_config.json");
    if path.exists() {
        config.add_generation_config(&read_json(&path)?).map_err(|fault| fault_in(&path, fault))?;
    }
    Ok(config)
}

pub(super) fn invalid(path: &Path, fault: impl Into<String>) -> ModelError {
    ModelError::Invalid { path: path.display().to_string(), fault: fault.into() }
}

pub(super) fn fault_in(path: &Path, fault: Fault) -> ModelError {
    match fault {
        Fault::Invalid(fault) => invalid(path, fault),
        Fault::Unsupported(what) => ModelError::Unsupported(what),
    }
}

pub(super) fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> ModelError {
    let path = path.display().to_string();
    move |source| ModelError::Read { path, source }
}

pub(super) fn read_json(path: &Path) -> Result<Vec<u8>, ModelError> {
    let file = std::fs::File::open(path).map_err(unreadable(path))?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(unreadable(path))?;
    if bytes.len() as u64 > MAX_JSON {
        return Err(invalid(path, format!("larger than {MAX_JSON} bytes")));
    }
    Ok(bytes)
}

/// SHA-256 over configuration, then name, format, shape and digest of each tensor in the order of names.
///
/// It does not depend on how tensors are spread over files. Each tensor is digested on its own, so that reading may
/// become parallel without changing any fingerprint.
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    /// Begins with the configuration in its fixed form.
    pub(super) fn new(canonical: &str) -> Self {
        Self(Sha256::new_with_prefix(canonical))
    }

    pub(super) fn tensor(&mut self, name: &str, format: impl std::fmt::Debug, shape: &[usize], bytes: &[u8]) {
        self.0.update(format!("{name} {format:?} {shape:?} ").to_lowercase());
        self.0.update(Sha256::digest(bytes));
    }

    pub(super) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

/// The mapped files of a folder.
struct Files {
    folder: PathBuf,
    files: Vec<MmapedSafetensors>,
    /// File of each tensor by the index; empty when there is one file.
    index: BTreeMap<String, usize>,
}

impl Files {
    fn open(folder: &Path) -> Result<Self, ModelError> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.exists() {
            return Ok(Self { folder: folder.into(), files: vec![map(&single)?], index: BTreeMap::new() });
        }
        if !index.exists() {
            return Err(invalid(folder, "neither model.safetensors nor model.safetensors.index.json is there"));
        }
        Self::sharded(folder, &index)
    }

    fn sharded(folder: &Path, index: &Path) -> Result<Self, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let read: Index = serde_json::from_slice(&read_json(index)?)
            .map_err(|e| invalid(index, format!("not a valid index: {e}")))?;
        let mut numbers = BTreeMap::new();
        let (mut files, mut of_tensor) = (Vec::new(), BTreeMap::new());
        for (tensor, file) in read.weight_map {
            let number = match numbers.get(&file) {
                Some(number) => *number,
                None => {
                    if !is_plain_name(&file) {
                        return Err(invalid(index, format!("`{file}` is not a plain name of a safetensors file")));
                    }
                    files.push(map(&folder.join(&file))?);
                    numbers.insert(file, files.len() - 1);
                    files.len() - 1
                }
            };
            of_tensor.insert(tensor, number);
        }
        Ok(Self { folder: folder.into(), files, index: of_tensor })
    }

    fn view(&self, name: &str) -> Result<safetensors::tensor::TensorView<'_>, ModelError> {
        let missing = || invalid(&self.folder, format!("tensor `{name}` is missing"));
        let number = if self.index.is_empty() { 0 } else { *self.index.get(name).ok_or_else(missing)? };
        self.files.get(number).and_then(|file| file.get(name).ok()).ok_or_else(missing)
    }

    /// Checks a tensor and returns its format and bytes.
    fn check(&self, name: &str, shape: &[usize]) -> Result<(Dtype, &[u8]), ModelError> {
        let view = self.view(name)?;
        if view.shape() != shape {
            let fault = format!("tensor `{name}` has shape {:?}, the configuration needs {shape:?}", view.shape());
            return Err(invalid(&self.folder, fault));
        }
        if float(view.dtype()).is_none() {
            let fault = format!("tensor `{name}` has format {:?}, one of F32, F16, BF16 is needed", view.dtype());
            return Err(invalid(&self.folder, fault));
        }
        Ok((view.dtype(), view.data()))
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other formats are refused alike, those of tomorrow too")]
fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// An index may name files of its own folder only.
fn is_plain_name(file: &str) -> bool {
    file.ends_with(".safetensors") && !file.starts_with('.') && !file.contains(['/', '\\', '\0', ':'])
}

fn map(path: &Path) -> Result<MmapedSafetensors, ModelError> {
    let metadata = std::fs::metadata(path).map_err(unreadable(path))?;
    if !metadata.is_file() {
        return Err(invalid(path, "not a file"));
    }
    // SAFETY: the mapping is read only; the base model's files are the operator's and must not be changed while the
    // server loads them (README), as for every loader of mapped safetensors.
    #[expect(unsafe_code, reason = "loading without a second copy in memory")]
    let file = unsafe { MmapedSafetensors::new(path) };
    file.map_err(|e| invalid(path, format!("not a valid safetensors file: {e}")))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mistral, tensors, write};
    use super::*;

    fn parsed() -> Config {
        Config::parse(mistral().to_string().as_bytes()).unwrap()
    }

    fn folder(tensors: &BTreeMap<String, Tensor>, files: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &mistral(), tensors, files);
        folder
    }

    fn error(tensors: &BTreeMap<String, Tensor>) -> String {
        read(folder(tensors, 1).path(), &Device::Cpu, None).unwrap_err().to_string()
    }

    #[test]
    fn the_fingerprint_is_that_of_the_content() {
        let tensors_of = |seed| tensors(&parsed(), seed);
        let fingerprint = |tensors: &BTreeMap<_, _>, files| {
            read(folder(tensors, files).path(), &Device::Cpu, None).unwrap().1.fingerprint
        };
        let one = fingerprint(&tensors_of(1), 1);
        assert_eq!(one.len(), 64);
        assert_eq!(one, fingerprint(&tensors_of(1), 3));
        assert_ne!(one, fingerprint(&tensors_of(2), 1));

        let mut surplus = tensors_of(1);
        surplus.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), surplus["model.norm.weight"].clone());
        assert_eq!(one, fingerprint(&surplus, 1));

        let mut swapped = tensors_of(1);
        let (gate, up) = ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight");
        let (a, b) = (swapped[gate].clone(), swapped[up].clone());
        swapped.insert(gate.into(), b);
        swapped.insert(up.into(), a);
        assert_ne!(one, fingerprint(&swapped, 1));
    }

    #[test]
    fn faulty_tensors_are_named() {
        let name = "model.layers.1.mlp.up_proj.weight";
        let mut tensors = tensors(&parsed(), 1);
        let good = tensors.remove(name).unwrap();
        assert!(error(&tensors).contains(name));
        tensors.insert(name.into(), good.t().unwrap().contiguous().unwrap());
        assert!(error(&tensors).contains("[64, 96]"));
        tensors.insert(name.into(), good.to_dtype(DType::U8).unwrap());
        assert!(error(&tensors).contains("U8"));
        tensors.insert(name.into(), good.to_dtype(DType::BF16).unwrap());
        assert!(read(folder(&tensors, 2).path(), &Device::Cpu, None).is_ok());
    }

    #[test]
    fn cut_files_are_refused() {
        let folder = folder(&tensors(&parsed(), 1), 1);
        let file = folder.path().join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&file, &bytes[..len]).unwrap();
            assert!(read(folder.path(), &Device::Cpu, None).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn weights_of_sixteen_bits_compute_what_their_values_do_in_f32() {
        use super::super::testing::{forward, ids, largest_difference};
        use crate::model::{BaseModel as _, CausalLm as _, open};

        let logits = |folder: &tempfile::TempDir, dtype: &str| {
            let model = open(folder.path(), "cpu", dtype).unwrap();
            assert_eq!(model.info().dtype, if dtype == "auto" { "f32" } else { dtype });
            forward(&model, &[&ids(40, 1)], &mut [&mut model.new_cache()])
        };
        let exact = tensors(&parsed(), 1);
        let of_exact = logits(&folder(&exact, 1), "f32");
        // 11 and 8 bits of a weight: 0.002 and 0.02 were seen, of logits up to 5.
        for (name, format, least, most) in [("f16", DType::F16, 1e-5, 1e-2), ("bf16", DType::BF16, 1e-4, 0.1)] {
            let rounded = |to: DType| -> BTreeMap<_, _> {
                let round = |tensor: &Tensor| tensor.to_dtype(format).unwrap().to_dtype(to).unwrap();
                exact.iter().map(|(name, tensor)| (name.clone(), round(tensor))).collect()
            };
            let (stored, widened) = (folder(&rounded(format), 2), folder(&rounded(DType::F32), 1));
            let expected = logits(&widened, "f32");
            assert_eq!(logits(&stored, "auto"), expected, "{name} in a folder");
            let kept = largest_difference(&logits(&stored, name), &expected);
            let asked = largest_difference(&logits(&folder(&exact, 1), name), &expected);
            // The kernels take activations in f32, AMX alone rounds them, to bf16.
            assert!(kept < most && asked < most, "{name}: {kept} {asked}");
            let from_exact = largest_difference(&logits(&stored, name), &of_exact);
            assert!(from_exact > least && from_exact < most, "{name}: {from_exact}");
        }
    }

    #[test]
    fn an_index_names_files_of_its_folder_only() {
        for name in [
            "../a.safetensors",
            "/etc/a.safetensors",
            "a/b.safetensors",
            "..safetensors",
            "a.bin",
            "",
            "C:a.safetensors",
        ] {
            assert!(!is_plain_name(name), "{name}");
        }
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
    }

    #[test]
    fn devices_are_named() {
        assert!(device("cpu").unwrap().is_cpu());
        for text in ["gpu", "cuda:", "cuda:-1", "cuda:x", ""] {
            assert!(matches!(device(text), Err(ModelError::Device(_))), "{text}");
        }
        // With the feature the message depends on the machine: that of a missing driver is seen by tests/gpu/check.sh.
        #[cfg(not(feature = "cuda"))]
        assert_eq!(
            device("cuda:1").unwrap_err().to_string(),
            "device `cuda:1`: this binary was built without the feature `cuda`"
        );
        assert!(dtype("f64").is_err());
    }
}
