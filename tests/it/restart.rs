//! Ends and beginnings of the process: kill -9 at any moment, SIGTERM, and what a new process finds.
//!
//! The killing loop is a model test: each worker owns a name, changes it call by call and remembers what was
//! acknowledged. After a kill the server must show exactly that, or that plus the one call that was on its way.

use std::time::Duration;

use evenkeel::rpc::pb;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use super::client::{self, ADAPTERS, Client, drain, eventually, files, greedy, header, parts, refused};
use super::process::{self, Process};
use super::transport::SERVICES;

const KILLS: usize = 50;
const WORKERS: usize = 4;

/// A change of what one worker owns.
#[derive(Debug, Clone)]
enum Call {
    /// Uploads `ADAPTERS[i]` as the worker's adapter.
    Upload(usize),
    /// Publishes `ADAPTERS[i]` as the worker's adapter from the server's adapter folder.
    Load(usize),
    /// Points the worker's alias at the current generation.
    Alias,
    DeleteAlias,
    Delete,
    Unload,
}

impl Call {
    fn kind(&self) -> &'static str {
        match self {
            Self::Upload(_) => "upload",
            Self::Load(_) => "load",
            Self::Alias => "alias",
            Self::DeleteAlias | Self::Delete => "delete",
            Self::Unload => "unload",
        }
    }
}

/// What a worker's names stand for.
#[derive(Debug, Clone, Default, PartialEq)]
struct Owned {
    /// Index into [`ADAPTERS`] of the current generation.
    adapter: Option<usize>,
    /// Index into [`ADAPTERS`] of the generation that the alias points to.
    alias: Option<usize>,
}

impl Owned {
    /// A call that must succeed now.
    fn next(&self, random: &mut StdRng) -> Call {
        match (self.adapter, self.alias, random.random_range(0..10)) {
            (None, _, 0..5) | (Some(_), _, 0..3) => Call::Upload(random.random_range(0..ADAPTERS.len())),
            (None, _, _) | (Some(_), _, 3..5) => Call::Load(random.random_range(0..ADAPTERS.len())),
            (Some(_), None, 5) => Call::Delete,
            (Some(_), Some(_), 5) => Call::DeleteAlias,
            (Some(_), _, 6) => Call::Unload,
            (Some(_), _, _) => Call::Alias,
        }
    }

    fn after(&self, call: &Call) -> Self {
        match call {
            Call::Upload(adapter) | Call::Load(adapter) => Self { adapter: Some(*adapter), ..self.clone() },
            Call::Alias => Self { alias: self.adapter, ..self.clone() },
            Call::DeleteAlias => Self { alias: None, ..self.clone() },
            Call::Delete => Self::default(),
            Call::Unload => self.clone(),
        }
    }
}

/// The answer of a call, whatever its kind.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Adapter(Box<pb::Adapter>),
    Alias(pb::Alias),
    Nothing,
}

async fn perform(client: &Client, worker: usize, id: &str, call: &Call) -> Result<Answer, Status> {
    let (name, alias, request_id) = (format!("adapter-{worker}"), format!("alias-{worker}"), id.to_owned());
    let mut adapters = client.adapters.clone();
    Ok(match call {
        Call::Upload(index) => {
            let files = files(ADAPTERS[*index]);
            let header = pb::UploadAdapterHeader { request_id, ..header(&name, &files) };
            Answer::Adapter(client.send(parts(header, &files, 16 << 10)).await?.into())
        }
        Call::Load(index) => {
            let directory = ADAPTERS[*index].to_owned();
            let request = pb::LoadAdapterRequest { name, directory, request_id, ..Default::default() };
            Answer::Adapter(adapters.load_adapter(request).await?.into_inner().into())
        }
        Call::Alias => {
            let request = pb::SetAliasRequest { name: alias, adapter: name, request_id, ..Default::default() };
            Answer::Alias(adapters.set_alias(request).await?.into_inner())
        }
        Call::DeleteAlias => {
            let request = pb::DeleteAliasRequest { name: alias, request_id, ..Default::default() };
            adapters.delete_alias(request).await?;
            Answer::Nothing
        }
        Call::Delete => {
            adapters.delete_adapter(pb::DeleteAdapterRequest { name, request_id, ..Default::default() }).await?;
            Answer::Nothing
        }
        Call::Unload => {
            let request = pb::UnloadAdapterRequest { name, request_id, ..Default::default() };
            Answer::Adapter(adapters.unload_adapter(request).await?.into_inner().into())
        }
    })
}

