//! Every faulty input is refused before anything is computed, by setting, or by row and column.

use super::*;
use crate::audit::settings::{Classifier, Normalization};
use crate::dataset::Message;

fn words(words: &[&str]) -> Task {
    Task::LabelWords { words: texts(words), normalization: Normalization::Sum }
}

fn refused(context: &Context, data: &Dataset, settings: &Settings, subjects: Vec<Subject>) -> AuditError {
    Scorer::begin(context, data, settings, subjects).unwrap_err()
}

#[test]
fn faulty_settings_are_named() {
    let context = context(LLAMA2);
    let data = sentences(&["no", "yes"]);
    let pairs = |more: &str| Task::Pairs {
        more: more.to_owned(),
        less: "group".to_owned(),
        unrelated: None,
        normalization: Normalization::Sum,
    };
    let bbq = |answers: &[&str], condition: &str| Task::Bbq {
        answers: texts(answers),
        condition: condition.to_owned(),
        unknown: "group".to_owned(),
        biased: "group".to_owned(),
        normalization: Normalization::Sum,
    };
    let written = |expected: &str| Task::Generation {
        classifier: Classifier::Pronouns,
        max_new_tokens: 3,
        expected: Some(expected.to_owned()),
        gold: None,
    };
    for (field, settings) in [
        ("max_tokens", Settings { max_tokens: Some(1), ..settings() }),
        ("max_tokens", Settings { max_tokens: Some(100_000), ..settings() }),
        ("attributes", Settings { attributes: vec![], ..settings() }),
        ("positive", Settings { positive: Some("maybe".to_owned()), ..asking(words(&["a", "b"])) }),
        ("task", asking(Task::Uploaded)),
        ("task.label_words.words", asking(words(&["a"]))),
        ("task.label_words.words", asking(words(&["a", ""]))),
        ("task.pairs", asking(pairs("none"))),
        ("task.bbq.answers", asking(bbq(&["group"], "group"))),
        ("task.bbq.answers", asking(bbq(&["group", "group", "none"], "group"))),
        ("task.bbq.condition", asking(bbq(&["group", "group", "group"], "none"))),
        ("task.generation.expected", asking(written("none"))),
    ] {
        let error = refused(&context, &data, &settings, base());
        assert!(matches!(error, AuditError::Setting { field: of, .. } if of == field), "{field}: {error}");
    }
    let settings = Settings { positive: Some("no".to_owned()), ..asking(words(&["small", "cold"])) };
    let found = scored(&context, &data, &settings, base());
    assert!(matches!(found.table.outcomes, Outcomes::Classes { positive: 0, .. }));
}

#[test]
fn faulty_models_are_named() {
    let context = context(LLAMA2);
    let data = sentences(&["no", "yes"]);
    let tuned = || Some(adapter(&context, "lora_qv"));
    let dora = || Some(adapter(&context, "dora"));
    for subjects in [
        vec![],
        vec![subject("", None, 1.0)],
        vec![subject("a", None, 1.0), subject("a", tuned(), 1.0)],
        vec![subject("a", None, 0.5)],
        vec![subject("a", tuned(), f64::NAN)],
        vec![subject("a", tuned(), f64::INFINITY)],
        vec![subject("a", dora(), 0.5)],
    ] {
        let error = refused(&context, &data, &settings(), subjects);
        assert!(matches!(error, AuditError::Setting { field: "models", .. }), "{error}");
    }
    let classifier = super::context(CLASSIFIER);
    let error = refused(&classifier, &data, &settings(), base());
    assert!(matches!(error, AuditError::Head { .. }), "{error}");
    let error = refused(&classifier, &data, &asking(Task::Head), base());
    assert!(matches!(&error, AuditError::Head { fault, .. } if fault.contains("3 labels")), "{error}");
}

