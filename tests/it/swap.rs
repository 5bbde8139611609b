//! Adapters change while requests run: no request sees two generations, no swap fails, nothing piles up.
//!
//! Expected answers are computed one by one before the load starts, and those under load are the same to the last bit:
//! on the CPU no row of a product depends on those beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use evenkeel::rpc::pb::{self, GenerateRequest};

use super::client::{self, ADAPTERS, Client, Streamed, drain, eventually, greedy};

/// New tokens of each request under load.
const TOKENS: u32 = 20;
const PROMPTS: [&str; 8] = [
    "The server loads",
    "Bread, salt and a bay leaf",
    "Who is",
    "She said",
    "Winter light",
    "once",
    "An adapter comes and goes",
    "0 1 2 3",
];

/// Greedy decoding that tells how sure it was.
fn asked(adapter: &str, prompt: &str, tokens: u32) -> GenerateRequest {
    GenerateRequest { logprobs: Some(2), ..greedy(adapter, prompt, tokens) }
}

/// What one request answers, by stream.
async fn answer(client: &Client, adapter: &str, prompt: &str, tokens: u32) -> Streamed {
    drain(&mut client.stream(asked(adapter, prompt, tokens)).await.unwrap()).await.unwrap()
}

#[tokio::test]
async fn sixty_four_streams_over_eight_adapters_answer_as_one_by_one() {
    let server = client::start().await;
    let client = &server.client;
    let mut ranks = Vec::new();
    for adapter in ADAPTERS {
        let published = client.publish(&adapter.replace('_', "-"), adapter).await;
        ranks.push(published.rank);
    }
    ranks.sort_unstable();
    ranks.dedup();
    assert!(ranks.len() >= 4, "ranks {ranks:?}");
    let mut cases = Vec::new();
    for adapter in ADAPTERS {
        for prompt in PROMPTS {
            let name = adapter.replace('_', "-");
            let expected = answer(client, &name, prompt, 24).await;
            assert_eq!(expected.logprobs.len(), expected.token_ids.len());
            cases.push((name, prompt, expected));
        }
    }
    assert_eq!(cases.len(), 64);
    let streams = cases.iter().map(|(name, prompt, _)| {
        let (client, name, prompt) = (client.clone(), name.clone(), *prompt);
        tokio::spawn(async move { answer(&client, &name, prompt, 24).await })
    });
    let streams: Vec<_> = streams.collect();
    for (stream, (name, prompt, expected)) in streams.into_iter().zip(&cases) {
        // Ids, texts and generations, and the bits of log-probabilities.
        assert_eq!(&stream.await.unwrap(), expected, "{name} {prompt}");
    }
    client.idle().await;
    // They shared steps: one by one each takes a step a token.
    let scrape = client.metrics().await;
    let tokens: usize = cases.iter().map(|(.., expected)| expected.token_ids.len()).sum();
    let steps = scrape.value("evenkeel_iteration_tokens_count");
    assert!(steps < 1.5 * tokens as f64, "{steps} steps for twice {tokens} tokens");
}

/// Requests that never stop until told, each checked against what either generation answers alone.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<[usize; 2]>>,
    finished: Arc<AtomicUsize>,
}

impl Load {
    fn start(
        client: &Client,
        name: &'static str,
        expected: &Arc<Vec<(&'static str, Vec<Streamed>)>>,
        streams: usize,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let finished = Arc::new(AtomicUsize::new(0));
        let tasks = (0..streams).map(|i| {
            let (client, stop, finished) = (client.clone(), stop.clone(), finished.clone());
            let expected = expected.clone();
            tokio::spawn(async move {
                let mut seen = [0, 0];
                for turn in i.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let (prompt, answers) = &expected[turn % expected.len()];
                    let got = answer(&client, name, prompt, TOKENS).await;
                    let which = answers.iter().position(|answer| answer.generation == got.generation);
                    let which = which.unwrap_or_else(|| panic!("an unknown generation {}", got.generation));
                    assert_eq!(got, answers[which], "{prompt}: an answer of another generation");
                    seen[which] += 1;
                    finished.fetch_add(1, Ordering::Relaxed);
                }
                seen
            })
        });
        Self { tasks: tasks.collect(), stop, finished }
    }

    /// Waits until this many more requests have ended.
    async fn progress(&self, more: usize) {
        let until = self.finished.load(Ordering::Relaxed) + more;
        eventually("load", || async {
            assert!(!self.tasks.iter().any(tokio::task::JoinHandle::is_finished), "a request failed");
            (self.finished.load(Ordering::Relaxed) >= until).then_some(())
        })
        .await;
    }

    async fn stop(self) -> [usize; 2] {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = [0, 0];
        for task in self.tasks {
            let [first, second] = task.await.unwrap();
            seen = [seen[0] + first, seen[1] + second];
        }
        seen
    }
}

