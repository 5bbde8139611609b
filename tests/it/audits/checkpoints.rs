//! Sweeps over checkpoints: one training for all of them, each a model of its own in the report.

use evenkeel::rpc::pb::training_settings::{Length, Method};

use super::trained::{by_head, of_texts, texts, training};
use super::*;

const KEPT: [u64; 3] = [1, 3, 6];

/// Six steps of 8 of the 30 training rows at a constant rate: four steps are a pass.
fn constant() -> pb::TrainingSettings {
    pb::TrainingSettings { schedule: pb::TrainingSchedule::Constant.into(), ..training(None, 6) }
}

fn sweep(settings: pb::TrainingSettings, checkpoints: &[u64]) -> pb::AuditSweep {
    let base = Some(pb::TrainingSource { settings: Some(settings), dataset: String::new() });
    pb::AuditSweep { name: "lora".into(), base, checkpoints: checkpoints.to_vec(), ..Default::default() }
}

/// On the rows that were learnt, so that what was is told.
fn on_learnt_rows() -> AuditSettings {
    let splits = vec![pb::DatasetSplit::Train.into(), pb::DatasetSplit::Test.into()];
    AuditSettings { splits, allow_training_overlap: true, ..by_head() }
}

fn swept(name: &str, sweeps: Vec<pb::AuditSweep>, settings: AuditSettings) -> CreateAuditRequest {
    CreateAuditRequest { sweeps, ..request(name, vec![], settings) }
}

#[tokio::test]
async fn checkpoints_of_one_training_are_points_of_one_report() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &texts(60), of_texts()).await;
    let wire = CreateAuditRequest {
        request_id: "once".into(),
        ..swept("kept", vec![sweep(constant(), &KEPT)], on_learnt_rows())
    };
    let estimate = pb::EstimateAuditRequest { audit: Some(wire.clone()) };
    let estimate = audits(client).estimate_audit(estimate).await.unwrap().into_inner();
    assert_eq!((estimate.trainings, estimate.steps, estimate.items), (1, 6, 3 * 60));
    let job = create(client, wire.clone()).await.unwrap();
    assert_eq!(create(client, wire.clone()).await.unwrap(), job, "the same call again");
    let other = CreateAuditRequest { sweeps: vec![sweep(constant(), &[1, 6])], ..wire };
    client::refused(create(client, other).await, tonic::Code::InvalidArgument, "REQUEST_ID_REUSED");
    let audit = job.audit.clone().unwrap();
    let [child] = &audit.children[..] else { panic!("{audit:?}") };
    assert_eq!(audit.models.iter().map(|model| model.checkpoint).collect::<Vec<_>>(), KEPT.map(Some));
    assert!(audit.models.iter().all(|model| model.job == *child));
    let report = reported(client, &job.id).await;
    sound(&report);
    let child = fine_tuning::job(client, child).await;
    let published = child.result.unwrap().checkpoints;
    let found: Vec<_> = report
        .models
        .iter()
        .map(|model| (model.name.as_str(), model.adapter.as_str(), model.training.as_ref().unwrap().step.unwrap()))
        .collect();
    let expected = [
        ("lora checkpoint=1", "kept.lora.checkpoint-1", 1),
        ("lora checkpoint=3", "kept.lora.checkpoint-3", 3),
        ("lora checkpoint=6", "kept.lora.checkpoint-6", 6),
    ];
    assert_eq!(found, expected);
    let generations =
        |report: &AuditReport| report.models.iter().map(|model| model.generation.clone()).collect::<Vec<_>>();
    assert_eq!(generations(&report), published.iter().map(|kept| kept.generation.clone()).collect::<Vec<_>>());
    // As many rows as were seen up to there.
    assert_eq!(report.models.iter().map(|model| model.overlap).collect::<Vec<_>>(), [Some(8), Some(24), Some(30)]);
    let gap = |report: &AuditReport, model| figure(report, "accuracy", FigureScope::Difference, None, model).value;
    assert!((0..3).all(|model| gap(&report, model).is_some()));
    let page = get(client, "kept", pb::ReportFormat::Html).await.unwrap().file;
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("accuracy: gap between groups against step of the checkpoint"), "not drawn");

    // Three trainings that end there say the same, at a constant rate; and cost ten steps.
    let anew = pb::AuditSweep { steps: KEPT.to_vec(), ..sweep(constant(), &[]) };
    let job = create(client, swept("anew", vec![anew], on_learnt_rows())).await.unwrap();
    assert_eq!(job.audit.as_ref().unwrap().children.len(), 3);
    let anew = reported(client, &job.id).await;
    assert_eq!(generations(&anew), generations(&report));
    assert_eq!(anew.figures, report.figures);
    let overlaps = |report: &AuditReport| report.models.iter().map(|model| model.overlap).collect::<Vec<_>>();
    assert_eq!(overlaps(&anew), overlaps(&report));
    assert!(anew.models.iter().all(|model| model.training.as_ref().unwrap().step.is_none()));
}

