//! Audits: made with their children, killed at every moment, cancelled and resumed with them, tidied up after.

use super::kills::{Images, image};
use super::*;
use crate::audit::report::ModelKind;
use crate::audit::settings as ask;
use crate::registry::{AdapterFiles, Publish, Reference};

fn asked(membership: Option<ask::Membership>) -> ask::Settings {
    ask::Settings {
        task: ask::Task::Perplexity,
        attributes: vec![],
        intersections: vec![],
        controls: vec![],
        weight_column: None,
        cluster_column: None,
        splits: vec![Split::Train, Split::Test],
        measures: vec![],
        positive: None,
        threshold: 0.5,
        statistics: ask::Statistics {
            level: 0.95,
            resamples: 10,
            interval: ask::BootstrapInterval::Percentile,
            permutations: 10,
            correction: ask::Correction::Holm,
            margin: 0.0,
            min_group: 1,
            suppress_below: 0,
        },
        calibration: ask::Calibration { bins: 10, temperature: false },
        membership,
        max_tokens: Some(16),
        overlap: ask::Overlap::Mark,
        convention: ask::Convention::Defined,
        utility_match: None,
        seed: 9,
    }
}

pub(super) fn shadows(shadows: usize, planted_control: bool) -> ask::Membership {
    ask::Membership {
        attacks: vec![ask::Attack::LiraOnline],
        min_k: vec![],
        false_positive_rates: vec![0.1],
        shadows,
        shadow_fraction: 0.5,
        planted_control,
        mirrored: false,
    }
}

pub(super) fn model(name: &str, source: SourceWanted) -> ModelWanted {
    ModelWanted { name: name.into(), source, scale: 1.0 }
}

pub(super) fn trained(name: &str, seed: u64) -> ModelWanted {
    let settings = Box::new(Settings { seed, ..settings() });
    model(name, SourceWanted::Training { settings, dataset: None, checkpoint: None })
}

pub(super) fn audit(audit: &str, models: Vec<ModelWanted>, membership: Option<ask::Membership>) -> AuditWanted {
    let (name, dataset, settings) = (name(audit), "rows".into(), asked(membership));
    AuditWanted { name, dataset, base: None, models, settings, keep_models: None }
}

/// Base, one trained model, two shadow models and a control.
fn whole() -> AuditWanted {
    let models = vec![model("base", SourceWanted::Base), trained("Rank 8", 1)];
    audit("fair", models, Some(shadows(2, true)))
}

fn report_of(job: &Job) -> String {
    let Some(Made::Report { report }) = &job.made else { panic!("{job:?}") };
    report.clone()
}

fn exists(house: &House, adapter: &str) -> bool {
    house.registry.get(&name(adapter)).is_ok()
}

