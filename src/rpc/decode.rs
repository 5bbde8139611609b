//! Files of images to pixels, for requests: bounded before anything is decoded, and beside what computes.
//!
//! Decodes on threads of its own, few at a time over all requests, never on those of the engine. Who leaves is not waited
//! for: what was not begun is not decoded. Every faulty image of a request is told at once.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::Span;

use super::classify_request::Places;
use super::context::Context;
use super::services::blocking;
use super::status;
use super::violations::Violations;
use crate::config::EngineSettings;
use crate::model::ImageClassifier;
use crate::model::image::{self, Limits};

/// Decodes images of requests; cheap to clone.
#[derive(Debug, Clone)]
pub struct Decoder {
    limits: Limits,
    /// Of all images of a request.
    pixels: u64,
    /// Decoded at a time.
    at_once: usize,
    turns: Arc<Semaphore>,
}

impl Decoder {
    /// Returns one with the limits of the settings; its clones share the number of images at a time.
    pub fn new(settings: &EngineSettings) -> Self {
        let at_once = settings.max_decoding_images.max(1);
        Self {
            limits: Limits { bytes: settings.max_image_bytes, pixels: settings.max_image_pixels },
            pixels: settings.max_request_pixels,
            at_once,
            turns: Arc::new(Semaphore::new(at_once)),
        }
    }

