//! The places of a ViT that adapters can change, in order, by two sets of names. Holds no weight.
//!
//! Class token, positions, patches, then block by block, then the final norm and the classifier. transformers 5 renamed
//! the modules, and so the tensors of adapters, but still writes checkpoints with the names of before.

use crate::lora::{Site, SiteId, SiteKind};
use crate::model::config::Vit as Config;

/// Site of the class token.
pub(super) const CLASS: SiteId = SiteId(0);
/// Site of the position embeddings.
pub(super) const POSITIONS: SiteId = SiteId(1);
/// Site of the convolution of patches.
pub(super) const PATCHES: SiteId = SiteId(2);
/// Sites before the blocks.
const BEFORE: usize = 3;

/// What stands inside a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    AttentionNorm,
    Query,
    Key,
    Value,
    Output,
    MlpNorm,
    Up,
    Down,
}

impl Module {
    /// All of them, in the order of their sites.
    pub(super) const ALL: [Self; 8] =
        [Self::AttentionNorm, Self::Query, Self::Key, Self::Value, Self::Output, Self::MlpNorm, Self::Up, Self::Down];

    /// Returns its name in checkpoints.
    fn name(self) -> &'static str {
        match self {
            Self::AttentionNorm => "layernorm_before",
            Self::Query => "attention.attention.query",
            Self::Key => "attention.attention.key",
            Self::Value => "attention.attention.value",
            Self::Output => "attention.output.dense",
            Self::MlpNorm => "layernorm_after",
            Self::Up => "intermediate.dense",
            Self::Down => "output.dense",
        }
    }

    /// Returns its name in transformers 5.
    fn new_name(self) -> &'static str {
        match self {
            Self::AttentionNorm => "layernorm_before",
            Self::Query => "attention.q_proj",
            Self::Key => "attention.k_proj",
            Self::Value => "attention.v_proj",
            Self::Output => "attention.o_proj",
            Self::MlpNorm => "layernorm_after",
            Self::Up => "mlp.fc1",
            Self::Down => "mlp.fc2",
        }
    }
}

pub(super) fn site_of(layer: usize, module: Module) -> SiteId {
    SiteId(BEFORE + layer * Module::ALL.len() + module as usize)
}

/// Returns the block and the module of a site inside a block.
pub(super) fn module_of(site: SiteId, layers: usize) -> Option<(usize, Module)> {
    let inside = site.0.checked_sub(BEFORE)?;
    let (layer, module) = (inside / Module::ALL.len(), Module::ALL[inside % Module::ALL.len()]);
    (layer < layers).then_some((layer, module))
}

/// Returns the site of the final norm.
pub(super) fn last_norm(layers: usize) -> SiteId {
    SiteId(BEFORE + layers * Module::ALL.len())
}

/// Returns the site of the classifier.
pub(super) fn classifier(layers: usize) -> SiteId {
    SiteId(last_norm(layers).0 + 1)
}

/// Returns the sites by the names of checkpoints.
pub(in crate::model) fn sites(config: &Config) -> Vec<Site> {
    named(config, |layer, module| format!("vit.encoder.layer.{layer}.{}", module.name()))
}

/// Returns the sites by the names of transformers 5.
pub(super) fn renamed(config: &Config) -> Vec<Site> {
    named(config, |layer, module| format!("vit.layers.{layer}.{}", module.new_name()))
}

fn named(config: &Config, path: impl Fn(usize, Module) -> String) -> Vec<Site> {
    let site = |path: String, kind, input, output, bias| Site { path, kind, input, output, bias };
    let Config { hidden_size: hidden, intermediate_size: inner, qkv_bias, .. } = *config;
    let patch = config.images.patch_shape();
    let parameter = |name: &str, rows| {
        site(format!("vit.embeddings.{name}"), SiteKind::Parameter([1, rows, hidden]), hidden, hidden, false)
    };
    let mut sites = vec![
        parameter("cls_token", 1),
        parameter("position_embeddings", config.rows()),
        site(
            "vit.embeddings.patch_embeddings.projection".into(),
            SiteKind::Patches(patch),
            patch.iter().product(),
            hidden,
            true,
        ),
    ];
    for layer in 0..config.layers {
        for module in Module::ALL {
            let (kind, input, output, bias) = match module {
                Module::AttentionNorm | Module::MlpNorm => (SiteKind::Norm, hidden, hidden, true),
                Module::Query | Module::Key | Module::Value => (SiteKind::Linear, hidden, hidden, qkv_bias),
                Module::Output => (SiteKind::Linear, hidden, hidden, true),
                Module::Up => (SiteKind::Linear, hidden, inner, true),
                Module::Down => (SiteKind::Linear, inner, hidden, true),
            };
            sites.push(site(path(layer, module), kind, input, output, bias));
        }
    }
    let labels = config.images.labels();
    sites.push(site("vit.layernorm".into(), SiteKind::Norm, hidden, hidden, true));
    sites.push(site("classifier".into(), SiteKind::Classifier, hidden, labels, true));
    sites
}
