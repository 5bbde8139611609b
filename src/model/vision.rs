//! What image classifiers share: weights by their sites, norms, patches of pixels, and the input that proves an effect.
//!
//! Knows no architecture: those are in `vit.rs` and `swin.rs`. How images become pixels is `image.rs`.
//! Shapes: pixels `[images, channels, height, width]`; rows are patches of all images, one image after the other.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, DeviceLocation, Tensor};
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;

use super::config::{Images, Vision};
use super::image::Processor;
use super::layers::Projection;
use super::weights::{self, Needed, Parts};
use super::{ImageClassifier, Input, Layout, ModelError, ModelInfo, Swin, Vit};
use crate::lora::{Adapter, Change, LoraBatch, Run, Site, SiteId, SiteKind};
use crate::ops::learning::LayerNorm;
use crate::ops::{Linear, with_slices};

/// What an image classifier computes on its way, `[images·rows, width]` each.
#[derive(Debug)]
pub struct HiddenStates {
    /// The embedding, then the output of each block (ViT) or stage (Swin), before the final norm.
    pub states: Vec<Tensor>,
    /// After the final norm.
    pub last: Tensor,
    /// What the head gets, where that is no row of the last: `[images, width]`.
    pub pooled: Option<Tensor>,
}

/// An image classifier whose inner values can be looked at.
pub trait ImageModel: ImageClassifier {
    /// Returns what is computed for images without adapters.
    ///
    /// # Errors
    /// When a shape does not fit, or the device fails.
    fn hidden_states(&self, pixels: &Tensor) -> Result<HiddenStates, ModelError>;
}

/// Reads an image classifier from a transformers folder; `device` and `dtype` are those of [`super::open`].
pub(super) fn open(path: &Path, device: &str, dtype: &str) -> Result<Box<dyn ImageModel>, ModelError> {
    let (device, dtype) = (weights::device(device)?, weights::dtype(dtype)?);
    let file = path.join("config.json");
    let config = Vision::parse(&weights::read_json(&file)?).map_err(|fault| weights::fault_in(&file, fault))?;
    let processor = Processor::read(path, config.images().size)?;
    let sites = match &config {
        Vision::Vit(config) => super::vit::sites(config),
        Vision::Swin(config) => super::swin::sites(config),
    };
    // As the file names them.
    let stem = if config.images().classes.is_none() { config.stem() } else { "" };
    let stored = tensors(&sites).into_iter().map(|(name, shape)| (without(&name, stem), shape)).collect();
    let needed = Needed { tensors: stored, canonical: config.canonical(), dtype: config.images().dtype };
    let parts = weights::read_parts(path, needed, &device, dtype)?;
    let info = info(config.images(), &parts, &device);
    let weights = Weights { sites, dtype: parts.dtype, parts, stem };
    let common = Common { info, processor, device, config };
    Ok(match &common.config {
        Vision::Vit(own) => {
            let own = own.clone();
            Box::new(Vit::new(own, common, weights)?)
        }
        Vision::Swin(own) => {
            let own = own.clone();
            Box::new(Swin::new(own, common, weights)?)
        }
    })
}

fn without(name: &str, stem: &str) -> String {
    name.strip_prefix(stem).unwrap_or(name).to_owned()
}

/// Returns the tensors that sites consist of, with their shapes.
fn tensors(sites: &[Site]) -> std::collections::BTreeMap<String, Vec<usize>> {
    let there = || sites.iter().filter(|site| !site.is_missing());
    let weights = there().map(|site| (site.tensor(), site.shape()));
    let biases = there().filter(|site| site.bias).map(|site| (format!("{}.bias", site.path), vec![site.output]));
    weights.chain(biases).collect()
}

