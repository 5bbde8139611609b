//! Units against transformers and peft, and against one another: every case of the golden folders.
//!
//! Tolerances are those of the README beside the values: 5e-4 a log-probability or logit.

use crate::model::BaseModel;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::*;
use crate::turns::Stopped;

const TOLERANCE: f64 = 5e-4;

/// Grants slices and counts them; stops after some.
struct Counted {
    slices: AtomicUsize,
    most: usize,
}

impl Counted {
    fn endless() -> Self {
        Self { slices: AtomicUsize::new(0), most: usize::MAX }
    }
}

impl Slices for Counted {
    fn slice(&self, work: &mut dyn FnMut()) -> Result<(), Stopped> {
        if self.slices.fetch_add(1, Ordering::SeqCst) >= self.most {
            return Err(Stopped);
        }
        work();
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        false
    }
}

fn golden(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(part)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// The folder of the language model that a golden adapter is for.
fn language_base(folder: &Path) -> Option<PathBuf> {
    json(&folder.join("expected.json"))["base"].as_str().filter(|base| base.starts_with("language/")).map(golden)
}

fn model(folder: &Path) -> Arc<dyn CausalLm> {
    crate::model::load(folder, "golden", "cpu", "f32").unwrap()
}

impl Runner {
    fn one(&mut self, unit: &Unit, slices: &dyn Slices) -> Result<Vec<f64>, AuditError> {
        Ok(self.run(&[unit], slices)?.remove(0))
    }
}

fn runner(model: &Arc<dyn CausalLm>, adapter: Option<(Arc<Adapter>, f32)>) -> Runner {
    let order = (0..model.info().labels.unwrap_or(0)).collect();
    Runner::new(Arc::clone(model), adapter, order, Detail::default())
}

fn folders(part: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(golden(part)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|folder| folder.join("expected.json").exists());
    found.sort();
    assert!(!found.is_empty());
    found
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn close(got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance, "{got} is not {expected}");
}

fn answers(prompt: &[u32], answers: &[&[u32]]) -> Unit {
    Unit::Answers { prompt: prompt.to_vec(), answers: answers.iter().map(|ids| ids.to_vec()).collect() }
}

fn text(prompt: &[u32], answer: &[u32]) -> Unit {
    let learnt = (0..prompt.len() + answer.len()).map(|i| i >= prompt.len()).collect();
    Unit::Text { tokens: [prompt, answer].concat(), learnt }
}

#[test]
fn scores_and_completions_are_those_of_transformers() {
    let mut cases = 0;
    for folder in folders("language") {
        let expected = json(&folder.join("expected.json"));
        let Some(scored) = expected["score"]["cases"].as_array() else { continue };
        let model = model(&folder);
        let (mut runner, slices) = (runner(&model, None), Counted::endless());
        for case in scored {
            let (context, continuation) = (ids(&case["context"]), ids(&case["continuation"]));
            let logprobs = numbers(&case["logprobs"]);
            let (sum, tolerance) = (logprobs.iter().sum::<f64>(), TOLERANCE * logprobs.len() as f64);
            close(runner.one(&answers(&context, &[&continuation]), &slices).unwrap()[0], sum, tolerance);
            let measured = runner.one(&text(&context, &continuation), &slices).unwrap();
            close(measured[0], sum, tolerance);
            assert_eq!(measured[1], logprobs.len() as f64);
            cases += 1;
        }
        for case in expected["greedy"]["cases"].as_array().unwrap() {
            let (prompt, output) = (ids(&case["prompt"]), ids(&case["output"]));
            let unit = Unit::Completion { prompt, new: output.len() };
            let written = runner.one(&unit, &slices).unwrap();
            let ends = |id: &u32| model.info().eos_token_ids.contains(id);
            let until = output.iter().position(ends).unwrap_or(output.len());
            assert_eq!(written, output[..until].iter().map(|id| f64::from(*id)).collect::<Vec<_>>());
            cases += 1;
        }
    }
    assert!(cases > 0);
}

/// Sequences of a tensor of ids `[batch, tokens]` without padding, with the row of each.
fn sequences(values: &HashMap<String, Tensor>, prefix: &str) -> Vec<Vec<u32>> {
    let rows: Vec<Vec<i64>> = values[&format!("{prefix}input_ids")].to_vec2().unwrap();
    let mask = values.get(&format!("{prefix}attention_mask")).map(|mask| mask.to_vec2::<i64>().unwrap());
    let kept = |(i, row): (usize, &Vec<i64>)| -> Vec<u32> {
        let seen = |at: usize| mask.as_ref().is_none_or(|mask| mask[i][at] == 1);
        row.iter().enumerate().filter(|(at, _)| seen(*at)).map(|(_, id)| *id as u32).collect()
    };
    rows.iter().enumerate().map(kept).collect()
}

fn check_classes(runner: &mut Runner, values: &HashMap<String, Tensor>, prefix: &str) -> usize {
    let expected: Vec<Vec<f32>> = values[&format!("{prefix}logits")].to_vec2().unwrap();
    let all = sequences(values, prefix);
    for (tokens, expected) in all.iter().zip(&expected) {
        let got = runner.one(&Unit::Classes(tokens.clone()), &Counted::endless()).unwrap();
        assert_eq!(got.len(), expected.len());
        got.iter().zip(expected).for_each(|(got, expected)| close(*got, f64::from(*expected), TOLERANCE));
    }
    all.len()
}

#[test]
fn classes_are_those_of_transformers_and_peft() {
    let mut rows = 0;
    for folder in folders("language") {
        let model = model(&folder);
        if model.info().labels.is_none() {
            continue;
        }
        let values = tensors(&folder.join("expected.safetensors"));
        let mut runner = runner(&model, None);
        for prefix in values.keys().filter_map(|key| key.strip_suffix("logits")) {
            rows += check_classes(&mut runner, &values, prefix);
        }
    }
    for folder in folders("adapters") {
        let Some(base) = language_base(&folder) else { continue };
        let model = model(&base);
        if model.info().labels.is_none() {
            continue;
        }
        let mut runner = runner(&model, Some((load(&model, &folder), 1.0)));
        rows += check_classes(&mut runner, &tensors(&folder.join("expected.safetensors")), "");
    }
    assert!(rows > 0);
}

fn load(model: &Arc<dyn CausalLm>, folder: &Path) -> Arc<Adapter> {
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    Arc::new(model.load_adapter(&read("adapter_config.json"), &read("adapter_model.safetensors")).unwrap())
}

#[test]
fn a_scaled_adapter_scores_as_that_of_peft_and_scale_nought_as_the_base() {
    let mut cases = 0;
    for folder in folders("adapters") {
        let Some(base) = language_base(&folder) else { continue };
        let values = tensors(&folder.join("expected.safetensors"));
        let scaled: Vec<_> = values.keys().filter_map(|key| key.strip_prefix("logits_scale_")).collect();
        if scaled.is_empty() {
            continue;
        }
        let model = model(&base);
        let adapter = load(&model, &folder);
        let tokens = sequences(&values, "").remove(0);
        for scale in scaled {
            let logits: Vec<Vec<f32>> = values[&format!("logits_scale_{scale}")].squeeze(0).unwrap().to_vec2().unwrap();
            let expected: f64 = (1..tokens.len()).map(|at| score(&logits[at - 1], tokens[at]).unwrap()).sum();
            let scale: f32 = scale.parse().unwrap();
            let unit = text(&tokens[..1], &tokens[1..]);
            let got = runner(&model, Some((Arc::clone(&adapter), scale))).one(&unit, &Counted::endless()).unwrap();
            close(got[0], expected, TOLERANCE * tokens.len() as f64);
            if scale == 0.0 {
                assert_eq!(got, runner(&model, None).one(&unit, &Counted::endless()).unwrap());
            }
            cases += 1;
        }
    }
    assert!(cases > 0);
}

/// Ids that look random.
fn some(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| (5 + (i * 31 + i * i * 7 + seed * 13) % 500) as u32).collect()
}

