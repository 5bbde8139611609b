//! The places of a Swin-v2 that adapters can change, in order. Holds no weight.
//!
//! Patches and their norm, then stage by stage: its blocks, and what merges rows behind them; the final norm and the
//! classifier.

use crate::lora::{Site, SiteId, SiteKind};
use crate::model::config::{Stage as Sizes, Swin as Config};

/// Sites before the stages.
const BEFORE: usize = 2;
/// Inner size of the network of position biases.
const POSITION_WIDTH: usize = 512;

/// What stands inside a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    LogitScale,
    Coordinates,
    Biases,
    Query,
    Key,
    Value,
    Output,
    AttentionNorm,
    Up,
    Down,
    MlpNorm,
}

impl Module {
    /// All of them, in the order of their sites.
    const ALL: [Self; 11] = [
        Self::LogitScale,
        Self::Coordinates,
        Self::Biases,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::AttentionNorm,
        Self::Up,
        Self::Down,
        Self::MlpNorm,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::LogitScale => "attention.self.logit_scale",
            Self::Coordinates => "attention.self.continuous_position_bias_mlp.0",
            Self::Biases => "attention.self.continuous_position_bias_mlp.2",
            Self::Query => "attention.self.query",
            Self::Key => "attention.self.key",
            Self::Value => "attention.self.value",
            Self::Output => "attention.output.dense",
            Self::AttentionNorm => "layernorm_before",
            Self::Up => "intermediate.dense",
            Self::Down => "output.dense",
            Self::MlpNorm => "layernorm_after",
        }
    }

    /// Returns kind, input, output, and whether there is a bias.
    fn shape(self, sizes: &Sizes, qkv_bias: bool) -> (SiteKind, usize, usize, bool) {
        let Sizes { width, inner, heads, .. } = *sizes;
        match self {
            Self::LogitScale => (SiteKind::Parameter([heads, 1, 1]), heads, heads, false),
            Self::Coordinates => (SiteKind::Linear, 2, POSITION_WIDTH, true),
            Self::Biases => (SiteKind::Linear, POSITION_WIDTH, heads, false),
            Self::Query | Self::Value => (SiteKind::Linear, width, width, qkv_bias),
            Self::Key => (SiteKind::Linear, width, width, false),
            Self::Output => (SiteKind::Linear, width, width, true),
            Self::Up => (SiteKind::Linear, width, inner, true),
            Self::Down => (SiteKind::Linear, inner, width, true),
            Self::AttentionNorm | Self::MlpNorm => (SiteKind::Norm, width, width, true),
        }
    }
}

/// Finds sites.
#[derive(Debug)]
pub(super) struct Places {
    depths: Vec<usize>,
}

impl Places {
    /// Site of the convolution of patches.
    pub(super) const PATCHES: SiteId = SiteId(0);
    /// Site of the norm behind it.
    pub(super) const EMBEDDING_NORM: SiteId = SiteId(1);

    pub(super) fn new(config: &Config) -> Self {
        Self { depths: config.stages.iter().map(|stage| stage.depth).collect() }
    }

    /// Returns the first site of a stage, or what follows the last.
    fn first(&self, stage: usize) -> usize {
        let before = self.depths.iter().take(stage);
        // Behind each stage but the last stand two more.
        BEFORE + before.map(|depth| depth * Module::ALL.len() + 2).sum::<usize>()
            - if stage == self.depths.len() { 2 } else { 0 }
    }

    pub(super) fn of(&self, stage: usize, block: usize, module: Module) -> SiteId {
        SiteId(self.first(stage) + block * Module::ALL.len() + module as usize)
    }

    /// Returns the sites of what merges rows behind a stage: reduction and norm.
    pub(super) fn merge(&self, stage: usize) -> Option<[SiteId; 2]> {
        let next = self.first(stage + 1);
        (stage + 1 < self.depths.len()).then_some([SiteId(next - 2), SiteId(next - 1)])
    }

    pub(super) fn last_norm(&self) -> SiteId {
        SiteId(self.first(self.depths.len()))
    }

    pub(super) fn classifier(&self) -> SiteId {
        SiteId(self.last_norm().0 + 1)
    }

    /// Returns stage, block and module of a site inside a block.
    pub(super) fn module_of(&self, site: SiteId) -> Option<(usize, usize, Module)> {
        self.depths.iter().enumerate().find_map(|(stage, depth)| {
            let inside = site.0.checked_sub(self.first(stage))?;
            let (block, module) = (inside / Module::ALL.len(), inside % Module::ALL.len());
            (block < *depth).then_some((stage, block, Module::ALL[module]))
        })
    }

    /// Returns the sites of what all images of a pass share.
    pub(super) fn shared(&self) -> Vec<SiteId> {
        let blocks = self.depths.iter().enumerate().flat_map(|(stage, depth)| (0..*depth).map(move |i| (stage, i)));
        let modules = [Module::LogitScale, Module::Coordinates, Module::Biases];
        blocks.flat_map(|(stage, block)| modules.map(|module| self.of(stage, block, module))).collect()
    }
}

/// Returns the sites by the names of checkpoints.
pub(in crate::model) fn sites(config: &Config) -> Vec<Site> {
    let site = |path: String, kind, input, output, bias| Site { path, kind, input, output, bias };
    let norm = |path: String, width| site(path, SiteKind::Norm, width, width, true);
    let patch = config.images.patch_shape();
    let width = config.stages.first().map_or(0, |stage| stage.width);
    let mut sites = vec![
        site(
            "swinv2.embeddings.patch_embeddings.projection".into(),
            SiteKind::Patches(patch),
            patch.iter().product(),
            width,
            true,
        ),
        norm("swinv2.embeddings.norm".into(), width),
    ];
    for (stage, sizes) in config.stages.iter().enumerate() {
        let path = format!("swinv2.encoder.layers.{stage}");
        for block in 0..sizes.depth {
            for module in Module::ALL {
                let (kind, input, output, bias) = module.shape(sizes, config.qkv_bias);
                sites.push(site(format!("{path}.blocks.{block}.{}", module.name()), kind, input, output, bias));
            }
        }
        let width = sizes.width;
        if stage + 1 < config.stages.len() {
            let path = format!("{path}.downsample");
            sites.push(site(format!("{path}.reduction"), SiteKind::Linear, 4 * width, 2 * width, false));
            sites.push(norm(format!("{path}.norm"), 2 * width));
        }
    }
    let last = config.stages.last().map_or(0, |stage| stage.width);
    sites.push(norm("swinv2.layernorm".into(), last));
    let labels = config.images.labels();
    sites.push(site("classifier".into(), SiteKind::Classifier, last, labels, true));
    sites
}
