//! What is trained: variables, and how they become an adapter.
//!
//! Low-rank matrices are kept as PEFT stores them (A `[rank, input]`, B `[output, rank]`); a full fine-tune has a
//! variable for every weight of the base. Knows no gradient and no optimiser. All f32, on the model's device.
//! After: peft 0.21 `tuners/lora/layer.py` (initial values), transformers `Trainer.get_decay_parameter_names`.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use candle_core::{DType, Device, Tensor, TensorId, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::TrainError;
use crate::lora::{Base, Change, LinearDelta, LoraError, Plan, Planned, Site, SiteId, SiteKind, plan};

/// Bytes of an f32.
const F32: usize = 4;
/// Values that are turned into bytes together.
const AT_ONCE: usize = 1 << 20;
/// Standard deviation of a new classification head (transformers `initializer_range`).
const HEAD_DEVIATION: f64 = 0.02;

/// One trained tensor.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in the file that training writes.
    pub name: String,
    /// Its value.
    pub var: Var,
    /// Whether weight decay acts on it.
    pub decays: bool,
}

/// What a site makes of its parameters; numbers are indices of them.
#[derive(Debug)]
enum Wire {
    LowRank { a: usize, b: usize, magnitude: Option<usize>, scaling: f64 },
    Embedding { a: usize, b: usize, scaling: f64 },
    Whole { weight: usize, bias: Option<usize> },
}

/// All trained tensors.
#[derive(Debug, Default)]
pub struct Parameters {
    list: Vec<Parameter>,
    wires: Vec<(SiteId, Wire)>,
}

/// Makes initial values.
struct Maker<'a> {
    base: &'a dyn Base,
    labels: Option<usize>,
    seed: u64,
    parameters: Parameters,
}

impl Parameters {
    /// Makes the variables that `config` (`adapter_config.json`) names, at peft's initial values.
    ///
    /// `labels` is the number of outputs of the classification head: a new one where the base has none, or another number.
    ///
    /// # Errors
    /// When the configuration does not fit the base.
    pub fn low_rank(config: &[u8], base: &dyn Base, labels: Option<usize>, seed: u64) -> Result<Self, TrainError> {
        let Plan { sites, planned } = plan(config, base).map_err(setting)?;
        let mut maker = Maker { base, labels, seed, parameters: Self::default() };
        for (id, planned) in planned {
            if let Some(site) = sites.get(id.0) {
                maker.site(id, site, planned)?;
            }
        }
        Ok(maker.parameters)
    }

