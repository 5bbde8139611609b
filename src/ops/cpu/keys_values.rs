//! Keys and values of one sequence at one layer, which sequences with the same beginning share.
//!
//! Keys stand in tiles of 16 positions, values in rows: as `attention.rs` multiplies with them. What is shared is never
//! written: whoever goes on from there holds its own positions from the last whole tile on. Multiplies nothing.
//! Shapes: keys and values come as `[tokens, kv_heads, head_dim]`.
//! After: vLLM's blocks (Kwon et al. 2023), with one block for all that is shared.

use std::ops::Range;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicUsize, Ordering};

use super::attention::Heads;
use super::dense::turn;
use super::simd::LANES;

/// Keys and values of one sequence at one layer.
#[derive(Debug, Clone)]
pub struct KeysValues {
    heads: Heads,
    /// Holds the positions before `start`, a multiple of 16.
    before: Option<Arc<KeysValues>>,
    start: usize,
    /// Positions from `start` on that there is room for, a multiple of 16.
    capacity: usize,
    /// `[kv_heads, capacity/16, head_dim, 16]`.
    keys: Vec<f32>,
    /// `[kv_heads, capacity, head_dim padded to 16]`.
    values: Vec<f32>,
    #[cfg(test)]
    meter: Meter,
}

/// Counts the positions that memory is taken for, as long as it is.
#[cfg(test)]
#[derive(Debug, Default)]
struct Meter {
    total: Arc<AtomicUsize>,
    own: usize,
}

#[cfg(test)]
impl Meter {
    fn take(&mut self, capacity: usize) {
        self.total.fetch_add(capacity - self.own, Ordering::Relaxed);
        self.own = capacity;
    }
}

#[cfg(test)]
impl Clone for Meter {
    fn clone(&self) -> Self {
        let mut copy = Self { total: Arc::clone(&self.total), own: 0 };
        copy.take(self.own);
        copy
    }
}

#[cfg(test)]
impl Drop for Meter {
    fn drop(&mut self) {
        self.total.fetch_sub(self.own, Ordering::Relaxed);
    }
}

/// Positions that lie together.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) positions: Range<usize>,
    of: &'a KeysValues,
}

impl Part<'_> {
    /// Tiles of keys of a head, the first of which begins at the first position.
    pub(super) fn keys(&self, head: usize) -> &[f32] {
        let size = self.of.capacity * self.of.heads.head_dim;
        &self.of.keys[head * size..][..size]
    }

    /// Rows of values of a head.
    pub(super) fn values(&self, head: usize) -> &[f32] {
        let size = self.of.capacity * self.of.heads.padded();
        &self.of.values[head * size..][..size]
    }
}

impl KeysValues {
    /// Returns an empty one; memory is taken when tokens arrive.
    pub fn new(heads: Heads) -> Self {
        Self {
            heads,
            before: None,
            start: 0,
            capacity: 0,
            keys: Vec::new(),
            values: Vec::new(),
            #[cfg(test)]
            meter: Meter::default(),
        }
    }

    /// As [`Self::new`]; `total` is told how many positions it takes memory for, and those that go on from it.
    #[cfg(test)]
    pub(crate) fn metered(heads: Heads, total: &Arc<AtomicUsize>) -> Self {
        Self { meter: Meter { total: Arc::clone(total), own: 0 }, ..Self::new(heads) }
    }

    /// Returns one that goes on after the first `len` positions of `shared`.
    pub fn after(shared: &Arc<Self>, len: usize) -> Self {
        let mut shared = shared;
        while let Some(before) = shared.before.as_ref().filter(|_| len <= shared.start) {
            shared = before;
        }
        // Where the other begins, so that whole tiles of it can be seen alone.
        let start = (len / LANES * LANES).max(shared.start);
        // Nothing is kept alive that is not seen.
        let before = if start > shared.start { Some(Arc::clone(shared)) } else { shared.before.clone() };
        let mut own = Self {
            before,
            start,
            #[cfg(test)]
            meter: Meter { total: Arc::clone(&shared.meter.total), own: 0 },
            ..Self::new(shared.heads)
        };
        if len > start {
            own.grow(0, LANES);
            let (from, dim, padded) = (start - shared.start, shared.heads.head_dim, shared.heads.padded());
            for head in 0..shared.heads.kv_heads {
                let (to, of) = (head * own.capacity, head * shared.capacity + from);
                own.keys[to * dim..][..LANES * dim].copy_from_slice(&shared.keys[of * dim..][..LANES * dim]);
                let size = (len - start) * padded;
                own.values[to * padded..][..size].copy_from_slice(&shared.values[of * padded..][..size]);
            }
        }
        own
    }

