//! Prompts and candidates to token ids, and what can only be checked once the ids are known.
//!
//! Blocks for as long as the tokenizer works: call it off the async threads.
//! Units: tokens. Candidates given as text are cut from the joint encoding of prompt and candidate, as
//! lm-evaluation-harness' `_encode_pair` does, but that white space at a prompt's end stays there.

use std::sync::Arc;

use super::classify_request::Places;
use super::convert::{Continuation, Generate, Score, Source, Tokenize};
use super::pb;
use super::violations::Violations;
use crate::engine::{ClassifyRequest, GenerateRequest, ScoreRequest};
use crate::model::ModelInfo;
use crate::model::chat::{ChatError, ChatTemplate, Ending, Message};
use crate::model::tokenizer::{Tokenizer, TokenizerError};

/// Turns prompts into token ids.
#[derive(Debug, Clone)]
pub(super) struct Prompts {
    /// The base model's tokenizer.
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Its chat template, if it has one.
    pub(super) chat: Option<Arc<ChatTemplate>>,
    /// The base model.
    pub(super) model: ModelInfo,
}

/// Why a prompt cannot be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum PromptError {
    /// A field is faulty.
    #[error("faulty fields")]
    Violations(Violations),
    /// Too many tokens.
    #[error("{prompt} prompt tokens and {new} new ones exceed the context length of {context}")]
    ContextLength {
        /// The field to change.
        field: String,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that were to follow.
        new: usize,
        /// Longest sequence.
        context: usize,
    },
    /// The model has no chat template.
    #[error("the base model has no chat template: use prompt")]
    NoChatTemplate,
    /// The chat template failed.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model is a classifier.
    #[error("the base model has a classification head and no language head")]
    WrongHead,
}

impl Prompts {
    /// Decodes a completion that no stop string cut as one text, as transformers does.
    ///
    /// A stream cannot take letters back when later bytes break a run of byte tokens; a whole text need not keep them.
    pub(super) fn decode_whole(&self, choice: &mut pb::Choice) {
        if !choice.stop_string.is_empty() {
            return;
        }
        let by_token = choice.finish_reason == i32::from(pb::FinishReason::Stop);
        let text_ids = &choice.token_ids[..choice.token_ids.len().saturating_sub(usize::from(by_token))];
        if let Ok(text) = self.tokenizer.decode(text_ids, true) {
            choice.text = text;
        }
    }

    /// Completes a request for text; adapter and deadline are the caller's to set.
    ///
    /// A defaulted `max_new_tokens` is cut to what fits; one that was asked for is refused where it does not fit.
    pub(super) fn generate(&self, request: Generate) -> Result<GenerateRequest, PromptError> {
        self.language_head()?;
        let prompt = self.prompt(request.source)?;
        let mut sampling = request.sampling;
        let mut stopping = request.stopping;
        let room = self.model.context_length.saturating_sub(prompt.len());
        if room == 0 || (request.explicit_length && sampling.max_new_tokens > room) {
            let field = if room == 0 { "prompt" } else { "sampling.max_new_tokens" };
            return Err(self.too_long(field, prompt.len(), if room == 0 { 1 } else { sampling.max_new_tokens }));
        }
        sampling.max_new_tokens = sampling.max_new_tokens.min(room);
        stopping.min_new_tokens = stopping.min_new_tokens.min(sampling.max_new_tokens);
        Ok(GenerateRequest {
            prompt,
            adapter: None,
            sampling,
            stopping,
            n: request.n,
            logprobs: request.logprobs,
            adapter_use: None,
            deadline: None,
        })
    }

