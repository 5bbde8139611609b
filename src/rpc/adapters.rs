//! AdapterService: checks names, asks the registry off the async threads, and maps its records.
//!
//! Keeps nothing: idempotency, transactions and files are the registry's.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::context::Context;
use super::download;
use super::fields::{checked, name, next_page, page, reference, request_id, request_key, timestamp};
use super::info::count;
use super::page::PageTokens;
use super::pb;
use super::services::Companions;
use super::services::in_registry;
use super::training;
use super::upload;
use super::violations::Violations;
use crate::lora::{Generation, Kind};
use crate::registry::{
    AdapterFiles, AdapterRecord, AliasRecord, Demand, Expected, GenerationRecord, Publish, Reference, Registry,
};

/// Answers AdapterService.
#[derive(Debug)]
pub(super) struct Adapters {
    pub(super) registry: Arc<Registry>,
    pub(super) pages: PageTokens,
    /// Memory for uploads, see `upload`.
    pub(super) upload_memory: Arc<Semaphore>,
    pub(super) max_upload_bytes: u64,
    /// What stands beside a whole model.
    /// Files that go with a whole model, by the fingerprint of its base.
    pub(super) companions: Arc<Companions>,
}

/// A name and, in a field of its own, a generation that may be empty.
fn parts(v: &mut Violations, text: &str, generation: &str) -> Option<Reference> {
    let name = name(v, "name", text);
    if generation.is_empty() {
        return name.map(|name| Reference { name, generation: None });
    }
    let whole = Reference::parse(&format!("x@{generation}"));
    v.require("generation", whole.is_some(), "must be 8 to 64 hexadecimal digits");
    name.zip(whole).map(|(name, whole)| Reference { name, generation: whole.generation })
}

pub(super) fn expected(v: &mut Violations, field: &str, text: Option<&str>) -> Expected {
    match text {
        None => Expected::Any,
        Some("") => Expected::Absent,
        Some(text) => match Generation::parse(text) {
            Some(generation) => Expected::Generation(generation),
            None => {
                v.add(field, "must be 64 hexadecimal digits or empty");
                Expected::Any
            }
        },
    }
}

fn generation_out(record: GenerationRecord) -> pb::Generation {
    let residency = if record.resident { pb::Residency::Resident } else { pb::Residency::OnDisk };
    pb::Generation {
        id: record.id,
        create_time: Some(timestamp(record.created)),
        residency: residency.into(),
        bytes: record.bytes,
        active_leases: record.leases,
        effect: record.effect,
        lineage: record.lineage.map(training::lineage_out),
    }
}

fn adapter_out(record: AdapterRecord) -> pb::Adapter {
    pb::Adapter {
        name: record.name,
        generation: record.current,
        base_fingerprint: record.base_fingerprint,
        method: record.kind.as_str().to_owned(),
        rank: count(record.rank),
        alpha: record.alpha,
        modules: record.modules,
        task_type: record.task_type,
        pinned: record.pinned,
        generations: record.generations.into_iter().map(generation_out).collect(),
        aliases: record.aliases,
    }
}

fn alias_out(record: AliasRecord) -> pb::Alias {
    pb::Alias {
        name: record.name,
        adapter: record.adapter,
        generation: record.generation,
        update_time: Some(timestamp(record.updated)),
        policy: record.policy.unwrap_or_default(),
    }
}

fn demand(v: &mut Violations, wire: Option<&str>) -> Demand {
    match wire {
        None => Demand::AsItWas,
        Some("") => Demand::Nothing,
        Some(policy) => name(v, "policy", policy).map_or(Demand::AsItWas, Demand::Policy),
    }
}

/// Returns the name of a base model, if one is given.
fn named_base(wire: &str) -> Option<String> {
    (!wire.is_empty()).then(|| wire.to_owned())
}

