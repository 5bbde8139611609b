//! What a server costs beside its engine, and a swap a stream: measured by a client in the server's process.
//!
//! `cargo bench --bench engine -- MODEL [ROUNDS] [smoke] [device=cuda] [adapters=FOLDER]` reads a folder or GGUF file
//! once, and starts a server on loopback in this process, which a client here asks.
//!
//! Without `adapters`, what streaming through gRPC costs: the same streams from an engine on the same weights and from
//! the server, one of the two at a time. Streams of 8 and 32 greedy requests, 32 random tokens each and 32 new ones,
//! begin together. It prints new tokens a second, medians of the rounds (9), and the median of the ratios of the rounds:
//! gRPC over the engine alone.
//!
//! With `adapters`, a folder with the PEFT folders `random-0` and `random-1`, what a running stream feels of an alias
//! that moves between the two: see [`swaps`].
//! `smoke`: a few tokens each; the figures mean nothing. Threads and allocator are those of `main`.

#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use evenkeel::config::Settings;
use evenkeel::engine::{Engine, Event, GenerateRequest, Sampling, Stopping};
use evenkeel::metrics::Metrics;
use evenkeel::rpc::pb;
use evenkeel::rpc::pb::adapter_service_client::AdapterServiceClient;
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

/// Prints what streaming through gRPC costs.
async fn streams(engine: &Engine, address: String, vocab: u32, rounds: u64, smoke: bool) -> anyhow::Result<()> {
    let client = InferenceServiceClient::connect(address).await?;
    println!("| gRPC against the engine alone | engine | gRPC | ratio |\n| --- | --- | --- | --- |");
    for streams in [8, 32] {
        let case = if smoke { Case { streams, prompt: 4, new: 3 } } else { Case { streams, prompt: 32, new: 32 } };
        let mut measured = [Vec::new(), Vec::new(), Vec::new()];
        // Round 0 warms up.
        for round in 0..=rounds {
            let prompts = case.prompts(vocab, round);
            let engine = alone(engine, case, prompts.clone()).await?;
            let grpc = through_grpc(&client, case, prompts).await?;
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
    Ok(())
}

/// What is called beside a stream: a swap, its control, nothing.
#[derive(Debug, Clone, Copy)]
enum Call {
    Move,
    Read,
    Nothing,
}

/// Tokens of a stream from one call beside it to the next.
const APART: usize = 10;
/// Names of the two adapters, and of the alias.
const ADAPTERS: [&str; 2] = ["random-0", "random-1"];
const ALIAS: &str = "live";

/// Calls once; returns when it began and ended. Nothing has a time like a call's: windows of other lengths would overlap
/// more gaps, or fewer.
async fn call(
    mut client: AdapterServiceClient<Channel>,
    what: Call,
    target: &'static str,
    usual: Duration,
) -> Result<(Instant, Instant), tonic::Status> {
    let begin = Instant::now();
    match what {
        Call::Move => {
            let request =
                pb::SetAliasRequest { name: ALIAS.into(), adapter: target.into(), ..pb::SetAliasRequest::default() };
            client.set_alias(request).await?;
        }
        Call::Read => {
            client.get_alias(pb::GetAliasRequest { name: ALIAS.into() }).await?;
        }
        Call::Nothing => return Ok((begin, begin + usual)),
    }
    Ok((begin, Instant::now()))
}

/// One stream of `adapter`, and calls of another connection meanwhile, one every [`APART`] tokens and up to 5 ms later (a
/// timer counts whole ones): when each token came, when each call began and ended. `usual` is how long a call takes.
async fn beside(
    (client, adapters): (&InferenceServiceClient<Channel>, &AdapterServiceClient<Channel>),
    adapter: &str,
    what: Call,
    (ids, new): (Vec<u32>, usize),
    usual: Duration,
) -> anyhow::Result<(Vec<Instant>, Vec<(Instant, Instant)>)> {
    // Every stream begins with the alias at the same adapter.
    call(adapters.clone(), Call::Move, ADAPTERS[0], usual).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(ids[0]));
    let request = pb::GenerateRequest {
        adapter: adapter.into(),
        prompt_token_ids: Some(pb::TokenIds { ids }),
        sampling: Some(pb::SamplingParams {
            max_new_tokens: u32::try_from(new).ok(),
            temperature: Some(0.0),
            ignore_eos: Some(true),
            ..pb::SamplingParams::default()
        }),
        ..pb::GenerateRequest::default()
    };
    let mut pieces = client.clone().generate_stream(request).await?.into_inner();
    let (mut times, mut calls) = (Vec::with_capacity(new), Vec::new());
    while let Some(piece) = pieces.message().await? {
        times.extend(piece.token_ids.iter().map(|_| Instant::now()));
        while calls.len() < times.len().min(new - APART) / APART {
            let wait = Duration::from_micros(rng.random_range(0..5000));
            let (client, target) = (adapters.clone(), ADAPTERS[(calls.len() + 1) % 2]);
            calls.push(tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                call(client, what, target, usual).await
            }));
        }
    }
    ensure!(times.len() == new, "{} tokens instead of {new}", times.len());
    let mut ran = Vec::with_capacity(calls.len());
    for call in calls {
        ran.push(call.await??);
    }
    Ok((times, ran))
}

