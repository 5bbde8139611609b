//! The name of what was uploaded: a digest of its content.
//!
//! Every part is preceded by its kind and its length, so that no two uploads share a form.

use sha2::{Digest, Sha256};

use super::{Labels, Scores, Uploaded, UploadedGroups};

/// SHA-256 of all that was uploaded, in a form that says where each part ends.
pub(super) fn digest(uploaded: &Uploaded) -> String {
    let mut hash = Sha256::new();
    let mut part = |name: &str, bytes: &mut dyn Iterator<Item = Vec<u8>>| {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        for bytes in bytes {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash.update(u64::MAX.to_le_bytes());
    };
    let text = |text: &String| text.clone().into_bytes();
    let numbers = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let flags = |values: &[bool]| values.iter().map(|v| u8::from(*v)).collect::<Vec<u8>>();
    part("classes", &mut uploaded.classes.iter().map(text));
    match &uploaded.labels {
        Labels::None => {}
        Labels::One(labels) => part("labels", &mut labels.iter().map(text)),
        Labels::Several(labels) => {
            labels.iter().for_each(|labels| part("labels of a row", &mut labels.iter().map(text)))
        }
    }
    for model in &uploaded.models {
        let values = match &model.scores {
            Scores::Positive(values) => ("positive", numbers(values)),
            Scores::Classes(values) => ("classes", numbers(values)),
            Scores::None => ("none", Vec::new()),
        };
        part("model", &mut [model.name.clone().into_bytes(), values.0.as_bytes().to_vec(), values.1].into_iter());
    }
    for (kind, attributes) in [("attribute", &uploaded.attributes), ("control", &uploaded.controls)] {
        for attribute in attributes {
            part(kind, &mut [attribute.name.clone().into_bytes()].into_iter());
            match &attribute.groups {
                UploadedGroups::Values(values) => {
                    let value = |value: &Option<String>| match value {
                        Some(value) => [b"=", value.as_bytes()].concat(),
                        None => Vec::new(),
                    };
                    part("values", &mut values.iter().map(value));
                }
                UploadedGroups::Flags(names, values) => {
                    part("names", &mut names.iter().map(text));
                    part("flags", &mut [flags(values)].into_iter());
                }
            }
        }
    }
    part("weights", &mut uploaded.weights.iter().map(|weights| numbers(weights)));
    part("clusters", &mut uploaded.clusters.iter().flatten().map(text));
    for model in uploaded.membership.iter().flat_map(|membership| &membership.models) {
        part("members", &mut [flags(&model.members), numbers(&model.signals)].into_iter());
        if !model.reference_signals.is_empty() {
            part("reference signals", &mut [numbers(&model.reference_signals)].into_iter());
        }
        part("shadow signals", &mut model.shadow_signals.iter().map(|values| numbers(values)));
        part("shadow members", &mut model.shadow_members.iter().map(|values| flags(values)));
    }
    hex::encode(hash.finalize())
}
