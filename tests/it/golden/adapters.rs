//! `golden_adapters`: PEFT adapters, sound and broken, against peft.
//!
//! Cases whose base model is not under `language/` are left out: no vision model exists yet. Tolerances are those of
//! the README beside the values: 5e-4 for logits; an effect is a difference of two of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use evenkeel::lora::{Adapter, Base, LoraBatch, Run};
use evenkeel::model::{Batch, CausalLm, Llama, Rows, Segment, open};
use serde_json::Value;

use super::{Tally, cases, json, root, tensors};

const TOLERANCE: f64 = 5e-4;

#[test]
fn golden_adapters() {
    let mut tally = Tally::new("golden_adapters");
    let mut bases = Bases::default();
    for folder in cases("adapters", "expected.json") {
        let expected = json(&folder.join("expected.json"));
        let Some(base) = bases.get(expected["base"].as_str().unwrap()) else { continue };
        tally.case();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let mut case = Case { name, base, values: tensors(&folder.join("expected.safetensors")), tally: &mut tally };
        match expected["rows"].as_array() {
            Some(rows) => case.mixed(rows, folder.parent().unwrap()),
            None => case.single(&folder, &expected),
        }
    }
    broken(&mut tally, &mut bases);
    tally.finish();
}

/// Base models by folder below the root.
#[derive(Default)]
struct Bases(BTreeMap<String, Arc<Llama>>);

impl Bases {
    fn get(&mut self, base: &str) -> Option<Arc<Llama>> {
        if !base.starts_with("language/") {
            return None;
        }
        let load = || Arc::new(open(&root().join(base), "cpu", "f32").unwrap_or_else(|e| panic!("{base}: {e}")));
        Some(self.0.entry(base.to_owned()).or_insert_with(load).clone())
    }
}

/// Reads a folder as the server does: two files by name, whatever else is there.
fn load(folder: &Path, base: &Llama) -> Result<Adapter, String> {
    let read = |file: &str| std::fs::read(folder.join(file)).map_err(|e| format!("{file}: {e}"));
    let (config, weights) = (read("adapter_config.json")?, read("adapter_model.safetensors")?);
    base.load_adapter(&config, &weights).map_err(|e| e.to_string())
}

/// The rows of `input_ids`, less what the mask leaves out.
fn sequences(values: &std::collections::HashMap<String, Tensor>) -> Vec<Vec<u32>> {
    let ids: Vec<Vec<i64>> = values["input_ids"].to_vec2().unwrap();
    let mask = values.get("attention_mask");
    let mask: Vec<Vec<i64>> = mask.map_or_else(|| vec![vec![1; ids[0].len()]; ids.len()], |m| m.to_vec2().unwrap());
    let kept = |(row, mask): (&Vec<i64>, &Vec<i64>)| {
        row.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect()
    };
    ids.iter().zip(&mask).map(kept).collect()
}

/// Runs whole sequences as one packed batch, each with its adapter and factor; shaped as the expected logits.
fn logits(base: &Llama, sequences: &[Vec<u32>], adapters: &[Option<Arc<Adapter>>], scale: f32) -> Tensor {
    let mut lora = LoraBatch::default();
    let mut start = 0;
    for (sequence, adapter) in sequences.iter().zip(adapters) {
        let rows = start..start + sequence.len();
        start = rows.end;
        lora.runs.extend(adapter.clone().map(|adapter| Run { adapter, rows, scale }));
    }
    let segments: Vec<_> = sequences.iter().map(|s| Segment { len: s.len(), logits: Rows::Last(s.len()) }).collect();
    let batch = Batch { tokens: &sequences.concat(), segments: &segments, lora: &lora };
    if base.info().labels.is_some() {
        return base.classify(&batch).unwrap();
    }
    let mut caches: Vec<_> = sequences.iter().map(|_| base.new_cache()).collect();
    let flat = base.forward(&batch, &mut caches.iter_mut().collect::<Vec<_>>()).unwrap();
    flat.reshape((sequences.len(), sequences[0].len(), ())).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    difference.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

struct Case<'a> {
    name: String,
    base: Arc<Llama>,
    values: std::collections::HashMap<String, Tensor>,
    tally: &'a mut Tally,
}

