//! `golden_tokenizers`: ids, texts and streamed pieces of the tokenizers, and rendered conversations.
//!
//! Pairs of texts (`pairs` in the files) are not compared: nothing here encodes two texts as one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use evenkeel::model::chat::{ChatError, ChatTemplate, Ending, Message};
use evenkeel::model::tokenizer::Tokenizer;
use serde_json::Value;

use super::{Tally, cases, json, root};

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[test]
fn golden_tokenizers() {
    let mut tally = Tally::new("golden_tokenizers");
    for folder in cases("tokenizers", "expected.json") {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (tokenizer, _) = Tokenizer::load(&folder).unwrap();
        let tokenizer = Arc::new(tokenizer);
        let expected = json(&folder.join("expected.json"));
        for (number, case) in list(&expected["encode"]).enumerate() {
            let what = format!("{name} encode {number}");
            encode(&mut tally, &what, &tokenizer, case);
            decode(&mut tally, &what, &tokenizer, case);
        }
        for (number, case) in list(&expected["decode"]).enumerate() {
            decode(&mut tally, &format!("{name} decode {number}"), &tokenizer, case);
        }
    }
    chats(&mut tally);
    tally.finish();
}

fn encode(tally: &mut Tally, what: &str, tokenizer: &Tokenizer, case: &Value) {
    tally.case();
    let input = text(&case["text"]);
    tally.equal(what, &tokenizer.encode(&input, false).unwrap(), &ids(&case["ids"]));
    tally.equal(what, &tokenizer.encode(&input, true).unwrap(), &ids(&case["ids_with_special_tokens"]));
    let pieces: Vec<_> = ids(&case["ids"]).into_iter().map(|id| tokenizer.piece(id).unwrap()).collect();
    tally.equal(what, &pieces, &list(&case["tokens"]).map(text).collect());
    if let Some(plain) = case.get("ids_with_special_tokens_in_the_text_as_plain_text") {
        tally.equal(&format!("{what} plain"), &tokenizer.encode_plain(&input).unwrap(), &ids(plain));
    }
}

fn decode(tally: &mut Tally, what: &str, tokenizer: &Arc<Tokenizer>, case: &Value) {
    tally.case();
    let ids = ids(&case["ids"]);
    let whole = text(&case["decoded"]);
    tally.equal(what, &tokenizer.decode(&ids, true).unwrap(), &whole);
    tally.equal(what, &tokenizer.decode(&ids, false).unwrap(), &text(&case["decoded_keeping_special"]));
    let Some(expected) = case["stream"].as_array() else { return };
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id)).collect();
    // From its error on, the library's stream says nothing that could be compared.
    let sound = expected.iter().take_while(|e| e.get("error").is_none()).count();
    for (at, piece) in expected.iter().take(sound).enumerate() {
        let piece = piece.as_str().unwrap_or_default();
        tally.equal(&format!("{what} piece {at}"), &pieces[at].as_str(), &piece);
    }
    pieces.push(stream.finish());
    let joined = pieces.concat();
    // Where a later id turns emitted letters into U+FFFD, what was emitted stays: as many pieces, and the same end.
    let retracted =
        list(&case["incremental_decodes"]).map(text).any(|t| !t.ends_with('\u{FFFD}') && !whole.starts_with(&t));
    if retracted {
        let end = |s: &str| s.chars().rev().take_while(|c| *c != '\u{FFFD}').collect::<String>();
        tally.equal(&format!("{what} end of the stream"), &end(&joined), &end(&whole));
        tally.equal(&format!("{what} broken"), &joined.contains('\u{FFFD}'), &whole.contains('\u{FFFD}'));
    } else {
        tally.equal(&format!("{what} joined"), &joined, &whole);
    }
}

fn chats(tally: &mut Tally) {
    let folder = root().join("chat_templates");
    let path = folder.join("expected.json");
    if !path.is_file() {
        return;
    }
    let expected = json(&path);
    for (name, template) in expected["templates"].as_object().unwrap() {
        chat_template(tally, &folder, (name, template), &expected["messages"]);
    }
}

fn chat_template(tally: &mut Tally, folder: &Path, (name, expected): (&str, &Value), messages: &Value) {
    let source = std::fs::read_to_string(folder.join(text(&expected["template"]))).unwrap();
    let (tokenizer, _) = Tokenizer::load(&root().join(text(&expected["tokenizer"]))).unwrap();
    let special = ["bos_token", "eos_token"].into_iter().filter(|key| expected[key].is_string());
    let special: HashMap<_, _> = special.map(|key| (key.to_owned(), text(&expected[key]))).collect();
    let template = ChatTemplate::new(source, special).unwrap();
    for (case, endings) in expected["cases"].as_object().unwrap() {
        let talk: Vec<_> =
            list(&messages[case]).map(|m| Message { role: text(&m["role"]), content: text(&m["content"]) }).collect();
        for (ending, outcome) in endings.as_object().unwrap() {
            tally.case();
            let what = format!("{name} {case} {ending}");
            let ending = match ending.as_str() {
                "plain" => Ending::Plain,
                "with_generation_prompt" => Ending::GenerationPrompt,
                "continue_final_message" => Ending::ContinueFinalMessage,
                other => panic!("{what}: `{other}` is not known"),
            };
            let rendered = template.render(&talk, ending);
            if let Some(error) = outcome.get("error") {
                let message = outcome["message"].as_str().unwrap_or_else(|| panic!("{what}: {error} without words"));
                let got = match rendered {
                    Err(ChatError::Refused(message)) => message,
                    other => format!("{other:?}"),
                };
                tally.equal(&what, &got.as_str(), &message);
                continue;
            }
            let rendered = rendered.unwrap_or_else(|e| format!("error: {e}"));
            tally.equal(&what, &rendered, &text(&outcome["text"]));
            if outcome.get("ids").is_none() {
                continue;
            }
            // The reference recognises control tokens that users wrote; a conversation encoded here does not.
            tally.equal(&what, &tokenizer.encode(&rendered, false).unwrap(), &ids(&outcome["ids"]));
            let (same, encoded) = template.encode(&tokenizer, &talk, ending).unwrap();
            tally.equal(&what, &same, &rendered);
            let plain = |m: &Message| {
                tokenizer.encode(&m.content, false).unwrap() == tokenizer.encode_plain(&m.content).unwrap()
            };
            tally.equal(&what, &(encoded == ids(&outcome["ids"])), &talk.iter().all(plain));
        }
    }
}
