//! The disk: one data directory with an SQLite database and content-addressed files.
//!
//! Holds rows and bytes and knows nothing of what they mean: no adapter is read here. One process holds a data
//! directory at a time. What [`Store::change`] returned is on the disk: WAL with `synchronous=FULL`, and every blob is
//! written, synced and renamed before a row names it. A blob that no row names is removed when the store opens. Some
//! space is kept back, so that rows can be deleted on a full disk.
//! Units: bytes; times in microseconds since 1970.

mod blobs;
mod catalog;
mod datasets;
mod holds;
mod jobs;
mod name;
mod reports;
mod requests;
mod reserve;
mod schema;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, TransactionBehavior};

use reserve::Reserve;

pub use blobs::Blobs;
pub use catalog::{AdapterRow, AliasRow, Catalog, GenerationRow, RequestRow};
pub use datasets::{DatasetContentRow, DatasetRow};
pub use jobs::{EventRow, JobRow};
pub use name::Name;
pub use reports::ReportRow;
pub use requests::{RequestIdReused, RequestKey, now, unwritable};

/// The data directory, held by one process at a time.
#[derive(Debug)]
pub struct Store {
    // One connection: writers never meet, and a reader waits for one commit at most.
    database: Mutex<Connection>,
    blobs: Blobs,
    reserve: Arc<Reserve>,
    // Held from the writing of a blob until a row names it, and while blobs that no row names are removed.
    naming: Mutex<()>,
    // Released by the system when the process ends, however it ends. Declared last: dropped after the database.
    _lock: File,
}

impl Store {
    /// Opens or makes a data directory, brings an older one up to date, and removes what a crash left behind.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process holds it; [`StoreError::Io`] when it was written by a newer version.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| StoreError::from_io(path, source)
        };
        std::fs::create_dir_all(directory).map_err(io(directory))?;
        let path = directory.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Locked(directory.display().to_string()),
            TryLockError::Error(source) => io(&path)(source),
        })?;
        let reserve = Arc::new(Reserve::new(directory));
        reserve.yield_to_rows();
        let mut database = Connection::open(directory.join("evenkeel.db"))?;
        schema::prepare(&mut database)?;
        let blobs = Blobs::open(&directory.join("blobs"), Arc::clone(&reserve))?;
        let store = Self { database: Mutex::new(database), blobs, reserve, naming: Mutex::default(), _lock: lock };
        let named = store.read(|catalog| catalog.blobs())?;
        let removed = store.blobs.sweep(&named)?;
        if removed > 0 {
            tracing::info!(removed, "files of unfinished changes removed");
        }
        Ok(store)
    }

    /// Returns the content-addressed files.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Takes the right to write blobs and name them, and to remove those that nobody names.
    pub fn naming(&self) -> Naming<'_> {
        // It guards no value that a panic could leave half changed.
        Naming { store: self, _guard: self.naming.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Removes blobs that nobody names, if there are any: whoever has none waits for nobody who writes.
    pub fn sweep(&self, orphans: &[String]) {
        if !orphans.is_empty() {
            self.naming().sweep(orphans);
        }
    }

    /// Reads rows, all of one moment.
    ///
    /// # Errors
    /// What `read` returns, or when the database fails.
    pub fn read<T, E: From<StoreError>>(&self, read: impl FnOnce(&Catalog<'_>) -> Result<T, E>) -> Result<T, E> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = database.transaction().map_err(StoreError::from)?;
        read(&Catalog::new(&transaction))
    }

    /// Changes rows in one transaction: all of it is on the disk when this returns, or nothing.
    ///
    /// # Errors
    /// What `change` returns, or when the database fails.
    pub fn change<T, E: From<StoreError>>(&self, change: impl FnOnce(&Catalog<'_>) -> Result<T, E>) -> Result<T, E> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        self.reserve.yield_to_rows();
        let transaction =
            database.transaction_with_behavior(TransactionBehavior::Immediate).map_err(StoreError::from)?;
        let value = change(&Catalog::new(&transaction))?;
        transaction.commit().map_err(StoreError::from)?;
        Ok(value)
    }
}

/// The right to write blobs and name them: between writing and naming, nobody else removes one.
#[derive(Debug)]
pub struct Naming<'a> {
    store: &'a Store,
    _guard: MutexGuard<'a, ()>,
}

impl Naming<'_> {
    /// Removes those of the blobs that no row names; what cannot be removed goes when the store is opened next.
    pub fn sweep(&self, orphans: &[String]) {
        for digest in orphans {
            let removed = self
                .store
                .read(|catalog| catalog.names_blob(digest))
                .and_then(|named| if named { Ok(()) } else { self.store.blobs().remove(digest) });
            if let Err(error) = removed {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(digest, error, "a file that is not needed could not be removed");
            }
        }
    }
}

/// Why the disk fails.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the data directory.
    #[error("{0} is in use by another process")]
    Locked(String),
    /// No space is left.
    #[error("no space left on the disk")]
    Full,
    /// A stored file is not what was written.
    #[error("{0} is corrupt")]
    Corrupt(String),
    /// The database failed.
    #[error("database failed")]
    Database(#[source] rusqlite::Error),
    /// A file operation failed.
    #[error("{path}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl StoreError {
    fn from_io(path: String, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let full = matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge);
        if full { Self::Full } else { Self::Io { path, source } }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Self::Corrupt("the database".into())
            }
            _ => Self::Database(error),
        }
    }
}

#[cfg(test)]
mod tests;