    /// Completes a request for log-probabilities; adapter and deadline are the caller's to set.
    pub(super) fn score(&self, request: Score) -> Result<ScoreRequest, PromptError> {
        self.language_head()?;
        let text = match &request.source {
            Source::Text(text) => Some(text.clone()),
            Source::Messages(_) | Source::Ids(_) => None,
        };
        let prompt = self.prompt(request.source)?;
        let mut candidates = Vec::with_capacity(request.candidates.len());
        for (i, candidate) in request.candidates.into_iter().enumerate() {
            let ids = match candidate {
                Continuation::Ids(ids) => ids,
                Continuation::Text(candidate) => self.continuation(text.as_deref(), &prompt, &candidate)?,
            };
            if ids.is_empty() {
                let fault = Violations::one(format!("candidates[{i}]"), "has no tokens");
                return Err(PromptError::Violations(fault));
            }
            if prompt.len() + ids.len() > self.model.context_length {
                return Err(self.too_long(&format!("candidates[{i}]"), prompt.len(), ids.len()));
            }
            candidates.push(ids);
        }
        Ok(ScoreRequest { prompt, candidates, adapter: None, adapter_use: None, deadline: None })
    }

    /// Completes a request for classes; adapter and deadline are the caller's to set.
    pub(super) fn classify(&self, texts: Vec<Source>, places: &Places) -> Result<ClassifyRequest, PromptError> {
        let mut faults = Violations::default();
        let mut sequences = Vec::with_capacity(texts.len());
        for (i, source) in texts.into_iter().enumerate() {
            let ids = match source {
                // Nothing is to follow the conversation.
                Source::Messages(messages) => self.render(&messages, Ending::Plain)?.1,
                Source::Text(_) | Source::Ids(_) => self.tokenize(Tokenize { source, special: true })?.1,
            };
            let (length, most) = (ids.len(), self.model.context_length);
            if length == 0 {
                places.fault(&mut faults, i, "", "has no tokens");
            } else if length > most {
                places.fault(&mut faults, i, "", &format!("has {length} tokens, the context length is {most}"));
            }
            sequences.push(ids);
        }
        let request = ClassifyRequest { sequences, adapter: None, adapter_use: None, deadline: None };
        faults.finish(Some(request)).map_err(PromptError::Violations)
    }

    /// Returns the text that was tokenized, and its ids.
    pub(super) fn tokenize(&self, request: Tokenize) -> Result<(String, Vec<u32>), PromptError> {
        match request.source {
            Source::Text(text) => {
                let ids = self.tokenizer.encode(&text, request.special)?;
                Ok((text, ids))
            }
            Source::Messages(messages) => self.render(&messages, Ending::GenerationPrompt),
            Source::Ids(ids) => Ok((String::new(), ids)),
        }
    }

    fn render(&self, messages: &[Message], ending: Ending) -> Result<(String, Vec<u32>), PromptError> {
        let chat = self.chat.as_ref().ok_or(PromptError::NoChatTemplate)?;
        Ok(chat.encode(&self.tokenizer, messages, ending)?)
    }

    fn prompt(&self, source: Source) -> Result<Vec<u32>, PromptError> {
        let (_, ids) = self.tokenize(Tokenize { source, special: true })?;
        if ids.is_empty() {
            return Err(PromptError::Violations(Violations::one("prompt", "has no tokens")));
        }
        Ok(ids)
    }

    /// Returns the tokens that `candidate` adds to `prompt`: the joint encoding less the prompt's own where that is its
    /// beginning, else the candidate alone (also after ids or a conversation, which have no text to join).
    fn continuation(&self, text: Option<&str>, prompt: &[u32], candidate: &str) -> Result<Vec<u32>, PromptError> {
        if let Some(text) = text {
            let joint = self.tokenizer.encode(&format!("{text}{candidate}"), true)?;
            if let Some(rest) = joint.strip_prefix(prompt)
                && !rest.is_empty()
            {
                return Ok(rest.to_vec());
            }
        }
        Ok(self.tokenizer.encode(candidate, false)?)
    }

    fn language_head(&self) -> Result<(), PromptError> {
        if self.model.labels.is_some() { Err(PromptError::WrongHead) } else { Ok(()) }
    }

    fn too_long(&self, field: &str, prompt: usize, new: usize) -> PromptError {
        PromptError::ContextLength { field: field.to_owned(), prompt, new, context: self.model.context_length }
    }
}
