//! Properties of calibration figures; values are in `golden_audit`.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::audit::statistics::auc::brier;
use crate::audit::statistics::smooth_ece::{smooth_ece, smooth_ece_at};

fn drawn(rows: usize, seed: u64) -> (Vec<f64>, Vec<bool>, ChaCha8Rng) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let confidence: Vec<f64> = (0..rows).map(|_| (rng.random_range(0.0..1.0_f64) * 50.0).round() / 50.0).collect();
    let hit = confidence.iter().map(|p| rng.random_bool(p * p)).collect();
    (confidence, hit, rng)
}

fn figures(edges: &Edges, confidence: &[f64], hit: &[bool], weights: Option<&[f64]>) -> [f64; 7] {
    let bins = Bins::of(edges, confidence, hit, weights);
    [
        bins.ece().unwrap(),
        bins.mce().unwrap(),
        bins.ace().unwrap(),
        bins.rmsce().unwrap(),
        bins.over_confidence().unwrap(),
        brier(hit, confidence, weights).unwrap(),
        smooth_ece_at(confidence, hit, weights, 0.1).unwrap(),
    ]
}

fn assert_near(got: &[f64], expected: &[f64]) {
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
    }
}

#[test]
fn a_weight_counts_rows_and_a_weight_of_0_none() {
    let (confidence, hit, mut rng) = drawn(200, 1);
    let weights: Vec<f64> = (0..200).map(|_| f64::from(rng.random_range(0..4_u8))).collect();
    let rows: Vec<usize> = (0..200).flat_map(|i| vec![i; weights[i] as usize]).collect();
    let repeated: (Vec<f64>, Vec<bool>) = rows.iter().map(|i| (confidence[*i], hit[*i])).unzip();
    for closure in [Closure::Left, Closure::Right, Closure::LeftOneApart] {
        let edges = Edges::width(7, closure);
        let weighted = figures(&edges, &confidence, &hit, Some(&weights));
        let expected = figures(&edges, &repeated.0, &repeated.1, None);
        assert_near(&weighted[..6], &expected[..6]);
        // The smooth error scales weights to the number of rows, which differs here, and adds a constant.
        assert!((weighted[6] - expected[6]).abs() < 1e-4);
    }
}

#[test]
fn neither_the_order_of_rows_nor_the_scale_of_weights_matters() {
    let (confidence, hit, mut rng) = drawn(150, 2);
    let weights: Vec<f64> = (0..150).map(|_| rng.random_range(0.1..3.0)).collect();
    let mut order: Vec<usize> = (0..150).collect();
    order.shuffle(&mut rng);
    let shuffled: Vec<f64> = order.iter().map(|i| confidence[*i]).collect();
    let hits: Vec<bool> = order.iter().map(|i| hit[*i]).collect();
    let scaled: Vec<f64> = order.iter().map(|i| weights[*i] * 0.01).collect();
    let edges = Edges::chunks(&confidence, Some(&weights), 10);
    let others = Edges::chunks(&shuffled, Some(&scaled), 10);
    assert_eq!(edges, others);
    assert_near(
        &figures(&edges, &confidence, &hit, Some(&weights)),
        &figures(&others, &shuffled, &hits, Some(&scaled)),
    );
    let (one, other) = (smooth_ece(&confidence, &hit, Some(&weights)), smooth_ece(&shuffled, &hits, Some(&scaled)));
    assert_near(&[one.unwrap().value], &[other.unwrap().value]);
}

#[test]
fn chunks_never_split_a_tie_and_are_even_without_ties() {
    let (confidence, hit, mut rng) = drawn(400, 3);
    let edges = Edges::chunks(&confidence, None, 10);
    for value in &confidence {
        assert!(edges.range(edges.bin(*value)).0 < *value || edges.bin(*value) == 0);
    }
    let table = Bins::of(&edges, &confidence, &hit, None).table();
    assert_eq!(table.len(), edges.bins());
    let distinct: Vec<f64> = (0..47).map(|_| rng.random_range(0.0..1.0)).collect();
    let edges = Edges::chunks(&distinct, None, 10);
    let sizes: Vec<f64> = Bins::of(&edges, &distinct, &[true; 47], None).table().iter().map(|row| row.weight).collect();
    assert_eq!(sizes, [5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 4.0, 4.0, 4.0]);
    assert_eq!(Edges::chunks(&[0.4; 9], None, 3).bins(), 1);
}

