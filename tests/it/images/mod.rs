//! Classifiers of images on the real server, beside a language model: asked here, trained in `jobs`, audited in
//! `audits`, rows of data sets in `rows`, images that are made to harm in `hostile`.
//!
//! Models are the small golden ones; that their numbers are transformers' is `golden_vision`'s to show. Here the server's
//! answers are compared with the library's, and adapters, bases and requests are kept apart.

mod audits;
mod hostile;
mod jobs;
mod rows;

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use evenkeel::config::Settings;
use evenkeel::lora::{LoraBatch, Run};
use evenkeel::model::{self, ImageClassifier};
use evenkeel::rpc::pb::{self, ClassifyInput, ClassifyRequest};
use tonic::{Code, Status};

use super::client::{self, Client, Server, files, header, parts, refused, violations};
use super::golden;

const VIT: &str = "vit";
const SWIN: &str = "swinv2_smooth";

fn folder(model: &str) -> PathBuf {
    golden::root().join("vision").join(model)
}

/// A server with a language model and these classifiers of images, named after their folders.
pub(super) async fn start(images: &[&str]) -> Server {
    start_with(images, |_| {}).await
}

/// The same with changed settings.
pub(super) async fn start_with(images: &[&str], change: impl FnOnce(&mut Settings)) -> Server {
    let entries = images.iter().map(|name| format!("{name}={}", folder(name).display())).collect();
    let with_images = |settings: &mut Settings| {
        settings.model.images = entries;
        change(settings);
    };
    client::start_with(client::MODEL, with_images).await
}

/// An image of one colour with some of another, as a PNG file.
pub(super) fn png(width: u32, height: u32, colour: [u8; 3], number: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| {
        let spot = (x * 7 + y * 13 + number * 29).is_multiple_of(11);
        image::Rgb(if spot { [number as u8, 255 - colour[1], x as u8] } else { colour })
    });
    let mut file = Vec::new();
    image.write_to(&mut Cursor::new(&mut file), image::ImageFormat::Png).unwrap();
    file
}

pub(super) async fn classify(
    client: &Client,
    (base_model, adapter): (&str, &str),
    images: &[Vec<u8>],
) -> Result<pb::ClassifyResponse, Status> {
    let input = |image: &Vec<u8>| ClassifyInput { image: Some(image.clone()), ..Default::default() };
    let (adapter, inputs) = (adapter.into(), images.iter().map(input).collect());
    let request = ClassifyRequest { adapter, inputs, base_model: base_model.into(), rows: None };
    Ok(client.inference.clone().classify(request).await?.into_inner())
}

pub(super) async fn publish(
    client: &Client,
    name: &str,
    adapter: &str,
    base_model: &str,
) -> Result<pb::Adapter, Status> {
    let files = files(adapter);
    let header = pb::UploadAdapterHeader { base_model: base_model.into(), ..header(name, &files) };
    client.send(parts(header, &files, 64 << 10)).await
}

/// Logits of the library for the same files, one by one.
fn expected(model: &dyn ImageClassifier, adapter: Option<&str>, images: &[Vec<u8>]) -> Vec<Vec<f64>> {
    let adapter = adapter.map(|adapter| {
        let [config, tensors] = files(adapter).map(|(_, bytes)| bytes);
        Arc::new(model.load_adapter(&config, &tensors).unwrap())
    });
    let one = |image: &Vec<u8>| {
        let [height, width] = model.processor().size();
        let pixels = model.processor().pixels(image).unwrap();
        let pixels = candle_core::Tensor::from_vec(pixels, (1, 3, height, width), &candle_core::Device::Cpu).unwrap();
        let run = |adapter: &Arc<_>| Run { adapter: Arc::clone(adapter), rows: 0..1, scale: 1.0 };
        let lora = LoraBatch { runs: adapter.iter().map(run).collect(), dropout: None };
        let logits = model.classify(&pixels, &lora).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap();
        logits.into_iter().map(f64::from).collect()
    };
    images.iter().map(one).collect()
}

fn logits(response: &pb::ClassifyResponse) -> Vec<Vec<f64>> {
    response.classifications.iter().map(|classified| classified.logits.clone()).collect()
}

fn some_images() -> Vec<Vec<u8>> {
    (0..9).map(|i| png(20 + 7 * i, 50, [30 * i as u8, 200, 90], i)).collect()
}

#[tokio::test]
async fn images_are_classified_by_base_and_adapters_as_one_by_one() {
    let server = start(&[VIT, SWIN]).await;
    let client = &server.client;
    let images = some_images();
    for base in [VIT, SWIN] {
        let model = model::load_images(&folder(base), base, "cpu", "f32").unwrap();
        let plain = classify(client, (base, ""), &images).await.unwrap();
        assert_eq!(logits(&plain), expected(&*model, None, &images), "{base}");
        assert_eq!((plain.base_model.as_str(), plain.generation.as_str()), (base, ""));
        let sums = plain.classifications.iter().map(|classified| classified.probabilities.iter().sum::<f64>());
        assert!(sums.into_iter().all(|sum| (sum - 1.0).abs() < 1e-12));
        assert_eq!(plain.label_names.len(), model.info().labels.unwrap());
    }
    let plain = logits(&classify(client, (VIT, ""), &images).await.unwrap());
    let model = model::load_images(&folder(VIT), VIT, "cpu", "f32").unwrap();
    for adapter in ["vit_qv", "vit_dora", "vit_bias_all"] {
        let published = publish(client, adapter, adapter, VIT).await.unwrap();
        assert_eq!(published.base_fingerprint, model.info().fingerprint);
        // The adapter says which base is meant.
        let adapted = classify(client, ("", adapter), &images).await.unwrap();
        assert_eq!(logits(&adapted), expected(&*model, Some(adapter), &images), "{adapter}");
        assert_ne!(logits(&adapted), plain);
        assert_eq!((adapted.base_model.as_str(), adapted.generation), (VIT, published.generation));
    }
    let scrape = client.metrics().await;
    assert_eq!(scrape.value("evenkeel_images_total"), 6.0 * images.len() as f64);
}

