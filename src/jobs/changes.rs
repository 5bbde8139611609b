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

use super::runner;
use super::{Event, FineTuning, Job, JobId, JobsError, Rows, State, Training, expected_text};
use crate::config::JobsSettings;
use crate::metrics::Metrics;
use crate::registry::{Expected, Name, Registry, RegistryError, RequestKey, compare};
use crate::store::{Catalog, JobRow, Store, StoreError};
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
    /// What computes.
    pub training: Arc<dyn Training>,
    /// Shares the device with requests.
    pub turns: Arc<Turns>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Limits.
    pub settings: JobsSettings,
    /// Fingerprint of the base model.
    pub base: String,
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
        for outcome in [State::Succeeded, State::Failed, State::Cancelled] {
            // A series that exists from the start can be watched for its first rise.
            inner.parts.metrics.jobs_finished.with_label_values(&[outcome.as_str()]);
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
    /// [`JobsError::DatasetNotFound`], [`JobsError::Conflict`], [`JobsError::QueueFull`]; [`RegistryError::NameTaken`],
    /// [`RegistryError::GenerationMismatch`], [`RegistryError::RequestIdReused`]; when the disk fails.
    pub fn create(&self, wanted: FineTuning, request: Option<&RequestKey>) -> Result<Job, JobsError> {
        let inner = self.inner();
        if let Some(first) = inner.parts.store.read(|catalog| catalog.answered::<_, JobsError>(request))? {
            return Ok(first);
        }
        let dataset = inner.parts.rows.find(&wanted.dataset)?;
        let mut forgotten = Vec::new();
        let job = inner.parts.store.change_once(request, |catalog| {
            let job = Job {
                id: JobId::new(),
                state: State::Queued,
                cancelling: false,
                adapter: wanted.adapter.to_string(),
                expected: expected_text(&wanted.expected),
                alias: wanted.alias.as_ref().map(Name::to_string),
                pinned: wanted.pinned,
                allow_no_effect: wanted.allow_no_effect,
                dataset,
                base: inner.parts.base.clone(),
                settings: wanted.settings,
                created: SystemTime::now(),
                started: None,
                ended: None,
                last: None,
                checkpoint: None,
                made: None,
                failure: None,
            };
            check_names(catalog, &wanted.adapter, &wanted.expected, wanted.alias.as_ref())?;
            inner.enter(catalog, &job)?;
            inner.parts.rows.hold(catalog, &job.dataset, &job.id.to_string())?;
            forgotten = catalog.forget_jobs(inner.parts.settings.keep_finished)?;
            Ok::<_, JobsError>(job)
        })?;
        inner.parts.store.naming().sweep(&forgotten);
        tracing::info!(job = %job.id, adapter = job.adapter, dataset = job.dataset, "job queued");
        inner.announce();
        inner.signal(|signals| signals.wake = true);
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

    /// Ends a job: at once while it waits, after the slice that is being computed when it runs.
    ///
    /// A job whose result is being published may succeed all the same.
    ///
    /// # Errors
    /// [`JobsError::NotFound`], [`JobsError::Finished`], [`RegistryError::RequestIdReused`]; when the disk fails.
    pub fn cancel(&self, id: JobId, request: Option<&RequestKey>) -> Result<Job, JobsError> {
        let inner = self.inner();
        let job = inner.parts.store.change_once(request, |catalog| {
            let (mut row, mut job) = stored(catalog, id)?;
            match job.state {
                State::Queued => {
                    job.state = State::Cancelled;
                    job.ended = Some(SystemTime::now());
                    write(catalog, &mut row, &job)?;
                    add(catalog, &job.id, &Event::Job(Box::new(job.clone())))?;
                    inner.parts.metrics.jobs_finished.with_label_values(&[job.state.as_str()]).inc();
                }
                State::Running => {
                    job.cancelling = true;
                    write(catalog, &mut row, &job)?;
                }
                State::Succeeded | State::Failed | State::Cancelled => return Err(JobsError::Finished(job.state)),
            }
            Ok::<_, JobsError>(job)
        })?;
        tracing::info!(job = %id, "job is to end");
        inner.announce();
        inner.signal(|signals| {
            if let Some((current, cancelled)) = &signals.current
                && *current == id
            {
                cancelled.store(true, Ordering::Release);
            }
        });
        Ok(job)
    }

    /// Puts a job that failed or was cancelled back into the queue, to go on from its checkpoint.
    ///
    /// # Errors
    /// [`JobsError::NotFound`], [`JobsError::NotResumable`], [`JobsError::Conflict`], [`JobsError::QueueFull`],
    /// [`RegistryError::RequestIdReused`]; when the disk fails.
    pub fn resume(&self, id: JobId, request: Option<&RequestKey>) -> Result<Job, JobsError> {
        let inner = self.inner();
        let job = inner.parts.store.change_once(request, |catalog| {
            let (_, mut job) = stored(catalog, id)?;
            if !job.is_resumable() {
                let without = job.state.is_finished() && job.state != State::Succeeded;
                let why =
                    if without { "has no checkpoint: make a new job" } else { "was neither cancelled nor failed" };
                return Err(JobsError::NotResumable(format!("job {id} {why}")));
            }
            job.state = State::Queued;
            (job.cancelling, job.ended, job.failure) = (false, None, None);
            inner.enter(catalog, &job)?;
            Ok::<_, JobsError>(job)
        })?;
        tracing::info!(job = %id, "job resumed");
        inner.announce();
        inner.signal(|signals| signals.wake = true);
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

    fn inner(&self) -> &Inner {
        &self.owner.0
    }
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, Signals> {
        // Every change of it is complete within one statement.
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, change: impl FnOnce(&mut Signals)) {
        change(&mut self.lock());
        self.signalled.notify_all();
    }

    /// Puts a job at the end of the queue, if there is room and nobody else makes its names.
    fn enter(&self, catalog: &Catalog<'_>, job: &Job) -> Result<(), JobsError> {
        if let Some(other) = catalog.job_of_name(&job.adapter, job.alias.as_deref())? {
            return Err(JobsError::Conflict(other));
        }
        let limit = self.parts.settings.max_queued;
        let queued = catalog.job_states()?.into_iter().find(|(state, _)| state == State::Queued.as_str());
        if queued.is_some_and(|(_, count)| count >= limit as u64) {
            return Err(JobsError::QueueFull(limit));
        }
        let mut row = JobRow {
            id: job.id.to_string(),
            state: String::new(),
            adapter: job.adapter.clone(),
            alias: job.alias.clone(),
            dataset: job.dataset.clone(),
            checkpoint: None,
            place: catalog.last_place()?,
            record: String::new(),
        };
        write(catalog, &mut row, job)?;
        add(catalog, &job.id, &Event::Job(Box::new(job.clone())))?;
        Ok(())
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
        for state in [State::Queued, State::Running] {
            let count = states.iter().find(|(name, _)| name == state.as_str()).map_or(0, |(_, count)| *count);
            let gauge = self.parts.metrics.jobs.with_label_values(&[state.as_str()]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        Ok(())
    }
}

/// Refuses what could not be published now, before hours are spent on it.
fn check_names(
    catalog: &Catalog<'_>,
    adapter: &Name,
    expected: &Expected,
    alias: Option<&Name>,
) -> Result<(), RegistryError> {
    if catalog.alias(adapter.as_str())?.is_some() {
        return Err(RegistryError::NameTaken(adapter.to_string(), "an alias"));
    }
    if let Some(alias) = alias
        && catalog.adapter(alias.as_str())?.is_some()
    {
        return Err(RegistryError::NameTaken(alias.to_string(), "an adapter"));
    }
    let current = catalog.adapter(adapter.as_str())?.map(|row| row.current);
    compare(adapter, expected, current.as_deref())
}

/// Reads a job's row and what it says.
pub(super) fn stored(catalog: &Catalog<'_>, id: JobId) -> Result<(JobRow, Job), JobsError> {
    let row = catalog.job(&id.to_string())?.ok_or_else(|| JobsError::NotFound(id.to_string()))?;
    let job = parse(&row)?;
    Ok((row, job))
}

pub(super) fn parse(row: &JobRow) -> Result<Job, StoreError> {
    serde_json::from_str(&row.record).map_err(|_| corrupt(&row.id))
}

/// Writes a job; names and data set never change.
pub(super) fn write(catalog: &Catalog<'_>, row: &mut JobRow, job: &Job) -> Result<(), StoreError> {
    row.state = job.state.as_str().to_owned();
    row.checkpoint = job.checkpoint.as_ref().map(|checkpoint| checkpoint.blob.clone());
    row.record = serde_json::to_string(job).map_err(unwritable)?;
    if job.state.is_finished() && !job.is_resumable() {
        catalog.release_datasets(&row.id)?;
    }
    catalog.put_job(row)
}

/// Adds an event and returns its number.
pub(super) fn add(catalog: &Catalog<'_>, id: &JobId, event: &Event) -> Result<u64, StoreError> {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
    catalog.add_event(&id.to_string(), now, &serde_json::to_string(event).map_err(unwritable)?)
}

fn corrupt(id: &str) -> StoreError {
    StoreError::Corrupt(format!("the record of job {id}"))
}

fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::Io { path: "evenkeel.db".into(), source: error.into() }
}

fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
