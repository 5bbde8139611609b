//! Finds figures in a report: those of a table, a drawing, a measure.
//!
//! Reads only, in the order of the report; a report that names what it does not have gives nothing, never a panic.

use std::collections::BTreeMap;

use crate::audit::report::{Figure, Group, Report, Scope};

/// A measure, and a class of it.
pub(super) type Measure<'a> = (&'a str, Option<&'a str>);

/// Measures that are drawn, by the beginning of their names, the most asked for first.
const MAIN: [&str; 16] = [
    "accuracy",
    "exact_match",
    "selection_rate",
    "tpr",
    "true_positive_rate",
    "recall_macro",
    "fpr",
    "false_positive_rate",
    "ece_width",
    "ece",
    "auc",
    "mia_",
    "bias",
    "stereotype",
    "perplexity",
    "bits_per_byte",
];
/// Measures of disparity with a name of their own, shown among the first.
const NAMED: [&str; 3] = ["demographic_parity_difference", "equalized_odds_difference", "equal_opportunity_difference"];
/// Groups a drawing.
pub(super) const MOST_GROUPS: usize = 40;
/// Measures that are drawn for an attribute.
const MOST: usize = 8;

/// Attributes in the order of groups.
pub(super) fn attributes(report: &Report) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for name in report.groups.iter().map(|group| group.attribute.as_str()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Groups of an attribute.
pub(super) fn groups<'a>(report: &'a Report, attribute: &str) -> Vec<&'a Group> {
    report.groups.iter().filter(|group| group.attribute == attribute).collect()
}

/// Groups of an attribute that are drawn: the [`MOST_GROUPS`] of most rows, in the order of the report.
pub(super) fn drawn_groups<'a>(report: &'a Report, attribute: &str) -> Vec<&'a Group> {
    let all = groups(report, attribute);
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|&place| (std::cmp::Reverse(all[place].rows), place));
    order.truncate(MOST_GROUPS);
    order.sort_unstable();
    order.into_iter().map(|place| all[place]).collect()
}

/// Whether a measure is one of the first to be looked at.
pub(super) fn is_main(measure: &str) -> bool {
    let other = ["_after_temperature", "_equivalence", "_global", "_common_odds_ratio", "_ratio", "_mean"];
    let prefix = |name: &&str| measure.starts_with(*name) && (name.len() == measure.len() || *name != "auc");
    let mia = !measure.starts_with("mia_") || measure.ends_with("_auc");
    let rate = !measure.starts_with("tpr_at") && !measure.starts_with("fpr_at");
    NAMED.contains(&measure)
        || (MAIN.iter().any(prefix) && mia && rate && !other.iter().any(|end| measure.ends_with(end)))
}

/// Measures of an attribute that are drawn: at most [`MOST`].
pub(super) fn drawn<'a>(report: &'a Report, attribute: &str) -> Vec<Measure<'a>> {
    let mut all: Vec<Measure> = Vec::new();
    for figure in &report.figures {
        let measure = (figure.measure.as_str(), figure.class.as_deref());
        let of_a_group = matches!(figure.scope, Scope::Group(_)) && figure.attribute.as_deref() == Some(attribute);
        if of_a_group && figure.control.is_none() && figure.versus.is_none() && !all.contains(&measure) {
            all.push(measure);
        }
    }
    let rank = |measure: &Measure| MAIN.iter().position(|name| measure.0.starts_with(name)).unwrap_or(MAIN.len());
    let (mut main, rest): (Vec<Measure>, Vec<Measure>) =
        all.into_iter().partition(|(measure, class)| class.is_none() && is_main(measure));
    main.sort_by_key(rank);
    main.truncate(MOST);
    let missing = 3_usize.saturating_sub(main.len());
    main.extend(rest.into_iter().filter(|(measure, _)| !measure.ends_with("_equivalence")).take(missing));
    main
}

/// What a figure outside strata is of: model, versus, attribute, scope, measure.
type Key<'a> = (usize, Option<u32>, Option<&'a str>, &'a Scope, Measure<'a>);

/// A report whose figures are found by what they are of.
pub(super) struct Sheet<'a> {
    /// The report.
    pub(super) report: &'a Report,
    figures: BTreeMap<Key<'a>, &'a Figure>,
}

impl<'a> Sheet<'a> {
    /// Of two figures of the same the first is found.
    pub(super) fn new(report: &'a Report) -> Self {
        let mut figures = BTreeMap::new();
        for figure in report.figures.iter().filter(|figure| figure.control.is_none()) {
            let measure = (figure.measure.as_str(), figure.class.as_deref());
            let key = (figure.model as usize, figure.versus, figure.attribute.as_deref(), &figure.scope, measure);
            figures.entry(key).or_insert(figure);
        }
        Self { report, figures }
    }

    /// A figure outside strata.
    pub(super) fn figure(
        &self,
        models: (usize, Option<u32>),
        place: (Option<&str>, &Scope),
        measure: Measure,
    ) -> Option<&'a Figure> {
        self.figures.get(&(models.0, models.1, place.0, place.1, measure)).copied()
    }

    /// The figure of a model over all rows, or over those of a group.
    pub(super) fn own(&self, model: usize, group: Option<&Group>, measure: Measure) -> Option<&'a Figure> {
        match group {
            None => self.figure((model, None), (None, &Scope::Overall), measure),
            Some(group) => {
                let scope = Scope::Group(group.value.clone());
                self.figure((model, None), (Some(&group.attribute), &scope), measure)
            }
        }
    }
}

/// Value of a figure that may be shown: none where it is suppressed, undefined or not measured.
pub(super) fn value(figure: &Figure) -> Option<f64> {
    figure.value.filter(|_| super::words::absence(figure).is_none())
}

/// Pairs of models that are compared with one another, in the order of the report.
pub(super) fn pairs(report: &Report) -> Vec<(u32, u32)> {
    let mut pairs: Vec<(u32, u32)> = Vec::new();
    for pair in report.figures.iter().filter_map(|figure| Some((figure.model, figure.versus?))) {
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    pairs
}
