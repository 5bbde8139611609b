//! Whether a generation of an adapter may become the target of an alias: its newest report against a policy.
//!
//! Runs inside the transaction that moves the alias. No report is no pass: what was not measured is not known to hold.

use std::time::SystemTime;

use super::{parse, parse_policy};
use crate::audit::policy::evaluate;
use crate::audit::report::Report;
use crate::store::{Blobs, Catalog, StoreError};

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

/// Checks a generation of an adapter, given as name and id, against a policy.
///
/// # Errors
/// [`GateError::PolicyNotFound`], [`GateError::Failed`]; when the store fails.
pub fn gate(
    catalog: &Catalog<'_>,
    blobs: &Blobs,
    policy: &str,
    (adapter, generation): (&str, &str),
) -> Result<(), GateError> {
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
    let age = SystemTime::now().duration_since(parse(row)?.created).unwrap_or_default();
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
    let verdict = evaluate(&stored.policy, &report, model);
    if verdict.passed {
        return Ok(());
    }
    failed(Some(&row.id), verdict.reasons)
}
