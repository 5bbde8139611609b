//! Whole fine-tuned models over gRPC: in, served beside the base and LoRA adapters, and out again.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use evenkeel::config::Settings;
use evenkeel::rpc::pb::candidate::Continuation;
use evenkeel::rpc::pb::download_adapter_response::Part;
use evenkeel::rpc::pb::{Candidate, DownloadAdapterRequest, LoadAdapterRequest, ScoreRequest};
use serde_json::{Value, json};
use tonic::Code;

use super::client::{self, Client, Server, greedy, refused};
use super::golden;

/// A model in memory.
pub(crate) struct Model {
    name: String,
    pub(crate) config: Value,
    tensors: HashMap<String, Tensor>,
}

impl Model {
    /// A golden model, from one file or shards.
    pub(crate) fn golden(name: &str) -> Self {
        let folder = golden::root().join("language").join(name);
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            if file.starts_with("model") && file.ends_with(".safetensors") {
                tensors.extend(golden::tensors(&path));
            }
        }
        Self { name: name.to_owned(), config: golden::json(&folder.join("config.json")), tensors }
    }

    /// Changes every weight a little, in a way of its own for each `seed`.
    pub(crate) fn disturb(&mut self, seed: usize) {
        for (name, tensor) in &mut self.tensors {
            let size = tensor.elem_count();
            let wave = |i: usize| 0.03 * ((i * 7 + name.len() + 13 * seed) as f32).sin();
            let wave = Tensor::from_vec((0..size).map(wave).collect::<Vec<_>>(), tensor.shape(), &Device::Cpu).unwrap();
            *tensor = (&*tensor + wave).unwrap();
        }
    }

    /// Puts a classification head in the place of the language head.
    pub(crate) fn classify(&mut self, labels: &[&str]) {
        let hidden = self.config["hidden_size"].as_u64().unwrap() as usize;
        let value = |i: usize| ((i * 5 + 1) as f32).sin();
        let head: Vec<f32> = (0..labels.len() * hidden).map(value).collect();
        self.tensors
            .insert("score.weight".into(), Tensor::from_vec(head, (labels.len(), hidden), &Device::Cpu).unwrap());
        self.tensors.remove("lm_head.weight");
        let class = self.config["architectures"][0].as_str().unwrap();
        self.config["architectures"] = json!([class.replace("ForCausalLM", "ForSequenceClassification")]);
        let names: BTreeMap<_, _> = labels.iter().enumerate().map(|(i, name)| (i.to_string(), *name)).collect();
        self.config["id2label"] = json!(names);
    }

    /// The two files of the model.
    pub(crate) fn files(&self) -> [(&'static str, Vec<u8>); 2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tensors");
        candle_core::safetensors::save(&self.tensors, &path).unwrap();
        [("config.json", self.config.to_string().into_bytes()), ("model.safetensors", std::fs::read(path).unwrap())]
    }

    /// Writes the model as a folder, with the golden tokenizer.
    fn write(&self, folder: &std::path::Path) {
        std::fs::create_dir_all(folder).unwrap();
        let source = golden::root().join("language").join(&self.name);
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(source.join(file), folder.join(file)).unwrap();
        }
        for (name, bytes) in self.files() {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }

    /// Multiplies one tensor.
    pub(crate) fn scale(&mut self, name: &str, factor: f64) {
        let tensor = self.tensors.get_mut(name).unwrap();
        *tensor = (&*tensor * factor).unwrap();
    }

    /// Starts a server that has it as its base.
    pub(crate) async fn serve(&self) -> Server {
        self.serve_with(|_| {}).await
    }

    /// Starts a server that has it as its base, with changed settings.
    pub(crate) async fn serve_with(&self, change: impl FnOnce(&mut Settings)) -> Server {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        // Weights are in memory once the server is ready.
        let path = folder.path().display().to_string();
        client::start_with(&self.name, |settings| {
            settings.model.path = path;
            change(settings);
        })
        .await
    }
}

/// Starts a server on the golden base with `model` published as `whole`.
pub(crate) async fn whole(model: &Model) -> Server {
    let server = client::start_with(&model.name, |_| {}).await;
    server.client.upload("whole", &model.files()).await.unwrap();
    server
}

const PROMPTS: [&str; 3] = ["Winter light", "The server loads", "a"];

