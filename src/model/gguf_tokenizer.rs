//! The vocabulary of a GGUF file as a `tokenizer.json`.
//!
//! Two kinds exist here: byte-level BPE (`gpt2`), whose splitting rule is named by `tokenizer.ggml.pre`, and
//! SentencePiece BPE (`llama`), whose merges follow from the scores. Other kinds and rules are refused by name.
//! After: llama.cpp `src/llama-vocab.cpp` (names and defaults), transformers `integrations/ggml.py` (conversion).

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use serde_json::json;

use super::tokenizer::{SpecialNames, TokenizerError, invalid};

/// Longest vocabulary entry, in bytes: every cut of an entry is tried as a merge.
const MAX_PIECE_BYTES: usize = 1024;
/// Largest vocabulary.
const MAX_PIECES: usize = 1 << 21;

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a tokenizer is made of.
pub(super) struct Parts {
    /// A `tokenizer.json`.
    pub(super) json: Vec<u8>,
    /// Names of the control tokens.
    pub(super) names: SpecialNames,
    /// The chat template.
    pub(super) chat_template: Option<String>,
}

/// Converts the metadata of a GGUF file.
pub(super) fn convert(metadata: &HashMap<String, Value>) -> Result<Parts, TokenizerError> {
    let fields = Fields(metadata);
    let model = fields.text("model")?.ok_or_else(|| invalid("tokenizer.ggml.model is missing"))?;
    let vocabulary = Vocabulary::read(&fields)?;
    let mut names = SpecialNames::default();
    for (key, name) in [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
    {
        if let Some(id) = fields.id(&format!("{key}_token_id"))? {
            let piece = vocabulary.pieces.get(id as usize);
            let piece = piece.ok_or_else(|| invalid(format!("{key} token {id} is not in the vocabulary")))?;
            names.0.insert(name.to_owned(), (*piece).to_owned());
        }
    }
    let mut json = match model {
        "gpt2" => byte_level(&fields, &vocabulary)?,
        "llama" => sentence_piece(&fields, &vocabulary, &names)?,
        other => return Err(invalid(format!("tokenizer model `{other}` of a GGUF file is not supported"))),
    };
    let add_bos_default = model == "llama" || fields.text("pre")?.is_some_and(is_llama3);
    let around = |flag: &str, default: bool, name: &str| -> Result<Option<(String, u32)>, TokenizerError> {
        let wanted = fields.flag(flag)?.unwrap_or(default);
        let token = names.get(name).filter(|_| wanted);
        Ok(token.and_then(|t| vocabulary.ids.get(t).map(|id| (t.to_owned(), *id))))
    };
    let before = around("add_bos_token", add_bos_default, "bos_token")?;
    let after = around("add_eos_token", false, "eos_token")?;
    json["post_processor"] = post_processor(before, after);
    json["added_tokens"] = vocabulary.added_tokens();
    json["version"] = json!("1.0");
    let chat_template = match metadata.get("tokenizer.chat_template") {
        Some(value) => Some(text(value).ok_or_else(|| invalid("tokenizer.chat_template is not text"))?.to_owned()),
        None => None,
    };
    Ok(Parts { json: json.to_string().into_bytes(), names, chat_template })
}

fn is_llama3(pre: &str) -> bool {
    matches!(pre, "llama3" | "llama-v3" | "llama-bpe")
}

/// The fields below `tokenizer.ggml.`.
struct Fields<'a>(&'a HashMap<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, TokenizerError> {
        self.get(key).map(|v| text(v).ok_or_else(|| wrong(key, "text"))).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, TokenizerError> {
        self.get(key).map(|v| v.to_bool().map_err(|_| wrong(key, "a flag"))).transpose()
    }

    fn id(&self, key: &str) -> Result<Option<u32>, TokenizerError> {
        self.get(key).map(|v| v.to_u32().map_err(|_| wrong(key, "an id"))).transpose()
    }

    fn list(&self, key: &str) -> Result<Option<&'a [Value]>, TokenizerError> {
        self.get(key).map(|v| v.to_vec().map(Vec::as_slice).map_err(|_| wrong(key, "a list"))).transpose()
    }
}

fn wrong(key: &str, expected: &str) -> TokenizerError {
    invalid(format!("tokenizer.ggml.{key} is not {expected}"))
}

fn text(value: &Value) -> Option<&str> {
    value.to_string().ok().map(String::as_str)
}

struct Vocabulary<'a> {
    pieces: Vec<&'a str>,
    /// Kind of each piece, as llama.cpp numbers them; empty when not given.
    kinds: Vec<i32>,
    ids: HashMap<&'a str, u32>,
}

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

