//! Rows to ids: what is learnt, what is dropped, what is refused. Models, tokenizers and templates are the golden ones.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::dataset::{Content, Message, Split};
use crate::model::chat::{self, ChatTemplate, Ending};
use crate::model::tokenizer::Tokenizer;
use crate::train::order::tests::settings;

/// Llama-2's template and SentencePiece, `</s>` at the end of a turn.
const LLAMA2: &str = "llama_mha";
/// Llama-3's template and bytes, `<|eot_id|>` at the end of a turn.
const LLAMA3: &str = "llama_gqa_llama3_tied";
/// Answers follow `[/INST]` without a space.
const MISTRAL: &str = "mistral_sliding";

fn golden(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(part)
}

fn context(model: &str) -> Context {
    let folder = golden("language").join(model);
    let (tokenizer, chat) = Tokenizer::load(&folder).unwrap();
    let model = crate::model::load(&folder, "golden", "cpu", "f32").unwrap();
    let reader = Reader::Text { tokenizer: Arc::new(tokenizer), chat: chat.map(Arc::new) };
    Context { model, reader, memory_bytes: 0, spare_bytes: 0 }
}

impl Context {
    fn text(&mut self) -> (&mut Arc<Tokenizer>, &mut Option<Arc<ChatTemplate>>) {
        match &mut self.reader {
            Reader::Text { tokenizer, chat } => (tokenizer, chat),
            Reader::Images(_) => panic!("it reads images"),
        }
    }

    fn tokenizer(&self) -> &Tokenizer {
        match &self.reader {
            Reader::Text { tokenizer, .. } => tokenizer,
            Reader::Images(_) => panic!("it reads images"),
        }
    }

    fn chat(&self) -> Option<&Arc<ChatTemplate>> {
        match &self.reader {
            Reader::Text { chat, .. } => chat.as_ref(),
            Reader::Images(_) => None,
        }
    }
}

fn row(content: Content) -> Row {
    Row { content, label: None, groups: vec![], split: Split::Train, hash: [0; 32] }
}

fn text(text: &str) -> Row {
    row(Content::Text(text.to_owned()))
}

fn completion(prompt: &str, completion: &str) -> Row {
    row(Content::Completion { prompt: prompt.to_owned(), completion: completion.to_owned() })
}

/// A conversation of `user: …` and `assistant: …` lines.
fn talk(lines: &[&str]) -> Row {
    row(Content::Messages(messages(lines)))
}

fn messages(lines: &[&str]) -> Vec<Message> {
    let message = |line: &&str| {
        let (role, content) = line.split_once(": ").unwrap();
        Message { role: role.to_owned(), content: content.to_owned() }
    };
    lines.iter().map(message).collect()
}

fn spoken(lines: &[&str]) -> Vec<chat::Message> {
    messages(lines).into_iter().map(|m| chat::Message { role: m.role, content: m.content }).collect()
}

fn dataset(rows: Vec<Row>) -> Dataset {
    Dataset { id: String::new(), labels: vec![], multi_label: false, group_columns: vec![], rows }
}

fn long() -> Settings {
    Settings { max_tokens: 200, ..settings() }
}

fn examples(context: &Context, rows: Vec<Row>, settings: &Settings) -> Examples {
    Examples::new(context, &dataset(rows), settings).unwrap()
}

fn one(context: &Context, row: Row, settings: &Settings) -> Example {
    examples(context, vec![row], settings).train.remove(0)
}

/// What is said about a fault in the second of two rows.
fn fault(context: &Context, row: Row, settings: &Settings) -> String {
    let first = Row { label: Some(Label::Class(0)), ..completion("hello", " there") };
    let mut dataset = dataset(vec![first, row]);
    dataset.labels = vec!["a".to_owned(), "b".to_owned()];
    let error = Examples::new(context, &dataset, settings).unwrap_err();
    let TrainError::Data(fault) = error else { panic!("{error}") };
    fault
}

/// The texts of the runs of learnt tokens.
fn learnt(context: &Context, example: &Example) -> Vec<String> {
    assert_eq!(example.tokens.len(), example.learnt.len());
    let pairs: Vec<_> = example.tokens.iter().zip(&example.learnt).collect();
    let runs = pairs.chunk_by(|a, b| a.1 == b.1).filter(|run| *run[0].1);
    let ids = runs.map(|run| run.iter().map(|(id, _)| **id).collect::<Vec<_>>());
    ids.map(|ids| context.tokenizer().decode(&ids, false).unwrap().trim().to_owned()).collect()
}

