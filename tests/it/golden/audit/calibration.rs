//! `calibration.json`: netcal, torchmetrics, uncertainty-calibration, scikit-learn and relplot.
//!
//! A name says the figure, the binning and the number of bins: `ece_mass_10`. Equal-mass figures by quantiles are left
//! out where `edges_on_points` lists their number of bins, and where the library refuses.

use evenkeel::audit::report::Scope;
use evenkeel::audit::settings::{Calibration, Settings};
use evenkeel::audit::statistics::auc::{brier, log_loss};
use evenkeel::audit::statistics::calibration::{Bins, Closure, Edges, top_label};
use evenkeel::audit::statistics::smooth_ece::{smooth_ece, smooth_ece_at};
use evenkeel::audit::uploaded::{Labels, Scores, Uploaded, UploadedModel};
use serde_json::Value;

use super::report::{Audited, Place, attribute, group, settings};
use super::{Check, indices, names, number, numbers};

struct Rows {
    confidence: Vec<f64>,
    hit: Vec<bool>,
}

impl Rows {
    fn new(inputs: &Value, wanted: impl Fn(usize) -> bool) -> Self {
        let keep = |values: Vec<f64>| values.into_iter().enumerate().filter(|(i, _)| wanted(*i)).map(|(_, v)| v);
        let confidence: Vec<f64> = keep(numbers(&inputs["confidence"])).collect();
        let hit = keep(numbers(&inputs["hit"])).map(|hit| hit == 1.0).collect();
        Self { confidence, hit }
    }

    fn bins<'e>(&self, edges: &'e Edges) -> Bins<'e> {
        Bins::of(edges, &self.confidence, &self.hit, None)
    }
}

pub(super) fn calibration(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    if inputs["proba"].is_array() {
        let rows = inputs["proba"].as_array().unwrap();
        let flat: Vec<f64> = rows.iter().flat_map(numbers).collect();
        let classes = flat.len() / rows.len();
        let (confidence, hit) = top_label(&flat, classes, &indices(&inputs["y_true"]));
        check.numbers("top label", &confidence, &inputs["confidence"]);
        let hit: Vec<f64> = hit.into_iter().map(|hit| f64::from(u8::from(hit))).collect();
        check.numbers("top label is right", &hit, &inputs["hit"]);
    }
    reported(inputs, expected, check);
    block("overall", &Rows::new(inputs, |_| true), &expected["overall"], check);
    for (group, expected) in expected["by_group"].as_object().into_iter().flatten() {
        let groups = names(&inputs["group"]);
        block(group, &Rows::new(inputs, |i| groups[i] == *group), expected, check);
    }
}

/// Compares reports of the same rows, one for each number of bins; their bins of equal width are those of netcal, their
/// bins of equal mass those of uncertainty-calibration over all rows.
fn reported(inputs: &Value, expected: &Value, check: &mut Check) {
    let top = inputs["y_true"].is_array();
    let form = if top { "top_label" } else { "positive_class" };
    let labels = if top { &inputs["y_true"] } else { &inputs["hit"] };
    let scores = if inputs["proba"].is_array() {
        Scores::Classes(inputs["proba"].as_array().unwrap().iter().flat_map(numbers).collect())
    } else {
        Scores::Positive(numbers(if top { &inputs["score"] } else { &inputs["confidence"] }))
    };
    let classes = inputs["proba"][0].as_array().map_or(2, Vec::len);
    let uploaded = Uploaded {
        classes: (0..classes).map(|class| class.to_string()).collect(),
        labels: Labels::One(numbers(labels).iter().map(f64::to_string).collect()),
        models: vec![UploadedModel { name: "m".to_owned(), scores }],
        attributes: inputs["group"].is_array().then(|| attribute("group", &inputs["group"])).into_iter().collect(),
        ..Uploaded::default()
    };
    let left = expected["overall"]["left_closed"]["netcal"].as_object().unwrap().keys();
    let mut counts: Vec<usize> = left.filter_map(|name| name.rsplit('_').next()?.parse().ok()).collect();
    counts.sort_unstable();
    counts.dedup();
    check.equal("numbers of bins", &counts.is_empty(), &false);
    for bins in counts {
        let calibration = Calibration { bins, temperature: false };
        let of_form = ["ece_width", "ece_mass", "mce", "overconfidence", "smooth_ece"];
        let mut measures: Vec<String> = of_form.iter().map(|name| format!("{name}_{form}")).collect();
        if !top {
            measures.extend(["brier", "log_loss"].map(str::to_owned));
        }
        let audited = Audited::new(&Settings { calibration, measures, ..settings() }, &uploaded);
        let place = Place::of("group");
        of_scope((&audited, &place, &Scope::Overall), (form, bins), &expected["overall"], check);
        for (name, expected) in expected["by_group"].as_object().into_iter().flatten() {
            of_scope((&audited, &place, &group(name)), (form, bins), expected, check);
        }
    }
}

