//! The queue: what is new or comes back goes in behind all others, if there is room and nobody makes its names.
//!
//! Runs nothing. All within the caller's transaction.

use std::time::SystemTime;

use super::changes::Inner;
use super::names::rival;
use super::rows::{add, behind_all, stored, write};
use super::{Event, Job, JobId, JobsError, Made, ModelSource, State, Task};
use crate::registry::RegistryError;
use crate::store::{Catalog, StoreError};

impl Inner {
    /// Refuses one more job that waits; those that are made for another do not count.
    pub(super) fn make_room(&self, catalog: &Catalog<'_>) -> Result<(), JobsError> {
        let limit = self.parts.settings.max_queued;
        if catalog.waiting_jobs()? >= limit as u64 { Err(JobsError::QueueFull(limit)) } else { Ok(()) }
    }

    /// Puts a job at the end of the queue, if nobody else makes its names, and keeps what it needs from being deleted.
    pub(super) fn enter(&self, catalog: &Catalog<'_>, job: &Job) -> Result<(), JobsError> {
        let other = match &job.task {
            Task::FineTuning(tuning) => rival(catalog, tuning)?,
            Task::Audit { audit } => catalog.audit_of_name(&audit.name)?,
        };
        if let Some(other) = other {
            return Err(JobsError::Conflict(other));
        }
        let holder = job.id.to_string();
        self.parts.rows.hold(catalog, &job.dataset, &holder)?;
        if let Task::Audit { audit } = &job.task {
            for model in &audit.models {
                let ModelSource::Stored { adapter, generation } = &model.source else { continue };
                if catalog.generation(adapter, generation)?.is_none() {
                    return Err(RegistryError::AdapterNotFound(format!("{adapter}@{generation}")).into());
                }
                catalog.hold_generation(adapter, generation, &holder)?;
            }
        }
        let mut row = behind_all(catalog, job)?;
        write(catalog, &mut row, job)?;
        add(catalog, &job.id, &Event::Job(Box::new(job.clone())))?;
        Ok(())
    }

    /// Puts what was made for an audit back into the queue, unless it has succeeded and all that it has published is still
    /// there. What it does not go on from any more is added to `orphans`.
    pub(super) fn resume_child(
        &self,
        catalog: &Catalog<'_>,
        (audit, child): (JobId, JobId),
        orphans: &mut Vec<String>,
    ) -> Result<(), JobsError> {
        let mut job = match stored(catalog, child) {
            Ok((_, job)) => job,
            Err(JobsError::NotFound(id)) => {
                return Err(JobsError::NotResumable(format!("job {id}, made for it, is forgotten")));
            }
            Err(error) => return Err(error),
        };
        match job.state {
            State::Queued => return Ok(()),
            State::Running if job.cancelling => {
                return Err(JobsError::NotResumable(format!("job {child}, made for it, has not ended yet")));
            }
            State::Running => return Ok(()),
            State::Succeeded => {
                let lost = forget_deleted(catalog, &mut job)?;
                hold(catalog, &job, audit)?;
                if !lost {
                    return Ok(());
                }
                // Without it, the job would be taken for done.
                job.made = None;
            }
            State::Failed | State::Cancelled => {
                if forget_deleted(catalog, &mut job)? {
                    // It is behind the steps that have to be done again.
                    orphans.extend(job.checkpoint.take().map(|checkpoint| checkpoint.blob));
                }
                hold(catalog, &job, audit)?;
            }
        }
        again(&mut job);
        self.enter(catalog, &job)
    }
}

/// Returns a job that waits; `base` is the fingerprint of its base model.
pub(super) fn new_job(task: Task, dataset: String, base: String) -> Job {
    Job {
        id: JobId::new(),
        state: State::Queued,
        cancelling: false,
        task,
        dataset,
        base,
        parent: None,
        created: SystemTime::now(),
        started: None,
        ended: None,
        last: None,
        audited: None,
        checkpoint: None,
        made: None,
        published: Vec::new(),
        failure: None,
    }
}

/// Sets a job back to where it waits.
pub(super) fn again(job: &mut Job) {
    job.state = State::Queued;
    (job.cancelling, job.ended, job.failure) = (false, None, None);
}

/// Keeps what a job has published for the audit that it was made for.
fn hold(catalog: &Catalog<'_>, job: &Job, audit: JobId) -> Result<(), StoreError> {
    for (adapter, generation) in job.generations() {
        catalog.hold_generation(adapter, generation, &audit.to_string())?;
    }
    Ok(())
}

/// Forgets generations of a job that somebody has deleted since; returns whether there were any.
fn forget_deleted(catalog: &Catalog<'_>, job: &mut Job) -> Result<bool, StoreError> {
    let mut gone = Vec::new();
    for (adapter, generation) in job.generations() {
        if catalog.generation(adapter, generation)?.is_none() {
            gone.push(adapter.to_owned());
        }
    }
    job.published.retain(|kept| !gone.contains(&kept.adapter));
    if let Some(Made::Generation { adapter, .. }) = &job.made
        && gone.contains(adapter)
    {
        job.made = None;
    }
    Ok(!gone.is_empty())
}
