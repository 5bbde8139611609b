//! ViT: patches as words, a class token before them, pre-norm blocks, a classifier on the class token.
//!
//! Reads like the paper. No pooler, no interpolated positions: an image has the size of the configuration. Where weights
//! come from is `vision.rs` and `weights.rs`.
//! Shapes: `[images·rows, hidden]` between blocks, the first row of an image being its class token; behind the last block
//! `[images, hidden]`, class tokens alone.
//! After: Dosovitskiy et al. 2021 (arXiv 2010.11929), transformers `modeling_vit`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::config::Vit as Config;
use super::layers::Projection;
use super::vision::serving::on_slices;
use super::vision::{self, Common, Head, HiddenStates, ImageModel, Norm, Weights};
use super::{BaseModel, Computed, Differentiable, ImageClassifier, Input, Layout, ModelError, ModelInfo, image};
use crate::lora::{Adapter, Base, LoraBatch, LoraError, Site, SiteId};
use crate::ops::{Groups, add, attend_groups, gelu};

mod embedding;
#[cfg(feature = "cuda")]
mod gpu_learning;
mod learning;
mod serving;
mod sites;

pub(super) use self::sites::sites;
use self::sites::{CLASS, Module, PATCHES, POSITIONS, classifier, last_norm, site_of};

/// A ViT with its classifier.
#[derive(Debug)]
pub struct Vit {
    config: Config,
    common: Common,
    /// By the names of checkpoints, and of transformers 5.
    sites: [Vec<Site>; 2],
    dtype: DType,
    patches: Projection,
    class: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    classifier: Head,
}

#[derive(Debug)]
struct Block {
    attention_norm: Norm,
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    mlp_norm: Norm,
    up: Projection,
    down: Projection,
}

/// Rows of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    /// The first.
    Class,
}

impl Vit {
    /// Puts the parts together; their names and shapes were checked where they were read.
    pub(super) fn new(config: Config, common: Common, mut weights: Weights) -> Result<Self, ModelError> {
        let mut blocks = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let at = |module| site_of(layer, module);
            blocks.push(Block {
                attention_norm: weights.norm(at(Module::AttentionNorm), config.eps)?,
                query: weights.projection(at(Module::Query))?,
                key: weights.projection(at(Module::Key))?,
                value: weights.projection(at(Module::Value))?,
                output: weights.projection(at(Module::Output))?,
                mlp_norm: weights.norm(at(Module::MlpNorm), config.eps)?,
                up: weights.projection(at(Module::Up))?,
                down: weights.projection(at(Module::Down))?,
            });
        }
        Ok(Self {
            patches: weights.projection(PATCHES)?,
            class: weights.parameter(CLASS)?,
            positions: weights.parameter(POSITIONS)?,
            norm: weights.norm(last_norm(config.layers), config.eps)?,
            classifier: weights.head(classifier(config.layers))?,
            blocks,
            dtype: weights.dtype,
            sites: [weights.sites, sites::renamed(&config)],
            common,
            config,
        })
    }

    fn groups(&self) -> Groups {
        let Config { heads, hidden_size, .. } = self.config;
        Groups { rows: self.config.rows(), heads, dim: hidden_size / heads }
    }

    /// Returns the output of a block, or only its `part` of every image; a row of `lora` is an image.
    fn pass_block(&self, layer: usize, x: &Tensor, lora: &LoraBatch, part: Part) -> candle_core::Result<Tensor> {
        let (block, rows) = (&self.blocks[layer], self.config.rows());
        let all = lora.spread(rows);
        let h = block.attention_norm.forward(x, &all)?;
        let [q, k, v] = [&block.query, &block.key, &block.value].map(|layer| layer.forward(&h, &all));
        let mixed = attend_groups(self.groups(), &q?, &k?, &v?)?;
        let (x, mixed, lora) = match part {
            Part::All => (x.clone(), mixed, &all),
            Part::Class => (self.class_tokens(x)?, self.class_tokens(&mixed)?, lora),
        };
        let x = add(&x, &block.output.forward(&mixed, lora)?)?;
        let h = block.mlp_norm.forward(&x, lora)?;
        let inner = gelu(&block.up.forward(&h, lora)?)?;
        add(&x, &block.down.forward(&inner, lora)?)
    }

    /// Returns what of a block's output is wanted: the last one's class tokens are all that anyone looks at.
    fn wanted(&self, layer: usize) -> Part {
        if layer + 1 == self.blocks.len() { Part::Class } else { Part::All }
    }

    /// Returns f32 logits of class tokens `[images, hidden]` as the last block left them.
    fn head_on(&self, x: &Tensor, lora: &LoraBatch) -> candle_core::Result<Tensor> {
        self.classifier.forward(&self.norm.forward(x, lora)?, lora)
    }

    /// Returns the first row of every image.
    fn class_tokens(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let rows = self.config.rows();
        let index: Vec<u32> = (0..x.dim(0)? / rows).map(|image| (image * rows) as u32).collect();
        x.index_select(&Tensor::new(index, x.device())?, 0)
    }

    fn weight_at(&self, site: SiteId) -> Option<vision::Part<'_>> {
        if let Some((layer, module)) = sites::module_of(site, self.config.layers) {
            let block = self.blocks.get(layer)?;
            return Some(match module {
                Module::AttentionNorm => vision::Part::Norm(&block.attention_norm),
                Module::Query => vision::Part::Projection(&block.query),
                Module::Key => vision::Part::Projection(&block.key),
                Module::Value => vision::Part::Projection(&block.value),
                Module::Output => vision::Part::Projection(&block.output),
                Module::MlpNorm => vision::Part::Norm(&block.mlp_norm),
                Module::Up => vision::Part::Projection(&block.up),
                Module::Down => vision::Part::Projection(&block.down),
            });
        }
        match site {
            CLASS => Some(vision::Part::Parameter(&self.class)),
            POSITIONS => Some(vision::Part::Parameter(&self.positions)),
            PATCHES => Some(vision::Part::Projection(&self.patches)),
            _ if site == self.norm.site => Some(vision::Part::Norm(&self.norm)),
            _ if site == self.classifier.site => self.classifier.own.as_ref().map(vision::Part::Projection),
            _ => None,
        }
    }

    fn known(&self, site: SiteId) -> candle_core::Result<(vision::Part<'_>, &Site)> {
        match (self.weight_at(site), self.sites[0].get(site.0)) {
            (Some(part), Some(site)) => Ok((part, site)),
            _ => candle_core::bail!("the base model has nothing at {site:?}"),
        }
    }
}

