//! Images to classify: which model, then places in its queue, then files to pixels, then classes.
//!
//! Decodes nothing, computes nothing and resolves no adapter.

use std::sync::Arc;

use bytes::Bytes;
use tonic::Status;

use super::classify_request::Places;
use super::context::Context;
use super::decode::Decoder;
use super::status;
use super::violations::Violations;
use crate::engine::{EngineError, ImageEngine, ImageRequest};
use crate::lora::{Adapter, LoraError};
use crate::model::{ImageClassifier, ModelInfo};
use crate::registry::RegistryError;

/// A classifier of images that is served.
#[derive(Clone)]
pub struct ServedImages {
    /// What clients call it.
    pub name: String,
    /// The weights.
    pub model: Arc<dyn ImageClassifier>,
    /// Runs requests.
    pub engine: ImageEngine,
    /// Makes pixels of files; that of all models.
    pub decoder: Decoder,
}

impl std::fmt::Debug for ServedImages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedImages").field("name", &self.name).field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Images(pub Arc<[ServedImages]>);

impl Images {
    /// Returns names and descriptions.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, &ModelInfo)> {
        self.0.iter().map(|served| (served.name.as_str(), served.model.info()))
    }

    /// Returns the model that is meant: the named one, that of the adapter, or the only one.
    pub(super) fn model(
        &self,
        named: &str,
        adapter: Option<&Adapter>,
        context: &Context,
    ) -> Result<&ServedImages, Status> {
        if self.0.is_empty() {
            return Err(status::no_image_model());
        }
        let of_adapter =
            |served: &&ServedImages| adapter.is_none_or(|adapter| adapter.base() == served.model.info().fingerprint);
        if !named.is_empty() {
            let found = self.0.iter().find(|served| served.name == named).ok_or_else(|| {
                let known = self.list().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
                status::registry(&RegistryError::BaseNotFound { name: named.to_owned(), known }, context)
            })?;
            return if of_adapter(&found) { Ok(found) } else { Err(mismatch(&found.name, context)) };
        }
        let mut fitting = self.0.iter().filter(of_adapter);
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(mismatch("images", context)),
            (Some(_), Some(_)) => {
                let mut v = Violations::default();
                let known = self.list().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
                v.add("base_model", format!("must be one of {known}: there are several models of images"));
                Err(status::violations(&v))
            }
        }
    }
}

impl ServedImages {
    /// Makes pixels of files and has them classified: a row of logits an image.
    pub(super) async fn classify(
        &self,
        (files, places): (Vec<Bytes>, &Places),
        adapter: Option<Arc<Adapter>>,
        context: &Context,
    ) -> Result<Vec<Vec<f32>>, Status> {
        let refused = |error: EngineError| status::engine(&error, context);
        // First: a full queue is told before anything is decoded for it.
        let queued = self.engine.admit(files.len()).map_err(refused)?;
        let images = self.decoder.pixels(&self.model, files, places, context).await?;
        let request = ImageRequest { images, adapter, deadline: context.deadline };
        let answer = self.engine.classify(queued, request).map_err(refused)?;
        answer.await.unwrap_or(Err(EngineError::Stopped)).map_err(refused)
    }
}

/// The refusal of an adapter that belongs to another base model.
pub(super) fn mismatch(wanted: &str, context: &Context) -> Status {
    let fault = format!("the adapter belongs to another base model than {wanted}");
    status::registry(&RegistryError::Lora(LoraError::Mismatch(fault)), context)
}
