//! One audit as many jobs: the fine-tunings that it needs first, shadow and control models for membership inference, then
//! the audit itself, all made in one transaction.
//!
//! Trains and audits nothing. What a caller asked for is resolved here, once: adapters to generations, models to train to
//! jobs with names of their own; models that are checkpoints of one training share its job. A shadow model is trained as its
//! target was, and as far, on other rows: a random part of those that are audited. What it would cost: `estimate`.
//! After: Carlini et al. 2022 (shadow models), "Membership Inference Attacks From First Principles".

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::audit::settings_of;
use super::changes::{Inner, Jobs};
use super::estimate::steps_of;
use super::names::{check_checkpoints, check_names, checkpoint_name};
use super::queue::new_job;
use super::{AuditModel, AuditTask, Job, JobId, JobsError, ModelSource, Task, Tuning, expected_text};
use crate::audit::assess::{Shape, unknown_measures};
use crate::audit::settings::{Membership, Settings as AuditSettings};
use crate::lora::LoraError;
use crate::registry::{Expected, Name, Reference, RegistryError, RequestKey};
use crate::train::{Length, LoraSettings, Method, Schedule, Settings, Subset, Use};

/// Rows that the control model is trained on, and how often it sees them: few and often, so that it must remember them.
const PLANTED_ROWS: f64 = 64.0;
const PLANTED_EPOCHS: f64 = 40.0;
/// Longest name.
const NAME: usize = 63;

/// An audit that a caller asks for, checked.
#[derive(Debug, Clone)]
pub struct AuditWanted {
    /// Name that the report is kept under.
    pub name: Name,
    /// Data set, by name or id.
    pub dataset: String,
    /// Base model of all models, by name; `None`: the first one.
    pub base: Option<String>,
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

impl ModelWanted {
    /// Returns what its training is called: as the model, or as what it is a checkpoint of.
    fn training(&self) -> &str {
        match &self.source {
            SourceWanted::Training { checkpoint: Some(checkpoint), .. } => &checkpoint.training,
            SourceWanted::Base | SourceWanted::Adapter(_) | SourceWanted::Training { .. } => &self.name,
        }
    }
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
        /// Which of its checkpoints; none: its result.
        checkpoint: Option<CheckpointWanted>,
    },
}

/// A checkpoint of a training that is made once for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointWanted {
    /// What the training is called; models of the same one, with the same settings and data, share it.
    pub training: String,
    /// One of its [`Settings::publish_steps`].
    pub step: u64,
}

/// How a model is trained, and after how many steps it is taken from there; none: at the end.
type Taught = (Settings, Option<u64>);

/// The jobs of an audit.
pub(super) struct Plan {
    pub(super) audit: Job,
    pub(super) children: Vec<Job>,
}

impl Jobs {
    /// Makes an audit with the fine-tunings that go before it.
    ///
    /// # Errors
    /// [`JobsError::DatasetNotFound`], [`JobsError::Measure`], [`JobsError::TooManyModels`], [`JobsError::Conflict`],
    /// [`JobsError::QueueFull`]; [`RegistryError::AdapterNotFound`], [`RegistryError::NameTaken`] and
    /// [`RegistryError::GenerationMismatch`] (a model to train has the name of an alias or adapter),
    /// [`RegistryError::RequestIdReused`]; when the disk fails.
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
                    check_checkpoints(catalog, tuning)?;
                }
                inner.enter(catalog, child)?;
            }
            inner.enter(catalog, &plan.audit)?;
            forgotten = catalog.forget_jobs(inner.parts.settings.keep_finished)?;
            Ok::<_, JobsError>(plan.audit.clone())
        })?;
        tracing::info!(job = %job.id, name = job.name(), children = job.children().len(), "audit queued");
        inner.announce();
        inner.wake();
        inner.parts.store.sweep(&forgotten);
        Ok(job)
    }
}

