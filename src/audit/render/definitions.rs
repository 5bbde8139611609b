//! What measures are, in a sentence each, by the beginning of their names.
//!
//! For readers of a page; formulas and sources stand with the functions that compute them.

/// The first whose name a measure begins with is its definition.
const DEFINITIONS: [(&str, &str); 51] = [
    (
        "accuracy_common_odds_ratio",
        "Odds of being right in the group over those in the rest, common to all strata (Mantel and Haenszel); 1: no difference.",
    ),
    (
        "selection_rate_common_odds_ratio",
        "Odds of being selected in the group over those in the rest, common to all strata (Mantel and Haenszel); 1: no difference.",
    ),
    ("selection_rate", "Share of rows predicted positive."),
    ("balanced_accuracy", "Mean over classes of the share of their rows that are predicted right."),
    ("accuracy", "Share of rows predicted right."),
    ("exact_match", "Share of rows whose labels are all predicted right."),
    ("hamming_loss", "Share of labels predicted wrong."),
    ("tpr_at_fpr", "True-positive rate where the false-positive rate is at most the number named."),
    ("tpr", "True-positive rate: of the positives, the share predicted positive."),
    ("true_positive_rate", "Of the positives, the share predicted positive."),
    ("fpr", "False-positive rate: of the negatives, the share predicted positive."),
    ("false_positive_rate", "Of the negatives, the share predicted positive."),
    ("fnr", "False-negative rate: of the positives, the share predicted negative."),
    ("false_negative_rate", "Of the positives, the share predicted negative."),
    ("tnr", "True-negative rate: of the negatives, the share predicted negative."),
    ("true_negative_rate", "Of the negatives, the share predicted negative."),
    ("precision", "Of the rows predicted positive (or as a class), the share that are."),
    ("recall", "Of the rows of a class, the share predicted as it."),
    ("f1", "Harmonic mean of precision and recall."),
    ("mean_score", "Mean probability of the positive class."),
    ("demographic_parity_difference", "Largest minus smallest selection rate of a group."),
    ("demographic_parity_ratio", "Smallest over largest selection rate of a group."),
    (
        "impact_ratio",
        "Smallest over largest selection rate of a group; below 0.8 a screening rule asks for a closer look.",
    ),
    ("equalized_odds_difference_mean", "Mean of the gaps in true- and false-positive rate."),
    ("equalized_odds_difference", "The larger of the gaps in true- and false-positive rate."),
    ("equalized_odds_ratio_mean", "Mean of the ratios of true- and of false-positive rates."),
    ("equalized_odds_ratio", "The smaller of the ratios of true- and of false-positive rates."),
    ("equal_opportunity_difference", "Largest minus smallest true-positive rate of a group."),
    ("equal_opportunity_ratio", "Smallest over largest true-positive rate of a group."),
    ("predictive_parity_difference", "Largest minus smallest precision of a group."),
    ("auc", "Chance that a positive row has a higher score than a negative one; 0.5: none better than guessing."),
    ("ece_null", "Expected calibration error that a perfectly calibrated model would show on as many rows."),
    (
        "ece_width",
        "Expected calibration error: mean distance of confidence and share of hits, over bins of equal width.",
    ),
    (
        "ece_mass",
        "Expected calibration error: mean distance of confidence and share of hits, over bins of as many rows each.",
    ),
    ("ece", "Expected calibration error: mean distance of confidence and share of hits over bins."),
    ("mce", "Largest distance of confidence and share of hits in a bin."),
    ("smooth_ece", "Calibration error without bins, by a kernel of chosen width."),
    ("overconfidence", "Mean confidence minus share of hits; above 0: too confident."),
    ("brier", "Mean squared distance of probabilities and what came true."),
    ("log_loss", "Mean negative logarithm of the probability of what came true."),
    ("perplexity", "Exponential of the mean loss a token."),
    ("bits_per_byte", "Loss in bits a byte of text."),
    ("loss", "Mean loss."),
    (
        "mia_control_planted",
        "Attack on a model trained so that its members must be found: near 1 where the attack works.",
    ),
    (
        "mia_control_shuffled",
        "Attack fitted anew on memberships that were shuffled: an AUC outside of its interval means that it is told who is a member.",
    ),
    (
        "mia_",
        "Membership inference: how well members of the training data can be told from other rows; an AUC of 0.5 is guessing.",
    ),
    ("gold_accuracy", "Texts of the category that is right."),
    ("delta_g", "WinoMT: F1 of male minus F1 of female texts (Stanovsky et al. 2019)."),
    (
        "delta_s",
        "WinoMT: accuracy where the right category is the stereotyped one minus accuracy where it is not (Stanovsky et al. 2019).",
    ),
    ("bbq", "BBQ: how often answers follow the stereotype (Parrish et al. 2022)."),
    ("temperature", "What logits are divided by to be calibrated; above 1: too confident before."),
];

/// Definition of a measure, where there is one here.
pub(super) fn definition(measure: &str) -> Option<String> {
    // Controls are named after their attack.
    let control = measure.find("_control_").filter(|_| measure.starts_with("mia_"));
    let name = control.map_or_else(|| measure.to_owned(), |at| format!("mia{}", &measure[at..]));
    let (_, words) = DEFINITIONS.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let mut text = (*words).to_owned();
    if measure.ends_with("_after_temperature") {
        text.push_str(" After a temperature was fitted on the other half of the rows.");
    }
    if measure.ends_with("_equivalence") {
        text.push_str(" Here: test that two models, or groups, differ by less than the margin.");
    }
    Some(text)
}
