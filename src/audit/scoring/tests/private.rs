//! Membership and overlap: who was trained on what, and what attacks are given.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::audit::settings::{Attack, Membership, Normalization};
use crate::audit::table::MembershipTable;

fn membership(attacks: &[Attack]) -> Option<Membership> {
    Some(Membership {
        mirrored: false,
        attacks: attacks.to_vec(),
        min_k: vec![0.4, 1.0],
        false_positive_rates: vec![0.1],
        shadows: 0,
        shadow_fraction: 0.5,
        planted_control: false,
    })
}

fn hashes(data: &Dataset, rows: &[usize]) -> Arc<BTreeSet<[u8; 32]>> {
    Arc::new(rows.iter().map(|row| data.rows[*row].hash).collect())
}

fn members(rows: &[usize]) -> Vec<bool> {
    (0..6).map(|row| rows.contains(&row)).collect()
}

fn table(scored: &Scored) -> &MembershipTable {
    scored.table.membership.as_ref().unwrap()
}

#[test]
fn overlap_is_refused_or_marked() {
    let context = context(LLAMA2);
    let data = sentences(&["no", "yes"]);
    let mut subjects = vec![subject("base", None, 1.0), subject("tuned", Some(adapter(&context, "lora_qv")), 1.0)];
    let unknown = scored(&context, &data, &settings(), subjects.clone());
    assert_eq!(unknown.models.iter().map(|model| model.overlap).collect::<Vec<_>>(), [None, None]);
    assert_eq!(unknown.warnings.iter().map(|w| w.kind.as_str()).collect::<Vec<_>>(), ["training_rows_unknown"]);
    subjects[1].trained_on = Some(hashes(&data, &[1, 4, 5]));
    let error = Scorer::begin(&context, &data, &settings(), subjects.clone()).unwrap_err();
    assert!(matches!(&error, AuditError::Overlap { model, rows: 3 } if model == "tuned"), "{error}");
    let marked = scored(&context, &data, &Settings { overlap: Overlap::Mark, ..settings() }, subjects.clone());
    assert_eq!(marked.models[1].overlap, Some(3));
    assert!(marked.warnings.iter().any(|w| w.kind == "training_overlap" && w.message.contains("3 of")));
    subjects[1].trained_on = Some(Arc::default());
    let clean = scored(&context, &data, &settings(), subjects);
    assert_eq!((clean.models[1].overlap, clean.warnings.len()), (Some(0), 0));
}

#[test]
fn attacks_on_language_get_scores_by_token() {
    let context = context(LLAMA2);
    let data = sentences(&["no", "yes"]);
    let tuned = adapter(&context, "lora_qv");
    let attacks =
        [Attack::Loss, Attack::MinK, Attack::MinKPlusPlus, Attack::Reference, Attack::Rmia, Attack::LiraOffline];
    let settings = Settings { membership: membership(&attacks), ..settings() };
    let mut subjects = vec![subject("tuned", Some(Arc::clone(&tuned)), 1.0), subject("other", None, 1.0)];
    subjects[0].trained_on = Some(hashes(&data, &[0, 3]));
    let found = scored(&context, &data, &settings, subjects);
    let table = table(&found);
    assert_eq!(table.members, [members(&[0, 3]), vec![]]);
    assert_eq!(found.models[0].overlap, Some(2));
    let told: Vec<_> = table.scores[0].iter().map(|scores| (scores.attack, scores.parameter)).collect();
    let expected = [
        (Attack::Loss, None),
        (Attack::MinK, Some(0.4)),
        (Attack::MinK, Some(1.0)),
        (Attack::MinKPlusPlus, Some(0.4)),
        (Attack::MinKPlusPlus, Some(1.0)),
        (Attack::Reference, None),
    ];
    assert_eq!(told, expected);
    assert!(table.scores[1].is_empty() && table.planted.is_none());
    assert_eq!(table.references, [table.signals[1].clone(), vec![]]);
    let losses = ratios(&found, "loss_per_token");
    for (row, (own, of_base)) in losses[0].iter().zip(&losses[1]).enumerate() {
        let score = |at: usize| table.scores[0][at].scores[row];
        close(score(0).unwrap(), -own);
        close(table.signals[0][row], -own);
        close(score(2).unwrap(), -own);
        assert!(score(1).is_none_or(|least| least <= score(0).unwrap() + 1e-9));
        assert!(score(4).is_some());
        close(score(5).unwrap(), of_base - own);
    }
    // Where the base is not asked for it is run all the same, for RMIA alone too.
    let mut alone = vec![subject("tuned", Some(tuned), 1.0)];
    alone[0].trained_on = Some(hashes(&data, &[0, 3]));
    for asked in [settings.membership.clone(), membership(&[Attack::Rmia])] {
        let alone = scored(&context, &data, &Settings { membership: asked, ..settings.clone() }, alone.clone());
        assert_eq!(alone.table.membership.as_ref().unwrap().references[0], table.references[0]);
    }
    let alone = scored(&context, &data, &settings, alone);
    assert_eq!(alone.table.membership.as_ref().unwrap().scores[0], table.scores[0]);
}

