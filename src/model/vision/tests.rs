//! Tests of both image classifiers on tiny random models: what golden values cannot show.

use std::collections::{BTreeMap, HashMap};

use candle_core::Var;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::*;
use crate::lora::Change;
use crate::model::open_images;
use crate::model::testing::write;

mod files;
mod learning;

/// Patches that do not divide the image, heads of an odd size, no bias of queries.
fn vit() -> Value {
    json!({
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_act": "gelu",
        "image_size": [13, 18], "patch_size": [4, 6], "num_channels": 3, "hidden_size": 36, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "layer_norm_eps": 1e-6, "qkv_bias": false,
        "id2label": {"0": "cat", "1": "dog", "2": "owl"}
    })
}

/// A shift, a window that does not divide, an odd side.
fn swin() -> Value {
    json!({
        "architectures": ["Swinv2ForImageClassification"], "model_type": "swinv2", "hidden_act": "gelu",
        "image_size": 14, "patch_size": 2, "embed_dim": 12, "depths": [2, 1], "num_heads": [2, 3],
        "window_size": 3, "mlp_ratio": 1.5, "layer_norm_eps": 1e-5, "id2label": {"0": "cat", "1": "dog", "2": "owl"}
    })
}

fn sites_of(config: &Value) -> Vec<Site> {
    match Vision::parse(config.to_string().as_bytes()).unwrap() {
        Vision::Vit(config) => crate::model::vit::sites(&config),
        Vision::Swin(config) => crate::model::swin::sites(&config),
    }
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0_f32)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Weights of a whole model by name.
fn weights(config: &Value, seed: u64) -> BTreeMap<String, Tensor> {
    let each = tensors(&sites_of(config)).into_iter().zip(seed..);
    each.map(|((name, shape), seed)| {
        let inputs = shape.iter().skip(1).product::<usize>().max(1) as f64;
        let middle = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let scale = if shape.len() == 1 { 0.3 } else { (3.0 / inputs).sqrt() };
        (name, ((random(&shape, seed) * scale).unwrap() + middle).unwrap())
    })
    .collect()
}

fn folder(config: &Value, weights: &BTreeMap<String, Tensor>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, weights, 2);
    folder
}

fn open_model(config: &Value) -> Box<dyn ImageModel> {
    open_on(config, "cpu")
}

fn open_on(config: &Value, device: &str) -> Box<dyn ImageModel> {
    open_images(folder(config, &weights(config, 1)).path(), device, "f32").unwrap()
}

/// Why a folder is refused.
fn refusal(config: &Value, weights: &BTreeMap<String, Tensor>) -> String {
    match open_images(folder(config, weights).path(), "cpu", "f32") {
        Ok(_) => panic!("{config} was read"),
        Err(error) => error.to_string(),
    }
}

fn pixels(config: &Value, count: usize) -> Tensor {
    let images = Vision::parse(config.to_string().as_bytes()).unwrap();
    let images = images.images();
    (random(&[count, images.channels, images.size[0], images.size[1]], 77) * 2.0).unwrap()
}

