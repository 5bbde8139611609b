//! What a reader should know before the figures.
//!
//! Says facts about rows, groups and tests; never that something is good or bad enough.

use crate::audit::report::{Data, Figure, Group, Matched, Model, Preference, Scope, Warning};
use crate::audit::settings::{Convention, Correction, Settings, Statistics, UtilityMatch};
use crate::audit::table::Table;

/// Clusters below which resampling them says little.
const FEW_CLUSTERS: u64 = 30;

pub(super) fn warning(kind: &str, message: String) -> Warning {
    Warning { kind: kind.to_owned(), message }
}

/// Of the rows and how they are read.
pub(super) fn of_data(settings: &Settings, table: &Table, groups: &[Group]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let name = |group: &Group| match &group.value {
        Some(value) => format!("{} = {value}", group.attribute),
        None => format!("{} is missing", group.attribute),
    };
    let held: Vec<String> = groups.iter().filter(|group| group.suppressed).map(name).collect();
    if !held.is_empty() {
        let below = settings.statistics.suppress_below;
        warnings.push(warning(
            "small_groups",
            format!(
                "figures of groups of fewer than {below} rows are not published, nor those of a group from which such a \
                 one could be told; gaps, ratios and tests leave them out: {}",
                held.join(", ")
            ),
        ));
    }
    let few = |group: &&Group| group.rows > 0 && !group.suppressed && group.rows < settings.statistics.min_group;
    let small: Vec<String> = groups.iter().filter(few).map(name).collect();
    if !small.is_empty() {
        let below = settings.statistics.min_group;
        warnings.push(warning("small_groups", format!("groups of fewer than {below} rows: {}", small.join(", "))));
    }
    for attribute in table.attributes.iter().filter(|attribute| !attribute.combination) {
        let mut groups = vec![0_u16; table.rows];
        attribute.groups.iter().flat_map(|group| &group.rows).for_each(|row| groups[*row as usize] += 1);
        let none = groups.iter().filter(|groups| **groups == 0).count();
        let several = groups.iter().filter(|groups| **groups > 1).count();
        if none > 0 || several > 0 {
            let message = format!("of {}: {none} rows are in no group and {several} in several", attribute.name);
            warnings.push(warning("memberships", message));
        }
    }
    if settings.convention == Convention::Fairlearn {
        warnings.push(warning(
            "convention_fairlearn",
            "undefined rates are shown and compared as fairlearn 0.15 has them: 0 stands for a rate without a denominator, \
             and one group has the difference 0"
                .to_owned(),
        ));
    }
    if let Some(clusters) = &table.clusters {
        let count = clusters.iter().max().map_or(0, |last| u64::from(*last) + 1);
        if count < FEW_CLUSTERS {
            warnings.push(warning(
                "clusters_few",
                format!("rows are resampled in {count} clusters: intervals are too short below about {FEW_CLUSTERS}"),
            ));
        }
    }
    warnings
}

/// Of the search for what published groups tell together.
pub(super) fn of_search(searched: bool) -> Option<Warning> {
    let message = "there are too many groups to search all sums and differences of them: those of one attribute tell no \
                   group that is held back, those of several attributes together may";
    (!searched).then(|| warning("suppression_partial", message.to_owned()))
}

/// Of what is known beside the table, where nobody said so yet.
pub(super) fn of_provenance(
    data: &Data,
    models: &[Model],
    preferences: &[Preference],
    said: &[Warning],
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut add = |kind: &str, message: String| {
        if !said.iter().any(|warning| warning.kind == kind) {
            warnings.push(warning(kind, message));
        }
    };
    if data.duplicates > 0 {
        add("duplicates", format!("{} rows repeat an earlier row", data.duplicates));
    }
    if data.truncated > 0 {
        add("truncated", format!("{} rows lost tokens from their start", data.truncated));
    }
    let trained: Vec<String> = models
        .iter()
        .filter_map(|model| Some((model, model.overlap.filter(|rows| *rows > 0)?)))
        .map(|(model, rows)| format!("{} on {rows}", model.name))
        .collect();
    if !trained.is_empty() {
        add("training_overlap", format!("models were trained on audited rows: {}", trained.join(", ")));
    }
    let followed = |preference: &&Preference| preference.separable == Some(false);
    let names = preferences.iter().filter(followed).map(|p| (p.model, p.alphabet.as_str()));
    let names: Vec<String> = names
        .map(|(model, alphabet)| {
            let model = models.get(model as usize).map_or("a model", |model| model.name.as_str());
            format!("{model} ({alphabet})")
        })
        .collect();
    if !names.is_empty() {
        add("token_preference", format!("not separable from token preference: {}", names.join(", ")));
    }
    warnings
}

