//! Which figures are read from which sums.
//!
//! Names come from the catalogue (`audit::measures`); here they get a meaning that code can follow. Does not compute.

use crate::audit::statistics::confusion::Rate;
use crate::audit::statistics::multiclass::Labels;
use crate::audit::table::{Formula, RatioMeasure};

/// One figure of one view.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measure {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Whether its gaps are tested; the others would be the same test again, or describe the data.
    pub(super) tested: bool,
    /// Whether ratios of it make sense: it is never below 0.
    pub(super) ratio: bool,
}

/// How it is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Off the confusion matrix.
    Rate(Rate),
    /// Mean score of the positive class.
    MeanScore,
    /// Mean log loss.
    LogLoss,
    /// Mean squared error; of several classes summed over them.
    Brier,
    /// Area under the ROC curve; of several classes the mean of one against the rest.
    Auc,
    /// Expected calibration error.
    Ece(Bins, Form),
    /// Largest gap of a bin of equal width.
    Mce(Form),
    /// Mean confidence minus rate of hits.
    Overconfidence(Form),
    /// Right among all, of several classes.
    ClassAccuracy,
    /// Mean recall of the classes that have rows.
    ClassBalanced,
    /// Mean over classes, or over labels of which a row may have several.
    Macro(Part, Labels),
    /// From the sums over labels.
    Micro(Part),
    /// Area under the ROC curve of all pairs of a row and a label.
    PooledAuc,
    /// A formula of columns.
    Ratio(Formula, bool),
    /// What a threshold on the score finds.
    Curve(Point),
}

/// A point of the ROC curve; rates by their number in [`super::view::View::rates`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// The best balanced accuracy of any threshold.
    Balanced,
    /// True-positive rate where the false-positive rate is at most this.
    Tpr(usize),
    /// True- and false-positive rate at the threshold that all rows have for this false-positive rate.
    GlobalTpr(usize),
    GlobalFpr(usize),
}

impl Point {
    /// The rate among rows of one label that it is; none of balanced accuracy.
    pub(super) fn share(self) -> Option<Rate> {
        match self {
            Self::Balanced => None,
            Self::Tpr(_) | Self::GlobalTpr(_) => Some(Rate::TruePositive),
            Self::GlobalFpr(_) => Some(Rate::FalsePositive),
        }
    }

    /// Whether its threshold is that of all rows.
    pub(super) fn is_global(self) -> bool {
        matches!(self, Self::GlobalTpr(_) | Self::GlobalFpr(_))
    }
}

/// Bins of confidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bins {
    Width,
    Mass,
}

/// Whose confidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Positive,
    Top,
}

impl Form {
    pub(super) const ALL: [Self; 2] = [Self::Positive, Self::Top];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Positive => "positive_class",
            Self::Top => "top_label",
        }
    }

    pub(super) fn index(self) -> usize {
        match self {
            Self::Positive => 0,
            Self::Top => 1,
        }
    }
}

/// What is averaged over classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Precision,
    Recall,
    F1,
}

/// Classes or labels beyond which no AUC is averaged over them.
pub(super) const MOST_RANKED: usize = 20;
/// Ends the name of a measure after temperature scaling.
pub(super) const AFTER: &str = "_after_temperature";

impl Kind {
    /// Whether it needs bins.
    pub(super) fn is_binned(&self) -> bool {
        matches!(self, Self::Ece(..) | Self::Mce(_))
    }

    /// The rate among rows of one label that it is, where its interval is exact.
    pub(super) fn exact(&self) -> Option<Rate> {
        if let Self::Curve(point) = self { point.share() } else { None }
    }

    /// Whether it is a share of rows, for which there are intervals without resampling.
    pub(super) fn is_share(&self) -> bool {
        match self {
            Self::Rate(rate) => !matches!(rate, Rate::BalancedAccuracy | Rate::F1),
            Self::ClassAccuracy => true,
            Self::Ratio(Formula::Ratio(_), rate) => *rate,
            Self::Ratio(..)
            | Self::MeanScore
            | Self::LogLoss
            | Self::Brier
            | Self::Auc
            | Self::Ece(..)
            | Self::Mce(_)
            | Self::Overconfidence(_)
            | Self::ClassBalanced
            | Self::Micro(_)
            | Self::PooledAuc
            | Self::Curve(_)
            | Self::Macro(..) => false,
        }
    }
}

