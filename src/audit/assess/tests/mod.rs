//! Assessments of small tables: what must hold for any rows, and what the statistics promise.

mod intervals;
mod labels;
mod null;
mod privacy;
mod properties;
mod smooth;
mod suppression;
mod versus;

use crate::audit::report::{Data, Figure, Model, ModelKind, Report, Scope};
use crate::audit::settings::{
    BootstrapInterval, Calibration, Convention, Correction, Overlap, Settings, Statistics, Task,
};
use crate::audit::table::{AttributeRows, GroupRows, Outcomes, Table};

use super::{AssessError, Provenance, assess};

pub(super) fn settings() -> Settings {
    Settings {
        task: Task::Uploaded,
        attributes: Vec::new(),
        intersections: Vec::new(),
        controls: Vec::new(),
        weight_column: None,
        cluster_column: None,
        splits: Vec::new(),
        measures: Vec::new(),
        positive: None,
        threshold: 0.5,
        statistics: Statistics {
            level: 0.95,
            resamples: 20,
            interval: BootstrapInterval::Percentile,
            permutations: 19,
            correction: Correction::Holm,
            margin: 0.0,
            min_group: 5,
            suppress_below: 0,
        },
        calibration: Calibration { bins: 5, temperature: false },
        membership: None,
        max_tokens: Some(128),
        overlap: Overlap::Mark,
        convention: Convention::Defined,
        utility_match: None,
        seed: 7,
    }
}

/// Only these measures.
pub(super) fn of(measures: &[&str]) -> Settings {
    Settings { measures: measures.iter().map(|name| (*name).to_owned()).collect(), ..settings() }
}

pub(super) fn model(name: &str) -> Model {
    Model {
        name: name.to_owned(),
        kind: ModelKind::Uploaded,
        adapter: String::new(),
        generation: String::new(),
        scale: 1.0,
        training: None,
        overlap: None,
    }
}

/// Rows of a binary task, by hand.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    pub(super) labels: Vec<bool>,
    /// By model.
    pub(super) scores: Vec<Vec<f64>>,
    pub(super) groups: Vec<Option<&'static str>>,
    pub(super) weights: Option<Vec<f64>>,
    pub(super) clusters: Option<Vec<u32>>,
    pub(super) controls: Vec<&'static str>,
}

pub(super) fn attribute(name: &str, values: &[Option<&str>]) -> AttributeRows {
    let mut names: Vec<Option<&str>> = values.to_vec();
    names.sort_by_key(|name| (name.is_none(), *name));
    names.dedup();
    let rows = |name: &Option<&str>| {
        values.iter().enumerate().filter(|(_, v)| *v == name).map(|(row, _)| row as u32).collect()
    };
    let group = |name: &Option<&str>| GroupRows { value: name.map(str::to_owned), rows: rows(name) };
    AttributeRows { name: name.to_owned(), combination: false, groups: names.iter().map(group).collect() }
}

impl Rows {
    pub(super) fn table(&self) -> Table {
        let pair = |p: &Vec<f64>| p.iter().flat_map(|p| [1.0 - p, *p]).collect();
        let controls: Vec<Option<&str>> = self.controls.iter().map(|c| Some(*c)).collect();
        Table {
            rows: self.labels.len(),
            weights: self.weights.clone(),
            clusters: self.clusters.clone(),
            attributes: vec![attribute("g", &self.groups)],
            controls: if controls.is_empty() { Vec::new() } else { vec![attribute("c", &controls)] },
            outcomes: Outcomes::Classes {
                names: vec!["no".to_owned(), "yes".to_owned()],
                positive: 1,
                labels: self.labels.iter().map(|l| u32::from(*l)).collect(),
                models: self.scores.iter().map(pair).collect(),
            },
            membership: None,
            preferences: Vec::new(),
        }
    }
}

pub(super) fn provenance(table: &Table) -> Provenance {
    let models = match &table.outcomes {
        Outcomes::Classes { models, .. } | Outcomes::MultiLabel { models, .. } => models.len(),
        Outcomes::Ratios { models, .. } => models.len(),
    };
    Provenance {
        software: "test".to_owned(),
        base: None,
        data: Data {
            dataset: String::new(),
            rows: table.rows as u64,
            sha256: String::new(),
            weight: table.rows as f64,
            clusters: table.rows as u64,
            duplicates: 0,
            truncated: 0,
            labels: Vec::new(),
        },
        models: (0..models).map(|i| model(&format!("m{i}"))).collect(),
        groups: Vec::new(),
        warnings: Vec::new(),
    }
}

pub(super) fn report(settings: &Settings, table: &Table) -> Report {
    try_report(settings, table).unwrap()
}

pub(super) fn try_report(settings: &Settings, table: &Table) -> Result<Report, AssessError> {
    assess(settings, table, provenance(table), &|| false)
}

pub(super) fn find<'r>(report: &'r Report, measure: &str, scope: &Scope) -> &'r Figure {
    let fits = |f: &&Figure| {
        f.measure == measure
            && f.scope == *scope
            && f.model == 0
            && f.versus.is_none()
            && f.control.is_none()
            && f.class.is_none()
    };
    report.figures.iter().find(fits).unwrap_or_else(|| panic!("no figure {measure} {scope:?}"))
}

pub(super) fn group(value: &str) -> Scope {
    Scope::Group(Some(value.to_owned()))
}
