//! Makes text safe to stand in a page: names and messages come from clients.
//!
//! One function for elements and attributes in double quotes alike; nothing is ever put into a script, a style or an
//! address.

/// Escapes for elements and quoted attributes.
///
/// Control characters and those that turn the direction of text become U+FFFD. An address stays readable, but its
/// `://` is written as a reference: no address stands in the bytes of a page.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + 8);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            ':' if rest.peek() == Some(&'/') => safe.push_str("&#58;"),
            '\n' | '\t' => safe.push(c),
            c => safe.push(visible(c)),
        }
    }
    safe
}

/// U+FFFD for control characters, which a terminal would obey, and for those that turn the direction of text.
pub(super) fn visible(c: char) -> char {
    if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') { '\u{fffd}' } else { c }
}

/// At most `most` characters, the last one `…` where some are left out.
pub(super) fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_owned()
    } else {
        text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
    }
}
