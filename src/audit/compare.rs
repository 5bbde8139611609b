//! Compares two reports figure by figure.
//!
//! Knows no names of audits and no disk: whoever asks brings both reports. It makes no new test: whether two figures
//! are apart is said only of their intervals, which is stricter than a paired test on the same rows.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::report::{Figure, Report, Scope};
use super::settings::Settings;

/// What changed from one report to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Whether both were made with the same settings on the same rows.
    pub comparable: bool,
    /// In words: what differs in settings, data and models.
    pub differences: Vec<String>,
    /// One a figure: in the order of the later report, then those that only the earlier one has.
    pub changes: Vec<Change>,
}

/// One figure in both reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Name of the model.
    pub model: String,
    /// Name of the model it is compared with.
    pub versus: Option<String>,
    /// In the earlier report; none where it is not there.
    pub before: Option<Figure>,
    /// In the later report; none where it is not there.
    pub after: Option<Figure>,
    /// Later minus earlier value; none where one of them has none.
    pub change: Option<f64>,
    /// Whether their intervals do not meet; none where one of them has none.
    pub apart: Option<bool>,
}

/// What a figure is of, whatever its value: two figures with the same key measure the same thing.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    model: &'a str,
    versus: Option<&'a str>,
    attribute: Option<&'a str>,
    scope: &'a Scope,
    control: Option<(&'a str, Option<&'a str>)>,
    measure: &'a str,
    class: Option<&'a str>,
}

/// Compares two reports. Models are matched by their names in the report, figures by all they are of.
pub fn compare(before: &Report, after: &Report) -> Comparison {
    let mut differences = settings(&before.settings, &after.settings);
    let same_settings = differences.is_empty();
    let same_rows = before.data.sha256 == after.data.sha256 && before.data.rows == after.data.rows;
    data(before, after, &mut differences);
    models(before, after, &mut differences);
    Comparison { comparable: same_settings && same_rows, differences, changes: changes(before, after) }
}

fn changes(before: &Report, after: &Report) -> Vec<Change> {
    let mut earlier: BTreeMap<Key, &Figure> =
        before.figures.iter().filter_map(|figure| Some((key(before, figure)?, figure))).collect();
    let mut changes = Vec::with_capacity(after.figures.len());
    for figure in &after.figures {
        let Some(key) = key(after, figure) else { continue };
        let old = earlier.remove(&key);
        changes.push(change(&key, old, Some(figure)));
    }
    // In their own order, not that of the map.
    for figure in &before.figures {
        let Some(key) = key(before, figure) else { continue };
        if let Some(old) = earlier.remove(&key) {
            changes.push(change(&key, Some(old), None));
        }
    }
    changes
}

fn change(key: &Key, before: Option<&Figure>, after: Option<&Figure>) -> Change {
    let both = before.zip(after);
    let values = both.and_then(|(old, new)| old.value.zip(new.value));
    let intervals = both.and_then(|(old, new)| old.interval.as_ref().zip(new.interval.as_ref()));
    Change {
        model: key.model.to_owned(),
        versus: key.versus.map(str::to_owned),
        before: before.cloned(),
        after: after.cloned(),
        change: values.map(|(old, new)| new - old).filter(|change| change.is_finite()),
        apart: intervals.map(|(old, new)| old.high < new.low || new.high < old.low),
    }
}

/// `None` for a figure that points to no model.
fn key<'a>(report: &'a Report, figure: &'a Figure) -> Option<Key<'a>> {
    let name = |index: u32| report.models.get(index as usize).map(|model| model.name.as_str());
    let versus = match figure.versus {
        Some(index) => Some(name(index)?),
        None => None,
    };
    Some(Key {
        model: name(figure.model)?,
        versus,
        attribute: figure.attribute.as_deref(),
        scope: &figure.scope,
        control: figure.control.as_ref().map(|(column, value)| (column.as_str(), value.as_deref())),
        measure: &figure.measure,
        class: figure.class.as_deref(),
    })
}

/// Names the settings that differ, each with both values.
pub(super) fn settings(before: &Settings, after: &Settings) -> Vec<String> {
    if before == after {
        return Vec::new();
    }
    let (old, new) = (serde_json::to_value(before), serde_json::to_value(after));
    let mut words = Vec::new();
    if let (Ok(old), Ok(new)) = (old, new) {
        walk("settings", &old, &new, &mut words);
    }
    if words.is_empty() {
        words.push("settings differ".to_owned());
    }
    words
}

/// Goes down where both are objects with a field in common, and says the path where they differ.
fn walk(path: &str, old: &Value, new: &Value, words: &mut Vec<String>) {
    if old == new {
        return;
    }
    if let (Value::Object(left), Value::Object(right)) = (old, new)
        && left.keys().any(|name| right.contains_key(name))
    {
        let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
        for name in names {
            let (old, new) = (left.get(name).unwrap_or(&Value::Null), right.get(name).unwrap_or(&Value::Null));
            walk(&format!("{path}.{name}"), old, new, words);
        }
        return;
    }
    words.push(format!("{path} was {}, is {}", short(old), short(new)));
}

/// At most 80 characters of its JSON.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { text.chars().take(79).chain(['…']).collect() }
}

