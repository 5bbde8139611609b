//! One of several answers: multiple choice, yes or no, cloze, with controls of token preference.
//!
//! Prompts. `words`: the question as it is; each answer follows it after a space (nothing after a conversation or white
//! space) and is scored. Other alphabets show the answers below the question, in the order asked,
//! ```text
//! {question}
//! A. {answer}
//! B. {answer}
//! Answer:
//! ```
//! and score the tokens ` A`, ` B`; in a conversation the last message is worded so, without `Answer:`, and the tokens stand
//! at the beginning of the assistant's turn. A prompt without content has its words in place of the question.
//! Scores are sums of log-probabilities; the raw result is the first alphabet with answers in the order given.

mod orders;
mod preference;

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{self, Alphabet, Settings};
use super::classes::Classes;
use super::plan::{Planner, Rows};
use super::{Evidence, Predicted, Reading, Results};
use crate::encode::Question;
use orders::orders;

/// Most answers of a question.
const MOST_ANSWERS: usize = 26;
/// Most orders: all of six answers.
const MOST_ORDERS: usize = 720;
/// Signs that hardly occur in text, half-filled and filled shapes.
const SYMBOLS: [&str; 12] = ["◐", "◑", "◒", "◓", "◧", "◨", "◩", "◪", "◭", "◮", "◰", "◱"];

/// Planned rows.
pub(super) struct Choices {
    classes: Classes,
    /// Whether answers are the same in all rows.
    fixed: bool,
    alphabets: Vec<Wordings>,
    rows: Vec<Planned>,
}

/// One alphabet; all rows have the same orders.
struct Wordings {
    alphabet: Alphabet,
    /// Content at each place; the first is as given.
    orders: Vec<Vec<usize>>,
}

/// Units of one row, one list an alphabet.
struct Planned(Vec<Units>);

/// Units of one row in one alphabet.
struct Units {
    /// One an order.
    straight: Vec<usize>,
    /// One an order with the question of reversed polarity; empty without one.
    reversed: Vec<usize>,
    /// One a prompt without content.
    free: Vec<usize>,
}

/// Answers of a row and where they stand.
struct Answers<'a> {
    texts: &'a [String],
    columns: &'a [String],
}

impl Choices {
    pub(super) fn plan(
        rows: &Rows<'_>,
        settings: &Settings,
        choice: &settings::Choice,
        planner: &mut Planner<'_>,
    ) -> Result<Self, AuditError> {
        let fixed = choice.columns.is_empty();
        let count = if fixed { choice.answers.len() } else { choice.columns.len() };
        check(choice, count)?;
        let classes = if fixed { Classes::of(rows, settings)? } else { Classes::numbered(rows, settings, count)? };
        if classes.names.len() != count {
            let fault = format!("{count} answers for {} labels", classes.names.len());
            return Err(setting("task.choice.answers", fault));
        }
        let places = rows.places("task.choice.columns", &choice.columns)?;
        let reversed = match &choice.reversed {
            None => None,
            Some(name) => Some(rows.columns.place("task.choice.reversed", name)?),
        };
        let wordings = |alphabet: &Alphabet| {
            // What is not shown has no order.
            let wanted = if *alphabet == Alphabet::Words { 1 } else { choice.orders };
            Wordings { alphabet: *alphabet, orders: orders(count, wanted, settings.seed) }
        };
        let alphabets: Vec<Wordings> = choice.alphabets.iter().map(wordings).collect();
        let mut planned = Vec::with_capacity(rows.rows.len());
        for i in 0..rows.rows.len() {
            let texts = if fixed { choice.answers.clone() } else { rows.texts(i, &places)? };
            let answers = Answers { texts: &texts, columns: &choice.columns };
            let question = planner.question(i)?;
            let other = reversed.map(|place| rows.columns.needed(i, place)).transpose()?;
            let other = other.map(|words| question.reworded(|_| words.to_owned()));
            let mut units = Vec::with_capacity(alphabets.len());
            for Wordings { alphabet, orders } in &alphabets {
                let mut ask = |question: &Question, order: &Vec<usize>| {
                    let (question, tokens) = worded(question, *alphabet, order, &answers);
                    let columns: Vec<String> = order.iter().filter_map(|c| answers.columns.get(*c).cloned()).collect();
                    planner.answers(i, &question, &tokens, &columns)
                };
                let straight = orders.iter().map(|order| ask(&question, order)).collect::<Result<_, _>>()?;
                let other = other.iter().flat_map(|question| orders.iter().map(move |order| (question, order)));
                let reversed = other.map(|(question, order)| ask(question, order)).collect::<Result<_, _>>()?;
                let free = choice.content_free.iter().map(|words| {
                    let empty = question.reworded(|_| words.clone());
                    ask(&empty, &orders[0])
                });
                let free = free.collect::<Result<_, _>>()?;
                units.push(Units { straight, reversed, free });
            }
            planned.push(Planned(units));
        }
        Ok(Self { classes, fixed, alphabets, rows: planned })
    }

