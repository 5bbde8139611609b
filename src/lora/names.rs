//! Names of the tensors in a PEFT file: which module, and which part of it.
//!
//! Reads text only. Every spelling that peft has written is known: with and without the adapter's name `default`, the
//! DoRA magnitude with and without `.weight`, saved modules with and without their wrapper.
//! Source: peft 0.21 `utils/save_and_load.py`.

use std::collections::BTreeMap;

use super::LoraError;
use super::json::clip;
use super::tensors::View;

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    A,
    B,
    BBias,
    EmbeddingA,
    EmbeddingB,
    Magnitude,
    BaseWeight,
    BaseBias,
    Weight,
    Bias,
}

/// Endings, the longer ones first where one is part of another.
const ENDINGS: &[(&str, Part)] = &[
    (".lora_A.weight", Part::A),
    (".lora_A.default.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_B.default.weight", Part::B),
    (".lora_B.bias", Part::BBias),
    (".lora_B.default.bias", Part::BBias),
    (".lora_embedding_A", Part::EmbeddingA),
    (".lora_embedding_A.default", Part::EmbeddingA),
    (".lora_embedding_B", Part::EmbeddingB),
    (".lora_embedding_B.default", Part::EmbeddingB),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_magnitude_vector.default", Part::Magnitude),
    (".lora_magnitude_vector.default.weight", Part::Magnitude),
    (".base_layer.weight", Part::BaseWeight),
    (".base_layer.bias", Part::BaseBias),
    (".modules_to_save.default.weight", Part::Weight),
    (".modules_to_save.default.bias", Part::Bias),
    (".modules_to_save.weight", Part::Weight),
    (".modules_to_save.bias", Part::Bias),
    (".weight", Part::Weight),
    (".bias", Part::Bias),
];

/// A tensor with its name, for messages.
pub(super) struct Named<'a> {
    pub(super) name: String,
    pub(super) view: View<'a>,
}

/// The tensors of one module.
#[derive(Default)]
pub(super) struct Parts<'a>(BTreeMap<Part, Named<'a>>);

impl<'a> Parts<'a> {
    /// Takes a part out, if it is there.
    pub(super) fn take(&mut self, part: Part) -> Option<Named<'a>> {
        self.0.remove(&part)
    }

    /// Takes a part out that has to be there.
    pub(super) fn need(&mut self, path: &str, part: Part) -> Result<Named<'a>, LoraError> {
        let ending = ENDINGS.iter().find(|(_, p)| *p == part).map_or("", |(ending, _)| *ending);
        self.take(part).ok_or_else(|| LoraError::Invalid(format!("{path} is adapted, but {path}{ending} is missing")))
    }

    /// Returns whether nothing is there.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the name of a tensor, if there is one left.
    pub(super) fn any(&self) -> Option<&str> {
        self.0.values().next().map(|named| named.name.as_str())
    }
}

/// Sorts tensors by module path.
pub(super) fn by_module(views: BTreeMap<String, View<'_>>) -> Result<BTreeMap<String, Parts<'_>>, LoraError> {
    let mut modules = BTreeMap::<String, Parts<'_>>::new();
    for (name, view) in views {
        let fault = |what: &str| LoraError::Invalid(format!("tensor {}: {what}", clip(&name)));
        let local =
            name.strip_prefix("base_model.model.").ok_or_else(|| fault("does not begin with base_model.model."))?;
        let (path, part) = ENDINGS
            .iter()
            .find_map(|(ending, part)| Some((local.strip_suffix(ending)?, *part)))
            .ok_or_else(|| fault("is of no known kind"))?;
        let parts = modules.entry(path.to_owned()).or_default();
        if parts.0.contains_key(&part) {
            return Err(fault("is there under another spelling too"));
        }
        parts.0.insert(part, Named { name, view });
    }
    Ok(modules)
}
