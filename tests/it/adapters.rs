//! The life of adapters and aliases after their upload: lists, compare and swap, memory, folders, deletion.

use evenkeel::rpc::pb::{self, Residency};
use tonic::Code;
use tonic_types::StatusExt;

use super::client::{self, ADAPTERS, Client, files, greedy, header, parts, precondition, refused, violations};
use super::golden;

async fn expecting(
    client: &Client,
    name: &str,
    adapter: &str,
    expected: Option<&str>,
) -> Result<pb::Adapter, tonic::Status> {
    let files = files(adapter);
    let header = pb::UploadAdapterHeader { expected_generation: expected.map(Into::into), ..header(name, &files) };
    client.send(parts(header, &files, 1 << 16)).await
}

async fn alias_expecting(
    client: &Client,
    name: &str,
    adapter: &str,
    expected: Option<&str>,
) -> Result<pb::Alias, tonic::Status> {
    let request = pb::SetAliasRequest {
        name: name.into(),
        adapter: adapter.into(),
        expected_generation: expected.map(Into::into),
        ..Default::default()
    };
    Ok(client.adapters.clone().set_alias(request).await?.into_inner())
}

async fn pinned(client: &Client, name: &str, adapter: &str) -> Result<pb::Adapter, tonic::Status> {
    let files = files(adapter);
    let header = pb::UploadAdapterHeader { pinned: Some(true), ..header(name, &files) };
    client.send(parts(header, &files, 1 << 16)).await
}

fn residency(adapter: &pb::Adapter) -> Residency {
    adapter.generations.iter().find(|generation| generation.id == adapter.generation).unwrap().residency()
}

async fn load(client: &Client, request: pb::LoadAdapterRequest) -> Result<pb::Adapter, tonic::Status> {
    Ok(client.adapters.clone().load_adapter(request).await?.into_inner())
}

