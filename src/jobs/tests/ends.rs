//! How jobs end other than well: cancelled at every moment, failed in every way, drained; and how they go on.

use super::*;
use crate::registry::{AdapterFiles, Publish};

/// Every moment of a run, in order.
fn moments() -> Vec<Moment> {
    let mut moments = vec![Moment::Start];
    for step in 1..=STEPS {
        moments.push(Moment::Advance(step));
        if step % 2 == 0 || step == STEPS {
            moments.push(Moment::Checkpoint(step));
        }
    }
    moments.extend([Moment::Output, Moment::Publish]);
    moments
}

/// Fails or panics once, at a moment.
pub(super) fn once(at: Moment, mut act: impl FnMut() -> Result<(), TrainError> + Send + 'static) -> Hook {
    let mut done = false;
    Box::new(move |moment| {
        if moment != at || done {
            return Ok(());
        }
        done = true;
        act()
    })
}

#[test]
fn a_job_can_be_cancelled_at_every_moment_and_resumed_from_its_checkpoint() {
    let expected = House::new();
    let expected = expected.ended(expected.create("a").id).made;
    for at in moments() {
        let house = House::new();
        let (jobs, id) = (house.jobs.clone(), Arc::new(Mutex::new(None)));
        let theirs = Arc::clone(&id);
        house.hook(once(at, move || {
            until(|| theirs.lock().unwrap().is_some());
            let id = theirs.lock().unwrap().unwrap();
            let job = jobs.cancel(id, None).unwrap();
            assert!(job.cancelling && job.state == State::Running);
            Ok(())
        }));
        let job = house.create("a");
        *id.lock().unwrap() = Some(job.id);
        let ended = house.ended(job.id);
        if at == Moment::Publish {
            assert_eq!((ended.state, ended.made), (State::Succeeded, expected.clone()));
            assert!(matches!(house.jobs.cancel(job.id, None), Err(JobsError::Finished(State::Succeeded))));
            continue;
        }
        assert_eq!((ended.state, &ended.made, ended.cancelling), (State::Cancelled, &None, false), "{at:?}");
        assert!(matches!(house.registry.get(&name("a")), Err(RegistryError::AdapterNotFound(_))));
        assert!(matches!(house.jobs.cancel(job.id, None), Err(JobsError::Finished(State::Cancelled))));
        if ended.checkpoint.is_none() {
            let refused = house.jobs.resume(job.id, None);
            assert!(matches!(refused, Err(JobsError::NotResumable(_))), "{at:?}: {refused:?}");
            continue;
        }
        let once = key("ResumeJob", 1);
        let resumed = house.jobs.resume(job.id, Some(&once)).unwrap();
        assert_eq!(resumed.state, State::Queued);
        let ended = house.ended(job.id);
        assert_eq!((ended.state, &ended.made), (State::Succeeded, &expected), "{at:?}");
        assert_eq!(house.jobs.resume(job.id, Some(&once)).unwrap(), resumed);
        assert!(matches!(house.jobs.resume(job.id, None), Err(JobsError::NotResumable(_))));
        let events = house.events(job.id);
        let steps: Vec<_> = story(&events).split(' ').filter_map(|word| word.parse::<u64>().ok()).collect();
        assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "{at:?}");
        house.hook(|_| Ok(()));
    }
}

#[test]
fn a_job_that_waits_is_cancelled_at_once() {
    let house = House::new();
    let (reached, started) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    house.hook(once(Moment::Start, move || {
        reached.send(()).unwrap();
        let _ = gate.recv();
        Ok(())
    }));
    let first = house.create("a");
    started.recv().unwrap();
    let second = house.create("b");
    let cancelled = house.jobs.cancel(second.id, None).unwrap();
    assert_eq!((cancelled.state, cancelled.started), (State::Cancelled, None));
    assert_eq!(story(&house.events(second.id)), "queued cancelled");
    drop(go);
    assert_eq!(house.ended(first.id).state, State::Succeeded);
    assert_eq!(story(&house.events(second.id)), "queued cancelled");
}

