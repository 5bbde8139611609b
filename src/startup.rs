//! Finds and reads the base models that the settings name: weights, tokenizer, chat template; classifiers of images.
//!
//! Blocks for seconds and opens no port: what is read here goes to [`crate::server::Server::bind`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};

use crate::config::{ModelSettings, Settings};
use crate::hub;
use crate::model::tokenizer::Tokenizer;
use crate::model::{self, Reserve};
use crate::server::{ImageModel, Loaded};

/// Reads the model, from the hub if it is a name and not in the cache yet.
///
/// # Errors
/// When there is no such model, or one of its files is missing, faulty or not supported.
pub fn load(all: &Settings) -> anyhow::Result<Loaded> {
    let (settings, engine) = (&all.model, &all.engine);
    let path = find(&settings.path)?;
    let name = settings.name.clone().unwrap_or_else(|| default_name(&settings.path));
    let reserve = Reserve {
        kv_bytes: engine.kv_cache_bytes,
        rows: engine.max_step_tokens,
        sequences: engine.max_running_sequences,
        adapter_bytes: engine.adapter_slot_bytes,
        job_bytes: all.jobs.memory_bytes,
        spare_bytes: all.spare_bytes(),
    };
    // What they take of the device is no part of what is free there.
    let images = images(settings, &name)?;
    let form = (&*settings.device, &*settings.dtype);
    let weights = model::load_to_serve(&path, &name, form, &reserve).context("cannot load the model")?;
    let (tokenizer, chat) = Tokenizer::load(&path).context("cannot load the tokenizer")?;
    let companions = model::companions::read(&path).context("cannot read the tokenizer's files")?.into();
    Ok(Loaded { name, model: weights, tokenizer: Arc::new(tokenizer), chat: chat.map(Arc::new), companions, images })
}

/// Reads the classifiers of images; none may be called as another one or as the language model `language` is.
fn images(settings: &ModelSettings, language: &str) -> anyhow::Result<Vec<ImageModel>> {
    let mut images: Vec<ImageModel> = Vec::with_capacity(settings.images.len());
    for entry in &settings.images {
        let (name, folder) = match entry.split_once('=') {
            Some((name, folder)) => (name.to_owned(), folder),
            None => (default_name(entry), entry.as_str()),
        };
        if name == language || images.iter().any(|image| image.name == name) {
            bail!("two models are called `{name}`: write NAME=FOLDER in model.images");
        }
        let path = Path::new(folder);
        let model = model::load_images(path, &name, &settings.device, &settings.dtype)
            .with_context(|| format!("cannot load the image model `{name}`"))?;
        if let Some(other) = images.iter().find(|other| other.model.info().fingerprint == model.info().fingerprint) {
            bail!("`{name}` and `{}` are the same model", other.name);
        }
        let companions = model::companions::of_images(path).context("cannot read the image processor's file")?.into();
        images.push(ImageModel { name, model, companions });
    }
    Ok(images)
}

/// Returns where a model lies: what `named` points to, or else the model of that name from cache or hub.
fn find(named: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(named);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let looks_like_a_path = path.is_absolute() || named.starts_with('.') || named.ends_with(".gguf");
    ensure!(!looks_like_a_path, "there is no model at {named}");
    let pulled = hub::pull(named, &hub::default_cache(), hub::Progress::Bars);
    pulled.with_context(|| format!("`{named}` is no folder or file here and cannot be pulled"))
}

/// Returns the last part of a path or name.
fn default_name(named: &str) -> String {
    let path = Path::new(named);
    // `.` and `..` have no name of their own.
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map_or_else(|| named.to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_last_part() {
        assert_eq!(default_name("smollm2-135m"), "smollm2-135m");
        assert_eq!(default_name("owner/name"), "name");
        assert_ne!(default_name("."), ".");
    }

    #[test]
    fn what_looks_like_a_path_is_not_asked_of_the_hub() {
        for path in ["/nowhere/model", "./model", "model.gguf", "../model"] {
            let message = find(path).unwrap_err().to_string();
            assert!(message.starts_with("there is no model at"), "{message}");
        }
    }
}