#[test]
fn resampling_by_accumulation_equals_starting_over() {
    let (confidence, hit, mut rng) = drawn(100, 4);
    let edges = Edges::width(10, Closure::Left);
    let place: Vec<usize> = confidence.iter().map(|c| edges.bin(*c)).collect();
    let mut bins = Bins::of(&edges, &confidence, &hit, None);
    let rows: Vec<usize> = (0..100).map(|_| rng.random_range(0..100)).collect();
    bins.clear();
    for row in &rows {
        bins.add_to(place[*row], confidence[*row], hit[*row], 1.0);
    }
    let resampled: (Vec<f64>, Vec<bool>) = rows.iter().map(|i| (confidence[*i], hit[*i])).unzip();
    assert_near(&[bins.ece().unwrap()], &[Bins::of(&edges, &resampled.0, &resampled.1, None).ece().unwrap()]);
}

#[test]
fn nothing_is_undefined() {
    let edges = Edges::width(10, Closure::Left);
    let bins = Bins::new(&edges);
    for figure in [bins.ece(), bins.mce(), bins.ace(), bins.rmsce(), bins.over_confidence()] {
        assert_eq!(figure, Err(Undefined::NoRows));
    }
    assert_eq!(brier(&[true], &[0.3], Some(&[0.0])), Err(Undefined::NoRows));
    assert_eq!(smooth_ece(&[], &[], None), Err(Undefined::NoRows));
    assert_eq!(null_ece(&edges, &[0.3], Some(&[0.0]), 10, 0), Err(Undefined::NoRows));
    assert_eq!(Temperature::fit(&[], 2, &[], None), Err(Undefined::NoRows));
}

#[test]
fn the_sign_of_over_confidence() {
    let edges = Edges::width(10, Closure::Left);
    let of = |hit: &[bool]| Bins::of(&edges, &[0.9, 0.8, 0.7, 0.6], hit, None).over_confidence().unwrap();
    assert!((of(&[true, true, false, false]) - 0.25).abs() < 1e-12);
    assert!((of(&[true; 4]) + 0.25).abs() < 1e-12);
}

#[test]
fn the_null_is_what_calibrated_rows_show() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let confidence: Vec<f64> = (0..100).map(|_| rng.random_range(0.0..1.0)).collect();
    let edges = Edges::width(10, Closure::Left);
    let null = null_ece(&edges, &confidence, None, 2000, 7).unwrap();
    assert_eq!(null, null_ece(&edges, &confidence, None, 2000, 7).unwrap());
    // E|X| of a bin: √(2/π)·√(Σ p(1 − p)), by the normal approximation.
    let mut variance = [0.0; 10];
    for p in &confidence {
        variance[edges.bin(*p)] += p * (1.0 - p);
    }
    let expected: f64 =
        variance.iter().map(|v: &f64| (2.0 / std::f64::consts::PI * v).sqrt()).sum::<f64>() / confidence.len() as f64;
    assert!((null.mean() - expected).abs() < 0.05 * expected, "{} is not near {expected}", null.mean());
    assert!(null.quantile(0.95) > null.mean());
    // Calibrated rows lie above the 95 % quantile once in twenty.
    let above = (0..400).filter(|_| {
        let hit: Vec<bool> = confidence.iter().map(|p| rng.random_bool(*p)).collect();
        Bins::of(&edges, &confidence, &hit, None).ece().unwrap() > null.quantile(0.95)
    });
    let above = above.count();
    assert!((8..=34).contains(&above), "{above} of 400");
    assert!(null.p_value(0.5) == 1.0 / 2001.0 && null.p_value(0.0) == 1.0);
    let sure = null_ece(&edges, &[0.0, 1.0], None, 50, 1).unwrap();
    assert_eq!(sure.quantile(1.0), 0.0);
}

