//! The configuration of a ViT. Knows no tensor.

use serde_json::{Map, Value};

use super::images::{Images, bits, on};
use super::{Checked, Fields, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, invalid};

/// A checked configuration of a `ViTForImageClassification`, or of a `ViTModel`, which has no head.
#[derive(Debug, Clone)]
pub(in crate::model) struct Vit {
    pub(in crate::model) images: Images,
    pub(in crate::model) hidden_size: usize,
    pub(in crate::model) intermediate_size: usize,
    pub(in crate::model) layers: usize,
    pub(in crate::model) heads: usize,
    pub(in crate::model) eps: f64,
    pub(in crate::model) qkv_bias: bool,
}

impl Vit {
    pub(super) fn read(map: &Map<String, Value>) -> Checked<Self> {
        let fields = Fields(map);
        let config = Self {
            images: Images::read(map, ["ViTForImageClassification", "ViTModel"], 16)?,
            hidden_size: fields.size("hidden_size", MAX_WIDTH)?.unwrap_or(768),
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?.unwrap_or(3072),
            layers: fields.size("num_hidden_layers", MAX_LAYERS)?.unwrap_or(12),
            heads: fields.size("num_attention_heads", MAX_HEADS)?.unwrap_or(12),
            eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-12),
            qkv_bias: on(&fields, "qkv_bias")?,
        };
        let Self { hidden_size, heads, .. } = config;
        if !hidden_size.is_multiple_of(heads) {
            return invalid(format!("`hidden_size` {hidden_size} is not a multiple of {heads} heads"));
        }
        if fields.size("head_dim", MAX_WIDTH)?.is_some_and(|dim| dim != hidden_size / heads) {
            return invalid(format!("`head_dim` is not {}", hidden_size / heads));
        }
        Ok(config)
    }

    /// Returns the rows of an image: its patches, and the class token before them.
    pub(in crate::model) fn rows(&self) -> usize {
        self.images.grid().iter().product::<usize>() + 1
    }

    pub(super) fn parts(&self) -> Vec<(&'static str, String)> {
        let mut parts = self.images.parts();
        parts.extend([
            ("hidden_size", self.hidden_size.to_string()),
            ("intermediate_size", self.intermediate_size.to_string()),
            ("num_hidden_layers", self.layers.to_string()),
            ("num_attention_heads", self.heads.to_string()),
            ("layer_norm_eps", bits(self.eps)),
            ("qkv_bias", self.qkv_bias.to_string()),
        ]);
        parts
    }
}