#[test]
fn every_fault_ends_its_job_with_a_reason_and_the_next_one_runs() {
    let house = House::new();
    let io = || crate::model::ModelError::Unsupported("x".into());
    let faults: Vec<(TrainError, &str)> = vec![
        (TrainError::Setting { field: "lora.rank", fault: "is above 64".into() }, "TRAINING_SETTING"),
        (TrainError::Data("row 3: no label".into()), "TRAINING_DATA"),
        (TrainError::Memory { needed: 9, available: 8 }, "TRAINING_MEMORY"),
        (TrainError::Diverged { step: 3, loss: f64::NAN }, "TRAINING_DIVERGED"),
        (TrainError::Gradient { tensor: "q".into(), fault: "missing" }, "TRAINING_GRADIENT"),
        (TrainError::Checkpoint("is of another job".into()), "TRAINING_CHECKPOINT"),
        (TrainError::Model(io()), "INTERNAL"),
    ];
    for (error, reason) in faults {
        let message = error.to_string();
        let mut error = Some(error);
        house.hook(once(Moment::Advance(3), move || Err(error.take().unwrap())));
        let ended = house.ended(house.create("a").id);
        let failure = ended.failure.clone().unwrap();
        assert_eq!((ended.state, &*failure.reason), (State::Failed, reason));
        assert!(failure.message == message || reason == "INTERNAL", "{failure:?}");
        assert_eq!(ended.checkpoint.as_ref().map(|checkpoint| checkpoint.step), Some(2), "the last good one is kept");
        let Some((_, Event::Job(last))) = house.events(ended.id).pop() else { panic!() };
        assert_eq!(last.failure, Some(failure));
    }
    house.hook(once(Moment::Advance(3), || panic!("in training")));
    let panicked = house.ended(house.create("a").id);
    assert_eq!(panicked.failure.as_ref().map(|failure| &*failure.reason), Some("INTERNAL"));
    house.hook(|_| Ok(()));
    assert_eq!(house.ended(house.create("a").id).state, State::Succeeded);
    // What was made is what the panicked one would have made.
    house.jobs.resume(panicked.id, None).unwrap();
    let resumed = house.ended(panicked.id);
    assert_eq!((resumed.state, resumed.failure), (State::Succeeded, None));
    assert_eq!(house.registry.get(&name("a")).unwrap().generations.len(), 1);
}

#[test]
fn a_result_that_is_refused_waits_for_its_job_to_be_resumed() {
    let house = House::new();
    house.hook(once(Moment::Publish, || Err(TrainError::Data("faulty".into()))));
    let job = house.create("a");
    let failed = house.ended(job.id);
    assert_eq!(failed.failure.as_ref().map(|failure| &*failure.reason), Some("ADAPTER_INVALID"));
    assert_eq!(failed.checkpoint.map(|checkpoint| (checkpoint.step, checkpoint.last)), Some((STEPS, true)));
    house.hook(|moment| {
        assert!(!matches!(moment, Moment::Advance(_)), "all steps are done");
        Ok(())
    });
    house.jobs.resume(job.id, None).unwrap();
    assert_eq!(house.ended(job.id).state, State::Succeeded);
}

#[test]
fn an_alias_that_cannot_be_set_fails_the_job_and_not_its_result() {
    let house = House::new();
    let registry = Arc::clone(&house.registry);
    house.hook(once(Moment::Output, move || {
        let files = AdapterFiles { config: b"{}".to_vec(), tensors: b"other".to_vec() };
        let publish = Publish {
            base: None,
            name: name("live"),
            expected: Expected::Any,
            pinned: None,
            allow_no_effect: false,
            request: None,
            lineage: None,
        };
        registry.publish(files, publish).unwrap();
        Ok(())
    }));
    let job = house.jobs.create(FineTuning { alias: Some(name("live")), ..wanted("a") }, None).unwrap();
    let failed = house.ended(job.id);
    assert_eq!(failed.failure.as_ref().map(|failure| &*failure.reason), Some("NAME_TAKEN"));
    let made = generation(&failed);
    assert_eq!(house.registry.get(&name("a")).unwrap().current, made);
    house.registry.delete(&name("live"), Expected::Any, None).unwrap();
    house.jobs.resume(job.id, None).unwrap();
    assert_eq!(house.ended(job.id).state, State::Succeeded);
    assert_eq!(house.registry.alias(&name("live")).unwrap().generation, made);
}

#[test]
fn a_drained_job_is_written_down_and_taken_up_by_the_next_process() {
    let expected = House::new();
    let expected = expected.ended(expected.create("a").id).made;
    let house = House::new();
    let (reached, started) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    house.hook(once(Moment::Advance(5), move || {
        reached.send(()).unwrap();
        let _ = gate.recv();
        Ok(())
    }));
    let job = house.create("a");
    started.recv().unwrap();
    let mut shown = house.jobs.shown();
    let jobs = house.jobs.clone();
    let draining = std::thread::spawn(move || block_on(jobs.drain(std::time::Duration::from_secs(60))));
    until(|| house.jobs.is_draining());
    drop(go);
    draining.join().unwrap();
    block_on(shown.wait_for(|shown| shown.ended)).unwrap();
    let waiting = house.jobs.get(job.id).unwrap();
    assert_eq!(waiting.state, State::Running);
    assert_eq!(waiting.checkpoint.as_ref().map(|checkpoint| checkpoint.step), Some(5), "after the step that ran");
    assert!(!house.jobs.events(job.id, 0, 100).unwrap().finished);
    let folder = house.stop();
    let house = House::at(folder, Hooks::default());
    assert_eq!(house.ended(job.id).made, expected);
    assert_eq!(story(&house.events(job.id)), "queued running 1 2 3 4 5 6 7 succeeded");
}

