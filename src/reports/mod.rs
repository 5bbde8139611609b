//! Reports of audits and the policies they are measured by: kept, found again, shown as metrics.
//!
//! Audits nothing: a report comes whole, and its id is the digest of its canonical JSON. A report is on the disk before
//! it is acknowledged. `gate` decides whether an alias may point to a generation.
//! Methods block on the disk. Times are the system's.

mod gate;
mod shown;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::audit::policy::{Like, Policy};
use crate::audit::report::Report;
use crate::config::AuditSettings;
use crate::metrics::Metrics;
use crate::store::{Name, ReportRow, RequestIdReused, RequestKey, Store, StoreError, now, unwritable};

pub use gate::{GateError, gate, show_gate};

/// What is known of a report without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Digest of its canonical JSON, hexadecimal.
    pub id: String,
    /// Name of the audit.
    pub name: String,
    /// Job that made it; none for uploaded scores.
    pub job: Option<String>,
    /// When it was made.
    pub created: SystemTime,
    /// Id of the data set.
    pub dataset: String,
    /// Names of its models.
    pub models: Vec<String>,
    /// Adapters and generations among them.
    pub generations: Vec<(String, String)>,
}

/// A policy as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredPolicy {
    /// Name and rules.
    pub policy: Policy,
    /// Name of the audits whose newest report counts; none: the newest of any name.
    pub audit: Option<String>,
    /// Name or id of the data set that the report has to be on; none: any.
    #[serde(default)]
    pub dataset: Option<String>,
    /// Longest age of the report; none: any.
    pub max_age: Option<Duration>,
    /// When it was made.
    pub created: SystemTime,
}

