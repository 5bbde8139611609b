//! The rows of data sets: contents by id, names that point to them, and who needs a content.
//!
//! A hold keeps a content although no name points to it: a job takes one in the transaction that writes the job, and
//! gives it back in the one that ends it. What a content means is told by `dataset`.

use rusqlite::{OptionalExtension, Row, params};

use super::catalog::cut;
use super::{Catalog, StoreError};

/// A name of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetRow {
    /// Name.
    pub name: String,
    /// Id of the content.
    pub content: String,
    /// When the name was pointed to it.
    pub created: i64,
}

/// The content of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetContentRow {
    /// Id.
    pub id: String,
    /// Digest of the uploaded file.
    pub blob: String,
    /// What was declared about it, JSON.
    pub declaration: String,
    /// What was found in it, JSON.
    pub summary: String,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Catalog<'_> {
    /// Returns a name.
    ///
    /// # Errors
    /// When the database fails, here and below.
    pub fn dataset(&self, name: &str) -> Result<Option<DatasetRow>, StoreError> {
        let sql = "SELECT name, content, created FROM datasets WHERE name = ?1";
        Ok(self.rows.prepare_cached(sql)?.query_row([name], dataset).optional()?)
    }

    /// Returns at most `limit` names that follow `after`, by name.
    pub fn datasets(&self, after: &str, limit: usize) -> Result<Vec<DatasetRow>, StoreError> {
        let sql = "SELECT name, content, created FROM datasets WHERE name > ?1 ORDER BY name LIMIT ?2";
        let rows =
            self.rows.prepare_cached(sql)?.query_map(params![after, cut(limit)], dataset)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Returns the names that point to a content, by name.
    pub fn datasets_of(&self, content: &str) -> Result<Vec<DatasetRow>, StoreError> {
        let sql = "SELECT name, content, created FROM datasets WHERE content = ?1 ORDER BY name";
        let rows = self.rows.prepare_cached(sql)?.query_map([content], dataset)?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Points a name to a content.
    pub fn put_dataset(&self, row: &DatasetRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO datasets (name, content, created) VALUES (?1, ?2, ?3)
            ON CONFLICT (name) DO UPDATE SET content = excluded.content, created = excluded.created";
        self.rows.prepare_cached(sql)?.execute(params![row.name, row.content, row.created])?;
        Ok(())
    }

    /// Removes a name.
    pub fn delete_dataset(&self, name: &str) -> Result<(), StoreError> {
        self.rows.prepare_cached("DELETE FROM datasets WHERE name = ?1")?.execute([name])?;
        Ok(())
    }

    /// Returns a content.
    pub fn dataset_content(&self, id: &str) -> Result<Option<DatasetContentRow>, StoreError> {
        let sql = "SELECT id, blob, declaration, summary, bytes FROM dataset_contents WHERE id = ?1";
        Ok(self.rows.prepare_cached(sql)?.query_row([id], content).optional()?)
    }

    /// Adds a content; one of the same id stays as it is.
    pub fn put_dataset_content(&self, row: &DatasetContentRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO dataset_contents (id, blob, declaration, summary, bytes) VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (id) DO NOTHING";
        // SQLite's integers are signed; no upload has 2^63 bytes.
        let bytes = i64::try_from(row.bytes).unwrap_or(i64::MAX);
        self.rows.prepare_cached(sql)?.execute(params![row.id, row.blob, row.declaration, row.summary, bytes])?;
        Ok(())
    }

    /// Removes the contents that no name points to and nobody holds; returns the blobs that they named.
    pub fn prune_dataset_contents(&self) -> Result<Vec<String>, StoreError> {
        let sql = "DELETE FROM dataset_contents
            WHERE NOT EXISTS (SELECT 1 FROM datasets WHERE content = id)
            AND NOT EXISTS (SELECT 1 FROM dataset_holds WHERE content = id) RETURNING blob";
        let rows = self.rows.prepare_cached(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>();
        Ok(rows?)
    }

    /// Keeps a content for `holder` until [`Self::release_datasets`]; repeated, it is harmless.
    ///
    /// # Errors
    /// When there is no such content, or the database fails.
    pub fn hold_dataset(&self, content: &str, holder: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO dataset_holds (content, holder) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        self.rows.prepare_cached(sql)?.execute([content, holder])?;
        Ok(())
    }

    /// Gives back all that `holder` keeps.
    pub fn release_datasets(&self, holder: &str) -> Result<(), StoreError> {
        self.rows.prepare_cached("DELETE FROM dataset_holds WHERE holder = ?1")?.execute([holder])?;
        Ok(())
    }

    /// Returns who keeps a content.
    pub fn dataset_holders(&self, content: &str) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT holder FROM dataset_holds WHERE content = ?1 ORDER BY holder";
        let rows = self.rows.prepare_cached(sql)?.query_map([content], |row| row.get(0))?.collect::<Result<_, _>>();
        Ok(rows?)
    }
}

fn dataset(row: &Row<'_>) -> rusqlite::Result<DatasetRow> {
    Ok(DatasetRow { name: row.get(0)?, content: row.get(1)?, created: row.get(2)? })
}

fn content(row: &Row<'_>) -> rusqlite::Result<DatasetContentRow> {
    let bytes: i64 = row.get(4)?;
    Ok(DatasetContentRow {
        id: row.get(0)?,
        blob: row.get(1)?,
        declaration: row.get(2)?,
        summary: row.get(3)?,
        bytes: u64::try_from(bytes).unwrap_or(0),
    })
}
