//! An adapter as a value: what a PEFT folder says, checked against a base model and ready to be an argument of
//! `forward`.
//!
//! Holds the types; reading is in `peft`, applying in `batch`. Does not name adapters, count their bytes against a
//! budget or open files: that is `registry`'s. Matrices are f32 on the base model's device, as PEFT has them over a
//! half-precision base too; on the CPU those of low rank are bf16 beside weights of that, and mostly 8 bits beside quantised
//! ones ([`Base::low_rank_format`], `delta`), since a step of many adapters mostly reads them; they lie one behind the other
//! (`table`). An adapter that slots of a device take stays in the host's memory instead, in one piece (`piece`). All is
//! computed in f32, but beside matrices of 8 bits rows have 8 bits too, as for the base's weights (`ops::cpu`).

mod batch;
mod bind;
mod config;
mod delta;
pub mod full;
mod images;
mod json;
mod labels;
mod names;
pub mod peft;
mod piece;
mod plan;
mod rows;
mod spelling;
mod table;
mod targets;
mod tensors;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use delta::LinearDelta;
pub use labels::{MAX_LABELS, MAX_NAME, labelled};
pub use piece::{Part, Piece};
pub use plan::{Plan, Planned, plan};
pub use rows::{Changed, OpenBatch};
use table::Table;

/// `target_modules` of an adapter that saves modules and adapts no layer (peft `DUMMY_TARGET_MODULES`).
pub const NO_LAYER: &str = "dummy-target-modules";

/// Identity of an adapter: SHA-256 over canonical configuration, tensors and base fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation([u8; 32]);

impl Generation {
    /// Wraps a digest.
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).ok()?;
        Some(Self(digest))
    }
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// How an adapter changes weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    /// By low-rank matrices.
    Lora,
    /// By low-rank matrices and a magnitude.
    Dora,
    /// It replaces all of them: a whole fine-tuned model.
    Full,
}

impl Kind {
    /// Returns its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lora => "LORA",
            Self::Dora => "DORA",
            Self::Full => "FULL",
        }
    }
}

/// How the logits of a classification head are meant (`problem_type` of transformers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// One label is right.
    Single,
    /// Each label is right or not.
    Multi,
    /// The logits are the answer.
    Regression,
}

/// What the outputs of a classification head stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Names in the order of the logits; `LABEL_0` and so on where there are none.
    pub names: Vec<String>,
    /// How the logits are meant.
    pub problem: Problem,
    /// Id that is not classified at; none is the base model's.
    pub pad_token_id: Option<u32>,
}

impl Classes {
    /// Returns `count` labels without names, one of which is right.
    pub fn unnamed(count: usize) -> Self {
        let names = (0..count).map(|i| format!("LABEL_{i}")).collect();
        Self { names, problem: Problem::Single, pad_token_id: None }
    }

    /// Returns whether somebody has named them.
    pub fn are_named(&self) -> bool {
        self.names != Self::unnamed(self.names.len()).names
    }
}

/// What an adapter is, without its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterInfo {
    /// How it changes weights.
    pub kind: Kind,
    /// Largest rank of its layers; 0 for a whole model.
    pub rank: usize,
    /// `lora_alpha` of the configuration; 0 for a whole model.
    pub alpha: f64,
    /// Paths of the modules it changes, in order.
    pub modules: Vec<String>,
    /// PEFT task type, empty when the configuration has none.
    pub task_type: String,
    /// Bytes of its tensors in memory.
    pub bytes: u64,
    /// The labels, where it brings a classification head or names those of the base's.
    pub classes: Option<Classes>,
}

/// Index of a place in the base model that an adapter can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub usize);

/// What stands at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear layer inside a block; `all-linear` reaches it.
    Linear,
    /// The last layer (`lm_head`, `score`) whose outputs are fixed; `all-linear` leaves it out.
    Head,
    /// The token embedding.
    Embedding,
    /// The weight of a norm, `[output]`; it can be replaced only, as can its bias.
    Norm,
    /// A convolution of patches that do not overlap, `[output, channels, height, width]`: a linear layer of `input`
    /// numbers, which is replaced as a whole or gets another bias.
    Patches([usize; 3]),
    /// A parameter of this shape that is no module's weight: its tensor has the name of the path. It can be replaced only,
    /// by a whole model.
    Parameter([usize; 3]),
    /// A classification head that an adapter may bring, with as many outputs as it likes; `output` is 0 where the base
    /// model lacks it.
    Classifier,
}

/// A place in the base model that an adapter can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Module path, for example `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// What stands there.
    pub kind: SiteKind,
    /// Size of the input (vocabulary for an embedding).
    pub input: usize,
    /// Size of the output.
    pub output: usize,
    /// Whether the base layer has a bias.
    pub bias: bool,
}

impl Site {
    /// Returns whether the base model has nothing there: only an adapter has.
    pub fn is_missing(&self) -> bool {
        self.kind == SiteKind::Classifier && self.output == 0
    }

