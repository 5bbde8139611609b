//! What intervals and tests of audits hold, in many simulated audits: a table, and an error where a promise is broken.
//!
//! A share is held against the interval that Clopper and Pearson give it at a level of 0.9999, so that a right promise
//! fails once in 10,000 seeds. The truth of each simulation is known from how its rows are drawn. Measures no time.

use evenkeel::audit::report::{Figure, Report, Scope};
use evenkeel::audit::settings::{BootstrapInterval, Correction, Settings};
use evenkeel::audit::statistics::distributions::{normal_cdf, normal_quantile};
use evenkeel::audit::statistics::intervals::{Proportion, proportion};
use evenkeel::audit::uploaded::{Labels, Scores, Uploaded, UploadedAttribute, UploadedGroups, UploadedModel};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{run, settings, upload};

/// What one simulation promises.
struct Promise {
    name: &'static str,
    /// Shares between which the right one lies.
    share: (f64, f64),
}

const fn promise(name: &'static str, low: f64, high: f64) -> Promise {
    Promise { name, share: (low, high) }
}

/// Prints a line a promise and returns those that are broken; `audit` says which of them a seed's audit keeps.
fn hold(of: &str, audits: u64, promises: &[Promise], audit: impl Fn(u64) -> Vec<bool>) -> Vec<String> {
    let mut counts = vec![0_u64; promises.len()];
    for seed in 0..audits {
        let kept = audit(seed);
        assert_eq!(kept.len(), promises.len(), "{of}");
        counts.iter_mut().zip(kept).for_each(|(count, kept)| *count += u64::from(kept));
    }
    let mut broken = Vec::new();
    for (Promise { name, share: (low, high) }, count) in promises.iter().zip(counts) {
        let share = count as f64 / audits as f64;
        let possible = proportion(count as f64, audits as f64, 0.9999, Proportion::ClopperPearson);
        let kept = possible.is_ok_and(|possible| possible.low <= *high && *low <= possible.high);
        let verdict = if kept { "" } else { "  BROKEN" };
        let name = format!("{of}: {name}");
        println!("{name:<72} {:>6.1} %  promised {:.1} to {:.1} %{verdict}", 100.0 * share, 100.0 * low, 100.0 * high);
        if !kept {
            broken.push(name);
        }
    }
    broken
}

/// Settings of a simulation.
fn asking(measures: &[&str], resamples: usize, permutations: usize, seed: u64) -> Settings {
    let mut settings = settings(resamples, permutations, seed);
    settings.measures = measures.iter().map(|name| (*name).to_owned()).collect();
    settings.statistics.correction = Correction::None;
    settings
}

fn figure<'r>(report: &'r Report, measure: &str, scope: &Scope, versus: Option<u32>) -> &'r Figure {
    let fits = |f: &&Figure| f.measure == measure && f.scope == *scope && f.versus == versus;
    report.figures.iter().find(fits).unwrap_or_else(|| panic!("no {measure}"))
}

/// Whether an interval holds the truth; one that is missing holds nothing, nor does one that is wider than all values.
fn holds(figure: &Figure, truth: f64) -> bool {
    figure.interval.as_ref().is_some_and(|i| (i.low..=i.high).contains(&truth) && i.high - i.low < 2.0)
}

fn rejects(report: &Report, measure: &str, scope: &Scope) -> bool {
    figure(report, measure, scope, None).test.as_ref().is_some_and(|test| test.p <= 0.05)
}

fn group(name: &str) -> Scope {
    Scope::Group(Some(name.to_owned()))
}

fn minus_rest(name: &str) -> Scope {
    Scope::MemberMinusRest(Some(name.to_owned()))
}

/// Rows of two groups whose label and score come from `draw`, by group.
fn drawn(rows: usize, seed: u64, draw: impl Fn(usize, &mut ChaCha8Rng) -> (bool, f64)) -> Uploaded {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut labels, mut scores, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..rows {
        let (label, score) = draw(row % 2, &mut rng);
        labels.push(if label { "1" } else { "0" }.to_owned());
        scores.push(score);
        groups.push(Some(format!("g{}", row % 2)));
    }
    Uploaded {
        classes: vec!["0".to_owned(), "1".to_owned()],
        labels: Labels::One(labels),
        models: vec![UploadedModel { name: "m".to_owned(), scores: Scores::Positive(scores) }],
        attributes: vec![UploadedAttribute { name: "g".to_owned(), groups: UploadedGroups::Values(groups) }],
        ..Uploaded::default()
    }
}

/// A standard normal number.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    normal_quantile(rng.random::<f64>().clamp(1e-12, 1.0 - 1e-12))
}