/// What the tokens of a stream show of the calls beside it, in milliseconds: the median gap, by how much the gaps in
/// which a call ran are longer than as many median gaps in which none did (any moment falls more often into a long gap,
/// so that this is not zero without a call either) in the middle and at worst, the whole stream for each call, and the
/// call itself.
fn felt(times: &[Instant], calls: &[(Instant, Instant)]) -> anyhow::Result<[f64; 5]> {
    let millis = |time: Duration| 1e3 * time.as_secs_f64();
    let gaps: Vec<_> = times.windows(2).map(|pair| (pair[0], pair[1], millis(pair[1] - pair[0]))).collect();
    let hit = |gap: &(Instant, Instant, f64), call: &(Instant, Instant)| gap.0 < call.1 && call.0 < gap.1;
    let free = gaps.iter().filter(|gap| !calls.iter().any(|call| hit(gap, call)));
    let usual = median(free.map(|gap| gap.2).collect());
    // A call that began after the last token is in no gap.
    let stall = |call| {
        let found: Vec<f64> = gaps.iter().filter(|gap| hit(gap, call)).map(|gap| gap.2 - usual).collect();
        (!found.is_empty()).then(|| found.iter().sum::<f64>())
    };
    let stalls: Vec<f64> = calls.iter().filter_map(stall).collect();
    ensure!(!stalls.is_empty(), "no call fell between two tokens");
    Ok([
        median(gaps.iter().map(|gap| gap.2).collect()),
        stalls.iter().copied().fold(f64::MIN, f64::max),
        median(stalls),
        gaps.iter().map(|gap| gap.2).sum::<f64>() / calls.len() as f64,
        median(calls.iter().map(|call| millis(call.1 - call.0)).collect()),
    ])
}

/// Prints what a running stream feels of an alias that moves between two adapters in memory: a stream of the base model,
/// and one of the alias. In turn, at the same tokens, the alias is only read, and nothing is called.
async fn swaps(address: String, vocab: u32, rounds: u64, smoke: bool) -> anyhow::Result<()> {
    // Two connections.
    let client = InferenceServiceClient::connect(address.clone()).await?;
    let mut adapters = AdapterServiceClient::connect(address).await?;
    for name in ADAPTERS {
        let request = pb::LoadAdapterRequest { name: name.into(), directory: name.into(), ..Default::default() };
        let loaded = adapters.load_adapter(request).await?.into_inner();
        ensure!(
            loaded.generations.iter().any(|generation| generation.residency() == pb::Residency::Resident),
            "`{name}` is not in memory"
        );
    }
    let new = if smoke { 3 * APART } else { 512 };
    let mut done = [Call::Move, Call::Read, Call::Nothing];
    let figures =
        ["gap, median", "stall by a call, worst", "stall by a call, median", "whole stream, for each call", "the call"];
    let mut usual = Duration::from_millis(1);
    println!("| a stream of, ms | moved | read | no call | moved less read | moved less no call |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (title, adapter) in [("base model", ""), ("the alias", ALIAS)] {
        // By figure and by what is called.
        let mut measured: [[Vec<f64>; 3]; 5] = Default::default();
        // Round 0 warms up.
        for round in 0..=rounds {
            let prompt = Case { streams: 1, prompt: 16, new }.prompts(vocab, round).remove(0);
            // Each is first in turn.
            done.rotate_left(1);
            for what in done {
                let (times, calls) = beside((&client, &adapters), adapter, what, (prompt.clone(), new), usual).await?;
                let values = felt(&times, &calls)?;
                if let (Call::Move, [.., call]) = (what, values) {
                    usual = Duration::from_secs_f64(call / 1e3);
                }
                if round > 0 {
                    measured.iter_mut().zip(values).for_each(|(by, value)| by[what as usize].push(value));
                }
            }
        }
        for (figure, [moved, read, nothing]) in figures.into_iter().zip(measured) {
            let less = |other: &[f64]| median(moved.iter().zip(other).map(|(a, b)| a - b).collect());
            let (less_read, less_nothing) = (less(&read), less(&nothing));
            let [moved, read, nothing] = [moved, read, nothing].map(median);
            println!(
                "| {title}: {figure} | {moved:.2} | {read:.2} | {nothing:.2} | {less_read:.2} | {less_nothing:.2} |"
            );
        }
    }
    Ok(())
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

    let option = |name: &str| arguments.iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));

    let folder = tempfile::tempdir()?;
    let mut settings = Settings::default();
    settings.model.path.clone_from(model);
    if let Some(device) = option("device") {
        device.clone_into(&mut settings.model.device);
    }
    settings.registry.adapter_dir = option("adapters").map(Into::into);
    settings.server.data_dir = folder.path().to_owned();
    settings.server.listen.set_port(0);
    settings.server.http_listen.set_port(0);
    let loaded = startup::load(&settings)?;
    let vocab = u32::try_from(loaded.model.info().vocab_size)?;
    // The server has its threads, and whoever asks has others.
    let (serving, asking) = (threads(2)?, threads(1)?);
    let streaming = option("adapters").is_none().then(|| (Arc::clone(&loaded.model), Arc::clone(&loaded.tokenizer)));
    let engine_settings = settings.engine.clone();
    let patience = settings.jobs.patience();
    let server = serving.block_on(Server::bind(settings, loaded))?;
    let address = format!("http://{}", server.grpc_addr());
    serving.spawn(server.run(std::future::pending()));
    match streaming {
        None => asking.block_on(swaps(address, vocab, rounds, smoke))?,
        Some((model, tokenizer)) => {
            let turns = Arc::new(Turns::new(patience));
            let engine = Engine::start(model, tokenizer, engine_settings, Arc::new(Metrics::new()?), turns);
            asking.block_on(streams(&engine, address, vocab, rounds, smoke))?;
        }
    }
    // Nobody waits for a server that is not asked to end.
    serving.shutdown_background();
    Ok(())
}
