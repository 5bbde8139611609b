//! Tests of a whole model served over its base: as if it had been opened itself.

use candle_core::Tensor;
use serde_json::{Value, json};

use super::*;
use crate::lora::{Adapter, Kind, LoraError};
use crate::model::config::RopeScaling;

/// The two files of a model with weights from `seed`.
fn files(config: &Value, seed: u64) -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), config, &tensors(&parsed, seed), 1);
    ["config.json", "model.safetensors"].map(|name| std::fs::read(folder.path().join(name)).unwrap())
}

fn opened(config: &Value, seed: u64) -> Llama {
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), config, &tensors(&parsed, seed), 1);
    open(folder.path(), "cpu", "auto").unwrap()
}

fn over(base: &Llama, [config, tensors]: &[Vec<u8>; 2]) -> Result<Adapter, LoraError> {
    base.load_adapter(config, tensors)
}

fn of(mut config: Value, changes: &Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn run(adapter: &Arc<Adapter>, rows: std::ops::Range<usize>) -> Run {
    Run { adapter: Arc::clone(adapter), rows, scale: 1.0 }
}

/// Logits of all rows of `chunks`, whose rows use `runs`.
fn logits(model: &Llama, chunks: &[&[u32]], runs: Vec<Run>) -> Vec<Vec<f32>> {
    let segments: Vec<_> = chunks.iter().map(|c| Segment { len: c.len(), logits: Rows::Last(c.len()) }).collect();
    let lora = LoraBatch { runs, dropout: None };
    let batch = Batch { tokens: &chunks.concat(), segments: &segments, lora: &lora };
    let mut caches: Vec<_> = chunks.iter().map(|_| model.new_cache()).collect();
    model.forward(&batch, &mut caches.iter_mut().collect::<Vec<_>>()).unwrap().to_vec2().unwrap()
}

fn classes(model: &Llama, tokens: &[u32], adapter: Option<&Arc<Adapter>>) -> Vec<Vec<f32>> {
    let segments = [Segment { len: tokens.len(), logits: Rows::None }];
    let runs = adapter.map(|adapter| run(adapter, 0..tokens.len())).into_iter().collect();
    let lora = LoraBatch { runs, dropout: None };
    model.classify(&Batch { tokens, segments: &segments, lora: &lora }).unwrap().to_vec2().unwrap()
}

#[test]
fn over_its_base_it_answers_as_opened_itself() {
    let tied = of(llama(), &json!({"tie_word_embeddings": true}));
    for config in [mistral(), llama(), tied] {
        let (base, whole) = (opened(&config, 7), opened(&config, 8));
        let adapter = Arc::new(over(&base, &files(&config, 8)).unwrap());
        assert_eq!(adapter.info().kind, Kind::Full);
        let (long, short) = (ids(90, 1), ids(3, 2));
        let expected = logits(&whole, &[&long, &short], Vec::new());
        let all = logits(&base, &[&long, &short], vec![run(&adapter, 0..93)]);
        assert!(largest_difference(&all, &expected) < ROUNDING);

        let plain = logits(&base, &[&short], Vec::new());
        assert!(largest_difference(&plain, &expected[90..]) > 100.0 * ROUNDING);
        let mixed = logits(&base, &[&short, &long, &short], vec![run(&adapter, 3..93)]);
        assert!(largest_difference(&mixed[..3], &plain) < ROUNDING);
        assert!(largest_difference(&mixed[3..93], &expected[..90]) < ROUNDING);
        assert!(largest_difference(&mixed[93..], &plain) < ROUNDING);
        assert!(crate::model::effect(&base, &adapter).unwrap() > 0.1);
    }
}

#[test]
fn a_classifier_over_a_language_model_classifies_as_itself() {
    let architecture = json!({"architectures": ["LlamaForSequenceClassification"], "pad_token_id": 5,
        "id2label": {"0": "no", "1": "yes", "2": "maybe"}, "problem_type": "multi_label_classification"});
    let classifier = of(llama(), &architecture);
    let (base, whole) = (opened(&llama(), 7), opened(&classifier, 8));
    let adapter = Arc::new(over(&base, &files(&classifier, 8)).unwrap());
    let brought = adapter.info().classes.clone().unwrap();
    assert_eq!((brought.names.join(" ").as_str(), brought.problem), ("no yes maybe", crate::lora::Problem::Multi));
    for tokens in [ids(40, 1), vec![9, 8, 7, 5, 5]] {
        let expected = classes(&whole, &tokens, None);
        assert!(largest_difference(&classes(&base, &tokens, Some(&adapter)), &expected) < ROUNDING);
    }
    assert!(crate::model::effect(&base, &adapter).unwrap() > 0.1);
    // Over a classifier it replaces the head that is there.
    let base = opened(&classifier, 9);
    let adapter = Arc::new(over(&base, &files(&classifier, 8)).unwrap());
    let tokens = ids(40, 1);
    let expected = classes(&whole, &tokens, None);
    assert!(largest_difference(&classes(&base, &tokens, Some(&adapter)), &expected) < ROUNDING);
    assert!(largest_difference(&classes(&base, &tokens, None), &expected) > 100.0 * ROUNDING);
}

#[test]
fn a_configuration_that_computes_something_else_is_refused_by_its_key() {
    let base = opened(&mistral(), 7);
    let refused = |base: &Llama, config: &Value| match over(base, &files(config, 8)) {
        Err(LoraError::Mismatch(text)) => text,
        other => panic!("{:?}", other.map(|adapter| adapter.info().clone())),
    };
    for (key, value) in [
        ("hidden_size", json!(32)),
        ("intermediate_size", json!(64)),
        ("num_hidden_layers", json!(1)),
        ("num_attention_heads", json!(2)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(16)),
        ("vocab_size", json!(95)),
        ("rms_norm_eps", json!(1e-6)),
        ("sliding_window", json!(21)),
    ] {
        let text = refused(&base, &of(mistral(), &json!({ (key): value })));
        assert!(text.contains(&format!("`{key}`")), "{key}: {text}");
    }
    let linear = of(mistral(), &json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}));
    assert!(refused(&base, &linear).contains("rope_parameters"));
    assert!(refused(&base, &of(mistral(), &json!({"rope_theta": 5e5}))).contains("rope_parameters"));
    let plain = of(llama(), &json!({"attention_bias": false, "sliding_window": null}));
    assert!(refused(&opened(&llama(), 7), &plain).contains("attention_bias"));
    // What does not change the result is free.
    let free = of(mistral(), &json!({"eos_token_id": 9, "max_position_embeddings": 64, "dtype": "bfloat16"}));
    assert!(over(&base, &files(&free, 8)).is_ok());
    let classifier = |labels: usize| {
        of(llama(), &json!({"architectures": ["LlamaForSequenceClassification"], "num_labels": labels}))
    };
    assert!(refused(&opened(&classifier(3), 7), &classifier(2)).contains("id2label"));
    assert!(refused(&opened(&classifier(3), 7), &llama()).contains("id2label"));
}

