//! From a name to weights and records: the table, then the disk.
//!
//! Changes no row. A request that finds its weights in memory takes no lock but two shards of two maps; all others wait
//! for one reader per generation.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::changes::Aftermath;
use super::kind;
use super::memory::Reservation;
use super::{
    AdapterRecord, AliasRecord, Entry, GenerationRecord, Name, Reference, Registry, RegistryError, StoredFile,
};
use crate::lora::{Adapter, AdapterInfo, Generation, Kind, LoraError};
use crate::store::{AdapterRow, AliasRow, Catalog, StoreError};

/// How often a look-up begins again when the name changes under it.
const ATTEMPTS: usize = 8;

/// [`AdapterInfo`] as it is stored.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Info {
    #[serde(alias = "dora", deserialize_with = "kind::read")]
    kind: Kind,
    rank: usize,
    alpha: f64,
    modules: Vec<String>,
    task_type: String,
}

impl From<&AdapterInfo> for Info {
    fn from(info: &AdapterInfo) -> Self {
        Self {
            kind: info.kind,
            rank: info.rank,
            alpha: info.alpha,
            modules: info.modules.clone(),
            task_type: info.task_type.clone(),
        }
    }
}

impl Registry {
    /// Resolves a reference whose weights are in memory, without blocking; `None` when the disk must be asked.
    pub fn resident(&self, reference: &Reference) -> Option<Arc<Adapter>> {
        for _ in 0..ATTEMPTS {
            let (_, generation) = self.target(reference)?;
            if let Some(adapter) = self.memory.get(&generation) {
                return Some(adapter);
            }
            // A swap may have fallen between the two look-ups; then the new generation is in memory.
            if self.target(reference)?.1 == generation {
                break;
            }
        }
        None
    }

    /// Resolves a reference, loading the weights if they are on disk.
    ///
    /// # Errors
    /// [`RegistryError::AdapterNotFound`] (also when the digits fit several generations), [`RegistryError::Budget`],
    /// [`RegistryError::Lora`] with a mismatch when it belongs to another base model, [`RegistryError::Store`].
    pub fn resolve(&self, reference: &Reference) -> Result<Arc<Adapter>, RegistryError> {
        let mut attempt = 1;
        loop {
            if let Some(adapter) = self.resident(reference) {
                return Ok(adapter);
            }
            let (name, generation) = self.find(reference)?;
            match self.bring(&name, generation) {
                // Replaced and pruned while it was being read: what the name stands for now is the answer.
                Err(_) if attempt < ATTEMPTS && self.find(reference)?.1 != generation => attempt += 1,
                result => return result,
            }
        }
    }

    /// Says which generation of which adapter a reference means now.
    ///
    /// # Errors
    /// [`RegistryError::AdapterNotFound`], also when the digits fit several generations.
    pub fn locate(&self, reference: &Reference) -> Result<(Name, Generation), RegistryError> {
        self.find(reference)
    }

    /// Returns one adapter, by name or alias.
    ///
    /// # Errors
    /// [`RegistryError::AdapterNotFound`]; when the store fails.
    pub fn get(&self, name: &Name) -> Result<AdapterRecord, RegistryError> {
        self.store.read(|catalog| {
            let adapter = match catalog.alias(name.as_str())? {
                Some(alias) => alias.adapter,
                None => name.to_string(),
            };
            let row = catalog.adapter(&adapter)?;
            let row = row.ok_or_else(|| RegistryError::AdapterNotFound(name.to_string()))?;
            Ok(self.record(catalog, row, &Aftermath::default())?)
        })
    }

