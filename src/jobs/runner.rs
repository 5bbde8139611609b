//! The thread that works on jobs, one at a time, first come, first served.
//!
//! Begins with the job that a former process left running. Whatever happens in a job ends that job only: an error, a
//! full disk, a panic. Changes rows by reading them again in the same transaction, since callers change them too.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::changes::Inner;
use super::failure::Halt;
use super::pace::Paced;
use super::rows::{add, parse, stored, write};
use super::{Checkpoint, EVENTS, Event, Failure, Job, JobId, Made, State, Task, reason};
use crate::store::{JobRow, StoreError};

/// Wait after the database has failed, unless something happens before.
const PAUSE: Duration = Duration::from_secs(2);

/// How a run ended that did not fail.
pub(super) enum End {
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
    pub(super) fn update(
        &self,
        id: JobId,
        change: impl FnOnce(&mut Job) -> Option<Event>,
    ) -> Result<Job, super::JobsError> {
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
        tracing::info!(job = %job.id, name = job.name(), "job runs");
        let paced = Paced { turns: &self.parts.turns, cancelled, halted: &self.halted };
        let done = catch_unwind(AssertUnwindSafe(|| match &job.task {
            Task::FineTuning(tuning) => self.tune(job, tuning, &paced),
            Task::Audit { audit } => self.audit(job, audit, &paced),
        }));
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
        self.parts.store.sweep(&orphans);
        self.count_end(&job);
        let reason = job.failure.as_ref().map(|failure| failure.reason.as_str());
        tracing::info!(job = %id, state = job.state.as_str(), reason, "job ended");
        Ok(())
    }

    /// Writes a checkpoint, names it in the row, and removes the one before.
    pub(super) fn keep(
        &self,
        id: JobId,
        (step, last): (u64, bool),
        write: impl FnOnce(&mut dyn Write) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        let begin = Instant::now();
        let naming = self.parts.store.naming();
        let blob = self.parts.store.blobs().put_written(write)?;
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

    /// Writes a checkpoint before the server ends; without it more will be computed again.
    pub(super) fn keep_at_last(&self, id: JobId, step: u64, write: impl FnOnce(&mut dyn Write) -> Result<(), Halt>) {
        if let Err(Halt::Failed(failure)) = self.keep(id, (step, false), write) {
            tracing::warn!(job = %id, message = failure.message, "the last steps will be computed again");
        }
    }

    /// Reads what a job goes on from.
    pub(super) fn checkpoint_of(&self, job: &Job) -> Result<Option<Vec<u8>>, Halt> {
        Ok(match &job.checkpoint {
            Some(checkpoint) => Some(self.parts.store.blobs().get(&checkpoint.blob)?),
            None => None,
        })
    }

    /// Refuses to compute for another base model, or what is to end.
    pub(super) fn may_begin(&self, job: &Job, paced: &Paced<'_>) -> Result<(), Halt> {
        paced.check()?;
        if !self.parts.registry.serves(&job.base) {
            let message = format!("the job is for base model {}, which this server does not have", job.base);
            return Err(Halt::Failed(Failure::new(reason::BASE, message)));
        }
        Ok(())
    }
}
