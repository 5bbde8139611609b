//! A walk through the server in one command: pull, serve, chat, score, swap an adapter under a running stream, train
//! one, audit it.
//!
//! A client like any other: it starts the real server on free loopback ports in a temporary folder and then knows it
//! only through gRPC and HTTP. Every claim that it prints is checked; a claim that does not hold ends it with an error.

#![expect(clippy::print_stdout, reason = "the demo's output is its product")]

mod adapter;
mod auditing;
mod training;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use tokio::sync::oneshot;
use tonic::transport::Channel;

use crate::config::Settings;
use crate::hub;
use crate::rpc::pb::adapter_service_client::AdapterServiceClient;
use crate::rpc::pb::inference_service_client::InferenceServiceClient;
use crate::rpc::pb::server_service_client::ServerServiceClient;
use crate::rpc::pb::{
    Adapter, Candidate, ChatMessage, GenerateRequest, GetServerInfoRequest, SamplingParams, ScoreRequest,
    SetAliasRequest, candidate,
};
use crate::server::Server;
use crate::startup;

/// Runs the demo.
///
/// # Errors
/// When the model cannot be had, the server does not start, or a step shows something else than it should.
pub async fn run() -> anyhow::Result<()> {
    let began = Instant::now();
    title("1. A real model: SmolLM2-135M-Instruct");
    let pull = || hub::pull(hub::DEFAULT_MODEL, &hub::default_cache(), hub::Progress::Bars);
    let model = tokio::task::spawn_blocking(pull).await?.context("cannot pull the model")?;
    println!("   {}", model.display());

    title("2. The server, on free ports of this machine only");
    let folder = Folder::create()?;
    let mut settings = Settings::default();
    settings.model.path = model.to_str().context("the path of the model is not Unicode")?.to_owned();
    settings.model.name = Some(hub::DEFAULT_MODEL.to_owned());
    settings.server.data_dir = folder.0.join("data");
    settings.server.listen.set_port(0);
    settings.server.http_listen.set_port(0);
    let own = settings.clone();
    let loaded = tokio::task::spawn_blocking(move || startup::load(&own)).await??;
    let server = Server::bind(settings, loaded).await?;
    let (grpc, http) = (server.grpc_addr(), server.http_addr());
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async move {
        // A sender that is gone ends the demo as well.
        let _ = stopped.await;
    }));
    let outcome = async {
        let channel = Channel::from_shared(format!("http://{grpc}"))?.connect().await?;
        let mut demo = Demo {
            server: ServerServiceClient::new(channel.clone()),
            inference: InferenceServiceClient::new(channel.clone()),
            adapters: AdapterServiceClient::new(channel.clone()),
        };
        demo.info().await?;
        demo.chat().await?;
        demo.score().await?;
        demo.swap().await?;
        training::Training::new(&channel).run().await?;
        auditing::run(&channel).await?;
        metrics(http).await
    }
    .await;
    let _ = stop.send(());
    let ended = running.await;
    outcome?;
    ended?;

    title("Done");
    println!("   {:.0} seconds. To go on by hand, start a server and ask it:", began.elapsed().as_secs_f64());
    println!();
    // As it was called: it need not be on the path.
    let program = std::env::args_os().next().unwrap_or_else(|| "evenkeel".into());
    println!("   {} serve --model {}", program.display(), hub::DEFAULT_MODEL);
    println!(
        "   grpcurl -plaintext -d '{{\"prompt\": \"The keel of a ship\"}}' 127.0.0.1:50051 \
         evenkeel.v1.InferenceService/Generate"
    );
    Ok(())
}

struct Demo {
    server: ServerServiceClient<Channel>,
    inference: InferenceServiceClient<Channel>,
    adapters: AdapterServiceClient<Channel>,
}

impl Demo {
    async fn info(&mut self) -> anyhow::Result<()> {
        let info = self.server.get_server_info(GetServerInfoRequest {}).await?.into_inner();
        let base = info.base_model.context("the server names no base model")?;
        println!(
            "   evenkeel {}: {}, {} million weights, {}",
            info.version,
            base.architecture,
            base.parameters / 1_000_000,
            base.dtype
        );
        println!(
            "   on {}, at most {} tokens, fingerprint {}",
            base.device,
            base.context_length,
            short(&base.fingerprint)
        );
        Ok(())
    }

    /// Streams an answer to stdout, token by token.
    async fn chat(&mut self) -> anyhow::Result<()> {
        title("3. A chat, token by token");
        let question = "What does the keel of a ship do? Answer in two sentences.";
        println!("   user: {question}");
        print!("   assistant: ");
        let began = Instant::now();
        let mut stream = self.inference.generate_stream(chat_request(question, 64)).await?.into_inner();
        let (mut first, mut tokens) = (None, 0);
        while let Some(piece) = stream.message().await? {
            first.get_or_insert_with(|| began.elapsed());
            tokens += piece.token_ids.len();
            print!("{}", piece.text.replace('\n', "\n   "));
            std::io::stdout().flush()?;
        }
        println!();
        ensure!(tokens > 0, "the stream brought no token");
        let (first, all) = (first.unwrap_or_default().as_secs_f64(), began.elapsed().as_secs_f64());
        println!("   ({tokens} tokens in {all:.1} s, the first after {first:.2} s)");
        Ok(())
    }

