//! `multiclass_groups.json`: scikit-learn on several classes, fairlearn on one class against the rest.

use evenkeel::audit::report::Scope;
use evenkeel::audit::statistics::Measured;
use evenkeel::audit::statistics::confusion::Convention;
use evenkeel::audit::statistics::disparity::Aggregates;
use evenkeel::audit::statistics::multiclass::{Average, ClassConfusion, ClassScores, Labels, PrecisionRecall};
use evenkeel::audit::uploaded::{Labels as UploadedLabels, Scores, Uploaded, UploadedModel};
use serde_json::Value;

use super::attacks::flat;
use super::figures::{Partition, Rows, compare_aggregates, compare_named, partition, plain};
use super::report::{self, Audited, Both, Place, group};
use super::{Check, indices, number};

struct Classes {
    classes: usize,
    truth: Vec<usize>,
    predicted: Vec<usize>,
    probabilities: Vec<f64>,
}

impl Classes {
    fn only(&self, rows: &[usize]) -> Self {
        let row = |row: &usize| self.probabilities[row * self.classes..(row + 1) * self.classes].to_vec();
        Self {
            classes: self.classes,
            truth: rows.iter().map(|row| self.truth[*row]).collect(),
            predicted: rows.iter().map(|row| self.predicted[*row]).collect(),
            probabilities: rows.iter().flat_map(row).collect(),
        }
    }

    fn table(&self) -> ClassConfusion {
        ClassConfusion::of(&self.truth, &self.predicted, None, self.classes)
    }

    /// One class against the rest.
    fn against_rest(&self, class: usize) -> Rows {
        let is = |labels: &[usize]| labels.iter().map(|label| *label == class).collect();
        Rows { truth: is(&self.truth), predicted: is(&self.predicted), score: Vec::new(), weights: None }
    }

    /// A figure by its name: `accuracy`, or `f1_macro_labels_all`.
    fn figure(&self, name: &str) -> Option<Measured> {
        let scores = ClassScores {
            truth: &self.truth,
            probabilities: &self.probabilities,
            classes: self.classes,
            weights: None,
        };
        let table = self.table();
        Some(match name {
            "accuracy" => table.accuracy(),
            "balanced_accuracy" => table.balanced_accuracy(),
            "cohen_kappa" => table.cohen_kappa(),
            "mcc" => table.matthews(),
            "log_loss" => scores.log_loss(),
            "brier_sum" => scores.brier_sum(),
            "auc_ovr_macro" => scores.auc_one_vs_rest(),
            "auc_ovo_macro" => scores.auc_one_vs_one(),
            other => {
                let (figure, rest) = other.split_once('_')?;
                let (of, over) = rest.split_once("_labels_")?;
                Ok(part(table.average(labels(over)?, average(of)?), figure)?)
            }
        })
    }
}

fn labels(name: &str) -> Option<Labels> {
    [("all", Labels::All), ("present", Labels::Present)].into_iter().find(|(known, _)| *known == name).map(|(_, l)| l)
}

fn average(name: &str) -> Option<Average> {
    let known = [("macro", Average::Macro), ("micro", Average::Micro), ("weighted", Average::Weighted)];
    known.into_iter().find(|(known, _)| *known == name).map(|(_, average)| average)
}

fn part(of: PrecisionRecall, name: &str) -> Option<f64> {
    let known = [("precision", of.precision), ("recall", of.recall), ("f1", of.f1)];
    known.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

pub(super) fn multiclass_groups(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "inputs", "expected"]);
    check.keys("inputs", inputs, &["n_classes", "y_true", "proba", "y_pred", "group"]);
    check.keys("expected", expected, &["by_group", "one_vs_rest", "aggregate"]);
    let all = Classes {
        classes: usize::try_from(inputs["n_classes"].as_u64().unwrap()).unwrap(),
        truth: indices(&inputs["y_true"]),
        predicted: indices(&inputs["y_pred"]),
        probabilities: flat(&inputs["proba"]),
    };
    let partition: Partition = partition(&inputs["group"]);
    let of_group = |group: usize| all.only(&partition.rows(group).collect::<Vec<_>>());
    let groups: Vec<Classes> = (0..partition.len()).map(of_group).collect();
    reported(inputs, expected, check);
    for (group, expected) in expected["by_group"].as_object().unwrap() {
        let own = partition.names.iter().position(|name| name == group).map_or(&all, |index| &groups[index]);
        check.equal(&format!("rows of {group}"), &(own.truth.len() as f64), &number(&expected["n"]));
        figures(group, own, expected, check);
    }
    for (class, expected) in expected["one_vs_rest"].as_object().unwrap() {
        let class: usize = class.parse().unwrap();
        let groups: Vec<Rows> = groups.iter().map(|group| group.against_rest(class)).collect();
        compare_named(&format!("class {class}"), &all.against_rest(class), &groups, expected, check);
    }
    for (name, expected) in expected["aggregate"].as_object().unwrap() {
        let by_group: Option<Vec<Measured>> = groups.iter().map(|group| group.figure(name)).collect();
        let (Some(overall), Some(by_group)) = (all.figure(name), by_group) else {
            check.fault(&format!("{name} is not known"));
            continue;
        };
        let of = |convention| Aggregates::of(overall, &by_group, convention);
        compare_aggregates(name, &of(Convention::Fairlearn), &of(Convention::Defined), expected, check);
    }
}

