//! Jobs as rows: read, written, with what a state means for what a job keeps for itself.
//!
//! Decides no change of state. All within the caller's transaction.

use std::time::{Duration, SystemTime};

use super::{Event, Job, JobId, JobsError, State, Task};
use crate::store::{Catalog, JobRow, StoreError, now, unwritable};

/// Reads a job's row and what it says.
pub(super) fn stored(catalog: &Catalog<'_>, id: JobId) -> Result<(JobRow, Job), JobsError> {
    let row = catalog.job(&id.to_string())?.ok_or_else(|| JobsError::NotFound(id.to_string()))?;
    let job = parse(&row)?;
    Ok((row, job))
}

pub(super) fn parse(row: &JobRow) -> Result<Job, StoreError> {
    serde_json::from_str(&row.record).map_err(|_| corrupt(&row.id))
}

/// Makes the row of a job that is new or comes back to the queue, behind all others.
pub(super) fn behind_all(catalog: &Catalog<'_>, job: &Job) -> Result<JobRow, StoreError> {
    let (adapter, alias) = match &job.task {
        Task::FineTuning(tuning) => (tuning.adapter.clone(), tuning.alias.clone()),
        Task::Audit { .. } => (String::new(), None),
    };
    Ok(JobRow {
        id: job.id.to_string(),
        kind: job.kind().as_str().to_owned(),
        state: String::new(),
        name: job.name().to_owned(),
        adapter,
        alias,
        dataset: job.dataset.clone(),
        checkpoint: None,
        parent: job.parent.map(String::from),
        place: catalog.last_place()?,
        record: String::new(),
    })
}

/// Writes a job; names, data set and parent never change. One that has ended lets go of what it keeps: adapters at once,
/// its data set when it cannot go on from a checkpoint. What it has published is kept for the audit that it was made for.
pub(super) fn write(catalog: &Catalog<'_>, row: &mut JobRow, job: &Job) -> Result<(), StoreError> {
    row.state = job.state.as_str().to_owned();
    row.checkpoint = job.checkpoint.as_ref().map(|checkpoint| checkpoint.blob.clone());
    row.record = serde_json::to_string(job).map_err(unwritable)?;
    if job.state.is_finished() {
        catalog.release_generations(&row.id)?;
        if !job.is_resumable() || job.checkpoint.is_none() {
            catalog.release_datasets(&row.id)?;
        }
    }
    catalog.put_job(row)?;
    hold_for_parent(catalog, job)
}

fn hold_for_parent(catalog: &Catalog<'_>, job: &Job) -> Result<(), StoreError> {
    let published = job.generations();
    let Some(parent) = job.parent.filter(|_| !published.is_empty()).map(String::from) else { return Ok(()) };
    let unfinished = |row: JobRow| [State::Queued, State::Running].iter().any(|state| state.as_str() == row.state);
    if catalog.job(&parent)?.is_some_and(unfinished) {
        for (adapter, generation) in published {
            if catalog.generation(adapter, generation)?.is_some() {
                catalog.hold_generation(adapter, generation, &parent)?;
            }
        }
    }
    Ok(())
}

/// Adds an event and returns its number.
pub(super) fn add(catalog: &Catalog<'_>, id: &JobId, event: &Event) -> Result<u64, StoreError> {
    catalog.add_event(&id.to_string(), now(), &serde_json::to_string(event).map_err(unwritable)?)
}

pub(super) fn corrupt(id: &str) -> StoreError {
    StoreError::Corrupt(format!("the record of job {id}"))
}

pub(super) fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
