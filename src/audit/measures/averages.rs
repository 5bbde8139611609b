//! Measures over several classes, and over labels of which a row may have any number.
//!
//! Words only, as all of the catalogue.

use super::{
    BINARY, DOWN, MEMBERSHIP_INFO, MeasureInfo, SKLEARN, TEMPERATURE, TOP_ECE_MASS, TOP_ECE_WIDTH, TOP_MCE, TOP_NULL,
    TOP_OVERCONFIDENCE, TOP_SMOOTH, UP, info,
};

/// Of one class of several.
pub(super) const CLASSES: [MeasureInfo; 19] = [
    BINARY[0],
    info((
        "balanced_accuracy",
        "Balanced accuracy",
        "share",
        "Mean recall of the classes that have rows.",
        SKLEARN,
        UP,
    )),
    info((
        "precision_macro",
        "Precision, macro",
        "share",
        "Mean over all classes; one that is never predicted counts 0.",
        SKLEARN,
        UP,
    )),
    info(("recall_macro", "Recall, macro", "share", "Mean over all classes; one without rows counts 0.", SKLEARN, UP)),
    info(("f1_macro", "F1, macro", "share", "Mean over all classes; an absent one counts 0.", SKLEARN, UP)),
    info((
        "precision_macro_present",
        "Precision, macro over present classes",
        "share",
        "Mean over the classes that rows or predictions show.",
        SKLEARN,
        UP,
    )),
    info((
        "recall_macro_present",
        "Recall, macro over present classes",
        "share",
        "Mean over the classes that rows or predictions show.",
        SKLEARN,
        UP,
    )),
    info((
        "f1_macro_present",
        "F1, macro over present classes",
        "share",
        "Mean over the classes that rows or predictions show.",
        SKLEARN,
        UP,
    )),
    info((
        "auc_macro",
        "AUC, macro",
        "share",
        "Mean of each class against the rest; none where a class has no rows.",
        SKLEARN,
        UP,
    )),
    BINARY[16],
    info((
        "brier_sum",
        "Brier score, summed over classes",
        "share",
        "Mean over rows of the squared differences summed over classes.",
        SKLEARN,
        DOWN,
    )),
    TOP_ECE_WIDTH,
    TOP_ECE_MASS,
    TOP_MCE,
    TOP_OVERCONFIDENCE,
    TOP_SMOOTH,
    TOP_NULL,
    TEMPERATURE,
    MEMBERSHIP_INFO,
];

/// Of labels of which a row may have several; each label besides has the measures of a binary task.
pub(super) const MULTI_LABEL: [MeasureInfo; 14] = [
    info(("exact_match", "Exact match", "share", "Rows of which every label is right.", SKLEARN, UP)),
    info(("hamming_loss", "Hamming loss", "share", "Wrong labels among all labels of all rows.", SKLEARN, DOWN)),
    info((
        "accuracy_macro",
        "Accuracy, macro",
        "share",
        "Mean accuracy of the labels, which is 1 minus the Hamming loss; from the sums over labels (micro) it is the same.",
        SKLEARN,
        UP,
    )),
    CLASSES[2],
    CLASSES[3],
    CLASSES[4],
    CLASSES[5],
    CLASSES[6],
    CLASSES[7],
    info((
        "precision_micro",
        "Precision, micro",
        "share",
        "Right among all predicted pairs of a row and a label: frequent labels count more.",
        SKLEARN,
        UP,
    )),
    info((
        "recall_micro",
        "Recall, micro",
        "share",
        "Predicted among all true pairs of a row and a label: frequent labels count more.",
        SKLEARN,
        UP,
    )),
    info(("f1_micro", "F1, micro", "share", "Harmonic mean of micro precision and micro recall.", SKLEARN, UP)),
    CLASSES[8],
    info((
        "auc_micro",
        "AUC, micro",
        "share",
        "Over all pairs of a row and a label: scores of different labels are compared with each other.",
        SKLEARN,
        UP,
    )),
];
