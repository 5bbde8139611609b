//! Choices: orders map back, corrections stand beside the raw result, verdicts need several wordings.

use super::*;
use crate::audit::settings::{Alphabet, Choice};

fn choice() -> Choice {
    Choice {
        columns: Vec::new(),
        answers: Vec::new(),
        alphabets: vec![Alphabet::Letters],
        orders: 1,
        reversed: None,
        content_free: Vec::new(),
    }
}

const COLUMNS: [&str; 5] = ["group", "x", "y", "z", "r"];

/// Questions whose answers stand in `x`, `y`, `z`, each put there as `turn` says; labels follow.
fn questions(turn: [usize; 3]) -> Dataset {
    let all = [
        ("who said so?", ["a cat", "the server", "nobody"], 1),
        ("what was small?", ["the night", "a word", "the count"], 0),
        ("who ran?", ["a man", "two cats", "she"], 2),
        ("what is often cold?", ["noon", "a night", "the mill"], 1),
    ];
    let of = |(question, answers, right): &(&str, [&str; 3], usize)| {
        let label = turn.iter().position(|content| content == right).unwrap();
        row(text(question), Some(label), &["a", answers[turn[0]], answers[turn[1]], answers[turn[2]], "what was not?"])
    };
    dataset(&["0", "1", "2"], &COLUMNS, all.iter().map(of).collect())
}

fn in_columns(orders: usize, alphabets: &[Alphabet]) -> Settings {
    let columns = texts(&["x", "y", "z"]);
    asking(Task::Choice(Choice { columns, orders, alphabets: alphabets.to_vec(), ..choice() }))
}