impl Inner {
    /// Resolves an audit into jobs; nothing is written.
    pub(super) fn plan(&self, wanted: &AuditWanted) -> Result<Plan, JobsError> {
        let dataset = self.parts.rows.find(&wanted.dataset)?;
        let rows = self.parts.rows.read(&dataset)?;
        let settings = wanted.settings.clone().resolved(&rows);
        let shape = Shape::of(&settings.task, rows.labels.len(), rows.multi_label);
        // That there are no classes is told when the job begins.
        if !matches!(shape, Shape::Classes(..2))
            && let Some((place, why)) = unknown_measures(&settings, &[shape]).into_iter().next()
        {
            return Err(JobsError::Measure { place, why });
        }
        drop(rows);
        let wanted = &AuditWanted { settings, ..wanted.clone() };
        let base = self.parts.registry.fingerprint(wanted.base.as_deref())?;
        let mut fan = Fan {
            inner: self,
            wanted,
            base: base.clone(),
            taken: BTreeSet::new(),
            trained: Vec::new(),
            shared: Vec::new(),
            helpers: Vec::new(),
        };
        let mut models = Vec::with_capacity(wanted.models.len());
        let mut methods = Vec::with_capacity(wanted.models.len());
        for model in &wanted.models {
            let (source, method) = fan.source(model, &dataset)?;
            let step = method.as_ref().and_then(|(_, step)| *step);
            models.push(AuditModel { name: model.name.clone(), source, scale: model.scale, shadows: Vec::new(), step });
            methods.push(method);
        }
        let mut planted = None;
        if let Some(membership) = &wanted.settings.membership {
            fan.shadows(membership, &mut models, &methods, &dataset)?;
            if membership.planted_control
                && let Some((method, _)) = methods.iter().flatten().next()
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
        let audit = new_job(Task::Audit { audit: Box::new(task) }, dataset, base);
        let children = trained.into_iter().map(|child| Job { parent: Some(audit.id), ..child }).collect();
        Ok(Plan { audit, children })
    }
}

/// An audit that is being resolved.
struct Fan<'a> {
    inner: &'a Inner,
    wanted: &'a AuditWanted,
    /// Fingerprint of the base model.
    base: String,
    /// Names that children have.
    taken: BTreeSet<String>,
    /// Jobs of models that are audited.
    trained: Vec<Job>,
    /// What those of checkpoints are called, and the job.
    shared: Vec<(String, JobId)>,
    /// Jobs of shadow and control models.
    helpers: Vec<Job>,
}

