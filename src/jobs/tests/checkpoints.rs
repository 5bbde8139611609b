//! Checkpoints that are published on the way: killed at every moment, cancelled, refused, under whose names, and audited.

use super::audits::{audit, model, publish, shadows, trained};
use super::ends::once;
use super::kills::{fact, image, watched};
use super::*;
use crate::registry::{AdapterFiles, AdapterRecord, Publish, Reference};

const KEPT: [u64; 3] = [3, 4, 7];

fn kept(adapter: &str) -> FineTuning {
    FineTuning { settings: Settings { publish_steps: KEPT.to_vec(), ..settings() }, ..wanted(adapter) }
}

fn record(house: &House, adapter: &str) -> Option<AdapterRecord> {
    house.registry.get(&name(adapter)).ok()
}

/// The steps of a job's checkpoints, after a look at what stands in the registry.
fn published(house: &House, job: &Job) -> Vec<u64> {
    let steps = job.published.iter().map(|kept| {
        let record = record(house, &kept.adapter).unwrap();
        assert_eq!((kept.adapter.clone(), record.generations.len()), (checkpoint_name(job.name(), kept.step), 1));
        assert_eq!((&record.current, record.pinned), (&kept.generation, false));
        let lineage = record.generations[0].lineage.clone().unwrap();
        assert_eq!((lineage.job, lineage.step), (job.id.to_string(), Some(kept.step)));
        assert_eq!((lineage.dataset, lineage.base), (job.dataset.clone(), job.base.clone()));
        kept.step
    });
    steps.collect()
}

#[test]
fn each_is_what_a_run_that_ends_there_makes() {
    let house = House::new();
    let key = key("CreateFineTuningJob", 1);
    let job = house.jobs.create(FineTuning { pinned: Some(true), ..kept("a") }, Some(&key)).unwrap();
    let done = house.ended(job.id);
    assert_eq!(house.jobs.create(kept("a"), Some(&key)).unwrap(), job, "the same call again");
    assert_eq!(published(&house, &done), KEPT);
    assert_eq!(story(&house.events(job.id)), "queued running 1 2 3 @3 4 @4 5 6 7 @7 succeeded");
    assert_eq!(done.unpublished(), (vec![], vec![]));
    for kept in &done.published {
        let short = Settings { patience: kept.step, ..settings() };
        let short = house.jobs.create(FineTuning { settings: short, ..wanted("short") }, None).unwrap();
        assert_eq!(generation(&house.ended(short.id)), kept.generation, "step {}", kept.step);
    }
    assert_eq!(done.published[2].generation, generation(&done), "the last step's is the result");
    let result = record(&house, "a").unwrap();
    assert_eq!((result.pinned, result.generations[0].lineage.clone().unwrap().step), (true, None));
    // A run that ends before says which it did not come to.
    let early = Settings { patience: 4, publish_steps: vec![2, 4, 5, 7], ..settings() };
    let early = house.jobs.create(FineTuning { settings: early, ..wanted("early") }, None).unwrap();
    let early = house.ended(early.id);
    assert_eq!((early.state, published(&house, &early)), (State::Succeeded, vec![2, 4]));
    assert_eq!(early.unpublished(), (vec![], vec![5, 7]));
    // Again under the same name: a generation more of each.
    let other = Settings { seed: 6, publish_steps: vec![3], ..settings() };
    let other = house.jobs.create(FineTuning { settings: other, ..wanted("a") }, None).unwrap();
    let other = house.ended(other.id);
    let stored = record(&house, "a.checkpoint-3").unwrap();
    assert_eq!((stored.generations.len(), &stored.current), (2, &other.published[0].generation));
    let parent = stored.generations[0].lineage.clone().unwrap().parent;
    assert_eq!(parent.as_ref(), Some(&done.published[0].generation));
}

