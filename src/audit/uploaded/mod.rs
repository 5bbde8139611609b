//! Audits without a model: scores, labels and groups that a client brings, checked and made into a table.
//!
//! Every faulty value is reported with its field and row, up to a limit; nothing is repaired. A missing group value is
//! no fault: its rows are a group. A class without rows is no fault either: its figures are undefined. Rules:
//! `rejected_inputs.json` of the golden values. Rows are counted from 0. Does not compute figures.

mod digest;
mod groups;
mod size;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::assess::{AssessError, MAX_ROWS, Provenance, assess};
use super::report::{Data, Model, ModelKind, Report};
use super::settings::{Attack, Settings};
use super::table::{AttackScores, MembershipTable, Outcomes, Shadows, Table};
use digest::digest;
use groups::{combinations, groups};

pub use size::audited_bytes;

/// How far from 1 the probabilities of a row may sum; decimals whose last one is off by 1 pass, rounding aside.
const SUM_TOLERANCE: f64 = 1e-6;
/// What rounding makes of that.
const ROUNDING: f64 = 1e-12;
/// Faults that are reported, at most.
pub const MAX_FAULTS: usize = 100;

/// What a client brings; all columns have one entry a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Uploaded {
    /// Names of the classes, two or more (multi-label: one or more); empty: only membership is audited.
    pub classes: Vec<String>,
    /// Whether a row may have any number of the classes.
    pub multi_label: bool,
    /// Labels.
    pub labels: Labels,
    /// Models and their scores, at least one.
    pub models: Vec<UploadedModel>,
    /// Groups.
    pub attributes: Vec<UploadedAttribute>,
    /// Control features.
    pub controls: Vec<UploadedAttribute>,
    /// Weights; none: each row counts 1.
    pub weights: Option<Vec<f64>>,
    /// Names of clusters; none: each row alone.
    pub clusters: Option<Vec<String>>,
    /// Membership; none: not asked for.
    pub membership: Option<UploadedMembership>,
}

/// True classes by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Labels {
    /// There are none.
    #[default]
    None,
    /// One a row.
    One(Vec<String>),
    /// Any number a row.
    Several(Vec<Vec<String>>),
}

/// Scores of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct UploadedModel {
    /// Name in the report.
    pub name: String,
    /// Its scores.
    pub scores: Scores,
}

/// How confident a model is.
#[derive(Debug, Clone, PartialEq)]
pub enum Scores {
    /// Probability of the positive class of a binary task, `[rows]`.
    Positive(Vec<f64>),
    /// Probabilities `[rows, classes]`, row by row.
    Classes(Vec<f64>),
    /// There are none: only membership is audited.
    None,
}

/// Groups of one attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedAttribute {
    /// Name.
    pub name: String,
    /// Who belongs where.
    pub groups: UploadedGroups,
}

/// Who belongs where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadedGroups {
    /// A value a row; none: missing, which is a group of its own.
    Values(Vec<Option<String>>),
    /// Names of groups and a flag a row and group, `[rows, groups]`; groups may overlap.
    Flags(Vec<String>, Vec<bool>),
}

/// Signals of membership of each model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UploadedMembership {
    /// By model.
    pub models: Vec<UploadedSignals>,
}

/// Signals of one model; a signal is ln p − ln(1 − p) of the true answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UploadedSignals {
    /// Whether the model was trained on the row.
    pub members: Vec<bool>,
    /// Under the model.
    pub signals: Vec<f64>,
    /// Under a reference that was trained on none of the rows, as a rule the base model; empty where there is none.
    pub reference_signals: Vec<f64>,
    /// Under each shadow model, `[shadows][rows]`.
    pub shadow_signals: Vec<Vec<f64>>,
    /// Whether the shadow was trained on the row.
    pub shadow_members: Vec<Vec<bool>>,
}

/// A fault of what was uploaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}{}: {problem}", .row.map_or(String::new(), |row| format!("[{row}]")))]
pub struct Fault {
    /// The field, as in the request: `labels`, `models[0].scores`, …
    pub field: String,
    /// The row, if it is one row's.
    pub row: Option<usize>,
    /// What is wrong with it.
    pub problem: String,
}

