//! Settings of audits from the wire: every field is checked here, once.
//!
//! No data set or model is asked: what depends on them is found out when the job runs. Ranges are those written in
//! `proto/evenkeel/v1/audit_settings.proto`. The way back is `audit_settings_out`.

use super::audit_tasks::task;
use super::names::{all_differ, column, columns, enumerated, splits};
use super::pb::{self, audit_attribute};
use super::violations::Violations;
use crate::audit::assess::{Shape, unknown_measures};
use crate::audit::measures;
use crate::audit::settings::{
    Attack, Attribute, BootstrapInterval, Calibration, Convention, Correction, Membership, Overlap, Settings, Source,
    Statistics, Task, UtilityMatch,
};

const MAX_ATTRIBUTES: usize = 32;
const MAX_INTERSECTIONS: usize = 16;
const MAX_CONTROLS: usize = 8;
const MAX_MEASURES: usize = 256;
const MAX_DRAWS: u32 = 100_000;
const MAX_LIST: usize = 8;
const MAX_SHADOWS: u32 = 256;

const DEFAULT_SEED: u64 = 42;
const DEFAULT_DRAWS: u32 = 1000;
const DEFAULT_MIN_GROUP: u64 = 30;
const DEFAULT_TOLERANCE: f64 = 0.01;

/// All attacks, cheapest first.
const ALL: [Attack; 9] = [
    Attack::Loss,
    Attack::MinK,
    Attack::MinKPlusPlus,
    Attack::Reference,
    Attack::Rmia,
    Attack::LiraOnline,
    Attack::LiraOnlineFixed,
    Attack::LiraOffline,
    Attack::LiraOfflineFixed,
];

/// Checks settings; `context` is the longest sequence of the model. Fields are named below `settings`.
pub(super) fn settings(v: &mut Violations, wire: Option<pb::AuditSettings>, context: usize) -> Option<Settings> {
    let Some(wire) = wire else {
        v.add("settings", "must be given");
        return None;
    };
    let task = task(v, wire.task.clone());
    // How many labels there are, and of which kind, the data set says: see `jobs`.
    let shapes = match &task {
        None => Vec::new(),
        Some(Task::Head) => vec![Shape::Classes(2), Shape::Classes(3), Shape::Labels(2)],
        Some(task) => vec![Shape::of(task, 0, false)],
    };
    let settings = common(v, wire, context, task)?;
    of_shapes(v, &settings, &shapes);
    Some(settings)
}

/// Checks the settings of uploaded scores, whose rows and groups come with them.
pub(super) fn uploaded(
    v: &mut Violations,
    wire: Option<pb::AuditSettings>,
    (classes, multi_label): (usize, bool),
) -> Option<Settings> {
    let settings = common(v, wire.unwrap_or_default(), 1, Some(Task::Uploaded))?;
    of_shapes(v, &settings, &[Shape::of(&Task::Uploaded, classes, multi_label)]);
    Some(settings)
}

/// Refuses measures that there are, but of none of the shapes.
fn of_shapes(v: &mut Violations, settings: &Settings, shapes: &[Shape]) {
    let utility = settings.utility_match.as_ref().map(|asked| &asked.measure);
    let unknown = unknown_measures(settings, shapes).into_iter();
    let unknown = unknown.map(|(place, why)| (place, &settings.measures[place], why));
    for (place, _, why) in unknown.filter(|(_, name, _)| measures::is_known(name) && utility != Some(*name)) {
        v.add(format!("settings.measures[{place}]"), why);
    }
    let alone = Settings { measures: utility.into_iter().cloned().collect(), ..settings.clone() };
    for (_, why) in
        unknown_measures(&alone, shapes).into_iter().filter(|_| utility.is_some_and(|u| measures::is_known(u)))
    {
        v.add("settings.utility_match.measure", why);
    }
}

