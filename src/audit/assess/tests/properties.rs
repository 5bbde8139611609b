//! What must hold for any rows.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::audit::report::Status;
use crate::audit::settings::Convention;

const NAMES: [Option<&str>; 4] = [Some("a"), Some("b"), Some("c"), None];

fn rows(most: usize) -> impl Strategy<Value = Rows> {
    let row = (any::<bool>(), 0_u8..=8, 0_u8..=8, 0_usize..4, 0_u8..4, 0_u32..5, any::<bool>());
    (prop::collection::vec(row, 1..most), any::<[bool; 3]>()).prop_map(|(rows, [weights, clusters, controls])| {
        let weights = weights && rows.iter().any(|r| r.4 > 0);
        let mut seen = BTreeMap::new();
        let clusters = clusters.then(|| {
            rows.iter()
                .map(|r| {
                    let next = seen.len() as u32;
                    *seen.entry(r.5).or_insert(next)
                })
                .collect()
        });
        Rows {
            labels: rows.iter().map(|r| r.0).collect(),
            scores: vec![
                rows.iter().map(|r| f64::from(r.1) / 8.0).collect(),
                rows.iter().map(|r| f64::from(r.2) / 8.0).collect(),
            ],
            groups: rows.iter().map(|r| NAMES[r.3]).collect(),
            weights: weights.then(|| rows.iter().map(|r| f64::from(r.4) / 3.0).collect()),
            clusters,
            controls: if controls { rows.iter().map(|r| if r.6 { "x" } else { "y" }).collect() } else { Vec::new() },
        }
    })
}

type Key = (u32, Option<u32>, Scope, Option<(String, Option<String>)>, String);

/// Values by place.
fn values(report: &Report) -> BTreeMap<Key, Option<f64>> {
    let key = |f: &Figure| (f.model, f.versus, f.scope.clone(), f.control.clone(), f.measure.clone());
    report.figures.iter().map(|f| (key(f), f.value)).collect()
}

fn assert_close(one: &Report, two: &Report) {
    let (one, two) = (values(one), values(two));
    assert_eq!(one.len(), two.len());
    for (key, value) in one {
        match (value, two[&key]) {
            (Some(a), Some(b)) => assert!((a - b).abs() < 1e-9, "{key:?}: {a} {b}"),
            (a, b) => assert_eq!(a, b, "{key:?}"),
        }
    }
}