#[tokio::test]
async fn members_of_a_checkpoint_are_the_rows_that_were_seen_up_to_it() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &texts(60), of_texts()).await;
    let membership = pb::AuditMembership { shadows: Some(2), planted_control: Some(false), ..Default::default() };
    let settings = AuditSettings { membership: Some(membership), ..on_learnt_rows() };
    let wire = swept("members", vec![sweep(constant(), &KEPT)], settings);
    let job = create(client, wire).await.unwrap();
    // One training and two shadows, each looked at three times.
    let children = job.audit.as_ref().unwrap().children.clone();
    assert_eq!(children.len(), 3);
    let report = reported(client, &job.id).await;
    sound(&report);
    for child in &children {
        let published = fine_tuning::job(client, child).await.result.unwrap().checkpoints;
        assert_eq!(published.iter().map(|kept| kept.step).collect::<Vec<_>>(), KEPT);
    }
    let loss = |model: u32| {
        let of = |roc: &&pb::RocCurve| {
            roc.model == model && roc.attribute.is_empty() && roc.attack() == pb::AuditAttack::Loss
        };
        report.rocs.iter().find(of).map(|roc| (roc.members, roc.others)).unwrap()
    };
    assert_eq!([0, 1, 2].map(loss), [(8, 52), (24, 36), (30, 30)]);
    // Shadows and what was published of them are gone; the training and its checkpoints stay.
    let list = pb::ListAdaptersRequest::default();
    let adapters = client.adapters.clone().list_adapters(list).await.unwrap().into_inner().adapters;
    let names: Vec<_> = adapters.iter().map(|adapter| adapter.name.as_str()).collect();
    let expected =
        ["members.lora", "members.lora.checkpoint-1", "members.lora.checkpoint-3", "members.lora.checkpoint-6"];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn each_combination_is_trained_once_and_faults_are_named() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &texts(60), of_texts()).await;
    let two = pb::AuditSweep { ranks: vec![0, 2], ..sweep(constant(), &[2, 4]) };
    let full = sweep(training(Some(Method::Full(pb::FullMethod {})), 4), &[1, 4]);
    let full = pb::AuditSweep { name: "full".into(), ..full };
    let job = create(client, swept("both", vec![two, full], by_head())).await.unwrap();
    assert_eq!(job.audit.as_ref().unwrap().children.len(), 3);
    let report = reported(client, &job.id).await;
    sound(&report);
    use pb::AuditedModelKind::{Adapter, Full, HeadOnly};
    let kinds: Vec<_> = report.models.iter().map(pb::AuditedModel::kind).collect();
    assert_eq!(kinds, [HeadOnly, HeadOnly, Adapter, Adapter, Full, Full]);

    let epochs = pb::TrainingSettings { length: Some(Length::Epochs(1.0)), ..constant() };
    let own = pb::TrainingSettings { publish_steps: vec![2], ..constant() };
    for (sweep, field) in [
        (sweep(constant(), &[3, 7]), "sweeps[0].checkpoints"),
        (sweep(constant(), &[3, 1]), "sweeps[0].checkpoints"),
        (pb::AuditSweep { steps: vec![9, 2], ..sweep(constant(), &[3]) }, "sweeps[0].checkpoints"),
        (sweep(own, &[2]), "sweeps[0].base.settings.publish_steps"),
    ] {
        let result = create(client, swept("never", vec![sweep], by_head())).await;
        let status = client::refused(result, tonic::Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(client::violations(&status), [field]);
    }
    // How many steps a pass has is known when the training begins.
    let job = create(client, swept("long", vec![sweep(epochs, &[2, 5])], by_head())).await.unwrap();
    let child = job.audit.as_ref().unwrap().children[0].clone();
    let (job, _) = finished(client, &job.id).await;
    let error = job.error.unwrap();
    assert!(error.reason == "AUDIT_CHILD_FAILED" && error.message.contains("publish_steps"), "{error:?}");
    assert_eq!(fine_tuning::job(client, &child).await.error.unwrap().reason, "TRAINING_SETTING");
}
