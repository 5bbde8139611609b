//! Which generations are in memory, and the byte budget they share.
//!
//! Knows generations only: names are the registry's. A generation is *held* while this table has an `Arc` of it. One
//! that is let go lives until its last lease ends and counts until then: its bytes ride in the adapter itself as a
//! [`Reservation`]. Units: bytes.
//! After: mistral.rs `adapter/registry.rs` (leases, budget freed by `Drop`).

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dashmap::DashMap;
use prometheus::IntGauge;

use super::RegistryError;
use crate::lora::{Adapter, Generation};

/// Generations in memory.
#[derive(Debug)]
pub(super) struct Memory {
    slots: DashMap<Generation, Slot>,
    // Slots that are held.
    held: AtomicUsize,
    limit: u64,
    taken: Arc<Taken>,
    // Taken by whoever makes room: between looking and taking, bytes only become free.
    making_room: Mutex<()>,
    // Counts uses; the slot with the lowest mark was used least recently.
    clock: AtomicU64,
}

#[derive(Debug)]
struct Slot {
    held: Option<Arc<Adapter>>,
    alive: Weak<Adapter>,
    bytes: u64,
    used: AtomicU64,
}

#[derive(Debug)]
struct Taken {
    bytes: AtomicU64,
    gauge: IntGauge,
}

impl Taken {
    fn show(&self) {
        self.gauge.set(i64::try_from(self.bytes.load(Ordering::Acquire)).unwrap_or(i64::MAX));
    }
}

/// Bytes of one adapter in memory; given back when the adapter is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    bytes: u64,
    taken: Arc<Taken>,
}

impl Reservation {
    /// Gives back what is more than `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        self.taken.bytes.fetch_sub(self.bytes.saturating_sub(bytes), Ordering::AcqRel);
        self.bytes = self.bytes.min(bytes);
        self.taken.show();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.taken.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.taken.show();
    }
}

impl Memory {
    /// A table for at most `limit` bytes; `gauge` shows how many are taken.
    pub(super) fn new(limit: u64, gauge: IntGauge) -> Self {
        let taken = Arc::new(Taken { bytes: AtomicU64::new(0), gauge });
        Self {
            slots: DashMap::new(),
            held: AtomicUsize::new(0),
            limit,
            taken,
            making_room: Mutex::new(()),
            clock: AtomicU64::new(1),
        }
    }

    /// Returns a generation that is alive, held or not, and marks it as used.
    pub(super) fn get(&self, generation: &Generation) -> Option<Arc<Adapter>> {
        let slot = self.slots.get(generation)?;
        slot.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        slot.held.clone().or_else(|| slot.alive.upgrade())
    }

    /// Keeps a generation until it is let go or evicted.
    pub(super) fn hold(&self, adapter: Arc<Adapter>) {
        let used = AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed));
        let slot =
            Slot { alive: Arc::downgrade(&adapter), bytes: adapter.info().bytes, used, held: Some(adapter.clone()) };
        // Counted first: whoever lets it go at once must not count below zero.
        self.held.fetch_add(1, Ordering::Relaxed);
        let before = self.slots.insert(adapter.generation(), slot);
        let was_held = before.as_ref().is_some_and(|before| before.held.is_some());
        self.held.fetch_sub(usize::from(was_held), Ordering::Relaxed);
        // Dropped outside the map: freeing weights takes time.
        drop(before);
    }

    /// Lets a generation go; running leases keep theirs. Returns whether it was held.
    pub(super) fn release(&self, generation: &Generation) -> bool {
        let held = self.slots.get_mut(generation).and_then(|mut slot| slot.held.take());
        let was_held = held.is_some();
        self.held.fetch_sub(usize::from(was_held), Ordering::Relaxed);
        drop(held);
        self.slots.remove_if(generation, |_, slot| slot.held.is_none() && slot.alive.strong_count() == 0);
        was_held
    }

    /// Returns whether a generation is held.
    pub(super) fn holds(&self, generation: &Generation) -> bool {
        self.slots.get(generation).is_some_and(|slot| slot.held.is_some())
    }

    /// Returns how many `Arc`s of a generation are outside this table.
    pub(super) fn leases(&self, generation: &Generation) -> usize {
        self.slots.get(generation).map_or(0, |slot| slot.alive.strong_count() - usize::from(slot.held.is_some()))
    }

    /// Returns the number of generations held.
    pub(super) fn count(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes `needed` bytes, evicting what was used least recently if there is no room; returns how many left.
    ///
    /// What is in `pinned` or leased stays.
    ///
    /// # Errors
    /// [`RegistryError::Budget`], and nothing was evicted.
    pub(super) fn reserve(
        &self,
        needed: u64,
        pinned: &HashSet<Generation>,
    ) -> Result<(Reservation, u64), RegistryError> {
        let _making_room = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        self.slots.retain(|_, slot| slot.alive.strong_count() > 0);
        let mut idle = Vec::new();
        for slot in &self.slots {
            if slot.held.is_some() && slot.alive.strong_count() == 1 && !pinned.contains(slot.key()) {
                idle.push((slot.used.load(Ordering::Relaxed), *slot.key(), slot.bytes));
            }
        }
        let taken = || self.taken.bytes.load(Ordering::Acquire);
        let busy = taken().saturating_sub(idle.iter().map(|(_, _, bytes)| bytes).sum());
        let refused = RegistryError::Budget { needed, budget: self.limit, busy };
        let fits = |taken: u64| taken.checked_add(needed).is_some_and(|sum| sum <= self.limit);
        if !fits(busy) {
            return Err(refused);
        }
        idle.sort_unstable();
        let mut evicted = 0;
        for (_, generation, bytes) in idle {
            if fits(taken()) {
                break;
            }
            // Under the slot's lock nobody can take a lease of it.
            let left = self
                .slots
                .get_mut(&generation)
                .and_then(|mut slot| if slot.alive.strong_count() == 1 { slot.held.take() } else { None });
            if left.is_some() {
                evicted += 1;
                self.held.fetch_sub(1, Ordering::Relaxed);
                tracing::info!(%generation, bytes, "adapter evicted");
            }
            drop(left);
        }
        if !fits(taken()) {
            // A lease began in between.
            return Err(refused);
        }
        self.taken.bytes.fetch_add(needed, Ordering::AcqRel);
        self.taken.show();
        Ok((Reservation { bytes: needed, taken: self.taken.clone() }, evicted))
    }
}
