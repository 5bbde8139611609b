//! On a scripted model: logit `i` of an image is the mean of its pixels plus `i`, and more by the adapter's own number.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use tokio::sync::Mutex as Gate;

use super::*;
use crate::lora::LoraError;
use crate::model::image::Processor;
use crate::model::{BaseModel, ModelInfo};

struct Scripted {
    info: ModelInfo,
    /// Images of each pass.
    passes: Mutex<Vec<usize>>,
    /// Runs of each pass.
    runs: Mutex<Vec<usize>>,
    /// Passes that have begun.
    begun: AtomicUsize,
    /// Held while a pass computes: a test keeps the thread busy with it.
    gate: Gate<()>,
}

impl BaseModel for Scripted {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn load_adapter(&self, _: &[u8], _: &[u8]) -> Result<Adapter, LoraError> {
        Err(LoraError::Unsupported("adapters in a script".into()))
    }

    fn effect(&self, _: &Arc<Adapter>) -> Result<f64, ModelError> {
        Err(ModelError::Unsupported("adapters in a script".into()))
    }
}

impl ImageClassifier for Scripted {
    fn processor(&self) -> &Processor {
        unreachable!("the engine decodes nothing")
    }

    fn classify(&self, pixels: &Tensor, lora: &LoraBatch) -> Result<Tensor, ModelError> {
        self.begun.fetch_add(1, Ordering::AcqRel);
        let _gate = self.gate.blocking_lock();
        let images = pixels.dim(0)?;
        self.passes.lock().unwrap().push(images);
        self.runs.lock().unwrap().push(lora.runs.len());
        let means = pixels.flatten_from(1)?.mean(1)?.to_vec1::<f32>()?;
        assert!(!means.contains(&13.0), "poisoned");
        let adapter = |row: usize| lora.runs.iter().find(|run| run.rows.contains(&row)).map(|run| &run.adapter);
        let logits =
            means.iter().enumerate().flat_map(|(row, mean)| [mean + adapter(row).map_or(0.0, shift), mean + 1.0]);
        Ok(Tensor::from_vec(logits.collect::<Vec<f32>>(), (images, 2), &Device::Cpu)?)
    }
}

/// What an adapter adds: the first byte of its digest.
fn shift(adapter: &Arc<Adapter>) -> f32 {
    f32::from(u8::from_str_radix(&adapter.generation().to_string()[..2], 16).unwrap())
}

fn model() -> Arc<Scripted> {
    let info = ModelInfo {
        architecture: "Scripted".into(),
        fingerprint: "images".into(),
        parameters: 0,
        dtype: "f32".into(),
        context_length: 0,
        vocab_size: 0,
        eos_token_ids: vec![],
        labels: Some(2),
        classes: None,
        device: "cpu".into(),
        kv_bytes_per_token: 0,
        image_size: Some([2, 2]),
    };
    let (passes, runs, begun) = (Mutex::default(), Mutex::default(), AtomicUsize::new(0));
    Arc::new(Scripted { info, passes, runs, begun, gate: Gate::default() })
}

fn start(model: &Arc<Scripted>, waiting: usize, step: usize) -> ImageEngine {
    let settings = EngineSettings { max_waiting_images: waiting, max_step_images: step, ..EngineSettings::default() };
    let turns = Arc::new(Turns::new(Duration::MAX));
    ImageEngine::start(Arc::clone(model) as _, &settings, Arc::new(Metrics::new().unwrap()), turns)
}

fn request(means: &[f32]) -> ImageRequest {
    ImageRequest { images: means.iter().map(|mean| vec![*mean; 12]).collect(), adapter: None, deadline: None }
}

/// Admits a request and queues it.
fn ask(
    engine: &ImageEngine,
    request: ImageRequest,
) -> Result<oneshot::Receiver<Result<ClassLogits, EngineError>>, EngineError> {
    engine.classify(engine.admit(request.images.len())?, request)
}

fn of(digest: u8, means: &[f32]) -> ImageRequest {
    ImageRequest { adapter: Some(Arc::new(Adapter::blank(digest))), ..request(means) }
}

/// Asks for one image and waits until its pass has begun: what is asked after it comes into another.
async fn begin(model: &Scripted, engine: &ImageEngine) -> oneshot::Receiver<Result<ClassLogits, EngineError>> {
    let before = model.begun.load(Ordering::Acquire);
    let first = ask(engine, request(&[1.0])).unwrap();
    while model.begun.load(Ordering::Acquire) == before {
        tokio::task::yield_now().await;
    }
    first
}

#[tokio::test]
async fn requests_share_steps_and_a_long_one_is_divided() {
    let model = model();
    let engine = start(&model, 100, 4);
    let held = model.gate.lock().await;
    let first = begin(&model, &engine).await;
    let (long, short) = (request(&[2.0, 3.0, 4.0, 5.0, 6.0]), request(&[7.0]));
    let [long, short, of_adapter] = [long, short, of(64, &[8.0])].map(|request| ask(&engine, request).unwrap());
    drop(held);
    assert_eq!(first.await.unwrap().unwrap(), [[1.0, 2.0]]);
    let long = long.await.unwrap().unwrap();
    assert_eq!(long, [[2.0, 3.0], [3.0, 4.0], [4.0, 5.0], [5.0, 6.0], [6.0, 7.0]]);
    assert_eq!(short.await.unwrap().unwrap(), [[7.0, 8.0]]);
    assert_eq!(of_adapter.await.unwrap().unwrap(), [[72.0, 9.0]]);
    let passes = model.passes.lock().unwrap().clone();
    assert_eq!(passes, [1, 4, 3]);
    assert_eq!(engine.waiting(), 0);
}

