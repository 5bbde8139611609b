//! `multiplicity.json`: adjusted p-values of statsmodels and scipy.

use evenkeel::audit::statistics::multiplicity::Adjustment;
use serde_json::Value;

use super::{Check, numbers};

pub(super) fn multiplicity(case: &Value, check: &mut Check) {
    check.keys("case", case, &["id", "inputs", "expected"]);
    check.keys("inputs", &case["inputs"], &["p"]);
    let p = numbers(&case["inputs"]["p"]);
    for (name, expected) in case["expected"].as_object().unwrap() {
        let adjusted = Adjustment::named(name).unwrap().adjust(&p);
        for (part, expected) in expected.as_object().unwrap() {
            let what = format!("{name}, {part}");
            match (part.as_str(), part.strip_prefix("reject_at_")) {
                ("adjusted", _) => check.numbers(&what, &adjusted, expected),
                (_, Some(level)) => {
                    let level: f64 = level.parse().unwrap();
                    let rejected: Vec<bool> = adjusted.iter().map(|p| *p <= level).collect();
                    let expected: Vec<bool> = expected.as_array().unwrap().iter().filter_map(Value::as_bool).collect();
                    check.equal(&what, &rejected, &expected);
                }
                (_, None) => check.fault(&format!("{what} is not known")),
            }
        }
    }
}
