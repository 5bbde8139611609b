//! Rows of a case through a whole audit: figures of the report, found by their place.
//!
//! Knows no file. What the report says is compared with what the libraries say; nothing is computed here.

use evenkeel::audit::measures::{Outcome, measures};
use evenkeel::audit::report::{Figure, Report, Scope};
use evenkeel::audit::settings::{
    BootstrapInterval, Calibration, Convention, Correction, Overlap, Settings, Statistics, Task,
};
use evenkeel::audit::statistics::{Measured, Undefined};
use evenkeel::audit::uploaded::{Labels, Scores, Uploaded, UploadedAttribute, UploadedGroups, UploadedModel, audit};
use serde_json::Value;

use super::figures::{Rows, plain};
use super::{Check, names, number};

/// Figures only: neither resamples nor permutations.
pub(super) fn settings() -> Settings {
    Settings {
        task: Task::Uploaded,
        attributes: Vec::new(),
        intersections: Vec::new(),
        controls: Vec::new(),
        weight_column: None,
        cluster_column: None,
        splits: Vec::new(),
        measures: Vec::new(),
        positive: None,
        threshold: 0.5,
        statistics: Statistics {
            level: 0.95,
            resamples: 0,
            interval: BootstrapInterval::Percentile,
            permutations: 0,
            correction: Correction::None,
            margin: 0.0,
            min_group: 0,
            suppress_below: 0,
        },
        calibration: Calibration { bins: 10, temperature: false },
        membership: None,
        max_tokens: None,
        utility_match: None,
        overlap: Overlap::Mark,
        convention: Convention::Defined,
        seed: 1,
    }
}

/// Settings of a binary task, without the measures that simulate or smooth: those are slow and in no file but one.
pub(super) fn binary() -> Settings {
    let slow = |name: &str| name.starts_with("smooth_ece") || name.starts_with("ece_null");
    let names = measures(Outcome::Binary).iter().map(|info| info.name).filter(|name| !slow(name));
    Settings { measures: names.map(str::to_owned).collect(), ..settings() }
}

/// Uploaded rows of a binary task without groups, and the threshold that selects what the case predicts.
pub(super) fn uploaded(rows: &Rows) -> (Uploaded, f64) {
    let scores = if rows.score.is_empty() {
        rows.predicted.iter().map(|predicted| f64::from(u8::from(*predicted))).collect()
    } else {
        rows.score.clone()
    };
    let selected = scores.iter().zip(&rows.predicted).filter(|(_, predicted)| **predicted);
    let threshold = selected.map(|(score, _)| *score).fold(1.5, f64::min);
    let label = |label: &bool| if *label { "1" } else { "0" }.to_owned();
    let uploaded = Uploaded {
        classes: vec!["0".to_owned(), "1".to_owned()],
        labels: Labels::One(rows.truth.iter().map(label).collect()),
        models: vec![model("m", scores)],
        weights: rows.weights.clone(),
        ..Uploaded::default()
    };
    (uploaded, threshold)
}

pub(super) fn model(name: &str, scores: Vec<f64>) -> UploadedModel {
    UploadedModel { name: name.to_owned(), scores: Scores::Positive(scores) }
}

/// An attribute from a column of names, `null` where one is missing.
pub(super) fn attribute(name: &str, values: &Value) -> UploadedAttribute {
    let values = values.as_array().unwrap().iter().map(|value| value.as_str().map(str::to_owned)).collect();
    UploadedAttribute { name: name.to_owned(), groups: UploadedGroups::Values(values) }
}

/// Where a figure stands.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub(super) model: u32,
    pub(super) versus: Option<u32>,
    pub(super) attribute: Option<&'a str>,
    pub(super) control: Option<(&'a str, &'a str)>,
    pub(super) class: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub(super) fn of(attribute: &'a str) -> Self {
        Self { model: 0, versus: None, attribute: Some(attribute), control: None, class: None }
    }
}

/// The scope of a group by the name that the files give it.
pub(super) fn group(name: &str) -> Scope {
    Scope::Group(Some(joint(name)))
}

/// A combination of values, or of names, as reports write it.
pub(super) fn joint(name: &str) -> String {
    name.replace(['|', '×'], " × ").replace("  ", " ")
}

