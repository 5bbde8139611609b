//! Classify over gRPC: golden classifiers and their adapters, brought heads, and what it refuses.

use evenkeel::rpc::pb::{self, ChatMessage, ClassifyInput, ClassifyRequest, TokenIds};
use serde_json::json;
use tonic::{Code, Status};

use super::client::{self, Client, refused, violations};
use super::full::{Model, whole};
use super::golden::{self, Tally};

/// Absolute, as the README beside the golden values has it.
const TOLERANCE: f64 = 5e-4;

fn by_ids(ids: Vec<u32>) -> ClassifyInput {
    ClassifyInput { prompt_token_ids: Some(TokenIds { ids }), ..Default::default() }
}

fn by_text(text: &str) -> ClassifyInput {
    ClassifyInput { prompt: Some(text.into()), ..Default::default() }
}

async fn ask(client: &Client, adapter: &str, inputs: Vec<ClassifyInput>) -> Result<pb::ClassifyResponse, Status> {
    let request = ClassifyRequest { adapter: adapter.into(), inputs, ..Default::default() };
    Ok(client.inference.clone().classify(request).await?.into_inner())
}

/// The rows of a golden tensor of ids, less what the mask hides.
fn sequences(tensors: &golden::Tensors, prefix: &str) -> Vec<Vec<u32>> {
    let matrix = |name: &str| tensors.get(&format!("{prefix}{name}")).map(|t| t.to_vec2::<i64>().unwrap());
    let (ids, mask) = (matrix("input_ids").unwrap(), matrix("attention_mask"));
    let row = |(i, ids): (usize, Vec<i64>)| {
        let real = ids.into_iter().enumerate().filter(|(at, _)| mask.as_ref().is_none_or(|mask| mask[i][*at] == 1));
        real.map(|(_, id)| u32::try_from(id).unwrap()).collect()
    };
    ids.into_iter().enumerate().map(row).collect()
}

/// Asks for the sequences of a golden case and compares logits and, where they are recorded, probabilities.
async fn compare(tally: &mut Tally, client: &Client, adapter: &str, tensors: &golden::Tensors, prefix: &str) {
    let asked = sequences(tensors, prefix);
    let lengths: Vec<u32> = asked.iter().map(|ids| ids.len() as u32).collect();
    let response = ask(client, adapter, asked.into_iter().map(by_ids).collect()).await.unwrap();
    let counts: Vec<u32> = response.classifications.iter().map(|c| c.token_count).collect();
    tally.equal(&format!("{adapter} {prefix} lengths"), &counts, &lengths);
    type Part = fn(&pb::Classification) -> &Vec<f64>;
    for (name, part) in [("logits", (|c| &c.logits) as Part), ("probs", |c| &c.probabilities)] {
        let Some(expected) = tensors.get(&format!("{prefix}{name}")) else { continue };
        let expected: Vec<f64> =
            expected.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
        let got: Vec<f64> = response.classifications.iter().flat_map(part).copied().collect();
        tally.close_slices(&format!("{adapter} {prefix}{name}"), &got, &expected, TOLERANCE);
    }
    for classified in &response.classifications {
        let best = classified.logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        tally.equal("label", &classified.logits[classified.label as usize], &best);
        tally.equal("name", &classified.label_name, &response.label_names[classified.label as usize]);
    }
}

#[tokio::test]
async fn golden_classifiers_and_their_adapters_come_through_the_server() {
    let mut tally = Tally::new("classify");
    for folder in golden::cases("language", "expected.json") {
        let model = folder.file_name().unwrap().to_str().unwrap();
        let config = golden::json(&folder.join("config.json"));
        if config["id2label"].is_null() {
            continue;
        }
        tally.case();
        let server = client::start_with(model, |_| {}).await;
        let tensors = golden::tensors(&folder.join("expected.safetensors"));
        let prefixes = tensors.keys().filter_map(|name| name.strip_suffix("input_ids"));
        for prefix in prefixes {
            compare(&mut tally, &server.client, "", &tensors, prefix).await;
        }
        let texts = golden::json(&folder.join("expected_text.json"));
        for case in texts["cases"].as_array().unwrap() {
            let response = ask(&server.client, "", vec![by_text(case["text"].as_str().unwrap())]).await.unwrap();
            let expected: Vec<f64> = serde_json::from_value(case["logits"].clone()).unwrap();
            tally.close_slices("text", &response.classifications[0].logits, &expected, TOLERANCE);
            let names: Vec<_> =
                (0..expected.len()).map(|i| config["id2label"][i.to_string()].as_str().unwrap().to_owned()).collect();
            tally.equal("names", &response.label_names, &names);
            tally.equal("generation", &response.generation, &String::new());
        }
        for adapter in golden::cases("adapters", "expected.safetensors") {
            let Some(name) = adapter.file_name().and_then(|name| name.to_str()) else { continue };
            let of = golden::json(&adapter.join("expected.json"));
            if of["base"] != json!(format!("language/{model}")) {
                continue;
            }
            tally.case();
            let published = server.client.publish("poet", name).await;
            let tensors = golden::tensors(&adapter.join("expected.safetensors"));
            compare(&mut tally, &server.client, "poet", &tensors, "").await;
            let answer = ask(&server.client, "poet", vec![by_ids(vec![3, 4])]).await.unwrap();
            tally.equal("generation", &answer.generation, &published.generation);
        }
        server.client.idle().await;
    }
    tally.finish();
}