fn common(v: &mut Violations, wire: pb::AuditSettings, context: usize, task: Option<Task>) -> Option<Settings> {
    let attributes = attributes(v, wire.attributes);
    let intersections = intersections(v, wire.intersections, &attributes);
    columns(v, "settings.control_columns", &wire.control_columns, 0..=MAX_CONTROLS);
    for (field, name) in
        [("settings.weight_column", &wire.weight_column), ("settings.cluster_column", &wire.cluster_column)]
    {
        if !name.is_empty() {
            column(v, field, name);
        }
    }
    let splits = splits(v, "settings.splits", &wire.splits);
    v.require("settings.measures", wire.measures.len() <= MAX_MEASURES, "must be at most 256 names");
    for (i, name) in wire.measures.iter().enumerate().take(MAX_MEASURES) {
        v.require(&format!("settings.measures[{i}]"), measures::is_known(name), "is not the name of a measure");
    }
    let positive = wire.positive_label;
    v.require("settings.positive_label", positive.len() <= 1024, "must be at most 1024 bytes");
    let share = |x: &f64| (0.0..=1.0).contains(x);
    let threshold = v.check("settings.threshold", wire.threshold.unwrap_or(0.5), share, "must be 0 to 1");
    let bins = wire.calibration_bins.unwrap_or(10);
    v.require("settings.calibration_bins", (2..=100).contains(&bins), "must be 2 to 100");
    let longest = u32::try_from(context).unwrap_or(u32::MAX);
    let least = if context > 1 { 2 } else { 1 };
    let rule = format!("must be {least} to {longest}, the context of the model");
    let sound = wire.max_tokens.is_none_or(|tokens| (least..=longest).contains(&tokens));
    v.require("settings.max_tokens", sound, &rule);
    let convention = enumerated(v, "settings.convention", wire.convention, |known| match known {
        pb::AuditConvention::Unspecified | pb::AuditConvention::Defined => Convention::Defined,
        pb::AuditConvention::Fairlearn => Convention::Fairlearn,
    });
    let statistics = statistics(v, wire.statistics.unwrap_or_default());
    let membership = wire.membership.map(|membership| self::membership(v, membership, task.as_ref()));
    let utility_match = wire.utility_match.map(|asked| utility_match(v, asked));
    let mut measures = wire.measures;
    if let Some(asked) =
        utility_match.as_ref().filter(|asked| !measures.is_empty() && !measures.contains(&asked.measure))
    {
        measures.push(asked.measure.clone());
    }
    Some(Settings {
        task: task?,
        attributes,
        intersections,
        controls: wire.control_columns,
        weight_column: (!wire.weight_column.is_empty()).then_some(wire.weight_column),
        cluster_column: (!wire.cluster_column.is_empty()).then_some(wire.cluster_column),
        splits,
        measures,
        positive: (!positive.is_empty()).then_some(positive),
        threshold,
        statistics: statistics?,
        calibration: Calibration { bins: bins as usize, temperature: wire.temperature.unwrap_or(true) },
        membership: match membership {
            None => None,
            Some(sound) => Some(sound?),
        },
        max_tokens: wire.max_tokens.map(|tokens| tokens as usize),
        overlap: if wire.allow_training_overlap { Overlap::Mark } else { Overlap::Refuse },
        convention: convention?,
        seed: wire.seed.unwrap_or(DEFAULT_SEED),
        utility_match,
    })
}

fn utility_match(v: &mut Violations, wire: pb::AuditUtilityMatch) -> UtilityMatch {
    let field = "settings.utility_match";
    let measure = if wire.measure.is_empty() { "accuracy".to_owned() } else { wire.measure };
    v.require(&format!("{field}.measure"), measures::is_known(&measure), "is not the name of a measure");
    let sound = |tolerance: &f64| *tolerance > 0.0 && tolerance.is_finite();
    let tolerance = wire.tolerance.unwrap_or(DEFAULT_TOLERANCE);
    let tolerance = v.check(&format!("{field}.tolerance"), tolerance, sound, "must be a finite number above 0");
    let reference = (!wire.reference.is_empty()).then_some(wire.reference);
    UtilityMatch { reference, measure, tolerance }
}

/// Checks that the model to be as useful as is one of those that are audited.
pub(super) fn reference<'m>(v: &mut Violations, settings: &Settings, models: impl IntoIterator<Item = &'m str>) {
    let named = settings.utility_match.as_ref().and_then(|asked| asked.reference.as_deref());
    let sound = named.is_none_or(|named| models.into_iter().any(|model| model == named));
    v.require("settings.utility_match.reference", sound, "is not the name of a model");
}

