//! The configuration beside what was trained: `adapter_config.json` as PEFT writes it.
//!
//! Writes every key whose default could differ between versions of PEFT, and nothing of this machine.
//! Source: peft 0.21 `LoraConfig`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{LoraSettings, Targets, Task};
use crate::lora::{Base, NO_LAYER, SiteKind, labelled};

/// Names of the labels, and whether a row can have several.
type Labels<'a> = (&'a [String], bool);

/// Returns `adapter_config.json` of a classification head alone.
///
/// peft refuses rank 0, but has a name for no layer at all; the rank beside it means nothing then.
pub(super) fn head_config(task: Task, labels: Labels<'_>) -> Vec<u8> {
    let (heads, task) = heads(task);
    written(&json!({
        "auto_mapping": mapping(Some(labels)),
        "base_model_name_or_path": null,
        "bias": "none",
        "inference_mode": true,
        "lora_alpha": 1,
        "modules_to_save": heads,
        "peft_type": "LORA",
        "r": 1,
        "target_modules": NO_LAYER,
        "task_type": task,
    }))
}

/// Returns `adapter_config.json` for `base`; with `labels` a classification head is trained whole.
pub(super) fn adapter_config(lora: &LoraSettings, task: Task, labels: Option<Labels<'_>>, base: &dyn Base) -> Vec<u8> {
    let mut saved = lora.modules_to_save.clone();
    if labels.is_some() {
        saved.extend(heads(task).0.iter().map(|name| (*name).to_owned()));
    }
    saved.sort();
    saved.dedup();
    let targets = match &lora.targets {
        // For a task that it has no word for, peft would adapt the head too.
        Targets::AllLinear if lora.layers.is_empty() && task != Task::ImageClassification => json!("all-linear"),
        // peft takes `layers_to_transform` beside a list only.
        Targets::AllLinear => {
            let newest = base.spellings().pop().unwrap_or_default();
            let linear = newest.iter().filter(|site| site.kind == SiteKind::Linear);
            json!(linear.map(|site| last_name(&site.path)).collect::<BTreeSet<_>>())
        }
        Targets::Modules(modules) => json!(modules),
    };
    let task = heads(task).1;
    // peft writes a whole number without a fraction.
    let alpha =
        if lora.alpha.fract() == 0.0 && lora.alpha.abs() < 1e15 { json!(lora.alpha as i64) } else { json!(lora.alpha) };
    let list = |empty: bool, value: Value| if empty { Value::Null } else { value };
    let config = json!({
        "alpha_pattern": {},
        "auto_mapping": mapping(labels),
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": list(lora.layers.is_empty(), json!(lora.layers)),
        "lora_alpha": alpha,
        "lora_bias": false,
        "lora_dropout": lora.dropout,
        "modules_to_save": list(saved.is_empty(), json!(saved)),
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": task,
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    });
    written(&config)
}

fn mapping(labels: Option<Labels<'_>>) -> Value {
    labels.map_or(Value::Null, |(names, multi_label)| labelled(names, multi_label))
}

/// Returns the heads that are saved for a task, and PEFT's word for it.
fn heads(task: Task) -> (&'static [&'static str], Option<&'static str>) {
    match task {
        Task::CausalLm => (&[], Some("CAUSAL_LM")),
        // What peft itself lists for this task: of the two names a model has one.
        Task::SequenceClassification => (&["classifier", "score"], Some("SEQ_CLS")),
        // PEFT has no word for it.
        Task::ImageClassification => (&["classifier"], None),
    }
}

/// Returns the last part of a path, with the one before it where it is a number.
fn last_name(path: &str) -> &str {
    let starts = path.rmatch_indices('.').map(|(dot, _)| dot + 1);
    let mut ends = starts.map(|start| &path[start..]);
    ends.find(|end| !end.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(path)
}

fn written(config: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(config).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What peft was given when `tests/golden/record_trained.py` recorded its answers is what is written today.
    #[test]
    fn configurations_are_those_that_peft_has_read() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let read = |path: &str| std::fs::read(golden.join(path)).unwrap();
        let json = |path: &str| serde_json::from_slice::<Value>(&read(path)).unwrap();
        for name in ["causal_lm", "dora", "classifier", "multi_label", "vit"] {
            let folder = format!("adapters/trained_{name}");
            let recorded = json(&format!("{folder}/expected.json"));
            let base = recorded["base"].as_str().unwrap();
            let (settings, wanted) = (&recorded["settings"], &recorded["settings"]["lora"]);
            let task = match settings["task"].as_str() {
                Some("TRAINING_TASK_SEQUENCE_CLASSIFICATION") => Task::SequenceClassification,
                Some("TRAINING_TASK_IMAGE_CLASSIFICATION") => Task::ImageClassification,
                _ => Task::CausalLm,
            };
            let labels = json(&format!("{base}/config.json"))["id2label"].clone();
            let labels: Vec<String> =
                (0..).map_while(|i: usize| Some(labels[i.to_string()].as_str()?.to_owned())).collect();
            let rank = wanted["rank"].as_u64().unwrap();
            let lora = LoraSettings {
                rank: rank as usize,
                alpha: wanted["alpha"].as_f64().unwrap_or(2.0 * rank as f64),
                rslora: wanted["rslora"] == true,
                dora: wanted["dora"] == true,
                dropout: 0.0,
                targets: Targets::AllLinear,
                layers: wanted["layers"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|l| l.as_u64().unwrap() as usize)
                    .collect(),
                modules_to_save: Vec::new(),
            };
            let labels = task.has_classes().then_some((labels.as_slice(), name == "multi_label"));
            let path = golden.join(base);
            let written = if task == Task::ImageClassification {
                let model = crate::model::load_images(&path, "golden", "cpu", "f32").unwrap();
                adapter_config(&lora, task, labels, model.differentiable().unwrap().base())
            } else {
                let model = crate::model::load(&path, "golden", "cpu", "f32").unwrap();
                adapter_config(&lora, task, labels, model.differentiable().unwrap().base())
            };
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            assert_eq!(text(written), text(read(&format!("{folder}/adapter_config.json"))), "{name}");
        }
    }
}
