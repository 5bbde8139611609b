//! Tasks of audits from the wire and back: how rows become predictions.
//!
//! Checks forms and ranges; whether columns and labels exist is found out when the audit runs.

use super::info::count;
use super::names::{all_differ, column, columns, enumerated};
use super::pb::{self, audit_task, generation_task};
use super::violations::Violations;
use crate::audit::settings::{Alphabet, Choice, Classifier, Normalization, Task};

const MAX_ANSWERS: usize = 16;
const MAX_WORDS: usize = 1000;
const MAX_TEXT: usize = 4096;
const MAX_ORDERS: u32 = 24;
const MAX_CONTENT_FREE: usize = 16;
const MAX_NEW_TOKENS: u32 = 1024;
const DEFAULT_NEW_TOKENS: u32 = 64;

/// Checks a task.
pub(super) fn task(v: &mut Violations, wire: Option<pb::AuditTask>) -> Option<Task> {
    let Some(kind) = wire.and_then(|task| task.kind) else {
        v.add("settings.task", "must be one of the kinds");
        return None;
    };
    match kind {
        audit_task::Kind::Head(pb::HeadTask {}) => Some(Task::Head),
        audit_task::Kind::LabelWords(task) => {
            texts(v, "settings.task.label_words.words", &task.words, 2, 1000);
            let normalization = normalization(v, "settings.task.label_words.normalization", task.normalization)?;
            Some(Task::LabelWords { words: task.words, normalization })
        }
        audit_task::Kind::Choice(task) => choice(v, task),
        audit_task::Kind::Pairs(task) => {
            column(v, "settings.task.pairs.more_column", &task.more_column);
            column(v, "settings.task.pairs.less_column", &task.less_column);
            let unrelated = (!task.unrelated_column.is_empty()).then_some(task.unrelated_column);
            if let Some(unrelated) = &unrelated {
                column(v, "settings.task.pairs.unrelated_column", unrelated);
            }
            let normalization = normalization(v, "settings.task.pairs.normalization", task.normalization)?;
            Some(Task::Pairs { more: task.more_column, less: task.less_column, unrelated, normalization })
        }
        audit_task::Kind::Bbq(task) => {
            columns(v, "settings.task.bbq.answer_columns", &task.answer_columns, 3..=3);
            for (field, name) in [
                ("settings.task.bbq.condition_column", &task.condition_column),
                ("settings.task.bbq.unknown_column", &task.unknown_column),
                ("settings.task.bbq.biased_column", &task.biased_column),
            ] {
                column(v, field, name);
            }
            let normalization = normalization(v, "settings.task.bbq.normalization", task.normalization)?;
            Some(Task::Bbq {
                answers: task.answer_columns,
                condition: task.condition_column,
                unknown: task.unknown_column,
                biased: task.biased_column,
                normalization,
            })
        }
        audit_task::Kind::Perplexity(pb::PerplexityTask {}) => Some(Task::Perplexity),
        audit_task::Kind::Generation(task) => generation(v, task),
    }
}

fn texts(v: &mut Violations, field: &str, texts: &[String], least: usize, most: usize) {
    let sound = texts.iter().all(|text| !text.is_empty() && text.len() <= MAX_TEXT);
    let sound = sound && (least..=most).contains(&texts.len()) && all_differ(texts);
    v.require(field, sound, &format!("must be {least} to {most} different texts of 1 to {MAX_TEXT} bytes"));
}

fn normalization(v: &mut Violations, field: &str, wire: i32) -> Option<Normalization> {
    enumerated(v, field, wire, |known| match known {
        pb::AuditNormalization::Unspecified | pb::AuditNormalization::Sum => Normalization::Sum,
        pb::AuditNormalization::MeanToken => Normalization::MeanToken,
        pb::AuditNormalization::MeanByte => Normalization::MeanByte,
        pb::AuditNormalization::Unconditional => Normalization::Unconditional,
    })
}

fn choice(v: &mut Violations, wire: pb::ChoiceTask) -> Option<Task> {
    if wire.columns.is_empty() {
        texts(v, "settings.task.choice.answers", &wire.answers, 2, MAX_ANSWERS);
    } else {
        columns(v, "settings.task.choice.columns", &wire.columns, 2..=MAX_ANSWERS);
        v.require("settings.task.choice.answers", wire.answers.is_empty(), "must be empty when `columns` are given");
    }
    let field = "settings.task.choice.alphabets";
    let mut alphabets = Vec::new();
    for alphabet in wire.alphabets.iter().take(5) {
        let known = enumerated(v, field, *alphabet, |known| match known {
            pb::AuditAlphabet::Unspecified => None,
            pb::AuditAlphabet::Words => Some(Alphabet::Words),
            pb::AuditAlphabet::Letters => Some(Alphabet::Letters),
            pb::AuditAlphabet::Digits => Some(Alphabet::Digits),
            pb::AuditAlphabet::Symbols => Some(Alphabet::Symbols),
        });
        alphabets.extend(known.flatten());
    }
    let sound = alphabets.len() == wire.alphabets.len() && all_differ(&alphabets);
    v.require(field, sound, "must be different alphabets");
    if alphabets.is_empty() {
        alphabets.push(Alphabet::Letters);
    }
    let orders = wire.orders.unwrap_or(1);
    v.require("settings.task.choice.orders", (1..=MAX_ORDERS).contains(&orders), "must be 1 to 24");
    let reversed = (!wire.reversed_column.is_empty()).then_some(wire.reversed_column);
    if let Some(reversed) = &reversed {
        let field = "settings.task.choice.reversed_column";
        column(v, field, reversed);
        v.require(field, wire.answers.len().max(wire.columns.len()) == 2, "is for two answers");
    }
    let sound = wire.content_free.len() <= MAX_CONTENT_FREE
        && wire.content_free.iter().all(|text| text.len() <= MAX_TEXT)
        && all_differ(&wire.content_free);
    v.require("settings.task.choice.content_free", sound, "must be at most 16 different texts of at most 4096 bytes");
    Some(Task::Choice(Choice {
        columns: wire.columns,
        answers: wire.answers,
        alphabets,
        orders: orders as usize,
        reversed,
        content_free: wire.content_free,
    }))
}

