//! What an audit says: a flat list of figures, each with its status, support and interval.
//!
//! Plain data, complete, without clock or job: the same models, data and settings give the same bytes. Formats for
//! people are made from it in `render`. No number here is NaN or infinite. Every list is in a fixed order.

use serde::{Deserialize, Serialize};

use super::settings::{Attack, Settings};

/// Version of this form.
pub const VERSION: u32 = 1;

/// One audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Version of evenkeel that made it.
    pub software: String,
    /// What was asked, as resolved.
    pub settings: Settings,
    /// Base model; none for uploaded scores.
    pub base: Option<BaseModel>,
    /// The rows.
    pub data: Data,
    /// Models in the order asked for; figures point here.
    pub models: Vec<Model>,
    /// Groups in the order of attributes and values; figures name them.
    pub groups: Vec<Group>,
    /// All figures, in the order of attributes, groups, measures and models.
    pub figures: Vec<Figure>,
    /// Reliability diagrams.
    pub reliability: Vec<Reliability>,
    /// ROC curves of membership attacks.
    pub rocs: Vec<Roc>,
    /// How answers follow tokens and positions.
    pub preferences: Vec<Preference>,
    /// Number of tests in the family that p-values are corrected for.
    pub tests: u64,
    /// What a reader should know.
    pub warnings: Vec<Warning>,
    /// The model whose utility is nearest to that of another; none where that was not asked, or nothing is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<Matched>,
}

/// The model whose utility is nearest to that of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matched {
    /// Index into [`Report::models`].
    pub model: u32,
    /// Index of the other.
    pub versus: u32,
    /// Name of the measure of utility.
    pub measure: String,
    /// Largest difference that counts as none.
    pub tolerance: f64,
    /// Utility of the one minus that of the other, over all rows.
    pub difference: f64,
    /// Where it lies.
    pub interval: Option<Interval>,
    /// Whether all of the interval is within the tolerance.
    pub within: bool,
}

impl Report {
    /// Returns its JSON; the SHA-256 of these bytes is the report's id.
    ///
    /// # Errors
    /// When it cannot be written; a number that is not finite would be written as `null`, and no report has one.
    pub fn canonical(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    /// Name shown to clients.
    pub name: String,
    /// SHA-256 over configuration and tensors.
    pub fingerprint: String,
    /// Number format in memory.
    pub dtype: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
}

/// The rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Id of the data set; SHA-256 of the uploaded table for uploaded scores.
    pub dataset: String,
    /// Rows that were audited.
    pub rows: u64,
    /// SHA-256 of their hashes in ascending order.
    pub sha256: String,
    /// Sum of weights.
    pub weight: f64,
    /// Clusters; equal to `rows` without a cluster column.
    pub clusters: u64,
    /// Rows whose content and label were there before.
    pub duplicates: u64,
    /// Rows that lost tokens to `max_tokens`.
    pub truncated: u64,
    /// Names of the classes; empty where there are none.
    pub labels: Vec<String>,
}

/// One audited model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// What it is called in the report; different for each.
    pub name: String,
    /// What it is.
    pub kind: ModelKind,
    /// Adapter; empty for the base model and uploaded scores.
    pub adapter: String,
    /// Its generation.
    pub generation: String,
    /// What its low-rank change is multiplied by: 1, or a step of the dial from base (0) to adapter (1).
    pub scale: f64,
    /// How it was trained; none where that is not known.
    pub training: Option<Training>,
    /// Audited rows that it was trained on; none where that is not known.
    pub overlap: Option<u64>,
}

/// What a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// The base model.
    Base,
    /// A LoRA or DoRA adapter on it.
    Adapter,
    /// A head on the frozen base (rank 0).
    HeadOnly,
    /// All weights trained.
    Full,
    /// Only its scores are known.
    Uploaded,
}

/// How a model was trained, as its lineage tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Id of the job.
    pub job: String,
    /// Id of the data set.
    pub dataset: String,
    /// Rank; 0 for a head only; none for all weights.
    pub rank: Option<u64>,
    /// `lora_alpha`.
    pub alpha: Option<f64>,
    /// Numbers of the adapted blocks; empty is all.
    pub layers: Vec<u64>,
    /// Seed.
    pub seed: u64,
    /// All settings, as the job wrote them.
    pub settings: serde_json::Value,
    /// Steps after which it was taken from its training; none: it is the result of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
}

/// A group of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Attribute; for a combination their names with ` × ` between them.
    pub attribute: String,
    /// Value; for a combination values with ` × ` between them; none: the value is missing.
    pub value: Option<String>,
    /// Rows; 0 for a combination that does not occur.
    pub rows: u64,
    /// Sum of weights.
    pub weight: f64,
    /// Clusters.
    pub clusters: u64,
    /// Whether it has too few rows to be published: its figures have the status `suppressed`.
    pub suppressed: bool,
}

