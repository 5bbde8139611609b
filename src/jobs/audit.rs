//! The life of an audit: gather the models, score or go on, make the report, keep it, tidy up.
//!
//! Runs on the runner's thread, which writes down how it ended. Order of writes at the end: last checkpoint, report, its
//! id in the job, deletion of what was trained for the audit alone, success; all of it may be done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::changes::Inner;
use super::failure::Halt;
use super::pace::{Due, Paced, Speed};
use super::rows::{corrupt, stored};
use super::runner::End;
use super::{
    AuditModel, AuditProgress, AuditTask, AuditWork, Event, Failure, Job, JobId, JobsError, Made, ModelSource, Phase,
    Published, State, reason,
};
use crate::audit::AuditError;
use crate::audit::report::{Model, ModelKind, Training, Warning};
use crate::audit::scoring::{Load, Shadow, Subject, Tuned};
use crate::dataset::Dataset;
use crate::lora::{AdapterInfo, Generation, Kind};
use crate::registry::{Expected, Lineage, Name, Reference, RegistryError};
use crate::train::{Method, Settings};

/// Shortest time between two events of scoring.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// What a generation is and came from.
struct Found {
    reference: Reference,
    info: AdapterInfo,
    generation: String,
    lineage: Option<Lineage>,
    trained_on: Option<Arc<BTreeSet<[u8; 32]>>>,
}

/// What a job before the audit has published.
struct Ended {
    /// At its last step.
    result: Published,
    checkpoints: Vec<Published>,
}

impl Ended {
    /// Returns the checkpoint of a step, the result for none; nothing where the run did not reach that.
    fn at(&self, step: Option<u64>) -> Option<&Published> {
        match step {
            None => Some(&self.result),
            Some(step) => self.checkpoints.iter().find(|kept| kept.step == step),
        }
    }
}

/// Data sets that were read for the lineage of models, so that each is read once.
type Known = BTreeMap<String, Option<Arc<Dataset>>>;