#[test]
fn an_audit_runs_after_what_it_needs_and_tidies_up() {
    let house = House::new();
    let registry = Arc::clone(&house.registry);
    house.hook(move |moment| {
        if moment == Moment::Begin {
            // What was made for it waits for it.
            for made in ["fair.rank-8", "fair.planted"] {
                let refused = registry.delete(&name(made), Expected::Any, None);
                assert!(matches!(refused, Err(RegistryError::Held { .. })), "{refused:?}");
            }
        }
        Ok(())
    });
    let wanted = whole();
    let job = house.jobs.create_audit(wanted, None).unwrap();
    assert_eq!((job.kind(), job.state, job.children().len()), (JobKind::Audit, State::Queued, 4));
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let children: Vec<_> = job.children().iter().map(|id| house.jobs.get(*id).unwrap()).collect();
    for child in &children {
        assert_eq!((child.state, child.parent), (State::Succeeded, Some(job.id)));
        assert!(child.ended <= done.started, "before the audit");
    }
    let names: Vec<_> = children.iter().map(Job::name).collect();
    assert_eq!(names, ["fair.rank-8", "fair.rank-8.shadow-0", "fair.rank-8.shadow-1", "fair.planted"]);
    // What it was for is kept, helpers are not; nothing is held any more.
    assert_eq!(names.iter().map(|name| exists(&house, name)).collect::<Vec<_>>(), [true, false, false, false]);
    let lineage = house.registry.get(&name("fair.rank-8")).unwrap().generations[0].lineage.clone().unwrap();
    assert_eq!((lineage.job, lineage.audit), (children[0].id.to_string(), Some(job.id.to_string())));
    house.registry.delete(&name("fair.rank-8"), Expected::Any, None).unwrap();
    // Shadows are trained as their target, each on rows of its own.
    let tunings: Vec<_> = children
        .iter()
        .map(|child| match &child.task {
            crate::jobs::Task::FineTuning(tuning) => tuning.settings.clone(),
            crate::jobs::Task::Audit { .. } => panic!(),
        })
        .collect();
    let subsets: Vec<_> = tunings.iter().map(|tuning| tuning.subset.clone()).collect();
    assert!(subsets[0].is_none() && subsets[1] != subsets[2]);
    assert_eq!(subsets[1].as_ref().map(|subset| subset.fraction), Some(0.5));
    // There are no rows to look at.
    let alike = Settings { eval_every: 0, ..tunings[0].clone() };
    assert_eq!(Settings { subset: None, seed: 1, ..tunings[1].clone() }, alike);
    let (summary, report) = house.reports.get("fair").unwrap();
    assert_eq!((&summary.id, summary.job.as_deref()), (&report_of(&done), Some(&*job.id.to_string())));
    assert_eq!(summary.id, hex::encode(Sha256::digest(report.canonical().unwrap())));
    let (base, rank) = (&report.models[0], &report.models[1]);
    assert_eq!((base.kind, base.adapter.as_str(), &base.training), (ModelKind::Base, "", &None));
    assert_eq!((rank.name.as_str(), rank.adapter.as_str(), rank.scale), ("Rank 8", "fair.rank-8", 1.0));
    assert_eq!(rank.training.as_ref().map(|training| training.seed), Some(1));
    let events = house.events(job.id);
    assert!(story(&events).starts_with("queued running scoring:1 "), "{}", story(&events));
    assert!(story(&events).ends_with("scoring:5 statistics:0 succeeded"), "{}", story(&events));
    let count = |kind| house.metrics.jobs_finished.with_label_values(&[kind, "succeeded"]).get();
    until(|| count("audit") == 1);
    assert_eq!(count("fine_tuning"), 4);
}

#[test]
fn a_kill_at_any_moment_gives_the_same_report() {
    let (house, images) = (House::new(), Images::default());
    let (path, theirs) = (house.folder.path().to_owned(), Arc::clone(&images));
    house.hook(move |moment| {
        let image = image(&path);
        theirs.lock().unwrap().push((moment, image));
        Ok(())
    });
    let job = house.jobs.create_audit(whole(), None).unwrap();
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let images = std::mem::take(&mut *images.lock().unwrap());
    let audits = images
        .iter()
        .filter(|(moment, _)| matches!(moment, Moment::Begin | Moment::Score(_) | Moment::Written(_) | Moment::Report));
    // Start, 5 batches, checkpoints after 2, 4 and 5, report.
    assert_eq!(audits.count(), 10);
    for (at, (moment, image)) in images.into_iter().enumerate() {
        // Children are killed at every moment elsewhere: here some of theirs.
        let of_audit = !matches!(moment, Moment::Start | Moment::Advance(_) | Moment::Checkpoint(_) | Moment::Output);
        if !of_audit && at % 9 != 0 {
            continue;
        }
        let house = House::at(image, Hooks::default());
        let after = house.ended(job.id);
        assert_eq!((after.state, report_of(&after)), (State::Succeeded, report_of(&done)), "{moment:?}");
        assert!(exists(&house, "fair.rank-8") && !exists(&house, "fair.planted"), "{moment:?}");
        assert_eq!(house.reports.list(None, None, None, 9).unwrap().len(), 1, "{moment:?}");
    }
}

