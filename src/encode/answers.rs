//! Prompts, and the answers that may follow them.
//!
//! All answers of a question follow the same prompt ids, so that the prompt is computed once. Ids are those of the Score
//! method: an answer is cut from the joint encoding of prompt and answer where the prompt's own ids begin it, and is
//! encoded alone where they do not, or where the prompt is a conversation. Does not say how a question is worded.
//! Units: tokens. After: lm-evaluation-harness `_encode_pair`, and its prefix token for a text that follows nothing.

use super::{ASSISTANT, Encoded, Encoder, RowFault, talk};
use crate::dataset::{Content, Message};
use crate::model::chat::Ending;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// A text, to be continued.
    Text(String),
    /// A conversation; the assistant is to speak.
    Talk(Vec<Message>),
}

/// Ids of a question and its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answers {
    /// 1 or more.
    pub(crate) prompt: Vec<u32>,
    /// 1 or more each, no two alike.
    pub(crate) answers: Vec<Vec<u32>>,
    /// Whether tokens of the prompt were dropped.
    pub(crate) truncated: bool,
}

impl Question {
    /// Returns what a row asks: its text, its prompt without the completion, or its conversation.
    pub(crate) fn of(content: &Content) -> Result<Self, RowFault> {
        Ok(match content {
            Content::Text(text) | Content::Completion { prompt: text, .. } => Self::Text(text.clone()),
            Content::Messages(messages) => Self::Talk(messages.clone()),
            Content::Image(_) => return Err(RowFault::Image),
        })
    }

    /// Returns the same question with other words: those of a text, or of the last message.
    pub(crate) fn reworded(&self, words: impl FnOnce(&str) -> String) -> Self {
        match self {
            Self::Text(text) => Self::Text(words(text)),
            Self::Talk(messages) => {
                let mut messages = messages.clone();
                if let Some(last) = messages.last_mut() {
                    last.content = words(&last.content);
                }
                Self::Talk(messages)
            }
        }
    }

    /// Returns what stands between the question and its answer: a space after a text that does not end with one.
    pub(crate) fn gap(&self) -> &'static str {
        match self {
            Self::Text(text) if !text.is_empty() && !text.ends_with(char::is_whitespace) => " ",
            Self::Text(_) | Self::Talk(_) => "",
        }
    }
}