fn file(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let bytes = |t: &Tensor| -> Vec<u8> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect()
    };
    let bytes: Vec<_> = tensors.iter().map(|(name, t)| (name, t.dims().to_vec(), bytes(t))).collect();
    let views = bytes.iter().map(|(n, shape, b)| (n, TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A PEFT adapter of rank 2 on all paths that end in one of `targets`; `more` are keys of its configuration.
fn lora(model: &dyn ImageModel, targets: &[&str], more: &Value, seed: u64) -> Result<Adapter, crate::lora::LoraError> {
    let base = model.differentiable().unwrap().base();
    let mut stored = BTreeMap::new();
    let spelling = base.spellings().into_iter().max_by_key(|sites| {
        sites.iter().filter(|site| targets.iter().any(|target| site.path.ends_with(target))).count()
    });
    let all = more["bias"] == "all";
    for (site, seed) in spelling.unwrap().iter().zip(seed..) {
        let name = |part: &str| format!("base_model.model.{}.{part}", site.path);
        let adapted = targets.iter().any(|target| site.path.ends_with(&format!(".{target}")));
        if adapted {
            stored.insert(name("lora_A.weight"), random(&[2, site.input], seed));
            stored.insert(name("lora_B.weight"), (random(&[site.output, 2], seed + 1000) * 0.3).unwrap());
        }
        if all && site.bias {
            stored.insert(name(if adapted { "base_layer.bias" } else { "bias" }), random(&[site.output], seed + 2000));
        }
        if more["modules_to_save"][0] == site.path.as_str() {
            stored.insert(name("weight"), random(&site.shape(), seed));
            stored.insert(name("bias"), random(&[site.output], seed));
        }
    }
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": targets});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    model.load_adapter(config.to_string().as_bytes(), &file(&stored))
}

/// Adapters of every kind, and none.
fn adapters(config: &Value, model: &dyn ImageModel) -> Vec<Option<Arc<Adapter>>> {
    let (attention, all): (&[&str], &[&str]) = match config["model_type"].as_str() {
        Some("vit") => (&["query", "value"], &["q_proj", "o_proj", "fc1"]),
        _ => (&["query", "value"], &["continuous_position_bias_mlp.0", "key", "reduction"]),
    };
    let read = |targets: &[&str], more: &Value, seed| Some(Arc::new(lora(model, targets, more, seed).unwrap()));
    let whole = model.load_adapter(config.to_string().as_bytes(), &file(&weights(config, 900))).unwrap();
    vec![
        read(attention, &json!({}), 1),
        None,
        read(all, &json!({"bias": "all"}), 50),
        read(attention, &json!({"modules_to_save": ["classifier"]}), 100),
        Some(Arc::new(whole)),
        read(attention, &json!({}), 1),
    ]
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn a_batch_of_any_adapters_is_one_by_one_bit_for_bit() {
    for config in [vit(), swin()] {
        let model = open_model(&config);
        let adapters = adapters(&config, &*model);
        let pixels = pixels(&config, adapters.len());
        let one = |i: usize, adapter: &Option<Arc<Adapter>>| {
            let run = adapter.clone().map(|adapter| Run { adapter, rows: 0..1, scale: 1.0 });
            let lora = LoraBatch { runs: run.into_iter().collect(), dropout: None };
            model.classify(&pixels.narrow(0, i, 1).unwrap(), &lora).unwrap()
        };
        let plain = model.classify(&pixels, &LoraBatch::default()).unwrap();
        let each: Vec<Tensor> = (0..adapters.len()).map(|i| one(i, &None)).collect();
        assert_eq!(difference(&plain, &Tensor::cat(&each, 0).unwrap()), 0.0, "{config}");

        let runs = adapters
            .iter()
            .enumerate()
            .filter_map(|(i, adapter)| adapter.clone().map(|adapter| Run { adapter, rows: i..i + 1, scale: 1.0 }));
        let mixed = model.classify(&pixels, &LoraBatch { runs: runs.collect(), dropout: None }).unwrap();
        let each: Vec<Tensor> = adapters.iter().enumerate().map(|(i, adapter)| one(i, adapter)).collect();
        assert_eq!(difference(&mixed, &Tensor::cat(&each, 0).unwrap()), 0.0, "{config}");
        for (i, adapter) in adapters.iter().enumerate() {
            let [mixed, plain] = [&mixed, &plain].map(|logits| logits.get(i).unwrap());
            assert_eq!(difference(&mixed, &plain) > 1e-3, adapter.is_some(), "{i} of {config}");
            if let Some(adapter) = adapter {
                assert!(model.effect(adapter).unwrap() > 1e-3);
            }
        }
    }
}

#[test]
fn what_all_images_share_needs_a_pass_of_its_own() {
    let model = open_model(&swin());
    let adapters = adapters(&swin(), &*model);
    let trained = model.differentiable().unwrap();
    let pixels = pixels(&swin(), 2);
    let layout = trained.layout(&Input::Pixels(&pixels)).unwrap();
    let x = trained.embed(&layout, &LoraBatch::default()).unwrap();
    let run = Run { adapter: adapters[2].clone().unwrap(), rows: 0..1, scale: 1.0 };
    let error = trained.block(0, &x, &layout, &LoraBatch { runs: vec![run], dropout: None }).unwrap_err();
    let error = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.contains("a batch of its own"), "{error}");
}

#[test]
fn a_whole_model_as_an_adapter_is_that_model() {
    for config in [vit(), swin()] {
        let (model, pixels) = (open_model(&config), pixels(&config, 2));
        let other = weights(&config, 900);
        let whole = open_images(folder(&config, &other).path(), "cpu", "f32").unwrap();
        let expected = whole.classify(&pixels, &LoraBatch::default()).unwrap();
        let adapter = model.load_adapter(config.to_string().as_bytes(), &file(&other)).unwrap();
        let run = Run { adapter: Arc::new(adapter), rows: 0..2, scale: 1.0 };
        let got = model.classify(&pixels, &LoraBatch { runs: vec![run], dropout: None }).unwrap();
        assert!(difference(&got, &expected) < 1e-5, "{config}");

        let mut fewer = other.clone();
        let bias = fewer.keys().find(|name| name.ends_with("layernorm_after.bias")).unwrap().clone();
        fewer.remove(&bias);
        let error = model.load_adapter(config.to_string().as_bytes(), &file(&fewer)).unwrap_err().to_string();
        assert!(error.contains(&bias), "{error}");
        let mut smaller = config.clone();
        smaller["id2label"] = json!({"0": "cat"});
        let error = model.load_adapter(smaller.to_string().as_bytes(), &file(&other)).unwrap_err().to_string();
        assert!(error.contains("classifier.weight"), "{error}");
    }
}

#[test]
fn an_adapter_may_bring_labels_of_its_own() {
    for config in [vit(), swin()] {
        let (model, pixels) = (open_model(&config), pixels(&config, 2));
        let mut other = config.clone();
        other["id2label"] = json!({"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"});
        let weights = weights(&other, 900);
        let whole = open_images(folder(&other, &weights).path(), "cpu", "f32").unwrap();
        let full = model.load_adapter(other.to_string().as_bytes(), &file(&weights)).unwrap();
        let head = ["weight", "bias"].map(|part| {
            let name = format!("base_model.model.classifier.{part}");
            (name, weights[&format!("classifier.{part}")].clone())
        });
        let peft = |mapping: Value| {
            let config = json!({"peft_type": "LORA", "r": 1, "target_modules": crate::lora::NO_LAYER,
                                "modules_to_save": ["classifier"], "auto_mapping": mapping});
            model.load_adapter(config.to_string().as_bytes(), &file(&head.clone().into()))
        };
        let unnamed = peft(Value::Null).unwrap();
        let names = ["v", "w", "x", "y", "z"].map(str::to_owned);
        let named = peft(crate::lora::labelled(&names, true)).unwrap();
        let names_of = |adapter: &Adapter| adapter.info().classes.clone().unwrap().names;
        assert_eq!(names_of(&full), ["a", "b", "c", "d", "e"]);
        assert_eq!(names_of(&unnamed)[4], "LABEL_4");
        assert_eq!(names_of(&named), names);
        assert_ne!(named.generation(), unnamed.generation());
        let wrong = peft(crate::lora::labelled(&names[1..], true)).unwrap_err().to_string();
        assert!(wrong.contains("names 4 labels, classifier has 5"), "{wrong}");
        for adapter in [full, unnamed, named].map(Arc::new) {
            assert!(model.effect(&adapter).unwrap() > 1e-3);
            let run = Run { adapter: Arc::clone(&adapter), rows: 0..2, scale: 1.0 };
            let logits = model.classify(&pixels, &LoraBatch { runs: vec![run], dropout: None }).unwrap();
            assert_eq!(logits.dims(), [2, 5]);
            if adapter.info().kind == crate::lora::Kind::Full {
                let expected = whole.classify(&pixels, &LoraBatch::default()).unwrap();
                assert!(difference(&logits, &expected) < 1e-5, "{config}");
            }
        }
    }
}

#[test]
fn a_model_without_a_head_gets_it_from_adapters() {
    for config in [vit(), swin()] {
        let (sound, pixels) = (weights(&config, 1), pixels(&config, 2));
        let mut headless = config.clone();
        let (name, stem) =
            if config["model_type"] == "vit" { ("ViTModel", "vit.") } else { ("Swinv2Model", "swinv2.") };
        headless["architectures"] = json!([name]);
        let mut stored = BTreeMap::from([("pooler.dense.weight".to_owned(), random(&[2, 2], 1))]);
        let kept =
            sound.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(stem)?.to_owned(), tensor.clone())));
        stored.extend(kept);
        let model = open_images(folder(&headless, &stored).path(), "cpu", "f32").unwrap();
        assert!(model.info().labels.is_none() && model.info().classes.is_none());
        let error = model.classify(&pixels, &LoraBatch::default()).unwrap_err().to_string();
        assert!(error.contains("without a classification head"), "{error}");
        let head = lora(&*model, &["query"], &json!({}), 1).unwrap();
        assert!(model.effect(&Arc::new(head)).unwrap_err().to_string().contains("without a classification head"));

        // The head of the whole model, and nothing else: the same logits.
        let expected = open_model(&config).classify(&pixels, &LoraBatch::default()).unwrap();
        let parts = ["weight", "bias"].map(|part| format!("classifier.{part}"));
        let parts = parts.map(|name| (format!("base_model.model.{name}"), sound[&name].clone()));
        let peft = json!({"peft_type": "LORA", "r": 1, "target_modules": crate::lora::NO_LAYER,
                          "modules_to_save": ["classifier"]});
        let head = model.load_adapter(peft.to_string().as_bytes(), &file(&parts.into())).unwrap();
        let full = model.load_adapter(config.to_string().as_bytes(), &file(&sound)).unwrap();
        for adapter in [head, full].map(Arc::new) {
            assert!(model.effect(&adapter).unwrap() > 1e-3);
            let run = Run { adapter, rows: 0..2, scale: 1.0 };
            let logits = model.classify(&pixels, &LoraBatch { runs: vec![run], dropout: None }).unwrap();
            assert!(difference(&logits, &expected) < 1e-5, "{config}");
        }
        let written = model.differentiable().unwrap().config_json(Some(&["a".to_owned()])).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&written).unwrap()["architectures"], config["architectures"]);
    }
}

