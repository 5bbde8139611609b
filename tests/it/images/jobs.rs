//! Image classifiers trained and audited by jobs: head only, LoRA and full on one base, then all of them on one set.

use base64::Engine as _;
use evenkeel::rpc::pb::training_settings::{Length, Method};
use evenkeel::rpc::pb::{
    self, AuditAttribute, AuditModel, AuditSettings, AuditTask, CreateAuditRequest, CreateFineTuningJobRequest,
    DatasetDeclaration, LoraMethod, TrainingSettings, audit_attribute, audit_model, audit_task,
};
use serde_json::json;

use super::{SWIN, VIT, classify, png, start, start_with};
use crate::client::{Client, Server, refused, sha256};
use crate::{audits, datasets, fine_tuning};
use tonic::Code;

const COLOURS: [[u8; 3]; 3] = [[220, 30, 30], [30, 200, 40], [40, 50, 230]];

pub(super) fn image(label: usize, number: u32) -> Vec<u8> {
    let dim = if number.is_multiple_of(2) { 1 } else { 2 };
    png(24 + number % 5, 24, COLOURS[label].map(|x| x / dim), number)
}

fn rows(labels: &[String]) -> String {
    let mut rows = String::new();
    for number in 0..48_u32 {
        let label = number as usize % COLOURS.len();
        let light = ["bright", "dim"][number as usize % 2];
        let row = json!({
            "image": base64::engine::general_purpose::STANDARD.encode(image(label, number)),
            "label": labels[label], "light": light,
            "part": if number < 30 { "train" } else { "test" },
        });
        rows.push_str(&row.to_string());
        rows.push('\n');
    }
    rows
}

pub(super) async fn upload(client: &Client, name: &str, labels: &[String]) -> pb::Dataset {
    let declaration = DatasetDeclaration {
        format: pb::DatasetFormat::Jsonl.into(),
        image_column: "image".into(),
        label_column: "label".into(),
        label_names: labels.to_vec(),
        group_columns: vec!["light".into()],
        split: Some(pb::dataset_declaration::Split::SplitColumn("part".into())),
        ..Default::default()
    };
    let file = rows(labels);
    let header = pb::UploadDatasetHeader {
        name: name.into(),
        size: file.len() as u64,
        sha256: sha256(file.as_bytes()),
        declaration: Some(declaration),
        ..Default::default()
    };
    datasets::send(client, datasets::parts(header, file.as_bytes(), 1 << 20)).await.unwrap()
}

pub(super) fn settings(steps: u64, rate: f64, method: Method) -> TrainingSettings {
    TrainingSettings {
        task: pb::TrainingTask::ImageClassification.into(),
        method: Some(method),
        length: Some(Length::Steps(steps)),
        batch_size: Some(6),
        learning_rate: Some(rate),
        schedule: pb::TrainingSchedule::Constant.into(),
        groups: vec!["light".into()],
        random_flip: true,
        ..Default::default()
    }
}

pub(super) fn lora() -> Method {
    Method::Lora(LoraMethod { rank: Some(4), ..Default::default() })
}

pub(super) async fn train(client: &Client, base: &str, adapter: &str, settings: TrainingSettings) {
    let request = CreateFineTuningJobRequest {
        adapter: adapter.into(),
        dataset: format!("colours-{base}"),
        settings: Some(settings),
        base_model: base.into(),
        ..Default::default()
    };
    let (job, _) = fine_tuning::run(client, request).await;
    assert_eq!(job.state(), pb::JobState::Succeeded, "{base} {adapter}: {:?}", job.error);
}

/// All labels of a base; three of them occur in the rows.
pub(super) async fn labels_of(server: &Server, base: &str) -> Vec<String> {
    let info = server.client.server.clone().get_server_info(pb::GetServerInfoRequest {}).await.unwrap().into_inner();
    info.image_models.into_iter().find(|model| model.name == base).unwrap().label_names
}

