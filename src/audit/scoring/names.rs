//! Names of the measures that come with tasks: benchmarks, perplexity, generation.
//!
//! Computes nothing; what they mean stands with their task.

/// All but the rates of categories.
const MEASURES: [&str; 13] = [
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
];

/// Returns whether a task has a measure of this name; `{category}_rate` is one of generation.
pub fn is_measure(name: &str) -> bool {
    MEASURES.contains(&name) || name.ends_with("_rate")
}