/// Clusters of five rows of one group; in a cluster all rows tend to be right, or wrong, together.
fn clustered(clusters: usize, right: [f64; 2], seed: u64) -> Uploaded {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x636c);
    // Shares of clusters are right ± 0.2: the mean stays.
    let of: Vec<f64> = (0..clusters).map(|c| right[c % 2] + if rng.random::<bool>() { 0.2 } else { -0.2 }).collect();
    let mut uploaded = drawn(5 * clusters, seed, |_, _| (true, 0.0));
    let score = |row: usize| if rng.random::<f64>() < of[row / 5] { 0.9 } else { 0.1 };
    uploaded.models[0].scores = Scores::Positive((0..5 * clusters).map(score).collect());
    let names = |row: usize| Some(format!("g{}", row / 5 % 2));
    uploaded.attributes[0].groups = UploadedGroups::Values((0..5 * clusters).map(names).collect());
    uploaded.clusters = Some((0..5 * clusters).map(|row| (row / 5).to_string()).collect());
    uploaded
}

fn tests(audits: u64) -> Vec<String> {
    let mut broken = Vec::new();
    // Accuracies and rates take few values, and the same value counts as extreme.
    let promises = [
        promise("accuracy", 0.02, 0.05),
        promise("tpr", 0.02, 0.055),
        promise("auc", 0.045, 0.055),
        promise("brier", 0.05, 0.05),
    ];
    for (groups, rows) in [(2, 200), (8, 400), (8, 2400)] {
        broken.extend(hold(&format!("rejections, {groups} groups, {rows} rows"), audits, &promises, |seed| {
            let names = ["accuracy", "tpr", "auc", "brier"];
            let rows = upload(rows, 1, &vec![0.85; groups], 10_000 + seed);
            let report = run(&asking(&names, 0, 199, seed), &rows);
            names.iter().map(|name| rejects(&report, name, &Scope::Difference)).collect()
        }));
    }
    let by_cluster = [promise("gap of accuracy", 0.02, 0.05)];
    broken.extend(hold("rejections, 40 clusters of 5 rows", audits, &by_cluster, |seed| {
        let report = run(&asking(&["accuracy"], 0, 199, seed), &clustered(40, [0.7, 0.7], 20_000 + seed));
        vec![rejects(&report, "accuracy", &Scope::Difference)]
    }));
    let margin = [promise("group against rest", 0.04, 0.05), promise("gap", 0.03, 0.055)];
    broken.extend(hold("equivalence at the margin, 600 rows", audits, &margin, |seed| {
        let mut settings = asking(&["accuracy"], 0, 0, seed);
        settings.statistics.margin = 0.1;
        let report = run(&settings, &upload(600, 1, &[0.85, 0.75], 30_000 + seed));
        [minus_rest("g0"), Scope::Difference].map(|scope| rejects(&report, "accuracy_equivalence", &scope)).to_vec()
    }));
    broken
}