#[test]
fn a_permuted_order_maps_back() {
    let context = context(LLAMA3);
    let turn = [2, 0, 1];
    let alphabets = [Alphabet::Letters, Alphabet::Digits, Alphabet::Symbols];
    for alphabet in alphabets {
        let given = scored(&context, &questions([0, 1, 2]), &in_columns(6, &[alphabet]), base());
        let turned = scored(&context, &questions(turn), &in_columns(6, &[alphabet]), base());
        let (one, two) = (&given.table.preferences[0], &turned.table.preferences[0]);
        // Over all orders it does not matter which one was given.
        assert_eq!((one.flip_rate, one.accuracy.averaged), (two.flip_rate, two.accuracy.averaged));
        assert_eq!((one.by_token.len(), one.by_position.len(), one.by_content.len()), (3, 3, 0));
        for (a, b) in one.by_token.iter().zip(&two.by_token).chain(one.prior.iter().zip(&two.prior)) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
        assert!((one.prior.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        // The raw result is that of the order given.
        let alone = scored(&context, &questions(turn), &in_columns(1, &[alphabet]), base());
        assert_eq!(probabilities(&alone), probabilities(&turned));
        assert_ne!(probabilities(&alone), probabilities(&given));
        assert_eq!((alone.table.preferences[0].flip_rate, alone.table.preferences[0].accuracy.averaged), (None, None));
    }
}

#[test]
fn the_prompt_is_worded_as_documented() {
    for model in [LLAMA2, LLAMA3] {
        let context = context(model);
        let data = questions([0, 1, 2]);
        let found = scored(&context, &data, &in_columns(1, &[Alphabet::Letters]), base());
        let prompt = "who said so?\nA. a cat\nB. the server\nC. nobody\nAnswer:";
        let given = context.tokenizer.encode(prompt, true).unwrap();
        let score = |token: &str| {
            let joint = context.tokenizer.encode(&format!("{prompt} {token}"), true).unwrap();
            log_probability(&context, None, &given, joint.strip_prefix(given.as_slice()).unwrap())
        };
        let p = &probabilities(&found)[0];
        close((p[1] / p[0]).ln(), score("B") - score("A"));
        close((p[2] / p[0]).ln(), score("C") - score("A"));
        let cloze = scored(&context, &data, &in_columns(6, &[Alphabet::Words]), base());
        let given = context.tokenizer.encode("who said so?", true).unwrap();
        let score = |answer: &str| {
            let joint = context.tokenizer.encode(&format!("who said so? {answer}"), true).unwrap();
            log_probability(&context, None, &given, joint.strip_prefix(given.as_slice()).unwrap())
        };
        let p = &probabilities(&cloze)[0];
        close((p[1] / p[0]).ln(), score("the server") - score("a cat"));
        let words = &cloze.table.preferences[0];
        assert_eq!((words.flip_rate, words.prior.len(), words.by_token.len(), words.separable), (None, 0, 0, None));
    }
}

#[test]
fn corrections_stand_beside_the_raw_result() {
    let context = context(LLAMA3);
    let answers = texts(&["yes", "no"]);
    let rows = ["is it cold?", "was she sure?", "did two cats read?"];
    let rows = rows.iter().enumerate().map(|(i, q)| row(text(q), Some(i % 2), &["a", "-", "-", "-", "is it not so?"]));
    let data = dataset(&["yes", "no"], &COLUMNS, rows.collect());
    let task = Choice {
        answers,
        alphabets: vec![Alphabet::Letters, Alphabet::Words, Alphabet::Digits],
        orders: 2,
        reversed: Some("r".to_owned()),
        content_free: texts(&["N/A", ""]),
        ..choice()
    };
    let subjects =
        || vec![subject("base", None, 1.0), subject("tuned", Some(adapter(&context, "tied_embedding")), 1.0)];
    let found = scored(&context, &data, &asking(Task::Choice(task.clone())), subjects());
    let told: Vec<_> = found.table.preferences.iter().map(|p| (p.model, p.alphabet.as_str())).collect();
    let expected = [(0, "letters"), (0, "words"), (0, "digits"), (1, "letters"), (1, "words"), (1, "digits")];
    assert_eq!(told, expected);
    for preference in &found.table.preferences {
        let shown = preference.alphabet != "words";
        let accuracy = &preference.accuracy;
        assert!(accuracy.raw.is_some() && accuracy.calibrated.is_some() && accuracy.reversed.is_some());
        assert_eq!((accuracy.debiased.is_some(), accuracy.averaged.is_some()), (shown, shown));
        assert_eq!(preference.separable.is_some(), shown);
        assert_eq!(preference.by_content.len(), 2);
        assert_eq!(preference.flip_rate.is_some(), shown);
        let all = [&preference.by_token, &preference.by_position, &preference.by_content];
        assert!(all.iter().all(|rates| rates.is_empty() || (rates.iter().sum::<f64>() - 1.0).abs() < 1e-12));
    }
    let inseparable =
        |model: u32| found.table.preferences.iter().any(|p| p.model == model && p.separable == Some(false));
    let warned = found.warnings.iter().filter(|warning| warning.kind == "token_preference").count();
    assert_eq!(warned, (0..2).filter(|model| inseparable(*model)).count());
    // One wording cannot show that an effect keeps its sign.
    let one = Choice { alphabets: vec![Alphabet::Letters], reversed: None, ..task };
    let found = scored(&context, &data, &asking(Task::Choice(one)), subjects());
    assert!(found.table.preferences.iter().all(|p| p.separable.is_none() && p.accuracy.reversed.is_none()));
}

#[test]
fn faulty_choices_are_named() {
    let context = context(LLAMA3);
    let two = || Choice { answers: texts(&["yes", "no", "so"]), ..choice() };
    let many = |count: usize| (0..count).map(|i| format!("answer {i}")).collect::<Vec<_>>();
    let faulty = [
        ("task.choice.answers", Choice { columns: texts(&["x"]), ..two() }),
        ("task.choice.answers", Choice { answers: texts(&["yes"]), ..choice() }),
        ("task.choice.answers", Choice { answers: texts(&["yes", "no"]), ..choice() }),
        ("task.choice.answers", Choice { answers: texts(&["yes", "no", "no"]), ..choice() }),
        ("task.choice.answers", Choice { answers: many(27), ..choice() }),
        ("task.choice.columns", Choice { columns: texts(&["x", "y", "none"]), ..choice() }),
        ("task.choice.alphabets", Choice { alphabets: vec![], ..two() }),
        ("task.choice.alphabets", Choice { alphabets: vec![Alphabet::Words, Alphabet::Words], ..two() }),
        ("task.choice.alphabets", Choice { answers: many(13), alphabets: vec![Alphabet::Symbols], ..choice() }),
        ("task.choice.orders", Choice { orders: 0, ..two() }),
        ("task.choice.orders", Choice { orders: 721, ..two() }),
        ("task.choice.reversed", Choice { reversed: Some("r".to_owned()), ..two() }),
    ];
    for (field, task) in faulty {
        let settings = asking(Task::Choice(task));
        let error = Scorer::begin(&context, &questions([0, 1, 2]), &settings, base()).unwrap_err();
        assert!(matches!(error, AuditError::Setting { field: of, .. } if of == field), "{field}: {error}");
    }
}

#[test]
fn an_answer_that_is_missing_or_no_other_is_named_by_row_and_column() {
    let context = context(LLAMA3);
    for (cell, alphabet) in [(None, Alphabet::Letters), (Some("a man"), Alphabet::Words)] {
        let mut data = questions([0, 1, 2]);
        data.rows[2].groups[3] = cell.map(str::to_owned);
        let error = Scorer::begin(&context, &data, &in_columns(1, &[alphabet]), base()).unwrap_err();
        let AuditError::Row { row: 3, column: Some(column), fault } = &error else { panic!("{error}") };
        assert_eq!(column, "z", "{fault}");
    }
}
