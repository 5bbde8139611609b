//! Tests of reading and applying adapters on a small random base of three sites, without any model.
//!
//! The oracle is the merged weight, computed here in f64 from the stored matrices and PEFT's formulas. No scaling is 1
//! and no matrix is zero unless a test says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::*;
use crate::ops::cpu::add_low_rank;

mod full;
mod narrow;

/// `block.0.up` with a bias, `block.1.down`, `embed` and `head`.
struct Small {
    sites: Vec<Site>,
    weights: Vec<Tensor>,
    /// Of low-rank matrices.
    format: DType,
}

const VOCAB: usize = 11;

fn random(shape: &[usize], seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..shape.iter().product()).map(|_| rng.random_range(-1.0_f32..1.0)).collect()
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(random(shape, seed), shape, &Device::Cpu).unwrap()
}

impl Small {
    fn new() -> Self {
        let site = |path: &str, kind, input, output, bias| Site { path: path.into(), kind, input, output, bias };
        let sites = vec![
            site("model.embed", SiteKind::Embedding, VOCAB, 6, false),
            site("model.block.0.up", SiteKind::Linear, 6, 9, true),
            site("model.block.1.down", SiteKind::Linear, 6, 5, false),
            site("head", SiteKind::Head, 6, 4, false),
        ];
        let shapes: [&[usize]; 4] = [&[VOCAB, 6], &[9, 6], &[5, 6], &[4, 6]];
        let weights = shapes.iter().enumerate().map(|(i, shape)| tensor(shape, i as u64)).collect();
        Self { sites, weights, format: DType::F32 }
    }
}

impl Base for Small {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn weight(&self, site: SiteId) -> candle_core::Result<Tensor> {
        Ok(self.weights[site.0].clone())
    }

    fn bias(&self, _: SiteId) -> candle_core::Result<Option<Tensor>> {
        Ok(None)
    }

    fn fingerprint(&self) -> &'static str {
        "small"
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn low_rank_format(&self, _: SiteId) -> DType {
        self.format
    }
}

const UP: SiteId = SiteId(1);
const DOWN: SiteId = SiteId(2);

