//! Files of strangers: broken adapters through the real loader, positions of another image size, both writings of
//! `config.json`.

use super::*;
use crate::lora::LoraError;

/// Names and tensors of a sound adapter of rank 2 on the queries.
fn sound(model: &dyn ImageModel) -> BTreeMap<String, Tensor> {
    let base = model.differentiable().unwrap().base();
    let spellings = base.spellings();
    let queries = |sites: &&&[Site]| sites.iter().any(|site| site.path.ends_with(".query"));
    let sites = spellings.iter().find(queries).unwrap();
    let mut stored = BTreeMap::new();
    for (site, seed) in sites.iter().filter(|site| site.path.ends_with(".query")).zip(1..) {
        let name = |part: &str| format!("base_model.model.{}.lora_{part}.weight", site.path);
        stored.insert(name("A"), random(&[2, site.input], seed));
        stored.insert(name("B"), random(&[site.output, 2], seed + 100));
    }
    stored
}

fn peft(more: &Value) -> Value {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["query"]});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn broken_adapters_of_images_are_refused_with_what_is_wrong() {
    for config in [vit(), swin()] {
        let model = open_model(&config);
        let stored = sound(&*model);
        let load = |more: &Value, tensors: &[u8]| model.load_adapter(peft(more).to_string().as_bytes(), tensors);
        load(&json!({}), &file(&stored)).unwrap();
        let first = |part: &str| stored.keys().find(|name| name.ends_with(&format!("lora_{part}.weight"))).unwrap();
        let (a, b) = (first("A").clone(), first("B").clone());
        let path = a.strip_prefix("base_model.model.").and_then(|a| a.strip_suffix(".lora_A.weight")).unwrap();
        let refused = |more: &Value, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let mut stored = stored.clone();
            change(&mut stored);
            load(more, &file(&stored)).unwrap_err().to_string()
        };
        let put = |name: &str, shape: &[usize]| {
            refused(&json!({}), &|stored| drop(stored.insert(name.into(), random(shape, 9))))
        };
        let [(output, _), (_, input)] = [&b, &a].map(|name| stored[name].dims2().unwrap());
        for (error, told) in [
            (refused(&json!({}), &|stored| drop(stored.remove(&b))), path),
            (put(&a, &[3, input]), path),
            (put(&a, &[2, input + 1]), path),
            (put(&b, &[output + 1, 2]), path),
            (put("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 8]), "model.layers.0"),
            (put(&format!("base_model.model.{path}.bias"), &[output]), path),
            (refused(&json!({"r": 0}), &|_| {}), "r has to be"),
            (refused(&json!({"target_modules": ["gate_proj"]}), &|_| {}), ""),
            (refused(&json!({"use_dora": true}), &|_| {}), path),
            (refused(&json!({"modules_to_save": ["classifier"]}), &|_| {}), "classifier"),
            (refused(&json!({"peft_type": "LOHA"}), &|_| {}), "LOHA"),
        ] {
            assert!(error.contains(told), "{config}: {error} does not name {told}");
        }
        let not_finite = refused(&json!({}), &|stored| {
            let broken = (&stored[&a] * f64::NAN).unwrap();
            stored.insert(a.clone(), broken);
        });
        assert!(not_finite.contains(path), "{not_finite}");
        // The head that is brought must be one, whole and as wide as the model.
        let head = |shape: &[usize], bias: Option<&[usize]>| {
            refused(&json!({"modules_to_save": ["classifier"]}), &|stored| {
                stored.insert("base_model.model.classifier.weight".into(), random(shape, 3));
                if let Some(bias) = bias {
                    stored.insert("base_model.model.classifier.bias".into(), random(bias, 4));
                }
            })
        };
        assert!(head(&[3, 5], Some(&[3])).contains("classifier"));
        let width = sites_of(&config).iter().find(|site| site.path.ends_with("classifier")).unwrap().input;
        assert!(head(&[3, width], Some(&[4])).contains("classifier"));
        let error = head(&[3, width], None);
        assert!(error.contains("classifier"), "{error}");
        let tensors = file(&stored);
        for bytes in [&b""[..], b"PK\x03\x04", &tensors[..tensors.len() - 4]] {
            assert!(matches!(load(&json!({}), bytes), Err(LoraError::Invalid(_))));
        }
    }
    // An adapter of one architecture does not fit the other.
    let (vit, swin) = (open_model(&vit()), open_model(&swin()));
    assert!(swin.load_adapter(peft(&json!({})).to_string().as_bytes(), &file(&sound(&*vit))).is_err());
    assert!(vit.load_adapter(peft(&json!({})).to_string().as_bytes(), &file(&sound(&*swin))).is_err());
}

#[test]
fn position_embeddings_of_another_image_size_are_refused() {
    let (small, large) = (vit(), {
        let mut large = vit();
        large["image_size"] = json!([16, 24]);
        large
    });
    let name = weights(&small, 1).into_keys().find(|name| name.ends_with("position_embeddings")).unwrap();
    for (config, other) in [(&small, &large), (&large, &small)] {
        let error = refusal(config, &weights(other, 1));
        assert!(error.contains(&name), "{error}");
        let error =
            open_model(config).load_adapter(other.to_string().as_bytes(), &file(&weights(other, 1))).unwrap_err();
        assert!(error.to_string().contains("`image_size`"), "{error}");
    }
}

#[test]
fn both_writings_of_a_configuration_say_the_same() {
    for config in [vit(), swin()] {
        let read = |more: &Value| {
            let mut config = config.clone();
            for (key, value) in more.as_object().unwrap() {
                config[key] = value.clone();
            }
            Vision::parse(config.to_string().as_bytes()).unwrap()
        };
        let label2id = json!({"cat": 0, "dog": 1, "owl": 2});
        let four = read(&json!({
            "torch_dtype": "bfloat16", "label2id": label2id, "transformers_version": "4.57.1", "encoder_stride": 16,
            "initializer_range": 0.02, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        }));
        // `id2label` keeps its keys as texts, whose order is not that of the numbers.
        let five = read(&json!({
            "dtype": "bfloat16", "id2label": {"2": "owl", "0": "cat", "1": "dog"}, "label2id": label2id,
            "transformers_version": "5.23.0", "pooler_act": "tanh", "problem_type": null, "chunk_size_feed_forward": 0,
            "is_encoder_decoder": false, "output_attentions": false, "output_hidden_states": false, "return_dict": true,
        }));
        assert_eq!(four.canonical(), five.canonical());
        assert_eq!((four.images().dtype, five.images().dtype), (Some(DType::BF16), Some(DType::BF16)));
        assert_eq!(four.images().classes, five.images().classes);
        assert_eq!(five.images().classes.as_ref().unwrap().names, ["cat", "dog", "owl"]);
    }
}
