//! The gap between groups against what models of a sweep differ in: rank, alpha, steps, checkpoint, learning rate, or the
//! scale of their change.
//!
//! Values stand at equal distances in their order, not to scale. Models of unknown training are left out, and so is what
//! only follows another: alpha is often twice the rank.

use super::{Anchor, Axis, Drawing, Titled, WIDTH, colour};
use crate::audit::render::pick::{self, Measure, Sheet};
use crate::audit::render::words::{amount, measure_words, model_name, value_words};
use crate::audit::report::{Model, ModelKind, Report, Scope, Status};

const LEFT: f64 = 46.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 200.0;

/// A place on the axis across, and its label.
type Place = (f64, String);

/// Draws the gap of one measure against each thing that models differ in.
pub(in super::super) fn sweep(sheet: &Sheet, attribute: &str, measure: Measure) -> Vec<Titled> {
    let axes = axes(sheet.report);
    axes.iter().filter_map(|(word, places)| along((word, places), sheet, attribute, measure)).collect()
}

/// Draws the gap along one axis; none where fewer than two of its places have a value.
fn along((word, places): (&str, &[Option<Place>]), sheet: &Sheet, attribute: &str, measure: Measure) -> Option<Titled> {
    let gap = |model: usize| sheet.figure((model, None), (Some(attribute), &Scope::Difference), measure);
    let models =
        || (0..sheet.report.models.len()).filter_map(|model| Some((model, places.get(model)?.clone()?, gap(model)?)));
    let shown: Vec<_> =
        models().filter_map(|(model, place, figure)| Some((model, place, figure, pick::value(figure)?))).collect();
    let mut steps: Vec<Place> = shown.iter().map(|(_, place, _, _)| place.clone()).collect();
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    steps.dedup();
    if steps.len() < 2 {
        return None;
    }
    let ends = shown.iter().flat_map(|(_, _, figure, value)| {
        let interval = figure.interval.as_ref();
        [Some(*value), interval.map(|i| i.low), interval.map(|i| i.high)].into_iter().flatten()
    });
    let y = Axis::around(ends.chain([0.0]), BOTTOM, TOP);
    let at = |step: f64| LEFT + (RIGHT - LEFT) * (step + 0.5) / steps.len() as f64;
    let mut drawing = Drawing::new(BOTTOM + 30.0);
    drawing.upward(&y, LEFT, RIGHT);
    drawing.line("zero", (LEFT, y.at(0.0)), (RIGHT, y.at(0.0)));
    for (step, (_, name)) in steps.iter().enumerate() {
        drawing.text("tick", (at(step as f64), BOTTOM + 12.0), Anchor::Middle, name, 11);
    }
    drawing.text("tick", ((LEFT + RIGHT) / 2.0, BOTTOM + 25.0), Anchor::Middle, word, 40);
    for (order, (model, place, figure, value)) in shown.iter().enumerate() {
        let same = |of: &[_]| of.iter().filter(|(_, other, _, _)| other == place).count() as f64;
        let step = steps.iter().position(|step| step == place).unwrap_or(0);
        // Models of the same place stand side by side.
        let x = at(step as f64) + 6.0 * (same(&shown[..order]) - (same(&shown) - 1.0) / 2.0);
        if let Some(interval) = &figure.interval {
            drawing.line(&format!("w {}", colour(*model)), (x, y.at(interval.low)), (x, y.at(interval.high)));
        }
        let title = format!("{}: {}", model_name(sheet.report, *model as u32), value_words(figure));
        drawing.mark(*model, (x, y.at(*value)), figure.status == Status::LowSupport, &title);
    }
    let title = measure_words(measure.0, measure.1);
    let label = format!("Gap of {title} between groups of {attribute} against {word}. Numbers: see all figures.");
    Some(Titled { title: format!("{title}: gap between groups against {word}"), svg: drawing.finish(&label) })
}

/// What models differ in, and the place of each with its label.
fn axes(report: &Report) -> Vec<(&'static str, Vec<Option<Place>>)> {
    let number = |value: f64| Some((value, value.to_string()));
    let setting = |model: &Model, path: &str| {
        let value = model.training.as_ref().and_then(|training| training.settings.pointer(path)?.as_f64());
        value.and_then(number)
    };
    type Of<'a> = &'a dyn Fn(&Model) -> Option<Place>;
    let of: [(&str, Of<'_>); 6] = [
        ("rank", &rank_of),
        ("alpha", &|model| model.training.as_ref().and_then(|training| number(training.alpha?))),
        ("steps of training", &|model| setting(model, "/length/steps")),
        ("step of the checkpoint", &|model| number(model.training.as_ref()?.step? as f64)),
        ("learning rate", &|model| setting(model, "/learning_rate")),
        ("scale of the change", &|model| Some((model.scale, amount(model.scale)))),
    ];
    let mut axes: Vec<(&str, Vec<Option<Place>>)> = Vec::new();
    for (word, place) in of {
        let places: Vec<_> = report.models.iter().map(place).collect();
        let mut known = places.iter().flatten();
        let differ = known.next().is_some_and(|first| known.any(|other| other != first));
        if differ && !axes.iter().any(|(_, other)| follows(&places, other)) {
            axes.push((word, places));
        }
    }
    axes
}

/// Whether one axis tells no models apart, of those that it has a place for, that another does not.
fn follows(places: &[Option<Place>], other: &[Option<Place>]) -> bool {
    let both = || places.iter().zip(other).filter_map(|(place, other)| Some((place.as_ref()?, other)));
    both().all(|(place, other)| other.is_some() && both().all(|(p, o)| (p == place) == (o == other)))
}

fn rank_of(model: &Model) -> Option<Place> {
    let training = model.training.as_ref();
    match model.kind {
        ModelKind::Full => training.map(|_| (f64::MAX, "all weights".to_owned())),
        ModelKind::HeadOnly => Some((0.0, "head only".to_owned())),
        ModelKind::Adapter => training?.rank.map(|rank| (rank as f64, rank.to_string())),
        ModelKind::Base | ModelKind::Uploaded => None,
    }
}
