//! The catalogue of measures: what each name in a report means, where it is from, which way is better.
//!
//! Words for people and names for settings; no formula stands here (see `statistics`). Units: shares and probabilities
//! in [0, 1], log loss in nats. Nothing here says what a figure ought to be.

mod averages;

use super::scoring::is_measure;
use averages::{CLASSES, MULTI_LABEL};

/// What a task's figures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A positive and a negative class.
    Binary,
    /// One class of several; one of them against the rest has the binary measures that need no calibration.
    Classes,
    /// Any number of labels; each has the binary measures.
    MultiLabel,
    /// Ratios of sums: benchmarks, perplexity, generation.
    Ratios,
}

/// One measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasureInfo {
    /// Name in settings and figures.
    pub name: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// `share`, `difference`, `ratio`, `nats`, `temperature`, …
    pub unit: &'static str,
    /// What it is, in a sentence.
    pub description: &'static str,
    /// Paper or library whose convention is followed.
    pub source: &'static str,
    /// Whether more is better; none where neither is.
    pub higher_is_better: Option<bool>,
}

/// Stands for all attacks where none was asked.
pub const MEMBERSHIP: &str = "membership_inference";

const SKLEARN: &str = "scikit-learn 1.9";
const FAIRLEARN: &str = "fairlearn 0.15";
const AEQUITAS: &str = "Aequitas 1.0";
const NETCAL: &str = "netcal 1.3";

type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, Option<bool>);

const fn info((name, title, unit, description, source, higher_is_better): Row) -> MeasureInfo {
    MeasureInfo { name, title, unit, description, source, higher_is_better }
}

const UP: Option<bool> = Some(true);
const DOWN: Option<bool> = Some(false);

