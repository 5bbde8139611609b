//! The configuration of a Swin-v2, and the windows of its stages. Knows no tensor.

use serde_json::{Map, Value};

use super::images::{Images, bits, on};
use super::{Checked, Fault, Fields, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, invalid};

/// Most stages: each halves the sides of its images.
const MAX_STAGES: usize = 16;
/// Largest window, in patches: pairs of its rows are looked up in a table.
const MAX_WINDOW: usize = 64;

/// A checked configuration of a `Swinv2ForImageClassification`, or of a `Swinv2Model`, which has no head.
#[derive(Debug, Clone)]
pub(in crate::model) struct Swin {
    pub(in crate::model) images: Images,
    pub(in crate::model) stages: Vec<Stage>,
    pub(in crate::model) eps: f64,
    pub(in crate::model) qkv_bias: bool,
    window: usize,
}

/// Sizes of one stage.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) struct Stage {
    /// Numbers of a row.
    pub(in crate::model) width: usize,
    /// Numbers between the two layers of the MLP.
    pub(in crate::model) inner: usize,
    pub(in crate::model) depth: usize,
    pub(in crate::model) heads: usize,
    /// Rows of an image in each direction.
    pub(in crate::model) sides: [usize; 2],
    /// Rows of a window in each direction.
    pub(in crate::model) window: usize,
    /// By how much every second block moves its windows.
    pub(in crate::model) shift: usize,
    /// Window that the biases were trained with; 0: this one.
    pub(in crate::model) pretrained: usize,
}

impl Swin {
    pub(super) fn read(map: &Map<String, Value>) -> Checked<Self> {
        let fields = Fields(map);
        let images = Images::read(map, ["Swinv2ForImageClassification", "Swinv2Model"], 4)?;
        let [size, patch] = [images.size, images.patch];
        if size[0] != size[1] || patch[0] != patch[1] || !size[0].is_multiple_of(patch[0]) {
            // transformers decides windows by one side alone, and by whole patches.
            let what = format!("Swin-v2 on images {size:?} in patches {patch:?} (squares of whole patches are)");
            return Err(Fault::Unsupported(what));
        }
        if fields.flag("use_absolute_embeddings")? {
            return Err(Fault::Unsupported("`use_absolute_embeddings` of Swin-v2".into()));
        }
        let embed_dim = fields.size("embed_dim", MAX_WIDTH)?.unwrap_or(96);
        let depths = sizes(&fields, "depths", MAX_LAYERS)?.unwrap_or_else(|| vec![2, 2, 6, 2]);
        let heads = sizes(&fields, "num_heads", MAX_HEADS)?.unwrap_or_else(|| vec![3, 6, 12, 24]);
        let pretrained = sizes(&fields, "pretrained_window_sizes", MAX_WINDOW)?.unwrap_or_default();
        let ratio = fields.positive("mlp_ratio")?.unwrap_or(4.0);
        let window = fields.size("window_size", MAX_WINDOW)?.unwrap_or(7);
        if depths.contains(&0) || heads.contains(&0) || depths.len() != heads.len() || depths.len() > MAX_STAGES {
            return invalid(format!("`depths` and `num_heads` are not the sizes of 1 to {MAX_STAGES} stages"));
        }
        if !pretrained.is_empty() && pretrained.len() < depths.len() || pretrained.contains(&1) {
            return invalid("`pretrained_window_sizes` are not 0 or above 1, one for each stage");
        }
        let mut stages = Vec::with_capacity(depths.len());
        let mut sides = images.grid();
        for (i, (depth, heads)) in depths.into_iter().zip(heads).enumerate() {
            let Some(width) = embed_dim.checked_shl(i as u32).filter(|width| *width <= MAX_WIDTH) else {
                return invalid(format!("stage {i} is wider than {MAX_WIDTH}"));
            };
            if !width.is_multiple_of(heads) {
                return invalid(format!("the width {width} of stage {i} is not a multiple of {heads} heads"));
            }
            let inner = (width as f64 * ratio) as usize;
            if !(1..=MAX_WIDTH).contains(&inner) {
                return invalid(format!("`mlp_ratio` makes {inner} of {width} in stage {i}"));
            }
            // The side by which transformers decides: without what merging adds to odd ones.
            let side = images.grid()[0] >> i;
            if side == 0 {
                return invalid(format!("images of {size:?} leave no patch for stage {i}"));
            }
            let own = window.min(side);
            let shift = if side <= own { 0 } else { window / 2 };
            let pretrained = pretrained.get(i).copied().unwrap_or(0);
            stages.push(Stage { width, inner, depth, heads, sides, window: own, shift, pretrained });
            sides = sides.map(|side| side.div_ceil(2));
        }
        let eps = fields.positive("layer_norm_eps")?.unwrap_or(1e-5);
        Ok(Self { images, stages, eps, qkv_bias: on(&fields, "qkv_bias")?, window })
    }

    pub(super) fn parts(&self) -> Vec<(&'static str, String)> {
        let of = |size: fn(&Stage) -> usize| format!("{:?}", self.stages.iter().map(size).collect::<Vec<_>>());
        let mut parts = self.images.parts();
        parts.extend([
            ("embed_dim", of(|stage| stage.width)),
            ("depths", of(|stage| stage.depth)),
            ("num_heads", of(|stage| stage.heads)),
            ("mlp_ratio", of(|stage| stage.inner)),
            ("window_size", self.window.to_string()),
            ("pretrained_window_sizes", of(|stage| stage.pretrained)),
            ("layer_norm_eps", bits(self.eps)),
            ("qkv_bias", self.qkv_bias.to_string()),
        ]);
        parts
    }
}

/// A list of whole numbers from 0 to `max`.
fn sizes(fields: &Fields<'_>, key: &str, max: usize) -> Checked<Option<Vec<usize>>> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= max);
    match value.as_array().and_then(|list| list.iter().map(size).collect::<Option<Vec<_>>>()) {
        Some(sizes) => Ok(Some(sizes)),
        None => invalid(format!("`{key}` is not a list of whole numbers up to {max}")),
    }
}