fn info(images: &Images, parts: &Parts, device: &Device) -> ModelInfo {
    ModelInfo {
        architecture: images.architecture.clone(),
        fingerprint: parts.fingerprint.clone(),
        parameters: parts.parameters,
        dtype: parts.weight_format.clone(),
        context_length: 0,
        vocab_size: 0,
        eos_token_ids: Vec::new(),
        labels: images.classes.as_ref().map(|classes| classes.names.len()),
        classes: images.classes.clone(),
        device: match device.location() {
            DeviceLocation::Cpu => "cpu".into(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        },
        kv_bytes_per_token: 0,
        image_size: Some(images.size),
    }
}

/// What every image classifier has beside its layers.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) info: ModelInfo,
    pub(super) processor: Processor,
    pub(super) device: Device,
    pub(super) config: Vision,
}

/// Weights, to be taken by their sites.
pub(super) struct Weights {
    pub(super) sites: Vec<Site>,
    pub(super) dtype: DType,
    parts: Parts,
    /// What names of tensors lack in the file.
    stem: &'static str,
}

impl Weights {
    fn site(&self, id: SiteId) -> Result<&Site, ModelError> {
        let missing = || ModelError::Input(format!("there is no site {}", id.0));
        self.sites.get(id.0).ok_or_else(missing)
    }

    fn vector(&mut self, name: &str) -> Result<Tensor, ModelError> {
        let missing = || ModelError::Invalid { path: name.into(), fault: "tensor is missing".into() };
        self.parts.vectors.remove(&without(name, self.stem)).ok_or_else(missing)
    }

    /// Takes a linear layer, or a convolution of patches as one.
    pub(super) fn projection(&mut self, id: SiteId) -> Result<Projection, ModelError> {
        let site = self.site(id)?.clone();
        let name = site.tensor();
        let weight = match site.kind {
            SiteKind::Patches(_) => Linear::dense(self.vector(&name)?.flatten_from(1)?),
            SiteKind::Linear
            | SiteKind::Head
            | SiteKind::Embedding
            | SiteKind::Norm
            | SiteKind::Classifier
            | SiteKind::Parameter(_) => {
                let missing = || ModelError::Invalid { path: name.clone(), fault: "tensor is missing".into() };
                self.parts.matrices.remove(&without(&name, self.stem)).ok_or_else(missing)?
            }
        };
        let bias = if site.bias { Some(self.vector(&format!("{}.bias", site.path))?) } else { None };
        Ok(Projection { site: id, weight, bias })
    }

    /// Takes a head, where there is one.
    pub(super) fn head(&mut self, id: SiteId) -> Result<Head, ModelError> {
        let own = if self.site(id)?.is_missing() { None } else { Some(self.projection(id)?) };
        Ok(Head { site: id, own })
    }

    /// Takes a norm.
    pub(super) fn norm(&mut self, id: SiteId, eps: f64) -> Result<Norm, ModelError> {
        let path = self.site(id)?.path.clone();
        let [weight, bias] = ["weight", "bias"].map(|part| self.vector(&format!("{path}.{part}")));
        Ok(Norm { site: id, weight: weight?, bias: bias?, eps })
    }

    /// Takes a free parameter.
    pub(super) fn parameter(&mut self, id: SiteId) -> Result<Tensor, ModelError> {
        let name = self.site(id)?.tensor();
        self.vector(&name)
    }
}

/// A classifier, the model's own or none, that adapters can bring.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) site: SiteId,
    pub(super) own: Option<Projection>,
}

impl Head {
    /// Returns f32 logits of `[rows, hidden]`.
    pub(super) fn forward(&self, x: &Tensor, lora: &LoraBatch) -> candle_core::Result<Tensor> {
        let logits = match &self.own {
            Some(own) => own.forward(x, lora)?,
            None => {
                let logits =
                    lora.runs.iter().map(|run| self.brought(run, x)).collect::<candle_core::Result<Vec<_>>>()?;
                let logits = Tensor::cat(&logits, 0)?;
                if logits.dim(0)? != x.dim(0)? {
                    candle_core::bail!("the base model has no head, nor have adapters for all rows");
                }
                logits
            }
        };
        logits.to_dtype(DType::F32)
    }

