//! Text to token ids and back.
//!
//! Knows no model and no limits of requests: the border bounds the text. Files are read with a size limit and parsed
//! by the `tokenizers` crate; a GGUF vocabulary is brought into the same form by `gguf_tokenizer`.
//! After: transformers `PreTrainedTokenizerFast`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file;
use tokenizers::AddedToken;

use super::chat::ChatTemplate;
use super::gguf_tokenizer;
pub use super::text_stream::TextStream;

/// Largest `tokenizer.json` read, in bytes; those of 256k entries have about 35 MB.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// Largest other file read, in bytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Noncharacters that mark control tokens written by a chat template; text from outside never keeps them there.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';
const GUARD: char = '\u{FDD2}';

/// A tokenizer, shared and immutable.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    guarded: Guarded,
    special_ids: HashSet<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// A copy of the tokenizer to which control tokens are plain text, unless they stand between [`OPEN`] and [`CLOSE`].
struct Guarded {
    inner: tokenizers::Tokenizer,
    /// Texts of the control tokens, longest first.
    special: Vec<String>,
    /// Id of a marked control token to its real id.
    real: HashMap<u32, u32>,
}

/// Names of control tokens, from `tokenizer_config.json` or `special_tokens_map.json`.
#[derive(Debug, Default, Clone)]
pub(super) struct SpecialNames(pub(super) HashMap<String, String>);

impl SpecialNames {
    fn read(&mut self, config: &serde_json::Value) {
        for key in ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"] {
            let value = &config[key];
            if let Some(text) = value.as_str().or_else(|| value["content"].as_str()) {
                self.0.entry(key.to_owned()).or_insert_with(|| text.to_owned());
            }
        }
    }

    /// Returns the text of, for example, `bos_token`.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl Tokenizer {
    /// Loads the tokenizer of a base model, and its chat template if it has one.
    ///
    /// `path` is a folder with `tokenizer.json`, or a GGUF file.
    ///
    /// # Errors
    /// When a file is missing, too large or faulty.
    pub fn load(path: &Path) -> Result<(Self, Option<ChatTemplate>), TokenizerError> {
        if path.is_dir() { Self::load_folder(path) } else { Self::load_gguf(path) }
    }

    fn load_folder(folder: &Path) -> Result<(Self, Option<ChatTemplate>), TokenizerError> {
        let json = read_limited(&folder.join("tokenizer.json"), MAX_TOKENIZER_BYTES)?
            .ok_or_else(|| invalid("tokenizer.json is missing"))?;
        let mut names = SpecialNames::default();
        let mut template = None;
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(bytes) = read_limited(&folder.join(file), MAX_CONFIG_BYTES)? else { continue };
            let config: serde_json::Value =
                serde_json::from_slice(&bytes).map_err(|e| invalid(format!("{file}: {e}")))?;
            names.read(&config);
            template = template.or_else(|| default_template(&config["chat_template"]));
        }
        if let Some(bytes) = read_limited(&folder.join("chat_template.jinja"), MAX_CONFIG_BYTES)? {
            let text = String::from_utf8(bytes).map_err(|_| invalid("chat_template.jinja is not UTF-8"))?;
            template = Some(text);
        }
        Self::with_names(&json, &names, template)
    }

    fn load_gguf(path: &Path) -> Result<(Self, Option<ChatTemplate>), TokenizerError> {
        Self::from_gguf(&gguf_metadata(path)?)
    }

    /// Builds the tokenizer from the metadata of a GGUF file, with the chat template if there is one.
    ///
    /// # Errors
    /// When the vocabulary is faulty or of a kind that is not supported.
    pub fn from_gguf(
        metadata: &HashMap<String, gguf_file::Value>,
    ) -> Result<(Self, Option<ChatTemplate>), TokenizerError> {
        let parts = gguf_tokenizer::convert(metadata)?;
        Self::with_names(&parts.json, &parts.names, parts.chat_template)
    }

    /// Parses a `tokenizer.json` alone; the beginning and end of text are then unknown.
    ///
    /// # Errors
    /// When it is faulty.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        Ok(Self::with_names(json, &SpecialNames::default(), None)?.0)
    }

    fn with_names(
        json: &[u8],
        names: &SpecialNames,
        template: Option<String>,
    ) -> Result<(Self, Option<ChatTemplate>), TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| invalid(e.to_string()))?;
        // Both would change what a caller asked for without a word.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| invalid(e.to_string()))?;
        let known = inner.get_added_tokens_decoder();
        let is_special = |text: &str| known.values().any(|t| t.special && t.content == text);
        let unmarked: Vec<_> = names
            .0
            .values()
            .filter(|text| inner.token_to_id(text).is_some() && !is_special(text))
            .map(|text| AddedToken::from(text.as_str(), true).normalized(false))
            .collect();
        inner.add_special_tokens(unmarked).map_err(|e| invalid(e.to_string()))?;
        let id = |key: &str| names.get(key).and_then(|text| inner.token_to_id(text));
        let (bos, eos) = (id("bos_token"), id("eos_token"));
        let special_ids = special_tokens(&inner).map(|(id, _)| id).collect();
        let guarded = Guarded::new(&inner)?;
        let template = template.map(|source| ChatTemplate::new(source, names.0.clone()));
        let template = template.transpose().map_err(|e| invalid(e.to_string()))?;
        Ok((Self { inner, guarded, special_ids, bos, eos }, template))
    }

    /// Encodes `text`. With `special`, the tokens that the model expects around a text are added.
    /// Control tokens written out in the text are recognised, as transformers and vLLM do.
    ///
    /// # Errors
    /// When the tokenizer's own pipeline fails.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| TokenizerError::Failed(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes `text` without adding anything; control tokens written out in it are plain text.
    ///
    /// # Errors
    /// When the tokenizer's own pipeline fails.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.guarded.encode(&text.replace([OPEN, CLOSE], "\u{FFFD}"))
    }

    /// Decodes ids; with `skip_special`, control tokens are left out.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        if let Some(id) = ids.iter().find(|id| !self.contains(**id)) {
            return Err(TokenizerError::Failed(format!("id {id} is not in the vocabulary")));
        }
        self.inner.decode(ids, skip_special).map_err(|e| TokenizerError::Failed(e.to_string()))
    }

    /// Returns the entry of the vocabulary, for example `▁the` or `Ġthe`.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the id of an entry of the vocabulary.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// Returns the id that begins a text, where the tokenizer's configuration names it.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the id that ends a text, where the tokenizer's configuration names it.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Begins incremental decoding of one completion; control tokens are left out.
    pub fn stream(self: &Arc<Self>) -> TextStream {
        TextStream::new(Arc::clone(self))
    }

    /// Returns whether decoding `id` can give text.
    pub(super) fn has_text(&self, id: u32) -> bool {
        !self.special_ids.contains(&id) && self.contains(id)
    }

    fn contains(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    /// Returns whether `text` spells a control token.
    pub(super) fn spells_special(&self, text: &str) -> bool {
        self.guarded.special.iter().any(|s| text.contains(s))
    }

    /// Breaks up the control tokens spelt in `text`, so that they are told from those that a template writes.
    pub(super) fn guard(&self, text: &str) -> String {
        let mut out = text.replace([OPEN, CLOSE, GUARD], "\u{FFFD}");
        while let Some(special) = self.guarded.special.iter().find(|s| out.contains(s.as_str())) {
            let mut broken = String::with_capacity(special.len() + GUARD.len_utf8());
            let mut chars = special.chars();
            broken.extend(chars.next());
            broken.push(GUARD);
            broken.extend(chars);
            out = out.replace(special, &broken);
        }
        out
    }

    /// Encodes text with guarded parts: only control tokens that are not guarded are recognised.
    ///
    /// Returns the text without guards, and its ids.
    pub(super) fn encode_guarded(&self, text: &str) -> Result<(String, Vec<u32>), TokenizerError> {
        let mut marked = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if let Some(special) = self.guarded.special.iter().find(|s| rest.starts_with(s.as_str())) {
                marked.extend([OPEN]);
                marked.push_str(special);
                marked.push(CLOSE);
                rest = &rest[special.len()..];
            } else {
                if first != GUARD {
                    marked.push(first);
                }
                rest = &rest[first.len_utf8()..];
            }
        }
        Ok((text.replace(GUARD, ""), self.guarded.encode(&marked)?))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = self.inner.get_vocab_size(true);
        f.debug_struct("Tokenizer").field("vocab_size", &size).field("bos", &self.bos).field("eos", &self.eos).finish()
    }
}

