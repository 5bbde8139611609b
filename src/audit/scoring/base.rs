//! What is audited: a language model with its tokenizer, or a classifier of images.
//!
//! Says what a base is and how its rows are read; computes nothing.

use std::sync::Arc;

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{Settings, Task};
use super::plan::Reader;
use crate::encode::Encoder;
use crate::model::chat::ChatTemplate;
use crate::model::tokenizer::Tokenizer;
use crate::model::{CausalLm, ImageClassifier, ModelInfo};

/// What all audits of one language model share.
#[derive(Clone)]
pub struct Context {
    /// The base model.
    pub model: Arc<dyn CausalLm>,
    /// Name of the base model, for faults and progress.
    pub name: String,
    /// Text to ids.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to text, if the model has a template.
    pub chat: Option<Arc<ChatTemplate>>,
}

/// What all audits of one classifier of images share.
#[derive(Clone)]
pub struct ImageContext {
    /// The base model.
    pub model: Arc<dyn ImageClassifier>,
    /// Name of the base model, for faults and progress.
    pub name: String,
}

/// Either of them.
#[derive(Clone)]
pub enum Base {
    /// Rows are texts.
    Text(Context),
    /// Rows are images.
    Images(ImageContext),
}

impl From<&Context> for Base {
    fn from(context: &Context) -> Self {
        Self::Text(context.clone())
    }
}

impl From<&ImageContext> for Base {
    fn from(context: &ImageContext) -> Self {
        Self::Images(context.clone())
    }
}

impl From<&Base> for Base {
    fn from(base: &Base) -> Self {
        base.clone()
    }
}

impl Base {
    /// Describes the model.
    pub fn info(&self) -> &ModelInfo {
        match self {
            Self::Text(context) => context.model.info(),
            Self::Images(context) => context.model.info(),
        }
    }

    /// Returns the name of the model.
    pub fn name(&self) -> &str {
        match self {
            Self::Text(context) => &context.name,
            Self::Images(context) => &context.name,
        }
    }

    /// Returns what reads rows; images bear one task only.
    pub(super) fn reader(&self, settings: &Settings) -> Result<Reader<'_>, AuditError> {
        let Context { model, tokenizer, chat, .. } = match self {
            Self::Text(context) => context,
            Self::Images(_) if settings.task != Task::Head => {
                return Err(setting("task", "a model of images has a classification head, and no language"));
            }
            Self::Images(_) if settings.max_tokens.is_some() => {
                return Err(setting("max_tokens", "is for texts: an image has no tokens"));
            }
            Self::Images(context) => return Ok(Reader::Images(context.model.processor())),
        };
        if settings.membership.as_ref().is_some_and(|asked| asked.mirrored) {
            return Err(setting("membership.mirrored", "is for images: a text has no mirror image"));
        }
        let longest = model.info().context_length;
        let most = settings.max_tokens.unwrap_or(longest);
        if most < 2 || most > longest {
            return Err(setting("max_tokens", format!("must be from 2 to the model's context length, {longest}")));
        }
        Ok(Reader::Text(Encoder::new(model.info(), tokenizer, chat.as_deref(), most)))
    }
}