const BINARY: [MeasureInfo; 44] = [
    info(("accuracy", "Accuracy", "share", "Right predictions among all rows.", SKLEARN, UP)),
    info((
        "balanced_accuracy",
        "Balanced accuracy",
        "share",
        "Mean of true-positive and true-negative rate.",
        SKLEARN,
        UP,
    )),
    info(("precision", "Precision", "share", "Positive rows among those predicted positive.", SKLEARN, UP)),
    info(("recall", "Recall", "share", "Another name of the true-positive rate.", SKLEARN, UP)),
    info(("f1", "F1", "share", "Harmonic mean of precision and recall.", SKLEARN, UP)),
    info(("selection_rate", "Selection rate", "share", "Rows predicted positive among all.", FAIRLEARN, None)),
    info(("tpr", "True-positive rate", "share", "Predicted positive among the positive rows.", FAIRLEARN, UP)),
    info(("tnr", "True-negative rate", "share", "Predicted negative among the negative rows.", FAIRLEARN, UP)),
    info(("fpr", "False-positive rate", "share", "Predicted positive among the negative rows.", FAIRLEARN, DOWN)),
    info(("fnr", "False-negative rate", "share", "Predicted negative among the positive rows.", FAIRLEARN, DOWN)),
    info(("npv", "Negative predictive value", "share", "Negative rows among those predicted negative.", AEQUITAS, UP)),
    info(("fdr", "False-discovery rate", "share", "Negative rows among those predicted positive.", AEQUITAS, DOWN)),
    info(("for", "False-omission rate", "share", "Positive rows among those predicted negative.", AEQUITAS, DOWN)),
    info(("base_rate", "Base rate", "share", "Positive rows among all: the data, not the model.", AEQUITAS, None)),
    info(("mean_score", "Mean score", "share", "Mean probability of the positive class.", FAIRLEARN, None)),
    info((
        "auc",
        "AUC",
        "share",
        "Pairs of a positive and a negative row in the right order; a tie counts half.",
        SKLEARN,
        UP,
    )),
    info((
        "log_loss",
        "Log loss",
        "nats",
        "Mean of −ln of the probability of the true class, clipped to 2⁻⁵².",
        SKLEARN,
        DOWN,
    )),
    info(("brier", "Brier score", "share", "Mean squared difference of probability and label.", SKLEARN, DOWN)),
    info((
        "ece_width_positive_class",
        "ECE, positive class",
        "share",
        "Expected calibration error of the positive class's probability in bins of equal width, left-closed. Never \
         negative, and above 0 by chance: compare with ece_null_positive_class.",
        NETCAL,
        DOWN,
    )),
    info((
        "ece_mass_positive_class",
        "ECE of equal mass, positive class",
        "share",
        "The same in bins of about equal weight that split no tie; edges come from all rows and serve every group.",
        NETCAL,
        DOWN,
    )),
    info((
        "mce_positive_class",
        "Largest calibration error, positive class",
        "share",
        "Largest gap of a bin of equal width.",
        NETCAL,
        DOWN,
    )),
    info((
        "overconfidence_positive_class",
        "Over-confidence, positive class",
        "difference",
        "Mean probability minus rate of positive rows: above 0 the model promises too much.",
        NETCAL,
        None,
    )),
    info((
        "smooth_ece_positive_class",
        "Smooth ECE, positive class",
        "share",
        "Calibration error without bins, the bandwidth chosen by a fixed point. Its interval is of at most 200 resamples, at \
         the bandwidth of the rows, and rather too wide.",
        "relplot 1.0, Błasiok and Nakkiran 2023",
        DOWN,
    )),
    info((
        "ece_null_positive_class",
        "ECE by chance, positive class",
        "share",
        "Mean ECE of a perfectly calibrated model with the same probabilities on as many rows: an expectation, so that it \
         has no interval.",
        "simulation",
        None,
    )),
    TOP_ECE_WIDTH,
    TOP_ECE_MASS,
    TOP_MCE,
    TOP_OVERCONFIDENCE,
    TOP_SMOOTH,
    TOP_NULL,
    TEMPERATURE,
    info((
        "demographic_parity_difference",
        "Demographic parity difference",
        "difference",
        "Largest minus smallest selection rate of a group.",
        FAIRLEARN,
        DOWN,
    )),
    info((
        "demographic_parity_ratio",
        "Demographic parity ratio",
        "ratio",
        "Smallest over largest selection rate of a group.",
        FAIRLEARN,
        UP,
    )),
    info((
        "equalized_odds_difference",
        "Equalized odds difference",
        "difference",
        "The larger of the gaps between groups in true- and in false-positive rate.",
        FAIRLEARN,
        DOWN,
    )),
    info((
        "equalized_odds_ratio",
        "Equalized odds ratio",
        "ratio",
        "The smaller of the ratios between groups in true- and in false-positive rate.",
        FAIRLEARN,
        UP,
    )),
    info((
        "equalized_odds_difference_mean",
        "Equalized odds difference, mean",
        "difference",
        "The mean of the gaps between groups in true- and in false-positive rate.",
        FAIRLEARN,
        DOWN,
    )),
    info((
        "equalized_odds_ratio_mean",
        "Equalized odds ratio, mean",
        "ratio",
        "The mean of the ratios between groups in true- and in false-positive rate.",
        FAIRLEARN,
        UP,
    )),
    info((
        "equal_opportunity_difference",
        "Equal opportunity difference",
        "difference",
        "Largest minus smallest true-positive rate of a group.",
        FAIRLEARN,
        DOWN,
    )),
    info((
        "equal_opportunity_ratio",
        "Equal opportunity ratio",
        "ratio",
        "Smallest over largest true-positive rate of a group.",
        FAIRLEARN,
        UP,
    )),
    info((
        "predictive_parity_difference",
        "Predictive parity difference",
        "difference",
        "Largest minus smallest precision of a group.",
        "Chouldechova 2017",
        DOWN,
    )),
    info((
        "impact_ratio",
        "Impact ratio",
        "ratio",
        "Selection rate over the highest selection rate of a group. Four fifths (0.8) is a screening rule of US employment \
         practice and means nothing elsewhere.",
        "29 CFR 1607.4 D, 6 RCNY §5-301",
        UP,
    )),
    info((
        "accuracy_common_odds_ratio",
        "Odds of being right, group against rest",
        "ratio",
        "Odds ratio pooled over strata of the controls (Mantel and Haenszel 1959), with the test of Cochran, Mantel and \
         Haenszel and the interval of Robins, Breslow and Greenland (in clusters the infinitesimal jackknife). 1 is no \
         difference. Rows count one each.",
        "statsmodels 0.15",
        None,
    )),
    info((
        "selection_rate_common_odds_ratio",
        "Odds of being selected, group against rest",
        "ratio",
        "The same of predicted positive.",
        "statsmodels 0.15",
        None,
    )),
    MEMBERSHIP_INFO,
];

