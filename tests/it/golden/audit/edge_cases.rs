//! `edge_cases.json`: groups without positives, selections, weights or rows.
//!
//! Three answers for each: what fairlearn prints (the fairlearn convention), what AIF360 and Aequitas print, and the
//! rule of the README (undefined figures have no value and are left out), whose comparisons are computed here from the
//! figures that the file calls defined.

use evenkeel::audit::settings::Settings;
use evenkeel::audit::statistics::Undefined;
use evenkeel::audit::statistics::confusion::{Confusion, Convention};
use evenkeel::audit::statistics::disparity::Groups;
use evenkeel::audit::uploaded::Uploaded;
use serde_json::Value;

use super::figures::{Rows, compare_named, named, partition, plain};
use super::report::{self, Audited, Place};
use super::toolkits::{compare_aequitas, compare_aif360};
use super::{Check, names, number};

/// `aif360` and `aequitas` answer to what `per_group_raw` and `undefined` do not; a note is for people.
const PARTS: [&str; 9] = [
    "per_group_raw",
    "undefined",
    "note",
    "fairlearn",
    "aif360",
    "aequitas",
    "fairlearn_by_group",
    "fairlearn_difference",
    "fairlearn_ratio",
];

pub(super) fn edge_cases(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "inputs", "expected"]);
    check.keys("inputs", inputs, &["y_true", "y_pred", "score", "group", "groups", "weights"]);
    check.keys("expected", expected, &PARTS);
    let rows = Rows::read(inputs);
    if inputs["groups"].is_object() {
        return product(&rows, inputs, expected, check);
    }
    let partition = partition(&inputs["group"]);
    let groups = rows.groups(&partition);
    for (name, own) in partition.names.iter().zip(&groups) {
        let missing = names(&expected["undefined"][name]);
        let is_missing = |figure: &String| missing.iter().any(|known| known == "all" || known == figure);
        for (figure, value) in expected["per_group_raw"][name].as_object().unwrap() {
            let what = format!("{name}, {figure}");
            let both = (own.figure(figure, Convention::Fairlearn), own.figure(figure, Convention::Defined));
            let (Some(fairlearn), Some(defined)) = both else {
                check.fault(&format!("{what} is not known"));
                continue;
            };
            check.measured(&what, fairlearn, &plain(value));
            let rule = if is_missing(figure) { Value::Null } else { plain(value) };
            check.measured(&format!("{what} by the rule"), defined, &rule);
        }
    }
    check.equal("groups", &groups.len(), &expected["per_group_raw"].as_object().unwrap().len());
    compare_named("fairlearn", &rows, &groups, &expected["fairlearn"], check);
    let (uploaded, threshold) = report::uploaded(&rows);
    let uploaded = Uploaded { attributes: vec![report::attribute("group", &inputs["group"])], ..uploaded };
    let settings = Settings { threshold, ..report::binary() };
    let (both, place) = (Audited::both(&settings, &uploaded), Place::of("group"));
    both.raw(&place, &expected["per_group_raw"], &expected["undefined"], check);
    both.named("fairlearn", &place, &expected["fairlearn"], check);
    by_rule(&rows, (&groups, &both.defined), expected, check);
    let unweighted = Audited::new(&settings, &Uploaded { weights: None, ..uploaded });
    if let Some(expected) = expected.get("aif360") {
        check.keys("aif360", expected, &["unprivileged", "privileged", "values"]);
        let values = expected["values"].get("value").unwrap_or(&expected["values"]);
        let privileged = expected["privileged"].as_str().unwrap();
        compare_aif360("aif360", (&both.defined, &unweighted), (&place, privileged), values, check);
    }
    if let Some(expected) = expected.get("aequitas") {
        compare_aequitas("aequitas", &unweighted, &place, expected, check);
    }
}

