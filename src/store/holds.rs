//! Who needs a generation of an adapter: as long as somebody does, it is not deleted.
//!
//! A job takes a hold in a transaction of its own rows and gives it back in the one that ends it. The database itself
//! refuses to delete what is held; the registry asks first.

use rusqlite::{Row, params};

use super::{Catalog, StoreError};

impl Catalog<'_> {
    /// Keeps a generation for `holder` until [`Self::release_generations`]; repeated, it is harmless.
    ///
    /// # Errors
    /// When there is no such generation, or the database fails.
    pub fn hold_generation(&self, adapter: &str, generation: &str, holder: &str) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO generation_holds (adapter, generation, holder) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        self.rows().prepare_cached(sql)?.execute(params![adapter, generation, holder])?;
        Ok(())
    }

    /// Gives back all generations that `holder` keeps.
    pub fn release_generations(&self, holder: &str) -> Result<(), StoreError> {
        self.rows().prepare_cached("DELETE FROM generation_holds WHERE holder = ?1")?.execute([holder])?;
        Ok(())
    }

    /// Returns which generations of an adapter are kept, and by whom.
    pub fn generation_holders(&self, adapter: &str) -> Result<Vec<(String, String)>, StoreError> {
        let sql = "SELECT generation, holder FROM generation_holds WHERE adapter = ?1 ORDER BY holder, generation";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let rows = self.rows().prepare_cached(sql)?.query_map([adapter], read)?.collect::<Result<_, _>>();
        Ok(rows?)
    }
}
