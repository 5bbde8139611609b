//! What stands beside configuration and weights in a folder that transformers loads: the tokenizer's files and the
//! defaults of generation, or the image processor's file.
//!
//! A folder's own files are taken as they are; those of a GGUF base are made from its metadata. Understands neither.

use std::path::Path;

use serde_json::{Map, json};

use super::gguf_tokenizer;
use super::tokenizer::{MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, TokenizerError, gguf_metadata, invalid, read_limited};

/// A file in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    /// Its name in the folder.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Reads them from a folder, or makes them from a GGUF file.
///
/// # Errors
/// When a file is missing, too large or faulty.
pub fn read(path: &Path) -> Result<Vec<Companion>, TokenizerError> {
    if !path.is_dir() {
        return of_gguf(path);
    }
    let files = [
        ("generation_config.json", MAX_CONFIG_BYTES),
        ("tokenizer.json", MAX_TOKENIZER_BYTES),
        ("tokenizer_config.json", MAX_CONFIG_BYTES),
        ("special_tokens_map.json", MAX_CONFIG_BYTES),
        ("chat_template.jinja", MAX_CONFIG_BYTES),
    ];
    let mut found = Vec::new();
    for (name, limit) in files {
        found.extend(read_limited(&path.join(name), limit)?.map(|bytes| Companion { name, bytes }));
    }
    Ok(found)
}

/// Reads them from the folder of a classifier of images.
///
/// # Errors
/// When the file is too large or cannot be read.
pub fn of_images(path: &Path) -> Result<Vec<Companion>, TokenizerError> {
    let name = "preprocessor_config.json";
    let bytes = read_limited(&path.join(name), MAX_CONFIG_BYTES)?;
    Ok(bytes.map(|bytes| Companion { name, bytes }).into_iter().collect())
}

fn of_gguf(path: &Path) -> Result<Vec<Companion>, TokenizerError> {
    let parts = gguf_tokenizer::convert(&gguf_metadata(path)?)?;
    let mut config: Map<_, _> = parts.names.0.iter().map(|(key, text)| (key.clone(), json!(text))).collect();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    // On by default before transformers 5; it would take spaces out of what was generated.
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    if let Some(template) = parts.chat_template {
        config.insert("chat_template".into(), json!(template));
    }
    let config = serde_json::to_vec_pretty(&config).map_err(|e| invalid(e.to_string()))?;
    Ok(vec![
        Companion { name: "tokenizer.json", bytes: parts.json },
        Companion { name: "tokenizer_config.json", bytes: config },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folders_files_are_taken_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tokenizer.json", "chat_template.jinja", "config.json", "model.safetensors"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let found = read(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|file| file.name).collect();
        assert_eq!(names, ["tokenizer.json", "chat_template.jinja"]);
        assert!(found.iter().all(|file| file.bytes == file.name.as_bytes()));
    }

    #[test]
    fn a_file_that_is_no_gguf_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, b"not one").unwrap();
        assert!(read(&path).is_err());
        assert!(read(&folder.path().join("absent.gguf")).is_err());
    }
}
