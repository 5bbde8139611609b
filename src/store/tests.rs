//! Tests of the store: crash leftovers, damage, a full disk, one holder.

use sha2::{Digest, Sha256};

use super::*;

fn publish(store: &Store, content: &[u8]) -> String {
    let digest = store.blobs().put(content.to_vec()).unwrap();
    store
        .change(|catalog| {
            catalog.put_adapter(&AdapterRow { name: "a".into(), current: "g".into(), pinned: true }, 1)?;
            catalog.put_generation(&GenerationRow {
                adapter: "a".into(),
                id: "g".into(),
                base: "b".into(),
                config_blob: digest.clone(),
                tensor_blob: digest.clone(),
                info: "{}".into(),
                effect: 0.1,
                bytes: 7,
                created: 1,
                lineage: None,
            })
        })
        .unwrap();
    digest
}

#[test]
fn one_process_holds_the_directory() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::Locked(_))));
    drop(store);
    Store::open(folder.path()).unwrap();
}

#[test]
fn a_crash_before_the_transaction_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = folder.path().join("blobs");
    let (kept, orphan) = {
        let store = Store::open(folder.path()).unwrap();
        (publish(&store, b"kept"), store.blobs().put(b"no row names it".to_vec()).unwrap())
    };
    let half = format!("{}#1", hex::encode(Sha256::digest(b"half")));
    std::fs::write(blobs.join(&half), b"ha").unwrap();
    std::fs::write(blobs.join("README"), b"not ours").unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut expected = vec![kept.clone(), "README".to_owned()];
    expected.sort();
    assert_eq!(names, expected);
    assert!(matches!(store.blobs().get(&orphan), Err(StoreError::Corrupt(_))));
    assert_eq!(store.blobs().get(&kept).unwrap(), b"kept");
}

#[test]
fn a_changed_or_missing_blob_is_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let digest = store.blobs().put(b"content".to_vec()).unwrap();
    let (path, size) = store.blobs().check(&digest).unwrap();
    assert_eq!(size, 7);
    std::fs::write(&path, b"Content").unwrap();
    assert!(matches!(store.blobs().get(&digest), Err(StoreError::Corrupt(_))));
    assert!(matches!(store.blobs().check(&digest), Err(StoreError::Corrupt(_))));
    // Writing it again heals it.
    store.blobs().put(b"content".to_vec()).unwrap();
    assert_eq!(store.blobs().get(&digest).unwrap(), b"content");
    store.blobs().remove(&digest).unwrap();
    store.blobs().remove(&digest).unwrap();
    assert!(matches!(store.blobs().get(&digest), Err(StoreError::Corrupt(_))));
}

#[test]
fn a_failed_change_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    publish(&store, b"x");
    let result: Result<(), StoreError> = store.change(|catalog| {
        catalog.delete_adapter("a")?;
        Err(StoreError::Full)
    });
    assert!(matches!(result, Err(StoreError::Full)));
    assert_eq!(store.read(|c| c.generations("a")).unwrap().len(), 1);
    // An adapter without its current generation, or an alias to nothing, is refused by the database itself.
    store.change::<_, StoreError>(|c| c.delete_generation("a", "g")).unwrap_err();
    let lost = AliasRow { name: "l".into(), adapter: "a".into(), generation: "other".into(), updated: 1, policy: None };
    store.change::<_, StoreError>(|c| c.put_alias(&lost)).unwrap_err();
    assert_eq!(store.read(|c| c.generations("a")).unwrap().len(), 1);
}

#[test]
fn a_full_database_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.database.lock().unwrap().pragma_update(None, "max_page_count", 1).unwrap();
    let response = "x".repeat(1 << 20);
    let row = RequestRow { fingerprint: [0; 32], response };
    let result: Result<(), StoreError> = store.change(|catalog| catalog.put_request(("m", "i"), &row, 1, 0));
    assert!(matches!(result, Err(StoreError::Full)), "{result:?}");
}

#[test]
fn what_the_system_says_about_space_is_found_below_object_store() {
    let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = object_store::Error::Generic { store: "local", source: Box::new(source) };
    assert!(matches!(blobs::failed(error), StoreError::Full));
}

#[test]
fn a_blob_can_be_written_inside_a_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(Store::open(folder.path()).unwrap());
    // One blocking thread, and it is ours: handing the work back to the pool would wait for ever.
    let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(1).build().unwrap();
    let digest = runtime.block_on({
        let store = store.clone();
        async move { tokio::task::spawn_blocking(move || store.blobs().put(b"x".to_vec())).await }
    });
    assert_eq!(store.blobs().get(&digest.unwrap().unwrap()).unwrap(), b"x");
}

/// What a change by request id can fail with.
#[derive(Debug)]
enum Refusal {
    Reused,
    Store,
}

impl From<RequestIdReused> for Refusal {
    fn from(_: RequestIdReused) -> Self {
        Self::Reused
    }
}

impl From<StoreError> for Refusal {
    fn from(_: StoreError) -> Self {
        Self::Store
    }
}

#[test]
fn the_first_answer_to_a_request_is_given_again_for_a_day() {
    let day = 24 * 60 * 60 * 1_000_000;
    let minute = day / (24 * 60);
    for (age, remembered) in [(0, true), (day - minute, true), (day + minute, false)] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let key = RequestKey { method: "SetAlias", id: "r".into(), fingerprint: [1; 32] };
        let first = RequestRow { fingerprint: key.fingerprint, response: "1".into() };
        let put = store.change::<_, StoreError>(|catalog| {
            catalog.put_request((key.method, &key.id), &first, now() - age, i64::MIN)
        });
        put.unwrap();
        let ask = |key: &RequestKey, answer: u32| store.change_once::<u32, Refusal>(Some(key), |_| Ok(answer));
        let other = RequestKey { fingerprint: [2; 32], ..key.clone() };
        if remembered {
            assert_eq!(ask(&key, 2).unwrap(), 1, "after {age} microseconds");
            assert!(matches!(ask(&other, 2), Err(Refusal::Reused)));
        } else {
            // Its id is free again, for whatever is asked; the new answer has a day of its own.
            assert_eq!(ask(&other, 2).unwrap(), 2, "after {age} microseconds");
            assert_eq!(ask(&other, 3).unwrap(), 2);
            assert!(matches!(ask(&key, 4), Err(Refusal::Reused)));
        }
    }
}
