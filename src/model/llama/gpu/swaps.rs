//! Tests of adapters that come into slots and leave them while steps run. Logits are read at the end only, so that an
//! emulated device holds back what it may (`tests/gpu/README.md`).

use serde_json::Value;

use super::*;
use crate::lora::{Base, Change, LinearDelta, LoraBatch, Run, Site, SiteKind};
use crate::model::choice::{Choice, choose};
use crate::model::testing::{ids, llama, mistral, tensors, write};
use crate::model::{BaseModel, CausalLm, Rows, Segment, open};
use crate::ops::cuda::testing::values;

fn config_of(value: &Value) -> crate::model::config::Config {
    crate::model::config::Config::parse(value.to_string().as_bytes()).unwrap()
}

/// A model on the device with slots for so many bytes of adapters.
fn model(config: &Value, dtype: &str, adapter_bytes: u64) -> Llama {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, &tensors(&config_of(config), 7), 1);
    let mut model = open(folder.path(), "cuda", dtype).unwrap();
    let reserve = Reserve {
        kv_bytes: Some(1 << 20),
        rows: 64,
        sequences: 4,
        adapter_bytes: Some(adapter_bytes),
        job_bytes: Some(0),
        spare_bytes: 0,
    };
    model.reserve(&reserve).unwrap();
    model
}

/// Low ranks on all linear layers of the blocks; another one for each seed.
fn adapter(model: &Llama, rank: usize, seed: u64) -> Arc<Adapter> {
    let sites = model.sites().iter().enumerate().filter(|(_, site)| site.kind == SiteKind::Linear);
    let change = |(id, site): (usize, &Site)| {
        let from = seed + 10 * id as u64;
        let matrix = |shape: [usize; 2], seed| (values(&shape, seed) * 0.5).unwrap();
        let (a, b) = (matrix([site.input, rank], from), matrix([rank, site.output], from + 1));
        (SiteId(id), Change::Linear(LinearDelta::new(a, b, 2.0)))
    };
    Arc::new(Adapter::settled(sites.map(change).collect(), model).unwrap())
}

/// The bytes of one of rank 8.
fn bytes(config: &Value, dtype: &str) -> u64 {
    adapter(&model(config, dtype, 1 << 20), 8, 0).piece().unwrap().bytes()
}

/// One sequence of an adapter, or of the base model; what it gets is read at the end.
struct Stream {
    cache: KvCache,
    seed: usize,
    logits: Vec<Tensor>,
}

impl Stream {
    fn new(model: &Llama, seed: usize) -> Self {
        Self { cache: model.new_cache(), seed, logits: Vec::new() }
    }

    /// A prompt first, then token by token.
    fn step(&mut self, model: &Llama, adapter: Option<&Arc<Adapter>>) {
        let len = if self.logits.is_empty() { 9 } else { 1 };
        let tokens = ids(len, self.seed + 7 * self.logits.len());
        let segments = [Segment { len, logits: Rows::Last(1) }];
        let run = |adapter: &Arc<Adapter>| Run { adapter: adapter.clone(), rows: 0..len, scale: 1.0 };
        let lora = LoraBatch { runs: adapter.map(run).into_iter().collect(), dropout: None };
        let batch = Batch { tokens: &tokens, segments: &segments, lora: &lora };
        self.logits.push(model.forward(&batch, &mut [&mut self.cache]).unwrap());
    }

    fn read(&self) -> Vec<Vec<f32>> {
        self.logits.iter().map(|logits| logits.flatten_all().unwrap().to_vec1().unwrap()).collect()
    }
}

/// What a stream gets when it is alone.
fn alone(model: &Llama, seed: usize, steps: usize, adapter: Option<&Arc<Adapter>>) -> Vec<Vec<f32>> {
    let mut stream = Stream::new(model, seed);
    for _ in 0..steps {
        stream.step(model, adapter);
        stream.logits.last().unwrap().to_vec2::<f32>().unwrap();
    }
    stream.read()
}

fn slots(model: &Llama) -> &Slots {
    &model.resident.as_ref().unwrap().slots
}

fn recorded(model: &Llama) -> usize {
    let state = model.resident.as_ref().unwrap().state.lock().unwrap();
    assert!(state.recorded.values().all(Option::is_some));
    state.recorded.len()
}

