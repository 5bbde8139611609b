//! Differences between models with their intervals around zero, one line a figure.
//!
//! The differences are paired on the same rows; an interval that does not touch zero is evidence of one.

use super::{Anchor, Axis, Drawing, LEFT, RIGHT, Titled};
use crate::audit::render::pick::{self, Measure, Sheet};
use crate::audit::render::words::{absence, measure_words, scope_words, subject, value_words};
use crate::audit::report::{Figure, Report, Scope, Status};

const ROW: f64 = 26.0;

/// Draws the differences of one measure: over all rows, in each group, and of the gaps.
pub(in super::super) fn forest(sheet: &Sheet, attribute: &str, measure: Measure) -> Option<Titled> {
    let figures = rows(sheet, attribute, measure);
    if figures.is_empty() {
        return None;
    }
    let shown = figures.iter().filter(|figure| pick::value(figure).is_some());
    let ends = shown.flat_map(|figure| {
        let interval = figure.interval.as_ref();
        [figure.value, interval.map(|i| i.low), interval.map(|i| i.high)].into_iter().flatten()
    });
    let axis = Axis::around(ends.chain([0.0]), LEFT, RIGHT);
    let height = figures.len() as f64 * ROW + 4.0;
    let mut drawing = Drawing::new(height + 18.0);
    drawing.across(&axis, 2.0, height);
    drawing.line("zero", (axis.at(0.0), 2.0), (axis.at(0.0), height));
    for (row, figure) in figures.iter().enumerate() {
        line(&mut drawing, sheet.report, figure, &axis, row as f64 * ROW);
    }
    let title = measure_words(measure.0, measure.1);
    let label = format!(
        "Differences of {title} between models over all rows and in groups of {attribute}, with intervals around zero. \
         Numbers: see all figures."
    );
    Some(Titled { title: format!("{title}: differences between models"), svg: drawing.finish(&label) })
}

fn rows<'a>(sheet: &Sheet<'a>, attribute: &str, measure: Measure) -> Vec<&'a Figure> {
    let mut figures = Vec::new();
    for (model, versus) in pick::pairs(sheet.report) {
        let mut add = |place: (Option<&str>, &Scope)| {
            figures.extend(sheet.figure((model as usize, Some(versus)), place, measure));
        };
        add((None, &Scope::Overall));
        for group in pick::drawn_groups(sheet.report, attribute) {
            add((Some(attribute), &Scope::Group(group.value.clone())));
        }
        add((Some(attribute), &Scope::Difference));
    }
    figures
}

fn line(drawing: &mut Drawing, report: &Report, figure: &Figure, axis: &Axis, top: f64) {
    let what = match figure.scope {
        Scope::Difference => "gap between groups".to_owned(),
        Scope::Overall
        | Scope::Group(_)
        | Scope::Complement(_)
        | Scope::MemberMinusRest(_)
        | Scope::Minimum
        | Scope::Maximum
        | Scope::Ratio
        | Scope::DifferenceToOverall
        | Scope::RatioToOverall
        | Scope::Attribute => scope_words(&figure.scope),
    };
    drawing.text("name", (LEFT, top + 11.0), Anchor::Start, &what, 26);
    drawing.text("count", (RIGHT, top + 11.0), Anchor::End, &subject(report, figure), 30);
    let y = top + 19.0;
    let Some(value) = pick::value(figure) else {
        let why = absence(figure).unwrap_or_else(|| "no value".to_owned());
        drawing.text("absent", (LEFT + 8.0, y + 3.0), Anchor::Start, &why, 56);
        return;
    };
    let model = figure.model as usize;
    if let Some(interval) = &figure.interval {
        drawing.whisker(model, axis.at(interval.low), axis.at(interval.high), y);
    }
    let title = format!("{}, {what}: {}", subject(report, figure), value_words(figure));
    drawing.mark(model, (axis.at(value), y), figure.status == Status::LowSupport, &title);
}