    /// Returns the first `len` positions in memory of their own.
    pub fn copied(&self, len: usize) -> Self {
        let mut own = Self {
            #[cfg(test)]
            meter: Meter { total: Arc::clone(&self.meter.total), own: 0 },
            ..Self::new(self.heads)
        };
        own.grow(0, grown(len));
        let (dim, padded) = (self.heads.head_dim, self.heads.padded());
        self.each_part(|part| {
            let (first, end) = (part.positions.start, part.positions.end.min(len));
            for head in (0..self.heads.kv_heads).filter(|_| first < end) {
                let (to, size) = (head * own.capacity + first, end - first);
                let keys = size.next_multiple_of(LANES) * dim;
                own.keys[to * dim..][..keys].copy_from_slice(&part.keys(head)[..keys]);
                own.values[to * padded..][..size * padded].copy_from_slice(&part.values(head)[..size * padded]);
            }
        });
        own
    }

    /// Makes room for `capacity` positions from `start` on and keeps the first `len` of them.
    fn grow(&mut self, len: usize, capacity: usize) {
        let capacity = capacity.next_multiple_of(LANES);
        let moved = |old: &[f32], width: usize, kept: usize| {
            let mut new = vec![0.0; self.heads.kv_heads * capacity * width];
            if kept > 0 {
                for (new, old) in new.chunks_exact_mut(capacity * width).zip(old.chunks_exact(self.capacity * width)) {
                    new[..kept * width].copy_from_slice(&old[..kept * width]);
                }
            }
            new
        };
        self.keys = moved(&self.keys, self.heads.head_dim, len.next_multiple_of(LANES).min(self.capacity));
        self.values = moved(&self.values, self.heads.padded(), len);
        self.capacity = capacity;
        #[cfg(test)]
        self.meter.take(capacity);
    }

    /// Returns how many numbers a position takes.
    pub fn numbers(heads: Heads) -> usize {
        heads.kv_heads * (heads.head_dim + heads.padded())
    }

    /// Returns for how many positions one that goes on after `len` others takes memory at most when it gets `more`.
    pub fn own_capacity(len: usize, more: usize) -> usize {
        grown(len % LANES + more)
    }

    /// Writes keys and values of tokens from position `len` on; too little room grows by a quarter more than is needed.
    /// Positions that are shared stay as they are.
    pub fn write(&mut self, len: usize, keys: &[f32], values: &[f32]) {
        let Heads { kv_heads, head_dim: dim, .. } = self.heads;
        let (width, padded) = (kv_heads * dim, self.heads.padded());
        let (tokens, held) = (keys.len() / width.max(1), len.saturating_sub(self.start));
        if held + tokens > self.capacity {
            self.grow(held, grown(held + tokens));
        }
        let mut token = 0;
        while token < tokens {
            let at = held + token;
            // Whole tiles at once.
            let count = if at.is_multiple_of(LANES) && token + LANES <= tokens { LANES } else { 1 };
            for head in 0..kv_heads {
                let first = token * width + head * dim;
                let tile = &mut self.keys[(head * self.capacity + at / LANES * LANES) * dim..][..LANES * dim];
                if count == LANES {
                    turn((&keys[first..], LANES, width), dim, (tile, LANES));
                } else {
                    for (i, x) in keys[first..first + dim].iter().enumerate() {
                        tile[i * LANES + at % LANES] = *x;
                    }
                }
                let rows = self.values[(head * self.capacity + at) * padded..].chunks_exact_mut(padded);
                for (row, value) in rows.zip(values[first..].chunks(width)).take(count) {
                    row[..dim].copy_from_slice(&value[..dim]);
                }
            }
            token += count;
        }
    }

    /// Returns the position from which on it holds its own: what is before is shared.
    pub fn start(&self) -> usize {
        self.start
    }

    pub(super) fn heads(&self) -> Heads {
        self.heads
    }

    /// Returns the number of positions that there is room for.
    pub(super) fn room(&self) -> usize {
        self.start + self.capacity
    }

    /// Shows what is held, in the order of positions.
    pub(super) fn each_part<'a>(&'a self, mut show: impl FnMut(Part<'a>)) {
        self.until(self.room(), &mut show);
    }

    /// The same up to a position.
    fn until<'a>(&'a self, end: usize, show: &mut impl FnMut(Part<'a>)) {
        if let Some(before) = &self.before {
            before.until(self.start.min(before.room()), show);
        }
        show(Part { positions: self.start..end, of: self });
    }

    /// Returns tiles of keys and rows of values of all heads.
    pub(super) fn into_parts(self) -> (Vec<f32>, Vec<f32>) {
        (self.keys, self.values)
    }
}

fn grown(positions: usize) -> usize {
    (positions + positions / 4).next_multiple_of(LANES)
}