fn of_scope(
    (audited, place, scope): (&Audited, &Place<'_>, &Scope),
    (form, bins): (&str, usize),
    expected: &Value,
    check: &mut Check,
) {
    let mut compare = |measure: &str, value: &Value| {
        let name = if measure == "brier" || measure == "log_loss" { measure } else { &format!("{measure}_{form}") };
        let got = audited.value(place, scope, name);
        check.measured(&format!("report: {scope:?}, {name}, {bins} bins"), got, value);
    };
    compare("overconfidence", &expected["confidence_minus_hit"]);
    if form == "positive_class" {
        compare("brier", &expected["brier"]);
        compare("log_loss", &expected["log_loss"]);
    }
    let width = &expected["left_closed"]["netcal"];
    for (measure, name) in [("ece_width", "ece_width"), ("mce", "mce_width")] {
        let value = &width[format!("{name}_{bins}")];
        if value.is_number() {
            compare(measure, value);
        }
    }
    let mass = &expected["left_closed"]["uncertainty_calibration"][format!("ece_mass_{bins}")];
    if mass.is_number() && *scope == Scope::Overall {
        compare("ece_mass", mass);
    }
    check.tolerance(1e-6);
    let got = audited.value(place, scope, &format!("smooth_ece_{form}"));
    check.measured(&format!("report: {scope:?}, smooth ECE"), got, &expected["smooth_ece"]["value"]);
    check.tolerance(super::RELATIVE);
}

fn block(of: &str, rows: &Rows, expected: &Value, check: &mut Check) {
    let on_points = indices(&expected["edges_on_points"]);
    for (name, value) in expected.as_object().unwrap() {
        let what = format!("{of}, {name}");
        let one = Edges::width(1, Closure::Left);
        let table = || rows.bins(&one).table()[0];
        match name.as_str() {
            "n" => check.equal(&what, &(rows.hit.len() as f64), &number(value)),
            "mean_confidence" => check.number(&what, table().confidence, number(value)),
            "mean_hit" => check.number(&what, table().rate, number(value)),
            "confidence_minus_hit" => check.measured(&what, rows.bins(&one).over_confidence(), value),
            "brier" => check.measured(&what, brier(&rows.hit, &rows.confidence, None), value),
            "log_loss" => check.measured(&what, log_loss(&rows.hit, &rows.confidence, None), value),
            "edges_on_points" => {}
            "relplot_binned_ece_10" => {
                check.measured(&what, rows.bins(&Edges::width(10, Closure::LeftOneApart)).ece(), value);
            }
            "smooth_ece" => smooth(&what, rows, value, check),
            "right_closed" => {
                for (scheme, value) in value.as_object().unwrap() {
                    right_closed(&format!("{what}, {scheme}"), scheme, rows, value, &on_points, check);
                }
            }
            "left_closed" => {
                for (library, figures) in value.as_object().unwrap() {
                    for (figure, value) in figures.as_object().unwrap() {
                        left_closed(&format!("{what}, {library}"), (library, figure), rows, value, &on_points, check);
                    }
                }
            }
            other => check.fault(&format!("{other} is not known")),
        }
    }
}

fn smooth(what: &str, rows: &Rows, expected: &Value, check: &mut Check) {
    check.tolerance(1e-6);
    let got = smooth_ece(&rows.confidence, &rows.hit, None).unwrap();
    check.number(what, got.value, number(&expected["value"]));
    check.number(&format!("{what}, bandwidth"), got.bandwidth, number(&expected["bandwidth"]));
    for (bandwidth, value) in expected["at_bandwidth"].as_object().unwrap() {
        let got = smooth_ece_at(&rows.confidence, &rows.hit, None, bandwidth.parse().unwrap());
        check.measured(&format!("{what} at {bandwidth}"), got, value);
    }
    check.tolerance(super::RELATIVE);
}

fn right_closed(what: &str, scheme: &str, rows: &Rows, expected: &Value, on_points: &[usize], check: &mut Check) {
    let (kind, count) = scheme.split_once('_').unwrap();
    let count: usize = count.parse().unwrap();
    let edges = match kind {
        "uniform" => Edges::width(count, Closure::Right),
        "quantile" if on_points.contains(&count) => return,
        "quantile" => Edges::quantiles(&rows.confidence, count, Closure::Right),
        other => return check.fault(&format!("{other} is not known")),
    };
    let bins = rows.bins(&edges);
    check.measured(&format!("{what}, ece"), bins.ece(), &expected["ece"]);
    check.measured(&format!("{what}, mce"), bins.mce(), &expected["mce"]);
    let Some(expected) = expected.get("table") else { return };
    let (mut ends, mut counts) = (vec![edges.range(0).0], vec![0.0; edges.bins()]);
    ends.extend((0..edges.bins()).map(|bin| edges.range(bin).1));
    let table = bins.table();
    for row in &table {
        counts[row.bin] = row.weight;
    }
    check.numbers(&format!("{what}, edges"), &ends, &expected["edges"]);
    check.numbers(&format!("{what}, count"), &counts, &expected["count"]);
    let column = |of: fn(&evenkeel::audit::statistics::calibration::ReliabilityRow) -> f64| -> Vec<f64> {
        table.iter().map(of).collect()
    };
    check.numbers(&format!("{what}, bin"), &column(|row| row.bin as f64), &expected["bin"]);
    check.numbers(&format!("{what}, fraction"), &column(|row| row.rate), &expected["fraction"]);
    check.numbers(&format!("{what}, mean confidence"), &column(|row| row.confidence), &expected["mean_confidence"]);
}

fn left_closed(
    what: &str,
    (library, figure): (&str, &str),
    rows: &Rows,
    expected: &Value,
    on_points: &[usize],
    check: &mut Check,
) {
    let what = format!("{what}, {figure}");
    let [error, kind, count] = figure.split('_').collect::<Vec<_>>()[..] else { return check.fault(&what) };
    let count: usize = count.parse().unwrap();
    if expected.get("raises").is_some() {
        return;
    }
    let edges = match (library, kind) {
        ("netcal", "width") => Edges::width(count, Closure::Left),
        ("torchmetrics", "width") => Edges::width(count, Closure::LeftOneApart),
        ("uncertainty_calibration", "width") => Edges::width(count, Closure::Right),
        ("uncertainty_calibration", "mass") => Edges::chunks(&rows.confidence, None, count),
        ("netcal", "mass") if on_points.contains(&count) => return,
        ("netcal", "mass") => Edges::quantiles(&rows.confidence, count, Closure::Left),
        _ => return check.fault(&format!("{what} is not known")),
    };
    let bins = rows.bins(&edges);
    let got = match error {
        "ece" => bins.ece(),
        "mce" => bins.mce(),
        "ace" => bins.ace(),
        "rmsce" => bins.rmsce(),
        _ => return check.fault(&format!("{what} is not known")),
    };
    check.measured(&what, got, expected);
}
