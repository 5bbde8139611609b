//! What an audit would cost: trainings, steps, items, seconds, bytes of memory and of the disk.
//!
//! Makes nothing. Seconds are those of the newest jobs on the same base model that measured any. Models are in memory one
//! at a time; what is trained for an audit stays on the disk until it has ended. What training takes while it runs is not
//! counted.
//! Units: bytes, seconds.

use std::collections::BTreeSet;

use super::changes::{Inner, Jobs};
use super::fan::AuditWanted;
use super::rows::parse;
use super::{AuditTask, JobsError, ModelSource, Task};
use crate::audit::scoring::score_bytes;
use crate::audit::settings::Attack;
use crate::audit::table::statistics_bytes;
use crate::dataset::Dataset;
use crate::registry::{Name, RegistryError};
use crate::store::Catalog;
use crate::train::{Length, Settings};

/// Newest jobs that are looked through for a measured speed.
const LOOKED_THROUGH: usize = 50;

/// What an audit would cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Models to train before it.
    pub trainings: u64,
    /// Optimiser steps of them together; with packing at most.
    pub steps: u64,
    /// Rows to score, all models together.
    pub items: u64,
    /// About how many seconds training takes; none where no step on this base model was measured yet.
    pub training_seconds: Option<f64>,
    /// About how many seconds scoring takes; none where nothing on this base model was measured yet.
    pub scoring_seconds: Option<f64>,
    /// Bytes of scores, all models together, at most; in memory and on the disk.
    pub score_bytes: u64,
    /// About how many bytes of memory it takes beside the base model: the largest model, scores, statistics. None where
    /// it is not known how large a model will be.
    pub memory_bytes: Option<u64>,
    /// About how many bytes of the disk it takes at most: models that are trained for it, until it has ended, and scores.
    /// None where it is not known how large a model will be.
    pub disk_bytes: Option<u64>,
}

impl Jobs {
    /// Says what an audit would cost, and makes nothing.
    ///
    /// # Errors
    /// As [`Self::create_audit`], but for those of names and queue.
    pub fn estimate_audit(&self, wanted: &AuditWanted) -> Result<Estimate, JobsError> {
        let inner = self.inner();
        let plan = inner.plan(wanted)?;
        let Task::Audit { audit } = &plan.audit.task else {
            return Err(JobsError::NotFound(plan.audit.id.to_string()));
        };
        let dataset = inner.parts.rows.read(&plan.audit.dataset)?;
        let rows = dataset.rows.iter().filter(|row| audit.settings.splits.contains(&row.split)).count() as u64;
        let of_models = audit.models.iter().flat_map(|model| model.shadows.iter().map(|child| (*child, model.step)));
        let helpers: BTreeSet<_> = of_models.chain(audit.planted.map(|child| (child, None))).collect();
        let items = rows * (audit.models.len() + helpers.len()) as u64;
        let (mut steps, mut learnt) = (0_u64, 0.0);
        let mut sizes = Vec::with_capacity(plan.children.len());
        for child in &plan.children {
            let Task::FineTuning(tuning) = &child.task else { continue };
            let dataset = inner.parts.rows.read(&child.dataset)?;
            let size = inner.parts.training.size(&child.base, &tuning.settings, dataset.labels.len());
            sizes.push(size.map(|size| (size, 1 + tuning.settings.publish_steps.len() as u64)));
            let own = steps_of(&tuning.settings, &dataset);
            steps = steps.saturating_add(own);
            learnt += own as f64 * rows_of_step(&tuning.settings);
        }
        // Of each training one model is in memory, on the disk its checkpoints are too.
        let trained: Option<Vec<(u64, u64)>> = sizes.into_iter().collect();
        let mut largest = trained.as_ref().map(|sizes| sizes.iter().map(|(size, _)| *size).max().unwrap_or(0));
        for model in &audit.models {
            let ModelSource::Stored { adapter, generation } = &model.source else { continue };
            let bytes = inner.stored_bytes(adapter, generation)?.unwrap_or(0);
            largest = largest.map(|largest| largest.max(bytes));
        }
        let passes = (audit.models.len() + helpers.len()) as u64 + u64::from(runs_base(audit));
        let score_bytes = rows * passes * score_bytes(&audit.settings, dataset.labels.len());
        let statistics = statistics_bytes(rows, audit.models.len() as u64);
        let speed = inner.parts.store.read(|catalog| measured(catalog, &plan.audit.base))?;
        Ok(Estimate {
            trainings: plan.children.len() as u64,
            steps,
            items,
            training_seconds: speed.row_seconds.map(|seconds| learnt * seconds),
            scoring_seconds: speed.item_seconds.map(|seconds| items as f64 * seconds),
            score_bytes,
            memory_bytes: largest.map(|largest| largest + score_bytes + statistics),
            // A checkpoint is written before the one before it goes.
            disk_bytes: trained
                .map(|sizes| sizes.iter().map(|(size, models)| size * models).sum::<u64>() + 2 * score_bytes),
        })
    }
}

impl Inner {
    /// Returns the bytes in memory of a stored generation.
    fn stored_bytes(&self, adapter: &str, generation: &str) -> Result<Option<u64>, JobsError> {
        let Some(name) = Name::parse(adapter) else { return Ok(None) };
        let record = match self.parts.registry.get(&name) {
            Ok(record) => record,
            Err(RegistryError::AdapterNotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(record.generations.into_iter().find(|stored| stored.id == generation).map(|stored| stored.bytes))
    }
}

/// Returns whether the base model is scored besides, as a reference.
fn runs_base(audit: &AuditTask) -> bool {
    let asked = audit.settings.membership.as_ref().is_some_and(|asked| {
        // RMIA compares with the base where there are no shadows.
        asked.attacks.contains(&Attack::Reference) || asked.shadows == 0 && asked.attacks.contains(&Attack::Rmia)
    });
    asked && !audit.models.iter().any(|model| model.source == ModelSource::Base)
}

/// Rows that one step learns from.
fn rows_of_step(settings: &Settings) -> f64 {
    settings.batch_size.saturating_mul(settings.accumulation) as f64
}

/// Returns the steps of a run; with packing, at most as many.
pub(super) fn steps_of(settings: &Settings, dataset: &Dataset) -> u64 {
    match settings.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => {
            let rows = dataset.rows.iter().filter(|row| settings.use_of(row) == crate::train::Use::Learn).count();
            let batches = rows.div_ceil(settings.batch_size.max(1));
            let steps = batches.div_ceil(settings.accumulation.max(1));
            (epochs * steps as f64).ceil() as u64
        }
    }
}

/// What was measured of late on one base model.
#[derive(Debug, Default)]
struct Measured {
    /// Seconds that learning from a row takes.
    row_seconds: Option<f64>,
    /// Seconds that scoring an item takes.
    item_seconds: Option<f64>,
}

fn measured(catalog: &Catalog<'_>, base: &str) -> Result<Measured, JobsError> {
    let mut measured = Measured::default();
    for row in catalog.jobs(None, None, LOOKED_THROUGH)? {
        // A record that cannot be read was measured by nobody.
        let Ok(job) = parse(&row) else { continue };
        if job.base != base {
            continue;
        }
        if let (Task::FineTuning(tuning), Some(last)) = (&job.task, &job.last)
            && last.step_seconds > 0.0
        {
            measured.row_seconds.get_or_insert(last.step_seconds / rows_of_step(&tuning.settings));
        }
        if let Some(audited) = &job.audited
            && audited.items_per_second > 0.0
        {
            measured.item_seconds.get_or_insert(1.0 / audited.items_per_second);
        }
    }
    Ok(measured)
}
