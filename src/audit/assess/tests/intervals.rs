//! Every figure says how well it is known.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Rows of two models, three groups, two strata; each comes `times` times, as a cluster.
fn rows(times: usize) -> Rows {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let mut rows = Rows { scores: vec![Vec::new(); 2], clusters: Some(Vec::new()), ..Rows::default() };
    for row in 0..360_usize {
        let label = rng.random_bool(0.5);
        let score = |rng: &mut ChaCha8Rng, lift: f64| {
            let z = if label { lift } else { -lift } + 4.0 * (rng.random::<f64>() - 0.5);
            1.0 / (1.0 + (-z).exp())
        };
        let scores = [score(&mut rng, 0.8), score(&mut rng, 0.5)];
        for _ in 0..times {
            rows.labels.push(label);
            rows.scores.iter_mut().zip(scores).for_each(|(all, score)| all.push(score));
            rows.groups.push([Some("a"), Some("b"), Some("c")][row % 3]);
            rows.controls.push(["x", "y"][row / 3 % 2]);
            rows.clusters.as_mut().unwrap().push(row as u32);
        }
    }
    rows
}

fn asking() -> Settings {
    Settings { calibration: Calibration { bins: 5, temperature: true }, controls: vec!["c".to_owned()], ..settings() }
}

#[test]
fn all_figures_but_expectations_have_intervals() {
    for times in [1, 2] {
        let report = report(&asking(), &rows(times).table());
        for figure in report.figures.iter().filter(|f| f.value.is_some() && !f.measure.starts_with("ece_null_")) {
            assert!(figure.interval.is_some(), "{figure:?}");
        }
        for (measure, scope, method) in [
            ("temperature", Scope::Overall, "sandwich"),
            (
                "accuracy_common_odds_ratio",
                Scope::MemberMinusRest(Some("a".to_owned())),
                if times == 1 { "robins_breslow_greenland" } else { "infinitesimal_jackknife" },
            ),
        ] {
            let figure = find(&report, measure, &scope);
            let (value, interval) = (figure.value.unwrap(), figure.interval.as_ref().unwrap());
            assert_eq!(interval.method, method);
            assert!(0.0 < interval.low && interval.low < value && value < interval.high, "{figure:?}");
        }
    }
}

/// What comes twice is known no better than what comes once, if it is known to come twice.
#[test]
fn a_row_twice_in_a_cluster_is_a_row_once() {
    let (once, twice) = (report(&asking(), &rows(1).table()), report(&asking(), &rows(2).table()));
    for (measure, scope, within) in [
        // Halves of clusters are those of rows.
        ("temperature", Scope::Overall, 1e-9),
        // Two estimates of one error, of 360 rows.
        ("selection_rate_common_odds_ratio", Scope::MemberMinusRest(Some("b".to_owned())), 0.05),
    ] {
        let of = |report: &Report| {
            let figure = find(report, measure, &scope).clone();
            let interval = figure.interval.unwrap();
            (figure.value.unwrap(), (interval.high / interval.low).ln())
        };
        let ((one, width), (other, width_of_two)) = (of(&once), of(&twice));
        assert!((one / other - 1.0).abs() < 1e-9, "{measure}: {one} {other}");
        assert!((width / width_of_two - 1.0).abs() < within, "{measure}: {width} {width_of_two}");
    }
}
