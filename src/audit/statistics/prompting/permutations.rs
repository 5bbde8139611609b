//! What becomes of answers when the options change places.
//!
//! After: Zheng et al. 2024 (PriDe, arXiv 2309.03882) for the prior of tokens and the deviation of recalls.

use std::collections::BTreeMap;

use super::{Measured, Undefined, ln, normalise};
use crate::audit::statistics::benchmarks::answer;

/// A question, asked with its options in one order.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The content at each place.
    pub content: Vec<usize>,
    /// The token that stands for each place.
    pub token: Vec<usize>,
    /// The probability of each place's token.
    pub probability: Vec<f64>,
}

impl Asked {
    /// The place that is answered; the first wins a tie.
    pub fn place(&self) -> usize {
        answer(&self.probability)
    }

    /// The probability of each content; contents must be 0, 1, 2…
    fn by_content(&self) -> Vec<f64> {
        let mut by_content = vec![0.0; self.content.len()];
        for (content, p) in self.content.iter().zip(&self.probability) {
            by_content[*content] = *p;
        }
        by_content
    }
}

/// Returns whether every content met every token, and stood at every place, equally often: only then does averaging over
/// permutations take the preference for tokens and places out. All rotations are enough.
pub fn balanced(permutations: &[Asked]) -> bool {
    let Some(options) = permutations.first().map(|asked| asked.content.len()) else { return false };
    let (mut tokens, mut places) = (BTreeMap::new(), BTreeMap::new());
    for asked in permutations {
        for (place, (content, token)) in asked.content.iter().zip(&asked.token).enumerate() {
            *tokens.entry((*content, *token)).or_insert(0_usize) += 1;
            *places.entry((*content, place)).or_insert(0_usize) += 1;
        }
    }
    let even = |counts: &BTreeMap<(usize, usize), usize>| {
        counts.len() == options * options && counts.values().all(|count| Some(count) == counts.values().next())
    };
    even(&tokens) && even(&places)
}

/// Returns the prior of tokens from questions asked in balanced permutations: for each question softmax of the mean log
/// probability of a token over permutations, then the mean over questions. A few per cent of the questions suffice.
///
/// # Errors
///
/// [`Undefined::NoRows`] without questions, [`Undefined::Unbalanced`] if one is not [`balanced`].
pub fn token_prior(questions: &[Vec<Asked>]) -> Result<Vec<f64>, Undefined> {
    let mut prior: Vec<f64> = Vec::new();
    for permutations in questions {
        if !balanced(permutations) {
            return Err(Undefined::Unbalanced);
        }
        let mut logs: BTreeMap<usize, f64> = BTreeMap::new();
        for asked in permutations {
            for (token, p) in asked.token.iter().zip(&asked.probability) {
                *logs.entry(*token).or_default() += ln(*p) / permutations.len() as f64;
            }
        }
        let most = logs.values().copied().fold(f64::NEG_INFINITY, f64::max);
        let of_question = normalise(logs.values().map(|log| (log - most).exp()).collect())?;
        prior.resize(prior.len().max(of_question.len()), 0.0);
        for (sum, p) in prior.iter_mut().zip(of_question) {
            *sum += p;
        }
    }
    if prior.is_empty() { Err(Undefined::NoRows) } else { normalise(prior) }
}

/// Returns the probabilities of contents after dividing by the prior of their tokens ([`token_prior`]).
///
/// # Errors
///
/// [`Undefined::DivisionByZero`] if a prior is 0 or nothing is probable.
pub fn debiased(asked: &Asked, prior: &[f64]) -> Result<Vec<f64>, Undefined> {
    let corrected = asked.probability.iter().zip(&asked.token).map(|(p, token)| p / prior[*token]).collect();
    normalise(Asked { probability: corrected, ..asked.clone() }.by_content())
}

/// Returns the mean probabilities of contents over permutations: the costly correction that needs no model of the bias.
///
/// # Errors
///
/// [`Undefined::NoRows`], [`Undefined::Unbalanced`] if they are not [`balanced`].
pub fn averaged(permutations: &[Asked]) -> Result<Vec<f64>, Undefined> {
    let first = permutations.first().ok_or(Undefined::NoRows)?;
    if !balanced(permutations) {
        return Err(Undefined::Unbalanced);
    }
    let mut sums = vec![0.0; first.content.len()];
    for asked in permutations {
        for (sum, p) in sums.iter_mut().zip(normalise(asked.by_content())?) {
            *sum += p / permutations.len() as f64;
        }
    }
    Ok(sums)
}

/// Returns the share of questions whose answered content is not the same in all permutations.
///
/// # Errors
///
/// [`Undefined::NoRows`] if no question was asked in two permutations.
pub fn flip_rate(questions: &[Vec<Asked>]) -> Measured {
    let (mut flipped, mut asked) = (0, 0);
    for permutations in questions.iter().filter(|permutations| permutations.len() > 1) {
        let mut contents = permutations.iter().map(|asked| asked.content[asked.place()]);
        let first = contents.next();
        flipped += usize::from(contents.any(|content| Some(content) != first));
        asked += 1;
    }
    if asked == 0 { Err(Undefined::NoRows) } else { Ok(flipped as f64 / f64::from(asked)) }
}

/// How often each token, place and content is answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChoiceRates {
    /// By token.
    pub token: Vec<f64>,
    /// By place, the first being 0.
    pub place: Vec<f64>,
    /// By content.
    pub content: Vec<f64>,
}

/// Returns how often each token, place and content is answered, over all askings alike.
///
/// # Errors
///
/// [`Undefined::NoRows`].
pub fn choice_rates(asked: &[Asked]) -> Result<ChoiceRates, Undefined> {
    if asked.is_empty() {
        return Err(Undefined::NoRows);
    }
    let mut rates = ChoiceRates::default();
    let add = |rates: &mut Vec<f64>, options: &[usize], answered: usize| {
        let needed = options.iter().max().map_or(0, |most| most + 1);
        rates.resize(rates.len().max(needed), 0.0);
        rates[answered] += 1.0 / asked.len() as f64;
    };
    for one in asked {
        let place = one.place();
        add(&mut rates.token, &one.token, one.token[place]);
        add(&mut rates.place, &(0..one.content.len()).collect::<Vec<_>>(), place);
        add(&mut rates.content, &one.content, one.content[place]);
    }
    Ok(rates)
}

/// Returns the standard deviation over tokens of the recall: how often the right content is answered when it stands
/// behind this token. 0 if tokens do not matter. `label` is the right content of each asking.
///
/// # Errors
///
/// [`Undefined::OneGroup`] if fewer than two tokens ever stood for a right content.
pub fn token_deviation(asked: &[Asked], label: &[usize]) -> Measured {
    let mut recall: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (asked, label) in asked.iter().zip(label) {
        let Some(right) = asked.content.iter().position(|content| content == label) else { continue };
        let (hits, count) = recall.entry(asked.token[right]).or_default();
        *hits += f64::from(u8::from(asked.place() == right));
        *count += 1.0;
    }
    if recall.len() < 2 {
        return Err(Undefined::OneGroup);
    }
    let recalls: Vec<f64> = recall.values().map(|(hits, count)| hits / count).collect();
    let mean = recalls.iter().sum::<f64>() / recalls.len() as f64;
    Ok((recalls.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / recalls.len() as f64).sqrt())
}
