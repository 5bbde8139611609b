//! Incremental decoding: ids of one completion, one by one, to pieces of text.
//!
//! Decodes a window of a few ids, not the whole text: the ids of the last piece, which give the context (a first word
//! loses its space), and those held back since. A piece never cuts a character and is never taken back.
//! After: `tokenizers::DecodeStream`, which gives up when a run of byte tokens turns out broken after a part of it was
//! emitted; here the emitted letters stay and only the rest of the run becomes U+FFFD.

use std::sync::Arc;

use super::tokenizer::Tokenizer;

/// Ids held back at most. A character has at most four bytes; the rest is patience with broken runs.
const MAX_HELD: usize = 64;

/// Incremental decoding of one completion.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    /// Ids of the last piece, then those held back.
    window: Vec<u32>,
    /// Number of ids of the last piece.
    emitted: usize,
    /// Text of the ids of the last piece, decoded by themselves.
    prefix: String,
}

impl TextStream {
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, window: Vec::new(), emitted: 0, prefix: String::new() }
    }

    /// Takes the next id and returns the text that is certain now; bytes of an unfinished character are held back.
    /// Text once returned is never taken back. Control tokens and ids outside the vocabulary give nothing.
    pub fn push(&mut self, id: u32) -> String {
        if !self.tokenizer.has_text(id) {
            return String::new();
        }
        if self.prefix.is_empty() && !self.window.is_empty() {
            // What gave no text so far (a space at the very beginning) is context for what follows.
            let text = self.decode(0);
            if !text.ends_with('\u{FFFD}') {
                self.prefix = text;
                self.emitted = self.window.len();
            }
        }
        self.window.push(id);
        let text = self.decode(0);
        let held = self.window.len() - self.emitted;
        if held < MAX_HELD && (text.len() <= self.prefix.len() || text.ends_with('\u{FFFD}')) {
            return String::new();
        }
        let piece = self.tail(text);
        self.window.drain(..self.emitted);
        self.emitted = self.window.len();
        self.prefix = self.decode(0);
        piece
    }

    /// Returns what was held back, broken characters as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.decode(0);
        let piece = self.tail(text);
        self.window.clear();
        self.emitted = 0;
        self.prefix.clear();
        piece
    }

    /// Returns what `text`, the window decoded, adds to the last piece.
    fn tail(&self, text: String) -> String {
        match text.strip_prefix(self.prefix.as_str()) {
            Some(tail) => tail.to_owned(),
            None => self.decode(self.emitted),
        }
    }

    fn decode(&self, from: usize) -> String {
        // Only a decoder that fails on its own pieces could fail here: then there is no text.
        self.window.get(from..).and_then(|ids| self.tokenizer.decode(ids, true).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters, bytes and a space mark, decoded as Llama 2 does.
    fn byte_fallback() -> Arc<Tokenizer> {
        let mut vocab = serde_json::Map::new();
        let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
        let pieces = ["<unk>", "</s>", "▁", "▁a", "b"].into_iter().map(str::to_owned);
        for (id, piece) in bytes.chain(pieces).enumerate() {
            vocab.insert(piece, id.into());
        }
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 257, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false}],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab, "merges": []},
        });
        Arc::new(Tokenizer::from_json(json.to_string().as_bytes()).unwrap())
    }

    fn pieces(ids: &[u32]) -> Vec<String> {
        let mut stream = byte_fallback().stream();
        let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id)).collect();
        pieces.push(stream.finish());
        pieces
    }

    #[test]
    fn an_unfinished_character_is_held_back_and_flushed() {
        assert_eq!(pieces(&[259, 0xE2, 0x82, 0xAC, 260]), ["a", "", "", "€", "b", ""]);
        assert_eq!(pieces(&[259, 0xE2, 0x82]), ["a", "", "", "\u{FFFD}\u{FFFD}"]);
    }

    #[test]
    fn letters_once_returned_stay_when_their_run_breaks() {
        assert_eq!(pieces(&[259, 0x41, 0x42, 0xFF, 259]), ["a", "A", "B", "", "\u{FFFD} a", ""]);
        assert_eq!(pieces(&[259, 0x41, 0xFF]), ["a", "A", "", "\u{FFFD}"]);
    }

    #[test]
    fn control_and_unknown_ids_give_nothing_and_break_nothing() {
        assert_eq!(pieces(&[0xE2, 257, 0x82, 9999, 0xAC, 259]), ["", "", "", "", "€", " a", ""]);
    }

    #[test]
    fn a_long_broken_run_does_not_grow_the_window() {
        let mut stream = byte_fallback().stream();
        let text: String = (0..1000).map(|_| stream.push(0xFF)).collect();
        assert!(stream.window.len() <= 2 * MAX_HELD);
        assert_eq!((text + &stream.finish()).chars().count(), 1000);
    }

    #[test]
    fn the_first_word_loses_its_space_and_the_others_keep_it() {
        assert_eq!(pieces(&[258, 259, 259, 260]).concat(), " a ab");
        assert_eq!(pieces(&[259, 259]), ["a", " a", ""]);
    }
}