fn assert_sound(report: &Report) {
    for f in &report.figures {
        let numbers = [f.value, f.interval.as_ref().map(|i| i.low), f.interval.as_ref().map(|i| i.high)];
        let test = f.test.as_ref().map_or([None; 4], |t| [Some(t.p), t.adjusted, t.null, t.detectable]);
        for number in numbers.into_iter().chain(test).flatten() {
            assert!(number.is_finite(), "{f:?}");
        }
        assert!(f.test.as_ref().is_none_or(|t| t.p > -1e-12 && t.p <= 1.0), "{f:?}");
        assert!(f.interval.as_ref().is_none_or(|i| i.low <= i.high), "{f:?}");
        assert_eq!(f.value.is_some(), matches!(f.status, Status::Ok | Status::LowSupport), "{f:?}");
        assert_eq!(f.reason.is_none(), f.status == Status::Ok, "{f:?}");
    }
    for bin in report.reliability.iter().flat_map(|diagram| &diagram.bins) {
        assert!(bin.n > 0 && bin.interval.0 <= bin.accuracy && bin.accuracy <= bin.interval.1, "{bin:?}");
    }
    let text: Vec<&str> = report.warnings.iter().map(|w| w.message.as_str()).collect();
    for word in text.join(" ").split(|c: char| !c.is_alphanumeric()) {
        assert!(!["fair", "unfair", "compliant"].contains(&word.to_lowercase().as_str()), "{text:?}");
    }
    let bytes = serde_json::to_vec(report).unwrap();
    let back: Report = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(&back, report);
    assert_eq!(serde_json::to_vec(&back).unwrap(), bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn no_rows_however_few_or_alike_give_a_number_that_is_none(
        rows in prop_oneof![rows(5), rows(30)],
        bca in any::<bool>(),
        fairlearn in any::<bool>(),
        suppress in 0_u64..6,
        temperature in any::<bool>(),
    ) {
        let mut settings = settings();
        // The smooth ECE has tests of its own and is slow without optimisation.
        settings.measures = ["accuracy", "balanced_accuracy", "precision", "f1", "tpr", "fpr", "selection_rate", "auc", "log_loss",
            "brier", "ece_width_positive_class", "ece_mass_top_label", "mce_top_label", "ece_width_top_label",
            "overconfidence_top_label", "ece_null_top_label", "equalized_odds_difference", "equalized_odds_ratio_mean",
            "demographic_parity_difference", "impact_ratio", "predictive_parity_difference"].map(str::to_owned).to_vec();
        settings.statistics.interval = if bca { BootstrapInterval::Bca } else { BootstrapInterval::Percentile };
        settings.statistics.suppress_below = suppress;
        settings.statistics.margin = 0.1;
        settings.calibration.temperature = temperature;
        settings.convention = if fairlearn { Convention::Fairlearn } else { Convention::Defined };
        assert_sound(&report(&settings, &rows.table()));
    }

    #[test]
    fn the_order_of_rows_and_the_names_of_groups_change_nothing(rows in rows(25)) {
        let mut settings = of(&["accuracy", "precision", "auc", "ece_mass_top_label", "brier", "equalized_odds_difference"]);
        settings.statistics.resamples = 0;
        settings.statistics.permutations = 0;
        let one = report(&settings, &rows.table());
        let mut turned = rows.clone();
        turned.labels.reverse();
        turned.scores.iter_mut().for_each(|scores| scores.reverse());
        turned.groups.reverse();
        turned.controls.reverse();
        turned.weights.iter_mut().for_each(|weights| weights.reverse());
        turned.clusters = None;
        let mut one_alone = rows;
        one_alone.clusters = None;
        assert_close(&report(&settings, &one_alone.table()), &report(&settings, &turned.table()));
        // Other names that sort in another order: gaps stay.
        let mut renamed = one_alone;
        for name in &mut renamed.groups {
            *name = name.map(|name| if name == "a" { "z" } else if name == "b" { "y" } else { "x" });
        }
        let two = report(&settings, &renamed.table());
        for (f, g) in [(&one, Scope::Difference), (&one, Scope::Attribute)].map(|(r, scope)| (values(r), scope)) {
            for (key, value) in f.into_iter().filter(|(key, _)| key.2 == g) {
                let other = values(&two)[&key];
                prop_assert!(value.zip(other).map_or(value == other, |(a, b)| (a - b).abs() < 1e-9), "{:?}", key);
            }
        }
    }

    #[test]
    fn a_weight_of_2_is_a_row_twice(rows in rows(20)) {
        let mut settings = of(&["accuracy", "precision", "auc", "log_loss", "ece_width_positive_class", "impact_ratio"]);
        settings.statistics.resamples = 0;
        settings.statistics.permutations = 0;
        let plain = Rows { weights: None, clusters: None, controls: Vec::new(), ..rows };
        let weight = |row: usize| if row.is_multiple_of(3) { 2.0 } else { 1.0 };
        let weighted = Rows { weights: Some((0..plain.labels.len()).map(weight).collect()), ..plain.clone() };
        let mut twice = plain.clone();
        for row in (0..plain.labels.len()).step_by(3) {
            twice.labels.push(plain.labels[row]);
            twice.groups.push(plain.groups[row]);
            twice.scores.iter_mut().zip(&plain.scores).for_each(|(to, from)| to.push(from[row]));
        }
        assert_close(&report(&settings, &weighted.table()), &report(&settings, &twice.table()));
    }

    #[test]
    fn a_model_does_not_differ_from_itself(rows in rows(25)) {
        let mut rows = rows;
        rows.scores[1] = rows.scores[0].clone();
        let report = report(&of(&["accuracy", "tpr", "auc", "ece_width_top_label", "equalized_odds_difference"]), &rows.table());
        for f in report.figures.iter().filter(|f| f.versus.is_some()) {
            prop_assert!(f.value.is_none_or(|value| value == 0.0), "{:?}", f);
            prop_assert!(f.interval.as_ref().is_none_or(|i| i.low == 0.0 && i.high == 0.0), "{:?}", f);
            prop_assert!(f.test.as_ref().is_none_or(|t| t.p == 1.0), "{:?}", f);
            if f.measure == "accuracy" && f.scope == Scope::Overall && f.value.is_some() && rows.controls.is_empty() {
                prop_assert!(f.test.is_some());
            }
        }
    }
}

fn example() -> Rows {
    let n = 60;
    let bit = |row: usize, k: u64| (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (20 + k) & 1 == 1;
    let score =
        |row: usize, k: u64| ((row as u64 + 3 + k).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f64 / (1 << 24) as f64;
    Rows {
        labels: (0..n).map(|row| bit(row, 0)).collect(),
        scores: vec![(0..n).map(|row| score(row, 0)).collect(), (0..n).map(|row| score(row, 9)).collect()],
        groups: (0..n)
            .map(|row| {
                if row % 3 == 0 {
                    Some("a")
                } else if row % 7 == 1 {
                    None
                } else {
                    Some("b")
                }
            })
            .collect(),
        ..Rows::default()
    }
}

#[test]
fn figures_are_what_their_names_say() {
    let rows = example();
    let report = report(&settings(), &rows.table());
    assert_sound(&report);
    let share = |value: Option<&str>, of: &dyn Fn(usize) -> bool, among: &dyn Fn(usize) -> bool| {
        let inside: Vec<usize> =
            (0..rows.labels.len()).filter(|row| rows.groups[*row] == value && among(*row)).collect();
        inside.iter().filter(|row| of(**row)).count() as f64 / inside.len() as f64
    };
    let selected = |row: usize| rows.scores[0][row] >= 0.5;
    let selection = [Some("a"), Some("b"), None].map(|value| share(value, &selected, &|_| true));
    let figure = find(&report, "selection_rate", &group("a"));
    assert!((figure.value.unwrap() - selection[0]).abs() < 1e-12);
    assert_eq!((figure.n, figure.interval.as_ref().unwrap().method.as_str()), (20, "wilson"));
    let gap = selection.iter().copied().fold(0.0, f64::max) - selection.iter().copied().fold(1.0, f64::min);
    let named = find(&report, "demographic_parity_difference", &Scope::Attribute);
    let difference = find(&report, "selection_rate", &Scope::Difference);
    assert!((named.value.unwrap() - gap).abs() < 1e-12);
    // One number, one test.
    assert_eq!((named.value, &named.test), (difference.value, &difference.test));
    assert_eq!(named.groups, Some((3, 3)));
    let tpr = share(Some("b"), &selected, &|row| rows.labels[row]);
    assert!((find(&report, "tpr", &group("b")).value.unwrap() - tpr).abs() < 1e-12);
    let rest = find(&report, "accuracy", &Scope::Complement(None)).value.unwrap();
    let member = find(&report, "accuracy", &Scope::Group(None)).value.unwrap();
    let minus = find(&report, "accuracy", &Scope::MemberMinusRest(None));
    assert!((minus.value.unwrap() - (member - rest)).abs() < 1e-12);
    assert!(
        find(&report, "ece_width_top_label", &Scope::Overall).test.as_ref().is_some_and(|t| t.name == "calibrated")
    );
    let counted = report.figures.iter().filter(|f| f.test.is_some()).count() as u64;
    // The named measures that are the gap of one rate share its test.
    assert_eq!(report.tests + 3 * 2, counted);
    assert_eq!(find(&report, "membership_inference", &Scope::Overall).status, Status::NotMeasured);
    assert!(report.reliability.iter().any(|diagram| diagram.scope == group("b") && diagram.form == "top_label"));
}

#[test]
fn threads_change_nothing() {
    let (settings, table) = (of(&["accuracy", "auc", "equalized_odds_difference"]), example().table());
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        serde_json::to_vec(&pool.install(|| report(&settings, &table))).unwrap()
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn unknown_measures_are_refused_and_others_listed() {
    let table = example().table();
    let Err(AssessError::UnknownMeasure { name, known }) = try_report(&of(&["ece"]), &table) else { panic!() };
    assert!(name == "ece" && known.contains("ece_width_top_label"), "{known}");
    let report = report(&of(&["accuracy"]), &table);
    let figure = find(&report, "tpr", &Scope::Overall);
    assert_eq!((figure.status, figure.reason.as_deref()), (Status::NotMeasured, Some("not_asked")));
    let stopped = assess(&settings(), &table, provenance(&table), &|| true);
    assert_eq!(stopped, Err(AssessError::Stopped));
}

#[test]
fn suppressed_groups_leave_no_trace_in_gaps() {
    let mut settings = of(&["accuracy", "selection_rate", "demographic_parity_difference", "impact_ratio"]);
    settings.statistics.suppress_below = 10;
    let mut rows = example();
    let before = report(&settings, &rows.table());
    assert!(before.groups.iter().any(|g| g.value.is_none() && g.suppressed));
    for row in (0..rows.labels.len()).filter(|row| rows.groups[*row].is_none()) {
        rows.scores[0][row] = 1.0 - rows.scores[0][row];
    }
    let after = report(&settings, &rows.table());
    for (f, g) in before
        .figures
        .iter()
        .zip(&after.figures)
        .filter(|(f, _)| f.scope == Scope::Difference || f.scope == Scope::Attribute)
    {
        assert_eq!((f.value, f.n), (g.value, g.n), "{f:?}");
    }
    let hidden = find(&after, "accuracy", &Scope::Group(None));
    assert_eq!((hidden.status, hidden.value, hidden.n), (Status::Suppressed, None, 0));
    // The groups are a partition: a second one is held back, so that the first cannot be told by subtraction.
    assert!(after.groups.iter().filter(|g| g.suppressed).map(|g| g.rows).sum::<u64>() >= 10);
    assert!(after.warnings.iter().any(|w| w.kind == "small_groups"));
}

#[test]
fn several_classes_and_labels() {
    let n = 40;
    let value = |row: usize, class: usize| ((row * 7 + class * 13) % 11 + 1) as f64;
    let probabilities = |row: usize| {
        let all: Vec<f64> = (0..3).map(|class| value(row, class)).collect();
        let sum: f64 = all.iter().sum();
        all.into_iter().map(move |v| v / sum).collect::<Vec<f64>>()
    };
    let labels: Vec<u32> = (0..n).map(|row| (row * 5 % 3) as u32).collect();
    let mut table = example().table();
    let names = ["x", "y", "z"].map(str::to_owned).to_vec();
    (table.rows, table.attributes) = (n, vec![attribute("g", &(0..n).map(|r| NAMES[r % 2]).collect::<Vec<_>>())]);
    table.outcomes = Outcomes::Classes {
        names: names.clone(),
        positive: 2,
        labels: labels.clone(),
        models: vec![(0..n).flat_map(probabilities).collect()],
    };
    let several = report(&settings(), &table);
    assert_sound(&several);
    let right = (0..n).filter(|row| super::super::view::largest(&probabilities(*row)) as u32 == labels[*row]).count();
    assert_eq!(find(&several, "accuracy", &Scope::Overall).value, Some(right as f64 / n as f64));
    let of_class =
        |f: &&Figure| f.class.as_deref() == Some("y") && f.measure == "base_rate" && f.scope == Scope::Overall;
    let base = several.figures.iter().find(of_class).unwrap().value.unwrap();
    assert!((base - labels.iter().filter(|l| **l == 1).count() as f64 / n as f64).abs() < 1e-12);
    table.outcomes = Outcomes::MultiLabel {
        names,
        labels: (0..3 * n).map(|i| i % 4 == 1).collect(),
        models: vec![(0..n).flat_map(probabilities).collect()],
    };
    let multi = report(&of(&["exact_match", "hamming_loss", "tpr", "equalized_odds_difference"]), &table);
    assert_sound(&multi);
    let wrong = (0..3 * n).filter(|i| (probabilities(i / 3)[i % 3] >= 0.5) != (i % 4 == 1)).count();
    assert!(
        (find(&multi, "hamming_loss", &Scope::Overall).value.unwrap() - wrong as f64 / (3 * n) as f64).abs() < 1e-12
    );
}

#[test]
fn too_few_permutations_for_their_number_of_tests_are_said() {
    let warned = |permutations: usize, correction: Correction| {
        let mut settings = of(&["accuracy", "selection_rate"]);
        (settings.statistics.permutations, settings.statistics.correction) = (permutations, correction);
        let found = report(&settings, &example().table());
        let adjusted = found.figures.iter().filter_map(|figure| figure.test.as_ref()?.adjusted);
        let least = adjusted.fold(1.0, f64::min);
        let warning = found.warnings.into_iter().find(|warning| warning.kind == "permutations_few");
        (warning.map(|warning| warning.message), least)
    };
    let (few, least) = warned(20, Correction::Holm);
    assert!(few.as_ref().is_some_and(|few| few.contains("20 permutations")) && least > 0.05, "{few:?} {least}");
    assert!(warned(5000, Correction::Holm).0.is_none() && warned(20, Correction::BenjaminiHochberg).0.is_none());
}