fn generation(v: &mut Violations, wire: pb::GenerationTask) -> Option<Task> {
    let classifier = match wire.classifier {
        None => {
            v.add("settings.task.generation.classifier", "must be one of pronouns and lexicon");
            return None;
        }
        Some(generation_task::Classifier::Pronouns(pb::PronounClassifier {})) => Classifier::Pronouns,
        Some(generation_task::Classifier::Lexicon(lexicon)) => {
            let field = "settings.task.generation.lexicon.categories";
            let names: Vec<&String> = lexicon.categories.iter().map(|category| &category.name).collect();
            v.require(field, (2..=32).contains(&names.len()) && all_differ(&names), "must be 2 to 32 different ones");
            let mut categories = Vec::new();
            for (i, category) in lexicon.categories.into_iter().enumerate().take(32) {
                column(v, &format!("{field}[{i}].name"), &category.name);
                texts(v, &format!("{field}[{i}].words"), &category.words, 1, MAX_WORDS);
                categories.push((category.name, category.words));
            }
            Classifier::Lexicon(categories)
        }
    };
    let tokens = wire.max_new_tokens.unwrap_or(DEFAULT_NEW_TOKENS);
    let field = "settings.task.generation.max_new_tokens";
    v.require(field, (1..=MAX_NEW_TOKENS).contains(&tokens), "must be 1 to 1024");
    let mut named = |field: &str, name: String| {
        let name = (!name.is_empty()).then_some(name)?;
        column(v, field, &name);
        Some(name)
    };
    let expected = named("settings.task.generation.expected_column", wire.expected_column);
    let gold = named("settings.task.generation.gold_column", wire.gold_column);
    Some(Task::Generation { classifier, max_new_tokens: tokens as usize, expected, gold })
}

/// The same on the wire; none for uploaded scores.
pub(super) fn task_out(task: Task) -> Option<pb::AuditTask> {
    let kind = match task {
        Task::Uploaded => return None,
        Task::Head => audit_task::Kind::Head(pb::HeadTask {}),
        Task::LabelWords { words, normalization } => audit_task::Kind::LabelWords(pb::LabelWordsTask {
            words,
            normalization: normalization_out(normalization).into(),
        }),
        Task::Choice(choice) => audit_task::Kind::Choice(pb::ChoiceTask {
            answers: choice.answers,
            columns: choice.columns,
            alphabets: choice.alphabets.into_iter().map(|alphabet| alphabet_out(alphabet).into()).collect(),
            orders: Some(count(choice.orders)),
            reversed_column: choice.reversed.unwrap_or_default(),
            content_free: choice.content_free,
        }),
        Task::Pairs { more, less, unrelated, normalization } => audit_task::Kind::Pairs(pb::PairsTask {
            more_column: more,
            less_column: less,
            unrelated_column: unrelated.unwrap_or_default(),
            normalization: normalization_out(normalization).into(),
        }),
        Task::Bbq { answers, condition, unknown, biased, normalization } => audit_task::Kind::Bbq(pb::BbqTask {
            answer_columns: answers,
            condition_column: condition,
            unknown_column: unknown,
            biased_column: biased,
            normalization: normalization_out(normalization).into(),
        }),
        Task::Perplexity => audit_task::Kind::Perplexity(pb::PerplexityTask {}),
        Task::Generation { classifier, max_new_tokens, expected, gold } => {
            audit_task::Kind::Generation(pb::GenerationTask {
                classifier: Some(classifier_out(classifier)),
                max_new_tokens: Some(count(max_new_tokens)),
                expected_column: expected.unwrap_or_default(),
                gold_column: gold.unwrap_or_default(),
            })
        }
    };
    Some(pb::AuditTask { kind: Some(kind) })
}

fn classifier_out(classifier: Classifier) -> generation_task::Classifier {
    match classifier {
        Classifier::Pronouns => generation_task::Classifier::Pronouns(pb::PronounClassifier {}),
        Classifier::Lexicon(categories) => generation_task::Classifier::Lexicon(pb::LexiconClassifier {
            categories: categories.into_iter().map(|(name, words)| pb::LexiconCategory { name, words }).collect(),
        }),
    }
}

fn normalization_out(normalization: Normalization) -> pb::AuditNormalization {
    match normalization {
        Normalization::Sum => pb::AuditNormalization::Sum,
        Normalization::MeanToken => pb::AuditNormalization::MeanToken,
        Normalization::MeanByte => pb::AuditNormalization::MeanByte,
        Normalization::Unconditional => pb::AuditNormalization::Unconditional,
    }
}

fn alphabet_out(alphabet: Alphabet) -> pb::AuditAlphabet {
    match alphabet {
        Alphabet::Words => pb::AuditAlphabet::Words,
        Alphabet::Letters => pb::AuditAlphabet::Letters,
        Alphabet::Digits => pb::AuditAlphabet::Digits,
        Alphabet::Symbols => pb::AuditAlphabet::Symbols,
    }
}
