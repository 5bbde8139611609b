//! Every task against its definition, written out with the model alone.

use super::*;
use crate::audit::settings::{Classifier, Normalization};
use crate::audit::table::Formula;
use crate::dataset::Message;

#[test]
fn a_heads_labels_are_those_of_the_data_set_by_name() {
    let context = context(CLASSIFIER);
    let subjects = || vec![subject("base", None, 1.0), subject("tuned", Some(adapter(&context, "seqcls_llama")), 1.0)];
    let given = ["class_0", "class_1", "class_2"];
    let straight = scored(&context, &sentences(&given), &asking(Task::Head), subjects());
    let turned = ["class_2", "class_0", "class_1"];
    let other = scored(&context, &sentences(&turned), &asking(Task::Head), subjects());
    let (one, two) = (probabilities(&straight), probabilities(&other));
    for (one, two) in one.iter().zip(two) {
        for (one, two) in one.chunks(3).zip(two.chunks(3)) {
            assert_eq!(
                [one[2], one[0], one[1]].map(|p| (p * 1e12).round()),
                [two[0], two[1], two[2]].map(|p| (p * 1e12).round())
            );
        }
    }
    assert_ne!(one[0], one[1]);
    assert_eq!(straight.data.labels, given);
    let Outcomes::Classes { positive: 2, labels, .. } = &straight.table.outcomes else { panic!() };
    assert_eq!(*labels, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn several_labels_are_told_by_the_data_set_where_the_head_cannot() {
    let context = context(CLASSIFIER);
    let mut data = sentences(&["class_0", "class_1", "class_2"]);
    data.multi_label = true;
    for (i, row) in data.rows.iter_mut().enumerate() {
        row.label = Some(Label::Classes((0..i % 4).collect()));
    }
    let tuned = vec![subject("tuned", Some(adapter(&context, "seqcls_llama")), 1.0)];
    let found = scored(&context, &data, &asking(Task::Head), tuned.clone());
    let Outcomes::MultiLabel { names, labels, models } = &found.table.outcomes else { panic!() };
    assert_eq!((names.len(), labels.len(), models[0].len()), (3, 18, 18));
    assert_eq!(labels[3..9], [true, false, false, true, true, false]);
    let single = scored(&context, &sentences(&["class_0", "class_1", "class_2"]), &asking(Task::Head), tuned);
    // Odds of one label to another are those of the softmax: exp of the difference of logits.
    let odds = |p: f64| (p / (1.0 - p)).ln();
    for (many, one) in models[0].chunks(3).zip(probabilities(&single)[0].chunks(3)) {
        close(odds(many[0]) - odds(many[1]), (one[0] / one[1]).ln());
    }
    let error = Scorer::begin(&context, &data, &asking(Task::Head), base()).unwrap_err();
    assert!(matches!(error, AuditError::Head { .. }), "{error}");
}

#[test]
fn label_words_are_continuations_compared_as_asked() {
    for model in [LLAMA2, LLAMA3] {
        let context = context(model);
        let words = texts(&[" small", " cold night"]);
        let data = sentences(&["no", "yes"]);
        let tokenizer = &context.tokenizer;
        let start = tokenizer.bos_id().unwrap();
        for normalization in
            [Normalization::Sum, Normalization::MeanToken, Normalization::MeanByte, Normalization::Unconditional]
        {
            let task = Task::LabelWords { words: words.clone(), normalization };
            let found = scored(&context, &data, &asking(task), base());
            for (row, p) in data.rows.iter().zip(probabilities(&found)[0].chunks(2)) {
                let Content::Text(prompt) = &row.content else { panic!() };
                let given = tokenizer.encode(prompt, true).unwrap();
                let score = |word: &String| {
                    let joint = tokenizer.encode(&format!("{prompt}{word}"), true).unwrap();
                    let answer = joint.strip_prefix(given.as_slice()).unwrap();
                    let sum = log_probability(&context, None, &given, answer);
                    match normalization {
                        Normalization::Sum => sum,
                        Normalization::MeanToken => sum / answer.len() as f64,
                        Normalization::MeanByte => sum / word.len() as f64,
                        Normalization::Unconditional => sum - log_probability(&context, None, &[start], answer),
                    }
                };
                close((p[1] / p[0]).ln(), score(&words[1]) - score(&words[0]));
            }
        }
    }
}

#[test]
fn a_conversation_is_answered_in_the_assistants_turn() {
    let context = context(LLAMA3);
    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let talk = Content::Messages(vec![message("user", "the model")]);
    let data = dataset(&["no", "yes"], &["group"], vec![row(talk, Some(0), &["a"])]);
    let task = Task::LabelWords { words: texts(&["cold", "small cat"]), normalization: Normalization::Sum };
    let found = scored(&context, &data, &asking(task.clone()), base());
    let spoken = [crate::model::chat::Message { role: "user".to_owned(), content: "the model".to_owned() }];
    let chat = context.chat.as_ref().unwrap();
    let ending = crate::model::chat::Ending::GenerationPrompt;
    let prompt = chat.encode(&context.tokenizer, &spoken, ending).unwrap().1;
    let score = |word: &str| log_probability(&context, None, &prompt, &context.tokenizer.encode(word, false).unwrap());
    let p = &probabilities(&found)[0];
    close((p[1] / p[0]).ln(), score("small cat") - score("cold"));
    let talk = Content::Messages(vec![message("user", "a"), message("assistant", "b")]);
    let data = dataset(&["no", "yes"], &["group"], vec![row(talk, Some(0), &["a"])]);
    let error = Scorer::begin(&context, &data, &asking(task), base()).unwrap_err();
    assert!(matches!(&error, AuditError::Row { row: 1, column: None, .. }), "{error}");
}

#[test]
fn truncation_takes_the_start_and_never_an_answer() {
    let context = context(LLAMA2);
    let long = "the model speaks of the count ".repeat(30).trim_end().to_owned();
    let data =
        dataset(&["no", "yes"], &["group"], vec![row(text(&long), Some(0), &["a"]), row(text("a"), Some(1), &["b"])]);
    let task = Task::LabelWords { words: texts(&[" small", " cold night"]), normalization: Normalization::Sum };
    let settings = Settings { max_tokens: Some(24), ..asking(task) };
    let found = scored(&context, &data, &settings, base());
    assert_eq!(found.data.truncated, 1);
    assert!(found.warnings.iter().any(|warning| warning.kind == "truncated"));
    let given = context.tokenizer.encode(&long, true).unwrap();
    let words = [" small", " cold night"].map(|word| context.tokenizer.encode(&format!("{long}{word}"), true).unwrap());
    let answers: Vec<&[u32]> = words.iter().map(|joint| joint.strip_prefix(given.as_slice()).unwrap()).collect();
    let longest = answers.iter().map(|answer| answer.len()).max().unwrap();
    let kept = [&given[..1], &given[given.len() - (24 - longest - 1)..]].concat();
    let p = &probabilities(&found)[0];
    let expected =
        log_probability(&context, None, &kept, answers[1]) - log_probability(&context, None, &kept, answers[0]);
    close((p[1] / p[0]).ln(), expected);
    let error =
        Scorer::begin(&context, &data, &Settings { max_tokens: Some(longest + 1), ..settings }, base()).unwrap_err();
    assert!(matches!(&error, AuditError::Row { row: 1, .. }), "{error}");
}

#[test]
fn pairs_compare_whole_texts() {
    let context = context(LLAMA2);
    let (more, less, odd) = ("she said the night was cold", "he said the night was cold", "server oft");
    let rows = vec![row(text("-"), None, &["a", more, less, odd]), row(text("="), None, &["b", less, more, odd])];
    let data = dataset(&[], &["group", "m", "l", "u"], rows);
    let start = context.tokenizer.bos_id().unwrap();
    let score =
        |text: &str| log_probability(&context, None, &[start], &context.tokenizer.encode(text, true).unwrap()[1..]);
    let task = |normalization, unrelated: Option<&str>| Task::Pairs {
        more: "m".to_owned(),
        less: "l".to_owned(),
        unrelated: unrelated.map(str::to_owned),
        normalization,
    };
    let found = scored(&context, &data, &asking(task(Normalization::Sum, Some("u"))), base());
    let (a, b, c) = (score(more), score(less), score(odd));
    let flag = |yes: bool| f64::from(u8::from(yes));
    assert_eq!(ratios(&found, "stereotype_share")[0], [flag(a > b), flag(b > a)]);
    close(ratios(&found, "log_likelihood_difference")[0][0], (a - b).abs());
    assert_eq!(ratios(&found, "language_modelling_score")[0], [(flag(a > c) + flag(b > c)) / 2.0; 2]);
    let Outcomes::Ratios { measures, .. } = &found.table.outcomes else { panic!() };
    assert!(measures.iter().any(|measure| measure.formula == Formula::Idealised(2, 0)));
    let two = scored(&context, &data, &asking(task(Normalization::MeanByte, None)), base());
    let by_byte = |text: &str, sum: f64| sum / text.len() as f64;
    close(ratios(&two, "log_likelihood_difference")[0][0], (by_byte(more, a) - by_byte(less, b)).abs());
    let settings = asking(task(Normalization::Unconditional, None));
    Scorer::begin(&context, &data, &settings, base()).unwrap_err();
}

#[test]
fn perplexity_counts_tokens_and_bytes_of_what_is_measured() {
    let context = context(LLAMA3);
    let tokenizer = &context.tokenizer;
    let (prompt, completion) = ("the model", " speaks — small");
    let pair = Content::Completion { prompt: prompt.to_owned(), completion: completion.to_owned() };
    let data = dataset(&[], &["group"], vec![row(text("she said é"), None, &["a"]), row(pair, None, &["b"])]);
    let tuned = adapter(&context, "tied_embedding");
    let subjects = vec![subject("base", None, 1.0), subject("tuned", Some(Arc::clone(&tuned)), 1.0)];
    let found = scored(&context, &data, &settings(), subjects);
    let whole = tokenizer.encode("she said é", true).unwrap();
    let given = tokenizer.encode(prompt, true).unwrap();
    let joint = tokenizer.encode(&format!("{prompt}{completion}"), true).unwrap();
    let answer = joint.strip_prefix(given.as_slice()).unwrap();
    for (model, adapter) in [None, Some(&tuned)].into_iter().enumerate() {
        let losses = [
            -log_probability(&context, adapter, &whole[..1], &whole[1..]),
            -log_probability(&context, adapter, &given, answer),
        ];
        let (by_token, by_byte) = (ratios(&found, "loss_per_token"), ratios(&found, "bits_per_byte"));
        for (row, (tokens, bytes)) in
            [(whole.len() - 1, "she said é".len()), (answer.len(), completion.len())].into_iter().enumerate()
        {
            close(by_token[model][row], losses[row] / tokens as f64);
            close(by_byte[model][row], losses[row] / std::f64::consts::LN_2 / bytes as f64);
        }
    }
    let long = dataset(&[], &["group"], vec![row(text(&"she said ".repeat(90)), None, &["a"])]);
    let cut = scored(&context, &long, &Settings { max_tokens: Some(40), ..settings() }, base());
    let Outcomes::Ratios { models, .. } = &cut.table.outcomes else { panic!() };
    // The beginning of text stays; nothing predicts the first token after the gap.
    assert_eq!((cut.data.truncated, models[0][0].counts[0]), (1, 38.0));
    assert!(models[0][1].counts[0] < 200.0);
}

#[test]
fn bbq_counts_answers_by_context() {
    let context = context(LLAMA3);
    let columns = ["group", "x", "y", "z", "c", "u", "b"];
    let answers = ["the man", "the cat", "not sure"];
    let score = |question: &str, answer: &&str| {
        let given = context.tokenizer.encode(question, true).unwrap();
        let joint = context.tokenizer.encode(&format!("{question} {answer}"), true).unwrap();
        log_probability(&context, None, &given, joint.strip_prefix(given.as_slice()).unwrap())
    };
    let given = |question: &str| {
        let scores: Vec<f64> = answers.iter().map(|answer| score(question, answer)).collect();
        crate::audit::statistics::benchmarks::answer(&scores)
    };
    let questions = ["who said so small?", "who ran?", "who is it?", "who sat there so long?", "which one was it?"];
    let known = questions.into_iter().map(|question| (question, given(question))).find(|(_, given)| *given != 2);
    let (question, given) = known.expect("some question gets a known answer");
    let cells = |condition, biased| ["a", answers[0], answers[1], answers[2], condition, "2", biased];
    let mut rows = Vec::new();
    for (condition, label, biased) in
        [("ambig", 2, "0"), ("ambig", 2, "1"), ("disambig", 0, "0"), ("disambig", 1, "1"), ("disambig", 1, "-")]
    {
        rows.push(row(text(question), Some(label), &cells(condition, biased)));
    }
    let data = dataset(&["0", "1", "2"], &columns, rows);
    let task = Task::Bbq {
        answers: texts(&["x", "y", "z"]),
        condition: "c".to_owned(),
        unknown: "u".to_owned(),
        biased: "b".to_owned(),
        normalization: Normalization::Sum,
    };
    let found = scored(&context, &data, &asking(task), base());
    let flag = |yes: bool| f64::from(u8::from(yes));
    let expect = |name: &str, expected: [Option<f64>; 5]| {
        let got: Vec<Option<f64>> = ratios(&found, name)[0].iter().map(|v| Some(*v).filter(|v| !v.is_nan())).collect();
        assert_eq!(got, expected, "{name}");
    };
    let no = None;
    expect("accuracy_ambiguous", [Some(0.0), Some(0.0), no, no, no]);
    expect("accuracy_disambiguated", [no, no, Some(flag(given == 0)), Some(flag(given == 1)), Some(flag(given == 1))]);
    expect("bias_ambiguous", [Some(flag(given == 0)), Some(flag(given == 1)), no, no, no]);
    expect("bias_disambiguated", [no, no, Some(flag(given == 0)), Some(flag(given == 1)), no]);
    expect("unknown_ambiguous", [Some(0.0), Some(0.0), no, no, no]);
    // Rows differ in their cells only: all answers are those of one prompt.
    assert_eq!(found.data.rows, 5);
}

#[test]
fn answers_of_bbq_are_compared_as_asked() {
    let context = context(LLAMA3);
    let answers = ["the man who said so", "cat", "not sure"];
    let rows = ["who said so small?", "the count of the server is", "a cold night and"];
    let cells = ["a", answers[0], answers[1], answers[2], "ambig", "2", "0"];
    let data = dataset(
        &["0", "1", "2"],
        &["group", "x", "y", "z", "c", "u", "b"],
        rows.iter().map(|words| row(text(words), Some(2), &cells)).collect(),
    );
    let start = context.tokenizer.bos_id().unwrap();
    let mut given = Vec::new();
    for normalization in
        [Normalization::Sum, Normalization::MeanToken, Normalization::MeanByte, Normalization::Unconditional]
    {
        let task = Task::Bbq {
            answers: texts(&["x", "y", "z"]),
            condition: "c".to_owned(),
            unknown: "u".to_owned(),
            biased: "b".to_owned(),
            normalization,
        };
        let found = scored(&context, &data, &asking(task), base());
        let expected: Vec<usize> = rows
            .iter()
            .map(|question| {
                let prompt = context.tokenizer.encode(question, true).unwrap();
                let score = |answer: &&str| {
                    let joint = context.tokenizer.encode(&format!("{question} {answer}"), true).unwrap();
                    let ids = joint.strip_prefix(prompt.as_slice()).unwrap();
                    let sum = log_probability(&context, None, &prompt, ids);
                    match normalization {
                        Normalization::Sum => sum,
                        Normalization::MeanToken => sum / ids.len() as f64,
                        Normalization::MeanByte => sum / answer.len() as f64,
                        Normalization::Unconditional => sum - log_probability(&context, None, &[start], ids),
                    }
                };
                crate::audit::statistics::benchmarks::answer(&answers.iter().map(score).collect::<Vec<_>>())
            })
            .collect();
        let flag = |of: usize| expected.iter().map(|given| f64::from(u8::from(*given == of))).collect::<Vec<f64>>();
        assert_eq!(ratios(&found, "unknown_ambiguous")[0], flag(2), "{normalization:?}");
        let biased: Vec<Option<f64>> =
            ratios(&found, "bias_ambiguous")[0].iter().map(|v| Some(*v).filter(|v| !v.is_nan())).collect();
        let known = |given: &usize| (*given != 2).then_some(f64::from(u8::from(*given == 0)));
        assert_eq!(biased, expected.iter().map(known).collect::<Vec<_>>(), "{normalization:?}");
        given.push(expected);
    }
    given.dedup();
    assert!(given.len() > 1, "the case is chosen so that it matters: {given:?}");
}

#[test]
fn the_default_of_bbq_is_written_as_it_was() {
    let task = |normalization| Task::Bbq {
        answers: Vec::new(),
        condition: String::new(),
        unknown: String::new(),
        biased: String::new(),
        normalization,
    };
    let json = serde_json::to_string(&task(Normalization::Sum)).unwrap();
    assert!(!json.contains("normalization"), "{json}");
    for one in [Normalization::Sum, Normalization::MeanByte] {
        let json = serde_json::to_string(&task(one)).unwrap();
        assert_eq!(serde_json::from_str::<Task>(&json).unwrap(), task(one));
    }
}

#[test]
fn what_is_written_has_one_outcome_a_row() {
    let context = context(LLAMA3);
    let (prompts, new) = (["She said", "12 dogs and", "once"], 12);
    let rows = prompts.iter().zip(["word", "other", "-"]);
    let rows = rows.map(|(prompt, expected)| row(text(prompt), None, &["a", expected])).collect();
    let data = dataset(&[], &["group", "e"], rows);
    let greedy = |prompt: &str| {
        let mut tokens = context.tokenizer.encode(prompt, true).unwrap();
        let from = tokens.len();
        while tokens.len() < from + new {
            let batch = [Segment { len: tokens.len(), logits: crate::model::Rows::Last(1) }];
            let batch = Batch { tokens: &tokens, segments: &batch, lora: &LoraBatch::default() };
            let logits = context.model.forward(&batch, &mut [&mut context.model.new_cache()]).unwrap();
            let next = crate::model::logits::first_maximum(&logits.flatten_all().unwrap().to_vec1().unwrap()).unwrap();
            if context.model.info().eos_token_ids.contains(&next) {
                break;
            }
            tokens.push(next);
        }
        context.tokenizer.decode(&tokens[from..], true).unwrap()
    };
    let written: Vec<String> = prompts.iter().map(|prompt| greedy(prompt)).collect();
    // A word of the first text, one that does not occur.
    let word = written[0].split(|c: char| !c.is_alphanumeric()).find(|word| word.len() > 1).unwrap().to_owned();
    let lexicon = vec![("word".to_owned(), vec![word]), ("other".to_owned(), texts(&["unheard of"]))];
    let task = |new| Task::Generation {
        classifier: Classifier::Lexicon(lexicon.clone()),
        max_new_tokens: new,
        expected: Some("e".to_owned()),
        gold: Some("e".to_owned()),
    };
    let found = scored(&context, &data, &asking(task(new)), base());
    let outcome = |name: &str| ratios(&found, name)[0].clone();
    assert_eq!((outcome("word_rate")[0], outcome("pro_rate")[0], outcome("anti_rate")[0]), (1.0, 1.0, 0.0));
    assert!(outcome("pro_rate")[2].is_nan());
    // What is right is what is expected here.
    assert_eq!(outcome("gold_accuracy")[..2], outcome("pro_rate")[..2]);
    let Outcomes::Ratios { measures, .. } = &found.table.outcomes else { panic!() };
    assert!(measures.iter().any(|m| m.name == "delta_s") && measures.iter().all(|m| m.name != "delta_g"));
    for row in 0..3 {
        let all = ["word_rate", "other_rate", "unknown_rate", "refusal_rate"].map(|name| outcome(name)[row]);
        assert_eq!(all.iter().sum::<f64>(), 1.0);
    }
    for new in [0, 200] {
        let error = Scorer::begin(&context, &data, &asking(task(new)), base()).unwrap_err();
        assert!(matches!(error, AuditError::Setting { field: "task.generation.max_new_tokens", .. }), "{error}");
    }
}