#[test]
fn a_text_is_learnt_whole_and_ended_once() {
    let context = context(LLAMA2);
    let tokenizer = context.tokenizer();
    let eos = tokenizer.eos_id().unwrap();
    let mut expected = tokenizer.encode("the quick brown fox", true).unwrap();
    expected.push(eos);
    for source in ["the quick brown fox", "the quick brown fox</s>"] {
        let example = one(&context, text(source), &long());
        assert_eq!(example.tokens, expected);
        assert!(example.learnt.iter().all(|learnt| *learnt));
    }
}

#[test]
fn a_completion_is_learnt_and_its_prompt_is_not() {
    for model in [LLAMA2, LLAMA3, MISTRAL] {
        let context = context(model);
        let tokenizer = context.tokenizer();
        let (mut clean, mut split) = (0, 0);
        for (prompt, answer) in
            [("a long day", " is good"), ("hel", "lo"), ("the ", "end"), ("x\n", "\ny"), ("é", "è!")]
        {
            let example = one(&context, completion(prompt, answer), &long());
            let given = tokenizer.encode(prompt, true).unwrap();
            let joint = tokenizer.encode(&format!("{prompt}{answer}"), true).unwrap();
            let alone = tokenizer.encode(answer, false).unwrap();
            let is_clean = joint.starts_with(&given) && joint.len() > given.len();
            (clean, split) = (clean + usize::from(is_clean), split + usize::from(!is_clean));
            let mut expected = if is_clean { joint } else { [given.as_slice(), &alone].concat() };
            // Where serving stops, whatever the tokenizer calls the end of a turn.
            expected.push(context.model.info().eos_token_ids[0]);
            assert_eq!(example.tokens, expected, "{model}: {prompt:?} {answer:?}");
            let masked: Vec<_> = (0..expected.len()).map(|i| i >= given.len()).collect();
            assert_eq!(example.learnt, masked);
            let both = one(&context, completion(prompt, answer), &Settings { train_on_prompt: true, ..long() });
            assert_eq!((both.tokens, both.learnt.contains(&false)), (expected, false));
        }
        assert!(clean > 0 && split > 0, "{model}: {clean} clean, {split} split");
    }
}

#[test]
fn assistant_turns_are_learnt_with_their_ends_after_what_serving_is_given() {
    let lines = ["user: hi there", "assistant: hello you", "user: who", "assistant: me", "user: bye"];
    for (model, end) in [(LLAMA2, " </s>"), (LLAMA3, "<|eot_id|>"), (MISTRAL, "</s>")] {
        let context = context(model);
        let template = context.chat().unwrap();
        let example = one(&context, talk(&lines), &long());
        assert_eq!(learnt(&context, &example), [format!("hello you{end}"), format!("me{end}")], "{model}");
        assert_eq!(example.learnt.last(), Some(&true), "what nobody learns at the end is left out");
        let starts = (1..example.learnt.len()).filter(|i| example.learnt[*i] && !example.learnt[i - 1]);
        for (start, before) in starts.zip([&lines[..1], &lines[..3]]) {
            let (_, served) = template.encode(context.tokenizer(), &spoken(before), Ending::GenerationPrompt).unwrap();
            assert_eq!(example.tokens[..start], served, "{model}");
        }
        let all = one(&context, talk(&lines), &Settings { train_on_prompt: true, ..long() });
        let (_, whole) = template.encode(context.tokenizer(), &spoken(&lines), Ending::Plain).unwrap();
        assert_eq!((all.tokens, all.learnt.contains(&false)), (whole, false), "{model}");
    }
}

#[test]
fn control_tokens_spelt_in_messages_stay_plain_text() {
    let context = context(LLAMA3);
    let eot = context.tokenizer().id("<|eot_id|>").unwrap();
    for lines in [["user: a<|eot_id|>b", "assistant: c"], ["user: a", "assistant: b<|eot_id|>c"]] {
        let example = one(&context, talk(&lines), &long());
        assert_eq!(example.tokens.iter().filter(|id| **id == eot).count(), 2, "{lines:?}");
        let answer = lines[1].strip_prefix("assistant: ").unwrap();
        assert_eq!(learnt(&context, &example), [format!("{answer}<|eot_id|>")]);
    }
}

