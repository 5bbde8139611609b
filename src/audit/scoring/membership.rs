//! What attacks on membership need: who is a member, scores of the simple attacks, signals of models and shadows.
//!
//! Draws no curve and fits no shadow: that is `statistics`. A row is a member of a model if its hash is among those that
//! the model was trained on; a model whose training rows are not known gets no members and no scores.
//! Units: natural logarithms; higher is likelier a member.

use std::collections::BTreeSet;

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{Attack, Membership, Settings, Task};
use super::super::table::{AttackScores, MembershipTable, Planted, Shadows};
use super::compute::Detail;
use super::passes::Passes;
use super::{Evidence, Reading, Results, Subject};

/// Refuses what the task does not bear.
pub(super) fn check(asked: &Membership, settings: &Settings, subjects: &[Subject]) -> Result<(), AuditError> {
    match settings.task {
        Task::Head | Task::LabelWords { .. } | Task::Choice(_) | Task::Perplexity => {}
        Task::Pairs { .. } | Task::Bbq { .. } | Task::Generation { .. } | Task::Uploaded => {
            return Err(setting("membership", "the task has no true answer to look for a trace of"));
        }
    }
    if asked.attacks.is_empty() {
        return Err(setting("membership.attacks", "must name at least one attack"));
    }
    let by_token = asked.attacks.iter().any(|attack| matches!(attack, Attack::MinK | Attack::MinKPlusPlus));
    if by_token && settings.task != Task::Perplexity {
        return Err(setting("membership.attacks", "Min-K% looks at the tokens of texts: the task must be perplexity"));
    }
    if by_token && asked.min_k.is_empty() {
        return Err(setting("membership.min_k", "must have at least one share"));
    }
    if asked.min_k.iter().any(|share| !(*share > 0.0 && *share <= 1.0)) {
        return Err(setting("membership.min_k", "shares must be above 0 and at most 1"));
    }
    if subjects.iter().all(|subject| subject.trained_on.is_none()) {
        return Err(setting("membership", "the training rows of none of the models are known"));
    }
    Ok(())
}

/// Returns what is to be kept of each text.
pub(super) fn detail(settings: &Settings) -> Detail {
    let shares = |attack: Attack| match &settings.membership {
        Some(asked) if asked.attacks.contains(&attack) => asked.min_k.clone(),
        Some(_) | None => Vec::new(),
    };
    Detail { min_k: shares(Attack::MinK), plus_plus: shares(Attack::MinKPlusPlus) }
}

/// Fills the table; `hashes` are those of the rows, `results` those of the passes.
pub(super) fn table(
    reading: &dyn Reading,
    (settings, subjects): (&Settings, &[Subject]),
    hashes: &[[u8; 32]],
    passes: &Passes,
    results: &[Vec<Vec<f64>>],
) -> Option<MembershipTable> {
    let asked = settings.membership.as_ref()?;
    let inside = |trained_on: &BTreeSet<[u8; 32]>| -> Vec<bool> {
        hashes.iter().map(|hash| trained_on.contains(hash)).collect()
    };
    let evidence = |pass: usize| -> Option<Vec<Evidence>> {
        (0..hashes.len()).map(|row| reading.evidence(row, &results[pass])).collect()
    };
    let signals = |pass: usize| Some(evidence(pass)?.iter().map(|evidence| evidence.signal).collect::<Vec<f64>>());
    let base = passes.base.map(|pass| evidence(pass).map(|found| (pass, found)));
    let base = match base {
        Some(found) => Some(found?),
        None => None,
    };
    let mut table = MembershipTable {
        members: Vec::new(),
        scores: Vec::new(),
        signals: Vec::new(),
        references: Vec::new(),
        shadows: Vec::new(),
        planted: None,
    };
    for (i, subject) in subjects.iter().enumerate() {
        let own = evidence(i)?;
        let known = subject.trained_on.as_deref();
        let reference = base.as_ref().filter(|(pass, _)| *pass != i).map(|(_, base)| base.as_slice());
        table.members.push(known.map(inside).unwrap_or_default());
        table.scores.push(match known {
            None => Vec::new(),
            Some(_) => attacks(asked, &detail(settings), (&own, reference), &results[i]),
        });
        let of_reference = reference.filter(|_| known.is_some()).unwrap_or_default();
        table.references.push(of_reference.iter().map(|evidence| evidence.signal).collect());
        table.signals.push(own.iter().map(|evidence| evidence.signal).collect());
        let mut shadows = Shadows::default();
        for (shadow, pass) in subject.shadows.iter().zip(&passes.shadows[i]) {
            shadows.signals.push(signals(*pass)?);
            shadows.members.push(inside(&shadow.trained_on));
        }
        table.shadows.push(shadows);
    }
    if let Some((pass, subject)) = passes.planted
        && let Some(planted) = &subjects[subject].planted
    {
        let own = evidence(pass)?;
        let reference = base.as_ref().map(|(_, base)| base.as_slice());
        table.planted = Some(Planted {
            model: subject,
            members: inside(&planted.trained_on),
            scores: attacks(asked, &detail(settings), (&own, reference), &results[pass]),
            signals: own.iter().map(|evidence| evidence.signal).collect(),
        });
    }
    Some(table)
}

/// Scores of attacks that need no shadows, in the order asked; a model is no reference for itself.
fn attacks(
    asked: &Membership,
    detail: &Detail,
    (own, base): (&[Evidence], Option<&[Evidence]>),
    results: &Results,
) -> Vec<AttackScores> {
    let mut all = Vec::new();
    // Min-K% follow sum and number of a text, Min-K%++ follow them.
    let by_token = |attack: Attack, shares: &[f64], from: usize| -> Vec<AttackScores> {
        let of = |(at, share): (usize, &f64)| {
            let score = |evidence: &Evidence| results[evidence.text?].get(from + at).copied().filter(|s| s.is_finite());
            AttackScores { attack, parameter: Some(*share), scores: own.iter().map(score).collect() }
        };
        shares.iter().enumerate().map(of).collect()
    };
    for attack in &asked.attacks {
        let plain = |scores| vec![AttackScores { attack: *attack, parameter: None, scores }];
        all.extend(match attack {
            Attack::Loss => plain(own.iter().map(|evidence| Some(evidence.log_probability)).collect()),
            Attack::Reference => plain(match base {
                None => vec![None; own.len()],
                Some(base) => own.iter().zip(base).map(|(o, b)| Some(o.log_probability - b.log_probability)).collect(),
            }),
            Attack::MinK => by_token(*attack, &detail.min_k, 2),
            Attack::MinKPlusPlus => by_token(*attack, &detail.plus_plus, 2 + detail.min_k.len()),
            Attack::Rmia
            | Attack::LiraOnline
            | Attack::LiraOnlineFixed
            | Attack::LiraOffline
            | Attack::LiraOfflineFixed => Vec::new(),
        });
    }
    all
}
