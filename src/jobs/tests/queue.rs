//! Making, listing and refusing jobs; who runs when.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use super::*;

/// A house whose runner waits at the first start of a job until something is sent.
fn held() -> (House, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((reached, started), (go, gate)) = (mpsc::channel(), mpsc::channel::<()>());
    let house = House::hooked(move |moment| {
        if moment == Moment::Start {
            reached.send(()).unwrap();
            // A closed gate is an open one.
            let _ = gate.recv();
        }
        Ok(())
    });
    (house, started, go)
}

#[test]
fn a_job_runs_to_its_end_and_tells_everything() {
    let house = House::new();
    let job = house.jobs.create(FineTuning { alias: Some(name("live")), ..wanted("poet") }, None).unwrap();
    assert_eq!((job.state, &*job.dataset, &*job.base), (State::Queued, "digest", "base"));
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let events = house.events(job.id);
    assert_eq!(story(&events), "queued running 1 2 3 4 5 6 7 succeeded");
    assert!(events.iter().zip(1..).all(|((number, _), expected)| *number == expected));
    let Event::Job(last) = &events[9].1 else { panic!() };
    assert_eq!(**last, done);
    let Event::Step(fourth) = &events[5].1 else { panic!() };
    assert!(fourth.progress.evaluation.is_some() && fourth.tokens_per_second > 0.0 && fourth.eta_seconds > 0.0);
    assert_eq!(fourth.progress.groups.len(), 1, "a group without a row has no loss");
    assert_eq!(done.last.as_ref().map(|last| (last.progress.step, last.eta_seconds)), Some((STEPS, 0.0)));
    assert!(done.started >= Some(done.created) && done.ended >= done.started);

    let made = generation(&done);
    let record = house.registry.get(&name("poet")).unwrap();
    assert_eq!((record.current, record.aliases), (made.clone(), vec!["live".into()]));
    let lineage = record.generations[0].lineage.clone().unwrap();
    let known = (lineage.job, lineage.dataset, lineage.base, lineage.parent);
    assert_eq!(known, (job.id.to_string(), "digest".into(), "base".into(), None));
    assert_eq!(serde_json::from_value::<Settings>(lineage.settings).unwrap(), settings());
    assert_eq!(done.checkpoint, None);
    until(|| {
        house.blobs() == 2 && house.metrics.jobs_finished.with_label_values(&["fine_tuning", "succeeded"]).get() == 1
    });
    let count = |outcome| house.metrics.jobs_finished.with_label_values(&["fine_tuning", outcome]).get();
    assert_eq!((count("succeeded"), count("failed"), house.metrics.training_steps.get()), (1, 0, STEPS));
    assert_eq!(house.metrics.training_tokens.get(), 10 * STEPS);

    // Another job of other settings takes over; its lineage names what was before.
    let mut other = wanted("poet");
    other.settings.seed = 6;
    let second = house.ended(house.jobs.create(other, None).unwrap().id);
    let record = house.registry.get(&name("poet")).unwrap();
    assert_eq!(record.current, generation(&second));
    assert_eq!(record.generations[0].lineage.as_ref().unwrap().parent, Some(made));
}

#[test]
fn a_token_gives_what_follows_it_and_nothing_twice() {
    let house = House::new();
    let job = house.create("poet");
    house.ended(job.id);
    let all = house.events(job.id);
    for after in 0..=all.len() as u64 {
        for limit in [1, 3, 100] {
            let (mut seen, mut at) = (Vec::new(), after);
            loop {
                let batch = house.jobs.events(job.id, at, limit).unwrap();
                at = batch.events.last().map_or(at, |(number, ..)| *number);
                seen.extend(batch.events.into_iter().map(|(number, _, event)| (number, event)));
                if batch.finished {
                    break;
                }
            }
            assert_eq!(seen, all[after as usize..]);
        }
    }
    let none = house.jobs.events(job.id, all.len() as u64 + 1, 10);
    assert!(matches!(none, Err(JobsError::Event)), "{none:?}");
    let unknown = JobId::new();
    assert!(matches!(house.jobs.events(unknown, 0, 10), Err(JobsError::NotFound(_))));
    assert!(matches!(house.jobs.get(unknown), Err(JobsError::NotFound(_))));
}

#[test]
fn jobs_run_one_by_one_in_their_order_and_the_queue_is_bounded() {
    let (house, started, go) = held();
    let first = house.create("a");
    started.recv().unwrap();
    let rest: Vec<_> = ["b", "c", "d"].map(|name| house.create(name).id).into();
    let refused = house.jobs.create(wanted("e"), None);
    assert!(matches!(refused, Err(JobsError::QueueFull(3))), "{refused:?}");
    let gauge = |state: State| house.metrics.jobs.with_label_values(&["fine_tuning", state.as_str()]).get();
    assert_eq!((gauge(State::Running), gauge(State::Queued)), (1, 3));
    assert_eq!(house.jobs.get(first.id).unwrap().state, State::Running);
    drop(go);
    let ends: Vec<_> = rest.iter().map(|id| house.ended(*id)).collect();
    assert!(ends.windows(2).all(|pair| pair[0].ended <= pair[1].started));
    assert_eq!((gauge(State::Running), gauge(State::Queued)), (0, 0));

    let list = |before: Option<&str>, state, limit| {
        let jobs = house.jobs.list(before, state, limit).unwrap();
        jobs.iter().map(Job::name).collect::<String>()
    };
    assert_eq!(list(None, None, 10), "dcba");
    assert_eq!(list(None, None, 2), "dc");
    assert_eq!(list(Some(&rest[1].to_string()), None, 10), "ba");
    assert_eq!(list(None, Some(State::Succeeded), 10), "dcba");
    assert_eq!(list(None, Some(State::Failed), 10), "");
}

