//! Every change of a name: check, write, show, acknowledge.
//!
//! A change is one transaction together with the answer to its request id; what it means for memory and files is
//! gathered in an [`Aftermath`] and happens after the commit only. Looks nothing up for a request: see `lookup`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lookup::{Info, adapter_entry, alias_entry, alias_record, lock, parse_generation};
use super::{
    AdapterFiles, AdapterRecord, AliasRecord, Demand, Entry, Expected, Lineage, Name, NamedBase, Publish, Reference,
    Registry, RegistryError, RequestKey, directory,
};
use crate::lora::{Adapter, Generation, LoraError};
use crate::model::BaseModel;
use crate::reports::{self, GateError};
use crate::store::{AdapterRow, AliasRow, Catalog, GenerationRow, now, unwritable};

/// Largest change of a logit that rounding alone can make: the last bit of an f32 at 10.
const NOISE: f64 = 1e-6;

/// What a change does outside the database once it is committed.
#[derive(Debug, Default)]
pub(super) struct Aftermath {
    /// Names that stand for something else now, or nothing.
    pub(super) names: Vec<(Name, Option<Entry>)>,
    /// To be held in memory.
    pub(super) hold: Option<Arc<Adapter>>,
    /// Leave memory unless another name leads to them.
    pub(super) retire: Vec<Generation>,
    /// Leave memory whatever leads to them.
    pub(super) unload: Vec<Generation>,
    /// Blobs that rows may not name any more.
    pub(super) orphans: Vec<String>,
}

impl Registry {
    /// Checks, stores, loads and makes current. The same content again is harmless.
    ///
    /// # Errors
    /// Those of [`RegistryError`] that name the adapter, its files, the budget, the request id or the disk.
    pub fn publish(&self, files: AdapterFiles, publish: Publish) -> Result<AdapterRecord, RegistryError> {
        self.publish_from(publish, || Ok(files))
    }

    /// As [`Self::publish`], with the files of a folder below the adapter folder.
    ///
    /// # Errors
    /// As [`Self::publish`]; [`RegistryError::NoAdapterDir`], [`RegistryError::Directory`].
    pub fn publish_directory(&self, directory: &str, publish: Publish) -> Result<AdapterRecord, RegistryError> {
        self.publish_from(publish, || {
            let root = self.settings.adapter_dir.as_ref().ok_or(RegistryError::NoAdapterDir)?;
            directory::read(root, directory, self.settings.max_upload_bytes)
        })
    }

    fn publish_from(
        &self,
        publish: Publish,
        files: impl FnOnce() -> Result<AdapterFiles, RegistryError>,
    ) -> Result<AdapterRecord, RegistryError> {
        let _preparing = lock(&self.preparing);
        let request = publish.request.as_ref();
        let first = self.store.read(|catalog| {
            let first = catalog.answered::<_, RegistryError>(request)?;
            if first.is_none() {
                // Again below, where it counts; here it saves the pass.
                expected_adapter(catalog, &publish)?;
            }
            Ok::<_, RegistryError>(first)
        })?;
        if let Some(first) = first {
            return Ok(first);
        }
        let base = self.base(publish.base.as_deref())?;
        let files = files()?;
        let (adapter, effect) = self.timed(|| self.check(base, &files, publish.allow_no_effect))?;

        let _changing = lock(&self.changing);
        let naming = self.store.naming();
        let mut after = Aftermath::default();
        let stored = self.store_files(files, &mut after);
        let record = stored.and_then(|(config_blob, tensor_blob)| {
            let info = serde_json::to_string(&Info::from(adapter.info())).map_err(unwritable)?;
            let row = GenerationRow {
                adapter: publish.name.to_string(),
                id: adapter.generation().to_string(),
                base: base.info().fingerprint.clone(),
                config_blob,
                tensor_blob,
                info,
                effect,
                bytes: adapter.info().bytes,
                created: now(),
                lineage: None,
            };
            self.commit(request, &mut after, |catalog, after| self.put(catalog, after, &publish, adapter, row))
        });
        naming.sweep(&after.orphans);
        let record = record?;
        tracing::info!(adapter = %publish.name, generation = record.current, "adapter published");
        Ok(record)
    }

