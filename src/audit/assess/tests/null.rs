//! What intervals and tests promise, in simulated audits of a cheap shape; a longer run is in `tests/bench`.
//!
//! Shares are held against the interval that Clopper and Pearson give them at a level of 0.9999, so that a right promise
//! fails once in 10,000 seeds and a wrong one of a few points always.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::audit::statistics::intervals::{Proportion, proportion};

const NAMES: [Option<&str>; 3] = [Some("a"), Some("b"), Some("c")];

/// Rows of two or more groups in which each model is right with the probability of the group.
fn simulated(seed: u64, models: &[&[f64]], rows: usize) -> Rows {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut simulated = Rows { scores: vec![Vec::new(); models.len()], ..Rows::default() };
    for row in 0..rows {
        let (group, label) = (row % models[0].len(), rng.random::<bool>());
        for (scores, right) in simulated.scores.iter_mut().zip(models) {
            let hit = rng.random::<f64>() < right[group];
            scores.push(if label == hit { 0.9 } else { 0.1 });
        }
        simulated.labels.push(label);
        simulated.groups.push(NAMES[group]);
    }
    simulated
}

/// Rows of groups whose scores are even between a lowest one and 1, with labels that have nothing to do with them.
fn scored(seed: u64, lowest: &[f64], rows: usize) -> Rows {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut scored = Rows { scores: vec![Vec::new()], ..Rows::default() };
    for row in 0..rows {
        let group = row % lowest.len();
        scored.labels.push(rng.random::<bool>());
        scored.scores[0].push(lowest[group] + (1.0 - lowest[group]) * rng.random::<f64>());
        scored.groups.push(NAMES[group]);
    }
    scored
}

/// Asserts that the share can be what is promised, or anything between two promises.
fn assert_share(count: usize, of: usize, expected: std::ops::RangeInclusive<f64>) {
    let possible = proportion(count as f64, of as f64, 0.9999, Proportion::ClopperPearson).unwrap();
    let meets = possible.low <= *expected.end() && *expected.start() <= possible.high;
    assert!(meets, "{count} of {of}, expected {expected:?}");
}

/// Intervals of many audits: how many hold the truth, how wide they are.
#[derive(Default)]
struct Held {
    held: usize,
    widths: Vec<f64>,
}

impl Held {
    fn add(&mut self, figure: &Figure, truth: f64) {
        let interval = figure.interval.as_ref().unwrap_or_else(|| panic!("{figure:?}"));
        self.held += usize::from((interval.low..=interval.high).contains(&truth));
        self.widths.push(interval.high - interval.low);
    }

    /// Asserts that 95 % hold the truth, and that they are as wide as the normal interval of this standard error.
    fn assert(&self, promised: std::ops::RangeInclusive<f64>, error: f64) {
        assert_share(self.held, self.widths.len(), promised);
        let (normal, n) = (2.0 * 1.96 * error, self.widths.len() as f64);
        let mean = self.widths.iter().sum::<f64>() / n;
        assert!((mean / normal - 1.0).abs() < 0.07, "{mean}, normal {normal}");
        assert!(self.widths.iter().all(|width| *width > 0.5 * normal && *width < 1.6 * normal));
    }
}

/// One test figure's p, not corrected.
fn p(report: &Report, measure: &str, scope: &Scope) -> f64 {
    find(report, measure, scope).test.as_ref().unwrap().p
}

fn a_minus_rest() -> Scope {
    Scope::MemberMinusRest(Some("a".to_owned()))
}

/// Settings of many small audits.
fn many(measures: &[&str], resamples: usize, permutations: usize) -> Settings {
    let mut settings = of(measures);
    (settings.statistics.resamples, settings.statistics.permutations) = (resamples, permutations);
    settings.statistics.correction = Correction::None;
    settings
}

fn audited(settings: &Settings, seed: u64, rows: &Rows) -> Report {
    report(&Settings { seed, ..settings.clone() }, &rows.table())
}

#[test]
fn the_permutation_test_rejects_what_is_not_there_in_5_of_100_audits() {
    // Of 19 permutations the observed gap is the largest in one of 20 audits, where no two gaps are the same.
    let (settings, audits) = (many(&["brier", "accuracy"], 0, 19), 2500);
    let mut rejected = [0; 3];
    for seed in 0..audits {
        let report = audited(&settings, seed, &scored(seed, &[0.0, 0.0, 0.0], 90));
        let tests = [("brier", Scope::Difference), ("brier", a_minus_rest()), ("accuracy", Scope::Difference)];
        for (rejected, (measure, scope)) in rejected.iter_mut().zip(tests) {
            *rejected += usize::from(p(&report, measure, &scope) <= 0.05);
        }
    }
    assert_share(rejected[0], audits as usize, 0.05..=0.05);
    assert_share(rejected[1], audits as usize, 0.05..=0.05);
    // Accuracies of 30 rows are often the same, and the same counts as extreme.
    assert_share(rejected[2], audits as usize, 0.02..=0.05);
}

