//! Finds stop strings in text that comes in pieces, and holds back what could become one.
//!
//! Knows text only: end tokens and lengths are the sequence's affair. The result does not depend on where the pieces
//! are cut: the stop string that is complete first wins, of several that end at the same place the longest.
//! Units: bytes of UTF-8; every cut is at the border of a character, since stop strings are whole text.

/// The stop strings of one completion and the text held back for them.
#[derive(Debug, Clone)]
pub(super) struct StopStrings {
    strings: Vec<String>,
    include: bool,
    held: String,
}

impl StopStrings {
    /// With `include`, the stop string found is part of the text.
    pub(super) fn new(strings: &[String], include: bool) -> Self {
        let strings = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { strings, include, held: String::new() }
    }

    /// Takes the next piece; returns the text that is certain now, and the stop string when one is found.
    pub(super) fn push(&mut self, piece: &str) -> (String, Option<String>) {
        if self.strings.is_empty() {
            return (piece.to_owned(), None);
        }
        let old = self.held.len();
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        if let Some((start, end)) = self.find(&text, old) {
            let found = text[start..end].to_owned();
            text.truncate(if self.include { end } else { start });
            return (text, Some(found));
        }
        self.held = text.split_off(self.certain(&text));
        (text, None)
    }

    /// Takes a piece in which stop strings do not count.
    pub(super) fn pass(&mut self, piece: &str) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        text
    }

    /// Returns what is held back: the text has ended.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Returns the stop string that ends first; none ends within the first `old` bytes.
    fn find(&self, text: &str, old: usize) -> Option<(usize, usize)> {
        let found = self.strings.iter().filter_map(|stop| {
            let mut from = (old + 1).saturating_sub(stop.len());
            while !text.is_char_boundary(from) {
                from -= 1;
            }
            let start = from + text[from..].find(stop.as_str())?;
            Some((start, start + stop.len()))
        });
        found.min_by_key(|&(start, end)| (end, start))
    }

    /// Returns the length of the text that no stop string can begin in.
    fn certain(&self, text: &str) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let mut first = text.len().saturating_sub(longest.saturating_sub(1));
        while !text.is_char_boundary(first) {
            first -= 1;
        }
        let may_begin = |at: &usize| self.strings.iter().any(|stop| stop.starts_with(&text[*at..]));
        let borders = text[first..].char_indices().map(|(offset, _)| first + offset);
        borders.into_iter().find(may_begin).unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (Vec<String>, Option<String>, String) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopStrings::new(&stops, include);
        let mut sent = Vec::new();
        for piece in pieces {
            let (text, stop) = matcher.push(piece);
            sent.push(text);
            if stop.is_some() {
                return (sent, stop, matcher.finish());
            }
        }
        (sent, None, matcher.finish())
    }

    #[test]
    fn nothing_of_a_stop_string_is_sent_before_it_is_sure() {
        let (sent, stop, held) = run(&["END"], false, &["a E", "N", "X E", "N", "D b"]);
        assert_eq!(sent, ["a ", "", "ENX ", "", ""]);
        assert_eq!((stop.as_deref(), held.as_str()), (Some("END"), ""));
    }

    #[test]
    fn a_held_beginning_is_given_back_at_the_end() {
        assert_eq!(run(&["\n\n"], false, &["a\n"]), (vec!["a".into()], None, "\n".into()));
    }

    #[test]
    fn the_stop_string_is_part_of_the_text_when_asked_for() {
        let (sent, stop, _) = run(&["END"], true, &["x E", "ND tail"]);
        assert_eq!((sent.concat().as_str(), stop.as_deref()), ("x END", Some("END")));
    }

    #[test]
    fn the_first_complete_one_wins_and_of_two_the_longest() {
        assert_eq!(run(&["bcd", "c"], false, &["abcd"]).1.as_deref(), Some("c"));
        assert_eq!(run(&["c", "abc"], false, &["abc"]).1.as_deref(), Some("abc"));
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        let (sent, stop, _) = run(&["né!", "€"], false, &["ané", "né", "!"]);
        assert_eq!((sent.concat().as_str(), stop.as_deref()), ("ané", Some("né!")));
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_pieces(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 1..4),
            cuts in prop::collection::vec(1usize..5, 24),
            include: bool,
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let letters: Vec<char> = text.chars().collect();
            let mut pieces = Vec::new();
            let mut rest = letters.as_slice();
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece.iter().collect::<String>());
                rest = tail;
            }
            let single: Vec<String> = letters.iter().map(char::to_string).collect();
            let refs = |v: &[String]| -> (String, Option<String>) {
                let v: Vec<&str> = v.iter().map(String::as_str).collect();
                let (sent, stop, held) = run(&stops, include, &v);
                (sent.concat() + &held, stop)
            };
            let whole = refs(std::slice::from_ref(&text));
            prop_assert_eq!(&whole, &refs(&pieces));
            prop_assert_eq!(&whole, &refs(&single));
            if whole.1.is_none() {
                prop_assert_eq!(whole.0, text);
            } else if !include {
                prop_assert!(stops.iter().all(|s| !whole.0.contains(s)));
            }
        }
    }
}
