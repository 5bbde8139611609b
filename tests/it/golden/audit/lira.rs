//! `lira.json`: tensorflow-privacy, the script of Carlini et al. and sacroml.

use evenkeel::audit::statistics::lira::{Fit, Shadows, Variant, phi, stable_logit};
use evenkeel::audit::statistics::roc::{Roc, extremes};
use serde_json::Value;

use super::attacks::{Points, flags, flat};
use super::{Check, indices, names, number, numbers};

/// Scores are differences of large logarithms.
const SCORES: f64 = 1e-7;

pub(super) fn lira(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    if inputs["logits"].is_array() {
        return signals(inputs, expected, check);
    }
    let group = names(&inputs["group"]);
    let shadow_phi: Vec<f64> = flat(&inputs["shadow_confidence"]).into_iter().map(phi).collect();
    let member = flat(&inputs["shadow_membership"]).into_iter().map(|m| m == 1.0).collect::<Vec<_>>();
    let fit = Fit::new(Shadows { phi: &shadow_phi, member: &member, points: group.len() });
    fits(&fit, &expected["fit"], check);
    for (target, expected) in expected["targets"].as_array().unwrap().iter().enumerate() {
        let own_phi: Vec<f64> = numbers(&inputs["target_confidence"][target]).into_iter().map(phi).collect();
        let member = flags(&inputs["target_membership"][target]);
        for (name, scores) in expected["scores"].as_object().unwrap() {
            let Ok(variant) = serde_json::from_value::<Variant>(Value::from(name.clone())) else {
                check.fault(&format!("{name} is not known"));
                continue;
            };
            let got: Vec<f64> = fit.scores(variant, &own_phi).into_iter().map(Result::unwrap).collect();
            check.tolerance(SCORES);
            check.numbers(&format!("target {target}, {name}"), &got, scores);
            check.tolerance(super::RELATIVE);
            let points = Points { score: &got, member: &member, group: &group };
            points.compare(&format!("target {target}, {name}"), &expected["metrics"][name], check);
        }
        for (name, scores) in expected["scores_sacroml_mean_centre"].as_object().into_iter().flatten() {
            let variant = match name.as_str() {
                "offline" => Variant::OfflineOneSidedMean,
                "offline-carlini" => Variant::OfflineMean,
                "online-carlini" => Variant::OnlineMean,
                "online-carlini_fixed" => Variant::OnlineMeanFixedUncentred,
                _ => {
                    check.fault(&format!("{name} is not known"));
                    continue;
                }
            };
            let got: Vec<f64> = fit.scores(variant, &own_phi).into_iter().map(Result::unwrap).collect();
            check.tolerance(SCORES);
            check.numbers(&format!("target {target}, sacroml {name}"), &got, scores);
            check.tolerance(super::RELATIVE);
        }
        if let Some(expected) = expected.get("sacroml_metrics_of_online") {
            let scores = fit.scores(Variant::Online, &own_phi).into_iter().map(Result::unwrap).collect::<Vec<_>>();
            sacroml(&scores, &member, expected, check);
        }
    }
}

fn sacroml(score: &[f64], member: &[bool], expected: &Value, check: &mut Check) {
    let roc = Roc::new(score, member, None).unwrap();
    for (name, value) in expected.as_object().unwrap() {
        match name.as_str() {
            "auc_null_sd" => check.number(name, roc.auc_null_deviation(), number(value)),
            "auc_null_p" => check.measured(name, roc.auc_p_value(), value),
            "min_max_disc_10pct" => {
                let got = extremes(score, member, 0.1).unwrap();
                check.numbers(name, &[got.top, got.bottom, got.top - got.bottom, got.p_value], value);
            }
            "tpr_at_fpr_interp" => {
                for (percent, value) in value.as_object().unwrap() {
                    let t: f64 = percent.parse::<f64>().unwrap() / 100.0;
                    check.number(&format!("{name} {percent}"), roc.tpr_at_fpr(t).interpolated, number(value));
                }
            }
            _ => check.fault(&format!("{name} is not known")),
        }
    }
}

fn fits(fit: &Fit, expected: &Value, check: &mut Check) {
    for (name, values) in expected.as_object().unwrap() {
        let got = (0..values.as_array().unwrap().len()).map(|point| {
            let (inside, outside) = fit.point(point);
            match name.as_str() {
                "median_in" => inside.median,
                "std_in" => inside.deviation,
                "median_out" => outside.median,
                "std_out" => outside.deviation,
                _ => f64::NAN,
            }
        });
        check.numbers(name, &got.collect::<Vec<_>>(), values);
    }
}

fn signals(inputs: &Value, expected: &Value, check: &mut Check) {
    let rows: Vec<Vec<f64>> = inputs["logits"].as_array().unwrap().iter().map(numbers).collect();
    let label = indices(&inputs["y_true"]);
    let stable: Vec<f64> = rows.iter().zip(&label).map(|(row, label)| stable_logit(row, *label)).collect();
    check.numbers("stable logit", &stable, &expected["stable_logit"]);
    // ln p = −ln(1 + e^−φ).
    let log_p: Vec<f64> =
        stable.iter().map(|z| if *z > 0.0 { -(-z).exp().ln_1p() } else { z - z.exp().ln_1p() }).collect();
    check.numbers("stable log p", &log_p, &expected["stable_log_prob"]);
    // The logit of the library, from its own probabilities.
    let p = numbers(&expected["tensorflow_privacy"]["conf with prob"]);
    let from_p: Vec<f64> = p.into_iter().map(phi).collect();
    check.numbers("logit", &from_p, &expected["tensorflow_privacy"]["logit"]);
}