/// The named measures over the groups whose rates the file calls defined.
fn by_rule(rows: &Rows, (groups, audited): (&[Rows], &Audited), expected: &Value, check: &mut Check) {
    let by_group: Vec<Confusion> = groups.iter().map(Rows::confusion).collect();
    let got = Groups { by_group: &by_group, overall: &rows.confusion(), convention: Convention::Defined };
    for name in expected["fairlearn"].as_object().unwrap().keys() {
        let extent = |rate: &str| -> Option<f64> {
            let defined = expected["per_group_raw"].as_object().unwrap().iter().filter(|(group, _)| {
                let missing = names(&expected["undefined"][group.as_str()]);
                !missing.iter().any(|known| known == "all" || known == rate)
            });
            let defined: Vec<f64> = defined.map(|(_, figures)| number(&plain(&figures[rate]))).collect();
            let low = defined.iter().copied().reduce(f64::min)?;
            let high = defined.iter().copied().reduce(f64::max)?;
            match (defined.len() > 1, name.ends_with("_ratio")) {
                (false, _) => None,
                (true, false) => Some(high - low),
                (true, true) => Some(low / high).filter(|ratio| !ratio.is_nan()),
            }
        };
        let worse = |a: f64, b: f64| if name.ends_with("_ratio") { a.min(b) } else { a.max(b) };
        let expected = if name.starts_with("demographic_parity") {
            extent("selection_rate")
        } else if name.starts_with("equal_opportunity") {
            extent("tpr")
        } else {
            [extent("tpr"), extent("fpr")].into_iter().flatten().reduce(worse)
        };
        let got = named(&got, name).unwrap_or(Err(Undefined::NoRows));
        let expected = expected.map_or(Value::Null, Value::from);
        check.measured(&format!("{name} by the rule"), got, &expected);
        let got = audited.value(&Place::of("group"), &evenkeel::audit::report::Scope::Attribute, name);
        check.measured(&format!("report: {name} by the rule"), got, &expected);
    }
}

/// All combinations of two attributes, the empty ones included.
fn product(rows: &Rows, inputs: &Value, expected: &Value, check: &mut Check) {
    let mut attributes: Vec<&str> = inputs["groups"].as_object().unwrap().keys().map(String::as_str).collect();
    let keys: Vec<&String> = expected["fairlearn_by_group"].as_object().unwrap().keys().collect();
    let of = |attributes: &[&str]| {
        let parts = attributes.iter().map(|name| partition(&inputs["groups"][*name]));
        parts.reduce(|a, b| a.product(&b)).unwrap()
    };
    // An object of the file has no order: the keys tell which attribute comes first.
    if of(&attributes).names.first() != keys.first().copied() {
        attributes.reverse();
    }
    let partition = of(&attributes);
    check.equal("combinations", &partition.names.iter().collect::<Vec<_>>(), &keys);
    let groups = rows.groups(&partition);
    for (name, own) in partition.names.iter().zip(&groups) {
        let expected = &expected["fairlearn_by_group"][name];
        check.keys(name, expected, &["count", "selection_rate"]);
        let rate = own.figure("selection_rate", Convention::Fairlearn).unwrap();
        check.measured(&format!("{name}, selection rate"), rate, &plain(&expected["selection_rate"]));
        let count = plain(&expected["count"]).as_f64().unwrap_or_default();
        check.equal(&format!("{name}, rows"), &(own.truth.len() as f64), &count);
    }
    let (uploaded, threshold) = report::uploaded(rows);
    let of = |name: &&str| report::attribute(name, &inputs["groups"][*name]);
    let uploaded = Uploaded { attributes: attributes.iter().map(of).collect(), ..uploaded };
    let intersections = vec![attributes.iter().map(|name| (*name).to_owned()).collect()];
    let both = Audited::both(&Settings { threshold, intersections, ..report::binary() }, &uploaded);
    let joint = report::joint(&attributes.join("×"));
    let place = Place::of(&joint);
    for (name, expected) in expected["fairlearn_by_group"].as_object().unwrap() {
        let (what, scope) = (format!("report: {name}"), report::group(name));
        let got = both.fairlearn.value(&place, &scope, "selection_rate");
        check.measured(&format!("{what}, selection rate"), got, &plain(&expected["selection_rate"]));
        let rows = both.fairlearn.figure(&place, &scope, "selection_rate").n as f64;
        check.equal(&format!("{what}, rows"), &rows, &plain(&expected["count"]).as_f64().unwrap_or_default());
    }
    let aggregates = serde_json::json!({
        "difference_between_groups": expected["fairlearn_difference"],
        "ratio_between_groups": expected["fairlearn_ratio"],
        "skip_undefined": { "difference": expected["fairlearn_difference"], "ratio": expected["fairlearn_ratio"] },
    });
    both.aggregates("combinations", &place, "selection_rate", &aggregates, check);
    for convention in [Convention::Fairlearn, Convention::Defined] {
        let got = rows.aggregates(&groups, "selection_rate", convention).unwrap();
        check.measured("difference", got.difference_between_groups, &plain(&expected["fairlearn_difference"]));
        check.measured("ratio", got.ratio_between_groups, &plain(&expected["fairlearn_ratio"]));
    }
}