#[test]
fn shadows_and_control_come_one_after_the_other_and_each_once() {
    let context = context(LLAMA2);
    let data = sentences(&["no", "yes"]);
    let (tuned, second) = (adapter(&context, "lora_qv"), adapter(&context, "lora_qv_second"));
    let loads = Arc::new(AtomicUsize::new(0));
    let shadow = |adapter: &Arc<Adapter>, rows: &[usize]| {
        let (adapter, loads) = (Arc::clone(adapter), Arc::clone(&loads));
        let generation = adapter.generation().to_string();
        let load: Load = Arc::new(move || {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok(Arc::clone(&adapter))
        });
        Shadow { generation, load, trained_on: hashes(&data, rows) }
    };
    let mut subjects =
        vec![subject("one", Some(Arc::clone(&tuned)), 1.0), subject("two", Some(Arc::clone(&second)), 1.0)];
    for subject in &mut subjects {
        subject.trained_on = Some(hashes(&data, &[0]));
        subject.shadows = vec![shadow(&second, &[1, 2]), shadow(&tuned, &[3])];
    }
    subjects[1].planted = Some(Shadow::held(Arc::clone(&tuned), hashes(&data, &[5])));
    let words = Task::LabelWords { words: texts(&["small", "cold"]), normalization: Normalization::Sum };
    let settings =
        Settings { membership: membership(&[Attack::Loss, Attack::Rmia, Attack::LiraOnline]), ..asking(words) };
    let scorer = begin(&context, &data, &settings, subjects.clone());
    assert_eq!(loads.load(Ordering::SeqCst), 0);
    let found = finished(scorer);
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    let table = table(&found);
    assert_eq!(table.shadows[0].members, [members(&[1, 2]), members(&[3])]);
    assert_eq!(table.shadows[0].signals, [table.signals[1].clone(), table.signals[0].clone()]);
    // The control is the first model's adapter here, with members of its own.
    let planted = table.planted.as_ref().unwrap();
    assert_eq!((planted.model, &planted.members), (1, &members(&[5])));
    assert_eq!((&planted.signals, &planted.scores), (&table.signals[0], &table.scores[0]));
    assert!(table.references.iter().all(Vec::is_empty), "there are shadows");
    // φ is the log-odds of the true class.
    for (row, p) in probabilities(&found)[0].chunks(2).enumerate() {
        close(table.signals[0][row], (p[row % 2] / p[1 - row % 2]).ln());
    }
    subjects[0].planted = subjects[1].planted.clone();
    let error = Scorer::begin(&context, &data, &settings, subjects.clone()).unwrap_err();
    assert!(matches!(error, AuditError::Setting { field: "membership.planted_control", .. }), "{error}");
    subjects[0].planted = None;
    let fails: Load = Arc::new(|| Err(AuditError::Load { model: "shadow".to_owned(), fault: "it is gone".into() }));
    subjects[0].shadows[0].load = fails;
    let mut scorer = begin(&context, &data, &settings, subjects);
    let error = loop {
        match scorer.advance(&Endless) {
            Ok(progress) => assert!(!progress.last),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AuditError::Load { .. }), "{error}");
}

#[test]
fn membership_is_asked_of_tasks_that_bear_it() {
    let context = context(LLAMA2);
    let data = sentences(&["no", "yes"]);
    let mut known = vec![subject("tuned", Some(adapter(&context, "lora_qv")), 1.0)];
    known[0].trained_on = Some(hashes(&data, &[0]));
    let words = || Task::LabelWords { words: texts(&["small", "cold"]), normalization: Normalization::Sum };
    let shares = |min_k: Vec<f64>| membership(&[Attack::MinK]).map(|asked| Membership { min_k, ..asked });
    let pairs = Task::Pairs {
        more: "group".to_owned(),
        less: "group".to_owned(),
        unrelated: None,
        normalization: Normalization::Sum,
    };
    for (field, task, asked, subjects) in [
        ("membership", pairs, membership(&[Attack::Loss]), known.clone()),
        ("membership.attacks", words(), membership(&[Attack::MinK]), known.clone()),
        ("membership.attacks", words(), membership(&[]), known.clone()),
        ("membership.min_k", Task::Perplexity, shares(vec![]), known.clone()),
        ("membership.min_k", Task::Perplexity, shares(vec![0.0]), known.clone()),
        ("membership.min_k", Task::Perplexity, shares(vec![f64::NAN]), known.clone()),
        ("membership", words(), membership(&[Attack::Loss]), base()),
    ] {
        let settings = Settings { membership: asked, ..asking(task) };
        let error = Scorer::begin(&context, &data, &settings, subjects).unwrap_err();
        assert!(matches!(error, AuditError::Setting { field: of, .. } if of == field), "{field}: {error}");
    }
}

#[test]
fn a_base_without_a_head_is_no_reference() {
    let context = context(LLAMA2);
    let data = sentences(&["no", "yes"]);
    let error = Scorer::begin(&context, &data, &asking(Task::Head), base()).unwrap_err();
    assert!(matches!(&error, AuditError::Head { model, .. } if model == "base"), "{error}");
}
