//! A report made by hand for tests: every status, every kind of diagram, and names that try to break out.
//!
//! Its numbers are drawn by a formula and mean nothing.

use crate::audit::report::*;
use crate::audit::settings::*;
use crate::dataset::Split;

/// Names that a client may send.
pub(crate) const HOSTILE: [&str; 5] = [
    "<script>alert(1)</script>",
    "=cmd|'/C calc'!A0",
    "a \"quoted\" & | piped\nname",
    "https://example.org/x",
    "ends\u{202e}desrever",
];

fn settings() -> Settings {
    Settings {
        task: Task::Head,
        attributes: vec![
            Attribute { name: "region".to_owned(), source: Source::Values("region".to_owned()) },
            Attribute { name: HOSTILE[0].to_owned(), source: Source::Values(HOSTILE[3].to_owned()) },
        ],
        intersections: Vec::new(),
        controls: vec!["channel".to_owned()],
        weight_column: None,
        cluster_column: None,
        splits: vec![Split::Test],
        measures: Vec::new(),
        positive: None,
        threshold: 0.5,
        statistics: Statistics {
            level: 0.95,
            resamples: 1000,
            interval: BootstrapInterval::Percentile,
            permutations: 1000,
            correction: Correction::Holm,
            margin: 0.0,
            min_group: 30,
            suppress_below: 5,
        },
        calibration: Calibration { bins: 10, temperature: false },
        membership: None,
        max_tokens: Some(128),
        overlap: Overlap::Mark,
        convention: Convention::Fairlearn,
        utility_match: None,
        seed: 7,
    }
}

fn model(name: &str, kind: ModelKind, rank: Option<Option<u64>>) -> Model {
    let training = rank.map(|rank| Training {
        job: "job-1".to_owned(),
        dataset: "reviews".to_owned(),
        rank,
        alpha: rank.map(|rank| 2.0 * rank as f64),
        layers: Vec::new(),
        seed: 3,
        settings: serde_json::json!({ "note": HOSTILE[0] }),
        step: None,
    });
    let adapter = if kind == ModelKind::Base { String::new() } else { name.to_owned() };
    let generation = if kind == ModelKind::Base { String::new() } else { "4f1c".to_owned() };
    Model {
        name: name.to_owned(),
        kind,
        adapter,
        generation,
        scale: 1.0,
        overlap: training.as_ref().map(|_| 4),
        training,
    }
}

/// A figure of a value; `None` is undefined for want of positives.
fn figure(model: u32, place: (Option<&str>, Scope), measure: &str, value: Option<f64>) -> Figure {
    let gap = matches!(place.1, Scope::Difference | Scope::MemberMinusRest(_));
    Figure {
        model,
        versus: None,
        attribute: place.0.map(str::to_owned),
        scope: place.1,
        control: None,
        measure: measure.to_owned(),
        class: None,
        value,
        status: if value.is_some() { Status::Ok } else { Status::Undefined },
        reason: if value.is_some() { None } else { Some("no_positives".to_owned()) },
        n: if value.is_some() { 240 } else { 12 },
        weight: 240.0,
        groups: gap.then_some((3, 5)),
        extremes: Vec::new(),
        interval: value.map(|value| Interval {
            method: "wilson".to_owned(),
            level: 0.95,
            low: value - 0.03,
            high: value + 0.04,
        }),
        test: value.filter(|_| gap).map(|value| Test {
            name: "permutation".to_owned(),
            p: 0.0001 / value.abs().max(0.001),
            adjusted: Some(0.004 / value.abs().max(0.001)),
            null: Some(0.06),
            detectable: Some(0.09),
        }),
    }
}

fn groups() -> Vec<Group> {
    let group = |attribute: &str, value: Option<&str>, rows: u64| Group {
        attribute: attribute.to_owned(),
        value: value.map(str::to_owned),
        rows,
        weight: rows as f64,
        clusters: rows,
        suppressed: rows > 0 && rows < 5,
    };
    let mut groups = vec![
        group("region", Some("north"), 320),
        group("region", Some("south"), 240),
        group("region", Some("islands"), 12),
        group("region", Some("abroad"), 3),
        group("region", None, 60),
    ];
    groups.extend(HOSTILE.iter().map(|name| group(HOSTILE[0], Some(name), 120)));
    groups
}