#[test]
fn a_drain_without_time_ends_at_the_next_slice() {
    let house = House::new();
    let (reached, started) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    house.hook(once(Moment::Advance(5), move || {
        reached.send(()).unwrap();
        let _ = gate.recv();
        Ok(())
    }));
    let job = house.create("a");
    started.recv().unwrap();
    let jobs = house.jobs.clone();
    let draining = std::thread::spawn(move || block_on(jobs.drain(std::time::Duration::ZERO)));
    until(|| house.jobs.is_halted());
    drop(go);
    draining.join().unwrap();
    let waiting = house.jobs.get(job.id).unwrap();
    assert_eq!((waiting.state, waiting.last.map(|last| last.progress.step)), (State::Running, Some(4)));
    assert_eq!(waiting.checkpoint.map(|checkpoint| checkpoint.step), Some(4));
}

#[test]
fn a_job_for_another_base_model_is_not_run() {
    let house = House::hooked(fails_in_step_three);
    let job = house.create("a");
    house.ended(job.id);
    let folder = house.stop();
    let house = House::with(folder, Hooks::default(), limits(), "other");
    house.jobs.resume(job.id, None).unwrap();
    let ended = house.ended(job.id);
    assert_eq!(ended.failure.map(|failure| failure.reason).as_deref(), Some("TRAINING_BASE"));
}

#[test]
fn a_damaged_checkpoint_is_a_fault_of_the_job() {
    let house = House::hooked(fails_in_step_three);
    let job = house.create("a");
    let checkpoint = house.ended(job.id).checkpoint.unwrap();
    let path = house.folder.path().join("blobs").join(&checkpoint.blob);
    std::fs::write(path, b"damaged").unwrap();
    house.jobs.resume(job.id, None).unwrap();
    let failed = house.ended(job.id);
    assert_eq!(failed.failure.map(|failure| failure.reason).as_deref(), Some("DATA_CORRUPT"));
}

/// Runs [`on_a_small_disk`] again in a mount name space of its own, where the temporary folder is a small disk.
#[test]
#[expect(clippy::print_stderr, reason = "a test that could not run says so")]
fn a_full_disk_fails_the_job_and_keeps_its_last_checkpoint() {
    let disk = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["-rm", "sh", "-ec", script]).arg(disk.path()).arg(std::env::current_exe().unwrap());
        command.env("TMPDIR", disk.path()).output()
    };
    let mount = "mount -t tmpfs -o size=8m tmpfs \"$0\"";
    if !run(mount).is_ok_and(|output| output.status.success()) {
        eprintln!("not run: this system lets nobody mount a file system here");
        return;
    }
    let output = run(&format!("{mount}; exec \"$1\" --ignored --exact jobs::tests::ends::on_a_small_disk")).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "fills its disk; run by a_full_disk_fails_the_job_and_keeps_its_last_checkpoint"]
fn on_a_small_disk() {
    let house = House::new();
    let filler = house.folder.path().join("filler");
    let theirs = filler.clone();
    house.hook(once(Moment::Checkpoint(4), move || {
        let mut file = std::fs::File::create(&theirs).unwrap();
        while std::io::Write::write_all(&mut file, &[7; 4096]).is_ok() {}
        // Room for rows, not for a checkpoint.
        file.set_len(file.metadata().unwrap().len() - (256 << 10)).unwrap();
        Ok(())
    }));
    let mut large = wanted("large");
    large.settings.max_tokens = 1 << 20;
    let job = house.jobs.create(large, None).unwrap();
    let failed = house.ended(job.id);
    assert_eq!(failed.failure.as_ref().map(|failure| &*failure.reason), Some("STORAGE_FULL"));
    assert_eq!(failed.checkpoint.as_ref().map(|checkpoint| checkpoint.step), Some(2));
    // The rest of the house goes on, and so does the job once there is room.
    std::fs::remove_file(filler).unwrap();
    house.jobs.resume(job.id, None).unwrap();
    let ended = house.ended(job.id);
    assert_eq!(ended.state, State::Succeeded, "{:?}", ended.failure);
    assert_eq!(story(&house.events(job.id)), "queued running 1 2 3 4 failed queued running 5 6 7 succeeded");
}