    /// Returns the shape of its weight.
    pub fn shape(&self) -> Vec<usize> {
        match self.kind {
            SiteKind::Linear | SiteKind::Head | SiteKind::Classifier => vec![self.output, self.input],
            SiteKind::Embedding => vec![self.input, self.output],
            SiteKind::Norm => vec![self.output],
            SiteKind::Patches([channels, height, width]) => vec![self.output, channels, height, width],
            SiteKind::Parameter(shape) => shape.to_vec(),
        }
    }

    /// Returns the name of its weight in the file of a whole model.
    pub fn tensor(&self) -> String {
        match self.kind {
            SiteKind::Parameter(_) => self.path.clone(),
            SiteKind::Linear
            | SiteKind::Head
            | SiteKind::Classifier
            | SiteKind::Embedding
            | SiteKind::Norm
            | SiteKind::Patches(_) => format!("{}.weight", self.path),
        }
    }
}

/// What an adapter has to know of the base model to be checked and bound.
pub trait Base {
    /// Returns all sites, by the names that checkpoints have; a [`SiteId`] is an index into them.
    fn sites(&self) -> &[Site];

    /// Returns the same sites by every set of names that adapters have, the newest last.
    fn spellings(&self) -> Vec<&[Site]> {
        vec![self.sites()]
    }

    /// Returns the weight of a site as f32 of its shape ([`Site::shape`]), dequantised.
    ///
    /// # Errors
    /// When the base model has none there, or the device fails.
    fn weight(&self, site: SiteId) -> candle_core::Result<Tensor>;

    /// Returns the bias of a site that has one as f32 `[output]`.
    ///
    /// # Errors
    /// When the device fails.
    fn bias(&self, site: SiteId) -> candle_core::Result<Option<Tensor>>;

    /// Returns whether the head is the token embedding.
    fn is_tied(&self) -> bool {
        false
    }

    /// Returns SHA-256 of the base model, hexadecimal.
    fn fingerprint(&self) -> &str;

    /// Returns where tensors belong.
    fn device(&self) -> &Device;

    /// Returns the number format of activations.
    fn dtype(&self) -> DType;

    /// Returns the number format of low-rank matrices beside the weight of a site: f32, bf16, or U8
    /// for 8 bits.
    fn low_rank_format(&self, _site: SiteId) -> DType {
        DType::F32
    }

    /// Returns the number format of the device's slots for adapters, where they take low-rank matrices at a site. An
    /// adapter of such matrices alone lies in the host's memory.
    fn slot_format(&self, _site: SiteId) -> Option<DType> {
        None
    }

    /// Returns how many numbers all slots have room for together.
    fn slot_numbers(&self) -> usize {
        0
    }
}

/// What an adapter does at one site. All tensors are f32, but for low-rank matrices that lie in the base's own format.
#[derive(Debug)]
pub enum Change {
    /// y = Wx + s·B(Ax), with the refinements of PEFT.
    Linear(LinearDelta),
    /// Row t gets s·B times column t of A.
    Embedding {
        /// Aᵀ, `[vocab, r]`.
        a: Tensor,
        /// s·Bᵀ, `[r, hidden]`.
        b: Tensor,
        /// alpha/r or alpha/√r; already inside `b`.
        scaling: f64,
    },
    /// The layer is replaced outright (`modules_to_save`).
    Replaced {
        /// Of the shape of the base's ([`Site::shape`]).
        weight: Tensor,
        /// `[output]`.
        bias: Option<Tensor>,
    },
    /// Only the layer's bias is replaced, `[output]` (`bias` = `all`).
    Bias(Tensor),
}

impl Change {
    /// Returns rank and scaling of the low-rank matrices, if there are any.
    pub fn rank_and_scaling(&self) -> Option<(usize, f64)> {
        match self {
            Self::Linear(LinearDelta { a, scaling, .. }) | Self::Embedding { a, scaling, .. } => {
                Some((a.dims().last().copied().unwrap_or_default(), *scaling))
            }
            Self::Replaced { .. } | Self::Bias(_) => None,
        }
    }

    /// Returns the bytes of its tensors.
    fn bytes(&self) -> u64 {
        let size = |tensor: &Tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        let optional = |tensor: &Option<Tensor>| tensor.as_ref().map_or(0, size);
        match self {
            Self::Linear(LinearDelta { a, b, worth, b_bias, scaling: _, magnitude, bias }) => {
                size(a) + size(b) + optional(worth) + optional(b_bias) + optional(magnitude) + optional(bias)
            }
            Self::Embedding { a, b, scaling: _ } => size(a) + size(b),
            Self::Replaced { weight, bias } => size(weight) + optional(bias),
            Self::Bias(bias) => size(bias),
        }
    }
}

