//! Data sets by name: compare-and-swap, holds, repeated requests, damage, restarts.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::config::DatasetSettings;
use crate::store::{Name, RequestKey, Store, StoreError};

struct House {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    datasets: Datasets,
}

fn house() -> House {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let datasets = Datasets::open(Arc::clone(&store), DatasetSettings::default()).unwrap();
    House { folder, store, datasets }
}

impl House {
    fn again(self) -> Self {
        let Self { folder, store, datasets } = self;
        drop((datasets, store));
        let store = Arc::new(Store::open(folder.path()).unwrap());
        let datasets = Datasets::open(Arc::clone(&store), DatasetSettings::default()).unwrap();
        Self { folder, store, datasets }
    }

    fn blobs(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("blobs")).unwrap().count()
    }

    fn put(&self, name: &str, rows: &str, expected: Expected) -> Result<DatasetRecord, DatasetError> {
        self.datasets.put(format!("text\n{rows}\n").into(), text(Format::Csv), change(name, expected, None))
    }

    fn delete(&self, name: &str) -> Result<(), DatasetError> {
        self.datasets.delete(&change(name, Expected::Any, None))
    }
}

fn change(name: &str, expected: Expected, request: Option<RequestKey>) -> Change {
    Change { name: Name::parse(name).unwrap(), expected, request }
}

#[test]
fn a_name_is_replaced_only_when_it_is_meant() {
    let house = house();
    let first = house.put("a", "one", Expected::Any).unwrap();
    assert_eq!(house.put("a", "one", Expected::Any).unwrap(), first);
    for expected in [Expected::Any, Expected::Absent, Expected::Id("0".repeat(64))] {
        let error = house.put("a", "two", expected).unwrap_err();
        assert!(matches!(&error, DatasetError::Mismatch { actual, .. } if *actual == first.id), "{error}");
    }
    let missing = house.put("b", "two", Expected::Id(first.id.clone()));
    assert!(matches!(missing, Err(DatasetError::Mismatch { actual, .. }) if actual.is_empty()));
    assert_eq!(house.blobs(), 1);
    let second = house.put("a", "two", Expected::Id(first.id.clone())).unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(house.blobs(), 1);
    assert!(matches!(house.datasets.read(&first.id), Err(DatasetError::NotFound(_))));
    assert_eq!(house.datasets.get("a").unwrap(), second);
    assert_eq!(house.datasets.get(&second.id).unwrap(), second);
    // A refused file leaves nothing.
    assert!(matches!(house.put("c", "", Expected::Any), Err(DatasetError::Invalid(_))));
    assert_eq!(house.blobs(), 1);
}

#[test]
fn contents_live_as_long_as_a_name_or_a_hold() {
    let house = house();
    let id = house.put("a", "one", Expected::Any).unwrap().id;
    assert_eq!(house.put("b", "one", Expected::Any).unwrap().id, id);
    house.delete("a").unwrap();
    assert_eq!(house.datasets.get(&id).unwrap().name, "b");
    house.store.change::<_, StoreError>(|catalog| catalog.hold_dataset(&id, "job-1")).unwrap();
    let error = house.delete("b").unwrap_err();
    assert!(matches!(&error, DatasetError::InUse { holders, .. } if holders == &["job-1"]), "{error}");
    // The name may go on to other content; what the job holds stays.
    house.put("b", "two", Expected::Id(id.clone())).unwrap();
    assert_eq!((texts(&house.datasets.read(&id).unwrap()), house.blobs()), (vec!["one"], 2));
    let house = house.again();
    assert_eq!(house.datasets.get(&id).unwrap().name, "");
    house.store.change::<_, StoreError>(|catalog| catalog.release_datasets("job-1")).unwrap();
    house.datasets.collect().unwrap();
    assert!(matches!(house.datasets.read(&id), Err(DatasetError::NotFound(_))));
    assert_eq!(house.blobs(), 1);
    house.delete("b").unwrap();
    assert!(matches!(house.delete("b"), Err(DatasetError::NotFound(_))));
    assert_eq!(house.blobs(), 0);
    assert!(house.store.change::<_, StoreError>(|catalog| catalog.hold_dataset(&id, "job-2")).is_err());
}

#[test]
fn a_repeated_request_gets_its_first_answer() {
    let house = house();
    let key = |content: u8| Some(RequestKey { method: "UploadDataset", id: "r".into(), fingerprint: [content; 32] });
    let put = |name: &str, content| {
        house.datasets.put(b"text\nx\n".to_vec(), text(Format::Csv), change(name, Expected::Absent, key(content)))
    };
    let first = put("a", 1).unwrap();
    assert_eq!(put("a", 1).unwrap(), first);
    assert!(matches!(put("b", 2), Err(DatasetError::RequestIdReused(_))));
    let delete = |id: &str| {
        let request = Some(RequestKey { method: "DeleteDataset", id: id.into(), fingerprint: [0; 32] });
        house.datasets.delete(&change("a", Expected::Any, request))
    };
    delete("d").unwrap();
    delete("d").unwrap();
    assert!(matches!(delete("e"), Err(DatasetError::NotFound(_))));
}

#[test]
fn data_sets_are_listed_by_name_and_survive() {
    let house = house();
    for name in ["c", "a", "b"] {
        house.put(name, name, Expected::Any).unwrap();
    }
    let names = |records: Vec<DatasetRecord>| records.into_iter().map(|record| record.name).collect::<Vec<_>>();
    assert_eq!(names(house.datasets.list(None, 2).unwrap()), ["a", "b"]);
    assert_eq!(names(house.datasets.list(Some("b"), 2).unwrap()), ["c"]);
    let before = house.datasets.list(None, 10).unwrap();
    let house = house.again();
    assert_eq!(house.datasets.list(None, 10).unwrap(), before);
}

#[test]
fn reading_gives_the_same_rows_and_shares_them() {
    let house = house();
    let id = house.put("a", "one\ntwo", Expected::Any).unwrap().id;
    let (a, b) = (house.datasets.read(&id).unwrap(), house.datasets.read(&id).unwrap());
    assert!(Arc::ptr_eq(&a, &b));
    assert_eq!((texts(&a), a.id.as_str()), (vec!["one", "two"], id.as_str()));
}

/// The only file below `blobs`.
fn blob(folder: &Path) -> std::path::PathBuf {
    std::fs::read_dir(folder.join("blobs")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn damage_is_found() {
    let house = house();
    let id = house.put("a", "one", Expected::Any).unwrap().id;
    std::fs::write(blob(house.folder.path()), b"text\nOne\n").unwrap();
    assert!(matches!(house.datasets.read(&id), Err(DatasetError::Store(StoreError::Corrupt(_)))));
    // The same upload heals it.
    house.put("a", "one", Expected::Any).unwrap();
    assert_eq!(texts(&house.datasets.read(&id).unwrap()), ["one"]);
    std::fs::remove_file(blob(house.folder.path())).unwrap();
    let house = house.again();
    assert!(matches!(house.datasets.read(&id), Err(DatasetError::Store(StoreError::Corrupt(_)))));
}
