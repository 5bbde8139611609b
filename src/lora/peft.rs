//! Reads PEFT folders as `peft` writes them, and refuses by name what it does not support.
//!
//! Takes the bytes of two files; opens nothing. Config and tensors have to agree: every layer that the configuration
//! names has its tensors, and every tensor is used. `peft` itself ignores both kinds of fault, and serves the plain
//! base model then.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::bind::Binder;
use super::config::LoraConfig;
use super::json::clip;
use super::targets::{HEADS, Targets, is_suffix};
use super::tensors::View;
use super::{
    Adapter, AdapterInfo, Base, Change, Classes, Generation, Guard, Kind, LoraError, Piece, Site, SiteId, SiteKind,
    Table, names, piece, spelling, tensors,
};

/// Reads `adapter_config.json` and `adapter_model.safetensors` and binds them to `base`.
///
/// # Errors
/// Names the fault, the unsupported feature, or the misfit.
pub fn read(config: &[u8], tensors: &[u8], base: &dyn Base) -> Result<Adapter, LoraError> {
    let config = LoraConfig::read(config)?;
    let views = tensors::read(tensors)?;
    if views.is_empty() {
        return Err(LoraError::Invalid("the safetensors file holds no tensor".to_owned()));
    }
    let generation = generation(&config, &views, base);
    let mut modules = names::by_module(views)?;
    let sites = spelling::of_file(base, |site| modules.contains_key(&site.path));
    let changes = bind(&config, &mut modules, (base, sites))?;
    let (changes, piece) = piece::in_one(changes, base)?;
    let (changes, table) = if piece.is_some() { (changes, None) } else { Table::of(changes)? };

    let mut classes = None;
    for (id, change) in &changes {
        if let Some(site) = sites.get(id.0) {
            classes = brought(&config, site, change)?.or(classes);
        }
    }
    let low_rank = || changes.values().filter_map(Change::rank_and_scaling);
    let info = AdapterInfo {
        kind: if config.dora { Kind::Dora } else { Kind::Lora },
        rank: low_rank().map(|(rank, _)| rank).max().unwrap_or_default(),
        alpha: config.alpha,
        modules: changes.keys().filter_map(|id| sites.get(id.0)).map(|site| site.path.clone()).collect(),
        task_type: config.task_type,
        bytes: piece.as_ref().map_or_else(|| changes.values().map(Change::bytes).sum(), Piece::bytes),
        classes,
    };
    Ok(Adapter { generation, base: base.fingerprint().to_owned(), info, changes, piece, table, guard: Guard(None) })
}

/// Returns the labels of a head that is saved: those that the configuration names, or as many as it has where the base
/// has none or another number.
fn brought(config: &LoraConfig, site: &Site, change: &Change) -> Result<Option<Classes>, LoraError> {
    let (Change::Replaced { weight, .. }, SiteKind::Classifier | SiteKind::Head) = (change, site.kind) else {
        return Ok(None);
    };
    let count = weight.dim(0)?;
    match &config.labels {
        Some(labels) if labels.names.len() == count => Ok(Some(labels.clone())),
        Some(labels) => {
            let named = labels.names.len();
            Err(LoraError::Invalid(format!("auto_mapping names {named} labels, {} has {count}", site.path)))
        }
        None => Ok((site.kind == SiteKind::Classifier && count != site.output).then(|| Classes::unnamed(count))),
    }
}

fn bind(
    config: &LoraConfig,
    modules: &mut BTreeMap<String, names::Parts<'_>>,
    (base, sites): (&dyn Base, &[Site]),
) -> Result<BTreeMap<SiteId, Change>, LoraError> {
    check_saved(config, sites)?;
    let paths: HashMap<&str, usize> = sites.iter().enumerate().map(|(i, site)| (site.path.as_str(), i)).collect();
    if let Some((path, parts)) = modules.iter().find(|(path, _)| !paths.contains_key(path.as_str())) {
        let name = parts.any().unwrap_or(path);
        return Err(LoraError::Mismatch(format!(
            "tensor {}: this base model has no layer {} to adapt",
            clip(name),
            clip(path)
        )));
    }

    let targets = Targets::new(config, sites.len())?;
    let binder = Binder { base, config, targets: &targets };
    let mut changes = BTreeMap::new();
    let (mut adapted, mut unused) = (false, None);
    for (index, site) in sites.iter().enumerate() {
        let mut parts = modules.remove(&site.path).unwrap_or_default();
        if let Some(change) = binder.bind(SiteId(index), site, &mut parts)? {
            adapted |= change.rank_and_scaling().is_some();
            changes.insert(SiteId(index), change);
        }
        unused = unused.or_else(|| parts.any().map(clip));
    }
    if !adapted && (changes.is_empty() || !config.adapts_nothing()) {
        return Err(LoraError::Mismatch("target_modules names no layer of this base model".to_owned()));
    }
    if let Some(name) = unused {
        return Err(LoraError::Invalid(format!("tensor {name}: the configuration has no use for it")));
    }
    Ok(changes)
}

/// Refuses modules to save that the base model does not have.
///
/// peft itself lists `classifier` and `score` for every classifier, of which a model has one.
pub(super) fn check_saved(config: &LoraConfig, sites: &[Site]) -> Result<(), LoraError> {
    let module = |site: &&Site| !matches!(site.kind, SiteKind::Parameter(_));
    let names = |name: &str, site: &Site| site.path == name || is_suffix(name, &site.path);
    let known = |name: &&String| sites.iter().filter(module).any(|site| names(name, site));
    let is_head = |name: &&String| HEADS.contains(&name.as_str());
    let unknown: Vec<&String> = config.modules_to_save.iter().filter(|name| !known(name)).collect();
    let heads = config.modules_to_save.iter().filter(is_head);
    let has_head = heads.clone().any(|name| known(&name)) || heads.count() == 0;
    match unknown.iter().find(|name| !(has_head && is_head(name))) {
        None => Ok(()),
        Some(name) => Err(LoraError::Mismatch(format!(
            "modules_to_save names {}, which is no layer of this base model that can be replaced",
            clip(name)
        ))),
    }
}

/// Returns SHA-256 over everything that decides what the adapter computes; each field is preceded by its length.
fn generation(config: &LoraConfig, views: &BTreeMap<String, View<'_>>, base: &dyn Base) -> Generation {
    let mut digest = Sha256::new_with_prefix(b"evenkeel adapter 1");
    let mut field = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    field(base.fingerprint().as_bytes());
    field(config.canonical().as_bytes());
    for (name, view) in views {
        field(name.as_bytes());
        field(view.format.name().as_bytes());
        field(format!("{:?}", view.shape).as_bytes());
        field(view.data);
    }
    Generation::from_digest(digest.finalize().into())
}