#[test]
fn what_cannot_be_published_is_refused_before_it_is_trained() {
    let (house, started, go) = held();
    let lost = house.jobs.create(FineTuning { dataset: "none".into(), ..wanted("a") }, None);
    assert!(matches!(lost, Err(JobsError::DatasetNotFound(_))), "{lost:?}");
    let generation = Generation::from_digest([7; 32]);
    let stale = house.jobs.create(FineTuning { expected: Expected::Generation(generation), ..wanted("a") }, None);
    assert!(matches!(stale, Err(JobsError::Registry(RegistryError::GenerationMismatch { .. }))), "{stale:?}");
    house.jobs.create(FineTuning { alias: Some(name("live")), ..wanted("a") }, None).unwrap();
    started.recv().unwrap();
    // While it runs nobody else makes its names, in whatever part.
    for (adapter, alias) in [("a", None), ("live", None), ("b", Some("a")), ("b", Some("live"))] {
        let other = FineTuning { alias: alias.map(name), ..wanted(adapter) };
        let refused = house.jobs.create(other, None);
        assert!(matches!(refused, Err(JobsError::Conflict(_))), "{adapter} {alias:?}: {refused:?}");
    }
    assert_eq!(house.jobs.list(None, None, 10).unwrap().len(), 1, "a refused job leaves no trace");
    drop(go);
    house.ended(house.jobs.list(None, None, 1).unwrap()[0].id);
    for other in [wanted("live"), FineTuning { alias: Some(name("a")), ..wanted("b") }] {
        let refused = house.jobs.create(other, None);
        assert!(matches!(refused, Err(JobsError::Registry(RegistryError::NameTaken(..)))), "{refused:?}");
    }
    let absent = house.jobs.create(FineTuning { expected: Expected::Absent, ..wanted("a") }, None);
    assert!(matches!(absent, Err(JobsError::Registry(RegistryError::GenerationMismatch { .. }))), "{absent:?}");
}

#[test]
fn a_repeated_call_has_one_effect_and_one_answer() {
    let house = House::new();
    let once = key("CreateFineTuningJob", 1);
    let job = house.jobs.create(wanted("a"), Some(&once)).unwrap();
    house.ended(job.id);
    assert_eq!(house.jobs.create(wanted("a"), Some(&once)).unwrap(), job);
    let reused = house.jobs.create(wanted("b"), Some(&key("CreateFineTuningJob", 2)));
    assert!(matches!(reused, Err(JobsError::RequestIdReused(_))), "{reused:?}");
    let folder = house.stop();
    let house = House::at(folder, Hooks::default());
    assert_eq!(house.jobs.create(wanted("a"), Some(&once)).unwrap(), job);
    assert_eq!(house.jobs.list(None, None, 10).unwrap().len(), 1);
}

#[test]
fn finished_jobs_are_forgotten_in_the_end_with_their_checkpoints() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let settings = JobsSettings { keep_finished: 2, ..limits() };
    let house = House::with(folder, Hooks::default(), settings, "base");
    house.hook(fails_in_step_three);
    let ids: Vec<_> = (0..4).map(|_| house.ended(house.create("a").id).id).collect();
    // The fourth was made when three had ended.
    assert!(matches!(house.jobs.get(ids[0]), Err(JobsError::NotFound(_))));
    assert!(ids[1..].iter().all(|id| house.jobs.get(*id).unwrap().is_resumable()));
    assert_eq!(house.blobs(), 1, "equal checkpoints are one file, which is still named");
}

#[test]
fn statistics_that_are_no_job_let_requests_go_first_and_end_when_nobody_waits() {
    let house = House::new();
    let left = AtomicBool::new(false);
    assert!(!house.jobs.yields(&left));
    let turns = &house.jobs.inner().parts.turns;
    let order = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let mut steps = turns.steps();
        let step = steps.take();
        let waiting = scope.spawn(|| {
            let stops = house.jobs.yields(&left);
            order.lock().unwrap().push("statistics");
            stops
        });
        drop(step);
        for _ in 0..100 {
            let _step = steps.take();
            order.lock().unwrap().push("step");
        }
        steps.rest();
        assert!(!waiting.join().unwrap());
    });
    let order = order.into_inner().unwrap();
    assert_eq!((order.len(), order[100]), (101, "statistics"));
    let mut steps = turns.steps();
    let _step = steps.take();
    left.store(true, Ordering::SeqCst);
    assert!(house.jobs.yields(&left), "it does not wait for its turn");
}
