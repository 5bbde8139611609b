//! The caller's side of jobs: make, look up, watch, cancel, resume, drain.
//!
//! Every change is one transaction with its event and the answer to its request id. Methods block on the disk: call
//! them off the async threads, except [`Jobs::shown`] and [`Jobs::drain`].
//!
//! Locks: `signals` is for a few lines and taken alone. A job that is cancelled while the runner takes it is either seen
//! as cancelled in the row, or finds the runner's flag: the runner shows its flag before it reads the row.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::names::{check_checkpoints, check_names};
use super::queue::{again, new_job};
use super::rows::{add, corrupt, parse, stored, time, write};
use super::{
    Auditing, Event, FineTuning, Job, JobId, JobKind, JobsError, Rows, State, Task, Training, Tuning, expected_text,
    runner,
};
use crate::config::JobsSettings;
use crate::metrics::Metrics;
use crate::registry::{Name, Registry, RequestKey};
use crate::reports::Reports;
use crate::store::{Catalog, Store};
use crate::turns::Turns;

/// Time that a runner gets to see that it must stop at once: one slice.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// What jobs are made of.
pub struct Parts {
    /// Where they are kept.
    pub store: Arc<Store>,
    /// Where results go.
    pub registry: Arc<Registry>,
    /// Where data comes from.
    pub rows: Arc<dyn Rows>,
    /// What trains.
    pub training: Arc<dyn Training>,
    /// What audits.
    pub auditing: Arc<dyn Auditing>,
    /// Where reports go.
    pub reports: Arc<Reports>,
    /// Shares the device with requests.
    pub turns: Arc<Turns>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Limits.
    pub settings: JobsSettings,
}

/// Events of a job from some point on.
#[derive(Debug)]
pub struct Events {
    /// Number, time and what happened, in order.
    pub events: Vec<(u64, SystemTime, Event)>,
    /// Whether nothing follows, unless the job is resumed.
    pub finished: bool,
}

/// What is shown to watchers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Rises with every event of any job.
    pub version: u64,
    /// The runner has gone: nothing follows while this process lives.
    pub ended: bool,
}

/// A cheap handle to all jobs; the runner stops when the last one is dropped.
#[derive(Clone)]
pub struct Jobs {
    owner: Arc<Owner>,
}

struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.halted.store(true, Ordering::Release);
        self.0.signal(|signals| signals.draining = true);
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("settings", &self.owner.0.parts.settings).finish_non_exhaustive()
    }
}

/// What callers tell the runner.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// There may be a job to take.
    pub(super) wake: bool,
    /// No further step is to begin.
    pub(super) draining: bool,
    /// The job that is worked on, and the flag that ends it.
    pub(super) current: Option<(JobId, Arc<AtomicBool>)>,
}

/// What handles and runner share.
pub(super) struct Inner {
    pub(super) parts: Parts,
    /// Nothing more is to be computed.
    pub(super) halted: AtomicBool,
    pub(super) signals: Mutex<Signals>,
    pub(super) signalled: Condvar,
    pub(super) shown: watch::Sender<Shown>,
}

impl Jobs {
    /// Starts the runner, which goes on with what a former process left.
    ///
    /// # Errors
    /// When the store fails.
    pub fn start(parts: Parts) -> Result<Self, JobsError> {
        let inner = Arc::new(Inner {
            parts,
            halted: AtomicBool::new(false),
            signals: Mutex::default(),
            signalled: Condvar::new(),
            shown: watch::Sender::new(Shown::default()),
        });
        inner.count()?;
        for kind in JobKind::ALL {
            for outcome in [State::Succeeded, State::Failed, State::Cancelled] {
                // A series that exists from the start can be watched for its first rise.
                inner.parts.metrics.jobs_finished.with_label_values(&[kind.as_str(), outcome.as_str()]);
            }
        }
        let theirs = Arc::clone(&inner);
        let thread = std::thread::Builder::new().name("jobs".into()).spawn(move || runner::run(&theirs));
        if let Err(error) = thread {
            // Jobs are taken and kept; the next process runs them.
            tracing::error!(%error, "cannot start the thread of jobs");
            inner.shown.send_modify(|shown| shown.ended = true);
        }
        Ok(Self { owner: Arc::new(Owner(inner)) })
    }