fn measure(name: &str, kind: Kind) -> Measure {
    let tested = match kind {
        Kind::Rate(rate) => matches!(
            rate,
            Rate::Accuracy
                | Rate::BalancedAccuracy
                | Rate::Precision
                | Rate::F1
                | Rate::SelectionRate
                | Rate::TruePositive
                | Rate::FalsePositive
        ),
        Kind::MeanScore | Kind::Mce(_) | Kind::Ece(Bins::Mass, _) => false,
        Kind::Macro(part, labels) => part == Part::F1 && labels == Labels::All,
        Kind::Micro(part) => part == Part::F1,
        Kind::Curve(point) => !point.is_global(),
        Kind::LogLoss
        | Kind::Brier
        | Kind::Auc
        | Kind::PooledAuc
        | Kind::Ece(Bins::Width, _)
        | Kind::Overconfidence(_)
        | Kind::ClassAccuracy
        | Kind::ClassBalanced
        | Kind::Ratio(..) => true,
    };
    let ratio = match kind {
        Kind::Overconfidence(_) | Kind::Curve(_) => false,
        Kind::Ratio(formula, _) => {
            matches!(formula, Formula::Ratio(_) | Formula::Exponential(_) | Formula::Idealised(..))
        }
        Kind::Rate(_)
        | Kind::MeanScore
        | Kind::LogLoss
        | Kind::Brier
        | Kind::Auc
        | Kind::Ece(..)
        | Kind::Mce(_)
        | Kind::ClassAccuracy
        | Kind::ClassBalanced
        | Kind::Micro(_)
        | Kind::PooledAuc
        | Kind::Macro(..) => true,
    };
    Measure { name: name.to_owned(), kind, tested, ratio }
}

/// Figures of confidence in one form.
fn calibrated(form: Form) -> Vec<Measure> {
    let name = |what: &str| format!("{what}_{}", form.name());
    vec![
        measure(&name("ece_width"), Kind::Ece(Bins::Width, form)),
        measure(&name("ece_mass"), Kind::Ece(Bins::Mass, form)),
        measure(&name("mce"), Kind::Mce(form)),
        measure(&name("overconfidence"), Kind::Overconfidence(form)),
    ]
}

/// All of a binary question.
pub(super) fn binary() -> Vec<Measure> {
    let mut all: Vec<Measure> = Rate::ALL.iter().map(|(name, rate)| measure(name, Kind::Rate(*rate))).collect();
    all.push(measure("mean_score", Kind::MeanScore));
    all.push(measure("auc", Kind::Auc));
    all.push(measure("log_loss", Kind::LogLoss));
    all.push(measure("brier", Kind::Brier));
    all.extend(Form::ALL.into_iter().flat_map(calibrated));
    all
}

/// Of one class against the rest, where calibration is that of all classes at once.
pub(super) fn one_against_rest() -> Vec<Measure> {
    binary()
        .into_iter()
        .filter(|m| !matches!(m.kind, Kind::Ece(_, Form::Top) | Kind::Mce(_) | Kind::Overconfidence(_)))
        .collect()
}

/// All of a question with several classes.
pub(super) fn classes(count: usize) -> Vec<Measure> {
    let mut all = vec![measure("accuracy", Kind::ClassAccuracy), measure("balanced_accuracy", Kind::ClassBalanced)];
    for (labels, end) in [(Labels::All, ""), (Labels::Present, "_present")] {
        for (part, name) in [(Part::Precision, "precision"), (Part::Recall, "recall"), (Part::F1, "f1")] {
            all.push(measure(&format!("{name}_macro{end}"), Kind::Macro(part, labels)));
        }
    }
    // A pass over all rows for each class.
    if count <= MOST_RANKED {
        all.push(measure("auc_macro", Kind::Auc));
    }
    all.push(measure("log_loss", Kind::LogLoss));
    all.push(measure("brier_sum", Kind::Brier));
    all.extend(calibrated(Form::Top));
    all
}

/// All labels of a row at once: the columns of `questions`, and averages over the labels.
pub(super) fn labels(columns: &[RatioMeasure], count: usize) -> Vec<Measure> {
    let mut all = ratios(columns);
    // One minus the Hamming loss: the same test.
    all.iter_mut().filter(|m| m.name == "accuracy_macro").for_each(|m| m.tested = false);
    let parts = [(Part::Precision, "precision"), (Part::Recall, "recall"), (Part::F1, "f1")];
    let of = |average: &str, kind: &dyn Fn(Part) -> Kind| {
        parts.map(|(part, name)| measure(&format!("{name}_{average}"), kind(part)))
    };
    all.extend(of("macro", &|part| Kind::Macro(part, Labels::All)));
    all.extend(of("macro_present", &|part| Kind::Macro(part, Labels::Present)));
    all.extend(of("micro", &Kind::Micro));
    // A pass over all rows for each label.
    if count <= MOST_RANKED {
        all.extend([measure("auc_macro", Kind::Auc), measure("auc_micro", Kind::PooledAuc)]);
    }
    all
}