fn language() -> Arc<dyn CausalLm> {
    model(&folders("language").into_iter().find(|folder| model(folder).info().labels.is_none()).unwrap())
}

#[test]
fn what_is_computed_before_changes_no_bit() {
    let model = language();
    let units = [
        answers(&some(9, 1), &[&some(3, 2), &some(1, 3), &some(5, 4)]),
        answers(&some(9, 1), &[&some(2, 5), &some(4, 4)]),
        answers(&some(140, 1), &[&some(2, 5), &some(60, 6), &some(40, 7)]),
        text(&some(1, 1), &some(150, 2)),
        Unit::Completion { prompt: some(9, 1), new: 5 },
    ];
    let slices = Counted::endless();
    let alone: Vec<_> = units.iter().map(|unit| runner(&model, None).one(unit, &slices).unwrap()).collect();
    let mut one = runner(&model, None);
    for turn in [[0, 1, 2, 3, 4], [4, 1, 0, 3, 2], [1, 4, 0, 0, 1]] {
        for i in turn {
            assert_eq!(one.one(&units[i], &slices).unwrap(), alone[i]);
        }
    }
}

#[test]
fn answers_together_score_as_alone_and_as_texts() {
    let model = language();
    let mut runner = runner(&model, None);
    let slices = Counted::endless();
    let prompt = some(7, 1);
    let many: Vec<Vec<u32>> = (0..40).map(|i| some(1 + i % 9, i)).chain([some(131, 3), some(20, 8)]).collect();
    let together = Unit::Answers { prompt: prompt.clone(), answers: many.clone() };
    let together = runner.one(&together, &slices).unwrap();
    for (answer, got) in many.iter().zip(&together) {
        let tolerance = 1e-4 * answer.len() as f64;
        close(*got, runner.one(&answers(&prompt, &[answer]), &slices).unwrap()[0], tolerance);
        close(*got, runner.one(&text(&prompt, answer), &slices).unwrap()[0], tolerance);
    }
}

