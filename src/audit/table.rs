//! Audited rows with what each model said of them: what scoring makes and what is assessed.
//!
//! Columns of equal length, rows in the order of the data set. Knows no model. Values are finite; probabilities of a row
//! sum to 1 within 1e-6 (multi-label: each lies in [0, 1]).

use serde::{Deserialize, Serialize};

use super::report::Preference;
use super::settings::Attack;

/// What statistics take a row, and a row of each model: seen with 1,000,000 rows of a binary task (`tests/bench`).
const ROW_BYTES: u64 = 280;
const MODEL_BYTES: u64 = 90;

/// Returns about how many bytes of memory statistics on a table of so many rows and models take.
#[must_use]
pub const fn statistics_bytes(rows: u64, models: u64) -> u64 {
    rows.saturating_mul(ROW_BYTES + MODEL_BYTES * models)
}

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Number of rows.
    pub rows: usize,
    /// Weights, none negative, not all 0; none: each row counts 1.
    pub weights: Option<Vec<f64>>,
    /// Cluster of each row, numbered from 0 in the order of first appearance; none: each row alone.
    pub clusters: Option<Vec<u32>>,
    /// Memberships, those of combinations included.
    pub attributes: Vec<AttributeRows>,
    /// Strata of control features.
    pub controls: Vec<AttributeRows>,
    /// What was predicted.
    pub outcomes: Outcomes,
    /// What attacks need; none: not asked for.
    pub membership: Option<MembershipTable>,
    /// How answers follow tokens; from choices.
    pub preferences: Vec<Preference>,
}

/// Groups of one attribute; they may overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeRows {
    /// Name; of a combination with ` × ` between them.
    pub name: String,
    /// Whether it is a combination of others.
    pub combination: bool,
    /// In the order of values, missing last.
    pub groups: Vec<GroupRows>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRows {
    /// `None`: the value is missing.
    pub value: Option<String>,
    /// Its rows, ascending; may be empty for a combination.
    pub rows: Vec<u32>,
}

/// What models predicted, each of the same rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcomes {
    /// One class of several.
    Classes {
        /// Names, two or more.
        names: Vec<String>,
        /// Index of the positive class of a binary task.
        positive: usize,
        /// True class of each row.
        labels: Vec<u32>,
        /// One a model: probabilities `[rows, classes]`, row by row.
        models: Vec<Vec<f64>>,
    },
    /// Any number of classes.
    MultiLabel {
        /// Names, one or more.
        names: Vec<String>,
        /// Whether the class is true: `[rows, classes]`.
        labels: Vec<bool>,
        /// One a model: probabilities `[rows, classes]`.
        models: Vec<Vec<f64>>,
    },
    /// Figures that are ratios of sums: rates, mean losses, scores of benchmarks.
    Ratios {
        /// What is measured.
        measures: Vec<RatioMeasure>,
        /// One a model: one column a [`RatioMeasure`]'s sum, see there.
        models: Vec<Vec<RatioColumn>>,
    },
}

/// A measure that is a formula of ratios of sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RatioMeasure {
    /// Its name.
    pub name: String,
    /// The formula; indices are into the model's columns.
    pub formula: Formula,
    /// Whether it is a share of rows (0 or 1 each), so that Wilson's interval applies.
    pub is_rate: bool,
}

/// A formula of ratios r₀, r₁ of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formula {
    /// r
    Ratio(usize),
    /// exp(r): perplexity of a mean loss.
    Exponential(usize),
    /// 2r − 1: BBQ's bias score.
    Signed(usize),
    /// (1 − r₁)(2r₀ − 1): BBQ's bias score in ambiguous contexts.
    ScaledSigned(usize, usize),
    /// r₀ − r₁
    Difference(usize, usize),
    /// r₀ · min(r₁, 1 − r₁) · 2: StereoSet's icat as a share, of language modelling score and stereotype score.
    Idealised(usize, usize),
}

/// Numerators and denominators by row; a row that does not count has 0 in both.
#[derive(Debug, Clone, PartialEq)]
pub struct RatioColumn {
    /// Numerators.
    pub sums: Vec<f64>,
    /// Denominators, none negative.
    pub counts: Vec<f64>,
}

/// What membership attacks need.
#[derive(Debug, Clone, PartialEq)]
pub struct MembershipTable {
    /// Whether the row is a member, by model: a model is audited on rows that are known to be in or out.
    pub members: Vec<Vec<bool>>,
    /// One a model: scores of attacks that need no other model, higher is likelier a member.
    pub scores: Vec<Vec<AttackScores>>,
    /// One a model: φ of the row's true answer, ln p − ln(1 − p), or the mean log-probability a token for language.
    pub signals: Vec<Vec<f64>>,
    /// One a model: signals of its reference, as a rule the base model; empty where there is none.
    pub references: Vec<Vec<f64>>,
    /// One a model: signals of its shadows `[shadows][rows]` with whether the row was in (`members`).
    pub shadows: Vec<Shadows>,
    /// Control with planted members.
    pub planted: Option<Planted>,
}

/// A model whose members must be found.
#[derive(Debug, Clone, PartialEq)]
pub struct Planted {
    /// The model that it is a control of: it is attacked with the same shadows and reference.
    pub model: usize,
    /// Whether the row is a member of the control.
    pub members: Vec<bool>,
    /// Scores of attacks that need no shadows.
    pub scores: Vec<AttackScores>,
    /// φ, as in [`MembershipTable::signals`].
    pub signals: Vec<f64>,
}

/// Scores of one attack.
#[derive(Debug, Clone, PartialEq)]
pub struct AttackScores {
    /// The attack.
    pub attack: Attack,
    /// Its parameter, such as the share of Min-K%; none where it has none.
    pub parameter: Option<f64>,
    /// One a row; none where it is undefined.
    pub scores: Vec<Option<f64>>,
}

/// Shadow models of one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Shadows {
    /// `[shadows][rows]`.
    pub signals: Vec<Vec<f64>>,
    /// `[shadows][rows]`.
    pub members: Vec<Vec<bool>>,
}
