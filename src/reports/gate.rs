//! Whether a generation of an adapter may become the target of an alias: its newest report against a policy.
//!
//! Runs inside the transaction that moves the alias, and again when there is a newer report. No report is no pass: what
//! was not measured is not known to hold.

use std::time::SystemTime;

use super::{parse, parse_policy};
use crate::audit::policy::evaluate;
use crate::audit::report::Report;
use crate::metrics::{Gate, Metrics};
use crate::store::{Blobs, Catalog, Store, StoreError};

/// Reports on one generation that are looked through for one of the policy's audit.
const LOOK_BACK: usize = 1000;

/// Why an alias may not point there.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No such policy.
    #[error("there is no policy `{0}`")]
    PolicyNotFound(String),
    /// A rule does not hold, or nothing is known.
    #[error("policy `{policy}` does not pass: {}", .reasons.join("; "))]
    Failed {
        /// Its name.
        policy: String,
        /// The report that was looked at; none where there is none.
        report: Option<String>,
        /// One a rule that does not hold.
        reasons: Vec<String>,
    },
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks a generation of an adapter, given as name and id, against a policy. Returns until when it passes, if that is
/// told by the age of the report.
///
/// # Errors
/// [`GateError::PolicyNotFound`], [`GateError::Failed`]; when the store fails.
pub fn gate(
    catalog: &Catalog<'_>,
    blobs: &Blobs,
    policy: &str,
    (adapter, generation): (&str, &str),
) -> Result<Option<SystemTime>, GateError> {
    let record = catalog.policy(policy)?.ok_or_else(|| GateError::PolicyNotFound(policy.to_owned()))?;
    let stored = parse_policy(&record)?;
    let failed = |report: Option<&str>, reasons| {
        Err(GateError::Failed { policy: policy.to_owned(), report: report.map(str::to_owned), reasons })
    };
    let rows = catalog.reports_on(adapter, generation, LOOK_BACK)?;
    let Some(row) = rows.iter().find(|row| stored.audit.as_ref().is_none_or(|audit| *audit == row.name)) else {
        let audit = stored.audit.map_or_else(String::new, |audit| format!(" by audit `{audit}`"));
        return failed(None, vec![format!("there is no report on {adapter}@{generation}{audit}")]);
    };
    let created = parse(row)?.created;
    let age = SystemTime::now().duration_since(created).unwrap_or_default();
    if let Some(most) = stored.max_age
        && age > most
    {
        let text =
            format!("report {} is {} seconds old, at most {} are allowed", row.id, age.as_secs(), most.as_secs());
        return failed(Some(&row.id), vec![text]);
    }
    let corrupt = |_| StoreError::Corrupt(format!("report {}", row.id));
    let report: Report = serde_json::from_slice(&blobs.get(&row.id)?).map_err(corrupt)?;
    let is_it = |model: &crate::audit::report::Model| {
        model.adapter == adapter && model.generation == generation && model.scale == 1.0
    };
    let Some(model) = report.models.iter().position(is_it) else {
        return failed(Some(&row.id), vec![format!("report {} has it at other scales only", row.id)]);
    };
    let mut verdict = evaluate(&stored.policy, &report, model);
    if let Some(dataset) = &stored.dataset
        && report.data.dataset != *dataset
        && catalog.dataset(dataset)?.is_none_or(|named| named.content != report.data.dataset)
    {
        verdict.reasons.push(format!("the report is on data set {}, not {dataset}", report.data.dataset));
    }
    if verdict.reasons.is_empty() {
        return Ok(stored.max_age.and_then(|most| created.checked_add(most)));
    }
    failed(Some(&row.id), verdict.reasons)
}

/// Shows the gate of an alias as a metric: whether what it points to passes the policy that it demands.
///
/// Looks and shows while the rows are read: of two that show the same alias, the later one has seen the later rows.
///
/// # Errors
/// When the store fails.
pub fn show_gate(store: &Store, metrics: &Metrics, alias: &str) -> Result<(), StoreError> {
    store.read(|catalog| {
        let row = catalog.alias(alias)?;
        let Some((row, policy)) = row.and_then(|row| row.policy.clone().map(|policy| (row, policy))) else {
            metrics.audits.forget_gate(alias);
            return Ok(());
        };
        let state = match gate(catalog, store.blobs(), &policy, (&row.adapter, &row.generation)) {
            Ok(until) => Gate::Open { until },
            Err(GateError::PolicyNotFound(_) | GateError::Failed { .. }) => Gate::Closed,
            Err(GateError::Store(error)) => {
                // What cannot be read is no evidence.
                tracing::error!(alias, error = &error as &dyn std::error::Error, "a gate cannot be checked");
                Gate::Closed
            }
        };
        metrics.audits.show_gate(alias, [&row.adapter, &policy], state);
        Ok(())
    })
}