#[test]
fn an_answer_that_runs_into_its_prompt_is_encoded_alone() {
    let mut context = context(LLAMA3);
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}So.{% endif %}{{ m.content }}{% endfor %}\
        {% if add_generation_prompt %}So.{% endif %}";
    *context.text().1 = Some(Arc::new(ChatTemplate::new(source.to_owned(), HashMap::new()).unwrap()));
    let served = context.tokenizer().encode("aSo.", false).unwrap();
    let mut ran_in = 0;
    // A full stop and the end of its line are one token.
    for answer in ["\nb", "b", "\n\n", "<|eot_id|>"] {
        let whole = context.tokenizer().encode(&format!("aSo.{answer}"), false).unwrap();
        ran_in += usize::from(!whole.starts_with(&served));
        let lines = ["user: a".to_owned(), format!("assistant: {answer}")];
        let example = one(&context, talk(&[&lines[0], &lines[1]]), &long());
        assert!(example.tokens.starts_with(&served) && !example.learnt[served.len() - 1], "{answer:?}");
        assert!(example.learnt[served.len()..].iter().all(|learnt| *learnt), "{answer:?}");
        assert_eq!(learnt(&context, &example), [answer.trim()]);
    }
    assert!(ran_in > 0, "no answer of this test runs into its prompt");
}

#[test]
fn conversations_that_a_template_does_not_allow_are_named() {
    let mut context = context(LLAMA2);
    let refused = |context: &Context, lines: &[&str]| fault(context, talk(lines), &long());
    let words = "row 2: Conversation roles must alternate user/assistant/user/assistant/...";
    assert_eq!(refused(&context, &["user: a", "user: b", "assistant: c"]), words);
    assert_eq!(refused(&context, &["user: a"]), "row 2: nothing in it is learnt");
    assert!(refused(&context, &[]).starts_with("row 2: "));

    // It puts a system message before the first message only once there is one.
    let source = std::fs::read_to_string(golden("chat_templates/chatml.jinja")).unwrap();
    *context.text().1 = Some(Arc::new(ChatTemplate::new(source, HashMap::new()).unwrap()));
    assert!(refused(&context, &["assistant: a"]).contains("once message 1 is there"));
    let forgetful = "{% if messages | length > 2 %}again{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";
    *context.text().1 = Some(Arc::new(ChatTemplate::new(forgetful.to_owned(), HashMap::new()).unwrap()));
    assert!(
        refused(&context, &["user: a", "assistant: b", "user: c", "assistant: d"]).contains("once message 3 is there")
    );
    *context.text().1 = None;
    assert!(refused(&context, &["user: a", "assistant: b"]).contains("no chat template"));
}

#[test]
fn what_is_too_long_loses_the_start_of_its_prompt() {
    let context = context(LLAMA2);
    let prompt = "one two three four five six seven eight nine ten";
    let whole = one(&context, completion(prompt, " yes"), &long());
    let bos = context.tokenizer().bos_id();
    let answer = whole.learnt.iter().filter(|learnt| **learnt).count();
    for max_tokens in answer + 1..whole.tokens.len() {
        let cut = examples(&context, vec![completion(prompt, " yes")], &Settings { max_tokens, ..long() });
        assert_eq!(cut.truncated, 1);
        let example = &cut.train[0];
        assert_eq!(example.tokens.first().copied(), bos);
        assert_eq!(example.tokens[1..], whole.tokens[whole.tokens.len() - max_tokens + 1..]);
        assert_eq!(learnt(&context, example), learnt(&context, &whole));
    }
    let settings = Settings { max_tokens: answer, ..long() };
    assert!(fault(&context, completion(prompt, " yes"), &settings).starts_with("row 2: the answer alone has"));

    let whole = one(&context, text(prompt), &long());
    let cut = one(&context, text(prompt), &Settings { max_tokens: 6, ..long() });
    assert_eq!(cut.tokens[1..], whole.tokens[whole.tokens.len() - 5..]);
    assert_eq!(cut.learnt, [true, false, true, true, true, true], "nothing predicts the token after the gap");
    assert_eq!(examples(&context, vec![text(prompt)], &long()).truncated, 0);
}

#[test]
fn an_earlier_turn_that_lost_its_start_is_not_learnt() {
    let context = context(LLAMA3);
    let lines = ["user: one two", "assistant: three four five six", "user: seven", "assistant: eight"];
    let whole = one(&context, talk(&lines), &long());
    let first = whole.learnt.iter().position(|learnt| *learnt).unwrap();
    let last = whole.tokens.len();
    for dropped in 1..=first + 1 {
        let cut = one(&context, talk(&lines), &Settings { max_tokens: last - dropped, ..long() });
        // The beginning of text stays, so the first turn is learnt while a token of its question is left.
        let turns = if dropped + 1 < first { 2 } else { 1 };
        assert_eq!(learnt(&context, &cut).len(), turns, "{dropped} of {first}");
        assert_eq!(learnt(&context, &cut).last(), learnt(&context, &whole).last());
    }
}

