//! One row to token ids, and which of them are learnt; `answers`: prompts and what may follow them.
//!
//! Ids are those that serving computes for the same prompt, conversation or candidate: prompts are encoded with the
//! tokenizer's special tokens, a completion is cut from the joint encoding of prompt and completion where the prompt's
//! own ids begin it and is encoded alone where they do not (the rule of the Score method), conversations are what the
//! chat template writes. Sets no padding and knows neither labels nor groups.
//! Units: tokens.

mod answers;

use crate::dataset::{self, Content};
use crate::model::ModelInfo;
use crate::model::chat::{ChatError, ChatTemplate, Ending, Message, Rendered};
use crate::model::tokenizer::{Tokenizer, TokenizerError};

pub(crate) use answers::{Answers, Question};

/// Role whose turns are learnt.
const ASSISTANT: &str = "assistant";

/// Why a row cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowFault {
    /// The model has no chat template.
    #[error("the base model has no chat template for its messages")]
    NoChatTemplate,
    /// The chat template failed.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The template does not continue what it wrote.
    #[error("the chat template writes the beginning of the conversation in another way once message {0} is there")]
    Turn(usize),
    /// No room is left for a token before the answer.
    #[error("the answer alone has {answer} tokens, at most {room} fit into max_tokens after one token of its prompt")]
    AnswerTooLong {
        /// Tokens of the answer.
        answer: usize,
        /// Tokens that would fit.
        room: usize,
    },
    /// Too few tokens.
    #[error("it has {tokens} tokens, {needed} or more are needed")]
    TooShort {
        /// Tokens there are.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// Everything is masked.
    #[error("nothing in it is learnt")]
    NothingLearnt,
    /// Tokenizer and model do not belong together.
    #[error("token id {id} is not below the size of the model's vocabulary, {vocab}")]
    Id {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Nothing to score.
    #[error("answer {} has no tokens", .0 + 1)]
    EmptyAnswer(usize),
    /// Nothing to tell two answers apart.
    #[error("answers {} and {} have the same tokens", .0 + 1, .1 + 1)]
    SameAnswer(usize, usize),
    /// The assistant has spoken already.
    #[error("its conversation ends with the assistant's turn, and the answer is to come after it")]
    AnsweredTurn,
    /// It has no words.
    #[error("it is an image, and the base model reads text")]
    Image,
    /// Nothing stands before the first token.
    #[error("the tokenizer names no token at which a text begins or ends, to predict the first token from")]
    NoStart,
}

impl RowFault {
    /// Returns which answer it is about, the later of two.
    pub(crate) fn answer(&self) -> Option<usize> {
        match self {
            Self::EmptyAnswer(answer) | Self::SameAnswer(_, answer) => Some(*answer),
            Self::NoChatTemplate
            | Self::Chat(_)
            | Self::Tokenizer(_)
            | Self::Turn(_)
            | Self::AnswerTooLong { .. }
            | Self::TooShort { .. }
            | Self::NothingLearnt
            | Self::Id { .. }
            | Self::AnsweredTurn
            | Self::Image
            | Self::NoStart => None,
        }
    }
}

/// Token ids of one row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// Ids.
    pub(crate) tokens: Vec<u32>,
    /// Whether the token is learnt; as long as `tokens`.
    pub(crate) learnt: Vec<bool>,
    /// Where the answer begins that no truncation may touch; the length where there is none.
    answer: usize,
    /// Whether tokens were dropped.
    pub(crate) truncated: bool,
}

impl Encoded {
    fn push(&mut self, ids: &[u32], learnt: bool) {
        self.tokens.extend(ids);
        self.learnt.resize(self.tokens.len(), learnt);
    }
}

/// Encodes rows.
#[derive(Clone)]
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    chat: Option<&'a ChatTemplate>,
    max_tokens: usize,
    vocab: usize,
    /// Ids at which serving stops.
    ends: Vec<u32>,
    /// The one that ends a text.
    end: Option<u32>,
    /// The tokenizer's own name for the end, which may be that of a turn.
    named: Option<u32>,
}