const TOP_ECE_WIDTH: MeasureInfo = info((
    "ece_width_top_label",
    "ECE, top label",
    "share",
    "Expected calibration error of the probability of the predicted class in bins of equal width, left-closed. Compare \
     with ece_null_top_label.",
    NETCAL,
    DOWN,
));
const TOP_ECE_MASS: MeasureInfo = info((
    "ece_mass_top_label",
    "ECE of equal mass, top label",
    "share",
    "The same in bins of about equal weight that split no tie; edges come from all rows and serve every group.",
    NETCAL,
    DOWN,
));
const TOP_MCE: MeasureInfo = info((
    "mce_top_label",
    "Largest calibration error, top label",
    "share",
    "Largest gap of a bin of equal width.",
    NETCAL,
    DOWN,
));
const TOP_OVERCONFIDENCE: MeasureInfo = info((
    "overconfidence_top_label",
    "Over-confidence, top label",
    "difference",
    "Mean confidence minus accuracy: above 0 the model promises too much.",
    NETCAL,
    None,
));
const TOP_SMOOTH: MeasureInfo = info((
    "smooth_ece_top_label",
    "Smooth ECE, top label",
    "share",
    "Calibration error without bins, the bandwidth chosen by a fixed point. Its interval is of at most 200 resamples, at \
         the bandwidth of the rows, and rather too wide.",
    "relplot 1.0, Błasiok and Nakkiran 2023",
    DOWN,
));
const TOP_NULL: MeasureInfo = info((
    "ece_null_top_label",
    "ECE by chance, top label",
    "share",
    "Mean ECE of a perfectly calibrated model with the same confidences on as many rows: an expectation, so that it has \
     no interval.",
    "simulation",
    None,
));
const TEMPERATURE: MeasureInfo = info((
    "temperature",
    "Temperature",
    "temperature",
    "What logits are divided by for the least log loss, each half of the rows fitted on the other; above 1 the model was \
     over-confident. Figures after it end in _after_temperature. Its interval takes rows, or clusters, as drawn anew.",
    "Guo et al. 2017",
    None,
));
const MEMBERSHIP_INFO: MeasureInfo = info((
    MEMBERSHIP,
    "Membership inference",
    "share",
    "Whether an attacker can tell the rows that a model was trained on. Figures are named mia_ATTACK_…",
    "Carlini et al. 2022",
    DOWN,
));

const RATIOS: [MeasureInfo; 1] = [MEMBERSHIP_INFO];

/// Measures of attacks, after `mia_ATTACK`.
const ATTACKS: [MeasureInfo; 6] = [
    info((
        "auc",
        "AUC of the attack",
        "share",
        "How often a member has the higher score than a non-member; 0.5 is chance. Gaps between groups are \
        above 0 by chance: read them beside their null (Kulynych et al. 2022).",
        "Carlini et al. 2022",
        DOWN,
    )),
    info((
        "balanced_accuracy",
        "Balanced accuracy of the attack",
        "share",
        "At its best threshold, which makes it too high on few rows.",
        "Carlini et al. 2022",
        DOWN,
    )),
    info((
        "tpr_at_fpr",
        "Members found at a false-positive rate",
        "share",
        "At the largest threshold set whose share of false alarms is at most this, of \
        the group itself or (global) of all rows.",
        "Carlini et al. 2022",
        DOWN,
    )),
    info((
        "fpr_at_fpr",
        "False alarms in the group at the threshold of all rows",
        "share",
        "Where it is above the rate asked for, the group is accused \
        more often than others.",
        "Carlini et al. 2022",
        None,
    )),
    info((
        "control_shuffled_auc",
        "AUC against shuffled membership",
        "share",
        "A control: memberships are shuffled, those of shadows alike, and what the attack fits is fitted anew. It must lie \
        in the interval that chance gives; an attack that fits nothing leaves it by chance only.",
        "paper checklist",
        None,
    )),
    info((
        "control_planted_auc",
        "AUC against planted members",
        "share",
        "A control: the attack on a model that has learnt a few rows by heart, with the shadows of the model that it is a \
        control of. Near 1 where the attack works.",
        "paper checklist",
        None,
    )),
];

