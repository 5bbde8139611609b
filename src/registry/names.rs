//! What each name stands for.
//!
//! A table in memory beside the store's rows, and how many names lead to a generation: what lets a name stand for
//! something else looks at no other name, however many there are. Knows neither disk nor weights.

use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::one::Ref;

use super::Name;
use crate::lora::Generation;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// An adapter.
    Adapter {
        /// What the next request gets.
        current: Generation,
        /// Whether the current generation stays in memory.
        pinned: bool,
        /// All that are stored, newest first.
        generations: Vec<Generation>,
    },
    /// An alias.
    Alias {
        /// Adapter.
        adapter: Name,
        /// Its generation.
        generation: Generation,
    },
}

impl Entry {
    /// Returns what the next request gets.
    fn leads_to(&self) -> Generation {
        match self {
            Self::Adapter { current: generation, .. } | Self::Alias { generation, .. } => *generation,
        }
    }
}

/// All names.
#[derive(Debug, Default)]
pub(super) struct Names {
    entries: DashMap<Name, Entry>,
    /// How many names lead to each generation; no entry means none.
    leading: DashMap<Generation, usize>,
    adapters: AtomicUsize,
}

impl Names {
    /// Returns what a name stands for.
    pub(super) fn get(&self, name: &Name) -> Option<Ref<'_, Name, Entry>> {
        self.entries.get(name)
    }

    /// Lets a name stand for something, or for nothing. Only one caller at a time may change names.
    pub(super) fn put(&self, name: Name, entry: Option<Entry>) {
        // Who is led to by both is led to throughout.
        if let Some(entry) = &entry {
            *self.leading.entry(entry.leads_to()).or_default() += 1;
            self.adapters.fetch_add(usize::from(matches!(entry, Entry::Adapter { .. })), Ordering::Relaxed);
        }
        let before = match entry {
            Some(entry) => self.entries.insert(name, entry),
            None => self.entries.remove(&name).map(|(_, entry)| entry),
        };
        if let Some(before) = before {
            let left = before.leads_to();
            self.leading.entry(left).and_modify(|count| *count -= 1);
            self.leading.remove_if(&left, |_, count| *count == 0);
            self.adapters.fetch_sub(usize::from(matches!(before, Entry::Adapter { .. })), Ordering::Relaxed);
        }
    }

    /// Returns how many adapters there are.
    pub(super) fn adapters(&self) -> usize {
        self.adapters.load(Ordering::Relaxed)
    }

    /// Returns whether a name leads to this generation.
    pub(super) fn lead_to(&self, generation: &Generation) -> bool {
        self.leading.contains_key(generation)
    }

    /// Returns whether an adapter has this generation. Looks at all names.
    pub(super) fn has_stored(&self, generation: &Generation) -> bool {
        self.entries.iter().any(|entry| match entry.value() {
            Entry::Adapter { generations, .. } => generations.contains(generation),
            Entry::Alias { .. } => false,
        })
    }

    /// Returns the current generations of pinned adapters. Looks at all names.
    pub(super) fn pinned(&self) -> Vec<(Name, Generation)> {
        let pinned = self.entries.iter().filter_map(|entry| match entry.value() {
            Entry::Adapter { current, pinned: true, .. } => Some((entry.key().clone(), *current)),
            Entry::Adapter { .. } | Entry::Alias { .. } => None,
        });
        pinned.collect()
    }

    /// Shows the name of each adapter to `see`.
    pub(super) fn each_adapter(&self, mut see: impl FnMut(&Name)) {
        for entry in &self.entries {
            if matches!(entry.value(), Entry::Adapter { .. }) {
                see(entry.key());
            }
        }
    }

    /// Returns how many names there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn generation(digit: char) -> Generation {
        Generation::parse(&digit.to_string().repeat(64)).unwrap()
    }

    fn adapter(current: char) -> Option<Entry> {
        Some(Entry::Adapter { current: generation(current), pinned: false, generations: vec![generation(current)] })
    }

    fn alias(of: char) -> Option<Entry> {
        Some(Entry::Alias { adapter: name("poet"), generation: generation(of) })
    }

    #[test]
    fn a_generation_is_led_to_until_the_last_name_leaves_it() {
        let names = Names::default();
        let led = || ['a', 'b'].map(|digit| names.lead_to(&generation(digit)));
        names.put(name("poet"), adapter('a'));
        names.put(name("live"), alias('a'));
        assert_eq!((led(), names.adapters(), names.len()), ([true, false], 1, 2));
        // The same again changes nothing.
        names.put(name("poet"), adapter('a'));
        names.put(name("poet"), adapter('b'));
        assert_eq!((led(), names.adapters()), ([true, true], 1));
        names.put(name("live"), alias('b'));
        assert_eq!(led(), [false, true]);
        names.put(name("poet"), None);
        names.put(name("poet"), None);
        assert_eq!((led(), names.adapters(), names.len()), ([false, true], 0, 1));
        names.put(name("live"), None);
        assert_eq!((led(), names.leading.len()), ([false, false], 0));
    }
}
