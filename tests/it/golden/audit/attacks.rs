//! What the files of membership inference have in common: the figures of a curve, by group.
//!
//! Knows no attack.

use evenkeel::audit::statistics::roc::Roc;
use serde_json::Value;

use super::{Check, number};

/// Scores of points that are members or not, in groups.
pub(super) struct Points<'a> {
    pub(super) score: &'a [f64],
    pub(super) member: &'a [bool],
    pub(super) group: &'a [String],
}

impl Points<'_> {
    fn roc(&self, wanted: impl Fn(usize) -> bool) -> Roc {
        let weight: Vec<f64> = (0..self.score.len()).map(|i| f64::from(u8::from(wanted(i)))).collect();
        Roc::new(self.score, self.member, Some(&weight)).unwrap()
    }

    /// Compares the figures of everyone and of each group.
    pub(super) fn compare(&self, what: &str, expected: &Value, check: &mut Check) {
        let all = self.roc(|_| true);
        curve(what, &all, expected, check);
        for (group, expected) in expected["by_group"].as_object().into_iter().flatten() {
            let what = format!("{what}, {group}");
            let own = self.roc(|i| self.group[i] == *group);
            curve(&what, &own, expected, check);
            for (t, at) in expected["at_global_threshold"].as_object().into_iter().flatten() {
                let threshold = all.threshold_at(t.parse().unwrap());
                check.number(&format!("{what}, threshold at {t}"), threshold, number(&at["threshold"]));
                let (tpr, fpr) = own.rates_at(threshold);
                check.number(&format!("{what}, tpr at the threshold for {t}"), tpr, number(&at["tpr"]));
                check.number(&format!("{what}, fpr at the threshold for {t}"), fpr, number(&at["fpr"]));
            }
        }
    }
}

fn curve(what: &str, roc: &Roc, expected: &Value, check: &mut Check) {
    for (name, value) in expected.as_object().unwrap() {
        let what = format!("{what}, {name}");
        match name.as_str() {
            "n_members" => check.equal(&what, &roc.support().0, &number(value)),
            "n_non_members" => check.equal(&what, &roc.support().1, &number(value)),
            "auc" => check.number(&what, roc.auc(), number(value)),
            "balanced_accuracy" => check.number(&what, roc.balanced_accuracy(), number(value)),
            "advantage" => check.number(&what, roc.advantage(), number(value)),
            "tpr_at_fpr" => {
                for (t, value) in value.as_object().unwrap() {
                    let got = roc.tpr_at_fpr(t.parse().unwrap());
                    for (form, value) in value.as_object().unwrap() {
                        let what = format!("{what} {t}, {form}");
                        match form.as_str() {
                            "below" => check.number(&what, got.below, number(value)),
                            "at_most" => check.number(&what, got.at_most, number(value)),
                            "at_most_all_points" => check.number(&what, got.at_most_all_points, number(value)),
                            "interpolated" => check.number(&what, got.interpolated, number(value)),
                            "resolvable" => check.equal(&what, &got.resolvable, &value.as_bool().unwrap()),
                            _ => check.fault(&what),
                        }
                    }
                }
            }
            "by_group" | "at_global_threshold" => {}
            _ => check.fault(&format!("{what} is not known")),
        }
    }
}

/// A list of flags, written as 0 and 1.
pub(super) fn flags(value: &Value) -> Vec<bool> {
    super::numbers(value).into_iter().map(|flag| flag == 1.0).collect()
}

/// A table, row after row.
pub(super) fn flat(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().flat_map(super::numbers).collect()
}