/// The moments that no hook sees: the report is kept, and the job does not know it; or it knows, and is not tidy.
#[test]
fn a_kill_after_the_report_was_kept_keeps_it_once() {
    let (house, images) = (House::new(), Images::default());
    let (path, theirs) = (house.folder.path().to_owned(), Arc::clone(&images));
    house.hook(move |moment| {
        if moment == Moment::Report {
            theirs.lock().unwrap().push((moment, image(&path)));
        }
        Ok(())
    });
    let job = house.jobs.create_audit(whole(), None).unwrap();
    let done = house.ended(job.id);
    let (_, report) = house.reports.get("fair").unwrap();
    let before = images.lock().unwrap().pop().unwrap().1;
    for known in [false, true] {
        let at = image(before.path());
        let (store, registry, metrics) = registry(at.path(), Hooks::default(), "base");
        let reports = Reports::open(Arc::clone(&store), AuditSettings::default(), metrics).unwrap();
        reports.put(&name("fair"), Some(&job.id.to_string()), &report, None).unwrap();
        if known {
            let id = job.id.to_string();
            store
                .change(|catalog| {
                    let mut row = catalog.job(&id)?.unwrap();
                    let mut job: Job = serde_json::from_str(&row.record).unwrap();
                    job.made = done.made.clone();
                    row.record = serde_json::to_string(&job).unwrap();
                    catalog.put_job(&row)?;
                    // One of the helpers is gone already.
                    catalog.release_generations(&id)
                })
                .unwrap();
            registry.delete(&name("fair.rank-8.shadow-0"), Expected::Any, None).unwrap();
        }
        drop((reports, registry, store));
        let house = House::at(at, Hooks::default());
        let after = house.ended(job.id);
        assert_eq!((after.state, &after.made), (State::Succeeded, &done.made), "{:?}", after.failure);
        assert_eq!(house.reports.list(None, None, None, 9).unwrap().len(), 1);
        assert!(exists(&house, "fair.rank-8") && !exists(&house, "fair.planted"));
    }
}

#[test]
fn an_audit_whose_child_failed_names_it_and_is_resumed_with_it() {
    let expected = House::new();
    let expected = report_of(&expected.ended(expected.jobs.create_audit(whole(), None).unwrap().id)).len();
    let house = House::new();
    let mut starts = 0;
    house.hook(move |moment| {
        starts += usize::from(moment == Moment::Start);
        // The second child.
        if starts == 2 && moment == Moment::Advance(1) { Err(TrainError::Data("no".into())) } else { Ok(()) }
    });
    let job = house.jobs.create_audit(whole(), None).unwrap();
    let failed = house.ended(job.id);
    let failure = failed.failure.clone().unwrap();
    assert_eq!((failed.state, failure.reason.as_str()), (State::Failed, "AUDIT_CHILD_FAILED"));
    assert!(failure.message.contains(&job.children()[1].to_string()), "{failure:?}");
    assert!(failed.is_resumable() && failed.checkpoint.is_none());
    // Somebody deletes what another child has made: it is made again.
    house.registry.delete(&name("fair.planted"), Expected::Any, None).unwrap();
    let resumed = house.jobs.resume(job.id, None).unwrap();
    assert_eq!(resumed.state, State::Queued);
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    assert_eq!(report_of(&done).len(), expected);
    let runs = |at: usize| {
        let events = house.events(job.children()[at]);
        story(&events).split(' ').filter(|word| *word == "running").count()
    };
    assert_eq!([0, 1, 2, 3].map(runs), [1, 2, 1, 2]);
}

#[test]
fn with_an_audit_its_children_are_cancelled_and_resumed() {
    let house = House::new();
    let (reached, started) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let mut first = true;
    house.hook(move |moment| {
        if std::mem::take(&mut first) && moment == Moment::Start {
            reached.send(()).unwrap();
            let _ = gate.recv();
        }
        Ok(())
    });
    let job = house.jobs.create_audit(whole(), None).unwrap();
    started.recv().unwrap();
    let cancelled = house.jobs.cancel(job.id, None).unwrap();
    assert_eq!(cancelled.state, State::Cancelled);
    let states = || job.children().iter().map(|id| house.jobs.get(*id).unwrap()).collect::<Vec<_>>();
    assert!(states()[0].cancelling, "it runs");
    assert!(states()[1..].iter().all(|child| child.state == State::Cancelled));
    let early = house.jobs.resume(job.id, None);
    assert!(matches!(early, Err(JobsError::NotResumable(_))), "{early:?}");
    drop(go);
    house.ended(job.children()[0]);
    assert!(states().iter().all(|child| child.state == State::Cancelled));
    house.jobs.resume(job.id, None).unwrap();
    assert_eq!(house.ended(job.id).state, State::Succeeded);
    assert!(states().iter().all(|child| child.state == State::Succeeded));
}