impl<'a> Vocabulary<'a> {
    fn read(fields: &Fields<'a>) -> Result<Self, TokenizerError> {
        let list = fields.list("tokens")?.ok_or_else(|| invalid("tokenizer.ggml.tokens is missing"))?;
        if list.is_empty() || list.len() > MAX_PIECES {
            return Err(invalid(format!("{} entries in the vocabulary, 1 to {MAX_PIECES} are possible", list.len())));
        }
        let mut pieces = Vec::with_capacity(list.len());
        let mut ids = HashMap::with_capacity(list.len());
        for (id, value) in (0_u32..).zip(list) {
            let piece = text(value).ok_or_else(|| wrong("tokens", "a list of texts"))?;
            if piece.len() > MAX_PIECE_BYTES {
                return Err(invalid(format!("entry {id} has {} bytes, {MAX_PIECE_BYTES} are possible", piece.len())));
            }
            if ids.insert(piece, id).is_some() {
                return Err(invalid(format!("`{piece}` is twice in the vocabulary")));
            }
            pieces.push(piece);
        }
        let mut kinds = Vec::new();
        if let Some(list) = fields.list("token_type")? {
            if list.len() != pieces.len() {
                return Err(invalid(format!("{} token types for {} tokens", list.len(), pieces.len())));
            }
            for value in list {
                kinds.push(value.to_i32().map_err(|_| wrong("token_type", "a list of whole numbers"))?);
            }
        }
        Ok(Self { pieces, kinds, ids })
    }

    fn json(&self) -> serde_json::Value {
        self.pieces.iter().zip(0_u32..).map(|(piece, id)| ((*piece).to_owned(), json!(id))).collect()
    }

    fn added_tokens(&self) -> serde_json::Value {
        let added = self.kinds.iter().zip(&self.pieces).zip(0_u32..);
        let added = added.filter(|((kind, piece), _)| matches!(**kind, CONTROL | USER_DEFINED) && !piece.is_empty());
        let entry = |((kind, piece), id): ((&i32, &&str), u32)| {
            json!({"id": id, "content": piece, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL})
        };
        added.map(entry).collect()
    }
}

fn byte_level(fields: &Fields<'_>, vocabulary: &Vocabulary<'_>) -> Result<serde_json::Value, TokenizerError> {
    let pre = fields.text("pre")?.ok_or_else(|| invalid("tokenizer.ggml.pre is missing"))?;
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |regex: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let mut normalizer = serde_json::Value::Null;
    let pre_tokenizer = match pre {
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jina-es" | "jina-de" => bytes(true),
        "smollm" | "starcoder" | "refact" | "command-r" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]})
        }
        "qwen2" | "deepseek-r1-qwen" => {
            normalizer = json!({"type": "NFC"});
            split(QWEN2_SPLIT)
        }
        pre if is_llama3(pre) => split(LLAMA3_SPLIT),
        other => return Err(invalid(format!("splitting rule `{other}` of a GGUF file is not supported"))),
    };
    let list = fields.list("merges")?.ok_or_else(|| invalid("tokenizer.ggml.merges is missing"))?;
    let mut merges = Vec::with_capacity(list.len());
    for value in list {
        let merge = text(value).ok_or_else(|| wrong("merges", "a list of texts"))?;
        let pair = merge.split_once(' ').ok_or_else(|| invalid(format!("merge `{merge}` has no space")))?;
        merges.push(pair);
    }
    Ok(json!({
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "ignore_merges": is_llama3(pre), "vocab": vocabulary.json(), "merges": merges},
    }))
}

fn sentence_piece(
    fields: &Fields<'_>,
    vocabulary: &Vocabulary<'_>,
    names: &SpecialNames,
) -> Result<serde_json::Value, TokenizerError> {
    let list = fields.list("scores")?.ok_or_else(|| invalid("tokenizer.ggml.scores is missing"))?;
    if list.len() != vocabulary.pieces.len() {
        return Err(invalid(format!("{} scores for {} tokens", list.len(), vocabulary.pieces.len())));
    }
    // The higher the score of the whole, the earlier the merge; among equals the parts with the lower ids.
    let mut merges = Vec::new();
    for (piece, value) in vocabulary.pieces.iter().zip(list) {
        let score = value.to_f32().map_err(|_| wrong("scores", "a list of numbers"))?;
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(l), Some(r)) = (vocabulary.ids.get(left), vocabulary.ids.get(right)) {
                merges.push((score, *l, *r, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let merges: Vec<_> = merges.into_iter().map(|(.., left, right)| (left, right)).collect();
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefix = fields.flag("add_space_prefix")?.unwrap_or(true);
    let mut normalizers = Vec::new();
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(spaces);
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": names.get("unk_token"), "fuse_unk": true, "byte_fallback": true,
            "vocab": vocabulary.json(), "merges": merges},
    }))
}