#[test]
fn a_turn_that_the_template_leaves_out_is_no_answer() {
    let mut context = context(LLAMA3);
    let source = "{% for m in messages %}{% if loop.index < 4 %}[{{ m.content }}]{% endif %}{% endfor %}";
    *context.text().1 = Some(Arc::new(ChatTemplate::new(source.to_owned(), HashMap::new()).unwrap()));
    let row = || talk(&["user: one two", "assistant: three", "user: four", "assistant: five"]);
    let whole = one(&context, row(), &long());
    assert_eq!(learnt(&context, &whole), ["[three]"]);
    let cut = one(&context, row(), &Settings { max_tokens: whole.tokens.len() - 2, ..long() });
    assert_eq!((cut.tokens.len(), learnt(&context, &cut)), (whole.tokens.len() - 2, vec!["[three]".to_owned()]));
    let both = Settings { train_on_prompt: true, ..long() };
    assert!(one(&context, row(), &both).tokens.len() > whole.tokens.len());
}

#[test]
fn classification_reads_texts_and_learns_labels() {
    let context = context(LLAMA2);
    let settings = Settings { task: Task::SequenceClassification, ..long() };
    let labelled = |row: Row, label| Row { label: Some(label), ..row };
    let mut data = dataset(vec![
        labelled(text("good"), Label::Class(1)),
        labelled(completion("bad", "never read"), Label::Class(0)),
        labelled(talk(&["user: hi"]), Label::Class(1)),
    ]);
    data.labels = vec!["no".to_owned(), "yes".to_owned()];
    let examples = Examples::new(&context, &data, &settings).unwrap();
    let ids = |text: &str| context.tokenizer().encode(text, true).unwrap();
    let template = context.chat().unwrap();
    let (_, chat) = template.encode(context.tokenizer(), &spoken(&["user: hi"]), Ending::Plain).unwrap();
    assert_eq!(examples.train.iter().map(|e| e.tokens.clone()).collect::<Vec<_>>(), [ids("good"), ids("bad"), chat]);
    assert!(examples.train.iter().all(|e| !e.learnt.contains(&true) && e.class.is_some()));
    assert_eq!((examples.labels, examples.multi_label), (data.labels.clone(), false));

    let mut refuse = |at: usize, label: Option<Label>| {
        let before = std::mem::replace(&mut data.rows[at].label, label);
        let refused = Examples::new(&context, &data, &settings).unwrap_err().to_string();
        data.rows[at].label = before;
        refused
    };
    assert_eq!(refuse(2, None), "row 3: it has no label");
    assert_eq!(refuse(0, Some(Label::Class(2))), "row 1: its label is not one of the data set's");
    assert_eq!(refuse(0, Some(Label::Classes(vec![1]))), "row 1: its label is not one of the data set's");
    assert!(refuse(1, Some(Label::Class(1))).contains("same label"));
    let unlabelled = Dataset { labels: vec![], ..data.clone() };
    assert!(matches!(Examples::new(&context, &unlabelled, &settings), Err(TrainError::Data(_))));

    let sets = [vec![0, 1], vec![]].map(|classes| labelled(text("x"), Label::Classes(classes)));
    let several = Dataset { rows: sets.into(), multi_label: true, ..data };
    assert!(Examples::new(&context, &several, &settings).unwrap().multi_label);
}

