//! Data sets by name: checked, stored, read again.
//!
//! A name points to one content, and a content stays as long as a name points to it or a job holds it. A change is on
//! the disk before it is acknowledged. Files are checked one at a time, so that the memory of checking is bounded.
//! Methods block (disk, hashing, parsing). Locks in the order in which they are taken: `reading`, the store's naming,
//! the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Dataset, DatasetError, Declaration, Folder, Limits, Summary};
use crate::config::DatasetSettings;
use crate::model::image;
use crate::store::{Catalog, DatasetContentRow, DatasetRow, Name, RequestKey, Store, StoreError, now, unwritable};

/// What a name must point to for a change to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Nothing, or the same content: what is there is never replaced unasked. A deletion takes anything.
    Any,
    /// Nothing.
    Absent,
    /// The content of this id.
    Id(String),
}

/// A change of a name.
#[derive(Debug, Clone)]
pub struct Change {
    /// The name.
    pub name: Name,
    /// What it must point to.
    pub expected: Expected,
    /// Makes a repeated call harmless.
    pub request: Option<RequestKey>,
}

/// A data set as its owner sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetRecord {
    /// Its name; empty when a job holds it and no name points to it any more.
    pub name: String,
    /// Its content.
    pub id: String,
    /// What was declared.
    pub declaration: Declaration,
    /// What is in it.
    pub summary: Summary,
    /// Bytes of the uploaded file.
    pub bytes: u64,
    /// When the name was pointed to the content.
    pub created: SystemTime,
}

/// Data sets by name.
#[derive(Debug)]
pub struct Datasets {
    store: Arc<Store>,
    settings: DatasetSettings,
    // Those that somebody reads now.
    cached: Mutex<HashMap<String, Weak<Dataset>>>,
    reading: Mutex<()>,
}

impl Datasets {
    /// Opens the data sets of a store, and forgets contents that nothing names or holds.
    ///
    /// # Errors
    /// When the store fails.
    pub fn open(store: Arc<Store>, settings: DatasetSettings) -> Result<Self, DatasetError> {
        let datasets = Self { store, settings, cached: Mutex::default(), reading: Mutex::default() };
        datasets.collect()?;
        Ok(datasets)
    }

    fn limits(&self) -> Limits {
        let settings = &self.settings;
        Limits {
            rows: settings.max_rows,
            row_bytes: settings.max_row_bytes,
            decoded_bytes: settings.max_decoded_bytes,
            image: image::Limits { bytes: settings.max_image_bytes, pixels: settings.max_image_pixels },
            pixels: Some(settings.max_total_pixels),
        }
    }

    /// Returns what a repeated call returned the first time.
    ///
    /// # Errors
    /// [`DatasetError::RequestIdReused`]; when the store fails.
    pub fn answered(&self, request: Option<&RequestKey>) -> Result<Option<DatasetRecord>, DatasetError> {
        self.store.read(|catalog| catalog.answered::<_, DatasetError>(request))
    }

    /// Opens a folder of images below the configured one, see [`Folder::open`].
    ///
    /// # Errors
    /// [`DatasetError::NoImportDir`], and as [`Folder::open`].
    pub fn folder(&self, directory: &str, listing: &str, declaration: &Declaration) -> Result<Folder, DatasetError> {
        let root = self.settings.import_dir.as_ref().ok_or(DatasetError::NoImportDir)?;
        Folder::open(root, directory, listing, declaration, self.limits())
    }

    /// Checks a file, stores it and points a name to it. The same content again is harmless.
    ///
    /// # Errors
    /// [`DatasetError::Invalid`], [`DatasetError::Mismatch`], [`DatasetError::RequestIdReused`]; when the store fails.
    pub fn put(&self, file: Vec<u8>, declaration: Declaration, change: Change) -> Result<DatasetRecord, DatasetError> {
        let _reading = lock(&self.reading);
        let request = change.request.as_ref();
        if let Some(first) = self.answered(request)? {
            return Ok(first);
        }
        let size = file.len() as u64;
        let digest: [u8; 32] = Sha256::digest(&file).into();
        let id = declaration.id(&digest)?;
        // Again below, where it counts; here it saves the reading.
        self.store.read(|catalog| may_point(catalog, &change, &id))?;
        let file = Bytes::from(file);
        let dataset = Dataset::parse(&file, &digest, &declaration, self.limits())?;
        let summary = Summary::of(&dataset);
        drop(dataset);
        let content = DatasetContentRow {
            id,
            blob: hex::encode(digest),
            declaration: serde_json::to_string(&declaration).map_err(unwritable)?,
            summary: serde_json::to_string(&summary).map_err(unwritable)?,
            bytes: size,
        };
        let naming = self.store.naming();
        let blob = self.store.blobs().put(file.into());
        let mut orphans = vec![content.blob.clone()];
        let record = blob.map_err(DatasetError::from).and_then(|_| {
            self.store.change_once(request, |catalog| {
                let before = may_point(catalog, &change, &content.id)?;
                catalog.put_dataset_content(&content)?;
                let created = before.filter(|row| row.content == content.id).map_or_else(now, |row| row.created);
                let row = DatasetRow { name: change.name.to_string(), content: content.id.clone(), created };
                catalog.put_dataset(&row)?;
                orphans.extend(catalog.prune_dataset_contents()?);
                record(catalog, row)
            })
        });
        naming.sweep(&orphans);
        let record = record?;
        tracing::info!(dataset = %change.name, id = record.id, rows = record.summary.rows(), "data set stored");
        Ok(record)
    }