fn figures(groups: &[Group]) -> Vec<Figure> {
    let mut all = Vec::new();
    let measures = ["accuracy", "selection_rate", "tpr", "fpr", "ece_width_positive_class"];
    for (m, measure) in measures.into_iter().enumerate() {
        for model in 0..4_u32 {
            let level = 0.8 - 0.13 * m as f64 + 0.02 * f64::from(model);
            all.push(figure(model, (None, Scope::Overall), measure, Some(level)));
            for (g, group) in groups.iter().enumerate() {
                let place = (Some(group.attribute.as_str()), Scope::Group(group.value.clone()));
                let value = (group.rows != 12 || measure != "tpr")
                    .then(|| level + 0.05 * ((g * 7 + m + model as usize) as f64).sin());
                let mut one = figure(model, place, measure, value);
                if group.suppressed {
                    // A value that must not be seen.
                    (one.status, one.reason, one.value) =
                        (Status::Suppressed, Some("suppressed".to_owned()), Some(0.987_654));
                } else if group.rows == 12 && value.is_some() {
                    (one.status, one.reason, one.n) = (Status::LowSupport, Some("few_rows".to_owned()), 12);
                }
                all.push(one);
            }
            for attribute in ["region", HOSTILE[0]] {
                let value = Some(0.05 + 0.03 * f64::from(model));
                let mut gap = figure(model, (Some(attribute), Scope::Difference), measure, value);
                gap.extremes = vec![Some(if attribute == "region" { "north" } else { HOSTILE[1] }.to_owned()), None];
                all.push(gap);
                all.push(figure(model, (Some(attribute), Scope::Ratio), measure, Some(0.81)));
            }
            if model > 0 {
                for place in [
                    (None, Scope::Overall),
                    (Some("region"), Scope::Group(Some("north".to_owned()))),
                    (Some("region"), Scope::Difference),
                ] {
                    let mut one = figure(model, place, measure, Some(0.02 * f64::from(model) - 0.03));
                    one.versus = Some(0);
                    all.push(one);
                }
            }
        }
    }
    let mut stratum = figure(1, (Some("region"), Scope::Difference), "accuracy", Some(0.2));
    stratum.control = Some(("channel".to_owned(), None));
    let mut absent = figure(0, (None, Scope::Overall), "mia_rmia_auc", None);
    (absent.status, absent.reason) = (Status::NotMeasured, Some("not_available".to_owned()));
    let mut class = figure(1, (Some("region"), Scope::MemberMinusRest(None)), "recall", Some(-0.04));
    class.class = Some(HOSTILE[2].to_owned());
    let named = figure(1, (Some("region"), Scope::Attribute), "equalized_odds_difference", Some(0.11));
    all.extend([stratum, absent, class, named]);
    all
}

/// The report.
pub(crate) fn report() -> Report {
    let groups = groups();
    let bins = (0..10).map(|i| {
        let low = f64::from(i) / 10.0;
        let accuracy = (low + 0.05) * 0.85;
        ReliabilityBin {
            low,
            high: low + 0.1,
            n: 10 + 9 * i as u64,
            confidence: low + 0.05,
            accuracy,
            interval: (accuracy - 0.04, accuracy + 0.08),
        }
    });
    let diagram = |model: u32, attribute: Option<&str>, scope: Scope| Reliability {
        model,
        attribute: attribute.map(str::to_owned),
        scope,
        form: "positive_class".to_owned(),
        bins: bins.clone().collect(),
    };
    let roc = |model: u32, others: u64| Roc {
        model,
        attribute: None,
        scope: Scope::Overall,
        attack: Attack::Loss,
        parameter: None,
        members: 900,
        others,
        points: (0..=100)
            .map(|i| f64::from(i) / 100.0)
            .map(|fpr| (fpr, fpr.powf(0.7 - 0.1 * f64::from(model))))
            .collect(),
    };
    Report {
        version: VERSION,
        software: "0.1.0".to_owned(),
        settings: settings(),
        base: Some(BaseModel {
            name: "tiny".to_owned(),
            fingerprint: "c0ffee".to_owned(),
            dtype: "f32".to_owned(),
            device: "cpu".to_owned(),
        }),
        data: Data {
            dataset: "reviews".to_owned(),
            rows: 635,
            sha256: "9b74c9897bac770ffc029102a200c5de".to_owned(),
            weight: 635.0,
            clusters: 635,
            duplicates: 2,
            truncated: 1,
            labels: vec!["no".to_owned(), HOSTILE[0].to_owned()],
        },
        models: vec![
            model("base", ModelKind::Base, None),
            model("lora-r8", ModelKind::Adapter, Some(Some(8))),
            model("lora-r64", ModelKind::Adapter, Some(Some(64))),
            model(HOSTILE[1], ModelKind::Full, Some(None)),
        ],
        figures: figures(&groups),
        groups,
        reliability: vec![
            diagram(0, None, Scope::Overall),
            diagram(1, None, Scope::Overall),
            diagram(1, Some("region"), Scope::Group(Some("south".to_owned()))),
        ],
        rocs: vec![roc(1, 850), roc(2, 850), roc(3, 400)],
        preferences: vec![Preference {
            model: 0,
            alphabet: "letters".to_owned(),
            by_token: vec![0.7, 0.3],
            by_position: vec![0.5, 0.5],
            by_content: Vec::new(),
            flip_rate: Some(0.25),
            prior: vec![0.66, 0.34],
            accuracy: CorrectedAccuracy { raw: Some(0.61), debiased: Some(0.7), ..CorrectedAccuracy::default() },
            separable: Some(false),
        }],
        tests: 40,
        warnings: vec![
            Warning {
                kind: "convention_fairlearn".to_owned(),
                message: "undefined rates count as 0, as in fairlearn".to_owned(),
            },
            Warning { kind: "small_groups".to_owned(), message: format!("few rows in {}", HOSTILE[0]) },
        ],
        matched: None,
    }
}