/// Those of a membership attack: `name` is how they begin.
pub(super) fn attack(name: &str, rates: &[f64]) -> Vec<Measure> {
    let mut all = vec![
        measure(&format!("{name}_auc"), Kind::Auc),
        measure(&format!("{name}_balanced_accuracy"), Kind::Curve(Point::Balanced)),
    ];
    for (at, rate) in rates.iter().enumerate() {
        all.push(measure(&format!("{name}_tpr_at_fpr_{rate}"), Kind::Curve(Point::Tpr(at))));
        all.push(measure(&format!("{name}_tpr_at_fpr_{rate}_global"), Kind::Curve(Point::GlobalTpr(at))));
        all.push(measure(&format!("{name}_fpr_at_fpr_{rate}_global"), Kind::Curve(Point::GlobalFpr(at))));
    }
    all
}

/// Those that a temperature changes.
pub(super) fn after_temperature(measures: &[Measure]) -> Vec<Measure> {
    let changed = measures.iter().filter(|m| {
        matches!(m.kind, Kind::LogLoss | Kind::Brier | Kind::Ece(..) | Kind::Mce(_) | Kind::Overconfidence(_))
    });
    changed.map(|m| Measure { name: format!("{}{AFTER}", m.name), tested: false, ..m.clone() }).collect()
}

/// Those of a table of ratios.
pub(super) fn ratios(measures: &[RatioMeasure]) -> Vec<Measure> {
    measures.iter().map(|m| measure(&m.name, Kind::Ratio(m.formula, m.is_rate))).collect()
}

/// A measure of group disparity that has a name of its own, over all groups of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    DemographicParityDifference,
    DemographicParityRatio,
    EqualizedOddsDifference,
    EqualizedOddsRatio,
    EqualizedOddsDifferenceMean,
    EqualizedOddsRatioMean,
    EqualOpportunityDifference,
    EqualOpportunityRatio,
    PredictiveParityDifference,
    ImpactRatio,
}

impl Named {
    pub(super) const ALL: [(&'static str, Self); 10] = [
        ("demographic_parity_difference", Self::DemographicParityDifference),
        ("demographic_parity_ratio", Self::DemographicParityRatio),
        ("equalized_odds_difference", Self::EqualizedOddsDifference),
        ("equalized_odds_ratio", Self::EqualizedOddsRatio),
        ("equalized_odds_difference_mean", Self::EqualizedOddsDifferenceMean),
        ("equalized_odds_ratio_mean", Self::EqualizedOddsRatioMean),
        ("equal_opportunity_difference", Self::EqualOpportunityDifference),
        ("equal_opportunity_ratio", Self::EqualOpportunityRatio),
        ("predictive_parity_difference", Self::PredictiveParityDifference),
        ("impact_ratio", Self::ImpactRatio),
    ];

    /// The rates that it compares.
    pub(super) fn rates(self) -> &'static [Rate] {
        match self {
            Self::DemographicParityDifference | Self::DemographicParityRatio | Self::ImpactRatio => {
                &[Rate::SelectionRate]
            }
            Self::EqualizedOddsDifference
            | Self::EqualizedOddsRatio
            | Self::EqualizedOddsDifferenceMean
            | Self::EqualizedOddsRatioMean => &[Rate::TruePositive, Rate::FalsePositive],
            Self::EqualOpportunityDifference | Self::EqualOpportunityRatio => &[Rate::TruePositive],
            Self::PredictiveParityDifference => &[Rate::Precision],
        }
    }

    /// The measure whose gap is the same number, so that it is the same test.
    pub(super) fn same_as(self) -> Option<Rate> {
        match self {
            Self::DemographicParityDifference => Some(Rate::SelectionRate),
            Self::EqualOpportunityDifference => Some(Rate::TruePositive),
            Self::PredictiveParityDifference => Some(Rate::Precision),
            Self::DemographicParityRatio
            | Self::EqualizedOddsDifference
            | Self::EqualizedOddsRatio
            | Self::EqualizedOddsDifferenceMean
            | Self::EqualizedOddsRatioMean
            | Self::EqualOpportunityRatio
            | Self::ImpactRatio => None,
        }
    }

    /// Whether 0 is no difference.
    pub(super) fn is_difference(self) -> bool {
        matches!(
            self,
            Self::DemographicParityDifference
                | Self::EqualizedOddsDifference
                | Self::EqualizedOddsDifferenceMean
                | Self::EqualOpportunityDifference
                | Self::PredictiveParityDifference
        )
    }
}
