//! What intervals and tests promise, in a moderate number of simulated audits; a longer run is in `tests/bench`.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Rows of two or more groups in which a model is right with the probability of the group.
fn simulated(seed: u64, right: &[f64], rows: usize) -> Rows {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut simulated = Rows { scores: vec![Vec::new()], ..Rows::default() };
    for row in 0..rows {
        let (group, label) = (row % right.len(), rng.random::<bool>());
        let hit = rng.random::<f64>() < right[group];
        simulated.labels.push(label);
        simulated.scores[0].push(if label == hit { 0.9 } else { 0.1 });
        simulated.groups.push([Some("a"), Some("b"), Some("c")][group]);
    }
    simulated
}

/// Holds with a probability of less than 1e-4 of failing, were the seed another one.
fn assert_share(count: usize, of: usize, expected: f64, slack: f64) {
    let share = count as f64 / of as f64;
    let error = (expected * (1.0 - expected) / of as f64).sqrt();
    assert!((share - expected).abs() < 3.9 * error + slack, "{count} of {of}, expected {expected}");
}

#[test]
fn the_permutation_test_rejects_what_is_not_there_in_5_of_100_audits() {
    let mut settings = of(&["accuracy"]);
    (settings.statistics.resamples, settings.statistics.permutations) = (0, 99);
    settings.statistics.correction = Correction::None;
    let audits = 240;
    let rejects = |seed: &u64| {
        let report =
            report(&Settings { seed: *seed, ..settings.clone() }, &simulated(*seed, &[0.8, 0.8, 0.8], 90).table());
        find(&report, "accuracy", &Scope::Difference).test.as_ref().unwrap().p <= 0.05
    };
    assert_share((0..audits).filter(rejects).count(), audits as usize, 0.05, 0.0);
}

#[test]
fn intervals_of_95_percent_hold_the_difference_in_95_of_100_audits() {
    let mut settings = of(&["accuracy"]);
    (settings.statistics.resamples, settings.statistics.permutations) = (199, 0);
    let (audits, right) = (200, [0.75, 0.9]);
    let covered = |seed: &u64| {
        let report =
            report(&Settings { seed: *seed, ..settings.clone() }, &simulated(1000 + seed, &right, 160).table());
        let interval =
            find(&report, "accuracy", &Scope::MemberMinusRest(Some("a".to_owned()))).interval.clone().unwrap();
        (interval.low..=interval.high).contains(&(right[0] - right[1]))
    };
    // Percentile intervals of 199 resamples are a little short: two points.
    assert_share((0..audits).filter(covered).count(), audits as usize, 0.95, 0.02);
}

#[test]
fn a_gap_that_is_there_is_found_and_reported_as_detectable() {
    let report = report(
        &Settings {
            statistics: Statistics { resamples: 99, permutations: 199, ..settings().statistics },
            ..of(&["accuracy"])
        },
        &simulated(5, &[0.6, 0.9], 400).table(),
    );
    let gap = find(&report, "accuracy", &Scope::Difference);
    let test = gap.test.as_ref().unwrap();
    assert!(test.p < 0.01 && test.adjusted.unwrap() < 0.05, "{test:?}");
    let (null, detectable) = (test.null.unwrap(), test.detectable.unwrap());
    assert!(null < detectable && detectable < 0.25 && gap.value.unwrap() > detectable, "{gap:?}");
}

#[test]
fn clusters_make_intervals_wider_and_tests_slower_to_reject() {
    // Every row eight times: eight times as many rows tell nothing more.
    let alone = simulated(3, &[0.7, 0.85], 60);
    let repeat = |n: usize| {
        let each = |i: usize| i / n;
        let count = alone.labels.len() * n;
        Rows {
            labels: (0..count).map(|i| alone.labels[each(i)]).collect(),
            scores: vec![(0..count).map(|i| alone.scores[0][each(i)]).collect()],
            groups: (0..count).map(|i| alone.groups[each(i)]).collect(),
            clusters: Some((0..count).map(|i| each(i) as u32).collect()),
            ..Rows::default()
        }
    };
    let settings = Settings {
        statistics: Statistics { resamples: 199, permutations: 199, ..settings().statistics },
        ..of(&["accuracy"])
    };
    let scope = Scope::MemberMinusRest(Some("a".to_owned()));
    let figure = |rows: &Rows| find(&report(&settings, &rows.table()), "accuracy", &scope).clone();
    let (one, eight) = (figure(&alone), figure(&repeat(8)));
    let length = |f: &Figure| f.interval.as_ref().map(|i| i.high - i.low).unwrap();
    assert!((length(&one) / length(&eight) - 1.0).abs() < 0.2, "{one:?} {eight:?}");
    let p = |f: &Figure| f.test.as_ref().map(|t| t.p).unwrap();
    assert!((p(&one) - p(&eight)).abs() < 0.1);
    let naive = figure(&Rows { clusters: None, ..repeat(8) });
    assert!(length(&naive) < 0.5 * length(&one), "{naive:?}");
}

#[test]
fn controls_explain_a_gap_away() {
    // Group b meets the hard stratum more often; within a stratum groups are alike.
    let mut rows = Rows { scores: vec![Vec::new()], ..Rows::default() };
    for row in 0..400 {
        let (a, place) = (row % 2 == 0, row / 2 % 10);
        let hard = if a { place < 2 } else { place < 8 };
        rows.labels.push(true);
        rows.scores[0].push(if hard && row / 20 % 2 == 0 { 0.1 } else { 0.9 });
        rows.groups.push(Some(if a { "a" } else { "b" }));
        rows.controls.push(if hard { "hard" } else { "easy" });
    }
    let settings = Settings {
        statistics: Statistics { resamples: 0, permutations: 199, ..settings().statistics },
        ..of(&["accuracy"])
    };
    let gap = |rows: &Rows| find(&report(&settings, &rows.table()), "accuracy", &Scope::Difference).clone();
    let crude = Rows { controls: Vec::new(), ..rows.clone() };
    assert!(gap(&crude).value.unwrap() > 0.2 && gap(&crude).test.unwrap().p < 0.01);
    assert!(gap(&rows).test.unwrap().p > 0.2);
    let report = report(&settings, &rows.table());
    let odds = find(&report, "accuracy_common_odds_ratio", &Scope::MemberMinusRest(Some("a".to_owned())));
    assert!(odds.test.as_ref().is_some_and(|t| t.name == "cmh" && t.p > 0.2), "{odds:?}");
    let hard = Some(("c".to_owned(), Some("hard".to_owned())));
    let within = |f: &&Figure| f.control == hard && f.scope == group("b") && f.measure == "accuracy";
    assert_eq!(report.figures.iter().find(within).unwrap().n, 160);
}
