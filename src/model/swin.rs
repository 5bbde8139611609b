//! Swin-v2: windows of patches, cosine attention, biases from a small network of log-spaced coordinates, norms after.
//!
//! Reads like the paper. Where weights come from is `vision.rs` and `weights.rs`; which rows stand in which window is
//! `swin/windows.rs`. What follows the last block, the final norm and the mean over positions, is a block too.
//! Shapes: `[images·rows, width]` between blocks, rows of an image line by line; each stage has a quarter of the rows.
//! After: Liu et al. 2022 (arXiv 2111.09883), transformers `modeling_swinv2`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::config::{Stage as Sizes, Swin as Config};
use super::layers::Projection;
use super::vision::serving::on_slices;
use super::vision::{self, Common, Head, HiddenStates, ImageModel, Norm, Part, Weights};
use super::{BaseModel, Computed, Differentiable, ImageClassifier, Input, Layout, ModelError, ModelInfo, image};
use crate::lora::{Adapter, Base, LoraBatch, LoraError, Site, SiteId};
use crate::ops::{Arrangement, Cosine, Groups, add, attend_cosine, gelu, spread_table, unit};

mod bias;
mod learning;
mod serving;
mod sites;
mod windows;

use self::bias::Positions;
pub(super) use self::sites::sites;
use self::sites::{Module, Places};
use self::windows::{Windows, merging};

/// Added to variances of the embedding's norm and those of merging, whatever the configuration says.
const EPS: f64 = 1e-5;

/// A Swin-v2 with its classifier.
#[derive(Debug)]
pub struct Swin {
    config: Config,
    common: Common,
    sites: Vec<Site>,
    places: Places,
    dtype: DType,
    patches: Projection,
    embedding_norm: Norm,
    stages: Vec<Stage>,
    norm: Norm,
    classifier: Head,
}

#[derive(Debug)]
struct Stage {
    groups: Groups,
    blocks: Vec<Block>,
    /// Makes a row of four, and norms it; none after the last stage.
    merge: Option<(Arc<Arrangement>, Projection, Norm)>,
}

#[derive(Debug)]
struct Block {
    windows: Windows,
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    /// Of what attention adds, and of what the MLP adds.
    norms: [Norm; 2],
    positions: Positions,
    up: Projection,
    down: Projection,
}

impl Swin {
    /// Puts the parts together; their names and shapes were checked where they were read.
    pub(super) fn new(config: Config, common: Common, mut weights: Weights) -> Result<Self, ModelError> {
        let places = Places::new(&config);
        let mut stages = Vec::with_capacity(config.stages.len());
        for (stage, sizes) in config.stages.iter().enumerate() {
            let mut blocks = Vec::with_capacity(sizes.depth);
            for block in 0..sizes.depth {
                blocks.push(Block::new(
                    sizes,
                    block,
                    config.eps,
                    |module| places.of(stage, block, module),
                    &mut weights,
                )?);
            }
            let merge = match places.merge(stage) {
                None => None,
                Some([reduction, norm]) => {
                    Some((Arc::new(merging(sizes.sides)), weights.projection(reduction)?, weights.norm(norm, EPS)?))
                }
            };
            let Sizes { width, heads, window, .. } = *sizes;
            stages.push(Stage { groups: Groups { rows: window * window, heads, dim: width / heads }, blocks, merge });
        }
        Ok(Self {
            patches: weights.projection(Places::PATCHES)?,
            embedding_norm: weights.norm(Places::EMBEDDING_NORM, EPS)?,
            norm: weights.norm(places.last_norm(), config.eps)?,
            classifier: weights.head(places.classifier())?,
            stages,
            dtype: weights.dtype,
            sites: weights.sites,
            places,
            common,
            config,
        })
    }

    /// Returns the input of the first block; a row of `lora` is an image.
    fn embed_with(&self, pixels: &Tensor, lora: &LoraBatch) -> candle_core::Result<Tensor> {
        let rows = vision::patches(pixels, &self.config.images)?;
        let lora = lora.spread(rows.dim(0)? / pixels.dim(0)?);
        self.embedding_norm.forward(&self.patches.forward(&rows, &lora)?, &lora)
    }

    /// Returns the output of a block, behind the last of a stage after merging; a row of `lora` is one of `images`.
    fn pass_block(
        &self,
        (stage, block): (usize, usize),
        x: &Tensor,
        images: usize,
        lora: &LoraBatch,
    ) -> candle_core::Result<Tensor> {
        let of = &self.stages[stage];
        let last = block + 1 == of.blocks.len();
        let x = of.blocks[block].forward(of.groups, x, images, lora)?;
        match of.merge.as_ref().filter(|_| last) {
            None => Ok(x),
            Some((arrangement, reduction, norm)) => {
                let rows = arrangement.rows() / 4;
                let fours = arrangement.apply(&x)?.reshape((images * rows, 4 * x.dim(1)?))?;
                let lora = lora.spread(rows);
                norm.forward(&reduction.forward(&fours, &lora)?, &lora)
            }
        }
    }

