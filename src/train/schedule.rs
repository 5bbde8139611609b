//! The learning rate of a step.
//!
//! Knows nothing of optimisers or early ends. After: transformers `get_scheduler` (`constant_with_warmup`, `linear`,
//! `cosine`).

use std::f64::consts::PI;

use super::{Schedule, Settings};

/// Returns the learning rate that step `step` of `total_steps` uses, both counted as the loop counts them: from 0.
///
/// It rises in a line over the warm-up, so that with one the first step has 0; then it stays, or falls to 0 at
/// `total_steps` in a line or in half a cosine.
#[must_use]
pub fn learning_rate(settings: &Settings, step: u64, total_steps: u64) -> f64 {
    let (peak, warmup) = (settings.learning_rate, settings.warmup_steps);
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let after = total_steps.saturating_sub(warmup).max(1);
    let done = ((step - warmup) as f64 / after as f64).min(1.0);
    match settings.schedule {
        Schedule::Constant => peak,
        Schedule::Linear => peak * (1.0 - done),
        Schedule::Cosine => peak * 0.5 * (1.0 + (PI * done).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::order::tests::settings;

    fn rates(schedule: Schedule, warmup_steps: u64, total: u64) -> Vec<f64> {
        let settings = Settings { schedule, warmup_steps, learning_rate: 0.002, ..settings() };
        (0..total).map(|step| learning_rate(&settings, step, total)).collect()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-15, "{got} is not {expected}");
        }
    }

    #[test]
    fn rates_are_those_of_the_formulas() {
        let root = 0.75_f64.sqrt();
        assert_close(&rates(Schedule::Constant, 2, 4), &[0.0, 0.001, 0.002, 0.002]);
        assert_close(&rates(Schedule::Linear, 2, 6), &[0.0, 0.001, 0.002, 0.0015, 0.001, 0.0005]);
        // Cosines of 0, 30, 60, 90, 120 and 150 degrees.
        let cosine = [0.0, 0.002, 0.001 * (1.0 + root), 0.0015, 0.001, 0.0005, 0.001 * (1.0 - root)];
        assert_close(&rates(Schedule::Cosine, 1, 7), &cosine);
        assert_close(&rates(Schedule::Cosine, 0, 2), &[0.002, 0.001]);
    }

    #[test]
    fn rates_are_those_of_the_golden_runs() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/training");
        let mut compared = 0;
        for case in std::fs::read_dir(folder).unwrap() {
            let json = |name: &str| -> serde_json::Value {
                serde_json::from_slice(&std::fs::read(case.as_ref().unwrap().path().join(name)).unwrap()).unwrap()
            };
            let (recipe, steps) = (json("recipe.json"), json("steps.json"));
            let settings = Settings {
                schedule: serde_json::from_value(recipe["scheduler"].clone()).unwrap(),
                warmup_steps: recipe["warmup_steps"].as_u64().unwrap(),
                learning_rate: recipe["learning_rate"].as_f64().unwrap(),
                ..settings()
            };
            let total = recipe["steps"].as_u64().unwrap();
            for (step, expected) in (0..total).zip(steps.as_array().unwrap()) {
                let expected = expected["learning_rate"].as_f64().unwrap();
                assert_close(&[learning_rate(&settings, step, total)], &[expected]);
                compared += 1;
            }
        }
        assert!(compared > 0);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_only_rises() {
        assert_close(&rates(Schedule::Cosine, 4, 3), &[0.0, 0.0005, 0.001]);
        assert_close(&rates(Schedule::Linear, 3, 3), &[0.0, 0.002 / 3.0, 0.004 / 3.0]);
        let settings = Settings { schedule: Schedule::Linear, warmup_steps: 3, ..settings() };
        assert_eq!([3, 4, 99].map(|step| learning_rate(&settings, step, 3)), [settings.learning_rate, 0.0, 0.0]);
    }
}
