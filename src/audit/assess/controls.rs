//! Controls of membership attacks: shuffled members, whom nobody can tell, and planted ones, who must be found.
//!
//! For the first, memberships change rows, those of the model and of its shadows together, while signals stay where they
//! are; what attacks fit is fitted anew. An attack that gets its answer from the memberships that it is given (a model
//! among its own shadows, sides of the shadows that follow those of the model) is above chance then, an attack that reads
//! it off the signals is not. An attack that fits nothing cannot fail.
//! For the second, the attacks are tried on a model that has learnt a few rows by heart, with the shadows of the model
//! that it is a control of. LiRA online is not held to it: the control was trained for longer than those shadows, and a
//! ratio of densities need not rise with φ beyond all of theirs.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::attacks::{Given, name_of};
use super::figures::Found;
use super::membership::defined;
use super::part::interval;
use super::read::Support;
use super::resample::{blocks_of, without};
use super::warnings::warning;
use super::{AssessError, Assessment, layout, overall};
use crate::audit::report::Interval;
use crate::audit::settings::{Attack, BootstrapInterval, Membership};
use crate::audit::statistics::bootstrap::{Buffers, Resampling, Sampler};
use crate::audit::statistics::distributions::normal_quantile;
use crate::audit::statistics::roc::{Ranking, Roc};
use crate::audit::table::{AttackScores, MembershipTable};

/// The level that a control is held to: it fails by chance once in a thousand audits.
const CONTROL_LEVEL: f64 = 0.999;

/// Adds the figures of both controls, and a warning where one does not come out as it must.
pub(super) fn controls(
    assessment: &mut Assessment<'_>,
    table: &MembershipTable,
    settings: &Membership,
    language: bool,
) -> Result<(), AssessError> {
    let mut failed = Vec::new();
    for model in 0..table.members.len() {
        failed.extend(shuffled(assessment, (model, Given::of(table, model, language)), settings));
    }
    if let Some(planted) = &table.planted {
        let given = Given::of_planted(table, planted, language);
        failed.extend(self::planted(assessment, (planted.model, given), settings)?);
    }
    if !failed.is_empty() {
        assessment.warnings.push(warning("controls_failed", failed.join("; ")));
    }
    Ok(())
}

/// Attacks that tell shuffled members of a model, in words.
fn shuffled(assessment: &mut Assessment<'_>, (model, given): (usize, Given<'_>), settings: &Membership) -> Vec<String> {
    let mut failed = Vec::new();
    let mut order: Vec<usize> = (0..given.members.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(assessment.settings.seed ^ 0x7368_7566_0000_0000));
    let moved = |members: &[bool]| order.iter().map(|row| members[*row]).collect::<Vec<bool>>();
    let members = moved(given.members);
    let inside: Vec<Vec<bool>> = given.inside.iter().map(|members| moved(members)).collect();
    let given = Given { members: &members, inside: &inside, ..given };
    let z = normal_quantile(1.0 - (1.0 - CONTROL_LEVEL) / 2.0);
    for scores in given.all(&settings.attacks).into_iter().flat_map(|(_, sets)| sets) {
        let (_, values, members) = defined(&scores, given.members);
        let Ok(roc) = Roc::new(&values, &members, None) else { continue };
        let n = members.len() as u64;
        let mut found = Found::new(Ok(roc.auc()), Support { n, weight: n as f64, squares: n as f64 });
        let reach = z * roc.auc_null_deviation();
        let (low, high) = ((0.5 - reach).max(0.0), (0.5 + reach).min(1.0));
        found.interval = Some(Interval { method: "null".to_owned(), level: CONTROL_LEVEL, low, high });
        let name = name_of(&scores);
        if !(low..=high).contains(&roc.auc()) {
            failed.push(format!("{name} tells shuffled members of model {model} (AUC {:.3})", roc.auc()));
        }
        assessment.figures.add(&overall(model, &format!("{name}_control_shuffled_auc")), found);
    }
    failed
}