#[test]
fn every_tensor_has_the_gradient_of_finite_differences() {
    for config in [vit(), swin()] {
        let model = open_model(&config);
        let trained = model.differentiable().unwrap();
        let base = trained.base();
        let pixels = pixels(&config, 2);
        let input = Input::Pixels(&pixels);
        let layout = trained.layout(&input).unwrap();
        let of = random(&[2, 3], 5);
        let loss = |values: &HashMap<(usize, bool), Tensor>| {
            let changes = (0..base.sites().len()).map(|i| {
                let (weight, bias) = (values[&(i, false)].clone(), values.get(&(i, true)).cloned());
                (SiteId(i), Change::Replaced { weight, bias })
            });
            let adapter = Arc::new(Adapter::unnamed(changes.collect()));
            let lora = |rows| LoraBatch {
                runs: vec![Run { adapter: Arc::clone(&adapter), rows: 0..rows, scale: 1.0 }],
                dropout: None,
            };
            let mut x = trained.embed(&layout, &lora(2)).unwrap();
            for layer in 0..trained.depth() {
                x = trained.block(layer, &x, &layout, &lora(2)).unwrap();
            }
            let rows: Vec<u32> = trained.classified(&input).iter().map(|row| *row as u32).collect();
            let x = x.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
            (trained.head(&x, &lora(2), true).unwrap() * &of).unwrap().sum_all().unwrap()
        };
        let mut vars = HashMap::new();
        for (i, site) in base.sites().iter().enumerate() {
            let weight = base.weight(SiteId(i)).unwrap();
            assert_eq!(weight.dims(), site.shape(), "{}", site.path);
            vars.insert((i, false), Var::from_tensor(&weight).unwrap());
            if let Some(bias) = base.bias(SiteId(i)).unwrap() {
                assert!(site.bias, "{}", site.path);
                vars.insert((i, true), Var::from_tensor(&bias).unwrap());
            }
        }
        let values: HashMap<_, Tensor> = vars.iter().map(|(key, var)| (*key, var.as_tensor().clone())).collect();
        let gradients = loss(&values).backward().unwrap();
        for (key, var) in &vars {
            let path = &base.sites()[key.0].path;
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{path} has no gradient"));
            let length: f32 = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar().unwrap();
            assert!(length.is_finite(), "{path}");
            // The bias of keys moves all scores of a row alike, that is not at all.
            if length < 1e-4 {
                assert!(length < 1e-5 || path.contains("key"), "{path}: {length}");
                continue;
            }
            let moved = |step: f32| {
                let mut values: HashMap<_, Tensor> = vars.iter().map(|(k, v)| (*k, v.as_detached_tensor())).collect();
                let along = (gradient * f64::from(step / length)).unwrap();
                values.insert(*key, (var.as_detached_tensor() + along).unwrap());
                loss(&values).to_scalar::<f32>().unwrap()
            };
            let slope = (moved(5e-3) - moved(-5e-3)) / 1e-2;
            // Central differences in f32: curvature of the third order, and rounding of 1e-5 or so.
            assert!((slope - length).abs() < 2e-2 * length + 2e-3, "{path} {}: {slope}, not {length}", key.1);
        }
    }
}

