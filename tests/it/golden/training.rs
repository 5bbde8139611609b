//! `golden_training`: fine-tuning step by step against PyTorch, transformers and PEFT.
//!
//! Tolerances are those of the README beside the values: loss 1e-4, gradient norm 1e-3 (relative), final weights 1e-4, final logits 1e-3.
//! Gradients and moments: 1e-3 of the largest one of their tensor, as the norm.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evenkeel::dataset::Label;
use evenkeel::lora::{Adapter, LoraBatch, Run};
use evenkeel::model::{Batch, CausalLm, Rows, Segment};
use evenkeel::train::{
    Average, Learner, Length, LoraSettings, Method, MicroBatch, Parameters, Pixels, Schedule, Settings, Targets, Task,
    learning_rate,
};
use evenkeel::turns::{Slices, Stopped};
use serde_json::Value;

use super::{Subject, Tally, cases, json, root, tensors};

const LOSS: f64 = 1e-4;
const NORM: f64 = 1e-3;
const WEIGHTS: f64 = 1e-4;
const LOGITS: f64 = 1e-3;

/// No one else computes.
struct Alone;

impl Slices for Alone {
    fn slice(&self, work: &mut dyn FnMut()) -> Result<(), Stopped> {
        work();
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        false
    }
}

#[test]
fn golden_training() {
    let mut tally = Tally::new("golden_training");
    let mut midpoints = 0;
    for folder in cases("training", "recipe.json") {
        let recipe = json(&folder.join("recipe.json"));
        let base = recipe["base"].as_str().unwrap();
        tally.case();
        let model = Subject::open(base);
        let name = recipe["name"].as_str().unwrap().to_owned();
        Case { name, folder: &folder, settings: settings(&recipe), recipe: &recipe, model }.run(&mut tally);
        midpoints += usize::from(folder.join("midpoint.safetensors").is_file());
    }
    assert!(midpoints > 0, "no case has the optimiser's state");
    tally.finish();
}

struct Case<'a> {
    name: String,
    folder: &'a Path,
    recipe: &'a Value,
    settings: Settings,
    model: Subject,
}