    /// Returns a data set by name or id.
    ///
    /// # Errors
    /// [`DatasetError::NotFound`]; when the store fails.
    pub fn get(&self, name_or_id: &str) -> Result<DatasetRecord, DatasetError> {
        self.store.read(|catalog| {
            if let Some(row) = catalog.dataset(name_or_id)? {
                return record(catalog, row);
            }
            let mut named = catalog.datasets_of(name_or_id)?.into_iter();
            let nameless = DatasetRow { name: String::new(), content: name_or_id.to_owned(), created: 0 };
            record(catalog, named.next().unwrap_or(nameless))
        })
    }

    /// Returns at most `limit` data sets whose name follows `after`, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<DatasetRecord>, DatasetError> {
        self.store.read(|catalog| {
            let rows = catalog.datasets(after.unwrap_or(""), limit)?;
            rows.into_iter().map(|row| record(catalog, row)).collect()
        })
    }

    /// Deletes a name, and its content if no other name points to it.
    ///
    /// # Errors
    /// [`DatasetError::NotFound`], [`DatasetError::Mismatch`], [`DatasetError::InUse`]; when the store fails.
    pub fn delete(&self, change: &Change) -> Result<(), DatasetError> {
        let naming = self.store.naming();
        let mut orphans = Vec::new();
        self.store.change_once(change.request.as_ref(), |catalog| {
            let name = change.name.as_str();
            let row = catalog.dataset(name)?.ok_or_else(|| DatasetError::NotFound(name.to_owned()))?;
            if let Expected::Id(expected) = &change.expected
                && *expected != row.content
            {
                return Err(mismatch(change, &row.content));
            }
            let holders = catalog.dataset_holders(&row.content)?;
            if !holders.is_empty() && catalog.datasets_of(&row.content)?.len() == 1 {
                return Err(DatasetError::InUse { name: name.to_owned(), holders });
            }
            catalog.delete_dataset(name)?;
            orphans = catalog.prune_dataset_contents()?;
            Ok(())
        })?;
        naming.sweep(&orphans);
        Ok(())
    }

    /// Returns all rows of a content, by id. Read from the disk unless somebody holds it in memory.
    ///
    /// # Errors
    /// [`DatasetError::NotFound`]; [`StoreError::Corrupt`] when it does not read as it did when it was stored.
    pub fn read(&self, id: &str) -> Result<Arc<Dataset>, DatasetError> {
        // One reader at a time: those that wait find it in memory.
        let _reading = lock(&self.reading);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.retain(|_, dataset| dataset.strong_count() > 0);
        if let Some(dataset) = cached.get(id).and_then(Weak::upgrade) {
            return Ok(dataset);
        }
        drop(cached);
        let row = self.store.read(|catalog| content(catalog, id))?;
        let file = self.store.blobs().get(&row.blob)?;
        let digest: [u8; 32] = Sha256::digest(&file).into();
        let (declaration, summary) = parts(&row)?;
        let corrupt = || StoreError::Corrupt(format!("data set {id}"));
        let parsed = Dataset::parse(&file.into(), &digest, &declaration, Limits::NONE);
        let dataset = parsed.map_err(|error| {
            // It was sound when it was stored.
            if matches!(error, DatasetError::Invalid(_)) { corrupt().into() } else { error }
        })?;
        if dataset.id != id || Summary::of(&dataset).parts != summary.parts {
            return Err(corrupt().into());
        }
        let dataset = Arc::new(dataset);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.insert(id.to_owned(), Arc::downgrade(&dataset));
        Ok(dataset)
    }

    /// Removes contents that nothing names or holds; to be called when a hold was given back.
    ///
    /// # Errors
    /// When the store fails.
    pub fn collect(&self) -> Result<(), DatasetError> {
        let naming = self.store.naming();
        let orphans = self.store.change(|catalog| catalog.prune_dataset_contents())?;
        naming.sweep(&orphans);
        Ok::<_, DatasetError>(())
    }
}

/// Returns what the name points to, if it may point to `id` now.
fn may_point(catalog: &Catalog<'_>, change: &Change, id: &str) -> Result<Option<DatasetRow>, DatasetError> {
    let before = catalog.dataset(change.name.as_str())?;
    let actual = before.as_ref().map_or("", |row| row.content.as_str());
    let sound = match &change.expected {
        Expected::Any => actual.is_empty() || actual == id,
        Expected::Absent => actual.is_empty(),
        Expected::Id(expected) => actual == expected,
    };
    if sound { Ok(before) } else { Err(mismatch(change, actual)) }
}

fn mismatch(change: &Change, actual: &str) -> DatasetError {
    let expected = match &change.expected {
        Expected::Any | Expected::Absent => String::new(),
        Expected::Id(id) => id.clone(),
    };
    DatasetError::Mismatch { name: change.name.to_string(), expected, actual: actual.to_owned() }
}

fn content(catalog: &Catalog<'_>, id: &str) -> Result<DatasetContentRow, DatasetError> {
    catalog.dataset_content(id)?.ok_or_else(|| DatasetError::NotFound(id.to_owned()))
}

fn record(catalog: &Catalog<'_>, row: DatasetRow) -> Result<DatasetRecord, DatasetError> {
    let content = content(catalog, &row.content)?;
    let (declaration, summary) = parts(&content)?;
    let created = SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(row.created).unwrap_or(0));
    Ok(DatasetRecord { name: row.name, id: row.content, declaration, summary, bytes: content.bytes, created })
}

fn parts(row: &DatasetContentRow) -> Result<(Declaration, Summary), StoreError> {
    let corrupt = |_| StoreError::Corrupt(format!("the record of data set {}", row.id));
    let declaration = serde_json::from_str(&row.declaration).map_err(corrupt)?;
    Ok((declaration, serde_json::from_str(&row.summary).map_err(corrupt)?))
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    // It guards no value that a panic could leave half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