fn post_processor(before: Option<(String, u32)>, after: Option<(String, u32)>) -> serde_json::Value {
    if before.is_none() && after.is_none() {
        return serde_json::Value::Null;
    }
    let special = |token: &Option<(String, u32)>| {
        token.as_ref().map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": 0}}))
    };
    let sequence = |id: &str| Some(json!({"Sequence": {"id": id, "type_id": 0}}));
    let around = |id: &str| [special(&before), sequence(id), special(&after)].into_iter().flatten();
    let single: Vec<_> = around("A").collect();
    let pair: Vec<_> = around("A").chain(around("B")).collect();
    let tokens: serde_json::Map<_, _> = [&before, &after]
        .into_iter()
        .flatten()
        .map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::Tokenizer;

    fn texts(list: &[&str]) -> Value {
        Value::Array(list.iter().map(|t| Value::String((*t).to_owned())).collect())
    }

    fn metadata(fields: Vec<(&str, Value)>) -> HashMap<String, Value> {
        fields.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
    }

    fn byte_level() -> HashMap<String, Value> {
        metadata(vec![
            ("model", Value::String("gpt2".to_owned())),
            ("pre", Value::String("smollm".to_owned())),
            ("tokens", texts(&["<|end|>", "a", "b", "Ġ", "1", "ab", "Ġab"])),
            ("token_type", Value::Array([3, 1, 1, 1, 1, 1, 1].map(Value::I32).to_vec())),
            ("merges", texts(&["a b", "Ġ ab"])),
            ("eos_token_id", Value::U32(0)),
            ("bos_token_id", Value::U32(0)),
        ])
    }

    #[test]
    fn byte_level_pieces_and_control_tokens() {
        let (tokenizer, template) = Tokenizer::from_gguf(&byte_level()).unwrap();
        assert!(template.is_none());
        assert_eq!(tokenizer.encode("ab ab11<|end|>", true).unwrap(), [5, 6, 4, 4, 0]);
        assert_eq!(tokenizer.decode(&[5, 6, 4, 4, 0], true).unwrap(), "ab ab11");
        assert_eq!((tokenizer.eos_id(), tokenizer.bos_id()), (Some(0), Some(0)));
        let mut with_bos = byte_level();
        with_bos.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(true));
        with_bos.insert("tokenizer.ggml.add_eos_token".to_owned(), Value::Bool(true));
        let (tokenizer, _) = Tokenizer::from_gguf(&with_bos).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap(), [0, 1, 0]);
        assert_eq!(tokenizer.encode("a", false).unwrap(), [1]);
    }

    #[test]
    fn sentence_pieces_merge_by_score_and_fall_back_to_bytes() {
        let bytes: Vec<_> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
        let mut tokens = vec!["<unk>", "<s>", "</s>"];
        tokens.extend(bytes.iter().map(String::as_str));
        tokens.extend(["▁a", "ab", "▁", "a", "b"]);
        let mut kinds = vec![2, 3, 3];
        kinds.extend([6; 256]);
        kinds.extend([1; 5]);
        let mut scores = vec![0.0; 259];
        scores.extend([-2.0, -1.0, -3.0, -4.0, -5.0]);
        let metadata = metadata(vec![
            ("model", Value::String("llama".to_owned())),
            ("tokens", texts(&tokens)),
            ("token_type", Value::Array(kinds.into_iter().map(Value::I32).collect())),
            ("scores", Value::Array(scores.into_iter().map(Value::F32).collect())),
            ("bos_token_id", Value::U32(1)),
            ("eos_token_id", Value::U32(2)),
            ("unknown_token_id", Value::U32(0)),
        ]);
        let (tokenizer, _) = Tokenizer::from_gguf(&metadata).unwrap();
        // `ab` has the higher score, so it is merged before `▁a`.
        assert_eq!(tokenizer.encode("ab", true).unwrap(), [1, 261, 260]);
        assert_eq!(tokenizer.encode("aé", false).unwrap(), [259, 3 + 0xC3, 3 + 0xA9]);
        assert_eq!(tokenizer.decode(&[1, 259, 3 + 0xC3, 3 + 0xA9], true).unwrap(), "aé");
    }

    #[test]
    fn faulty_metadata_is_refused() {
        let text = |s: &str| Value::String(s.to_owned());
        let faults = [
            ("model", text("t5")),
            ("model", Value::U32(1)),
            ("pre", text("unheard-of")),
            ("tokens", texts(&["a", "a"])),
            ("tokens", texts(&[])),
            ("tokens", texts(&[&"x".repeat(MAX_PIECE_BYTES + 1)])),
            ("tokens", Value::Array(vec![Value::U32(1)])),
            ("token_type", Value::Array(vec![Value::I32(1)])),
            ("merges", texts(&["ab"])),
            ("merges", texts(&["a zzz"])),
            ("eos_token_id", Value::U32(99)),
            ("add_bos_token", text("yes")),
        ];
        for (key, value) in faults {
            let mut fields = byte_level();
            let shown = format!("{key} {value:?}");
            fields.insert(format!("tokenizer.ggml.{key}"), value);
            assert!(Tokenizer::from_gguf(&fields).is_err(), "{shown}");
        }
        for key in ["model", "pre", "tokens", "merges"] {
            let mut fields = byte_level();
            fields.remove(&format!("tokenizer.ggml.{key}"));
            assert!(Tokenizer::from_gguf(&fields).is_err(), "{key}");
        }
    }
}
