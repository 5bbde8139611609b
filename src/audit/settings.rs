//! What an audit is told, checked at the border.
//!
//! Plain values with all defaults filled in; which of them fit a data set or model is found out when the audit begins.
//! They are part of the report, so that it can be made again.

use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, Split};

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How rows become predictions.
    pub task: Task,
    /// Groups to compare, at least one.
    pub attributes: Vec<Attribute>,
    /// Names of attributes whose combinations are groups too; each two or more names.
    pub intersections: Vec<Vec<String>>,
    /// Columns whose values are strata: groups are compared within each as well.
    pub controls: Vec<String>,
    /// Column with the weight of a row; none: each row counts 1.
    pub weight_column: Option<String>,
    /// Column whose rows belong together (pair, author, document) and are resampled together; none: each row alone.
    pub cluster_column: Option<String>,
    /// Parts of the data set that are audited; with `membership` the train split are members and the others not.
    pub splits: Vec<Split>,
    /// Names of measures; empty: all that the task has.
    pub measures: Vec<String>,
    /// Label that is the positive class of a binary task; none: the last one.
    pub positive: Option<String>,
    /// A row of a binary task is selected when the probability of its positive class is at least this.
    pub threshold: f64,
    /// Intervals and tests.
    pub statistics: Statistics,
    /// Calibration.
    pub calibration: Calibration,
    /// Membership inference; none: not asked for.
    pub membership: Option<Membership>,
    /// Longest sequence in tokens, none: the model's context; a longer row loses tokens from its start, never of its
    /// answer. Images have none.
    pub max_tokens: Option<usize>,
    /// Rows that a model was trained on: refuse the audit, or mark them in the report.
    pub overlap: Overlap,
    /// What stands for an undefined rate.
    pub convention: Convention,
    /// Everything that is drawn: resamples, permutations, orders of answers.
    pub seed: u64,
    /// Names the model whose utility is nearest to that of another; left out of the JSON where it is not asked for, so
    /// that what was written before says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utility_match: Option<UtilityMatch>,
}

/// When two models are as useful as each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UtilityMatch {
    /// Name of the model to be near to; none: the first.
    pub reference: Option<String>,
    /// Name of the measure of utility.
    pub measure: String,
    /// Largest difference that counts as none.
    pub tolerance: f64,
}

impl Settings {
    /// Fills in what the data set decides where nothing was said: all splits for membership inference, else the test
    /// split if it has rows, else all; and as attributes the values of every group column that nothing else names.
    #[must_use]
    pub fn resolved(mut self, dataset: &Dataset) -> Self {
        if self.splits.is_empty() {
            let tested = dataset.rows.iter().any(|row| row.split == Split::Test);
            self.splits = match self.membership.is_none() && tested {
                true => vec![Split::Test],
                false => vec![Split::Train, Split::Validation, Split::Test],
            };
        }
        if self.attributes.is_empty() {
            let mut named = self.task.columns();
            named.extend(self.controls.iter().chain(&self.weight_column).chain(&self.cluster_column));
            let free = dataset.group_columns.iter().filter(|column| !named.contains(column));
            let attribute = |name: &String| Attribute { name: name.clone(), source: Source::Values(name.clone()) };
            self.attributes = free.map(attribute).collect();
        }
        self
    }
}

impl Task {
    /// Returns the columns that it reads.
    fn columns(&self) -> Vec<&String> {
        match self {
            Self::Head | Self::LabelWords { .. } | Self::Perplexity | Self::Uploaded => Vec::new(),
            Self::Choice(choice) => choice.columns.iter().chain(&choice.reversed).collect(),
            Self::Pairs { more, less, unrelated, .. } => [more, less].into_iter().chain(unrelated).collect(),
            Self::Bbq { answers, condition, unknown, biased, normalization: _ } => {
                answers.iter().chain([condition, unknown, biased]).collect()
            }
            Self::Generation { expected, gold, .. } => expected.iter().chain(gold).collect(),
        }
    }
}