impl Case<'_> {
    fn run(&self, tally: &mut Tally) {
        let data = tensors(&root().join(self.recipe["data"].as_str().unwrap()));
        let accumulation = self.settings.accumulation;
        let micro = |step: usize| (0..accumulation).map(|i| self.batch(&data, step * accumulation + i)).collect();
        let steps: Vec<Vec<MicroBatch>> = (0..self.total()).map(micro).collect();
        let expected = json(&self.folder.join("steps.json"));
        let mut learner = self.learner(false);
        self.parameters(tally, &learner);
        self.logits(tally, &learner, &data, "before");
        self.recomputed(tally, &learner, &steps[0]);
        let mut seen = 0;
        for (i, (batches, expected)) in steps.iter().zip(expected.as_array().unwrap()).enumerate() {
            let what = |part: &str| format!("{} step {i} {part}", self.name);
            let number = |key: &str| expected[key].as_f64().unwrap();
            let rate = learning_rate(&self.settings, i as u64, self.total() as u64);
            tally.close_slices(&what("learning rate"), &[rate], &[number("learning_rate")], 1e-9);
            let gradients = self.folder.join(format!("gradients_step_{i}.safetensors"));
            if gradients.is_file() {
                seen += 1;
                let got = learner.gradients(batches, i as u64 + 1, &Alone).unwrap().tensors;
                for (name, expected) in &tensors(&gradients) {
                    let index = learner.parameters().list().iter().position(|p| p.name == *name);
                    let Some(index) = index else {
                        tally.fault(what(&format!("has no gradient of {name}")));
                        continue;
                    };
                    tally.close(&what(name), &got[index], expected, NORM * largest(expected));
                }
            }
            let outcome = learner.step(batches, rate, i as u64 + 1, &Alone).unwrap();
            let micro: Vec<f64> =
                expected["micro_losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
            tally.close_slices(&what("loss"), &[outcome.loss], &[number("loss")], LOSS);
            tally.close_slices(&what("micro losses"), &outcome.micro_losses, &micro, LOSS);
            let norm = number("grad_norm");
            tally.close_slices(&what("gradient norm"), &[outcome.grad_norm], &[norm], NORM * norm);
            tally.close_slices(&what("clip"), &[outcome.clip_factor], &[number("clip_factor")], NORM);
            if i + 1 == self.total() / 2 {
                self.midpoint(tally, &learner);
            }
        }
        assert!(seen > 0, "{} has no gradients", self.name);
        self.weights(tally, &learner);
        self.logits(tally, &learner, &data, "after");
    }

    fn total(&self) -> usize {
        self.recipe["steps"].as_u64().unwrap() as usize
    }

    fn learner(&self, recompute: bool) -> Learner {
        let model = self.model.model();
        let (base, labels) = (model.differentiable().unwrap().base(), model.info().labels);
        let parameters = match self.settings.method {
            Method::Full => Parameters::full(base, labels, 0).unwrap(),
            Method::Lora(_) | Method::HeadOnly => {
                let config = std::fs::read(self.folder.join("initial/adapter_config.json")).unwrap();
                let parameters = Parameters::low_rank(&config, base, labels, 0).unwrap();
                parameters.set(&tensors(&self.folder.join("initial/adapter_model.safetensors"))).unwrap();
                parameters
            }
        };
        Learner::new(model.clone(), parameters, &self.settings, recompute, false).unwrap()
    }

    /// The same tensors are trained and the same ones decay.
    fn parameters(&self, tally: &mut Tally, learner: &Learner) {
        let names = |key: &str| {
            let mut names: Vec<String> =
                self.recipe[key].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        let own = |decays: &dyn Fn(bool) -> bool| {
            let mut names: Vec<String> =
                learner.parameters().list().iter().filter(|p| decays(p.decays)).map(|p| p.name.clone()).collect();
            names.sort();
            names
        };
        tally.equal(&format!("{} trained", self.name), &own(&|_| true), &names("trainable"));
        tally.equal(&format!("{} not decayed", self.name), &own(&|decays| !decays), &names("weight_decay_excluded"));
    }

    /// Blocks that are computed again give the very same gradients.
    fn recomputed(&self, tally: &mut Tally, learner: &Learner, batches: &[MicroBatch]) {
        let kept = learner.gradients(batches, 1, &Alone).unwrap().tensors;
        let again = self.learner(true).gradients(batches, 1, &Alone).unwrap().tensors;
        for ((a, b), parameter) in kept.iter().zip(&again).zip(learner.parameters().list()) {
            tally.close(&format!("{} recomputed {}", self.name, parameter.name), a, b, 0.0);
        }
    }

    fn midpoint(&self, tally: &mut Tally, learner: &Learner) {
        let path = self.folder.join("midpoint.safetensors");
        if !path.is_file() {
            return;
        }
        let expected = tensors(&path);
        for (parameter, moments) in learner.parameters().list().iter().zip(&learner.optimizer().moments) {
            let name = &parameter.name;
            let what = |part: &str| format!("{} midpoint {part} {name}", self.name);
            let of = |part: &str| &expected[&format!("{part}.{name}")];
            tally.close(&what("weight"), parameter.var.as_tensor(), of("weights"), WEIGHTS);
            tally.close(&what("m"), &moments.m, of("m"), NORM * largest(of("m")));
            tally.close(&what("v"), &moments.v, of("v"), 2.0 * NORM * largest(of("v")));
        }
    }

    fn weights(&self, tally: &mut Tally, learner: &Learner) {
        let adapter = self.folder.join("final/adapter_model.safetensors");
        let whole = self.folder.join("final.safetensors");
        let expected = tensors(if adapter.is_file() { &adapter } else { &whole });
        let written = learner.parameters().to_safetensors().unwrap();
        let written = candle_core::safetensors::load_buffer(&written, &Device::Cpu).unwrap();
        for (name, expected) in &expected {
            match written.get(name) {
                Some(got) => tally.close(&format!("{} final {name}", self.name), got, expected, WEIGHTS),
                None => tally.fault(format!("{} wrote no {name}", self.name)),
            }
        }
    }

    /// Serves what was trained and compares logits of the rows that the file has.
    fn logits(&self, tally: &mut Tally, learner: &Learner, data: &HashMap<String, Tensor>, when: &str) {
        let expected = tensors(&self.folder.join("logits.safetensors")).remove(when).unwrap();
        let model = self.model.model();
        let base = model.differentiable().unwrap().base();
        let adapter = Arc::new(Adapter::unnamed(learner.parameters().changes(base).unwrap()));
        let batch = self.batch(data, 0);
        let language = match &self.model {
            Subject::Language(model) => model,
            Subject::Images(model) => {
                let pixels = batch.pixels.as_ref().unwrap().to_tensor().unwrap();
                let run = Run { adapter, rows: 0..pixels.dim(0).unwrap(), scale: 1.0 };
                let got = model.classify(&pixels, &LoraBatch { runs: vec![run], dropout: None }).unwrap();
                let got = got.narrow(0, 0, expected.dim(0).unwrap()).unwrap();
                return tally.close(&format!("{} logits {when}", self.name), &got, &expected, LOGITS);
            }
        };
        let mut start = 0;
        for (row, len) in batch.lengths.iter().enumerate().take(expected.dim(0).unwrap()) {
            let tokens = &batch.tokens[start..start + len];
            start += len;
            let segments = [Segment { len: *len, logits: Rows::Last(*len) }];
            let run = Run { adapter: Arc::clone(&adapter), rows: 0..*len, scale: 1.0 };
            let lora = LoraBatch { runs: vec![run], dropout: None };
            let batch = Batch { tokens, segments: &segments, lora: &lora };
            let got = match self.settings.task {
                Task::SequenceClassification | Task::ImageClassification => {
                    language.classify(&batch).unwrap().get(0).unwrap()
                }
                Task::CausalLm => language.forward(&batch, &mut [&mut language.new_cache()]).unwrap(),
            };
            let expected = expected.get(row).unwrap();
            // Padding of the reference, or a cut of the file.
            let (got, expected) = match expected.rank() {
                2 => {
                    let seen = expected.dim(0).unwrap().min(*len);
                    (got.narrow(0, 0, seen).unwrap(), expected.narrow(0, 0, seen).unwrap())
                }
                _ => (got, expected),
            };
            tally.close(&format!("{} logits {when} of row {row}", self.name), &got, &expected, LOGITS);
        }
    }

    /// Micro-batch `index` without its padding.
    fn batch(&self, data: &HashMap<String, Tensor>, index: usize) -> MicroBatch {
        if let Some(images) = data.get("images") {
            return images_of(images, &data["image_labels"], &data["index"].get(index).unwrap());
        }
        let table = |key: &str| data[key].get(index).unwrap().to_dtype(DType::I64).unwrap();
        let (ids, mask) =
            (table("input_ids").to_vec2::<i64>().unwrap(), table("attention_mask").to_vec2::<i64>().unwrap());
        let labels = table("labels");
        let mut batch = MicroBatch::default();
        for (row, (ids, mask)) in ids.iter().zip(&mask).enumerate() {
            let len = mask.iter().filter(|m| **m == 1).count();
            assert!(mask[..len].iter().all(|m| *m == 1), "padding is expected at the end");
            batch.tokens.extend(ids[..len].iter().map(|id| *id as u32));
            batch.lengths.push(len);
            batch.rows.push(row);
            if self.settings.task == Task::SequenceClassification {
                batch.classes.push(Label::Class(labels.to_vec1::<i64>().unwrap()[row] as usize));
                batch.targets.extend(vec![None; len]);
            } else {
                let labels = labels.get(row).unwrap().to_vec1::<i64>().unwrap();
                batch.targets.extend(labels[1..len].iter().map(|label| u32::try_from(*label).ok()));
                batch.targets.push(None);
            }
        }
        batch
    }
}

/// Images `[images, channels, height, width]` by their indices.
fn images_of(images: &Tensor, labels: &Tensor, index: &Tensor) -> MicroBatch {
    let labels = labels.to_dtype(DType::I64).unwrap().to_vec1::<i64>().unwrap();
    let rows: Vec<usize> =
        index.to_dtype(DType::I64).unwrap().to_vec1::<i64>().unwrap().iter().map(|i| *i as usize).collect();
    let pixels = images.index_select(&index.to_dtype(DType::I64).unwrap(), 0).unwrap();
    let (count, channels, height, width) = pixels.dims4().unwrap();
    let values = pixels.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    MicroBatch {
        classes: rows.iter().map(|row| Label::Class(labels[*row] as usize)).collect(),
        rows,
        pixels: Some(Pixels { values, shape: [count, channels, height, width] }),
        ..MicroBatch::default()
    }
}

fn largest(tensor: &Tensor) -> f64 {
    let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values.iter().fold(1e-9, |a: f64, x| a.max(x.abs()))
}

/// The recipe as our settings.
fn settings(recipe: &Value) -> Settings {
    let number = |key: &str| recipe[key].as_f64().unwrap();
    let whole = |key: &str| recipe[key].as_u64().unwrap();
    // What is adapted is read from the initial adapter's own configuration.
    let lora = LoraSettings {
        rank: 1,
        alpha: 1.0,
        rslora: false,
        dora: false,
        dropout: number("dropout"),
        targets: Targets::AllLinear,
        layers: Vec::new(),
        modules_to_save: Vec::new(),
    };
    Settings {
        task: match recipe["task"].as_str().unwrap() {
            "causal_lm" => Task::CausalLm,
            "sequence_classification" => Task::SequenceClassification,
            "image_classification" => Task::ImageClassification,
            other => panic!("task {other}"),
        },
        method: match recipe["method"].as_str().unwrap() {
            "lora" => Method::Lora(lora),
            "full" => Method::Full,
            other => panic!("method {other}"),
        },
        length: Length::Steps(whole("steps")),
        batch_size: 1,
        accumulation: whole("gradient_accumulation") as usize,
        max_tokens: 2,
        packing: false,
        train_on_prompt: false,
        learning_rate: number("learning_rate"),
        schedule: match recipe["scheduler"].as_str().unwrap() {
            "cosine" => Schedule::Cosine,
            "linear" => Schedule::Linear,
            "constant" => Schedule::Constant,
            other => panic!("schedule {other}"),
        },
        warmup_steps: whole("warmup_steps"),
        weight_decay: number("weight_decay"),
        beta1: recipe["betas"][0].as_f64().unwrap(),
        beta2: recipe["betas"][1].as_f64().unwrap(),
        epsilon: number("eps"),
        max_grad_norm: number("max_grad_norm"),
        average: match recipe["loss_average"].as_str().unwrap() {
            "mean_of_micro_batch_means" => Average::MicroBatches,
            "mean_over_all_label_tokens_of_the_step" => Average::Tokens,
            other => panic!("average {other}"),
        },
        recompute: None,
        eval_every: 0,
        patience: 0,
        keep_best: false,
        seed: whole("seed"),
        groups: Vec::new(),
        random_flip: false,
        publish_steps: vec![],
        subset: None,
    }
}