/// Log-probabilities of a long candidate: the logits in every position take part.
async fn logprobs(client: &Client, adapter: &str) -> Vec<f64> {
    let text = "the quick brown fox jumps over the lazy dog and a bay leaf".to_owned();
    let request = ScoreRequest {
        adapter: adapter.into(),
        prompt: Some(PROMPTS[0].into()),
        candidates: vec![Candidate { continuation: Some(Continuation::Text(text)) }],
        ..Default::default()
    };
    let mut response = client.inference.clone().score(request).await.unwrap().into_inner();
    response.candidates.remove(0).token_logprobs
}

async fn ids(client: &Client, adapter: &str) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for prompt in PROMPTS {
        all.push(client.complete(greedy(adapter, prompt, 24)).await.0.token_ids);
    }
    all
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Rounding of f32, as the README beside the golden values allows it.
const ROUNDING: f64 = 5e-4;

#[tokio::test]
async fn every_golden_language_model_serves_a_whole_model_as_that_model_itself() {
    let mut cases = 0;
    for folder in golden::cases("language", "config.json") {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let mut model = Model::golden(name);
        if !model.config["id2label"].is_null() {
            continue;
        }
        model.disturb(1);
        let (server, itself) = (whole(&model).await, model.serve().await);
        let expected = logprobs(&itself.client, "").await;
        assert!(far(&logprobs(&server.client, "whole").await, &expected) < ROUNDING, "{name}");
        assert!(far(&logprobs(&server.client, "").await, &expected) > 20.0 * ROUNDING, "{name}: the base changed");
        assert_eq!(ids(&server.client, "whole").await, ids(&itself.client, "").await, "{name}");
        cases += 1;
    }
    assert!(cases > 0, "no golden language model");
    println!("whole models: {cases} cases");
}

#[tokio::test]
async fn base_lora_and_whole_models_run_beside_each_other() {
    let mut models = [Model::golden(client::MODEL), Model::golden(client::MODEL)];
    let server = client::start().await;
    for (seed, model) in models.iter_mut().enumerate() {
        model.disturb(seed + 1);
        let published = server.client.upload(&format!("whole{seed}"), &model.files()).await.unwrap();
        assert_eq!((published.method.as_str(), published.rank, published.task_type.as_str()), ("FULL", 0, "CAUSAL_LM"));
        assert!(published.modules.contains(&"model.norm".to_owned()));
    }
    server.client.publish("poet", "lora_qv").await;
    let names = ["", "poet", "whole0", "whole1"];
    let mut alone = Vec::new();
    for name in names {
        alone.push(ids(&server.client, name).await);
    }
    assert!((1..4).all(|i| !alone[..i].contains(&alone[i])), "they answer alike");
    let rounds = (0..8).flat_map(|_| names.into_iter().zip(&alone)).map(|(name, expected)| {
        let client = server.client.clone();
        async move { assert_eq!(ids(&client, name).await, *expected, "`{name}` beside the others") }
    });
    futures_util::future::join_all(rounds).await;
    server.client.idle().await;
}

#[tokio::test]
async fn a_swap_to_a_whole_model_and_an_alias_to_it_are_as_for_any_adapter() {
    let mut model = Model::golden(client::MODEL);
    let server = client::start().await;
    let first = server.client.publish("poet", "lora_qv").await;
    model.disturb(1);
    let second = server.client.upload("poet", &model.files()).await.unwrap();
    assert_eq!(second.generations.len(), 2);
    let request = greedy("poet", PROMPTS[0], 4);
    assert_eq!(server.client.complete(request).await.1, second.generation);
    server.client.set_alias("prod", &format!("poet@{}", second.generation)).await.unwrap();
    // The bytes of all weights, as f32; the surplus tensors of old checkpoints are not held.
    let held = second.generations[0].bytes;
    let numbers = model.tensors.iter().filter(|(name, _)| !name.ends_with("inv_freq")).map(|(_, t)| t.elem_count());
    assert_eq!(held, 4 * numbers.sum::<usize>() as u64);
    server.client.unload("poet").await.unwrap();
    let (back, generation) = server.client.complete(greedy("prod", PROMPTS[0], 4)).await;
    assert_eq!((generation, back.token_ids.is_empty()), (second.generation.clone(), false));
    let (_, generation) = server.client.complete(greedy(&format!("poet@{}", first.generation), PROMPTS[0], 4)).await;
    assert_eq!(generation, first.generation);
}

