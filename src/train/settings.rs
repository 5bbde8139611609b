//! What a fine-tuning job is told, checked.
//!
//! Plain values with their defaults; which of them fit a model or data set is found out when training begins. They are
//! written into the job's lineage as JSON.

use serde::{Deserialize, Serialize};

/// What is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The next token.
    CausalLm,
    /// A label of a text, by a trained head.
    SequenceClassification,
}

/// Which layers get low-rank matrices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Targets {
    /// Every linear layer of the blocks (peft's `all-linear`).
    AllLinear,
    /// Layers of these names: whole paths, or what follows a dot.
    Modules(Vec<String>),
}

/// A LoRA or DoRA adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    /// 1 or more.
    pub rank: usize,
    /// `lora_alpha`: the change is scaled by alpha/rank, or alpha/√rank with `rslora`.
    pub alpha: f64,
    /// Rank-stabilised scaling (Kalajdzievski 2023).
    pub rslora: bool,
    /// Weight decomposition (Liu et al. 2024).
    pub dora: bool,
    /// Probability that an input of A is dropped, 0 to below 1.
    pub dropout: f64,
    /// Which layers.
    pub targets: Targets,
    /// Numbers of the blocks to adapt; empty is all.
    pub layers: Vec<usize>,
    /// Further modules that are trained whole (`modules_to_save`); a new classification head always is.
    pub modules_to_save: Vec<String>,
}

/// Which weights are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Low-rank matrices beside frozen weights.
    Lora(LoraSettings),
    /// All of them.
    Full,
}

/// Learning rate after the warm-up (transformers `get_scheduler`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls to 0 in a line.
    Linear,
    /// Falls to 0 in half a cosine.
    Cosine,
}

/// How the losses of the micro-batches of a step are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Over all label tokens (or rows) of the step (transformers from 4.46).
    Tokens,
    /// Mean of the means of the micro-batches (transformers up to 4.45).
    MicroBatches,
}

/// How long training goes on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Passes over the training rows, above 0.
    Epochs(f64),
    /// Optimiser steps, 1 or more.
    Steps(u64),
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What is learnt.
    pub task: Task,
    /// Which weights.
    pub method: Method,
    /// How long.
    pub length: Length,
    /// Rows (or packed sequences) of a micro-batch, 1 or more.
    pub batch_size: usize,
    /// Micro-batches of a step, 1 or more.
    pub accumulation: usize,
    /// Longest sequence in tokens; a longer row loses tokens from its start, never of its answer.
    pub max_tokens: usize,
    /// Puts several rows into one sequence; they do not see each other.
    pub packing: bool,
    /// Learns prompts too, not only completions and assistant turns.
    pub train_on_prompt: bool,
    /// Largest learning rate, above 0.
    pub learning_rate: f64,
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// Steps in which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// Decoupled; biases and norms are left out, as transformers' Trainer does.
    pub weight_decay: f64,
    /// AdamW β₁, 0 to below 1.
    pub beta1: f64,
    /// AdamW β₂, 0 to below 1.
    pub beta2: f64,
    /// AdamW ε, above 0.
    pub epsilon: f64,
    /// Gradients are scaled down to this norm; 0 is off.
    pub max_grad_norm: f64,
    /// Averaging of the loss.
    pub average: Average,
    /// Computes each block again for its backward; `None`: when memory needs it.
    pub recompute: Option<bool>,
    /// Steps between evaluations; 0: at the end only, where there are validation rows.
    pub eval_every: u64,
    /// Evaluations without a better loss after which training stops; 0 is off.
    pub patience: u64,
    /// Returns the weights of the best evaluation instead of the last.
    pub keep_best: bool,
    /// Order of rows, initial values, dropout.
    pub seed: u64,
    /// Group columns whose loss and accuracy are reported.
    pub groups: Vec<String>,
}
