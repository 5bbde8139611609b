//! Whether content can be told from token: verdicts on scripted models of which one is known to follow the token, and
//! one the content.

use std::sync::Mutex;

use candle_core::Device;

use super::*;
use crate::audit::settings::{Alphabet, Choice};
use crate::lora::LoraError;
use crate::model::{BaseModel, KvCache, ModelError, ModelInfo};

/// How much likelier the preferred token is than any other, in nats: than all of them, as signs may be several tokens.
const PULL: f32 = 20.0;

/// The answer that a prompt is given: its place among those shown.
type Rule = fn(&str) -> usize;

/// Continues a prompt of two shown answers as its rule says, and has no other opinion.
struct Scripted {
    info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    rule: Rule,
    /// Tokens of the last sequence that was computed alone: a prompt, since no two units share a pass.
    sequence: Mutex<Vec<u32>>,
}

impl Scripted {
    /// Logits after the sequence.
    fn after(&self, sequence: &[u32]) -> Vec<f32> {
        let mut logits = vec![0.0; self.info.vocab_size];
        let text = self.tokenizer.decode(sequence, true).unwrap();
        let Some(end) = text.find("Answer:").map(|start| start + "Answer:".len()) else { return logits };
        let signs: Vec<&str> = text.lines().filter_map(|line| line.split_once(". ")).map(|(sign, _)| sign).collect();
        let preferred = format!("{} {}", &text[..end], signs[(self.rule)(&text)]);
        let preferred = self.tokenizer.encode(&preferred, true).unwrap();
        if let Some(next) = preferred.strip_prefix(sequence).and_then(|rest| rest.first()) {
            logits[*next as usize] = PULL;
        }
        logits
    }
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

impl crate::model::CausalLm for Scripted {
    fn new_cache(&self) -> KvCache {
        KvCache::new(0)
    }

    fn forward(&self, batch: &Batch<'_>, caches: &mut [&mut KvCache]) -> Result<candle_core::Tensor, ModelError> {
        let mut held = self.sequence.lock().unwrap();
        let (mut start, mut rows, mut logits) = (0, 0, Vec::new());
        for (segment, cache) in batch.segments.iter().zip(caches.iter_mut()) {
            // Answers go on from forks of one prompt, a prompt from what it shares with the one before.
            assert!(cache.len() <= held.len(), "goes on with the sequence before");
            let mut sequence = held[..cache.len()].to_vec();
            let read = if let crate::model::Rows::Last(read) = segment.logits { read } else { 0 };
            for (row, token) in batch.tokens[start..start + segment.len].iter().enumerate() {
                sequence.push(*token);
                if row + read >= segment.len {
                    logits.extend(self.after(&sequence));
                }
            }
            if batch.segments.len() == 1 {
                *held = sequence;
            }
            (start, rows) = (start + segment.len, rows + read);
            cache.advance(segment.len);
        }
        Ok(candle_core::Tensor::from_vec(logits, (rows, self.info.vocab_size), &Device::Cpu)?)
    }

    fn classify(&self, _: &Batch<'_>) -> Result<candle_core::Tensor, ModelError> {
        Err(ModelError::Unsupported("classes in a script".into()))
    }
}

/// A model of the rule with the tokenizer of a golden one; each unit is computed alone.
fn scripted(rule: Rule) -> Context {
    let golden = context(LLAMA3);
    let info = ModelInfo { device: "alone".into(), ..golden.model.info().clone() };
    let (tokenizer, sequence) = (Arc::clone(&golden.tokenizer), Mutex::default());
    Context { model: Arc::new(Scripted { info, tokenizer, rule, sequence }), ..golden }
}

/// The first sign, whatever stands behind it.
fn by_token(_: &str) -> usize {
    0
}

/// `yes` where it stands, or `no` where the question says `not`.
fn by_content(text: &str) -> usize {
    let wanted = if text.contains(" not ") { ". no" } else { ". yes" };
    text.lines().filter(|line| line.contains(". ")).position(|line| line.ends_with(wanted)).unwrap()
}

/// The content, but in one wording the other one.
fn by_wording(text: &str) -> usize {
    if text.contains("\n1. ") { 1 - by_content(text) } else { by_content(text) }
}

fn verdicts(rule: Rule) -> Scored {
    let rows = ["is it cold?", "was she sure?", "did two cats read?", "is noon late?"];
    let turned = ["is it not cold?", "was she not sure?", "did two cats not read?", "is noon not late?"];
    let rows = rows.iter().zip(turned).enumerate();
    let rows = rows.map(|(i, (question, turned))| row(text(question), Some(i % 2), &["a", turned]));
    let data = dataset(&["yes", "no"], &["group", "r"], rows.collect());
    let task = Choice {
        columns: Vec::new(),
        answers: texts(&["yes", "no"]),
        alphabets: vec![Alphabet::Letters, Alphabet::Digits],
        orders: 2,
        reversed: Some("r".to_owned()),
        content_free: Vec::new(),
    };
    scored(&scripted(rule), &data, &asking(Task::Choice(task)), base())
}

fn warned(found: &Scored) -> bool {
    found.warnings.iter().any(|warning| warning.kind == "token_preference")
}

#[test]
fn an_effect_that_follows_the_token_is_not_separable_from_it() {
    let found = verdicts(by_token);
    assert_eq!(found.table.preferences.len(), 2);
    for preference in &found.table.preferences {
        assert_eq!(preference.separable, Some(false), "{preference:?}");
        assert_eq!((preference.flip_rate, &preference.by_token[..]), (Some(1.0), &[1.0, 0.0][..]));
        assert!(preference.prior[0] > 0.9, "{preference:?}");
    }
    assert!(warned(&found));
}

#[test]
fn an_effect_that_follows_the_content_is_separable_from_the_token() {
    let found = verdicts(by_content);
    for preference in &found.table.preferences {
        assert_eq!(preference.separable, Some(true), "{preference:?}");
        assert_eq!((preference.flip_rate, &preference.by_token[..]), (Some(0.0), &[0.5, 0.5][..]));
        assert_eq!(&preference.by_content[..], &[1.0, 0.0]);
    }
    assert!(!warned(&found));
}

#[test]
fn an_effect_that_turns_with_the_wording_is_not_separable() {
    let found = verdicts(by_wording);
    assert!(found.table.preferences.iter().all(|preference| preference.separable == Some(false)));
    assert!(warned(&found));
}