#[test]
fn a_kept_prompt_and_answers_of_one_token_cost_no_pass() {
    let model = language();
    let mut runner = runner(&model, None);
    let slices = Counted::endless();
    let passes = |runner: &mut Runner, unit: &Unit| {
        let before = slices.slices.load(Ordering::SeqCst);
        runner.one(unit, &slices).unwrap();
        slices.slices.load(Ordering::SeqCst) - before
    };
    assert_eq!(passes(&mut runner, &answers(&some(9, 1), &[&some(1, 2), &some(1, 3)])), 1);
    assert_eq!(passes(&mut runner, &answers(&some(9, 1), &[&some(1, 4)])), 0);
    assert_eq!(passes(&mut runner, &answers(&some(9, 1), &[&some(4, 4), &some(3, 5)])), 1);
    assert_eq!(passes(&mut runner, &answers(&some(130, 1), &[&some(1, 4)])), 1);
}

#[test]
fn packs_hold_every_item_once_within_their_bounds() {
    let lengths = [100, 29, 1, 200, 1, 128, 127, 1, 1];
    let packed = packs(&lengths, |length| *length, (128, 16));
    assert_eq!(packed.concat(), lengths);
    for pack in &packed {
        assert!(pack.len() == 1 || pack.iter().sum::<usize>() <= 128);
    }
    let tiny = packs(&[1; 40], |length| *length, (128, 16));
    assert_eq!(tiny.iter().map(|pack| pack.len()).collect::<Vec<_>>(), [16, 16, 8]);
    assert!(packs(&[], |length| *length, (1, 1)).is_empty());
}

