//! The thread that works on jobs, one at a time, first come, first served.
//!
//! Begins with the job that a former process left running. Whatever happens in a job ends that job only: an error, a
//! full disk, a panic. Changes rows by reading them again in the same transaction, since callers change them too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::changes::{Inner, add, parse, stored, write};
use super::failure::Halt;
use super::pace::{Paced, Speed};
use super::{Advance, Checkpoint, EVENTS, Event, Failure, Job, JobId, Made, State, Work, expected_of, reason};
use crate::registry::{AdapterFiles, Demand, Expected, Lineage, Name, Publish, Reference, RegistryError};
use crate::store::{JobRow, StoreError};
use crate::train::{Progress, TrainError};

/// Wait after the database has failed, unless something happens before.
const PAUSE: Duration = Duration::from_secs(2);

/// How a run ended that did not fail.
enum End {
    Succeeded(Made),
    Cancelled,
    /// The job stays as it is, for the next process.
    Interrupted,
}

/// Tells watchers that the runner has gone, however it went.
struct Gone<'a>(&'a Inner);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.shown.send_modify(|shown| shown.ended = true);
    }
}

/// Works until the server drains.
pub(super) fn run(inner: &Inner) {
    let _gone = Gone(inner);
    while let Some(row) = inner.next() {
        match parse(&row) {
            Ok(job) => inner.work_on(job.id),
            Err(error) => inner.bury(row, &error),
        }
    }
}

impl Inner {
    /// Returns the next job, waiting for one; `None` when the server drains.
    fn next(&self) -> Option<JobRow> {
        loop {
            if self.lock().draining {
                return None;
            }
            match self.parts.store.read(|catalog| catalog.next_job()) {
                Ok(Some(row)) => return Some(row),
                Ok(None) => {
                    let mut signals = self.lock();
                    while !signals.wake && !signals.draining {
                        signals = self.signalled.wait(signals).unwrap_or_else(std::sync::PoisonError::into_inner);
                    }
                    signals.wake = false;
                }
                Err(error) => self.pause(&error),
            }
        }
    }