    /// Makes a fine-tuning job.
    ///
    /// # Errors
    /// [`JobsError::DatasetNotFound`], [`JobsError::Conflict`], [`JobsError::QueueFull`]; `RegistryError::BaseNotFound`,
    /// `RegistryError::NameTaken`, `RegistryError::GenerationMismatch`, `RegistryError::RequestIdReused`; when the
    /// disk fails.
    pub fn create(&self, wanted: FineTuning, request: Option<&RequestKey>) -> Result<Job, JobsError> {
        let inner = self.inner();
        if let Some(first) = inner.parts.store.read(|catalog| catalog.answered::<_, JobsError>(request))? {
            return Ok(first);
        }
        let dataset = inner.parts.rows.find(&wanted.dataset)?;
        let base = inner.parts.registry.fingerprint(wanted.base.as_deref())?;
        let mut forgotten = Vec::new();
        let job = inner.parts.store.change_once(request, |catalog| {
            let mut tuning = Tuning {
                adapter: wanted.adapter.to_string(),
                expected: expected_text(&wanted.expected),
                alias: wanted.alias.as_ref().map(Name::to_string),
                pinned: wanted.pinned,
                allow_no_effect: wanted.allow_no_effect,
                settings: wanted.settings,
                expected_checkpoints: Vec::new(),
            };
            check_names(catalog, &wanted.adapter, &wanted.expected, wanted.alias.as_ref())?;
            tuning.expected_checkpoints = check_checkpoints(catalog, &tuning)?;
            let job = new_job(Task::FineTuning(Box::new(tuning)), dataset, base);
            inner.make_room(catalog)?;
            inner.enter(catalog, &job)?;
            forgotten = catalog.forget_jobs(inner.parts.settings.keep_finished)?;
            Ok::<_, JobsError>(job)
        })?;
        tracing::info!(job = %job.id, adapter = job.name(), dataset = job.dataset, "job queued");
        inner.announce();
        inner.wake();
        inner.parts.store.sweep(&forgotten);
        Ok(job)
    }

    /// Returns one job.
    ///
    /// # Errors
    /// [`JobsError::NotFound`]; when the disk fails.
    pub fn get(&self, id: JobId) -> Result<Job, JobsError> {
        self.inner().parts.store.read(|catalog| Ok(stored(catalog, id)?.1))
    }

