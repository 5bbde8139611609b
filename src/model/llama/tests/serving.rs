//! Steps on a GPU against the same steps on the CPU: chunks of prompts, then steps that are recorded, beside adapters.

use std::sync::Arc;

use candle_core::Var;

use super::learning::values;
use super::*;
use crate::lora::{Adapter, Change, LinearDelta, LoraBatch, Run, SiteId};
use crate::model::{Batch, Reserve, Rows, Segment};

/// Low ranks on all linear layers of the blocks.
fn adapter(model: &Llama, rank: usize, seed: u64) -> Arc<Adapter> {
    let sites = model.sites().iter().enumerate().filter(|(_, site)| site.kind == SiteKind::Linear);
    let change = |(id, site): (usize, &crate::lora::Site)| {
        let from = seed + 10 * id as u64;
        let on = |var: Var| var.to_device(&model.device).unwrap();
        let (a, b) = (on(values(&[site.input, rank], from)), on(values(&[rank, site.output], from + 1)));
        let (a, b) = ((a * 0.5).unwrap(), (b * 0.5).unwrap());
        let delta = LinearDelta { a, b, b_bias: None, scaling: 2.0, magnitude: None, bias: None };
        (SiteId(id), Change::Linear(delta))
    };
    Arc::new(Adapter::unnamed(sites.map(change).collect()))
}

/// The logits of the last row of each sequence in each step.
fn served(config: &serde_json::Value, device: &str, dtype: &str) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), config, &tensors(&parsed, 7), 1);
    let mut model = open(folder.path(), device, dtype).unwrap();
    model.reserve(&Reserve { kv_bytes: Some(1 << 20), rows: 64, sequences: 4 }).unwrap();
    let adapters = [adapter(&model, 3, 1), adapter(&model, 8, 5)];
    let mut caches: Vec<_> = (0..3).map(|_| model.new_cache()).collect();
    let mut all = Vec::new();
    // Two steps of one token each are one recording, which runs with other adapters in the end.
    for (step, lengths) in [[30, 1, 17], [1, 1, 1], [1, 1, 1], [1, 20, 2], [1, 1, 1]].into_iter().enumerate() {
        let tokens: Vec<u32> = (0..3).flat_map(|i| ids(lengths[i], 3 * step + i)).collect();
        let segments = lengths.map(|len| Segment { len, logits: Rows::Last(1) });
        let swapped = usize::from(step == 4);
        let own =
            |of: usize, rows: std::ops::Range<usize>| Run { adapter: Arc::clone(&adapters[of]), rows, scale: 1.0 };
        let last = tokens.len() - lengths[2]..tokens.len();
        let runs = vec![own(swapped, 0..lengths[0]), own(1 - swapped, last)];
        let batch = Batch { tokens: &tokens, segments: &segments, lora: &LoraBatch { runs, dropout: None } };
        let logits = model.forward(&batch, &mut caches.iter_mut().collect::<Vec<_>>()).unwrap();
        all.extend(logits.to_vec2::<f32>().unwrap());
    }
    all
}

#[test]
fn on_gpu_steps_have_the_logits_of_the_cpu() {
    for config in [mistral(), llama()] {
        let expected = served(&config, "cpu", "f32");
        let most = expected.iter().flatten().fold(0.0, |most: f32, logit| most.max(logit.abs()));
        // bf16 has 8 bits, and two blocks round about twenty times.
        for (dtype, tolerance) in [("f32", 10.0 * ROUNDING), ("bf16", 0.05 * most)] {
            let got = served(&config, "cuda", dtype);
            for (row, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let difference = got.iter().zip(expected).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
                assert!(difference < tolerance, "{dtype}, row {row}: {difference} of {most}");
            }
        }
    }
}
