//! How far figures vary over seeds: models that were trained alike but for the seed, and their figures together.
//!
//! Read from a report, not kept in it: all of it follows from its models and figures. Says nothing of rows that were drawn
//! otherwise: that is what intervals are for. The deviation is that of a sample (n − 1).

use std::collections::BTreeMap;

use serde_json::Value;

use super::report::{Figure, Model, Report, Scope, Status, Training};

/// One figure over the seeds of a family of models.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread<'a> {
    /// Indices into [`Report::models`], those without a value too.
    pub models: Vec<u32>,
    /// The figure of the first of them: what is measured.
    pub of: &'a Figure,
    /// Models with a value, two or more.
    pub n: u64,
    /// Mean of their values.
    pub mean: f64,
    /// Standard deviation of their values.
    pub deviation: f64,
    /// Smallest value.
    pub minimum: f64,
    /// Largest value.
    pub maximum: f64,
}

/// Returns how figures of all rows, and gaps, vary over seeds; in the order of models and figures.
pub fn spreads(report: &Report) -> Vec<Spread<'_>> {
    let families = families(report);
    if families.is_empty() {
        return Vec::new();
    }
    let mut values: BTreeMap<_, f64> = BTreeMap::new();
    for figure in report.figures.iter().filter(|figure| is_spread(figure)) {
        if let Some(value) = figure.value.filter(|_| matches!(figure.status, Status::Ok | Status::LowSupport)) {
            values.entry((figure.model, what(figure))).or_insert(value);
        }
    }
    let mut spreads = Vec::new();
    for models in families {
        let first = models.first().copied();
        for figure in report.figures.iter().filter(|figure| Some(figure.model) == first && is_spread(figure)) {
            let own: Vec<f64> =
                models.iter().filter_map(|model| values.get(&(*model, what(figure))).copied()).collect();
            spreads.extend(spread(&models, figure, &own));
        }
    }
    spreads
}

/// Models that were trained alike but for the seed, two or more each.
fn families(report: &Report) -> Vec<Vec<u32>> {
    let seed = |index: u32| report.models.get(index as usize)?.training.as_ref().map(|training| training.seed);
    let mut families: Vec<(Value, Vec<u32>)> = Vec::new();
    for (index, model) in (0_u32..).zip(&report.models) {
        let Some(like) = but_for_the_seed(model) else { continue };
        match families.iter_mut().find(|(other, _)| *other == like) {
            // The same model under another name is no other draw.
            Some((_, models)) if models.iter().any(|other| seed(*other) == seed(index)) => {}
            Some((_, models)) => models.push(index),
            None => families.push((like, vec![index])),
        }
    }
    families.into_iter().map(|(_, models)| models).filter(|models| models.len() > 1).collect()
}

fn but_for_the_seed(model: &Model) -> Option<Value> {
    let training = model.training.as_ref()?;
    let mut settings = training.settings.clone();
    settings.as_object_mut()?.remove("seed");
    let Training { dataset, rank, alpha, layers, step, .. } = training;
    Some(serde_json::json!([model.kind, model.scale, dataset, rank, alpha, layers, step, settings]))
}

fn is_spread(figure: &Figure) -> bool {
    figure.versus.is_none()
        && figure.control.is_none()
        && matches!(figure.scope, Scope::Overall | Scope::Difference | Scope::Attribute)
}

/// What a figure is of, whatever its model.
fn what(figure: &Figure) -> (Option<&str>, &Scope, &str, Option<&str>) {
    (figure.attribute.as_deref(), &figure.scope, &figure.measure, figure.class.as_deref())
}

fn spread<'a>(models: &[u32], of: &'a Figure, values: &[f64]) -> Option<Spread<'a>> {
    if values.len() < 2 {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    // Values at the ends of what a number can be have no mean that is one.
    squares.is_finite().then(|| Spread {
        models: models.to_vec(),
        of,
        n: values.len() as u64,
        mean,
        deviation: (squares / (n - 1.0)).sqrt(),
        minimum: values.iter().copied().fold(f64::INFINITY, f64::min),
        maximum: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}

#[cfg(test)]
mod tests {
    use super::super::render::sample;
    use super::*;

    /// Models 1 and 2 differ in their seeds only.
    fn report() -> Report {
        let mut report = sample::report();
        let training = |report: &mut Report, model: usize, seed: u64| {
            let training = report.models[model].training.as_mut().unwrap();
            (training.seed, training.rank, training.alpha) = (seed, Some(8), Some(16.0));
            training.settings = serde_json::json!({ "seed": seed, "learning_rate": 0.5 });
        };
        training(&mut report, 1, 1);
        training(&mut report, 2, 2);
        report
    }

    #[test]
    fn figures_of_models_that_differ_in_the_seed_are_taken_together() {
        let report = report();
        let spreads = spreads(&report);
        assert!(spreads.iter().all(|spread| spread.models == [1, 2] && spread.n == 2), "{spreads:?}");
        let gap = spreads
            .iter()
            .find(|spread| spread.of.measure == "accuracy" && spread.of.attribute.as_deref() == Some("region"));
        let gap = gap.unwrap();
        // 0.08 and 0.11.
        for (found, expected) in
            [(gap.mean, 0.095), (gap.deviation, 0.03 / 2_f64.sqrt()), (gap.minimum, 0.08), (gap.maximum, 0.11)]
        {
            assert!((found - expected).abs() < 1e-12, "{gap:?}");
        }
        assert!(spreads.iter().any(|spread| spread.of.scope == Scope::Overall));
        assert!(spreads.iter().all(|spread| !matches!(spread.of.scope, Scope::Group(_))));
    }

    #[test]
    fn other_models_and_figures_without_a_value_are_left_out() {
        assert_eq!(spreads(&sample::report()), [], "their ranks differ too");
        let mut scaled = report();
        scaled.models[2].scale = 0.5;
        assert_eq!(spreads(&scaled), []);
        let mut twice = report();
        twice.models[2].training.as_mut().unwrap().seed = 1;
        assert_eq!(spreads(&twice), []);
        let mut elsewhere = report();
        elsewhere.models[2].training.as_mut().unwrap().dataset = "others".to_owned();
        assert_eq!(spreads(&elsewhere), []);
        let mut later = report();
        later.models[2].training.as_mut().unwrap().step = Some(7);
        assert_eq!(spreads(&later), []);
        later.models[1].training.as_mut().unwrap().step = Some(7);
        assert_eq!(spreads(&later).len(), spreads(&report()).len());
        let mut missing = report();
        let all = spreads(&report()).len();
        let figure = missing.figures.iter_mut().find(|figure| figure.model == 2 && figure.scope == Scope::Overall);
        figure.unwrap().status = Status::Suppressed;
        assert_eq!(spreads(&missing).len(), all - 1);
    }
}
