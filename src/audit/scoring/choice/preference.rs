//! How answers follow tokens and places instead of content, and accuracy before and after corrections.
//!
//! Asks nothing: results come in. Rows count alike, whatever their weight: this is about the model's manner, not about
//! groups. Whether content can be told from token is one verdict a model over all wordings that show answers: with two
//! fixed answers the effect is that of the positive one over the other, else that of the right one over the others.
//! After: `statistics::prompting`.

use super::super::super::report::{CorrectedAccuracy, Preference};
use super::super::super::settings::Alphabet;
use super::super::super::statistics::benchmarks::answer;
use super::super::super::statistics::prompting::{
    Asked, ContentFree, Verdict, averaged, choice_rates, content_effect, debiased, flip_rate, separation, token_prior,
};
use super::super::Results;
use super::super::classes::softmax;
use super::{Choices, Wordings, name};

impl Choices {
    /// Returns one preference an alphabet.
    pub(super) fn preferences(&self, model: u32, results: &Results, level: f64) -> Vec<Preference> {
        let separable = self.separable(results, level);
        let of = |at: usize| self.preference((model, at), results, separable);
        (0..self.alphabets.len()).map(of).collect()
    }

    fn preference(&self, (model, at): (u32, usize), results: &Results, separable: Option<bool>) -> Preference {
        let Wordings { alphabet, .. } = &self.alphabets[at];
        let shown = *alphabet != Alphabet::Words;
        let questions: Vec<Vec<Asked>> = (0..self.rows.len()).map(|row| self.asked(row, at, results, false)).collect();
        let all: Vec<Asked> = questions.concat();
        let rates = choice_rates(&all).unwrap_or_default();
        let prior = if shown { token_prior(&questions).unwrap_or_default() } else { Vec::new() };
        let right = |row: usize, probabilities: &[f64]| answer(probabilities) == self.classes.labels[row] as usize;
        let share = |hits: Option<usize>| hits.map(|hits| hits as f64 / self.rows.len().max(1) as f64);
        let count = |hit: &dyn Fn(usize) -> Option<bool>| -> Option<usize> {
            (0..self.rows.len()).try_fold(0, |hits, row| Some(hits + usize::from(hit(row)?)))
        };
        let raw = |row: usize| Some(right(row, &questions[row][0].probability));
        let free = |row: usize| {
            let corrected = self.content_free(row, at, results)?.correct(&questions[row][0].probability).ok()?;
            Some(right(row, &corrected))
        };
        let unbiased = |row: usize| {
            let prior = Some(prior.as_slice()).filter(|prior| !prior.is_empty())?;
            Some(right(row, &debiased(&questions[row][0], prior).ok()?))
        };
        let mean = |row: usize| Some(right(row, &averaged(&questions[row]).ok()?));
        let reversed = |row: usize| {
            let asked = self.asked(row, at, results, true);
            // Of two answers the other one is right.
            Some(!right(row, &asked.first()?.probability))
        };
        let accuracy = CorrectedAccuracy {
            raw: share(count(&raw)),
            calibrated: share(count(&free)),
            debiased: share(count(&unbiased)),
            averaged: if shown { share(count(&mean)) } else { None },
            reversed: share(count(&reversed)),
        };
        Preference {
            model,
            alphabet: name(*alphabet).to_owned(),
            by_token: if shown { rates.token } else { Vec::new() },
            by_position: if shown { rates.place } else { Vec::new() },
            by_content: if self.fixed { rates.content } else { Vec::new() },
            flip_rate: flip_rate(&questions).ok(),
            prior,
            accuracy,
            separable: if shown { separable } else { None },
        }
    }

    /// Returns a row's askings in one alphabet, one an order; contents are answers as given, tokens are places.
    fn asked(&self, row: usize, at: usize, results: &Results, reversed: bool) -> Vec<Asked> {
        let units = &self.rows[row].0[at];
        let units = if reversed { &units.reversed } else { &units.straight };
        let orders = &self.alphabets[at].orders;
        let one = |(unit, order): (&usize, &Vec<usize>)| Asked {
            content: order.clone(),
            token: (0..order.len()).collect(),
            probability: softmax(&results[*unit]),
        };
        units.iter().zip(orders).map(one).collect()
    }

    /// Returns the mean answer to prompts without content; none if none was asked.
    fn content_free(&self, row: usize, at: usize, results: &Results) -> Option<ContentFree> {
        let scores = || self.rows[row].0[at].free.iter().flat_map(|unit| &results[*unit]).copied();
        // Only ratios count: a common factor keeps long answers above 0.
        let most = scores().fold(f64::NEG_INFINITY, f64::max);
        let probabilities: Vec<f64> = scores().map(|score| (score - most).exp()).collect();
        ContentFree::new(&probabilities, self.classes.names.len()).ok()
    }

    /// Returns whether the content's effect can be told from that of tokens; none where too little was asked to say so.
    fn separable(&self, results: &Results, level: f64) -> Option<bool> {
        let polarities: &[bool] =
            if self.rows.iter().any(|row| !row.0[0].reversed.is_empty()) { &[false, true] } else { &[false] };
        let shown = (0..self.alphabets.len()).filter(|at| self.alphabets[*at].alphabet != Alphabet::Words);
        let wordings: Vec<(usize, bool)> = shown.flat_map(|at| polarities.iter().map(move |p| (at, *p))).collect();
        let mut effects = Vec::with_capacity(self.rows.len() * wordings.len());
        for row in 0..self.rows.len() {
            for (at, reversed) in &wordings {
                effects.push(self.effect(row, &self.asked(row, *at, results, *reversed), *reversed)?);
            }
        }
        separation(&effects, wordings.len(), level).ok().map(|found| found.verdict == Verdict::Separable)
    }

    fn effect(&self, row: usize, asked: &[Asked], reversed: bool) -> Option<f64> {
        let answers = self.classes.names.len();
        let one = match self.fixed && answers == 2 {
            true => self.classes.positive,
            false => self.classes.labels[row] as usize,
        };
        let others = (0..answers).filter(|other| *other != one);
        let effects = others.map(|other| content_effect(asked, one, other).ok()).collect::<Option<Vec<f64>>>()?;
        let mean = effects.iter().sum::<f64>() / effects.len().max(1) as f64;
        Some(if reversed { -mean } else { mean })
    }
}
