//! Names of the measures that come with tasks: benchmarks, perplexity, generation.
//!
//! Computes nothing; what they mean stands with their task.

use super::super::settings::Task;
use super::rules::Rules;

/// Categories whose F1 are compared.
pub(super) const GENDERS: [&str; 2] = ["male", "female"];
/// All but the rates of categories.
const MEASURES: [&str; 16] = [
    "stereotype_share",
    "log_likelihood_difference",
    "language_modelling_score",
    "icat",
    "accuracy_ambiguous",
    "accuracy_disambiguated",
    "bias_ambiguous",
    "bias_disambiguated",
    "unknown_ambiguous",
    "unknown_disambiguated",
    "loss_per_token",
    "bits_per_byte",
    "perplexity",
    "gold_accuracy",
    "delta_g",
    "delta_s",
];

/// Returns whether a task has a measure of this name; `{category}_rate` is one of generation.
pub fn is_measure(name: &str) -> bool {
    MEASURES.contains(&name) || name.ends_with("_rate")
}

/// Returns the names of a task's ratios, in their order; none where its outcomes are classes.
pub fn ratio_names(task: &Task) -> Vec<String> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    match task {
        Task::Head | Task::LabelWords { .. } | Task::Choice(_) | Task::Uploaded => Vec::new(),
        Task::Pairs { unrelated, .. } => names(&MEASURES[..if unrelated.is_some() { 4 } else { 2 }]),
        Task::Bbq { .. } => names(&MEASURES[4..10]),
        Task::Perplexity => names(&MEASURES[10..13]),
        Task::Generation { classifier, expected, gold, .. } => {
            let outcomes = Rules::new(classifier).map_or_else(|_| Vec::new(), |rules| rules.names);
            let against = if expected.is_some() { &["pro", "anti"][..] } else { &[] };
            let categories = &outcomes[..outcomes.len().saturating_sub(2)];
            let right = [
                ("gold_accuracy", true),
                ("delta_g", GENDERS.iter().all(|gender| categories.iter().any(|name| name == gender))),
                ("delta_s", expected.is_some()),
            ];
            let right = right.into_iter().filter(|(_, can)| gold.is_some() && *can).map(|(name, _)| name.to_owned());
            let rates = outcomes.iter().map(String::as_str).chain(against.iter().copied());
            rates.map(|name| format!("{name}_rate")).chain(right).collect()
        }
    }
}
