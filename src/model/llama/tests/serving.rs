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
        let half = |var: Var| (var.as_tensor() * 0.5).unwrap().detach();
        let (a, b) = (half(values(&[site.input, rank], from)), half(values(&[rank, site.output], from + 1)));
        let delta = LinearDelta::new(a, b, 2.0);
        (SiteId(id), Change::Linear(delta))
    };
    Arc::new(Adapter::settled(sites.map(change).collect(), model).unwrap())
}

/// The logits of the last row of each sequence in each step; slots have room for `adapter_bytes`.
fn served(config: &serde_json::Value, device: &str, dtype: &str, adapter_bytes: Option<u64>) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), config, &tensors(&parsed, 7), 1);
    let mut model = open(folder.path(), device, dtype).unwrap();
    let kv_bytes = Some(1 << 20);
    let reserve = Reserve { kv_bytes, rows: 64, sequences: 4, adapter_bytes, job_bytes: Some(1 << 20), spare_bytes: 0 };
    model.reserve(&reserve).unwrap();
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
fn on_gpu_a_sequence_that_begins_with_pages_of_another_goes_its_own_way() {
    let config = mistral();
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), &config, &tensors(&parsed, 7), 1);
    let mut model = open(folder.path(), "cuda", "f32").unwrap();
    let kv_bytes = Some(1 << 20);
    let reserve = Reserve { kv_bytes, rows: 64, sequences: 4, adapter_bytes: None, job_bytes: Some(0), spare_bytes: 0 };
    model.reserve(&reserve).unwrap();
    let last = |cache: &mut KvCache, tokens: &[u32]| {
        let segments = [Segment { len: tokens.len(), logits: Rows::Last(1) }];
        let batch = Batch { tokens, segments: &segments, lora: &LoraBatch::default() };
        model.forward(&batch, &mut [cache]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let alike = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 10.0 * ROUNDING);
    let (prompt, other) = (ids(30, 1), ids(9, 2));
    let mut whole = model.new_cache();
    last(&mut whole, &prompt);
    assert!(whole.is_whole());
    // In the middle of a page, and at its end.
    for begin in [21, 16] {
        let mut branch = whole.copy(begin).unwrap();
        assert_eq!(branch.len(), begin);
        let continued = last(&mut branch, &other);
        let mut alone = model.new_cache();
        assert!(alike(continued, last(&mut alone, &[&prompt[..begin], &other].concat())));
    }
    // The one that was there first is what it was.
    let mut alone = model.new_cache();
    assert!(alike(last(&mut whole, &other), last(&mut alone, &[&prompt[..], &other].concat())));
}

/// The bytes that both adapters take in slots.
fn both(config: &serde_json::Value, number: usize) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), config, &tensors(&parsed, 7), 1);
    let model = open(folder.path(), "cpu", "f32").unwrap();
    let all = [adapter(&model, 3, 1), adapter(&model, 8, 5)];
    let numbers = |adapter: &Arc<Adapter>| {
        let sides = |change: &Change| match change {
            Change::Linear(delta) => {
                delta.a.elem_count().next_multiple_of(8) + delta.b.elem_count().next_multiple_of(8)
            }
            Change::Embedding { .. } | Change::Replaced { .. } | Change::Bias(_) => 0,
        };
        adapter.changes().values().map(sides).sum::<usize>()
    };
    (all.iter().map(numbers).sum::<usize>() * number) as u64
}

#[test]
fn on_gpu_steps_have_the_logits_of_the_cpu() {
    for config in [mistral(), llama()] {
        let expected = served(&config, "cpu", "f32", None);
        let most = expected.iter().flatten().fold(0.0, |most: f32, logit| most.max(logit.abs()));
        // bf16 has 8 bits, and two blocks round about twenty times.
        for (dtype, number, tolerance) in [("f32", 4, 10.0 * ROUNDING), ("bf16", 2, 0.05 * most)] {
            let both = both(&config, number);
            // Room for more than both; for just both; for one of them; for none, which then are tensors of their own.
            for room in [None, Some(both), Some(both - 1), Some(number as u64)] {
                let got = served(&config, "cuda", dtype, room);
                for (row, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let difference = got.iter().zip(expected).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
                    assert!(difference < tolerance, "{dtype}, {room:?}, row {row}: {difference} of {most}");
                }
            }
        }
    }
}

#[test]
fn on_gpu_a_plan_that_does_not_fit_is_refused() {
    let config = mistral();
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), &config, &tensors(&parsed, 7), 1);
    let mut model = open(folder.path(), "cuda", "f32").unwrap();
    let kv_bytes = Some(1 << 20);
    let reserve =
        |jobs| Reserve { kv_bytes, rows: 8, sequences: 2, adapter_bytes: None, job_bytes: jobs, spare_bytes: 0 };
    let fault = model.reserve(&reserve(Some(1 << 50))).unwrap_err().to_string();
    assert!(fault.contains("jobs.memory_bytes") && fault.contains(&(1_u64 << 50).to_string()), "{fault}");
    model.reserve(&reserve(Some(3 << 20))).unwrap();
    assert_eq!(model.reserved().unwrap().jobs, 3 << 20);
}
