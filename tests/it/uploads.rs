//! Uploads: what goes in comes out byte for byte, what is faulty leaves nothing behind, what is repeated happens once.

use evenkeel::rpc::pb::upload_adapter_request::Part;
use evenkeel::rpc::pb::{self, download_adapter_response};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::client::{self, Client, files, greedy, header, parts, precondition, refused, sha256};
use super::golden;

/// Downloads an adapter; the answer is checked against itself (order, offsets, sizes, digests).
async fn download(client: &Client, name: &str) -> Result<Vec<(String, Vec<u8>)>, Status> {
    let request = pb::DownloadAdapterRequest { name: name.into() };
    let mut stream = client.adapters.clone().download_adapter(request).await?.into_inner();
    let mut files: Vec<(pb::FileInfo, Vec<u8>)> = Vec::new();
    while let Some(message) = stream.message().await? {
        match message.part.unwrap() {
            download_adapter_response::Part::File(info) => files.push((info, Vec::new())),
            download_adapter_response::Part::Chunk(chunk) => {
                let (info, bytes) = files.last_mut().unwrap();
                assert_eq!((chunk.name.as_str(), chunk.offset), (info.name.as_str(), bytes.len() as u64));
                bytes.extend(chunk.data);
            }
        }
    }
    for (info, bytes) in &files {
        assert_eq!((info.size, &info.sha256), (bytes.len() as u64, &sha256(bytes)));
    }
    Ok(files.into_iter().map(|(info, bytes)| (info.name, bytes)).collect())
}

#[tokio::test]
async fn what_was_uploaded_is_downloaded_byte_for_byte() {
    let server = client::start().await;
    let client = &server.client;
    for adapter in ["lora_qv", "modules_to_save_lm_head", "weights_bf16"] {
        let files = files(adapter);
        // Chunks that divide nothing evenly.
        let sent = client.send(parts(header("poet", &files), &files, 4097)).await.unwrap();
        let expected: Vec<_> = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        for name in ["poet".to_owned(), format!("poet@{}", sent.generation), format!("poet@{}", &sent.generation[..8])]
        {
            assert_eq!(download(client, &name).await.unwrap(), expected, "{adapter} as {name}");
        }
    }
    client.set_alias("prod", "poet").await.unwrap();
    assert_eq!(download(client, "prod").await.unwrap(), download(client, "poet").await.unwrap());
    refused(download(client, "nobody").await, Code::NotFound, "ADAPTER_NOT_FOUND");
}

#[tokio::test]
async fn an_upload_tells_what_the_adapter_is() {
    let server = client::start().await;
    let adapter = server.client.publish("poet", "dora").await;
    let expected = golden::json(&golden::root().join("adapters/dora/expected.json"));
    let modules: Vec<_> = expected["modules"].as_object().unwrap().keys().cloned().collect();
    let mut told = adapter.modules.clone();
    told.sort();
    assert_eq!(told, modules);
    assert_eq!((adapter.name.as_str(), adapter.method.as_str(), adapter.rank), ("poet", "DORA", 4));
    assert_eq!((adapter.generation.len(), adapter.base_fingerprint.len(), adapter.pinned), (64, 64, false));
    let [generation] = adapter.generations.as_slice() else { panic!("{:?}", adapter.generations) };
    assert_eq!((&generation.id, generation.residency()), (&adapter.generation, pb::Residency::Resident));
    assert!(generation.bytes > 0 && generation.effect > 0.1 && generation.create_time.is_some(), "{generation:?}");
    assert_eq!(server.client.adapter("poet").await.unwrap(), adapter);
    // The same content has the same identity under any name, other content another.
    assert_eq!(server.client.publish("other", "dora").await.generation, adapter.generation);
    assert_ne!(server.client.publish("third", "lora_qv").await.generation, adapter.generation);
}