impl Encoder<'_> {
    /// Encodes a question and its answers, dropping tokens of the question from the start where all are too long.
    pub(crate) fn answers(&self, question: &Question, answers: &[String]) -> Result<Answers, RowFault> {
        let given = self.question(question)?;
        let encoded = answers.iter().enumerate().map(|(i, answer)| {
            let ids = match question {
                Question::Text(text) if !given.is_empty() => self.completion(&given, text, answer)?,
                Question::Text(_) | Question::Talk(_) => self.tokenizer.encode(answer, false)?,
            };
            if ids.is_empty() { Err(RowFault::EmptyAnswer(i)) } else { Ok(ids) }
        });
        let encoded = encoded.collect::<Result<Vec<_>, _>>()?;
        self.fitted(given, encoded)
    }

    /// Encodes texts that follow nothing: the prompt is the token at which a text begins, or ends where there is none.
    pub(crate) fn whole(&self, texts: &[String]) -> Result<Answers, RowFault> {
        let start = self.start()?;
        let encoded = texts.iter().enumerate().map(|(i, text)| {
            let mut ids = self.tokenizer.encode(text, true)?;
            if ids.first() == Some(&start) {
                ids.remove(0);
            }
            if ids.is_empty() { Err(RowFault::EmptyAnswer(i)) } else { Ok(ids) }
        });
        let encoded = encoded.collect::<Result<Vec<_>, _>>()?;
        self.fitted(vec![start], encoded)
    }

    /// Encodes language whose likelihood is measured, and returns the bytes of what is: a text after the token that begins
    /// or ends a text, a completion, the assistant's turns. No end of text is added; what is measured counts as learnt.
    pub(crate) fn measured(&self, content: &Content) -> Result<(Encoded, usize), RowFault> {
        match content {
            Content::Text(text) => {
                let Answers { prompt, answers, .. } =
                    Self { max_tokens: usize::MAX, ..self.clone() }.whole(std::slice::from_ref(text))?;
                let mut row = Encoded::default();
                row.push(&prompt, false);
                row.push(&answers.concat(), true);
                row.answer = row.tokens.len();
                self.cut(&mut row)?;
                let row = self.predictable(row)?;
                let bytes = if row.truncated { self.bytes(&row)? } else { text.len() };
                Ok((row, bytes))
            }
            Content::Completion { prompt, completion } => {
                let encoded = self.answers(&Question::Text(prompt.clone()), std::slice::from_ref(completion))?;
                let mut row = Encoded { truncated: encoded.truncated, ..Encoded::default() };
                row.push(&encoded.prompt, false);
                row.push(&encoded.answers.concat(), true);
                Ok((row, completion.len()))
            }
            Content::Messages(messages) => {
                let mut row = self.conversation(messages, false)?;
                self.cut(&mut row)?;
                let row = self.predictable(row)?;
                let bytes = self.bytes(&row)?;
                Ok((row, bytes))
            }
            Content::Image(_) => Err(RowFault::Image),
        }
    }

    /// Returns the bytes of the text of what is learnt, control tokens left out.
    fn bytes(&self, row: &Encoded) -> Result<usize, RowFault> {
        let learnt = row.tokens.iter().zip(&row.learnt).filter(|(_, learnt)| **learnt);
        let ids: Vec<u32> = learnt.map(|(id, _)| *id).collect();
        Ok(self.tokenizer.decode(&ids, true)?.len())
    }

    /// Encodes a question that `room` tokens are to follow.
    pub(crate) fn asked(&self, question: &Question, room: usize) -> Result<(Vec<u32>, bool), RowFault> {
        let given = self.question(question)?;
        self.shortened(given, room)
    }

    /// Returns the token that stands before a text that follows nothing.
    pub(crate) fn start(&self) -> Result<u32, RowFault> {
        self.tokenizer.bos_id().or(self.end).ok_or(RowFault::NoStart)
    }

    fn question(&self, question: &Question) -> Result<Vec<u32>, RowFault> {
        match question {
            Question::Text(text) => Ok(self.tokenizer.encode(text, true)?),
            Question::Talk(messages) if messages.last().is_some_and(|m| m.role == ASSISTANT) => {
                Err(RowFault::AnsweredTurn)
            }
            Question::Talk(messages) => {
                let chat = self.chat.ok_or(RowFault::NoChatTemplate)?;
                Ok(chat.encode(self.tokenizer, &talk(messages), Ending::GenerationPrompt)?.1)
            }
        }
    }

    fn fitted(&self, given: Vec<u32>, answers: Vec<Vec<u32>>) -> Result<Answers, RowFault> {
        for (i, answer) in answers.iter().enumerate() {
            if let Some(same) = answers[..i].iter().position(|other| other == answer) {
                return Err(RowFault::SameAnswer(same, i));
            }
            self.check(answer)?;
        }
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        let (prompt, truncated) = self.shortened(given, longest)?;
        Ok(Answers { prompt, answers, truncated })
    }

    /// Drops tokens from the start, but not the beginning of text, so that `room` more fit.
    fn shortened(&self, mut given: Vec<u32>, room: usize) -> Result<(Vec<u32>, bool), RowFault> {
        if given.is_empty() {
            given.push(self.start()?);
        }
        self.check(&given)?;
        let most = self.max_tokens.saturating_sub(room);
        let bos = self.tokenizer.bos_id();
        let keep = usize::from(bos.is_some() && given.first().copied() == bos);
        // Of a question that does not fit, more than its beginning has to be left.
        if most < given.len().min(keep + 1) {
            return Err(RowFault::AnswerTooLong { answer: room, room: self.max_tokens.saturating_sub(keep + 1) });
        }
        let excess = given.len().saturating_sub(most);
        given.drain(keep..keep + excess);
        Ok((given, excess > 0))
    }
}
