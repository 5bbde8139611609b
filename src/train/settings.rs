//! What a fine-tuning job is told, checked.
//!
//! Plain values with their defaults; which of them fit a model or data set is found out when training begins. They are
//! written into the job's lineage as JSON.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Order;
use crate::dataset::{Dataset, Row, Split};

/// What is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The next token.
    CausalLm,
    /// A label of a text, by a trained head.
    SequenceClassification,
    /// A label of an image, by a trained head.
    ImageClassification,
}

impl Task {
    /// Returns whether rows have classes to be told apart.
    #[must_use]
    pub fn has_classes(self) -> bool {
        match self {
            Self::CausalLm => false,
            Self::SequenceClassification | Self::ImageClassification => true,
        }
    }
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
    /// A classification head on the frozen base model: rank 0.
    HeadOnly,
}

/// Some rows of a data set, drawn by their content: neither their order nor the other rows matter, and rows of the same
/// content are in or out together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subset {
    /// Parts to draw from, at least one.
    pub splits: Vec<Split>,
    /// Expected fraction of their rows, above 0, at most 1.
    pub fraction: f64,
    /// Changes which rows they are.
    pub seed: u64,
}

impl Subset {
    /// Returns whether a row is among them.
    #[must_use]
    pub fn contains(&self, row: &Row) -> bool {
        let digest = Sha256::new_with_prefix(self.seed.to_le_bytes()).chain_update(row.hash).finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        // 53 bits are a float without rounding, below 1.
        let place = (u64::from_be_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64;
        self.splits.contains(&row.split) && place < self.fraction
    }
}

/// What a run does with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It learns from it.
    Learn,
    /// It looks at it: evaluation, early stopping.
    Look,
    /// Nothing.
    Leave,
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
    /// Mirrors each image that is learnt from with probability ½; left out of the JSON when off, as `subset` is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_flip: bool,
    /// Steps after which the weights as they are then are wanted too, ascending, from 1; left out of the JSON when there
    /// are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish_steps: Vec<u64>,
    /// Learns from these rows only; `None`: from the train split. Left out of the JSON then, so that what was written
    /// before there were subsets says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<Subset>,
}

impl Settings {
    /// Returns what a run does with a row. Rows of a subset's splits that are not in it are left alone.
    #[must_use]
    pub fn use_of(&self, row: &Row) -> Use {
        match (&self.subset, row.split) {
            (Some(subset), split) if subset.splits.contains(&split) => {
                if subset.contains(row) {
                    Use::Learn
                } else {
                    Use::Leave
                }
            }
            (_, Split::Validation) => Use::Look,
            (None, Split::Train) => Use::Learn,
            (Some(_), Split::Train) | (_, Split::Test) => Use::Leave,
        }
    }

    /// Returns the hashes of the rows that the first `steps` steps of a run learn from; all steps for `None`.
    ///
    /// With packing, which depends on tokens, those are all rows that the whole run may learn from. A run that stopped
    /// early, or returned the weights of its best evaluation, may have seen fewer.
    #[must_use]
    pub fn learnt_rows(&self, dataset: &Dataset, steps: Option<u64>) -> BTreeSet<[u8; 32]> {
        let hashes = dataset.rows.iter().filter(|row| self.use_of(row) == Use::Learn).map(|row| row.hash);
        let hashes: Vec<[u8; 32]> = hashes.collect();
        match Order::unpacked(hashes.len(), self) {
            Ok(order) if !self.packing => {
                order.seen(steps).into_iter().filter_map(|row| hashes.get(row)).copied().collect()
            }
            Ok(_) | Err(_) => hashes.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::order::tests::settings;
    use super::*;
    use crate::dataset::Content;

    fn rows() -> Vec<Row> {
        let row = |number: u32| Row {
            content: Content::Text(String::new()),
            label: None,
            groups: Vec::new(),
            split: [Split::Train, Split::Validation, Split::Test][number as usize % 3],
            hash: Sha256::digest(number.to_le_bytes()).into(),
        };
        (0..3000).map(row).collect()
    }

    fn subset(fraction: f64, seed: u64) -> Subset {
        Subset { splits: vec![Split::Train, Split::Test], fraction, seed }
    }

    #[test]
    fn a_subset_has_about_its_share_and_grows_with_it() {
        let rows = rows();
        let of = |fraction, seed| {
            let subset = subset(fraction, seed);
            rows.iter().filter(|row| subset.contains(row)).map(|row| row.hash).collect::<BTreeSet<_>>()
        };
        // Binomial of 2000: five deviations.
        for (fraction, expected) in [(0.1, 200.0), (0.5, 1000.0), (0.9, 1800.0)] {
            let deviation = f64::sqrt(expected * (1.0 - fraction));
            assert!((of(fraction, 7).len() as f64 - expected).abs() < 5.0 * deviation, "{fraction}");
        }
        assert_eq!(of(1.0, 7).len(), 2000);
        assert!(of(0.1, 7).is_subset(&of(0.2, 7)));
        // Independent of each other: a quarter is in both halves.
        let both = of(0.5, 7).intersection(&of(0.5, 8)).count();
        assert!((400..600).contains(&both), "{both}");
    }

    #[test]
    fn a_row_is_learnt_from_looked_at_or_left() {
        let (rows, plain) = (rows(), settings());
        let uses = |settings: &Settings| rows.iter().take(3).map(|row| settings.use_of(row)).collect::<Vec<_>>();
        assert_eq!(uses(&plain), [Use::Learn, Use::Look, Use::Leave]);
        let all = Settings { subset: Some(subset(1.0, 1)), ..settings() };
        assert_eq!(uses(&all), [Use::Learn, Use::Look, Use::Learn]);
        let none = Settings { subset: Some(subset(1e-12, 1)), ..settings() };
        assert_eq!(uses(&none), [Use::Leave, Use::Look, Use::Leave]);
        let held = Subset { splits: vec![Split::Test], ..subset(1.0, 1) };
        assert_eq!(uses(&Settings { subset: Some(held), ..settings() }), [Use::Leave, Use::Look, Use::Learn]);
        let looked = Subset { splits: vec![Split::Validation], ..subset(0.5, 1) };
        let looked = Settings { subset: Some(looked), ..settings() };
        assert!(rows.iter().all(|row| looked.use_of(row) != Use::Look), "a row cannot be both");
    }

    #[test]
    fn settings_without_a_subset_are_written_as_before() {
        let text = serde_json::to_string(&settings()).unwrap();
        assert!(!text.contains("subset"));
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings());
        let with = Settings { subset: Some(subset(0.5, 3)), method: Method::HeadOnly, ..settings() };
        assert_eq!(serde_json::from_str::<Settings>(&serde_json::to_string(&with).unwrap()).unwrap(), with);
    }
}
