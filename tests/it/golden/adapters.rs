//! `golden_adapters`: PEFT adapters, sound and broken, against peft.
//!
//! Tolerances are those of the README beside the values: 5e-4 for logits, 1e-3 where attention is by cosines; an effect
//! is a difference of two of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use evenkeel::lora::{Adapter, LoraBatch, Run};
use evenkeel::model::{BaseModel, Batch, CausalLm, Llama, Rows, Segment};
use serde_json::Value;

use super::{Subject, Tally, cases, json, root, tensors, vision};

#[test]
fn golden_adapters() {
    let mut tally = Tally::new("golden_adapters");
    let mut bases = Bases::default();
    for folder in cases("adapters", "expected.json") {
        let expected = json(&folder.join("expected.json"));
        let name_of_base = expected["base"].as_str().unwrap();
        let base = bases.get(name_of_base);
        tally.case();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let tolerance = match &base {
            Subject::Language(_) => 5e-4,
            Subject::Images(_) => vision::tolerance(&root().join(name_of_base)),
        };
        let values = tensors(&folder.join("expected.safetensors"));
        let mut case = Case { name, base, values, tolerance, tally: &mut tally };
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
struct Bases(BTreeMap<String, Subject>);

impl Bases {
    fn get(&mut self, base: &str) -> Subject {
        self.0.entry(base.to_owned()).or_insert_with(|| Subject::open(base)).clone()
    }
}

/// Reads a folder as the server does: two files by name, whatever else is there.
fn load(folder: &Path, base: &Subject) -> Result<Adapter, String> {
    let read = |file: &str| std::fs::read(folder.join(file)).map_err(|e| format!("{file}: {e}"));
    let (config, weights) = (read("adapter_config.json")?, read("adapter_model.safetensors")?);
    base.model().load_adapter(&config, &weights).map_err(|e| e.to_string())
}

/// What a case gives the model: sequences, or images.
enum Given {
    Sequences(Vec<Vec<u32>>),
    Images(Tensor),
}

impl Given {
    fn new(values: &std::collections::HashMap<String, Tensor>) -> Self {
        match values.get("pixel_values") {
            Some(pixels) => Self::Images(pixels.clone()),
            None => Self::Sequences(sequences(values)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Sequences(sequences) => sequences.len(),
            Self::Images(pixels) => pixels.dim(0).unwrap(),
        }
    }

    fn one(&self, i: usize) -> Self {
        match self {
            Self::Sequences(sequences) => Self::Sequences(vec![sequences[i].clone()]),
            Self::Images(pixels) => Self::Images(pixels.narrow(0, i, 1).unwrap()),
        }
    }

    /// Runs all as one batch, each with its adapter and factor; shaped as the expected logits.
    fn logits(&self, base: &Subject, adapters: &[Option<Arc<Adapter>>], scale: f32) -> Tensor {
        match (self, base) {
            (Self::Sequences(sequences), Subject::Language(base)) => logits(base, sequences, adapters, scale),
            (Self::Images(pixels), Subject::Images(base)) => {
                let run = |(i, adapter): (usize, &Option<Arc<Adapter>>)| {
                    adapter.clone().map(|adapter| Run { adapter, rows: i..i + 1, scale })
                };
                let mut runs: Vec<Run> = adapters.iter().enumerate().filter_map(run).collect();
                // One run of all rows where there is one adapter, as the engine makes them.
                if runs.len() == adapters.len() && runs.iter().all(|r| Arc::ptr_eq(&r.adapter, &runs[0].adapter)) {
                    runs.truncate(1);
                    runs[0].rows = 0..adapters.len();
                }
                base.classify(pixels, &LoraBatch { runs, dropout: None }).unwrap()
            }
            _ => panic!("tokens for a model of images, or images for one of tokens"),
        }
    }
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
    base: Subject,
    values: std::collections::HashMap<String, Tensor>,
    tolerance: f64,
    tally: &'a mut Tally,
}

impl Case<'_> {
    fn close(&mut self, key: &str, got: &Tensor) {
        let expected = self.values[key].clone();
        self.tally.close(&format!("{} {key}", self.name), got, &expected, self.tolerance);
    }

    fn single(&mut self, folder: &Path, expected: &Value) {
        let adapter = match load(folder, &self.base) {
            Ok(adapter) => Arc::new(adapter),
            Err(error) => return self.tally.fault(format!("{}: {error}", self.name)),
        };
        self.modules(&adapter, expected);
        let given = Given::new(&self.values);
        // One run over all rows, and one run a sequence: the two ways through the product.
        let run = |scale: f32| given.logits(&self.base, &vec![Some(adapter.clone()); given.len()], scale);
        let got = run(1.0);
        let alone: Vec<_> =
            (0..given.len()).map(|i| given.one(i).logits(&self.base, &[Some(adapter.clone())], 1.0)).collect();
        let plain = given.logits(&self.base, &vec![None; given.len()], 1.0);

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
        let merged_is_same =
            expected["merged_vs_adapter"].as_f64().is_some_and(|distance| distance < self.tolerance / 2.0);
        if merged_is_same && self.values.contains_key("merged_logits") {
            self.close("merged_logits", &got);
        }
        self.merged(folder, expected, &given);
        // Absent where the compact copy holds a part of the input only.
        if let Some(effect) = expected["effect_max_abs"].as_f64() {
            let what = format!("{} effect_max_abs", self.name);
            self.tally.close_slices(&what, &[largest_difference(&got, &plain)], &[effect], 2.0 * self.tolerance);
        }
        let base = root().join("adapters/base_logits").join(expected["base"].as_str().unwrap().replace('/', "__"));
        let base = tensors(&base.with_extension("safetensors"));
        self.tally.close(&format!("{} base logits", self.name), &plain, &base["logits"], self.tolerance);
    }

    /// The whole model that peft made of base and adapter, read as a model of its own.
    fn merged(&mut self, folder: &Path, expected: &Value, given: &Given) {
        let weights = folder.join("merged.safetensors");
        if !weights.is_file() {
            return;
        }
        let whole = tempfile::tempdir().unwrap();
        let config = root().join(expected["base"].as_str().unwrap()).join("config.json");
        std::fs::copy(config, whole.path().join("config.json")).unwrap();
        std::fs::copy(weights, whole.path().join("model.safetensors")).unwrap();
        // A path of its own takes the place of the root.
        let model = Subject::open(whole.path().to_str().unwrap());
        let got = given.logits(&model, &vec![None; given.len()], 1.0);
        self.close("merged_logits", &got);
    }

    /// Compares which modules are adapted, and their rank, alpha and scaling.
    fn modules(&mut self, adapter: &Adapter, expected: &Value) {
        let expected = expected["modules"].as_object().unwrap();
        let mut got = BTreeMap::new();
        // By the names that the adapter itself uses.
        for (path, change) in adapter.info().modules.iter().zip(adapter.changes().values()) {
            if let Some((rank, scaling)) = change.rank_and_scaling() {
                got.insert(path.clone(), (rank, scaling));
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
        let got = Given::new(&self.values).logits(&self.base, &adapters, 1.0);
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
    let base = bases.get(manifest["base"].as_str().unwrap());
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
                super::names_fault(tally, name, &error, case["wrong"].as_str().unwrap(), (&folder.join(name), &sound));
            }
            (Err(error), _) => tally.fault(format!("{name}: was refused: {error}")),
            (Ok(_), "reject") => tally.fault(format!("{name}: was accepted")),
            (Ok(adapter), _) => {
                println!("{name}: accepted");
                let given = Given::new(&values);
                let got = given.logits(&base, &vec![Some(Arc::new(adapter)); given.len()], 1.0);
                tally.close(&format!("{name} logits"), &got, &values["logits"], 5e-4);
            }
        }
    }
}
