//! Membership inference: attacks that must find members, and those that must not.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::audit::report::Status;
use crate::audit::settings::{Attack, Membership};
use crate::audit::table::{AttackScores, MembershipTable, Planted, Shadows};

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
            scores: vec![vec![loss.clone()]],
            signals: vec![signals.clone()],
            references: vec![Vec::new()],
            shadows: vec![Shadows { signals: shadows, members: shadow_members }],
            planted: Some(Planted { model: 0, members, scores: vec![loss], signals }),
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
    let failed = failed(&report);
    for attack in ["mia", "mia_loss", "mia_rmia", "mia_lira_offline", "mia_lira_offline_fixed"] {
        assert!(failed.contains(&format!("{attack} does not find the planted members")), "{attack}: {failed}");
    }
    assert!(!failed.contains("shuffled"), "{failed}");
}

/// The warning about controls.
fn failed(report: &Report) -> String {
    let warning = report.warnings.iter().find(|warning| warning.kind == "controls_failed");
    warning.map_or(String::new(), |warning| warning.message.clone())
}

#[test]
fn every_attack_is_tried_on_the_planted_members() {
    let report = report(&settings(), &table(400, 1.0, 1));
    for attack in ["", "_rmia", "_lira_online_fixed", "_lira_offline", "_lira_offline_fixed"] {
        let planted = find(&report, &format!("mia{attack}_control_planted_auc"), &Scope::Overall);
        let (value, interval) = (planted.value.unwrap(), planted.interval.as_ref().unwrap());
        assert!(
            interval.low <= value && value <= interval.high && interval.high > interval.low,
            "{attack}: {planted:?}"
        );
        // The same rows and the same scores as the model itself.
        if !attack.is_empty() {
            let own = find(&report, &format!("mia{attack}_auc"), &Scope::Overall);
            assert_eq!(own.value, planted.value, "{attack}");
        }
    }
    let missing = find(&report, "mia_min_k_control_planted_auc", &Scope::Overall);
    assert_eq!(missing.status, Status::NotMeasured);
}

/// A model among its own shadows is told apart by what its memberships say of the shadows, not by what it has learnt.
#[test]
fn an_attack_that_is_told_who_is_a_member_does_not_pass_the_shuffled_control() {
    let lira = Membership {
        attacks: vec![Attack::Loss, Attack::LiraOnlineFixed, Attack::LiraOfflineFixed],
        planted_control: false,
        ..settings().membership.unwrap()
    };
    let settings = Settings { membership: Some(lira), ..settings() };
    let mut sound = table(400, 0.0, 5);
    let membership = sound.membership.as_mut().unwrap();
    membership.planted = None;
    membership.shadows[0].signals.truncate(4);
    membership.shadows[0].members.truncate(4);
    let mut leaking = sound.clone();
    let membership = leaking.membership.as_mut().unwrap();
    membership.shadows[0].signals.push(membership.signals[0].clone());
    membership.shadows[0].members.push(membership.members[0].clone());
    let (sound, leaking) = (report(&settings, &sound), report(&settings, &leaking));
    assert_eq!(failed(&sound), "");
    let auc = |report: &Report, name: &str| find(report, &format!("mia_{name}auc"), &Scope::Overall).value.unwrap();
    assert!((auc(&sound, "lira_online_fixed_") - 0.5).abs() < 0.1);
    assert!(auc(&leaking, "lira_online_fixed_") > 0.65, "the leak is one");
    assert!(auc(&leaking, "lira_online_fixed_control_shuffled_") > 0.65);
    let failed = failed(&leaking);
    assert!(failed.contains("mia_lira_online_fixed tells shuffled members"), "{failed}");
    assert!(!failed.contains("mia_loss"), "what fits nothing has nothing to leak: {failed}");
}

