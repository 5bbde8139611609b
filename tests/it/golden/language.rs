//! `golden_language`: Llama and Mistral against transformers, without adapters.
//!
//! Tolerances are those of the README beside the values: 5e-4 for f32, twice the recorded difference for bf16.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use candle_core::{D, DType, Device, IndexOp, Tensor};
use evenkeel::lora::LoraBatch;
use evenkeel::model::{BaseModel, Batch, CausalLm, KvCache, Llama, Rows, Segment, open};
use serde_json::Value;

use super::{Tally, cases, device, json, root, tensors};

const TOLERANCE: f64 = 5e-4;

#[test]
fn golden_language() {
    let mut tally = Tally::new("golden_language");
    for folder in cases("language", "expected.json") {
        tally.case();
        let expected = json(&folder.join("expected.json"));
        let values = tensors(&folder.join("expected.safetensors"));
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = open(&folder, &device(), "f32").unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut case = Case { name, model, values, expected, tally: &mut tally };
        match case.model.info().labels {
            Some(_) => case.classifier(),
            None => case.language(&folder),
        }
    }
    broken_bases(&mut tally);
    tally.finish();
}

/// Every broken base is refused in words that name what is wrong with it.
fn broken_bases(tally: &mut Tally) {
    for folder in cases("bases_broken", "config.json") {
        tally.case();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        match open(&folder, &device(), "f32") {
            Ok(_) => tally.fault(format!("{name}: was loaded")),
            Err(error) => {
                let manifest = json(&folder.with_file_name("manifest.json"));
                let sound = root().join(manifest["base_of"].as_str().unwrap());
                println!("{name}: {error}");
                let wrong = manifest["cases"][&name]["wrong"].as_str().unwrap();
                super::names_fault(tally, &name, &error.to_string(), wrong, (&folder, &sound));
            }
        }
    }
}

struct Case<'a> {
    name: String,
    model: Llama,
    values: std::collections::HashMap<String, Tensor>,
    expected: Value,
    tally: &'a mut Tally,
}

/// The rows of an integer tensor `[batch, tokens]`, less what the mask leaves out.
fn rows(ids: &Tensor, mask: Option<&Tensor>) -> Vec<Vec<u32>> {
    let ids: Vec<Vec<i64>> = ids.to_vec2().unwrap();
    let mask: Vec<Vec<i64>> = mask.map_or_else(|| vec![vec![1; ids[0].len()]; ids.len()], |m| m.to_vec2().unwrap());
    let kept = |(row, mask): (&Vec<i64>, &Vec<i64>)| {
        row.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect()
    };
    ids.iter().zip(&mask).map(kept).collect()
}

/// Runs chunks of sequences packed and returns the logits of all their tokens, on the CPU.
fn forward(model: &dyn CausalLm, chunks: &[&[u32]], caches: &mut [KvCache]) -> Tensor {
    let tokens: Vec<u32> = chunks.concat();
    let segments: Vec<_> = chunks.iter().map(|c| Segment { len: c.len(), logits: Rows::Last(c.len()) }).collect();
    let batch = Batch { tokens: &tokens, segments: &segments, lora: &LoraBatch::default() };
    let logits = model.forward(&batch, &mut caches.iter_mut().collect::<Vec<_>>()).unwrap();
    logits.to_device(&Device::Cpu).unwrap()
}

/// Logits of whole sequences, packed.
fn logits(model: &dyn CausalLm, sequences: &[Vec<u32>]) -> Tensor {
    let mut caches: Vec<_> = sequences.iter().map(|_| model.new_cache()).collect();
    forward(model, &sequences.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut caches)
}

/// Log-probabilities that the model gives to each token but the first.
fn logprobs(model: &dyn CausalLm, tokens: &[u32]) -> (Vec<f64>, Vec<bool>) {
    let rows: Vec<Vec<f32>> = logits(model, &[tokens.to_vec()]).to_vec2().unwrap();
    rows.iter().zip(&tokens[1..]).map(|(row, id)| (logprob(row, *id), argmax(row) == *id)).unzip()
}

fn logprob(row: &[f32], id: u32) -> f64 {
    let max = row.iter().fold(f32::NEG_INFINITY, |a, x| a.max(*x));
    let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
    f64::from(row[id as usize] - max) - sum.ln()
}

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    best as u32
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