/// Why uploaded scores cannot be audited.
#[derive(Debug, thiserror::Error)]
pub enum UploadedError {
    /// Faults, the first [`MAX_FAULTS`].
    #[error("{} faults, the first: {}", .0.len(), .0.first().map_or(String::new(), ToString::to_string))]
    Faults(Vec<Fault>),
    /// The audit failed.
    #[error(transparent)]
    Audit(#[from] AssessError),
}

/// Checks and audits what was uploaded.
///
/// # Errors
/// [`UploadedError`].
pub fn audit(
    settings: &Settings,
    uploaded: &Uploaded,
    software: &str,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Report, UploadedError> {
    let (table, provenance) = check(settings, uploaded, software)?;
    Ok(assess(settings, &table, provenance, stop)?)
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, field: &str, row: Option<usize>, problem: String) {
        if self.0.len() < MAX_FAULTS {
            self.0.push(Fault { field: field.to_owned(), row, problem });
        }
    }

    fn length(&mut self, field: &str, got: usize, expected: usize) -> bool {
        if got != expected {
            self.add(field, None, format!("has {got} values, expected {expected}"));
        }
        got == expected
    }

    fn finite(&mut self, field: &str, values: &[f64]) {
        for (row, value) in values.iter().enumerate().filter(|(_, value)| !value.is_finite()) {
            self.add(field, Some(row), format!("{value} is not a finite number"));
        }
    }

    fn probabilities(&mut self, field: &str, values: &[f64], columns: usize, sum_to_one: bool) {
        for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
            let wrong = values.iter().find(|p| !(0.0..=1.0).contains(*p));
            let sum: f64 = values.iter().sum();
            match wrong {
                Some(p) if p.is_finite() => self.add(field, Some(row), format!("{p} is not a probability from 0 to 1")),
                Some(p) => self.add(field, Some(row), format!("{p} is not a finite number")),
                None if sum_to_one && (sum - 1.0).abs() > SUM_TOLERANCE + ROUNDING => {
                    self.add(
                        field,
                        Some(row),
                        format!("the probabilities sum to {sum}, expected 1 within {SUM_TOLERANCE}"),
                    );
                }
                None => {}
            }
        }
    }
}

/// Checks everything and makes the table.
///
/// # Errors
/// [`UploadedError::Faults`].
pub fn check(settings: &Settings, uploaded: &Uploaded, software: &str) -> Result<(Table, Provenance), UploadedError> {
    let mut faults = Faults::default();
    let rows = match (&uploaded.labels, &uploaded.membership) {
        (Labels::One(labels), _) => labels.len(),
        (Labels::Several(labels), _) => labels.len(),
        (Labels::None, Some(membership)) => membership.models.first().map_or(0, |model| model.members.len()),
        (Labels::None, None) => 0,
    };
    if rows == 0 || rows > MAX_ROWS {
        faults.add("labels", None, format!("has {rows} rows, expected 1 to {MAX_ROWS}"));
        return Err(UploadedError::Faults(faults.0));
    }
    if uploaded.models.is_empty() {
        faults.add("models", None, "is empty".to_owned());
    }
    names(&mut faults, "models", uploaded.models.iter().map(|model| model.name.as_str()));
    names(&mut faults, "classes", uploaded.classes.iter().map(String::as_str));
    names(&mut faults, "attributes", uploaded.attributes.iter().map(|attribute| attribute.name.as_str()));
    let outcomes = outcomes(&mut faults, settings, uploaded, rows);
    let mut attributes = groups(&mut faults, "attributes", &uploaded.attributes, rows);
    let combined = combinations(&mut faults, &settings.intersections, &attributes);
    attributes.extend(combined);
    let controls = groups(&mut faults, "controls", &uploaded.controls, rows);
    if let Some(weights) = &uploaded.weights {
        faults.length("weights", weights.len(), rows);
        faults.finite("weights", weights);
        for (row, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight < 0.0) {
            faults.add("weights", Some(row), format!("{weight} is below 0"));
        }
        if weights.iter().all(|weight| *weight == 0.0) {
            faults.add("weights", None, "every weight is 0".to_owned());
        }
    }
    let clusters = uploaded.clusters.as_ref().map(|clusters| {
        faults.length("clusters", clusters.len(), rows);
        let mut known = BTreeMap::new();
        let number = |name| {
            let next = known.len() as u32;
            *known.entry(name).or_insert(next)
        };
        clusters.iter().map(number).collect::<Vec<u32>>()
    });
    let membership = uploaded.membership.as_ref().map(|m| membership(&mut faults, m, uploaded.models.len(), rows));
    if !faults.0.is_empty() {
        return Err(UploadedError::Faults(faults.0));
    }
    let digest = digest(uploaded);
    let weight = uploaded.weights.as_ref().map_or(rows as f64, |weights| weights.iter().sum());
    let count = clusters.as_ref().map_or(rows as u64, |c| c.iter().max().map_or(0, |last| u64::from(*last) + 1));
    let data = Data {
        dataset: digest.clone(),
        rows: rows as u64,
        sha256: digest,
        weight,
        clusters: count,
        duplicates: 0,
        truncated: 0,
        labels: uploaded.classes.clone(),
    };
    let model = |model: &UploadedModel| Model {
        name: model.name.clone(),
        kind: ModelKind::Uploaded,
        adapter: String::new(),
        generation: String::new(),
        scale: 1.0,
        training: None,
        overlap: None,
    };
    let provenance = Provenance {
        software: software.to_owned(),
        base: None,
        data,
        models: uploaded.models.iter().map(model).collect(),
        groups: Vec::new(),
        warnings: Vec::new(),
    };
    let table = Table {
        rows,
        weights: uploaded.weights.clone(),
        clusters,
        attributes,
        controls,
        outcomes,
        membership,
        preferences: Vec::new(),
    };
    Ok((table, provenance))
}

