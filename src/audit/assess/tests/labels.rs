//! Averages over the labels of rows that have several, against their definitions.

use super::*;
use crate::audit::report::Status;
use crate::audit::statistics::auc::auc;

/// Rows with labels and scores of two models; the second takes the first two labels for each other.
fn table(truth: &[[bool; 3]], scores: &[[f64; 3]], groups: &[Option<&str>], weights: Option<Vec<f64>>) -> Table {
    let mut table = Rows { labels: vec![false; truth.len()], groups: Vec::new(), ..Rows::default() }.table();
    table.attributes = vec![attribute("g", groups)];
    table.weights = weights;
    table.outcomes = Outcomes::MultiLabel {
        names: ["x", "y", "z"].map(str::to_owned).to_vec(),
        labels: truth.concat(),
        models: vec![scores.concat(), scores.iter().map(|p| [p[1], p[0], p[2]]).collect::<Vec<_>>().concat()],
    };
    table
}

const TRUTH: [[bool; 3]; 4] = [[true, false, true], [false, true, false], [true, true, false], [false, false, true]];
const SCORES: [[f64; 3]; 4] = [[0.9, 0.1, 0.4], [0.6, 0.8, 0.3], [0.7, 0.45, 0.5], [0.2, 0.3, 0.9]];

#[test]
fn averages_over_labels_are_those_of_scikit_learn() {
    let found = report(&of(&[]), &table(&TRUTH, &SCORES, &[Some("a"), Some("a"), Some("b"), Some("b")], None));
    let value = |measure: &str, scope: &Scope| find(&found, measure, scope).value.unwrap();
    // Precision 2/3, 1 and 1/2, recall 1, 1/2 and 1/2; together 4 right of 6 predicted and of 6 true.
    for (measure, expected) in [
        ("accuracy_macro", 2.0 / 3.0),
        ("hamming_loss", 1.0 / 3.0),
        ("precision_macro", (2.0 / 3.0 + 1.5) / 3.0),
        ("recall_macro", 2.0 / 3.0),
        ("f1_macro", (0.8 + 2.0 / 3.0 + 0.5) / 3.0),
        ("precision_micro", 2.0 / 3.0),
        ("recall_micro", 2.0 / 3.0),
        ("f1_micro", 2.0 / 3.0),
    ] {
        assert!((value(measure, &Scope::Overall) - expected).abs() < 1e-12, "{measure}");
    }
    let pooled = auc(&TRUTH.concat(), &SCORES.concat(), None).unwrap();
    assert!((value("auc_micro", &Scope::Overall) - pooled).abs() < 1e-12);
    let of_label = |label: usize| {
        let (truth, scores) = (TRUTH.map(|row| row[label]), SCORES.map(|row| row[label]));
        auc(&truth, &scores, None).unwrap()
    };
    assert!((value("auc_macro", &Scope::Overall) - (0..3).map(of_label).sum::<f64>() / 3.0).abs() < 1e-12);
    // A group without a label: the mean over all labels counts it 0, the one over those there are does not.
    let truth = [[true, false, false], [false, true, false], [true, true, false], [false, false, true]];
    let scores = [[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.9, 0.9, 0.9], [0.1, 0.1, 0.9]];
    let one = report(&of(&[]), &table(&truth, &scores, &[Some("a"), Some("a"), Some("b"), Some("b")], None));
    assert_eq!(find(&one, "f1_macro", &group("a")).value, Some(2.0 / 3.0));
    assert_eq!(find(&one, "f1_macro_present", &group("a")).value, Some(1.0));
    assert_eq!(find(&one, "f1_micro", &group("a")).value, Some(1.0));
    let undefined = find(&one, "auc_macro", &group("a"));
    assert_eq!((undefined.status, undefined.value), (Status::Undefined, None));
}