    /// Returns the pixels of images as `model` takes them.
    pub(super) async fn pixels(
        &self,
        model: &Arc<dyn ImageClassifier>,
        files: Vec<Bytes>,
        places: &Places,
        context: &Context,
    ) -> Result<Vec<Vec<f32>>, Status> {
        let files: Arc<[Bytes]> = files.into();
        let mut v = Violations::default();
        let (own, limits) = (Arc::clone(&files), self.limits);
        let look = move || own.iter().map(|file| image::inspect(file, limits)).collect::<Vec<_>>();
        let mut total = 0_u64;
        for (i, header) in blocking(context, look).await?.into_iter().enumerate() {
            match header {
                Ok(header) => total += u64::from(header.width) * u64::from(header.height),
                Err(fault) => places.fault(&mut v, i, ".image", &fault.to_string()),
            }
        }
        if total > self.pixels {
            v.add(places.all(), format!("have {total} pixels together, over the limit of {}", self.pixels));
        }
        v.finish(Some(())).map_err(|v| status::violations(&v))?;

        let decode = |i: usize| {
            let (files, model, turns) = (Arc::clone(&files), Arc::clone(model), Arc::clone(&self.turns));
            let span = Span::current();
            async move {
                let turn = turns.acquire_owned().await;
                let work = move || {
                    // Given back when the image is decoded, whether or not somebody waits for it.
                    let _turn = turn;
                    span.in_scope(|| files.get(i).map(|file| model.processor().pixels(file)))
                };
                tokio::task::spawn_blocking(work).await
            }
        };
        let mut decoded = stream::iter(0..files.len()).map(decode).buffered(self.at_once).enumerate();
        let (mut v, mut images) = (Violations::default(), Vec::with_capacity(files.len()));
        while let Some((i, one)) = decoded.next().await {
            match one.map_err(|fault| status::internal(&fault, &context.request_id))? {
                Some(Ok(pixels)) => images.push(pixels),
                Some(Err(fault)) => places.fault(&mut v, i, ".image", &fault.to_string()),
                None => {}
            }
        }
        v.finish(Some(images)).map_err(|v| status::violations(&v))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::Tensor;

    use super::*;
    use crate::lora::{Adapter, LoraBatch, LoraError};
    use crate::model::image::Processor;
    use crate::model::{BaseModel, ModelError, ModelInfo};

    /// Counts how often pixels are asked for.
    struct Counting(Processor, AtomicUsize);

    impl BaseModel for Counting {
        fn info(&self) -> &ModelInfo {
            unreachable!("decoding asks for the processor alone")
        }

        fn load_adapter(&self, _: &[u8], _: &[u8]) -> Result<Adapter, LoraError> {
            unreachable!("decoding asks for the processor alone")
        }

        fn effect(&self, _: &Arc<Adapter>) -> Result<f64, ModelError> {
            unreachable!("decoding asks for the processor alone")
        }
    }

    impl ImageClassifier for Counting {
        fn processor(&self) -> &Processor {
            self.1.fetch_add(1, Ordering::AcqRel);
            &self.0
        }

        fn classify(&self, _: &Tensor, _: &LoraBatch) -> Result<Tensor, ModelError> {
            unreachable!("decoding asks for the processor alone")
        }
    }

    fn file(name: &str) -> Bytes {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)).unwrap().into()
    }

    fn model() -> (Arc<Counting>, Arc<dyn ImageClassifier>) {
        let processor = Processor::parse(br#"{"size": {"height": 2, "width": 2}}"#, Some([2, 2])).unwrap();
        let counting = Arc::new(Counting(processor, AtomicUsize::new(0)));
        (Arc::clone(&counting), counting)
    }

    fn decoder(change: impl FnOnce(&mut EngineSettings)) -> Decoder {
        let mut settings = EngineSettings { max_decoding_images: 1, ..EngineSettings::default() };
        change(&mut settings);
        Decoder::new(&settings)
    }

    fn context() -> Context {
        Context { request_id: "r".into(), deadline: None }
    }

    #[tokio::test]
    async fn pixels_come_in_the_order_of_the_files_whatever_is_decoded_first() {
        let (_, model) = model();
        let files: Vec<_> = ["rgb.png", "grey.jpg", "rgba.webp", "rgb.png"].map(file).into();
        let decoder = decoder(|settings| settings.max_decoding_images = 3);
        let got = decoder.pixels(&model, files.clone(), &Places::Inputs, &context()).await.unwrap();
        let expected: Vec<_> = files.iter().map(|file| model.processor().pixels(file).unwrap()).collect();
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn who_leaves_has_nothing_more_decoded() {
        let (counting, model) = model();
        let decoder = decoder(|_| {});
        let busy = Arc::clone(&decoder.turns).acquire_owned().await.unwrap();
        let own = (decoder.clone(), Arc::clone(&model));
        let asked = tokio::spawn(async move {
            own.0.pixels(&own.1, vec![file("rgb.png"); 8], &Places::Inputs, &context()).await.map(|_| ())
        });
        // It waits for its turn: nobody else holds the semaphore.
        while Arc::strong_count(&decoder.turns) < 4 {
            tokio::task::yield_now().await;
        }
        asked.abort();
        assert!(asked.await.unwrap_err().is_cancelled());
        drop(busy);
        decoder.pixels(&model, vec![file("rgb.png")], &Places::Inputs, &context()).await.unwrap();
        assert_eq!(counting.1.load(Ordering::Acquire), 1);
    }

    #[tokio::test]
    async fn what_a_header_shows_is_refused_before_anything_is_decoded() {
        let (counting, model) = model();
        let decoder = decoder(|settings| settings.max_request_pixels = 2 * 77);
        let refused = async |files, places: &Places| {
            let status = decoder.pixels(&model, files, places, &context()).await.unwrap_err();
            status.message().to_owned()
        };
        let many = refused(vec![file("rgb.png"); 3], &Places::Inputs).await;
        assert!(many.contains("231 pixels together, over the limit of 154"), "{many}");
        let rows = refused(vec![file("rgb.png"), file("cmyk.jpg")], &Places::Rows(vec![4, 9])).await;
        assert!(rows.contains("row 9: CMYK is not supported"), "{rows}");
        assert_eq!(counting.1.load(Ordering::Acquire), 0);
        // What is damaged inside is found by decoding, all of it.
        let inside = refused(vec![file("damaged.png"), file("rgb.png")], &Places::Rows(vec![4, 9])).await;
        assert!(inside.contains("row 4: is a damaged image"), "{inside}");
    }
}