/// What a figure is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All rows.
    Overall,
    /// The rows of a group; `None`: those whose value is missing.
    Group(Option<String>),
    /// The rows of no such group.
    Complement(Option<String>),
    /// Group minus complement.
    MemberMinusRest(Option<String>),
    /// Smallest value of a group.
    Minimum,
    /// Largest value of a group.
    Maximum,
    /// Largest minus smallest value of a group (fairlearn `between_groups`).
    Difference,
    /// Smallest over largest value of a group.
    Ratio,
    /// Largest distance of a group from all rows (fairlearn `to_overall`).
    DifferenceToOverall,
    /// Smallest ratio of a group and all rows, the smaller one above.
    RatioToOverall,
    /// Over all groups of the attribute at once: named measures such as `equalized_odds_difference`.
    Attribute,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Index into [`Report::models`].
    pub model: u32,
    /// The figure is that of `model` minus that of this one, paired on the same rows.
    pub versus: Option<u32>,
    /// Attribute; none for [`Scope::Overall`].
    pub attribute: Option<String>,
    /// What it is of.
    pub scope: Scope,
    /// Stratum of a control feature: column and value.
    pub control: Option<(String, Option<String>)>,
    /// What is measured: see `measures`.
    pub measure: String,
    /// Class of one-vs-rest; none where there is none.
    pub class: Option<String>,
    /// The value; none where there is none.
    pub value: Option<f64>,
    /// Whether it can be relied on.
    pub status: Status,
    /// Why not, in one word of `Undefined` or of this: `few_rows`, `suppressed`, `not_asked`, `not_available`.
    pub reason: Option<String>,
    /// Rows of the denominator.
    pub n: u64,
    /// Sum of their weights.
    pub weight: f64,
    /// Groups with a value, of those of the attribute; for figures over groups.
    pub groups: Option<(u64, u64)>,
    /// Values of the groups that a figure of extremes is of, the first of equals: of a minimum or maximum the one, of a
    /// difference or ratio of both the smallest and then the largest. Left out of the JSON where there are none, so that
    /// what was written before says the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extremes: Vec<Option<String>>,
    /// Where the value lies.
    pub interval: Option<Interval>,
    /// Test of the hypothesis that nothing differs.
    pub test: Option<Test>,
}

/// Whether a figure can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It can.
    Ok,
    /// There is a value, on too few rows.
    LowSupport,
    /// There is none.
    Undefined,
    /// It was not measured.
    NotMeasured,
    /// There is one that is not published.
    Suppressed,
}

/// Where a value lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// `wilson`, `newcombe`, `clopper_pearson`, `percentile`, `bca`, `robins_breslow_greenland`, `sandwich`, …
    pub method: String,
    /// Level.
    pub level: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// A test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// `permutation`, `mcnemar`, `cmh`, `tost`, …
    pub name: String,
    /// p-value.
    pub p: f64,
    /// After correction for the family; none without one.
    pub adjusted: Option<f64>,
    /// 95 % quantile of the statistic where nothing differs: how large a gap chance makes.
    pub null: Option<f64>,
    /// Smallest gap that would have been found with a power of 80 %.
    pub detectable: Option<f64>,
}

/// Reliability diagram of one model and group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// Index into [`Report::models`].
    pub model: u32,
    /// Attribute; none for all rows.
    pub attribute: Option<String>,
    /// Overall or a group.
    pub scope: Scope,
    /// `positive_class` or `top_label`.
    pub form: String,
    /// Bins that are not empty.
    pub bins: Vec<ReliabilityBin>,
}

/// One bin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Lower edge.
    pub low: f64,
    /// Upper edge.
    pub high: f64,
    /// Rows.
    pub n: u64,
    /// Mean confidence.
    pub confidence: f64,
    /// Share of hits.
    pub accuracy: f64,
    /// Wilson interval of it.
    pub interval: (f64, f64),
}

/// ROC curve of one attack on one model and group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roc {
    /// Index into [`Report::models`].
    pub model: u32,
    /// Attribute; none for all rows.
    pub attribute: Option<String>,
    /// Overall or a group.
    pub scope: Scope,
    /// The attack.
    pub attack: Attack,
    /// Its parameter, such as the share of Min-K%; none where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<f64>,
    /// Members.
    pub members: u64,
    /// Non-members; rates below one over this cannot be told.
    pub others: u64,
    /// False- and true-positive rate, both rising; at most 200 points.
    pub points: Vec<(f64, f64)>,
}

/// How one model's answers follow tokens and positions instead of content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// Index into [`Report::models`].
    pub model: u32,
    /// Alphabet, in the words of the settings.
    pub alphabet: String,
    /// Share of answers by token, in the alphabet's order.
    pub by_token: Vec<f64>,
    /// Share of answers by position.
    pub by_position: Vec<f64>,
    /// Share of answers by content, where contents are the same in all rows.
    pub by_content: Vec<f64>,
    /// Share of rows whose answer changes with the order.
    pub flip_rate: Option<f64>,
    /// Prior of each token, estimated from permutations (PriDe).
    pub prior: Vec<f64>,
    /// Accuracy raw, calibrated by content-free prompts, without the prior, averaged over orders; none where not asked.
    pub accuracy: CorrectedAccuracy,
    /// Whether the content's effect can be told from that of the token.
    pub separable: Option<bool>,
}

/// Accuracy before and after corrections, side by side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CorrectedAccuracy {
    /// As given.
    pub raw: Option<f64>,
    /// Contextual calibration (Zhao et al. 2021).
    pub calibrated: Option<f64>,
    /// Without the prior of tokens (Zheng et al. 2024).
    pub debiased: Option<f64>,
    /// Averaged over orders.
    pub averaged: Option<f64>,
    /// With the question of reversed polarity.
    pub reversed: Option<f64>,
}

/// What a reader should know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Warning {
    /// In one word: `duplicates`, `training_overlap`, `truncated`, `small_groups`, `token_preference`, `controls_failed`,
    /// `utility_differs`, `utility_unmatched`, `uncorrected_tests`, `convention_fairlearn`, `clusters_few`,
    /// `checkpoint_unreached`, …
    pub kind: String,
    /// For people.
    pub message: String,
}
