//! ServerService: what this server is and allows. Everything is known at start.

use tonic::{Request, Response, Status};

use super::convert;
use super::page::MAX_PAGE;
use super::pb;
use super::services::Services;
use crate::model::ModelInfo;

/// The answer, ready.
#[derive(Debug)]
pub(super) struct Info(pb::ServerInfo);

impl Info {
    /// Collects the answer.
    pub(super) fn new(services: &Services) -> Self {
        let model = &services.model;
        let settings = &services.settings;
        Self(pb::ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            base_model: Some(pb::BaseModel {
                has_chat_template: services.chat.is_some(),
                ..described(&services.model_name, model)
            }),
            image_models: services.images.list().map(|(name, model)| described(name, model)).collect(),
            limits: Some(pb::Limits {
                max_waiting_sequences: count(settings.engine.max_waiting_sequences),
                max_running_sequences: count(settings.engine.max_running_sequences),
                max_step_tokens: count(settings.engine.max_step_tokens),
                kv_cache_bytes: settings.engine.kv_bytes(),
                adapter_bytes: settings.registry.memory_bytes,
                max_upload_bytes: settings.registry.max_upload_bytes,
                max_n: convert::MAX_N,
                max_logprobs: convert::MAX_LOGPROBS,
                max_stop_strings: count(convert::MAX_STOP),
                max_candidates: count(convert::MAX_CANDIDATES),
                max_message_bytes: settings.server.max_message_bytes as u64,
                max_page_size: count(MAX_PAGE),
                max_waiting_images: count(settings.engine.max_waiting_images),
                max_images: count(convert::MAX_IMAGES),
                max_image_bytes: settings.engine.max_image_bytes,
                max_image_pixels: settings.engine.max_image_pixels,
                max_request_pixels: settings.engine.max_request_pixels,
            }),
        })
    }
}

fn described(name: &str, model: &ModelInfo) -> pb::BaseModel {
    let [image_height, image_width] = model.image_size.unwrap_or_default().map(count);
    pb::BaseModel {
        name: name.to_owned(),
        architecture: model.architecture.clone(),
        fingerprint: model.fingerprint.clone(),
        parameters: model.parameters,
        dtype: model.dtype.clone(),
        context_length: count(model.context_length),
        device: model.device.clone(),
        vocab_size: count(model.vocab_size),
        has_chat_template: false,
        label_names: model.classes.as_ref().map_or_else(Vec::new, |classes| classes.names.clone()),
        image_height,
        image_width,
    }
}

/// Numbers on the wire have 32 bits; none of ours comes near.
pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[tonic::async_trait]
impl pb::server_service_server::ServerService for Info {
    async fn get_server_info(&self, _: Request<pb::GetServerInfoRequest>) -> Result<Response<pb::ServerInfo>, Status> {
        Ok(Response::new(self.0.clone()))
    }
}