    /// Waits a little after a fault of the database.
    fn pause(&self, error: &(dyn std::error::Error + 'static)) {
        tracing::error!(error, "the rows of jobs cannot be read or written");
        let signals = self.lock();
        if !signals.draining {
            drop(self.signalled.wait_timeout(signals, PAUSE));
        }
    }

    /// Takes a job whose record cannot be read out of the way.
    fn bury(&self, row: JobRow, error: &StoreError) {
        tracing::error!(job = row.id, %error, "a job is left alone");
        let row = JobRow { state: State::Failed.as_str().to_owned(), ..row };
        if let Err(error) = self.parts.store.change(|catalog| catalog.put_job(&row)) {
            self.pause(&error);
        }
    }

    /// Changes a job's row, and adds the event that the change returns.
    fn update(&self, id: JobId, change: impl FnOnce(&mut Job) -> Option<Event>) -> Result<Job, super::JobsError> {
        let job = self.parts.store.change(|catalog| {
            let (mut row, mut job) = stored(catalog, id)?;
            let event = change(&mut job);
            write(catalog, &mut row, &job)?;
            if let Some(event) = event {
                let number = add(catalog, &id, &event)?;
                catalog.forget_events(&row.id, number.saturating_sub(EVENTS))?;
            }
            Ok::<_, super::JobsError>(job)
        })?;
        self.announce();
        Ok(job)
    }

    /// Works on one job until it ends or the server does.
    fn work_on(&self, id: JobId) {
        let cancelled = Arc::new(AtomicBool::new(false));
        self.lock().current = Some((id, Arc::clone(&cancelled)));
        // A caller may have cancelled it since it was looked up.
        let taken = self.update(id, |job| {
            if job.state != State::Queued {
                return None;
            }
            job.state = State::Running;
            job.started.get_or_insert_with(SystemTime::now);
            Some(Event::Job(Box::new(job.clone())))
        });
        match taken {
            Ok(job) if job.state == State::Running => {
                cancelled.fetch_or(job.cancelling, Ordering::AcqRel);
                self.attempt(&job, &cancelled);
            }
            Ok(_) => {}
            Err(error) => self.pause(&error),
        }
        self.lock().current = None;
    }

    /// Runs a job and writes down how it ended.
    fn attempt(&self, job: &Job, cancelled: &AtomicBool) {
        tracing::info!(job = %job.id, adapter = job.adapter, "job runs");
        let paced = Paced { turns: &self.parts.turns, cancelled, halted: &self.halted };
        let done = catch_unwind(AssertUnwindSafe(|| self.perform(job, &paced)));
        let done = match done {
            Ok(Err(Halt::Stopped)) if cancelled.load(Ordering::Acquire) => Ok(End::Cancelled),
            Ok(Ok(End::Interrupted) | Err(Halt::Stopped)) => {
                tracing::info!(job = %job.id, "job waits for the next start of the server");
                return;
            }
            Ok(Ok(end)) => Ok(end),
            Ok(Err(Halt::Failed(failure))) => Err(failure),
            Err(_) => {
                tracing::error!(job = %job.id, "a job panicked");
                Err(Failure::new(reason::INTERNAL, "internal error"))
            }
        };
        // A disk without room for a few rows may have it again; until then the job is not known to have ended.
        while let Err(error) = self.finish(job.id, &done) {
            self.pause(&error);
            if self.lock().draining {
                return;
            }
        }
    }

    fn finish(&self, id: JobId, done: &Result<End, Failure>) -> Result<(), super::JobsError> {
        let mut orphans = Vec::new();
        let job = self.update(id, |job| {
            job.ended = Some(SystemTime::now());
            job.cancelling = false;
            match done {
                Ok(End::Succeeded(made)) => {
                    job.state = State::Succeeded;
                    job.made = Some(made.clone());
                    orphans.extend(job.checkpoint.take().map(|checkpoint| checkpoint.blob));
                }
                Ok(End::Cancelled | End::Interrupted) => job.state = State::Cancelled,
                Err(failure) => {
                    job.state = State::Failed;
                    job.failure = Some(failure.clone());
                }
            }
            Some(Event::Job(Box::new(job.clone())))
        })?;
        self.parts.store.naming().sweep(&orphans);
        self.parts.metrics.jobs_finished.with_label_values(&[job.state.as_str()]).inc();
        let reason = job.failure.as_ref().map(|failure| failure.reason.as_str());
        tracing::info!(job = %id, state = job.state.as_str(), reason, "job ended");
        Ok(())
    }

    /// The life of a job: begin or go on, step by step, then publish.
    fn perform(&self, job: &Job, paced: &Paced<'_>) -> Result<End, Halt> {
        if let Some(made) = self.published(job)? {
            return self.settle(job, made);
        }
        if paced.is_stopped() {
            return Err(Halt::Stopped);
        }
        if job.base != self.parts.base {
            let message = format!("the job is for base model {}, this one is {}", job.base, self.parts.base);
            return Err(Halt::Failed(Failure::new(reason::BASE, message)));
        }
        let dataset = self.parts.rows.read(&job.dataset)?;
        let bytes = match &job.checkpoint {
            Some(checkpoint) => Some(self.parts.store.blobs().get(&checkpoint.blob)?),
            None => None,
        };
        let mut work = self.parts.training.start(&dataset, &job.settings, bytes.as_deref())?;
        drop((dataset, bytes));
        if !job.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.last)
            && !self.train(job, work.as_mut(), paced)?
        {
            return Ok(End::Interrupted);
        }
        if paced.is_stopped() {
            return Err(Halt::Stopped);
        }
        let output = work.output()?;
        // Its memory is needed to load the result.
        drop(work);
        if paced.is_stopped() {
            return Err(Halt::Stopped);
        }
        let made = self.publish(job, AdapterFiles { config: output.config, tensors: output.tensors })?;
        self.settle(job, made)
    }

    /// Goes from step to step; returns whether the last one is done, else the server drains.
    fn train(&self, job: &Job, work: &mut dyn Work, paced: &Paced<'_>) -> Result<bool, Halt> {
        let settings = &self.parts.settings;
        let mut speed = Speed::default();
        let mut kept = job.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let mut at = kept;
        let mut written = Instant::now();
        loop {
            if self.lock().draining {
                if at > kept
                    && let Err(Halt::Failed(failure)) = self.keep(job.id, work, at, false)
                {
                    tracing::warn!(job = %job.id, message = failure.message, "the last steps will be computed again");
                }
                return Ok(false);
            }
            let begin = Instant::now();
            let progress = checked(work.advance(paced)?)?;
            let elapsed = begin.elapsed();
            at = progress.step;
            let metrics = &self.parts.metrics;
            metrics.training_steps.inc();
            metrics.training_tokens.inc_by(progress.tokens);
            metrics.training_loss.set(progress.loss);
            metrics.training_step_seconds.observe(elapsed.as_secs_f64());
            let last = progress.last;
            let left = if last { 0 } else { progress.total_steps.saturating_sub(at) };
            let (tokens_per_second, eta_seconds) = speed.note(progress.tokens, elapsed, left);
            self.show(job.id, Advance { progress, tokens_per_second, eta_seconds })?;
            let steps = settings.checkpoint_steps;
            let due = steps > 0 && at.saturating_sub(kept) >= steps
                || written.elapsed() >= Duration::from_secs(settings.checkpoint_seconds);
            if last || due {
                self.keep(job.id, work, at, last)?;
                kept = at;
                written = Instant::now();
            }
            if last {
                return Ok(true);
            }
        }
    }