/// Configuration and tensors of an adapter: of a PEFT folder, or of a whole model.
const FILES: [[&str; 2]; 2] =
    [["adapter_config.json", "adapter_model.safetensors"], ["config.json", "model.safetensors"]];

impl upload::Message for pb::UploadAdapterRequest {
    type Header = pb::UploadAdapterHeader;

    fn part(self) -> Option<upload::Part<Self::Header>> {
        self.part.map(|part| match part {
            pb::upload_adapter_request::Part::Header(header) => upload::Part::Header(header),
            pb::upload_adapter_request::Part::Chunk(chunk) => upload::Part::Chunk(chunk),
        })
    }
}

/// Checks that a header announces one of the pairs of [`FILES`], and puts them into that order.
fn announced(header: &mut pb::UploadAdapterHeader, v: &mut Violations) -> [upload::Announced; 2] {
    header.files.truncate(FILES[0].len() + 1);
    header.files.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<_> = header.files.iter().map(|file| file.name.as_str()).collect();
    let found = FILES.iter().find(|files| names == **files);
    let rule = "must be adapter_config.json and adapter_model.safetensors, or config.json and model.safetensors";
    v.require("header.files", found.is_some(), rule);
    let pair = *found.unwrap_or(&FILES[0]);
    let mut files = header.files.iter().enumerate();
    pair.map(|name| {
        let (index, file) = files.next().map_or_else(Default::default, |(index, file)| (index, file.clone()));
        let field = format!("header.files[{index}]");
        upload::Announced { name, field, size: file.size, sha256: file.sha256 }
    })
}

impl Adapters {
    /// Runs `work` on the registry, off the async threads and to its end.
    async fn ask<T: Send + 'static>(
        &self,
        context: &Context,
        work: impl FnOnce(&Registry) -> Result<T, crate::registry::RegistryError> + Send + 'static,
    ) -> Result<T, Status> {
        let registry = Arc::clone(&self.registry);
        in_registry(context, move || work(&registry)).await
    }
}

#[tonic::async_trait]
impl pb::adapter_service_server::AdapterService for Adapters {
    type DownloadAdapterStream = Pin<Box<dyn Stream<Item = Result<pb::DownloadAdapterResponse, Status>> + Send>>;

    async fn upload_adapter(
        &self,
        request: Request<Streaming<pb::UploadAdapterRequest>>,
    ) -> Result<Response<pb::Adapter>, Status> {
        let context = Context::of(&request);
        let mut stream = request.into_inner();
        let check = |header: &mut pb::UploadAdapterHeader, v: &mut Violations| {
            let expected = expected(v, "header.expected_generation", header.expected_generation.as_deref());
            request_id(v, "header.request_id", &header.request_id);
            let name = name(v, "header.name", &header.name);
            (announced(header, v), name.map(|name| (name, expected)))
        };
        let upload::Upload { checked: (name, expected), mut header, files, memory } =
            upload::receive(&mut stream, &self.upload_memory, self.max_upload_bytes, check).await?;
        for (info, file) in header.files.iter_mut().zip(&files) {
            info.sha256.clone_from(&file.sha256);
        }
        let [config, tensors] = files.map(|file| file.bytes);
        let files = AdapterFiles { config, tensors };
        let id = std::mem::take(&mut header.request_id);
        let request = request_key("UploadAdapter", id, &header.encode_to_vec());
        let (pinned, allow_no_effect) = (header.pinned, header.allow_no_effect);
        let base = named_base(&header.base_model);
        let publish = Publish { name, base, expected, pinned, allow_no_effect, request, lineage: None };
        let work = move |registry: &Registry| {
            let record = registry.publish(files, publish);
            drop(memory);
            record
        };
        Ok(Response::new(adapter_out(self.ask(&context, work).await?)))
    }

