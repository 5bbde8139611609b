//! Compares the configuration of a whole fine-tuned model with that of the base whose weights it is to replace.
//!
//! Reads no tensor. What the blocks compute has to be the same, number by number; the head may be another one.

use super::{Config, Fault, Head};
use crate::lora::LoraError;
use crate::lora::full::Full;

/// Largest relative difference of two rope frequencies that are the same: a GGUF file stores factors rounded to f32.
const SAME_FREQUENCY: f32 = 1e-5;

impl Config {
    /// Reads the `config.json` of a model that may take the place of this one's weights.
    ///
    /// # Errors
    /// Names the fault, the unsupported feature, or the key that differs.
    pub(in crate::model) fn replaced_by(&self, config: &[u8]) -> Result<Full, LoraError> {
        let other = Self::parse(config).map_err(|fault| match fault {
            Fault::Invalid(fault) => LoraError::Invalid(format!("config.json: {fault}")),
            Fault::Unsupported(what) => LoraError::Unsupported(what),
        })?;
        if let Some(key) = self.difference(&other) {
            return Err(LoraError::Mismatch(format!("config.json: `{key}` is not that of this base model")));
        }
        Ok(Full { canonical: other.canonical(), tied: other.tied, classes: other.classes })
    }

    /// Returns the first key that says something else about what is computed.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let heads = match (self.head, other.head) {
            (Head::Language, _) => true,
            (Head::Classifier(_), Head::Language) => false,
            (Head::Classifier(own), Head::Classifier(brought)) => own == brought,
        };
        // Only a classifier's result depends on the padding token, and this base's is fixed.
        let padding = self.head == Head::Language || self.pad_token_id == other.pad_token_id;
        #[expect(clippy::cast_possible_truncation, reason = "a GGUF file stores it as f32")]
        let eps = |config: &Self| (config.rms_norm_eps as f32).to_bits();
        let checks = [
            ("hidden_size", self.hidden_size == other.hidden_size),
            ("intermediate_size", self.intermediate_size == other.intermediate_size),
            ("num_hidden_layers", self.layers == other.layers),
            ("num_attention_heads", self.heads == other.heads),
            ("num_key_value_heads", self.kv_heads == other.kv_heads),
            ("head_dim", self.head_dim == other.head_dim),
            ("vocab_size", self.vocab_size == other.vocab_size),
            ("rms_norm_eps", eps(self) == eps(other)),
            ("rope_parameters", same_frequencies(&self.rope_frequencies(), &other.rope_frequencies())),
            ("sliding_window", self.sliding_window == other.sliding_window),
            ("attention_bias", self.attention_bias == other.attention_bias),
            ("mlp_bias", self.mlp_bias == other.mlp_bias),
            ("id2label", heads),
            ("pad_token_id", padding),
        ];
        checks.into_iter().find(|(_, same)| !same).map(|(key, _)| key)
    }
}

pub(super) fn same_frequencies(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= SAME_FREQUENCY * a.abs())
}
