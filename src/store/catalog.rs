//! The rows of the registry and of repeated requests, inside one transaction.
//!
//! Writes what it is told: what may be changed when is the registry's to say. Identifiers are hexadecimal text.
//! Times are microseconds since 1970, sizes bytes.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::StoreError;

/// An adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRow {
    /// Name.
    pub name: String,
    /// Id of the current generation.
    pub current: String,
    /// Stays in memory.
    pub pinned: bool,
}

/// A generation of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRow {
    /// Name of the adapter.
    pub adapter: String,
    /// Id.
    pub id: String,
    /// Fingerprint of the base model.
    pub base: String,
    /// Digest of the configuration.
    pub config_blob: String,
    /// Digest of the tensors.
    pub tensor_blob: String,
    /// What the adapter is, JSON.
    pub info: String,
    /// Largest change of a logit of the fixed prompt.
    pub effect: f64,
    /// Bytes of its tensors in memory.
    pub bytes: u64,
    /// When it was published.
    pub created: i64,
    /// How it was made, JSON; none when it was brought.
    pub lineage: Option<String>,
}

/// An alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRow {
    /// Name.
    pub name: String,
    /// Adapter.
    pub adapter: String,
    /// Generation.
    pub generation: String,
    /// When it was set.
    pub updated: i64,
    /// Audit policy that every target has to pass.
    pub policy: Option<String>,
}

/// The first answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRow {
    /// SHA-256 of the request's content.
    pub fingerprint: [u8; 32],
    /// The answer, JSON.
    pub response: String,
}

/// The rows as one transaction sees them.
#[derive(Debug)]
pub struct Catalog<'a> {
    pub(super) rows: &'a Transaction<'a>,
}

const GENERATION: &str = "adapter, id, base, config_blob, tensor_blob, info, effect, bytes, created, lineage";

impl<'a> Catalog<'a> {
    pub(super) fn new(rows: &'a Transaction<'a>) -> Self {
        Self { rows }
    }