#[tokio::test]
async fn publishing_compares_and_swaps() {
    let server = client::start().await;
    let client = &server.client;
    let first = expecting(client, "poet", "lora_qv", Some("")).await.unwrap().generation;
    refused(expecting(client, "poet", "dora", Some("")).await, Code::Aborted, "GENERATION_MISMATCH");
    refused(expecting(client, "poet", "dora", Some(&"0".repeat(64))).await, Code::Aborted, "GENERATION_MISMATCH");
    refused(expecting(client, "free", "dora", Some(&first)).await, Code::Aborted, "GENERATION_MISMATCH");
    assert_eq!(client.adapter("poet").await.unwrap().generation, first);
    let second = expecting(client, "poet", "dora", Some(&first)).await.unwrap();
    let kept: Vec<_> = second.generations.iter().map(|generation| generation.id.as_str()).collect();
    assert_eq!(kept, [second.generation.as_str(), first.as_str()]);

    let delete = async |expected: &str| {
        let request = pb::DeleteAdapterRequest {
            name: "poet".into(),
            expected_generation: Some(expected.into()),
            ..Default::default()
        };
        client.adapters.clone().delete_adapter(request).await
    };
    refused(delete(&first).await, Code::Aborted, "GENERATION_MISMATCH");
    delete(&second.generation).await.unwrap();
    refused(client.adapter("poet").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    refused(client.delete("poet").await, Code::NotFound, "ADAPTER_NOT_FOUND");
}

#[tokio::test]
async fn old_generations_leave_and_named_ones_stay() {
    let server = client::start_with(client::MODEL, |settings| settings.registry.keep_generations = 2).await;
    let client = &server.client;
    let first = client.publish("poet", "lora_qv").await.generation;
    client.set_alias("prod", "poet").await.unwrap();
    for adapter in ["dora", "rslora", "all_linear", "lora_qv_second"] {
        client.publish("poet", adapter).await;
    }
    let adapter = client.adapter("poet").await.unwrap();
    assert_eq!(adapter.generations.len(), 4, "the current, two more, and the one that an alias names");
    assert!(adapter.generations.iter().any(|generation| generation.id == first));
    assert_eq!(client.complete(greedy("prod", "once", 4)).await.1, first);
}

#[tokio::test]
async fn aliases_compare_and_swap_and_share_one_name_space() {
    let server = client::start().await;
    let client = &server.client;
    let first = client.publish("poet", "lora_qv").await.generation;
    let second = client.publish("poet", "dora").await.generation;
    let alias = alias_expecting(client, "prod", &format!("poet@{}", &first[..8]), Some("")).await.unwrap();
    assert_eq!((alias.adapter.as_str(), alias.generation.as_str()), ("poet", first.as_str()));
    assert!(alias.update_time.is_some());
    assert_eq!(client.complete(greedy("prod", "once", 4)).await.1, first);
    assert_eq!(client.complete(greedy("poet", "once", 4)).await.1, second);
    for wrong in ["", second.as_str()] {
        refused(alias_expecting(client, "prod", "poet", Some(wrong)).await, Code::Aborted, "GENERATION_MISMATCH");
    }
    let moved = alias_expecting(client, "prod", "poet", Some(&first)).await.unwrap();
    assert_eq!(moved.generation, second);
    // An alias stays where it points when its adapter moves on.
    client.publish("poet", "rslora").await;
    assert_eq!(client.complete(greedy("prod", "once", 4)).await.1, second);
    assert_eq!(client.adapter("poet").await.unwrap().aliases, ["prod"]);
    assert_eq!(client.adapter("prod").await.unwrap().name, "poet");

    let taken = refused(client.upload("prod", &files("dora")).await, Code::AlreadyExists, "NAME_TAKEN");
    assert_eq!(taken.get_details_resource_info().unwrap().resource_name, "prod");
    client.publish("clerk", "rslora").await;
    refused(client.set_alias("clerk", "poet").await, Code::AlreadyExists, "NAME_TAKEN");
    refused(client.set_alias("new", "nobody").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    refused(client.set_alias("new", "poet@0123456789").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    let status = refused(client.delete("poet").await, Code::FailedPrecondition, "ADAPTER_IN_USE");
    assert_eq!(precondition(&status, "ADAPTER_IN_USE"), "poet");

    let get = async |name: &str| client.adapters.clone().get_alias(pb::GetAliasRequest { name: name.into() }).await;
    assert_eq!(get("prod").await.unwrap().into_inner(), moved);
    let missing = refused(get("nobody").await, Code::NotFound, "ALIAS_NOT_FOUND");
    assert_eq!(missing.get_details_resource_info().unwrap().resource_name, "nobody");
    refused(get("poet").await, Code::NotFound, "ALIAS_NOT_FOUND");
    let delete = async |expected: Option<&str>| {
        let expected_generation = expected.map(Into::into);
        let request = pb::DeleteAliasRequest { name: "prod".into(), expected_generation, ..Default::default() };
        client.adapters.clone().delete_alias(request).await
    };
    refused(delete(Some(&first)).await, Code::Aborted, "GENERATION_MISMATCH");
    delete(Some(&second)).await.unwrap();
    refused(delete(None).await, Code::NotFound, "ALIAS_NOT_FOUND");
    refused(client.generate(greedy("prod", "x", 1)).await, Code::NotFound, "ADAPTER_NOT_FOUND");
    client.delete("poet").await.unwrap();
}

#[tokio::test]
async fn lists_come_in_pages() {
    let server = client::start().await;
    let client = &server.client;
    for name in ["g", "c", "a", "f", "b", "e", "d"] {
        client.publish(name, "lora_qv").await;
        client.set_alias(&format!("alias-{name}"), name).await.unwrap();
    }
    let page = async |page_size: i32, page_token: &str| {
        let request = pb::ListAdaptersRequest { page_size, page_token: page_token.into() };
        client.adapters.clone().list_adapters(request).await.map(tonic::Response::into_inner)
    };
    let aliases = async |page_size: i32, page_token: &str| {
        let request = pb::ListAliasesRequest { page_size, page_token: page_token.into() };
        client.adapters.clone().list_aliases(request).await.map(tonic::Response::into_inner)
    };
    let (mut names, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let answer = page(3, &token).await.unwrap();
        assert!(answer.adapters.len() <= 3);
        names.extend(answer.adapters.into_iter().map(|adapter| adapter.name));
        pages += 1;
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((names.join(""), pages), ("abcdefg".into(), 3));
    for size in [0, 7, 1_000_000_000] {
        let all = page(size, "").await.unwrap();
        assert_eq!((all.adapters.len(), all.next_page_token.as_str()), (7, ""), "page size {size}");
    }
    let first = page(2, "").await.unwrap().next_page_token;
    // Another size may be asked for; another list, a forged or a cut token may not.
    assert_eq!(page(5, &first).await.unwrap().adapters[0].name, "c");
    let cut = &first[..first.len() - 1];
    let first_char = if first.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{first_char}{}", &first[1..]);
    for wrong in ["x", cut, &forged, "b", "YWJj"] {
        refused(page(2, wrong).await, Code::InvalidArgument, "PAGE_TOKEN");
    }
    refused(aliases(2, &first).await, Code::InvalidArgument, "PAGE_TOKEN");
    let of_aliases = aliases(6, "").await.unwrap();
    assert_eq!(of_aliases.aliases.last().unwrap().name, "alias-f");
    let last = aliases(6, &of_aliases.next_page_token).await.unwrap();
    assert_eq!((last.aliases.len(), last.next_page_token.as_str()), (1, ""));
    refused(page(2, &of_aliases.next_page_token).await, Code::InvalidArgument, "PAGE_TOKEN");
    assert_eq!(violations(&refused(page(-1, "").await, Code::InvalidArgument, "INVALID_FIELD")), ["page_size"]);
    assert_eq!(violations(&refused(aliases(-1, "").await, Code::InvalidArgument, "INVALID_FIELD")), ["page_size"]);
}

#[tokio::test]
async fn unloaded_adapters_come_back_with_the_next_request() {
    let server = client::start().await;
    let client = &server.client;
    client.publish("poet", "lora_qv").await;
    let before = client.complete(greedy("poet", "once", 12)).await;
    let unloaded = client.unload("poet").await.unwrap();
    assert_eq!(residency(&unloaded), Residency::OnDisk);
    assert_eq!(client.metrics().await.value("evenkeel_adapter_bytes"), 0.0);
    assert_eq!(client.complete(greedy("poet", "once", 12)).await, before);
    assert_eq!(residency(&client.adapter("poet").await.unwrap()), Residency::Resident);

    client.unload("poet").await.unwrap();
    let request = pb::LoadAdapterRequest { name: "poet".into(), pinned: Some(true), ..Default::default() };
    let loaded = load(client, request.clone()).await.unwrap();
    assert_eq!((residency(&loaded), loaded.pinned), (Residency::Resident, true));
    let status = refused(client.unload("poet").await, Code::FailedPrecondition, "ADAPTER_PINNED");
    assert_eq!(precondition(&status, "ADAPTER_PINNED"), "poet");
    load(client, pb::LoadAdapterRequest { pinned: Some(false), ..request }).await.unwrap();
    client.unload("poet").await.unwrap();
    refused(client.unload("nobody").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    let absent = pb::LoadAdapterRequest { name: "nobody".into(), ..Default::default() };
    refused(load(client, absent).await, Code::NotFound, "ADAPTER_NOT_FOUND");
    // What only publishing from a directory looks at is not passed over.
    let stored = pb::LoadAdapterRequest {
        name: "poet".into(),
        expected_generation: Some(String::new()),
        allow_no_effect: true,
        base_model: "other".into(),
        ..Default::default()
    };
    let status = refused(load(client, stored).await, Code::InvalidArgument, "INVALID_FIELD");
    let mut named = violations(&status);
    named.sort();
    assert_eq!(named, ["allow_no_effect", "base_model", "expected_generation"]);
    assert_eq!(residency(&client.adapter("poet").await.unwrap()), Residency::OnDisk);
}

#[tokio::test]
async fn the_least_recently_used_adapter_leaves_a_full_memory() {
    let sizes = client::start().await;
    let mut bytes = Vec::new();
    for adapter in ["lora_qv", "lora_qv_second", "rslora"] {
        bytes.push(sizes.client.publish(&adapter.replace('_', "-"), adapter).await.generations[0].bytes);
    }
    drop(sizes);
    let budget = bytes[1] + bytes[2]; // two of the three in any choice: rslora is the largest
    assert!(bytes.iter().sum::<u64>() > budget && bytes[0] < bytes[1]);
    let server = client::start_with(client::MODEL, |settings| settings.registry.memory_bytes = budget).await;
    let client = &server.client;
    client.publish("a", "lora_qv").await;
    client.publish("b", "lora_qv_second").await;
    let expected = [client.complete(greedy("a", "once", 8)).await, client.complete(greedy("b", "once", 8)).await];
    client.complete(greedy("a", "once", 1)).await;
    client.publish("c", "rslora").await;
    let on_disk = async |name: &str| residency(&client.adapter(name).await.unwrap()) == Residency::OnDisk;
    assert!(on_disk("b").await && !on_disk("a").await && !on_disk("c").await, "b was used least recently");
    let scrape = client.metrics().await;
    assert_eq!(scrape.value("evenkeel_adapter_evictions_total"), 1.0);
    assert_eq!(scrape.value("evenkeel_adapter_bytes_limit"), budget as f64);
    // Everything stays served, in turns.
    for _ in 0..3 {
        assert_eq!(client.complete(greedy("a", "once", 8)).await, expected[0]);
        assert_eq!(client.complete(greedy("b", "once", 8)).await, expected[1]);
        client.complete(greedy("c", "once", 8)).await;
        assert!(client.metrics().await.value("evenkeel_adapter_bytes") <= budget as f64);
    }
    // What is pinned does not leave: with both places taken there is no room for a third.
    client.delete("a").await.unwrap();
    for (name, adapter) in [("b", "lora_qv_second"), ("c", "rslora")] {
        pinned(client, name, adapter).await.unwrap();
    }
    refused(client.upload("a", &files("lora_qv")).await, Code::ResourceExhausted, "ADAPTER_BUDGET");
    assert!(!on_disk("b").await && !on_disk("c").await);
}

#[tokio::test]
async fn an_adapter_above_the_budget_is_refused() {
    let server = client::start_with(client::MODEL, |settings| settings.registry.memory_bytes = 1000).await;
    let status =
        refused(server.client.upload("poet", &files("lora_qv")).await, Code::ResourceExhausted, "ADAPTER_BUDGET");
    assert!(status.get_details_quota_failure().is_some() && status.get_details_retry_info().is_some(), "{status:?}");
    refused(server.client.adapter("poet").await, Code::NotFound, "ADAPTER_NOT_FOUND");
}

#[tokio::test]
async fn adapters_load_from_the_configured_folder_only() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("adapters");
    for adapter in ["lora_qv", "dora"] {
        std::fs::create_dir_all(folder.join(adapter)).unwrap();
        for (name, bytes) in files(adapter) {
            std::fs::write(folder.join(adapter).join(name), bytes).unwrap();
        }
    }
    std::os::unix::fs::symlink(golden::root().join("adapters/rslora"), folder.join("link")).unwrap();
    let server =
        client::start_with(client::MODEL, |settings| settings.registry.adapter_dir = Some(folder.clone())).await;
    let client = &server.client;
    let from = |directory: &str| pb::LoadAdapterRequest {
        name: "poet".into(),
        directory: directory.into(),
        ..Default::default()
    };
    for wrong in ["..", "../adapters/dora", "/etc", "dora/.", "link", "nowhere", "dora\0"] {
        let status = load(client, from(wrong)).await.unwrap_err();
        let info = status.get_details_error_info().unwrap();
        assert!(matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition), "{wrong}: {status:?}");
        assert!(["INVALID_FIELD", "ADAPTER_INVALID"].contains(&info.reason.as_str()), "{wrong}: {status:?}");
        assert!(!status.message().contains(root.path().to_str().unwrap()), "tells a path: {status:?}");
    }
    let loaded = load(client, from("lora_qv")).await.unwrap();
    let uploaded = client.publish("other", "lora_qv").await;
    assert_eq!(loaded.generation, uploaded.generation);
    // The folder is read at the call, never again.
    std::fs::write(folder.join("lora_qv/adapter_model.safetensors"), b"replaced").unwrap();
    client.unload("poet").await.unwrap();
    client.unload("other").await.unwrap();
    assert_eq!(client.complete(greedy("poet", "once", 4)).await.1, loaded.generation);
    refused(load(client, from("lora_qv")).await, Code::InvalidArgument, "ADAPTER_INVALID");
    assert_eq!(load(client, from("dora")).await.unwrap().method, "DORA");
}

#[tokio::test]
async fn without_an_adapter_folder_only_stored_adapters_load() {
    let server = client::start().await;
    server.client.publish("poet", "lora_qv").await;
    let request = pb::LoadAdapterRequest { name: "poet".into(), directory: "poet".into(), ..Default::default() };
    let status = refused(load(&server.client, request.clone()).await, Code::FailedPrecondition, "NO_ADAPTER_DIR");
    assert_eq!(precondition(&status, "NO_ADAPTER_DIR"), "registry.adapter_dir");
    load(&server.client, pb::LoadAdapterRequest { directory: String::new(), ..request }).await.unwrap();
}

#[tokio::test]
async fn every_changing_call_can_be_repeated() {
    let server = client::start().await;
    let client = &server.client;
    for adapter in &ADAPTERS[..2] {
        client.publish("poet", adapter).await;
    }
    let mut adapters = client.adapters.clone();
    let alias = pb::SetAliasRequest {
        name: "prod".into(),
        adapter: "poet".into(),
        expected_generation: Some(String::new()),
        request_id: "1".into(),
        policy: None,
    };
    let first = adapters.set_alias(alias.clone()).await.unwrap().into_inner();
    assert_eq!(adapters.set_alias(alias.clone()).await.unwrap().into_inner(), first);
    let other = pb::SetAliasRequest { adapter: "poet@00000000".into(), ..alias };
    refused(adapters.set_alias(other).await, Code::InvalidArgument, "REQUEST_ID_REUSED");

    let unload = pb::UnloadAdapterRequest { name: "poet".into(), request_id: "2".into(), ..Default::default() };
    let first = adapters.unload_adapter(unload.clone()).await.unwrap().into_inner();
    client.complete(greedy("poet", "once", 1)).await;
    assert_eq!(adapters.unload_adapter(unload).await.unwrap().into_inner(), first);
    assert_eq!(residency(&client.adapter("poet").await.unwrap()), Residency::Resident, "the repeat did it again");

    let remove = pb::DeleteAliasRequest { name: "prod".into(), request_id: "3".into(), ..Default::default() };
    adapters.delete_alias(remove.clone()).await.unwrap();
    client.set_alias("prod", "poet").await.unwrap();
    adapters.delete_alias(remove).await.unwrap();
    adapters.get_alias(pb::GetAliasRequest { name: "prod".into() }).await.unwrap();

    let remove = pb::DeleteAliasRequest { name: "prod".into(), ..Default::default() };
    adapters.delete_alias(remove).await.unwrap();
    let delete = pb::DeleteAdapterRequest { name: "poet".into(), request_id: "4".into(), ..Default::default() };
    adapters.delete_adapter(delete.clone()).await.unwrap();
    adapters.delete_adapter(delete).await.unwrap();
}
