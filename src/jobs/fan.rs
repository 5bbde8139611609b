//! One audit as many jobs: the fine-tunings that it needs first, shadow and control models for membership inference, then
//! the audit itself, all made in one transaction.
//!
//! Trains and audits nothing. What a caller asked for is resolved here, once: adapters to generations, models to train to
//! jobs with names of their own. A shadow model is trained as its target was, on other rows: a random part of those that
//! are audited. Also says what it would cost.
//! After: Carlini et al. 2022 (shadow models), "Membership Inference Attacks From First Principles".

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::audit::settings_of;
use super::changes::{Inner, Jobs, check_names};
use super::rows::parse;
use super::{AuditModel, AuditTask, Job, JobId, JobsError, ModelSource, Task, Tuning, expected_text};
use crate::audit::settings::{Membership, Settings as AuditSettings};
use crate::dataset::Dataset;
use crate::registry::{Expected, Name, Reference, RegistryError, RequestKey};
use crate::store::Catalog;
use crate::train::{Length, LoraSettings, Method, Schedule, Settings, Subset};

/// Rows that the control model is trained on, and how often it sees them: few and often, so that it must remember them.
const PLANTED_ROWS: f64 = 64.0;
const PLANTED_EPOCHS: f64 = 40.0;
/// Newest jobs that are looked through for a measured speed.
const LOOKED_THROUGH: usize = 50;
/// Longest name.
const NAME: usize = 63;

/// An audit that a caller asks for, checked.
#[derive(Debug, Clone)]
pub struct AuditWanted {
    /// Name that the report is kept under.
    pub name: Name,
    /// Data set, by name or id.
    pub dataset: String,
    /// Models in the order of the report, at least one, of different names.
    pub models: Vec<ModelWanted>,
    /// All of them.
    pub settings: AuditSettings,
    /// Whether models that are trained for it stay when it has succeeded; `None`: all but shadow and control models.
    pub keep_models: Option<bool>,
}

/// A model that a caller wants audited.
#[derive(Debug, Clone)]
pub struct ModelWanted {
    /// Name in the report.
    pub name: String,
    /// Which.
    pub source: SourceWanted,
    /// What its low-rank change is multiplied by.
    pub scale: f64,
}

/// Where such a model comes from.
#[derive(Debug, Clone)]
pub enum SourceWanted {
    /// The base model.
    Base,
    /// An adapter, alias or generation.
    Adapter(Reference),
    /// Trained first.
    Training {
        /// How.
        settings: Box<Settings>,
        /// On which data set, by name or id; none: that of the audit.
        dataset: Option<String>,
    },
}

/// What an audit would cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Models to train before it.
    pub trainings: u64,
    /// Optimiser steps of them together; with packing at most.
    pub steps: u64,
    /// Rows to score, all models together.
    pub items: u64,
    /// About how many seconds training takes; none where no step was measured yet.
    pub training_seconds: Option<f64>,
    /// About how many seconds scoring takes; none where nothing was measured yet.
    pub scoring_seconds: Option<f64>,
}

/// The jobs of an audit.
struct Plan {
    audit: Job,
    children: Vec<Job>,
}

impl Jobs {
    /// Makes an audit with the fine-tunings that go before it.
    ///
    /// # Errors
    /// [`JobsError::DatasetNotFound`], [`JobsError::TooManyModels`], [`JobsError::Conflict`], [`JobsError::QueueFull`];
    /// [`RegistryError::AdapterNotFound`], [`RegistryError::NameTaken`] and [`RegistryError::GenerationMismatch`] (a model to
    /// train has the name of an alias or adapter), [`RegistryError::RequestIdReused`]; when the disk fails.
    pub fn create_audit(&self, wanted: AuditWanted, request: Option<&RequestKey>) -> Result<Job, JobsError> {
        let inner = self.inner();
        if let Some(first) = inner.parts.store.read(|catalog| catalog.answered::<_, JobsError>(request))? {
            return Ok(first);
        }
        let plan = inner.plan(&wanted)?;
        let mut forgotten = Vec::new();
        let job = inner.parts.store.change_once(request, |catalog| {
            inner.make_room(catalog)?;
            for child in &plan.children {
                if let Task::FineTuning(tuning) = &child.task
                    && let Some(name) = Name::parse(&tuning.adapter)
                {
                    check_names(catalog, &name, &Expected::Absent, None)?;
                }
                inner.enter(catalog, child)?;
            }
            inner.enter(catalog, &plan.audit)?;
            forgotten = catalog.forget_jobs(inner.parts.settings.keep_finished)?;
            Ok::<_, JobsError>(plan.audit.clone())
        })?;
        inner.parts.store.naming().sweep(&forgotten);
        tracing::info!(job = %job.id, name = job.name(), children = job.children().len(), "audit queued");
        inner.announce();
        inner.wake();
        Ok(job)
    }

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
        let helpers: BTreeSet<_> = audit.models.iter().flat_map(|model| &model.shadows).chain(&audit.planted).collect();
        let items = rows * (audit.models.len() + helpers.len()) as u64;
        let (mut steps, mut learnt) = (0_u64, 0.0);
        for child in &plan.children {
            let Task::FineTuning(tuning) = &child.task else { continue };
            let dataset = inner.parts.rows.read(&child.dataset)?;
            let own = steps_of(&tuning.settings, &dataset);
            steps = steps.saturating_add(own);
            learnt += own as f64 * rows_of_step(&tuning.settings);
        }
        let speed = inner.parts.store.read(measured)?;
        Ok(Estimate {
            trainings: plan.children.len() as u64,
            steps,
            items,
            training_seconds: speed.row_seconds.map(|seconds| learnt * seconds),
            scoring_seconds: speed.item_seconds.map(|seconds| items as f64 * seconds),
        })
    }
}

