//! Base, adapter and full fine-tune in one report: differences of their gaps, by hand.

use super::*;
use crate::audit::statistics::bootstrap::{Buffers, Distribution, Resampling, Sampler};

/// Whether each of three models is right on ten rows, the first five of group a.
const RIGHT: [[u8; 10]; 3] =
    [[1, 1, 1, 0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1, 1, 1, 1, 0]];

fn rows() -> Rows {
    let scores = |right: [u8; 10]| right.map(|right| if right == 1 { 0.8 } else { 0.2 }).to_vec();
    Rows {
        labels: vec![true; 10],
        scores: RIGHT.map(scores).to_vec(),
        groups: (0..10).map(|row| Some(if row < 5 { "a" } else { "b" })).collect(),
        ..Rows::default()
    }
}

fn versus<'r>(report: &'r Report, measure: &str, scope: &Scope, (model, versus): (u32, u32)) -> &'r Figure {
    let fits = |f: &&Figure| {
        f.measure == measure && f.scope == *scope && f.model == model && f.versus == Some(versus) && f.control.is_none()
    };
    report.figures.iter().find(fits).unwrap()
}

#[test]
fn gaps_of_models_are_subtracted_and_their_intervals_are_of_the_same_draws() {
    let mut settings = of(&["accuracy", "demographic_parity_difference"]);
    settings.statistics.resamples = 200;
    let found = report(&settings, &rows().table());
    // Accuracies of a and b: 3/5 and 2/5, 1/5 and 4/5, 4/5 and 4/5. Gaps: 1/5, 3/5 and 0.
    for (pair, expected) in [((1, 0), 0.4), ((2, 0), -0.2), ((2, 1), -0.6)] {
        let figure = versus(&found, "accuracy", &Scope::Difference, pair);
        assert!((figure.value.unwrap() - expected).abs() < 1e-12, "{figure:?}");
        // All rows are positive: the selection rate is the accuracy.
        let parity = versus(&found, "demographic_parity_difference", &Scope::Attribute, pair);
        assert!((parity.value.unwrap() - expected).abs() < 1e-12, "{parity:?}");
        assert_eq!(parity.interval, figure.interval);
    }
    for (group_of, pair, expected) in [("a", (1, 0), -0.4), ("b", (1, 0), 0.4), ("a", (2, 0), 0.2), ("b", (2, 1), 0.0)]
    {
        let figure = versus(&found, "accuracy", &group(group_of), pair);
        assert!((figure.value.unwrap() - expected).abs() < 1e-12, "{figure:?}");
    }
    assert!((versus(&found, "accuracy", &Scope::Overall, (2, 0)).value.unwrap() - 0.3).abs() < 1e-12);
    // The same draws, counted row by row.
    let sampler = Sampler::new(Resampling { rows: 10, clusters: None, strata: None, seed: settings.seed });
    let mut buffers = Buffers::default();
    let gap = |right: &[u8; 10], counts: &[u16]| -> Option<f64> {
        let accuracy = |rows: std::ops::Range<usize>| {
            let (mut hits, mut all) = (0_u32, 0_u32);
            for row in rows {
                hits += u32::from(right[row]) * u32::from(counts[row]);
                all += u32::from(counts[row]);
            }
            (all > 0).then(|| f64::from(hits) / f64::from(all))
        };
        Some((accuracy(0..5)? - accuracy(5..10)?).abs())
    };
    for (model, base) in [(1, 0), (2, 0), (2, 1)] {
        let draws = (0..200).filter_map(|draw| {
            let counts = sampler.draw(draw, &mut buffers);
            Some(Ok(gap(&RIGHT[model], counts)? - gap(&RIGHT[base], counts)?))
        });
        let expected = Distribution::new(draws).percentile(0.95).unwrap();
        let figure = versus(&found, "accuracy", &Scope::Difference, (model as u32, base as u32));
        let interval = figure.interval.as_ref().unwrap();
        assert!((interval.low - expected.low).abs() < 1e-12 && (interval.high - expected.high).abs() < 1e-12);
        assert!(interval.low < interval.high && interval.method == "percentile");
    }
}

#[test]
fn models_that_differ_in_no_row_have_a_difference_of_gaps_without_width() {
    let mut same = rows();
    same.scores = vec![same.scores[0].clone(); 2];
    let found = report(&of(&["accuracy"]), &same.table());
    let figure = versus(&found, "accuracy", &Scope::Difference, (1, 0));
    let interval = figure.interval.as_ref().unwrap();
    assert_eq!((figure.value, interval.low, interval.high), (Some(0.0), 0.0, 0.0));
}