/// A checked adapter, bound to one base model.
#[derive(Debug)]
pub struct Adapter {
    generation: Generation,
    /// Fingerprint of the base model.
    base: String,
    info: AdapterInfo,
    /// By site; sites without an entry are the base model's.
    changes: BTreeMap<SiteId, Change>,
    /// What `changes` are views of, where it lies in the host's memory in one piece.
    piece: Option<Piece>,
    /// What it does as steps on the CPU read it.
    table: Option<Table>,
    #[expect(dead_code, reason = "its work is to be dropped")]
    guard: Guard,
}

/// Whatever has to live as long as the adapter; used by its `Drop` alone.
struct Guard(Option<Box<dyn Send + Sync>>);

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Guard" } else { "none" })
    }
}

impl Adapter {
    /// Returns its identity.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the fingerprint of the base model that it is bound to; empty while it is in the making.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns what it is.
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }

    /// Returns what it does, by site.
    pub fn changes(&self) -> &BTreeMap<SiteId, Change> {
        &self.changes
    }

    /// Returns it as slots of a device take it, where it lies in the host's memory in one piece.
    pub fn piece(&self) -> Option<&Piece> {
        self.piece.as_ref()
    }

    /// Ties `guard` to the adapter: it is dropped with it, so that a reservation of memory ends when the last user does.
    #[must_use]
    pub fn with_guard(self, guard: Box<dyn Send + Sync>) -> Self {
        Self { guard: Guard(Some(guard)), ..self }
    }

    /// Returns an adapter in the making: its tensors are variables, it has no identity yet.
    pub fn unnamed(changes: BTreeMap<SiteId, Change>) -> Self {
        let (modules, task_type) = (Vec::new(), String::new());
        let info = AdapterInfo { kind: Kind::Lora, rank: 0, alpha: 0.0, modules, task_type, bytes: 0, classes: None };
        let generation = Generation::from_digest([0; 32]);
        Self { generation, base: String::new(), info, changes, piece: None, table: None, guard: Guard(None) }
    }

    /// Returns an adapter in the making as one that was read lies in memory: what slots take comes from the CPU.
    #[cfg(test)]
    pub(crate) fn settled(changes: BTreeMap<SiteId, Change>, base: &dyn Base) -> candle_core::Result<Self> {
        let (changes, piece) = piece::in_one(changes, base)?;
        if piece.is_some() {
            return Ok(Self { piece, ..Self::unnamed(changes) });
        }
        let stored = |(site, change)| match change {
            Change::Linear(delta) => Ok((site, Change::Linear(delta.in_format(base.low_rank_format(site))?))),
            Change::Embedding { .. } | Change::Replaced { .. } | Change::Bias(_) => Ok((site, change)),
        };
        let (changes, table) = Table::of(changes.into_iter().map(stored).collect::<candle_core::Result<_>>()?)?;
        Ok(Self { table, ..Self::unnamed(changes) })
    }

    /// An adapter that changes nothing, for tests of those who only name and count adapters.
    #[cfg(test)]
    pub(crate) fn hollow(generation: Generation, info: AdapterInfo) -> Self {
        let (base, changes) = (String::new(), BTreeMap::new());
        Self { generation, base, info, changes, piece: None, table: None, guard: Guard(None) }
    }
}

/// One run of consecutive rows that use the same adapter.
#[derive(Debug, Clone)]
pub struct Run {
    /// The adapter.
    pub adapter: Arc<Adapter>,
    /// Rows of the packed batch.
    pub rows: Range<usize>,
    /// Factor on top of the adapter's own scaling; 1 in serving.
    pub scale: f32,
}

/// Which rows of a packed batch use which adapter; rows in no run are the base model's.
#[derive(Debug, Clone, Default)]
pub struct LoraBatch {
    /// Runs in ascending order of rows, without overlap.
    pub runs: Vec<Run>,
    /// Drops inputs of A; in training only.
    pub dropout: Option<Dropout>,
}

/// Drops each input of each A with some probability, and scales the others up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability, 0 to below 1.
    pub rate: f64,
    /// Decides, together with the site, what is dropped: the same seed drops the same.
    pub seed: u64,
}

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The files are faulty.
    #[error("{0}")]
    Invalid(String),
    /// A PEFT feature that is not supported.
    #[error("`{0}` is not supported")]
    Unsupported(String),
    /// The files are sound but do not fit this base model.
    #[error("{0}")]
    Mismatch(String),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

#[cfg(test)]
impl Adapter {
    /// Returns an adapter that changes nothing, for tests that only carry it around.
    pub(crate) fn blank(digest: u8) -> Self {
        let (alpha, modules, task_type) = (1.0, Vec::new(), String::new());
        let info = AdapterInfo { kind: Kind::Lora, rank: 1, alpha, modules, task_type, bytes: 0, classes: None };
        Self::hollow(Generation::from_digest([digest; 32]), info)
    }

    /// Returns one that says it brings a head.
    pub(crate) fn blank_with(digest: u8, classes: Classes) -> Self {
        let blank = Self::blank(digest);
        let info = AdapterInfo { classes: Some(classes), ..blank.info().clone() };
        Self::hollow(Generation::from_digest([digest; 32]), info)
    }
}
