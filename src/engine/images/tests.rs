//! On a scripted model: logit `i` of an image is the mean of its pixels plus `i`, and more by the adapter's own number.

use std::sync::Mutex;

use tokio::sync::Mutex as Gate;

use super::*;
use crate::lora::LoraError;
use crate::model::image::Processor;
use crate::model::{BaseModel, ModelInfo};

struct Scripted {
    info: ModelInfo,
    /// Images of each pass.
    passes: Mutex<Vec<usize>>,
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
        let _gate = self.gate.blocking_lock();
        let images = pixels.dim(0)?;
        self.passes.lock().unwrap().push(images);
        assert!(lora.runs.iter().all(|run| run.rows == (0..images)));
        let shift = lora.runs.first().map_or(0.0, |run| run.adapter.generation().to_string().len() as f64);
        let means = pixels.flatten_from(1)?.mean(1)?.to_vec1::<f32>()?;
        assert!(!means.contains(&13.0), "poisoned");
        let logits: Vec<f32> = means.iter().flat_map(|mean| [mean + shift as f32, mean + 1.0]).collect();
        Ok(Tensor::from_vec(logits, (images, 2), &Device::Cpu)?)
    }
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
    Arc::new(Scripted { info, passes: Mutex::default(), gate: Gate::default() })
}

fn start(model: &Arc<Scripted>, waiting: usize, step: usize) -> ImageEngine {
    let settings = EngineSettings { max_waiting_images: waiting, max_step_images: step, ..EngineSettings::default() };
    let turns = Arc::new(Turns::new(Duration::MAX));
    ImageEngine::start(Arc::clone(model) as _, &settings, Arc::new(Metrics::new().unwrap()), turns)
}

fn request(means: &[f32]) -> ImageRequest {
    ImageRequest { images: means.iter().map(|mean| vec![*mean; 12]).collect(), adapter: None, deadline: None }
}

#[tokio::test]
async fn requests_share_steps_and_a_long_one_is_divided() {
    let model = model();
    let engine = start(&model, 100, 4);
    let held = model.gate.lock().await;
    let first = engine.classify(request(&[1.0])).unwrap();
    while engine.waiting.load(Ordering::Acquire) != 1 || engine.commands.capacity() != engine.commands.max_capacity() {
        tokio::task::yield_now().await;
    }
    let (long, short) = (request(&[2.0, 3.0, 4.0, 5.0, 6.0]), request(&[7.0]));
    let of_adapter = ImageRequest { adapter: Some(Arc::new(Adapter::blank(1))), ..request(&[8.0]) };
    let [long, short, of_adapter] = [long, short, of_adapter].map(|request| engine.classify(request).unwrap());
    drop(held);
    assert_eq!(first.await.unwrap().unwrap(), [[1.0, 2.0]]);
    let long = long.await.unwrap().unwrap();
    assert_eq!(long, [[2.0, 3.0], [3.0, 4.0], [4.0, 5.0], [5.0, 6.0], [6.0, 7.0]]);
    assert_eq!(short.await.unwrap().unwrap(), [[7.0, 8.0]]);
    assert_eq!(of_adapter.await.unwrap().unwrap(), [[72.0, 9.0]]);
    let passes = model.passes.lock().unwrap().clone();
    assert_eq!(passes.iter().sum::<usize>(), 8);
    assert!(passes.iter().all(|images| *images <= 4), "{passes:?}");
    assert_eq!(engine.waiting.load(Ordering::Acquire), 0);
}

#[tokio::test]
async fn a_full_queue_a_passed_deadline_and_a_drain_are_told() {
    let model = model();
    let engine = start(&model, 2, 4);
    assert!(matches!(engine.classify(request(&[])), Err(EngineError::Model(_))));
    let held = model.gate.lock().await;
    let first = engine.classify(request(&[1.0])).unwrap();
    let late = engine.classify(ImageRequest { deadline: Some(Instant::now()), ..request(&[2.0]) }).unwrap();
    let full = engine.classify(request(&[3.0]));
    assert!(matches!(full, Err(EngineError::QueueFull { waiting: 2, limit: 2, .. })));
    drop(held);
    first.await.unwrap().unwrap();
    assert!(matches!(late.await.unwrap(), Err(EngineError::DeadlineExceeded) | Ok(_)));
    // An empty queue takes a request that is longer than it.
    let long = engine.classify(request(&[1.0, 2.0, 3.0])).unwrap();
    assert_eq!(long.await.unwrap().unwrap().len(), 3);
    engine.drain(Duration::from_secs(60)).await;
    assert!(matches!(engine.classify(request(&[1.0])), Err(EngineError::Draining)));
}

#[tokio::test]
async fn a_panic_fails_what_waited_and_nothing_after_it() {
    let model = model();
    let engine = start(&model, 10, 4);
    let failed = engine.classify(request(&[13.0])).unwrap();
    assert!(matches!(failed.await.unwrap(), Err(EngineError::Model(_))));
    let next = engine.classify(request(&[1.0])).unwrap();
    assert_eq!(next.await.unwrap().unwrap(), [[1.0, 2.0]]);
}
