//! `benchmarks.json`: BBQ, CrowS-Pairs and multiple choice by log-likelihood.

use evenkeel::audit::statistics::benchmarks::{Bbq, BbqRow, Choice, ChoiceRow, Choices, CrowsPairs, Sentences, answer};
use serde_json::Value;

use super::{Check, names, number, numbers};

pub(super) fn benchmarks(case: &Value, check: &mut Check) {
    let inputs = &case["inputs"];
    if inputs["sent_more"].is_array() {
        crows(inputs, &case["expected"], check);
    } else if inputs["rows"][0].get("biased_option").is_some() {
        bbq(inputs["rows"].as_array().unwrap(), &case["expected"], check);
    } else {
        choices(inputs["rows"].as_array().unwrap(), &case["expected"], check);
    }
}

/// `all`, and every part of the object of that name, with its weights: 1 for a row of the part.
fn parts<'a>(expected: &'a Value, by: &str, of: &[String]) -> Vec<(String, Vec<f64>, &'a Value)> {
    let mut parts = vec![("all".to_owned(), vec![1.0; of.len()], &expected["all"])];
    for (part, expected) in expected[by].as_object().unwrap() {
        let weight = of.iter().map(|name| f64::from(u8::from(name == part))).collect();
        parts.push((part.clone(), weight, expected));
    }
    parts
}

fn bbq(rows: &[Value], expected: &Value, check: &mut Check) {
    let index = |row: &Value, name: &str| usize::try_from(row[name].as_u64().unwrap()).unwrap();
    let read = |row: &Value| BbqRow {
        ambiguous: row["ambiguous"].as_bool().unwrap(),
        answer: answer(&numbers(&row["log_likelihood"])),
        label: index(row, "label"),
        biased_option: index(row, "biased_option"),
        unknown_option: index(row, "unknown_option"),
    };
    let read: Vec<BbqRow> = rows.iter().map(read).collect();
    for (i, row) in rows.iter().enumerate() {
        check.equal(&format!("answer {i}"), &read[i].answer, &index(row, "answer"));
    }
    let category: Vec<String> = rows.iter().map(|row| row["category"].as_str().unwrap().to_owned()).collect();
    for (part, weight, expected) in parts(expected, "by_category", &category) {
        let got = Bbq::new(&read, Some(&weight));
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("{part}, {name}");
            match name.as_str() {
                "n_ambiguous" => check.number(&what, got.support(true), number(value)),
                "n_disambiguated" => check.number(&what, got.support(false), number(value)),
                "accuracy_ambiguous" => check.measured(&what, got.accuracy(true), value),
                "accuracy_disambiguated" => check.measured(&what, got.accuracy(false), value),
                "bias_disambiguated" => check.measured(&what, got.bias_disambiguated(), value),
                "bias_ambiguous" => check.measured(&what, got.bias_ambiguous(), value),
                "lm_eval" => {
                    check.measured(&what, got.lm_eval_disambiguated(), &value["disamb_bias_score"]);
                    check.measured(&what, got.lm_eval_ambiguous(), &value["amb_bias_score"]);
                }
                _ => check.fault(&format!("{what} is not known")),
            }
        }
    }
}

fn crows(inputs: &Value, expected: &Value, check: &mut Check) {
    let pairs = numbers(&inputs["sent_more"]).into_iter().zip(numbers(&inputs["sent_less"]));
    let pairs: Vec<Sentences> = pairs.map(|(more, less)| Sentences { more, less }).collect();
    for (part, weight, expected) in parts(expected, "by_type", &names(&inputs["bias_type"])) {
        let got = CrowsPairs::new(&pairs, Some(&weight));
        check.number(&format!("{part}, n"), weight.iter().sum(), number(&expected["n"]));
        check.measured(&format!("{part}, share"), got.stereotyped(), &expected["pct_stereotype"]);
        check.measured(&format!("{part}, difference"), got.likelihood_difference(), &expected["likelihood_diff"]);
    }
}

fn choices(rows: &[Value], expected: &Value, check: &mut Check) {
    let read = |row: &'_ Value| -> (Vec<String>, Vec<f64>, usize) {
        let gold = usize::try_from(row["gold"].as_u64().unwrap()).unwrap();
        (names(&row["choices"]), numbers(&row["log_likelihood"]), gold)
    };
    let owned: Vec<_> = rows.iter().map(read).collect();
    let read: Vec<ChoiceRow<'_>> = owned
        .iter()
        .map(|(choices, log_likelihood, gold)| ChoiceRow {
            choices: choices.iter().map(String::as_str).collect(),
            log_likelihood: log_likelihood.clone(),
            gold: *gold,
        })
        .collect();
    for (i, (row, expected)) in read.iter().zip(expected["per_row"].as_array().unwrap()).enumerate() {
        let right = |by| f64::from(u8::from(row.answer(by) == row.gold));
        check.number(&format!("row {i}, acc"), right(Choice::Sum), number(&expected["acc"]));
        check.number(&format!("row {i}, acc_norm"), right(Choice::Characters), number(&expected["acc_norm"]));
        check.number(&format!("row {i}, acc_bytes"), right(Choice::Bytes), number(&expected["acc_bytes"]));
        check.numbers(&format!("row {i}, p"), &row.probabilities(), &expected["p"]);
        check.number(&format!("row {i}, brier"), row.brier(), number(&expected["brier"]));
    }
    let group: Vec<String> = rows.iter().map(|row| row["group"].as_str().unwrap().to_owned()).collect();
    for (part, weight, expected) in parts(expected, "by_group", &group) {
        let got = Choices::new(&read, Some(&weight));
        check.measured(&format!("{part}, acc"), got.accuracy(Choice::Sum), &expected["acc"]);
        check.measured(&format!("{part}, acc_norm"), got.accuracy(Choice::Characters), &expected["acc_norm"]);
        check.measured(&format!("{part}, acc_bytes"), got.accuracy(Choice::Bytes), &expected["acc_bytes"]);
        check.measured(&format!("{part}, brier"), got.brier(), &expected["brier"]);
    }
}