#[test]
fn an_audit_waits_for_a_child_that_was_resumed_behind_it() {
    let house = House::new();
    let (reached, started) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let mut first = true;
    house.hook(move |moment| {
        if std::mem::take(&mut first) && moment == Moment::Start {
            reached.send(()).unwrap();
            let _ = gate.recv();
        }
        Ok(())
    });
    let job = house.jobs.create_audit(whole(), None).unwrap();
    started.recv().unwrap();
    let child = job.children()[2];
    house.jobs.cancel(child, None).unwrap();
    house.jobs.resume(child, None).unwrap();
    drop(go);
    assert_eq!(house.ended(job.id).state, State::Succeeded);
    assert_eq!(house.jobs.get(child).unwrap().state, State::Succeeded);
}

pub(super) fn publish(house: &House, adapter: &str, tensors: &[u8]) -> String {
    let files = AdapterFiles { config: b"{}".to_vec(), tensors: tensors.to_vec() };
    let publish = Publish {
        base: None,
        name: name(adapter),
        expected: Expected::Any,
        pinned: None,
        allow_no_effect: false,
        request: None,
        lineage: None,
    };
    house.registry.publish(files, publish).unwrap().current
}

#[test]
fn an_adapter_is_pinned_to_its_generation_and_stays_while_it_is_audited() {
    let house = House::new();
    let generation = publish(&house, "poet", b"first");
    let (reached, started) = std::sync::mpsc::channel();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    house.hook(move |moment| {
        if moment == Moment::Score(3) {
            reached.send(()).unwrap();
            let _ = gate.recv();
        }
        Ok(())
    });
    let wanted = || audit("fair", vec![model("poet", SourceWanted::Adapter(Reference::parse("poet").unwrap()))], None);
    let job = house.jobs.create_audit(wanted(), None).unwrap();
    started.recv().unwrap();
    publish(&house, "poet", b"second");
    let refused = house.registry.delete(&name("poet"), Expected::Any, None);
    assert!(matches!(&refused, Err(RegistryError::Held { jobs, .. }) if *jobs == [job.id.to_string()]), "{refused:?}");
    // Far more generations than are kept: the one that is audited is among them all the same.
    for i in 0..20_u8 {
        publish(&house, "poet", &[i]);
    }
    let stored = house.registry.get(&name("poet")).unwrap().generations;
    assert!(stored.iter().any(|stored| stored.id == generation) && stored.len() < 20);
    let other = house.jobs.create_audit(wanted(), None);
    assert!(matches!(other, Err(JobsError::Conflict(_))), "{other:?}");
    drop(go);
    assert_eq!(house.ended(job.id).state, State::Succeeded);
    assert_eq!(house.reports.get("fair").unwrap().1.models[0].generation, generation);
    house.registry.delete(&name("poet"), Expected::Any, None).unwrap();
    let gone = house.jobs.create_audit(wanted(), None);
    assert!(matches!(gone, Err(JobsError::Registry(RegistryError::AdapterNotFound(_)))), "{gone:?}");
}

#[test]
fn nothing_is_made_of_an_audit_that_is_refused_in_part() {
    let house = House::new();
    // The last child takes a name that is taken.
    publish(&house, "fair.planted", b"x");
    let refused = house.jobs.create_audit(whole(), None);
    assert!(matches!(refused, Err(JobsError::Registry(RegistryError::GenerationMismatch { .. }))), "{refused:?}");
    assert!(house.jobs.list(None, None, 10).unwrap().is_empty());
    let lost = house.jobs.create_audit(AuditWanted { dataset: "none".into(), ..whole() }, None);
    assert!(matches!(lost, Err(JobsError::DatasetNotFound(_))), "{lost:?}");
    let many = audit("many", vec![trained("m", 1)], Some(shadows(300, false)));
    let refused = house.jobs.create_audit(many, None);
    assert!(matches!(refused, Err(JobsError::TooManyModels { wanted: 301, limit: 256 })), "{refused:?}");
    let once = key("CreateAudit", 1);
    let wanted = || audit("other", vec![trained("a b", 1), trained("a.b", 2), trained("A-b", 3)], None);
    let job = house.jobs.create_audit(wanted(), Some(&once)).unwrap();
    assert_eq!(house.jobs.create_audit(wanted(), Some(&once)).unwrap(), job);
    let names: Vec<_> = job.children().iter().map(|id| house.jobs.get(*id).unwrap().name().to_owned()).collect();
    assert_eq!(names[..2], ["other.a-b", "other.a.b"]);
    assert!(names[2].starts_with("other.a-b-") && Name::parse(&names[2]).is_some(), "{names:?}");
    assert_eq!(house.ended(job.id).state, State::Succeeded);
}