/// Units of every kind that a language model has, some of which begin alike; `rounds` of each and some more.
fn units_of_language(rounds: usize) -> Vec<Arc<Unit>> {
    let after = |length: usize, more: usize, seed: usize| [some(length, 1), some(more, seed)].concat();
    let mut units = Vec::new();
    for i in 0..rounds {
        let prompt = after([0, 20, 33, 90][i % 4], 1 + 7 * (i % 5), 20 + i);
        let many: Vec<Vec<u32>> = (0..1 + i % 4).map(|a| some(1 + (a * 5 + i) % 11, 40 + a + i)).collect();
        units.push(Unit::Answers { prompt: prompt.clone(), answers: many });
        units.push(text(&after(10 * (i % 3), 1, i % 2), &after(0, 3 + 9 * i, 60 + i)));
        units.push(Unit::Completion { prompt, new: 1 + i % 6 });
    }
    units.push(answers(&after(90, 1, 20), &[&some(3, 1), &some(3, 1)]));
    units.push(answers(&after(90, 2, 20), &[&some(150, 3), &some(2, 4)]));
    let gaps = (0..120).map(|i| i % 7 > 4 || i % 40 > 30).collect();
    units.push(Unit::Text { tokens: some(120, 1), learnt: gaps });
    units.into_iter().map(Arc::new).collect()
}

fn units_of_classes() -> Vec<Arc<Unit>> {
    (0..40).map(|i| Arc::new(Unit::Classes(some(1 + (i * 17) % 120, i)))).collect()
}

/// Compares the bits of units packed with those of each alone, by runners that know nothing before.
fn packed_equals_one_by_one(model: &Arc<dyn CausalLm>, adapter: Option<&(Arc<Adapter>, f32)>, units: &[Arc<Unit>]) {
    let labels = adapter.and_then(|(adapter, _)| Some(adapter.info().classes.as_ref()?.names.len()));
    let runner = |packs: bool| {
        let detail = Detail { min_k: vec![0.2, 0.001], plus_plus: vec![0.5] };
        let order = (0..model.info().labels.or(labels).unwrap_or(0)).collect();
        Runner::bounded(Arc::clone(model), adapter.cloned(), packs, (order, detail))
    };
    let bits = |result: &Vec<f64>| result.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let slices = Counted::endless();
    let alone: Vec<_> = units.iter().map(|unit| bits(&runner(false).one(unit, &slices).unwrap())).collect();
    let needed = slices.slices.swap(0, Ordering::SeqCst);
    let mut packing = runner(true);
    let mut packed = Vec::new();
    while packed.len() < units.len() {
        let left = &units[packed.len()..];
        let some: Vec<&Unit> = left[..packing.together(left)].iter().map(|unit| &**unit).collect();
        packed.extend(packing.run(&some, &slices).unwrap().iter().map(bits));
    }
    assert_eq!(packed, alone);
    assert!(slices.slices.load(Ordering::SeqCst) * 2 < needed, "passes are shared");
}

#[test]
fn packed_equals_one_by_one_without_an_adapter() {
    for folder in folders("language") {
        let model = model(&folder);
        let classifies = model.info().labels.is_some();
        packed_equals_one_by_one(&model, None, &if classifies { units_of_classes() } else { units_of_language(12) });
    }
}

#[test]
fn packed_equals_one_by_one_with_every_adapter() {
    for folder in folders("adapters") {
        let Some(base) = language_base(&folder) else { continue };
        if !folder.join("adapter_model.safetensors").exists() {
            continue;
        }
        let model = model(&base);
        let adapter = (load(&model, &folder), 1.0);
        let classifies = model.info().labels.is_some() || adapter.0.info().classes.is_some();
        let units = if classifies { units_of_classes() } else { units_of_language(5) };
        packed_equals_one_by_one(&model, Some(&adapter), &units);
    }
}

