//! Files named by the SHA-256 of their content.
//!
//! Whether a blob is still needed is decided by who holds the rows, not here. Writing is `object_store`'s: a file beside
//! (`NAME#1`), fsync, rename, fsync of the folder. Reading checks the digest. Streams to clients read the path itself.
//! After: `object_store` 0.14 `local.rs` (`with_fsync`); the narrow interface is what an S3 form has to offer.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use sha2::{Digest, Sha256};

use super::StoreError;
use super::reserve::Reserve;

/// Bytes that are written at once.
const PART: usize = 8 << 20;

/// Content-addressed files of the data directory.
#[derive(Debug)]
pub struct Blobs {
    root: PathBuf,
    files: LocalFileSystem,
    reserve: Arc<Reserve>,
}

impl Blobs {
    pub(super) fn open(root: &Path, reserve: Arc<Reserve>) -> Result<Self, StoreError> {
        let path = root.display().to_string();
        std::fs::create_dir_all(root).map_err(|source| StoreError::from_io(path.clone(), source))?;
        let root = root.canonicalize().map_err(|source| StoreError::from_io(path, source))?;
        let files = LocalFileSystem::new_with_prefix(&root).map_err(failed)?.with_fsync(true);
        Ok(Self { root, files, reserve })
    }

    /// Writes a file and returns its digest, hexadecimal; it is on the disk when this returns.
    ///
    /// A file of that digest is replaced: what lies there may be damaged.
    ///
    /// # Errors
    /// [`StoreError::Full`] when no space is left.
    pub fn put(&self, content: Vec<u8>) -> Result<String, StoreError> {
        self.reserve.hold()?;
        let digest = hex::encode(Sha256::digest(&content));
        let location = Location::from(digest.as_str());
        at_once(|| self.files.put(&location, PutPayload::from(content)).now_or_never())?;
        Ok(digest)
    }

    /// The same with what `write` writes, which is not held in memory.
    ///
    /// # Errors
    /// As [`Self::put`]; those of `write`.
    pub fn put_written<E: From<StoreError>>(
        &self,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<String, E> {
        self.reserve.hold()?;
        // A name as a digest has: what a killed process leaves is swept away.
        let incoming = Location::from(hex::encode(rand::random::<[u8; 32]>()));
        let upload = at_once(|| self.files.put_multipart(&incoming).now_or_never())?;
        let mut file = Incoming { upload, part: Vec::with_capacity(PART), hash: Sha256::new(), fault: None };
        let written = write(&mut file);
        if let Some(fault) = file.fault.take() {
            return Err(fault.into());
        }
        written?;
        file.send()?;
        at_once(|| file.upload.complete().now_or_never())?;
        let digest = hex::encode(file.hash.finalize());
        at_once(|| self.files.rename(&incoming, &Location::from(digest.as_str())).now_or_never())?;
        Ok(digest)
    }

    /// Reads a file whole and checks it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is missing or not what was written.
    pub fn get(&self, digest: &str) -> Result<Vec<u8>, StoreError> {
        let mut file = self.file(digest)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(|source| StoreError::from_io(digest.to_owned(), source))?;
        if hex::encode(Sha256::digest(&content)) != digest {
            return Err(corrupt(digest));
        }
        Ok(content)
    }

    /// Checks a file without holding it in memory; returns its path and size in bytes.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is missing or not what was written.
    pub fn check(&self, digest: &str) -> Result<(PathBuf, u64), StoreError> {
        let mut file = self.file(digest)?;
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = file.read(&mut buffer).map_err(|source| StoreError::from_io(digest.to_owned(), source))?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            size += read as u64;
        }
        if hex::encode(hash.finalize()) != digest {
            return Err(corrupt(digest));
        }
        Ok((self.root.join(digest), size))
    }

    /// Removes a file; that it is not there is no error. Streams that read it go on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self, digest: &str) -> Result<(), StoreError> {
        match std::fs::remove_file(self.root.join(digest)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::from_io(digest.to_owned(), source))
            }
            _ => Ok(()),
        }
    }

    /// Removes half-written files and those that are not in `named`; returns how many.
    pub(super) fn sweep(&self, named: &HashSet<String>) -> Result<usize, StoreError> {
        let failed = |source| StoreError::from_io("blobs".into(), source);
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(name) = name.to_str() else { continue };
            // Other names are not ours: left alone.
            let ours = name.split('#').next().is_some_and(|stem| stem.len() == 64 && hex::decode(stem).is_ok());
            if ours && !named.contains(name) {
                self.remove(name)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn file(&self, digest: &str) -> Result<std::fs::File, StoreError> {
        std::fs::File::open(self.root.join(digest)).map_err(|source| {
            let missing = source.kind() == std::io::ErrorKind::NotFound;
            if missing { corrupt(digest) } else { StoreError::from_io(digest.to_owned(), source) }
        })
    }
}

/// A file that is being written.
struct Incoming {
    upload: Box<dyn MultipartUpload>,
    part: Vec<u8>,
    hash: Sha256,
    /// Why writing failed: an [`std::io::Error`] cannot hold it.
    fault: Option<StoreError>,
}

impl Incoming {
    fn send(&mut self) -> Result<(), StoreError> {
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART));
        self.hash.update(&part);
        at_once(|| self.upload.put_part(PutPayload::from(part)).now_or_never())
    }
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() == PART
            && let Err(fault) = self.send()
        {
            self.fault = Some(fault);
            return Err(std::io::Error::other("a part of a stored file could not be written"));
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn corrupt(digest: &str) -> StoreError {
    StoreError::Corrupt(format!("stored file {digest}"))
}

/// Runs an operation of the local file system, which is ready at its first poll outside a tokio runtime.
///
/// A thread of its own, because inside a runtime `object_store` hands the work to the blocking pool: callers that
/// already occupy that pool, waiting for it, would hold one another up for good once there are enough of them.
fn at_once<T: Send>(operation: impl FnOnce() -> Option<object_store::Result<T>> + Send) -> Result<T, StoreError> {
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("blob".into()).spawn_scoped(scope, operation);
        thread.map(|thread| thread.join())
    });
    match done {
        Ok(Ok(Some(result))) => result.map_err(failed),
        Ok(_) => Err(StoreError::from_io("blobs".into(), std::io::Error::other("the operation did not finish"))),
        Err(source) => Err(StoreError::from_io("blobs".into(), source)),
    }
}

/// Finds what the system said below the layers of `object_store`.
pub(super) fn failed(error: object_store::Error) -> StoreError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(source) = error.downcast_ref::<std::io::Error>() {
            return StoreError::from_io("blobs".into(), std::io::Error::new(source.kind(), source.to_string()));
        }
        cause = error.source();
    }
    StoreError::from_io("blobs".into(), std::io::Error::other(error))
}
