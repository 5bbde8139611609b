//! What the tests say to a server: short forms of the calls, golden adapters, scraped metrics, details of errors.
//!
//! Asserts nothing about answers beyond what every answer must be; the themes do that.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use evenkeel::config::Settings;
use evenkeel::rpc::pb::adapter_service_client::AdapterServiceClient;
use evenkeel::rpc::pb::dataset_service_client::DatasetServiceClient;
use evenkeel::rpc::pb::inference_service_client::InferenceServiceClient;
use evenkeel::rpc::pb::server_service_client::ServerServiceClient;
use evenkeel::rpc::pb::upload_adapter_request::Part;
use evenkeel::rpc::pb::{self, GenerateRequest, SamplingParams};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::golden;
use super::process::{self, Process};

/// The model that most tests serve; the golden adapters are for it.
pub(crate) const MODEL: &str = "llama_mha";
/// Adapters for [`MODEL`] of different rank and kind.
pub(crate) const ADAPTERS: [&str; 8] = [
    "lora_qv",
    "lora_qv_second",
    "rslora",
    "all_linear",
    "dora",
    "rank_alpha_pattern",
    "rank_per_module",
    "embed_lm_head_light",
];

/// A server of its own for one test, its data and a client.
pub(crate) struct Server {
    /// The process.
    pub(crate) process: Process,
    /// A client of it.
    pub(crate) client: Client,
    /// What it was started with.
    pub(crate) settings: Settings,
    /// Holds the data directory.
    _folder: tempfile::TempDir,
}

/// Starts a server on [`MODEL`] with the settings as shipped.
pub(crate) async fn start() -> Server {
    start_with(MODEL, |_| {}).await
}

/// Starts a server on a golden model with changed settings.
pub(crate) async fn start_with(model: &str, change: impl FnOnce(&mut Settings)) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = process::settings(model, &folder.path().join("data"));
    change(&mut settings);
    let process = spawn(&settings).await;
    let client = Client::connect(&process).await;
    Server { process, client, settings, _folder: folder }
}

/// Starts the binary off the test's thread.
pub(crate) async fn spawn(settings: &Settings) -> Process {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || Process::start(&settings)).await.unwrap()
}

/// A golden adapter's files: configuration, tensors.
pub(crate) fn files(adapter: &str) -> [(&'static str, Vec<u8>); 2] {
    let folder = golden::root().join("adapters").join(adapter);
    ["adapter_config.json", "adapter_model.safetensors"].map(|name| (name, std::fs::read(folder.join(name)).unwrap()))
}

/// Lower-case hexadecimal SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The header of an upload.
pub(crate) fn header(name: &str, files: &[(&str, Vec<u8>)]) -> pb::UploadAdapterHeader {
    let info = |(name, bytes): &(&str, Vec<u8>)| pb::FileInfo {
        name: (*name).to_owned(),
        size: bytes.len() as u64,
        sha256: sha256(bytes),
    };
    pb::UploadAdapterHeader { name: name.to_owned(), files: files.iter().map(info).collect(), ..Default::default() }
}

/// The messages of an upload in chunks of at most `size` bytes.
pub(crate) fn parts(header: pb::UploadAdapterHeader, files: &[(&str, Vec<u8>)], size: usize) -> Vec<Part> {
    let mut parts = vec![Part::Header(header)];
    for (name, bytes) in files {
        for (index, data) in bytes.chunks(size).enumerate() {
            let offset = (index * size) as u64;
            parts.push(Part::Chunk(pb::FileChunk { name: (*name).to_owned(), offset, data: data.to_vec() }));
        }
    }
    parts
}

/// Greedy decoding of at most `tokens` tokens.
pub(crate) fn greedy(adapter: &str, prompt: &str, tokens: u32) -> GenerateRequest {
    GenerateRequest {
        adapter: adapter.to_owned(),
        prompt: Some(prompt.to_owned()),
        sampling: Some(SamplingParams { max_new_tokens: Some(tokens), temperature: Some(0.0), ..Default::default() }),
        ..Default::default()
    }
}

/// Clients of every service, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) inference: InferenceServiceClient<Channel>,
    pub(crate) adapters: AdapterServiceClient<Channel>,
    pub(crate) datasets: DatasetServiceClient<Channel>,
    pub(crate) server: ServerServiceClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) http: SocketAddr,
}

