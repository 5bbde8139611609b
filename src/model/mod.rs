//! The base model: immutable, shared, and blind to who runs it.
//!
//! Everything enters [`CausalLm::forward`] packed: the tokens of all sequences one after the other, no padding.

mod cache;
pub mod chat;
mod chat_functions;
pub(crate) mod choice;
pub mod companions;
mod config;
mod effect;
mod gguf;
mod gguf_header;
mod gguf_tokenizer;
pub mod image;
mod layers;
mod llama;
pub mod logits;
#[cfg(any(feature = "cuda", test))]
mod pages;
pub(crate) mod pass;
mod swin;
#[cfg(test)]
mod testing;
mod text_stream;
pub mod tokenizer;
mod vision;
mod vit;
mod weights;

use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;

pub use self::cache::KvCache;
pub use self::choice::Desk;
use self::effect::effect;
pub use self::llama::Llama;
pub use self::swin::Swin;
pub use self::vision::{HiddenStates, ImageModel};
pub use self::vit::Vit;
use crate::lora::{self, Adapter, LoraBatch, LoraError};
use crate::ops::Head;
use crate::ops::learning::Learnt;

/// What the rest of the house needs to know of a base model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Architecture as in the configuration, for example `LlamaForCausalLM`.
    pub architecture: String,
    /// SHA-256 over configuration and tensors, hexadecimal.
    pub fingerprint: String,
    /// Number of weights.
    pub parameters: u64,
    /// Number format of the weights in memory.
    pub dtype: String,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Number of labels when the head is a classifier instead of a language head.
    pub labels: Option<usize>,
    /// What the labels are, where there are any.
    pub classes: Option<lora::Classes>,
    /// Where it runs: `cpu` or `cuda:N`.
    pub device: String,
    /// Bytes of key and value cache of one token.
    pub kv_bytes_per_token: u64,
    /// Size of its images `[height, width]`, where it takes images and no tokens.
    pub image_size: Option<[usize; 2]>,
}

/// Which rows of a segment get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// None: a chunk of a prompt.
    None,
    /// The last this many rows of the segment.
    Last(usize),
}

impl Rows {
    /// Returns how many.
    pub fn count(self) -> usize {
        match self {
            Self::None => 0,
            Self::Last(count) => count,
        }
    }
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Number of tokens.
    pub len: usize,
    /// Rows that get logits.
    pub logits: Rows,
}

/// Tokens to compute in one pass.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Ids of all segments, packed.
    pub tokens: &'a [u32],
    /// Segments in order; their lengths sum to `tokens.len()`.
    pub segments: &'a [Segment],
    /// Adapters by rows of `tokens`.
    pub lora: &'a LoraBatch,
}

/// A base model, whatever it takes and gives: what adapters are bound to.
pub trait BaseModel: Send + Sync {
    /// Describes the model.
    fn info(&self) -> &ModelInfo;

    /// Reads an adapter's two files and binds them to this model: those of a PEFT folder, or `config.json` and
    /// `model.safetensors` of a whole model, which replaces every weight.
    ///
    /// # Errors
    /// Names the fault, the unsupported feature or the misfit.
    fn load_adapter(&self, config: &[u8], tensors: &[u8]) -> Result<Adapter, LoraError>;

    /// Returns the largest absolute change that `adapter` makes to a logit of a fixed input.
    ///
    /// # Errors
    /// When the pass fails, or when the adapter makes a logit NaN or infinite.
    fn effect(&self, adapter: &Arc<Adapter>) -> Result<f64, ModelError>;

    /// Returns the model as training sees it, if it can be trained.
    fn differentiable(&self) -> Option<&dyn Differentiable> {
        None
    }
}