#[test]
fn averages_over_labels_have_gaps_intervals_and_weights() {
    let n = 60;
    let bit = |row: usize, k: usize| (row * 7 + k * 5 + row * row * (k + 1)) % 11 < 5;
    let truth: Vec<[bool; 3]> = (0..n).map(|row| [bit(row, 0), bit(row, 1), bit(row, 2)]).collect();
    let score = |row: usize, k: usize| ((row * 37 + k * 17) % 101) as f64 / 101.0;
    let scores: Vec<[f64; 3]> = (0..n).map(|row| [score(row, 0), score(row, 1), score(row, 2)]).collect();
    let groups: Vec<Option<&str>> = (0..n).map(|row| Some(if row % 3 == 0 { "a" } else { "b" })).collect();
    let plain = report(&of(&[]), &table(&truth, &scores, &groups, None));
    for measure in
        ["precision_macro", "recall_micro", "f1_macro", "f1_micro", "auc_macro", "auc_micro", "accuracy_macro"]
    {
        let [overall, a, b] = [Scope::Overall, group("a"), group("b")].map(|scope| find(&plain, measure, &scope));
        assert!([overall, a, b].iter().all(|f| f.interval.is_some() && f.status == Status::Ok), "{measure}");
        let gap = find(&plain, measure, &Scope::Difference);
        assert!((gap.value.unwrap() - (a.value.unwrap() - b.value.unwrap()).abs()).abs() < 1e-12, "{measure}");
        assert!(gap.interval.is_some(), "{measure}");
        let models = |f: &&Figure| f.measure == measure && f.versus == Some(0) && f.scope == Scope::Overall;
        assert!(plain.figures.iter().any(|f| models(&f) && f.interval.is_some()), "{measure}");
    }
    // One test for the accuracy of labels, which is that of the Hamming loss.
    assert!(find(&plain, "f1_micro", &Scope::Difference).test.is_some());
    assert!(find(&plain, "accuracy_macro", &Scope::Difference).test.is_none());
    // A weight of 2 is a row twice.
    let weights = (0..n).map(|row| if row < 20 { 2.0 } else { 1.0 }).collect();
    let weighted = report(&of(&[]), &table(&truth, &scores, &groups, Some(weights)));
    let twice = |rows: &[[f64; 3]]| [rows, &rows[..20]].concat();
    let (truth, groups) = ([&truth[..], &truth[..20]].concat(), [&groups[..], &groups[..20]].concat());
    let twice = report(&of(&[]), &table(&truth, &twice(&scores), &groups, None));
    for measure in ["precision_macro", "recall_micro", "f1_macro_present", "auc_macro", "auc_micro"] {
        for scope in [Scope::Overall, group("a"), Scope::Complement(Some("a".into()))] {
            let [one, two] = [&weighted, &twice].map(|report| find(report, measure, &scope).value.unwrap());
            assert!((one - two).abs() < 1e-9, "{measure} {scope:?}: {one} {two}");
        }
    }
}

#[test]
fn labels_beyond_those_that_are_ranked_say_so() {
    let count = 21;
    let mut table = table(&TRUTH, &SCORES, &[Some("a"); 4], None);
    table.outcomes = Outcomes::MultiLabel {
        names: (0..count).map(|label| format!("l{label}")).collect(),
        labels: (0..4 * count).map(|i| i % 3 == 0).collect(),
        models: vec![(0..4 * count).map(|i| (i % 7) as f64 / 7.0).collect()],
    };
    let found = report(&of(&["f1_micro"]), &table);
    let figure = find(&found, "auc_micro", &Scope::Overall);
    assert_eq!((figure.status, figure.reason.as_deref()), (Status::NotMeasured, Some("not_available")));
    assert!(find(&found, "f1_micro", &Scope::Overall).value.is_some());
}

#[test]
fn labels_have_smooth_calibration_and_say_that_there_is_no_temperature() {
    let n = 120;
    let score = |row: usize, k: usize| ((row * 37 + k * 17) % 101) as f64 / 101.0;
    let truth: Vec<[bool; 3]> = (0..n).map(|row| [0, 1, 2].map(|k| (row * 13 + k * 5) % 7 < 3)).collect();
    let scores: Vec<[f64; 3]> = (0..n).map(|row| [0, 1, 2].map(|k| score(row, k))).collect();
    let groups: Vec<Option<&str>> = (0..n).map(|row| Some(if row % 3 == 0 { "a" } else { "b" })).collect();
    let mut settings = of(&["smooth_ece_positive_class", "ece_null_positive_class"]);
    settings.calibration.temperature = true;
    let found = report(&settings, &table(&truth, &scores, &groups, None));
    let of_label = |measure: &str, scope: &Scope| {
        let fits = |f: &&Figure| {
            f.measure == measure
                && f.scope == *scope
                && f.class.as_deref() == Some("y")
                && f.model == 0
                && f.versus.is_none()
        };
        found.figures.iter().find(fits).unwrap()
    };
    let labels: Vec<bool> = truth.iter().map(|row| row[1]).collect();
    let y: Vec<f64> = scores.iter().map(|row| row[1]).collect();
    let expected = crate::audit::statistics::smooth_ece::smooth_ece(&y, &labels, None).unwrap().value;
    let smooth = of_label("smooth_ece_positive_class", &Scope::Overall);
    assert!((smooth.value.unwrap() - expected).abs() < 1e-12 && smooth.interval.is_some(), "{smooth:?}");
    let null = of_label("ece_null_positive_class", &Scope::Group(Some("a".into())));
    assert!(null.value.is_some_and(|null| null > 0.0));
    for model in 0..2 {
        let temperature = found.figures.iter().find(|f| f.measure == "temperature" && f.model == model).unwrap();
        assert_eq!((temperature.status, temperature.reason.as_deref()), (Status::NotMeasured, Some("not_available")));
    }
}
