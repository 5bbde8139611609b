//! Names that settings may ask for, told before there is a table.
//!
//! From what a task's outcomes will look like; the report has the same names. Computes nothing.

use std::collections::BTreeSet;

use super::measure::{self, Form, Named};
use super::questions::label_measures;
use crate::audit::measures::MEMBERSHIP;
use crate::audit::scoring::ratio_names;
use crate::audit::settings::{Settings, Task};

/// What a table's outcomes look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// One class of so many a row.
    Classes(usize),
    /// Any number of so many labels a row.
    Labels(usize),
    /// Ratios of these names.
    Ratios(Vec<String>),
}

impl Shape {
    /// What a task makes of a data set with `labels` labels, of which a row has one or any number.
    #[must_use]
    pub fn of(task: &Task, labels: usize, multi_label: bool) -> Self {
        match task {
            Task::Uploaded if labels == 0 => Self::Ratios(Vec::new()),
            Task::Head | Task::Uploaded if multi_label => Self::Labels(labels),
            Task::Head | Task::Uploaded => Self::Classes(labels),
            Task::LabelWords { words, .. } => Self::Classes(words.len()),
            Task::Choice(choice) => Self::Classes(choice.columns.len().max(choice.answers.len())),
            Task::Pairs { .. } | Task::Bbq { .. } | Task::Perplexity | Task::Generation { .. } => {
                Self::Ratios(ratio_names(task))
            }
        }
    }
}

/// Names of the figures of the task, in the order of the report.
pub(super) fn known(shape: &Shape) -> Vec<String> {
    let names = |measures: Vec<measure::Measure>| measures.into_iter().map(|m| m.name).collect::<Vec<String>>();
    let named = || Named::ALL.map(|(name, _)| name.to_owned());
    let beside = |known: &mut Vec<String>| {
        for form in Form::ALL {
            if known.contains(&format!("ece_width_{}", form.name())) {
                known.extend(["smooth_ece", "ece_null"].map(|what| format!("{what}_{}", form.name())));
            }
        }
    };
    let mut known = Vec::new();
    match shape {
        Shape::Classes(2) => {
            known.extend(names(measure::binary()));
            known.extend(named());
            beside(&mut known);
        }
        Shape::Classes(count) => {
            known.extend(names(measure::classes(*count)));
            beside(&mut known);
            known.extend(names(measure::one_against_rest()));
            known.extend(named());
            beside(&mut known);
        }
        Shape::Labels(count) => {
            known.extend(names(label_measures(*count)));
            known.extend(names(measure::binary()));
            known.extend(named());
            beside(&mut known);
        }
        Shape::Ratios(names) => known.extend(names.iter().cloned()),
    }
    let mut seen = BTreeSet::new();
    known.retain(|name| seen.insert(name.clone()));
    known
}

/// Names that come with settings of their own. Each stands with whether these settings can have it.
fn besides(settings: &Settings, shape: &Shape) -> [(&'static str, bool); 4] {
    let odds = !settings.controls.is_empty() && !matches!(shape, Shape::Ratios(_));
    // Members of an upload may come without a word in its settings.
    let membership = settings.membership.is_some() || settings.task == Task::Uploaded;
    [
        (MEMBERSHIP, membership),
        ("temperature", settings.calibration.temperature && matches!(shape, Shape::Classes(_))),
        ("accuracy_common_odds_ratio", odds),
        ("selection_rate_common_odds_ratio", odds),
    ]
}

/// Measures that are asked and cannot be had of any of the shapes: their places, and why.
#[must_use]
pub fn unknown_measures(settings: &Settings, shapes: &[Shape]) -> Vec<(usize, String)> {
    let known: Vec<String> = shapes.iter().flat_map(known).collect();
    let can = |name: &str| shapes.iter().flat_map(|shape| besides(settings, shape)).any(|(of, can)| of == name && can);
    let classes = shapes.iter().any(|shape| matches!(shape, Shape::Classes(_)));
    let why = |name: &str| match name {
        MEMBERSHIP => "needs `membership`".to_owned(),
        "temperature" if classes => "is switched off by `temperature`".to_owned(),
        "accuracy_common_odds_ratio" | "selection_rate_common_odds_ratio" if settings.controls.is_empty() => {
            "needs control columns".to_owned()
        }
        _ => {
            let mut seen = BTreeSet::new();
            let known: Vec<&str> = known.iter().map(String::as_str).filter(|name| seen.insert(*name)).collect();
            format!("is not a measure that can be asked of this task: {}", known.join(", "))
        }
    };
    let asked = settings.measures.iter().enumerate();
    asked.filter(|(_, name)| !known.contains(name) && !can(name)).map(|(place, name)| (place, why(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::assess::tests::{of, settings};
    use crate::audit::settings::Calibration;

    #[test]
    fn what_settings_cannot_have_is_told_with_the_reason() {
        let asked = of(&[
            "accuracy",
            "accuracy_after_temperature",
            "accuracy_equivalence",
            "mia_loss_auc",
            "any_rate",
            "f1_macro",
            "temperature",
            "accuracy_common_odds_ratio",
        ]);
        let places = |settings: &Settings, shape: Shape| -> Vec<usize> {
            unknown_measures(settings, &[shape]).into_iter().map(|(place, _)| place).collect()
        };
        assert_eq!(places(&asked, Shape::Classes(2)), [1, 2, 3, 4, 5, 6, 7]);
        let calibration = Calibration { bins: 5, temperature: true };
        let more = Settings { controls: vec!["site".to_owned()], calibration, ..asked.clone() };
        assert_eq!(places(&more, Shape::Classes(2)), [1, 2, 3, 4, 5]);
        assert_eq!(places(&more, Shape::Classes(3)), [1, 2, 3, 4]);
        assert_eq!(places(&more, Shape::Labels(3)), [1, 2, 3, 4, 6]);
        assert_eq!(places(&more, Shape::Ratios(vec!["any_rate".to_owned()])), [0, 1, 2, 3, 5, 6, 7]);
        // Over many classes no AUC is averaged.
        let macro_auc = of(&["auc_macro"]);
        assert!(places(&macro_auc, Shape::Classes(20)).is_empty());
        assert_eq!(places(&macro_auc, Shape::Classes(21)), [0]);
        let why = |name: &str| unknown_measures(&of(&[name]), &[Shape::Classes(2)]).remove(0).1;
        assert_eq!(why("temperature"), "is switched off by `temperature`");
        assert_eq!(why("accuracy_common_odds_ratio"), "needs control columns");
        assert!(why("perplexity").contains("accuracy, balanced_accuracy"));
        let task = Task::Head;
        assert_eq!(
            unknown_measures(&Settings { task, ..of(&[MEMBERSHIP]) }, &[Shape::Classes(2)])[0].1,
            "needs `membership`"
        );
        assert!(unknown_measures(&settings(), &[Shape::Classes(2)]).is_empty());
    }
}
