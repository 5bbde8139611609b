//! `golden_sampling`: probabilities after penalties, temperature, min_p, top_k and top_p, greedy choice, log-softmax.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a golden test stops at a file that it cannot read")]

use evenkeel::engine::Sampling;
use evenkeel::engine::sampler::{History, first_maximum, log_sum_exp, probabilities};
use serde_json::Value;

use super::{Tally, cases, json};

/// f32 softmax of a reference that sums in another order.
const TOLERANCE: f64 = 1e-5;
/// Log-probabilities of f32 logits up to some thousands: one unit in the last place, relative.
const LOG_TOLERANCE: f64 = 1e-6;

fn numbers(value: &Value) -> Vec<f64> {
    let number = |v: &Value| match v.as_str() {
        Some("-inf") => f64::NEG_INFINITY,
        Some(other) => panic!("not a number: {other}"),
        None => v.as_f64().unwrap(),
    };
    value.as_array().unwrap().iter().map(number).collect()
}

fn logits(file: &Value, name: &str) -> Vec<f32> {
    numbers(&file["logits"][name]).into_iter().map(|l| l as f32).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Reads the parameters of a case; one that is not known must not be passed over.
fn sampling(params: &Value) -> Sampling {
    let mut sampling = Sampling {
        max_new_tokens: 1,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
        logit_bias: Vec::new(),
    };
    for (name, value) in params.as_object().unwrap() {
        let number = value.as_f64().unwrap();
        match name.as_str() {
            "temperature" => sampling.temperature = number,
            "top_p" => sampling.top_p = number,
            "top_k" => sampling.top_k = usize::try_from(value.as_u64().unwrap()).unwrap(),
            "min_p" => sampling.min_p = number,
            "repetition_penalty" => sampling.repetition_penalty = number,
            "presence_penalty" => sampling.presence_penalty = number,
            "frequency_penalty" => sampling.frequency_penalty = number,
            other => panic!("unknown parameter {other}"),
        }
    }
    sampling
}

/// Checks a case. At an `edge`, which of equally likely tokens stay is free; how many, and how likely, is not.
fn check(tally: &mut Tally, what: &str, got: &[f32], expected: &[f64], case: &Value) {
    let mut got: Vec<f64> = got.iter().map(|&p| f64::from(p)).collect();
    let mut expected = expected.to_vec();
    if case.get("edge").is_some() {
        got.sort_by(f64::total_cmp);
        expected.sort_by(f64::total_cmp);
    }
    tally.close_slices(what, &got, &expected, TOLERANCE);
    let kept = got.iter().filter(|&&p| p > 0.0).count() as u64;
    let expected_kept = expected.iter().filter(|&&p| p > 0.0).count() as u64;
    tally.equal(&format!("{what}: kept"), &kept, &expected_kept);
}

/// Returns what transformers computes: min_p after all other steps, of what they left.
fn by_transformers(logits: &[f32], sampling: &Sampling, history: &History) -> Vec<f32> {
    let others = Sampling { min_p: 0.0, ..sampling.clone() };
    let mut kept = probabilities(logits, &others, history).unwrap();
    let least = sampling.min_p * f64::from(kept.iter().copied().fold(0.0, f32::max));
    kept.iter_mut().filter(|p| f64::from(**p) < least).for_each(|p| *p = 0.0);
    let total: f64 = kept.iter().copied().map(f64::from).sum();
    kept.into_iter().map(|p| (f64::from(p) / total) as f32).collect()
}

#[test]
fn golden_sampling() {
    let mut tally = Tally::new("golden_sampling");
    let path = super::root().join("sampling/expected.json");
    let mut files = cases("sampling", "expected.json").into_iter().map(|f| f.join("expected.json")).collect::<Vec<_>>();
    files.extend(path.is_file().then_some(path));
    for file in files {
        let file = json(&file);
        let (prompt, output) = (ids(&file["prompt_ids"]), ids(&file["output_ids"]));
        let mut history = History::new(&prompt);
        output.iter().for_each(|&id| history.push(id));
        for case in file["cases"].as_array().unwrap() {
            let name = case["logits"].as_str().unwrap();
            let what = format!("{name} {}", case["params"]);
            let (logits, sampling) = (logits(&file, name), sampling(&case["params"]));
            let got = probabilities(&logits, &sampling, &history).unwrap();
            let expected = numbers(&case["vllm"]);
            check(&mut tally, &what, &got, &expected, case);
            // transformers has no presence and frequency penalty, and values of its own only where its order differs.
            if let Some(same) = case["hf"].as_str() {
                tally.equal(&format!("{what}: transformers"), &same, &"same");
                check(&mut tally, &what, &by_transformers(&logits, &sampling, &history), &expected, case);
            } else if case["hf"].is_array() {
                let differs = sampling.min_p > 0.0 && (sampling.top_p < 1.0 || sampling.top_k > 0);
                tally.equal(&format!("{what}: the orders differ"), &differs, &true);
                let expected = numbers(&case["hf"]);
                check(&mut tally, &what, &by_transformers(&logits, &sampling, &history), &expected, case);
            }
            if let Some(kept) = case["kept"].as_u64() {
                tally.equal(&format!("{what}: count"), &(got.iter().filter(|&&p| p > 0.0).count() as u64), &kept);
            }
            tally.case();
        }
        for (name, expected) in file["greedy_first_maximum"].as_object().unwrap() {
            let got = first_maximum(&logits(&file, name)).unwrap();
            tally.equal(&format!("greedy {name}"), &u64::from(got), &expected.as_u64().unwrap());
            tally.case();
        }
        for (name, expected) in file["log_softmax"].as_object().unwrap() {
            let logits = logits(&file, name);
            let total = log_sum_exp(&logits).unwrap();
            let got: Vec<f64> = logits.iter().map(|&l| f64::from(l) - total).collect();
            let expected = numbers(expected);
            let size = expected.iter().filter(|e| e.is_finite()).fold(1.0, |a: f64, e| a.max(e.abs()));
            tally.close_slices(&format!("log_softmax {name}"), &got, &expected, LOG_TOLERANCE * size);
            tally.case();
        }
    }
    tally.finish();
}