impl Guarded {
    fn new(original: &tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let mut special: Vec<_> = special_tokens(original).collect();
        special.sort_by(|(_, a), (_, b)| b.content.len().cmp(&a.content.len()).then(a.content.cmp(&b.content)));
        let mut inner = original.clone();
        let mut real = HashMap::new();
        for (id, token) in &special {
            let content = format!("{OPEN}{}{CLOSE}", token.content);
            let marked = AddedToken { content: content.clone(), special: false, normalized: false, ..token.clone() };
            inner.add_tokens([marked]).map_err(|e| invalid(e.to_string()))?;
            let taken = inner.token_to_id(&content).ok_or_else(|| invalid("a control token cannot be marked"))?;
            if original.id_to_token(taken).is_some() {
                return Err(invalid(format!("the vocabulary has gaps before id {taken}")));
            }
            real.insert(taken, *id);
        }
        inner.set_encode_special_tokens(true);
        let special = special.into_iter().map(|(_, token)| token.content).filter(|s| s.chars().count() > 1).collect();
        Ok(Self { inner, special, real })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Failed(e.to_string()))?;
        Ok(encoding.get_ids().iter().map(|id| *self.real.get(id).unwrap_or(id)).collect())
    }
}

fn special_tokens(inner: &tokenizers::Tokenizer) -> impl Iterator<Item = (u32, AddedToken)> + use<> {
    inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special && !token.content.is_empty())
}