#[test]
fn gaps_of_all_privacy_figures_have_intervals_and_models_are_compared() {
    let mut table = table(400, 1.0, 1);
    let membership = table.membership.as_mut().unwrap();
    membership.planted = None;
    // A second model that gives away the members of one group only, row by row.
    let members = membership.members[0].clone();
    let signals: Vec<f64> = (0..400_usize)
        .map(|row| (row * 37 % 101) as f64 / 25.0 + if members[row] && row % 10 < 6 { 3.0 } else { 0.0 })
        .collect();
    let scores = signals.iter().map(|signal| Some(*signal)).collect();
    membership.members.push(members.clone());
    membership.scores.push(vec![AttackScores { attack: Attack::Loss, parameter: None, scores }]);
    membership.references.push(Vec::new());
    membership.shadows.push(Shadows::default());
    membership.signals.push(signals.clone());
    table.outcomes = Outcomes::Ratios { measures: Vec::new(), models: vec![Vec::new(); 2] };
    let report = report(&settings(), &table);
    let figure = |measure: &str, scope: &Scope, model: u32, versus: Option<u32>| {
        let fits = |f: &&Figure| f.measure == measure && f.scope == *scope && f.model == model && f.versus == versus;
        report.figures.iter().find(fits).unwrap_or_else(|| panic!("no {measure} {scope:?} {model} {versus:?}"))
    };
    for measure in ["balanced_accuracy", "tpr_at_fpr_0.1", "tpr_at_fpr_0.1_global", "fpr_at_fpr_0.1_global"] {
        let measure = &format!("mia_loss_{measure}");
        for model in 0..2 {
            let value = |scope: &Scope| figure(measure, scope, model, None).value.unwrap();
            let gap = figure(measure, &Scope::Difference, model, None);
            let expected = (value(&group("a")) - value(&group("b"))).abs();
            assert!((gap.value.unwrap() - expected).abs() < 1e-12, "{gap:?}");
            let interval = gap.interval.as_ref().unwrap();
            assert_eq!(interval.method, "percentile");
            let tested = gap.test.as_ref().is_some_and(|test| test.name == "permutation");
            assert_eq!(tested, !measure.ends_with("_global"), "{gap:?}");
        }
        let gap = |model| figure(measure, &Scope::Difference, model, None).value.unwrap();
        let apart = figure(measure, &Scope::Difference, 1, Some(0));
        assert!((apart.value.unwrap() - (gap(1) - gap(0))).abs() < 1e-12 && apart.interval.is_some(), "{apart:?}");
    }
    // What the curve itself says of the rows of a group.
    let rows: Vec<usize> = (0..400).filter(|row| row % 10 < 6).collect();
    let of_group = (
        rows.iter().map(|row| signals[*row]).collect::<Vec<f64>>(),
        rows.iter().map(|r| members[*r]).collect::<Vec<bool>>(),
    );
    let roc = crate::audit::statistics::roc::Roc::new(&of_group.0, &of_group.1, None).unwrap();
    let own = figure("mia_loss_tpr_at_fpr_0.1", &group("a"), 1, None);
    assert_eq!(own.value, Some(roc.tpr_at_fpr(0.1).at_most_all_points));
    assert_eq!(own.interval.as_ref().unwrap().method, "clopper_pearson");
    assert_eq!(figure("mia_loss_balanced_accuracy", &group("a"), 1, None).value, Some(roc.balanced_accuracy()));
    let gap = figure("mia_loss_tpr_at_fpr_0.1", &Scope::Difference, 1, None);
    assert!(gap.interval.as_ref().unwrap().low > 0.2 && gap.test.as_ref().unwrap().p <= 0.05, "{gap:?}");
    let unreachable = figure("mia_loss_tpr_at_fpr_0.001", &Scope::Difference, 1, None);
    assert_eq!(unreachable.status, Status::Undefined);
    for figure in report.figures.iter().filter(|f| f.measure.starts_with("mia_") && f.value.is_some()) {
        assert!(figure.interval.is_some(), "no interval: {figure:?}");
    }
}

#[test]
fn every_share_of_min_k_has_its_curve() {
    let mut table = table(60, 1.0, 1);
    let scores = &mut table.membership.as_mut().unwrap().scores[0];
    for share in [0.2, 0.4] {
        scores.push(AttackScores { attack: Attack::MinK, parameter: Some(share), scores: scores[0].scores.clone() });
    }
    let report = report(&settings(), &table);
    let parameters: Vec<Option<f64>> = report
        .rocs
        .iter()
        .filter(|roc| roc.attack == Attack::MinK && roc.scope == Scope::Overall)
        .map(|roc| roc.parameter)
        .collect();
    assert_eq!(parameters, [Some(0.2), Some(0.4)]);
}