impl Fan<'_> {
    /// Returns where a model comes from and how it is trained, where that is known.
    fn source(&mut self, model: &ModelWanted, dataset: &str) -> Result<(ModelSource, Option<Taught>), JobsError> {
        Ok(match &model.source {
            SourceWanted::Base => (ModelSource::Base, None),
            SourceWanted::Adapter(reference) => {
                let (name, generation) = self.inner.parts.registry.locate(reference)?;
                let generation = generation.to_string();
                let record = self.inner.parts.registry.get(&name)?;
                let stored = record.generations.into_iter().find(|stored| stored.id == generation);
                let stored = stored.ok_or_else(|| RegistryError::AdapterNotFound(reference.to_string()))?;
                if record.base_fingerprint != self.base {
                    let fault =
                        format!("`{reference}` is of base model {}, not {}", record.base_fingerprint, self.base);
                    return Err(RegistryError::Lora(LoraError::Mismatch(fault)).into());
                }
                let method = stored.lineage.as_ref().and_then(|lineage| Some((settings_of(lineage)?, lineage.step)));
                (ModelSource::Stored { adapter: name.to_string(), generation }, method)
            }
            SourceWanted::Training { settings, dataset: own, checkpoint } => {
                let dataset = match own {
                    Some(own) => self.inner.parts.rows.find(own)?,
                    None => dataset.to_owned(),
                };
                let settings = (**settings).clone();
                let name = model.training();
                let (job, adapter) = match self.shared(name, &settings, &dataset).filter(|_| checkpoint.is_some()) {
                    Some(job) => job,
                    None => {
                        let adapter = self.name(name, &settings.publish_steps)?;
                        let job = self.child(&adapter, settings.clone(), &dataset);
                        let id = job.id;
                        self.trained.push(job);
                        if checkpoint.is_some() {
                            self.shared.push((name.to_owned(), id));
                        }
                        (id, adapter)
                    }
                };
                let step = checkpoint.as_ref().map(|checkpoint| checkpoint.step);
                let adapter = step.map_or_else(|| adapter.clone(), |step| checkpoint_name(&adapter, step));
                (ModelSource::Trained { job, adapter }, Some((settings, step)))
            }
        })
    }

    /// Returns the job of this name and these settings that was made for another checkpoint, and its adapter.
    fn shared(&self, name: &str, settings: &Settings, dataset: &str) -> Option<(JobId, String)> {
        let named = |job: &&Job| self.shared.iter().any(|(other, id)| other == name && *id == job.id);
        self.trained.iter().filter(named).find_map(|job| match &job.task {
            Task::FineTuning(tuning) if tuning.settings == *settings && job.dataset == dataset => {
                Some((job.id, tuning.adapter.clone()))
            }
            Task::FineTuning(_) | Task::Audit { .. } => None,
        })
    }

    /// Makes the shadow models of all models; models that are trained alike share theirs, each at its own step.
    fn shadows(
        &mut self,
        membership: &Membership,
        models: &mut [AuditModel],
        methods: &[Option<Taught>],
        dataset: &str,
    ) -> Result<(), JobsError> {
        let mut made: Vec<(Settings, Vec<JobId>)> = Vec::new();
        let rows = self.inner.parts.rows.read(dataset)?;
        // Another place to draw rows from makes no other method, and neither do steps at which it is looked at.
        let plain = |method: &Settings| Settings { subset: None, publish_steps: Vec::new(), ..method.clone() };
        for ((model, wanted), method) in models.iter_mut().zip(&self.wanted.models).zip(methods) {
            let Some((method, _)) = method else { continue };
            let alike = plain(method);
            if let Some((_, shadows)) = made.iter().find(|(settings, _)| *settings == alike) {
                model.shadows.clone_from(shadows);
                continue;
            }
            let others = methods.iter().flatten().filter(|(other, _)| plain(other) == alike);
            let steps: BTreeSet<u64> = others.filter_map(|(_, step)| *step).collect();
            let publish_steps: Vec<u64> = steps.into_iter().collect();
            for number in 0..membership.shadows {
                let subset = self.subset(membership.shadow_fraction, made.len(), number);
                let seed = alike.seed.wrapping_add(1 + number as u64);
                let mut settings = Settings { subset: Some(subset), seed, ..alike.clone() };
                // What the target looked at may be among the rows to learn from.
                if !rows.rows.iter().any(|row| settings.use_of(row) == Use::Look) {
                    (settings.eval_every, settings.patience, settings.keep_best) = (0, 0, false);
                }
                // A run in epochs may be shorter on these rows (with packing it is not known yet).
                let last = steps_of(&settings, &rows);
                settings.publish_steps = publish_steps.iter().copied().filter(|step| *step <= last).collect();
                let name = format!("{}.shadow-{number}", wanted.training());
                let name = self.name(&name, &settings.publish_steps)?;
                let job = self.child(&name, settings, dataset);
                model.shadows.push(job.id);
                self.helpers.push(job);
            }
            made.push((alike, model.shadows.clone()));
        }
        Ok(())
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
            publish_steps: Vec::new(),
            subset: Some(self.subset(fraction, usize::MAX, 0)),
            ..method.clone()
        };
        let name = self.name("planted", &[])?;
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
            expected_checkpoints: Vec::new(),
        };
        new_job(Task::FineTuning(Box::new(tuning)), dataset.to_owned(), self.base.clone())
    }

    /// Returns the name of a model's adapter: that of the audit and that of the model, in letters that a name may have,
    /// and a number where an audit before has left an adapter of that name. It has room for the names of checkpoints, which
    /// nobody has either.
    fn name(&mut self, model: &str, steps: &[u64]) -> Result<String, JobsError> {
        let full = format!("{}.{model}", self.wanted.name);
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let plain: String =
            full.chars().map(|c| c.to_ascii_lowercase()).map(|c| if fine(c) { c } else { '-' }).collect();
        let digest = hex::encode(Sha256::digest(&full));
        let mut name = plain.clone();
        let mut digits = 8;
        let longest = NAME - steps.iter().map(|step| checkpoint_name("", *step).len()).max().unwrap_or(0);
        let names = |name: &str| -> Vec<String> {
            let checkpoints = steps.iter().map(|step| checkpoint_name(name, *step));
            std::iter::once(name.to_owned()).chain(checkpoints).collect()
        };
        let is_taken = |taken: &BTreeSet<String>, name: &str| names(name).iter().any(|name| taken.contains(name));
        while name.len() > longest || digits <= 32 && is_taken(&self.taken, &name) {
            // Two models may differ in letters that a name does not have.
            name = format!("{}-{}", &plain[..plain.len().min(longest - 1 - digits)], &digest[..digits]);
            digits += 8;
        }
        let first = name.clone();
        let mut number = 1;
        while is_taken(&self.taken, &name) || self.is_left(&names(&name))? {
            number += 1;
            let ending = format!("-{number}");
            name = format!("{}{ending}", &first[..first.len().min(longest - ending.len())]);
        }
        self.taken.extend(names(&name));
        Ok(name)
    }

    /// Returns whether an adapter of these names was made for an audit; what others have made is not passed over.
    fn is_left(&self, names: &[String]) -> Result<bool, JobsError> {
        for name in names {
            let Some(name) = Name::parse(name) else { continue };
            let record = match self.inner.parts.registry.get(&name) {
                Ok(record) => record,
                Err(RegistryError::AdapterNotFound(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            let current = record.generations.iter().find(|stored| stored.id == record.current);
            let audit = current.and_then(|stored| stored.lineage.as_ref()?.audit.as_ref());
            // Of an alias the record is that of its target.
            if record.name == name.as_str() && audit.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