fn data(before: &Report, after: &Report, words: &mut Vec<String>) {
    if before.software != after.software {
        words.push(format!("version of evenkeel was {}, is {}", before.software, after.software));
    }
    let (old, new) = (&before.data, &after.data);
    if old.dataset != new.dataset {
        words.push(format!("data set was {}, is {}", old.dataset, new.dataset));
    }
    if old.sha256 != new.sha256 {
        words.push(format!("audited rows differ: their digest was {}, is {}", old.sha256, new.sha256));
    }
    if old.rows != new.rows {
        words.push(format!("number of rows was {}, is {}", old.rows, new.rows));
    }
    match (&before.base, &after.base) {
        (Some(old), Some(new)) => {
            if old.fingerprint != new.fingerprint {
                words.push(format!(
                    "base model was {} ({}), is {} ({})",
                    old.name, old.fingerprint, new.name, new.fingerprint
                ));
            }
            if (&old.dtype, &old.device) != (&new.dtype, &new.device) {
                words.push(format!(
                    "base model ran as {} on {}, runs as {} on {}",
                    old.dtype, old.device, new.dtype, new.device
                ));
            }
        }
        (Some(old), None) => words.push(format!("base model {} is no longer part of it", old.name)),
        (None, Some(new)) => words.push(format!("base model {} was not part of it", new.name)),
        (None, None) => {}
    }
}

fn models(before: &Report, after: &Report, words: &mut Vec<String>) {
    for new in &after.models {
        let Some(old) = before.models.iter().find(|old| old.name == new.name) else {
            words.push(format!("model {} is only in the later report", new.name));
            continue;
        };
        if old.generation != new.generation {
            words.push(format!(
                "model {} was generation {}, is {}",
                new.name,
                named(&old.generation),
                named(&new.generation)
            ));
        }
        if old.adapter != new.adapter {
            words.push(format!("model {} was adapter {}, is {}", new.name, named(&old.adapter), named(&new.adapter)));
        }
        if old.kind != new.kind {
            words.push(format!("model {} is of another kind than before", new.name));
        }
        if old.scale != new.scale {
            words.push(format!("model {} had scale {}, has {}", new.name, old.scale, new.scale));
        }
    }
    for old in before.models.iter().filter(|old| after.models.iter().all(|new| new.name != old.name)) {
        words.push(format!("model {} is only in the earlier report", old.name));
    }
}

fn named(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::render::sample::report;
    use super::super::report::Interval;
    use super::*;

    #[test]
    fn a_report_compared_with_itself_does_not_change() {
        let report = report();
        let same = compare(&report, &report);
        assert!(same.comparable);
        assert_eq!(same.differences, Vec::<String>::new());
        assert_eq!(same.changes.len(), report.figures.len());
        for (change, figure) in same.changes.iter().zip(&report.figures) {
            assert_eq!(change.after.as_ref(), Some(figure));
            assert_eq!(change.before, change.after);
            assert_eq!(change.change, figure.value.map(|_| 0.0));
            assert_eq!(change.apart, figure.interval.as_ref().map(|_| false));
        }
    }

    #[test]
    fn figures_are_matched_by_what_they_are_of_and_not_by_place() {
        let before = report();
        let mut after = report();
        // Models in another order, figures too.
        after.models.reverse();
        let last = after.models.len() as u32 - 1;
        for figure in &mut after.figures {
            figure.model = last - figure.model;
            figure.versus = figure.versus.map(|versus| last - versus);
        }
        after.figures.reverse();
        let comparison = compare(&before, &after);
        assert!(comparison.comparable);
        assert_eq!(comparison.changes.len(), before.figures.len());
        assert!(comparison.changes.iter().all(|change| change.change.is_none_or(|change| change == 0.0)));
        let order: Vec<_> = comparison.changes.iter().map(|change| change.after.clone()).collect();
        assert_eq!(order, after.figures.iter().cloned().map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn figures_of_one_side_only_are_kept_in_their_order() {
        let mut before = report();
        let after = report();
        let mut old = before.figures[0].clone();
        old.measure = "zz_old".to_owned();
        let mut older = old.clone();
        older.measure = "aa_old".to_owned();
        before.figures.splice(0..1, [old.clone(), older.clone()]);
        let changes = compare(&before, &after).changes;
        assert_eq!((&changes[0].before, changes[0].change, changes[0].apart), (&None, None, None));
        let ends: Vec<_> =
            changes[changes.len() - 2..].iter().map(|change| (change.before.clone(), change.after.clone())).collect();
        assert_eq!(ends, [(Some(old), None), (Some(older), None)]);
    }

    #[test]
    fn intervals_that_touch_are_not_apart() {
        let (mut before, mut after) = (report(), report());
        let interval = |low, high| Some(Interval { method: "wilson".to_owned(), level: 0.95, low, high });
        for (old, new, apart) in
            [((0.1, 0.2), (0.2, 0.3), false), ((0.1, 0.2), (0.21, 0.3), true), ((0.5, 0.6), (0.1, 0.4), true)]
        {
            before.figures[0].interval = interval(old.0, old.1);
            after.figures[0].interval = interval(new.0, new.1);
            assert_eq!(compare(&before, &after).changes[0].apart, Some(apart));
        }
    }

    #[test]
    fn differences_name_their_fields() {
        let before = report();
        let mut after = report();
        after.settings.statistics.resamples = 10;
        after.settings.seed = 8;
        after.models[1].generation = "beef".to_owned();
        after.data.rows += 1;
        let comparison = compare(&before, &after);
        assert!(!comparison.comparable);
        assert_eq!(
            comparison.differences,
            [
                "settings.seed was 7, is 8",
                "settings.statistics.resamples was 1000, is 10",
                "number of rows was 635, is 636",
                "model lora-r8 was generation 4f1c, is beef",
            ]
        );
        // Another generation of a model is what one compares.
        let mut only = report();
        only.models[1].generation = "beef".to_owned();
        assert!(compare(&before, &only).comparable);
    }
}
