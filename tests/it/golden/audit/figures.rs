//! Rows of a case, and every figure of them by the name that the files give it.
//!
//! Knows no file. Where a library stands a number in for an undefined figure, or refuses, [`plain`] and the two
//! conventions tell what is compared with what.

use evenkeel::audit::statistics::confusion::{Confusion, Convention, Rate};
use evenkeel::audit::statistics::disparity::{Aggregates, Combine, Extent, Groups, Method};
use evenkeel::audit::statistics::groups::Partition;
use evenkeel::audit::statistics::multiclass::{Average, ClassConfusion, Labels, PrecisionRecall};
use evenkeel::audit::statistics::others::{self, Privilege};
use evenkeel::audit::statistics::{Measured, auc};
use serde_json::Value;

use super::attacks::flags;
use super::{Check, names, number, numbers};

/// Labels, predictions, scores and weights.
#[derive(Clone)]
pub(super) struct Rows {
    pub(super) truth: Vec<bool>,
    pub(super) predicted: Vec<bool>,
    /// Empty where the case has none.
    pub(super) score: Vec<f64>,
    pub(super) weights: Option<Vec<f64>>,
}

impl Rows {
    pub(super) fn read(inputs: &Value) -> Self {
        let list = |name: &str| inputs.get(name).filter(|list| !list.is_null()).map(numbers);
        Self {
            truth: flags(&inputs["y_true"]),
            predicted: flags(&inputs["y_pred"]),
            score: list("score").unwrap_or_default(),
            weights: list("weights"),
        }
    }

    /// Some of the rows, in the order given.
    pub(super) fn only(&self, rows: impl Iterator<Item = usize> + Clone) -> Self {
        let pick = |values: &[f64]| rows.clone().filter_map(|row| values.get(row).copied()).collect();
        Self {
            truth: rows.clone().map(|row| self.truth[row]).collect(),
            predicted: rows.clone().map(|row| self.predicted[row]).collect(),
            score: pick(&self.score),
            weights: self.weights.as_deref().map(pick),
        }
    }

    /// All rows, each as often as it is listed.
    pub(super) fn drawn(&self, rows: impl Iterator<Item = usize>) -> Self {
        let mut counts = vec![0.0; self.truth.len()];
        rows.for_each(|row| counts[row] += 1.0);
        Self { weights: Some(counts), ..self.clone() }
    }

    pub(super) fn unweighted(&self) -> Self {
        Self { weights: None, ..self.clone() }
    }

    pub(super) fn groups(&self, partition: &Partition) -> Vec<Self> {
        (0..partition.len()).map(|group| self.only(partition.rows(group).collect::<Vec<_>>().into_iter())).collect()
    }

    pub(super) fn confusion(&self) -> Confusion {
        Confusion::of(&self.truth, &self.predicted, self.weights.as_deref())
    }

    /// A figure by its name; none for a name that is not known.
    pub(super) fn figure(&self, name: &str, convention: Convention) -> Option<Measured> {
        if let Ok(rate) = Rate::named(name) {
            return Some(self.confusion().rate(rate, convention));
        }
        let weights = self.weights.as_deref();
        let classes = |flags: &[bool]| flags.iter().map(|flag| usize::from(*flag)).collect::<Vec<_>>();
        let of_classes = |read: fn(PrecisionRecall) -> f64| {
            let table = ClassConfusion::of(&classes(&self.truth), &classes(&self.predicted), weights, 2);
            Ok(read(table.average(Labels::All, Average::Macro)))
        };
        Some(match name {
            "auc" => auc::auc(&self.truth, &self.score, weights),
            "log_loss" => auc::log_loss(&self.truth, &self.score, weights),
            "brier" => auc::brier(&self.truth, &self.score, weights),
            "mean_score" => auc::mean(self.score.len(), weights, |row| self.score[row]),
            "precision_macro" => of_classes(|p| p.precision),
            "recall_macro" => of_classes(|p| p.recall),
            "f1_macro" => of_classes(|p| p.f1),
            _ => return None,
        })
    }

    /// A figure over groups.
    pub(super) fn aggregates(&self, groups: &[Self], name: &str, convention: Convention) -> Option<Aggregates> {
        let of_groups: Option<Vec<Measured>> = groups.iter().map(|group| group.figure(name, convention)).collect();
        Some(Aggregates::of(self.figure(name, convention)?, &of_groups?, convention))
    }
}