/// A worker between two lives of the server.
#[derive(Debug, Default)]
struct Worker {
    owned: Owned,
    /// The last call that was acknowledged.
    acknowledged: Option<(String, Call, Answer)>,
    /// The call that the kill interrupted.
    interrupted: Option<(String, Call)>,
    count: usize,
}

impl Worker {
    /// Changes things until the server dies.
    async fn work(mut self, client: Client, index: usize, mut random: StdRng) -> Self {
        loop {
            self.count += 1;
            let (id, call) = (format!("{index}-{}", self.count), self.owned.next(&mut random));
            match perform(&client, index, &id, &call).await {
                Ok(answer) => {
                    self.owned = self.owned.after(&call);
                    self.acknowledged = Some((id, call, answer));
                }
                Err(status) => {
                    // The connection broke; an answer of the server itself would carry details.
                    assert!(status.get_details_error_info().is_none(), "{call:?}: {status:?}");
                    self.interrupted = Some((id, call));
                    return self;
                }
            }
        }
    }

    /// Compares the new process with what is remembered, then repeats what was on its way and what came before.
    async fn check(&mut self, client: &Client, index: usize, generations: &[String]) {
        let found = found(client, index, generations).await;
        let (id, call) = self.interrupted.take().unwrap();
        let done = self.owned.after(&call);
        assert!(found == self.owned || found == done, "{found:?}, acknowledged {:?}, on its way {call:?}", self.owned);
        if let Some((id, call, answer)) = &self.acknowledged {
            assert_eq!(perform(client, index, id, call).await.unwrap(), *answer, "{call:?} was acknowledged");
            assert_eq!(self::found(client, index, generations).await, found, "the repeat changed something");
        }
        let answer = perform(client, index, &id, &call).await.unwrap_or_else(|e| panic!("{call:?} repeated: {e:?}"));
        assert_eq!(perform(client, index, &id, &call).await.unwrap(), answer);
        assert_eq!(self::found(client, index, generations).await, done);
        self.owned = done;
        self.acknowledged = Some((id, call, answer));
        for name in [
            self.owned.adapter.map(|i| (format!("adapter-{index}"), i)),
            self.owned.alias.map(|i| (format!("alias-{index}"), i)),
        ] {
            let Some((name, i)) = name else { continue };
            let (_, generation) = client.complete(greedy(&name, "once", 2)).await;
            assert_eq!(generation, generations[i], "{name} runs something else");
        }
    }
}

/// What a worker's names stand for on the server.
async fn found(client: &Client, index: usize, generations: &[String]) -> Owned {
    let which = |id: &str| generations.iter().position(|known| known == id).unwrap_or_else(|| panic!("unknown {id}"));
    let adapter = match client.adapter(&format!("adapter-{index}")).await {
        Ok(adapter) => {
            for generation in &adapter.generations {
                which(&generation.id);
            }
            Some(which(&adapter.generation))
        }
        Err(status) => {
            refused(Err::<(), _>(status), Code::NotFound, "ADAPTER_NOT_FOUND");
            None
        }
    };
    let alias = pb::GetAliasRequest { name: format!("alias-{index}") };
    let alias = match client.adapters.clone().get_alias(alias).await {
        Ok(alias) => Some(which(&alias.into_inner().generation)),
        Err(status) => {
            refused(Err::<(), _>(status), Code::NotFound, "ALIAS_NOT_FOUND");
            None
        }
    };
    Owned { adapter, alias }
}

/// Downloads every adapter whole; a stored file that is missing or damaged fails.
async fn download_all(client: &Client) {
    let listed = client.adapters.clone().list_adapters(pb::ListAdaptersRequest::default()).await.unwrap().into_inner();
    for adapter in listed.adapters {
        for generation in &adapter.generations {
            let name = format!("{}@{}", adapter.name, generation.id);
            let request = pb::DownloadAdapterRequest { name };
            let mut stream = client.adapters.clone().download_adapter(request).await.unwrap().into_inner();
            while stream.message().await.unwrap().is_some() {}
        }
    }
}