    /// Returns at most `limit` adapters whose name follows `after`, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<AdapterRecord>, RegistryError> {
        self.store.read(|catalog| {
            let rows = catalog.adapters(after.unwrap_or(""), limit)?;
            let now = Aftermath::default();
            Ok(rows.into_iter().map(|row| self.record(catalog, row, &now)).collect::<Result<_, _>>()?)
        })
    }

    /// Returns the kind of an adapter, the fingerprint of its base and its two stored files, checked against their digests.
    ///
    /// A path holds the same bytes for as long as the generation is stored; an open file outlives even that.
    ///
    /// # Errors
    /// [`RegistryError::AdapterNotFound`], [`StoreError::Corrupt`].
    pub fn files(&self, reference: &Reference) -> Result<(Kind, String, Vec<StoredFile>), RegistryError> {
        let (name, generation) = self.find(reference)?;
        let row = self.store.read(|catalog| catalog.generation(name.as_str(), &generation.to_string()))?;
        let row = row.ok_or_else(|| RegistryError::AdapterNotFound(reference.to_string()))?;
        let file = |name, sha256: String| -> Result<_, StoreError> {
            let (path, size) = self.store.blobs().check(&sha256)?;
            Ok(StoredFile { name, path, size, sha256 })
        };
        let info: Info = serde_json::from_str(&row.info).map_err(|_| corrupt_row(&row.adapter))?;
        let [config, tensors] = kind::files(info.kind);
        Ok((info.kind, row.base, vec![file(config, row.config_blob)?, file(tensors, row.tensor_blob)?]))
    }

    /// Returns one alias.
    ///
    /// # Errors
    /// [`RegistryError::AliasNotFound`]; when the store fails.
    pub fn alias(&self, name: &Name) -> Result<AliasRecord, RegistryError> {
        let row = self.store.read(|catalog| catalog.alias(name.as_str()))?;
        row.map(alias_record).ok_or_else(|| RegistryError::AliasNotFound(name.to_string()))
    }

    /// Returns at most `limit` aliases whose name follows `after`, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn aliases(&self, after: Option<&str>, limit: usize) -> Result<Vec<AliasRecord>, RegistryError> {
        let rows = self.store.read(|catalog| catalog.aliases(after.unwrap_or(""), limit))?;
        Ok(rows.into_iter().map(alias_record).collect())
    }

    /// Says which generation of which adapter a reference means.
    pub(super) fn target(&self, reference: &Reference) -> Option<(Name, Generation)> {
        let (adapter, generation) = match &*self.names.get(&reference.name)? {
            Entry::Adapter { current, .. } => (reference.name.clone(), *current),
            Entry::Alias { adapter, generation } => (adapter.clone(), *generation),
        };
        let Some(digits) = &reference.generation else { return Some((adapter, generation)) };
        let generation = match &*self.names.get(&adapter)? {
            Entry::Adapter { generations, .. } => {
                let mut fitting = generations.iter().filter(|id| id.to_string().starts_with(digits));
                let only = fitting.next()?;
                fitting.next().is_none().then_some(*only)?
            }
            Entry::Alias { .. } => return None,
        };
        Some((adapter, generation))
    }

    pub(super) fn find(&self, reference: &Reference) -> Result<(Name, Generation), RegistryError> {
        self.target(reference).ok_or_else(|| RegistryError::AdapterNotFound(reference.to_string()))
    }

    /// Makes sure that a stored generation is in memory; parallel callers wait for one reader.
    pub(super) fn bring(&self, name: &Name, generation: Generation) -> Result<Arc<Adapter>, RegistryError> {
        let gate = self.loading.entry(generation).or_default().clone();
        let result = {
            let _reading = lock(&gate);
            match self.memory.get(&generation) {
                Some(adapter) => {
                    if !self.memory.holds(&generation) {
                        self.memory.hold(adapter.clone());
                    }
                    Ok(adapter)
                }
                None => self.timed(|| self.read(name, generation)),
            }
        };
        drop(gate);
        self.loading.remove_if(&generation, |_, gate| Arc::strong_count(gate) == 1);
        // Deleted or pruned in between: then nobody else will let it go.
        if !self.names.has_stored(&generation) {
            self.memory.release(&generation);
        }
        self.show();
        result
    }

    /// Reads a stored generation; bytes are taken before they are read.
    fn read(&self, name: &Name, generation: Generation) -> Result<Arc<Adapter>, RegistryError> {
        let row = self.store.read(|catalog| catalog.generation(name.as_str(), &generation.to_string()))?;
        let row = row.ok_or_else(|| RegistryError::AdapterNotFound(format!("{name}@{generation}")))?;
        let base = self.bases.iter().find(|base| base.model.info().fingerprint == row.base).ok_or_else(|| {
            let known: Vec<&str> = self.bases.iter().map(|base| base.model.info().fingerprint.as_str()).collect();
            LoraError::Mismatch(format!("`{name}` was made for base model {}, not {}", row.base, known.join(" or ")))
        })?;
        let mut reserved = self.reserve(row.bytes)?;
        let config = self.store.blobs().get(&row.config_blob)?;
        let tensors = self.store.blobs().get(&row.tensor_blob)?;
        let adapter = base.model.load_adapter(&config, &tensors)?;
        if adapter.generation() != generation {
            return Err(StoreError::Corrupt(format!("{name}@{generation}")).into());
        }
        // A row written by another version, or beside weights of another format, may count otherwise.
        reserved.shrink(adapter.info().bytes);
        let more = self.reserve(adapter.info().bytes.saturating_sub(row.bytes))?;
        let adapter = Arc::new(adapter.with_guard(Box::new((reserved, more))));
        self.memory.hold(adapter.clone());
        tracing::info!(adapter = %name, %generation, bytes = adapter.info().bytes, "adapter loaded");
        Ok(adapter)
    }

    pub(super) fn reserve(&self, bytes: u64) -> Result<Reservation, RegistryError> {
        let pinned: HashSet<_> = self.names.pinned().into_iter().map(|(_, generation)| generation).collect();
        let (reservation, evicted) = self.memory.reserve(bytes, &pinned)?;
        if evicted > 0 {
            self.metrics.adapter_evictions.inc_by(evicted);
            self.show();
        }
        Ok(reservation)
    }

    /// Records how long a load took and how it ended.
    pub(super) fn timed<T>(&self, load: impl FnOnce() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let begin = Instant::now();
        let result = load();
        self.metrics.adapter_load_seconds.observe(begin.elapsed().as_secs_f64());
        let outcome = match &result {
            Ok(_) => "ok",
            Err(RegistryError::Lora(_) | RegistryError::NoEffect) => "invalid",
            Err(_) => "error",
        };
        self.metrics.adapter_loads.with_label_values(&[outcome]).inc();
        result
    }

    /// Shows names and memory in the metrics.
    pub(super) fn show(&self) {
        for name in self.metrics.labelled_adapters() {
            let entry = Name::parse(&name).and_then(|name| self.names.get(&name));
            if let Some(Entry::Adapter { current, .. }) = entry.as_deref() {
                let resident = i64::from(self.memory.holds(current));
                self.metrics.adapter_resident.with_label_values(&[&name]).set(resident);
            }
        }
        let shown = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.adapters_registered.set(shown(self.names.adapters()));
        self.metrics.adapters_resident.set(shown(self.memory.count()));
    }

    /// Lets a name stand for something, or for nothing. The caller holds `changing`, or opens the registry.
    pub(super) fn put_name(&self, name: Name, entry: Option<Entry>) {
        if let Some(Entry::Adapter { .. }) = entry {
            // The first ones have labels of their own.
            self.metrics.adapter_label(name.as_str());
        }
        self.names.put(name, entry);
    }

    /// Fills the table of names from the store.
    pub(super) fn read_names(&self) -> Result<(), RegistryError> {
        self.store.read(|catalog| {
            for row in catalog.adapters("", usize::MAX)? {
                self.put_name(parse_name(&row.name)?, Some(adapter_entry(catalog, &row)?));
            }
            for row in catalog.aliases("", usize::MAX)? {
                self.put_name(parse_name(&row.name)?, Some(alias_entry(&row)?));
            }
            Ok(())
        })
    }

    /// Describes an adapter as it is once `after` has happened.
    pub(super) fn record(
        &self,
        catalog: &Catalog<'_>,
        row: AdapterRow,
        after: &Aftermath,
    ) -> Result<AdapterRecord, StoreError> {
        let rows = catalog.generations(&row.name)?;
        let aliases = catalog.aliases_of(&row.name)?.into_iter().map(|alias| alias.name).collect();
        let current = rows.iter().find(|generation| generation.id == row.current);
        let current = current.ok_or_else(|| corrupt_row(&row.name))?;
        let info: Info = serde_json::from_str(&current.info).map_err(|_| corrupt_row(&row.name))?;
        let base_fingerprint = current.base.clone();
        let mut generations = Vec::with_capacity(rows.len());
        for stored in rows {
            let id = parse_generation(&stored.id)?;
            let held = after.hold.as_ref().is_some_and(|adapter| adapter.generation() == id);
            let leaves = after.retire.contains(&id) || after.unload.contains(&id);
            let lineage = stored.lineage.as_deref().map(serde_json::from_str).transpose();
            let lineage = lineage.map_err(|_| corrupt_row(&stored.id))?;
            // The change that is being made has one itself.
            let leases = self.memory.leases(&id).saturating_sub(usize::from(held));
            generations.push(GenerationRecord {
                id: stored.id,
                created: time(stored.created),
                resident: held || (!leaves && self.memory.holds(&id)),
                bytes: stored.bytes,
                leases: u32::try_from(leases).unwrap_or(u32::MAX),
                effect: stored.effect,
                lineage,
            });
        }
        Ok(AdapterRecord {
            name: row.name,
            current: row.current,
            base_fingerprint,
            kind: info.kind,
            rank: info.rank,
            alpha: info.alpha,
            modules: info.modules,
            task_type: info.task_type,
            pinned: row.pinned,
            generations,
            aliases,
        })
    }
}