    pub(super) fn rows(&self) -> &Transaction<'a> {
        self.rows
    }

    /// Returns an adapter.
    ///
    /// # Errors
    /// When the database fails, here and below.
    pub fn adapter(&self, name: &str) -> Result<Option<AdapterRow>, StoreError> {
        let sql = "SELECT name, current, pinned FROM adapters WHERE name = ?1";
        Ok(self.rows.prepare_cached(sql)?.query_row([name], adapter).optional()?)
    }

    /// Returns at most `limit` adapters whose name follows `after`, by name.
    pub fn adapters(&self, after: &str, limit: usize) -> Result<Vec<AdapterRow>, StoreError> {
        let sql = "SELECT name, current, pinned FROM adapters WHERE name > ?1 ORDER BY name LIMIT ?2";
        let rows =
            self.rows.prepare_cached(sql)?.query_map(params![after, cut(limit)], adapter)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Makes `generation` the current one of an adapter, which is made if it is new.
    pub fn put_adapter(&self, row: &AdapterRow, now: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO adapters (name, current, pinned, created) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (name) DO UPDATE SET current = excluded.current, pinned = excluded.pinned";
        self.rows.prepare_cached(sql)?.execute(params![row.name, row.current, row.pinned, now])?;
        Ok(())
    }

    /// Removes an adapter and its generations.
    pub fn delete_adapter(&self, name: &str) -> Result<(), StoreError> {
        self.rows.prepare_cached("DELETE FROM adapters WHERE name = ?1")?.execute([name])?;
        Ok(())
    }

    /// Returns one generation of an adapter.
    pub fn generation(&self, adapter: &str, id: &str) -> Result<Option<GenerationRow>, StoreError> {
        let sql = format!("SELECT {GENERATION} FROM generations WHERE adapter = ?1 AND id = ?2");
        Ok(self.rows.prepare_cached(&sql)?.query_row([adapter, id], generation).optional()?)
    }

    /// Returns the generations of an adapter, newest first.
    pub fn generations(&self, adapter: &str) -> Result<Vec<GenerationRow>, StoreError> {
        let sql = format!("SELECT {GENERATION} FROM generations WHERE adapter = ?1 ORDER BY seq DESC");
        let rows = self.rows.prepare_cached(&sql)?.query_map([adapter], generation)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Adds a generation as the newest of its adapter; one of the same id is replaced.
    pub fn put_generation(&self, row: &GenerationRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO generations
                (adapter, id, base, config_blob, tensor_blob, info, effect, bytes, created, lineage)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
            ON CONFLICT (adapter, id) DO UPDATE SET
                seq = (SELECT max(seq) + 1 FROM generations),
                base = excluded.base, config_blob = excluded.config_blob, tensor_blob = excluded.tensor_blob,
                info = excluded.info, effect = excluded.effect, bytes = excluded.bytes, created = excluded.created,
                lineage = coalesce(excluded.lineage, lineage)";
        // SQLite's integers are signed; no adapter has 2^63 bytes.
        let bytes = i64::try_from(row.bytes).unwrap_or(i64::MAX);
        self.rows.prepare_cached(sql)?.execute(params![
            row.adapter,
            row.id,
            row.base,
            row.config_blob,
            row.tensor_blob,
            row.info,
            row.effect,
            bytes,
            row.created,
            row.lineage
        ])?;
        Ok(())
    }

    /// Removes one generation.
    pub fn delete_generation(&self, adapter: &str, id: &str) -> Result<(), StoreError> {
        self.rows.prepare_cached("DELETE FROM generations WHERE adapter = ?1 AND id = ?2")?.execute([adapter, id])?;
        Ok(())
    }

    /// Returns an alias.
    pub fn alias(&self, name: &str) -> Result<Option<AliasRow>, StoreError> {
        let sql = "SELECT name, adapter, generation, updated, policy FROM aliases WHERE name = ?1";
        Ok(self.rows.prepare_cached(sql)?.query_row([name], alias).optional()?)
    }

    /// Returns at most `limit` aliases whose name follows `after`, by name.
    pub fn aliases(&self, after: &str, limit: usize) -> Result<Vec<AliasRow>, StoreError> {
        let sql =
            "SELECT name, adapter, generation, updated, policy FROM aliases WHERE name > ?1 ORDER BY name LIMIT ?2";
        let rows =
            self.rows.prepare_cached(sql)?.query_map(params![after, cut(limit)], alias)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Returns the aliases that point to an adapter, by name.
    pub fn aliases_of(&self, adapter: &str) -> Result<Vec<AliasRow>, StoreError> {
        let sql = "SELECT name, adapter, generation, updated, policy FROM aliases WHERE adapter = ?1 ORDER BY name";
        let rows = self.rows.prepare_cached(sql)?.query_map([adapter], alias)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Sets an alias.
    pub fn put_alias(&self, row: &AliasRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO aliases (name, adapter, generation, updated, policy) VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (name) DO UPDATE SET
                adapter = excluded.adapter, generation = excluded.generation, updated = excluded.updated,
                policy = excluded.policy";
        let values = params![row.name, row.adapter, row.generation, row.updated, row.policy];
        self.rows.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    /// Removes an alias.
    pub fn delete_alias(&self, name: &str) -> Result<(), StoreError> {
        self.rows.prepare_cached("DELETE FROM aliases WHERE name = ?1")?.execute([name])?;
        Ok(())
    }

    /// Returns whether a row names this blob.
    pub fn names_blob(&self, digest: &str) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM generations WHERE config_blob = ?1)
            OR EXISTS (SELECT 1 FROM generations WHERE tensor_blob = ?1)
             OR EXISTS (SELECT 1 FROM dataset_contents WHERE blob = ?1)
             OR EXISTS (SELECT 1 FROM jobs WHERE checkpoint = ?1)
             OR EXISTS (SELECT 1 FROM audit_reports WHERE id = ?1)";
        Ok(self.rows.prepare_cached(sql)?.query_row([digest], |row| row.get(0))?)
    }

    /// Returns the digests of all blobs that rows name.
    pub fn blobs(&self) -> Result<HashSet<String>, StoreError> {
        let sql = "SELECT config_blob FROM generations UNION SELECT tensor_blob FROM generations
             UNION SELECT blob FROM dataset_contents
             UNION SELECT checkpoint FROM jobs WHERE checkpoint IS NOT NULL
             UNION SELECT id FROM audit_reports";
        let rows = self.rows.prepare_cached(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Returns the first answer to a request, if it was given at `since` or later.
    pub fn request(&self, method: &str, id: &str, since: i64) -> Result<Option<RequestRow>, StoreError> {
        let sql = "SELECT fingerprint, response FROM requests WHERE method = ?1 AND id = ?2 AND created >= ?3";
        let read = |row: &Row<'_>| Ok(RequestRow { fingerprint: row.get(0)?, response: row.get(1)? });
        Ok(self.rows.prepare_cached(sql)?.query_row(params![method, id, since], read).optional()?)
    }

    /// Keeps the answer to a request, and forgets those from before `since`.
    pub fn put_request(
        &self,
        (method, id): (&str, &str),
        row: &RequestRow,
        now: i64,
        since: i64,
    ) -> Result<(), StoreError> {
        self.rows.prepare_cached("DELETE FROM requests WHERE created < ?1")?.execute([since])?;
        let sql = "INSERT INTO requests (method, id, fingerprint, response, created) VALUES (?1, ?2, ?3, ?4, ?5)";
        self.rows.prepare_cached(sql)?.execute(params![method, id, row.fingerprint, row.response, now])?;
        Ok(())
    }
}

pub(super) fn cut(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn adapter(row: &Row<'_>) -> rusqlite::Result<AdapterRow> {
    Ok(AdapterRow { name: row.get(0)?, current: row.get(1)?, pinned: row.get(2)? })
}

fn generation(row: &Row<'_>) -> rusqlite::Result<GenerationRow> {
    let bytes: i64 = row.get(7)?;
    Ok(GenerationRow {
        adapter: row.get(0)?,
        id: row.get(1)?,
        base: row.get(2)?,
        config_blob: row.get(3)?,
        tensor_blob: row.get(4)?,
        info: row.get(5)?,
        effect: row.get(6)?,
        bytes: u64::try_from(bytes).unwrap_or(0),
        created: row.get(8)?,
        lineage: row.get(9)?,
    })
}

fn alias(row: &Row<'_>) -> rusqlite::Result<AliasRow> {
    let (name, adapter, generation) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(AliasRow { name, adapter, generation, updated: row.get(3)?, policy: row.get(4)? })
}