    /// Makes a variable of every weight and bias of the base.
    ///
    /// With `labels` the head is a classifier: the base's own, or a new one in the place of its language head.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn full(base: &dyn Base, labels: Option<usize>, seed: u64) -> Result<Self, TrainError> {
        let mut maker = Maker { base, labels, seed, parameters: Self::default() };
        let sites = base.sites();
        let brought = labels.is_some() && sites.iter().any(|site| site.kind == SiteKind::Classifier);
        for (index, site) in sites.iter().enumerate() {
            let unused = match site.kind {
                SiteKind::Classifier => !brought,
                SiteKind::Head => brought,
                SiteKind::Linear
                | SiteKind::Embedding
                | SiteKind::Norm
                | SiteKind::Patches(_)
                | SiteKind::Parameter(_) => false,
            };
            if unused {
                continue;
            }
            if site.kind == SiteKind::Head && base.is_tied() {
                let weight = maker.parameters.of(SiteId(0));
                maker.parameters.wires.push((SiteId(index), Wire::Whole { weight, bias: None }));
                continue;
            }
            maker.whole(SiteId(index), site, "")?;
        }
        Ok(maker.parameters)
    }

    /// Sets values by name; every parameter has to be among them, with its shape.
    ///
    /// # Errors
    /// Names what is missing or of another shape.
    pub fn set(&self, values: &HashMap<String, Tensor>) -> Result<(), TrainError> {
        for Parameter { name, var, .. } in &self.list {
            let fault = |what: &str| TrainError::Checkpoint(format!("{what} {name}"));
            let value = values.get(name).ok_or_else(|| fault("lacks"))?;
            if value.dims() != var.dims() {
                return Err(fault("has another shape of"));
            }
            var.set(&value.to_dtype(DType::F32)?.to_device(var.device())?.contiguous()?)?;
        }
        Ok(())
    }

    /// Returns the parameters in order.
    pub fn list(&self) -> &[Parameter] {
        &self.list
    }

    /// Returns the adapter that the variables make now; gradients of what is computed with it reach them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn changes(&self, base: &dyn Base) -> Result<BTreeMap<SiteId, Change>, TrainError> {
        let mut changes = BTreeMap::new();
        for (site, wire) in &self.wires {
            let var = |index: usize| self.list[index].var.as_tensor();
            let change = match *wire {
                Wire::Whole { weight, bias } => {
                    Change::Replaced { weight: var(weight).clone(), bias: bias.map(|bias| var(bias).clone()) }
                }
                Wire::Embedding { a, b, scaling } => {
                    Change::Embedding { a: var(a).t()?.contiguous()?, b: (var(b).t()? * scaling)?, scaling }
                }
                Wire::LowRank { a, b, magnitude, scaling } => {
                    let magnitude = magnitude.map(|magnitude| {
                        // peft takes the norm as a constant (DoRA paper, section 4.3).
                        let delta = var(b).detach().matmul(&var(a).detach())?;
                        let norm = (base.weight(*site)? + (delta * scaling)?)?.sqr()?.sum(1)?.sqrt()?;
                        var(magnitude) / norm
                    });
                    let (a, b) = (var(a).t()?, (var(b).t()? * scaling)?);
                    let magnitude = magnitude.transpose()?;
                    Change::Linear(LinearDelta { magnitude, ..LinearDelta::new(a, b, scaling) })
                }
            };
            changes.insert(*site, change);
        }
        Ok(changes)
    }

    /// Returns which tensors of `changes` are a variable's transpose times a factor, with the variable's number: the
    /// low-rank matrices.
    pub(super) fn transposed(&self, changes: &BTreeMap<SiteId, Change>) -> HashMap<TensorId, (usize, f64)> {
        let mut found = HashMap::new();
        for (site, wire) in &self.wires {
            if let (Wire::LowRank { a, b, scaling, .. }, Some(Change::Linear(delta))) = (wire, changes.get(site)) {
                found.extend([(delta.a.id(), (*a, 1.0)), (delta.b.id(), (*b, *scaling))]);
            }
        }
        found
    }

    /// Returns the number of trained values.
    pub fn count(&self) -> usize {
        self.list.iter().map(|parameter| parameter.var.elem_count()).sum()
    }

    /// Writes the tensors as a safetensors file.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, TrainError> {
        let tensors = self.list.iter().map(|parameter| (parameter.name.clone(), parameter.var.as_tensor().clone()));
        to_safetensors(tensors.collect(), &[("format", "pt")])
    }

    fn of(&self, site: SiteId) -> usize {
        let own = self.wires.iter().find(|(id, _)| *id == site);
        own.map_or(0, |(_, wire)| match *wire {
            Wire::Whole { weight, .. } => weight,
            Wire::LowRank { a, .. } | Wire::Embedding { a, .. } => a,
        })
    }

    /// Adds a variable. Decay never acts on what has `bias` in its name (transformers goes by names).
    fn add(&mut self, name: String, value: &Tensor, decays: bool) -> Result<usize, TrainError> {
        let decays = decays && !name.contains("bias");
        self.list.push(Parameter { name, var: Var::from_tensor(&value.contiguous()?)?, decays });
        Ok(self.list.len() - 1)
    }
}

