//! Space that is kept back for rows: a full disk must keep nobody from deleting, or a job from being ended.
//!
//! A file of [`SIZE`] bytes lies beside the database. Rows get its space when little else is left. Blobs do not: they are
//! refused until the file could be written again. Holds no rows and decides about no blob. Units: bytes.

use std::path::{Path, PathBuf};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::StoreError;

const SIZE: usize = 512 << 10;
/// A change of rows takes less: some pages of the log, or the pages of the log that go into the database.
const LITTLE: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join("reserve") }
    }

    /// Gives its space away when little else is left.
    pub(super) fn yield_to_rows(&self) {
        let Some(directory) = self.path.parent() else { return };
        let Ok(disk) = rustix::fs::statvfs(directory) else { return };
        if disk.f_bavail.saturating_mul(disk.f_frsize) < LITTLE {
            // Where it cannot be removed, the rows fail by themselves.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Takes its space, if it does not have it.
    pub(super) fn hold(&self) -> Result<(), StoreError> {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.len() == SIZE as u64) {
            return Ok(());
        }
        // What a file system could compress would hold no space.
        let mut content = vec![0; SIZE];
        ChaCha8Rng::seed_from_u64(0).fill_bytes(&mut content);
        std::fs::write(&self.path, content).map_err(|source| {
            let _ = std::fs::remove_file(&self.path);
            StoreError::from_io(self.path.display().to_string(), source)
        })
    }
}
