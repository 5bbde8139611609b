//! The rows of jobs and of what happened in them, inside one transaction.
//!
//! A job's record is JSON that is not read here; beside it stand the columns that rows are found by. Events of a job are
//! numbered from 1 without a gap. Writes what it is told: which change of state is allowed is for `jobs` to say.

use rusqlite::{OptionalExtension, Row, params};

use super::{Catalog, StoreError};

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// Id; ids sort by the time they were made.
    pub id: String,
    /// `fine_tuning` or `audit`.
    pub kind: String,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    pub state: String,
    /// Name of what it makes.
    pub name: String,
    /// Name that the adapter it makes takes; empty: it makes none.
    pub adapter: String,
    /// Alias that is set to its result.
    pub alias: Option<String>,
    /// Id of its data set.
    pub dataset: String,
    /// Digest of its newest checkpoint.
    pub checkpoint: Option<String>,
    /// Audit that it was made for.
    pub parent: Option<String>,
    /// Its place in the queue.
    pub place: i64,
    /// Everything, JSON.
    pub record: String,
}

/// Something that happened in a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Number, from 1.
    pub number: u64,
    /// When, microseconds since 1970.
    pub time: i64,
    /// What, JSON.
    pub event: String,
}

const JOB: &str = "id, state, adapter, alias, dataset, checkpoint, place, record, kind, parent, name";
const UNFINISHED: &str = "state IN ('queued', 'running')";