/// How rows become predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// By a trained classification head; binary, multi-class or multi-label as the data set says.
    Head,
    /// Each label is a continuation of the row's prompt; the likelier it is the likelier the label.
    LabelWords {
        /// Continuations in the order of the data set's labels.
        words: Vec<String>,
        /// How their log-probabilities are compared.
        normalization: Normalization,
    },
    /// Yes or no, multiple choice, cloze: one of several answers, with controls of token preference.
    Choice(Choice),
    /// Which of two texts is likelier (CrowS-Pairs), or of three (StereoSet).
    Pairs {
        /// Column of the stereotypical text.
        more: String,
        /// Column of the anti-stereotypical text.
        less: String,
        /// Column of the meaningless text, for StereoSet.
        unrelated: Option<String>,
        /// How their log-probabilities are compared. CrowS-Pairs in lm-evaluation-harness: the sum.
        normalization: Normalization,
    },
    /// BBQ (Parrish et al. 2022): three answers, one of them "unknown", in ambiguous and disambiguated contexts.
    Bbq {
        /// Columns of the three answers.
        answers: Vec<String>,
        /// Column that says `ambig` or `disambig`.
        condition: String,
        /// Column with the index of the "unknown" answer.
        unknown: String,
        /// Column with the index of the answer that follows the stereotype; of a row without one the bias is not counted.
        biased: String,
        /// How log-probabilities of the answers are compared; left out of the JSON where it is the sum, so that what was
        /// written before says the same.
        #[serde(default, skip_serializing_if = "Normalization::is_sum")]
        normalization: Normalization,
    },
    /// How well the text is predicted: loss a token, bits a byte, perplexity.
    Perplexity,
    /// What is written, classified by rules.
    Generation {
        /// The rules.
        classifier: Classifier,
        /// Longest completion.
        max_new_tokens: usize,
        /// Column with the category that the stereotype expects, for rates in line with it and against it.
        expected: Option<String>,
        /// Column with the category that is right, for accuracy and the gaps of WinoMT; left out of the JSON where there
        /// is none, so that what was written before says the same.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gold: Option<String>,
    },
    /// Predictions came with the request.
    Uploaded,
}

/// How log-probabilities of continuations of different length are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// Sum over tokens (lm-evaluation-harness `acc`).
    #[default]
    Sum,
    /// Mean over tokens.
    MeanToken,
    /// Sum over the number of bytes in UTF-8 (lm-evaluation-harness `acc_bytes`).
    MeanByte,
    /// Sum minus the sum without the prompt (Brown et al. 2020, unconditional).
    Unconditional,
}

impl Normalization {
    fn is_sum(&self) -> bool {
        *self == Self::Sum
    }
}

/// One of several answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Columns of the answers; empty: `answers` are the same for all rows.
    pub columns: Vec<String>,
    /// Answers of all rows, in the order of the data set's labels; empty: they stand in `columns`.
    pub answers: Vec<String>,
    /// How answers are shown and scored, at least one; the first is the raw result.
    pub alphabets: Vec<Alphabet>,
    /// Orders of the answers: 1 is as given only; all of them if that is fewer.
    pub orders: usize,
    /// Column with the question of reversed polarity, where the right answer is another one; binary only.
    pub reversed: Option<String>,
    /// Prompts without content, to calibrate with (Zhao et al. 2021); empty: no contextual calibration.
    pub content_free: Vec<String>,
}

/// How answers are shown in the prompt, and what is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alphabet {
    /// Not shown: the answer itself is scored as continuation (cloze).
    Words,
    /// A, B, C, …
    Letters,
    /// 1, 2, 3, …
    Digits,
    /// Signs that hardly occur in text.
    Symbols,
}

/// Rules that classify a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Classifier {
    /// English pronouns: `male`, `female`, `neutral`; both or none is `unknown`.
    Pronouns,
    /// Words of named categories; several categories or none is `unknown`.
    Lexicon(Vec<(String, Vec<String>)>),
}