impl Case<'_> {
    fn language(&mut self, folder: &Path) {
        self.prefill();
        self.padded();
        self.bf16(folder);
        self.greedy();
        self.scores();
    }

    fn what(&self, part: &str) -> String {
        format!("{} {part}", self.name)
    }

    fn prefill(&mut self) {
        let sequences = rows(&self.values["prefill.input_ids"], None);
        let expected = self.values["prefill.logits"].flatten_to(1).unwrap();
        let whole = logits(&self.model, &sequences);
        self.tally.close(&self.what("prefill"), &whole, &expected, TOLERANCE);

        // Chunks of uneven size, both sequences riding in the same pass, single tokens among them.
        let mut caches: Vec<_> = sequences.iter().map(|_| self.model.new_cache()).collect();
        let mut parts = vec![Vec::new(); sequences.len()];
        let (mut start, mut size) = (0, 1);
        while start < sequences[0].len() {
            let end = (start + size).min(sequences[0].len());
            let chunks: Vec<_> = sequences.iter().map(|s| &s[start..end]).collect();
            let got = forward(&self.model, &chunks, &mut caches);
            for (i, part) in parts.iter_mut().enumerate() {
                part.push(got.narrow(0, i * (end - start), end - start).unwrap());
            }
            (start, size) = (end, size % 7 + 3);
            size = if size == 6 { 1 } else { size };
        }
        let chunked = Tensor::cat(&parts.concat(), 0).unwrap();
        self.tally.close(&self.what("chunked"), &chunked, &expected, TOLERANCE);

        let Some(expected) = self.values.get("prefill.hidden_states").cloned() else { return };
        let hidden = self.hidden_states(&sequences[0]);
        self.tally.close(&self.what("hidden states"), &hidden, &expected, TOLERANCE);
    }

    fn hidden_states(&self, tokens: &[u32]) -> Tensor {
        let segments = [Segment { len: tokens.len(), logits: Rows::None }];
        let batch = Batch { tokens, segments: &segments, lora: &LoraBatch::default() };
        let hidden = self.model.hidden_states(&batch, &mut [&mut self.model.new_cache()]).unwrap();
        Tensor::stack(&hidden, 0).unwrap()
    }

    /// Rows of different lengths, packed without their padding.
    fn padded(&mut self) {
        for side in ["padded_left", "padded_right"] {
            let Some(mask) = self.values.get(&format!("{side}.attention_mask")) else { continue };
            let sequences = rows(&self.values[&format!("{side}.input_ids")], Some(mask));
            let all = &self.values[&format!("{side}.logits")];
            let mut expected = Vec::new();
            for (i, row) in mask.to_vec2::<i64>().unwrap().iter().enumerate() {
                let first = row.iter().position(|m| *m == 1).unwrap();
                expected.push(all.i(i).unwrap().narrow(0, first, sequences[i].len()).unwrap());
            }
            let expected = Tensor::cat(&expected, 0).unwrap();
            self.tally.close(&self.what(side), &logits(&self.model, &sequences), &expected, TOLERANCE);
        }
    }

    /// Weights and activations in bf16: as close to f32 as transformers' own bf16, within a factor of two.
    fn bf16(&mut self, folder: &Path) {
        let Some(allowed) = self.expected.get("bf16").cloned() else { return };
        let model = open(folder, &device(), "bf16").unwrap();
        let got = logits(&model, &rows(&self.values["prefill.input_ids"], None));
        let f32_logits = self.values["prefill.logits"].flatten_to(1).unwrap();
        let difference = (got - f32_logits).unwrap().abs().unwrap().to_dtype(DType::F64).unwrap();
        let mut measured = Vec::new();
        for (key, value) in allowed.as_object().unwrap() {
            let (Some(limit), true) = (value.as_f64(), key.contains("abs") || key.contains("mean")) else { continue };
            let reduced = match key.contains("mean") {
                true => difference.mean_all(),
                false => difference.flatten_all().unwrap().max(0),
            };
            let got: f64 = reduced.unwrap().to_scalar().unwrap();
            measured.push(key);
            self.tally.equal(&self.what(&format!("bf16 {key}: {got} of {limit}")), &(got <= 2.0 * limit), &true);
        }
        assert!(!measured.is_empty(), "{}: no bound for bf16 in {allowed}", self.name);
    }

    fn greedy(&mut self) {
        for case in self.expected["greedy"]["cases"].as_array().unwrap().clone() {
            let (prompt, output) = (ids(&case["prompt"]), ids(&case["output"]));
            let (tokens, logprobs) = self.generate(&prompt, output.len(), None);
            self.tally.equal(&self.what("greedy"), &tokens, &output);
            let expected = floats(&case["logprobs"]);
            self.tally.close_slices(&self.what("greedy logprobs"), &logprobs, &expected, TOLERANCE);

            let stop = case["eos_case"]["eos_token_id"].as_u64().unwrap() as u32;
            let expected = ids(&case["eos_case"]["output_including_eos"]);
            let (tokens, _) = self.generate(&prompt, output.len(), Some(stop));
            self.tally.equal(&self.what("greedy with eos"), &tokens, &expected);
        }
    }

    fn generate(&self, prompt: &[u32], count: usize, stop: Option<u32>) -> (Vec<u32>, Vec<f64>) {
        let mut caches = [self.model.new_cache()];
        let (mut tokens, mut logprobs): (Vec<u32>, Vec<f64>) = Default::default();
        while tokens.len() < count && (tokens.is_empty() || tokens.last().copied() != stop) {
            let next = tokens.last().copied();
            let chunk = next.as_ref().map_or(prompt, std::slice::from_ref);
            let rows: Vec<Vec<f32>> = forward(&self.model, &[chunk], &mut caches).to_vec2().unwrap();
            let row = rows.last().unwrap();
            tokens.push(argmax(row));
            logprobs.push(logprob(row, argmax(row)));
        }
        (tokens, logprobs)
    }

    fn scores(&mut self) {
        let score = self.expected["score"].clone();
        for case in score["cases"].as_array().unwrap() {
            self.continuation(&ids(&case["context"]), case);
        }
        if let Some(choices) = score.get("choices") {
            for option in choices["options"].as_array().unwrap() {
                self.continuation(&ids(&choices["context"]), option);
            }
        }
        if let Some(expected) = score.get("prompt_logprobs_row0") {
            let tokens = &rows(&self.values["prefill.input_ids"], None)[0];
            let (got, _) = logprobs(&self.model, tokens);
            self.tally.close_slices(&self.what("prompt logprobs"), &got, &floats(expected), TOLERANCE);
        }
    }

    fn continuation(&mut self, context: &[u32], case: &Value) {
        let tokens = [context, &ids(&case["continuation"])].concat();
        let (got, greedy) = logprobs(&self.model, &tokens);
        let from = context.len() - 1;
        let expected = floats(&case["logprobs"]);
        self.tally.close_slices(&self.what("score"), &got[from..], &expected, TOLERANCE);
        if let Some(matches) = case["greedy_match"].as_array() {
            let expected: Vec<_> = matches.iter().map(|m| m.as_bool().unwrap()).collect();
            self.tally.equal(&self.what("greedy match"), &greedy[from..].to_vec(), &expected);
        }
    }

    fn classifier(&mut self) {
        let mut inputs: Vec<_> = self.values.keys().filter_map(|k| k.strip_suffix(".input_ids")).collect();
        inputs.sort_unstable();
        let inputs: Vec<String> = inputs.into_iter().map(str::to_owned).collect();
        assert!(!inputs.is_empty(), "{}: no input", self.name);
        for input in inputs {
            let mask = self.values.get(&format!("{input}.attention_mask"));
            let sequences = rows(&self.values[&format!("{input}.input_ids")], mask);
            let tokens = sequences.concat();
            let segments: Vec<_> = sequences.iter().map(|s| Segment { len: s.len(), logits: Rows::None }).collect();
            let batch = Batch { tokens: &tokens, segments: &segments, lora: &LoraBatch::default() };
            let got = self.model.classify(&batch).unwrap();
            let expected = self.values[&format!("{input}.logits")].clone();
            self.tally.close(&self.what(&input), &got, &expected, TOLERANCE);
            if let Some(expected) = self.values.get(&format!("{input}.probs")).cloned() {
                let probs = candle_nn::ops::softmax(&got, D::Minus1).unwrap();
                self.tally.close(&self.what(&format!("{input} probs")), &probs, &expected, TOLERANCE);
            }
            if let Some(expected) = self.values.get(&format!("{input}.hidden_states")).cloned() {
                let hidden = self.hidden_states(&sequences[0]);
                self.tally.close(&self.what(&format!("{input} hidden")), &hidden, &expected, TOLERANCE);
            }
            assert!(self.model.forward(&batch, &mut []).is_err(), "a classifier generates nothing");
        }
    }
}
