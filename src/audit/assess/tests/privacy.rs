//! Membership inference: attacks that must find members, and those that must not.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::audit::report::Status;
use crate::audit::settings::{Attack, Membership};
use crate::audit::table::{AttackScores, MembershipTable, Shadows};

/// Half of the rows are members; members have signals that are `lift` higher.
fn table(rows: usize, lift: f64, seed: u64) -> Table {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut noise = move || (0..6).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 1.4;
    let members: Vec<bool> = (0..rows).map(|row| row % 2 == 0).collect();
    // Some rows are hard for every model: what shadows tell and a threshold on the loss cannot.
    let ease: Vec<f64> = (0..rows).map(|_| 3.0 * noise()).collect();
    let mut signal = |row: usize, inside: bool| ease[row] + noise() * 0.3 + if inside { lift } else { 0.0 };
    let signals: Vec<f64> = (0..rows).map(|row| signal(row, members[row])).collect();
    let shadow_members: Vec<Vec<bool>> =
        (0..8).map(|s| (0..rows).map(|row| (row / 2 + s) % 2 == 0).collect()).collect();
    let shadows = shadow_members.iter().map(|m| (0..rows).map(|row| signal(row, m[row])).collect()).collect();
    let loss =
        AttackScores { attack: Attack::Loss, parameter: None, scores: signals.iter().map(|s| Some(*s)).collect() };
    let groups: Vec<Option<&str>> = (0..rows).map(|row| Some(if row % 10 < 6 { "a" } else { "b" })).collect();
    Table {
        rows,
        weights: None,
        clusters: None,
        attributes: vec![attribute("g", &groups)],
        controls: Vec::new(),
        outcomes: Outcomes::Ratios { measures: Vec::new(), models: vec![Vec::new()] },
        membership: Some(MembershipTable {
            members: vec![members.clone()],
            scores: vec![vec![loss]],
            signals: vec![signals.clone()],
            shadows: vec![Shadows { signals: shadows, members: shadow_members }],
            planted: Some((members, signals)),
        }),
        preferences: Vec::new(),
    }
}

fn settings() -> Settings {
    let membership = Membership {
        attacks: vec![
            Attack::Loss,
            Attack::MinK,
            Attack::Rmia,
            Attack::LiraOnlineFixed,
            Attack::LiraOffline,
            Attack::LiraOfflineFixed,
        ],
        min_k: vec![0.2],
        false_positive_rates: vec![0.1, 0.001],
        shadows: 8,
        shadow_fraction: 0.5,
        planted_control: true,
        mirrored: false,
    };
    Settings { membership: Some(membership), ..super::settings() }
}

#[test]
fn shadows_find_members_that_the_loss_does_not() {
    let report = report(&settings(), &table(400, 1.0, 1));
    let auc = |attack: &str| find(&report, &format!("mia_{attack}_auc"), &Scope::Overall).clone();
    for attack in ["lira_online_fixed", "lira_offline", "lira_offline_fixed", "rmia"] {
        assert!(auc(attack).value.unwrap() > 0.85, "{attack}: {:?}", auc(attack));
    }
    let loss = auc("loss");
    assert!((0.5..0.8).contains(&loss.value.unwrap()), "{loss:?}");
    let test = loss.test.as_ref().unwrap();
    assert!(test.name == "auc_null" && test.null.unwrap() > 0.5);
    let interval = loss.interval.as_ref().unwrap();
    assert!(interval.low < loss.value.unwrap() && loss.value.unwrap() < interval.high);
    let gap = find(&report, "mia_loss_auc", &Scope::Difference);
    assert!(gap.test.as_ref().is_some_and(|t| t.name == "permutation" && t.p > 0.05), "{gap:?}");
    let tpr = find(&report, "mia_lira_online_fixed_tpr_at_fpr_0.1", &group("a"));
    assert!(tpr.value.unwrap() > 0.5 && tpr.interval.as_ref().unwrap().method == "clopper_pearson");
    let fpr = find(&report, "mia_lira_online_fixed_fpr_at_fpr_0.1_global", &Scope::Overall);
    assert!(fpr.value.unwrap() <= 0.1);
    let unreachable = find(&report, "mia_loss_tpr_at_fpr_0.001", &Scope::Overall);
    assert_eq!((unreachable.status, unreachable.reason.as_deref()), (Status::Undefined, Some("unreachable")));
    let missing = find(&report, "mia_min_k_auc", &Scope::Overall);
    assert_eq!((missing.status, missing.reason.as_deref()), (Status::NotMeasured, Some("not_available")));
    assert!(!report.warnings.iter().any(|w| w.kind == "controls_failed"), "{:?}", report.warnings);
    for curve in &report.rocs {
        assert!(curve.points.len() <= 200 && curve.points.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1));
        assert_eq!(curve.points.last(), Some(&(1.0, 1.0)));
    }
    assert_eq!(report.rocs.len(), 5 * 3);
}

#[test]
fn without_a_difference_nothing_is_found_and_the_planted_control_fails() {
    let report = report(&settings(), &table(300, 0.0, 2));
    for attack in ["loss", "lira_online_fixed", "rmia"] {
        let auc = find(&report, &format!("mia_{attack}_auc"), &Scope::Overall).value.unwrap();
        assert!((auc - 0.5).abs() < 0.13, "{attack}: {auc}");
    }
    assert!(report.warnings.iter().any(|w| w.kind == "controls_failed" && w.message.contains("planted")));
}