/// What a model is to set aside on its device before it serves, so that nothing else can take it.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// Bytes of keys and values; none are half of what is free and not spoken for.
    pub kv_bytes: Option<u64>,
    /// Tokens of a step.
    pub rows: usize,
    /// Sequences of a step.
    pub sequences: usize,
    /// Bytes of the adapters in slots; none are room for one of rank 16 a sequence, an eighth of what is free at most.
    pub adapter_bytes: Option<u64>,
    /// Bytes that jobs compute in: taken from other processes. None are a quarter of what is free and not to stay so.
    pub job_bytes: Option<u64>,
    /// Bytes that stay free for what is loaded later.
    pub spare_bytes: u64,
}

/// Bytes of a device that are set aside, each for one purpose.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reserved {
    /// The model.
    pub weights: u64,
    /// Keys and values of requests.
    pub kv_cache: u64,
    /// Keys and values of audits, which compute beside the engine.
    pub audits: u64,
    /// What steps compute with.
    pub steps: u64,
    /// Adapters in slots.
    pub adapters: u64,
    /// Jobs.
    pub jobs: u64,
}

/// Takes what it needs of logits `[rows asked for, vocab]`.
pub type Read<'a> = &'a mut dyn FnMut(&Tensor, Option<&Desk>) -> Result<(), ModelError>;

/// A language model, or a classifier of texts.
///
/// Two kinds exist: the real architectures, and the scripted model of the engine's tests.
pub trait CausalLm: BaseModel {
    /// Returns an empty cache for one sequence.
    fn new_cache(&self) -> KvCache;

    /// Returns what was set aside on its device, where that is a GPU.
    fn reserved(&self) -> Option<Reserved> {
        None
    }

    /// Says that a step will have rows of an adapter, so that its device has it by then. Does nothing where adapters are
    /// always at hand, or no room is free for it.
    fn prefetch(&self, _adapter: &Arc<Adapter>) {}

    /// Computes a batch and appends its keys and values to `caches`, one a segment.
    ///
    /// Returns f32 logits `[rows asked for, vocab]` in the order of the segments.
    ///
    /// # Errors
    /// When a shape or id does not fit, or the device fails.
    fn forward(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache]) -> Result<Tensor, ModelError>;

    /// Computes a batch as [`Self::forward`] does, and shows its logits to `read` where they lie: in memory that the next
    /// pass writes. `read` gets memory to choose tokens in, where some was set aside.
    ///
    /// # Errors
    /// As [`Self::forward`], and those of `read`.
    fn step(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache], read: Read<'_>) -> Result<(), ModelError> {
        read(&self.forward(batch, caches)?, None)
    }

    /// Takes logits back that a pass returned and nobody reads any more: a later pass writes its own there.
    fn reuse(&self, logits: Tensor) {
        drop(logits);
    }

    /// Classifies whole sequences, one a segment: f32 logits `[segments, labels]`.
    ///
    /// # Errors
    /// When the head is not a classifier, a shape or id does not fit, or the device fails.
    fn classify(&self, batch: &Batch<'_>) -> Result<Tensor, ModelError>;
}

/// A classifier of images.
pub trait ImageClassifier: BaseModel {
    /// Returns how images become what [`Self::classify`] takes.
    fn processor(&self) -> &image::Processor;

    /// Classifies images, f32 `[images, channels, height, width]` as the processor makes them: f32 logits
    /// `[images, labels]`. A row of `lora` is an image.
    ///
    /// # Errors
    /// When a shape does not fit, or the device fails.
    fn classify(&self, pixels: &Tensor, lora: &LoraBatch) -> Result<Tensor, ModelError>;
}

/// What a model is given at once.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Whole sequences, packed.
    Tokens {
        /// Ids of all of them, one after the other.
        ids: &'a [u32],
        /// Tokens of each.
        lengths: &'a [usize],
    },
    /// Images, f32 `[images, channels, height, width]`.
    Pixels(&'a Tensor),
}

/// An input, checked and laid out.
#[derive(Debug)]
pub enum Layout {
    /// Sequences, packed.
    Tokens(Sequences),
    /// Images, `[images, channels, height, width]` in the number format of the model.
    Pixels(Tensor),
}