    /// Returns the final norm of all rows and their mean by image, `[images, width]`.
    fn pool(&self, x: &Tensor, images: usize, lora: &LoraBatch) -> candle_core::Result<[Tensor; 2]> {
        let rows = x.dim(0)? / images;
        let normed = self.norm.forward(x, &lora.spread(rows))?;
        let pooled = normed.reshape((images, rows, ()))?.to_dtype(DType::F32)?.mean(1)?.to_dtype(self.dtype)?;
        Ok([normed, pooled])
    }

    /// Returns the stage and the block inside of it; none for what follows the last.
    fn place(&self, layer: usize) -> Option<(usize, usize)> {
        let mut left = layer;
        for (stage, sizes) in self.config.stages.iter().enumerate() {
            if left < sizes.depth {
                return Some((stage, left));
            }
            left -= sizes.depth;
        }
        None
    }

    /// Returns the logits of images whose adapters do not disagree on what images share.
    fn classify_together(&self, pixels: &Tensor, lora: &LoraBatch) -> candle_core::Result<Tensor> {
        let images = pixels.dim(0)?;
        let mut x = self.embed_with(pixels, lora)?;
        if on_slices(&self.common.device, self.dtype) {
            x = self.run_on_cpu(&x, images, lora)?;
        } else {
            for place in (0..).map_while(|layer| self.place(layer)) {
                x = self.pass_block(place, &x, images, lora)?;
            }
        }
        let [_, pooled] = self.pool(&x, images, lora)?;
        self.head_on(&pooled, lora)
    }

    fn head_on(&self, pooled: &Tensor, lora: &LoraBatch) -> candle_core::Result<Tensor> {
        self.classifier.forward(pooled, lora)
    }

    fn part(&self, site: SiteId) -> Option<Part<'_>> {
        if let Some((stage, block, module)) = self.places.module_of(site) {
            return self.stages.get(stage)?.blocks.get(block).map(|block| block.part(module));
        }
        for stage in &self.stages {
            match &stage.merge {
                Some((_, reduction, _)) if reduction.site == site => return Some(Part::Projection(reduction)),
                Some((_, _, norm)) if norm.site == site => return Some(Part::Norm(norm)),
                Some(_) | None => {}
            }
        }
        match site {
            Places::PATCHES => Some(Part::Projection(&self.patches)),
            Places::EMBEDDING_NORM => Some(Part::Norm(&self.embedding_norm)),
            _ if site == self.norm.site => Some(Part::Norm(&self.norm)),
            _ if site == self.classifier.site => self.classifier.own.as_ref().map(Part::Projection),
            _ => None,
        }
    }

    fn known(&self, site: SiteId) -> candle_core::Result<(Part<'_>, &Site)> {
        match (self.part(site), self.sites.get(site.0)) {
            (Some(part), Some(site)) => Ok((part, site)),
            _ => candle_core::bail!("the base model has nothing at {site:?}"),
        }
    }
}

impl Block {
    fn new(
        sizes: &Sizes,
        index: usize,
        eps: f64,
        at: impl Fn(Module) -> SiteId,
        weights: &mut Weights,
    ) -> Result<Self, ModelError> {
        let shift = if index.is_multiple_of(2) { 0 } else { sizes.shift };
        Ok(Self {
            windows: Windows::new(sizes.sides, sizes.window, shift)?,
            query: weights.projection(at(Module::Query))?,
            key: weights.projection(at(Module::Key))?,
            value: weights.projection(at(Module::Value))?,
            output: weights.projection(at(Module::Output))?,
            norms: [weights.norm(at(Module::AttentionNorm), eps)?, weights.norm(at(Module::MlpNorm), eps)?],
            positions: Positions::new(sizes, &at, weights)?,
            up: weights.projection(at(Module::Up))?,
            down: weights.projection(at(Module::Down))?,
        })
    }

    fn forward(&self, groups: Groups, x: &Tensor, images: usize, lora: &LoraBatch) -> candle_core::Result<Tensor> {
        let (scales, table) = self.positions.scores(images, lora)?;
        let bias = spread_table(&table, &self.positions.index)?;
        let inside = lora.spread(self.windows.arrangement.rows());
        let h = self.windows.arrangement.apply(x)?;
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|layer| layer.forward(&h, &inside));
        let (q, k) = (unit(&q?, groups.dim)?, unit(&k?, groups.dim)?);
        let mask = self.windows.mask_on(x.device())?;
        let how = Cosine { scales: &scales, bias: &bias, mask: mask.as_ref() };
        let mixed = self.output.forward(&attend_cosine(groups, &q, &k, &v?, how)?, &inside)?;