/// Returns the template, or of several named ones that named `default`.
fn default_template(value: &serde_json::Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let named = value.as_array()?.iter().find(|t| t["name"] == "default")?;
    named["template"].as_str().map(str::to_owned)
}

/// Reads the metadata of a GGUF file.
pub(super) fn gguf_metadata(path: &Path) -> Result<HashMap<String, gguf_file::Value>, TokenizerError> {
    let fault = |text: String| invalid(format!("{}: {text}", path.display()));
    let file = File::open(path).map_err(|e| fault(e.to_string()))?;
    let content = gguf_file::Content::read(&mut std::io::BufReader::new(file)).map_err(|e| fault(e.to_string()))?;
    Ok(content.metadata)
}

/// Reads a file of at most `limit` bytes; `None` when there is none.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TokenizerError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(invalid(format!("{}: {e}", path.display()))),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| invalid(format!("{}: {e}", path.display())))?;
    if bytes.len() as u64 > limit {
        return Err(invalid(format!("{} is larger than {limit} bytes", path.display())));
    }
    Ok(Some(bytes))
}

pub(super) fn invalid(fault: impl Into<String>) -> TokenizerError {
    TokenizerError::Invalid(fault.into())
}

/// Why text cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The tokenizer's file is missing or faulty.
    #[error("tokenizer: {0}")]
    Invalid(String),
    /// Encoding or decoding failed.
    #[error("tokenizer failed: {0}")]
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chat::{Ending, Message};

    /// Letters `a` and `b`, their merge, and a control token.
    fn json() -> serde_json::Value {
        serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "a"},
            "added_tokens": [{"id": 4, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false}],
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<end>": 3}, "merges": [["a", "b"]]},
        })
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_gives_names_of_control_tokens_and_the_template() {
        let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "<end>", "chat_template":
            [{"name": "tool_use", "template": "no"},
             {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]}"#;
        let folder = folder(&[("tokenizer.json", &json().to_string()), ("tokenizer_config.json", config)]);
        let (tokenizer, template) = Tokenizer::load(folder.path()).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(4), Some(3)));
        // `<end>` is special because the configuration names it; no truncation, no padding.
        assert_eq!(tokenizer.encode("aba<end>", true).unwrap(), [2, 0, 3]);
        assert_eq!(tokenizer.decode(&[2, 0, 3], true).unwrap(), "aba");
        assert_eq!(tokenizer.decode(&[2, 3], false).unwrap(), "ab<end>");
        assert!(matches!(tokenizer.decode(&[2, 77], true), Err(TokenizerError::Failed(_))));
        let message = Message { role: "user".to_owned(), content: "ab".to_owned() };
        let template = template.unwrap();
        assert_eq!(template.render(std::slice::from_ref(&message), Ending::Plain).unwrap(), "<s>ab");
        std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        let (_, template) = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(template.unwrap().render(&[message], Ending::Plain).unwrap(), "file");
    }

    #[test]
    fn faulty_files_are_errors() {
        let good = json().to_string();
        let cases: [&[(&str, &str)]; 6] = [
            &[],
            &[("tokenizer.json", "{")],
            &[("tokenizer.json", "{}")],
            &[("tokenizer.json", &good[..good.len() / 2])],
            &[("tokenizer.json", &good), ("tokenizer_config.json", "nonsense")],
            &[("tokenizer.json", &good), ("tokenizer_config.json", r#"{"chat_template": "{% for %}"}"#)],
        ];
        for files in cases {
            let folder = folder(files);
            assert!(matches!(Tokenizer::load(folder.path()), Err(TokenizerError::Invalid(_))), "{files:?}");
        }
        let folder = folder(&[("model.gguf", "GGUF, or so it says")]);
        assert!(matches!(Tokenizer::load(&folder.path().join("model.gguf")), Err(TokenizerError::Invalid(_))));
        assert!(matches!(read_limited(&folder.path().join("model.gguf"), 4), Err(TokenizerError::Invalid(_))));
    }

    #[test]
    fn parts_that_are_not_what_they_should_be_never_panic() {
        let swaps = ["null", "-1", "1e99", "\"x\"", "[]", "{}", "4294967295", "true"];
        let mut tried = 0;
        for pointer in [
            "/model",
            "/model/vocab",
            "/model/vocab/a",
            "/model/merges",
            "/model/merges/0",
            "/added_tokens",
            "/added_tokens/0/id",
            "/added_tokens/0/content",
            "/decoder",
            "/version",
        ] {
            for swap in swaps {
                let mut json = json();
                *json.pointer_mut(pointer).unwrap() = serde_json::from_str(swap).unwrap();
                if let Ok(tokenizer) = Tokenizer::from_json(json.to_string().as_bytes()) {
                    let ids = tokenizer.encode("ab<s>", true).unwrap_or_default();
                    let _ = tokenizer.decode(&ids, false);
                }
                tried += 1;
            }
        }
        assert_eq!(tried, 10 * swaps.len());
    }
}
