//! Writes the `config.json` of a fine-tuned model, for every transformers that reads its architecture.
//!
//! What stands in the base's own file is kept; what decides the result is written out in the words of both generations
//! (`rope_parameters` and `dtype` of transformers 5, `rope_theta`, `rope_scaling` and `torch_dtype` of 4). Knows no
//! tensor and no file.

use candle_transformers::models::llama::{Llama3RopeConfig, Llama3RopeType};
use serde_json::{Map, Value, json};

use super::{Config, RopeScaling};

/// Scalings of the published Llama 3.1 to 3.3: the only ones of which GGUF files store factors.
const LLAMA3_FACTORS: [f32; 2] = [8.0, 32.0];

impl Config {
    /// Returns a configuration of the same architecture with f32 weights; with `labels`, of its classifier.
    ///
    /// # Errors
    /// Names what Hugging Face's format has no words for.
    pub(in crate::model) fn written(&self, labels: Option<&[String]>) -> Result<Map<String, Value>, String> {
        let mistral = self.architecture.starts_with("Mistral");
        let (model_type, family) = if mistral { ("mistral", "Mistral") } else { ("llama", "Llama") };
        let architecture = match labels {
            Some(_) => format!("{family}ForSequenceClassification"),
            None => self.architecture.clone(),
        };
        let ids = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        let mut map = self.source.clone().unwrap_or_default();
        let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
        set("architectures", json!([architecture]));
        set("model_type", json!(model_type));
        set("hidden_act", json!("silu"));
        set("vocab_size", json!(self.vocab_size));
        set("hidden_size", json!(self.hidden_size));
        set("intermediate_size", json!(self.intermediate_size));
        set("num_hidden_layers", json!(self.layers));
        set("num_attention_heads", json!(self.heads));
        set("num_key_value_heads", json!(self.kv_heads));
        set("head_dim", json!(self.head_dim));
        set("max_position_embeddings", json!(self.context_length));
        set("rms_norm_eps", json!(self.rms_norm_eps));
        set("tie_word_embeddings", json!(self.tied));
        set("eos_token_id", ids);
        set("pad_token_id", json!(self.pad_token_id));
        set("dtype", json!("float32"));
        set("torch_dtype", json!("float32"));
        if mistral {
            set("sliding_window", json!(self.sliding_window));
        } else {
            set("attention_bias", json!(self.attention_bias));
            set("mlp_bias", json!(self.mlp_bias));
        }
        let (scaling, mut parameters) = self.written_rope()?;
        set("rope_theta", json!(self.rope_theta));
        set("rope_scaling", scaling);
        parameters.insert("rope_theta".to_owned(), json!(self.rope_theta));
        set("rope_parameters", Value::Object(parameters));
        if let Some(labels) = labels {
            let numbered = labels.iter().enumerate();
            set("id2label", Value::Object(numbered.clone().map(|(i, name)| (i.to_string(), json!(name))).collect()));
            set("label2id", Value::Object(numbered.map(|(i, name)| (name.clone(), json!(i))).collect()));
        }
        for key in ["num_labels", "auto_map", "_name_or_path"] {
            map.remove(key);
        }
        if labels.is_some() {
            // The caller knows it.
            map.remove("problem_type");
        }
        Ok(map)
    }

    /// Returns `rope_scaling` and `rope_parameters`, the latter without its base.
    fn written_rope(&self) -> Result<(Value, Map<String, Value>), String> {
        let scaling = match &self.rope_scaling {
            RopeScaling::Factors(_) => self.llama3_of_factors()?,
            RopeScaling::Default | RopeScaling::Linear(_) | RopeScaling::Llama3(_) => self.rope_scaling.clone(),
        };
        let mut map = Map::new();
        let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
        match scaling {
            RopeScaling::Default | RopeScaling::Factors(_) => {
                set("rope_type", json!("default"));
                return Ok((Value::Null, map));
            }
            RopeScaling::Linear(factor) => {
                set("rope_type", json!("linear"));
                set("factor", json!(factor));
            }
            RopeScaling::Llama3(llama3) => {
                set("rope_type", json!("llama3"));
                set("factor", json!(llama3.factor));
                set("low_freq_factor", json!(llama3.low_freq_factor));
                set("high_freq_factor", json!(llama3.high_freq_factor));
                set("original_max_position_embeddings", json!(llama3.original_max_position_embeddings));
            }
        }
        Ok((Value::Object(map.clone()), map))
    }

    /// Finds the scaling whose frequencies are those of a GGUF file's factors.
    fn llama3_of_factors(&self) -> Result<RopeScaling, String> {
        let own = self.rope_frequencies();
        let scaled = LLAMA3_FACTORS.map(|factor| {
            RopeScaling::Llama3(Llama3RopeConfig {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192,
                rope_type: Llama3RopeType::Llama3,
            })
        });
        let same = |scaling: &RopeScaling| {
            let other = Self { rope_scaling: scaling.clone(), ..self.clone() };
            super::full::same_frequencies(&own, &other.rope_frequencies())
        };
        let found = scaled.into_iter().find(same);
        found.ok_or_else(|| "rope factors that are not those of a published Llama in a config.json".to_owned())
    }
}