/// Positions and sequences of a packed batch, and who sees whom.
#[derive(Debug)]
pub struct Sequences {
    ids: Tensor,
    spans: Arc<Vec<layers::Span>>,
    angles: layers::Angles,
}

impl Layout {
    fn tokens(&self) -> candle_core::Result<&Sequences> {
        match self {
            Self::Tokens(sequences) => Ok(sequences),
            Self::Pixels(_) => candle_core::bail!("a language model was given images"),
        }
    }

    /// Returns the rows that runs of adapters count: tokens, or images.
    ///
    /// # Errors
    /// When the tensor has no dimension.
    pub fn rows(&self) -> candle_core::Result<usize> {
        match self {
            Self::Tokens(sequences) => sequences.ids.dim(0),
            Self::Pixels(pixels) => pixels.dim(0),
        }
    }
}

/// A model block by block, so that a backward can go through one block at a time.
///
/// Every segment is a whole sequence, and sees itself only. Gradients reach the tensors of the adapters and `x`, never a
/// weight of the base. Shapes: `[rows, hidden]` in the number format of the model, rows being tokens, or patches of all
/// images one after the other; logits are f32. A row of `lora` is a token or an image, in `head` a row of `x`.
pub trait Differentiable: Send + Sync {
    /// Checks an input and lays it out.
    ///
    /// # Errors
    /// When it is of another kind, or an id, a length or a shape does not fit.
    fn layout(&self, input: &Input<'_>) -> Result<Layout, ModelError>;

    /// Returns the number of blocks.
    fn depth(&self) -> usize;

    /// Returns the input of the first block.
    ///
    /// # Errors
    /// When the device fails.
    fn embed(&self, layout: &Layout, lora: &LoraBatch) -> Result<Tensor, ModelError>;

    /// Returns the output of a block.
    ///
    /// # Errors
    /// When the device fails.
    fn block(&self, layer: usize, x: &Tensor, layout: &Layout, lora: &LoraBatch) -> Result<Tensor, ModelError>;

    /// Returns the output of a block and its own backward, where it has one; elsewhere the graph of [`Self::block`] does it.
    ///
    /// # Errors
    /// When the device fails.
    fn learn<'a>(
        &'a self,
        layer: usize,
        x: &Tensor,
        layout: &'a Layout,
        lora: &'a LoraBatch,
    ) -> Result<Option<Computed<'a>>, ModelError>;

    /// Returns what stands before the first block and behind the last one as far as it has a backward of its own; `lora` is
    /// that of all `rows`.
    ///
    /// # Errors
    /// When the runs do not fit the rows.
    fn learn_ends<'a>(&'a self, _lora: &'a LoraBatch, _rows: usize) -> Result<Ends<'a>, ModelError> {
        Ok(Ends::default())
    }

    /// Returns logits of rows of the last block's output, `[rows, vocab]`, or `[rows, labels]` with `classify`; the
    /// adapters of `lora` are those of these rows.
    ///
    /// # Errors
    /// When neither base nor adapter has the head, or the device fails.
    fn head(&self, x: &Tensor, lora: &LoraBatch, classify: bool) -> Result<Tensor, ModelError>;

    /// Returns the row of the last block's output at which each sequence or image is classified.
    fn classified(&self, input: &Input<'_>) -> Vec<usize>;

    /// Returns the rows of one image in a block, where blocks have images: of blocks of different size the mean, each
    /// weighted by its width.
    fn rows_of_image(&self) -> usize {
        0
    }

    /// Returns a Hugging Face `config.json` of this architecture with f32 weights, for what was trained from it; with
    /// `labels`, of its classifier with these. `problem_type` is the caller's to add.
    ///
    /// # Errors
    /// When the format has no words for what this model computes: rope factors of a GGUF file that no published model has.
    fn config_json(&self, labels: Option<&[String]>) -> Result<Vec<u8>, ModelError>;

    /// Returns what adapters are bound to.
    fn base(&self) -> &dyn lora::Base;
}

/// The backward of a block that was computed: from the gradient of its output to that of its input, and the tensors of
/// the adapters with theirs.
pub type Backward<'a> = Box<dyn Fn(&Tensor) -> Result<(Tensor, Vec<Learnt>), ModelError> + 'a>;

/// The output of a block, and its backward.
pub type Computed<'a> = (Tensor, Backward<'a>);

