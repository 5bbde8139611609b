//! Fields that several services have: names, request ids, pages, times.
//!
//! Checks form only; whether a name exists is asked elsewhere.

use std::time::SystemTime;

use sha2::{Digest, Sha256};
use tonic::Status;

use super::page::{self, PageTokens};
use super::status::{self, Reason};
use super::violations::Violations;
use crate::registry::Reference;
use crate::store::{Name, RequestKey};

/// Largest number of characters of a request id.
const MAX_REQUEST_ID: usize = 128;

/// Checks a name.
pub(super) fn name(v: &mut Violations, field: &str, text: &str) -> Option<Name> {
    let name = Name::parse(text);
    let rule = "must be 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit";
    v.require(field, name.is_some(), rule);
    name
}

/// Checks the name of an adapter or alias, or of one generation as `name@generation`.
pub(super) fn reference(v: &mut Violations, field: &str, text: &str) -> Option<Reference> {
    let reference = Reference::parse(text);
    v.require(field, reference.is_some(), "must be a name, or name@ and 8 to 64 hexadecimal digits");
    reference
}

/// Checks the id that makes a repeated call harmless.
pub(super) fn request_id(v: &mut Violations, field: &str, id: &str) {
    let sound = id.chars().count() <= MAX_REQUEST_ID && !id.chars().any(char::is_control);
    v.require(field, sound, "must be at most 128 printable characters");
}

/// Builds the key that makes a repeated call harmless; `content` is the request with its id taken out.
pub(super) fn request_key(method: &'static str, id: String, content: &[u8]) -> Option<RequestKey> {
    (!id.is_empty()).then(|| RequestKey { method, id, fingerprint: Sha256::digest(content).into() })
}

/// Ends the checks: all faults, or the values.
pub(super) fn checked<T>(v: Violations, value: Option<T>) -> Result<T, Status> {
    v.finish(value).map_err(|v| status::violations(&v))
}

/// Returns a time as it is on the wire.
pub(super) fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

/// Checks a page's size and token.
pub(super) fn page(
    tokens: &PageTokens,
    method: &str,
    wire: i32,
    token: &str,
) -> Result<(usize, Option<String>), Status> {
    let size = page::size(wire).map_err(|v| status::violations(&v))?;
    let after = tokens.open(method, token).map_err(|page::Forged| {
        let text = "was not made by this server for this method";
        status::field(Reason::PageToken, "page_token", text)
    })?;
    Ok((size, after))
}

/// Cuts the one entry too many that was asked for, and makes the token of the next page from the last that stays.
pub(super) fn next_page<T>(
    tokens: &PageTokens,
    method: &str,
    entries: &mut Vec<T>,
    size: usize,
    name: impl Fn(&T) -> &str,
) -> String {
    if entries.len() <= size {
        return String::new();
    }
    entries.truncate(size);
    entries.last().map_or_else(String::new, |last| tokens.seal(method, name(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_bounded_and_printable() {
        for (id, faulty) in [("x".repeat(128), false), ("x".repeat(129), true), ("a\nb".into(), true)] {
            let mut v = Violations::default();
            request_id(&mut v, "request_id", &id);
            assert_eq!(!v.list().is_empty(), faulty);
        }
        assert!(request_key("SetAlias", String::new(), b"").is_none());
    }

    #[test]
    fn the_fingerprint_covers_the_content_and_not_the_id() {
        let key = |id: &str, content: &[u8]| request_key("SetAlias", id.into(), content).unwrap().fingerprint;
        assert_eq!(key("a", b"same"), key("b", b"same"));
        assert_ne!(key("a", b"same"), key("a", b"other"));
    }
}