/// A column of group names, `null` where there is none.
pub(super) fn partition(values: &Value) -> Partition {
    Partition::new(&values.as_array().unwrap().iter().map(Value::as_str).collect::<Vec<_>>())
}

/// What a library returned: `null` where it refused, or returned no finite number.
pub(super) fn plain(value: &Value) -> Value {
    match (value.get("raises"), value.get("value")) {
        (Some(_), _) => Value::Null,
        (None, Some(inner)) => plain(inner),
        (None, None) if value.is_string() => Value::Null,
        (None, None) => value.clone(),
    }
}

/// fairlearn's named measures: `demographic_parity_difference`, then, each after a full stop and both optional, the
/// method and how two rates are combined.
pub(super) fn named(groups: &Groups<'_>, name: &str) -> Option<Measured> {
    let mut parts = name.split('.');
    let measure = parts.next()?;
    let (mut method, mut combine) = (Method::BetweenGroups, Combine::WorstCase);
    for part in parts {
        match (Method::named(part), Combine::named(part)) {
            (Ok(known), _) => method = known,
            (_, Ok(known)) => combine = known,
            (Err(_), Err(_)) => return None,
        }
    }
    let (measure, extent) = match (measure.strip_suffix("_difference"), measure.strip_suffix("_ratio")) {
        (Some(measure), _) => (measure, Extent::Difference),
        (_, Some(measure)) => (measure, Extent::Ratio),
        (None, None) => return None,
    };
    Some(match measure {
        "demographic_parity" => groups.demographic_parity(extent, method),
        "equal_opportunity" => groups.equal_opportunity(extent, method),
        "equalized_odds" => groups.equalized_odds(extent, method, combine),
        _ => return None,
    })
}

/// Compares fairlearn's named measures of rows in groups; `fairlearn` refuses where the measure is undefined here.
pub(super) fn compare_named(what: &str, all: &Rows, groups: &[Rows], expected: &Value, check: &mut Check) {
    let by_group: Vec<Confusion> = groups.iter().map(Rows::confusion).collect();
    for (name, value) in expected.as_object().unwrap() {
        let convention = if value.get("raises").is_some() { Convention::Defined } else { Convention::Fairlearn };
        let groups = Groups { by_group: &by_group, overall: &all.confusion(), convention };
        match named(&groups, name) {
            Some(got) => check.measured(&format!("{what}, {name}"), got, &plain(value)),
            None => check.fault(&format!("{what}, {name} is not known")),
        }
    }
}

/// Compares the fields of an aggregate that `expected` has.
pub(super) fn compare_aggregates(
    what: &str,
    fairlearn: &Aggregates,
    defined: &Aggregates,
    expected: &Value,
    check: &mut Check,
) {
    for (name, value) in expected.as_object().unwrap() {
        let what = format!("{what}, {name}");
        let got = match name.as_str() {
            "overall" => fairlearn.overall,
            "group_min" => fairlearn.group_min,
            "group_max" => fairlearn.group_max,
            "difference_between_groups" => fairlearn.difference_between_groups,
            "difference_to_overall" => fairlearn.difference_to_overall,
            "ratio_between_groups" => fairlearn.ratio_between_groups,
            "ratio_to_overall" => fairlearn.ratio_to_overall,
            "n_groups_defined" => {
                check.equal(&what, &(defined.groups_defined as f64), &number(value));
                continue;
            }
            "skip_undefined" => {
                check.keys(&what, value, &["min", "max", "difference", "ratio"]);
                check.measured(&format!("{what}, min"), defined.group_min, &value["min"]);
                check.measured(&format!("{what}, max"), defined.group_max, &value["max"]);
                let difference = defined.difference_between_groups;
                check.measured(&format!("{what}, difference"), difference, &value["difference"]);
                check.measured(&format!("{what}, ratio"), defined.ratio_between_groups, &value["ratio"]);
                continue;
            }
            _ => {
                check.fault(&format!("{what} is not known"));
                continue;
            }
        };
        check.measured(&what, got, &plain(value));
    }
}