#[tokio::test]
async fn many_requests_at_once_get_what_each_gets_alone() {
    let server = start(&[VIT]).await;
    let client = &server.client;
    publish(client, "one", "vit_qv", VIT).await.unwrap();
    publish(client, "other", "vit_dora", VIT).await.unwrap();
    let images = some_images();
    let mut alone = std::collections::BTreeMap::new();
    for adapter in ["", "one", "other"] {
        alone.insert(adapter, logits(&classify(client, ("", adapter), &images).await.unwrap()));
    }
    let tasks = (0..30_usize).map(|i| {
        let (client, adapter) = (client.clone(), ["", "one", "other"][i % 3]);
        let own = images[i % images.len()..].to_vec();
        let expected = alone[adapter][i % images.len()..].to_vec();
        tokio::spawn(async move {
            let answer = classify(&client, ("", adapter), &own).await.unwrap();
            assert_eq!(logits(&answer), expected, "{adapter}");
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn bases_and_their_adapters_are_kept_apart() {
    let server = start(&[VIT, SWIN]).await;
    let client = &server.client;
    let info = client.server.clone().get_server_info(pb::GetServerInfoRequest {}).await.unwrap().into_inner();
    let named: Vec<_> = info.image_models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(named, [VIT, SWIN]);
    let sizes: Vec<_> = info.image_models.iter().map(|model| (model.image_height, model.image_width)).collect();
    assert!(sizes.iter().all(|(height, width)| *height > 0 && width == height), "{sizes:?}");
    assert!(info.image_models.iter().all(|model| !model.label_names.is_empty()));

    let images = some_images();
    // Without a name a language adapter is meant, and the files do not fit the language model.
    refused(publish(client, "lost", "vit_qv", "").await, Code::FailedPrecondition, "ADAPTER_MISMATCH");
    refused(publish(client, "lost", "vit_qv", SWIN).await, Code::FailedPrecondition, "ADAPTER_MISMATCH");
    let missing = refused(publish(client, "lost", "vit_qv", "nobody").await, Code::NotFound, "BASE_MODEL_NOT_FOUND");
    assert!(missing.message().contains("vit"), "{missing:?}");
    publish(client, "seen", "vit_qv", VIT).await.unwrap();
    client.publish("poet", "lora_qv").await;

    let of_language = classify(client, ("", "poet"), &images).await;
    refused(of_language, Code::FailedPrecondition, "ADAPTER_MISMATCH");
    refused(classify(client, (SWIN, "seen"), &images).await, Code::FailedPrecondition, "ADAPTER_MISMATCH");
    let of_images = client.generate(client::greedy("seen", "Winter light", 2)).await;
    refused(of_images, Code::FailedPrecondition, "ADAPTER_MISMATCH");
    refused(classify(client, ("nobody", ""), &images).await, Code::NotFound, "BASE_MODEL_NOT_FOUND");
    let either = refused(classify(client, ("", ""), &images).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&either), ["base_model"]);

    // An adapter of images survives a restart, a swap and unloading like any other.
    let before = logits(&classify(client, ("", "seen"), &images).await.unwrap());
    client.unload("seen").await.unwrap();
    assert_eq!(logits(&classify(client, ("", "seen"), &images).await.unwrap()), before);
    let alone = client::start().await;
    refused(classify(&alone.client, ("", ""), &images).await, Code::FailedPrecondition, "NO_IMAGE_MODEL");
}

#[tokio::test]
async fn what_is_no_image_is_told_with_its_place() {
    let server = start(&[VIT]).await;
    let client = &server.client;
    let good = png(40, 30, [9, 9, 9], 1);
    let bad = vec![good.clone(), b"what?".to_vec(), good[..good.len() / 2].to_vec(), Vec::new()];
    let status = refused(classify(client, ("", ""), &bad).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["inputs[1].image", "inputs[2].image", "inputs[3].image"]);
    let mixed = ClassifyRequest {
        inputs: vec![
            ClassifyInput { image: Some(good.clone()), ..Default::default() },
            ClassifyInput { prompt: Some("x".into()), ..Default::default() },
        ],
        ..Default::default()
    };
    let status = refused(client.inference.clone().classify(mixed).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["inputs[1]", "inputs[1].image"]);
    let many = vec![good.clone(); 65];
    let status = refused(classify(client, ("", ""), &many).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["inputs"]);
    classify(client, ("", ""), &[good]).await.unwrap();
}
