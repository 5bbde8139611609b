//! Tiny models with random weights from a seed, written to disk as real ones are.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::config::Config;
use super::{Batch, CausalLm, KvCache, Rows, Segment};
use crate::lora::LoraBatch;

/// Grouped queries, a sliding window, heads of a size of their own; sizes are whole blocks of Q8_0.
pub(super) fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 96, "max_position_embeddings": 512,
        "sliding_window": 20, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": [2, 3]
    })
}

/// A Llama with biases, so that no path stays untried.
pub(super) fn llama() -> Value {
    let mut config = mistral();
    config["architectures"] = json!(["LlamaForCausalLM"]);
    config["model_type"] = json!("llama");
    config["attention_bias"] = json!(true);
    config["mlp_bias"] = json!(true);
    config
}

pub(super) fn tensors(config: &Config, seed: u64) -> BTreeMap<String, Tensor> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut random = |(name, shape): (String, Vec<usize>)| {
        let scale = (3.0 / *shape.last().unwrap() as f32).sqrt();
        let middle = if name.contains("norm") { 1.0 } else { 0.0 };
        let count = shape.iter().product();
        let data: Vec<f32> = (0..count).map(|_| middle + scale * rng.random_range(-1.0..1.0_f32)).collect();
        (name, Tensor::from_vec(data, shape, &Device::Cpu).unwrap())
    };
    config.tensors().into_iter().map(&mut random).collect()
}

/// Writes a model folder with `files` safetensors files.
pub(super) fn write(folder: &Path, config: &Value, tensors: &BTreeMap<String, Tensor>, files: usize) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    if files == 1 {
        let all: HashMap<_, _> = tensors.clone().into_iter().collect();
        return candle_core::safetensors::save(&all, folder.join("model.safetensors")).unwrap();
    }
    let mut map = BTreeMap::new();
    let mut shards = vec![HashMap::new(); files];
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        shards[i % files].insert(name.clone(), tensor.clone());
        map.insert(name.clone(), format!("part-{}.safetensors", i % files));
    }
    for (i, shard) in shards.iter().enumerate() {
        candle_core::safetensors::save(shard, folder.join(format!("part-{i}.safetensors"))).unwrap();
    }
    std::fs::write(folder.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
}

/// Logits of all rows of `chunks`, packed.
pub(super) fn forward(model: &dyn CausalLm, chunks: &[&[u32]], caches: &mut [&mut KvCache]) -> Vec<Vec<f32>> {
    let segments: Vec<_> = chunks.iter().map(|c| Segment { len: c.len(), logits: Rows::Last(c.len()) }).collect();
    let batch = Batch { tokens: &chunks.concat(), segments: &segments, lora: &LoraBatch::default() };
    model.forward(&batch, caches).unwrap().to_vec2().unwrap()
}

pub(super) fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}

/// Ids that look random and are the same each time.
pub(super) fn ids(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 31 + i * i * 7 + seed * 13) % 96) as u32).collect()
}