        let lora = lora.spread(x.dim(0)? / images);
        let [attention_norm, mlp_norm] = &self.norms;
        let x = add(x, &attention_norm.forward(&self.windows.arrangement.undo(&mixed)?, &lora)?)?;
        let inner = gelu(&self.up.forward(&x, &lora)?)?;
        add(&x, &mlp_norm.forward(&self.down.forward(&inner, &lora)?, &lora)?)
    }

    fn part(&self, module: Module) -> Part<'_> {
        match module {
            Module::Query => Part::Projection(&self.query),
            Module::Key => Part::Projection(&self.key),
            Module::Value => Part::Projection(&self.value),
            Module::Output => Part::Projection(&self.output),
            Module::LogitScale => Part::Parameter(&self.positions.logit_scale),
            Module::Coordinates => Part::Projection(&self.positions.first),
            Module::Biases => Part::Projection(&self.positions.second),
            Module::AttentionNorm => Part::Norm(&self.norms[0]),
            Module::MlpNorm => Part::Norm(&self.norms[1]),
            Module::Up => Part::Projection(&self.up),
            Module::Down => Part::Projection(&self.down),
        }
    }
}

impl BaseModel for Swin {
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

impl ImageClassifier for Swin {
    fn processor(&self) -> &image::Processor {
        &self.common.processor
    }

    /// Images whose adapters change what all images of a pass share are computed apart from the others.
    fn classify(&self, pixels: &Tensor, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        self.classifier.check(lora)?;
        let layout = self.layout(&Input::Pixels(pixels))?;
        let pixels = vision::pixels(&layout)?;
        let pieces = lora.pieces(&self.places.shared(), pixels.dim(0)?)?;
        if pieces.len() == 1 {
            return Ok(self.classify_together(pixels, lora)?);
        }
        let mut logits = Vec::with_capacity(pieces.len());
        for (images, _) in pieces {
            let own = lora.select(&images.clone().collect::<Vec<_>>());
            logits.push(self.classify_together(&pixels.narrow(0, images.start, images.len())?, &own)?);
        }
        Ok(Tensor::cat(&logits, 0)?)
    }
}

impl ImageModel for Swin {
    fn hidden_states(&self, pixels: &Tensor) -> Result<HiddenStates, ModelError> {
        let lora = LoraBatch::default();
        let layout = self.layout(&Input::Pixels(pixels))?;
        let images = layout.rows()?;
        let mut x = self.embed(&layout, &lora)?;
        let mut states = vec![x.clone()];
        for (stage, sizes) in self.config.stages.iter().enumerate() {
            for block in 0..sizes.depth {
                x = self.pass_block((stage, block), &x, images, &lora)?;
            }
            states.push(x.clone());
        }
        let [last, pooled] = self.pool(&x, images, &lora)?;
        Ok(HiddenStates { states, last, pooled: Some(pooled) })
    }
}

impl Base for Swin {
    fn sites(&self) -> &[Site] {
        &self.sites
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

impl Differentiable for Swin {
    fn layout(&self, input: &Input<'_>) -> Result<Layout, ModelError> {
        vision::layout(input, &self.common, self.dtype)
    }

    fn depth(&self) -> usize {
        self.config.stages.iter().map(|stage| stage.depth).sum::<usize>() + 1
    }

    fn embed(&self, layout: &Layout, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        Ok(self.embed_with(vision::pixels(layout)?, lora)?)
    }

    fn block(&self, layer: usize, x: &Tensor, layout: &Layout, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        let images = layout.rows()?;
        match self.place(layer) {
            Some(place) => Ok(self.pass_block(place, x, images, lora)?),
            None => {
                let [_, pooled] = self.pool(x, images, lora)?;
                Ok(pooled)
            }
        }
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
        let stages = || self.config.stages.iter();
        let numbers = stages().map(|stage| stage.depth * stage.width * stage.sides[0] * stage.sides[1]).sum::<usize>();
        numbers / stages().map(|stage| stage.depth * stage.width).sum::<usize>().max(1)
    }

    fn config_json(&self, labels: Option<&[String]>) -> Result<Vec<u8>, ModelError> {
        vision::config_json(&self.common.config, labels)
    }

    fn base(&self) -> &dyn Base {
        self
    }
}
