//! Values of groups as dots on one line each, with their intervals and the value over all rows.
//!
//! A model that has no value for a group is named there with the reason.

use super::{Anchor, Axis, Drawing, LEFT, RIGHT, Titled, colour};
use crate::audit::render::pick::{self, Measure, Sheet};
use crate::audit::render::words::{absence, group_name, measure_words, model_name, value_words};
use crate::audit::report::{Figure, Group, Status};

const LABEL: f64 = 15.0;
const ROW: f64 = 11.0;

/// Draws one measure of all groups of an attribute for all models.
pub(in super::super) fn dots(sheet: &Sheet, attribute: &str, measure: Measure) -> Option<Titled> {
    let groups = pick::drawn_groups(sheet.report, attribute);
    let models = sheet.report.models.len();
    let figures = |group: Option<&Group>| -> Vec<&Figure> {
        (0..models).filter_map(|model| sheet.own(model, group, measure)).collect()
    };
    let shown: Vec<&Figure> = groups.iter().flat_map(|group| figures(Some(group))).chain(figures(None)).collect();
    if groups.iter().all(|group| figures(Some(group)).is_empty()) {
        return None;
    }
    let ends = shown.iter().filter(|figure| pick::value(figure).is_some()).flat_map(|figure| {
        let interval = figure.interval.as_ref();
        [figure.value, interval.map(|i| i.low), interval.map(|i| i.high)].into_iter().flatten()
    });
    let axis = Axis::around(ends, LEFT, RIGHT);
    let lines = |group: &&Group| if nobody(&figures(Some(group)), models).is_some() { 1 } else { models };
    let height: f64 = groups.iter().map(|group| LABEL + lines(group) as f64 * ROW + 5.0).sum();
    let mut drawing = Drawing::new(height + 22.0);
    drawing.across(&axis, 2.0, height + 4.0);
    for model in 0..models {
        if let Some(value) = sheet.own(model, None, measure).and_then(pick::value) {
            let x = axis.at(value);
            drawing.line(&format!("overall {}", colour(model)), (x, 2.0), (x, height + 4.0));
        }
    }
    let mut y = 0.0;
    for group in &groups {
        let n = figures(Some(group)).first().map_or(group.rows, |figure| figure.n);
        let name = group_name(group.value.as_deref());
        drawing.text("name", (LEFT, y + 11.0), Anchor::Start, name, 40);
        drawing.text("count", (RIGHT, y + 11.0), Anchor::End, &format!("n {n}"), 16);
        y += LABEL;
        if let Some(why) = nobody(&figures(Some(group)), models) {
            drawing.text("absent", (LEFT + 8.0, y + 8.0), Anchor::Start, &format!("all models: {why}"), 56);
            y += ROW + 5.0;
            continue;
        }
        for model in 0..models {
            row(&mut drawing, sheet, (model, group, measure), &axis, y + ROW / 2.0);
            y += ROW;
        }
        y += 5.0;
    }
    let title = measure_words(measure.0, measure.1);
    let label = format!(
        "{title} by {attribute}: {} groups, {models} models, with intervals; dashed lines are all rows. Numbers: see all figures.",
        groups.len()
    );
    Some(Titled { title: format!("{title} by group; dashed: all rows"), svg: drawing.finish(&label) })
}

/// Why no model has a value here, where it is the same for several of them.
fn nobody(figures: &[&Figure], models: usize) -> Option<String> {
    let mut reasons = figures.iter().map(|figure| absence(figure));
    let first = reasons.next()??;
    (models > 1 && figures.len() == models && reasons.all(|reason| reason.as_ref() == Some(&first))).then_some(first)
}

fn row(drawing: &mut Drawing, sheet: &Sheet, of: (usize, &Group, Measure), axis: &Axis, y: f64) {
    let (model, group, measure) = of;
    let name = model_name(sheet.report, model as u32);
    let Some(figure) = sheet.own(model, Some(group), measure) else {
        drawing.text("absent", (LEFT + 8.0, y + 3.0), Anchor::Start, &format!("{name}: not in the report"), 56);
        return;
    };
    let Some(value) = pick::value(figure) else {
        let why = absence(figure).unwrap_or_else(|| "no value".to_owned());
        drawing.text("absent", (LEFT + 8.0, y + 3.0), Anchor::Start, &format!("{name}: {why}"), 56);
        return;
    };
    if let Some(interval) = &figure.interval {
        drawing.whisker(model, axis.at(interval.low), axis.at(interval.high), y);
    }
    let title = format!("{name}, {}: {}", group_name(group.value.as_deref()), value_words(figure));
    drawing.mark(model, (axis.at(value), y), figure.status == Status::LowSupport, &title);
}