/// A report.
pub(super) struct Audited {
    report: Report,
}

impl Audited {
    pub(super) fn new(settings: &Settings, uploaded: &Uploaded) -> Self {
        let report = audit(settings, uploaded, "golden", &|| false).unwrap_or_else(|error| panic!("{error}"));
        Self { report }
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// The same rows by the conventions of fairlearn and of the README.
    pub(super) fn both(settings: &Settings, uploaded: &Uploaded) -> Both {
        let by = |convention| Self::new(&Settings { convention, ..settings.clone() }, uploaded);
        Both { fairlearn: by(Convention::Fairlearn), defined: by(Convention::Defined) }
    }

    fn find(&self, place: &Place<'_>, scope: &Scope, measure: &str) -> Option<&Figure> {
        self.report.figures.iter().find(|figure| {
            let control = figure.control.as_ref().map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or("")));
            let attribute = if *scope == Scope::Overall { None } else { place.attribute };
            figure.measure == measure
                && figure.scope == *scope
                && figure.model == place.model
                && figure.versus == place.versus
                && figure.attribute.as_deref() == attribute
                && control == place.control
                && figure.class.as_deref() == place.class
        })
    }

    /// Whether reports of the task have the measure.
    pub(super) fn has(&self, measure: &str) -> bool {
        self.report.figures.iter().any(|figure| figure.measure == measure)
    }

    pub(super) fn figure(&self, place: &Place<'_>, scope: &Scope, measure: &str) -> &Figure {
        self.find(place, scope, measure).unwrap_or_else(|| panic!("no figure {measure} {scope:?} {place:?}"))
    }

    pub(super) fn value(&self, place: &Place<'_>, scope: &Scope, measure: &str) -> Measured {
        self.figure(place, scope, measure).value.ok_or(Undefined::NoRows)
    }

    /// Weights of true and false positives, true and false negatives, from the rates and what they are shares of.
    pub(super) fn cells(&self, place: &Place<'_>, scope: &Scope) -> [f64; 4] {
        let count = |measure: &str| {
            let figure = self.figure(place, scope, measure);
            figure.value.map_or(0.0, |rate| rate * figure.weight)
        };
        ["tpr", "fpr", "tnr", "fnr"].map(count)
    }
}

/// One audit by both conventions.
pub(super) struct Both {
    pub(super) fairlearn: Audited,
    pub(super) defined: Audited,
}

impl Both {
    /// Figures of every group, and which of them are undefined. Names that no report has are compared elsewhere.
    pub(super) fn by_group(&self, what: &str, place: &Place<'_>, expected: &Value, check: &mut Check) {
        for (name, expected) in expected.as_object().unwrap() {
            // Of a control and a group the first is the stratum.
            let (place, name) = match (place.control, name.split_once('|')) {
                (Some((control, _)), Some((level, name))) => {
                    (Place { control: Some((control, level)), ..place.clone() }, name)
                }
                _ => (place.clone(), name.as_str()),
            };
            if place.control.is_some() && expected.get("empty").is_some() {
                continue;
            }
            self.of_group(&format!("{what}, {name}"), (&place, &group(name)), expected, check);
        }
    }

    fn of_group(&self, what: &str, (place, scope): (&Place<'_>, &Scope), expected: &Value, check: &mut Check) {
        let missing = expected.get("undefined").map(names).unwrap_or_default();
        let n = |measure: &str| self.defined.figure(place, scope, measure).n as f64;
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("report: {what}, {name}");
            match name.as_str() {
                "n" => check.equal(&what, &n("accuracy"), &number(value)),
                "n_pos" => check.equal(&what, &n("tpr"), &number(value)),
                "n_neg" => check.equal(&what, &n("fpr"), &number(value)),
                "n_selected" => check.equal(&what, &n("precision"), &number(value)),
                "empty" => check.equal(&what, &(n("accuracy") == 0.0), &value.as_bool().unwrap()),
                "weight_sum" => {
                    check.number(&what, self.defined.figure(place, scope, "accuracy").weight, number(value));
                }
                "confusion" => {
                    let cells = self.defined.cells(place, scope);
                    for (cell, got) in ["tp", "fp", "tn", "fn"].into_iter().zip(cells) {
                        check.number(&format!("{what}, {cell}"), got, number(&value[cell]));
                    }
                }
                other if self.defined.has(other) => {
                    check.measured(&what, self.fairlearn.value(place, scope, other), &plain(value));
                    let is_missing = missing.iter().any(|known| known == "all" || known == other);
                    let rule = if is_missing { Value::Null } else { plain(value) };
                    check.measured(&format!("{what} by the rule"), self.defined.value(place, scope, other), &rule);
                }
                _ => {}
            }
        }
    }

