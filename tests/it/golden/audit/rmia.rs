//! `rmia.json`: ml_privacy_meter's offline attack.

use evenkeel::audit::statistics::rmia::{Population, offline_ratio};
use serde_json::Value;

use super::attacks::{Points, flags};
use super::{Check, names, numbers};

pub(super) fn rmia(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    let rows = |name: &str| inputs[name].as_array().unwrap().clone();
    let (member, group) = (flags(&inputs["target_membership"]), names(&inputs["group"]));
    for (a, expected) in expected["offline_a"].as_object().unwrap() {
        let a: f64 = a.parse().unwrap();
        let half = rows("reference_confidence")[0].as_array().unwrap().len() / 2;
        let population = numbers(&inputs["population_target_confidence"]);
        let ratios = population.iter().zip(rows("population_reference_confidence"));
        let ratios = ratios.map(|(target, out)| offline_ratio(*target, &numbers(&out), a, half).unwrap());
        let population = Population::new(ratios.collect()).unwrap();
        let points = numbers(&inputs["target_confidence"]).into_iter().zip(rows("reference_confidence"));
        let scores = points.zip(rows("reference_membership")).map(|((target, references), member)| {
            let references = numbers(&references).into_iter().zip(flags(&member));
            let out: Vec<f64> = references.filter(|(_, member)| !member).map(|(p, _)| p).collect();
            population.score(offline_ratio(target, &out, a, half).unwrap(), 1.0)
        });
        let scores: Vec<f64> = scores.collect();
        check.numbers(&format!("a = {a}"), &scores, &expected["scores"]);
        let points = Points { score: &scores, member: &member, group: &group };
        points.compare(&format!("a = {a}"), &expected["metrics"], check);
    }
}
