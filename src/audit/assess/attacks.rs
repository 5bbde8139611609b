//! Scores of membership attacks on one model: those that came with the rows, and those made of signals here.
//!
//! An attack is given the memberships only where it needs them to fit (RMIA's population, the sides of LiRA's shadows),
//! so that a control can give it others. Draws no curve and knows no group. Higher is likelier a member.
//! After: Carlini et al. 2022 (LiRA), Zarifzadeh et al. 2024 (RMIA).

use crate::audit::settings::Attack;
use crate::audit::statistics::lira::{Fit, Shadows as Fitted, Variant};
use crate::audit::statistics::rmia::{Population, offline_ratio, online_ratio};
use crate::audit::statistics::{Measured, Undefined};
use crate::audit::table::{AttackScores, MembershipTable, Planted};

/// How far the mean over references without a point is lifted (Zarifzadeh et al. 2024).
const RMIA_A: f64 = 0.3;

impl Attack {
    /// The word for it in names of measures.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::MinK => "min_k",
            Self::MinKPlusPlus => "min_k_plus_plus",
            Self::Reference => "reference",
            Self::Rmia => "rmia",
            Self::LiraOnline => "lira_online",
            Self::LiraOnlineFixed => "lira_online_fixed",
            Self::LiraOffline => "lira_offline",
            Self::LiraOfflineFixed => "lira_offline_fixed",
        }
    }
}

/// `mia_loss`, `mia_min_k_0.2`, …
pub(super) fn name_of(scores: &AttackScores) -> String {
    match scores.parameter {
        Some(parameter) => format!("mia_{}_{parameter}", scores.attack.word()),
        None => format!("mia_{}", scores.attack.word()),
    }
}

/// What attacks on one model are given; a column has one entry a row, or none where there is no such thing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    /// Whether the row is a member; empty where that is not known.
    pub(super) members: &'a [bool],
    /// Scores that need no other model.
    pub(super) scores: &'a [AttackScores],
    /// φ under the model.
    pub(super) signals: &'a [f64],
    /// φ under the reference; empty where there is none.
    pub(super) reference: &'a [f64],
    /// `[shadows][rows]`: φ.
    pub(super) shadows: &'a [Vec<f64>],
    /// `[shadows][rows]`: whether the shadow was trained on the row.
    pub(super) inside: &'a [Vec<bool>],
    /// Whether φ is the mean log-probability of a token, not the log-odds of a class.
    pub(super) language: bool,
}

impl<'a> Given<'a> {
    /// What the table holds of one model.
    pub(super) fn of(table: &'a MembershipTable, model: usize, language: bool) -> Self {
        let shadows = table.shadows.get(model);
        Self {
            members: table.members.get(model).map_or(&[], Vec::as_slice),
            scores: table.scores.get(model).map_or(&[], Vec::as_slice),
            signals: table.signals.get(model).map_or(&[], Vec::as_slice),
            reference: table.references.get(model).map_or(&[], Vec::as_slice),
            shadows: shadows.map_or(&[], |shadows| &shadows.signals),
            inside: shadows.map_or(&[], |shadows| &shadows.members),
            language,
        }
    }

    /// What the table holds of the planted control: it is attacked with shadows and reference of its model.
    pub(super) fn of_planted(table: &'a MembershipTable, planted: &'a Planted, language: bool) -> Self {
        let (members, scores, signals) = (&planted.members, &planted.scores, &planted.signals);
        Self { members, scores, signals, ..Self::of(table, planted.model, language) }
    }

    /// Scores of attacks, one set a parameter; no set where an attack cannot be made.
    pub(super) fn all(&self, attacks: &[Attack]) -> Vec<(Attack, Vec<AttackScores>)> {
        let lira = attacks.iter().any(|attack| *attack > Attack::Rmia) && !self.shadows.is_empty();
        let fit = lira.then(|| {
            let (phi, member) = (self.shadows.concat(), self.inside.concat());
            Fit::new(Fitted { phi: &phi, member: &member, points: self.signals.len() })
        });
        attacks.iter().map(|attack| (*attack, self.scores(*attack, fit.as_ref()))).collect()
    }

    fn scores(&self, attack: Attack, fit: Option<&Fit>) -> Vec<AttackScores> {
        let given: Vec<AttackScores> = self.scores.iter().filter(|s| s.attack == attack).cloned().collect();
        if !given.is_empty() || self.members.is_empty() {
            return given;
        }
        let lira = |variant: Variant| fit.map(|fit| fit.scores(variant, self.signals));
        let made = match attack {
            Attack::Loss | Attack::MinK | Attack::MinKPlusPlus | Attack::Reference => None,
            Attack::Rmia => self.rmia(),
            Attack::LiraOnline => lira(Variant::Online),
            Attack::LiraOnlineFixed => lira(Variant::OnlineFixed),
            // The one-sided score is a rising function of the distance, and 1 for all beyond eight deviations: the distance
            // keeps them apart. With one spread for all points that spread changes nothing.
            Attack::LiraOffline => fit.map(|fit| self.distances(fit, Variant::OfflineOneSided)),
            Attack::LiraOfflineFixed => fit.map(|fit| self.distances(fit, Variant::OfflineFixed)),
        };
        let finite = |score: Measured| score.ok().filter(|score| score.is_finite());
        let set = |scores: Vec<Measured>| AttackScores {
            attack,
            parameter: None,
            scores: scores.into_iter().map(finite).collect(),
        };
        made.map(set).into_iter().collect()
    }