#[test]
fn the_permutation_test_finds_what_is_there() {
    let (settings, audits) = (many(&["accuracy"], 0, 19), 200);
    let found = |seed: &u64| {
        let report = audited(&settings, *seed, &simulated(*seed, &[&[0.9, 0.9, 0.6]], 300));
        p(&report, "accuracy", &Scope::Difference) <= 0.05
    };
    assert!((0..audits).filter(found).count() >= 190);
}

#[test]
fn intervals_of_95_percent_hold_the_difference_of_groups_in_95_of_100_audits() {
    // Drawn: confidence minus label has the variance 1/3 in group a, 0.64/12 + 1/4 in group b.
    let (settings, audits) = (many(&["overconfidence_positive_class"], 199, 0), 1500);
    let mut drawn = Held::default();
    for seed in 0..audits {
        let report = audited(&settings, seed, &scored(1000 + seed, &[0.0, 0.2], 120));
        drawn.add(find(&report, "overconfidence_positive_class", &a_minus_rest()), -0.1);
    }
    // 199 resamples of 60 rows a group make them a little short.
    drawn.assert(0.93..=0.95, ((1.0 / 3.0 + 0.64 / 12.0 + 0.25) / 60.0_f64).sqrt());
    // Newcombe's: of shares of rows that count one each.
    let (settings, mut counted) = (many(&["accuracy"], 0, 0), Held::default());
    for seed in 0..audits {
        let report = audited(&settings, seed, &simulated(9000 + seed, &[&[0.75, 0.9]], 160));
        let figure = find(&report, "accuracy", &a_minus_rest());
        assert_eq!(figure.interval.as_ref().unwrap().method, "newcombe");
        counted.add(figure, 0.75 - 0.9);
    }
    counted.assert(0.94..=0.96, ((0.75 * 0.25 + 0.9 * 0.1) / 80.0_f64).sqrt());
}

#[test]
fn intervals_of_95_percent_hold_the_difference_of_models_in_95_of_100_audits() {
    let (settings, audits, right) = (many(&["accuracy"], 199, 0), 1000, [&[0.7, 0.6][..], &[0.8, 0.5]]);
    let (mut overall, mut gaps) = (Held::default(), Held::default());
    for seed in 0..audits {
        let report = audited(&settings, seed, &simulated(70_000 + seed, &right, 240));
        let versus = |scope: Scope| {
            let fits = |f: &&Figure| f.versus == Some(0) && f.scope == scope && f.measure == "accuracy";
            report.figures.iter().find(fits).unwrap()
        };
        overall.add(versus(Scope::Overall), 0.0);
        gaps.add(versus(Scope::Difference), 0.2);
    }
    let variance = |right: &[f64]| right.iter().map(|p| p * (1.0 - p)).sum::<f64>();
    let both = variance(right[0]) + variance(right[1]);
    overall.assert(0.935..=0.955, (both / 2.0 / 240.0).sqrt());
    // A gap near 0 is turned round by chance now and then, which makes intervals of its difference a little short.
    assert_share(gaps.held, gaps.widths.len(), 0.90..=0.96);
    let normal = 2.0 * 1.96 * (both / 120.0).sqrt();
    assert!(gaps.widths.iter().all(|width| *width > 0.4 * normal && *width < 1.6 * normal));
}

#[test]
fn a_margin_is_passed_in_5_of_100_audits_of_a_difference_as_large_and_in_most_of_none() {
    let mut settings = many(&["accuracy"], 99, 0);
    settings.statistics.margin = 0.1;
    let shares = |right: &[f64], audits: u64, first: u64| {
        let mut found = [0; 2];
        for seed in first..first + audits {
            let report = audited(&settings, seed, &simulated(seed, &[right], 600));
            for (found, scope) in found.iter_mut().zip([a_minus_rest(), Scope::Difference]) {
                let figure = find(&report, "accuracy_equivalence", &scope);
                assert_eq!(figure.test.as_ref().unwrap().name, "tost");
                *found += usize::from(figure.test.as_ref().unwrap().p <= 0.05);
            }
        }
        found
    };
    let audits = 800;
    let at_margin = shares(&[0.85, 0.75], audits, 1);
    assert_share(at_margin[0], audits as usize, 0.04..=0.05);
    assert_share(at_margin[1], audits as usize, 0.03..=0.055);
    let none = shares(&[0.9, 0.9], 100, 5000);
    assert!(none.iter().all(|found| *found >= 90), "{none:?}");
    // Of three groups: the largest of their differences is judged.
    let wide = shares(&[0.9, 0.8, 0.7], 100, 6000);
    assert_eq!(wide[1], 0);
}

#[test]
fn a_gap_that_is_there_is_found_and_reported_as_detectable() {
    let report = report(
        &Settings {
            statistics: Statistics { resamples: 99, permutations: 199, ..settings().statistics },
            ..of(&["accuracy"])
        },
        &simulated(5, &[&[0.6, 0.9]], 400).table(),
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
    let alone = simulated(3, &[&[0.7, 0.85]], 60);
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