impl Maker<'_> {
    fn site(&mut self, id: SiteId, site: &Site, planned: Planned) -> Result<(), TrainError> {
        let Planned::LowRank { rank, scaling, dora } = planned else {
            return self.whole(id, site, "base_model.model.");
        };
        let name = |part: &str| format!("base_model.model.{}.{part}", site.path);
        if site.kind == SiteKind::Embedding {
            if dora {
                return Err(TrainError::Setting { field: "lora.dora", fault: "not for the embedding".into() });
            }
            let a = self.constant(&name("lora_embedding_A"), &[rank, site.input])?;
            let b = self.random(&name("lora_embedding_B"), &[site.output, rank], Spread::Normal(1.0))?;
            self.parameters.wires.push((id, Wire::Embedding { a, b, scaling }));
            return Ok(());
        }
        // Kaiming-uniform with a = √5 is ±1/√input.
        let bound = 1.0 / (site.input as f64).sqrt();
        let a = self.random(&name("lora_A.weight"), &[rank, site.input], Spread::Uniform(bound))?;
        let b = self.constant(&name("lora_B.weight"), &[site.output, rank])?;
        let magnitude = if dora {
            let norm = self.base.weight(id)?.sqr()?.sum(1)?.sqrt()?;
            Some(self.parameters.add(name("lora_magnitude_vector"), &norm, true)?)
        } else {
            None
        };
        self.parameters.wires.push((id, Wire::LowRank { a, b, magnitude, scaling }));
        Ok(())
    }

    fn whole(&mut self, id: SiteId, site: &Site, prefix: &str) -> Result<(), TrainError> {
        let name = format!("{prefix}{}", site.tensor());
        let new = match (site.kind, self.labels) {
            (SiteKind::Classifier, None) => return Ok(()),
            (SiteKind::Classifier, Some(labels)) => Some(labels).filter(|labels| *labels != site.output),
            _ => None,
        };
        let (weight, bias) = match new {
            Some(labels) => {
                let weight = self.random(&name, &[labels, site.input], Spread::Normal(HEAD_DEVIATION))?;
                let bias = site.bias.then(|| Tensor::zeros(labels, DType::F32, self.base.device())).transpose()?;
                (weight, bias)
            }
            None => {
                let weight = self.parameters.add(name, &self.base.weight(id)?, site.kind != SiteKind::Norm)?;
                (weight, if site.bias { self.base.bias(id)? } else { None })
            }
        };
        let name = format!("{prefix}{}.bias", site.path);
        let bias = bias.map(|bias| self.parameters.add(name, &bias, false)).transpose()?;
        self.parameters.wires.push((id, Wire::Whole { weight, bias }));
        Ok(())
    }

    fn constant(&mut self, name: &str, shape: &[usize]) -> Result<usize, TrainError> {
        let zero = Tensor::zeros(shape, DType::F32, self.base.device())?;
        self.parameters.add(name.to_owned(), &zero, true)
    }

    /// Draws from a stream of the tensor's own, so that a value depends on seed and name alone.
    fn random(&mut self, name: &str, shape: &[usize], spread: Spread) -> Result<usize, TrainError> {
        let mut key = Sha256::new_with_prefix(self.seed.to_le_bytes());
        key.update(name.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(key.finalize().into());
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| match spread {
                Spread::Uniform(bound) => rng.random_range(-bound..bound) as f32,
                Spread::Normal(deviation) => (deviation * normal(&mut rng)) as f32,
            })
            .collect();
        let value = Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(self.base.device())?;
        self.parameters.add(name.to_owned(), &value, true)
    }
}

enum Spread {
    /// Up to this, either way.
    Uniform(f64),
    /// Standard deviation.
    Normal(f64),
}

/// One value of the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Says what of the settings does not fit the model.
fn setting(error: LoraError) -> TrainError {
    match error {
        LoraError::Tensor(error) => TrainError::Tensor(error),
        LoraError::Invalid(fault) | LoraError::Unsupported(fault) | LoraError::Mismatch(fault) => {
            TrainError::Setting { field: "lora", fault }
        }
    }
}

/// Writes tensors as f32, and texts beside them, as a safetensors file; one tensor at a time is in memory twice. The same
/// content gives the same bytes.
///
/// # Errors
/// When the device or the writer fails.
pub(super) fn write_safetensors(
    mut tensors: Vec<(String, Tensor)>,
    texts: &[(&str, &str)],
    out: &mut dyn Write,
) -> Result<(), TrainError> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut end = 0;
    let info = tensors.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.elem_count() * F32;
        let (shape, data_offsets) = (tensor.dims().to_vec(), (start, end));
        (name.clone(), TensorInfo { dtype: Dtype::F32, shape, data_offsets })
    });
    // The crate takes a hash map, whose order is not fixed: with one text the bytes are.
    let texts = texts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let header = Metadata::new(Some(texts), info.collect()).map_err(candle_core::Error::wrap)?;
    let mut header = serde_json::to_vec(&header).map_err(candle_core::Error::wrap)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(candle_core::Error::from)?;
    out.write_all(&header).map_err(candle_core::Error::from)?;
    for (_, tensor) in tensors {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        for values in values.chunks(AT_ONCE) {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            out.write_all(&bytes).map_err(candle_core::Error::from)?;
        }
    }
    Ok(())
}

/// The same in memory.
///
/// # Errors
/// As [`write_safetensors`].
pub(super) fn to_safetensors(tensors: Vec<(String, Tensor)>, texts: &[(&str, &str)]) -> Result<Vec<u8>, TrainError> {
    let bytes: usize = tensors.iter().map(|(_, tensor)| tensor.elem_count() * F32).sum();
    let mut out = Vec::with_capacity(bytes + bytes / 64);
    write_safetensors(tensors, texts, &mut out)?;
    Ok(out)
}