impl<'a> Encoder<'a> {
    /// Encodes for a model, no sequence longer than `max_tokens`.
    pub(crate) fn new(
        model: &ModelInfo,
        tokenizer: &'a Tokenizer,
        chat: Option<&'a ChatTemplate>,
        max_tokens: usize,
    ) -> Self {
        let ends = model.eos_token_ids.clone();
        let named = tokenizer.eos_id();
        // Of the ids at which serving stops, the one that the tokenizer names.
        let end = named.filter(|id| ends.is_empty() || ends.contains(id)).or(ends.first().copied());
        Self { tokenizer, chat, max_tokens, vocab: model.vocab_size, ends, end, named }
    }

    /// Encodes one row as language is learnt, with its end, and cuts it to the longest sequence.
    pub(crate) fn learnt(&self, content: &Content, train_on_prompt: bool) -> Result<Encoded, RowFault> {
        let mut row = Encoded::default();
        match content {
            Content::Text(text) => {
                row.push(&self.tokenizer.encode(text, true)?, true);
                self.end(&mut row);
                row.answer = row.tokens.len();
            }
            Content::Completion { prompt, completion } => {
                row.push(&self.tokenizer.encode(prompt, true)?, train_on_prompt);
                row.answer = row.tokens.len();
                row.push(&self.completion(&row.tokens, prompt, completion)?, true);
                self.end(&mut row);
            }
            Content::Messages(messages) => row = self.conversation(messages, train_on_prompt)?,
            Content::Image(_) => return Err(RowFault::Image),
        }
        self.cut(&mut row)?;
        self.predictable(row)
    }

    /// Encodes what a classifier reads, and cuts it; nothing of it is learnt as text.
    pub(crate) fn given(&self, content: &Content) -> Result<Encoded, RowFault> {
        let mut row = Encoded::default();
        match content {
            Content::Text(text) | Content::Completion { prompt: text, .. } => {
                row.push(&self.tokenizer.encode(text, true)?, false);
            }
            Content::Messages(messages) => {
                let chat = self.chat.ok_or(RowFault::NoChatTemplate)?;
                row.push(&chat.encode(self.tokenizer, &talk(messages), Ending::Plain)?.1, false);
            }
            Content::Image(_) => return Err(RowFault::Image),
        }
        row.answer = row.tokens.len();
        self.cut(&mut row)?;
        self.known(row, 1)
    }

    /// Refuses a row of which nothing can be predicted: nothing predicts the first token.
    fn predictable(&self, row: Encoded) -> Result<Encoded, RowFault> {
        let row = self.known(row, 2)?;
        if row.learnt[1..].contains(&true) { Ok(row) } else { Err(RowFault::NothingLearnt) }
    }

    /// Refuses a row with too few tokens, or with one that the model does not know.
    fn known(&self, row: Encoded, needed: usize) -> Result<Encoded, RowFault> {
        if row.tokens.len() < needed {
            return Err(RowFault::TooShort { tokens: row.tokens.len(), needed });
        }
        self.check(&row.tokens)?;
        Ok(row)
    }

    fn check(&self, tokens: &[u32]) -> Result<(), RowFault> {
        match tokens.iter().find(|id| **id as usize >= self.vocab) {
            Some(id) => Err(RowFault::Id { id: *id, vocab: self.vocab }),
            None => Ok(()),
        }
    }

    /// Returns the ids that `completion` adds to `prompt`, whose ids are `given`.
    fn completion(&self, given: &[u32], prompt: &str, completion: &str) -> Result<Vec<u32>, RowFault> {
        let joint = self.tokenizer.encode(&format!("{prompt}{completion}"), true)?;
        match joint.strip_prefix(given) {
            Some(rest) if !rest.is_empty() => Ok(rest.to_vec()),
            _ => Ok(self.tokenizer.encode(completion, false)?),
        }
    }

    /// Appends the end of text where it is missing.
    fn end(&self, row: &mut Encoded) {
        if let Some(end) = self.end
            && !row.tokens.last().is_some_and(|id| *id == end || self.ends.contains(id))
        {
            row.push(&[end], true);
        }
    }

