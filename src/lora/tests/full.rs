//! Tests of reading a whole model, on the small base with a norm and room for a classification head.

use super::*;
use crate::lora::full::{Full, is_full, read};

/// [`Small`] with a norm in front of the head, and a head that it lacks.
fn base() -> Small {
    let mut base = Small::new();
    let site = |path: &str, kind, output| Site { path: path.into(), kind, input: 6, output, bias: false };
    base.sites.insert(3, site("model.norm", SiteKind::Norm, 6));
    base.sites.insert(4, site("score", SiteKind::Classifier, 0));
    // As many outputs as the embedding has rows, so that it can be tied.
    base.sites[5].output = VOCAB;
    base
}

const NORM: SiteId = SiteId(3);
const SCORE: SiteId = SiteId(4);
const HEAD: SiteId = SiteId(5);

fn full(tied: bool, labels: usize) -> Full {
    let classes = (labels > 0).then(|| Classes::unnamed(labels));
    Full { canonical: "small".into(), tied, classes }
}

/// Tensors of a whole model by their names.
fn weights(seed: u64) -> Stored {
    let mut stored = Stored::new();
    put(&mut stored, "model.embed.weight", &[VOCAB, 6], seed);
    put(&mut stored, "model.block.0.up.weight", &[9, 6], seed + 1);
    put(&mut stored, "model.block.0.up.bias", &[9], seed + 2);
    put(&mut stored, "model.block.1.down.weight", &[5, 6], seed + 3);
    put(&mut stored, "model.norm.weight", &[6], seed + 4);
    put(&mut stored, "head.weight", &[VOCAB, 6], seed + 5);
    stored
}