    async fn load_adapter(&self, request: Request<pb::LoadAdapterRequest>) -> Result<Response<pb::Adapter>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("LoadAdapter", id, &wire.encode_to_vec());
        let reference = parts(&mut v, &wire.name, &wire.generation);
        let expected = expected(&mut v, "expected_generation", wire.expected_generation.as_deref());
        let pinned = wire.pinned;
        if wire.directory.is_empty() {
            v.require("expected_generation", expected == Expected::Any, "is for publishing from a directory");
            v.require("base_model", wire.base_model.is_empty(), "is for publishing from a directory");
            v.require("allow_no_effect", !wire.allow_no_effect, "is for publishing from a directory");
            let reference = checked(v, reference)?;
            let work = move |registry: &Registry| registry.load(&reference, pinned, request);
            return Ok(Response::new(adapter_out(self.ask(&context, work).await?)));
        }
        v.require("generation", wire.generation.is_empty(), "is for stored adapters: leave directory empty");
        v.require("directory", wire.directory.len() <= 255, "must be at most 255 bytes");
        let allow_no_effect = wire.allow_no_effect;
        let base = named_base(&wire.base_model);
        let lineage = None;
        let publish =
            reference.map(|r| Publish { name: r.name, base, expected, pinned, allow_no_effect, request, lineage });
        let publish = checked(v, publish)?;
        let work = move |registry: &Registry| registry.publish_directory(&wire.directory, publish);
        Ok(Response::new(adapter_out(self.ask(&context, work).await?)))
    }

    async fn unload_adapter(
        &self,
        request: Request<pb::UnloadAdapterRequest>,
    ) -> Result<Response<pb::Adapter>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("UnloadAdapter", id, &wire.encode_to_vec());
        let reference = parts(&mut v, &wire.name, &wire.generation);
        let reference = checked(v, reference)?;
        let record = self.ask(&context, move |registry| registry.unload(&reference, request)).await?;
        Ok(Response::new(adapter_out(record)))
    }

    async fn delete_adapter(&self, request: Request<pb::DeleteAdapterRequest>) -> Result<Response<()>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("DeleteAdapter", id, &wire.encode_to_vec());
        let expected = expected(&mut v, "expected_generation", wire.expected_generation.as_deref());
        v.require("expected_generation", expected != Expected::Absent, "must not be empty text");
        let name = name(&mut v, "name", &wire.name);
        let name = checked(v, name)?;
        self.ask(&context, move |registry| registry.delete(&name, expected, request)).await?;
        Ok(Response::new(()))
    }

    async fn get_adapter(&self, request: Request<pb::GetAdapterRequest>) -> Result<Response<pb::Adapter>, Status> {
        let context = Context::of(&request);
        let mut v = Violations::default();
        let name = name(&mut v, "name", &request.get_ref().name);
        let name = checked(v, name)?;
        let record = self.ask(&context, move |registry| registry.get(&name)).await?;
        Ok(Response::new(adapter_out(record)))
    }

    async fn list_adapters(
        &self,
        request: Request<pb::ListAdaptersRequest>,
    ) -> Result<Response<pb::ListAdaptersResponse>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let (size, after) = page(&self.pages, "ListAdapters", wire.page_size, &wire.page_token)?;
        let work = move |registry: &Registry| registry.list(after.as_deref(), size + 1);
        let mut entries = self.ask(&context, work).await?;
        let next_page_token = next_page(&self.pages, "ListAdapters", &mut entries, size, |r| &r.name);
        let adapters = entries.into_iter().map(adapter_out).collect();
        Ok(Response::new(pb::ListAdaptersResponse { adapters, next_page_token }))
    }

    async fn download_adapter(
        &self,
        request: Request<pb::DownloadAdapterRequest>,
    ) -> Result<Response<Self::DownloadAdapterStream>, Status> {
        let context = Context::of(&request);
        let mut v = Violations::default();
        let reference = reference(&mut v, "name", &request.get_ref().name);
        let reference = checked(v, reference)?;
        let (kind, base, files) = self.ask(&context, move |registry| registry.files(&reference)).await?;
        let companions = match kind {
            Kind::Full => self.companions.get(&base).cloned().unwrap_or_default(),
            Kind::Lora | Kind::Dora => Arc::default(),
        };
        // Two chunks ahead of the reader, no more: a slow one holds 3 MiB. The task ends when the reader leaves.
        let (pieces, stream) = mpsc::channel(2);
        tokio::spawn(async move {
            if let Err(status) = download::send(&files, &companions, &pieces, &context).await {
                let _ = pieces.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn set_alias(&self, request: Request<pb::SetAliasRequest>) -> Result<Response<pb::Alias>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("SetAlias", id, &wire.encode_to_vec());
        let alias = name(&mut v, "name", &wire.name);
        let target = reference(&mut v, "adapter", &wire.adapter);
        let expected = expected(&mut v, "expected_generation", wire.expected_generation.as_deref());
        let demand = demand(&mut v, wire.policy.as_deref());
        let (alias, target) = checked(v, alias.zip(target))?;
        let work = move |registry: &Registry| registry.set_alias(&alias, &target, expected, demand, request);
        Ok(Response::new(alias_out(self.ask(&context, work).await?)))
    }

    async fn get_alias(&self, request: Request<pb::GetAliasRequest>) -> Result<Response<pb::Alias>, Status> {
        let context = Context::of(&request);
        let mut v = Violations::default();
        let name = name(&mut v, "name", &request.get_ref().name);
        let name = checked(v, name)?;
        let record = self.ask(&context, move |registry| registry.alias(&name)).await?;
        Ok(Response::new(alias_out(record)))
    }

    async fn list_aliases(
        &self,
        request: Request<pb::ListAliasesRequest>,
    ) -> Result<Response<pb::ListAliasesResponse>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let (size, after) = page(&self.pages, "ListAliases", wire.page_size, &wire.page_token)?;
        let work = move |registry: &Registry| registry.aliases(after.as_deref(), size + 1);
        let mut entries = self.ask(&context, work).await?;
        let next_page_token = next_page(&self.pages, "ListAliases", &mut entries, size, |r| &r.name);
        let aliases = entries.into_iter().map(alias_out).collect();
        Ok(Response::new(pb::ListAliasesResponse { aliases, next_page_token }))
    }

    async fn delete_alias(&self, request: Request<pb::DeleteAliasRequest>) -> Result<Response<()>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("DeleteAlias", id, &wire.encode_to_vec());
        let expected = expected(&mut v, "expected_generation", wire.expected_generation.as_deref());
        v.require("expected_generation", expected != Expected::Absent, "must not be empty text");
        let name = name(&mut v, "name", &wire.name);
        let name = checked(v, name)?;
        self.ask(&context, move |registry| registry.delete_alias(&name, expected, request)).await?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_generations_are_any_none_or_one() {
        let mut v = Violations::default();
        assert_eq!(expected(&mut v, "expected_generation", None), Expected::Any);
        assert_eq!(expected(&mut v, "expected_generation", Some("")), Expected::Absent);
        assert!(matches!(expected(&mut v, "expected_generation", Some(&"ab".repeat(32))), Expected::Generation(_)));
        assert!(v.list().is_empty());
        expected(&mut v, "expected_generation", Some("abcd"));
        assert_eq!(v.fields(), ["expected_generation"]);
    }

    #[test]
    fn names_and_generations_are_checked_together() {
        let mut v = Violations::default();
        assert!(parts(&mut v, "poet", "").is_some_and(|r| r.generation.is_none()));
        assert!(parts(&mut v, "poet", "0123abcd").is_some_and(|r| r.generation.as_deref() == Some("0123abcd")));
        assert!(v.list().is_empty());
        assert!(parts(&mut v, "../x", "0123").is_none());
        assert_eq!(v.fields(), ["name", "generation"]);
    }
}
