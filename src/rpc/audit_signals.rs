//! Membership of uploaded scores: which attacks the signals that came can bear.
//!
//! Settled when the whole stream is there, since signals of shadows may come last. Values are checked by
//! `audit::uploaded`.

use tonic::Status;

use super::audit_settings;
use super::pb;
use super::status::{self, Reason};
use super::violations::Violations;
use crate::audit::settings::{Attack, Membership, Settings, Task};
use crate::audit::uploaded::{Uploaded, UploadedSignals};

/// Attacks that take nothing but signals.
const OF_SIGNALS: [Attack; 7] = [
    Attack::Loss,
    Attack::Reference,
    Attack::Rmia,
    Attack::LiraOnline,
    Attack::LiraOnlineFixed,
    Attack::LiraOffline,
    Attack::LiraOfflineFixed,
];

/// Whether the signals of a model bear an attack.
fn bears(signals: &UploadedSignals, attack: Attack) -> bool {
    let (shadows, reference) = (!signals.shadow_signals.is_empty(), !signals.reference_signals.is_empty());
    match attack {
        Attack::Loss => true,
        Attack::MinK | Attack::MinKPlusPlus => false,
        Attack::Reference => reference,
        Attack::Rmia => reference || shadows,
        Attack::LiraOnline | Attack::LiraOnlineFixed | Attack::LiraOffline | Attack::LiraOfflineFixed => shadows,
    }
}

/// Fills in the attacks that were not named: all that the signals of some model bear. Members and signals are audited
/// whether or not the settings spoke of membership.
///
/// # Errors
/// SCORES_INVALID where membership is asked and no members came, or nothing that a named attack needs.
pub(super) fn settle(settings: &mut Settings, uploaded: &Uploaded) -> Result<(), Status> {
    let refused = |field: &str, text: &str| Err(status::field(Reason::ScoresInvalid, field, text));
    let Some(signals) = &uploaded.membership else {
        return match settings.membership {
            None => Ok(()),
            Some(_) => refused("models[0].members", "must be sent where `settings.membership` is given"),
        };
    };
    let default = || {
        audit_settings::membership(&mut Violations::default(), pb::AuditMembership::default(), Some(&Task::Uploaded))
    };
    let Some(mut asked) = settings.membership.take().or_else(default) else { return Ok(()) };
    let some_bears = |attack: Attack| signals.models.iter().any(|model| bears(model, attack));
    if let Some(attack) = asked.attacks.iter().find(|attack| !some_bears(**attack)) {
        return match attack {
            Attack::Reference => refused("models[0].reference_signals", "must be sent for the attack REFERENCE"),
            Attack::Rmia => refused("models[0].reference_signals", "or shadows must be sent for the attack RMIA"),
            Attack::Loss
            | Attack::MinK
            | Attack::MinKPlusPlus
            | Attack::LiraOnline
            | Attack::LiraOnlineFixed
            | Attack::LiraOffline
            | Attack::LiraOfflineFixed => refused("shadows", "must be sent for LiRA"),
        };
    }
    if asked.attacks.is_empty() {
        asked.attacks = OF_SIGNALS.into_iter().filter(|attack| some_bears(*attack)).collect();
    }
    let shadows = signals.models.iter().map(|model| model.shadow_signals.len()).max().unwrap_or(0);
    settings.membership = Some(Membership { shadows, ..asked });
    Ok(())
}
