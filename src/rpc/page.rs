//! Page tokens: opaque, signed, and bound to the method that made them (AIP-158).
//!
//! The key lives as long as the process: after a restart a client begins its list again. A token holds the name of the
//! last entry, so that pages neither repeat nor skip entries that stay.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::violations::Violations;

/// Entries of a page when the request names no number.
const DEFAULT_PAGE: usize = 50;
/// Largest page.
pub(super) const MAX_PAGE: usize = 1000;
/// Bytes of the signature in a token.
const SIGNATURE: usize = 16;

/// Signs page tokens.
#[derive(Debug, Clone)]
pub(super) struct PageTokens {
    key: [u8; 32],
}

/// A token that this server did not make for this method.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forged;

impl PageTokens {
    /// Draws a key.
    pub(super) fn new() -> Self {
        Self { key: rand::random() }
    }

    /// Returns the token that continues after `last`.
    pub(super) fn seal(&self, method: &str, last: &str) -> String {
        let mut bytes = self.sign(method, last.as_bytes()).to_vec();
        bytes.extend_from_slice(last.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Returns the name that a token continues after; `None` for the empty token of the first page.
    pub(super) fn open(&self, method: &str, token: &str) -> Result<Option<String>, Forged> {
        if token.is_empty() {
            return Ok(None);
        }
        if token.len() > 256 {
            return Err(Forged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| Forged)?;
        let (signature, last) = bytes.split_at_checked(SIGNATURE).ok_or(Forged)?;
        let expected = self.sign(method, last);
        // All bytes are looked at, so that the time taken tells nothing.
        let differing = expected.iter().zip(signature).fold(0, |acc, (a, b)| acc | (a ^ b));
        if differing != 0 {
            return Err(Forged);
        }
        String::from_utf8(last.to_vec()).map(Some).map_err(|_| Forged)
    }

    fn sign(&self, method: &str, last: &[u8]) -> [u8; SIGNATURE] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&self.key.into_block());
        mac.update(method.as_bytes());
        mac.update(&[0]);
        mac.update(last);
        let full = mac.finalize().into_bytes();
        let mut short = [0; SIGNATURE];
        short.copy_from_slice(&full[..SIGNATURE]);
        short
    }
}

/// Returns the number of entries of a page: 0 is the default, more than the largest is cut to it.
pub(super) fn size(wire: i32) -> Result<usize, Violations> {
    match usize::try_from(wire) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) => Ok(size.min(MAX_PAGE)),
        Err(_) => Err(Violations::one("page_size", "must not be negative")),
    }
}

/// Pads the key to the block of SHA-256.
trait IntoBlock {
    fn into_block(self) -> hmac::digest::Key<Hmac<Sha256>>;
}

impl IntoBlock for [u8; 32] {
    fn into_block(self) -> hmac::digest::Key<Hmac<Sha256>> {
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block[..32].copy_from_slice(&self);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_for_its_method_only() {
        let tokens = PageTokens::new();
        let token = tokens.seal("ListAdapters", "poet");
        assert_eq!(tokens.open("ListAdapters", &token), Ok(Some("poet".into())));
        assert_eq!(tokens.open("ListAliases", &token), Err(Forged));
        assert_eq!(PageTokens::new().open("ListAdapters", &token), Err(Forged));
        assert_eq!(tokens.open("ListAdapters", ""), Ok(None));
    }

    #[test]
    fn every_changed_or_cut_token_is_refused() {
        let tokens = PageTokens::new();
        let token = tokens.seal("ListAdapters", "poet");
        for end in 1..token.len() {
            assert_eq!(tokens.open("ListAdapters", &token[..end]), Err(Forged), "cut to {end}");
        }
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tokens.open("ListAdapters", &URL_SAFE_NO_PAD.encode(changed)), Err(Forged), "bit {bit}");
        }
        assert_eq!(tokens.open("ListAdapters", "*"), Err(Forged));
        assert_eq!(tokens.open("ListAdapters", &"A".repeat(10_000)), Err(Forged));
    }

    #[test]
    fn page_sizes_are_defaulted_cut_and_refused() {
        assert_eq!(size(0), Ok(50));
        assert_eq!(size(1), Ok(1));
        assert_eq!(size(1000), Ok(1000));
        assert_eq!(size(i32::MAX), Ok(1000));
        assert_eq!(size(-1).unwrap_err().fields(), ["page_size"]);
    }
}