    /// Writes the event of a step, unless it was written before a restart.
    fn show(&self, id: JobId, advance: Advance) -> Result<(), Halt> {
        self.update(id, |job| {
            let seen = job.last.as_ref().map_or(0, |last| last.progress.step);
            (advance.progress.step > seen).then(|| {
                job.last = Some(advance.clone());
                Event::Step(Box::new(advance))
            })
        })?;
        Ok(())
    }

    /// Writes a checkpoint, names it in the row, and removes the one before.
    fn keep(&self, id: JobId, work: &dyn Work, step: u64, last: bool) -> Result<(), Halt> {
        let begin = Instant::now();
        let checkpoint = work.checkpoint()?;
        let naming = self.parts.store.naming();
        let blob = self.parts.store.blobs().put(checkpoint)?;
        let mut orphan = None;
        self.update(id, |job| {
            orphan = job.checkpoint.replace(Checkpoint { blob: blob.clone(), step, last });
            None
        })?;
        naming.sweep(&orphan.map(|old| old.blob).into_iter().collect::<Vec<_>>());
        drop(naming);
        self.parts.metrics.checkpoint_seconds.observe(begin.elapsed().as_secs_f64());
        tracing::debug!(job = %id, step, "checkpoint written");
        Ok(())
    }

    /// Returns what a job has published before a restart.
    fn published(&self, job: &Job) -> Result<Option<Made>, Halt> {
        if job.made.is_some() {
            return Ok(job.made.clone());
        }
        let record = match self.parts.registry.get(&name(&job.adapter)?) {
            Ok(record) => record,
            Err(RegistryError::AdapterNotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let id = job.id.to_string();
        let mine = |lineage: &Option<Lineage>| lineage.as_ref().is_some_and(|lineage| lineage.job == id);
        let generation = record.generations.into_iter().find(|generation| mine(&generation.lineage));
        Ok(generation.map(|generation| Made { adapter: record.name, generation: generation.id }))
    }

    fn publish(&self, job: &Job, files: AdapterFiles) -> Result<Made, Halt> {
        let expected: Expected = expected_of(job.expected.as_deref()).ok_or_else(|| damaged(job))?;
        let lineage = Lineage {
            job: job.id.to_string(),
            dataset: job.dataset.clone(),
            base: job.base.clone(),
            settings: serde_json::to_value(&job.settings).map_err(|_| damaged(job))?,
            parent: None,
        };
        let publish = Publish {
            name: name(&job.adapter)?,
            expected,
            pinned: job.pinned,
            allow_no_effect: job.allow_no_effect,
            request: None,
            lineage: Some(lineage),
        };
        let record = self.parts.registry.publish(files, publish)?;
        Ok(Made { adapter: record.name, generation: record.current })
    }

    /// Does what follows a publication; all of it may be done twice.
    fn settle(&self, job: &Job, made: Made) -> Result<End, Halt> {
        if let Some(alias) = &job.alias {
            if job.made.as_ref() != Some(&made) {
                self.update(job.id, |job| {
                    job.made = Some(made.clone());
                    None
                })?;
            }
            let target = Reference { name: name(&made.adapter)?, generation: Some(made.generation.clone()) };
            self.parts.registry.set_alias(&name(alias)?, &target, Expected::Any, Demand::AsItWas, None)?;
        }
        Ok(End::Succeeded(made))
    }
}

/// Refuses numbers that no JSON and no client can take; groups without a row have none.
fn checked(mut progress: Progress) -> Result<Progress, TrainError> {
    progress.groups.retain(|figure| figure.rows > 0);
    if let Some(evaluation) = &mut progress.evaluation {
        evaluation.figures.retain(|figure| figure.rows > 0);
    }
    let figures = progress.groups.iter().chain(progress.evaluation.iter().flat_map(|evaluation| &evaluation.figures));
    let numbers = figures.flat_map(|figure| [figure.loss, figure.accuracy.unwrap_or(0.0)]);
    let own = [progress.loss, progress.grad_norm, progress.learning_rate, progress.epoch];
    match own.into_iter().chain(numbers).find(|number| !number.is_finite()) {
        Some(loss) => Err(TrainError::Diverged { step: progress.step, loss }),
        None => Ok(progress),
    }
}

fn name(text: &str) -> Result<Name, StoreError> {
    Name::parse(text).ok_or_else(|| StoreError::Corrupt(format!("the name `{text}` of a job")))
}

fn damaged(job: &Job) -> StoreError {
    StoreError::Corrupt(format!("the record of job {}", job.id))
}
