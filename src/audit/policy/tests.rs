//! Tests of policies on a report made by hand: model 1 is `lora-r8`, every interval goes from value − 0.03 to value + 0.04.

use super::super::render::sample;
use super::*;

const LORA: usize = 1;

/// A report that nothing is wrong with.
fn report() -> Report {
    let mut report = sample::report();
    report.settings.convention = Convention::Defined;
    report.models.iter_mut().for_each(|model| model.overlap = model.overlap.map(|_| 0));
    report
}

fn rule(measure: &str, scope: ScopeKind) -> Rule {
    Rule {
        measure: measure.into(),
        scope,
        attribute: None,
        class: None,
        versus: None,
        at_most: None,
        at_least: None,
        allow_low_support: false,
    }
}

/// The gap of accuracy by region: 0.08 with an upper bound of 0.12.
fn gap(at_most: f64) -> Rule {
    Rule { attribute: Some("region".into()), at_most: Some(at_most), ..rule("accuracy", ScopeKind::Difference) }
}

fn policy(rules: Vec<Rule>) -> Policy {
    Policy { name: "p".into(), rules, demands: Demands::default() }
}

fn reasons(rule: Rule, report: &Report) -> Vec<String> {
    let verdict = evaluate(&policy(vec![rule]), report, LORA);
    assert_eq!(verdict.passed, verdict.reasons.is_empty());
    verdict.reasons
}

fn passes(rule: Rule, report: &Report) {
    assert_eq!(reasons(rule, report), Vec::<String>::new());
}

/// Fails with one reason, which says this.
fn fails(rule: Rule, report: &Report, text: &str) {
    let reasons = reasons(rule, report);
    assert!(reasons.len() == 1 && reasons[0].contains(text), "{text}: {reasons:?}");
}

#[test]
fn bounds_are_held_against_the_far_end_of_the_interval() {
    let report = report();
    passes(gap(0.1201), &report);
    fails(gap(0.1199), &report, "the upper bound 0.1200 is above 0.1199");
    // 0.82 − 0.03.
    let overall = |at_least| Rule { at_least: Some(at_least), ..rule("accuracy", ScopeKind::Overall) };
    passes(overall(0.7899), &report);
    fails(overall(0.7901), &report, "the lower bound 0.7900 is below 0.7901");
    let both = |at_least, at_most| Rule { at_most: Some(at_most), ..overall(at_least) };
    passes(both(0.78, 0.87), &report);
    fails(both(0.78, 0.85), &report, "upper bound");
    fails(both(0.8, 0.87), &report, "lower bound");
    fails(rule("accuracy", ScopeKind::Overall), &report, "no bound");
    fails(overall(f64::NAN), &report, "no bound");
    assert!(!evaluate(&policy(Vec::new()), &report, LORA).passed);
    // All rules have to hold, and all that does not is told.
    assert_eq!(evaluate(&policy(vec![gap(0.0), overall(1.0), gap(1.0)]), &report, LORA).reasons.len(), 2);
}

#[test]
fn a_rule_without_an_attribute_is_for_each_of_them() {
    let report = report();
    let every = |at_most| Rule { attribute: None, ..gap(at_most) };
    passes(every(0.13), &report);
    assert_eq!(reasons(every(0.1), &report).len(), 2);
    fails(Rule { attribute: Some("age".into()), ..gap(1.0) }, &report, "no such figure");
    fails(Rule { measure: "auc".into(), ..gap(1.0) }, &report, "auc over region: the report has no such figure");
    // A stratum of a control feature is not the whole: there the gap is 0.2.
    passes(gap(0.13), &report);
}

#[test]
fn a_rule_on_groups_is_for_each_of_them_and_suppressed_ones_do_not_pass() {
    let mut report = report();
    let groups = |allow_low_support| Rule {
        attribute: Some("region".into()),
        at_least: Some(0.0),
        allow_low_support,
        ..rule("accuracy", ScopeKind::Group)
    };
    let found = reasons(groups(false), &report);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("of group islands stands on 12 rows"), "{found:?}");
    assert!(found[1].contains("of group abroad is suppressed"), "{found:?}");
    fails(groups(true), &report, "of group abroad is suppressed");
    report.figures.retain(|figure| figure.status != Status::Suppressed);
    passes(groups(true), &report);
    let missing = report.figures.iter_mut().find(|figure| {
        figure.model == LORA as u32 && figure.scope == Scope::Group(None) && figure.measure == "accuracy"
    });
    missing.unwrap().interval = None;
    fails(groups(true), &report, "of group (missing) has no interval");
    let tpr = Rule { measure: "tpr".into(), ..groups(true) };
    fails(tpr, &report, "of group islands is undefined (no_positives)");
}

#[test]
fn a_class_is_asked_for_by_its_name() {
    let report = report();
    let class = |class: Option<&str>| Rule {
        class: class.map(str::to_owned),
        at_least: Some(-0.1),
        ..rule("recall", ScopeKind::MemberMinusRest)
    };
    passes(class(Some(sample::HOSTILE[2])), &report);
    fails(class(None), &report, "no such figure");
    fails(class(Some("no")), &report, "recall of class no: the report has no such figure");
    fails(Rule { at_least: Some(0.0), ..class(Some(sample::HOSTILE[2])) }, &report, "lower bound -0.0700");
}

