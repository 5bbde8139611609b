//! Policies and report summaries from the wire and back.
//!
//! Checks forms: whether a measure is one is known from the catalogue, whether a report has it is found out at the gate.

use std::time::Duration;

use super::audit_report::{scope_kind_in, scope_kind_out};
use super::audits::reference;
use super::fields::{name, timestamp};
use super::names::column;
use super::names::dataset;
use super::pb;
use super::violations::Violations;
use crate::audit::measures;
use crate::audit::policy::{Demands, Policy, Rule};
use crate::reports::{StoredPolicy, Summary};

const MAX_RULES: usize = 64;

/// Checks a policy, which is made now, and the report whose settings it asks for.
pub(super) fn policy(v: &mut Violations, wire: Option<pb::AuditPolicy>) -> Option<(StoredPolicy, Option<String>)> {
    let Some(wire) = wire else {
        v.add("policy", "must be given");
        return None;
    };
    let own = name(v, "policy.name", &wire.name);
    let audit = (!wire.audit.is_empty()).then(|| name(v, "policy.audit", &wire.audit)).flatten();
    v.require("policy.rules", (1..=MAX_RULES).contains(&wire.rules.len()), "must be 1 to 64");
    let mut rules = Vec::new();
    for (i, rule) in wire.rules.into_iter().enumerate().take(MAX_RULES) {
        rules.extend(self::rule(v, &format!("policy.rules[{i}]"), rule));
    }
    if !wire.dataset.is_empty() {
        dataset(v, "policy.dataset", &wire.dataset);
    }
    if !wire.settings_of.is_empty() {
        reference(v, "policy.settings_of", &wire.settings_of);
    }
    let usual = Demands::default();
    let level = |level: &f64| (0.5..1.0).contains(level);
    let min_level = wire.min_level.unwrap_or(usual.min_level);
    let demands = Demands {
        min_level: v.check("policy.min_level", min_level, level, "must be 0.5 to below 1"),
        min_resamples: wire.min_resamples.map_or(usual.min_resamples, u64::from),
        min_group: wire.min_group.unwrap_or(usual.min_group),
        allow_training_overlap: wire.allow_training_overlap,
        known_training: wire.require_known_training,
        like: None,
    };
    let given = |text: String| (!text.is_empty()).then_some(text);
    let stored = StoredPolicy {
        policy: Policy { name: own?.to_string(), rules, demands },
        audit: audit.map(|audit| audit.to_string()),
        dataset: given(wire.dataset),
        max_age: (wire.max_age_seconds > 0).then(|| Duration::from_secs(wire.max_age_seconds)),
        created: std::time::SystemTime::now(),
    };
    Some((stored, given(wire.settings_of)))
}

fn rule(v: &mut Violations, field: &str, wire: pb::AuditRule) -> Option<Rule> {
    v.require(&format!("{field}.measure"), measures::is_known(&wire.measure), "is not the name of a measure");
    let scope = scope_kind_in(wire.scope);
    v.require(&format!("{field}.scope"), scope.is_some(), "must be given");
    for (name, text) in [("attribute", &wire.attribute), ("class", &wire.class), ("versus", &wire.versus)] {
        if !text.is_empty() {
            column(v, &format!("{field}.{name}"), text);
        }
    }
    let finite = |bound: Option<f64>| bound.is_none_or(f64::is_finite);
    let sound = finite(wire.at_most) && finite(wire.at_least) && (wire.at_most.is_some() || wire.at_least.is_some());
    v.require(&format!("{field}.at_most"), sound, "or at_least must be given, as a finite number");
    let given = |text: String| (!text.is_empty()).then_some(text);
    Some(Rule {
        measure: wire.measure,
        scope: scope?,
        attribute: given(wire.attribute),
        class: given(wire.class),
        versus: given(wire.versus),
        at_most: wire.at_most,
        at_least: wire.at_least,
        allow_low_support: wire.allow_low_support,
    })
}

/// A policy on the wire.
pub(super) fn policy_out(stored: StoredPolicy) -> pb::AuditPolicy {
    let Demands { min_level, min_resamples, min_group, allow_training_overlap, known_training, like } =
        stored.policy.demands;
    pb::AuditPolicy {
        name: stored.policy.name,
        rules: stored.policy.rules.into_iter().map(rule_out).collect(),
        max_age_seconds: stored.max_age.map_or(0, |age| age.as_secs()),
        create_time: Some(timestamp(stored.created)),
        audit: stored.audit.unwrap_or_default(),
        dataset: stored.dataset.unwrap_or_default(),
        settings_of: like.map_or_else(String::new, |like| like.report),
        min_level: Some(min_level),
        min_resamples: Some(u32::try_from(min_resamples).unwrap_or(u32::MAX)),
        min_group: Some(min_group),
        allow_training_overlap,
        require_known_training: known_training,
    }
}

fn rule_out(rule: Rule) -> pb::AuditRule {
    pb::AuditRule {
        measure: rule.measure,
        scope: scope_kind_out(rule.scope).into(),
        attribute: rule.attribute.unwrap_or_default(),
        class: rule.class.unwrap_or_default(),
        versus: rule.versus.unwrap_or_default(),
        at_most: rule.at_most,
        at_least: rule.at_least,
        allow_low_support: rule.allow_low_support,
    }
}

/// A summary on the wire.
pub(super) fn summary_out(summary: Summary) -> pb::AuditReportSummary {
    let adapters = summary.generations.iter().map(|(adapter, generation)| format!("{adapter}@{generation}"));
    pb::AuditReportSummary {
        adapters: adapters.collect(),
        id: summary.id,
        name: summary.name,
        job: summary.job.unwrap_or_default(),
        create_time: Some(timestamp(summary.created)),
        dataset: summary.dataset,
        models: summary.models,
    }
}
