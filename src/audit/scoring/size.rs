//! How many bytes the scores of an audit take, before there are any.
//!
//! From above: rows of the same content share their units. Counts what a checkpoint holds, which is what is in memory too.
//! Units: bytes.

use super::super::settings::{Alphabet, Attack, Normalization, Settings, Task};

/// Bytes of a number, and of the length of a unit's result.
const NUMBER: u64 = 8;

/// Returns the most bytes that one model's scores of one row take; `labels` is the number of the data set's labels.
#[must_use]
pub fn score_bytes(settings: &Settings, labels: usize) -> u64 {
    let alone = |normalization: &Normalization| u64::from(*normalization == Normalization::Unconditional);
    // Units of a row, and numbers of each.
    let units: Vec<(u64, u64)> = match &settings.task {
        Task::Head => {
            let both = settings.membership.as_ref().is_some_and(|asked| asked.mirrored);
            vec![(1 + u64::from(both), labels as u64)]
        }
        Task::LabelWords { words, normalization } => {
            let words = words.len() as u64;
            vec![(1, words), (alone(normalization) * words, 1)]
        }
        Task::Choice(choice) => {
            let answers = choice.columns.len().max(choice.answers.len()) as u64;
            let polarities = 1 + u64::from(choice.reversed.is_some());
            let askings = |alphabet: &Alphabet| {
                let orders = if *alphabet == Alphabet::Words { 1 } else { choice.orders as u64 };
                (orders * polarities + choice.content_free.len() as u64, answers)
            };
            choice.alphabets.iter().map(askings).collect()
        }
        Task::Pairs { unrelated, .. } => vec![(1, 2 + u64::from(unrelated.is_some()))],
        Task::Bbq { answers, normalization, .. } => {
            let answers = answers.len() as u64;
            vec![(1, answers), (alone(normalization) * answers, 1)]
        }
        Task::Perplexity => vec![(1, 2 + by_token(settings))],
        Task::Generation { max_new_tokens, .. } => vec![(1, *max_new_tokens as u64)],
        Task::Uploaded => Vec::new(),
    };
    units.into_iter().map(|(units, numbers)| units * (1 + numbers) * NUMBER).sum()
}

/// Numbers that attacks want of each text.
fn by_token(settings: &Settings) -> u64 {
    let Some(asked) = &settings.membership else { return 0 };
    let of = |attack: Attack| if asked.attacks.contains(&attack) { asked.min_k.len() as u64 } else { 0 };
    of(Attack::MinK) + of(Attack::MinKPlusPlus)
}