/// Attacks that do not find the planted members, in words. One that could not find them for certain if it put all of
/// them first (so few rows have a score) is not held to it.
fn planted(
    assessment: &mut Assessment<'_>,
    (model, given): (usize, Given<'_>),
    settings: &Membership,
) -> Result<Vec<String>, AssessError> {
    let signals = given.signals.iter().map(|signal| Some(*signal)).collect();
    let signals = AttackScores { attack: Attack::Loss, parameter: None, scores: signals };
    let mut all = vec![("mia".to_owned(), signals)];
    for (attack, sets) in given.all(&settings.attacks) {
        if sets.is_empty() {
            let measure = format!("mia_{}_control_planted_auc", attack.word());
            assessment.figures.not_measured(model, &measure, "not_available");
        }
        all.extend(sets.into_iter().map(|scores| (name_of(&scores), scores)));
    }
    let z = normal_quantile(CONTROL_LEVEL);
    let mut failed = Vec::new();
    let mut held = 0;
    for (name, scores) in &all {
        let (rows, values, members) = defined(scores, given.members);
        let n = members.iter().filter(|member| **member).count().min(members.iter().filter(|member| !**member).count());
        let n = n as u64;
        let ranking = Ranking::new(&values);
        let roc = ranking.roc(&members, None);
        let auc = roc.as_ref().map(Roc::auc).map_err(|why| *why);
        let mut found = Found::new(auc, Support { n, weight: n as f64, squares: n as f64 });
        if let Ok(roc) = &roc {
            found.interval = bootstrapped(assessment, roc.auc(), (&ranking, &members), &rows)?;
            let online = matches!(scores.attack, Attack::LiraOnline | Attack::LiraOnlineFixed);
            if !online && 0.5 > z * roc.auc_null_deviation() {
                held += 1;
                if roc.auc() - 0.5 <= z * roc.auc_null_deviation() {
                    failed.push(format!("{name} does not find the planted members (AUC {:.3})", roc.auc()));
                }
            }
        }
        assessment.figures.add(&overall(model, &format!("{name}_control_planted_auc")), found);
    }
    if held == 0 {
        failed.push("there are too few rows for a planted control".to_owned());
    }
    Ok(failed)
}

/// Interval of an AUC of these rows of the table, by the resamples of all other figures.
fn bootstrapped(
    assessment: &Assessment<'_>,
    auc: f64,
    (ranking, members): (&Ranking, &[bool]),
    rows: &[u32],
) -> Result<Option<Interval>, AssessError> {
    let statistics = &assessment.settings.statistics;
    let clusters = layout::clusters(assessment.table.clusters.as_deref(), rows);
    let clusters = clusters.as_deref();
    let of = |counts: &[u16]| {
        let weights: Vec<f64> = counts.iter().map(|count| f64::from(*count)).collect();
        ranking.roc(members, Some(&weights)).map_or(f64::NAN, |roc| roc.auc())
    };
    let seed = assessment.settings.seed;
    let sampler = Sampler::new(Resampling { rows: rows.len(), clusters, strata: None, seed });
    let mut buffers = Buffers::default();
    let mut drawn = Vec::with_capacity(statistics.resamples);
    for replicate in 0..statistics.resamples {
        if replicate % 32 == 0 && (assessment.stop)() {
            return Err(AssessError::Stopped);
        }
        drawn.push(of(sampler.draw(replicate as u64, &mut buffers)));
    }
    let blocks = match statistics.interval {
        BootstrapInterval::Percentile => 0,
        BootstrapInterval::Bca => blocks_of(rows.len(), clusters),
    };
    let mut counts = Vec::new();
    let mut left_out = Vec::with_capacity(blocks);
    for block in 0..blocks {
        without((block, blocks), rows.len(), clusters, &mut counts);
        left_out.push(of(&counts));
    }
    Ok(interval(auc, drawn.into_iter(), left_out, statistics).0)
}
