//! Scoring from the first item to the last: which model when, how far, what is written down.
//!
//! Everything that an item depends on follows from models, rows and settings; a checkpoint holds results only. Computes
//! through [`Runner`], reads through the task's [`Reading`].

use sha2::{Digest, Sha256};

use super::super::AuditError;
use super::super::groups::Grouping;
use super::super::report::{Data, Model, Warning};
use super::super::settings::Settings;
use super::super::table::{Outcomes, Table};
use super::compute::Running;
use super::passes::Passes;
use super::plan::{Plan, Planner, Unit};
use super::{Base, Predicted, Progress, Reading, Scored, Subject, checkpoint, membership, overlap, plan};
use crate::dataset::{self, Dataset};
use crate::turns::{Slices, Stopped};

/// Tokens after which a call of [`Scorer::advance`] ends.
const TOKENS: usize = 1024;
/// Items after which it ends.
const ITEMS: usize = 64;

/// Scoring, between two batches of items.
pub struct Scorer {
    base: Base,
    settings: Settings,
    subjects: Vec<Subject>,
    /// Without rows: name and classes only.
    labels: Dataset,
    hashes: Vec<[u8; 32]>,
    grouping: Grouping,
    data: Data,
    models: Vec<Model>,
    warnings: Vec<Warning>,
    plan: Plan,
    reading: Box<dyn Reading>,
    passes: Passes,
    /// Of what makes this run this run.
    run: [u8; 32],
    /// `[passes][units]`; a pass begins when the one before is complete.
    results: Vec<Vec<Vec<f64>>>,
    /// The model at work, and its pass.
    runner: Option<(usize, Running)>,
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scorer").field("done", &self.done()).field("total", &self.total()).finish_non_exhaustive()
    }
}

impl Scorer {
    /// Chooses and groups rows, checks them against settings and models, and plans what is to be computed.
    ///
    /// # Errors
    /// Names the setting, the row and its column, the model with its overlap, or what its head lacks.
    pub fn begin(
        base: impl Into<Base>,
        dataset: &Dataset,
        settings: &Settings,
        subjects: Vec<Subject>,
    ) -> Result<Self, AuditError> {
        let base = base.into();
        let reader = base.reader(settings)?;
        let rows = overlap::choose(dataset, settings)?;
        let grouping = Grouping::new(&rows.columns, settings)?;
        let passes = Passes::new(&base, settings, &subjects)?;
        let mut warnings = Vec::new();
        let models = overlap::overlaps(&rows, &subjects, settings, &mut warnings)?;
        let mut planner = Planner::new(reader, &rows);
        let reading = plan(&rows, settings, &base, &mut planner)?;
        let plan = planner.finish();
        passes.check(&base, settings, dataset)?;
        let data = Data {
            dataset: dataset.id.clone(),
            rows: rows.rows.len() as u64,
            sha256: dataset::digest(rows.rows.iter().copied()),
            weight: grouping.weight,
            clusters: grouping.clusters_total,
            duplicates: overlap::duplicates(&rows),
            truncated: plan.truncated,
            labels: Vec::new(),
        };
        for (kind, count, what) in [
            ("duplicates", data.duplicates, "have content and label of a row before"),
            ("truncated", data.truncated, "lost tokens at their start to max_tokens"),
        ] {
            if count > 0 {
                warnings.push(Warning { kind: kind.to_owned(), message: format!("{count} rows {what}") });
            }
        }
        let hashes = rows.rows.iter().map(|row| row.hash).collect();
        let results = vec![Vec::new(); passes.list.len()];
        let mut scorer = Self {
            base,
            settings: settings.clone(),
            subjects,
            labels: empty(dataset),
            hashes,
            grouping,
            data,
            models,
            warnings,
            plan,
            reading,
            passes,
            run: [0; 32],
            results,
            runner: None,
        };
        scorer.run = scorer.digest();
        Ok(scorer)
    }

    /// Takes scoring up again where `checkpoint` was written.
    ///
    /// # Errors
    /// As [`Self::begin`]; [`AuditError::Checkpoint`].
    pub fn resume(
        base: impl Into<Base>,
        dataset: &Dataset,
        settings: &Settings,
        subjects: Vec<Subject>,
        checkpoint: &[u8],
    ) -> Result<Self, AuditError> {
        let mut scorer = Self::begin(base, dataset, settings, subjects)?;
        let shape = (scorer.passes.list.len(), scorer.plan.units.len());
        scorer.results = checkpoint::read(checkpoint, &scorer.run, shape)?;
        Ok(scorer)
    }