impl Catalog<'_> {
    /// Returns a job.
    ///
    /// # Errors
    /// When the database fails, here and below.
    pub fn job(&self, id: &str) -> Result<Option<JobRow>, StoreError> {
        let sql = format!("SELECT {JOB} FROM jobs WHERE id = ?1");
        Ok(self.rows().prepare_cached(&sql)?.query_row([id], job).optional()?)
    }

    /// Returns at most `limit` jobs older than `before`, newest first; of one state if one is given.
    pub fn jobs(&self, before: Option<&str>, state: Option<&str>, limit: usize) -> Result<Vec<JobRow>, StoreError> {
        let sql = format!(
            "SELECT {JOB} FROM jobs WHERE (?1 IS NULL OR id < ?1) AND (?2 IS NULL OR state = ?2) ORDER BY id DESC LIMIT ?3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows =
            self.rows().prepare_cached(&sql)?.query_map(params![before, state, limit], job)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Returns the job to work on: one that runs, else the first of the queue none of whose children is unfinished.
    pub fn next_job(&self) -> Result<Option<JobRow>, StoreError> {
        let sql = format!(
            "SELECT {JOB} FROM jobs WHERE {UNFINISHED} AND id NOT IN
                (SELECT parent FROM jobs WHERE {UNFINISHED} AND parent IS NOT NULL)
             ORDER BY state = 'queued', place LIMIT 1"
        );
        Ok(self.rows().prepare_cached(&sql)?.query_row([], job).optional()?)
    }

    /// Returns an unfinished job whose result will take one of these names.
    pub fn job_of_name(&self, adapter: &str, alias: Option<&str>) -> Result<Option<String>, StoreError> {
        let sql =
            format!("SELECT id FROM jobs WHERE {UNFINISHED} AND (adapter IN (?1, ?2) OR alias IN (?1, ?2)) LIMIT 1");
        Ok(self.rows().prepare_cached(&sql)?.query_row(params![adapter, alias], |row| row.get(0)).optional()?)
    }

    /// Returns an unfinished audit whose report will take this name.
    pub fn audit_of_name(&self, name: &str) -> Result<Option<String>, StoreError> {
        let sql = format!("SELECT id FROM jobs WHERE {UNFINISHED} AND kind = 'audit' AND name = ?1 LIMIT 1");
        Ok(self.rows().prepare_cached(&sql)?.query_row([name], |row| row.get(0)).optional()?)
    }

    /// Returns an unfinished job that reads this data set.
    pub fn job_of_dataset(&self, dataset: &str) -> Result<Option<String>, StoreError> {
        let sql = format!("SELECT id FROM jobs WHERE {UNFINISHED} AND dataset = ?1 LIMIT 1");
        Ok(self.rows().prepare_cached(&sql)?.query_row([dataset], |row| row.get(0)).optional()?)
    }

    /// Counts the jobs of each kind and state.
    pub fn job_states(&self) -> Result<Vec<(String, String, u64)>, StoreError> {
        let sql = "SELECT kind, state, count(*) FROM jobs GROUP BY kind, state";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0)));
        let rows = self.rows().prepare_cached(sql)?.query_map([], read)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Counts the jobs that wait and were not made for another.
    pub fn waiting_jobs(&self) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM jobs WHERE state = 'queued' AND parent IS NULL";
        let count: i64 = self.rows().prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Returns the place behind all others in the queue.
    pub fn last_place(&self) -> Result<i64, StoreError> {
        let sql = "SELECT coalesce(max(place), 0) + 1 FROM jobs";
        Ok(self.rows().prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    /// Writes a job; one of the same id is replaced, its events stay.
    pub fn put_job(&self, row: &JobRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO jobs (id, state, adapter, alias, dataset, checkpoint, place, record, kind, parent, name)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
            ON CONFLICT (id) DO UPDATE SET
                state = excluded.state, adapter = excluded.adapter, alias = excluded.alias, dataset = excluded.dataset,
                checkpoint = excluded.checkpoint, place = excluded.place, record = excluded.record";
        self.rows().prepare_cached(sql)?.execute(params![
            row.id,
            row.state,
            row.adapter,
            row.alias,
            row.dataset,
            row.checkpoint,
            row.place,
            row.record,
            row.kind,
            row.parent,
            row.name
        ])?;
        Ok(())
    }

    /// Removes the oldest finished jobs with their events until `keep` are left; returns their checkpoints. Those that
    /// were made for another go with it and do not count.
    pub fn forget_jobs(&self, keep: usize) -> Result<Vec<String>, StoreError> {
        let sql = format!(
            "WITH old AS (SELECT id FROM jobs WHERE NOT {UNFINISHED} AND parent IS NULL ORDER BY id DESC LIMIT -1 OFFSET ?1)
             SELECT id, checkpoint FROM jobs WHERE NOT {UNFINISHED} AND (id IN old OR parent IN old)"
        );
        let keep = i64::try_from(keep).unwrap_or(i64::MAX);
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let old: Vec<(String, Option<String>)> =
            self.rows().prepare_cached(&sql)?.query_map([keep], read)?.collect::<Result<_, _>>()?;
        let mut checkpoints = Vec::new();
        for (id, checkpoint) in old {
            self.release_datasets(&id)?;
            self.release_generations(&id)?;
            self.rows().prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([id])?;
            checkpoints.extend(checkpoint);
        }
        Ok(checkpoints)
    }

    /// Adds an event to a job and returns its number.
    pub fn add_event(&self, job: &str, time: i64, event: &str) -> Result<u64, StoreError> {
        let sql = "INSERT INTO job_events (job, number, time, event)
            VALUES (?1, (SELECT coalesce(max(number), 0) + 1 FROM job_events WHERE job = ?1), ?2, ?3) RETURNING number";
        let number: i64 = self.rows().prepare_cached(sql)?.query_row(params![job, time, event], |row| row.get(0))?;
        Ok(u64::try_from(number).unwrap_or(0))
    }

    /// Removes the events of a job up to a number.
    pub fn forget_events(&self, job: &str, up_to: u64) -> Result<(), StoreError> {
        let sql = "DELETE FROM job_events WHERE job = ?1 AND number <= ?2";
        self.rows().prepare_cached(sql)?.execute(params![job, signed(up_to)])?;
        Ok(())
    }

    /// Returns at most `limit` events of a job after a number, in order.
    pub fn events(&self, job: &str, after: u64, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        let sql = "SELECT number, time, event FROM job_events WHERE job = ?1 AND number > ?2 ORDER BY number LIMIT ?3";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = |row: &Row<'_>| {
            let number = u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0);
            Ok(EventRow { number, time: row.get(1)?, event: row.get(2)? })
        };
        let rows = self
            .rows()
            .prepare_cached(sql)?
            .query_map(params![job, signed(after), limit], read)?
            .collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Returns the number of the last event of a job; 0 when there is none.
    pub fn last_event(&self, job: &str) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce(max(number), 0) FROM job_events WHERE job = ?1";
        let number: i64 = self.rows().prepare_cached(sql)?.query_row([job], |row| row.get(0))?;
        Ok(u64::try_from(number).unwrap_or(0))
    }
}

/// SQLite's integers are signed; no job has 2^63 events.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn job(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    Ok(JobRow {
        id: row.get(0)?,
        state: row.get(1)?,
        adapter: row.get(2)?,
        alias: row.get(3)?,
        dataset: row.get(4)?,
        checkpoint: row.get(5)?,
        place: row.get(6)?,
        record: row.get(7)?,
        kind: row.get(8)?,
        parent: row.get(9)?,
        name: row.get(10)?,
    })
}
