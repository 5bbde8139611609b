//! Figures of other toolkits, from those of a report: who has a report needs no other run to compare with them.
//!
//! They know two groups at a time, and some stand for an undefined value with 0 or 10. Every such place is named. The
//! signs are theirs: unprivileged minus privileged, `a` minus `b`.
//! After: AIF360 0.6.1 `ClassificationMetric`, Aequitas 1.0.0 `Bias`, holisticai 1.0.14 `bias.metrics`.

use evenkeel::audit::report::Scope;
use evenkeel::audit::statistics::{Measured, Undefined};
use serde_json::Value;

use super::Check;
use super::figures::plain;
use super::report::{Audited, Place};

fn divide(part: f64, whole: f64) -> Measured {
    if whole > 0.0 { Ok(part / whole) } else { Err(Undefined::DivisionByZero) }
}

/// A group of a report, or the rows outside it.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    audited: &'a Audited,
    place: &'a Place<'a>,
    scope: &'a Scope,
}

impl<'a> Side<'a> {
    fn rate(&self, measure: &str) -> Measured {
        self.audited.value(self.place, self.scope, measure)
    }

    fn or_zero(&self, measure: &str) -> f64 {
        self.rate(measure).unwrap_or(0.0)
    }

    fn rows(&self) -> f64 {
        self.audited.figure(self.place, self.scope, "accuracy").weight
    }

    fn count(&self, measure: &str) -> f64 {
        self.or_zero(measure) * self.rows()
    }

    /// True and false positives, true and false negatives.
    fn cells(&self) -> [f64; 4] {
        self.audited.cells(self.place, self.scope)
    }
}

/// A group and all other rows.
pub(super) struct Privilege<'a> {
    pub(super) privileged: Side<'a>,
    pub(super) unprivileged: Side<'a>,
    of_both: &'a dyn Fn(&str) -> Measured,
}

/// Calls with the privileged group of a report against the rest.
pub(super) fn against_rest<T>(
    audited: &Audited,
    place: &Place<'_>,
    privileged: &str,
    with: impl FnOnce(&Privilege<'_>) -> T,
) -> T {
    let value = Some(super::report::joint(privileged));
    let (group, rest) = (Scope::Group(value.clone()), Scope::Complement(value.clone()));
    let both = Scope::MemberMinusRest(value);
    // The report subtracts the rest from the group.
    let of_both = |measure: &str| audited.value(place, &both, measure).map(|difference| -difference);
    let side = |scope| Side { audited, place, scope };
    with(&Privilege { privileged: side(&group), unprivileged: side(&rest), of_both: &of_both })
}

impl Privilege<'_> {
    fn minus(&self, measure: &str) -> Measured {
        (self.of_both)(measure)
    }

    /// AIF360 puts 0 for a predictive value or accuracy without a denominator.
    fn minus_or_zero(&self, measure: &str) -> f64 {
        self.unprivileged.or_zero(measure) - self.privileged.or_zero(measure)
    }

    fn log_ratio(&self, measure: &str) -> f64 {
        let smoothed = |side: &Side<'_>| (side.count(measure) + 0.5) / (side.rows() + 1.0);
        let (first, second) = (smoothed(&self.unprivileged), smoothed(&self.privileged));
        (first / second).ln().abs().max(((1.0 - first) / (1.0 - second)).ln().abs())
    }

    fn impact(&self) -> Measured {
        divide(self.unprivileged.rate("selection_rate")?, self.privileged.rate("selection_rate")?)
    }

    fn odds(&self, combine: fn(f64, f64) -> f64) -> Measured {
        Ok(combine(self.minus("fpr")?, self.minus("tpr")?))
    }
}

/// Benefits 1 + prediction − label: how many rows have 0, 1 and 2, and what each is worth.
fn benefits(side: &Side<'_>) -> [(f64, f64); 3] {
    let [_, false_positive, _, false_negative] = side.cells();
    [(false_negative, 0.0), (side.rows() - false_positive - false_negative, 1.0), (false_positive, 2.0)]
}