    /// Scores some items of one model.
    ///
    /// # Errors
    /// [`AuditError::Stopped`], [`AuditError::Load`] or when the model fails; also when nothing is left to score. What was
    /// done before stays done.
    pub fn advance(&mut self, slices: &dyn Slices) -> Result<Progress, AuditError> {
        let units = self.plan.units.len();
        let Some(pass) = self.results.iter().position(|done| done.len() < units) else { return Err(Stopped.into()) };
        let mut runner = match self.runner.take() {
            Some((of, runner)) if of == pass => runner,
            Some(_) | None => self.passes.start(pass, &self.base, &self.settings, &self.labels)?,
        };
        let (mut tokens, mut items) = (0, 0);
        while tokens < TOKENS && items < ITEMS {
            let begin = self.results[pass].len();
            let left = &self.plan.units[begin..];
            let some: Vec<&Unit> = left[..runner.together(left)].iter().map(|unit| &**unit).collect();
            if some.is_empty() {
                break;
            }
            self.results[pass].extend(runner.run(&some, &self.plan.rows[begin..], slices)?);
            tokens += some.iter().map(|unit| unit.tokens()).sum::<usize>();
            items += some.len();
        }
        if self.results[pass].len() < units {
            self.runner = Some((pass, runner));
        }
        let (done, total) = (self.done(), self.total());
        let model = self.passes.list[pass].name.clone();
        Ok(Progress { done, total, model, tokens: tokens as u64, last: done == total })
    }

    /// Returns whether everything is scored.
    pub fn is_done(&self) -> bool {
        self.done() == self.total()
    }

    /// Writes down what has been computed.
    ///
    /// # Errors
    /// None; jobs treat all checkpoints alike.
    pub fn checkpoint(&self) -> Result<Vec<u8>, AuditError> {
        Ok(checkpoint::write(&self.run, &self.results))
    }

    /// Reads the results.
    ///
    /// # Errors
    /// [`AuditError::Unfinished`].
    pub fn finish(self) -> Result<Scored, AuditError> {
        if !self.is_done() {
            return Err(AuditError::Unfinished { done: self.done(), total: self.total() });
        }
        let Self { settings, subjects, grouping, models, mut data, mut warnings, reading, passes, results, .. } = self;
        let of_subjects: Vec<&[Vec<f64>]> = results.iter().take(subjects.len()).map(Vec::as_slice).collect();
        let Predicted { outcomes, preferences } = reading.outcomes(&of_subjects, &settings)?;
        let membership = membership::table(&*reading, (&settings, &subjects), &self.hashes, &passes, &results);
        data.labels = match &outcomes {
            Outcomes::Classes { names, .. } | Outcomes::MultiLabel { names, .. } => names.clone(),
            Outcomes::Ratios { .. } => Vec::new(),
        };
        for (i, model) in models.iter().enumerate() {
            if preferences.iter().any(|p| p.model as usize == i && p.separable == Some(false)) {
                let message = format!("what `{}` answers is not separable from token preference", model.name);
                warnings.push(Warning { kind: "token_preference".to_owned(), message });
            }
        }
        let Grouping { weights, clusters, attributes, controls, groups, .. } = grouping;
        let rows = self.hashes.len();
        let table = Table { rows, weights, clusters, attributes, controls, outcomes, membership, preferences };
        Ok(Scored { table, data, models, groups, warnings })
    }

    fn done(&self) -> u64 {
        self.results.iter().map(|done| done.len() as u64).sum()
    }

    fn total(&self) -> u64 {
        self.plan.units.len() as u64 * self.results.len() as u64
    }

    /// Returns SHA-256 over what makes a run this run.
    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new_with_prefix(b"evenkeel scoring 1");
        let settings = serde_json::to_string(&self.settings).unwrap_or_default();
        let base = &self.base.info().fingerprint;
        let passes = self.passes.list.iter().map(|pass| pass.key.as_str());
        for part in [settings.as_str(), &self.data.dataset, base].into_iter().chain(passes) {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        self.plan.hash(&mut digest);
        digest.finalize().into()
    }
}

/// Returns what is known of a data set's classes, without its rows.
fn empty(dataset: &Dataset) -> Dataset {
    let Dataset { id, labels, multi_label, group_columns, rows: _ } = dataset;
    Dataset {
        id: id.clone(),
        labels: labels.clone(),
        multi_label: *multi_label,
        group_columns: group_columns.clone(),
        rows: Vec::new(),
    }
}