impl Inner {
    /// Resolves an audit into jobs; nothing is written.
    fn plan(&self, wanted: &AuditWanted) -> Result<Plan, JobsError> {
        let dataset = self.parts.rows.find(&wanted.dataset)?;
        let settings = wanted.settings.clone().resolved(&*self.parts.rows.read(&dataset)?);
        let wanted = &AuditWanted { settings, ..wanted.clone() };
        let mut fan = Fan { inner: self, wanted, taken: BTreeSet::new(), trained: Vec::new(), helpers: Vec::new() };
        let mut models = Vec::with_capacity(wanted.models.len());
        let mut methods = Vec::with_capacity(wanted.models.len());
        for model in &wanted.models {
            let (source, method) = fan.source(model, &dataset)?;
            models.push(AuditModel { name: model.name.clone(), source, scale: model.scale, shadows: Vec::new() });
            methods.push(method);
        }
        let mut planted = None;
        if let Some(membership) = &wanted.settings.membership {
            fan.shadows(membership, &mut models, &methods, &dataset);
            if membership.planted_control
                && let Some(method) = methods.iter().flatten().next()
            {
                planted = Some(fan.planted(method, &dataset)?);
            }
        }
        let Fan { mut trained, helpers, .. } = fan;
        trained.extend(helpers);
        let limit = self.parts.settings.max_trained_models;
        if trained.len() > limit {
            return Err(JobsError::TooManyModels { wanted: trained.len(), limit });
        }
        let task = AuditTask {
            name: wanted.name.to_string(),
            models,
            settings: wanted.settings.clone(),
            keep_models: wanted.keep_models,
            planted,
            children: trained.iter().map(|child| child.id).collect(),
        };
        let audit = self.new_job(Task::Audit { audit: Box::new(task) }, dataset, None);
        let children = trained.into_iter().map(|child| Job { parent: Some(audit.id), ..child }).collect();
        Ok(Plan { audit, children })
    }
}

/// An audit that is being resolved.
struct Fan<'a> {
    inner: &'a Inner,
    wanted: &'a AuditWanted,
    /// Names that children have.
    taken: BTreeSet<String>,
    /// Jobs of models that are audited.
    trained: Vec<Job>,
    /// Jobs of shadow and control models.
    helpers: Vec<Job>,
}