impl BaseModel for Vit {
    fn info(&self) -> &ModelInfo {
        &self.common.info
    }

    fn load_adapter(&self, config: &[u8], tensors: &[u8]) -> Result<Adapter, LoraError> {
        vision::load_adapter(config, tensors, (&self.common.config, self))
    }

    fn effect(&self, adapter: &Arc<Adapter>) -> Result<f64, ModelError> {
        vision::effect(self, &self.config.images, adapter)
    }

    fn differentiable(&self) -> Option<&dyn Differentiable> {
        Some(self)
    }
}

impl ImageClassifier for Vit {
    fn processor(&self) -> &image::Processor {
        &self.common.processor
    }

    fn classify(&self, pixels: &Tensor, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        self.classifier.check(lora)?;
        let layout = self.layout(&Input::Pixels(pixels))?;
        let mut x = self.embed(&layout, lora)?;
        if on_slices(&self.common.device, self.dtype) {
            x = self.run_on_cpu(&x, lora)?;
        } else {
            for layer in 0..self.blocks.len() {
                x = self.pass_block(layer, &x, lora, self.wanted(layer))?;
            }
        }
        Ok(self.head_on(&x, lora)?)
    }
}

impl ImageModel for Vit {
    fn hidden_states(&self, pixels: &Tensor) -> Result<HiddenStates, ModelError> {
        let lora = LoraBatch::default();
        let layout = self.layout(&Input::Pixels(pixels))?;
        let mut x = self.embed(&layout, &lora)?;
        let mut states = vec![x.clone()];
        for layer in 0..self.blocks.len() {
            x = self.pass_block(layer, &x, &lora, Part::All)?;
            states.push(x.clone());
        }
        Ok(HiddenStates { states, last: self.norm.forward(&x, &lora)?, pooled: None })
    }
}

impl Base for Vit {
    fn sites(&self) -> &[Site] {
        &self.sites[0]
    }

    fn spellings(&self) -> Vec<&[Site]> {
        self.sites.iter().map(Vec::as_slice).collect()
    }

    fn weight(&self, site: SiteId) -> candle_core::Result<Tensor> {
        let (part, site) = self.known(site)?;
        part.weight(site)
    }

    fn bias(&self, site: SiteId) -> candle_core::Result<Option<Tensor>> {
        self.known(site)?.0.bias()
    }

    fn fingerprint(&self) -> &str {
        &self.common.info.fingerprint
    }

    fn device(&self) -> &Device {
        &self.common.device
    }

    fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Differentiable for Vit {
    fn layout(&self, input: &Input<'_>) -> Result<Layout, ModelError> {
        vision::layout(input, &self.common, self.dtype)
    }

    fn depth(&self) -> usize {
        self.blocks.len()
    }

    fn embed(&self, layout: &Layout, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        Ok(self.embed_with(vision::pixels(layout)?, lora)?)
    }

    fn block(&self, layer: usize, x: &Tensor, _: &Layout, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        Ok(self.pass_block(layer, x, lora, self.wanted(layer))?)
    }

    fn learn<'a>(
        &'a self,
        layer: usize,
        x: &Tensor,
        layout: &'a Layout,
        lora: &'a LoraBatch,
    ) -> Result<Option<Computed<'a>>, ModelError> {
        self.learn_block(layer, x, layout.rows()?, lora)
    }

    fn head(&self, x: &Tensor, lora: &LoraBatch, classify: bool) -> Result<Tensor, ModelError> {
        if !classify {
            return Err(ModelError::Unsupported("a language head of a model of images".into()));
        }
        Ok(self.head_on(x, lora)?)
    }

    fn classified(&self, input: &Input<'_>) -> Vec<usize> {
        match *input {
            Input::Pixels(pixels) => (0..pixels.dim(0).unwrap_or(0)).collect(),
            Input::Tokens { .. } => Vec::new(),
        }
    }

    fn rows_of_image(&self) -> usize {
        self.config.rows()
    }

    fn config_json(&self, labels: Option<&[String]>) -> Result<Vec<u8>, ModelError> {
        vision::config_json(&self.common.config, labels)
    }

    fn base(&self) -> &dyn Base {
        self
    }
}