/// Why the room refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum ReportsError {
    /// No report of this id or name.
    #[error("there is no report `{0}`")]
    ReportNotFound(String),
    /// No such policy.
    #[error("there is no policy `{0}`")]
    PolicyNotFound(String),
    /// The name of a policy is taken.
    #[error("there is a policy `{0}` already")]
    PolicyExists(String),
    /// Aliases demand the policy.
    #[error("policy `{name}` is demanded by {}", .aliases.join(", "))]
    PolicyInUse {
        /// Its name.
        name: String,
        /// Aliases.
        aliases: Vec<String>,
    },
    /// The request id was used for another request.
    #[error(transparent)]
    RequestIdReused(#[from] RequestIdReused),
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All reports and policies.
#[derive(Debug)]
pub struct Reports {
    store: Arc<Store>,
    settings: AuditSettings,
    metrics: Arc<Metrics>,
}

impl Reports {
    /// Opens the reports of a store and shows the newest ones as metrics again.
    ///
    /// # Errors
    /// When the store fails.
    pub fn open(store: Arc<Store>, settings: AuditSettings, metrics: Arc<Metrics>) -> Result<Self, ReportsError> {
        let reports = Self { store, settings, metrics };
        reports.show_all()?;
        Ok(reports)
    }

    /// Keeps a report under the name of an audit; the same one again becomes the newest.
    ///
    /// # Errors
    /// [`ReportsError::RequestIdReused`]; when the store fails.
    pub fn put(
        &self,
        name: &Name,
        job: Option<&str>,
        report: &Report,
        request: Option<&RequestKey>,
    ) -> Result<Summary, ReportsError> {
        let bytes = report.canonical().map_err(unwritable)?;
        let naming = self.store.naming();
        let id = self.store.blobs().put(bytes)?;
        let mut orphans = vec![id.clone()];
        let mut touched = BTreeSet::new();
        let kept = self.store.change_once(request, |catalog| {
            let summary = summary(id, name, job, report);
            let row = ReportRow {
                place: 0,
                id: summary.id.clone(),
                name: name.to_string(),
                created: now(),
                summary: serde_json::to_string(&summary).map_err(unwritable)?,
            };
            catalog.put_report(&row, &summary.generations)?;
            touched.extend(catalog.adapters_to_forget(self.settings.keep_reports)?);
            touched.extend(summary.generations.iter().map(|(adapter, _)| adapter.clone()));
            orphans.extend(catalog.forget_reports(self.settings.keep_reports)?);
            Ok::<_, ReportsError>(summary)
        });
        naming.sweep(&orphans);
        let summary = kept?;
        self.show(&summary, report, |_| true);
        self.show_gates(&touched)?;
        tracing::info!(audit = %name, report = summary.id, "report kept");
        Ok(summary)
    }

    /// Returns a report with what is known of it, by its id, or the newest of an audit's name.
    ///
    /// # Errors
    /// [`ReportsError::ReportNotFound`]; when the store fails.
    pub fn get(&self, id_or_name: &str) -> Result<(Summary, Report), ReportsError> {
        let row = self.store.read(|catalog| catalog.report(id_or_name))?;
        let row = row.ok_or_else(|| ReportsError::ReportNotFound(id_or_name.to_owned()))?;
        Ok((parse(&row)?, self.read(&row)?))
    }

    /// Returns at most `limit` reports from before a place, newest first, each with its place; on one adapter or of one
    /// name where one is given.
    ///
    /// # Errors
    /// When the store fails.
    pub fn list(
        &self,
        before: Option<i64>,
        adapter: Option<&str>,
        name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(i64, Summary)>, ReportsError> {
        let rows = self.store.read(|catalog| catalog.reports(before, adapter, name, limit))?;
        rows.iter().map(|row| Ok((row.place, parse(row)?))).collect()
    }

    /// Makes a policy; reports have to be like the one that `like` names, by its id or the name of its audit.
    ///
    /// # Errors
    /// [`ReportsError::PolicyExists`], [`ReportsError::ReportNotFound`], [`ReportsError::RequestIdReused`]; when the store
    /// fails.
    pub fn create_policy(
        &self,
        mut policy: StoredPolicy,
        like: Option<&str>,
        request: Option<&RequestKey>,
    ) -> Result<StoredPolicy, ReportsError> {
        self.store.change_once(request, |catalog| {
            let name = policy.policy.name.clone();
            if catalog.policy(&name)?.is_some() {
                return Err(ReportsError::PolicyExists(name));
            }
            if let Some(like) = like {
                let row = catalog.report(like)?.ok_or_else(|| ReportsError::ReportNotFound(like.to_owned()))?;
                let report = self.read(&row)?;
                let (settings, rows) = (report.settings, report.data.sha256);
                policy.policy.demands.like = Some(Like { report: row.id, settings, rows });
            }
            catalog.put_policy(&name, &serde_json::to_string(&policy).map_err(unwritable)?)?;
            Ok(policy)
        })
    }

    /// Returns one policy.
    ///
    /// # Errors
    /// [`ReportsError::PolicyNotFound`]; when the store fails.
    pub fn policy(&self, name: &str) -> Result<StoredPolicy, ReportsError> {
        let record = self.store.read(|catalog| catalog.policy(name))?;
        let record = record.ok_or_else(|| ReportsError::PolicyNotFound(name.to_owned()))?;
        Ok(parse_policy(&record)?)
    }

    /// Returns at most `limit` policies whose name follows `after`, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn policies(&self, after: Option<&str>, limit: usize) -> Result<Vec<StoredPolicy>, ReportsError> {
        let records = self.store.read(|catalog| catalog.policies(after.unwrap_or(""), limit))?;
        records.iter().map(|record| Ok(parse_policy(record)?)).collect()
    }

    /// Deletes a policy.
    ///
    /// # Errors
    /// [`ReportsError::PolicyNotFound`], [`ReportsError::PolicyInUse`], [`ReportsError::RequestIdReused`]; when the store
    /// fails.
    pub fn delete_policy(&self, name: &str, request: Option<&RequestKey>) -> Result<(), ReportsError> {
        self.store.change_once(request, |catalog| {
            if catalog.policy(name)?.is_none() {
                return Err(ReportsError::PolicyNotFound(name.to_owned()));
            }
            let aliases = catalog.aliases_demanding(name)?;
            if !aliases.is_empty() {
                return Err(ReportsError::PolicyInUse { name: name.to_owned(), aliases });
            }
            Ok(catalog.delete_policy(name)?)
        })
    }

    fn read(&self, row: &ReportRow) -> Result<Report, StoreError> {
        let bytes = self.store.blobs().get(&row.id)?;
        serde_json::from_slice(&bytes).map_err(|_| corrupt(&row.id))
    }
}

fn summary(id: String, name: &Name, job: Option<&str>, report: &Report) -> Summary {
    let named = report.models.iter().filter(|model| !model.adapter.is_empty());
    Summary {
        id,
        name: name.to_string(),
        job: job.map(str::to_owned),
        created: SystemTime::now(),
        dataset: report.data.dataset.clone(),
        models: report.models.iter().map(|model| model.name.clone()).collect(),
        generations: named.map(|model| (model.adapter.clone(), model.generation.clone())).collect(),
    }
}

fn parse(row: &ReportRow) -> Result<Summary, StoreError> {
    serde_json::from_str(&row.summary).map_err(|_| corrupt(&row.id))
}

fn parse_policy(record: &str) -> Result<StoredPolicy, StoreError> {
    serde_json::from_str(record).map_err(|_| StoreError::Corrupt("the record of a policy".to_owned()))
}

fn corrupt(id: &str) -> StoreError {
    StoreError::Corrupt(format!("report {id}"))
}