#[test]
fn what_cannot_be_changed_is_refused_by_name() {
    for config in [vit(), swin()] {
        let model = open_model(&config);
        let error = |targets: &[&str], more: &Value| lora(&*model, targets, more, 1).unwrap_err().to_string();
        let convolution = error(&["projection"], &json!({}));
        assert!(convolution.contains("LoRA on the convolution") && convolution.contains("projection"), "{convolution}");
        assert!(error(&["layernorm_before"], &json!({})).contains("LoRA on the norm"));
        let parameter = if config["model_type"] == "vit" { "cls_token" } else { "logit_scale" };
        assert!(error(&[parameter], &json!({})).contains("names no layer"));
        assert!(error(&["query"], &json!({"modules_to_save": [parameter]})).contains(parameter));
    }
}

#[test]
fn wrong_shapes_missing_tensors_and_unsupported_configurations_are_named() {
    for config in [vit(), swin()] {
        let model = open_model(&config);
        let pixels = pixels(&config, 2);
        for wrong in [pixels.narrow(3, 0, 10).unwrap(), pixels.get(0).unwrap(), pixels.narrow(0, 0, 0).unwrap()] {
            let error = model.classify(&wrong, &LoraBatch::default()).unwrap_err().to_string();
            assert!(error.contains("the model needs"), "{error}");
        }
        let trained = model.differentiable().unwrap();
        assert!(trained.layout(&Input::Tokens { ids: &[1], lengths: &[1] }).is_err());
        assert!(trained.head(&pixels, &LoraBatch::default(), false).is_err());

        let sound = weights(&config, 1);
        for name in sound.keys().step_by(5) {
            let mut fewer = sound.clone();
            fewer.remove(name);
            assert!(refusal(&config, &fewer).contains(name.as_str()), "{name}");
        }
        let with = |key: &str, value: Value| {
            let mut changed = config.clone();
            changed[key] = value;
            refusal(&changed, &sound)
        };
        assert!(with("hidden_act", json!("gelu_new")).contains("gelu_new"));
        assert!(with("architectures", json!(["ViTForMaskedImageModeling"])).contains("ViTForMasked"));
        assert!(with("model_type", json!("deit")).contains("deit"));
        assert!(with("quantization_config", json!({})).contains("quantization_config"));
        assert!(with("num_channels", json!(1)).contains("images of 1 channels"));
        assert!(with("id2label", json!({"0": "cat"})).contains("classifier"));
        assert!(with("patch_size", json!(99)).contains("patch_size"));
        assert!(with("image_size", json!([1, 2, 3])).contains("image_size"));
    }
    let swin_with = |key: &str, value: Value| {
        let mut config = swin();
        config[key] = value;
        refusal(&config, &BTreeMap::new())
    };
    assert!(swin_with("use_absolute_embeddings", json!(true)).contains("use_absolute_embeddings"));
    assert!(swin_with("image_size", json!([14, 16])).contains("Swin-v2 on images"));
    assert!(swin_with("depths", json!([2])).contains("depths"));
    assert!(swin_with("pretrained_window_sizes", json!([1, 1])).contains("pretrained_window_sizes"));
    assert!(swin_with("depths", json!([1, 1, 1, 1])).contains("num_heads"));
}

#[test]
fn the_written_configuration_reads_as_the_same_model() {
    for config in [vit(), swin()] {
        let model = open_model(&config);
        let names = ["a", "b", "c"].map(str::to_owned);
        let written = model.differentiable().unwrap().config_json(Some(&names)).unwrap();
        let [own, read] = [config.to_string().into_bytes(), written].map(|bytes| Vision::parse(&bytes).unwrap());
        assert_eq!(own.canonical(), read.canonical());
        assert_eq!(read.images().classes.as_ref().unwrap().names, names);
        assert_eq!(read.images().dtype, Some(DType::F32));
    }
}