    /// Raw figures of every group with the names of those that have no denominator beside them.
    pub(super) fn raw(&self, place: &Place<'_>, raw: &Value, undefined: &Value, check: &mut Check) {
        for (name, figures) in raw.as_object().unwrap() {
            let mut expected = figures.clone();
            expected["undefined"] = undefined[name].clone();
            self.of_group(name, (place, &group(name)), &expected, check);
        }
    }

    /// What fairlearn makes of the groups of a measure.
    pub(super) fn aggregates(&self, what: &str, place: &Place<'_>, measure: &str, expected: &Value, check: &mut Check) {
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("report: {what}, {measure}, {name}");
            let scope = match name.as_str() {
                "overall" => Scope::Overall,
                "group_min" => Scope::Minimum,
                "group_max" => Scope::Maximum,
                "difference_between_groups" => Scope::Difference,
                "difference_to_overall" => Scope::DifferenceToOverall,
                "ratio_between_groups" => Scope::Ratio,
                "ratio_to_overall" => Scope::RatioToOverall,
                "n_groups_defined" => {
                    let groups = self.defined.figure(place, &Scope::Difference, measure).groups;
                    check.equal(&what, &groups.map(|(defined, _)| defined as f64), &Some(number(value)));
                    continue;
                }
                "skip_undefined" => {
                    let scopes = [
                        ("min", Scope::Minimum),
                        ("max", Scope::Maximum),
                        ("difference", Scope::Difference),
                        ("ratio", Scope::Ratio),
                    ];
                    for (name, scope) in scopes.into_iter().filter(|(name, _)| value.get(name).is_some()) {
                        let got = self.defined.value(place, &scope, measure);
                        check.measured(&format!("{what}, {name}"), got, &value[name]);
                    }
                    continue;
                }
                _ => {
                    check.fault(&format!("{what} is not known"));
                    continue;
                }
            };
            check.measured(&what, self.fairlearn.value(place, &scope, measure), &plain(value));
        }
    }

    /// fairlearn's named measures; it refuses where a measure is undefined here. Reports have those between groups; the
    /// others are the larger difference to all rows (the smaller ratio) of the rates.
    pub(super) fn named(&self, what: &str, place: &Place<'_>, expected: &Value, check: &mut Check) {
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("report: {what}, {name}");
            let audited = if value.get("raises").is_some() { &self.defined } else { &self.fairlearn };
            let mut parts = name.split('.');
            let mut measure = parts.next().unwrap().to_owned();
            let parts: Vec<&str> = parts.collect();
            if parts.contains(&"mean") {
                measure.push_str("_mean");
            }
            if !parts.contains(&"to_overall") {
                let got = audited.value(place, &Scope::Attribute, &measure);
                check.measured(&what, got, &plain(value));
                continue;
            }
            let rates: &[&str] = match measure.split('_').next().unwrap() {
                "demographic" => &["selection_rate"],
                "equal" => &["tpr"],
                _ => &["tpr", "fpr"],
            };
            let ratio = measure.contains("_ratio");
            let scope = if ratio { Scope::RatioToOverall } else { Scope::DifferenceToOverall };
            let found: Option<Vec<f64>> = rates.iter().map(|rate| audited.value(place, &scope, rate).ok()).collect();
            let Some(found) = found else { continue };
            let got = match (parts.contains(&"mean"), ratio) {
                (true, _) => found.iter().sum::<f64>() / found.len() as f64,
                (false, true) => found.iter().copied().fold(f64::MAX, f64::min),
                (false, false) => found.iter().copied().fold(f64::MIN, f64::max),
            };
            check.measured(&what, Ok(got), &plain(value));
        }
    }
}
