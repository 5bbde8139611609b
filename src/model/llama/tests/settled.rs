//! Adapters as they lie in memory when they were read, in models of every format on the CPU.

use candle_core::quantized::GgmlDType;

use super::*;
use crate::lora::{Adapter, Change, LinearDelta};
use crate::model::gguf::tests::{pair_of, wide};

/// Formats of weights, with the file that holds them and what it is opened as.
const FORMATS: [(GgmlDType, &str, &str); 5] = [
    (GgmlDType::F32, "", "f32"),
    (GgmlDType::F32, "", "bf16"),
    (GgmlDType::Q4_0, "model.gguf", "auto"),
    (GgmlDType::Q8_0, "model.gguf", "auto"),
    (GgmlDType::Q4K, "model.gguf", "auto"),
];

fn model_of(blocks: usize, (format, file, dtype): (GgmlDType, &str, &str)) -> Llama {
    let mut config = wide();
    config["num_hidden_layers"] = blocks.into();
    let folder = pair_of(&config, format, &[], None);
    open(&folder.path().join(file), "cpu", dtype).unwrap()
}

/// Low ranks on all linear layers of the blocks, with a magnitude where it is one of DoRA.
fn adapter(model: &Llama, rank: usize, from: u64, dora: bool) -> Arc<Adapter> {
    let sites = model.sites().iter().enumerate().filter(|(_, site)| site.kind == SiteKind::Linear);
    let change = |(id, site): (usize, &Site)| {
        let [a, b, magnitude] = [vec![site.input, rank], vec![rank, site.output], vec![site.output]]
            .map(|shape| values(&shape, from + id as u64).as_detached_tensor());
        let delta = LinearDelta::new(a, b, 2.0);
        (SiteId(id), Change::Linear(LinearDelta { magnitude: dora.then_some(magnitude), ..delta }))
    };
    Arc::new(Adapter::settled(sites.map(change).collect(), model).unwrap())
}

#[test]
fn a_row_is_the_same_beside_an_adapter_that_does_more() {
    for format in FORMATS {
        let model = model_of(2, format);
        let (plain, dora) = (adapter(&model, 8, 1, false), adapter(&model, 3, 50, true));
        let numbers = |adapter: &Adapter| {
            let Change::Linear(delta) = &adapter.changes()[&SiteId(1)] else { panic!("no low rank") };
            delta.a.dtype()
        };
        let [narrow, refined] = match format {
            (_, "", "bf16") => [DType::BF16; 2],
            (_, "", _) => [DType::F32; 2],
            _ => [DType::U8, DType::BF16],
        };
        assert_eq!((numbers(&plain), numbers(&dora)), (narrow, refined), "{format:?}");
        let logits = |runs: Vec<Run>| {
            let mut caches = [model.new_cache(), model.new_cache(), model.new_cache()];
            let segments = [Segment { len: 5, logits: Rows::Last(1) }; 3];
            let batch = Batch { tokens: &ids(15, 1), segments: &segments, lora: &LoraBatch { runs, dropout: None } };
            model.forward(&batch, &mut caches.iter_mut().collect::<Vec<_>>()).unwrap().to_vec2::<f32>().unwrap()
        };
        let run = |adapter: &Arc<Adapter>, rows| Run { adapter: Arc::clone(adapter), rows, scale: 1.0 };
        let base = logits(Vec::new());
        let alone = logits(vec![run(&plain, 0..5)]);
        let together = logits(vec![run(&plain, 0..5), run(&dora, 10..15)]);
        assert_eq!(alone[..2], together[..2], "{format:?}");
        assert_ne!(alone[0], base[0]);
        assert_ne!(together[2], base[2]);
    }
}

/// How often a step on this thread asks the system for memory: one that adds `len` tokens to each of four sequences, two of
/// them of adapters, when keys and values need no more.
fn taken(model: &Llama, len: usize) -> u64 {
    let adapters = [adapter(model, 3, 1, false), adapter(model, 8, 50, false)];
    let run =
        |of: usize, at: usize| Run { adapter: Arc::clone(&adapters[of]), rows: at * len..(at + 1) * len, scale: 1.0 };
    let lora = LoraBatch { runs: vec![run(0, 1), run(1, 3)], dropout: None };
    let mut caches: Vec<_> = (0..4).map(|_| model.new_cache()).collect();
    let segments = [Segment { len, logits: Rows::Last(1) }; 4];
    let step = |seed| {
        let tokens = ids(4 * len, seed);
        let mut caches: Vec<_> = caches.iter_mut().collect();
        let batch = Batch { tokens: &tokens, segments: &segments, lora: &lora };
        let step = || model.reuse(model.forward(&batch, &mut caches).unwrap());
        allocation_counter::measure(step).count_total
    };
    (0..30).map(step).min().unwrap()
}

#[test]
fn blocks_take_no_memory() {
    // All loops run on the thread that counts.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for format in FORMATS {
        let [shallow, deep] = [1, 4].map(|blocks| {
            let model = model_of(blocks, format);
            pool.install(|| [1, 8].map(|len| taken(&model, len)))
        });
        assert_eq!(shallow, deep, "{format:?}");
        assert!(shallow.iter().all(|count| *count > 0), "somebody counts");
    }
}
