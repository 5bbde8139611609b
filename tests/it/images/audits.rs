//! Audits of image classifiers: everything that the audit offers for heads, on ViT beside the language model.

use std::collections::BTreeSet;
use std::time::Duration;

use evenkeel::rpc::pb::training_settings::Method;
use evenkeel::rpc::pb::{
    self, AuditAttribute, AuditModel, AuditReport, AuditSettings, AuditTask, CreateAuditRequest, DatasetSplit,
    TrainingSettings, audit_attribute, audit_model, audit_task,
};
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::jobs::{image, labels_of, lora, settings as learning, train, upload};
use super::{VIT, classify, publish, some_images, start, start_with};
use crate::audits::{audits, create, finished, reported, sound};
use crate::client::{Client, Server};
use crate::{audits as texts, fine_tuning};

/// A server whose data set has the base's labels.
async fn ready() -> Server {
    let server = start(&[VIT]).await;
    upload(&server.client, "colours-vit", &labels_of(&server, VIT).await).await;
    server
}

fn base() -> AuditModel {
    AuditModel { source: Some(audit_model::Source::Base(pb::BaseSource {})), ..Default::default() }
}

fn adapter(name: &str) -> AuditModel {
    AuditModel { source: Some(audit_model::Source::Adapter(name.into())), ..Default::default() }
}

fn short(steps: u64) -> TrainingSettings {
    TrainingSettings { groups: Vec::new(), random_flip: false, ..learning(steps, 1e-2, lora()) }
}

