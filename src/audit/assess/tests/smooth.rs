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
        let mut rows = rows(300, 0.2, seed);
        rows.scores.truncate(1);
        let found = report(&settings, &rows.table());
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

/// Smooth ECE of some rows.
fn of_rows(rows: &Rows, model: usize, inside: impl Fn(usize) -> bool) -> f64 {
    let rows_in: Vec<usize> = (0..rows.labels.len()).filter(|row| inside(*row)).collect();
    let scores: Vec<f64> = rows_in.iter().map(|row| rows.scores[model][*row]).collect();
    let labels: Vec<bool> = rows_in.iter().map(|row| rows.labels[*row]).collect();
    smooth_ece(&scores, &labels, None).unwrap().value
}

#[test]
fn smooth_ece_has_complements_strata_gaps_and_differences_of_models() {
    let mut rows = rows(240, 0.15, 4);
    rows.scores[1] = rows.scores[0].iter().map(|p| 0.5 * (p + 0.5)).collect();
    rows.controls = (0..240).map(|row| if row % 2 == 0 { "even" } else { "odd" }).collect();
    let mut settings = of(&["smooth_ece_positive_class", "ece_null_positive_class"]);
    settings.statistics.resamples = 60;
    let found = report(&settings, &rows.table());
    let measure = "smooth_ece_positive_class";
    let value = |scope: Scope, model: u32, versus: Option<u32>, control: Option<&str>| {
        let control = control.map(|value| ("c".to_owned(), Some(value.to_owned())));
        let fits = |f: &&Figure| {
            f.measure == measure && f.scope == scope && (f.model, f.versus) == (model, versus) && f.control == control
        };
        let figure = found.figures.iter().find(fits).unwrap_or_else(|| panic!("{scope:?} {versus:?} {control:?}"));
        let interval = figure.interval.as_ref().unwrap_or_else(|| panic!("{figure:?}"));
        assert!(interval.low <= interval.high && interval.high - interval.low < 0.5, "{figure:?}");
        figure.value.unwrap()
    };
    let is_a = |row: usize| row.is_multiple_of(3);
    let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    let rest = Scope::Complement(Some("a".to_owned()));
    close(value(rest.clone(), 0, None, None), of_rows(&rows, 0, |row| !is_a(row)));
    close(value(rest, 0, None, Some("odd")), of_rows(&rows, 0, |row| !is_a(row) && row % 2 == 1));
    close(value(group("a"), 1, None, Some("even")), of_rows(&rows, 1, |row| is_a(row) && row % 2 == 0));
    let by_group = |model: usize| [of_rows(&rows, model, is_a), of_rows(&rows, model, |row| !is_a(row))];
    let gap = |model: usize| (by_group(model)[0] - by_group(model)[1]).abs();
    close(value(Scope::Difference, 0, None, None), gap(0));
    close(value(Scope::Difference, 1, Some(0), None), gap(1) - gap(0));
    let mut order = ["a", "b"].map(|name| Some(name.to_owned()));
    if by_group(0)[0] > by_group(0)[1] {
        order.reverse();
    }
    assert_eq!(find(&found, measure, &Scope::Difference).extremes, order);
    close(value(group("b"), 1, Some(0), None), by_group(1)[1] - by_group(0)[1]);
    close(value(Scope::Overall, 1, Some(0), None), of_rows(&rows, 1, |_| true) - of_rows(&rows, 0, |_| true));
    let in_stratum = |f: &&Figure| f.measure == "ece_null_positive_class" && f.control.is_some() && f.value.is_some();
    assert!(found.figures.iter().filter(in_stratum).count() >= 12);
}

#[test]
fn a_model_without_a_temperature_takes_none_from_the_others() {
    let mut rows = rows(200, 0.2, 6);
    // The second model is right in every row, and certain about it in each half: any smaller temperature is better.
    rows.scores[1] = rows.labels.iter().map(|label| if *label { 0.9 } else { 0.1 }).collect();
    rows.scores.push(rows.scores[0].iter().map(|p| 0.5 * (p + 0.5)).collect());
    let mut settings = of(&["log_loss", "ece_width_positive_class"]);
    settings.calibration.temperature = true;
    let found = report(&settings, &rows.table());
    let of = |measure: &str, model: u32| {
        let fits =
            |f: &&Figure| f.measure == measure && f.model == model && f.versus.is_none() && f.scope == Scope::Overall;
        found.figures.iter().find(fits).unwrap()
    };
    use crate::audit::report::Status;
    for measure in ["log_loss_after_temperature", "ece_width_positive_class_after_temperature"] {
        for model in [0, 2] {
            assert_eq!(of(measure, model).status, Status::Ok, "{measure} of {model}");
        }
        let missing = of(measure, 1);
        assert_eq!((missing.status, missing.reason.as_deref()), (Status::NotMeasured, Some("unbounded")), "{measure}");
    }
    assert_eq!(of("temperature", 1).reason.as_deref(), Some("unbounded"));
    let versus = |model: u32, base: u32| {
        let fits = |f: &&Figure| {
            f.measure == "log_loss_after_temperature"
                && f.model == model
                && f.versus == Some(base)
                && f.scope == Scope::Overall
        };
        found.figures.iter().find(fits).map(|f| f.value.unwrap())
    };
    let value = |model: u32| of("log_loss_after_temperature", model).value.unwrap();
    assert!((versus(2, 0).unwrap() - (value(2) - value(0))).abs() < 1e-12);
    assert_eq!((versus(1, 0), versus(2, 1)), (None, None));
}