#[test]
fn models_that_are_trained_alike_share_their_shadows() {
    let house = House::new();
    let adapter = |scale| ModelWanted { scale, ..model(&format!("x{scale}"), SourceWanted::Adapter(reference())) };
    fn reference() -> Reference {
        Reference::parse("a").unwrap()
    }
    house.ended(house.create("a").id);
    let wanted = audit("fair", vec![adapter(0.5), adapter(1.0), trained("b", 77)], Some(shadows(3, false)));
    let estimate = house.jobs.estimate_audit(&wanted).unwrap();
    let job = house.jobs.create_audit(wanted, None).unwrap();
    let crate::jobs::Task::Audit { audit } = &job.task else { panic!() };
    assert_eq!(audit.models[0].shadows, audit.models[1].shadows);
    assert_eq!((audit.models[2].shadows.len(), audit.children.len()), (3, 7));
    assert!(audit.models[2].shadows.iter().all(|shadow| !audit.models[0].shadows.contains(shadow)));
    // 200 rows, three models and six shadows; seven trainings of seven steps.
    assert_eq!((estimate.trainings, estimate.steps, estimate.items), (7, 7 * STEPS, 9 * 200));
    assert!(estimate.training_seconds.is_some_and(|seconds| seconds > 0.0), "one was trained before");
    assert_eq!(estimate.scoring_seconds, None);
    // A text has two numbers and their count. Trainings are of 100 bytes and their seed; the seeds of shadows count on.
    assert_eq!(estimate.score_bytes, 9 * 200 * 24);
    let seeds = |first: u64| (1..=3).map(|n| 100 + first + n).sum::<u64>();
    let own = house.registry.get(&name("a")).unwrap().generations[0].lineage.clone().unwrap().settings["seed"].as_u64();
    let trained = 177 + seeds(own.unwrap()) + seeds(77);
    assert_eq!(estimate.disk_bytes, Some(trained + 2 * estimate.score_bytes));
    // One model at a time: the last shadow is the largest.
    assert_eq!(estimate.memory_bytes, Some(180 + estimate.score_bytes + 200 * (280 + 3 * 90)));
    let done = house.ended(job.id);
    assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
    let wanted = self::audit("again", vec![model("base", SourceWanted::Base)], None);
    assert!(house.jobs.estimate_audit(&wanted).unwrap().scoring_seconds.is_some());
}

#[test]
fn nothing_that_was_trained_stays_where_that_is_asked() {
    let house = House::new();
    let job = house.jobs.create_audit(AuditWanted { keep_models: Some(false), ..whole() }, None).unwrap();
    assert_eq!(house.ended(job.id).state, State::Succeeded);
    let left = house.registry.list(None, 10).unwrap();
    assert!(left.is_empty(), "{left:?}");
    // So the same can be asked again.
    let again = house.jobs.create_audit(whole(), None).unwrap();
    assert_eq!(house.ended(again.id).state, State::Succeeded);
}

