//! Intervals of the smooth calibration error.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::audit::statistics::smooth_ece::{Smoother, smooth_ece};

/// Rows whose scores promise `lift` too much.
fn rows(n: usize, lift: f64, seed: u64) -> Rows {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let scores: Vec<f64> = (0..n).map(|_| 0.3 + 0.6 * rng.random::<f64>()).collect();
    let labels = scores.iter().map(|p| rng.random::<f64>() < p - lift).collect();
    let groups = (0..n).map(|row| Some(if row % 3 == 0 { "a" } else { "b" })).collect();
    Rows { labels, scores: vec![scores.clone(), scores], groups, ..Rows::default() }
}

#[test]
fn smooth_ece_has_intervals_by_group_and_says_of_how_many_resamples() {
    let mut settings = of(&["smooth_ece_positive_class"]);
    settings.statistics.resamples = 300;
    let found = report(&settings, &rows(400, 0.2, 1).table());
    let mut width = 0.0;
    for scope in [Scope::Overall, group("a"), group("b")] {
        let figure = find(&found, "smooth_ece_positive_class", &scope);
        let interval = figure.interval.as_ref().unwrap();
        assert!(interval.low < figure.value.unwrap() && figure.value.unwrap() < interval.high, "{figure:?}");
        // What is promised too much is 0.2, with a standard error of about a half over the root of the rows.
        assert!(interval.low > 0.05 && interval.high < 0.35, "{figure:?}");
        assert!(interval.high - interval.low >= width, "fewer rows, a wider interval: {figure:?}");
        width = if scope == Scope::Overall { 0.6 * (interval.high - interval.low) } else { width };
        // Near that of the binned error.
        let binned = find(&found, "ece_width_positive_class", &scope).interval.clone().unwrap();
        let ratio = (interval.high - interval.low) / (binned.high - binned.low);
        assert!((0.5..2.0).contains(&ratio), "{ratio} {scope:?}");
    }
    let told = |found: &Report| {
        found.warnings.iter().any(|w| w.kind == "smooth_ece_resamples" && w.message.contains("200 of 300"))
    };
    assert!(told(&found));
    settings.statistics.resamples = 50;
    assert!(!told(&report(&settings, &rows(60, 0.2, 1).table())));
    settings.statistics.resamples = 0;
    let without = report(&settings, &rows(60, 0.2, 1).table());
    assert!(find(&without, "smooth_ece_positive_class", &Scope::Overall).interval.is_none());
}

#[test]
fn smooth_ece_and_the_null_of_ece_bring_ece() {
    let table = rows(60, 0.2, 1).table();
    let own = report(&of(&["ece_width_positive_class"]), &table);
    let ece = find(&own, "ece_width_positive_class", &Scope::Overall).value;
    for what in ["smooth_ece", "ece_null"] {
        let found = report(&of(&[&format!("{what}_positive_class")]), &table);
        assert!(find(&found, &format!("{what}_positive_class"), &Scope::Overall).value.is_some());
        assert_eq!(find(&found, "ece_width_positive_class", &Scope::Overall).value, ece);
        assert!(!found.reliability.is_empty());
        assert_eq!(find(&found, "ece_width_top_label", &Scope::Overall).value, None);
    }
}

#[test]
fn intervals_of_smooth_ece_cover_the_truth() {
    let mut settings = of(&["smooth_ece_positive_class"]);
    settings.statistics.resamples = 200;
    settings.statistics.permutations = 0;
    let covers = |seed: u64| {
        let found = report(&settings, &rows(300, 0.2, seed).table());
        let interval = find(&found, "smooth_ece_positive_class", &Scope::Overall).interval.clone().unwrap();
        interval.low <= 0.2 && 0.2 <= interval.high
    };
    let covered = (0..60).filter(|seed| covers(*seed)).count();
    assert!(covered >= 53, "{covered} of 60");
}

#[test]
fn the_coarse_grid_of_resamples_is_near_the_fine_one() {
    for (n, lift, seed) in [(50, 0.1, 1), (500, 0.0, 2), (500, 0.25, 3)] {
        let Rows { labels, scores, .. } = rows(n, lift, seed);
        let exact = smooth_ece(&scores[0], &labels, None).unwrap();
        let points = Smoother::points(exact.bandwidth);
        let (mut residual, mut ones) = (vec![0.0; points], vec![0.0; points]);
        for (p, hit) in scores[0].iter().zip(&labels) {
            let (at, next) = Smoother::place(*p, points);
            for (at, part) in [(at, 1.0 - next), (at + 1, next)] {
                residual[at] += part * (p - f64::from(u8::from(*hit)));
                ones[at] += part;
            }
        }
        let coarse = Smoother::new(exact.bandwidth, points).error(&residual, &ones, n as f64).unwrap();
        assert!((coarse - exact.value).abs() < 0.01 * exact.value + 1e-4, "{coarse} {exact:?}");
    }
}