#[test]
fn on_gpu_a_swap_changes_nobody_who_decodes_and_records_nothing() {
    for (config, dtype) in [(mistral(), "f32"), (llama(), "bf16")] {
        let one = bytes(&config, dtype);
        let ample = model(&config, dtype, 8 * one);
        let own: Vec<_> = (0..4).map(|seed| adapter(&ample, 8, 100 * seed)).collect();
        let steps = |i: usize| if i == 0 { 12 } else { 4 };
        let expected: Vec<_> = (0..4).map(|i| alone(&ample, i, steps(i), Some(&own[i]))).collect();
        // Room for two: the first stays, the others take turns. Room for one: all of them do.
        for room in [2, 1] {
            let model = model(&config, dtype, room * one);
            let own: Vec<_> = (0..4).map(|seed| adapter(&model, 8, 100 * seed)).collect();
            let mut streams: Vec<_> = (0..4).map(|seed| Stream::new(&model, seed)).collect();
            let mut first = 0;
            for step in 0..4 {
                for other in 1..4 {
                    streams[0].step(&model, Some(&own[0]));
                    streams[other].step(&model, Some(&own[other]));
                    assert!(slots(&model).has(&own[other]) && slots(&model).has(&own[0]) == (room == 2));
                }
                first = if step == 1 { recorded(&model) } else { first };
            }
            assert_eq!(recorded(&model), first, "a swap records nothing");
            for (i, stream) in streams.iter().enumerate() {
                assert!(stream.read() == expected[i], "{dtype}, room for {room}, stream {i}");
            }
        }
    }
}

#[test]
fn on_gpu_who_will_be_needed_comes_early_and_makes_nobody_leave_who_is() {
    let config = mistral();
    let one = bytes(&config, "f32");
    let model = model(&config, "f32", 2 * one);
    let own: Vec<_> = (0..4).map(|seed| adapter(&model, 8, 100 * seed)).collect();
    let expected: Vec<_> = (0..4).map(|i| alone(&model, i, 4, Some(&own[i]))).collect();
    // As the registry has them, and requests of the first two.
    let mut requests: Vec<_> = own[..2].to_vec();
    let mut streams: Vec<_> = (0..4).map(|seed| Stream::new(&model, seed)).collect();
    streams[0].step(&model, Some(&own[0]));
    model.prefetch(&own[1]);
    let here = |i: usize| slots(&model).has(&own[i]);
    assert_eq!([here(0), here(1), here(2)], [true, true, false]);
    // Neither leaves for a third, and who is there does not come again.
    model.prefetch(&own[2]);
    model.prefetch(&own[0]);
    assert_eq!([here(0), here(1), here(2)], [true, true, false]);
    streams[1].step(&model, Some(&own[1]));
    streams[0].step(&model, Some(&own[0]));
    // The first has ended, while its step may still run.
    requests.remove(0);
    model.prefetch(&own[2]);
    assert_eq!([here(0), here(1), here(2)], [false, true, true]);
    streams[2].step(&model, Some(&own[2]));
    // A step takes the place of who nobody wants, or else of who was used least recently.
    streams[3].step(&model, Some(&own[3]));
    assert_eq!([here(0), here(1), here(2), here(3)], [false, true, false, true]);
    streams[0].step(&model, Some(&own[0]));
    assert_eq!([here(0), here(1), here(2), here(3)], [true, true, false, false]);
    requests.push(own[0].clone());
    streams[3].step(&model, Some(&own[3]));
    assert_eq!([here(0), here(1), here(2), here(3)], [true, false, false, true]);
    for (i, stream) in streams.iter().enumerate() {
        assert!(stream.read() == expected[i][..stream.logits.len()], "stream {i}");
    }
}

#[test]
fn on_gpu_an_adapter_may_be_gone_before_its_step_has_run() {
    let config = mistral();
    let one = bytes(&config, "f32");
    let ample = model(&config, "f32", 8 * one);
    let expected: Vec<_> = (0..6).map(|i| alone(&ample, i, 1, Some(&adapter(&ample, 8, 100 * i as u64)))).collect();
    let model = model(&config, "f32", 2 * one);
    let mut streams: Vec<_> = (0..6).map(|seed| Stream::new(&model, seed)).collect();
    for (i, stream) in streams.iter_mut().enumerate() {
        let own = adapter(&model, 8, 100 * i as u64);
        if i % 2 == 0 {
            // One that never runs.
            model.prefetch(&adapter(&model, 8, 7));
        }
        model.prefetch(&own);
        stream.step(&model, Some(&own));
    }
    for (i, stream) in streams.iter().enumerate() {
        assert!(stream.read() == expected[i], "stream {i}");
    }
}

/// The logits of two sequences in one pass, each of an adapter.
fn pair(model: &Llama, adapters: [&Arc<Adapter>; 2]) -> Vec<Vec<f32>> {
    let tokens = ids(18, 3);
    let segments = [Segment { len: 9, logits: Rows::Last(1) }; 2];
    let run =
        |(i, adapter): (usize, &Arc<Adapter>)| Run { adapter: adapter.clone(), rows: 9 * i..9 * i + 9, scale: 1.0 };
    let lora = LoraBatch { runs: adapters.into_iter().enumerate().map(run).collect(), dropout: None };
    let mut caches = [model.new_cache(), model.new_cache()];
    let batch = Batch { tokens: &tokens, segments: &segments, lora: &lora };
    model.forward(&batch, &mut caches.iter_mut().collect::<Vec<_>>()).unwrap().to_vec2().unwrap()
}

fn close(got: &[Vec<f32>], expected: &[Vec<f32>]) {
    for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
        assert!((got - expected).abs() < 1e-3, "{got} instead of {expected}");
    }
}

