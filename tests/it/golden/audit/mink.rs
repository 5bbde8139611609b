//! `mink.json`: loss, Min-K% and Min-K%++ from logits.

use evenkeel::audit::statistics::Measured;
use evenkeel::audit::statistics::mink::{TokenStats, loss_score, min_k, min_k_plus_plus};
use serde_json::Value;

use super::attacks::{Points, flags};
use super::{Check, indices, names, numbers};

pub(super) fn mink(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    let (member, group) = (flags(&inputs["member"]), names(&inputs["group"]));
    let texts: Vec<Vec<TokenStats>> = inputs["sequences"].as_array().unwrap().iter().map(tokens).collect();
    for (i, (text, expected)) in texts.iter().zip(expected["per_sequence"].as_array().unwrap()).enumerate() {
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("text {i}, {name}");
            match name.as_str() {
                "token_log_prob" => check.numbers(&what, &column(text, |t| t.log_probability), value),
                "mu" => check.numbers(&what, &column(text, |t| t.mean), value),
                "sigma" => check.numbers(&what, &column(text, |t| t.deviation), value),
                "loss" => check.measured(&what, score("loss", text), value),
                "mink" | "minkpp" => {
                    for (ratio, value) in value.as_object().unwrap() {
                        check.measured(&format!("{what} {ratio}"), score(&format!("{name}_{ratio}"), text), value);
                    }
                }
                "k" => {}
                _ => check.fault(&format!("{what} is not known")),
            }
        }
    }
    for (name, expected) in expected["metrics"].as_object().unwrap() {
        let scored = texts.iter().map(|text| score(name, text)).enumerate();
        let scored: Vec<(usize, f64)> = scored.filter_map(|(i, score)| Some((i, score.ok()?))).collect();
        let scores: Vec<f64> = scored.iter().map(|(_, score)| *score).collect();
        let member: Vec<bool> = scored.iter().map(|(i, _)| member[*i]).collect();
        let group: Vec<String> = scored.iter().map(|(i, _)| group[*i].clone()).collect();
        Points { score: &scores, member: &member, group: &group }.compare(name, expected, check);
    }
}

fn tokens(text: &Value) -> Vec<TokenStats> {
    let logits = text["logits"].as_array().unwrap().iter();
    logits.zip(indices(&text["token"])).map(|(logits, token)| TokenStats::new(&numbers(logits), token)).collect()
}

fn column(text: &[TokenStats], of: fn(&TokenStats) -> f64) -> Vec<f64> {
    text.iter().map(of).collect()
}

fn score(name: &str, text: &[TokenStats]) -> Measured {
    let logs = column(text, |t| t.log_probability);
    match name.split_once('_') {
        Some(("mink", ratio)) => min_k(&logs, ratio.parse().unwrap()),
        Some(("minkpp", ratio)) => min_k_plus_plus(text, ratio.parse().unwrap()),
        _ => loss_score(&logs),
    }
}
