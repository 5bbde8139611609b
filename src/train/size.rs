//! How many bytes a model takes that is not trained yet, from its settings and the places of the base model.
//!
//! Trains nothing and reads no file. Adapters are f32 on the disk, and at most that in memory; the few hundred bytes of a file's header
//! are not counted. Units: bytes.

use super::{LoraSettings, Method, Settings, Targets};
use crate::lora::{Base, Site, SiteKind};

/// Bytes of an f32.
const F32: u64 = 4;

/// Returns the bytes of what these settings make of a base model; `labels` is the number of the data set's labels.
pub fn trained_bytes(base: &dyn Base, settings: &Settings, labels: usize) -> u64 {
    let labels = if settings.task.has_classes() { labels } else { 0 };
    let sites = base.sites();
    let head = if labels > 0 { head_weights(sites, labels) } else { 0 };
    let weights = match &settings.method {
        Method::HeadOnly => head,
        Method::Lora(lora) => head + sites.iter().map(|site| changed(site, lora)).sum::<u64>(),
        Method::Full => head + sites.iter().map(|site| kept(site, base.is_tied(), labels > 0)).sum::<u64>(),
    };
    weights * F32
}

/// Weights of a classification head.
fn head_weights(sites: &[Site], labels: usize) -> u64 {
    let classifies = |site: &&Site| site.kind == SiteKind::Classifier;
    let site = sites.iter().find(classifies).or_else(|| sites.iter().find(|site| site.kind == SiteKind::Head));
    site.map_or(0, |site| (site.input * labels + if site.bias { labels } else { 0 }) as u64)
}

/// Weights of a site.
fn whole(site: &Site) -> u64 {
    if site.kind == SiteKind::Classifier {
        return 0;
    }
    let bias = if site.bias { site.output } else { 0 };
    (site.shape().iter().product::<usize>() + bias) as u64
}

/// Weights of a site in a full fine-tune; the head's stand aside where it is a classifier's.
fn kept(site: &Site, tied: bool, classifies: bool) -> u64 {
    if site.kind == SiteKind::Head && (tied || classifies) { 0 } else { whole(site) }
}

/// Weights that an adapter has at a site.
fn changed(site: &Site, lora: &LoraSettings) -> u64 {
    let named = |name: &String| {
        site.path == *name || site.path.strip_suffix(name.as_str()).is_some_and(|before| before.ends_with('.'))
    };
    if lora.modules_to_save.iter().any(named) {
        return whole(site);
    }
    let wanted = match &lora.targets {
        Targets::AllLinear => site.kind == SiteKind::Linear,
        Targets::Modules(names) => {
            let kinds = [SiteKind::Linear, SiteKind::Head, SiteKind::Embedding, SiteKind::Classifier];
            kinds.contains(&site.kind) && !site.is_missing() && names.iter().any(named)
        }
    };
    let layer = site.path.split('.').find_map(|part| part.parse::<usize>().ok());
    let inside = lora.layers.is_empty() || layer.is_some_and(|layer| lora.layers.contains(&layer));
    if !wanted || !inside {
        return 0;
    }
    let magnitude = if lora.dora { site.output } else { 0 };
    (lora.rank * (site.input + site.output) + magnitude) as u64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::BaseModel;
    use crate::train::order::tests::settings;

    #[test]
    fn what_is_told_is_what_golden_adapters_take() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let model = crate::model::open(&golden.join("language/llama_mha"), "cpu", "f32").unwrap();
        let mut compared = 0;
        for name in ["lora_qv", "lora_qv_second", "all_linear", "dora"] {
            let read = |file: &str| std::fs::read(golden.join("adapters").join(name).join(file));
            let (Ok(config), Ok(tensors)) = (read("adapter_config.json"), read("adapter_model.safetensors")) else {
                continue;
            };
            let Ok(adapter) = model.load_adapter(&config, &tensors) else { continue };
            let json: serde_json::Value = serde_json::from_slice(&config).unwrap();
            let targets = match json["target_modules"].as_array() {
                None => Targets::AllLinear,
                Some(list) => Targets::Modules(list.iter().map(|v| v.as_str().unwrap().to_owned()).collect()),
            };
            let lora = LoraSettings {
                rank: adapter.info().rank,
                alpha: adapter.info().alpha,
                rslora: false,
                dora: json["use_dora"] == true,
                dropout: 0.0,
                targets,
                layers: Vec::new(),
                modules_to_save: Vec::new(),
            };
            let wanted = Settings { method: Method::Lora(lora), ..settings() };
            assert_eq!(trained_bytes(&model, &wanted, 0), adapter.info().bytes, "{name}");
            compared += 1;
        }
        assert!(compared > 1, "{compared} adapters");
        let full = Settings { method: Method::Full, ..settings() };
        let parameters = model.info().parameters;
        assert_eq!(trained_bytes(&model, &full, 0), parameters * F32);
    }
}
