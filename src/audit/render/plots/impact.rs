//! Selection rates of groups as shares of the largest one, as bars.
//!
//! The line at 0.8 is the four-fifths rule, by which cases are screened; it decides nothing. After: 29 CFR 1607.4 D.

use super::{Anchor, Axis, Drawing, LEFT, RIGHT, Titled, colour};
use crate::audit::render::pick::{self, Measure, Sheet};
use crate::audit::render::words::{absence, group_name, model_name, number, value_words};
use crate::audit::report::Scope;

const MEASURE: Measure = ("selection_rate", None);
const RULE: f64 = 0.8;

/// Draws the impact ratios of one model's groups; none without selection rates.
pub(in super::super) fn impact(sheet: &Sheet, attribute: &str, model: usize) -> Option<Titled> {
    let groups = pick::drawn_groups(sheet.report, attribute);
    let figures: Vec<_> = groups.iter().map(|group| sheet.own(model, Some(group), MEASURE)).collect();
    // The largest may be of a group that is not drawn.
    let all = pick::groups(sheet.report, attribute);
    let rates = all.iter().filter_map(|group| sheet.own(model, Some(group), MEASURE)).filter_map(pick::value);
    let largest = rates.fold(0.0, f64::max);
    if largest <= 0.0 {
        return None;
    }
    let axis = Axis::exact(0.0, 1.0, LEFT, RIGHT);
    let height = groups.len() as f64 * 30.0 + 16.0;
    let mut drawing = Drawing::new(height + 16.0);
    drawing.across(&axis, 14.0, height);
    let top = |row: usize| 14.0 + row as f64 * 30.0;
    let ratios: Vec<Option<f64>> =
        figures.iter().map(|figure| figure.and_then(pick::value).map(|value| value / largest)).collect();
    for (row, ratio) in ratios.iter().enumerate() {
        let length = ratio.map_or(0.0, |ratio| axis.at(ratio) - LEFT);
        drawing.rect(&format!("s {}", colour(model)), (LEFT, top(row) + 15.0), (length, 9.0));
    }
    let x = axis.at(RULE);
    drawing.line("rule", (x, 12.0), (x, height));
    drawing.text("tick", (x, 9.0), Anchor::Middle, "0.8: screening rule", 30);
    for (row, (group, figure)) in groups.iter().zip(&figures).enumerate() {
        let y = top(row);
        drawing.text("name", (LEFT, y + 11.0), Anchor::Start, group_name(group.value.as_deref()), 36);
        match (ratios[row], figure) {
            (Some(ratio), Some(figure)) => {
                let text = format!("{} (n {})", number(ratio), figure.n);
                drawing.text("count", (RIGHT, y + 11.0), Anchor::End, &text, 24);
            }
            (_, figure) => {
                let why = figure.and_then(absence).unwrap_or_else(|| "not in the report".to_owned());
                drawing.text("absent", (LEFT + 8.0, y + 22.0), Anchor::Start, &why, 56);
            }
        }
    }
    let name = model_name(sheet.report, model as u32);
    let ratio = sheet.figure((model, None), (Some(attribute), &Scope::Ratio), MEASURE);
    let smallest = ratio.map(|figure| format!("; smallest over largest {}", value_words(figure))).unwrap_or_default();
    let label =
        format!("Selection rates of the groups of {attribute} by {name}, as shares of the largest one. A line at 0.8.");
    Some(Titled { title: format!("{name}: impact ratio of each group{smallest}"), svg: drawing.finish(&label) })
}