    /// Compares continuations of one prompt.
    async fn score(&mut self) -> anyhow::Result<()> {
        title("4. How likely is each continuation?");
        let prompt = "The capital of France is";
        let words = [" Paris", " London", " cheese"];
        let candidates = words.map(|word| Candidate { continuation: Some(candidate::Continuation::Text(word.into())) });
        let request =
            ScoreRequest { prompt: Some(prompt.into()), candidates: candidates.into(), ..ScoreRequest::default() };
        let scores = self.inference.score(request).await?.into_inner().candidates;
        ensure!(scores.len() == words.len(), "asked for {} scores, got {}", words.len(), scores.len());
        for (word, score) in words.iter().zip(scores) {
            println!("   {prompt}{word:<10} log-probability {:8.3}", score.sum_logprob);
        }
        Ok(())
    }

    /// Publishes two generations under one name while a stream runs on the first.
    async fn swap(&mut self) -> anyhow::Result<()> {
        title("5. LoRA adapters, swapped under a running stream");
        println!(
            "   The adapters hold random weights, to show the swap: they are not trained; the next step trains one."
        );
        let first = self.upload(1).await?;
        println!(
            "   uploaded `poet`: rank {}, {} layers, generation {}",
            first.rank,
            first.modules.len(),
            short(&first.generation)
        );

        let question = "Name three colours.";
        let base = self.answer("", question).await?;
        let adapted = self.answer("poet", question).await?;
        println!("   base model: {}", line(&base.0));
        println!("   with poet:  {}", line(&adapted.0));
        ensure!(adapted.1 == first.generation, "the answer came from another generation");

        let mut request = chat_request("Tell me a long story about the sea.", 48);
        request.adapter = "poet".into();
        if let Some(sampling) = &mut request.sampling {
            sampling.ignore_eos = Some(true);
        }
        let mut stream = self.inference.generate_stream(request).await?.into_inner();
        let begun = stream.message().await?.context("the stream ended at once")?;
        let second = self.upload(2).await?;
        println!(
            "   a stream runs on {}; meanwhile `poet` was published again as {}",
            short(&begun.generation),
            short(&second.generation)
        );
        let mut tokens = begun.token_ids.len();
        while let Some(piece) = stream.message().await? {
            ensure!(piece.generation == first.generation, "a stream changed its generation");
            tokens += piece.token_ids.len();
        }
        println!("   the running stream kept {} to its last of {tokens} tokens", short(&first.generation));
        let next = self.answer("poet", question).await?;
        ensure!(next.1 == second.generation, "the next request did not take the new generation");
        println!("   the next request took   {}: {}", short(&next.1), line(&next.0));

        let alias = SetAliasRequest {
            name: "prod".into(),
            adapter: format!("poet@{}", first.generation),
            expected_generation: Some(String::new()),
            ..SetAliasRequest::default()
        };
        let alias = self.adapters.set_alias(alias).await?.into_inner();
        let old = self.answer("prod", question).await?;
        ensure!(old == adapted, "the alias did not bring the first generation's answer back");
        println!("   alias `{}` points back to {}, and its answer is the same as before", alias.name, short(&old.1));
        Ok(())
    }

    async fn upload(&mut self, seed: u64) -> anyhow::Result<Adapter> {
        let messages = tokio::task::spawn_blocking(move || adapter::random("poet", seed)).await??;
        Ok(self.adapters.upload_adapter(tokio_stream::iter(messages)).await?.into_inner())
    }

    /// Returns an answer and the generation that gave it.
    async fn answer(&mut self, adapter: &str, question: &str) -> anyhow::Result<(String, String)> {
        let mut request = chat_request(question, 24);
        request.adapter = adapter.into();
        let response = self.inference.generate(request).await?.into_inner();
        let choice = response.choices.into_iter().next().context("the answer has no text")?;
        Ok((choice.text, response.generation))
    }
}

fn chat_request(question: &str, max_new_tokens: u32) -> GenerateRequest {
    let sampling =
        SamplingParams { temperature: Some(0.0), max_new_tokens: Some(max_new_tokens), ..SamplingParams::default() };
    GenerateRequest {
        messages: vec![ChatMessage { role: "user".into(), content: question.into() }],
        sampling: Some(sampling),
        ..GenerateRequest::default()
    }
}

/// Prints a few lines of /metrics.
async fn metrics(http: std::net::SocketAddr) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    title("8. What Prometheus sees");
    let mut socket = tokio::net::TcpStream::connect(http).await?;
    socket.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {http}\r\n\r\n").as_bytes()).await?;
    let mut page = String::new();
    socket.read_to_string(&mut page).await?;
    let wanted = [
        "evenkeel_prompt_tokens_total{",
        "evenkeel_generation_tokens_total{",
        "evenkeel_time_to_first_token_seconds_count{",
        "evenkeel_adapters_resident ",
        "evenkeel_adapter_loads_total{",
        "evenkeel_adapter_requests_total{",
        "evenkeel_training_steps_total ",
        "evenkeel_jobs_finished_total{",
    ];
    let lines: Vec<_> = page.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))).collect();
    ensure!(!lines.is_empty(), "/metrics does not show what the server did");
    for line in lines {
        println!("   {line}");
    }
    Ok(())
}

fn title(text: &str) {
    println!("\n{text}");
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Folds a text into one line.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A temporary folder, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("evenkeel-demo-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing more can be done about a folder that does not go.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