    /// Returns the fingerprint of the base model of this name or fingerprint; of the first one for `None`.
    ///
    /// # Errors
    /// [`RegistryError::BaseNotFound`].
    pub fn fingerprint(&self, base: Option<&str>) -> Result<String, RegistryError> {
        Ok(self.base(base)?.info().fingerprint.clone())
    }

    /// Returns whether there is a base model of this fingerprint.
    pub fn serves(&self, fingerprint: &str) -> bool {
        self.bases.iter().any(|base| base.model.info().fingerprint == fingerprint)
    }

    /// Returns the base model of this name or fingerprint.
    fn base(&self, name: Option<&str>) -> Result<&dyn BaseModel, RegistryError> {
        let named =
            |base: &&NamedBase| name.is_none_or(|name| base.name == name || base.model.info().fingerprint == name);
        let known = || self.bases.iter().map(|base| base.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.bases.iter().find(named).map(|base| &*base.model);
        found.ok_or_else(|| RegistryError::BaseNotFound { name: name.unwrap_or_default().to_owned(), known: known() })
    }

    /// Parses, binds, takes bytes, and proves that the adapter does something.
    fn check(
        &self,
        base: &dyn BaseModel,
        files: &AdapterFiles,
        allow_no_effect: bool,
    ) -> Result<(Arc<Adapter>, f64), RegistryError> {
        let adapter = base.load_adapter(&files.config, &files.tensors)?;
        let adapter = match self.memory.get(&adapter.generation()) {
            Some(alive) => alive,
            None => {
                let reserved = self.reserve(adapter.info().bytes)?;
                Arc::new(adapter.with_guard(Box::new(reserved)))
            }
        };
        let effect = base.effect(&adapter)?;
        if !effect.is_finite() {
            return Err(LoraError::Invalid("logits of a fixed prompt are not finite with it".into()).into());
        }
        if effect <= NOISE && !allow_no_effect {
            return Err(RegistryError::NoEffect);
        }
        Ok((adapter, effect))
    }

    /// Writes both files; they are orphans until a row names them.
    fn store_files(&self, files: AdapterFiles, after: &mut Aftermath) -> Result<(String, String), RegistryError> {
        let config = self.store.blobs().put(files.config)?;
        after.orphans.push(config.clone());
        let tensors = self.store.blobs().put(files.tensors)?;
        after.orphans.push(tensors.clone());
        Ok((config, tensors))
    }

    /// Writes the rows of a publish.
    fn put(
        &self,
        catalog: &Catalog<'_>,
        after: &mut Aftermath,
        publish: &Publish,
        adapter: Arc<Adapter>,
        mut row: GenerationRow,
    ) -> Result<AdapterRecord, RegistryError> {
        let before = expected_adapter(catalog, publish)?;
        let name = publish.name.as_str();
        let pinned = publish.pinned.unwrap_or(before.as_ref().is_some_and(|before| before.pinned));
        let current = AdapterRow { name: name.to_owned(), current: row.id.clone(), pinned };
        catalog.put_adapter(&current, row.created)?;
        if let Some(stored) = catalog.generation(name, &row.id)? {
            if before.as_ref().is_some_and(|before| before.current == row.id) {
                row.created = stored.created;
            }
            after.orphans.extend([stored.config_blob, stored.tensor_blob]);
        }
        if let Some(lineage) = &publish.lineage {
            let parent = before.as_ref().map(|before| before.current.clone()).filter(|parent| *parent != row.id);
            let lineage = Lineage { parent, ..lineage.clone() };
            row.lineage = Some(serde_json::to_string(&lineage).map_err(unwritable)?);
        }
        catalog.put_generation(&row)?;

        let aliased: HashSet<_> = catalog.aliases_of(name)?.into_iter().map(|alias| alias.generation).collect();
        if let Some(before) = before
            && before.current != row.id
            && !aliased.contains(&before.current)
        {
            after.retire.push(parse_generation(&before.current)?);
        }
        let held: HashSet<_> =
            catalog.generation_holders(name)?.into_iter().map(|(generation, _)| generation).collect();
        let wanted = |id: &String| *id == row.id || aliased.contains(id) || held.contains(id);
        let old = catalog.generations(name)?.into_iter().filter(|old| !wanted(&old.id));
        for old in old.skip(self.settings.keep_generations) {
            let generation = parse_generation(&old.id)?;
            if self.memory.leases(&generation) > 0 {
                continue;
            }
            catalog.delete_generation(name, &old.id)?;
            after.orphans.extend([old.config_blob, old.tensor_blob]);
            after.retire.push(generation);
        }
        after.names.push((publish.name.clone(), Some(adapter_entry(catalog, &current)?)));
        after.hold = Some(adapter);
        Ok(self.record(catalog, current, after)?)
    }

    /// Brings a stored generation into memory; `pinned` changes whether the adapter stays there.
    ///
    /// # Errors
    /// As [`Self::resolve`]; [`RegistryError::RequestIdReused`].
    pub fn load(
        &self,
        reference: &Reference,
        pinned: Option<bool>,
        request: Option<RequestKey>,
    ) -> Result<AdapterRecord, RegistryError> {
        let request = request.as_ref();
        if let Some(first) = self.store.read(|catalog| catalog.answered::<_, RegistryError>(request))? {
            return Ok(first);
        }
        let (name, generation) = self.find(reference)?;
        let adapter = self.bring(&name, generation)?;
        if pinned == Some(true) {
            let (name, current) = self.find(&Reference { name: name.clone(), generation: None })?;
            self.bring(&name, current)?;
        }
        let _changing = lock(&self.changing);
        self.commit(request, &mut Aftermath::default(), |catalog, after| {
            let mut row = stored_adapter(catalog, &name)?;
            if let Some(pinned) = pinned {
                row.pinned = pinned;
                catalog.put_adapter(&row, now())?;
                after.names.push((name.clone(), Some(adapter_entry(catalog, &row)?)));
            }
            after.hold = Some(adapter);
            Ok(self.record(catalog, row, after)?)
        })
    }

    /// Takes one generation, or all, out of memory; running leases keep theirs. An alias stands for its generation.
    ///
    /// # Errors
    /// [`RegistryError::AdapterNotFound`], [`RegistryError::Pinned`].
    pub fn unload(&self, reference: &Reference, request: Option<RequestKey>) -> Result<AdapterRecord, RegistryError> {
        let _changing = lock(&self.changing);
        let record = self.commit(request.as_ref(), &mut Aftermath::default(), |catalog, after| {
            let (name, generation) = self.find(reference)?;
            let row = stored_adapter(catalog, &name)?;
            if name == reference.name && reference.generation.is_none() {
                for stored in catalog.generations(name.as_str())? {
                    after.unload.push(parse_generation(&stored.id)?);
                }
            } else {
                after.unload.push(generation);
            }
            // Another adapter may have the same content.
            if let Some((pinned, _)) =
                self.names.pinned().into_iter().find(|(_, current)| after.unload.contains(current))
            {
                return Err(RegistryError::Pinned(pinned.to_string()));
            }
            Ok(self.record(catalog, row, after)?)
        })?;
        tracing::info!(adapter = %reference, "adapter unloaded");
        Ok(record)
    }

    /// Deletes an adapter and its generations; running leases keep theirs.
    ///
    /// # Errors
    /// [`RegistryError::AdapterNotFound`], [`RegistryError::GenerationMismatch`], [`RegistryError::InUse`],
    /// [`RegistryError::Held`].
    pub fn delete(&self, name: &Name, expected: Expected, request: Option<RequestKey>) -> Result<(), RegistryError> {
        let _changing = lock(&self.changing);
        let naming = self.store.naming();
        let mut after = Aftermath::default();
        self.commit(request.as_ref(), &mut after, |catalog, after| {
            let row = stored_adapter(catalog, name)?;
            compare(name, &expected, Some(&row.current))?;
            let aliases: Vec<_> = catalog.aliases_of(name.as_str())?.into_iter().map(|alias| alias.name).collect();
            if !aliases.is_empty() {
                return Err(RegistryError::InUse { name: name.to_string(), aliases });
            }
            let mut jobs: Vec<_> = catalog.generation_holders(name.as_str())?.into_iter().map(|(_, job)| job).collect();
            if !jobs.is_empty() {
                jobs.dedup();
                return Err(RegistryError::Held { name: name.to_string(), jobs });
            }
            for stored in catalog.generations(name.as_str())? {
                after.retire.push(parse_generation(&stored.id)?);
                after.orphans.extend([stored.config_blob, stored.tensor_blob]);
            }
            catalog.delete_adapter(name.as_str())?;
            after.names.push((name.clone(), None));
            Ok(())
        })?;
        naming.sweep(&after.orphans);
        if self.names.get(name).is_none() {
            self.metrics.forget_adapter(name.as_str());
            // Another one may have its label.
            self.names.each_adapter(|name| {
                self.metrics.adapter_label(name.as_str());
            });
            self.show();
        }
        tracing::info!(adapter = %name, "adapter deleted");
        Ok(())
    }

    /// Points an alias at a generation; `target` may be an alias itself and stands for its generation then.
    ///
    /// # Errors
    /// [`RegistryError::AdapterNotFound`], [`RegistryError::NameTaken`], [`RegistryError::GenerationMismatch`];
    /// [`RegistryError::Gate`] when the target has no report that the alias's policy passes.
    pub fn set_alias(
        &self,
        alias: &Name,
        target: &Reference,
        expected: Expected,
        demand: Demand,
        request: Option<RequestKey>,
    ) -> Result<AliasRecord, RegistryError> {
        let _changing = lock(&self.changing);
        let record = self.commit(request.as_ref(), &mut Aftermath::default(), |catalog, after| {
            if catalog.adapter(alias.as_str())?.is_some() {
                return Err(RegistryError::NameTaken(alias.to_string(), "an adapter"));
            }
            let before = catalog.alias(alias.as_str())?;
            compare(alias, &expected, before.as_ref().map(|before| before.generation.as_str()))?;
            let (adapter, generation) = self.find(target)?;
            let policy = match &demand {
                Demand::AsItWas => before.as_ref().and_then(|before| before.policy.clone()),
                Demand::Nothing => None,
                Demand::Policy(policy) => Some(policy.to_string()),
            };
            if let Some(policy) = &policy {
                let target = (adapter.as_str(), generation.to_string());
                let checked = reports::gate(catalog, self.store.blobs(), policy, (target.0, &target.1));
                match &checked {
                    Ok(_) => self.metrics.audits.count_check(true),
                    Err(GateError::Failed { .. }) => self.metrics.audits.count_check(false),
                    Err(GateError::PolicyNotFound(_) | GateError::Store(_)) => {}
                }
                checked?;
            }
            let row = AliasRow {
                name: alias.to_string(),
                adapter: adapter.to_string(),
                generation: generation.to_string(),
                updated: now(),
                policy,
            };
            catalog.put_alias(&row)?;
            after.names.push((alias.clone(), Some(alias_entry(&row)?)));
            if let Some(before) = before {
                after.retire.push(parse_generation(&before.generation)?);
            }
            Ok(alias_record(row))
        })?;
        tracing::info!(%alias, adapter = record.adapter, generation = record.generation, "alias set");
        self.show_gate(alias);
        Ok(record)
    }

    /// Shows the gate of an alias that was moved or removed, which has happened even where that fails.
    fn show_gate(&self, alias: &Name) {
        if let Err(error) = reports::show_gate(&self.store, &self.metrics, alias.as_str()) {
            tracing::error!(%alias, error = &error as &dyn std::error::Error, "a gate cannot be shown");
        }
    }

    /// Removes an alias.
    ///
    /// # Errors
    /// [`RegistryError::AliasNotFound`], [`RegistryError::GenerationMismatch`].
    pub fn delete_alias(
        &self,
        name: &Name,
        expected: Expected,
        request: Option<RequestKey>,
    ) -> Result<(), RegistryError> {
        let _changing = lock(&self.changing);
        self.commit(request.as_ref(), &mut Aftermath::default(), |catalog, after| {
            let row = catalog.alias(name.as_str())?;
            let row = row.ok_or_else(|| RegistryError::AliasNotFound(name.to_string()))?;
            compare(name, &expected, Some(&row.generation))?;
            catalog.delete_alias(name.as_str())?;
            after.names.push((name.clone(), None));
            after.retire.push(parse_generation(&row.generation)?);
            Ok(())
        })?;
        self.show_gate(name);
        tracing::info!(alias = %name, "alias deleted");
        Ok(())
    }

    /// Runs `change` and keeps its answer in one transaction, or returns the first answer to this request id; then
    /// shows the change in the table. The caller holds `changing`.
    fn commit<T: Serialize + DeserializeOwned>(
        &self,
        request: Option<&RequestKey>,
        after: &mut Aftermath,
        change: impl FnOnce(&Catalog<'_>, &mut Aftermath) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let answer = self.store.change_once(request, |catalog| change(catalog, after))?;
        // Weights first: a name must never lead to what is not there yet.
        if let Some(adapter) = after.hold.take()
            && !self.memory.holds(&adapter.generation())
        {
            self.memory.hold(adapter);
        }
        if !after.names.is_empty() {
            let begin = Instant::now();
            for (name, entry) in after.names.drain(..) {
                self.put_name(name, entry);
            }
            self.metrics.adapter_swap_stall.observe(begin.elapsed().as_secs_f64());
        }
        for generation in after.retire.drain(..) {
            if !self.names.lead_to(&generation) {
                self.memory.release(&generation);
            }
        }
        for generation in after.unload.drain(..) {
            self.memory.release(&generation);
        }
        self.show();
        Ok(answer)
    }
}

/// Returns what a publish replaces, if it may.
fn expected_adapter(catalog: &Catalog<'_>, publish: &Publish) -> Result<Option<AdapterRow>, RegistryError> {
    let name = &publish.name;
    if catalog.alias(name.as_str())?.is_some() {
        return Err(RegistryError::NameTaken(name.to_string(), "an alias"));
    }
    let before = catalog.adapter(name.as_str())?;
    compare(name, &publish.expected, before.as_ref().map(|before| before.current.as_str()))?;
    Ok(before)
}

fn stored_adapter(catalog: &Catalog<'_>, name: &Name) -> Result<AdapterRow, RegistryError> {
    catalog.adapter(name.as_str())?.ok_or_else(|| RegistryError::AdapterNotFound(name.to_string()))
}

/// Returns whether what is current is what a caller expects.
pub(crate) fn compare(name: &Name, expected: &Expected, actual: Option<&str>) -> Result<(), RegistryError> {
    let expected = match expected {
        Expected::Any => return Ok(()),
        Expected::Absent => String::new(),
        Expected::Generation(generation) => generation.to_string(),
    };
    let actual = actual.unwrap_or("");
    if expected == actual {
        return Ok(());
    }
    Err(RegistryError::GenerationMismatch { name: name.to_string(), expected, actual: actual.to_owned() })
}