/// Generalized entropy index of benefits, each with its rows; α = 1 is Theil's index.
fn entropy(benefits: &[(f64, f64)], alpha: f64) -> Measured {
    let rows: f64 = benefits.iter().map(|(rows, _)| rows).sum();
    let mean = divide(benefits.iter().map(|(rows, benefit)| rows * benefit).sum(), rows)?;
    let term = |(rows, benefit): &(f64, f64)| -> Measured {
        let share = divide(*benefit, mean)?;
        Ok(rows
            * match alpha == 1.0 {
                true if share > 0.0 => share * share.ln(),
                true => 0.0,
                false => (share.powf(alpha) - 1.0) / (alpha * (alpha - 1.0)),
            })
    };
    Ok(benefits.iter().map(term).sum::<Result<f64, _>>()? / rows)
}

/// Compares AIF360's figures; its inequality indices ignore weights, and are those of the unweighted report.
pub(super) fn compare_aif360(
    what: &str,
    (audited, unweighted): (&Audited, &Audited),
    (place, privileged): (&Place<'_>, &str),
    expected: &Value,
    check: &mut Check,
) {
    let everyone = Side { audited: unweighted, place, scope: &Scope::Overall };
    let by_group = against_rest(unweighted, place, privileged, |pair| {
        [pair.privileged, pair.unprivileged].map(|side| {
            let worth: f64 = benefits(&side).iter().map(|(rows, benefit)| rows * benefit).sum();
            (side.rows(), worth / side.rows())
        })
    });
    against_rest(audited, place, privileged, |pair| {
        for (name, value) in expected.as_object().unwrap() {
            let got = match name.as_str() {
                "statistical_parity_difference" => pair.minus("selection_rate"),
                "disparate_impact" => pair.impact(),
                "equal_opportunity_difference" => pair.minus("tpr"),
                "false_positive_rate_difference" => pair.minus("fpr"),
                "false_negative_rate_difference" => pair.minus("fnr"),
                "average_odds_difference" => pair.odds(f64::midpoint),
                "average_abs_odds_difference" => pair.odds(|a, b| f64::midpoint(a.abs(), b.abs())),
                // An undefined true-positive rate is passed over, an undefined false-positive rate is not: Python's `max`
                // keeps its first argument against NaN.
                "equalized_odds_difference" => {
                    pair.minus("fpr").map(|fpr| pair.minus("tpr").map_or(fpr.abs(), |tpr| fpr.abs().max(tpr.abs())))
                }
                "false_discovery_rate_difference" => Ok(pair.minus_or_zero("fdr")),
                "false_omission_rate_difference" => Ok(pair.minus_or_zero("for")),
                "error_rate_difference" => Ok(-pair.minus_or_zero("accuracy")),
                "error_rate_ratio" => {
                    divide(1.0 - pair.unprivileged.or_zero("accuracy"), 1.0 - pair.privileged.or_zero("accuracy"))
                }
                "average_predictive_value_difference" => {
                    Ok(f64::midpoint(pair.minus_or_zero("precision"), pair.minus_or_zero("for")))
                }
                "theil_index" => entropy(&benefits(&everyone), 1.0),
                "coefficient_of_variation" => entropy(&benefits(&everyone), 2.0).map(|index| (2.0 * index).sqrt()),
                "generalized_entropy_index" => entropy(&benefits(&everyone), 2.0),
                "between_group_generalized_entropy_index" => entropy(&by_group, 2.0),
                "smoothed_empirical_differential_fairness" => Ok(pair.log_ratio("base_rate")),
                "differential_fairness_bias_amplification" => {
                    Ok(pair.log_ratio("selection_rate") - pair.log_ratio("base_rate"))
                }
                _ => {
                    check.fault(&format!("{what}, {name} is not known"));
                    continue;
                }
            };
            check.measured(&format!("report: {what}, {name}"), got, &plain(value));
        }
    });
}

/// Compares Aequitas' table of groups and its disparities; it knows no weights.
pub(super) fn compare_aequitas(
    what: &str,
    unweighted: &Audited,
    place: &Place<'_>,
    expected: &Value,
    check: &mut Check,
) {
    check.keys(what, expected, &["attribute", "crosstab", "ref", "disparity"]);
    let everyone = Side { audited: unweighted, place, scope: &Scope::Overall };
    let figure = |group: &str, name: &str| -> Option<Measured> {
        let scope = super::report::group(group);
        let side = Side { audited: unweighted, place, scope: &scope };
        let [tp, fp, tn, false_negative] = side.cells();
        Some(match name {
            "pp" => Ok(side.count("selection_rate")),
            "pn" => Ok(side.rows() - side.count("selection_rate")),
            // The group's share of everyone who was selected.
            "ppr" => divide(side.count("selection_rate"), everyone.count("selection_rate")),
            "pprev" => side.rate("selection_rate"),
            "prev" => side.rate("base_rate"),
            "tp" => Ok(tp),
            "fp" => Ok(fp),
            "tn" => Ok(tn),
            "fn" => Ok(false_negative),
            "group_size" => Ok(side.rows()),
            other if unweighted.has(other) => side.rate(other),
            _ => return None,
        })
    };
    // x/0 is capped to 10.
    let disparity = |group: Measured, reference: Measured| -> Measured {
        let (group, reference) = (group?, reference?);
        if reference == 0.0 && group > 0.0 { Ok(10.0) } else { divide(group, reference) }
    };
    let reference = expected["ref"].as_str().unwrap();
    for (part, suffix) in [("crosstab", ""), ("disparity", "_disparity")] {
        for row in expected[part].as_array().unwrap() {
            let group = row["attribute_value"].as_str().unwrap();
            for (name, value) in row.as_object().unwrap().iter().filter(|(name, _)| *name != "attribute_value") {
                let what = format!("report: {what}, {part} of {group}, {name}");
                let known =
                    name.strip_suffix(suffix).and_then(|name| Some((figure(group, name)?, figure(reference, name)?)));
                match known {
                    None => check.fault(&format!("{what} is not known")),
                    Some((own, _)) if suffix.is_empty() => check.measured(&what, own, &plain(value)),
                    Some((own, other)) => check.measured(&what, disparity(own, other), &plain(value)),
                }
            }
        }
    }
}

/// Compares holisticai's figures of the rows outside a group (`a`) and of the group (`b`); it knows no weights.
pub(super) fn compare_holistic(
    what: &str,
    unweighted: &Audited,
    (place, second): (&Place<'_>, &str),
    expected: &Value,
    check: &mut Check,
) {
    against_rest(unweighted, place, second, |pair| {
        let (a, b) = (pair.unprivileged, pair.privileged);
        let (n_a, n_b) = (a.rows(), b.rows());
        let selection =
            || -> Result<(f64, f64), Undefined> { Ok((a.rate("selection_rate")?, b.rate("selection_rate")?)) };
        let pooled = (a.count("selection_rate") + b.count("selection_rate")) / (n_a + n_b);
        let inverse_sizes = 1.0 / n_a + 1.0 / n_b;
        for (name, value) in expected.as_object().unwrap() {
            let got = match name.as_str() {
                "statistical_parity" => pair.minus("selection_rate"),
                "disparate_impact" => pair.impact(),
                "four_fifths" => selection().and_then(|(a, b)| divide(a.min(b), a.max(b))),
                "cohen_d" => selection().and_then(|(a, b)| {
                    let variance = (n_a - 1.0) * a * (1.0 - a) + (n_b - 1.0) * b * (1.0 - b);
                    divide(a - b, (variance / (n_a + n_b - 2.0)).max(0.0).sqrt())
                }),
                "z_test_diff" => {
                    selection().and_then(|(a, b)| divide(a - b, (pooled * (1.0 - pooled) * inverse_sizes).sqrt()))
                }
                "z_test_ratio" => selection().and_then(|(a, b)| match a > 0.0 && b > 0.0 {
                    true => divide((a / b).ln(), ((1.0 - pooled) / pooled * inverse_sizes).sqrt()),
                    false => Err(Undefined::DivisionByZero),
                }),
                "equal_opportunity_diff" => pair.minus("tpr"),
                "false_positive_rate_diff" => pair.minus("fpr"),
                "average_odds_diff" => pair.odds(f64::midpoint),
                "accuracy_diff" => pair.minus("accuracy"),
                _ => {
                    check.fault(&format!("{what}, {name} is not known"));
                    continue;
                }
            };
            check.measured(&format!("report: {what}, {name}"), got, &plain(value));
        }
    });
}

/// Compares impact ratios as bias audits of hiring tools report them (6 RCNY §5-301): of selection, and of scoring, which
/// is being above the median of the whole sample. Unweighted; a category below 2 % may be left out of the comparison.
pub(super) fn compare_impact(
    what: &str,
    (selected, above_median): (&Audited, &Audited),
    place: &Place<'_>,
    expected: &Value,
    check: &mut Check,
) {
    check.keys(what, expected, &["median_score", "groups", "highest_group", "impact_ratio_excluding_small"]);
    let attribute = place.attribute.unwrap();
    let groups: Vec<_> = selected.report().groups.iter().filter(|group| group.attribute == attribute).collect();
    let rows = selected.figure(place, &Scope::Overall, "accuracy").n as f64;
    let scope = |value: &Option<String>| Scope::Group(value.clone());
    let rate = |value: &Option<String>| selected.value(place, &scope(value), "selection_rate");
    let small = |n: u64| (n as f64) < 0.02 * rows;
    let large = groups.iter().filter(|group| !small(group.rows)).filter_map(|group| rate(&group.value).ok());
    let highest_of_large = large.fold(0.0, f64::max);
    let best = groups.iter().filter_map(|group| rate(&group.value).ok()).reduce(f64::max);
    let highest = groups.iter().find(|group| rate(&group.value).ok() == best && best.is_some());
    let named = expected["highest_group"].as_str().map(super::report::joint);
    check.equal(&format!("report: {what}, highest"), &highest.and_then(|group| group.value.clone()), &named);
    let of = |object: &'_ Value, value: &Option<String>| -> Option<Value> {
        let known = object.as_object().unwrap().iter();
        known.filter(|(name, _)| Some(super::report::joint(name)) == *value).map(|(_, found)| found.clone()).next()
    };
    let mut seen = 0;
    for group in groups {
        let what = format!("report: {what}, {:?}", group.value);
        let without_small = of(&expected["impact_ratio_excluding_small"], &group.value);
        check.equal(&format!("{what} counts"), &!small(group.rows), &without_small.is_some());
        if let Some(value) = without_small {
            let got = rate(&group.value).and_then(|rate| divide(rate, highest_of_large));
            check.measured(&format!("{what} without small ones"), got, &value);
        }
        let Some(expected) = of(&expected["groups"], &group.value) else {
            check.equal(&format!("{what} is left out"), &group.rows, &0);
            continue;
        };
        seen += 1;
        let scope = scope(&group.value);
        let ratio = selected.value(place, &scope, "impact_ratio");
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("{what}, {name}");
            match name.as_str() {
                "n" => check.equal(&what, &(group.rows as f64), &value.as_f64().unwrap()),
                "share" => check.number(&what, group.rows as f64 / rows, value.as_f64().unwrap()),
                "below_2_percent" => check.equal(&what, &Some(small(group.rows)), &value.as_bool()),
                "selection_rate" => check.measured(&what, rate(&group.value), value),
                "impact_ratio" => check.measured(&what, ratio, value),
                "four_fifths_ok" => check.equal(&what, &ratio.ok().map(|ratio| ratio >= 0.8), &value.as_bool()),
                "scoring_rate" => check.measured(&what, above_median.value(place, &scope, "selection_rate"), value),
                "scoring_impact_ratio" => {
                    check.measured(&what, above_median.value(place, &scope, "impact_ratio"), value);
                }
                _ => check.fault(&format!("{what} is not known")),
            }
        }
    }
    check.equal(&format!("{what}, categories"), &seen, &expected["groups"].as_object().unwrap().len());
}