    /// Returns logits of a run's rows by the head that its adapter brings.
    fn brought(&self, run: &Run, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.narrow(0, run.rows.start, run.rows.len())?;
        let own = LoraBatch { runs: vec![Run { rows: 0..run.rows.len(), ..run.clone() }], dropout: None };
        match own.whole(self.site, &x)? {
            Some(logits) => Ok(logits),
            None => candle_core::bail!("neither the base model nor an adapter has a head"),
        }
    }

    /// Refuses a batch that nothing classifies.
    pub(super) fn check(&self, lora: &LoraBatch) -> Result<(), ModelError> {
        let brings = |run: &Run| run.adapter.changes().contains_key(&self.site);
        if self.own.is_some() || (!lora.runs.is_empty() && lora.runs.iter().all(brings)) {
            return Ok(());
        }
        Err(ModelError::Unsupported("classification without a classification head".into()))
    }
}

/// A layer norm that adapters can change.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) site: SiteId,
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) eps: f64,
}

impl Norm {
    /// Returns the norm as a block's own backward takes it; none where only the graph knows how. `images` are those of
    /// the batch.
    pub(super) fn learning<'a>(
        &'a self,
        lora: &'a LoraBatch,
        images: usize,
    ) -> candle_core::Result<Option<LayerNorm<'a>>> {
        let eps = self.eps as f32;
        Ok(match lora.touching(self.site, images)?.as_slice() {
            [] => Some(LayerNorm { weight: &self.weight, bias: &self.bias, learns: false, eps }),
            [(run, Change::Replaced { weight, bias: Some(bias) })] if run.rows.len() == images => {
                Some(LayerNorm { weight, bias, learns: true, eps })
            }
            _ => None,
        })
    }

    /// Normalises `[rows, hidden]`.
    pub(super) fn forward(&self, x: &Tensor, lora: &LoraBatch) -> candle_core::Result<Tensor> {
        lora.layer_norm(self.site, x, (&self.weight, &self.bias), self.eps)
    }
}