fn names<'n>(faults: &mut Faults, field: &str, names: impl Iterator<Item = &'n str>) {
    let mut seen = std::collections::BTreeSet::new();
    for (i, name) in names.enumerate() {
        if name.is_empty() {
            faults.add(&format!("{field}[{i}]"), None, "has no name".to_owned());
        } else if !seen.insert(name) {
            faults.add(&format!("{field}[{i}]"), None, format!("`{name}` is there twice"));
        }
    }
}

fn outcomes(faults: &mut Faults, settings: &Settings, uploaded: &Uploaded, rows: usize) -> Outcomes {
    let names = uploaded.classes.clone();
    let class_of: BTreeMap<&str, u32> = names.iter().enumerate().map(|(i, name)| (name.as_str(), i as u32)).collect();
    let class = |faults: &mut Faults, row: usize, label: &str| {
        class_of.get(label).copied().unwrap_or_else(|| {
            faults.add("labels", Some(row), format!("`{label}` is none of the classes"));
            0
        })
    };
    match &uploaded.labels {
        Labels::None => {
            for (i, model) in uploaded.models.iter().enumerate().filter(|(_, model)| model.scores != Scores::None) {
                faults.add(
                    &format!("models[{i}].scores"),
                    None,
                    format!("`{}` has scores but there are no labels", model.name),
                );
            }
            Outcomes::Ratios { measures: Vec::new(), models: vec![Vec::new(); uploaded.models.len()] }
        }
        Labels::One(_) if uploaded.multi_label || names.len() < 2 => {
            faults.add("classes", None, format!("{} classes do not fit one label a row", names.len()));
            Outcomes::Ratios { measures: Vec::new(), models: Vec::new() }
        }
        Labels::One(labels) => {
            let last = names.len() - 1;
            let positive = match &settings.positive {
                Some(name) => names.iter().position(|known| known == name).unwrap_or_else(|| {
                    faults.add("positive", None, format!("`{name}` is none of the classes"));
                    last
                }),
                None => last,
            };
            let labels = labels.iter().enumerate().map(|(row, label)| class(faults, row, label)).collect();
            let models = uploaded.models.iter().enumerate();
            let models =
                models.map(|(i, model)| scores(faults, (i, model), (rows, names.len()), Some(positive))).collect();
            Outcomes::Classes { names, positive, labels, models }
        }
        Labels::Several(several) => {
            if !uploaded.multi_label || names.is_empty() {
                faults.add("classes", None, "several labels a row need the classes of a multi-label task".to_owned());
            }
            let mut labels = vec![false; rows * names.len()];
            for (row, of_row) in several.iter().enumerate() {
                for label in of_row {
                    let class = class(faults, row, label) as usize;
                    if let Some(flag) = labels.get_mut(row * names.len() + class) {
                        *flag = true;
                    }
                }
            }
            let models = uploaded.models.iter().enumerate();
            let models = models.map(|(i, model)| scores(faults, (i, model), (rows, names.len()), None)).collect();
            Outcomes::MultiLabel { names, labels, models }
        }
    }
}

