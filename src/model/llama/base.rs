//! A Llama as what adapters are bound to: its weights and biases by site.

use candle_core::{DType, Device, Tensor};

use super::Llama;
use super::sites::site_of;
use crate::lora::{Base, Site, SiteId};
use crate::model::config::{Head, Module};
use crate::model::layers::Projection;

impl Llama {
    /// Returns the linear layer of a block that a site is, if it is one.
    fn projection_at(&self, site: SiteId) -> Option<&Projection> {
        let inside = site.0.checked_sub(1)?;
        let block = self.blocks.get(inside / Module::ALL.len())?;
        Some(block.projection(Module::ALL[inside % Module::ALL.len()]))
    }

    /// Returns the weight of a norm or of the head.
    fn weight_after_blocks(&self, site: SiteId) -> candle_core::Result<Tensor> {
        let first = site_of(self.blocks.len(), Module::ALL[0]);
        if site == self.last_norm() {
            return self.norm.to_dtype(DType::F32);
        }
        let block = site.0.checked_sub(first).and_then(|n| Some((self.blocks.get(n / 2)?, n % 2)));
        match block {
            Some((block, 0)) => block.attention_norm.to_dtype(DType::F32),
            Some((block, _)) => block.mlp_norm.to_dtype(DType::F32),
            None if site.0 + 1 == self.sites.len() => self.head.weight.to_f32(),
            None => candle_core::bail!("the base model has no weight at {site:?}"),
        }
    }
}

impl Base for Llama {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn weight(&self, site: SiteId) -> candle_core::Result<Tensor> {
        match self.projection_at(site) {
            Some(projection) => projection.weight.to_f32(),
            None if site.0 == 0 => self.embedding.to_f32(),
            None => self.weight_after_blocks(site),
        }
    }

    fn bias(&self, site: SiteId) -> candle_core::Result<Option<Tensor>> {
        let bias = self.projection_at(site).and_then(|projection| projection.bias.as_ref());
        bias.map(|bias| bias.to_dtype(DType::F32)).transpose()
    }

    fn is_tied(&self) -> bool {
        self.config.tied && self.config.head == Head::Language
    }

    fn fingerprint(&self) -> &str {
        &self.info.fingerprint
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn low_rank_format(&self, site: SiteId) -> DType {
        self.projection_at(site).map_or(DType::F32, |projection| projection.weight.low_rank_format())
    }

    /// A classifier computes no steps, and has nobody in its slots.
    #[cfg(feature = "cuda")]
    fn slot_format(&self, site: SiteId) -> Option<DType> {
        let resident = self.resident.as_ref().filter(|_| self.info.labels.is_none())?;
        resident.slot_format(site)
    }

    #[cfg(feature = "cuda")]
    fn slot_numbers(&self) -> usize {
        self.resident.as_ref().map_or(0, super::gpu::Resident::slot_numbers)
    }
}
