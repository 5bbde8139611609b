//! The configuration beside what was trained: `adapter_config.json` as PEFT writes it.
//!
//! Writes every key whose default could differ between versions of PEFT, and nothing of this machine.
//! Source: peft 0.21 `LoraConfig`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{LoraSettings, Targets, Task};
use crate::lora::{Base, NO_LAYER, SiteKind};

/// Returns `adapter_config.json` of a classification head alone.
///
/// peft refuses rank 0, but has a name for no layer at all; the rank beside it means nothing then.
pub(super) fn head_config() -> Vec<u8> {
    written(&json!({
        "base_model_name_or_path": null,
        "bias": "none",
        "inference_mode": true,
        "lora_alpha": 1,
        "modules_to_save": ["classifier", "score"],
        "peft_type": "LORA",
        "r": 1,
        "target_modules": NO_LAYER,
        "task_type": "SEQ_CLS",
    }))
}

/// Returns `adapter_config.json` for `base`; `head` says whether a classification head is trained whole.
pub(super) fn adapter_config(lora: &LoraSettings, task: Task, head: bool, base: &dyn Base) -> Vec<u8> {
    let mut saved = lora.modules_to_save.clone();
    if head {
        // What peft itself lists for this task: of the two names a model has one.
        saved.extend(["classifier", "score"].map(str::to_owned));
    }
    saved.sort();
    saved.dedup();
    let targets = match &lora.targets {
        Targets::AllLinear if lora.layers.is_empty() => json!("all-linear"),
        // peft takes `layers_to_transform` beside a list only.
        Targets::AllLinear => {
            let linear = base.sites().iter().filter(|site| site.kind == SiteKind::Linear);
            json!(linear.filter_map(|site| site.path.rsplit('.').next()).collect::<BTreeSet<_>>())
        }
        Targets::Modules(modules) => json!(modules),
    };
    let task = match task {
        Task::CausalLm => "CAUSAL_LM",
        Task::SequenceClassification => "SEQ_CLS",
    };
    // peft writes a whole number without a fraction.
    let alpha =
        if lora.alpha.fract() == 0.0 && lora.alpha.abs() < 1e15 { json!(lora.alpha as i64) } else { json!(lora.alpha) };
    let list = |empty: bool, value: Value| if empty { Value::Null } else { value };
    let config = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
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

fn written(config: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(config).unwrap_or_default();
    text.push(b'\n');
    text
}
