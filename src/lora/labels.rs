//! The labels of a classification head that an adapter brings, as notes in its configuration.
//!
//! PEFT has no key for them. `auto_mapping` is a table for whoever makes the base model, of which PEFT reads other keys
//! and passes over the rest, in every version: there they stand, by the keys of transformers' `config.json`.

use serde_json::{Value, json};

use super::config::invalid;
use super::json::Json;
use super::{Classes, LoraError, Problem};

/// Most labels read of any configuration.
pub const MAX_LABELS: usize = 1 << 16;
/// Longest name of one, in bytes: names go into answers.
pub const MAX_NAME: usize = 256;

const KEY: &str = "auto_mapping";
const SINGLE: &str = "single_label_classification";
const MULTI: &str = "multi_label_classification";

/// Returns the value of `auto_mapping` that names these labels, and says whether a row can have several.
pub fn labelled(names: &[String], multi_label: bool) -> Value {
    let named: serde_json::Map<_, _> = names.iter().enumerate().map(|(i, name)| (i.to_string(), json!(name))).collect();
    json!({"id2label": named, "problem_type": if multi_label { MULTI } else { SINGLE }})
}

/// Returns the labels that `auto_mapping` names, if it names some.
pub(super) fn read(value: &Json) -> Result<Option<Classes>, LoraError> {
    let entries = value.as_object().unwrap_or_default();
    let get = |key: &str| entries.iter().find(|(name, _)| name == key).map(|(_, value)| value);
    let Some(named) = get("id2label") else { return Ok(None) };
    let fault = |fault: String| invalid(KEY, &fault);
    let named = named.as_object().ok_or_else(|| fault("has an id2label that is not an object".into()))?;
    if !(1..=MAX_LABELS).contains(&named.len()) {
        return Err(fault(format!("names {} labels, 1 to {MAX_LABELS} are possible", named.len())));
    }
    let problem = match get("problem_type").and_then(Json::as_text) {
        None | Some(SINGLE) => Problem::Single,
        Some(MULTI) => Problem::Multi,
        Some(_) => return Err(fault(format!("has a problem_type other than {SINGLE} and {MULTI}"))),
    };
    let mut names = vec![None; named.len()];
    for (id, name) in named {
        let place = id.parse().ok().and_then(|id: usize| names.get_mut(id)).filter(|place| place.is_none());
        let name = name.as_text().filter(|name| name.len() <= MAX_NAME);
        match (place, name) {
            (Some(place), Some(name)) => *place = Some(name.to_owned()),
            (None, _) => return Err(fault("has an id2label whose keys do not count from 0".into())),
            (_, None) => return Err(fault(format!("has a label that is not text of at most {MAX_NAME} bytes"))),
        }
    }
    Ok(names.into_iter().collect::<Option<_>>().map(|names| Classes { names, problem, pad_token_id: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &Value) -> Result<Option<Classes>, LoraError> {
        read(&Json::parse(value.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        // More than ten: "10" stands before "2" in the file.
        let names: Vec<String> = (0..12).map(|i| format!("class {i}")).collect();
        for multi_label in [false, true] {
            let classes = of(&labelled(&names, multi_label)).unwrap().unwrap();
            assert_eq!(classes.names, names);
            assert_eq!(classes.problem == Problem::Multi, multi_label);
        }
    }

    #[test]
    fn what_peft_writes_there_is_passed_over_and_faults_are_told() {
        for none in [json!(null), json!({}), json!({"base_model_class": "ViT", "parent_library": "transformers"})] {
            assert_eq!(of(&none).unwrap(), None);
        }
        let long = "x".repeat(MAX_NAME + 1);
        for fault in [
            json!({"id2label": ["a"]}),
            json!({"id2label": {}}),
            json!({"id2label": {"0": "a", "2": "b"}}),
            json!({"id2label": {"0": "a", "00": "b"}}),
            json!({"id2label": {"0": 1}}),
            json!({"id2label": {"0": long}}),
            json!({"id2label": {"0": "a"}, "problem_type": "regression"}),
        ] {
            assert!(of(&fault).unwrap_err().to_string().contains(KEY), "{fault}");
        }
    }
}