#[tokio::test]
async fn heads_lora_and_full_learn_colours_and_are_audited_side_by_side() {
    let server = start(&[VIT, SWIN]).await;
    let client = &server.client;
    for base in [VIT, SWIN] {
        let labels = labels_of(&server, base).await;
        upload(client, &format!("colours-{base}"), &labels).await;
        let [head, low, full] = ["head", "low", "full"].map(|kind| format!("{base}-{kind}"));
        train(client, base, &head, settings(40, 2e-2, Method::HeadOnly(pb::HeadOnlyMethod {}))).await;
        train(client, base, &low, settings(40, 1e-2, lora())).await;
        train(client, base, &full, settings(40, 1e-3, Method::Full(pb::FullMethod {}))).await;
        let seen: Vec<_> = (0..30).map(|number| image(number as usize % 3, number)).collect();
        for adapter in [&low, &full] {
            let answer = classify(client, ("", adapter), &seen).await.unwrap();
            let right =
                answer.classifications.iter().enumerate().filter(|(i, got)| got.label as usize == i % 3).count();
            assert!(right >= 27, "{adapter}: {right} of 30");
            assert_eq!(answer.base_model, base);
        }
        let source = |name: &String| AuditModel {
            source: Some(audit_model::Source::Adapter(name.clone())),
            ..Default::default()
        };
        let request = CreateAuditRequest {
            name: format!("{base}-audit"),
            dataset: format!("colours-{base}"),
            base_model: base.into(),
            models: [head, low, full].iter().map(source).collect(),
            settings: Some(AuditSettings {
                task: Some(AuditTask { kind: Some(audit_task::Kind::Head(pb::HeadTask {})) }),
                attributes: vec![AuditAttribute {
                    source: Some(audit_attribute::Source::ValuesColumn("light".into())),
                    ..Default::default()
                }],
                splits: vec![pb::DatasetSplit::Train.into(), pb::DatasetSplit::Test.into()],
                allow_training_overlap: true,
                membership: Some(pb::AuditMembership {
                    attacks: vec![pb::AuditAttack::Loss.into(), pb::AuditAttack::LiraOffline.into()],
                    shadows: Some(2),
                    mirrored: true,
                    ..Default::default()
                }),
                statistics: Some(pb::AuditStatistics {
                    resamples: Some(100),
                    permutations: Some(100),
                    min_group: Some(2),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let job = audits::create(client, request).await.unwrap();
        let report = audits::reported(client, &job.id).await;
        assert_eq!(report.models.len(), 3);
        let has =
            |measure: &str| report.figures.iter().any(|figure| figure.measure == measure && figure.value.is_some());
        assert!(has("accuracy"), "no accuracy");
        assert!(has("mia_loss_auc"), "no membership by loss");
        assert!(report.figures.iter().any(|figure| figure.measure.starts_with("mia_lira_offline")), "no LiRA");
    }
}

#[tokio::test]
async fn a_data_set_may_have_other_labels_than_the_base() {
    let server = start(&[VIT, SWIN]).await;
    let client = &server.client;
    let labels = ["red", "green", "blue"].map(str::to_owned);
    for base in [VIT, SWIN] {
        assert_ne!(labels_of(&server, base).await.len(), labels.len());
        upload(client, &format!("colours-{base}"), &labels).await;
        let seen: Vec<_> = (0..30).map(|number| image(number as usize % 3, number)).collect();
        let own = classify(client, (base, ""), &seen).await.unwrap();
        let methods = [
            ("head", settings(40, 2e-2, Method::HeadOnly(pb::HeadOnlyMethod {}))),
            ("low", settings(40, 1e-2, lora())),
            ("full", settings(40, 1e-3, Method::Full(pb::FullMethod {}))),
        ];
        for (kind, settings) in methods {
            let adapter = format!("{base}-{kind}");
            train(client, base, &adapter, settings).await;
            let answer = classify(client, ("", &adapter), &seen).await.unwrap();
            assert_eq!(answer.label_names, labels, "{adapter}");
            let right = |(i, got): &(usize, &pb::Classification)| got.label as usize == i % 3;
            let right = answer.classifications.iter().enumerate().filter(right).count();
            assert!(right >= if kind == "head" { 10 } else { 27 }, "{adapter}: {right} of 30");
            assert!(answer.classifications.iter().all(|one| one.probabilities.len() == 3));
        }
        // Beside them the base is what it was.
        let after = classify(client, (base, ""), &seen).await.unwrap();
        assert_eq!(after.classifications, own.classifications);
    }
}

#[tokio::test]
async fn a_job_that_is_killed_goes_on_and_ends_with_the_same_images_mirrored() {
    const STEPS: u64 = 60;
    let cases = [(VIT, "low"), (SWIN, "low"), (VIT, "full"), (SWIN, "full")];
    let start = async || {
        let server = start_with(&[VIT, SWIN], |settings| settings.jobs.checkpoint_steps = 3).await;
        for base in [VIT, SWIN] {
            upload(&server.client, &format!("colours-{base}"), &labels_of(&server, base).await).await;
        }
        server
    };
    let request = |(base, kind): (&str, &str)| {
        let (rate, method) = if kind == "low" { (1e-2, lora()) } else { (1e-3, Method::Full(pb::FullMethod {})) };
        CreateFineTuningJobRequest {
            adapter: format!("{base}-{kind}"),
            dataset: format!("colours-{base}"),
            settings: Some(settings(STEPS, rate, method)),
            base_model: base.into(),
            ..Default::default()
        }
    };
    let ended = async |client: &Client, id: &str| {
        fine_tuning::watched(client, id).await;
        let job = fine_tuning::job(client, id).await;
        assert_eq!(job.state(), pb::JobState::Succeeded, "{:?}", job.error);
        job.result.unwrap().generation
    };
    let (whole, mut server) = (start().await, start().await);
    for case in cases {
        let job = fine_tuning::create(&whole.client, request(case)).await.unwrap();
        let expected = ended(&whole.client, &job.id).await;
        let job = fine_tuning::create(&server.client, request(case)).await.unwrap();
        fine_tuning::follow(&server.client, &job.id, "", fine_tuning::at_step(20)).await;
        server.process.kill();
        server.process = crate::client::spawn(&server.settings).await;
        server.client = Client::connect(&server.process).await;
        let kept = fine_tuning::job(&server.client, &job.id).await.checkpoint_step;
        assert!((18..STEPS).contains(&kept), "{case:?}: killed with {kept} steps in the checkpoint");
        assert_eq!(ended(&server.client, &job.id).await, expected, "{case:?}");
        // What was in the checkpoint was not computed again.
        let computed = server.client.metrics().await.value("evenkeel_training_steps_total");
        assert!(computed <= (STEPS - 18) as f64, "{case:?}: {computed} steps after the kill");
    }
}

#[tokio::test]
async fn mirrored_images_change_what_is_learnt() {
    let server = start(&[VIT]).await;
    upload(&server.client, "colours-vit", &labels_of(&server, VIT).await).await;
    let mut generations = Vec::new();
    for (adapter, random_flip) in [("with", true), ("without", false)] {
        train(&server.client, VIT, adapter, TrainingSettings { random_flip, ..settings(3, 1e-2, lora()) }).await;
        generations.push(server.client.adapter(adapter).await.unwrap().generations[0].id.clone());
    }
    assert_ne!(generations[0], generations[1]);
}

#[tokio::test]
async fn tasks_and_bases_that_do_not_go_together_are_told() {
    let server = start(&[VIT]).await;
    let client = &server.client;
    let labels = labels_of(&server, VIT).await;
    upload(client, "colours", &labels).await;
    let request = |base: &str, task: pb::TrainingTask| CreateFineTuningJobRequest {
        adapter: "low".into(),
        dataset: "colours".into(),
        settings: Some(TrainingSettings { task: task.into(), random_flip: false, ..settings(2, 1e-2, lora()) }),
        base_model: base.into(),
        ..Default::default()
    };
    let unknown = fine_tuning::create(client, request("nobody", pb::TrainingTask::ImageClassification)).await;
    refused(unknown, Code::NotFound, "BASE_MODEL_NOT_FOUND");
    for (base, task) in [("", pb::TrainingTask::ImageClassification), (VIT, pb::TrainingTask::SequenceClassification)] {
        let (job, _) = fine_tuning::run(client, request(base, task)).await;
        assert_eq!(job.error.unwrap().reason, "TRAINING_SETTING");
    }
    // A language model cannot read the rows.
    let (job, _) = fine_tuning::run(client, request("", pb::TrainingTask::SequenceClassification)).await;
    assert_eq!(job.error.unwrap().reason, "TRAINING_DATA");
}

#[tokio::test]
async fn a_job_whose_images_cannot_fit_is_refused_with_the_numbers() {
    // More than the weights of the adapter, less than the activations of six images.
    let server = start_with(&[VIT], |settings| settings.jobs.memory_bytes = Some(1 << 20)).await;
    let labels = labels_of(&server, VIT).await;
    upload(&server.client, "colours", &labels).await;
    let request = CreateFineTuningJobRequest {
        adapter: "low".into(),
        dataset: "colours".into(),
        settings: Some(settings(2, 1e-2, lora())),
        base_model: VIT.into(),
        ..Default::default()
    };
    let (job, _) = fine_tuning::run(&server.client, request).await;
    let error = job.error.unwrap();
    assert_eq!(error.reason, "TRAINING_MEMORY");
    assert!(error.message.contains("1048576"), "{error:?}");
}
