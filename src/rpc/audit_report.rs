//! Reports of audits to the wire.
//!
//! Leaves nothing out: the message says what the report's JSON says, and what follows from it over seeds.

use super::audit_settings_out::{attack_out, settings_out};
use super::pb;
use super::training::settings_out as training_out;
use crate::audit::compare::{Change, Comparison};
use crate::audit::policy::ScopeKind;
use crate::audit::report::{
    Figure, Group, Interval, Model, ModelKind, Preference, Reliability, ReliabilityBin, Report, Roc, Scope, Status,
    Training,
};
use crate::audit::seeds::{self, Spread};

/// The report as a message; `id` is the digest of its JSON.
pub(super) fn report_out(id: String, report: Report) -> pb::AuditReport {
    let seeds = seeds::spreads(&report).iter().map(seeds_out).collect();
    let data = report.data;
    pb::AuditReport {
        id,
        version: report.version,
        software: report.software,
        settings: Some(settings_out(report.settings)),
        base: report.base.map(|base| pb::AuditBaseModel {
            name: base.name,
            fingerprint: base.fingerprint,
            dtype: base.dtype,
            device: base.device,
        }),
        data: Some(pb::AuditData {
            dataset: data.dataset,
            rows: data.rows,
            sha256: data.sha256,
            weight: data.weight,
            clusters: data.clusters,
            duplicates: data.duplicates,
            truncated: data.truncated,
            labels: data.labels,
        }),
        models: report.models.into_iter().map(model_out).collect(),
        groups: report.groups.into_iter().map(group_out).collect(),
        figures: report.figures.into_iter().map(figure_out).collect(),
        reliability: report.reliability.into_iter().map(reliability_out).collect(),
        rocs: report.rocs.into_iter().map(roc_out).collect(),
        preferences: report.preferences.into_iter().map(preference_out).collect(),
        tests: report.tests,
        warnings: (report.warnings.into_iter())
            .map(|warning| pb::AuditWarning { kind: warning.kind, message: warning.message })
            .collect(),
        seeds,
        matched: report.matched.map(|matched| pb::AuditUtilityMatched {
            model: matched.model,
            versus: matched.versus,
            measure: matched.measure,
            tolerance: matched.tolerance,
            difference: matched.difference,
            interval: matched.interval.map(interval_out),
            within: matched.within,
        }),
    }
}

fn seeds_out(spread: &Spread<'_>) -> pb::AuditSeedSpread {
    pb::AuditSeedSpread {
        models: spread.models.clone(),
        measure: spread.of.measure.clone(),
        scope: scope_kind_out(spread.of.scope.kind()).into(),
        attribute: spread.of.attribute.clone().unwrap_or_default(),
        class: spread.of.class.clone().unwrap_or_default(),
        n: spread.n,
        mean: spread.mean,
        standard_deviation: spread.deviation,
        minimum: spread.minimum,
        maximum: spread.maximum,
    }
}

fn interval_out(interval: Interval) -> pb::FigureInterval {
    let Interval { method, level, low, high } = interval;
    pb::FigureInterval { method, level, low, high }
}

fn model_out(model: Model) -> pb::AuditedModel {
    let kind = match model.kind {
        ModelKind::Base => pb::AuditedModelKind::Base,
        ModelKind::Adapter => pb::AuditedModelKind::Adapter,
        ModelKind::HeadOnly => pb::AuditedModelKind::HeadOnly,
        ModelKind::Full => pb::AuditedModelKind::Full,
        ModelKind::Uploaded => pb::AuditedModelKind::Uploaded,
    };
    pb::AuditedModel {
        name: model.name,
        kind: kind.into(),
        adapter: model.adapter,
        generation: model.generation,
        scale: model.scale,
        training: model.training.map(|training| {
            let Training { job, dataset, rank, alpha, layers, seed, settings, step } = training;
            // Settings of another version of this program may not be readable.
            let settings = serde_json::from_value(settings).ok().map(training_out);
            pb::AuditedTraining { job, dataset, rank, alpha, layers, seed, settings, step }
        }),
        overlap: model.overlap,
    }
}

fn group_out(group: Group) -> pb::AuditGroup {
    let Group { attribute, value, rows, weight, clusters, suppressed } = group;
    pb::AuditGroup { attribute, value, rows, weight, clusters, suppressed }
}

/// What a figure is of, and the value of its group.
fn scope_out(scope: &Scope) -> (pb::FigureScope, Option<String>) {
    (scope_kind_out(scope.kind()), scope.group().cloned().flatten())
}

/// What a rule is about, from the wire; `None` is not known.
pub(super) fn scope_kind_in(wire: i32) -> Option<ScopeKind> {
    Some(match pb::FigureScope::try_from(wire).ok()? {
        pb::FigureScope::Unspecified => return None,
        pb::FigureScope::Overall => ScopeKind::Overall,
        pb::FigureScope::Group => ScopeKind::Group,
        pb::FigureScope::Complement => ScopeKind::Complement,
        pb::FigureScope::MemberMinusRest => ScopeKind::MemberMinusRest,
        pb::FigureScope::Minimum => ScopeKind::Minimum,
        pb::FigureScope::Maximum => ScopeKind::Maximum,
        pb::FigureScope::Difference => ScopeKind::Difference,
        pb::FigureScope::Ratio => ScopeKind::Ratio,
        pb::FigureScope::DifferenceToOverall => ScopeKind::DifferenceToOverall,
        pb::FigureScope::RatioToOverall => ScopeKind::RatioToOverall,
        pb::FigureScope::Attribute => ScopeKind::Attribute,
    })
}