/// The ends of a model in training that need no graph.
#[derive(Debug, Default)]
pub struct Ends<'a> {
    /// A language model's head.
    pub head: Option<Head<'a>>,
    /// The weight `[vocab, hidden]` whose rows are the input of the first block, where it learns whole.
    pub embedding: Option<&'a Tensor>,
}

/// Reads a base model: a transformers folder or a GGUF file.
///
/// `device` is `cpu`, `cuda` or `cuda:N`; `dtype` is `auto`, `f32`, `bf16` or `f16`. For a folder `auto` means f32 on
/// the CPU, and on CUDA the checkpoint's own format, but bf16 instead of f16. The weights of a GGUF file stay as they are
/// with `auto` on the CPU, under f32 activations, and become bf16 on CUDA where that takes half of the free memory at most;
/// any other value turns them into that format.
///
/// # Errors
/// Names the file and its fault, the unsupported feature, or the missing device.
pub fn open(path: &Path, device: &str, dtype: &str) -> Result<Llama, ModelError> {
    let device = weights::device(device)?;
    let dtype = weights::dtype(dtype)?;
    let (config, parts) = match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("gguf") => gguf::read(path, &device, dtype)?,
        _ => weights::read(path, &device, dtype)?,
    };
    Llama::new(config, parts, device)
}

/// Reads a base model as [`open`] does, for whoever only runs it; `name` is what clients call it.
///
/// # Errors
/// As [`open`].
pub fn load(path: &Path, name: &str, device: &str, dtype: &str) -> Result<Arc<dyn CausalLm>, ModelError> {
    let model = open(path, device, dtype)?;
    announce(&model, name);
    Ok(Arc::new(model))
}

/// Reads a base model as [`load`] does, and sets memory of its device aside for serving.
///
/// # Errors
/// As [`open`], or when the device lacks the memory.
pub fn load_to_serve(
    path: &Path,
    name: &str,
    (device, dtype): (&str, &str),
    reserve: &Reserve,
) -> Result<Arc<dyn CausalLm>, ModelError> {
    let mut model = open(path, device, dtype)?;
    model.reserve(reserve)?;
    announce(&model, name);
    Ok(Arc::new(model))
}

/// Reads an image classifier, ViT or Swin-v2, from a transformers folder.
///
/// # Errors
/// As [`open`].
pub fn open_images(path: &Path, device: &str, dtype: &str) -> Result<Box<dyn ImageModel>, ModelError> {
    vision::open(path, device, dtype)
}

/// Reads an image classifier as [`open_images`] does, for whoever only runs it; `name` is what clients call it.
///
/// # Errors
/// As [`open`].
pub fn load_images(path: &Path, name: &str, device: &str, dtype: &str) -> Result<Arc<dyn ImageClassifier>, ModelError> {
    let model = open_images(path, device, dtype)?;
    announce(&*model, name);
    let model: Arc<dyn ImageModel> = Arc::from(model);
    Ok(model)
}

/// Says in the log that a model was loaded.
fn announce(model: &dyn BaseModel, name: &str) {
    let info = model.info();
    tracing::info!(
        model = name,
        architecture = %info.architecture,
        fingerprint = %info.fingerprint,
        parameters = info.parameters,
        dtype = %info.dtype,
        device = %info.device,
        "base model loaded"
    );
}

/// Why the model cannot be read or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {fault}")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong with it.
        fault: String,
    },
    /// Something this server does not support.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The device asked for is not there.
    #[error("{0}")]
    Device(String),
    /// What was passed in cannot be computed.
    #[error("{0}")]
    Input(String),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}