/// Requests that run while the kill comes.
async fn load(client: Client, worker: usize) {
    loop {
        let name = format!("adapter-{worker}");
        for name in [name.as_str(), ""] {
            if let Err(status) = client.generate(greedy(name, "Winter light", 40)).await
                && status.get_details_error_info().is_none()
            {
                return;
            }
        }
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = process::settings(client::MODEL, &folder.path().join("data"));
    let adapters = folder.path().join("adapters");
    for adapter in ADAPTERS {
        std::fs::create_dir_all(adapters.join(adapter)).unwrap();
        for (name, bytes) in files(adapter) {
            std::fs::write(adapters.join(adapter).join(name), bytes).unwrap();
        }
    }
    settings.registry.adapter_dir = Some(adapters);
    let mut process = client::spawn(&settings).await;
    let mut client = Client::connect(&process).await;
    let mut interrupted = std::collections::BTreeMap::new();
    let mut generations = Vec::new();
    for adapter in ADAPTERS {
        generations.push(client.publish("probe", adapter).await.generation);
    }
    client.delete("probe").await.unwrap();

    let mut random = StdRng::seed_from_u64(20);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| Worker::default()).collect();
    for kill in 0..KILLS {
        let works = workers.drain(..).enumerate().map(|(index, worker)| {
            let random = StdRng::seed_from_u64((kill * WORKERS + index) as u64);
            tokio::spawn(worker.work(client.clone(), index, random))
        });
        let works: Vec<_> = works.collect();
        let loads: Vec<_> = (0..2).map(|index| tokio::spawn(load(client.clone(), index))).collect();
        // Not to wait for something: the moment of death is what the loop draws.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        process.kill();
        for load in loads {
            load.await.unwrap();
        }
        for work in works {
            workers.push(work.await.unwrap());
        }
        for (_, call) in workers.iter().filter_map(|worker| worker.interrupted.as_ref()) {
            *interrupted.entry(call.kind()).or_insert(0) += 1;
        }
        process = client::spawn(&settings).await;
        client = Client::connect(&process).await;
        for (index, worker) in workers.iter_mut().enumerate() {
            worker.check(&client, index, &generations).await;
        }
        download_all(&client).await;
    }
    let calls: usize = workers.iter().map(|worker| worker.count).sum();
    assert!(calls > KILLS * WORKERS, "only {calls} calls: the server was killed before it did anything");
    assert!(["upload", "load"].iter().all(|kind| interrupted.contains_key(kind)), "{interrupted:?}");
    println!("kills: {KILLS} after {calls} calls; on their way were {interrupted:?}");
    process.terminate();
    assert!(process.wait().success());
}

/// What must not change with the process.
async fn known(client: &Client) -> (Vec<pb::Adapter>, Vec<pb::Alias>) {
    let mut adapters = client.adapters.clone();
    let mut listed = adapters.list_adapters(pb::ListAdaptersRequest::default()).await.unwrap().into_inner().adapters;
    for generation in listed.iter_mut().flat_map(|adapter| &mut adapter.generations) {
        generation.residency = 0;
        generation.active_leases = 0;
    }
    let aliases = adapters.list_aliases(pb::ListAliasesRequest::default()).await.unwrap().into_inner().aliases;
    (listed, aliases)
}

#[tokio::test]
async fn names_aliases_pins_and_generations_survive_a_restart() {
    let mut server = client::start().await;
    let client = &server.client;
    client.publish("poet", "lora_qv").await;
    client.set_alias("prod", "poet").await.unwrap();
    client.publish("poet", "dora").await;
    client.publish("clerk", "rslora").await;
    client.set_alias("next", "poet").await.unwrap();
    let pinned = files("all_linear");
    let header = pb::UploadAdapterHeader { pinned: Some(true), ..header("judge", &pinned) };
    client.send(parts(header, &pinned, 1 << 16)).await.unwrap();
    let before = known(client).await;
    assert_eq!((before.0.len(), before.1.len()), (3, 2));
    let mut answers = Vec::new();
    for name in ["poet", "prod", "next", "clerk", "judge"] {
        answers.push(client.complete(greedy(name, "once", 12)).await);
    }
    server.process.terminate();
    assert!(server.process.wait().success());

    server.process = client::spawn(&server.settings).await;
    let client = Client::connect(&server.process).await;
    assert_eq!(known(&client).await, before);
    let scrape = client.metrics().await;
    assert_eq!(
        scrape.value("evenkeel_adapters_resident"),
        1.0,
        "what is pinned is loaded at the start, and nothing else"
    );
    for (name, answer) in ["poet", "prod", "next", "clerk", "judge"].iter().zip(&answers) {
        assert_eq!(client.complete(greedy(name, "once", 12)).await, *answer, "{name}");
    }
}

