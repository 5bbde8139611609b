//! The statistics of audits: pure functions over slices, in f64.
//!
//! Nothing here knows a model, a data set or a report. Rows carry weights (a bootstrap resample is a weight too: how
//! often each row was drawn), so that one function serves sample weights and resampling. What cannot be computed is an
//! [`Undefined`] with its reason, never 0 and never NaN.

pub mod auc;
pub mod benchmarks;
pub mod bootstrap;
pub mod calibration;
pub mod confusion;
pub mod disparity;
pub mod distributions;
pub mod hypothesis;
pub mod inputs;
pub mod intervals;
pub mod lira;
pub mod mink;
pub mod multiclass;
pub mod multiplicity;
pub mod permutation;
pub mod prompting;
pub mod proportions;
pub mod rmia;
pub mod roc;
pub mod smooth_ece;
pub mod suppression;

/// Why there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undefined {
    /// No row, or none of any weight.
    NoRows,
    /// No row of the positive class: no rate among them.
    NoPositives,
    /// No row of a negative class.
    NoNegatives,
    /// Nothing was predicted positive.
    NothingSelected,
    /// Nothing was predicted negative.
    NothingRejected,
    /// Fewer than two groups have a value: nothing to compare.
    OneGroup,
    /// A division by 0 of other kind.
    DivisionByZero,
    /// Not enough rows to tell: the resolution of the figure is coarser than what is asked.
    Unreachable,
    /// Too few shadow or reference models that had, or had not, this point.
    TooFewShadows,
    /// The best value lies at infinity.
    Unbounded,
    /// Contents, tokens and places did not meet equally often.
    Unbalanced,
}

/// The weight of each row in turn, without end: 1 if no weights are given.
fn weights_or_ones(weights: Option<&[f64]>) -> impl Iterator<Item = f64> {
    (0..).map(move |row: usize| weights.map_or(1.0, |weights| weights[row]))
}

/// A figure, or why there is none.
pub type Measured = Result<f64, Undefined>;

/// Divides, or gives `why` where there is nothing to divide by.
pub(crate) fn divide(part: f64, whole: f64, why: Undefined) -> Measured {
    if whole > 0.0 { Ok(part / whole) } else { Err(why) }
}