#[test]
fn a_planted_temperature_is_found() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for (classes, planted) in [(2, 0.4), (3, 1.0), (5, 2.5), (4, 30.0)] {
        let rows: Vec<Vec<f64>> =
            (0..40).map(|_| (0..classes).map(|_| rng.random_range(-6.0..6.0)).collect()).collect();
        // Each row with each label, weighted by its probability at the planted temperature: the exact expectation.
        let (mut logits, mut label, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            let sum: f64 = row.iter().map(|z| (z / planted).exp()).sum();
            for (class, z) in row.iter().enumerate() {
                logits.extend(row);
                label.push(class);
                weights.push((z / planted).exp() / sum);
            }
        }
        let fitted = Temperature::fit(&logits, classes, &label, Some(&weights)).unwrap();
        assert!((fitted.value() / planted - 1.0).abs() < 1e-9, "{} is not {planted}", fitted.value());
        let edges = Edges::width(1, Closure::Left);
        let error = |probabilities: &[f64]| {
            let (confidence, hit) = top_label(probabilities, classes, &label);
            Bins::of(&edges, &confidence, &hit, Some(&weights)).ece().unwrap()
        };
        assert!(error(&fitted.apply(&logits, classes)) < 1e-9);
        let again = Temperature::logits(&fitted.apply(&logits, classes));
        let rest = Temperature::fit(&again, classes, &label, Some(&weights)).unwrap();
        assert!((rest.value() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn the_error_of_a_temperature_is_the_spread_of_its_fits() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let (planted, rows) = (1.7, 300);
    let (mut fits, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        let score: Vec<f64> = (0..rows).map(|_| rng.random_range(0.02..0.98)).collect();
        let logits = Temperature::binary(&score);
        let truth = |row: &[f64]| 1.0 / (1.0 + ((row[0] - row[1]) / planted).exp());
        // Rows come in pairs of one label: half as much is known as there are rows.
        let logits: Vec<f64> = logits.chunks(4).flat_map(|pair| [&pair[..2], &pair[..2]].concat()).collect();
        let label: Vec<usize> =
            logits.chunks(4).flat_map(|pair| [usize::from(rng.random_bool(truth(&pair[..2]))); 2]).collect();
        let clusters: Vec<u32> = (0..rows as u32).map(|row| row / 2).collect();
        let fitted = Temperature::fit(&logits, 2, &label, None).unwrap();
        fits.push(fitted.value().ln());
        errors.push(fitted.log_error(&logits, 2, &label, (None, Some(&clusters))).unwrap());
        let alone = fitted.log_error(&logits, 2, &label, (None, None)).unwrap();
        assert!((errors.last().unwrap() / alone - 2.0_f64.sqrt()).abs() < 1e-9, "pairs of equal rows");
    }
    let mean = fits.iter().sum::<f64>() / 300.0;
    let spread = (fits.iter().map(|fit| (fit - mean).powi(2)).sum::<f64>() / 299.0).sqrt();
    let error = errors.iter().sum::<f64>() / 300.0;
    // A spread of 300 fits is known to within 4 % (one standard error).
    assert!((error / spread - 1.0).abs() < 0.15, "{error} is not near {spread}");
}

#[test]
fn a_temperature_at_infinity_is_undefined() {
    let right = Temperature::binary(&[0.9, 0.2, 0.8]);
    assert_eq!(Temperature::fit(&right, 2, &[1, 0, 1], None), Err(Undefined::Unbounded));
    assert_eq!(Temperature::fit(&right, 2, &[0, 1, 0], None), Err(Undefined::Unbounded));
    assert!(Temperature::fit(&right, 2, &[1, 0, 0], None).unwrap().value().is_finite());
    let certain = Temperature::binary(&[1.0, 0.0, 1.0, 0.5]);
    assert!(Temperature::fit(&certain, 2, &[1, 0, 0, 1], None).unwrap().value() > 1.0);
}