/// By head, on all rows, by light.
fn settings() -> AuditSettings {
    let source = audit_attribute::Source::ValuesColumn("light".into());
    AuditSettings {
        task: Some(AuditTask { kind: Some(audit_task::Kind::Head(pb::HeadTask {})) }),
        attributes: vec![AuditAttribute { source: Some(source), ..Default::default() }],
        splits: vec![DatasetSplit::Train.into(), DatasetSplit::Test.into()],
        allow_training_overlap: true,
        statistics: Some(pb::AuditStatistics {
            resamples: Some(50),
            permutations: Some(50),
            min_group: Some(2),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn request(name: &str, models: Vec<AuditModel>, settings: AuditSettings) -> CreateAuditRequest {
    let dataset = "colours-vit".into();
    CreateAuditRequest {
        name: name.into(),
        dataset,
        base_model: VIT.into(),
        models,
        settings: Some(settings),
        ..Default::default()
    }
}

async fn report(client: &Client, request: CreateAuditRequest) -> AuditReport {
    let job = create(client, request).await.unwrap();
    let report = reported(client, &job.id).await;
    sound(&report);
    report
}

/// Reason and message of an audit that ends.
async fn failure(client: &Client, request: CreateAuditRequest) -> (String, String) {
    let job = create(client, request).await.unwrap();
    let error = finished(client, &job.id).await.0.error.unwrap();
    (error.reason, error.message)
}

/// The value over all rows.
fn overall(report: &AuditReport, measure: &str, model: u32) -> Option<f64> {
    let whole = |figure: &&pb::AuditFigure| {
        figure.measure == measure
            && figure.model == model
            && figure.scope() == pb::FigureScope::Overall
            && figure.versus.is_none()
            && figure.class.is_empty()
    };
    report.figures.iter().find(whole).and_then(|figure| figure.value)
}

#[tokio::test]
async fn every_attack_on_membership_has_values_and_mirror_images_change_them() {
    let server = ready().await;
    let client = &server.client;
    train(client, VIT, "low", short(10)).await;
    let attacks = [
        pb::AuditAttack::Loss,
        pb::AuditAttack::Reference,
        pb::AuditAttack::Rmia,
        pb::AuditAttack::LiraOnline,
        pb::AuditAttack::LiraOnlineFixed,
        pb::AuditAttack::LiraOffline,
        pb::AuditAttack::LiraOfflineFixed,
    ];
    let asked = |mirrored: bool| {
        let membership = pb::AuditMembership {
            attacks: attacks.iter().map(|attack| i32::from(*attack)).collect(),
            shadows: Some(6),
            planted_control: Some(true),
            mirrored,
            ..Default::default()
        };
        AuditSettings { membership: Some(membership), ..settings() }
    };
    let plain = report(client, request("plain", vec![base(), adapter("low")], asked(false))).await;
    let mirrored = report(client, request("mirrored", vec![base(), adapter("low")], asked(true))).await;
    for report in [&plain, &mirrored] {
        assert_eq!(report.models[0].kind(), pb::AuditedModelKind::Base);
        for attack in
            ["loss", "reference", "rmia", "lira_online", "lira_online_fixed", "lira_offline", "lira_offline_fixed"]
        {
            let value = overall(report, &format!("mia_{attack}_auc"), 1);
            assert!(value.is_some_and(|auc| (0.0..=1.0).contains(&auc)), "{attack}: {value:?}");
        }
        // Nobody trained the base on anything: it has no members, and nothing is made up.
        assert_eq!(overall(report, "mia_loss_auc", 0), None);
        let control = report.figures.iter().find(|figure| figure.measure.contains("control") && figure.value.is_some());
        assert!(control.is_some(), "no control has a value");
        let drawn: BTreeSet<i32> = report.rocs.iter().map(|roc| roc.attack).collect();
        assert_eq!(drawn.len(), attacks.len());
    }
    let split = |report: &AuditReport| {
        let of = |figure: &pb::AuditFigure| (figure.measure.clone(), figure.group.clone(), figure.model, figure.value);
        let all: Vec<_> = report.figures.iter().map(of).collect();
        let (attacks, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(measure, ..)| measure.starts_with("mia_"));
        (attacks, others)
    };
    let ((attacked, others), (other_attacked, same)) = (split(&plain), split(&mirrored));
    assert_ne!(attacked, other_attacked, "mirror images change nothing");
    assert_eq!(others, same, "mirror images change what is no attack");
    // Shadows and control are gone.
    let list = pb::ListAdaptersRequest::default();
    assert_eq!(client.adapters.clone().list_adapters(list).await.unwrap().into_inner().adapters.len(), 1);
}

#[tokio::test]
async fn a_sweep_is_trained_and_compared_with_the_base() {
    let server = ready().await;
    let client = &server.client;
    let source = pb::TrainingSource { settings: Some(short(3)), dataset: String::new() };
    let sweep = pb::AuditSweep { name: "lora".into(), base: Some(source), ranks: vec![0, 2, 4], ..Default::default() };
    let full = Some(Method::Full(pb::FullMethod {}));
    let full =
        pb::TrainingSource { settings: Some(TrainingSettings { method: full, ..short(3) }), dataset: String::new() };
    let full =
        AuditModel { name: "full".into(), source: Some(audit_model::Source::Training(full)), ..Default::default() };
    let wire = CreateAuditRequest { sweeps: vec![sweep], ..request("sweep", vec![base(), full], settings()) };
    let report = report(client, wire).await;
    let kinds: Vec<_> = report.models.iter().map(pb::AuditedModel::kind).collect();
    use pb::AuditedModelKind::{Adapter, Base, Full, HeadOnly};
    assert_eq!(kinds, [Base, Full, HeadOnly, Adapter, Adapter]);
    for model in 0..5 {
        assert!(overall(&report, "accuracy", model).is_some(), "{model}");
    }
    // Learnt rows are audited and marked, three steps of 6; the base learnt none.
    assert!(report.models[1..].iter().all(|model| model.overlap == Some(18)), "{:?}", report.models);
    assert!(report.warnings.iter().any(|warning| warning.kind == "training_overlap"));
    assert!(report.figures.iter().any(|figure| figure.versus.is_some() && figure.value.is_some()), "nothing is paired");
}

#[tokio::test]
async fn the_same_audit_has_the_same_bytes_and_two_reports_are_compared() {
    let server = ready().await;
    let client = &server.client;
    train(client, VIT, "low", short(10)).await;
    publish(client, "seen", "vit_qv", VIT).await.unwrap();
    let membership = pb::AuditMembership { shadows: Some(2), mirrored: true, ..Default::default() };
    let wanted = |name: &str| {
        let settings = AuditSettings { membership: Some(membership.clone()), ..settings() };
        request(name, vec![base(), adapter("low"), adapter("seen")], settings)
    };
    let alone = report(client, wanted("alone")).await;
    let job = create(client, wanted("beside")).await.unwrap();
    let own = client.clone();
    let busy = tokio::spawn(async move {
        for _ in 0..20 {
            classify(&own, ("", "seen"), &some_images()).await.unwrap();
        }
    });
    let beside = reported(client, &job.id).await;
    busy.await.unwrap();
    assert_eq!((&alone.id, &alone), (&beside.id, &beside));

    let compare = async |before: &str, after: &str| {
        let request = pb::CompareAuditsRequest { before: before.into(), after: after.into() };
        audits(client).compare_audits(request).await.unwrap().into_inner()
    };
    let same = compare("alone", "beside").await;
    assert!(same.comparable && !same.changes.is_empty(), "{same:?}");
    assert!(same.changes.iter().all(|change| change.change.is_none_or(|change| change == 0.0)));
    report(client, request("fewer", vec![base()], settings())).await;
    let fewer = compare("fewer", "alone").await;
    assert!(fewer.changes.iter().any(|change| change.before.is_none() && change.model == "low"));
}

#[tokio::test]
async fn an_audit_killed_many_times_ends_with_the_same_report() {
    const KILLS: usize = 8;
    let start = async || {
        let server = start_with(&[VIT], |settings| settings.jobs.checkpoint_steps = 1).await;
        upload(&server.client, "colours-vit", &labels_of(&server, VIT).await).await;
        for name in ["vit_qv", "vit_dora"] {
            publish(&server.client, &name.replace('_', "-"), name, VIT).await.unwrap();
        }
        server
    };
    let wanted = || request("killed", vec![base(), adapter("vit-qv"), adapter("vit-dora")], settings());
    let whole = start().await;
    let begin = std::time::Instant::now();
    let expected = report(&whole.client, wanted()).await;
    let longest = (begin.elapsed() / 3).max(Duration::from_millis(20));

    let mut server = start().await;
    let id = create(&server.client, wanted()).await.unwrap().id;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let (mut hits, mut furthest) = (0, 0);
    for _ in 0..KILLS {
        // Not to wait for anything: the moment of the kill is what is drawn.
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..longest.as_micros() as u64))).await;
        server.process.kill();
        server.process = crate::client::spawn(&server.settings).await;
        server.client = Client::connect(&server.process).await;
        let job = fine_tuning::job(&server.client, &id).await;
        hits += usize::from(matches!(job.state(), pb::JobState::Queued | pb::JobState::Running));
        furthest = furthest.max(job.checkpoint_step);
    }
    assert!(hits > 0 && furthest > 0, "{hits} kills came before the end, the furthest after {furthest} items");
    assert_eq!(reported(&server.client, &id).await, expected);
}

#[tokio::test]
async fn several_labels_a_row_are_audited_label_by_label() {
    use base64::Engine as _;
    let server = start(&[VIT]).await;
    let client = &server.client;
    let names = ["dim", "green", "red"];
    let mut lines = String::new();
    for number in 0..40_u32 {
        let (label, dim) = (number as usize % 3, number % 2 == 1);
        let mut labels: Vec<&str> = Vec::new();
        labels.extend(dim.then_some("dim"));
        labels.extend((label == 1).then_some("green"));
        labels.extend((label == 0).then_some("red"));
        let file = base64::engine::general_purpose::STANDARD.encode(image(label, number));
        let part = if number < 24 { "train" } else { "test" };
        let row =
            json!({"image": file, "labels": labels, "light": if number % 4 < 2 { "a" } else { "b" }, "part": part});
        lines.push_str(&format!("{row}\n"));
    }
    let declaration = pb::DatasetDeclaration {
        format: pb::DatasetFormat::Jsonl.into(),
        image_column: "image".into(),
        label_column: "labels".into(),
        label_names: names.map(str::to_owned).to_vec(),
        multi_label: true,
        group_columns: vec!["light".into()],
        split: Some(pb::dataset_declaration::Split::SplitColumn("part".into())),
        ..Default::default()
    };
    texts::upload(client, "colours-vit", &lines, declaration).await;
    train(client, VIT, "many", short(20)).await;
    let report = report(client, request("many", vec![adapter("many")], settings())).await;
    for name in names {
        let own = |figure: &&pb::AuditFigure| figure.class == name && figure.value.is_some();
        assert!(report.figures.iter().any(|figure| own(&figure)), "nothing is told of {name}");
    }
    assert_eq!(report.data.as_ref().unwrap().labels, names);
    // The base's head is for one label, and for other labels.
    let (reason, message) = failure(client, request("base", vec![base()], settings())).await;
    assert!(reason == "AUDIT_SETTING" && message.contains("for one label"), "{reason}: {message}");
}

#[tokio::test]
async fn what_an_audit_of_images_cannot_bear_is_told() {
    let server = start(&[VIT]).await;
    let client = &server.client;
    let own = labels_of(&server, VIT).await;
    let mut other = own.clone();
    other[0] = "else".into();
    upload(client, "colours-vit", &other).await;
    let (reason, message) = failure(client, request("a", vec![base()], settings())).await;
    assert!(reason == "AUDIT_SETTING" && message.contains("no label `else`"), "{reason}: {message}");
    let three = ["red", "green", "blue"].map(str::to_owned);
    let wire = CreateAuditRequest { dataset: "three".into(), ..request("b", vec![base()], settings()) };
    upload(client, "three", &three).await;
    let (reason, message) = failure(client, wire).await;
    assert!(reason == "AUDIT_SETTING" && message.contains("the data set has 3"), "{reason}: {message}");

    upload(client, "own", &own).await;
    let on_own = |name: &str, settings: AuditSettings| CreateAuditRequest {
        dataset: "own".into(),
        ..request(name, vec![base()], settings)
    };
    let tokens = AuditSettings { max_tokens: Some(16), ..settings() };
    let (reason, message) = failure(client, on_own("c", tokens)).await;
    assert!(reason == "AUDIT_SETTING" && message.contains("max_tokens: is for texts"), "{reason}: {message}");
    let words = pb::LabelWordsTask { words: vec![" a".into(), " b".into()], ..Default::default() };
    let words =
        AuditSettings { task: Some(AuditTask { kind: Some(audit_task::Kind::LabelWords(words)) }), ..settings() };
    let (reason, message) = failure(client, on_own("d", words)).await;
    assert!(reason == "AUDIT_SETTING" && message.contains("no language"), "{reason}: {message}");

    let source = pb::TrainingSource { settings: Some(short(2)), dataset: String::new() };
    let trained =
        AuditModel { name: "low".into(), source: Some(audit_model::Source::Training(source)), ..Default::default() };
    let refuse = AuditSettings { allow_training_overlap: false, ..settings() };
    let wire = CreateAuditRequest { models: vec![trained], ..on_own("e", refuse) };
    let (reason, message) = failure(client, wire).await;
    // Two steps of 6 of the 30.
    assert!(reason == "AUDIT_OVERLAP" && message.contains("12 of the audited rows"), "{reason}: {message}");
}