#[tokio::test]
async fn a_data_directory_has_one_process() {
    let server = client::start().await;
    server.client.publish("poet", "lora_qv").await;
    let second = server.settings.clone();
    let (success, log) = tokio::task::spawn_blocking(move || Process::fail(&second)).await.unwrap();
    assert!(!success);
    assert!(log.contains("in use"), "{log}");
    server.client.complete(greedy("poet", "once", 4)).await;
}

/// A server that [`client::busy`] keeps at work, with these seconds to drain.
async fn narrow(drain_seconds: u64) -> client::Server {
    client::start_with(client::MODEL, |settings| {
        settings.engine.max_running_sequences = client::BUSY_SEQUENCES;
        settings.server.drain_seconds = drain_seconds;
    })
    .await
}

#[tokio::test]
async fn sigterm_lets_streams_finish_and_refuses_what_is_new() {
    let mut server = narrow(60).await;
    let client = &server.client;
    client.publish("poet", "all_linear").await;
    let load = client::busy(client, "poet").await;
    assert_eq!(client.get("/readyz").await.0, 200);
    server.process.terminate();
    // The signal takes its time, and a call that comes before it waits for the load and is served.
    eventually("the drain", || async { (client.get("/readyz").await.0 == 503).then_some(()) }).await;
    let status = refused(client.generate(greedy("", "x", 1)).await, Code::Unavailable, "DRAINING");
    assert!(status.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
    let upload = client.upload("late", &files("lora_qv")).await;
    refused(upload, Code::Unavailable, "DRAINING");
    // Not ready for work, but alive: whoever restarts what is dead must not cut the streams.
    let mut health = HealthClient::new(client.channel.clone());
    for (service, expected) in
        SERVICES.map(|name| (name, ServingStatus::NotServing)).into_iter().chain([("", ServingStatus::Serving)])
    {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status(), expected, "{service}");
    }
    assert_eq!(client.get("/healthz").await.0, 200);
    for stream in load {
        assert_eq!(stream.await.unwrap().unwrap(), client::BUSY_SEQUENCES, "the drain cut a stream");
    }
    let status = tokio::task::spawn_blocking(move || server.process.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_is_told_so() {
    let mut server = narrow(0).await;
    let client = &server.client;
    client.publish("poet", "all_linear").await;
    let load = client::busy(client, "poet").await;
    server.process.terminate();
    let mut told = 0;
    for stream in load {
        match stream.await.unwrap() {
            Ok(whole) => assert_eq!(whole, client::BUSY_SEQUENCES, "a cut stream looks whole"),
            Err(status) => {
                refused(Err::<(), _>(status), Code::Unavailable, "DRAINING");
                told += 1;
            }
        }
    }
    assert!(told > 0, "the drain waited for everything");
    let status = tokio::task::spawn_blocking(move || server.process.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_cut_stream_never_looks_whole() {
    let mut server = client::start().await;
    server.client.publish("poet", "dora").await;
    let request = greedy("poet", "Winter light", 24);
    let whole = drain(&mut server.client.stream(request.clone()).await.unwrap()).await.unwrap();
    let load = client::busy(&server.client, "poet").await;
    server.process.kill();
    let mut cut = 0;
    for stream in load {
        match stream.await.unwrap() {
            Ok(whole) => assert_eq!(whole, client::BUSY_SEQUENCES, "a cut stream looks whole"),
            Err(_) => cut += 1,
        }
    }
    assert!(cut > 0, "the kill came too late");
    server.process = client::spawn(&server.settings).await;
    let client = Client::connect(&server.process).await;
    assert_eq!(drain(&mut client.stream(request).await.unwrap()).await.unwrap().token_ids, whole.token_ids);
}
