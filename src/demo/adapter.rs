//! Makes a PEFT folder with random weights for SmolLM2-135M, as a stream of upload messages.
//!
//! It is not trained: it moves the model's answers somewhere, and the same seed moves them to the same place. Trained
//! adapters come from `peft`. Shapes are those of the published configuration of SmolLM2-135M.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::rpc::pb::{FileChunk, FileInfo, UploadAdapterHeader, UploadAdapterRequest, upload_adapter_request};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
/// Module and size of its output.
const TARGETS: [(&str, usize); 2] = [("q_proj", 576), ("v_proj", 192)];
const RANK: usize = 8;
const ALPHA: usize = 16;
/// Half the width of B's uniform distribution: enough to change words, not enough to lose the language.
const SPREAD: f32 = 0.05;
const CHUNK: usize = 1 << 20;

/// Returns the messages that upload an adapter drawn from `seed` as `name`.
pub(super) fn random(name: &str, seed: u64) -> anyhow::Result<Vec<UploadAdapterRequest>> {
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": TARGETS.map(|(module, _)| module),
        "bias": "none",
    });
    let files =
        [("adapter_config.json", serde_json::to_vec_pretty(&config)?), ("adapter_model.safetensors", tensors(seed)?)];
    let infos = files.iter().map(|(name, bytes)| FileInfo {
        name: (*name).into(),
        size: bytes.len() as u64,
        sha256: hex::encode(Sha256::digest(bytes)),
    });
    let header = UploadAdapterHeader { name: name.into(), files: infos.collect(), ..UploadAdapterHeader::default() };
    let mut parts = vec![upload_adapter_request::Part::Header(header)];
    for (name, bytes) in &files {
        for (i, data) in bytes.chunks(CHUNK).enumerate() {
            let chunk = FileChunk { name: (*name).into(), offset: (i * CHUNK) as u64, data: data.to_vec() };
            parts.push(upload_adapter_request::Part::Chunk(chunk));
        }
    }
    Ok(parts.into_iter().map(|part| UploadAdapterRequest { part: Some(part) }).collect())
}

/// Writes A `[rank, hidden]` and B `[output, rank]` of every layer under PEFT's names.
fn tensors(seed: u64) -> anyhow::Result<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |count: usize, half_width: f32| -> Vec<u8> {
        (0..count).flat_map(|_| rng.random_range(-half_width..half_width).to_le_bytes()).collect()
    };
    let mut stored = BTreeMap::new();
    for layer in 0..LAYERS {
        for (module, output) in TARGETS {
            let path = format!("base_model.model.model.layers.{layer}.self_attn.{module}");
            let a = draw(RANK * HIDDEN, (1.0 / HIDDEN as f32).sqrt());
            stored.insert(format!("{path}.lora_A.weight"), ([RANK, HIDDEN], a));
            stored.insert(format!("{path}.lora_B.weight"), ([output, RANK], draw(output * RANK, SPREAD)));
        }
    }
    let views = stored
        .iter()
        .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    Ok(safetensors::serialize(views, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_adapter_that_differs_from_the_next_seeds() {
        assert_eq!(tensors(1).unwrap(), tensors(1).unwrap());
        assert_ne!(tensors(1).unwrap(), tensors(2).unwrap());
        let bytes = tensors(1).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), LAYERS * TARGETS.len() * 2);
    }

    #[test]
    fn chunks_put_together_are_the_files() {
        let messages = random("x", 1).unwrap();
        let Some(upload_adapter_request::Part::Header(header)) = &messages[0].part else { panic!("no header") };
        for file in &header.files {
            let mut bytes = Vec::new();
            for message in &messages[1..] {
                let Some(upload_adapter_request::Part::Chunk(chunk)) = &message.part else { panic!("two headers") };
                if chunk.name == file.name {
                    assert_eq!(chunk.offset, bytes.len() as u64);
                    bytes.extend_from_slice(&chunk.data);
                }
            }
            assert_eq!(file.size, bytes.len() as u64);
            assert_eq!(file.sha256, hex::encode(Sha256::digest(&bytes)));
        }
    }
}