/// What a rule or a figure is about.
pub(super) fn scope_kind_out(scope: ScopeKind) -> pb::FigureScope {
    match scope {
        ScopeKind::Overall => pb::FigureScope::Overall,
        ScopeKind::Group => pb::FigureScope::Group,
        ScopeKind::Complement => pb::FigureScope::Complement,
        ScopeKind::MemberMinusRest => pb::FigureScope::MemberMinusRest,
        ScopeKind::Minimum => pb::FigureScope::Minimum,
        ScopeKind::Maximum => pb::FigureScope::Maximum,
        ScopeKind::Difference => pb::FigureScope::Difference,
        ScopeKind::Ratio => pb::FigureScope::Ratio,
        ScopeKind::DifferenceToOverall => pb::FigureScope::DifferenceToOverall,
        ScopeKind::RatioToOverall => pb::FigureScope::RatioToOverall,
        ScopeKind::Attribute => pb::FigureScope::Attribute,
    }
}

/// What differs between two reports.
pub(super) fn comparison_out(comparison: Comparison) -> pb::CompareAuditsResponse {
    let change = |change: Change| pb::FigureChange {
        model: change.model,
        versus: change.versus.unwrap_or_default(),
        before: change.before.map(figure_out),
        after: change.after.map(figure_out),
        change: change.change,
        apart: change.apart,
    };
    pb::CompareAuditsResponse {
        comparable: comparison.comparable,
        differences: comparison.differences,
        changes: comparison.changes.into_iter().map(change).collect(),
    }
}

fn figure_out(figure: Figure) -> pb::AuditFigure {
    let (scope, group) = scope_out(&figure.scope);
    let status = match figure.status {
        Status::Ok => pb::FigureStatus::Ok,
        Status::LowSupport => pb::FigureStatus::LowSupport,
        Status::Undefined => pb::FigureStatus::Undefined,
        Status::NotMeasured => pb::FigureStatus::NotMeasured,
        Status::Suppressed => pb::FigureStatus::Suppressed,
    };
    pb::AuditFigure {
        model: figure.model,
        versus: figure.versus,
        attribute: figure.attribute.unwrap_or_default(),
        scope: scope.into(),
        group,
        control: figure.control.map(|(column, value)| pb::FigureControl { column, value }),
        measure: figure.measure,
        class: figure.class.unwrap_or_default(),
        value: figure.value,
        status: status.into(),
        reason: figure.reason.unwrap_or_default(),
        n: figure.n,
        weight: figure.weight,
        groups_defined: figure.groups.map(|(defined, _)| defined),
        groups_total: figure.groups.map(|(_, total)| total),
        extremes: figure.extremes.into_iter().map(|value| pb::FigureGroup { value }).collect(),
        interval: figure.interval.map(interval_out),
        test: figure.test.map(|test| pb::FigureTest {
            name: test.name,
            p: test.p,
            adjusted: test.adjusted,
            null: test.null,
            detectable: test.detectable,
        }),
    }
}

fn reliability_out(diagram: Reliability) -> pb::ReliabilityDiagram {
    let (scope, group) = scope_out(&diagram.scope);
    let bin = |bin: ReliabilityBin| pb::ReliabilityBin {
        low: bin.low,
        high: bin.high,
        n: bin.n,
        confidence: bin.confidence,
        accuracy: bin.accuracy,
        accuracy_low: bin.interval.0,
        accuracy_high: bin.interval.1,
    };
    pb::ReliabilityDiagram {
        model: diagram.model,
        attribute: diagram.attribute.unwrap_or_default(),
        scope: scope.into(),
        group,
        form: diagram.form,
        bins: diagram.bins.into_iter().map(bin).collect(),
    }
}

fn roc_out(roc: Roc) -> pb::RocCurve {
    let (scope, group) = scope_out(&roc.scope);
    pb::RocCurve {
        model: roc.model,
        attribute: roc.attribute.unwrap_or_default(),
        scope: scope.into(),
        group,
        attack: attack_out(roc.attack).into(),
        parameter: roc.parameter,
        members: roc.members,
        others: roc.others,
        points: (roc.points.into_iter())
            .map(|(false_positive_rate, true_positive_rate)| pb::RocPoint { false_positive_rate, true_positive_rate })
            .collect(),
    }
}

fn preference_out(preference: Preference) -> pb::TokenPreference {
    let accuracy = preference.accuracy;
    pb::TokenPreference {
        model: preference.model,
        alphabet: preference.alphabet,
        by_token: preference.by_token,
        by_position: preference.by_position,
        by_content: preference.by_content,
        flip_rate: preference.flip_rate,
        prior: preference.prior,
        accuracy_raw: accuracy.raw,
        accuracy_calibrated: accuracy.calibrated,
        accuracy_debiased: accuracy.debiased,
        accuracy_averaged: accuracy.averaged,
        accuracy_reversed: accuracy.reversed,
        separable: preference.separable,
    }
}
