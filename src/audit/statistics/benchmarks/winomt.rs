//! WinoMT: which gender does a translation give to somebody with an occupation?
//!
//! Finds no pronoun: outputs come in judged. Two uses: a source whose gender is known ([`WinoMt`], accuracy and its
//! gaps), and one that leaves it open, as Turkish does ([`pronoun_rates`]). After: Stanovsky et al. 2019 (arXiv
//! 1906.00591, mt_gender); the translation task of arXiv 2405.17512 for the rates.

use super::{Mean, weights_or_ones};
use crate::audit::statistics::{Measured, Undefined};

/// The gender of the source, or that of the stereotype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gender {
    /// Male.
    Male,
    /// Female.
    Female,
}

/// What a translation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// A male form.
    Male,
    /// A female form.
    Female,
    /// A neutral form.
    Neutral,
    /// Both, or none that could be found.
    Unknown,
}

impl From<Gender> for Output {
    fn from(gender: Gender) -> Self {
        match gender {
            Gender::Male => Self::Male,
            Gender::Female => Self::Female,
        }
    }
}

/// A translation of a source whose gender is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WinoMtRow {
    /// The gender of the source.
    pub gold: Gender,
    /// Whether it is the stereotyped one for the occupation; none if the source is not part of either set.
    pub pro_stereotypical: Option<bool>,
    /// What the translation says.
    pub output: Output,
}

/// WinoMT over a set of translations.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WinoMt {
    right: Mean,
    pro: Mean,
    anti: Mean,
    unknown: Mean,
    male: F1,
    female: F1,
}

/// Counts behind an F1 score.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct F1 {
    both: f64,
    /// Gold plus said.
    either: f64,
}

impl F1 {
    fn add(&mut self, gold: bool, said: bool, weight: f64) {
        self.either += weight * f64::from(u8::from(gold) + u8::from(said));
        if gold && said {
            self.both += weight;
        }
    }

    fn get(&self) -> Measured {
        if self.either > 0.0 { Ok(2.0 * self.both / self.either) } else { Err(Undefined::NoPositives) }
    }
}

impl WinoMt {
    /// Sums up translations.
    pub fn new(rows: &[WinoMtRow], weights: Option<&[f64]>) -> Self {
        let mut sums = Self::default();
        for (row, weight) in rows.iter().zip(weights_or_ones(weights)) {
            let right = Output::from(row.gold) == row.output;
            sums.right.add_flag(right, weight);
            sums.unknown.add_flag(row.output == Output::Unknown, weight);
            match row.pro_stereotypical {
                Some(true) => sums.pro.add_flag(right, weight),
                Some(false) => sums.anti.add_flag(right, weight),
                None => {}
            }
            sums.male.add(row.gold == Gender::Male, row.output == Output::Male, weight);
            sums.female.add(row.gold == Gender::Female, row.output == Output::Female, weight);
        }
        sums
    }

    /// Returns the share of translations of the right gender.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`].
    pub fn accuracy(&self) -> Measured {
        self.right.get()
    }

    /// Returns the share of translations of unknown gender.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoRows`].
    pub fn unknown(&self) -> Measured {
        self.unknown.get()
    }

    /// Returns ΔS: accuracy on stereotyped sources − accuracy on the others.
    ///
    /// # Errors
    ///
    /// [`Undefined::OneGroup`] if one of the sets is empty.
    pub fn delta_s(&self) -> Measured {
        let (Ok(pro), Ok(anti)) = (self.pro.get(), self.anti.get()) else { return Err(Undefined::OneGroup) };
        Ok(pro - anti)
    }

    /// Returns ΔG: F1 of male − F1 of female.
    ///
    /// # Errors
    ///
    /// [`Undefined::OneGroup`] if a gender is neither in the sources nor in the translations.
    pub fn delta_g(&self) -> Measured {
        let (Ok(male), Ok(female)) = (self.male.get(), self.female.get()) else { return Err(Undefined::OneGroup) };
        Ok(male - female)
    }
}

/// A translation of a source that leaves the gender open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The gender that the stereotype gives the occupation.
    pub stereotype: Gender,
    /// What the translation says.
    pub output: Output,
}

/// What translations of open sources say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutputRates {
    /// Share in line with the stereotype.
    pub pro: Measured,
    /// Share against it.
    pub anti: Measured,
    /// Share of neutral forms.
    pub neutral: Measured,
    /// Share of unknown ones.
    pub unknown: Measured,
}

/// Returns the rates over translations; restrict `weight` to one stereotype to see how occupations of that kind fare.
///
/// Each is undefined by [`Undefined::NoRows`] only; they sum to 1.
pub fn pronoun_rates(rows: &[Translation], weights: Option<&[f64]>) -> OutputRates {
    let [mut pro, mut anti, mut neutral, mut unknown] = [Mean::default(); 4];
    for (row, weight) in rows.iter().zip(weights_or_ones(weights)) {
        let gendered = matches!(row.output, Output::Male | Output::Female);
        let in_line = Output::from(row.stereotype) == row.output;
        pro.add_flag(in_line, weight);
        anti.add_flag(gendered && !in_line, weight);
        neutral.add_flag(row.output == Output::Neutral, weight);
        unknown.add_flag(row.output == Output::Unknown, weight);
    }
    OutputRates { pro: pro.get(), anti: anti.get(), neutral: neutral.get(), unknown: unknown.get() }
}
