//! Tests of reports and policies on a real store.

use super::*;
use crate::audit::policy::{Demands, Rule, ScopeKind};
use crate::audit::report::{BaseModel, Data, Figure, Interval, Model, ModelKind, Scope, Status, VERSION};
use crate::audit::settings::{
    Attribute, BootstrapInterval, Calibration, Convention, Correction, Overlap, Settings, Source, Statistics, Task,
};
use crate::metrics::ADAPTER_LABELS;

fn settings(seed: u64) -> Settings {
    Settings {
        task: Task::Perplexity,
        attributes: vec![Attribute { name: "sex".into(), source: Source::Values("sex".into()) }],
        intersections: Vec::new(),
        controls: Vec::new(),
        weight_column: None,
        cluster_column: None,
        splits: Vec::new(),
        measures: Vec::new(),
        positive: None,
        threshold: 0.5,
        statistics: Statistics {
            level: 0.95,
            resamples: 1000,
            interval: BootstrapInterval::Percentile,
            permutations: 0,
            correction: Correction::Holm,
            margin: 0.0,
            min_group: 30,
            suppress_below: 0,
        },
        calibration: Calibration { bins: 10, temperature: false },
        membership: None,
        max_tokens: Some(16),
        overlap: Overlap::Refuse,
        convention: Convention::Defined,
        utility_match: None,
        seed,
    }
}

fn model(name: &str, adapter: &str, generation: &str) -> Model {
    Model {
        name: name.into(),
        kind: if adapter.is_empty() { ModelKind::Base } else { ModelKind::Adapter },
        adapter: adapter.into(),
        generation: generation.into(),
        scale: 1.0,
        training: None,
        overlap: None,
    }
}

fn gap(model: u32, value: Option<f64>, status: Status) -> Figure {
    Figure {
        model,
        versus: None,
        attribute: Some("sex".into()),
        scope: Scope::Difference,
        control: None,
        measure: "accuracy".into(),
        class: None,
        value,
        status,
        reason: (status != Status::Ok).then(|| "one_group".into()),
        n: 40,
        weight: 40.0,
        groups: Some((2, 2)),
        extremes: Vec::new(),
        interval: value.map(|v| Interval { method: "percentile".into(), level: 0.95, low: v - 0.1, high: v + 0.1 }),
        test: None,
    }
}

/// A report on the base model and generation `g1` of adapter `poet`.
fn report(seed: u64, value: Option<f64>, status: Status) -> Report {
    Report {
        version: VERSION,
        software: "0".into(),
        settings: settings(seed),
        base: Some(BaseModel {
            name: "tiny".into(),
            fingerprint: "f".into(),
            dtype: "f32".into(),
            device: "cpu".into(),
        }),
        data: Data {
            dataset: "d".into(),
            rows: 40,
            sha256: "s".into(),
            weight: 40.0,
            clusters: 40,
            duplicates: 0,
            truncated: 0,
            labels: Vec::new(),
        },
        models: vec![model("base", "", ""), model("poet", "poet", "g1")],
        groups: Vec::new(),
        figures: vec![gap(0, Some(0.5), Status::Ok), gap(1, value, status)],
        reliability: Vec::new(),
        rocs: Vec::new(),
        preferences: Vec::new(),
        tests: 0,
        warnings: Vec::new(),
        matched: None,
    }
}

/// A report on scores that a client calls like an adapter.
fn uploaded(name: &str) -> Report {
    let mut report = report(9, Some(0.75), Status::Ok);
    report.models = vec![Model { kind: ModelKind::Uploaded, ..model(name, "", "") }];
    report.figures = vec![gap(0, Some(0.75), Status::Ok)];
    report
}

struct House {
    reports: Reports,
    folder: tempfile::TempDir,
}

fn open(folder: tempfile::TempDir, keep: usize) -> House {
    open_with(folder, AuditSettings { keep_reports: keep, ..AuditSettings::default() })
}