    /// Returns scores of contents in the raw wording.
    fn raw(&self, row: usize, results: &Results) -> Vec<f64> {
        // The first order is as given: places are contents.
        results[self.rows[row].0[0].straight[0]].clone()
    }
}

impl Reading for Choices {
    fn outcomes(&self, models: &[&Results], settings: &Settings) -> Result<Predicted, AuditError> {
        let scores = |results: &&Results| (0..self.rows.len()).map(|row| self.raw(row, results)).collect();
        let outcomes = self.classes.outcomes(models.iter().map(scores));
        let level = settings.statistics.level;
        let preferences = models.iter().zip(0..).flat_map(|(results, model)| self.preferences(model, results, level));
        Ok(Predicted { outcomes, preferences: preferences.collect() })
    }

    fn evidence(&self, row: usize, results: &Results) -> Option<Evidence> {
        Some(self.classes.evidence(row, &self.raw(row, results)))
    }
}

fn check(choice: &settings::Choice, count: usize) -> Result<(), AuditError> {
    if !choice.columns.is_empty() && !choice.answers.is_empty() {
        return Err(setting("task.choice.answers", "answers stand in columns or are the same for all rows, not both"));
    }
    if !(2..=MOST_ANSWERS).contains(&count) {
        return Err(setting("task.choice.answers", format!("{count} answers, 2 to {MOST_ANSWERS} are possible")));
    }
    if let Some(same) = choice.answers.iter().enumerate().find(|(i, answer)| choice.answers[..*i].contains(answer)) {
        return Err(setting("task.choice.answers", format!("`{}` is named twice", same.1)));
    }
    if choice.alphabets.is_empty() {
        return Err(setting("task.choice.alphabets", "must name at least one alphabet"));
    }
    for (i, alphabet) in choice.alphabets.iter().enumerate() {
        if choice.alphabets[..i].contains(alphabet) {
            return Err(setting("task.choice.alphabets", format!("`{}` is named twice", name(*alphabet))));
        }
    }
    if choice.alphabets.contains(&Alphabet::Symbols) && count > SYMBOLS.len() {
        let fault = format!("{count} answers, there are {} symbols", SYMBOLS.len());
        return Err(setting("task.choice.alphabets", fault));
    }
    if !(1..=MOST_ORDERS).contains(&choice.orders) {
        return Err(setting("task.choice.orders", format!("must be from 1 to {MOST_ORDERS}")));
    }
    if choice.reversed.is_some() && count != 2 {
        return Err(setting("task.choice.reversed", format!("needs two answers, there are {count}")));
    }
    Ok(())
}

/// Returns the alphabet's name in the settings.
fn name(alphabet: Alphabet) -> &'static str {
    match alphabet {
        Alphabet::Words => "words",
        Alphabet::Letters => "letters",
        Alphabet::Digits => "digits",
        Alphabet::Symbols => "symbols",
    }
}

/// Returns the token that stands for a place.
fn token(alphabet: Alphabet, place: usize) -> String {
    match alphabet {
        Alphabet::Words => String::new(),
        Alphabet::Letters => char::from(b'A' + place as u8).to_string(),
        Alphabet::Digits => (place + 1).to_string(),
        Alphabet::Symbols => SYMBOLS[place].to_owned(),
    }
}

/// Returns what is asked, and what is scored at each place.
fn worded(question: &Question, alphabet: Alphabet, order: &[usize], answers: &Answers<'_>) -> (Question, Vec<String>) {
    if alphabet == Alphabet::Words {
        let gap = question.gap();
        return (question.clone(), order.iter().map(|content| format!("{gap}{}", answers.texts[*content])).collect());
    }
    let (gap, ending) = match question {
        Question::Text(_) => (" ", "\nAnswer:"),
        Question::Talk(_) => ("", ""),
    };
    let shown =
        |(place, content): (usize, &usize)| format!("\n{}. {}", token(alphabet, place), answers.texts[*content]);
    let list: String = order.iter().enumerate().map(shown).collect();
    let question = question.reworded(|words| format!("{words}{list}{ending}"));
    (question, (0..order.len()).map(|place| format!("{gap}{}", token(alphabet, place))).collect())
}
