//! Images of the data directory at every moment of a run, as a kill -9 would leave them, taken up again.

use super::*;
use crate::registry::{AdapterFiles, Demand, Publish, Reference};

pub(super) type Images = Arc<Mutex<Vec<(Moment, Arc<tempfile::TempDir>)>>>;

/// Copies what is on the disk. The caller stands between two writes.
pub(super) fn image(from: &Path) -> Arc<tempfile::TempDir> {
    let to = tempfile::tempdir().unwrap();
    std::fs::create_dir(to.path().join("blobs")).unwrap();
    for folder in ["", "blobs"] {
        for entry in std::fs::read_dir(from.join(folder)).unwrap() {
            let entry = entry.unwrap();
            // SQLite makes its shared memory again from the log.
            if entry.file_type().unwrap().is_file() && entry.file_name() != "evenkeel.db-shm" {
                std::fs::copy(entry.path(), to.path().join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    Arc::new(to)
}

/// A house that takes an image at every moment.
pub(super) fn watched() -> (House, Images) {
    let (house, images) = (House::new(), Images::default());
    let (path, theirs) = (house.folder.path().to_owned(), Arc::clone(&images));
    house.hook(move |moment| {
        let image = image(&path);
        theirs.lock().unwrap().push((moment, image));
        Ok(())
    });
    (house, images)
}

fn tuned() -> FineTuning {
    FineTuning { alias: Some(name("live")), expected: Expected::Absent, ..wanted("poet") }
}

/// What of an event does not depend on the clock.
pub(super) fn fact((number, event): &(u64, Event)) -> String {
    match event {
        Event::Job(job) => format!("{number} {:?} {:?} {:?}", job.state, job.made, job.published),
        Event::Step(advance) => format!("{number} {:?}", advance.progress),
        Event::Audit(progress) => format!("{number} {} {}", progress.phase.as_str(), progress.done),
        Event::Published(kept) => format!("{number} {kept:?}"),
    }
}

#[test]
fn a_kill_at_any_moment_changes_nothing_in_the_end() {
    let (house, images) = watched();
    let id = house.jobs.create(tuned(), None).unwrap().id;
    let done = house.ended(id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let facts: Vec<_> = house.events(id).iter().map(fact).collect();
    let images = std::mem::take(&mut *images.lock().unwrap());
    // Start, 7 steps, 4 checkpoints, output, publication.
    assert_eq!(images.len(), 14);
    for (moment, image) in images {
        // A blob that was written and not named yet.
        let stray = hex::encode(Sha256::digest(b"stray"));
        std::fs::write(image.path().join("blobs").join(stray), b"stray").unwrap();
        let house = House::at(image, Hooks::default());
        let seen = house.events(id);
        let after = house.ended(id);
        assert_eq!((after.state, &after.made), (State::Succeeded, &done.made), "{moment:?}: {:?}", after.failure);
        let events = house.events(id);
        assert_eq!(events.iter().map(fact).collect::<Vec<_>>(), facts, "{moment:?}");
        assert_eq!(events[..seen.len()], seen, "{moment:?}: what was shown has changed");
        let record = house.registry.get(&name("poet")).unwrap();
        assert_eq!((record.generations.len(), record.aliases.len()), (1, 1));
        until(|| house.blobs() == 2);
    }
}

#[test]
fn a_job_that_is_killed_again_and_again_still_ends_the_same() {
    let (house, images) = watched();
    let id = house.jobs.create(tuned(), None).unwrap().id;
    let done = house.ended(id);
    let facts: Vec<_> = house.events(id).iter().map(fact).collect();
    // Each process ends before its fifth moment: it writes one checkpoint.
    let mut at = images.lock().unwrap().remove(3).1;
    let mut kills = 0;
    loop {
        let hooks = Hooks::default();
        let (path, next) = (at.path().to_owned(), Arc::new(Mutex::new(None)));
        let (theirs, mut left) = (Arc::clone(&next), 5);
        *hooks.0.lock().unwrap() = Some(Box::new(move |_| {
            left -= 1;
            if left == 0 {
                *theirs.lock().unwrap() = Some(image(&path));
            }
            Ok(())
        }));
        let house = House::at(at, hooks);
        let after = house.ended(id);
        assert_eq!((after.state, &after.made), (State::Succeeded, &done.made));
        assert_eq!(house.events(id).iter().map(fact).collect::<Vec<_>>(), facts);
        let Some(next) = next.lock().unwrap().take() else { break };
        at = next;
        kills += 1;
        assert!(kills < 50, "it does not get on");
    }
    assert!(kills >= 3, "{kills}");
}

/// The moment that no hook sees: published, and the job does not know it.
#[test]
fn a_kill_between_publication_and_success_publishes_once() {
    let (house, images) = watched();
    let id = house.jobs.create(tuned(), None).unwrap().id;
    let done = house.ended(id);
    let before = images.lock().unwrap().pop().unwrap();
    assert_eq!(before.0, Moment::Publish);
    let generation = house.registry.get(&name("poet")).unwrap().generations.remove(0);
    let (_, _, files) = house.registry.files(&Reference::parse("poet").unwrap()).unwrap();
    let read = |at: usize| std::fs::read(&files[at].path).unwrap();
    let files = AdapterFiles { config: read(0), tensors: read(1) };
    let publish = |expected, lineage| Publish {
        base: None,
        name: name("poet"),
        expected,
        pinned: None,
        allow_no_effect: false,
        request: None,
        lineage,
    };
    for (replaced, aliased) in [(false, false), (false, true), (true, true)] {
        let at = image(before.1.path());
        let (store, registry, _) = registry(at.path(), Hooks::default(), "base");
        registry.publish(files.clone(), publish(Expected::Absent, generation.lineage.clone())).unwrap();
        if aliased {
            let target = Reference::parse(&format!("poet@{}", generation.id)).unwrap();
            registry.set_alias(&name("live"), &target, Expected::Any, Demand::AsItWas, None).unwrap();
        }
        if replaced {
            let other = AdapterFiles { config: b"{}".to_vec(), tensors: b"newer".to_vec() };
            registry.publish(other, publish(Expected::Any, None)).unwrap();
        }
        drop((registry, store));
        let house = House::at(at, Hooks::default());
        house.hook(|moment| panic!("{moment:?}: everything was done"));
        let after = house.ended(id);
        assert_eq!((after.state, &after.made), (State::Succeeded, &done.made), "{:?}", after.failure);
        let record = house.registry.get(&name("poet")).unwrap();
        assert_eq!(record.generations.len(), 1 + usize::from(replaced));
        assert_eq!(record.current != generation.id, replaced);
        assert_eq!(house.registry.alias(&name("live")).unwrap().generation, generation.id);
    }
}

#[test]
fn a_cancel_is_not_forgotten_by_a_kill() {
    let (house, images) = watched();
    let job = house.jobs.create(tuned(), None).unwrap();
    house.ended(job.id);
    let images = std::mem::take(&mut *images.lock().unwrap());
    let (moment, at) = images.into_iter().find(|(moment, _)| *moment == Moment::Advance(6)).unwrap();
    // The row as it is when a caller has cancelled and the process died before the next slice.
    let store = Store::open(at.path()).unwrap();
    store
        .change(|catalog| {
            let mut row = catalog.job(&job.id.to_string())?.unwrap();
            let mut job: Job = serde_json::from_str(&row.record).unwrap();
            job.cancelling = true;
            row.record = serde_json::to_string(&job).unwrap();
            catalog.put_job(&row)
        })
        .unwrap();
    drop(store);
    let house = House::at(at, Hooks::default());
    let ended = house.ended(job.id);
    assert_eq!((ended.state, ended.cancelling), (State::Cancelled, false), "{moment:?}");
    assert!(house.registry.get(&name("poet")).is_err());
    house.jobs.resume(job.id, None).unwrap();
    assert_eq!(house.ended(job.id).state, State::Succeeded);
}

#[test]
fn a_record_that_cannot_be_read_stops_no_other_job() {
    let (house, images) = watched();
    let broken = house.jobs.create(tuned(), None).unwrap().id;
    house.ended(broken);
    let at = images.lock().unwrap().remove(5).1;
    let store = Store::open(at.path()).unwrap();
    store
        .change(|catalog| {
            let mut row = catalog.job(&broken.to_string())?.unwrap();
            row.record = "{}".into();
            catalog.put_job(&row)
        })
        .unwrap();
    drop(store);
    let house = House::at(at, Hooks::default());
    assert_eq!(house.ended(house.create("other").id).state, State::Succeeded);
    assert!(matches!(house.jobs.get(broken), Err(JobsError::Store(StoreError::Corrupt(_)))));
}