/// Probabilities `[rows, classes]`; `positive` where a row has one label.
fn scores(
    faults: &mut Faults,
    (number, model): (usize, &UploadedModel),
    (rows, classes): (usize, usize),
    positive: Option<usize>,
) -> Vec<f64> {
    let field = format!("models[{number}].scores");
    match (&model.scores, positive) {
        (Scores::Positive(p), Some(positive)) if classes == 2 => {
            faults.length(&field, p.len(), rows);
            faults.probabilities(&field, p, 1, false);
            p.iter().flat_map(|p| if positive == 1 { [1.0 - p, *p] } else { [*p, 1.0 - p] }).collect()
        }
        (Scores::Classes(p), _) => {
            faults.length(&field, p.len(), rows * classes);
            faults.probabilities(&field, p, classes, positive.is_some());
            p.clone()
        }
        (Scores::Positive(_), _) => {
            faults.add(&field, None, "one probability a row is for two classes only".to_owned());
            Vec::new()
        }
        (Scores::None, _) => {
            faults.add(&field, None, "is missing".to_owned());
            Vec::new()
        }
    }
}

fn membership(faults: &mut Faults, uploaded: &UploadedMembership, models: usize, rows: usize) -> MembershipTable {
    faults.length("membership.models", uploaded.models.len(), models);
    for (number, model) in uploaded.models.iter().enumerate() {
        let field = |name: &str| format!("membership.models[{number}].{name}");
        faults.length(&field("members"), model.members.len(), rows);
        faults.length(&field("signals"), model.signals.len(), rows);
        faults.finite(&field("signals"), &model.signals);
        if !model.reference_signals.is_empty() {
            faults.length(&field("reference_signals"), model.reference_signals.len(), rows);
            faults.finite(&field("reference_signals"), &model.reference_signals);
        }
        faults.length(&field("shadow_members"), model.shadow_members.len(), model.shadow_signals.len());
        for (shadow, signals) in model.shadow_signals.iter().enumerate() {
            let name = field(&format!("shadow_signals[{shadow}]"));
            faults.length(&name, signals.len(), rows);
            faults.finite(&name, signals);
        }
        for (shadow, members) in model.shadow_members.iter().enumerate() {
            faults.length(&field(&format!("shadow_members[{shadow}]")), members.len(), rows);
        }
    }
    let scores = |model: &UploadedSignals| {
        let plain = |attack, scores| AttackScores { attack, parameter: None, scores };
        // The smaller the loss of the true answer, the larger its signal.
        let mut all = vec![plain(Attack::Loss, model.signals.iter().map(|signal| Some(*signal)).collect())];
        if !model.reference_signals.is_empty() {
            let pairs = model.signals.iter().zip(&model.reference_signals);
            all.push(plain(Attack::Reference, pairs.map(|(own, reference)| Some(own - reference)).collect()));
        }
        all
    };
    MembershipTable {
        members: uploaded.models.iter().map(|model| model.members.clone()).collect(),
        scores: uploaded.models.iter().map(scores).collect(),
        signals: uploaded.models.iter().map(|model| model.signals.clone()).collect(),
        references: uploaded.models.iter().map(|model| model.reference_signals.clone()).collect(),
        shadows: uploaded
            .models
            .iter()
            .map(|model| Shadows { signals: model.shadow_signals.clone(), members: model.shadow_members.clone() })
            .collect(),
        planted: None,
    }
}