#[test]
fn rows_without_anything_to_learn_are_named() {
    let mut context = context(LLAMA3);
    // Without special tokens an empty text is one token, its end.
    let json = std::fs::read_to_string(golden("tokenizers/byte_level_bpe/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["post_processor"] = serde_json::Value::Null;
    *context.text().0 = Arc::new(Tokenizer::from_json(json.to_string().as_bytes()).unwrap());
    assert_eq!(fault(&context, text(""), &long()), "row 2: it has 1 tokens, 2 or more are needed");
    let settings = Settings { task: Task::SequenceClassification, ..long() };
    let empty = Row { label: Some(Label::Class(1)), ..text("") };
    assert_eq!(fault(&context, empty, &settings), "row 2: it has 0 tokens, 1 or more are needed");
}

#[test]
fn splits_are_kept_apart_and_the_test_rows_are_not_read() {
    let context = context(LLAMA2);
    let of = |split, row: Row| Row { split, ..row };
    // The test row could not be encoded.
    let rows = vec![
        of(Split::Validation, text("a b")),
        of(Split::Test, talk(&[])),
        of(Split::Train, text("c d")),
        of(Split::Validation, text("e f")),
    ];
    let all = examples(&context, rows.clone(), &long());
    assert_eq!((all.train.len(), all.validation.len()), (1, 2));
    let none = Examples::new(&context, &dataset(rows[..2].to_vec()), &long());
    assert!(matches!(none, Err(TrainError::Data(fault)) if fault.contains("training split")));
}

#[test]
fn groups_are_numbered_by_column_and_value() {
    let context = context(LLAMA2);
    let with = |groups: [Option<&str>; 2], split| Row {
        groups: groups.map(|g| g.map(str::to_owned)).into(),
        split,
        ..text("some words")
    };
    let mut data = dataset(vec![
        with([Some("w"), None], Split::Train),
        with([Some("m"), Some("old")], Split::Validation),
        with([None, Some("old")], Split::Train),
        with([Some("x"), Some("y")], Split::Test),
    ]);
    data.group_columns = vec!["sex".to_owned(), "age".to_owned()];
    let asked = |groups: &[&str]| Settings { groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..long() };
    let examples = Examples::new(&context, &data, &asked(&["age", "sex"])).unwrap();
    let keys: Vec<_> = examples.groups.iter().map(|key| (key.column.as_str(), key.value.as_deref())).collect();
    assert_eq!(keys, [("age", Some("old")), ("age", None), ("sex", Some("m")), ("sex", Some("w")), ("sex", None)]);
    assert_eq!(examples.train[0].groups, [1, 3]);
    assert_eq!(examples.train[1].groups, [0, 4]);
    assert_eq!(examples.validation[0].groups, [0, 2]);

    let refused = |data: &Dataset, groups: &[&str]| {
        let error = Examples::new(&context, data, &asked(groups)).unwrap_err();
        let TrainError::Setting { field: "groups", fault } = error else { panic!("{error}") };
        fault
    };
    assert_eq!(refused(&data, &["age", "race"]), "the data set has no group column `race`");
    assert_eq!(refused(&data, &["age", "age"]), "`age` is named twice");
    let identifiers = (0..=MAX_GROUP_VALUES).map(|i| with([Some(&i.to_string()), None], Split::Train)).collect();
    data.rows = identifiers;
    assert!(refused(&data, &["sex"]).contains("257 values"));
}

#[test]
fn a_sequence_fits_the_model() {
    let context = context(LLAMA2);
    let longest = context.model.info().context_length;
    for (max_tokens, fits) in [(0, false), (1, false), (2, true), (longest, true), (longest + 1, false)] {
        let outcome = Examples::new(&context, &dataset(vec![completion("a", "")]), &Settings { max_tokens, ..long() });
        assert_eq!(outcome.is_ok(), fits, "{max_tokens}");
        assert!(fits || matches!(outcome, Err(TrainError::Setting { field: "max_tokens", .. })));
    }
}

#[test]
fn an_image_of_a_size_that_nothing_resizes_is_told_at_the_start() {
    let folder = golden("vision/vit");
    let model = crate::model::load_images(&folder, "golden", "cpu", "f32").unwrap();
    let size = model.info().image_size;
    let file = std::fs::read(golden("../images/rgb.png")).unwrap();
    let image = |class| Row { label: Some(Label::Class(class)), ..row(Content::Image(file.clone().into())) };
    let labels = vec!["no".to_owned(), "yes".to_owned()];
    let dataset = Dataset { labels, ..dataset(vec![image(0), image(1)]) };
    let settings = Settings { task: Task::ImageClassification, ..settings() };
    let examples = |processor: &str| {
        let reader = Reader::Images(crate::model::image::Processor::parse(processor.as_bytes(), size).unwrap());
        Examples::new(&Context { model: model.clone(), reader, memory_bytes: 0, spare_bytes: 0 }, &dataset, &settings)
    };
    let numbers: Vec<_> =
        examples(r#"{"size": 32}"#).unwrap().train.iter().map(|e| e.image.as_ref().unwrap().row).collect();
    assert_eq!(numbers, [1, 2]);
    let error = examples(r#"{"do_resize": false}"#).unwrap_err().to_string();
    assert!(error.starts_with("row 1: ") && error.contains("does not resize"), "{error}");
}