#[tokio::test]
async fn faulty_streams_are_refused_and_leave_nothing() {
    let server = client::start_with(client::MODEL, |settings| settings.registry.max_upload_bytes = 200_000).await;
    let client = &server.client;
    let good = files("lora_qv");
    let whole = || parts(header("poet", &good), &good, 8 << 10);
    let change = |change: &dyn Fn(&mut Vec<Part>)| {
        let mut parts = whole();
        change(&mut parts);
        parts
    };
    let with_header = |change: &dyn Fn(&mut pb::UploadAdapterHeader)| {
        let mut header = header("poet", &good);
        change(&mut header);
        parts(header, &good, 8 << 10)
    };
    let chunk = |part: &mut Part, change: &dyn Fn(&mut pb::FileChunk)| match part {
        Part::Chunk(chunk) => change(chunk),
        Part::Header(_) => panic!("not a chunk"),
    };
    let invalid: Vec<(&str, Vec<Part>)> = vec![
        ("nothing", vec![]),
        ("no header", whole().split_off(1)),
        ("two headers", change(&|parts| parts.insert(1, parts[0].clone()))),
        ("an unknown file", change(&|parts| chunk(&mut parts[1], &|chunk| chunk.name = "../evil".into()))),
        ("a gap", change(&|parts| drop(parts.remove(3)))),
        ("a chunk twice", change(&|parts| parts.insert(3, parts[3].clone()))),
        ("cut short", change(&|parts| drop(parts.pop()))),
        ("more than was said", change(&|parts| chunk(parts.last_mut().unwrap(), &|chunk| chunk.data.push(0)))),
        (
            "an offset at the end of numbers",
            change(&|parts| {
                chunk(parts.last_mut().unwrap(), &|chunk| chunk.offset = u64::MAX);
            }),
        ),
        ("a header of no files", with_header(&|header| header.files.clear())),
        ("a file twice", with_header(&|header| header.files.push(header.files[0].clone()))),
        (
            "a third file",
            with_header(&|header| {
                header.files.push(pb::FileInfo { name: "x.bin".into(), size: 1, sha256: String::new() })
            }),
        ),
        ("a name that is a path", with_header(&|header| header.name = "../poet".into())),
        ("a digest that is none", with_header(&|header| header.files[0].sha256 = "xyz".into())),
        ("an expected generation that is none", with_header(&|header| header.expected_generation = Some("xyz".into()))),
    ];
    for (what, parts) in invalid {
        let result = client.send(parts).await;
        assert!(result.is_err(), "{what} was taken");
        refused(result, Code::InvalidArgument, "INVALID_FIELD");
    }
    let wrong = with_header(&|header| header.files[1].sha256 = sha256(b"other"));
    refused(client.send(wrong).await, Code::InvalidArgument, "CHECKSUM");
    let flipped = change(&|parts| chunk(parts.last_mut().unwrap(), &|chunk| chunk.data[0] ^= 1));
    refused(client.send(flipped).await, Code::InvalidArgument, "CHECKSUM");
    // Refused at its header: no byte has to be sent.
    let mut large = header("poet", &good);
    large.files[1].size = 1 << 40;
    refused(client.send(vec![Part::Header(large)]).await, Code::ResourceExhausted, "UPLOAD_TOO_LARGE");

    refused(client.adapter("poet").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    let scrape = client.metrics().await;
    assert_eq!((scrape.value("evenkeel_adapters_registered"), scrape.value("evenkeel_adapter_bytes")), (0.0, 0.0));
    // Without digests it is taken.
    let taken = with_header(&|header| header.files.iter_mut().for_each(|file| file.sha256.clear()));
    client.send(taken).await.unwrap();
}

#[tokio::test]
async fn broken_adapters_are_refused_by_reason_and_the_server_lives_on() {
    let server = client::start().await;
    let client = &server.client;
    let folder = golden::root().join("adapters_broken");
    let manifest = golden::json(&folder.join("manifest.json"));
    client.publish("sound", "lora_qv").await;
    let sound = client.complete(greedy("sound", "once", 8)).await;
    let (mut refusals, mut taken) = (0, 0);
    for (name, case) in manifest["cases"].as_object().unwrap() {
        let read = |file: &'static str| Some((file, std::fs::read(folder.join(name).join(file)).ok()?));
        let files: Vec<_> = ["adapter_config.json", "adapter_model.safetensors"].into_iter().filter_map(read).collect();
        let published = client.upload("broken", &files).await;
        match (published, case["should"].as_str().unwrap()) {
            (Ok(_), "reject") => panic!("{name} was taken: {}", case["wrong"]),
            (Err(status), "accept_same") => panic!("{name} was refused: {status:?}"),
            (Ok(_), _) => {
                let same = client.complete(greedy("broken", "once", 8)).await;
                assert_eq!(same.0, sound.0, "{name} has other logits: {}", case["wrong"]);
                client.delete("broken").await.unwrap();
                taken += 1;
            }
            (Err(status), _) => {
                // A header that does not name both files, or an empty one, is faulty itself.
                let expected = match case["category"].as_str().unwrap() {
                    _ if files.len() < 2 || files.iter().any(|(_, bytes)| bytes.is_empty()) => {
                        (Code::InvalidArgument, ["INVALID_FIELD"].as_slice())
                    }
                    "file" => (Code::InvalidArgument, ["ADAPTER_INVALID"].as_slice()),
                    "unsupported" => (Code::FailedPrecondition, ["ADAPTER_UNSUPPORTED"].as_slice()),
                    _ => (status.code(), ["ADAPTER_INVALID", "ADAPTER_UNSUPPORTED", "ADAPTER_MISMATCH"].as_slice()),
                };
                let reason = tonic_types::StatusExt::get_details_error_info(&status).unwrap().reason;
                assert_eq!(status.code(), expected.0, "{name}: {status:?}");
                assert!(expected.1.contains(&reason.as_str()), "{name}: {status:?}");
                assert!(!status.message().contains('/') || !status.message().contains("golden"), "{status:?}");
                if reason == "ADAPTER_UNSUPPORTED" {
                    let subject = precondition(&status, &reason);
                    let sound = golden::root().join(manifest["sound_original"].as_str().unwrap());
                    let differing = golden::differing(&folder.join(name), &sound);
                    assert!(differing.iter().any(|word| subject.contains(word)), "{name}: {subject} of {differing:?}");
                    assert!(status.message().contains(&subject), "{name}: {status:?}");
                }
                refusals += 1;
            }
        }
        refused(client.adapter("broken").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    }
    assert!(refusals > 0 && refusals + taken == manifest["cases"].as_object().unwrap().len());
    assert_eq!(client.complete(greedy("sound", "once", 8)).await, sound);
    assert_eq!(client.metrics().await.value("evenkeel_adapters_registered"), 1.0);
}

/// An adapter whose `lora_B` tensors are zero: sound, and without any effect.
fn without_effect() -> [(&'static str, Vec<u8>); 2] {
    let mut files = files("lora_qv");
    let bytes = &mut files[1].1;
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    for (name, tensor) in tensors.as_object().unwrap() {
        if name.contains("lora_B") {
            let at = |i: usize| 8 + header + tensor["data_offsets"][i].as_u64().unwrap() as usize;
            bytes[at(0)..at(1)].fill(0);
        }
    }
    files
}

#[tokio::test]
async fn an_adapter_without_effect_needs_permission() {
    let server = client::start().await;
    let client = &server.client;
    let files = without_effect();
    let status = refused(client.upload("idle", &files).await, Code::FailedPrecondition, "ADAPTER_NO_EFFECT");
    assert_eq!(precondition(&status, "ADAPTER_NO_EFFECT"), "adapter");
    refused(client.adapter("idle").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    let header = pb::UploadAdapterHeader { allow_no_effect: true, ..header("idle", &files) };
    let adapter = client.send(parts(header, &files, 1 << 16)).await.unwrap();
    assert_eq!(adapter.generations[0].effect, 0.0);
    let base = client.complete(greedy("", "once", 8)).await.0;
    assert_eq!(client.complete(greedy("idle", "once", 8)).await.0, base);
}

#[tokio::test]
async fn adapters_for_another_model_do_not_fit() {
    let server = client::start().await;
    for adapter in ["sharded_base", "gqa_attention"] {
        let result = server.client.upload("stranger", &files(adapter)).await;
        let status = refused(result, Code::FailedPrecondition, "ADAPTER_MISMATCH");
        assert!(status.message().contains("proj"), "names no tensor: {}", status.message());
        assert_eq!(precondition(&status, "ADAPTER_MISMATCH"), "adapter");
    }
}

#[tokio::test]
async fn fifty_equal_uploads_at_once_are_one() {
    let server = client::start().await;
    let client = &server.client;
    let good = files("lora_qv");
    let send = |client: Client, header: pb::UploadAdapterHeader, files: [(&'static str, Vec<u8>); 2]| async move {
        client.send(parts(header, &files, 8 << 10)).await
    };
    let header = pb::UploadAdapterHeader { request_id: "f0e1".into(), ..header("poet", &good) };
    let uploads = (0..50).map(|_| tokio::spawn(send(client.clone(), header.clone(), good.clone())));
    let uploads: Vec<_> = uploads.collect();
    let mut answers = Vec::new();
    for upload in uploads {
        answers.push(upload.await.unwrap().unwrap());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(client.adapter("poet").await.unwrap().generations.len(), 1);

    // The first answer stays, whatever happened since.
    client.publish("poet", "dora").await;
    let repeated = send(client.clone(), header.clone(), good.clone()).await.unwrap();
    assert_eq!(repeated, answers[0]);
    assert_ne!(client.adapter("poet").await.unwrap().generation, repeated.generation);

    let other = files("rslora");
    let reused = pb::UploadAdapterHeader { request_id: "f0e1".into(), ..client::header("poet", &other) };
    refused(send(client.clone(), reused, other).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let renamed = pb::UploadAdapterHeader { name: "other".into(), ..header };
    refused(send(client.clone(), renamed, good).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn uploads_share_their_memory_and_what_finds_none_is_told_when_to_try_again() {
    let good = files("lora_qv");
    let bytes: u64 = good.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let server = client::start_with(client::MODEL, |settings| settings.registry.max_upload_bytes = bytes).await;
    let client = &server.client;
    // One has announced all that there is memory for, and takes its time.
    let (slow, sender, parts, status) = loop {
        let mut parts = parts(header("poet", &good), &good, 8 << 10).into_iter();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut adapters = client.adapters.clone();
        let slow = tokio::spawn(async move { adapters.upload_adapter(receiver).await });
        sender.send(pb::UploadAdapterRequest { part: parts.next() }).await.unwrap();
        let outcome = client::eventually("the first to hold the memory", || async {
            if slow.is_finished() { Some(None) } else { client.upload("clerk", &good).await.err().map(Some) }
        });
        // Where the second was there first, the first was refused.
        if let Some(status) = outcome.await {
            break (slow, sender, parts, status);
        }
    };
    let status = refused(Err::<(), _>(status), Code::ResourceExhausted, "QUEUE_FULL");
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert!(retry.is_some_and(|delay| !delay.is_zero()), "{status:?}");
    for part in parts {
        sender.send(pb::UploadAdapterRequest { part: Some(part) }).await.unwrap();
    }
    drop(sender);
    assert_eq!(slow.await.unwrap().unwrap().into_inner().name, "poet");
    client.upload("clerk", &good).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let server = client::start().await;
    let client = &server.client;
    let good = files("all_linear");
    let mut parts = parts(header("poet", &good), &good, 8 << 10);
    parts.truncate(4);
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    for part in parts {
        sender.send(pb::UploadAdapterRequest { part: Some(part) }).await.unwrap();
    }
    let mut adapters = client.adapters.clone();
    let upload =
        tokio::spawn(
            async move { adapters.upload_adapter(tokio_stream::wrappers::ReceiverStream::new(receiver)).await },
        );
    let arrived = || async {
        let started = client.metrics().await.sum("grpc_server_started_total", &[r#"grpc_method="UploadAdapter""#]);
        (started == 1.0).then_some(())
    };
    client::eventually("the upload", arrived).await;
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    drop(sender);
    let ended = || async {
        let handled = client.metrics().await.sum("grpc_server_handled_total", &[r#"grpc_method="UploadAdapter""#]);
        (handled == 1.0).then_some(())
    };
    client::eventually("the end of the upload", ended).await;
    refused(client.adapter("poet").await, Code::NotFound, "ADAPTER_NOT_FOUND");
    client.publish("poet", "all_linear").await;
}