    /// Joins prompts (what serving is given before a turn) and turns (what the template writes after that prompt).
    ///
    /// A turn is learnt up to its last end-of-text id, or whole where the template writes none. What follows the last
    /// assistant's turn is left out unless prompts are learnt too.
    fn conversation(&self, messages: &[dataset::Message], train_on_prompt: bool) -> Result<Encoded, RowFault> {
        let chat = self.chat.ok_or(RowFault::NoChatTemplate)?;
        let talk = talk(messages);
        let mut row = Encoded::default();
        let mut written = Rendered::default();
        let mut answer = None;
        for (i, _) in talk.iter().enumerate().filter(|(_, message)| message.role == ASSISTANT) {
            let prompt = chat.render_for(self.tokenizer, &talk[..i], Ending::GenerationPrompt)?;
            let ids = self.added(&row.tokens, &prompt, &written)?.ok_or(RowFault::Turn(i))?;
            row.push(&ids, train_on_prompt);

            written = chat.render_for(self.tokenizer, &talk[..=i], Ending::Plain)?;
            let ids = self.added(&row.tokens, &written, &prompt)?.ok_or(RowFault::Turn(i + 1))?;
            // A template may leave a turn out.
            answer = if ids.is_empty() { answer } else { Some(row.tokens.len()) };
            let ends = |id: &u32| self.ends.contains(id) || Some(*id) == self.named;
            let end = ids.iter().rposition(ends).map_or(ids.len(), |at| at + 1);
            row.push(&ids[..end], true);
            row.push(&ids[end..], train_on_prompt);
        }
        if train_on_prompt {
            let all = chat.render_for(self.tokenizer, &talk, Ending::Plain)?;
            let ids = self.added(&row.tokens, &all, &written)?.ok_or(RowFault::Turn(talk.len()))?;
            row.push(&ids, true);
        }
        let used = row.learnt.iter().rposition(|learnt| *learnt).map_or(0, |at| at + 1);
        row.tokens.truncate(used);
        row.learnt.truncate(used);
        row.answer = answer.unwrap_or(used);
        if used == 0 { Err(RowFault::NothingLearnt) } else { Ok(row) }
    }

    /// Returns the ids that `text` adds to `tokens`, which stand for `before`: of the joint encoding where they begin
    /// it, else of the rest alone; `None` where the text begins otherwise.
    fn added(&self, tokens: &[u32], text: &Rendered, before: &Rendered) -> Result<Option<Vec<u32>>, RowFault> {
        let Some(rest) = text.after(before) else { return Ok(None) };
        if rest.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let (_, joint) = text.encode(self.tokenizer)?;
        match joint.strip_prefix(tokens) {
            Some(ids) if !ids.is_empty() => Ok(Some(ids.to_vec())),
            _ => Ok(Some(rest.encode(self.tokenizer)?.1)),
        }
    }

    /// Drops what is too much from the start, but neither the beginning of text nor the answer.
    ///
    /// What is left of an earlier turn whose start was dropped is not learnt, nor the first token after the gap.
    fn cut(&self, row: &mut Encoded) -> Result<(), RowFault> {
        let excess = row.tokens.len().saturating_sub(self.max_tokens);
        if excess == 0 {
            return Ok(());
        }
        let answer = row.tokens.len() - row.answer;
        if answer >= self.max_tokens {
            return Err(RowFault::AnswerTooLong { answer, room: self.max_tokens.saturating_sub(1) });
        }
        let bos = self.tokenizer.bos_id();
        let keep = usize::from(bos.is_some() && row.tokens.first().copied() == bos);
        row.tokens.drain(keep..keep + excess);
        row.learnt.drain(keep..keep + excess);
        row.answer -= excess;
        let before_answer = &mut row.learnt[keep..row.answer];
        let all = before_answer.iter().all(|learnt| *learnt);
        let orphaned = before_answer.iter().take_while(|learnt| **learnt).count();
        let masked = if all { orphaned.min(1) } else { orphaned };
        before_answer[..masked].fill(false);
        row.truncated = true;
        Ok(())
    }
}

fn talk(messages: &[dataset::Message]) -> Vec<Message> {
    messages.iter().map(|m| Message { role: m.role.clone(), content: m.content.clone() }).collect()
}