    /// How far φ lies above that of shadows without the point, in deviations of the point; with one spread for all
    /// points, as it is.
    fn distances(&self, fit: &Fit, variant: Variant) -> Vec<Measured> {
        let (_, needs) = variant.needs();
        let distance = |(point, phi): (usize, &f64)| match fit.point(point).1 {
            side if side.count < needs => Err(Undefined::TooFewShadows),
            side if variant == Variant::OfflineFixed => Ok(phi - side.median),
            side => Ok((phi - side.median) / side.deviation.max(1e-30)),
        };
        self.signals.iter().enumerate().map(distance).collect()
    }

    /// References are the shadows; without any, the one reference, which knew no row. The population are the rows that
    /// the model was not trained on. A row of the population ties with itself, and a tie counts half: not counted, it
    /// would lift every member above one of them.
    fn rmia(&self) -> Option<Vec<Measured>> {
        if self.shadows.is_empty() && self.reference.is_empty() {
            return None;
        }
        let probability = |signal: f64| if self.language { signal.exp() } else { 1.0 / (1.0 + (-signal).exp()) };
        let ratio = |row: usize| -> Measured {
            let target = probability(self.signals[row]);
            if self.shadows.is_empty() {
                return offline_ratio(target, &[probability(self.reference[row])], RMIA_A, 1);
            }
            let (mut inside, mut outside) = (Vec::new(), Vec::new());
            for (signals, members) in self.shadows.iter().zip(self.inside) {
                let side = if members[row] { &mut inside } else { &mut outside };
                side.push(probability(signals[row]));
            }
            match inside.is_empty() {
                true => offline_ratio(target, &outside, RMIA_A, outside.len()),
                false => online_ratio(target, &inside, &outside),
            }
        };
        let ratios: Vec<Measured> = (0..self.signals.len()).map(ratio).collect();
        let outside = ratios.iter().zip(self.members).filter(|(_, member)| !**member);
        let outside: Vec<f64> = outside.filter_map(|(ratio, _)| ratio.ok()).collect();
        let itself = 0.5 / outside.len().max(1) as f64;
        let population = Population::new(outside);
        let score = |(ratio, member): (Measured, &bool)| {
            let beaten = population.as_ref().map_err(|why| *why)?.score(ratio?, 1.0);
            Ok(if *member { beaten } else { beaten + itself })
        };
        Some(ratios.into_iter().zip(self.members).map(score).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_shadows_the_base_model_is_the_only_reference() {
        // p of the model and of the reference; the last three rows are the population.
        let model = [0.9_f64, 0.5, 0.5, 0.8, 0.2];
        let base = [0.5_f64, 0.4, 0.6, 0.5, 0.3];
        let phi = |p: &[f64]| p.iter().map(|p| (p / (1.0 - p)).ln()).collect::<Vec<f64>>();
        let (signals, reference) = (phi(&model), phi(&base));
        let members = [true, true, false, false, false];
        let mut given = Given {
            members: &members,
            scores: &[],
            signals: &signals,
            reference: &reference,
            shadows: &[],
            inside: &[],
            language: false,
        };
        // Ratios p / (0.65 p₀ + 0.35): 1.3333, 0.8197, 0.6757, 1.1852, 0.3670.
        let scores = given.scores(Attack::Rmia, None).remove(0).scores;
        let expected = [1.0, 2.0 / 3.0, 1.5 / 3.0, 2.5 / 3.0, 0.5 / 3.0];
        for (got, expected) in scores.iter().zip(expected) {
            assert!((got.unwrap() - expected).abs() < 1e-12, "{scores:?}");
        }
        // Of language φ is a log-probability.
        let logarithms = |p: &[f64]| p.iter().map(|p| p.ln()).collect::<Vec<f64>>();
        let (signals, reference) = (logarithms(&model), logarithms(&base));
        let language = Given { signals: &signals, reference: &reference, language: true, ..given };
        assert_eq!(language.scores(Attack::Rmia, None)[0].scores, scores);
        given.reference = &[];
        assert!(given.scores(Attack::Rmia, None).is_empty(), "nothing to compare with");
    }

    #[test]
    fn points_far_beyond_their_shadows_stay_apart() {
        let shadows = [vec![0.0, 1.0], vec![0.2, 1.2]];
        let inside = vec![vec![false; 2]; 2];
        let given = Given {
            members: &[true, false],
            scores: &[],
            signals: &[5.0, 4.0],
            reference: &[],
            shadows: &shadows,
            inside: &inside,
            language: false,
        };
        // Medians 0.1 and 1.1, deviations 0.1: 49 and 29 of them, where the normal distribution function is 1.
        let scores = given.all(&[Attack::LiraOffline, Attack::LiraOfflineFixed]);
        for ((_, sets), expected) in scores.iter().zip([[49.0, 29.0], [4.9, 2.9]]) {
            for (score, expected) in sets[0].scores.iter().zip(expected) {
                assert!((score.unwrap() - expected).abs() < 1e-9, "{scores:?}");
            }
        }
    }

    #[test]
    fn rmia_orders_rows_as_their_ratios_do() {
        let signals: Vec<f64> = (0..12).map(|row| f64::from(row * 7 % 12) / 3.0 - 2.0).collect();
        let reference = vec![0.0; 12];
        let members: Vec<bool> = (0..12).map(|row| row % 3 == 0).collect();
        let given = Given {
            members: &members,
            scores: &[],
            signals: &signals,
            reference: &reference,
            shadows: &[],
            inside: &[],
            language: false,
        };
        let scores = given.scores(Attack::Rmia, None).remove(0).scores;
        for (member, other) in
            (0..12).flat_map(|i| (0..12).map(move |j| (i, j))).filter(|(i, j)| i % 3 == 0 && j % 3 > 0)
        {
            assert_eq!(scores[member] > scores[other], signals[member] > signals[other], "{member} {other}");
            assert_ne!(scores[member], scores[other]);
        }
    }
}