/// Measures of a kind of task. Tables of ratios bring names of their own.
#[must_use]
pub fn measures(outcome: Outcome) -> &'static [MeasureInfo] {
    match outcome {
        Outcome::Binary => &BINARY,
        Outcome::Classes => &CLASSES,
        Outcome::MultiLabel => &MULTI_LABEL,
        Outcome::Ratios => &RATIOS,
    }
}

/// The entry for the name of a figure: of a measure of any task, one after temperature scaling, one that is tested for
/// equivalence, or one of an attack; none for measures of benchmarks, which scoring names.
#[must_use]
pub fn find(name: &str) -> Option<&'static MeasureInfo> {
    let plain = name.strip_suffix("_equivalence").unwrap_or(name);
    let plain = plain.strip_suffix("_after_temperature").unwrap_or(plain);
    if plain.starts_with("mia_") {
        return ATTACKS.iter().rev().find(|info| plain.contains(&format!("_{}", info.name)));
    }
    let all = [&BINARY[..], &CLASSES, &MULTI_LABEL, &RATIOS];
    all.into_iter().flatten().find(|info| info.name == plain)
}

/// Returns whether a figure can have this name.
pub fn is_known(name: &str) -> bool {
    find(name).is_some() || is_measure(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::audit::scoring::ratio_names;
    use crate::audit::settings::{Classifier, Normalization, Task};

    #[test]
    fn every_entry_is_found_by_its_name_and_judges_nothing() {
        for info in [&BINARY[..], &CLASSES, &MULTI_LABEL, &RATIOS].into_iter().flatten() {
            assert_eq!(find(info.name).map(|found| found.name), Some(info.name));
            for words in [info.title, info.description] {
                let words = words.to_lowercase();
                assert!(!words.contains("fair") && !words.contains("complian"), "{words}");
            }
        }
        assert_eq!(find("log_loss_after_temperature").map(|i| i.unit), Some("nats"));
        assert_eq!(find("mia_min_k_0.2_tpr_at_fpr_0.01_global").map(|i| i.name), Some("tpr_at_fpr"));
        assert_eq!(find("mia_loss_control_shuffled_auc").map(|i| i.name), Some("control_shuffled_auc"));
        assert_eq!(find("mia_loss_control_planted_auc").map(|i| i.name), Some("control_planted_auc"));
        assert_eq!(find("mia_control_planted_auc").map(|i| i.name), Some("control_planted_auc"));
        assert_eq!(find("accuracy_equivalence").map(|i| i.name), Some("accuracy"));
        assert_eq!(find("no such"), None);
    }

    #[test]
    fn the_readme_lists_every_name_and_no_other() {
        let readme = include_str!("../../README.md");
        let section = readme.split("### Measures").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
        let names = section.lines().filter_map(|line| line.strip_prefix('|')?.split('|').nth(1));
        let listed: BTreeSet<&str> = names.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        let (text, normalization) = (String::new, Normalization::Sum);
        let tasks = [
            Task::Pairs { more: text(), less: text(), unrelated: Some(text()), normalization },
            Task::Bbq { answers: Vec::new(), condition: text(), unknown: text(), biased: text(), normalization },
            Task::Perplexity,
            Task::Generation {
                classifier: Classifier::Pronouns,
                max_new_tokens: 1,
                expected: Some(text()),
                gold: Some(text()),
            },
        ];
        let ratios: Vec<String> = tasks.iter().flat_map(ratio_names).collect();
        let of_categories = ["male_rate", "female_rate", "neutral_rate"];
        let ratios = ratios.iter().map(String::as_str).filter(|name| !of_categories.contains(name));
        let catalogue = [&BINARY[..], &CLASSES, &MULTI_LABEL, &RATIOS];
        for name in catalogue.into_iter().flatten().map(|info| info.name).chain(ratios) {
            assert!(listed.contains(name), "{name} is not in the table of the README");
        }
        for info in ATTACKS {
            let begin = format!("mia_ATTACK_{}", info.name);
            assert!(listed.iter().any(|name| name.starts_with(&begin)), "{begin} is not in the table of the README");
        }
        for name in listed {
            assert!(name.contains(char::is_uppercase) || is_known(name), "there is no measure {name}");
        }
    }
}