#[test]
fn a_written_configuration_is_read_back_the_same() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let configs = [
        mistral(),
        of(mistral(), &json!({"sliding_window": null, "eos_token_id": null, "pad_token_id": -1})),
        of(llama(), &json!({"rope_scaling": llama3, "tie_word_embeddings": true, "torch_dtype": "bfloat16"})),
        of(llama(), &json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}})),
        of(
            llama(),
            &json!({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b"},
            "pad_token_id": 3}),
        ),
    ];
    for source in configs {
        let model = opened(&source, 7);
        let written = model.config_json(None).unwrap();
        let (parsed, text) = (Config::parse(&written).unwrap(), String::from_utf8(written.clone()).unwrap());
        assert_eq!(parsed.canonical(), model.config.canonical(), "{text}");
        assert_eq!(parsed.architecture, model.config.architecture);
        assert_eq!((parsed.dtype, parsed.classes), (Some(DType::F32), model.config.classes.clone()));
        assert_eq!(
            (parsed.context_length, parsed.eos_token_ids, parsed.pad_token_id),
            (model.config.context_length, model.config.eos_token_ids.clone(), model.config.pad_token_id)
        );
        // transformers 4 does not look at `rope_parameters`, 5 not at the others.
        for other in [&["rope_parameters"][..], &["rope_theta", "rope_scaling"]] {
            let mut cut: Value = serde_json::from_slice(&written).unwrap();
            other.iter().for_each(|key| drop(cut.as_object_mut().unwrap().remove(*key)));
            let cut = Config::parse(cut.to_string().as_bytes()).unwrap();
            assert_eq!(cut.canonical(), model.config.canonical(), "{text}");
        }
        // Nor does it depend on the file: a GGUF base has none.
        let unread = Config { source: None, classes: None, ..model.config.clone() };
        if model.info.labels.is_none() {
            let written = serde_json::to_vec(&unread.written(None).unwrap()).unwrap();
            assert_eq!(Config::parse(&written).unwrap().canonical(), model.config.canonical());
        }

        let labels = ["yes".to_owned(), "no".to_owned()];
        let classifier = Config::parse(&model.config_json(Some(&labels)).unwrap()).unwrap();
        assert_eq!(classifier.classes.as_ref().unwrap().names, labels);
        assert!(classifier.architecture.ends_with("ForSequenceClassification"));
        assert_eq!(classifier.pad_token_id, model.config.pad_token_id);
        assert!(model.config.replaced_by(&model.config_json(Some(&labels)).unwrap()).is_ok());
    }
}