#[tokio::test]
async fn a_whole_classifier_brings_its_head_and_labels_to_a_language_model() {
    let mut model = Model::golden(client::MODEL);
    model.disturb(3);
    model.classify(&["no", "yes", "maybe"]);
    model.config["problem_type"] = json!("multi_label_classification");
    let itself = model.serve().await;
    let server = client::start().await;
    let published = server.client.upload("judge", &model.files()).await.unwrap();
    assert_eq!((published.method.as_str(), published.task_type.as_str()), ("FULL", "SEQ_CLS"));
    let inputs = || vec![by_text("Winter light"), by_ids(vec![7, 8, 9, 10]), by_text("a")];
    let expected = ask(&itself.client, "", inputs()).await.unwrap();
    let got = ask(&server.client, "judge", inputs()).await.unwrap();
    assert_eq!((&got.label_names, got.multi_label), (&expected.label_names, true));
    assert_eq!(got.label_names, ["no", "yes", "maybe"]);
    for (got, expected) in got.classifications.iter().zip(&expected.classifications) {
        assert_eq!((got.label, got.logits.len()), (expected.label, 3));
        for (i, (got_logit, logit)) in got.logits.iter().zip(&expected.logits).enumerate() {
            assert!((got_logit - logit).abs() < TOLERANCE);
            let sigmoid = 1.0 / (1.0 + (-got_logit).exp());
            assert!((got.probabilities[i] - sigmoid).abs() < 1e-9);
        }
    }
    // The language head is the base's: it generates all the same, and the base itself does not classify.
    assert!(!server.client.complete(client::greedy("judge", "Winter", 4)).await.0.token_ids.is_empty());
    let status = refused(ask(&server.client, "", inputs()).await, Code::FailedPrecondition, "NO_CLASSIFIER");
    assert!(status.message().contains("classification head"));
    server.client.publish("poet", "lora_qv").await;
    refused(ask(&server.client, "poet", inputs()).await, Code::FailedPrecondition, "NO_CLASSIFIER");
    refused(ask(&server.client, "nobody", inputs()).await, Code::NotFound, "ADAPTER_NOT_FOUND");
    server.client.idle().await;
}

#[tokio::test]
async fn faulty_inputs_are_all_named_at_once() {
    let model = golden::cases("language", "expected.json")
        .into_iter()
        .find(|folder| !golden::json(&folder.join("config.json"))["id2label"].is_null());
    let model = model.unwrap();
    let context = golden::json(&model.join("config.json"))["max_position_embeddings"].as_u64().unwrap() as usize;
    let server = client::start_with(model.file_name().unwrap().to_str().unwrap(), |_| {}).await;
    let message = |role: &str| ChatMessage { role: role.into(), content: "x".into() };
    let both = ClassifyInput { messages: vec![message("user")], ..by_text("x") };
    let inputs = vec![by_text("sound"), both, ClassifyInput::default(), by_ids(vec![1 << 30]), by_ids(Vec::new())];
    let status = refused(ask(&server.client, "", inputs).await, Code::InvalidArgument, "INVALID_FIELD");
    let fields =
        ["inputs[1].prompt", "inputs[2].prompt", "inputs[3].prompt_token_ids.ids[0]", "inputs[4].prompt_token_ids.ids"];
    assert_eq!(violations(&status), fields);
    let long = vec![by_ids(vec![3; context + 1]), by_ids(vec![3; context]), by_ids(vec![4; context + 9])];
    let status = refused(ask(&server.client, "", long).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["inputs[0]", "inputs[2]"]);
    for inputs in [Vec::new(), vec![by_text("x"); 1025]] {
        let status = refused(ask(&server.client, "", inputs).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), ["inputs"]);
    }
    assert_eq!(ask(&server.client, "", vec![by_ids(vec![3; context])]).await.unwrap().classifications.len(), 1);
    server.client.idle().await;
}

#[tokio::test]
async fn a_text_has_the_same_bits_alone_and_under_load() {
    let mut model = Model::golden(client::MODEL);
    model.classify(&["no", "yes"]);
    let server = whole(&model).await;
    let bits = |response: &pb::ClassifyResponse| -> Vec<u64> {
        response.classifications.iter().flat_map(|c| &c.logits).map(|logit| logit.to_bits()).collect()
    };
    let inputs: Vec<_> = (0..12).map(|i| by_text(&"Winter light ".repeat(i + 1))).collect();
    let alone = bits(&ask(&server.client, "whole", inputs.clone()).await.unwrap());
    let running = client::busy(&server.client, "whole").await;
    let loaded = bits(&ask(&server.client, "whole", inputs.clone()).await.unwrap());
    assert_eq!(alone, loaded);
    for input in 0..inputs.len() {
        let one = ask(&server.client, "whole", vec![inputs[input].clone()]).await.unwrap();
        assert_eq!(bits(&one), alone[2 * input..2 * input + 2]);
    }
    for task in running {
        assert_eq!(task.await.unwrap().unwrap(), client::BUSY_SEQUENCES);
    }
}
