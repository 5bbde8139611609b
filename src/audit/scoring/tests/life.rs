//! How scoring goes on and ends: resumed equals uninterrupted, order of rows and company of models do not matter.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Weak};

use super::*;
use crate::audit::settings::Normalization;

/// Grants some slices, then none.
struct Few(AtomicUsize);

impl Slices for Few {
    fn slice(&self, work: &mut dyn FnMut()) -> Result<(), Stopped> {
        let left = self.0.load(Ordering::SeqCst).checked_sub(1).ok_or(Stopped)?;
        self.0.store(left, Ordering::SeqCst);
        work();
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

fn words() -> Settings {
    let words = texts(&["small cat", "cold night"]);
    asking(Task::LabelWords { words, normalization: Normalization::Unconditional })
}

fn several(context: &Context) -> Vec<Subject> {
    let tuned = adapter(context, "lora_qv");
    vec![
        subject("base", None, 1.0),
        subject("nought", Some(Arc::clone(&tuned)), 0.0),
        subject("half", Some(Arc::clone(&tuned)), 0.5),
        subject("tuned", Some(tuned), 1.0),
    ]
}

#[test]
fn resumed_equals_uninterrupted_wherever_it_was_cut() {
    let context = context(LLAMA2);
    let (data, settings) = (sentences(&["no", "yes"]), words());
    let subjects = || several(&context);
    let mut whole = begin(&context, &data, &settings, subjects());
    let mut last = whole.advance(&Endless).unwrap();
    while !last.last {
        let next = whole.advance(&Endless).unwrap();
        assert!(next.done > last.done && next.total == last.total && next.tokens > 0);
        last = next;
    }
    assert_eq!((last.done, last.model.as_str()), (last.total, "tuned"));
    let end = whole.checkpoint().unwrap();
    let expected = whole.finish().unwrap();
    for slices in [0, 1, 2, 3, 5, 7] {
        let mut cut = begin(&context, &data, &settings, subjects());
        let few = Few(AtomicUsize::new(slices));
        let error = loop {
            match cut.advance(&few) {
                Ok(progress) => assert!(!progress.last, "{slices} slices were enough"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, AuditError::Stopped(_)), "{error}");
        let checkpoint = cut.checkpoint().unwrap();
        // Whoever stopped may go on too.
        let mut resumed = Scorer::resume(&context, &data, &settings, subjects(), &checkpoint).unwrap();
        for scorer in [&mut cut, &mut resumed] {
            while !scorer.is_done() {
                scorer.advance(&Endless).unwrap();
            }
            assert_eq!(scorer.checkpoint().unwrap(), end);
        }
        assert_eq!(resumed.finish().unwrap(), expected);
    }
    assert!(matches!(
        begin(&context, &data, &settings, subjects()).finish().unwrap_err(),
        AuditError::Unfinished { done: 0, .. }
    ));
}

#[test]
fn models_are_in_memory_one_after_the_other() {
    let context = context(LLAMA2);
    let (data, settings) = (sentences(&["no", "yes"]), words());
    let expected = scored(&context, &data, &settings, several(&context));
    let last: Arc<Mutex<Weak<Adapter>>> = Arc::default();
    let loads = Arc::new(AtomicUsize::new(0));
    let (base, counted) = (context.clone(), Arc::clone(&loads));
    let load: Load = Arc::new(move || {
        let mut last = last.lock().unwrap();
        assert!(last.upgrade().is_none(), "the model before is still in memory");
        let fresh = adapter(&base, "lora_qv");
        *last = Arc::downgrade(&fresh);
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(fresh)
    });
    let mut subjects = several(&context);
    for tuned in subjects.iter_mut().filter_map(|subject| subject.adapter.as_mut()) {
        tuned.load = Arc::clone(&load);
    }
    let scorer = begin(&context, &data, &settings, subjects);
    assert_eq!(loads.load(Ordering::SeqCst), 0, "what is not yet needed is not loaded");
    assert_eq!(finished(scorer), expected);
    assert_eq!(loads.load(Ordering::SeqCst), 3);
}

#[test]
fn a_checkpoint_is_one_audits_own() {
    let context = context(LLAMA2);
    let (data, settings) = (sentences(&["no", "yes"]), words());
    let checkpoint = begin(&context, &data, &settings, base()).checkpoint().unwrap();
    Scorer::resume(&context, &data, &settings, base(), &checkpoint).unwrap();
    let mut other = data.clone();
    other.rows[0].content = text("other words");
    let seeded = Settings { seed: 4, ..settings.clone() };
    let scaled = vec![subject("base", Some(adapter(&context, "lora_qv")), 0.5)];
    for (data, settings, subjects) in
        [(&other, &settings, base()), (&data, &seeded, base()), (&data, &settings, scaled)]
    {
        let error = Scorer::resume(&context, data, settings, subjects, &checkpoint).unwrap_err();
        assert!(matches!(error, AuditError::Checkpoint(_)), "{error}");
    }
    let error = Scorer::resume(&context, &data, &settings, base(), b"what?").unwrap_err();
    assert!(matches!(error, AuditError::Checkpoint(_)), "{error}");
}

#[test]
fn neither_the_order_of_rows_nor_other_rows_or_models_change_a_bit() {
    let context = context(LLAMA2);
    let (data, settings) = (sentences(&["no", "yes"]), words());
    let together = scored(&context, &data, &settings, several(&context));
    let all = probabilities(&together);
    let mut turned = data.clone();
    turned.rows.reverse();
    let reversed = scored(&context, &turned, &settings, several(&context));
    for (one, two) in all.iter().zip(probabilities(&reversed)) {
        assert_eq!(*one, two.chunks(2).rev().flatten().copied().collect::<Vec<_>>());
    }
    assert_eq!(together.data.sha256, reversed.data.sha256);
    for (i, row) in data.rows.iter().enumerate() {
        let alone = Dataset { rows: vec![row.clone()], ..data.clone() };
        let last = several(&context).pop().unwrap();
        let alone = scored(&context, &alone, &settings, vec![last]);
        assert_eq!(probabilities(&alone)[0], all[3][2 * i..2 * i + 2]);
    }
    // Scale 0 is the base, scale 1 is not.
    for (nought, base) in all[1].iter().zip(&all[0]) {
        assert!((nought - base).abs() < 1e-6);
    }
    assert!(all[3].iter().zip(&all[0]).any(|(tuned, base)| (tuned - base).abs() > 1e-3));
    assert!(all[2].iter().zip(&all[0]).any(|(half, base)| (half - base).abs() > 1e-3));
    assert_ne!(all[2], all[3]);
}

#[test]
fn what_rows_share_is_computed_once() {
    let context = context(LLAMA2);
    let mut data = sentences(&["no", "yes"]);
    let words = asking(Task::LabelWords { words: texts(&["small", "cold"]), normalization: Normalization::Sum });
    let once = begin(&context, &data, &words, base()).advance(&Endless).unwrap();
    data.rows.extend(data.rows.clone());
    let twice = begin(&context, &data, &words, base()).advance(&Endless).unwrap();
    assert_eq!((once.total, twice.total), (6, 6));
    let found = scored(&context, &data, &words, base());
    assert_eq!((found.data.rows, found.data.duplicates), (12, 6));
    assert!(found.warnings.iter().any(|warning| warning.kind == "duplicates"));
    let p = &probabilities(&found)[0];
    assert_eq!(p[..12], p[12..]);
}

#[test]
fn splits_are_those_asked_for_else_the_test_rows() {
    let context = context(LLAMA2);
    let mut data = sentences(&["no", "yes"]);
    let rows = |data: &Dataset, splits: Vec<Split>| {
        let settings = Settings { splits, ..settings() };
        Scorer::begin(&context, data, &settings, base()).map(|scorer| finished(scorer).data.rows)
    };
    data.rows[0].split = Split::Train;
    data.rows[1].split = Split::Validation;
    assert_eq!(rows(&data, vec![]).unwrap(), 4);
    assert_eq!(rows(&data, vec![Split::Train, Split::Validation]).unwrap(), 2);
    data.rows.iter_mut().for_each(|row| row.split = Split::Train);
    assert_eq!(rows(&data, vec![]).unwrap(), 6);
    assert!(matches!(rows(&data, vec![Split::Test]).unwrap_err(), AuditError::Data(_)));
}
