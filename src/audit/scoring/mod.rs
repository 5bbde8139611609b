//! From models, rows and settings to a [`Table`]: what each model says of each row.
//!
//! A [`Scorer`] goes some items at a time, says how far it is, and can be written down and taken up again with the very
//! same bits. An item is a unit of work of one model: what rows or askings share is computed once. Judges nothing, knows
//! no job, name or disk; adapters are in memory one after the other, each while its pass runs, through their [`Load`].
//! Order: models as asked, then base, control and shadows where membership needs them; rows as in the data set.

mod base;
mod bbq;
mod checkpoint;
mod choice;
mod classes;
mod compute;
mod generation;
mod head;
mod label_words;
mod likelihood;
mod membership;
mod names;
mod overlap;
mod pairs;
mod passes;
mod perplexity;
mod plan;
mod rules;
mod scorer;
mod size;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::AuditError;
use super::report;
use super::settings::{Settings, Task};
use super::table::{Outcomes, Table};
use crate::lora::{Adapter, AdapterInfo};
use plan::{Planner, Rows};

pub use base::{Base, Context, ImageContext};
pub use names::{is_measure, ratio_names};
pub use scorer::Scorer;
pub use size::score_bytes;

/// One model to audit.
#[derive(Clone)]
pub struct Subject {
    /// What the report says of it; its overlap is found here.
    pub model: report::Model,
    /// Its adapter; none: the base model.
    pub adapter: Option<Tuned>,
    /// Hashes of the rows that it was trained on; none where that is not known.
    pub trained_on: Option<Arc<BTreeSet<[u8; 32]>>>,
    /// Its shadow models.
    pub shadows: Vec<Shadow>,
    /// The control whose members must be found; at most one subject has one.
    pub planted: Option<Shadow>,
}

/// The adapter of a subject: described from the start, in memory while its pass runs.
#[derive(Clone)]
pub struct Tuned {
    /// Its generation.
    pub generation: String,
    /// What it is.
    pub info: AdapterInfo,
    /// Called when its turn has come, once a start; what it returns is dropped when the pass ends.
    pub load: Load,
}

impl Tuned {
    /// Returns one that is in memory already, and stays.
    pub fn held(adapter: Arc<Adapter>) -> Self {
        let (generation, info) = (adapter.generation().to_string(), adapter.info().clone());
        Self { generation, info, load: Arc::new(move || Ok(Arc::clone(&adapter))) }
    }
}

/// Loads an adapter when its turn has come.
pub type Load = Arc<dyn Fn() -> Result<Arc<Adapter>, AuditError> + Send + Sync>;

/// A further adapter, which membership attacks need: trained as its subject is, on rows of its own.
#[derive(Clone)]
pub struct Shadow {
    /// Its generation: what is the same is computed once.
    pub generation: String,
    /// Called when its turn has come, once a start; it is dropped after that.
    pub load: Load,
    /// Hashes of the rows that it was trained on.
    pub trained_on: Arc<BTreeSet<[u8; 32]>>,
}

impl Shadow {
    /// Returns a shadow that is in memory already.
    pub fn held(adapter: Arc<Adapter>, trained_on: Arc<BTreeSet<[u8; 32]>>) -> Self {
        let generation = adapter.generation().to_string();
        Self { generation, load: Arc::new(move || Ok(Arc::clone(&adapter))), trained_on }
    }
}

/// How far scoring is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Items done, of all models.
    pub done: u64,
    /// Items there are.
    pub total: u64,
    /// The model that was scored; shadows, base and control by what they are.
    pub model: String,
    /// Tokens that went through the model since the progress before; a kept prompt counts as if it had.
    pub tokens: u64,
    /// Whether nothing is left to score.
    pub last: bool,
}

/// What scoring makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Predictions, memberships of groups, signals.
    pub table: Table,
    /// The rows.
    pub data: report::Data,
    /// The models with their overlap.
    pub models: Vec<report::Model>,
    /// The groups.
    pub groups: Vec<report::Group>,
    /// What a reader should know of rows and predictions.
    pub warnings: Vec<report::Warning>,
}

/// Results of all units of one model: see [`compute::Runner::run`].
type Results = [Vec<f64>];

/// What results mean: a task, planned over rows.
trait Reading: Send + Sync {
    /// Reads what each model predicted.
    fn outcomes(&self, models: &[&Results], settings: &Settings) -> Result<Predicted, AuditError>;

    /// Returns what a model says of a row's true answer; none where the task has no such thing.
    fn evidence(&self, row: usize, results: &Results) -> Option<Evidence>;
}

/// What models predicted, and what else was seen on the way.
struct Predicted {
    outcomes: Outcomes,
    preferences: Vec<report::Preference>,
}

impl From<Outcomes> for Predicted {
    fn from(outcomes: Outcomes) -> Self {
        Self { outcomes, preferences: Vec::new() }
    }
}

/// What a model says of the true answer of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Evidence {
    /// Log-probability, of a text by token: minus the loss.
    log_probability: f64,
    /// φ: log-odds of a class; the same as the log-probability for language.
    signal: f64,
    /// Place of the unit with the details of Min-K%; none where there are none.
    text: Option<usize>,
}

/// Plans a task over all rows.
fn plan<'a>(
    rows: &'a Rows<'a>,
    settings: &Settings,
    base: &Base,
    planner: &mut Planner<'a>,
) -> Result<Box<dyn Reading>, AuditError> {
    Ok(match &settings.task {
        Task::Head => Box::new(head::Head::plan(rows, settings, planner)?),
        Task::LabelWords { words, normalization } => {
            Box::new(label_words::LabelWords::plan(rows, settings, (words, *normalization), planner)?)
        }
        Task::Choice(choice) => Box::new(choice::Choices::plan(rows, settings, choice, planner)?),
        Task::Pairs { more, less, unrelated, normalization } => {
            let texts = pairs::Texts { more, less, unrelated: unrelated.as_ref(), normalization: *normalization };
            Box::new(pairs::Pairs::plan(rows, texts, planner)?)
        }
        Task::Bbq { answers, condition, unknown, biased, normalization } => {
            let columns = bbq::BbqColumns { answers, condition, unknown, biased, normalization: *normalization };
            Box::new(bbq::Bbq::plan(rows, columns, planner)?)
        }
        Task::Perplexity => Box::new(perplexity::Perplexity::plan(rows, planner)?),
        Task::Generation { classifier, max_new_tokens, expected, gold } => {
            let Base::Text(context) = base else { return Err(super::error::setting("task", "images have no words")) };
            let longest = settings.max_tokens.unwrap_or(context.model.info().context_length);
            let (new, expected, gold) = (*max_new_tokens, expected.as_deref(), gold.as_deref());
            let asked = generation::Asked { classifier, new, longest, expected, gold };
            Box::new(generation::Generation::plan(rows, (asked, Arc::clone(&context.tokenizer)), planner)?)
        }
        Task::Uploaded => return Err(super::error::setting("task", "uploaded scores need no model")),
    })
}