fn attributes(v: &mut Violations, wire: Vec<pb::AuditAttribute>) -> Vec<Attribute> {
    v.require("settings.attributes", wire.len() <= MAX_ATTRIBUTES, "must be at most 32");
    let mut attributes = Vec::new();
    for (i, attribute) in wire.into_iter().enumerate().take(MAX_ATTRIBUTES) {
        let field = format!("settings.attributes[{i}]");
        let (source, default) = match attribute.source {
            None => {
                v.add(format!("{field}.source"), "must be one of values_column, flags and list");
                continue;
            }
            Some(audit_attribute::Source::ValuesColumn(name)) => {
                column(v, &format!("{field}.values_column"), &name);
                (Source::Values(name.clone()), name)
            }
            Some(audit_attribute::Source::Flags(flags)) => {
                columns(v, &format!("{field}.flags.columns"), &flags.columns, 1..=256);
                (Source::Flags(flags.columns), String::new())
            }
            Some(audit_attribute::Source::List(list)) => {
                column(v, &format!("{field}.list.column"), &list.column);
                v.require(&format!("{field}.list.separator"), list.separator.len() <= 16, "must be at most 16 bytes");
                let separator = if list.separator.is_empty() { "|".to_owned() } else { list.separator };
                (Source::List { column: list.column.clone(), separator }, list.column)
            }
        };
        let name = if attribute.name.is_empty() { default } else { attribute.name };
        column(v, &format!("{field}.name"), &name);
        attributes.push(Attribute { name, source });
    }
    let names: Vec<&String> = attributes.iter().map(|attribute| &attribute.name).collect();
    v.require("settings.attributes", all_differ(&names), "must have different names");
    attributes
}

fn intersections(v: &mut Violations, wire: Vec<pb::AuditIntersection>, known: &[Attribute]) -> Vec<Vec<String>> {
    v.require("settings.intersections", wire.len() <= MAX_INTERSECTIONS, "must be at most 16");
    for (i, intersection) in wire.iter().enumerate().take(MAX_INTERSECTIONS) {
        let names = &intersection.attributes;
        let there = names.iter().all(|name| known.is_empty() || known.iter().any(|attribute| attribute.name == *name));
        let sound = (2..=3).contains(&names.len()) && all_differ(names) && there;
        let field = format!("settings.intersections[{i}].attributes");
        v.require(&field, sound, "must be two or three different names of attributes");
    }
    wire.into_iter().map(|intersection| intersection.attributes).collect()
}

fn statistics(v: &mut Violations, wire: pb::AuditStatistics) -> Option<Statistics> {
    let draws = |v: &mut Violations, field: &str, draws: Option<u32>| {
        let rule = "must be 0 to 100000";
        v.check(field, draws.unwrap_or(DEFAULT_DRAWS), |draws| *draws <= MAX_DRAWS, rule) as usize
    };
    let level = wire.level.unwrap_or(0.95);
    let interval = enumerated(v, "settings.statistics.interval", wire.interval, |known| match known {
        pb::AuditInterval::Unspecified | pb::AuditInterval::Percentile => BootstrapInterval::Percentile,
        pb::AuditInterval::Bca => BootstrapInterval::Bca,
    });
    let correction = enumerated(v, "settings.statistics.correction", wire.correction, |known| match known {
        pb::AuditCorrection::None => Correction::None,
        pb::AuditCorrection::Unspecified | pb::AuditCorrection::Holm => Correction::Holm,
        pb::AuditCorrection::BenjaminiHochberg => Correction::BenjaminiHochberg,
    });
    let rule = "must be 0.5 to below 1";
    let level = v.check("settings.statistics.level", level, |level| (0.5..1.0).contains(level), rule);
    let share = |x: &f64| (0.0..=1.0).contains(x);
    Some(Statistics {
        level,
        resamples: draws(v, "settings.statistics.resamples", wire.resamples),
        interval: interval?,
        permutations: draws(v, "settings.statistics.permutations", wire.permutations),
        correction: correction?,
        margin: v.check("settings.statistics.margin", wire.margin, share, "must be 0 to 1"),
        min_group: wire.min_group.unwrap_or(DEFAULT_MIN_GROUP),
        suppress_below: wire.suppress_below,
    })
}

/// Whether an attack is one by default: Min-K% looks at the tokens of texts, the base model has no head to compare with
/// as a rule, and LiRA needs shadows.
fn is_default(attack: Attack, task: Option<&Task>, shadows: u32) -> bool {
    match attack {
        Attack::Loss => true,
        Attack::MinK | Attack::MinKPlusPlus => task == Some(&Task::Perplexity),
        Attack::Reference => task != Some(&Task::Head),
        Attack::Rmia => shadows > 0 || task != Some(&Task::Head),
        Attack::LiraOnline | Attack::LiraOnlineFixed | Attack::LiraOffline | Attack::LiraOfflineFixed => shadows > 0,
    }
}

