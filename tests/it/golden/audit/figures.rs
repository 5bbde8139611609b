//! Rows of a case, and every figure of them by the name that the files give it.
//!
//! Knows no file. Where a library stands a number in for an undefined figure, or refuses, [`plain`] and the two
//! conventions tell what is compared with what.

use evenkeel::audit::statistics::confusion::{Confusion, Convention, Rate};
use evenkeel::audit::statistics::disparity::{Aggregates, Combine, Extent, Groups, Method};
use evenkeel::audit::statistics::multiclass::{Average, ClassConfusion, Labels, PrecisionRecall};
use evenkeel::audit::statistics::{Measured, auc};
use serde_json::Value;

use super::attacks::flags;
use super::{Check, number, numbers};

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

/// Groups by name, in order, and the group of every row.
#[derive(Clone)]
pub(super) struct Partition {
    pub(super) names: Vec<String>,
    /// `[rows]`: index into `names`.
    pub(super) of: Vec<usize>,
}

impl Partition {
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Every combination of the groups of both, `first|second`, those without rows included.
    pub(super) fn product(&self, other: &Self) -> Self {
        let names = self.names.iter().flat_map(|a| other.names.iter().map(move |b| format!("{a}|{b}"))).collect();
        let of = self.of.iter().zip(&other.of).map(|(a, b)| a * other.names.len() + b).collect();
        Self { names, of }
    }

    /// The rows of a group.
    pub(super) fn rows(&self, group: usize) -> impl Iterator<Item = usize> + '_ {
        self.of.iter().enumerate().filter(move |(_, of)| **of == group).map(|(row, _)| row)
    }
}

/// A column of group names.
pub(super) fn partition(values: &Value) -> Partition {
    let values = super::names(values);
    let names: Vec<String> = values.iter().cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let of = values.iter().map(|value| names.partition_point(|known| known < value)).collect();
    Partition { names, of }
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
