//! Values of groups from model to model, one line a group.
//!
//! Shows which groups gain and lose; whether that is more than chance is said by the comparison beside it.

use super::{Anchor, Axis, Drawing, Titled, WIDTH, colour};
use crate::audit::render::pick::{self, Measure, Sheet};
use crate::audit::render::words::{group_name, measure_words, value_words};
use crate::audit::report::{Group, Status};

const TOP: f64 = 8.0;
const BOTTOM: f64 = 220.0;
const FIRST: f64 = 46.0;
const LAST: f64 = WIDTH - 100.0;

/// Draws one measure of all groups over the models; none for a single model or without two values in a group.
pub(in super::super) fn slope(sheet: &Sheet, attribute: &str, measure: Measure) -> Option<Titled> {
    let models = sheet.report.models.len();
    let groups = pick::drawn_groups(sheet.report, attribute);
    let points = |group: &&Group| {
        let figures = (0..models).filter_map(|model| Some((model, sheet.own(model, Some(group), measure)?)));
        figures.filter_map(|(model, figure)| Some((model, figure, pick::value(figure)?))).collect::<Vec<_>>()
    };
    let lines: Vec<_> = groups.iter().map(points).collect();
    if models < 2 || lines.iter().all(|line| line.len() < 2) {
        return None;
    }
    let axis = Axis::around(lines.iter().flatten().map(|(_, _, value)| *value), BOTTOM, TOP);
    let place = |model: usize| FIRST + (LAST - FIRST) * (model as f64 + 0.5) / models as f64;
    let mut drawing = Drawing::new(BOTTOM + 24.0);
    drawing.upward(&axis, 36.0, LAST);
    let letters = (46 / models).max(3);
    for (index, model) in sheet.report.models.iter().enumerate() {
        drawing.line("grid", (place(index), TOP), (place(index), BOTTOM));
        // Neighbours on two lines, so that long names do not meet.
        let y = if models > 3 && index % 2 == 1 { BOTTOM + 23.0 } else { BOTTOM + 12.0 };
        drawing.text(
            "tick",
            (place(index), y),
            Anchor::Middle,
            &model.name,
            if models > 3 { letters * 2 } else { letters },
        );
    }
    let mut names = Vec::new();
    for (group, line) in lines.iter().enumerate() {
        let name = group_name(groups[group].value.as_deref());
        let path: Vec<(f64, f64)> = line.iter().map(|(model, _, value)| (place(*model), axis.at(*value))).collect();
        drawing.path(&format!("p {}", colour(group)), &path);
        for ((_, figure, _), at) in line.iter().zip(&path) {
            drawing.mark(group, *at, figure.status == Status::LowSupport, &format!("{name}: {}", value_words(figure)));
        }
        if let Some((_, y)) = path.last() {
            names.push((*y, group, name));
        }
    }
    names.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut free = TOP;
    for (wanted, group, name) in names {
        let y = wanted.max(free);
        free = y + 11.0;
        drawing.mark(group, (LAST + 8.0, y), false, name);
        drawing.text("name", (LAST + 15.0, y + 3.5), Anchor::Start, name, 12);
    }
    drawing.height = drawing.height.max(free + 4.0);
    let title = measure_words(measure.0, measure.1);
    let label = format!("{title} of each group of {attribute}, from model to model. Numbers: see all figures.");
    Some(Titled {
        title: format!("{title}: groups from model to model (colours: groups)"),
        svg: drawing.finish(&label),
    })
}
