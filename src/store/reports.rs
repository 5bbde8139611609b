//! Rows of audit reports, of the models they are about, and of policies.
//!
//! A report's id is the digest of its file. Writes what it is told. Times are microseconds since 1970.

use rusqlite::{OptionalExtension, Row, params};

use super::catalog::cut;
use super::{Catalog, StoreError};

/// A report that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRow {
    /// Rises with every report; 0 for one that is yet to be written.
    pub place: i64,
    /// Digest of the file.
    pub id: String,
    /// Name of the audit.
    pub name: String,
    /// When it was made.
    pub created: i64,
    /// What is known of it, JSON.
    pub summary: String,
}

const REPORT: &str = "place, id, name, created, summary";

impl Catalog<'_> {
    /// Adds a report as the newest, with the adapters and generations that it is about; the same one is replaced.
    ///
    /// # Errors
    /// When the database fails, here and below.
    pub fn put_report(&self, row: &ReportRow, generations: &[(String, String)]) -> Result<(), StoreError> {
        let sql = "DELETE FROM audit_reports WHERE name = ?1 AND id = ?2";
        self.rows().prepare_cached(sql)?.execute(params![row.name, row.id])?;
        let sql = "INSERT INTO audit_reports (id, name, created, summary) VALUES (?1, ?2, ?3, ?4) RETURNING place";
        let values = params![row.id, row.name, row.created, row.summary];
        let place: i64 = self.rows().prepare_cached(sql)?.query_row(values, |row| row.get(0))?;
        let sql = "INSERT OR IGNORE INTO audit_report_models (report, adapter, generation) VALUES (?1, ?2, ?3)";
        for (adapter, generation) in generations {
            self.rows().prepare_cached(sql)?.execute(params![place, adapter, generation])?;
        }
        Ok(())
    }

    /// Returns the newest report of this id or name.
    pub fn report(&self, id_or_name: &str) -> Result<Option<ReportRow>, StoreError> {
        let sql = format!("SELECT {REPORT} FROM audit_reports WHERE id = ?1 OR name = ?1 ORDER BY place DESC LIMIT 1");
        Ok(self.rows().prepare_cached(&sql)?.query_row([id_or_name], report).optional()?)
    }

    /// Returns at most `limit` reports from before a place, newest first; of one adapter or name where one is given.
    pub fn reports(
        &self,
        before: Option<i64>,
        adapter: Option<&str>,
        name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ReportRow>, StoreError> {
        let sql = format!(
            "SELECT {REPORT} FROM audit_reports WHERE place < ?1 AND (?2 IS NULL OR name = ?2) AND (?3 IS NULL OR EXISTS
                (SELECT 1 FROM audit_report_models WHERE report = place AND adapter = ?3))
             ORDER BY place DESC LIMIT ?4"
        );
        let values = params![before.unwrap_or(i64::MAX), name, adapter, cut(limit)];
        let rows = self.rows().prepare_cached(&sql)?.query_map(values, report)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Returns at most `limit` reports on one generation of an adapter, newest first.
    pub fn reports_on(&self, adapter: &str, generation: &str, limit: usize) -> Result<Vec<ReportRow>, StoreError> {
        let sql = format!(
            "SELECT {REPORT} FROM audit_reports WHERE place IN
                (SELECT report FROM audit_report_models WHERE adapter = ?1 AND generation = ?2)
             ORDER BY place DESC LIMIT ?3"
        );
        let values = params![adapter, generation, cut(limit)];
        let rows = self.rows().prepare_cached(&sql)?.query_map(values, report)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Returns the adapters of the reports that [`Self::forget_reports`] would remove, by name.
    pub fn adapters_to_forget(&self, keep: usize) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT DISTINCT adapter FROM audit_report_models WHERE report IN
            (SELECT place FROM audit_reports ORDER BY place DESC LIMIT -1 OFFSET ?1) ORDER BY adapter";
        let rows = self.rows().prepare_cached(sql)?.query_map([cut(keep)], |row| row.get(0))?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Removes the oldest reports until `keep` are left; returns their ids.
    pub fn forget_reports(&self, keep: usize) -> Result<Vec<String>, StoreError> {
        let sql = "DELETE FROM audit_reports WHERE place IN
            (SELECT place FROM audit_reports ORDER BY place DESC LIMIT -1 OFFSET ?1) RETURNING id";
        let rows = self.rows().prepare_cached(sql)?.query_map([cut(keep)], |row| row.get(0))?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Writes a policy, JSON.
    pub fn put_policy(&self, name: &str, record: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO audit_policies (name, record) VALUES (?1, ?2)";
        self.rows().prepare_cached(sql)?.execute([name, record])?;
        Ok(())
    }

    /// Returns a policy, JSON.
    pub fn policy(&self, name: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT record FROM audit_policies WHERE name = ?1";
        Ok(self.rows().prepare_cached(sql)?.query_row([name], |row| row.get(0)).optional()?)
    }

    /// Returns at most `limit` policies whose name follows `after`, by name.
    pub fn policies(&self, after: &str, limit: usize) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT record FROM audit_policies WHERE name > ?1 ORDER BY name LIMIT ?2";
        let rows = self
            .rows()
            .prepare_cached(sql)?
            .query_map(params![after, cut(limit)], |row| row.get(0))?
            .collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Removes a policy.
    pub fn delete_policy(&self, name: &str) -> Result<(), StoreError> {
        self.rows().prepare_cached("DELETE FROM audit_policies WHERE name = ?1")?.execute([name])?;
        Ok(())
    }

    /// Returns the aliases that demand a policy, by name.
    pub fn aliases_demanding(&self, policy: &str) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT name FROM aliases WHERE policy = ?1 ORDER BY name";
        let rows = self.rows().prepare_cached(sql)?.query_map([policy], |row| row.get(0))?.collect::<Result<_, _>>();
        Ok(rows?)
    }
}

fn report(row: &Row<'_>) -> rusqlite::Result<ReportRow> {
    Ok(ReportRow { place: row.get(0)?, id: row.get(1)?, name: row.get(2)?, created: row.get(3)?, summary: row.get(4)? })
}
