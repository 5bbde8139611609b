//! Tests of GGUF files: each computes what the folder of the same weights computes, and faulty ones are refused.

use candle_core::quantized::gguf_file;
use proptest::prelude::*;

use super::*;
use crate::model::testing::{forward, ids, largest_difference, mistral, tensors, write};
use crate::model::{BaseModel, CausalLm, open};

/// The order in which `convert_hf_to_gguf.py` writes the rows of a head, spelt with tensors.
fn interleaved(tensor: &Tensor, head_dim: usize) -> Tensor {
    let (rows, columns) = tensor.dims2().unwrap();
    let split = tensor.reshape((rows / head_dim, 2, head_dim / 2, columns)).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

/// Rows of whole blocks of every format.
pub(in crate::model) fn wide() -> serde_json::Value {
    let mut config = mistral();
    for (key, size) in [("hidden_size", 256), ("intermediate_size", 256), ("head_dim", 64)] {
        config[key] = size.into();
    }
    config
}

/// A GGUF file and the folder of the same model, whose weights are the dequantised ones.
fn pair(format: GgmlDType) -> tempfile::TempDir {
    pair_of(&mistral(), format, &[], None)
}

/// As [`pair`], of a model with another configuration, more metadata and `rope_freqs.weight`.
pub(in crate::model) fn pair_of(
    json: &serde_json::Value,
    format: GgmlDType,
    more: &[(&str, gguf_file::Value)],
    factors: Option<&QTensor>,
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::parse(json.to_string().as_bytes()).unwrap();
    let mut plain = tensors(&config, 3);
    let mut stored = Vec::new();
    for (name, tensor) in &mut plain {
        if tensor.rank() == 1 {
            stored.push((stored_name(name), QTensor::quantize(tensor, GgmlDType::F32).unwrap()));
            continue;
        }
        // Rows are quantised one by one; what is quantised twice may change.
        let quantised = QTensor::quantize(tensor, format).unwrap();
        let rotated = name.contains("q_proj") || name.contains("k_proj");
        let written = rotated.then(|| QTensor::quantize(&interleaved(tensor, config.head_dim), format).unwrap());
        *tensor = quantised.dequantize(&Device::Cpu).unwrap();
        stored.push((stored_name(name), written.unwrap_or(quantised)));
    }
    write(folder.path(), json, &plain, 1);
    let whole = |n: usize| gguf_file::Value::U32(n as u32);
    let metadata = [
        ("general.architecture", gguf_file::Value::String("llama".into())),
        ("llama.block_count", whole(config.layers)),
        ("llama.context_length", whole(config.context_length)),
        ("llama.embedding_length", whole(config.hidden_size)),
        ("llama.feed_forward_length", whole(config.intermediate_size)),
        ("llama.attention.head_count", whole(config.heads)),
        ("llama.attention.head_count_kv", whole(config.kv_heads)),
        ("llama.attention.key_length", whole(config.head_dim)),
        ("llama.attention.sliding_window", whole(config.sliding_window.unwrap())),
        ("llama.attention.layer_norm_rms_epsilon", gguf_file::Value::F32(1e-5)),
        ("tokenizer.ggml.eos_token_id", whole(2)),
        ("tokenizer.ggml.tokens", gguf_file::Value::Array(vec![gguf_file::Value::String("a".into()); 96])),
    ];
    let metadata: Vec<_> = metadata.iter().chain(more).map(|(key, value)| (*key, value)).collect();
    let stored = stored.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let stored: Vec<_> = stored.chain(factors.map(|factors| ("rope_freqs.weight", factors))).collect();
    let mut file = File::create(folder.path().join("model.gguf")).unwrap();
    gguf_file::write(&mut file, &metadata, &stored).unwrap();
    folder
}

fn logits(path: &Path, dtype: &str) -> Vec<Vec<f32>> {
    let model = open(path, "cpu", dtype).unwrap();
    forward(&model, &[&ids(40, 1)], &mut [&mut model.new_cache()])
}

/// Logits of up to 5: what rounding the activations of a product to 8 bits moved them by was 0.1 at most.
const ROUNDED: f32 = 0.3;
/// Sums of f32 in another order.
const EXACT: f32 = 1e-4;

#[test]
fn a_file_computes_what_the_folder_computes() {
    for (config, format, tolerance) in [
        (mistral(), GgmlDType::F32, EXACT),
        // AMX rounds activations under bf16 weights to bf16.
        (mistral(), GgmlDType::F16, EXACT),
        (mistral(), GgmlDType::BF16, ROUNDED),
        (mistral(), GgmlDType::Q8_0, ROUNDED),
        (mistral(), GgmlDType::Q4_0, ROUNDED),
        (mistral(), GgmlDType::Q4_1, ROUNDED),
        (mistral(), GgmlDType::Q5_0, ROUNDED),
        (mistral(), GgmlDType::Q5_1, ROUNDED),
        (mistral(), GgmlDType::Q8_1, ROUNDED),
        (wide(), GgmlDType::Q2K, ROUNDED),
        (wide(), GgmlDType::Q3K, ROUNDED),
        (wide(), GgmlDType::Q4K, ROUNDED),
        (wide(), GgmlDType::Q5K, ROUNDED),
        (wide(), GgmlDType::Q6K, ROUNDED),
        (wide(), GgmlDType::Q8K, ROUNDED),
    ] {
        let folder = pair_of(&config, format, &[], None);
        let file = folder.path().join("model.gguf");
        let expected = logits(folder.path(), "auto");
        let exact = largest_difference(&logits(&file, "f32"), &expected);
        assert!(exact < EXACT, "{format:?}, dequantised: {exact}");
        let quantised = largest_difference(&logits(&file, "auto"), &expected);
        assert!(quantised < tolerance, "{format:?}: {quantised}");
        let info = open(&file, "cpu", "auto").unwrap().info().clone();
        assert_eq!(info.dtype, format!("{format:?}").to_lowercase());
        assert_eq!((info.vocab_size, info.eos_token_ids), (96, vec![2]));
    }
}

#[cfg(feature = "cuda")]
#[test]
fn on_gpu_quantised_weights_become_bf16() {
    let small = [GgmlDType::F16, GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1];
    let large = [GgmlDType::Q2K, GgmlDType::Q3K, GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K, GgmlDType::Q8K];
    let of = |config: fn() -> serde_json::Value| move |format| (config(), format);
    for (config, format) in small.into_iter().map(of(mistral)).chain(large.into_iter().map(of(wide))) {
        let folder = pair_of(&config, format, &[], None);
        let file = folder.path().join("model.gguf");
        let expected = logits(folder.path(), "auto");
        for (dtype, becomes, tolerance) in [("auto", "bf16", ROUNDED), ("f32", "f32", 10.0 * EXACT)] {
            let model = open(&file, "cuda", dtype).unwrap();
            assert_eq!(model.info().dtype, becomes);
            let got = forward(&model, &[&ids(40, 1)], &mut [&mut model.new_cache()]);
            let difference = largest_difference(&got, &expected);
            assert!(difference < tolerance, "{format:?}, {dtype}: {difference}");
        }
    }
}

#[test]
fn rope_scaling_is_that_of_the_folder() {
    let text = |kind: &str| gguf_file::Value::String(kind.into());
    let number = gguf_file::Value::F32;
    let linear = |factor: f64| {
        let mut config = mistral();
        config["rope_scaling"] = serde_json::json!({"rope_type": "linear", "factor": factor});
        config
    };
    // Of Llama 3: long waves are stretched, short ones stay, those between go from one to the other.
    let mut llama3 = mistral();
    llama3["rope_scaling"] = serde_json::json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let frequencies =
        |config: &serde_json::Value| Config::parse(config.to_string().as_bytes()).unwrap().rope_frequencies();
    let factors: Vec<f32> =
        frequencies(&mistral()).iter().zip(frequencies(&llama3)).map(|(plain, scaled)| plain / scaled).collect();
    assert!(factors.iter().any(|f| *f > 1.5 && *f < 7.0) && factors.contains(&1.0), "{factors:?}");
    let factors = QTensor::quantize(&Tensor::new(factors, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap();
    let (kind, factor, old) = ("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear");
    let unscaled = logits(pair(GgmlDType::F32).path(), "auto");
    for (what, config, metadata, factors, changes) in [
        ("linear", linear(4.0), vec![(kind, text("linear")), (factor, number(4.0))], None, true),
        ("a factor alone", linear(4.0), vec![(factor, number(4.0))], None, true),
        ("the old name", linear(2.5), vec![(old, number(2.5))], None, true),
        ("none", mistral(), vec![(kind, text("none")), (factor, number(4.0))], None, false),
        ("factors of llama3", llama3, vec![], Some(&factors), true),
    ] {
        let folder = pair_of(&config, GgmlDType::F32, &metadata, factors);
        let expected = logits(folder.path(), "auto");
        assert_eq!(largest_difference(&expected, &unscaled) > 0.05, changes, "{what}");
        let got = largest_difference(&logits(&folder.path().join("model.gguf"), "auto"), &expected);
        assert!(got < EXACT, "{what}: {got}");
    }
}

#[test]
fn faulty_rope_scaling_is_named() {
    let text = |kind: &str| gguf_file::Value::String(kind.into());
    let number = gguf_file::Value::F32;
    let (kind, factor) = ("llama.rope.scaling.type", "llama.rope.scaling.factor");
    let factors = |values: &[f32], format| {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        QTensor::quantize(&tensor, format).unwrap()
    };
    let (whole, half, zero) =
        (factors(&[2.0; 16], GgmlDType::F32), factors(&[2.0; 16], GgmlDType::F16), factors(&[0.0; 16], GgmlDType::F32));
    let short = factors(&[2.0; 8], GgmlDType::F32);
    for (metadata, factors, named) in [
        (vec![(kind, text("yarn")), (factor, number(4.0))], None, "yarn"),
        (vec![(kind, text("linear"))], None, "no factor"),
        (vec![(factor, number(0.0))], None, factor),
        (vec![(factor, number(f32::NAN))], None, factor),
        (vec![(factor, number(4.0))], Some(&whole), "rope_freqs.weight"),
        (vec![], Some(&half), "rope_freqs.weight"),
        (vec![], Some(&zero), "rope_freqs.weight"),
        (vec![], Some(&short), "rope_freqs.weight"),
    ] {
        let folder = pair_of(&mistral(), GgmlDType::F32, &metadata, factors);
        let error = open(&folder.path().join("model.gguf"), "cpu", "auto").unwrap_err().to_string();
        assert!(error.contains(named), "{error} does not name {named}");
    }
}

#[test]
fn cut_files_are_refused() {
    let folder = pair(GgmlDType::Q8_0);
    let file = folder.path().join("model.gguf");
    let bytes = std::fs::read(&file).unwrap();
    for len in [0, 3, 4, 24, 500, 2000, bytes.len() / 2, bytes.len() - 64] {
        std::fs::write(&file, &bytes[..len]).unwrap();
        let error = open(&file, "cpu", "auto").unwrap_err();
        assert!(matches!(error, ModelError::Invalid { .. }), "{len} bytes: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_headers_never_panic(damage in proptest::collection::vec((0..3000_usize, any::<u8>()), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.gguf");
        let mut bytes = SOUND.with(Clone::clone);
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        std::fs::write(&file, bytes).unwrap();
        let _ = open(&file, "cpu", "auto");
    }
}

thread_local! {
    static SOUND: Vec<u8> = std::fs::read(pair(GgmlDType::Q8_0).path().join("model.gguf")).unwrap();
}