impl Client {
    /// Opens a connection.
    pub(crate) async fn connect(process: &Process) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", process.grpc)).unwrap();
        Self::over(endpoint.connect().await.unwrap(), process.http)
    }

    /// Speaks over a connection that exists.
    pub(crate) fn over(channel: Channel, http: SocketAddr) -> Self {
        Self {
            inference: InferenceServiceClient::new(channel.clone()),
            adapters: AdapterServiceClient::new(channel.clone()),
            datasets: DatasetServiceClient::new(channel.clone()),
            server: ServerServiceClient::new(channel.clone()),
            channel,
            http,
        }
    }

    pub(crate) async fn generate(&self, request: GenerateRequest) -> Result<pb::GenerateResponse, Status> {
        Ok(self.inference.clone().generate(request).await?.into_inner())
    }

    /// Generates one completion and returns it with the generation that answered.
    pub(crate) async fn complete(&self, request: GenerateRequest) -> (pb::Choice, String) {
        let mut response = self.generate(request).await.unwrap();
        assert_eq!(response.choices.len(), 1);
        (response.choices.remove(0), response.generation)
    }

    pub(crate) async fn stream(
        &self,
        request: GenerateRequest,
    ) -> Result<Streaming<pb::GenerateStreamResponse>, Status> {
        Ok(self.inference.clone().generate_stream(request).await?.into_inner())
    }

    pub(crate) async fn tokenize(&self, text: &str) -> Vec<u32> {
        let request = pb::TokenizeRequest { text: Some(text.to_owned()), ..Default::default() };
        self.inference.clone().tokenize(request).await.unwrap().into_inner().ids
    }

    /// Sends the messages of an upload.
    pub(crate) async fn send(&self, parts: Vec<Part>) -> Result<pb::Adapter, Status> {
        let messages = parts.into_iter().map(|part| pb::UploadAdapterRequest { part: Some(part) });
        Ok(self.adapters.clone().upload_adapter(tokio_stream::iter(messages)).await?.into_inner())
    }

    /// Uploads files under a name.
    pub(crate) async fn upload(&self, name: &str, files: &[(&str, Vec<u8>)]) -> Result<pb::Adapter, Status> {
        self.send(parts(header(name, files), files, 64 << 10)).await
    }

    /// Uploads a golden adapter under a name.
    pub(crate) async fn publish(&self, name: &str, adapter: &str) -> pb::Adapter {
        self.upload(name, &files(adapter)).await.unwrap()
    }

    pub(crate) async fn adapter(&self, name: &str) -> Result<pb::Adapter, Status> {
        let request = pb::GetAdapterRequest { name: name.to_owned() };
        Ok(self.adapters.clone().get_adapter(request).await?.into_inner())
    }

    /// Points an alias somewhere, whatever it points to now.
    pub(crate) async fn set_alias(&self, name: &str, adapter: &str) -> Result<pb::Alias, Status> {
        let request = pb::SetAliasRequest { name: name.into(), adapter: adapter.into(), ..Default::default() };
        Ok(self.adapters.clone().set_alias(request).await?.into_inner())
    }

    /// Takes an adapter out of memory.
    pub(crate) async fn unload(&self, name: &str) -> Result<pb::Adapter, Status> {
        let request = pb::UnloadAdapterRequest { name: name.to_owned(), ..Default::default() };
        Ok(self.adapters.clone().unload_adapter(request).await?.into_inner())
    }

    /// Deletes an adapter.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), Status> {
        let request = pb::DeleteAdapterRequest { name: name.to_owned(), ..Default::default() };
        self.adapters.clone().delete_adapter(request).await.map(tonic::Response::into_inner)
    }

    /// Answers of the HTTP listener: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let mut socket = tokio::net::TcpStream::connect(self.http).await.unwrap();
        socket.write_all(format!("GET {path} HTTP/1.0\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Scrapes all metrics.
    pub(crate) async fn metrics(&self) -> Scrape {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200);
        Scrape::parse(&text)
    }

    /// Waits until the engine and the registry hold nothing for a request.
    pub(crate) async fn idle(&self) {
        for gauge in ["evenkeel_num_requests_running", "evenkeel_num_requests_waiting", "evenkeel_kv_cache_bytes"] {
            eventually(gauge, || async { (self.metrics().await.value(gauge) == 0.0).then_some(()) }).await;
        }
    }
}

/// A piece-by-piece completion, put together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Streamed {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Vec<pb::PositionLogprobs>,
    pub(crate) generation: String,
    pub(crate) finish: i32,
    pub(crate) pieces: usize,
}

/// Reads a stream of one completion to its end; no piece may name another generation than the first.
pub(crate) async fn drain(stream: &mut Streaming<pb::GenerateStreamResponse>) -> Result<Streamed, Status> {
    let mut all = Streamed::default();
    while let Some(piece) = stream.message().await? {
        assert_eq!(all.finish, 0, "a piece after the last one");
        if all.pieces == 0 {
            all.generation.clone_from(&piece.generation);
        }
        assert_eq!(piece.generation, all.generation, "a stream names two generations");
        all.text.push_str(&piece.text);
        all.token_ids.extend(piece.token_ids);
        all.logprobs.extend(piece.logprobs);
        all.finish = piece.finish_reason;
        all.pieces += 1;
    }
    assert_ne!(all.finish, 0, "the stream ended without a reason");
    Ok(all)
}