#[test]
fn a_kill_at_any_moment_publishes_each_once_and_leaves_none_out() {
    let (house, images) = watched();
    let id = house.jobs.create(FineTuning { expected: Expected::Absent, ..kept("poet") }, None).unwrap().id;
    let done = house.ended(id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let facts: Vec<_> = house.events(id).iter().map(fact).collect();
    let images = std::mem::take(&mut *images.lock().unwrap());
    let moments: Vec<_> = images.iter().map(|(moment, _)| *moment).collect();
    let count = |which: fn(&Moment) -> bool| moments.iter().filter(|moment| which(moment)).count();
    assert_eq!(count(|moment| matches!(moment, Moment::Latest(_))), 3, "{moments:?}");
    assert_eq!(count(|moment| matches!(moment, Moment::Publish)), 4, "{moments:?}");
    for (at, (moment, image)) in images.into_iter().enumerate() {
        let house = House::at(image, Hooks::default());
        let seen = house.events(id);
        let after = house.ended(id);
        assert_eq!((after.state, &after.made), (State::Succeeded, &done.made), "{at} {moment:?}: {:?}", after.failure);
        assert_eq!((&after.published, published(&house, &after)), (&done.published, KEPT.to_vec()), "{at} {moment:?}");
        let events = house.events(id);
        assert_eq!(events.iter().map(fact).collect::<Vec<_>>(), facts, "{at} {moment:?}");
        assert_eq!(events[..seen.len()], seen, "{at} {moment:?}: what was shown has changed");
        // The configuration is one file; the last step and the result are the same tensors.
        until(|| house.blobs() == 4);
    }
}

/// The moment that no hook sees: published, and the job does not know it.
#[test]
fn a_kill_between_a_publication_and_its_record_publishes_it_once() {
    let (house, images) = watched();
    let id = house.jobs.create(FineTuning { expected: Expected::Absent, ..kept("poet") }, None).unwrap().id;
    let done = house.ended(id);
    let images = std::mem::take(&mut *images.lock().unwrap());
    let publications: Vec<_> = images.into_iter().filter(|(moment, _)| *moment == Moment::Publish).collect();
    for (kept, (_, before)) in done.published.iter().zip(&publications) {
        let stored = record(&house, &kept.adapter).unwrap().generations.remove(0);
        let (_, _, files) = house.registry.files(&Reference::parse(&kept.adapter).unwrap()).unwrap();
        let read = |at: usize| std::fs::read(&files[at].path).unwrap();
        let files = AdapterFiles { config: read(0), tensors: read(1) };
        let at = image(before.path());
        let (store, registry, _) = registry(at.path(), Hooks::default(), "base");
        let publish = Publish {
            base: None,
            name: name(&kept.adapter),
            expected: Expected::Absent,
            pinned: None,
            allow_no_effect: false,
            request: None,
            lineage: stored.lineage,
        };
        registry.publish(files, publish).unwrap();
        drop((registry, store));
        let hooks = Hooks::default();
        let step = kept.step;
        *hooks.0.lock().unwrap() = Some(Box::new(move |moment| {
            assert_ne!(moment, Moment::Latest(step), "it is there already");
            assert!(!matches!(moment, Moment::Advance(done) if done <= step), "{moment:?}: it is in the checkpoint");
            Ok(())
        }));
        let house = House::at(at, hooks);
        let after = house.ended(id);
        assert_eq!((after.state, &after.made, &after.published), (State::Succeeded, &done.made, &done.published));
        assert_eq!(published(&house, &after), KEPT);
    }
}

#[test]
fn what_was_published_stays_when_the_job_is_cancelled_and_is_said() {
    let expected = House::new();
    let expected = expected.ended(expected.jobs.create(kept("a"), None).unwrap().id);
    for (at, left) in [
        (Moment::Advance(3), &KEPT[..0]),
        (Moment::Checkpoint(3), &KEPT[..0]),
        (Moment::Advance(4), &KEPT[..1]),
        (Moment::Advance(5), &KEPT[..2]),
        (Moment::Checkpoint(7), &KEPT[..2]),
        (Moment::Output, &KEPT[..3]),
    ] {
        let house = House::new();
        let (jobs, id) = (house.jobs.clone(), Arc::new(Mutex::new(None)));
        let theirs = Arc::clone(&id);
        house.hook(once(at, move || {
            until(|| theirs.lock().unwrap().is_some());
            jobs.cancel(theirs.lock().unwrap().unwrap(), None).unwrap();
            Ok(())
        }));
        let job = house.jobs.create(kept("a"), None).unwrap();
        *id.lock().unwrap() = Some(job.id);
        let ended = house.ended(job.id);
        assert_eq!(
            (ended.state, &ended.made, published(&house, &ended)),
            (State::Cancelled, &None, left.to_vec()),
            "{at:?}"
        );
        assert!(record(&house, "a").is_none());
        let Some((_, Event::Job(last))) = house.events(job.id).pop() else { panic!() };
        assert_eq!(last.published, ended.published, "a watcher is told");
        if ended.checkpoint.is_none() {
            assert!(left.is_empty());
            continue;
        }
        house.jobs.resume(job.id, None).unwrap();
        let ended = house.ended(job.id);
        assert_eq!((&ended.made, &ended.published), (&expected.made, &expected.published), "{at:?}");
        assert_eq!(published(&house, &ended), KEPT);
        house.hook(|_| Ok(()));
    }
}

#[test]
fn a_checkpoint_that_is_refused_fails_the_job_which_goes_on_from_there() {
    let house = House::new();
    let mut publications = 0;
    house.hook(move |moment| {
        publications += usize::from(moment == Moment::Publish);
        let refused = moment == Moment::Publish && publications == 2;
        if refused { Err(TrainError::Data("faulty".into())) } else { Ok(()) }
    });
    let job = house.jobs.create(kept("a"), None).unwrap();
    let failed = house.ended(job.id);
    assert_eq!(failed.failure.as_ref().map(|failure| &*failure.reason), Some("ADAPTER_INVALID"));
    assert_eq!((published(&house, &failed), failed.unpublished()), (vec![3], (vec![4], vec![7])));
    assert_eq!(failed.checkpoint.as_ref().map(|checkpoint| checkpoint.step), Some(4));
    house.hook(|moment| {
        assert!(!matches!(moment, Moment::Advance(..5)), "{moment:?} is done");
        Ok(())
    });
    house.jobs.resume(job.id, None).unwrap();
    let ended = house.ended(job.id);
    assert_eq!((ended.state, published(&house, &ended)), (State::Succeeded, KEPT.to_vec()), "{:?}", ended.failure);
    assert_eq!(story(&house.events(job.id)), "queued running 1 2 3 @3 4 failed queued running @4 5 6 7 @7 succeeded");
}

/// A job that waits until the house has been asked.
fn held(house: &House) -> std::sync::mpsc::Sender<()> {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    house.hook(once(Moment::Start, move || {
        let _ = gate.recv();
        Ok(())
    }));
    go
}

#[test]
fn nobody_else_makes_their_names() {
    let house = House::new();
    let go = held(&house);
    let job = house.jobs.create(kept("a"), None).unwrap();
    let refused = |wanted: FineTuning| match house.jobs.create(wanted, None) {
        Err(JobsError::Conflict(other)) => assert_eq!(other, job.id.to_string()),
        other => panic!("{other:?}"),
    };
    refused(wanted("a.checkpoint-4"));
    refused(FineTuning { alias: Some(name("a.checkpoint-7")), ..wanted("b") });
    let inner = Settings { publish_steps: vec![5], ..settings() };
    let nested = |adapter: &str| FineTuning { settings: inner.clone(), ..wanted(adapter) };
    refused(nested("a.checkpoint-4"));
    // One that this job does not make.
    let free = house.jobs.create(nested("a.checkpoint-5"), None).unwrap();
    let taken = house.jobs.create(FineTuning { settings: inner.clone(), ..wanted("a.checkpoint-5") }, None);
    assert!(matches!(taken, Err(JobsError::Conflict(_))), "{taken:?}");
    drop(go);
    assert_eq!(house.ended(free.id).state, State::Succeeded);
    // The other way round: the name is made when a job wants it for its checkpoint.
    let go = held(&house);
    let job = house.jobs.create(wanted("c.checkpoint-3"), None).unwrap();
    let refused = house.jobs.create(kept("c"), None);
    assert!(matches!(&refused, Err(JobsError::Conflict(other)) if *other == job.id.to_string()), "{refused:?}");
    drop(go);
    house.ended(job.id);
}

#[test]
fn they_are_published_only_over_what_was_expected() {
    let house = House::new();
    publish(&house, "a.checkpoint-4", b"old");
    let refused = house.jobs.create(FineTuning { expected: Expected::Absent, ..kept("a") }, None);
    assert!(matches!(refused, Err(JobsError::Registry(RegistryError::GenerationMismatch { .. }))), "{refused:?}");
    let target = Reference::parse("a.checkpoint-4").unwrap();
    let demand = crate::registry::Demand::AsItWas;
    house.registry.set_alias(&name("b.checkpoint-3"), &target, Expected::Any, demand, None).unwrap();
    let refused = house.jobs.create(kept("b"), None);
    assert!(matches!(refused, Err(JobsError::Registry(RegistryError::NameTaken(..)))), "{refused:?}");
    // With a generation expected under the name of the result, the others have to be as they were when it was made.
    let first = publish(&house, "a", b"first");
    let expected = || Expected::Generation(Generation::parse(&record(&house, "a").unwrap().current).unwrap());
    let job = house.jobs.create(FineTuning { expected: expected(), ..kept("a") }, None).unwrap();
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    assert_eq!(record(&house, "a.checkpoint-4").unwrap().generations.len(), 2);
    assert_ne!(generation(&done), first);
    for (moved, left) in [("a.checkpoint-3", 0), ("a.checkpoint-7", 2)] {
        let registry = Arc::clone(&house.registry);
        house.hook(once(Moment::Advance(2), move || {
            let files = AdapterFiles { config: b"{}".to_vec(), tensors: moved.as_bytes().to_vec() };
            let publish = Publish {
                base: None,
                name: name(moved),
                expected: Expected::Any,
                pinned: None,
                allow_no_effect: false,
                request: None,
                lineage: None,
            };
            registry.publish(files, publish).unwrap();
            Ok(())
        }));
        let job = house.jobs.create(FineTuning { expected: expected(), ..kept("a") }, None).unwrap();
        let failed = house.ended(job.id);
        let reason = failed.failure.as_ref().map(|failure| &*failure.reason);
        assert_eq!((reason, failed.published.len()), (Some("GENERATION_MISMATCH"), left), "{moved}");
    }
}

fn at(training: &str, seed: u64, step: u64) -> ModelWanted {
    let settings = Box::new(Settings { seed, publish_steps: KEPT.to_vec(), ..settings() });
    let checkpoint = Some(CheckpointWanted { training: training.into(), step });
    model(&format!("{training} {step}"), SourceWanted::Training { settings, dataset: None, checkpoint })
}

fn asked() -> Vec<ModelWanted> {
    vec![model("base", SourceWanted::Base), at("s", 1, 3), at("s", 1, 7), at("t", 20, 3), trained("whole", 50)]
}

fn adapters(house: &House) -> Vec<String> {
    house.registry.list(None, 100).unwrap().into_iter().map(|record| record.name).collect()
}

#[test]
fn shadows_are_trained_on_what_rows_they_have() {
    let house = House::new();
    // One step or two of these rows; there are none to look at, whatever the target had.
    let alike = Settings {
        eval_every: 2,
        patience: 3,
        keep_best: true,
        length: Length::Epochs(1.0),
        batch_size: 100,
        accumulation: 1,
        publish_steps: vec![1, 7],
        ..settings()
    };
    let at = |step: u64| {
        let checkpoint = Some(CheckpointWanted { training: "s".into(), step });
        let settings = Box::new(alike.clone());
        model(&format!("s {step}"), SourceWanted::Training { settings, dataset: None, checkpoint })
    };
    let wanted = audit("fair", vec![at(1), at(7)], Some(shadows(2, false)));
    let job = house.jobs.create_audit(wanted, None).unwrap();
    let crate::jobs::Task::Audit { audit } = &job.task else { panic!() };
    for shadow in &audit.models[0].shadows {
        let shadow = house.jobs.get(*shadow).unwrap();
        let crate::jobs::Task::FineTuning(tuning) = &shadow.task else { panic!() };
        let Settings { eval_every, patience, keep_best, publish_steps, .. } = &tuning.settings;
        assert_eq!((*eval_every, *patience, *keep_best, publish_steps.as_slice()), (0, 0, false, &[1][..]));
    }
}

#[test]
fn checkpoints_of_one_training_are_audited_as_models_of_their_own() {
    let house = House::new();
    let wanted = audit("fair", asked(), Some(shadows(2, true)));
    let estimate = house.jobs.estimate_audit(&wanted).unwrap();
    let job = house.jobs.create_audit(wanted, None).unwrap();
    let crate::jobs::Task::Audit { audit } = &job.task else { panic!() };
    // Three trainings with two shadows each, and the control.
    assert_eq!((audit.children.len(), estimate.trainings), (10, 10));
    assert_eq!(audit.models[1].shadows, audit.models[2].shadows);
    assert_ne!(audit.models[1].shadows, audit.models[3].shadows);
    assert_eq!(
        audit.models.iter().map(|model| model.step).collect::<Vec<_>>(),
        [None, Some(3), Some(7), Some(3), None]
    );
    // Five models, two shadows of each that was trained, the control; 200 rows.
    assert_eq!(estimate.items, (5 + 2 * 4 + 1) * 200);
    // A training has 100 bytes and its seed; seeds of shadows count on, and the control has that of the first.
    let shadow = |seed: u64, models: u64| models * ((101 + seed) + (102 + seed));
    let bytes = 4 * (101 + 120) + 150 + shadow(1, 3) + shadow(20, 2) + shadow(50, 1) + 101;
    assert_eq!(estimate.disk_bytes, Some(bytes + 2 * estimate.score_bytes));
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let children: Vec<_> = audit.children.iter().map(|id| house.jobs.get(*id).unwrap()).collect();
    let steps = |adapter: &str| {
        let child = children.iter().find(|child| child.name() == adapter).unwrap();
        child.published.iter().map(|kept| kept.step).collect::<Vec<_>>()
    };
    assert_eq!((steps("fair.s"), steps("fair.t"), steps("fair.whole")), (KEPT.to_vec(), KEPT.to_vec(), vec![]));
    // Shadows are looked at where their models are, and no further model is made of them.
    assert_eq!((steps("fair.s.shadow-0"), steps("fair.t.shadow-1")), (vec![3, 7], vec![3]));
    assert_eq!((steps("fair.whole.shadow-0"), steps("fair.planted")), (vec![], vec![]));
    let (_, report) = house.reports.get("fair").unwrap();
    let found: Vec<_> = report
        .models
        .iter()
        .map(|model| (model.adapter.as_str(), model.training.as_ref().and_then(|training| training.step)))
        .collect();
    let expected = [
        ("", None),
        ("fair.s.checkpoint-3", Some(3)),
        ("fair.s.checkpoint-7", Some(7)),
        ("fair.t.checkpoint-3", Some(3)),
        ("fair.whole", None),
    ];
    assert_eq!(found, expected);
    assert_eq!(report.models[1].generation, children[0].published[0].generation);
    assert_eq!(report.models[1].training.as_ref().unwrap().job, children[0].id.to_string());
    // What is left: models that were audited, and the trainings with all their checkpoints.
    let left = |name: &str| KEPT.map(|step| checkpoint_name(name, step)).into_iter().chain([name.to_owned()]);
    let mut all: Vec<_> = left("fair.s").chain(left("fair.t")).chain(["fair.whole".to_owned()]).collect();
    all.sort();
    assert_eq!(adapters(&house), all);
    house.registry.delete(&name("fair.s.checkpoint-3"), Expected::Any, None).unwrap();
    // Again: no name is taken twice, and nothing stays where that is asked.
    let again = super::audits::audit("fair", asked(), None);
    let again = house.jobs.create_audit(AuditWanted { keep_models: Some(false), ..again }, None).unwrap();
    assert_eq!(house.ended(again.id).state, State::Succeeded);
    assert_eq!(adapters(&house).len(), all.len() - 1);
}

#[test]
fn a_checkpoint_that_is_an_adapter_has_shadows_of_its_step() {
    let house = House::new();
    house.ended(house.jobs.create(kept("a"), None).unwrap().id);
    let stored = |text: &str| model(text, SourceWanted::Adapter(Reference::parse(text).unwrap()));
    let wanted = audit("fair", vec![stored("a.checkpoint-4"), stored("a")], Some(shadows(1, false)));
    let job = house.jobs.create_audit(wanted, None).unwrap();
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    // Both are of one run: one shadow, which stands for the one after four steps and for the other at its end.
    let [shadow] = job.children() else { panic!("{:?}", job.children()) };
    let shadow = house.jobs.get(*shadow).unwrap();
    assert_eq!(shadow.published.iter().map(|kept| kept.step).collect::<Vec<_>>(), [4]);
    assert_eq!(adapters(&house), ["a", "a.checkpoint-3", "a.checkpoint-4", "a.checkpoint-7"]);
}

#[test]
fn a_checkpoint_that_was_not_reached_is_left_out_and_named() {
    let house = House::new();
    let stopping = |training: &str, step: u64, patience: u64| {
        let mut model = at(training, 1, step);
        let SourceWanted::Training { settings, .. } = &mut model.source else { panic!() };
        settings.patience = patience;
        model
    };
    let models = vec![stopping("s", 3, 5), stopping("s", 7, 5)];
    let done = house.ended(house.jobs.create_audit(audit("fair", models, Some(shadows(1, false))), None).unwrap().id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let (_, report) = house.reports.get("fair").unwrap();
    assert_eq!(report.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["s 3"]);
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert_eq!(warning.kind, "checkpoint_unreached");
    assert!(
        ["`s 7`", "after step 5", "before step 7"].iter().all(|part| warning.message.contains(part)),
        "{warning:?}"
    );
    let models = vec![stopping("s", 7, 5)];
    let failed = house.ended(house.jobs.create_audit(audit("none", models, None), None).unwrap().id);
    assert_eq!(failed.failure.map(|failure| failure.reason).as_deref(), Some("AUDIT_CHILD_FAILED"));
}

#[test]
fn an_audit_that_is_resumed_makes_a_checkpoint_again_that_was_deleted() {
    let house = House::new();
    let mut fails = true;
    house.hook(move |moment| {
        let now = moment == Moment::Score(2) && std::mem::take(&mut fails);
        if now { Err(TrainError::Data("no".into())) } else { Ok(()) }
    });
    let job = house.jobs.create_audit(audit("fair", vec![at("s", 1, 3), at("s", 1, 7)], None), None).unwrap();
    let failed = house.ended(job.id);
    assert_eq!(failed.state, State::Failed);
    let child = house.jobs.get(job.children()[0]).unwrap();
    house.registry.delete(&name("fair.s.checkpoint-4"), Expected::Any, None).unwrap();
    house.jobs.resume(job.id, None).unwrap();
    let refused = house.registry.delete(&name("fair.s.checkpoint-3"), Expected::Any, None);
    assert!(matches!(refused, Err(RegistryError::Held { .. })), "what is left is kept: {refused:?}");
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let after = house.jobs.get(child.id).unwrap();
    assert_eq!((&after.made, &after.published), (&child.made, &child.published));
    assert!(record(&house, "fair.s.checkpoint-4").is_some());
}