/// Groups to compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// Name in the report.
    pub name: String,
    /// Where memberships stand.
    pub source: Source,
}

/// Where memberships stand; all columns are group columns of the data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Each value of a column is a group; a row without one belongs to the group of missing values.
    Values(String),
    /// Each column is a group, of the rows that say `1`, `true` or `yes` (any case) there. Groups may overlap.
    Flags(Vec<String>),
    /// A row belongs to all groups that its field lists.
    List {
        /// The column.
        column: String,
        /// What stands between them.
        separator: String,
    },
}

/// Intervals and tests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Level of intervals, above 0.5 and below 1.
    pub level: f64,
    /// Bootstrap resamples; 0: no intervals of gaps.
    pub resamples: usize,
    /// How intervals come from resamples.
    pub interval: BootstrapInterval,
    /// Permutations of the null distribution, or all arrangements where they are no more; 0: no tests of gaps.
    pub permutations: usize,
    /// Correction for the family of tests.
    pub correction: Correction,
    /// Largest difference that counts as none, for tests of equivalence (TOST) of models and of groups; 0: no such test.
    pub margin: f64,
    /// A figure with a denominator below this has the status `low_support`.
    pub min_group: u64,
    /// Groups of fewer rows than this are counted but their figures are not published, nor those of groups from which they
    /// could be told; 0: all are.
    pub suppress_below: u64,
}

/// How intervals come from resamples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootstrapInterval {
    /// Quantiles of the resampled values.
    Percentile,
    /// Bias-corrected and accelerated (Efron 1987).
    Bca,
}

/// Correction for the family of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// None.
    None,
    /// Holm 1979: the chance of any false claim.
    Holm,
    /// Benjamini and Hochberg 1995: the share of false claims.
    BenjaminiHochberg,
}

/// Calibration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Bins of equal width, and of equal mass.
    pub bins: usize,
    /// Fits a temperature on the rows (by cross-fitting halves) and shows values after it too.
    pub temperature: bool,
}

/// Membership inference: can one tell which rows a model was trained on?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Membership {
    /// What is tried, at least one.
    pub attacks: Vec<Attack>,
    /// Shares of Min-K%, above 0, at most 1.
    pub min_k: Vec<f64>,
    /// False-positive rates at which the true-positive rate is asked for.
    pub false_positive_rates: Vec<f64>,
    /// Shadow models to train, for LiRA and RMIA; 0: none.
    pub shadows: usize,
    /// Share of the pool that each shadow is trained on.
    pub shadow_fraction: f64,
    /// Trains a control model on few rows for long, whose members must be found.
    pub planted_control: bool,
    /// Asks models about each image and its mirror image, and averages the probabilities; left out of the JSON when off,
    /// so that what was written before says the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mirrored: bool,
}

/// A membership attack, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attack {
    /// The smaller the loss the likelier a member (Yeom et al. 2018).
    Loss,
    /// Mean of the least likely tokens (Shi et al. 2024).
    MinK,
    /// The same, standardised by the model's own distribution (Zhang et al. 2024).
    MinKPlusPlus,
    /// Loss against that of the base model.
    Reference,
    /// Robust membership inference (Zarifzadeh et al. 2024).
    Rmia,
    /// Likelihood ratio with members and non-members (Carlini et al. 2022), a spread a point.
    LiraOnline,
    /// The same with one spread for all points.
    LiraOnlineFixed,
    /// With non-members only.
    LiraOffline,
    /// The same with one spread for all points.
    LiraOfflineFixed,
}

/// Rows that a model was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The audit ends with an error.
    Refuse,
    /// The report says how many.
    Mark,
}

/// What stands for an undefined rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convention {
    /// Nothing: it has a reason, and is left out of gaps.
    Defined,
    /// 0, as fairlearn 0.15 has it; for comparison with a notebook.
    Fairlearn,
}