#[tokio::test]
async fn adapters_and_the_base_share_a_step_and_a_failure_is_one_adapters_own() {
    let model = model();
    let engine = start(&model, 100, 16);
    let held = model.gate.lock().await;
    let first = begin(&model, &engine).await;
    let sound = [of(64, &[1.0, 2.0]), request(&[3.0]), of(32, &[4.0]), request(&[5.0])];
    let sound = sound.map(|request| ask(&engine, request).unwrap());
    drop(held);
    first.await.unwrap().unwrap();
    let expected: [&[[f32; 2]]; 4] = [&[[65.0, 2.0], [66.0, 3.0]], &[[3.0, 4.0]], &[[36.0, 5.0]], &[[5.0, 6.0]]];
    for (answer, expected) in sound.into_iter().zip(expected) {
        assert_eq!(answer.await.unwrap().unwrap(), expected);
    }
    assert_eq!(*model.passes.lock().unwrap(), [1, 5]);
    assert_eq!(*model.runs.lock().unwrap(), [0, 2]);

    let held = model.gate.lock().await;
    let first = begin(&model, &engine).await;
    let mixed = [of(64, &[1.0]), of(32, &[13.0]), request(&[3.0])].map(|request| ask(&engine, request).unwrap());
    drop(held);
    first.await.unwrap().unwrap();
    let [one, poisoned, base] = mixed;
    assert_eq!(one.await.unwrap().unwrap(), [[65.0, 2.0]]);
    assert!(matches!(poisoned.await.unwrap(), Err(EngineError::Model(_))));
    assert_eq!(base.await.unwrap().unwrap(), [[3.0, 4.0]]);
    assert_eq!(engine.waiting(), 0);
}

#[tokio::test]
async fn heads_of_other_sizes_have_steps_of_their_own() {
    let model = model();
    let engine = start(&model, 100, 16);
    let held = model.gate.lock().await;
    let first = begin(&model, &engine).await;
    let classes = crate::lora::Classes::unnamed(3);
    let wide = ImageRequest { adapter: Some(Arc::new(Adapter::blank_with(9, classes))), ..request(&[2.0]) };
    let rest = [request(&[1.0]), wide, request(&[3.0])].map(|request| ask(&engine, request).unwrap());
    drop(held);
    for answer in [first].into_iter().chain(rest) {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(*model.passes.lock().unwrap(), [1, 2, 1]);
}

#[tokio::test]
async fn a_full_queue_a_passed_deadline_and_a_drain_are_told() {
    let model = model();
    let engine = start(&model, 2, 4);
    assert!(matches!(engine.admit(0), Err(EngineError::Model(_))));
    let held = model.gate.lock().await;
    let first = begin(&model, &engine).await;
    let late = ask(&engine, ImageRequest { deadline: Some(Instant::now()), ..request(&[2.0]) }).unwrap();
    // Nothing has to be decoded to find that out.
    assert!(matches!(engine.admit(1), Err(EngineError::QueueFull { waiting: 2, limit: 2, .. })));
    drop(held);
    first.await.unwrap().unwrap();
    assert!(matches!(late.await.unwrap(), Err(EngineError::DeadlineExceeded)));
    // An empty queue takes a request that is longer than it.
    let long = ask(&engine, request(&[1.0, 2.0, 3.0])).unwrap();
    assert_eq!(long.await.unwrap().unwrap().len(), 3);
    // What was admitted is answered, although its images come after the beginning of the drain.
    let places = engine.admit(1).unwrap();
    let draining = tokio::spawn({
        let engine = engine.clone();
        async move { engine.drain(Duration::from_secs(60)).await }
    });
    while !engine.draining.load(Ordering::Acquire) {
        tokio::task::yield_now().await;
    }
    assert!(matches!(engine.admit(1), Err(EngineError::Draining)));
    engine.classify(places, request(&[1.0])).unwrap().await.unwrap().unwrap();
    draining.await.unwrap();
}

#[tokio::test]
async fn what_has_not_ended_when_the_grace_is_over_is_told_so() {
    let model = model();
    let engine = start(&model, 8, 4);
    let late = engine.admit(1).unwrap();
    let held = model.gate.lock().await;
    let running = begin(&model, &engine).await;
    let waiting = ask(&engine, request(&[1.0])).unwrap();
    let draining = tokio::spawn({
        let engine = engine.clone();
        async move { engine.drain(Duration::ZERO).await }
    });
    while !engine.places.is_closed() {
        tokio::task::yield_now().await;
    }
    drop(held);
    running.await.unwrap().unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(EngineError::Draining)));
    draining.await.unwrap();
    assert!(matches!(engine.classify(late, request(&[1.0])), Err(EngineError::Draining)));
}

#[tokio::test]
async fn a_panic_fails_what_waited_and_nothing_after_it() {
    let model = model();
    let engine = start(&model, 10, 4);
    let failed = ask(&engine, request(&[13.0])).unwrap();
    assert!(matches!(failed.await.unwrap(), Err(EngineError::Model(_))));
    let next = ask(&engine, request(&[1.0])).unwrap();
    assert_eq!(next.await.unwrap().unwrap(), [[1.0, 2.0]]);
}