#[test]
fn what_prompts_and_texts_begin_with_is_computed_once() {
    struct Watched(Arc<dyn CausalLm>, AtomicUsize);

    impl BaseModel for Watched {
        fn info(&self) -> &crate::model::ModelInfo {
            self.0.info()
        }

        fn load_adapter(&self, _: &[u8], _: &[u8]) -> Result<Adapter, crate::lora::LoraError> {
            Err(crate::lora::LoraError::Unsupported("adapters here".into()))
        }

        fn effect(&self, _: &Arc<Adapter>) -> Result<f64, ModelError> {
            Err(ModelError::Unsupported("adapters here".into()))
        }
    }

    impl CausalLm for Watched {
        fn new_cache(&self) -> crate::model::KvCache {
            self.0.new_cache()
        }

        fn forward(&self, batch: &Batch<'_>, caches: &mut [&mut crate::model::KvCache]) -> Result<Tensor, ModelError> {
            assert!(batch.tokens.len() <= PACKED.tokens);
            self.1.fetch_add(batch.tokens.len(), Ordering::SeqCst);
            self.0.forward(batch, caches)
        }

        fn classify(&self, batch: &Batch<'_>) -> Result<Tensor, ModelError> {
            self.0.classify(batch)
        }
    }

    let watched = Arc::new(Watched(language(), AtomicUsize::new(0)));
    let mut runner = runner(&(Arc::clone(&watched) as Arc<dyn CausalLm>), None);
    let mut tokens = |units: &[Unit]| {
        runner.run(&units.iter().collect::<Vec<_>>(), &Counted::endless()).unwrap();
        watched.1.swap(0, Ordering::SeqCst)
    };
    let prompt = |own: usize, seed: usize| answers(&[some(90, 1), some(own, seed)].concat(), &[&some(1, 2)]);
    assert_eq!(tokens(&[prompt(5, 2), prompt(6, 3), prompt(7, 4)]), 90 + 5 + 6 + 7);
    // What the last prompt before begins with is held.
    assert_eq!(tokens(&[prompt(8, 5), prompt(9, 6), prompt(9, 6)]), 8 + 9);
    let texts = [text(&some(40, 1), &some(5, 2)), text(&some(40, 1), &some(6, 3))];
    // The last token of the beginning is read for another token each time; that of a text is not computed.
    assert_eq!(tokens(&texts), 39 + 5 + 6);
}

#[test]
fn details_are_those_of_the_statistics_over_all_tokens() {
    let model = language();
    let (prompt, rest) = (some(1, 1), some(139, 2));
    let detail = Detail { min_k: vec![0.2, 0.001], plus_plus: vec![0.5] };
    let mut detailed = Runner::new(Arc::clone(&model), None, Vec::new(), detail);
    let got = detailed.one(&text(&prompt, &rest), &Counted::endless()).unwrap();
    let plain = runner(&model, None).one(&text(&prompt, &rest), &Counted::endless()).unwrap();
    close(got[0], plain[0], 1e-9 * rest.len() as f64 * 100.0);
    assert_eq!((got.len(), got[1]), (5, 139.0));
    assert!(got[2] < got[0] / got[1], "the least likely are less likely than the mean");
    assert!(got[3].is_nan(), "the text is too short for the share");
    assert!(got[4].is_finite());
}

#[test]
fn it_stops_between_slices_and_goes_on_with_the_same_bits() {
    let model = language();
    let unit = answers(&some(140, 1), &[&some(2, 5), &some(90, 6), &some(90, 7), &some(90, 8)]);
    let mut one = runner(&model, None);
    let endless = Counted::endless();
    let expected = one.one(&unit, &endless).unwrap();
    let needed = endless.slices.load(Ordering::SeqCst);
    assert!(needed > 2);
    for most in 0..needed {
        let mut stopped = runner(&model, None);
        let few = Counted { slices: AtomicUsize::new(0), most };
        let error = stopped.one(&unit, &few).unwrap_err();
        assert!(matches!(error, AuditError::Stopped(_)), "{error}");
        assert_eq!(stopped.one(&unit, &endless).unwrap(), expected);
    }
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    score(&[0.0, f32::NAN], 0).unwrap_err();
    score(&[f32::NEG_INFINITY, 1.0], 0).unwrap_err();
    assert_eq!(score(&[f32::NEG_INFINITY, 1.0], 1).unwrap(), 0.0);
}