    /// Returns at most `limit` jobs made before `before`, newest first; of one state if one is given.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn list(&self, before: Option<&str>, state: Option<State>, limit: usize) -> Result<Vec<Job>, JobsError> {
        self.inner().parts.store.read(|catalog| {
            let rows = catalog.jobs(before, state.map(State::as_str), limit)?;
            rows.iter().map(|row| Ok(parse(row)?)).collect()
        })
    }

    /// Returns at most `limit` events of a job after the one numbered `after`; 0 is before the first.
    ///
    /// # Errors
    /// [`JobsError::NotFound`]; [`JobsError::Event`] when there is no event `after`; when the disk fails.
    pub fn events(&self, id: JobId, after: u64, limit: usize) -> Result<Events, JobsError> {
        self.inner().parts.store.read(|catalog| {
            let (_, job) = stored(catalog, id)?;
            let id = id.to_string();
            let last = catalog.last_event(&id)?;
            if after > last {
                return Err(JobsError::Event);
            }
            let mut events = Vec::new();
            for row in catalog.events(&id, after, limit)? {
                let event = serde_json::from_str(&row.event).map_err(|_| corrupt(&id))?;
                events.push((row.number, time(row.time), event));
            }
            let seen = events.last().map_or(after, |(number, ..)| *number);
            Ok(Events { events, finished: job.state.is_finished() && seen == last })
        })
    }

    /// Tells when there is something new to see.
    pub fn shown(&self) -> watch::Receiver<Shown> {
        self.inner().shown.subscribe()
    }

    /// Ends a job: at once while it waits, after the slice that is being computed when it runs. With an audit end the
    /// jobs that were made for it.
    ///
    /// A job whose result is being published may succeed all the same.
    ///
    /// # Errors
    /// [`JobsError::NotFound`], [`JobsError::Finished`], `RegistryError::RequestIdReused`; when the disk fails.
    pub fn cancel(&self, id: JobId, request: Option<&RequestKey>) -> Result<Job, JobsError> {
        let inner = self.inner();
        let mut ending = Vec::new();
        let job = inner.parts.store.change_once(request, |catalog| {
            let job = inner.end(catalog, id, &mut ending)?;
            for child in job.children() {
                // The audit may have been waiting for one that has ended, or is forgotten.
                match inner.end(catalog, *child, &mut ending) {
                    Ok(_) | Err(JobsError::Finished(_) | JobsError::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok::<_, JobsError>(job)
        })?;
        tracing::info!(job = %id, "job is to end");
        inner.announce();
        inner.signal(|signals| {
            if let Some((current, cancelled)) = &signals.current
                && ending.contains(current)
            {
                cancelled.store(true, Ordering::Release);
            }
        });
        Ok(job)
    }

    /// Puts a job that failed or was cancelled back into the queue, to go on from its checkpoint; with an audit, and before
    /// it, the jobs that were made for it and have not succeeded.
    ///
    /// # Errors
    /// [`JobsError::NotFound`], [`JobsError::NotResumable`], [`JobsError::Conflict`], [`JobsError::QueueFull`],
    /// [`JobsError::DatasetNotFound`] and `RegistryError::AdapterNotFound` when what it needs has been deleted,
    /// `RegistryError::RequestIdReused`; when the disk fails.
    pub fn resume(&self, id: JobId, request: Option<&RequestKey>) -> Result<Job, JobsError> {
        let inner = self.inner();
        let mut orphans = Vec::new();
        let job = inner.parts.store.change_once(request, |catalog| {
            let (_, mut job) = stored(catalog, id)?;
            if !job.is_resumable() {
                let without = job.state.is_finished() && job.state != State::Succeeded;
                let why =
                    if without { "has no checkpoint: make a new job" } else { "was neither cancelled nor failed" };
                return Err(JobsError::NotResumable(format!("job {id} {why}")));
            }
            inner.make_room(catalog)?;
            for child in job.children() {
                inner.resume_child(catalog, (id, *child), &mut orphans)?;
            }
            again(&mut job);
            inner.enter(catalog, &job)?;
            Ok::<_, JobsError>(job)
        })?;
        tracing::info!(job = %id, "job resumed");
        inner.announce();
        inner.wake();
        inner.parts.store.sweep(&orphans);
        Ok(job)
    }

    /// Lets the running job write a checkpoint after its step, and returns when the runner has stopped; what is not
    /// done after `grace` is given up, and computed again by the next process.
    pub async fn drain(&self, grace: Duration) {
        let inner = self.inner();
        inner.signal(|signals| signals.draining = true);
        let mut shown = self.shown();
        let in_time = tokio::time::timeout(grace, shown.wait_for(|shown| shown.ended)).await.is_ok();
        if !in_time {
            inner.halted.store(true, Ordering::Release);
            if tokio::time::timeout(LAST_GRACE, shown.wait_for(|shown| shown.ended)).await.is_err() {
                tracing::warn!("a job did not stop in time");
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn is_draining(&self) -> bool {
        self.inner().lock().draining
    }

    #[cfg(test)]
    pub(super) fn is_halted(&self) -> bool {
        self.inner().halted.load(Ordering::Acquire)
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.owner.0
    }
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, Signals> {
        // Every change of it is complete within one statement.
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that there may be a job to take.
    pub(super) fn wake(&self) {
        self.signal(|signals| signals.wake = true);
    }

    fn signal(&self, change: impl FnOnce(&mut Signals)) {
        change(&mut self.lock());
        self.signalled.notify_all();
    }

    /// Ends one job, or says that it is to end and adds it to `ending`.
    fn end(&self, catalog: &Catalog<'_>, id: JobId, ending: &mut Vec<JobId>) -> Result<Job, JobsError> {
        let (mut row, mut job) = stored(catalog, id)?;
        match job.state {
            State::Queued => {
                job.state = State::Cancelled;
                job.ended = Some(SystemTime::now());
                write(catalog, &mut row, &job)?;
                add(catalog, &job.id, &Event::Job(Box::new(job.clone())))?;
                self.count_end(&job);
            }
            State::Running => {
                job.cancelling = true;
                write(catalog, &mut row, &job)?;
                ending.push(id);
            }
            State::Succeeded | State::Failed | State::Cancelled => return Err(JobsError::Finished(job.state)),
        }
        Ok(job)
    }

    /// Counts a job that has ended.
    pub(super) fn count_end(&self, job: &Job) {
        let labels = [job.kind().as_str(), job.state.as_str()];
        self.parts.metrics.jobs_finished.with_label_values(&labels).inc();
    }

    /// Tells watchers and metrics that rows have changed.
    pub(super) fn announce(&self) {
        if let Err(error) = self.count() {
            tracing::warn!(%error, "jobs could not be counted");
        }
        self.shown.send_modify(|shown| shown.version += 1);
    }

    fn count(&self) -> Result<(), JobsError> {
        let states = self.parts.store.read(|catalog| catalog.job_states())?;
        for kind in JobKind::ALL {
            for state in [State::Queued, State::Running] {
                let labels = [kind.as_str(), state.as_str()];
                let found = states.iter().find(|(kind, state, _)| [kind.as_str(), state.as_str()] == labels);
                let count = found.map_or(0, |(_, _, count)| *count);
                let gauge = self.parts.metrics.jobs.with_label_values(&labels);
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        Ok(())
    }
}