/// Compares AIF360's figures; `privileged` `[rows]`.
pub(super) fn compare_aif360(what: &str, rows: &Rows, privileged: &[bool], expected: &Value, check: &mut Check) {
    let side =
        |wanted: bool| rows.only((0..privileged.len()).filter(move |row| privileged[*row] == wanted)).confusion();
    let pair = Privilege { unprivileged: side(false), privileged: side(true) };
    let benefits = others::benefits(&rows.truth, &rows.predicted);
    let group: Vec<u32> = privileged.iter().map(|privileged| u32::from(*privileged)).collect();
    for (name, value) in expected.as_object().unwrap() {
        let got = match name.as_str() {
            "statistical_parity_difference" => pair.statistical_parity_difference(),
            "disparate_impact" => pair.disparate_impact(),
            "equal_opportunity_difference" => pair.equal_opportunity_difference(),
            "average_odds_difference" => pair.average_odds_difference(),
            "average_abs_odds_difference" => pair.average_abs_odds_difference(),
            "equalized_odds_difference" => pair.equalized_odds_difference(),
            "false_positive_rate_difference" => pair.false_positive_rate_difference(),
            "false_negative_rate_difference" => pair.false_negative_rate_difference(),
            "false_discovery_rate_difference" => Ok(pair.false_discovery_rate_difference()),
            "false_omission_rate_difference" => Ok(pair.false_omission_rate_difference()),
            "error_rate_difference" => Ok(pair.error_rate_difference()),
            "error_rate_ratio" => pair.error_rate_ratio(),
            "average_predictive_value_difference" => Ok(pair.average_predictive_value_difference()),
            "theil_index" => others::generalized_entropy(&benefits, 1.0),
            "coefficient_of_variation" => others::coefficient_of_variation(&benefits),
            "generalized_entropy_index" => others::generalized_entropy(&benefits, 2.0),
            "between_group_generalized_entropy_index" => others::between_group_entropy(&benefits, &group, 2, 2.0),
            "smoothed_empirical_differential_fairness" => Ok(pair.smoothed_empirical_differential_fairness()),
            "differential_fairness_bias_amplification" => Ok(pair.differential_fairness_bias_amplification()),
            _ => {
                check.fault(&format!("{what}, {name} is not known"));
                continue;
            }
        };
        check.measured(&format!("{what}, {name}"), got, &plain(value));
    }
}

/// Compares Aequitas' table of groups and its disparities; it knows no weights.
pub(super) fn compare_aequitas(what: &str, rows: &Rows, values: &Value, expected: &Value, check: &mut Check) {
    check.keys(what, expected, &["attribute", "crosstab", "ref", "disparity"]);
    let (rows, values) = (rows.unweighted(), names(values));
    let of = |group: &str| rows.only((0..values.len()).filter(|row| values[*row] == group)).confusion();
    let all = rows.confusion();
    let figure = |group: &str, name: &str| -> Option<Measured> {
        let table = of(group);
        Some(match name {
            "pp" => Ok(table.selected()),
            "pn" => Ok(table.rejected()),
            // The group's share of everyone who was selected.
            "ppr" if all.selected() > 0.0 => Ok(table.selected() / all.selected()),
            "ppr" => Err(evenkeel::audit::statistics::Undefined::NothingSelected),
            "pprev" => table.rate(Rate::SelectionRate, Convention::Defined),
            "prev" => table.rate(Rate::BaseRate, Convention::Defined),
            "tp" => Ok(table.true_positive),
            "fp" => Ok(table.false_positive),
            "tn" => Ok(table.true_negative),
            "fn" => Ok(table.false_negative),
            "group_size" => Ok(table.total()),
            other => table.rate(Rate::named(other).ok()?, Convention::Defined),
        })
    };
    let reference = expected["ref"].as_str().unwrap();
    for (part, suffix) in [("crosstab", ""), ("disparity", "_disparity")] {
        for row in expected[part].as_array().unwrap() {
            let group = row["attribute_value"].as_str().unwrap();
            for (name, value) in row.as_object().unwrap().iter().filter(|(name, _)| *name != "attribute_value") {
                let what = format!("{what}, {part} of {group}, {name}");
                let known =
                    name.strip_suffix(suffix).and_then(|name| Some((figure(group, name)?, figure(reference, name)?)));
                match known {
                    None => check.fault(&format!("{what} is not known")),
                    Some((own, _)) if suffix.is_empty() => check.measured(&what, own, &plain(value)),
                    Some((own, other)) => check.measured(&what, others::aequitas_disparity(own, other), &plain(value)),
                }
            }
        }
    }
}
