//! Fine-tuning: LoRA, DoRA, head only and full, one loop.
//!
//! Computes and knows nothing of jobs, names or disks: a [`Trainer`] goes one optimiser step at a time, says how it
//! went, and can be written down and taken up again with the very same bits (CPU). What is trained is an adapter whose
//! tensors are variables; a full fine-tune is an adapter that replaces every weight.

mod examples;
mod files;
mod images;
mod learner;
mod losses;
mod memory;
mod optimizer;
mod order;
mod parameters;
mod schedule;
mod settings;
mod size;
mod sums;
mod trainer;

use std::sync::Arc;

use crate::model::chat::ChatTemplate;
use crate::model::image::Processor;
use crate::model::tokenizer::Tokenizer;
use crate::model::{BaseModel, ModelError};
use crate::turns::Stopped;

pub use examples::{Example, Examples, GroupKey, Picture};
pub use learner::{Gradients, Learner, Outcome};
pub use losses::RowLoss;
pub use optimizer::{AdamW, Moments};
pub use order::{MicroBatch, Order, Pixels};
pub use parameters::{Parameter, Parameters};
pub use schedule::learning_rate;
pub use settings::{Average, Length, LoraSettings, Method, Schedule, Settings, Subset, Targets, Task, Use};
pub use size::trained_bytes;
pub use trainer::Trainer;

/// What all training on one base model shares.
#[derive(Clone)]
pub struct Context {
    /// The base model; never written.
    pub model: Arc<dyn BaseModel>,
    /// How rows become what it takes.
    pub reader: Reader,
    /// Bytes that a job may take on top of the base model; 0: what the device has free when it begins.
    pub memory_bytes: u64,
    /// Bytes of these that it leaves to others.
    pub spare_bytes: u64,
}

/// How rows become what a model takes.
#[derive(Clone)]
pub enum Reader {
    /// As text.
    Text {
        /// Text to ids.
        tokenizer: Arc<Tokenizer>,
        /// Conversations to text, if the model has a template.
        chat: Option<Arc<ChatTemplate>>,
    },
    /// As images.
    Images(Processor),
}

/// Loss and accuracy of a group, or of all rows.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Figure {
    /// Group column; empty for all rows.
    pub column: String,
    /// Its value; `None` where the value is missing.
    pub value: Option<String>,
    /// Rows.
    pub rows: u64,
    /// Mean loss (nats a token, or nats a row for classification).
    pub loss: f64,
    /// Share of rows whose label is the most likely one; classification only.
    pub accuracy: Option<f64>,
}

/// One look at the validation rows.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Evaluation {
    /// All rows first, then groups in the order of columns and values.
    pub figures: Vec<Figure>,
    /// Whether it is the best so far.
    pub best: bool,
}

/// How one optimiser step went.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Steps done, from 1.
    pub step: u64,
    /// Steps there will be, unless training stops early.
    pub total_steps: u64,
    /// Passes over the data, with fraction.
    pub epoch: f64,
    /// Training loss of the step.
    pub loss: f64,
    /// Learning rate that the step used.
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens computed in the step, without padding.
    pub tokens: u64,
    /// Training loss and accuracy of the step by named group.
    pub groups: Vec<Figure>,
    /// When it was due.
    pub evaluation: Option<Evaluation>,
    /// Rows of the run that lost tokens at their start.
    #[serde(default)]
    pub truncated_rows: u64,
    /// Whether no step follows: all done, or stopped early.
    pub last: bool,
}

/// What training made: an adapter or a whole model, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// `adapter_config.json`, or `config.json` of a full fine-tune.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`, or `model.safetensors` of a full fine-tune.
    pub tensors: Vec<u8>,
}

/// Why training cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A setting cannot be used with this model or data; the field is that of the request.
    #[error("{field}: {fault}")]
    Setting {
        /// Field of [`Settings`].
        field: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The rows cannot be used.
    #[error("{0}")]
    Data(String),
    /// The job cannot fit.
    #[error("needs about {needed} bytes, {available} are there")]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The loss is no number.
    #[error("the loss of step {step} is {loss}")]
    Diverged {
        /// From 1.
        step: u64,
        /// NaN or infinite.
        loss: f64,
    },
    /// A gradient is missing or no number.
    #[error("the gradient of {tensor} is {fault}")]
    Gradient {
        /// Name of the tensor.
        tensor: String,
        /// `missing` or `not finite`.
        fault: &'static str,
    },
    /// A checkpoint is not one of this job.
    #[error("the checkpoint {0}")]
    Checkpoint(String),
    /// It was told to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}