#[test]
fn an_audit_again_keeps_what_the_one_before_has_left() {
    let house = House::new();
    let run = |keep_models| {
        let job = house.jobs.create_audit(AuditWanted { keep_models, ..whole() }, None).unwrap();
        let done = house.ended(job.id);
        assert_eq!(done.state, State::Succeeded, "{:?}", done.failure);
        job.children().iter().map(|id| house.jobs.get(*id).unwrap().name().to_owned()).collect::<Vec<_>>()
    };
    let first = run(Some(true));
    assert_eq!(first, ["fair.rank-8", "fair.rank-8.shadow-0", "fair.rank-8.shadow-1", "fair.planted"]);
    let generation = house.registry.get(&name("fair.rank-8")).unwrap().current;
    let second = run(Some(true));
    assert_eq!(second, first.iter().map(|name| format!("{name}-2")).collect::<Vec<_>>());
    let third = run(None);
    assert_eq!(third, first.iter().map(|name| format!("{name}-3")).collect::<Vec<_>>());
    // Each audit tidies up its own.
    assert!(first.iter().chain(&second).chain(&third[..1]).all(|name| exists(&house, name)));
    assert!(third[1..].iter().all(|name| !exists(&house, name)));
    assert_eq!(house.registry.get(&name("fair.rank-8")).unwrap().current, generation);
    let adapters: Vec<String> =
        house.reports.list(None, None, None, 9).unwrap().into_iter().map(|(_, report)| report.id).collect();
    let model = |id: &String| house.reports.get(id).unwrap().1.models[1].adapter.clone();
    assert_eq!(adapters.iter().map(model).collect::<Vec<_>>(), [&*third[0], &*second[0], &*first[0]]);
    // A longest name has room for a number too.
    let long = "x".repeat(63);
    let names = [1, 2].map(|seed| {
        let job = house.jobs.create_audit(audit("long", vec![trained(&long, seed)], None), None).unwrap();
        house.ended(job.id);
        house.jobs.get(job.children()[0]).unwrap().name().to_owned()
    });
    assert!(names[0] != names[1] && names.iter().all(|name| Name::parse(name).is_some()), "{names:?}");
}

#[test]
fn children_are_forgotten_with_their_audit() {
    let settings = JobsSettings { keep_finished: 1, ..limits() };
    let house = House::with(Arc::new(tempfile::tempdir().unwrap()), Hooks::default(), settings, "base");
    let first = house.jobs.create_audit(audit("one", vec![trained("m", 1)], None), None).unwrap();
    house.ended(first.id);
    let second = house.jobs.create_audit(audit("two", vec![trained("m", 2)], None), None).unwrap();
    house.ended(second.id);
    // Children do not count: the first audit is still the newest that had ended when the second was made.
    assert!(house.jobs.get(first.id).is_ok() && house.jobs.get(first.children()[0]).is_ok());
    house.ended(house.create("a").id);
    assert!(matches!(house.jobs.get(first.id), Err(JobsError::NotFound(_))));
    assert!(matches!(house.jobs.get(first.children()[0]), Err(JobsError::NotFound(_))));
    assert!(house.jobs.get(second.children()[0]).is_ok());
}

#[test]
fn an_audit_can_be_cancelled_at_every_moment_and_resumed_to_the_same_report() {
    let house = House::new();
    let generation = publish(&house, "poet", b"first");
    let wanted = || audit("fair", vec![model("poet", SourceWanted::Adapter(Reference::parse("poet").unwrap()))], None);
    let expected = house.ended(house.jobs.create_audit(wanted(), None).unwrap().id);
    let expected = report_of(&expected);
    let moments = [Moment::Begin, Moment::Score(1), Moment::Score(4), Moment::Written(2), Moment::Report];
    for at in moments {
        let (jobs, id) = (house.jobs.clone(), Arc::new(Mutex::new(None)));
        let (theirs, mut done) = (Arc::clone(&id), false);
        house.hook(move |moment| {
            if moment == at && !std::mem::replace(&mut done, true) {
                until(|| theirs.lock().unwrap().is_some());
                jobs.cancel(theirs.lock().unwrap().unwrap(), None).unwrap();
            }
            Ok(())
        });
        let job = house.jobs.create_audit(wanted(), None).unwrap();
        *id.lock().unwrap() = Some(job.id);
        let ended = house.ended(job.id);
        assert_eq!((ended.state, &ended.made), (State::Cancelled, &None), "{at:?}");
        house.jobs.resume(job.id, None).unwrap();
        let ended = house.ended(job.id);
        // The same model, data and settings: the same report.
        assert_eq!((ended.state, report_of(&ended)), (State::Succeeded, expected.clone()), "{at:?}");
        house.hook(|_| Ok(()));
    }
    assert_eq!(house.reports.get("fair").unwrap().1.models[0].generation, generation);
    assert_eq!(house.reports.list(None, None, None, 9).unwrap().len(), 1);
}
