//! Settings of audits to the wire, with nothing left to defaults: what went out comes in again as the same.
//!
//! Checks nothing.

use super::audit_tasks::task_out;
use super::info::count;
use super::names::split_out;
use super::pb::{self, audit_attribute};
use crate::audit::settings::{
    Attack, Attribute, BootstrapInterval, Convention, Correction, Membership, Overlap, Settings, Source, Statistics,
    UtilityMatch,
};

/// All settings.
pub(super) fn settings_out(settings: Settings) -> pb::AuditSettings {
    let convention = match settings.convention {
        Convention::Defined => pb::AuditConvention::Defined,
        Convention::Fairlearn => pb::AuditConvention::Fairlearn,
    };
    pb::AuditSettings {
        task: task_out(settings.task),
        attributes: settings.attributes.into_iter().map(attribute_out).collect(),
        intersections: (settings.intersections.into_iter())
            .map(|attributes| pb::AuditIntersection { attributes })
            .collect(),
        control_columns: settings.controls,
        weight_column: settings.weight_column.unwrap_or_default(),
        cluster_column: settings.cluster_column.unwrap_or_default(),
        splits: settings.splits.into_iter().map(|split| split_out(split).into()).collect(),
        measures: settings.measures,
        positive_label: settings.positive.unwrap_or_default(),
        threshold: Some(settings.threshold),
        statistics: Some(statistics_out(settings.statistics)),
        calibration_bins: Some(count(settings.calibration.bins)),
        temperature: Some(settings.calibration.temperature),
        membership: settings.membership.map(membership_out),
        max_tokens: settings.max_tokens.map(count),
        allow_training_overlap: settings.overlap == Overlap::Mark,
        convention: convention.into(),
        seed: Some(settings.seed),
        utility_match: settings.utility_match.map(|UtilityMatch { reference, measure, tolerance }| {
            let reference = reference.unwrap_or_default();
            pb::AuditUtilityMatch { reference, measure, tolerance: Some(tolerance) }
        }),
    }
}

fn attribute_out(attribute: Attribute) -> pb::AuditAttribute {
    let source = match attribute.source {
        Source::Values(column) => audit_attribute::Source::ValuesColumn(column),
        Source::Flags(columns) => audit_attribute::Source::Flags(pb::FlagColumns { columns }),
        Source::List { column, separator } => audit_attribute::Source::List(pb::ListColumn { column, separator }),
    };
    pb::AuditAttribute { name: attribute.name, source: Some(source) }
}

fn statistics_out(statistics: Statistics) -> pb::AuditStatistics {
    let interval = match statistics.interval {
        BootstrapInterval::Percentile => pb::AuditInterval::Percentile,
        BootstrapInterval::Bca => pb::AuditInterval::Bca,
    };
    let correction = match statistics.correction {
        Correction::None => pb::AuditCorrection::None,
        Correction::Holm => pb::AuditCorrection::Holm,
        Correction::BenjaminiHochberg => pb::AuditCorrection::BenjaminiHochberg,
    };
    pb::AuditStatistics {
        level: Some(statistics.level),
        resamples: Some(count(statistics.resamples)),
        interval: interval.into(),
        permutations: Some(count(statistics.permutations)),
        correction: correction.into(),
        margin: statistics.margin,
        min_group: Some(statistics.min_group),
        suppress_below: statistics.suppress_below,
    }
}

fn membership_out(membership: Membership) -> pb::AuditMembership {
    pb::AuditMembership {
        attacks: membership.attacks.into_iter().map(|attack| attack_out(attack).into()).collect(),
        min_k: membership.min_k,
        false_positive_rates: membership.false_positive_rates,
        shadows: Some(count(membership.shadows)),
        shadow_fraction: Some(membership.shadow_fraction),
        planted_control: Some(membership.planted_control),
        mirrored: membership.mirrored,
    }
}

/// A membership attack.
pub(super) fn attack_out(attack: Attack) -> pb::AuditAttack {
    match attack {
        Attack::Loss => pb::AuditAttack::Loss,
        Attack::MinK => pb::AuditAttack::MinK,
        Attack::MinKPlusPlus => pb::AuditAttack::MinKPlusPlus,
        Attack::Reference => pb::AuditAttack::Reference,
        Attack::Rmia => pb::AuditAttack::Rmia,
        Attack::LiraOnline => pb::AuditAttack::LiraOnline,
        Attack::LiraOnlineFixed => pb::AuditAttack::LiraOnlineFixed,
        Attack::LiraOffline => pb::AuditAttack::LiraOffline,
        Attack::LiraOfflineFixed => pb::AuditAttack::LiraOfflineFixed,
    }
}