fn open_with(folder: tempfile::TempDir, settings: AuditSettings) -> House {
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let reports = Reports::open(store, settings, Arc::new(Metrics::new().unwrap())).unwrap();
    House { reports, folder }
}

fn house() -> House {
    open(tempfile::tempdir().unwrap(), 3)
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn metrics(house: &House) -> String {
    String::from_utf8(house.reports.metrics.text().unwrap()).unwrap()
}

#[test]
fn a_report_is_found_by_id_and_name_and_the_oldest_go() {
    let mut house = house();
    let mut ids = Vec::new();
    for seed in 0..5 {
        let kept = house.reports.put(&name("a"), Some("job"), &report(seed, Some(0.2), Status::Ok), None).unwrap();
        ids.push(kept.id);
    }
    let House { reports, folder } = house;
    drop(reports);
    house = open(folder, 3);
    let (summary, found) = house.reports.get("a").unwrap();
    assert_eq!((summary.id.as_str(), found.settings.seed), (ids[4].as_str(), 4));
    assert_eq!(summary.generations, [("poet".to_owned(), "g1".to_owned())]);
    assert_eq!(house.reports.get(&ids[2]).unwrap().1, report(2, Some(0.2), Status::Ok));
    for gone in [&ids[0], &ids[1], &"nothing".to_owned()] {
        assert!(matches!(house.reports.get(gone), Err(ReportsError::ReportNotFound(_))));
    }
    let page = house.reports.list(None, Some("poet"), Some("a"), 2).unwrap();
    assert_eq!(page.iter().map(|(_, s)| s.id.clone()).collect::<Vec<_>>(), [ids[4].clone(), ids[3].clone()]);
    assert_eq!(house.reports.list(Some(page[1].0), None, None, 9).unwrap().len(), 1);
    assert!(house.reports.list(None, Some("clerk"), None, 9).unwrap().is_empty());
    assert!(house.reports.list(None, None, Some("b"), 9).unwrap().is_empty());
}

#[test]
fn the_same_report_again_is_one_report_and_the_newest() {
    let house = house();
    let first = house.reports.put(&name("a"), None, &report(1, Some(0.2), Status::Ok), None).unwrap();
    house.reports.put(&name("a"), None, &report(2, Some(0.2), Status::Ok), None).unwrap();
    let again = house.reports.put(&name("a"), None, &report(1, Some(0.2), Status::Ok), None).unwrap();
    assert_eq!(first.id, again.id);
    assert_eq!(house.reports.list(None, None, None, 9).unwrap().len(), 2);
    assert_eq!(house.reports.get("a").unwrap().0.id, first.id);
}

#[test]
fn the_newest_gap_is_shown_and_what_is_undefined_is_not() {
    let house = house();
    house.reports.put(&name("a"), None, &report(1, Some(0.25), Status::Ok), None).unwrap();
    let labels = r#"{adapter="poet",attribute="sex",measure="accuracy"}"#;
    let text = metrics(&house);
    assert!(text.contains(&format!("evenkeel_audit_gap{labels} 0.25\n")), "{text}");
    assert!(text.contains(&format!("evenkeel_audit_gap_high{labels} 0.35\n")), "{text}");
    assert!(text.contains(r#"evenkeel_audit_timestamp_seconds{adapter="poet"}"#));
    house.reports.put(&name("a"), None, &report(1, None, Status::Undefined), None).unwrap();
    assert!(!metrics(&house).contains(&format!("evenkeel_audit_gap{labels}")));
    assert!(!metrics(&house).contains("evenkeel_audit_group{"), "single groups are not shown unasked");
}

#[test]
fn single_groups_are_shown_where_the_settings_say_so() {
    let settings = AuditSettings { group_metrics: true, ..AuditSettings::default() };
    let house = open_with(tempfile::tempdir().unwrap(), settings);
    let mut report = report(1, Some(0.25), Status::Ok);
    let mut group = |value: Option<&str>, status: Status| {
        let scope = Scope::Group(value.map(str::to_owned));
        report.figures.push(Figure { scope, ..gap(1, Some(0.5), status) });
    };
    group(Some("f"), Status::Ok);
    group(None, Status::LowSupport);
    group(Some("few"), Status::Suppressed);
    house.reports.put(&name("a"), None, &report, None).unwrap();
    let text = metrics(&house);
    let labels = |group: &str| format!(r#"{{adapter="poet",attribute="sex",group="{group}",measure="accuracy"}}"#);
    for shown in ["f", "_missing"] {
        assert!(text.contains(&format!("evenkeel_audit_group{} 0.5\n", labels(shown))), "{shown}: {text}");
    }
    assert_eq!(text.matches("evenkeel_audit_group{").count(), 2, "{text}");
}

#[test]
fn uploaded_scores_and_base_models_are_no_adapters() {
    let house = house();
    house.reports.put(&name("a"), None, &report(1, Some(0.25), Status::Ok), None).unwrap();
    let before = metrics(&house);
    house.reports.put(&name("b"), None, &uploaded("poet"), None).unwrap();
    let lines =
        |text: &str| text.lines().filter(|line| line.contains("_audit_")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&metrics(&house)), lines(&before), "they are not shown");
    assert!(
        before.contains(r#"evenkeel_audit_gap{adapter="_base/tiny",attribute="sex",measure="accuracy"} 0.5"#),
        "{before}"
    );
    // Neither takes up a place of those that adapters have.
    for number in 0..ADAPTER_LABELS - 1 {
        house.reports.put(&name("b"), None, &uploaded(&format!("m{number}")), None).unwrap();
    }
    for number in 0..ADAPTER_LABELS - 1 {
        house.reports.metrics.adapter_label(&format!("m{number}"));
    }
    let mut late = report(2, Some(0.25), Status::Ok);
    late.models[1] = model("late", "late", "g1");
    house.reports.put(&name("a"), None, &late, None).unwrap();
    let text = metrics(&house);
    assert!(text.contains(r#"evenkeel_audit_gap{adapter="poet""#), "{text}");
    assert!(
        !text.contains(r#"adapter="late""#) && !text.contains(r#"adapter="_other""#),
        "one value cannot be that of all"
    );
    assert!(text.contains("evenkeel_audit_series_dropped_total 1"), "{text}");
}

#[test]
fn adapters_that_are_gone_are_not_shown_again() {
    let house = house();
    house.reports.put(&name("a"), None, &report(1, Some(0.25), Status::Ok), None).unwrap();
    let House { reports, folder } = house;
    drop(reports);
    let house = open(folder, 3);
    let text = metrics(&house);
    assert!(text.contains("_base/tiny") && !text.contains(r#"adapter="poet""#), "{text}");
}

fn policy(at_most: f64, audit: Option<&str>, max_age: Option<Duration>) -> StoredPolicy {
    let rule = Rule {
        measure: "accuracy".into(),
        scope: ScopeKind::Difference,
        attribute: None,
        class: None,
        versus: None,
        at_most: Some(at_most),
        at_least: None,
        allow_low_support: false,
    };
    StoredPolicy {
        policy: Policy { name: "p".into(), rules: vec![rule], demands: Demands::default() },
        dataset: None,
        audit: audit.map(str::to_owned),
        max_age,
        created: SystemTime::UNIX_EPOCH,
    }
}

/// Says what a fresh policy `p` says of a generation of `poet`.
fn checked(house: &House, stored: StoredPolicy, generation: &str) -> Result<(), GateError> {
    let _ = house.reports.delete_policy("p", None);
    house.reports.create_policy(stored, None, None).unwrap();
    let store = &house.reports.store;
    store.read(|catalog| gate(catalog, store.blobs(), "p", ("poet", generation))).map(drop)
}

fn reason(result: Result<(), GateError>) -> String {
    match result {
        Err(GateError::Failed { reasons, .. }) => reasons.join("; "),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_gate_opens_on_evidence_only() {
    let house = house();
    assert!(reason(checked(&house, policy(1.0, None, None), "g1")).contains("no report"));
    house.reports.put(&name("a"), None, &report(1, Some(0.2), Status::Ok), None).unwrap();
    checked(&house, policy(0.31, None, None), "g1").unwrap();
    assert!(reason(checked(&house, policy(0.29, None, None), "g1")).contains("upper bound"));
    assert!(reason(checked(&house, policy(0.31, None, None), "g2")).contains("no report"));
    assert!(reason(checked(&house, policy(0.31, Some("b"), None), "g1")).contains("by audit `b`"));
    checked(&house, policy(0.31, Some("a"), None), "g1").unwrap();
    assert!(reason(checked(&house, policy(0.31, None, Some(Duration::ZERO)), "g1")).contains("seconds old"));
    // The newest counts: it has lost the figure.
    house.reports.put(&name("a"), None, &report(2, None, Status::Undefined), None).unwrap();
    assert!(reason(checked(&house, policy(0.31, None, None), "g1")).contains("undefined"));
    house.reports.put(&name("a"), None, &report(1, Some(0.2), Status::Ok), None).unwrap();
    checked(&house, StoredPolicy { dataset: Some("d".into()), ..policy(0.31, None, None) }, "g1").unwrap();
    let other = StoredPolicy { dataset: Some("e".into()), ..policy(0.29, None, None) };
    let reasons = reason(checked(&house, other, "g1"));
    assert!(reasons.contains("on data set d, not e") && reasons.contains("upper bound"), "{reasons}");
    let nothing =
        house.reports.store.read(|catalog| gate(catalog, house.reports.store.blobs(), "nobody", ("poet", "g1")));
    assert!(matches!(nothing, Err(GateError::PolicyNotFound(_))));
}

#[test]
fn a_policy_keeps_the_settings_of_a_report() {
    let house = house();
    let make = |name: &str, like: &str| {
        let mut stored = policy(0.31, None, None);
        stored.policy.name = name.into();
        house.reports.create_policy(stored, Some(like), None)
    };
    assert!(matches!(make("p", "a"), Err(ReportsError::ReportNotFound(_))));
    let kept = house.reports.put(&name("a"), None, &report(1, Some(0.2), Status::Ok), None).unwrap();
    let like = make("p", "a").unwrap().policy.demands.like.unwrap();
    assert_eq!((like.report, like.rows.as_str()), (kept.id, "s"));
    let store = &house.reports.store;
    let check = || store.read(|catalog| gate(catalog, store.blobs(), "p", ("poet", "g1"))).map(drop);
    // Another seed is another draw of the same.
    house.reports.put(&name("a"), None, &report(2, Some(0.2), Status::Ok), None).unwrap();
    check().unwrap();
    let mut other = report(2, Some(0.2), Status::Ok);
    other.settings.attributes[0].source = Source::Values("random".into());
    house.reports.put(&name("a"), None, &other, None).unwrap();
    assert!(reason(check()).contains("settings.attributes"), "{:?}", check());
}

#[test]
fn policies_are_made_once_listed_and_deleted() {
    let house = house();
    let named = |text: &str| {
        let mut stored = policy(0.5, None, None);
        stored.policy.name = text.into();
        stored
    };
    for text in ["b", "a"] {
        house.reports.create_policy(named(text), None, None).unwrap();
    }
    assert!(matches!(house.reports.create_policy(named("a"), None, None), Err(ReportsError::PolicyExists(_))));
    let names = |after: Option<&str>| {
        let page = house.reports.policies(after, 9).unwrap();
        page.into_iter().map(|stored| stored.policy.name).collect::<Vec<_>>()
    };
    assert_eq!(names(None), ["a", "b"]);
    assert_eq!(names(Some("a")), ["b"]);
    assert_eq!(house.reports.policy("a").unwrap(), named("a"));
    house.reports.delete_policy("a", None).unwrap();
    assert!(matches!(house.reports.policy("a"), Err(ReportsError::PolicyNotFound(_))));
    assert!(matches!(house.reports.delete_policy("a", None), Err(ReportsError::PolicyNotFound(_))));
}
