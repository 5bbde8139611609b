//! Keys and values that ended requests leave behind, for requests that begin alike.
//!
//! A request of the same adapter generation with the same first tokens begins with a copy of them and computes the rest:
//! copying takes a few hundredths of the time of computing, and shares no memory whose end nobody knows. In a pool pages are
//! shared instead, whose users are counted. On the CPU a token's bits do not depend on what it is computed with, so that the
//! answer stays the same to the last bit; on a GPU they do, and scores begin with nothing. Who was used least recently goes
//! first. Decides nothing about requests.
//! Units: tokens, bytes.
//! After: vLLM's automatic prefix caching.

use std::sync::{Arc, Weak};

use crate::lora::Adapter;
use crate::model::KvCache;

/// Tokens below which nothing is kept or copied.
const LEAST: usize = 16;

/// What is kept, the least recently used first.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    kept: Vec<Kept>,
    bytes: u64,
    limit: u64,
    bytes_per_token: u64,
}

#[derive(Debug)]
struct Kept {
    /// An adapter that has left memory does not come back as the same.
    adapter: Option<Weak<Adapter>>,
    tokens: Vec<u32>,
    cache: KvCache,
    bytes: u64,
}

impl Kept {
    fn is_of(&self, adapter: Option<&Arc<Adapter>>) -> bool {
        match (&self.adapter, adapter) {
            (None, None) => true,
            (Some(own), Some(adapter)) => std::ptr::eq(own.as_ptr(), Arc::as_ptr(adapter)) && own.strong_count() > 0,
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}

impl Prefixes {
    /// Keeps at most `limit` bytes; 0 keeps nothing.
    pub(super) fn new(limit: u64, bytes_per_token: u64) -> Self {
        Self { limit, bytes_per_token, ..Self::default() }
    }

    /// Returns a copy of what is kept of the longest beginning of a prompt, never of all of it: its last token has to be
    /// computed for what comes after.
    pub(super) fn begin(&mut self, adapter: Option<&Arc<Adapter>>, prompt: &[u32]) -> Option<KvCache> {
        let prompt = prompt.split_last()?.1;
        let alike = |kept: &Kept| kept.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let own = self.kept.iter().enumerate().filter(|(_, kept)| kept.is_of(adapter));
        let (at, len) = own.map(|(at, kept)| (at, alike(kept))).max_by_key(|(_, len)| *len)?;
        if len < LEAST {
            return None;
        }
        let kept = self.kept.remove(at);
        let copy = kept.cache.copy(len);
        self.kept.push(kept);
        copy
    }

    /// Keeps what was computed of `tokens`, within `room` bytes.
    pub(super) fn keep(&mut self, adapter: Option<&Arc<Adapter>>, mut tokens: Vec<u32>, cache: KvCache, room: u64) {
        tokens.truncate(cache.len());
        let bytes = self.bytes_per_token.saturating_mul(KvCache::capacity(tokens.len()) as u64);
        if tokens.len() < LEAST || bytes > self.limit || !cache.is_whole() {
            return;
        }
        // Nobody needs the beginning of something longer.
        let covers = |long: &[u32], short: &[u32]| long.starts_with(short);
        if let Some(at) = self.kept.iter().position(|kept| kept.is_of(adapter) && covers(&kept.tokens, &tokens)) {
            let kept = self.kept.remove(at);
            self.kept.push(kept);
            return;
        }
        self.drop_where(|kept| kept.is_of(adapter) && covers(&tokens, &kept.tokens));
        self.bytes += bytes;
        self.kept.push(Kept { adapter: adapter.map(Arc::downgrade), tokens, cache, bytes });
        self.shrink(room);
    }

    /// Lets go of what does not fit into `room` bytes, and of adapters that are gone.
    pub(super) fn shrink(&mut self, room: u64) {
        self.drop_where(|kept| kept.adapter.as_ref().is_some_and(|adapter| adapter.strong_count() == 0));
        while self.bytes > room.min(self.limit) && !self.kept.is_empty() {
            self.bytes -= self.kept.remove(0).bytes;
        }
    }

    /// Returns the bytes that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn drop_where(&mut self, gone: impl Fn(&Kept) -> bool) {
        self.kept.retain(|kept| !gone(kept));
        self.bytes = self.kept.iter().map(|kept| kept.bytes).sum();
    }
}
