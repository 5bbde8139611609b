//! The figures of a report as CSV, one line a figure.
//!
//! Only figures: no settings, diagrams or curves. An absent field is empty. Numbers are written so that they can be read
//! back exactly.

use super::escape::visible;
use super::words::{group_name, scope_word, status_word};
use crate::audit::report::{Figure, Report, Scope, Status};

const HEADER: [&str; 27] = [
    "model",
    "versus",
    "attribute",
    "scope",
    "group",
    "control",
    "control_value",
    "measure",
    "class",
    "value",
    "status",
    "reason",
    "n",
    "weight",
    "groups_defined",
    "groups_total",
    "interval_method",
    "level",
    "low",
    "high",
    "test",
    "p",
    "p_adjusted",
    "null",
    "detectable",
    "smallest_group",
    "largest_group",
];

/// Writes all figures in the order of the report, below one header line.
///
/// A cell that a spreadsheet would take for a formula (it begins with `=`, `+`, `-`, `@`) gets a `'` before it; numbers
/// of ours never do. Control characters, line ends too, become U+FFFD: a terminal would obey them.
pub fn csv(report: &Report) -> String {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    // Writing to memory does not fail.
    let mut written = writer.write_record(HEADER);
    for figure in &report.figures {
        written = written.and_then(|()| writer.write_record(line(report, figure)));
    }
    let bytes = writer.into_inner().ok().filter(|_| written.is_ok()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

fn line(report: &Report, figure: &Figure) -> [String; 27] {
    let model = |index: u32| report.models.get(index as usize).map(|model| model.name.as_str());
    // The group of missing values and a figure of no group differ in their scope.
    let group = figure.scope.group().and_then(Option::as_deref);
    let control = figure.control.as_ref();
    let extreme = |place: Option<usize>| Some(group_name(figure.extremes.get(place?)?.as_deref()));
    let of = |smallest, largest| (extreme(smallest), extreme(largest));
    let (smallest, largest) = match figure.scope {
        Scope::Maximum => of(None, Some(0)),
        Scope::Overall
        | Scope::Group(_)
        | Scope::Complement(_)
        | Scope::MemberMinusRest(_)
        | Scope::Minimum
        | Scope::Difference
        | Scope::Ratio
        | Scope::DifferenceToOverall
        | Scope::RatioToOverall
        | Scope::Attribute => of(Some(0), Some(1)),
    };
    // What is not published is not here either, not even as what was found about it.
    let published = figure.status != Status::Suppressed;
    let interval = figure.interval.as_ref().filter(|_| published);
    let test = figure.test.as_ref().filter(|_| published);
    [
        text(model(figure.model)),
        text(figure.versus.and_then(model)),
        text(figure.attribute.as_deref()),
        scope_word(&figure.scope).to_owned(),
        text(group),
        text(control.map(|(column, _)| column.as_str())),
        text(control.and_then(|(_, value)| value.as_deref())),
        text(Some(&figure.measure)),
        text(figure.class.as_deref()),
        number(figure.value.filter(|_| published)),
        status_word(figure.status).to_owned(),
        text(figure.reason.as_deref()),
        figure.n.to_string(),
        number(Some(figure.weight)),
        figure.groups.map(|(defined, _)| defined.to_string()).unwrap_or_default(),
        figure.groups.map(|(_, total)| total.to_string()).unwrap_or_default(),
        text(interval.map(|interval| interval.method.as_str())),
        number(interval.map(|interval| interval.level)),
        number(interval.map(|interval| interval.low)),
        number(interval.map(|interval| interval.high)),
        text(test.map(|test| test.name.as_str())),
        number(test.map(|test| test.p)),
        number(test.and_then(|test| test.adjusted)),
        number(test.and_then(|test| test.null)),
        number(test.and_then(|test| test.detectable)),
        text(smallest.filter(|_| published)),
        text(largest.filter(|_| published)),
    ]
}

fn text(cell: Option<&str>) -> String {
    let cell: String = cell.unwrap_or_default().chars().map(visible).collect();
    if cell.starts_with(['=', '+', '-', '@']) { format!("'{cell}") } else { cell }
}

/// Shortest form that reads back as the same number; plain below 1e17, so that no spreadsheet loses it.
fn number(value: Option<f64>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