#[test]
fn on_gpu_room_in_pieces_becomes_one() {
    let config = mistral();
    let of = |model: &Llama| [(4, 0), (4, 100), (4, 200), (12, 300)].map(|(rank, seed)| adapter(model, rank, seed));
    let size = |own: &Arc<Adapter>| own.piece().unwrap().bytes();
    let ample = model(&config, "f32", 1 << 20);
    let own = of(&ample);
    let expected = pair(&ample, [&own[1], &own[3]]);
    let tight = model(&config, "f32", (3 * size(&own[0])).max(size(&own[0]) + size(&own[3])));
    let own = of(&tight);
    // Three side by side, the second of which stays in the middle of what the fourth needs.
    pair(&tight, [&own[0], &own[1]]);
    pair(&tight, [&own[1], &own[2]]);
    close(&pair(&tight, [&own[1], &own[3]]), &expected);
    assert!(slots(&tight).has(&own[1]) && slots(&tight).has(&own[3]));
}

#[test]
fn on_gpu_steps_of_the_base_model_alone_know_no_slots() {
    let config = mistral();
    let model = model(&config, "f32", bytes(&config, "f32"));
    let expected = alone(&model, 0, 3, None);
    let mut stream = Stream::new(&model, 0);
    slots(&model).while_locked(|| (0..3).for_each(|_| stream.step(&model, None)));
    assert!(stream.read() == expected);
}

#[test]
fn on_gpu_what_finds_no_room_is_the_same_through_tensors() {
    for config in [mistral(), llama()] {
        let ample = model(&config, "f32", 1 << 20);
        let own = adapter(&ample, 8, 3);
        let expected = alone(&ample, 1, 4, Some(&own));
        let small = model(&config, "f32", 4);
        let large = adapter(&small, 8, 3);
        // One that no slots have room for lies on the device.
        assert!(large.piece().is_none());
        close(&alone(&small, 1, 4, Some(&large)), &expected);
        // Of two, each would have room.
        let both = pair(&ample, [&own, &adapter(&ample, 8, 50)]);
        let small = model(&config, "f32", bytes(&config, "f32"));
        let own = adapter(&small, 8, 3);
        assert!(own.piece().is_some());
        close(&pair(&small, [&own, &adapter(&small, 8, 50)]), &both);
        assert!(!slots(&small).has(&own));
        assert!(small.effect(&own).unwrap() > 0.0);
    }
}

#[test]
#[ignore = "alone in its process: what others take would count; `on_gpu_decoding_takes_no_memory` runs it"]
fn decoding_alone() {
    let config = mistral();
    let model = model(&config, "f32", 2 * bytes(&config, "f32"));
    let gpu = model.resident.as_ref().unwrap().gpu.clone();
    let own: Vec<_> = (0..3).map(|seed| adapter(&model, 8, 100 * seed)).collect();
    let mut streams: Vec<_> = (0..3).map(|_| model.new_cache()).collect();
    // Greedy, and with all that changes logits.
    let plain = Choice { temperature: 0.0, ..choice() };
    let listed = Choice { seen: vec![(3, 1), (5, 2)], biases: vec![(7, 1.5)], ..choice() };
    let mut step = |of: usize, with: usize, len: usize| {
        let tokens = ids(len, of);
        let segments = [Segment { len, logits: Rows::Last(1) }];
        let runs = vec![Run { adapter: own[with].clone(), rows: 0..len, scale: 1.0 }];
        let batch = Batch { tokens: &tokens, segments: &segments, lora: &LoraBatch { runs, dropout: None } };
        let mut tokens = Vec::new();
        let read: Read<'_> = &mut |logits, desk| {
            for choice in [&plain, &listed] {
                tokens.extend(choose(logits, std::slice::from_ref(choice), desk)?);
            }
            Ok(())
        };
        model.step(&batch, &mut [&mut streams[of]], read).unwrap();
        assert!(tokens.iter().flatten().count() == 2);
    };
    for of in 0..3 {
        step(of, of, 9);
        step(of, of, 1);
        step(of, of, 1);
    }
    let (before, _) = gpu.taken().unwrap();
    for turn in 0..9 {
        // Each step swaps one in.
        step(turn % 3, turn % 3, 1);
    }
    let (after, most) = gpu.taken().unwrap();
    assert!(after == before && most <= before, "a step took memory: {before}, then {after}, {most} at most");
}

fn choice() -> Choice {
    Choice {
        temperature: 0.7,
        top_k: 5,
        top_p: 0.9,
        min_p: 0.0,
        repetition_penalty: 1.2,
        frequency_penalty: 0.1,
        presence_penalty: 0.1,
        draw: 0.4,
        seen: Vec::new(),
        biases: Vec::new(),
    }
}

#[test]
fn on_gpu_decoding_takes_no_memory() {
    let name = format!("{}::decoding_alone", module_path!().split_once("::").unwrap().1);
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let outcome = command.args(["--ignored", "--exact", &name]).output().unwrap();
    let told = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && told.contains("1 passed"), "{told}");
}