fn figures(group: &str, own: &Classes, expected: &Value, check: &mut Check) {
    let table = own.table();
    let every = || 0..own.classes;
    for (name, value) in expected.as_object().unwrap() {
        let what = format!("{group}, {name}");
        match name.as_str() {
            "n" => check.number(&what, table.total(), number(value)),
            "class_counts" => {
                check.numbers(&what, &every().map(|class| table.support(class)).collect::<Vec<_>>(), value);
                let counts = indices(value);
                let missing: Vec<usize> = every().filter(|class| counts[*class] == 0).collect();
                check.equal(&format!("{group}, missing classes"), &table.missing(), &missing);
            }
            "pred_counts" => {
                check.numbers(&what, &every().map(|class| table.predicted(class)).collect::<Vec<_>>(), value);
            }
            "confusion" => {
                let cells: Vec<f64> =
                    every().flat_map(|t| every().map(move |p| (t, p))).map(|(t, p)| table.cell(t, p)).collect();
                check.numbers(&what, &cells, &flat(value).into());
            }
            "per_class" => {
                for (figure, value) in value.as_object().unwrap() {
                    let of_class = |class| match figure.as_str() {
                        "support" => Some(table.support(class)),
                        figure => part(table.of_class(class), figure),
                    };
                    match every().map(of_class).collect::<Option<Vec<f64>>>() {
                        Some(got) => check.numbers(&format!("{what}, {figure}"), &got, value),
                        None => check.fault(&format!("{what}, {figure} is not known")),
                    }
                }
            }
            other => match (own.figure(other), other.strip_prefix("labels_").and_then(|name| name.split_once('.'))) {
                (Some(got), _) => check.measured(&what, got, &plain(value)),
                (None, Some((over, of))) => {
                    for (figure, value) in value.as_object().unwrap() {
                        match own.figure(&format!("{figure}_{of}_labels_{over}")) {
                            Some(got) => check.measured(&format!("{what}, {figure}"), got, value),
                            None => check.fault(&format!("{what}, {figure} is not known")),
                        }
                    }
                }
                (None, None) => check.fault(&format!("{what} is not known")),
            },
        }
    }
}

/// Compares one report of all rows.
fn reported(inputs: &Value, expected: &Value, check: &mut Check) {
    let classes = usize::try_from(inputs["n_classes"].as_u64().unwrap()).unwrap();
    let uploaded = Uploaded {
        classes: (0..classes).map(|class| class.to_string()).collect(),
        labels: UploadedLabels::One(indices(&inputs["y_true"]).into_iter().map(|label| label.to_string()).collect()),
        models: vec![UploadedModel { name: "m".to_owned(), scores: Scores::Classes(flat(&inputs["proba"])) }],
        attributes: vec![report::attribute("group", &inputs["group"])],
        ..Uploaded::default()
    };
    let both = Audited::both(&report::settings(), &uploaded);
    let place = Place::of("group");
    for (name, expected) in expected["by_group"].as_object().unwrap() {
        let scope = if name == "__overall__" { Scope::Overall } else { group(name) };
        of_group(name, (&both, &place, &scope), expected, check);
    }
    for (class, expected) in expected["one_vs_rest"].as_object().unwrap() {
        both.named(&format!("class {class}"), &Place { class: Some(class.as_str()), ..place.clone() }, expected, check);
    }
    for (name, expected) in expected["aggregate"].as_object().unwrap() {
        match measure(name) {
            Some(measure) => both.aggregates(name, &place, &measure, expected, check),
            None => check.fault(&format!("report: {name} is not known")),
        }
    }
}

/// The name in reports; none where they do not have it.
fn measure(name: &str) -> Option<String> {
    Some(match name {
        "accuracy" | "balanced_accuracy" | "log_loss" | "brier_sum" => name.to_owned(),
        "auc_ovr_macro" => "auc_macro".to_owned(),
        other => {
            let (measure, labels) = other.split_once("_labels_")?;
            let end = if labels == "present" { "_present" } else { "" };
            format!("{}{end}", measure.ends_with("_macro").then_some(measure)?)
        }
    })
}

fn of_group(name: &str, (both, place, scope): (&Both, &Place<'_>, &Scope), expected: &Value, check: &mut Check) {
    for (figure, value) in expected.as_object().unwrap() {
        let what = format!("report: {name}, {figure}");
        let value_of = |measure: &str| both.defined.value(place, scope, measure);
        match (figure.as_str(), figure.strip_prefix("labels_").and_then(|name| name.split_once('.'))) {
            ("n", _) => {
                check.equal(&what, &(both.defined.figure(place, scope, "accuracy").n as f64), &number(value));
            }
            ("per_class", _) => {
                for (figure, value) in value.as_object().unwrap() {
                    for (class, value) in value.as_array().unwrap().iter().enumerate() {
                        let (what, class) = (format!("{what}, {figure} of {class}"), class.to_string());
                        let place = Place { class: Some(&class), ..place.clone() };
                        if figure == "support" {
                            let n = both.defined.figure(&place, scope, "tpr").n as f64;
                            check.equal(&what, &n, &number(value));
                        } else {
                            check.measured(&what, both.fairlearn.value(&place, scope, figure), value);
                        }
                    }
                }
            }
            (_, Some((labels, "macro"))) => {
                for (part, value) in value.as_object().unwrap() {
                    let name = measure(&format!("{part}_macro_labels_{labels}")).unwrap();
                    check.measured(&format!("{what}, {part}"), value_of(&name), value);
                }
            }
            (other, None) => {
                if let Some(name) = measure(other) {
                    check.measured(&what, value_of(&name), &plain(value));
                }
            }
            (_, Some(_)) => {}
        }
    }
}
