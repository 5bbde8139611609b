//! Uploads that are refused, uploads that are taken, and the golden list of both.

use super::*;
use crate::audit::report::Scope;
use crate::audit::settings::{
    BootstrapInterval, Calibration, Convention, Correction, Membership, Overlap, Statistics, Task,
};

fn settings() -> Settings {
    Settings {
        task: Task::Uploaded,
        attributes: Vec::new(),
        intersections: Vec::new(),
        controls: Vec::new(),
        weight_column: None,
        cluster_column: None,
        splits: Vec::new(),
        measures: vec!["accuracy".to_owned(), "auc".to_owned(), "demographic_parity_difference".to_owned()],
        positive: None,
        threshold: 0.5,
        statistics: Statistics {
            level: 0.95,
            resamples: 10,
            interval: BootstrapInterval::Percentile,
            permutations: 9,
            correction: Correction::Holm,
            margin: 0.0,
            min_group: 1,
            suppress_below: 0,
        },
        calibration: Calibration { bins: 10, temperature: false },
        membership: None,
        max_tokens: Some(16),
        overlap: Overlap::Mark,
        convention: Convention::Defined,
        utility_match: None,
        seed: 1,
    }
}

fn text(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn upload() -> Uploaded {
    let values = ["a", "a", "b", "b", "a", "b"].map(|v| Some(v.to_owned())).to_vec();
    Uploaded {
        classes: text(&["0", "1"]),
        labels: Labels::One(text(&["1", "0", "1", "0", "1", "0"])),
        models: vec![UploadedModel {
            name: "m".to_owned(),
            scores: Scores::Positive(vec![0.9, 0.2, 0.4, 0.6, 0.7, 0.1]),
        }],
        attributes: vec![UploadedAttribute { name: "g".to_owned(), groups: UploadedGroups::Values(values) }],
        ..Uploaded::default()
    }
}

fn faults(uploaded: &Uploaded) -> Vec<String> {
    match check(&settings(), uploaded, "test") {
        Err(UploadedError::Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
        Err(UploadedError::Audit(error)) => panic!("{error}"),
        Ok(_) => Vec::new(),
    }
}

#[test]
fn every_fault_is_told_with_field_and_row() {
    let mut uploaded = upload();
    uploaded.labels = Labels::One(text(&["1", "maybe", "1", "0", "1", "0"]));
    uploaded.models[0].scores = Scores::Positive(vec![f64::NAN, 0.2, 1.2, -0.1, 0.7, f64::INFINITY]);
    uploaded.models.push(UploadedModel { name: "m".to_owned(), scores: Scores::Classes(vec![0.5; 11]) });
    uploaded.weights = Some(vec![1.0, -1.0, f64::NAN, 0.0, 1.0, 1.0]);
    uploaded.clusters = Some(text(&["x"]));
    let faults = faults(&uploaded).join("\n");
    for expected in [
        "labels[1]: `maybe`",
        "models[0].scores[0]: NaN",
        "models[0].scores[2]: 1.2",
        "models[0].scores[3]: -0.1",
        "models[0].scores[5]: inf",
        "models[1].scores: has 11 values, expected 12",
        "models[1]: `m` is there twice",
        "weights[1]: -1",
        "weights[2]: NaN",
        "clusters: has 1 values, expected 6",
    ] {
        assert!(faults.contains(expected), "`{expected}` not in:\n{faults}");
    }
}

#[test]
fn probabilities_sum_to_one_unless_labels_are_several() {
    let mut uploaded = upload();
    uploaded.models[0].scores = Scores::Classes([[0.4, 0.6]; 5].concat().into_iter().chain([0.4, 0.7]).collect());
    assert!(faults(&uploaded).iter().any(|fault| fault.contains("models[0].scores[5]: the probabilities sum to 1.1")));
    uploaded.labels =
        Labels::Several(vec![text(&["0", "1"]), Vec::new(), text(&["1"]), Vec::new(), Vec::new(), Vec::new()]);
    uploaded.multi_label = true;
    assert_eq!(faults(&uploaded), Vec::<String>::new());
    uploaded.models[0].scores = Scores::Positive(vec![0.5; 6]);
    assert!(!faults(&uploaded).is_empty());
}

#[test]
fn weights_of_nothing_and_empty_uploads_are_refused() {
    let zero = Uploaded { weights: Some(vec![0.0; 6]), ..upload() };
    assert!(faults(&zero).iter().any(|fault| fault.contains("every weight is 0")));
    let empty = Uploaded { labels: Labels::One(Vec::new()), ..upload() };
    assert_eq!(faults(&empty).len(), 1);
    assert_eq!(faults(&Uploaded { models: Vec::new(), ..upload() }), ["models: is empty"]);
}

#[test]
fn missing_groups_are_a_group_and_combinations_list_what_does_not_occur() {
    let mut uploaded = upload();
    let ages = ["old", "old", "old", "young", "old", "young"].map(|v| Some(v.to_owned())).to_vec();
    uploaded.attributes.push(UploadedAttribute { name: "age".to_owned(), groups: UploadedGroups::Values(ages) });
    let flags = vec![true, false, true, true, false, false, true, true, false, false, false, true];
    let flags = UploadedGroups::Flags(text(&["p", "q"]), flags);
    uploaded.attributes.push(UploadedAttribute { name: "faith".to_owned(), groups: flags });
    if let UploadedGroups::Values(values) = &mut uploaded.attributes[0].groups {
        values[2] = None;
    }
    let settings = Settings { intersections: vec![text(&["g", "age"])], ..settings() };
    let report = audit(&settings, &uploaded, "test", &|| false).unwrap();
    let sizes = |name: &str| -> Vec<(Option<&str>, u64)> {
        report.groups.iter().filter(|g| g.attribute == name).map(|g| (g.value.as_deref(), g.rows)).collect()
    };
    assert_eq!(sizes("g"), [(Some("a"), 3), (Some("b"), 2), (None, 1)]);
    assert_eq!(sizes("faith"), [(Some("p"), 3), (Some("q"), 3)]);
    assert_eq!(sizes("g × age").iter().map(|g| g.1).sum::<u64>(), 6);
    assert!(sizes("g × age").contains(&(Some("a × young"), 0)));
    let empty = report.figures.iter().find(|f| f.scope == Scope::Group(Some("a × young".to_owned()))).unwrap();
    assert_eq!((empty.value, empty.reason.as_deref()), (None, Some("no_rows")));
}

#[test]
fn the_name_is_the_content() {
    let name = |uploaded: &Uploaded| check(&settings(), uploaded, "test").unwrap().1.data.dataset;
    let same = name(&upload());
    assert_eq!(same, name(&upload()));
    let mut other = upload();
    other.models[0].scores = Scores::Positive(vec![0.9, 0.2, 0.4, 0.6, 0.7, 0.100_000_1]);
    assert_ne!(same, name(&other));
    assert_ne!(same, name(&Uploaded { weights: Some(vec![1.0; 6]), ..upload() }));
    assert_ne!(same, name(&Uploaded { classes: text(&["0", "1", "2"]), models: Vec::new(), ..upload() }.with_three()));
}

impl Uploaded {
    fn with_three(mut self) -> Self {
        self.models
            .push(UploadedModel { name: "m".to_owned(), scores: Scores::Classes([[0.2, 0.3, 0.5]; 6].concat()) });
        self
    }
}

#[test]
fn membership_alone_needs_no_labels() {
    let signals = vec![3.0, 2.5, 2.0, -1.0, -2.0, -3.0];
    let members = vec![true, true, true, false, false, false];
    let shadow_members = vec![members.iter().map(|m| !m).collect(), members.clone()];
    let model = UploadedSignals {
        members,
        signals,
        reference_signals: Vec::new(),
        shadow_signals: vec![vec![0.0; 6], vec![0.5; 6]],
        shadow_members,
    };
    let uploaded = Uploaded {
        labels: Labels::None,
        classes: Vec::new(),
        models: vec![UploadedModel { name: "m".to_owned(), scores: Scores::None }],
        membership: Some(UploadedMembership { models: vec![model] }),
        ..upload()
    };
    let membership = Membership {
        attacks: vec![Attack::Loss, Attack::LiraOnlineFixed],
        min_k: Vec::new(),
        false_positive_rates: vec![0.5],
        shadows: 0,
        shadow_fraction: 0.5,
        planted_control: false,
        mirrored: false,
    };
    let settings = Settings { membership: Some(membership), measures: Vec::new(), ..settings() };
    let report = audit(&settings, &uploaded, "test", &|| false).unwrap();
    let auc = report.figures.iter().find(|f| f.measure == "mia_loss_auc" && f.scope == Scope::Overall).unwrap();
    assert_eq!(auc.value, Some(1.0));
    assert!(report.figures.iter().any(|f| f.measure == "mia_lira_online_fixed_auc" && f.value.is_some()));
    let mut faulty = uploaded;
    faulty.membership.as_mut().unwrap().models[0].shadow_signals[1][3] = f64::NAN;
    assert!(faults(&faulty).iter().any(|fault| fault.contains("shadow_signals[1][3]: NaN")));
}

#[test]
fn what_a_combination_takes_is_told_before_it_is_made() {
    let flags = |name: &str, groups: usize| UploadedAttribute {
        name: name.to_owned(),
        groups: UploadedGroups::Flags((0..groups).map(|i| format!("{name}{i}")).collect(), vec![true; 6 * groups]),
    };
    let uploaded = Uploaded { attributes: vec![flags("a", 16), flags("b", 8)], ..upload() };
    let rows = match &uploaded.labels {
        Labels::One(labels) => labels.len(),
        Labels::None | Labels::Several(_) => panic!("one label a row"),
    };
    assert_eq!(rows, 6);
    let combined = Settings { intersections: vec![text(&["a", "b"])], ..settings() };
    let (table, _) = check(&combined, &uploaded, "test").unwrap();
    let made: usize = table.attributes[2].groups.iter().map(|group| size_of_val(&group.rows[..])).sum();
    assert_eq!(made, 16 * 8 * 6 * 4);
    let more = audited_bytes(&combined, &uploaded) - audited_bytes(&settings(), &uploaded);
    assert!(more >= made as u64, "{more}");
    let single = Uploaded { attributes: vec![flags("a", 16)], ..uploaded };
    assert!(audited_bytes(&settings(), &single) >= 16 * 6 * 4);
}