/// Of tests.
pub(super) fn of_tests(settings: &Settings, tests: u64) -> Option<Warning> {
    let Statistics { correction, permutations, level, .. } = settings.statistics;
    let (by_chance, error) = (tests as f64 * 0.05, 1.0 - level);
    match correction {
        Correction::None if tests > 1 => {
            let message = format!(
                "{tests} tests are not corrected for their number: {by_chance:.0} fall below 0.05 by chance alone"
            );
            Some(warning("uncorrected_tests", message))
        }
        // Holm's smallest p is that of the test times their number.
        Correction::Holm if permutations > 0 && tests as f64 / (permutations as f64 + 1.0) > error => {
            let enough = (tests as f64 / error).ceil();
            let message = format!(
                "no p of {permutations} permutations, corrected for {tests} tests, can be below {error:.2}: it takes \
                 {enough} permutations, or fewer measures and groups"
            );
            Some(warning("permutations_few", message))
        }
        Correction::None | Correction::Holm | Correction::BenjaminiHochberg => None,
    }
}

/// Of intervals that are of fewer resamples than asked for.
pub(super) fn of_smooth(figures: &[Figure], (count, settings): (usize, &Settings)) -> Option<Warning> {
    let asked = settings.statistics.resamples;
    let there = figures.iter().any(|figure| figure.measure.starts_with("smooth_ece") && figure.interval.is_some());
    (there && count < asked).then(|| {
        let message = format!("intervals of smooth ECE are of the first {count} of {asked} resamples");
        warning("smooth_ece_resamples", message)
    })
}

/// Of models whose utility differs, so that their gaps are compared at different utility.
pub(super) fn of_utility(figures: &[Figure], models: &[Model], measure: &str) -> Vec<Warning> {
    let name = |model: u32| models.get(model as usize).map_or("a model", |model| model.name.as_str());
    let mut warnings = Vec::new();
    for figure in figures {
        let Some(versus) = figure.versus else { continue };
        let overall = figure.scope == Scope::Overall && figure.control.is_none() && figure.measure == measure;
        let apart = figure.interval.as_ref().is_some_and(|interval| interval.low > 0.0 || interval.high < 0.0);
        if let (true, true, Some(value)) = (overall && figure.class.is_none(), apart, figure.value) {
            let (model, versus) = (name(figure.model), name(versus));
            let message = format!(
                "the {measure} of {model} is that of {versus} {value:+.4}: their gaps are compared at different utility"
            );
            warnings.push(warning("utility_differs", message));
        }
    }
    warnings
}

/// Of a model that was to be found as useful as the first.
pub(super) fn of_match(asked: &UtilityMatch, matched: Option<&Matched>, models: &[Model]) -> Option<Warning> {
    let UtilityMatch { reference, measure, tolerance } = asked;
    let Some(found) = matched else {
        let text = match reference {
            Some(name) => format!("no model can be compared with {name} by {measure}"),
            None => format!("no model can be compared with the first by {measure}"),
        };
        return Some(warning("utility_unmatched", text));
    };
    let name = |model: u32| models.get(model as usize).map_or("a model", |model| model.name.as_str());
    (!found.within).then(|| {
        let (model, versus) = (name(found.model), name(found.versus));
        let text = format!(
            "{model} is nearest to {versus} in {measure} ({:+.4}), but may differ by more than {tolerance}",
            found.difference
        );
        warning("utility_unmatched", text)
    })
}