fn file(stored: &Stored) -> Vec<u8> {
    let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let stored: Vec<_> = stored.iter().map(|(name, (shape, values))| (name, shape.clone(), bytes(values))).collect();
    let views = stored.iter().map(|(n, shape, b)| (n, TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn load(full: Full, stored: &Stored) -> Result<Adapter, LoraError> {
    read(full, &file(stored), &base())
}

fn refusal(full: Full, stored: &Stored) -> String {
    load(full, stored).map(|adapter| adapter.info).unwrap_err().to_string()
}

fn values(adapter: &Adapter, site: SiteId) -> Vec<f32> {
    let Some(Change::Replaced { weight, .. }) = adapter.changes.get(&site) else { panic!("{site:?} is not replaced") };
    weight.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_weight_takes_the_place_of_the_bases() {
    let stored = weights(50);
    let adapter = load(full(false, 0), &stored).unwrap();
    let names = ["model.embed", "model.block.0.up", "model.block.1.down", "model.norm", "head"];
    assert_eq!(adapter.info.modules, names);
    for (site, name) in [SiteId(0), UP, DOWN, NORM, HEAD].into_iter().zip(names) {
        assert_eq!(values(&adapter, site), stored[&format!("{name}.weight")].1, "{name}");
    }
    let numbers: usize = stored.values().map(|(_, values)| values.len()).sum();
    assert_eq!((adapter.info.kind, adapter.info.bytes), (Kind::Full, 4 * numbers as u64));

    let x = tensor(&[4, 6], 90);
    let matrix = Tensor::from_vec(stored["model.block.0.up.weight"].1.clone(), &[9, 6], &Device::Cpu).unwrap();
    let bias = Tensor::from_vec(stored["model.block.0.up.bias"].1.clone(), 9, &Device::Cpu).unwrap();
    let expected = x.matmul(&matrix.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
    let lora = one(adapter, 0..4);
    assert_close(&lora.whole(UP, &x).unwrap().unwrap(), &expected);
    assert_close(&apply(&lora, UP, &x, Some(&tensor(&[9], 91))), &expected);
}

#[test]
fn a_tied_head_is_the_embedding_and_is_counted_once() {
    let mut stored = weights(50);
    let head = stored.remove("head.weight").unwrap();
    assert!(refusal(full(false, 0), &stored).contains("head.weight is missing"));
    let adapter = load(full(true, 0), &stored).unwrap();
    assert_eq!(values(&adapter, HEAD), values(&adapter, SiteId(0)));
    let numbers: usize = stored.values().map(|(_, values)| values.len()).sum();
    assert_eq!(adapter.info.bytes, 4 * numbers as u64);
    // Some writers repeat it; what is tied cannot differ.
    let embedding = stored["model.embed.weight"].clone();
    stored.insert("head.weight".into(), embedding);
    assert_eq!(load(full(true, 0), &stored).unwrap().info.bytes, 4 * numbers as u64);
    stored.insert("head.weight".into(), head);
    assert!(refusal(full(true, 0), &stored).contains("differs from the embedding"));
}

#[test]
fn a_classifier_brings_its_head_and_leaves_the_language_head() {
    let mut stored = weights(50);
    stored.remove("head.weight");
    put(&mut stored, "score.weight", &[3, 6], 80);
    let adapter = load(full(false, 3), &stored).unwrap();
    assert_eq!(values(&adapter, SCORE), stored["score.weight"].1);
    assert!(!adapter.changes.contains_key(&HEAD));
    assert_eq!(adapter.info.classes.as_ref().map(|c| c.names.len()), Some(3));
    assert!(refusal(full(false, 2), &stored).contains("score.weight: has shape [3, 6]"));
    stored.insert("head.weight".into(), (vec![VOCAB, 6], vec![0.5; VOCAB * 6]));
    assert!(refusal(full(false, 3), &stored).contains("no place"));
}

#[test]
fn missing_surplus_misshapen_and_infinite_tensors_are_named() {
    let sound = weights(50);
    for name in sound.keys() {
        let mut stored = sound.clone();
        stored.remove(name);
        assert!(refusal(full(false, 0), &stored).contains(&format!("{name} is missing")), "{name}");
        let mut stored = sound.clone();
        stored.get_mut(name).unwrap().1[2] = f32::NAN;
        assert!(refusal(full(false, 0), &stored).contains(name), "{name}");
        let mut stored = sound.clone();
        let (shape, values) = stored.get_mut(name).unwrap();
        shape[0] += 1;
        let row = shape.iter().skip(1).product();
        values.extend(std::iter::repeat_n(0.5, row));
        assert!(refusal(full(false, 0), &stored).contains("this base model needs"), "{name}");
    }
    let mut surplus = sound.clone();
    put(&mut surplus, "model.block.2.up.weight", &[9, 6], 1);
    assert!(refusal(full(false, 0), &surplus).contains("model.block.2.up.weight"));
    let mut old = sound.clone();
    put(&mut old, "model.block.0.rotary_emb.inv_freq", &[3], 1);
    let identity = |stored: &Stored| load(full(false, 0), stored).unwrap().generation;
    assert_eq!(identity(&old), identity(&sound));
    assert_ne!(identity(&weights(51)), identity(&sound));
    assert_ne!(
        load(full(true, 0), &{
            let mut tied = sound.clone();
            tied.remove("head.weight");
            tied
        })
        .unwrap()
        .generation,
        identity(&sound)
    );
}

#[test]
fn labels_are_part_of_the_identity() {
    let mut stored = weights(50);
    stored.remove("head.weight");
    put(&mut stored, "score.weight", &[2, 6], 80);
    let identity = |change: fn(&mut Classes)| {
        let mut full = full(false, 2);
        change(full.classes.as_mut().unwrap());
        load(full, &stored).unwrap().generation
    };
    let plain = identity(|_| {});
    assert_eq!(plain, identity(|_| {}));
    assert_ne!(plain, identity(|classes| classes.names[1] = "yes".into()));
    assert_ne!(plain, identity(|classes| classes.problem = Problem::Multi));
    assert_ne!(plain, identity(|classes| classes.pad_token_id = Some(0)));
}

#[test]
fn the_kind_is_seen_in_the_configuration() {
    let is = |text: &str| is_full(text.as_bytes()).unwrap();
    assert!(is(r#"{"model_type": "llama"}"#) && is(r#"{"architectures": []}"#));
    assert!(!is(r#"{"peft_type": "LORA"}"#) && !is(r#"{"peft_type": "LORA", "model_type": "llama"}"#));
    assert!(!is("{}") && !is("[]") && !is("\u{0}"));
    assert!(is_full(&vec![b' '; 5 << 20]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_damaged_file_is_refused_or_read_without_a_panic(at in 0_usize..2000, byte: u8, labels in 0_usize..3) {
        let mut bytes = file(&weights(50));
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(full(false, labels), &bytes, &base());
        let _ = read(full(true, labels), &bytes[..at], &base());
    }
}