/// Sequences of one request of [`busy`].
pub(crate) const BUSY_SEQUENCES: usize = 16;

/// Keeps a server that computes [`BUSY_SEQUENCES`] sequences at a time at work for some seconds.
///
/// Each task reads one stream to its end and returns how many of its completions were whole. Returns when the first
/// piece is there.
pub(crate) async fn busy(client: &Client, adapter: &str) -> Vec<tokio::task::JoinHandle<Result<usize, Status>>> {
    let mut request = GenerateRequest { n: Some(BUSY_SEQUENCES as u32), ..greedy(adapter, "Winter light", 240) };
    request.sampling.get_or_insert_default().ignore_eos = Some(true);
    let (began, mut first) = tokio::sync::mpsc::channel(1);
    let tasks = (0..12).map(|_| {
        let (client, request, began) = (client.clone(), request.clone(), began.clone());
        tokio::spawn(async move {
            let mut stream = client.stream(request).await?;
            let mut whole = 0;
            while let Some(piece) = stream.message().await? {
                let _ = began.try_send(());
                whole += usize::from(piece.finish_reason != 0);
            }
            Ok(whole)
        })
    });
    let tasks = tasks.collect();
    first.recv().await.unwrap();
    tasks
}

/// Values by series, as the text format writes them: `name{label="value"}`.
#[derive(Debug, Clone)]
pub(crate) struct Scrape(pub(crate) BTreeMap<String, f64>);

impl Scrape {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let pair = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        };
        Self(lines.map(pair).collect())
    }

    /// Sum of the series of a metric that is there, one for each model or one in all.
    pub(crate) fn value(&self, name: &str) -> f64 {
        assert!(self.0.keys().any(|series| series.split('{').next() == Some(name)), "no metric {name}");
        self.sum(name, &[])
    }

    /// Sum of the series of one metric that hold every given `label="value"`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of_metric = |series: &&String| series.split('{').next() == Some(name);
        let named = |series: &&String| labels.iter().all(|label| series.contains(label));
        self.0.keys().filter(of_metric).filter(named).map(|series| self.0[series]).sum()
    }
}

/// Asks until there is an answer; gives up after a minute.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Compares a text that was streamed with the whole one.
///
/// Where a run of byte tokens is broken, decoding it at once makes U+FFFD of letters too that a stream has shown by
/// then and cannot take back (README of the golden values). What lies between such runs must be there, in order.
#[track_caller]
pub(crate) fn same_text(streamed: &str, whole: &str) {
    if !whole.contains(char::REPLACEMENT_CHARACTER) {
        return assert_eq!(streamed, whole);
    }
    let mut rest = streamed;
    for part in whole.split(char::REPLACEMENT_CHARACTER) {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} of {whole:?} is not in {streamed:?}"));
        rest = &rest[at + part.len()..];
    }
}

/// Asserts code, reason and domain of an error and that it says something.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = result.unwrap_err();
    let info = status.get_details_error_info();
    let got = info.as_ref().map_or("no ErrorInfo", |info| info.reason.as_str());
    assert_eq!((status.code(), got), (code, reason), "{status:?}");
    assert!(info.is_some_and(|info| !info.domain.is_empty()), "no domain: {status:?}");
    assert!(!status.message().is_empty(), "no message: {status:?}");
    status
}

/// The fields that a BadRequest names, sorted.
pub(crate) fn violations(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest: {status:?}"));
    let mut fields: Vec<_> = details.field_violations.into_iter().map(|violation| violation.field).collect();
    fields.sort();
    fields
}

/// The subject of the one precondition that a refusal names, whose type is its reason.
#[track_caller]
pub(crate) fn precondition(status: &Status, reason: &str) -> String {
    let details = status.get_details_precondition_failure().unwrap_or_else(|| panic!("no precondition: {status:?}"));
    let [violation] = details.violations.as_slice() else { panic!("{:?}", details.violations) };
    assert_eq!(violation.r#type, reason);
    assert!(!violation.description.is_empty());
    violation.subject.clone()
}

/// The subject of the one limit that a refusal names.
#[track_caller]
pub(crate) fn quota(status: &Status) -> String {
    let details = status.get_details_quota_failure().unwrap_or_else(|| panic!("no quota: {status:?}"));
    let [violation] = details.violations.as_slice() else { panic!("{:?}", details.violations) };
    assert!(!violation.description.is_empty());
    violation.subject.clone()
}