#[test]
fn rope_factors_of_a_gguf_file_are_written_where_they_are_a_published_llamas() {
    let llama3 = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 5e5});
    let published = Config::parse(of(llama(), &json!({"rope_parameters": llama3})).to_string().as_bytes()).unwrap();
    let plain = Config { rope_scaling: RopeScaling::Default, ..published.clone() };
    let pairs = plain.rope_frequencies().into_iter().zip(published.rope_frequencies());
    let factors: Vec<f32> = pairs.map(|(plain, scaled)| plain / scaled).collect();
    let gguf = Config { rope_scaling: RopeScaling::Factors(factors.clone()), source: None, ..published };
    let written = serde_json::to_vec(&gguf.written(None).unwrap()).unwrap();
    assert!(gguf.replaced_by(&written).is_ok());
    let odd = factors.iter().map(|factor| factor * 1.01).collect();
    let odd = Config { rope_scaling: RopeScaling::Factors(odd), ..gguf };
    assert!(odd.written(None).unwrap_err().contains("rope factors"));
}

#[test]
fn a_tied_model_is_held_once() {
    let tied = of(llama(), &json!({"tie_word_embeddings": true}));
    let adapter = over(&opened(&tied, 7), &files(&tied, 8)).unwrap();
    let parsed = Config::parse(tied.to_string().as_bytes()).unwrap();
    let numbers: usize = parsed.tensors().values().map(|shape| shape.iter().product::<usize>()).sum();
    assert_eq!(adapter.info().bytes, 4 * numbers as u64);
    let half: std::collections::HashMap<String, Tensor> =
        tensors(&parsed, 8).into_iter().map(|(name, t)| (name, t.to_dtype(DType::BF16).unwrap())).collect();
    let folder = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(&half, folder.path().join("half")).unwrap();
    let half = [tied.to_string().into_bytes(), std::fs::read(folder.path().join("half")).unwrap()];
    assert_eq!(over(&opened(&tied, 7), &half).unwrap().info().bytes, 4 * numbers as u64);
}