pub(super) fn adapter_entry(catalog: &Catalog<'_>, row: &AdapterRow) -> Result<Entry, StoreError> {
    let generations = catalog.generations(&row.name)?;
    let generations = generations.iter().map(|row| parse_generation(&row.id)).collect::<Result<_, _>>()?;
    Ok(Entry::Adapter { current: parse_generation(&row.current)?, pinned: row.pinned, generations })
}

pub(super) fn alias_entry(row: &AliasRow) -> Result<Entry, StoreError> {
    Ok(Entry::Alias { adapter: parse_name(&row.adapter)?, generation: parse_generation(&row.generation)? })
}

pub(super) fn alias_record(row: AliasRow) -> AliasRecord {
    let AliasRow { name, adapter, generation, updated, policy } = row;
    AliasRecord { name, adapter, generation, updated: time(updated), policy }
}

pub(super) fn parse_generation(id: &str) -> Result<Generation, StoreError> {
    Generation::parse(id).ok_or_else(|| corrupt_row(id))
}

fn parse_name(name: &str) -> Result<Name, StoreError> {
    Name::parse(name).ok_or_else(|| corrupt_row(name))
}

fn corrupt_row(of: &str) -> StoreError {
    StoreError::Corrupt(format!("the record of `{of}`"))
}

fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

pub(super) fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    // It guards no value that a panic could leave half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