impl Case<'_> {
    fn close(&mut self, key: &str, got: &Tensor) {
        let expected = self.values[key].clone();
        self.tally.close(&format!("{} {key}", self.name), got, &expected, TOLERANCE);
    }

    fn single(&mut self, folder: &Path, expected: &Value) {
        let adapter = match load(folder, &self.base) {
            Ok(adapter) => Arc::new(adapter),
            Err(error) => return self.tally.fault(format!("{}: {error}", self.name)),
        };
        self.modules(&adapter, expected);
        let sequences = sequences(&self.values);
        // One run over all rows, and one run a sequence: the two ways through the product.
        let run = |scale: f32| logits(&self.base, &sequences, &vec![Some(adapter.clone()); sequences.len()], scale);
        let got = run(1.0);
        let alone: Vec<_> = sequences
            .iter()
            .map(|s| logits(&self.base, std::slice::from_ref(s), &[Some(adapter.clone())], 1.0))
            .collect();
        let plain = logits(&self.base, &sequences, &vec![None; sequences.len()], 1.0);

        let scaled: Vec<(String, Tensor)> = self
            .values
            .keys()
            .filter_map(|key| Some((key.clone(), run(key.strip_prefix("logits_scale_")?.parse().unwrap()))))
            .collect();
        self.close("logits", &got);
        self.close("logits", &Tensor::cat(&alone, 0).unwrap());
        for (key, got) in &scaled {
            self.close(key, got);
        }
        if self.values.contains_key("probs") {
            let probs = candle_nn::ops::softmax(&got, D::Minus1).unwrap();
            self.close("probs", &probs);
        }
        // Where merging gives another model (tied embeddings), the values say so themselves.
        let merged_is_same = expected["merged_vs_adapter"].as_f64().is_some_and(|distance| distance < TOLERANCE / 2.0);
        if merged_is_same && self.values.contains_key("merged_logits") {
            self.close("merged_logits", &got);
        }
        self.merged(folder, expected, &sequences);
        // Absent where the compact copy holds a part of the input only.
        if let Some(effect) = expected["effect_max_abs"].as_f64() {
            let what = format!("{} effect_max_abs", self.name);
            self.tally.close_slices(&what, &[largest_difference(&got, &plain)], &[effect], 2.0 * TOLERANCE);
        }
        let base = root().join("adapters/base_logits").join(expected["base"].as_str().unwrap().replace('/', "__"));
        let base = tensors(&base.with_extension("safetensors"));
        self.tally.close(&format!("{} base logits", self.name), &plain, &base["logits"], TOLERANCE);
    }

    /// The whole model that peft made of base and adapter, read as a model of its own.
    fn merged(&mut self, folder: &Path, expected: &Value, sequences: &[Vec<u32>]) {
        let weights = folder.join("merged.safetensors");
        if !weights.is_file() {
            return;
        }
        let whole = tempfile::tempdir().unwrap();
        let config = root().join(expected["base"].as_str().unwrap()).join("config.json");
        std::fs::copy(config, whole.path().join("config.json")).unwrap();
        std::fs::copy(weights, whole.path().join("model.safetensors")).unwrap();
        let model = open(whole.path(), "cpu", "f32").unwrap();
        let got = logits(&model, sequences, &vec![None; sequences.len()], 1.0);
        self.close("merged_logits", &got);
    }

    /// Compares which modules are adapted, and their rank, alpha and scaling.
    fn modules(&mut self, adapter: &Adapter, expected: &Value) {
        let expected = expected["modules"].as_object().unwrap();
        let sites = self.base.sites();
        let mut got = BTreeMap::new();
        for (id, change) in adapter.changes() {
            if let Some((rank, scaling)) = change.rank_and_scaling() {
                got.insert(sites[id.0].path.clone(), (rank, scaling));
            }
        }
        let paths: Vec<&String> = got.keys().collect();
        let mut expected_paths: Vec<&String> = expected.keys().collect();
        expected_paths.sort();
        self.tally.equal(&format!("{} modules", self.name), &paths, &expected_paths);
        for (path, (rank, scaling)) in &got {
            let Some(expected) = expected.get(path) else { continue };
            let number = |key: &str| expected[key].as_f64().unwrap();
            // alpha is not kept: it is what the scaling was made of, by one rule or the other.
            let r = *rank as f64;
            let alphas = [scaling * r, scaling * r.sqrt()];
            let alpha = alphas.into_iter().min_by_key(|a| ((a - number("alpha")).abs() * 1e9) as u64).unwrap();
            let expected = [number("r"), number("scaling"), number("alpha")];
            self.tally.close_slices(&format!("{} {path}", self.name), &[r, *scaling, alpha], &expected, 1e-9);
        }
    }

    /// Runs one packed batch in which every sequence has its own adapter, or none.
    fn mixed(&mut self, rows: &[Value], adapters: &Path) {
        let mut loaded = BTreeMap::new();
        let adapter = |row: &Value| {
            let folder = adapters.join(row.as_str().unwrap());
            let exists = folder.join("adapter_config.json").is_file();
            let load = || Arc::new(load(&folder, &self.base).unwrap());
            exists.then(|| loaded.entry(folder.clone()).or_insert_with(load).clone())
        };
        let adapters: Vec<Option<Arc<Adapter>>> = rows.iter().map(adapter).collect();
        assert!(adapters.iter().any(Option::is_none) && loaded.len() > 1, "{}: nothing is mixed", self.name);
        let got = logits(&self.base, &sequences(&self.values), &adapters, 1.0);
        self.close("logits", &got);
    }
}

/// Reads every broken adapter; what may be read has to give the logits of the sound one.
fn broken(tally: &mut Tally, bases: &mut Bases) {
    let folder = root().join("adapters_broken");
    // Another set may have none.
    if !folder.join("manifest.json").is_file() {
        return;
    }
    let manifest = json(&folder.join("manifest.json"));
    let base = bases.get(manifest["base"].as_str().unwrap()).unwrap();
    let sound = root().join(manifest["sound_original"].as_str().unwrap());
    let values = tensors(&sound.join("expected.safetensors"));
    for (name, case) in manifest["cases"].as_object().unwrap() {
        // The compact set may hold a part of the cases.
        if !folder.join(name).is_dir() {
            continue;
        }
        tally.case();
        let should = case["should"].as_str().unwrap();
        let started = std::time::Instant::now();
        let result = load(&folder.join(name), &base);
        tally.equal(&format!("{name}: a second is enough"), &(started.elapsed().as_secs() < 1), &true);
        match (result, should) {
            (Err(error), "reject" | "reject_or_same") => {
                println!("{name}: {error}");
                tally.equal(&format!("{name}: the message is short"), &(1..1000).contains(&error.len()), &true);
            }
            (Err(error), _) => tally.fault(format!("{name}: was refused: {error}")),
            (Ok(_), "reject") => tally.fault(format!("{name}: was accepted")),
            (Ok(adapter), _) => {
                println!("{name}: accepted");
                let sequences = sequences(&values);
                let got = logits(&base, &sequences, &vec![Some(Arc::new(adapter)); sequences.len()], 1.0);
                tally.close(&format!("{name} logits"), &got, &values["logits"], TOLERANCE);
            }
        }
    }
}
