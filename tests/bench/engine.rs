//! What streaming through gRPC costs: the same streams from the engine alone and from a whole server, in turn.
//!
//! `cargo bench --bench engine -- MODEL [ROUNDS] [smoke] [device=cuda]` reads a folder or GGUF file once, starts an
//! engine on it, and on the same weights a server on loopback in this process, which a client here asks. Streams of 8
//! and 32 greedy requests, 32 random tokens each and 32 new ones, begin together; one of the two computes at a time. It
//! prints new tokens a second, medians of the rounds (9), and the median of the ratios of the rounds: gRPC over the
//! engine alone.
//! `smoke`: a few tokens each; the figures mean nothing. Threads and allocator are those of `main`.

#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use evenkeel::config::Settings;
use evenkeel::engine::{Engine, Event, GenerateRequest, Sampling, Stopping};
use evenkeel::metrics::Metrics;
use evenkeel::rpc::pb;
use evenkeel::rpc::pb::inference_service_client::InferenceServiceClient;
use evenkeel::server::Server;
use evenkeel::startup;
use evenkeel::turns::Turns;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
/// As in `main`.
const PURGE_DELAY: (libmimalloc_sys::mi_option_t, std::ffi::c_long) = (15, 60_000);

/// What is asked for at a time.
#[derive(Debug, Clone, Copy)]
struct Case {
    streams: usize,
    prompt: usize,
    new: usize,
}

impl Case {
    /// Random ids, different in every stream and round, so that no prefix is shared.
    fn prompts(self, vocab: u32, seed: u64) -> Vec<Vec<u32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..self.streams).map(|_| (0..self.prompt).map(|_| rng.random_range(0..vocab)).collect()).collect()
    }

    fn check(self, tokens: usize) -> anyhow::Result<()> {
        ensure!(tokens == self.streams * self.new, "{tokens} tokens instead of {} x {}", self.streams, self.new);
        Ok(())
    }
}

/// Asks the engine as `rpc::inference` does; returns seconds.
async fn alone(engine: &Engine, case: Case, prompts: Vec<Vec<u32>>) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let mut streams = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let sampling = Sampling {
            max_new_tokens: case.new,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
        };
        let stopping = Stopping { ignore_eos: true, ..Stopping::default() };
        streams.push(engine.enter(1)?.generate(GenerateRequest {
            prompt,
            adapter: None,
            sampling,
            stopping,
            n: 1,
            logprobs: None,
            adapter_use: None,
            deadline: None,
        })?);
    }
    let mut count = 0;
    for mut events in streams {
        loop {
            match events.recv().await.context("the engine ended")? {
                Event::Delta { tokens, .. } => count += tokens.len(),
                Event::Done => break,
                Event::Failed(error) => return Err(error.into()),
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    case.check(count)?;
    Ok(seconds)
}

/// Asks the server; returns seconds.
async fn through_grpc(
    client: &InferenceServiceClient<Channel>,
    case: Case,
    prompts: Vec<Vec<u32>>,
) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let streams = prompts.into_iter().map(|ids| {
        let mut client = client.clone();
        let request = pb::GenerateRequest {
            prompt_token_ids: Some(pb::TokenIds { ids }),
            sampling: Some(pb::SamplingParams {
                max_new_tokens: u32::try_from(case.new).ok(),
                temperature: Some(0.0),
                ignore_eos: Some(true),
                ..pb::SamplingParams::default()
            }),
            ..pb::GenerateRequest::default()
        };
        tokio::spawn(async move {
            let mut pieces = client.generate_stream(request).await?.into_inner();
            let mut count = 0;
            while let Some(piece) = pieces.message().await? {
                count += piece.token_ids.len();
            }
            Ok::<_, tonic::Status>(count)
        })
    });
    let mut count = 0;
    for stream in streams.collect::<Vec<_>>() {
        count += stream.await??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    case.check(count)?;
    Ok(seconds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
    (values[low] + values[high]) / 2.0
}

fn threads(count: usize) -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(count).enable_all().build()?)
}

fn main() -> anyhow::Result<()> {
    #[expect(unsafe_code, reason = "a C function that stores a number; no other thread runs yet")]
    // SAFETY: the option exists, and nothing else touches it.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY.0, PURGE_DELAY.1);
    }
    // cargo adds flags of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let Some(model) = arguments.first() else { bail!("say which model: cargo bench --bench engine -- MODEL [ROUNDS]") };
    let smoke = arguments.iter().any(|argument| argument == "smoke");
    let rounds = arguments.get(1).and_then(|number| number.parse().ok()).unwrap_or(if smoke { 1 } else { 9 }).max(1);

    let folder = tempfile::tempdir()?;
    let mut settings = Settings::default();
    settings.model.path.clone_from(model);
    if let Some(device) = arguments.iter().find_map(|argument| argument.strip_prefix("device=")) {
        device.clone_into(&mut settings.model.device);
    }
    settings.server.data_dir = folder.path().to_owned();
    settings.server.listen.set_port(0);
    settings.server.http_listen.set_port(0);
    let loaded = startup::load(&settings)?;
    let vocab = u32::try_from(loaded.model.info().vocab_size)?;
    let engine = Engine::start(
        Arc::clone(&loaded.model),
        Arc::clone(&loaded.tokenizer),
        settings.engine.clone(),
        Arc::new(Metrics::new()?),
        Arc::new(Turns::new(settings.jobs.patience())),
    );
    // The server has its threads, and whoever asks has others.
    let (serving, asking) = (threads(2)?, threads(1)?);
    let server = serving.block_on(Server::bind(settings, loaded))?;
    let address = format!("http://{}", server.grpc_addr());
    serving.spawn(server.run(std::future::pending()));
    let client = asking.block_on(InferenceServiceClient::connect(address))?;

    println!("| gRPC against the engine alone | engine | gRPC | ratio |\n| --- | --- | --- | --- |");
    for streams in [8, 32] {
        let case = if smoke { Case { streams, prompt: 4, new: 3 } } else { Case { streams, prompt: 32, new: 32 } };
        let mut measured = [Vec::new(), Vec::new(), Vec::new()];
        // Round 0 warms up.
        for round in 0..=rounds {
            let prompts = case.prompts(vocab, round);
            let engine = asking.block_on(alone(&engine, case, prompts.clone()))?;
            let grpc = asking.block_on(through_grpc(&client, case, prompts))?;
            if round > 0 {
                let tokens = (case.streams * case.new) as f64;
                let values = [tokens / engine, tokens / grpc, engine / grpc];
                measured.iter_mut().zip(values).for_each(|(values, value)| values.push(value));
            }
        }
        let [engine, grpc, ratio] = measured.map(median);
        let Case { prompt, new, .. } = case;
        println!("| {streams} streams {prompt}+{new}, new tokens/s | {engine:.1} | {grpc:.1} | {ratio:.3} |");
    }
    // Nobody waits for a server that is not asked to end.
    serving.shutdown_background();
    Ok(())
}
