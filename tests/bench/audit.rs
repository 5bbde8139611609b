//! Time and memory of the statistics of an audit, and what their intervals and tests hold.
//!
//! `cargo bench --bench audit` audits uploaded scores of 1,000,000 rows in 8 groups with 1,000 bootstrap replicates and
//! 1,000 permutations, of one model and of two. `cargo bench --bench audit -- calibration [AUDITS]` simulates 2,000 or as
//! many audits of each kind: how often do tests reject where nothing differs, and how often do intervals hold the truth?
//! It fails where a promise is broken. Figures are kept in README.md beside this file. Memory is the largest that the
//! process had (Linux).

#![expect(clippy::print_stdout, clippy::panic, reason = "a program that prints figures")]

mod calibration;

use std::time::Instant;

use evenkeel::audit::report::Report;
use evenkeel::audit::settings::{
    BootstrapInterval, Calibration, Convention, Correction, Overlap, Settings, Statistics, Task,
};
use evenkeel::audit::uploaded::{Labels, Scores, Uploaded, UploadedAttribute, UploadedGroups, UploadedModel, audit};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn settings(resamples: usize, permutations: usize, seed: u64) -> Settings {
    Settings {
        task: Task::Uploaded,
        attributes: Vec::new(),
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
            resamples,
            interval: BootstrapInterval::Percentile,
            permutations,
            correction: Correction::Holm,
            margin: 0.0,
            min_group: 30,
            suppress_below: 0,
        },
        calibration: Calibration { bins: 10, temperature: false },
        membership: None,
        max_tokens: None,
        overlap: Overlap::Mark,
        convention: Convention::Defined,
        utility_match: None,
        seed,
    }
}

/// Rows in groups of the given accuracies; scores are calibrated where `noise` is 0.
fn upload(rows: usize, models: usize, right: &[f64], seed: u64) -> Uploaded {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut labels, mut groups, mut scores) = (Vec::new(), Vec::new(), vec![Vec::new(); models]);
    for row in 0..rows {
        let group = row % right.len();
        let label = rng.random::<bool>();
        for scores in &mut scores {
            let hit = rng.random::<f64>() < right[group];
            let confidence = 0.5 + 0.5 * rng.random::<f64>();
            scores.push(if label == hit { confidence } else { 1.0 - confidence });
        }
        labels.push(if label { "1" } else { "0" }.to_owned());
        groups.push(Some(format!("g{group}")));
    }
    let model = |(i, scores)| UploadedModel { name: format!("m{i}"), scores: Scores::Positive(scores) };
    Uploaded {
        classes: vec!["0".to_owned(), "1".to_owned()],
        labels: Labels::One(labels),
        models: scores.into_iter().enumerate().map(model).collect(),
        attributes: vec![UploadedAttribute { name: "g".to_owned(), groups: UploadedGroups::Values(groups) }],
        ..Uploaded::default()
    }
}

/// Largest resident memory in MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

fn run(settings: &Settings, uploaded: &Uploaded) -> Report {
    audit(settings, uploaded, "bench", &|| false).unwrap_or_else(|error| panic!("{error}"))
}

fn speed() {
    println!("rows models groups resamples permutations seconds MiB");
    for (rows, models, permutations) in
        [(250_000, 1, 0), (1_000_000, 1, 0), (1_000_000, 1, 1000), (1_000_000, 2, 0), (1_000_000, 2, 1000)]
    {
        let uploaded = upload(rows, models, &[0.8, 0.81, 0.82, 0.8, 0.79, 0.8, 0.8, 0.85], 1);
        let start = Instant::now();
        let report = run(&settings(1000, permutations, 1), &uploaded);
        let seconds = start.elapsed().as_secs_f64();
        assert!(report.figures.iter().all(|f| f.value.is_none_or(f64::is_finite)));
        println!("{rows} {models} 8 1000 {permutations} {seconds:.1} {:.0}", peak());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().position(|argument| argument == "calibration") {
        Some(at) => {
            let audits = arguments.get(at + 1).and_then(|number| number.parse().ok());
            calibration::calibration(audits.unwrap_or(2000));
        }
        None => speed(),
    }
}