pub(super) fn membership(v: &mut Violations, wire: pb::AuditMembership, task: Option<&Task>) -> Option<Membership> {
    let shadows = wire.shadows.unwrap_or(0);
    v.require("settings.membership.shadows", shadows <= MAX_SHADOWS, "must be 0 to 256");
    let mut attacks = Vec::new();
    for (i, attack) in wire.attacks.iter().enumerate().take(ALL.len() + 1) {
        let field = format!("settings.membership.attacks[{i}]");
        let known = enumerated(v, &field, *attack, attack_in).flatten();
        v.require(&field, known.is_some(), "must be an attack");
        attacks.extend(known);
    }
    v.require("settings.membership.attacks", all_differ(&wire.attacks), "must be different attacks");
    // What can be done with an upload is seen when it has come.
    let uploaded = task == Some(&Task::Uploaded);
    if wire.attacks.is_empty() && !uploaded {
        attacks = ALL.into_iter().filter(|attack| is_default(*attack, task, shadows)).collect();
    }
    attacks.sort_unstable();
    // RMIA takes the base model as its reference where there are no shadows.
    let lira = attacks.iter().any(|attack| *attack > Attack::Rmia);
    v.require("settings.membership.attacks", !lira || shadows > 0 || uploaded, "LiRA needs `shadows`");
    let tokens = attacks.iter().any(|attack| matches!(attack, Attack::MinK | Attack::MinKPlusPlus));
    let texts = !tokens || matches!(task, Some(Task::Perplexity) | None);
    v.require("settings.membership.attacks", texts, "Min-K% looks at the tokens of texts: the task must be perplexity");
    let rule = "must be at most 8 different shares, above 0 and at most 1";
    let min_k = list(v, ("settings.membership.min_k", rule), wire.min_k, 1.0, &[0.2]);
    let rule = "must be at most 8 different rates, above 0 and at most 0.5";
    let rates = ("settings.membership.false_positive_rates", rule);
    let false_positive_rates = list(v, rates, wire.false_positive_rates, 0.5, &[0.1, 0.01, 0.001]);
    let fraction = wire.shadow_fraction.unwrap_or(0.5);
    let open = |x: &f64| *x > 0.0 && *x < 1.0;
    let shadow_fraction = v.check("settings.membership.shadow_fraction", fraction, open, "must be above 0 and below 1");
    Some(Membership {
        attacks,
        min_k,
        false_positive_rates,
        shadows: shadows as usize,
        shadow_fraction,
        planted_control: wire.planted_control.unwrap_or(shadows > 0) && !uploaded,
        mirrored: wire.mirrored,
    })
}

fn list(v: &mut Violations, field: (&str, &str), wire: Vec<f64>, most: f64, default: &[f64]) -> Vec<f64> {
    if wire.is_empty() {
        return default.to_vec();
    }
    let bits: Vec<u64> = wire.iter().map(|x| x.to_bits()).collect();
    let sound = wire.len() <= MAX_LIST && wire.iter().all(|x| *x > 0.0 && *x <= most) && all_differ(&bits);
    v.require(field.0, sound, field.1);
    wire
}

fn attack_in(wire: pb::AuditAttack) -> Option<Attack> {
    match wire {
        pb::AuditAttack::Unspecified => None,
        pb::AuditAttack::Loss => Some(Attack::Loss),
        pb::AuditAttack::MinK => Some(Attack::MinK),
        pb::AuditAttack::MinKPlusPlus => Some(Attack::MinKPlusPlus),
        pb::AuditAttack::Reference => Some(Attack::Reference),
        pb::AuditAttack::Rmia => Some(Attack::Rmia),
        pb::AuditAttack::LiraOnline => Some(Attack::LiraOnline),
        pb::AuditAttack::LiraOnlineFixed => Some(Attack::LiraOnlineFixed),
        pb::AuditAttack::LiraOffline => Some(Attack::LiraOffline),
        pb::AuditAttack::LiraOfflineFixed => Some(Attack::LiraOfflineFixed),
    }
}