impl Fan<'_> {
    /// Returns where a model comes from and how it is trained, where that is known.
    fn source(&mut self, model: &ModelWanted, dataset: &str) -> Result<(ModelSource, Option<Settings>), JobsError> {
        Ok(match &model.source {
            SourceWanted::Base => (ModelSource::Base, None),
            SourceWanted::Adapter(reference) => {
                let (name, generation) = self.inner.parts.registry.locate(reference)?;
                let generation = generation.to_string();
                let record = self.inner.parts.registry.get(&name)?;
                let stored = record.generations.into_iter().find(|stored| stored.id == generation);
                let stored = stored.ok_or_else(|| RegistryError::AdapterNotFound(reference.to_string()))?;
                let settings = stored.lineage.as_ref().and_then(settings_of);
                (ModelSource::Stored { adapter: name.to_string(), generation }, settings)
            }
            SourceWanted::Training { settings, dataset: own } => {
                let dataset = match own {
                    Some(own) => self.inner.parts.rows.find(own)?,
                    None => dataset.to_owned(),
                };
                let adapter = self.name(&model.name);
                let job = self.child(&adapter, (**settings).clone(), &dataset);
                let source = ModelSource::Trained { job: job.id, adapter };
                self.trained.push(job);
                (source, Some((**settings).clone()))
            }
        })
    }

    /// Makes the shadow models of all models; models that are trained alike share theirs.
    fn shadows(
        &mut self,
        membership: &Membership,
        models: &mut [AuditModel],
        methods: &[Option<Settings>],
        dataset: &str,
    ) {
        let mut made: Vec<(Settings, Vec<JobId>)> = Vec::new();
        for (model, method) in models.iter_mut().zip(methods) {
            let Some(method) = method else { continue };
            // Another place to draw rows from makes no other method.
            let alike = Settings { subset: None, ..method.clone() };
            if let Some((_, shadows)) = made.iter().find(|(settings, _)| *settings == alike) {
                model.shadows.clone_from(shadows);
                continue;
            }
            for number in 0..membership.shadows {
                let subset = self.subset(membership.shadow_fraction, made.len(), number);
                let seed = alike.seed.wrapping_add(1 + number as u64);
                let settings = Settings { subset: Some(subset), seed, ..alike.clone() };
                let name = self.name(&format!("{}.shadow-{number}", model.name));
                let job = self.child(&name, settings, dataset);
                model.shadows.push(job.id);
                self.helpers.push(job);
            }
            made.push((alike, model.shadows.clone()));
        }
    }

    /// Makes the control model: as `method`, but on few rows and for long.
    fn planted(&mut self, method: &Settings, dataset: &str) -> Result<JobId, JobsError> {
        let rows = self.inner.parts.rows.read(dataset)?;
        let splits = &self.wanted.settings.splits;
        let pool = rows.rows.iter().filter(|row| splits.contains(&row.split)).count();
        let fraction = (PLANTED_ROWS / pool.max(1) as f64).min(0.5);
        let without_dropout = match &method.method {
            Method::Lora(lora) => Method::Lora(LoraSettings { dropout: 0.0, ..lora.clone() }),
            Method::Full => Method::Full,
            Method::HeadOnly => Method::HeadOnly,
        };
        let settings = Settings {
            method: without_dropout,
            length: Length::Epochs(PLANTED_EPOCHS),
            schedule: Schedule::Constant,
            warmup_steps: 0,
            weight_decay: 0.0,
            eval_every: 0,
            patience: 0,
            keep_best: false,
            subset: Some(self.subset(fraction, usize::MAX, 0)),
            ..method.clone()
        };
        let name = self.name("planted");
        let job = self.child(&name, settings, dataset);
        let id = job.id;
        self.helpers.push(job);
        Ok(id)
    }

    fn subset(&self, fraction: f64, group: usize, number: usize) -> Subset {
        let mut digest = Sha256::new_with_prefix(b"evenkeel shadow 1");
        for part in [self.wanted.settings.seed, group as u64, number as u64] {
            digest.update(part.to_le_bytes());
        }
        let digest = digest.finalize();
        let seed = digest.iter().take(8).fold(0_u64, |seed, byte| seed << 8 | u64::from(*byte));
        Subset { splits: self.wanted.settings.splits.clone(), fraction, seed }
    }

    fn child(&self, adapter: &str, settings: Settings, dataset: &str) -> Job {
        let tuning = Tuning {
            adapter: adapter.to_owned(),
            expected: expected_text(&Expected::Absent),
            alias: None,
            pinned: None,
            // That a model is no other than the base is a finding.
            allow_no_effect: true,
            settings,
        };
        self.inner.new_job(Task::FineTuning(Box::new(tuning)), dataset.to_owned(), None)
    }

    /// Returns the name of a model's adapter: that of the audit and that of the model, in letters that a name may have.
    fn name(&mut self, model: &str) -> String {
        let full = format!("{}.{model}", self.wanted.name);
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let plain: String =
            full.chars().map(|c| c.to_ascii_lowercase()).map(|c| if fine(c) { c } else { '-' }).collect();
        let digest = hex::encode(Sha256::digest(&full));
        let mut name = plain.clone();
        let mut digits = 8;
        while name.len() > NAME || self.taken.contains(&name) {
            // Two models may differ in letters that a name does not have.
            name = format!("{}-{}", &plain[..plain.len().min(NAME - 1 - digits)], &digest[..digits]);
            digits += 8;
        }
        self.taken.insert(name.clone());
        name
    }
}

/// Rows that one step learns from.
fn rows_of_step(settings: &Settings) -> f64 {
    settings.batch_size.saturating_mul(settings.accumulation) as f64
}

fn steps_of(settings: &Settings, dataset: &Dataset) -> u64 {
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

/// What was measured of late.
#[derive(Debug, Default)]
struct Measured {
    /// Seconds that learning from a row takes.
    row_seconds: Option<f64>,
    /// Seconds that scoring an item takes.
    item_seconds: Option<f64>,
}

fn measured(catalog: &Catalog<'_>) -> Result<Measured, JobsError> {
    let mut measured = Measured::default();
    for row in catalog.jobs(None, None, LOOKED_THROUGH)? {
        // A record that cannot be read was measured by nobody.
        let Ok(job) = parse(&row) else { continue };
        if let (Task::FineTuning(tuning), Some(last)) = (&job.task, &job.last)
            && last.tokens_per_second > 0.0
        {
            let seconds = last.progress.tokens as f64 / last.tokens_per_second;
            measured.row_seconds.get_or_insert(seconds / rows_of_step(&tuning.settings));
        }
        if let Some(audited) = &job.audited
            && audited.items_per_second > 0.0
        {
            measured.item_seconds.get_or_insert(1.0 / audited.items_per_second);
        }
    }
    Ok(measured)
}
