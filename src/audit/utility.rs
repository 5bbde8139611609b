//! Gaps beside utility: which model is as useful as another, so that their gaps can be compared.
//!
//! Chooses by the audited rows, among the models of the report; trains nothing. The differences are figures of the report,
//! paired on the same rows. Where models are chosen for being alike, how alike they are is no test.
//! After: Ding et al. 2024, arXiv 2405.17512, whose scripts compare full fine-tuning with the LoRA run of the same F1.

use super::report::{Figure, Interval, Matched, Model, ModelKind, Scope};
use super::settings::UtilityMatch;

/// What utility is where nobody says: the first of these that models are compared by.
const USUAL: [&str; 2] = ["accuracy", "bits_per_byte"];

/// Returns the measure of utility: the one asked for, else the first usual one.
pub fn measure<'a>(figures: &'a [Figure], asked: Option<&'a UtilityMatch>) -> Option<&'a str> {
    if let Some(asked) = asked {
        return Some(&asked.measure);
    }
    USUAL.into_iter().find(|usual| figures.iter().any(|figure| is_difference(figure, usual)))
}

/// Returns the difference of utility of two models over all rows.
pub fn difference<'a>(figures: &'a [Figure], (model, versus): (u32, u32), measure: &str) -> Option<&'a Figure> {
    figures
        .iter()
        .find(|figure| (figure.model, figure.versus) == (model, Some(versus)) && is_difference(figure, measure))
}

/// Returns the model whose utility is nearest to that of the one asked for; the base model is none to choose.
pub fn matched(figures: &[Figure], models: &[Model], asked: &UtilityMatch) -> Option<Matched> {
    let reference = match &asked.reference {
        Some(name) => models.iter().position(|model| model.name == *name)?,
        None => 0,
    };
    let reference = u32::try_from(reference).ok()?;
    let candidate = |figure: &Figure| {
        let (model, difference, interval) = beside(figure, reference)?;
        let is_base = models.get(model as usize).is_none_or(|model| model.kind == ModelKind::Base);
        (!is_base && is_difference(figure, &asked.measure)).then_some((model, difference, interval))
    };
    let nearest = figures.iter().filter_map(candidate).min_by(|(_, a, _), (_, b, _)| a.abs().total_cmp(&b.abs()));
    let (model, difference, interval) = nearest?;
    let inside = |bound: f64| bound.abs() <= asked.tolerance;
    let within = interval.as_ref().is_some_and(|interval| inside(interval.low) && inside(interval.high));
    let (measure, tolerance) = (asked.measure.clone(), asked.tolerance);
    Some(Matched { model, versus: reference, measure, tolerance, difference, interval, within })
}

/// Returns the model that a figure compares with this one, and how much more it has; of two, the later is listed first.
fn beside(figure: &Figure, reference: u32) -> Option<(u32, f64, Option<Interval>)> {
    let (value, versus, interval) = (figure.value?, figure.versus?, figure.interval.clone());
    if versus == reference {
        return Some((figure.model, value, interval));
    }
    let turned = |interval: Interval| Interval { low: -interval.high, high: -interval.low, ..interval };
    (figure.model == reference).then(|| (versus, -value, interval.map(turned)))
}

fn is_difference(figure: &Figure, measure: &str) -> bool {
    figure.versus.is_some()
        && figure.scope == Scope::Overall
        && figure.control.is_none()
        && figure.class.is_none()
        && figure.measure == measure
}

#[cfg(test)]
mod tests {
    use super::super::render::sample::report;
    use super::super::report::Report;
    use super::*;

    fn chosen(report: &Report, tolerance: f64) -> Option<Matched> {
        let asked = UtilityMatch { reference: None, measure: "accuracy".into(), tolerance };
        matched(&report.figures, &report.models, &asked)
    }

    #[test]
    fn the_nearest_model_is_chosen_and_its_interval_says_whether_it_is_within_the_tolerance() {
        // Differences of −0.01, 0.01 and 0.03, each with an interval from −0.03 to +0.04 around it.
        let mut report = report();
        let first = chosen(&report, 0.05).unwrap();
        assert_eq!((first.model, first.versus, first.within), (1, 0, true));
        assert!((first.difference + 0.01).abs() < 1e-12, "{first:?}");
        assert!(!chosen(&report, 0.039).unwrap().within, "it may be 0.04 below");
        let other = report.figures.iter_mut().find(|f| f.versus.is_some() && f.model == 2 && f.scope == Scope::Overall);
        let other = other.unwrap();
        (other.value, other.interval) = (Some(-0.001), None);
        let nearest = chosen(&report, 0.05).unwrap();
        assert_eq!((nearest.model, nearest.within), (2, false), "nothing is known without an interval");
        report.models[2].kind = ModelKind::Base;
        assert_eq!(chosen(&report, 0.05).unwrap().model, 1);
        report.figures.retain(|figure| figure.versus.is_none());
        assert_eq!(chosen(&report, 0.05), None);
    }

    #[test]
    fn any_model_can_be_the_one_to_be_near_to() {
        let mut report = report();
        let last = |f: &&Figure| f.versus.is_some() && f.model == 3 && f.scope == Scope::Overall;
        let figure = report.figures.iter().find(last).unwrap().clone();
        // The last model minus the second: 0.03, from 0 to 0.07.
        report.figures.push(Figure { versus: Some(1), ..figure });
        let near = |reference: usize| {
            let reference = Some(report.models[reference].name.clone());
            let asked = UtilityMatch { reference, measure: "accuracy".into(), tolerance: 0.08 };
            matched(&report.figures, &report.models, &asked)
        };
        let last = near(1).unwrap();
        assert_eq!((last.model, last.versus, last.within), (3, 1, true));
        let second = near(3).unwrap();
        assert_eq!((second.model, second.versus), (1, 3));
        let (last, second) = (last.interval.unwrap(), second.interval.unwrap());
        assert_eq!((second.low, second.high), (-last.high, -last.low));
        assert_eq!(near(2), None, "it is compared with the base model only");
        let asked = UtilityMatch { reference: Some("nobody".into()), measure: "accuracy".into(), tolerance: 1.0 };
        assert_eq!(matched(&report.figures, &report.models, &asked), None);
    }

    #[test]
    fn utility_is_what_is_asked_for_or_the_first_usual_measure() {
        let mut report = report();
        assert_eq!(measure(&report.figures, None), Some("accuracy"));
        let asked = UtilityMatch { reference: None, measure: "tpr".into(), tolerance: 0.1 };
        assert_eq!(measure(&report.figures, Some(&asked)), Some("tpr"));
        for figure in report.figures.iter_mut().filter(|figure| figure.measure == "accuracy") {
            figure.measure = "bits_per_byte".into();
        }
        assert_eq!(measure(&report.figures, None), Some("bits_per_byte"));
        assert!(difference(&report.figures, (1, 0), "bits_per_byte").is_some());
        assert!(difference(&report.figures, (0, 1), "bits_per_byte").is_none());
    }
}