fn intervals(audits: u64) -> Vec<String> {
    const RESAMPLES: usize = 999;
    let mut broken = Vec::new();
    let wilson = [promise("Wilson, 0.9", 0.93, 0.97), promise("Wilson, 0.5", 0.93, 0.97)];
    broken.extend(hold("rate of a group, 60 rows", audits, &wilson, |seed| {
        let report = run(&asking(&["accuracy"], 0, 0, seed), &upload(120, 1, &[0.9, 0.5], 40_000 + seed));
        [("g0", 0.9), ("g1", 0.5)].map(|(of, p)| holds(figure(&report, "accuracy", &group(of), None), p)).to_vec()
    }));
    for rows in [200, 1000] {
        let newcombe = [promise("Newcombe", 0.94, 0.96)];
        broken.extend(hold(&format!("group against rest, {rows} rows"), audits, &newcombe, |seed| {
            let report = run(&asking(&["accuracy"], 0, 0, seed), &upload(rows, 1, &[0.75, 0.9], 50_000 + seed));
            vec![holds(figure(&report, "accuracy", &minus_rest("g0"), None), 0.75 - 0.9)]
        }));
    }
    for (interval, name) in [(BootstrapInterval::Percentile, "percentile"), (BootstrapInterval::Bca, "bca")] {
        let gaps = [promise("gap of accuracy, 2 groups", 0.93, 0.96), promise("smallest rate, 2 groups", 0.92, 0.96)];
        broken.extend(hold(&format!("{name}, 600 rows"), audits, &gaps, |seed| {
            let mut settings = asking(&["accuracy"], RESAMPLES, 0, seed);
            settings.statistics.interval = interval;
            let report = run(&settings, &upload(600, 1, &[0.75, 0.9], 60_000 + seed));
            let of = |scope: Scope, truth: f64| holds(figure(&report, "accuracy", &scope, None), truth);
            vec![of(Scope::Difference, 0.15), of(Scope::Minimum, 0.75)]
        }));
        let areas = [promise("auc of all rows", 0.93, 0.96), promise("auc, group against rest", 0.93, 0.96)];
        broken.extend(hold(&format!("{name}, 400 rows"), audits, &areas, |seed| {
            let mut settings = asking(&["auc"], RESAMPLES, 0, seed);
            settings.statistics.interval = interval;
            // Scores of both classes are normal, and as far apart in both groups.
            let rows = drawn(400, 70_000 + seed, |_, rng| {
                let label = rng.random::<bool>();
                (label, normal_cdf(normal(rng) + if label { 1.0 } else { 0.0 }))
            });
            let report = run(&settings, &rows);
            let auc = normal_cdf(std::f64::consts::FRAC_1_SQRT_2);
            let of = |scope: Scope, truth: f64| holds(figure(&report, "auc", &scope, None), truth);
            vec![of(Scope::Overall, auc), of(minus_rest("g0"), 0.0)]
        }));
    }
    let errors = [
        promise("ECE", 0.92, 0.97),
        promise("smooth ECE", 0.92, 0.99),
        promise("over-confidence", 0.935, 0.96),
        promise("Brier score", 0.935, 0.96),
    ];
    broken.extend(hold("percentile, 1,000 rows", audits, &errors, |seed| {
        let names = ["ece_width_positive_class", "smooth_ece_positive_class", "overconfidence_positive_class", "brier"];
        // Promises 0.2 too much everywhere: ECE is that, in any bins.
        let rows = drawn(1000, 80_000 + seed, |_, rng| {
            let score = 0.3 + 0.6 * rng.random::<f64>();
            (rng.random::<f64>() < score - 0.2, score)
        });
        let report = run(&asking(&names, RESAMPLES, 0, seed), &rows);
        // E (score − label)² = E q (1 − q) + 0.2² with q even on [0.1, 0.7].
        let mean_square = (0.7_f64.powi(3) - 0.1_f64.powi(3)) / (3.0 * 0.6);
        let truths = [0.2, 0.2, 0.2, 0.4 - mean_square + 0.04];
        names.iter().zip(truths).map(|(name, t)| holds(figure(&report, name, &Scope::Overall, None), t)).collect()
    }));
    let paired = [
        promise("accuracy", 0.935, 0.96),
        promise("accuracy of a group", 0.935, 0.96),
        promise("gap of accuracy", 0.93, 0.96),
    ];
    broken.extend(hold("paired difference of models, 600 rows", audits, &paired, |seed| {
        let (first, second) = ([0.75, 0.9], [0.6, 0.85]);
        let mut rows = upload(600, 1, &first, 90_000 + seed);
        // The second model errs where the first does, and in some rows more.
        let mut rng = ChaCha8Rng::seed_from_u64(91_000_000 + seed);
        let (Labels::One(labels), Scores::Positive(scores)) = (&rows.labels, &rows.models[0].scores) else {
            panic!("labels and scores of a binary task")
        };
        let scores = scores.iter().zip(labels).enumerate().map(|(row, (score, label))| {
            let right = (*score >= 0.5) == (label == "1");
            let stays = rng.random::<f64>() < second[row % 2] / first[row % 2];
            if right && !stays { 1.0 - score } else { *score }
        });
        let scores = Scores::Positive(scores.collect());
        rows.models.push(UploadedModel { name: "second".to_owned(), scores });
        let report = run(&asking(&["accuracy"], RESAMPLES, 0, seed), &rows);
        let of = |scope: Scope, truth: f64| holds(figure(&report, "accuracy", &scope, Some(0)), truth);
        vec![of(Scope::Overall, -0.1), of(group("g0"), -0.15), of(Scope::Difference, 0.25 - 0.15)]
    }));
    // Few clusters make intervals short.
    for (clusters, low) in [(40, 0.90), (200, 0.93)] {
        let promises = [promise("rate of a group", low, 0.96), promise("group against rest", low, 0.96)];
        broken.extend(hold(&format!("percentile, {clusters} clusters of 5 rows"), audits, &promises, |seed| {
            let rows = clustered(clusters, [0.6, 0.75], 100_000 + seed);
            let report = run(&asking(&["accuracy"], RESAMPLES, 0, seed), &rows);
            let of = |scope: Scope, truth: f64| holds(figure(&report, "accuracy", &scope, None), truth);
            vec![of(group("g0"), 0.6), of(minus_rest("g0"), -0.15)]
        }));
    }
    broken
}

/// Simulates as many audits of each kind.
pub(super) fn calibration(audits: u64) {
    println!("{audits} audits each; tests at 5 %, intervals of 95 %");
    let broken = [tests(audits), intervals(audits)].concat();
    assert!(broken.is_empty(), "broken promises: {}", broken.join("; "));
}