#[test]
fn equivalence_of_groups_is_two_one_sided_tests_in_the_same_family() {
    // 41 of 50 and 40 of 50 right.
    let right: Vec<bool> = (0..100).map(|row| row % 50 >= if row < 50 { 9 } else { 10 }).collect();
    let rows = Rows {
        labels: vec![true; 100],
        scores: vec![right.iter().map(|right| if *right { 0.8 } else { 0.2 }).collect()],
        groups: (0..100).map(|row| Some(if row < 50 { "a" } else { "b" })).collect(),
        ..Rows::default()
    };
    let mut settings = of(&["accuracy"]);
    (settings.statistics.resamples, settings.statistics.permutations) = (400, 0);
    assert_eq!(report(&settings, &rows.table()).tests, 0);
    settings.statistics.margin = 0.2;
    let found = report(&settings, &rows.table());
    // Agresti and Caffo: 42/52 and 41/52, a difference of 0.019231 with the standard error 0.078705.
    // p = Φ((0.019231 − 0.2) / 0.078705) = Φ(−2.29679).
    let scope = Scope::MemberMinusRest(Some("a".to_owned()));
    let figure = find(&found, "accuracy_equivalence", &scope);
    let test = figure.test.as_ref().unwrap();
    assert!((figure.value.unwrap() - 0.02).abs() < 1e-12 && test.name == "tost");
    assert!((test.p - 0.010_815).abs() < 1e-5, "{test:?}");
    assert_eq!(figure.interval, find(&found, "accuracy", &scope).interval);
    // The gap of two groups is the size of their difference.
    let gap = find(&found, "accuracy_equivalence", &Scope::Difference).test.as_ref().unwrap();
    assert!((gap.p - test.p).abs() < 1e-12, "{gap:?}");
    // Two differences and the gap, corrected together by Holm.
    assert_eq!(found.tests, 3);
    assert!((test.adjusted.unwrap() - 3.0 * test.p).abs() < 1e-12, "{test:?}");
    // A margin below the difference is not passed.
    settings.statistics.margin = 0.01;
    let narrow = report(&settings, &rows.table());
    assert!(find(&narrow, "accuracy_equivalence", &scope).test.as_ref().unwrap().p > 0.5);
}

#[test]
fn a_group_of_few_rows_leaves_the_equivalence_of_a_gap_open() {
    // Two large groups and a small one, all right in 4 of 5 rows. Over-confidence goes by resamples.
    let rows = |small: usize| {
        let groups: Vec<Option<&str>> =
            [(Some("a"), 500), (Some("b"), 500), (Some("c"), small)].iter().flat_map(|(g, n)| vec![*g; *n]).collect();
        Rows {
            labels: vec![true; groups.len()],
            scores: vec![(0..groups.len()).map(|row| if row % 5 == 0 { 0.2 } else { 0.8 }).collect()],
            groups,
            ..Rows::default()
        }
    };
    let mut settings = of(&["accuracy", "overconfidence_top_label"]);
    (settings.statistics.resamples, settings.statistics.permutations) = (200, 0);
    settings.statistics.margin = 0.1;
    for measure in ["accuracy_equivalence", "overconfidence_top_label_equivalence"] {
        let p = |small: usize| {
            let report = report(&settings, &rows(small).table());
            find(&report, measure, &Scope::Difference).test.as_ref().unwrap().p
        };
        assert!(p(500) < 0.001 && p(20) > 0.1, "{measure}: {} {}", p(500), p(20));
    }
}

#[test]
fn figures_of_extremes_name_their_groups() {
    // Right in 1 of 4 rows of a, 3 of 4 of b, 3 of 4 of rows without a group.
    let right = [1, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1];
    let rows = Rows {
        labels: vec![true; 12],
        scores: vec![right.map(|right| if right == 1 { 0.8 } else { 0.2 }).to_vec()],
        groups: (0..12).map(|row| [Some("a"), Some("b"), None][row / 4]).collect(),
        ..Rows::default()
    };
    let found = report(&of(&["accuracy"]), &rows.table());
    let names = |scope: Scope| find(&found, "accuracy", &scope).extremes.clone();
    let (a, b) = (Some("a".to_owned()), Some("b".to_owned()));
    assert_eq!(names(Scope::Minimum), std::slice::from_ref(&a));
    // The first of equals.
    assert_eq!(names(Scope::Maximum), std::slice::from_ref(&b));
    assert_eq!(names(Scope::Difference), [a.clone(), b.clone()]);
    assert_eq!(names(Scope::Ratio), [a.clone(), b.clone()]);
    assert!(names(Scope::Overall).is_empty() && names(Scope::DifferenceToOverall).is_empty());
    // A group that is held back is not named.
    let mut settings = of(&["accuracy"]);
    settings.statistics.suppress_below = 5;
    let hidden = report(&settings, &rows.table());
    assert!(hidden.figures.iter().all(|figure| figure.extremes.is_empty()));
    // What a report without them wrote is read.
    let json = serde_json::to_string(&found.figures[0]).unwrap();
    assert!(!json.contains("extremes"), "{json}");
    assert_eq!(serde_json::from_str::<Figure>(&json).unwrap(), found.figures[0]);
}
