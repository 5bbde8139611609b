//! Values of cells: what they are, how large, and classes and conversations made of them.
//!
//! Knows no declaration and no row.

use serde_json::Value;

use super::Message;
use super::fault::{FaultKind, shown};

/// Returns the name of a class.
pub(super) fn class(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        Value::Number(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

pub(super) fn messages(value: Value) -> Result<Vec<Message>, FaultKind> {
    let value = if let Value::String(text) = &value
        && !text.is_empty()
    {
        serde_json::from_str(text).map_err(|error| FaultKind::Syntax(format!("is no JSON: {error}")))?
    } else {
        value
    };
    let turns = match value {
        Value::Array(turns) if !turns.is_empty() => turns,
        Value::Null | Value::String(_) | Value::Array(_) => return Err(FaultKind::Missing),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            return Err(FaultKind::Type { expected: "a list of messages", got: kind(&other) });
        }
    };
    let turns = turns.into_iter().enumerate().map(|(index, turn)| {
        let fault = |what: &str| FaultKind::Value(format!("message {}: {what}", index + 1));
        let Value::Object(mut turn) = turn else { return Err(fault("must be an object")) };
        let role = match turn.remove("role") {
            Some(Value::String(role)) if !role.is_empty() => role,
            _ => return Err(fault("`role` must be a text")),
        };
        let content = match turn.remove("content") {
            Some(Value::String(content)) => content,
            _ => return Err(fault("`content` must be a text")),
        };
        match turn.into_iter().find(|(_, value)| !value.is_null()) {
            Some((key, _)) => Err(fault(&format!("`{}` is not understood", shown(&key)))),
            None => Ok(Message { role, content }),
        }
    });
    turns.collect()
}

/// Bytes of all text in a value, and some for each of its parts.
pub(super) fn size(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(|value| 8 + size(value)).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() as u64 + size(value)).sum(),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