#[test]
fn a_comparison_names_the_base_model_or_an_adapter_whatever_the_report_calls_it() {
    let mut report = report();
    // −0.01 ± against the base model.
    let versus = |name: &str, at_most| Rule { versus: Some(name.into()), ..gap(at_most) };
    passes(versus("base", 0.04), &report);
    fails(versus("base", 0.02), &report, "compared with base: the upper bound 0.0300");
    fails(versus("lora-r64", 1.0), &report, "no such figure");
    report.models[0].name = "something else".into();
    passes(versus("base", 0.04), &report);
    // An adapter that is called `base` is not the base model.
    report.models[0] = Model { name: "base".into(), ..report.models[2].clone() };
    fails(versus("base", 0.04), &report, "no such figure");
    passes(versus("lora-r64", 0.04), &report);
    report.models[0].scale = 0.5;
    fails(versus("lora-r64", 0.04), &report, "no such figure");
}

#[test]
fn rows_that_a_model_was_trained_on_are_no_evidence() {
    let mut report = report();
    report.models[LORA].overlap = Some(12);
    fails(gap(1.0), &report, "lora-r8 was trained on 12 of the 635 audited rows");
    let mut lenient = policy(vec![gap(1.0)]);
    lenient.demands.allow_training_overlap = true;
    assert!(evaluate(&lenient, &report, LORA).passed);
    // Membership inference looks for them.
    let mut attack = report.figures.iter().find(|figure| figure.model == LORA as u32).unwrap().clone();
    attack.measure = "mia_loss_auc".into();
    report.figures.push(attack);
    passes(Rule { at_most: Some(1.0), ..rule("mia_loss_auc", ScopeKind::Overall) }, &report);

    // What it is compared with must not have seen them either.
    report.models[LORA].overlap = Some(0);
    report.models[0] = Model { overlap: Some(3), name: "other".into(), ..report.models[2].clone() };
    passes(gap(1.0), &report);
    let versus = Rule { versus: Some("lora-r64".into()), ..gap(1.0) };
    fails(versus, &report, "other was trained on 3");

    report.models[LORA].overlap = None;
    passes(gap(1.0), &report);
    let mut strict = policy(vec![gap(1.0)]);
    strict.demands.known_training = true;
    assert_eq!(evaluate(&strict, &report, LORA).reasons, ["the rows that lora-r8 was trained on are not known"]);
}

#[test]
fn settings_that_make_figures_say_less_do_not_pass() {
    let mut report = report();
    report.settings.convention = Convention::Fairlearn;
    fails(gap(1.0), &report, "undefined gap is 0");
    report.settings.convention = Convention::Defined;
    report.settings.statistics.min_group = 0;
    fails(gap(1.0), &report, "takes 0 rows for enough (min_group), the policy asks for 30");
    passes(Rule { allow_low_support: true, ..gap(1.0) }, &report);
    report.settings.statistics.min_group = 30;
    report.settings.statistics.resamples = 20;
    passes(gap(1.0), &report);
    let change = |report: &mut Report, method: &str, level: f64| {
        for interval in report.figures.iter_mut().filter_map(|figure| figure.interval.as_mut()) {
            (interval.method, interval.level) = (method.into(), level);
        }
    };
    for method in ["percentile", "bca"] {
        change(&mut report, method, 0.95);
        fails(gap(1.0), &report, "20 resamples, at least 1000 are asked");
    }
    report.settings.statistics.resamples = 1000;
    passes(gap(1.0), &report);
    change(&mut report, "percentile", 0.5);
    fails(gap(1.0), &report, "the interval has level 0.5, at least 0.95 is asked");
    let mut lenient = policy(vec![gap(1.0)]);
    lenient.demands.min_level = 0.5;
    assert!(evaluate(&lenient, &report, LORA).passed);
}

#[test]
fn an_audit_may_have_to_be_made_like_another() {
    let mut report = report();
    let like = Like { report: "r1".into(), settings: report.settings.clone(), rows: report.data.sha256.clone() };
    let mut same = policy(vec![gap(1.0)]);
    same.demands.like = Some(like);
    report.settings.seed += 1;
    assert!(evaluate(&same, &report, LORA).passed);
    report.settings.threshold = 0.01;
    report.data.sha256 = "other".into();
    assert_eq!(
        evaluate(&same, &report, LORA).reasons,
        ["against report r1: settings.threshold was 0.5, is 0.01", "against report r1: other rows were audited"]
    );
}

#[test]
fn policies_from_before_demands_have_the_usual_ones() {
    let stored = serde_json::to_value(policy(vec![gap(0.1)])).unwrap();
    let mut before = stored.clone();
    before.as_object_mut().unwrap().remove("demands");
    assert_eq!(serde_json::from_value::<Policy>(before).unwrap(), policy(vec![gap(0.1)]));
    assert_eq!(serde_json::from_value::<Policy>(stored).unwrap(), policy(vec![gap(0.1)]));
}