/// Publishes both generations and returns what each answers alone.
async fn two_generations(client: &Client) -> (Arc<Vec<(&'static str, Vec<Streamed>)>>, [pb::Adapter; 2]) {
    let first = client.publish("poet", "lora_qv").await;
    let second = client.publish("poet", "lora_qv_second").await;
    assert_ne!(first.generation, second.generation);
    let references = [&first, &second].map(|adapter| format!("poet@{}", adapter.generation));
    let mut expected = Vec::new();
    for prompt in PROMPTS {
        let mut answers = Vec::new();
        for reference in &references {
            answers.push(answer(client, reference, prompt, TOKENS).await);
        }
        assert_ne!(answers[0].text, answers[1].text, "{prompt}");
        expected.push((prompt, answers));
    }
    (Arc::new(expected), [first, second])
}

#[tokio::test]
async fn a_swap_under_load_mixes_no_generations() {
    let server = client::start().await;
    let client = &server.client;
    let (expected, _) = two_generations(client).await;
    let load = Load::start(client, "poet", &expected, 24);
    for turn in 0..12 {
        load.progress(12).await;
        client.publish("poet", ["lora_qv", "lora_qv_second"][turn % 2]).await;
    }
    load.progress(24).await;
    let seen = load.stop().await;
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    client.idle().await;
}

#[tokio::test]
async fn a_stream_stays_on_the_generation_it_began_with() {
    let server = client::start().await;
    let client = &server.client;
    let first = client.publish("poet", "lora_qv").await;
    let expected = answer(client, "poet", "Winter light", 200).await;
    let mut stream = client.stream(asked("poet", "Winter light", 200)).await.unwrap();
    let piece = stream.message().await.unwrap().unwrap();
    let second = client.publish("poet", "lora_qv_second").await;
    let (_, now) = client.complete(greedy("poet", "Winter light", 4)).await;
    assert_eq!(now, second.generation);
    // Not even its deletion touches what runs.
    client.delete("poet").await.unwrap();
    client::refused(client.generate(greedy("poet", "x", 1)).await, tonic::Code::NotFound, "ADAPTER_NOT_FOUND");
    let rest = drain(&mut stream).await.unwrap();
    assert_eq!(rest.generation, first.generation);
    let ids = [piece.token_ids, rest.token_ids].concat();
    assert_eq!(ids, expected.token_ids);
    assert_eq!([piece.logprobs, rest.logprobs].concat(), expected.logprobs);
    eventually("the memory of a deleted adapter", || async {
        (client.metrics().await.value("evenkeel_adapter_bytes") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_thousand_swaps_under_load_leave_nothing_behind() {
    let server = client::start().await;
    let client = &server.client;
    let (expected, generations) = two_generations(client).await;
    client.set_alias("prod", "poet").await.unwrap();
    let base = client.metrics().await;
    let stored = stored_bytes(server.settings.server.data_dir.as_path());

    let load = Load::start(client, "prod", &expected, 8);
    for turn in 0..1000_usize {
        let target = &generations[turn % 2].generation;
        let before = client.set_alias("prod", &format!("poet@{target}")).await.unwrap();
        assert_eq!(&before.generation, target);
        if turn % 20 == 0 {
            let adapter = ["lora_qv", "lora_qv_second"][turn / 20 % 2];
            client.publish("poet", adapter).await;
        }
    }
    load.progress(8).await;
    let seen = load.stop().await;
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    client.idle().await;

    let adapter = client.adapter("poet").await.unwrap();
    assert_eq!(adapter.generations.len(), 2, "{:?}", adapter.generations);
    assert!(adapter.generations.iter().all(|generation| generation.active_leases == 0));
    let after = client.metrics().await;
    let resident = adapter.generations.iter().filter(|g| g.residency() == pb::Residency::Resident);
    let bytes: u64 = resident.map(|generation| generation.bytes).sum();
    assert_eq!(after.value("evenkeel_adapter_bytes"), bytes as f64, "memory that no generation explains");
    for gauge in ["evenkeel_adapter_bytes", "evenkeel_adapters_resident", "evenkeel_adapters_registered"] {
        assert!(after.value(gauge) <= base.value(gauge), "{gauge} grew");
    }
    assert!(after.value("evenkeel_adapter_swap_stall_seconds_count") >= 1000.0);
    let errors: f64 = after.sum("evenkeel_request_success_total", &[r#"finished_reason="error""#]);
    assert_eq!(errors, 0.0);
    let grown = stored_bytes(server.settings.server.data_dir.as_path()).saturating_sub(stored);
    assert!(grown < 8 << 20, "the data directory grew by {grown} bytes");
}

/// Bytes of all files below a folder.
fn stored_bytes(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => stored_bytes(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0, // a temporary file that is gone by now
    };
    entries.map(size).sum()
}