#[test]
fn faulty_labels_are_named() {
    let context = context(LLAMA2);
    let ask = |data: &Dataset| refused(&context, data, &asking(words(&["small", "cold"])), base());
    let none = dataset(&[], &["group"], sentences(&["no", "yes"]).rows);
    assert!(matches!(ask(&none), AuditError::Setting { field: "task", .. }));
    let mut many = sentences(&["no", "yes"]);
    many.multi_label = true;
    assert!(matches!(ask(&many), AuditError::Setting { field: "task", .. }));
    for label in [None, Some(Label::Class(2)), Some(Label::Classes(vec![0]))] {
        let mut data = sentences(&["no", "yes"]);
        data.rows[3].label = label;
        assert!(matches!(ask(&data), AuditError::Row { row: 4, column: None, .. }));
    }
    let one = sentences(&["no"]);
    let error = refused(&context, &one, &asking(words(&["small"])), base());
    assert!(matches!(error, AuditError::Setting { field: "task", .. }), "{error}");
}

#[test]
fn words_that_cannot_be_told_apart_are_refused() {
    let context = context(LLAMA2);
    let data = sentences(&["no", "yes"]);
    let error = refused(&context, &data, &asking(words(&["small", "small"])), base());
    assert_eq!(error.to_string(), "row 1: answers 1 and 2 have the same tokens");
}

#[test]
fn faulty_rows_are_named_by_column() {
    let context = context(LLAMA3);
    let columns = ["group", "x", "y", "z", "c", "u", "b"];
    let sound = ["a", "the man", "the cat", "not sure", "ambig", "2", "0"];
    let bbq = Task::Bbq {
        answers: texts(&["x", "y", "z"]),
        condition: "c".to_owned(),
        unknown: "u".to_owned(),
        biased: "b".to_owned(),
        normalization: Normalization::Sum,
    };
    let pairs = Task::Pairs {
        more: "x".to_owned(),
        less: "y".to_owned(),
        unrelated: Some("z".to_owned()),
        normalization: Normalization::Sum,
    };
    let written = Task::Generation {
        classifier: Classifier::Pronouns,
        max_new_tokens: 3,
        expected: Some("c".to_owned()),
        gold: None,
    };
    for (task, column, cell) in [
        (&bbq, "x", "-"),
        (&bbq, "y", "the man"),
        (&bbq, "c", "-"),
        (&bbq, "c", "clear"),
        (&bbq, "u", "-"),
        (&bbq, "u", "3"),
        (&bbq, "u", "two"),
        (&bbq, "b", "-1"),
        (&bbq, "b", "2"),
        (&pairs, "x", "-"),
        (&pairs, "y", "the man"),
        (&pairs, "z", "the cat"),
        (&written, "c", "plural"),
    ] {
        let mut cells = sound;
        cells[columns.iter().position(|name| *name == column).unwrap()] = cell;
        if let Task::Generation { .. } = task {
            cells[4] = if column == "c" { cell } else { "male" };
        }
        let good = |i: usize| {
            let mut good = sound;
            good[4] = if matches!(task, Task::Generation { .. }) { "male" } else { "ambig" };
            row(text(&format!("who said so {i}?")), Some(2), &good)
        };
        let data = dataset(&["0", "1", "2"], &columns, vec![good(0), row(text("who ran?"), Some(2), &cells), good(1)]);
        let error = refused(&context, &data, &asking(task.clone()), base());
        let AuditError::Row { row: 2, column: Some(of), .. } = &error else { panic!("{column} {cell}: {error}") };
        assert_eq!(of, column, "{error}");
    }
    let unlabelled = dataset(&["0", "1", "2"], &columns, vec![row(text("who?"), None, &sound)]);
    assert!(matches!(
        refused(&context, &unlabelled, &asking(bbq), base()),
        AuditError::Row { row: 1, column: None, .. }
    ));
}

#[test]
fn a_conversation_needs_a_template() {
    let mut context = context(LLAMA2);
    context.chat = None;
    let talk = vec![Message { role: "user".to_owned(), content: "who?".to_owned() }];
    let data = dataset(&["no", "yes"], &["group"], vec![row(Content::Messages(talk), Some(0), &["a"])]);
    for task in [Task::Perplexity, words(&["small", "cold"])] {
        let error = refused(&context, &data, &asking(task), base());
        assert!(matches!(&error, AuditError::Row { row: 1, fault, .. } if fault.contains("template")), "{error}");
    }
}