/// Tensors by their name behind `base_model.model.model.`, or `base_model.model.` for the head.
type Stored = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn file(stored: &Stored) -> Vec<u8> {
    let bytes: Vec<(String, &[usize], Vec<u8>)> = stored
        .iter()
        .map(|(name, (shape, values))| {
            let prefix = if name.starts_with("head") { "base_model.model." } else { "base_model.model.model." };
            (format!("{prefix}{name}"), shape.as_slice(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(n, shape, b)| (n, TensorView::new(Dtype::F32, shape.to_vec(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn put(stored: &mut Stored, name: &str, shape: &[usize], seed: u64) {
    stored.insert(name.to_owned(), (shape.to_vec(), random(shape, seed)));
}

/// Matrices for `up` and `down` of the given ranks.
fn pairs(up: usize, down: usize, seed: u64) -> Stored {
    let mut stored = Stored::new();
    put(&mut stored, "block.0.up.lora_A.weight", &[up, 6], seed);
    put(&mut stored, "block.0.up.lora_B.weight", &[9, up], seed + 1);
    put(&mut stored, "block.1.down.lora_A.weight", &[down, 6], seed + 2);
    put(&mut stored, "block.1.down.lora_B.weight", &[5, down], seed + 3);
    stored
}

fn config(more: &Value) -> Value {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 5, "target_modules": ["up", "down"]});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(more: &Value, stored: &Stored) -> Result<Adapter, LoraError> {
    peft::read(config(more).to_string().as_bytes(), &file(stored), &Small::new())
}

/// Why an adapter is refused.
fn refusal(more: &Value, stored: &Stored) -> String {
    read(more, stored).map(|a| a.info).unwrap_err().to_string()
}

fn one(adapter: Adapter, rows: Range<usize>) -> LoraBatch {
    LoraBatch { runs: vec![Run { adapter: Arc::new(adapter), rows, scale: 1.0 }], dropout: None }
}

/// What a layer gives, by tensors; in place on slices it has to give the same.
fn apply(lora: &LoraBatch, site: SiteId, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let product = x.matmul(&Small::new().weights[site.0].t().unwrap()).unwrap();
    let mut in_place = product.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let rows = x.dim(0).unwrap();
    let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let open = lora.open();
    let changed = open.changed(site, rows).unwrap();
    let (read, sizes) = (changed.read(), (values.len() / rows, in_place.len() / rows));
    add_low_rank((&values, sizes.0), &changed.low_ranks(&read).unwrap(), (&mut in_place, sizes.1)).unwrap();
    changed.finish(&values, bias, &mut in_place).unwrap();
    let in_place = Tensor::from_vec(in_place, product.shape(), &Device::Cpu).unwrap();
    let result = lora.linear(site, x, product, bias).unwrap();
    assert_close(&in_place, &result.detach());
    result
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn assert_close(a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims());
    let worst = largest(&(a - b).unwrap());
    // Sums of a few dozen products of size 1, times scalings below 8; a changed byte can make a larger number.
    let allowed = 2e-5 * largest(b).max(1.0);
    assert!(worst < allowed, "differs by {worst}, of {allowed}");
}

/// Returns W + s·B·A for a site, and B's bias times s.
fn merged(stored: &Stored, site: SiteId, name: &str, scaling: f64) -> Tensor {
    let matrix = |part: &str| {
        let (shape, values) = &stored[&format!("{name}.{part}.weight")];
        Tensor::from_vec(values.clone(), shape.as_slice(), &Device::Cpu).unwrap()
    };
    let delta = (matrix("lora_B").matmul(&matrix("lora_A")).unwrap() * scaling).unwrap();
    (&Small::new().weights[site.0] + delta).unwrap()
}

#[test]
fn merged_equals_unmerged_with_patterns_and_both_scalings() {
    let stored = pairs(3, 2, 20);
    for rslora in [false, true] {
        let more =
            json!({"use_rslora": rslora, "rank_pattern": {"block.0.up": 3, "up": 7}, "alpha_pattern": {"u.": 7}});
        let adapter = read(&more, &stored).unwrap();
        assert_eq!((adapter.info().rank, adapter.info().bytes), (3, 4 * (3 * 15 + 2 * 11)));
        let lora = one(adapter, 0..4);
        let (x, bias) = (tensor(&[4, 6], 1), tensor(&[9], 2));
        let root = |r: f64| if rslora { r.sqrt() } else { r };
        let up = x.matmul(&merged(&stored, UP, "block.0.up", 7.0 / root(3.0)).t().unwrap()).unwrap();
        assert_close(&apply(&lora, UP, &x, Some(&bias)), &up.broadcast_add(&bias).unwrap());
        let down = x.matmul(&merged(&stored, DOWN, "block.1.down", 5.0 / root(2.0)).t().unwrap()).unwrap();
        assert_close(&apply(&lora, DOWN, &x, None), &down);
    }
}

#[test]
fn dora_scales_all_but_the_bias() {
    let mut stored = pairs(2, 2, 30);
    put(&mut stored, "block.0.up.lora_magnitude_vector", &[9], 1);
    put(&mut stored, "block.1.down.lora_magnitude_vector.weight", &[5], 2);
    let lora = one(read(&json!({"use_dora": true}), &stored).unwrap(), 0..3);
    let (x, bias) = (tensor(&[3, 6], 1), tensor(&[9], 2));
    let weight = merged(&stored, UP, "block.0.up", 2.5);
    let norm = weight.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
    let weight = weight.broadcast_div(&norm).unwrap().broadcast_mul(&tensor(&[9, 1], 1)).unwrap();
    let expected = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
    assert_close(&apply(&lora, UP, &x, Some(&bias)), &expected);
    // Its norms hold for its own scaling only.
    let mut scaled = lora;
    scaled.runs[0].scale = 0.5;
    let error = scaled.linear(UP, &x, tensor(&[3, 9], 1), None).unwrap_err();
    assert!(error.to_string().contains("DoRA"), "{error}");
    assert!(scaled.open().changed(UP, 3).is_err());
}

#[test]
fn biases_and_saved_heads_replace_the_bases() {
    let mut stored = pairs(2, 2, 40);
    for (name, size) in [("block.0.up", 9), ("block.1.down", 5)] {
        put(&mut stored, &format!("{name}.lora_B.bias"), &[size], 50);
    }
    put(&mut stored, "block.0.up.base_layer.bias", &[9], 51);
    put(&mut stored, "head.weight", &[4, 6], 52);
    let more = json!({"lora_bias": true, "bias": "lora_only", "modules_to_save": ["head"]});
    let lora = one(read(&more, &stored).unwrap(), 0..70);
    for rows in [1, 3, 70] {
        let mut lora = lora.clone();
        lora.runs[0].rows = 0..rows;
        let x = tensor(&[rows, 6], 1);
        let bias = (tensor(&[9], 51) + (tensor(&[9], 50) * 2.5).unwrap()).unwrap();
        let up = x.matmul(&merged(&stored, UP, "block.0.up", 2.5).t().unwrap()).unwrap();
        assert_close(&apply(&lora, UP, &x, Some(&tensor(&[9], 3))), &up.broadcast_add(&bias).unwrap());
        let head = x.matmul(&tensor(&[4, 6], 52).t().unwrap()).unwrap();
        assert_close(&apply(&lora, SiteId(3), &x, None), &head);
    }
}

#[test]
fn an_embedding_row_gets_its_column_of_a() {
    let mut stored = Stored::new();
    put(&mut stored, "embed.lora_embedding_A", &[2, VOCAB], 1);
    put(&mut stored, "embed.lora_embedding_B", &[6, 2], 2);
    stored.insert("embed.base_layer.weight".into(), (vec![VOCAB, 6], random(&[VOCAB, 6], 0)));
    let more = json!({"target_modules": ["embed"]});
    let lora = one(read(&more, &stored).unwrap(), 1..3);
    let ids = Tensor::new(&[7_u32, 3, 10, 3], &Device::Cpu).unwrap();
    let base = &Small::new().weights[0];
    let rows = base.index_select(&ids, 0).unwrap();
    let delta = (tensor(&[6, 2], 2).matmul(&tensor(&[2, VOCAB], 1)).unwrap().t().unwrap() * 2.5).unwrap();
    let changed = (base + delta).unwrap().index_select(&ids, 0).unwrap();
    let expected = Tensor::cat(
        &[rows.narrow(0, 0, 1).unwrap(), changed.narrow(0, 1, 2).unwrap(), rows.narrow(0, 3, 1).unwrap()],
        0,
    );
    assert_close(&lora.embedding(SiteId(0), &ids, rows.copy().unwrap()).unwrap(), &expected.unwrap());
    // A matrix that is not the base's was trained: it must not be dropped.
    put(&mut stored, "embed.base_layer.weight", &[VOCAB, 6], 9);
    assert!(refusal(&more, &stored).contains("differs from model.embed"));
}

/// What an adapter makes of fixed inputs at every site.
fn outputs(adapter: Adapter) -> Vec<Vec<f32>> {
    let lora = one(adapter, 0..3);
    let ids = Tensor::new(&[7_u32, 3, 10], &Device::Cpu).unwrap();
    let rows = Small::new().weights[0].index_select(&ids, 0).unwrap();
    let mut outputs = vec![lora.embedding(SiteId(0), &ids, rows).unwrap()];
    outputs.extend(
        [(UP, Some(tensor(&[9], 3))), (DOWN, None), (SiteId(3), None)]
            .map(|(site, bias)| apply(&lora, site, &tensor(&[3, 6], 1), bias.as_ref())),
    );
    outputs.iter().map(|output| output.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

#[test]
fn every_spelling_of_a_name_means_the_same_tensor() {
    let mut biased = pairs(2, 2, 40);
    put(&mut biased, "block.0.up.lora_B.bias", &[9], 50);
    put(&mut biased, "block.1.down.lora_B.bias", &[5], 50);
    put(&mut biased, "block.0.up.base_layer.bias", &[9], 51);
    put(&mut biased, "head.weight", &[4, 6], 52);
    let mut embedded = Stored::new();
    put(&mut embedded, "embed.lora_embedding_A", &[2, VOCAB], 1);
    put(&mut embedded, "embed.lora_embedding_B", &[6, 2], 2);
    let mut dora = pairs(2, 2, 30);
    put(&mut dora, "block.0.up.lora_magnitude_vector", &[9], 1);
    put(&mut dora, "block.1.down.lora_magnitude_vector", &[5], 2);
    let of_biased = json!({"lora_bias": true, "bias": "lora_only", "modules_to_save": ["head"]});
    let base = outputs(
        read(&json!({}), &{
            let mut zero = pairs(2, 2, 1);
            zero.iter_mut().filter(|(name, _)| name.contains("lora_B")).for_each(|(_, (_, values))| values.fill(0.0));
            zero
        })
        .unwrap(),
    );
    for (more, stored, spellings) in [
        (
            of_biased,
            biased,
            vec![
                (".lora_A.weight", ".lora_A.default.weight"),
                (".lora_B.weight", ".lora_B.default.weight"),
                (".lora_B.bias", ".lora_B.default.bias"),
                ("head.weight", "head.modules_to_save.weight"),
                ("head.weight", "head.modules_to_save.default.weight"),
            ],
        ),
        (
            json!({"target_modules": ["embed"]}),
            embedded,
            vec![
                (".lora_embedding_A", ".lora_embedding_A.default"),
                (".lora_embedding_B", ".lora_embedding_B.default"),
            ],
        ),
        (
            json!({"use_dora": true}),
            dora,
            vec![
                (".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
                (".lora_magnitude_vector", ".lora_magnitude_vector.default"),
                (".lora_magnitude_vector", ".lora_magnitude_vector.default.weight"),
            ],
        ),
    ] {
        let expected = outputs(read(&more, &stored).unwrap());
        assert_ne!(expected, base);
        let respelt = |rules: &[(&str, &str)]| -> Stored {
            let name = |name: &String| {
                rules.iter().fold(name.clone(), |name, (new, old)| match name.strip_suffix(new) {
                    Some(path) => format!("{path}{old}"),
                    None => name,
                })
            };
            stored.iter().map(|(key, tensor)| (name(key), tensor.clone())).collect()
        };
        for rule in &spellings {
            let old = respelt(&[*rule]);
            assert_ne!(old, stored, "{rule:?} spells nothing");
            assert_eq!(outputs(read(&more, &old).unwrap()), expected, "{rule:?}");
            // Two tensors for one place: neither is passed over.
            let both = stored.clone().into_iter().chain(old).collect();
            assert!(refusal(&more, &both).contains("under another spelling"), "{rule:?}");
        }
        assert_eq!(outputs(read(&more, &respelt(&spellings)).unwrap()), expected, "all at once");
    }
}

#[test]
fn packed_equals_one_by_one_and_selection_follows() {
    let adapters: Vec<Arc<Adapter>> = [(2, 2, 60), (3, 2, 70), (1, 2, 80)]
        .map(|(up, down, seed)| Arc::new(read(&json!({"rank_pattern": {"up": up}}), &pairs(up, down, seed)).unwrap()))
        .into();
    let run = |adapter: usize, rows, scale| Run { adapter: adapters[adapter].clone(), rows, scale };
    let lora = LoraBatch {
        runs: vec![run(0, 1..3, 1.0), run(1, 3..4, 0.5), run(2, 6..8, 1.0), run(0, 8..9, 2.0)],
        dropout: None,
    };
    let x = tensor(&[10, 6], 1);
    let rows: Vec<Tensor> =
        (0..10).map(|row| apply(&lora.select(&[row]), UP, &x.narrow(0, row, 1).unwrap(), None)).collect();
    let one_by_one = Tensor::cat(&rows, 0).unwrap();
    assert_close(&apply(&lora, UP, &x, None), &one_by_one);
    let plain = apply(&LoraBatch::default(), UP, &x, None);
    for row in [0, 4, 5, 9] {
        assert_close(&rows[row], &plain.narrow(0, row, 1).unwrap());
    }
    // The way that keeps gradients gives the same.
    let tracked = Var::from_tensor(&x).unwrap();
    let got = apply(&lora, UP, tracked.as_tensor(), None);
    assert_close(&got, &one_by_one);
    let gradient = got.sum_all().unwrap().backward().unwrap();
    assert!(gradient.get(tracked.as_tensor()).is_some());

    let picked = [0, 2, 3, 7, 8];
    let index = Tensor::new(&picked.map(|row| row as u32), &Device::Cpu).unwrap();
    let some = apply(&lora.select(&picked), UP, &x.index_select(&index, 0).unwrap(), None);
    assert_close(&some, &one_by_one.index_select(&index, 0).unwrap());
    assert_eq!(lora.select(&[0, 4, 5, 9]).runs.len(), 0);

    let overlapping = LoraBatch { runs: vec![run(0, 0..3, 1.0), run(1, 2..4, 1.0)], dropout: None };
    assert!(overlapping.linear(UP, &x, tensor(&[10, 9], 1), None).is_err());
    assert!(lora.linear(UP, &x.narrow(0, 0, 8).unwrap(), tensor(&[8, 9], 1), None).is_err());
}

#[test]
fn a_zero_b_is_the_base() {
    let mut stored = pairs(2, 2, 90);
    for name in ["block.0.up.lora_B.weight", "block.1.down.lora_B.weight"] {
        stored.get_mut(name).unwrap().1.fill(0.0);
    }
    let x = tensor(&[3, 6], 1);
    let lora = one(read(&json!({}), &stored).unwrap(), 0..3);
    assert_close(&apply(&lora, UP, &x, None), &apply(&LoraBatch::default(), UP, &x, None));
}

#[test]
fn targets_are_read_as_peft_reads_them() {
    let both = pairs(2, 2, 1);
    let up: Stored = both.clone().into_iter().filter(|(name, _)| name.contains("up")).collect();
    for more in [
        json!({"layers_to_transform": 0}),
        json!({"layers_to_transform": [0], "layers_pattern": "block"}),
        json!({"exclude_modules": ["down"]}),
        json!({"exclude_modules": ".*1.*"}),
        json!({"target_modules": r"^(?!.*\.1\.).*\.(up|down)$"}),
        json!({"target_modules": ["model.block.0.up"], "layers_to_transform": [7]}),
    ] {
        assert_eq!(read(&more, &up).unwrap().info().modules, ["model.block.0.up"], "{more}");
        assert!(refusal(&more, &both).contains("no use for it"), "{more}");
    }
    let all = read(&json!({"target_modules": "all-linear"}), &both).unwrap();
    assert_eq!(all.info().modules, ["model.block.0.up", "model.block.1.down"]);
    assert!(refusal(&json!({"target_modules": r"((([a-z_0-9.])+)+)+\3!"}), &both).contains("too many steps"));
    assert!(refusal(&json!({"rank_pattern": {"a)(b": 1}}), &both).contains("not a pattern"));
    assert!(refusal(&json!({"target_modules": ["p"]}), &both).contains("names no layer"));
    assert!(refusal(&json!({"new_trick": {"depth": 1}}), &both).contains("`new_trick` is not supported"));
    assert!(read(&json!({"new_trick": {}, "other": null, "base_model_name_or_path": "/etc"}), &both).is_ok());
}

#[test]
fn identity_is_content_not_formatting() {
    let stored = pairs(2, 2, 1);
    let id = |text: &str, stored: &Stored| {
        peft::read(text.as_bytes(), &file(stored), &Small::new()).unwrap().generation().to_string()
    };
    let first = id(&config(&json!({})).to_string(), &stored);
    let other_form = r#" {"target_modules": ["down","up"], "lora_dropout": 0.5,
        "lora_alpha": 5.0, "r":2, "peft_type":"LORA","bias":"none"}"#;
    assert_eq!(id(other_form, &stored), first);
    assert_ne!(id(&config(&json!({"lora_alpha": 6})).to_string(), &stored), first);
    assert_ne!(id(&config(&json!({})).to_string(), &pairs(2, 2, 2)), first);
    assert_eq!(Generation::parse(&first).unwrap().to_string(), first);
}

#[test]
fn a_guard_lives_as_long_as_the_last_user() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let adapter = read(&json!({}), &pairs(2, 2, 1)).unwrap().with_guard(Box::new(Flag(dropped.clone())));
    let batch = one(adapter, 0..1);
    let user = batch.runs[0].adapter.clone();
    drop(batch);
    assert!(!dropped.load(Ordering::SeqCst));
    drop(user);
    assert!(dropped.load(Ordering::SeqCst));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(config in proptest::collection::vec(any::<u8>(), 0..200),
                                   tensors in proptest::collection::vec(any::<u8>(), 0..200)) {
        let base = Small::new();
        let sound = file(&pairs(2, 2, 1));
        prop_assert!(peft::read(&config, &sound, &base).is_err());
        let text = super::tests::config(&json!({})).to_string();
        prop_assert!(peft::read(text.as_bytes(), &tensors, &base).is_err());
    }

    #[test]
    fn mutated_files_never_panic_nor_give_a_wrong_number(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(), in_config: bool
    ) {
        let base = Small::new();
        let (mut text, mut tensors) = (config(&json!({"alpha_pattern": {"up": 3}})).to_string().into_bytes(), file(&pairs(2, 2, 1)));
        let target = if in_config { &mut text } else { &mut tensors };
        for (at, byte) in edits {
            let at = at.index(target.len());
            target[at] = byte;
        }
        if cut.index(4) == 0 {
            target.truncate(cut.index(target.len()));
        }
        if let Ok(adapter) = peft::read(&text, &tensors, &base) {
            let values = apply(&one(adapter, 0..2), UP, &tensor(&[2, 6], 1), None);
            prop_assert!(values.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| !v.is_nan()));
        }
    }
}