/// A weight of the model, to be shown to those who ask by site.
pub(super) enum Part<'a> {
    Projection(&'a Projection),
    Norm(&'a Norm),
    Parameter(&'a Tensor),
}

impl Part<'_> {
    /// Returns the weight as f32 of the site's shape.
    pub(super) fn weight(&self, site: &Site) -> candle_core::Result<Tensor> {
        match self {
            Self::Projection(layer) => layer.weight.to_f32()?.reshape(site.shape()),
            Self::Norm(norm) => norm.weight.to_dtype(DType::F32),
            Self::Parameter(value) => value.to_dtype(DType::F32),
        }
    }

    /// Returns the bias as f32.
    pub(super) fn bias(&self) -> candle_core::Result<Option<Tensor>> {
        let bias = match self {
            Self::Projection(layer) => layer.bias.as_ref(),
            Self::Norm(norm) => Some(&norm.bias),
            Self::Parameter(_) => None,
        };
        bias.map(|bias| bias.to_dtype(DType::F32)).transpose()
    }
}

/// Checks images and brings them to the model's device and number format.
pub(super) fn layout(input: &Input<'_>, common: &Common, dtype: DType) -> Result<Layout, ModelError> {
    let Input::Pixels(pixels) = *input else {
        return Err(ModelError::Input("a model of images was given tokens".into()));
    };
    let images = common.config.images();
    let ([height, width], channels) = (images.size, images.channels);
    match pixels.dims() {
        [count, c, h, w] if *count > 0 && [*c, *h, *w] == [channels, height, width] => {}
        other => {
            let needed = format!("[images, {channels}, {height}, {width}]");
            return Err(ModelError::Input(format!("pixels of shape {other:?}, the model needs {needed}")));
        }
    }
    Ok(Layout::Pixels(pixels.to_device(&common.device)?.to_dtype(dtype)?))
}

/// Returns the pixels of a layout.
pub(super) fn pixels(layout: &Layout) -> candle_core::Result<&Tensor> {
    match layout {
        Layout::Pixels(pixels) => Ok(pixels),
        Layout::Tokens(_) => candle_core::bail!("a model of images was given tokens"),
    }
}

/// Returns patches as rows, `[images·patches, channels·height·width]`, in the order of a convolution's weight.
pub(super) fn patches(pixels: &Tensor, images: &Images) -> candle_core::Result<Tensor> {
    let ([height, width], [rows, columns]) = (images.patch, images.grid());
    let (count, channels, all_height, all_width) = pixels.dims4()?;
    let size = channels * height * width;
    if !pixels.device().is_cpu() || pixels.dtype() != DType::F32 {
        let pixels = pixels.narrow(2, 0, rows * height)?.narrow(3, 0, columns * width)?.contiguous()?;
        let pixels = pixels.reshape(vec![count, channels, rows, height, columns, width])?;
        return pixels.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?.reshape((count * rows * columns, size));
    }
    let mut out = vec![0.0; count * rows * columns * size];
    with_slices([pixels], |[pixels]| {
        // A line of patches at a time.
        let lines = out.par_chunks_mut(columns * size).enumerate();
        lines.for_each(|(line, out)| {
            let (image, row) = (line / rows, line % rows);
            for (column, out) in out.chunks_exact_mut(size).enumerate() {
                for (i, out) in out.chunks_exact_mut(width).enumerate() {
                    let (channel, y) = (i / height, row * height + i % height);
                    let from = ((image * channels + channel) * all_height + y) * all_width + column * width;
                    out.copy_from_slice(&pixels[from..from + width]);
                }
            }
        });
        Ok(())
    })?;
    Tensor::from_vec(out, (count * rows * columns, size), &Device::Cpu)
}

/// Returns the largest absolute change that `adapter` makes to a logit of a fixed image of noise.
pub(super) fn effect(model: &dyn ImageClassifier, images: &Images, adapter: &Arc<Adapter>) -> Result<f64, ModelError> {
    let [height, width] = images.size;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let values: Vec<f32> = (0..images.channels * height * width).map(|_| rng.random_range(-2.0..2.0)).collect();
    let pixels = Tensor::from_vec(values, (1, images.channels, height, width), &Device::Cpu)?;
    let run = Run { adapter: Arc::clone(adapter), rows: 0..1, scale: 1.0 };
    let changed = model.classify(&pixels, &LoraBatch { runs: vec![run], dropout: None })?;
    // Labels of its own have no logits to be compared with: whatever a brought head says is a change.
    let difference = match model.info().labels {
        Some(labels) if changed.dims() == [1, labels] => (changed - model.classify(&pixels, &LoraBatch::default())?)?,
        Some(_) | None => changed,
    };
    let difference = difference.abs()?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    // `max` would pass over NaN.
    if difference.iter().any(|d| !d.is_finite()) {
        return Err(ModelError::Input("the adapter makes logits that are not finite numbers".into()));
    }
    Ok(difference.iter().fold(0.0, |a: f64, d| a.max(f64::from(*d))))
}

/// Reads an adapter of an image classifier.
pub(super) fn load_adapter(
    config: &[u8],
    tensors: &[u8],
    (own, base): (&Vision, &dyn crate::lora::Base),
) -> Result<Adapter, crate::lora::LoraError> {
    if crate::lora::full::is_full(config)? {
        return crate::lora::full::read(own.replaced_by(config)?, tensors, base);
    }
    crate::lora::peft::read(config, tensors, base)
}

/// Returns a Hugging Face `config.json`.
pub(super) fn config_json(config: &Vision, labels: Option<&[String]>) -> Result<Vec<u8>, ModelError> {
    Ok(serde_json::to_vec_pretty(&config.written(labels)).map_err(candle_core::Error::wrap)?)
}

pub(super) mod serving;
#[cfg(test)]
mod tests;
