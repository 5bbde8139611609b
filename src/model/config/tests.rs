//! Tests of the configuration reader.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::testing::{llama, mistral};

fn parse(config: &Value) -> Checked<Config> {
    Config::parse(config.to_string().as_bytes())
}

fn with(key: &str, value: Value) -> Value {
    let mut config = llama();
    config[key] = value;
    config
}

#[test]
fn both_generations_say_the_same() {
    let old = with("rope_scaling", json!({"type": "linear", "factor": 4.0}));
    let new = with("rope_parameters", json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}));
    assert_eq!(parse(&old).unwrap().canonical(), parse(&new).unwrap().canonical());
    assert_ne!(parse(&old).unwrap().canonical(), parse(&llama()).unwrap().canonical());
    assert_eq!(parse(&with("dtype", json!("bfloat16"))).unwrap().dtype, Some(DType::BF16));
    assert_eq!(parse(&with("torch_dtype", json!("float16"))).unwrap().dtype, Some(DType::F16));
}

#[test]
fn a_window_is_mistrals_and_may_be_null() {
    let window = |value: Option<Value>| {
        let mut config = mistral();
        match value {
            Some(value) => config["sliding_window"] = value,
            None => drop(config.as_object_mut().unwrap().remove("sliding_window")),
        }
        parse(&config).unwrap().sliding_window
    };
    assert_eq!(window(Some(json!(20))), Some(20));
    assert_eq!(window(Some(json!(null))), None);
    assert_eq!(window(None), Some(4096));
    assert_eq!(parse(&llama()).unwrap().sliding_window, None);
}

#[test]
fn what_is_not_supported_is_named() {
    for (key, value, named) in [
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0}), "yarn"),
        ("rope_parameters", json!({"full_attention": {"rope_type": "default"}}), "full_attention"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("model_type", json!("mamba"), "mamba"),
        ("architectures", json!(["LlamaForTokenClassification"]), "LlamaForTokenClassification"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantization_config"),
        ("dtype", json!("float8_e4m3fn"), "float8_e4m3fn"),
    ] {
        match parse(&with(key, value)) {
            Err(Fault::Unsupported(text)) => assert!(text.contains(named), "{text}"),
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn faulty_fields_are_named() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(1e30)),
        ("hidden_size", json!("64")),
        ("vocab_size", json!(u64::MAX)),
        ("vocab_size", json!(null)),
        ("num_hidden_layers", json!(1 << 20)),
        ("max_position_embeddings", json!(1.5)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rope_theta", json!("NaN")),
        ("eos_token_id", json!(96)),
        ("eos_token_id", json!([1, -1])),
        ("attention_bias", json!(1)),
        ("architectures", json!([])),
    ] {
        match parse(&with(key, value)) {
            Err(Fault::Invalid(text)) => assert!(text.contains(key), "{text}"),
            other => panic!("{key}: {other:?}"),
        }
    }
    assert!(parse(&with("num_key_value_heads", json!(3))).is_err());
    assert!(parse(&with("head_dim", json!(7))).is_err());
    assert_eq!(parse(&with("pad_token_id", json!(-1))).unwrap().pad_token_id, None);
}

#[test]
fn ids_that_end_a_text_come_from_both_files() {
    let mut config = parse(&llama()).unwrap();
    config.add_generation_config(br#"{"eos_token_id": [3, 9]}"#).unwrap();
    assert_eq!(config.eos_token_ids, [2, 3, 9]);
    assert!(config.add_generation_config(br#"{"eos_token_id": 96}"#).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = Config::parse(&bytes);
    }

    #[test]
    fn arbitrary_values_never_panic(field in 0..16_usize, number in any::<f64>(), whole in any::<u64>()) {
        let key = llama().as_object().unwrap().keys().nth(field).cloned().unwrap_or_default();
        for value in [json!(number), json!(whole), json!([number]), json!({"factor": number}), json!("x")] {
            if let Ok(config) = parse(&with(&key, value)) {
                let _ = (config.tensors(), config.rope_frequencies(), config.canonical());
            }
        }
    }
}
