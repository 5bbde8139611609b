//! What a configuration says of a classification head: the labels' names, and how the logits are meant.
//!
//! Computes nothing. `num_labels` is read where there is no `id2label`, as transformers does.

use super::{Checked, Fault, Fields, invalid, short};
use crate::lora::{Classes, MAX_LABELS, MAX_NAME, Problem};

/// Returns the labels of a class for classification, none of any other.
pub(super) fn read(fields: &Fields<'_>, architecture: &str, pad_token_id: Option<u32>) -> Checked<Option<Classes>> {
    if !["ForSequenceClassification", "ForImageClassification"].iter().any(|end| architecture.ends_with(end)) {
        return Ok(None);
    }
    let named = fields.object("id2label")?;
    let count = match &named {
        Some(labels) => labels.0.len(),
        None => fields.size("num_labels", MAX_LABELS)?.unwrap_or(2),
    };
    if !(1..=MAX_LABELS).contains(&count) {
        return invalid(format!("`id2label` has {count} labels, 1 to {MAX_LABELS} are possible"));
    }
    let problem = match fields.text("problem_type")? {
        None | Some("single_label_classification") => Problem::Single,
        Some("multi_label_classification") => Problem::Multi,
        Some("regression") => Problem::Regression,
        Some(other) => return Err(Fault::Unsupported(format!("problem type {}", short(&other.into())))),
    };
    let mut classes = Classes { problem, pad_token_id, ..Classes::unnamed(count) };
    for (id, name) in classes.names.iter_mut().enumerate() {
        let given = named.as_ref().and_then(|labels| labels.get(&id.to_string()));
        let Some(given) = given else { continue };
        match given.as_str() {
            Some(text) if text.len() <= MAX_NAME => text.clone_into(name),
            _ => return invalid(format!("the name of label {id} is not text of at most {MAX_NAME} bytes")),
        }
    }
    Ok(Some(classes))
}
