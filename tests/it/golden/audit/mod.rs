//! `golden_audit`: statistics of audits against fairlearn, scikit-learn, scipy, statsmodels and others.
//!
//! Finds the folder, its files and the readers, and compares numbers; what a file means is in the module of its name.
//! The folder is `audit` inside the golden folder or beside it (`models` and `audit` are siblings in the full set). A
//! file that no reader knows is a fault, and so is a case that only the manifest knows. Tolerance: the README beside.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a golden test stops at a file that it cannot read")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use evenkeel::audit::statistics::Measured;
use serde_json::Value;

use super::{Tally, json, root};

mod attacks;
mod benchmarks;
mod binary_groups;
mod bootstrap;
mod calibration;
mod edge_cases;
mod figures;
mod lira;
mod mink;
mod model_comparison;
mod multiclass_groups;
mod multiplicity;
mod overlapping_groups;
mod rejected_inputs;
mod report;
mod rmia;
mod tests;
mod toolkits;

/// Compares one case (`id`, `inputs`, `expected`, …) of a file.
type Reader = fn(&Value, &mut Check);

/// Every kind of file, by its name without `.json`.
const READERS: &[(&str, Reader)] = &[
    ("benchmarks", benchmarks::benchmarks),
    ("binary_groups", binary_groups::binary_groups),
    ("bootstrap", bootstrap::bootstrap),
    ("calibration", calibration::calibration),
    ("edge_cases", edge_cases::edge_cases),
    ("lira", lira::lira),
    ("mink", mink::mink),
    ("model_comparison", model_comparison::model_comparison),
    ("multiclass_groups", multiclass_groups::multiclass_groups),
    ("multiplicity", multiplicity::multiplicity),
    ("overlapping_groups", overlapping_groups::overlapping_groups),
    ("rejected_inputs", rejected_inputs::rejected_inputs),
    ("rmia", rmia::rmia),
    ("tests", tests::tests),
];

/// Relative and absolute part of the tolerance of the README.
const RELATIVE: f64 = 1e-9;
const ABSOLUTE: f64 = 1e-12;

/// Compares what a case expects, under the name of the case.
pub(super) struct Check {
    tally: Tally,
    /// File and case.
    case: String,
    relative: f64,
}

impl Check {
    /// Sets the relative tolerance for what follows in this case; the README says where it is not 1e-9.
    pub(super) fn tolerance(&mut self, relative: f64) {
        self.relative = relative;
    }

    /// Compares two numbers; NaN equals NaN, an infinity equals itself.
    pub(super) fn number(&mut self, what: &str, got: f64, expected: f64) {
        let what = format!("{}: {what}", self.case);
        let allowed = if expected.is_finite() { self.relative * expected.abs() + ABSOLUTE } else { 0.0 };
        match got.is_nan() && expected.is_nan() {
            true => self.tally.equal(&what, &true, &true),
            false => self.tally.close_slices(&what, &[got], &[expected], allowed),
        }
    }

    /// Compares a figure with a number, or with `null` where it must be undefined.
    pub(super) fn measured(&mut self, what: &str, got: Measured, expected: &Value) {
        match got {
            Ok(got) if !expected.is_null() => self.number(what, got, number(expected)),
            Ok(_) | Err(_) => {
                self.equal(what, &got.map_err(|_| ()), &if expected.is_null() { Err(()) } else { Ok(number(expected)) })
            }
        }
    }

    /// Compares two lists.
    pub(super) fn numbers(&mut self, what: &str, got: &[f64], expected: &Value) {
        let expected = numbers(expected);
        self.equal(&format!("{what}, length"), &got.len(), &expected.len());
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            self.number(&format!("{what}[{i}]"), *got, expected);
        }
    }

    /// Compares exactly: counts, flags, names.
    pub(super) fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: &T, expected: &T) {
        let what = format!("{}: {what}", self.case);
        self.tally.equal(&what, got, expected);
    }

    /// Compares with a tolerance of its own, as the file gives it.
    pub(super) fn within(&mut self, what: &str, got: f64, expected: f64, allowed: f64) {
        let what = format!("{}: {what}", self.case);
        self.tally.close_slices(&what, &[got], &[expected], allowed);
    }

    /// Records every key of an object that no reader looks at.
    pub(super) fn keys(&mut self, what: &str, object: &Value, known: &[&str]) {
        for key in object.as_object().unwrap_or_else(|| panic!("not an object: {what}")).keys() {
            if !known.contains(&key.as_str()) {
                self.fault(&format!("{what}: {key} is not known"));
            }
        }
    }

    /// Records a fault: something in the file that no code here knows.
    pub(super) fn fault(&mut self, what: &str) {
        let what = format!("{}: {what}", self.case);
        self.tally.fault(what);
    }
}

/// A number as the files write it: `"NaN"`, `"Infinity"` and `"-Infinity"` are strings.
pub(crate) fn number(value: &Value) -> f64 {
    match value.as_str() {
        Some("NaN") => f64::NAN,
        Some("Infinity") => f64::INFINITY,
        Some("-Infinity") => f64::NEG_INFINITY,
        Some(other) => panic!("not a number: {other}"),
        None => value.as_f64().unwrap_or_else(|| panic!("not a number: {value}")),
    }
}

/// A list of numbers.
pub(super) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}")).iter().map(number).collect()
}

/// A list of labels, classes or row numbers.
pub(super) fn indices(value: &Value) -> Vec<usize> {
    let list = value.as_array().unwrap_or_else(|| panic!("not a list: {value}"));
    list.iter().map(|v| usize::try_from(v.as_u64().unwrap()).unwrap()).collect()
}

/// A list of names.
pub(super) fn names(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// The folder of the files.
pub(crate) fn folder() -> PathBuf {
    let inside = root().join("audit");
    if inside.is_dir() { inside } else { root().join("../audit") }
}

#[test]
fn golden_audit() {
    let mut check = Check { tally: Tally::new("golden_audit"), case: String::new(), relative: RELATIVE };
    let entries = std::fs::read_dir(folder()).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let mut files: Vec<PathBuf> = entries.into_iter().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "json"));
    files.sort();
    let mut seen = BTreeSet::new();
    let mut manifest = Value::Null;
    for path in files {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let file = json(&path);
        if name == "manifest" {
            manifest = file;
            continue;
        }
        check.case.clone_from(&name);
        check.equal("format", &file["format"], &Value::from(1));
        let reader = READERS.iter().find(|(known, _)| *known == name).map(|(_, reader)| reader);
        for case in file["cases"].as_array().unwrap() {
            let id = case["id"].as_str().unwrap();
            seen.insert((name.clone(), id.to_owned()));
            check.case = format!("{name}: {id}");
            check.relative = RELATIVE;
            match reader {
                Some(reader) => {
                    check.tally.case();
                    reader(case, &mut check);
                }
                None => check.fault("no reader knows this file"),
            }
        }
    }
    for (file, entry) in manifest["files"].as_object().into_iter().flatten() {
        for id in names(&entry["cases"]) {
            let known = seen.contains(&(file.trim_end_matches(".json").to_owned(), id.clone()));
            check.case.clone_from(file);
            check.equal(&format!("case {id} of the manifest is there"), &known, &true);
        }
    }
    check.tally.finish();
}