/// The files of a download, in order.
/// The files of an adapter, whose digests are those announced.
pub(crate) async fn download(client: &Client, name: &str) -> Vec<(String, Vec<u8>)> {
    let request = DownloadAdapterRequest { name: name.into() };
    let mut stream = client.adapters.clone().download_adapter(request).await.unwrap().into_inner();
    let (mut files, mut digests): (Vec<(String, Vec<u8>)>, Vec<String>) = Default::default();
    while let Some(message) = stream.message().await.unwrap() {
        match message.part.unwrap() {
            Part::File(info) => {
                files.push((info.name, Vec::new()));
                digests.push(info.sha256);
            }
            Part::Chunk(chunk) => files.last_mut().unwrap().1.extend(chunk.data),
        }
    }
    for ((name, bytes), digest) in files.iter().zip(digests) {
        assert_eq!(client::sha256(bytes), digest, "{name}");
    }
    files
}

#[tokio::test]
async fn a_download_is_a_folder_that_is_a_model() {
    let mut model = Model::golden(client::MODEL);
    model.disturb(2);
    let server = whole(&model).await;
    let files = download(&server.client, "whole").await;
    let base = golden::root().join("language").join(client::MODEL);
    let sent = model.files();
    assert!(files.len() > 4);
    for (i, (name, bytes)) in files.iter().enumerate() {
        match sent.get(i) {
            Some((sent_name, sent_bytes)) => assert!(name == sent_name && bytes == sent_bytes, "{name}"),
            None => assert_eq!(*bytes, std::fs::read(base.join(name)).unwrap(), "{name}"),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in &files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let path = folder.path().display().to_string();
    let itself = client::start_with(client::MODEL, |settings| settings.model.path = path).await;
    assert_eq!(ids(&itself.client, "").await, ids(&server.client, "whole").await);
    server.client.publish("poet", "lora_qv").await;
    let names: Vec<_> = download(&server.client, "poet").await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
}

#[tokio::test]
async fn a_whole_model_is_loaded_from_the_adapter_folder() {
    let mut model = Model::golden(client::MODEL);
    model.disturb(2);
    let root = tempfile::tempdir().unwrap();
    model.write(&root.path().join("tuned"));
    let path = root.path().to_owned();
    let server = client::start_with(client::MODEL, |settings| settings.registry.adapter_dir = Some(path)).await;
    let request = LoadAdapterRequest { name: "tuned".into(), directory: "tuned".into(), ..Default::default() };
    let loaded = server.client.adapters.clone().load_adapter(request).await.unwrap().into_inner();
    let sent = server.client.upload("sent", &model.files()).await.unwrap();
    assert_eq!((loaded.method.as_str(), &loaded.generation), ("FULL", &sent.generation));
}

#[tokio::test]
async fn whole_models_that_do_not_fit_are_refused() {
    let server = client::start_with(client::MODEL, |settings| settings.registry.memory_bytes = 1000).await;
    let client = &server.client;
    let upload = async |model: &Model| client.upload("whole", &model.files()).await;
    let mut model = Model::golden(client::MODEL);
    model.disturb(1);
    model.config["rope_theta"] = json!(20000.0);
    let status = refused(upload(&model).await, Code::FailedPrecondition, "ADAPTER_MISMATCH");
    assert!(status.message().contains("rope_parameters"), "{status:?}");
    model.config["rope_theta"] = json!(10000.0);
    model.config["hidden_act"] = json!("gelu");
    refused(upload(&model).await, Code::FailedPrecondition, "ADAPTER_UNSUPPORTED");
    model.config["hidden_act"] = json!("silu");
    let removed = model.tensors.remove("model.norm.weight").unwrap();
    let status = refused(upload(&model).await, Code::InvalidArgument, "ADAPTER_INVALID");
    assert!(status.message().contains("model.norm.weight"), "{status:?}");
    model.tensors.insert("model.norm.weight".into(), removed);
    let status = refused(upload(&model).await, Code::ResourceExhausted, "ADAPTER_BUDGET");
    assert!(status.message().contains("registry.memory_bytes"), "{status:?}");
    let mut same = Model::golden(client::MODEL);
    same.tensors.retain(|name, _| !name.ends_with("inv_freq"));
    let other = client::start().await;
    refused(other.client.upload("same", &same.files()).await, Code::FailedPrecondition, "ADAPTER_NO_EFFECT");
}