impl Inner {
    pub(super) fn audit(&self, job: &Job, audit: &AuditTask, paced: &Paced<'_>) -> Result<End, Halt> {
        if let Some(made) = &job.made {
            return self.tidy(job, audit, made.clone());
        }
        self.may_begin(job, paced)?;
        let dataset = self.parts.rows.read(&job.dataset)?;
        let (subjects, unreached) = self.subjects(job, audit, &dataset)?;
        let bytes = self.checkpoint_of(job)?;
        let mut work = self.parts.auditing.start(&job.base, &dataset, &audit.settings, subjects, bytes.as_deref())?;
        drop((dataset, bytes));
        let mut rate = job.audited.as_ref().map_or(0.0, |audited| audited.items_per_second);
        if !job.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.last) {
            match self.score(job, work.as_mut(), paced)? {
                Some(measured) => rate = measured,
                None => return Ok(End::Interrupted),
            }
        }
        paced.check()?;
        let (phase, model, items_per_second, eta_seconds) = (Phase::Statistics, String::new(), rate, 0.0);
        self.show_audit(job.id, AuditProgress { phase, model, done: 0, total: 1, items_per_second, eta_seconds })?;
        let mut report = work.report(&|| paced.yields())?;
        paced.check()?;
        report.warnings.extend(unreached);
        report.warnings.sort();
        let name = Name::parse(&audit.name).ok_or_else(|| corrupt(&job.id.to_string()))?;
        let kept = self.parts.reports.put(&name, Some(&job.id.to_string()), &report, None)?;
        let made = Made::Report { report: kept.id };
        self.update(job.id, |job| {
            job.made = Some(made.clone());
            None
        })?;
        self.tidy(job, audit, made)
    }

    /// Goes from batch to batch; returns items a second when all are scored, nothing when the server drains.
    fn score(&self, job: &Job, work: &mut dyn AuditWork, paced: &Paced<'_>) -> Result<Option<f64>, Halt> {
        let mut speed = Speed::default();
        let mut due = Due::new(&self.parts.settings, job.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step));
        let mut at = due.kept();
        let mut shown: Option<(String, Instant)> = None;
        loop {
            if self.lock().draining {
                if at > due.kept() {
                    self.keep_at_last(job.id, at, |out| Ok(out.write_all(&work.checkpoint()?)?));
                }
                return Ok(None);
            }
            let begin = Instant::now();
            let step = work.advance(paced)?;
            let items = step.done.saturating_sub(at);
            at = step.done;
            self.parts.metrics.audit_items.inc_by(items);
            let (items_per_second, _) = speed.note(items, begin.elapsed(), 0);
            let left = step.total.saturating_sub(at) as f64;
            let eta_seconds = if left > 0.0 && items_per_second > 0.0 { left / items_per_second } else { 0.0 };
            let fresh = |(model, at): &(String, Instant)| *model == step.model && at.elapsed() < SHOWN_EVERY;
            if step.last || !shown.as_ref().is_some_and(fresh) {
                let (phase, model, total) = (Phase::Scoring, step.model.clone(), step.total);
                let progress = AuditProgress { phase, model, done: at, total, items_per_second, eta_seconds };
                self.show_audit(job.id, progress)?;
                shown = Some((step.model, Instant::now()));
            }
            if step.last || due.is_due(at) {
                self.keep(job.id, (at, step.last), |out| Ok(out.write_all(&work.checkpoint()?)?))?;
                due.note(at);
            }
            if step.last {
                return Ok(Some(items_per_second));
            }
        }
    }

    /// Writes an event of progress, unless one of more progress was written before a restart.
    fn show_audit(&self, id: JobId, progress: AuditProgress) -> Result<(), Halt> {
        self.update(id, |job| {
            let seen = job.audited.as_ref().map(|seen| (seen.phase, seen.done));
            (seen < Some((progress.phase, progress.done))).then(|| {
                job.audited = Some(progress.clone());
                Event::Audit(Box::new(progress))
            })
        })?;
        Ok(())
    }

    /// Gathers what is audited, and says what is not: checkpoints that a training which stopped early did not reach.
    /// Adapters are looked at one after the other: each is in memory again when its turn comes.
    fn subjects(
        &self,
        job: &Job,
        audit: &AuditTask,
        dataset: &Arc<Dataset>,
    ) -> Result<(Vec<Subject>, Vec<Warning>), Halt> {
        let mut results = BTreeMap::new();
        for child in &audit.children {
            results.insert(*child, self.result_of(*child)?);
        }
        let mut unreached = Vec::new();
        let mut known = Known::from([(job.dataset.clone(), Some(Arc::clone(dataset)))]);
        let mut shadows: BTreeMap<(JobId, Option<u64>), Shadow> = BTreeMap::new();
        let of_models = audit.models.iter().flat_map(|model| model.shadows.iter().map(|child| (*child, model.step)));
        for (child, step) in of_models.chain(audit.planted.map(|child| (child, None))) {
            if let Some(ended) = results.get(&child)
                && !shadows.contains_key(&(child, step))
            {
                // One that stopped early is what it would be after more steps.
                let Published { adapter, generation, .. } = ended.at(step).unwrap_or(&ended.result);
                shadows.insert((child, step), self.shadow(adapter, generation, &mut known)?);
            }
        }
        let mut planted = audit.planted.and_then(|child| shadows.get(&(child, None))).cloned();
        let mut subjects = Vec::with_capacity(audit.models.len());
        for model in &audit.models {
            let named = match &model.source {
                ModelSource::Base => None,
                ModelSource::Stored { adapter, generation } => Some((adapter, generation)),
                ModelSource::Trained { job, .. } => match (results.get(job), model.step) {
                    (None, _) => None,
                    (Some(ended), step) => match ended.at(step) {
                        Some(Published { adapter, generation, .. }) => Some((adapter, generation)),
                        None => {
                            unreached.push(not_reached(model, ended));
                            continue;
                        }
                    },
                },
            };
            let found = match named {
                None => None,
                Some((adapter, generation)) => Some((adapter, self.found(adapter, generation, &mut known)?)),
            };
            // The control was trained as the first model whose training is known.
            let is_known = found
                .as_ref()
                .is_some_and(|(_, found)| found.lineage.as_ref().is_some_and(|lineage| settings_of(lineage).is_some()));
            subjects.push(Subject {
                model: described(model, found.as_ref().map(|(adapter, found)| (adapter.as_str(), found))),
                trained_on: found.as_ref().and_then(|(_, found)| found.trained_on.clone()),
                adapter: found.map(|(_, found)| self.tuned(found)),
                shadows: model.shadows.iter().filter_map(|child| shadows.get(&(*child, model.step))).cloned().collect(),
                planted: if is_known { planted.take() } else { None },
            });
        }
        if subjects.is_empty() {
            let message = "no training of this audit reached the checkpoints to audit".to_owned();
            return Err(Halt::Failed(Failure::new(reason::AUDIT_CHILD_FAILED, message)));
        }
        Ok((subjects, unreached))
    }

    /// Returns what a job before this one has published.
    fn result_of(&self, child: JobId) -> Result<Ended, Halt> {
        let failed = |why: String| {
            let failure = Failure::new(reason::AUDIT_CHILD_FAILED, format!("job {child}, made for this audit, {why}"));
            Err(Halt::Failed(failure))
        };
        let job = match self.parts.store.read(|catalog| stored(catalog, child)) {
            Ok((_, job)) => job,
            Err(JobsError::NotFound(_)) => return failed("is forgotten".into()),
            Err(error) => return Err(error.into()),
        };
        match (job.state, job.made) {
            (State::Succeeded, Some(Made::Generation { adapter, generation })) => {
                let step = job.last.map_or(0, |last| last.progress.step);
                Ok(Ended { result: Published { step, adapter, generation }, checkpoints: job.published })
            }
            (State::Failed, _) => {
                let failure = job.failure.map_or_else(String::new, |failure| failure.message);
                failed(format!("failed: {failure}"))
            }
            (state, _) => failed(format!("is {}", state.as_str())),
        }
    }

    fn found(&self, adapter: &str, generation: &str, known: &mut Known) -> Result<Found, Halt> {
        let (reference, lineage) = self.traced(adapter, generation)?;
        // What cannot be loaded is told before anything is computed.
        let info = self.parts.registry.resolve(&reference)?.info().clone();
        let trained_on = self.trained_on(lineage.as_ref(), known)?;
        Ok(Found { reference, info, generation: generation.to_owned(), lineage, trained_on })
    }

    /// Returns a model that is loaded when its turn has come; the job keeps it from being deleted until then.
    fn tuned(&self, found: Found) -> Tuned {
        let Found { reference, info, generation, .. } = found;
        let registry = Arc::clone(&self.parts.registry);
        let load: Load = Arc::new(move || {
            let failed =
                |error: RegistryError| AuditError::Load { model: reference.to_string(), fault: Box::new(error) };
            registry.resolve(&reference).map_err(failed)
        });
        Tuned { generation, info, load }
    }

    /// Describes a model that is loaded when its turn has come.
    fn shadow(&self, adapter: &str, generation: &str, known: &mut Known) -> Result<Shadow, Halt> {
        let (reference, lineage) = self.traced(adapter, generation)?;
        let trained_on = self.trained_on(lineage.as_ref(), known)?;
        let trained_on = trained_on.ok_or_else(|| corrupt(&format!("that made {reference}")))?;
        let registry = Arc::clone(&self.parts.registry);
        let load: Load = Arc::new(move || {
            let failed = |error: RegistryError| AuditError::Load {
                model: reference.to_string(),
                fault: error.to_string().into(),
            };
            registry.resolve(&reference).map_err(failed)
        });
        Ok(Shadow { generation: generation.to_owned(), load, trained_on })
    }

    /// Returns how a generation is referred to, and how it was made.
    fn traced(&self, adapter: &str, generation: &str) -> Result<(Reference, Option<Lineage>), Halt> {
        let missing = || RegistryError::AdapterNotFound(format!("{adapter}@{generation}"));
        let name = Name::parse(adapter).ok_or_else(missing)?;
        let record = self.parts.registry.get(&name)?;
        let stored = record.generations.into_iter().find(|stored| stored.id == generation);
        let lineage = stored.ok_or_else(missing)?.lineage;
        Ok((Reference { name, generation: Some(generation.to_owned()) }, lineage))
    }

    /// Returns the rows that a model was trained on, where that is known.
    fn trained_on(
        &self,
        lineage: Option<&Lineage>,
        known: &mut Known,
    ) -> Result<Option<Arc<BTreeSet<[u8; 32]>>>, Halt> {
        let Some((lineage, settings)) = lineage.and_then(|lineage| Some((lineage, settings_of(lineage)?))) else {
            return Ok(None);
        };
        let dataset = self.known(&lineage.dataset, known)?;
        Ok(dataset.map(|dataset| Arc::new(settings.learnt_rows(&dataset, lineage.step))))
    }

    /// Reads a data set that may be gone.
    fn known(&self, id: &str, known: &mut Known) -> Result<Option<Arc<Dataset>>, Halt> {
        if let Some(dataset) = known.get(id) {
            return Ok(dataset.clone());
        }
        let dataset = match self.parts.rows.read(id) {
            Ok(dataset) => Some(dataset),
            Err(JobsError::DatasetNotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        known.insert(id.to_owned(), dataset.clone());
        Ok(dataset)
    }

    /// Deletes what was trained for the audit and is not to be kept.
    fn tidy(&self, job: &Job, audit: &AuditTask, made: Made) -> Result<End, Halt> {
        let id = job.id.to_string();
        self.parts.store.change(|catalog| catalog.release_generations(&id))?;
        let helpers = audit.models.iter().flat_map(|model| &model.shadows).chain(&audit.planted);
        let gone: BTreeSet<JobId> = match audit.keep_models {
            None => helpers.copied().collect(),
            Some(true) => BTreeSet::new(),
            Some(false) => audit.children.iter().copied().collect(),
        };
        for child in gone {
            let child = match self.parts.store.read(|catalog| stored(catalog, child)) {
                Ok((_, child)) => child,
                Err(JobsError::NotFound(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            for (adapter, generation) in child.generations() {
                self.delete(job, adapter, generation)?;
            }
        }
        Ok(End::Succeeded(made))
    }

    /// Deletes what was trained for an audit, unless somebody has made it their own.
    fn delete(&self, job: &Job, adapter: &str, generation: &str) -> Result<(), Halt> {
        let (Some(name), Some(generation)) = (Name::parse(adapter), Generation::parse(generation)) else {
            return Ok(());
        };
        match self.parts.registry.delete(&name, Expected::Generation(generation), None) {
            Ok(()) | Err(RegistryError::AdapterNotFound(_)) => {}
            Err(
                RegistryError::GenerationMismatch { .. } | RegistryError::InUse { .. } | RegistryError::Held { .. },
            ) => tracing::warn!(job = %job.id, adapter, "an adapter made for an audit stays: it is in use"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Says that a model is left out.
fn not_reached(model: &AuditModel, ended: &Ended) -> Warning {
    let step = model.step.unwrap_or_default();
    let message = format!(
        "`{}` is left out: its training stopped early, after step {}, before step {step}",
        model.name, ended.result.step
    );
    Warning { kind: "checkpoint_unreached".to_owned(), message }
}

/// Settings of another version of this program may not be readable.
pub(super) fn settings_of(lineage: &Lineage) -> Option<Settings> {
    serde_json::from_value(lineage.settings.clone()).ok()
}

/// Says what is known of a model before it is scored.
fn described(model: &AuditModel, found: Option<(&str, &Found)>) -> Model {
    let info = found.map(|(_, found)| &found.info);
    let kind = match info.map(|info| (info.kind, info.rank)) {
        None => ModelKind::Base,
        Some((Kind::Full, _)) => ModelKind::Full,
        Some((Kind::Lora | Kind::Dora, 0)) => ModelKind::HeadOnly,
        Some((Kind::Lora | Kind::Dora, _)) => ModelKind::Adapter,
    };
    Model {
        name: model.name.clone(),
        kind,
        adapter: found.map_or_else(String::new, |(adapter, _)| adapter.to_owned()),
        generation: found.map_or_else(String::new, |(_, found)| found.generation.clone()),
        scale: model.scale,
        training: found.and_then(|(_, found)| training(found.lineage.as_ref()?)),
        overlap: None,
    }
}

fn training(lineage: &Lineage) -> Option<Training> {
    let settings = settings_of(lineage)?;
    let (rank, alpha, layers) = match &settings.method {
        Method::Lora(lora) => {
            (Some(lora.rank as u64), Some(lora.alpha), lora.layers.iter().map(|n| *n as u64).collect())
        }
        Method::HeadOnly => (Some(0), None, Vec::new()),
        Method::Full => (None, None, Vec::new()),
    };
    Some(Training {
        step: lineage.step,
        job: lineage.job.clone(),
        dataset: lineage.dataset.clone(),
        rank,
        alpha,
        layers,
        seed: settings.seed,
        settings: lineage.settings.clone(),
    })
}
