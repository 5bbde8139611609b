//! Audits that train their models first: sweeps, heads only, full fine-tunes, shadows for membership inference.

use evenkeel::rpc::pb::training_settings::{Length, Method};

use super::*;

/// Texts of two classes that a small model learns by heart.
pub(super) fn texts(rows: usize) -> String {
    let words = ["oak", "elm", "ash", "fir", "yew", "box", "bay", "fig"];
    let mut file = String::new();
    for i in 0..rows {
        let good = (i * 7 + i / 3) % 5 < 2;
        let text =
            format!("{} {} number {i} is {}", words[i % 8], words[(i / 8) % 8], if good { "good" } else { "bad" });
        let part = if i % 2 == 0 { "train" } else { "test" };
        let row = json!({"text": text, "label": if good { "good" } else { "bad" }, "kind": i % 3, "part": part});
        file.push_str(&row.to_string());
        file.push('\n');
    }
    file
}

/// Texts that do not tell their class: it can be learnt by heart only.
fn without_reason(rows: usize) -> String {
    let words = ["oak", "elm", "ash", "fir", "yew", "box", "bay", "fig"];
    let mut file = String::new();
    for i in 0..rows {
        let good = (i as u32).wrapping_mul(2_654_435_761) >> 15 & 1 == 1;
        let text = format!("{} {} number {i}", words[i % 8], words[(i / 8) % 8]);
        let part = if i % 2 == 0 { "train" } else { "test" };
        let row = json!({"text": text, "label": if good { "good" } else { "bad" }, "kind": i % 3, "part": part});
        file.push_str(&row.to_string());
        file.push('\n');
    }
    file
}

pub(super) fn of_texts() -> DatasetDeclaration {
    DatasetDeclaration {
        format: pb::DatasetFormat::Jsonl.into(),
        text_column: "text".into(),
        label_column: "label".into(),
        label_names: vec!["bad".into(), "good".into()],
        group_columns: vec!["kind".into()],
        split: Some(pb::dataset_declaration::Split::SplitColumn("part".into())),
        ..Default::default()
    }
}

pub(super) fn training(method: Option<Method>, steps: u64) -> pb::TrainingSettings {
    pb::TrainingSettings {
        task: pb::TrainingTask::SequenceClassification.into(),
        method,
        length: Some(Length::Steps(steps)),
        batch_size: Some(8),
        learning_rate: Some(2e-3),
        ..Default::default()
    }
}

fn trained(name: &str, settings: pb::TrainingSettings) -> AuditModel {
    let source = pb::TrainingSource { settings: Some(settings), dataset: String::new() };
    AuditModel { name: name.into(), source: Some(audit_model::Source::Training(source)), ..Default::default() }
}

pub(super) fn by_head() -> AuditSettings {
    let source = audit_attribute::Source::ValuesColumn("kind".into());
    AuditSettings {
        task: Some(AuditTask { kind: Some(audit_task::Kind::Head(pb::HeadTask {})) }),
        attributes: vec![AuditAttribute { source: Some(source), ..Default::default() }],
        statistics: Some(pb::AuditStatistics {
            resamples: Some(100),
            permutations: Some(100),
            min_group: Some(5),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn head_only_lora_and_full_are_trained_and_compared_in_one_request() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &texts(60), of_texts()).await;
    let sweep = pb::AuditSweep {
        name: "lora".into(),
        base: Some(pb::TrainingSource { settings: Some(training(None, 3)), dataset: String::new() }),
        ranks: vec![0, 2, 4],
        ..Default::default()
    };
    let full = trained("full", training(Some(Method::Full(pb::FullMethod {})), 3));
    let wire = CreateAuditRequest { sweeps: vec![sweep], ..request("sweep", vec![full], by_head()) };
    let estimate = pb::EstimateAuditRequest { audit: Some(wire.clone()) };
    let estimate = audits(client).estimate_audit(estimate).await.unwrap().into_inner();
    assert_eq!((estimate.trainings, estimate.steps, estimate.items), (4, 12, 4 * 30));
    // Two logits and their count a row and model.
    assert_eq!(estimate.score_bytes, 4 * 30 * 3 * 8);
    let job = create(client, wire).await.unwrap();
    assert_eq!(job.audit.as_ref().unwrap().children.len(), 4);
    let report = reported(client, &job.id).await;
    sound(&report);
    let kinds: Vec<_> = report.models.iter().map(pb::AuditedModel::kind).collect();
    use pb::AuditedModelKind::{Adapter, Full, HeadOnly};
    assert_eq!(kinds, [Full, HeadOnly, Adapter, Adapter]);
    let ranks: Vec<_> = report.models.iter().map(|model| model.training.as_ref().unwrap().rank).collect();
    assert_eq!(ranks, [None, Some(0), Some(2), Some(4)]);
    // What was told of them is what they take.
    let list = pb::ListAdaptersRequest::default();
    let adapters = client.adapters.clone().list_adapters(list).await.unwrap().into_inner().adapters;
    let bytes: Vec<u64> = adapters.iter().map(|adapter| adapter.generations[0].bytes).collect();
    let (disk, memory) = (estimate.disk_bytes.unwrap(), estimate.memory_bytes.unwrap());
    assert_eq!(disk, bytes.iter().sum::<u64>() + 2 * estimate.score_bytes, "{bytes:?}");
    let rest = memory - bytes.iter().max().unwrap() - estimate.score_bytes;
    assert!(rest > 0 && rest < 30 * 1000, "statistics: {rest}");
    assert!(report.models.iter().all(|model| model.overlap == Some(0)), "the test split was not trained on");
    for child in &job.audit.unwrap().children {
        let child = fine_tuning::job(client, child).await;
        assert_eq!((child.state(), child.parent.as_str()), (pb::JobState::Succeeded, job.id.as_str()));
    }
}

#[tokio::test]
async fn gaps_of_the_base_a_lora_and_a_full_fine_tune_are_subtracted_in_one_report() {
    let server = client::start().await;
    let client = &server.client;
    // Every other pair of rows is there to learn from; pairs share an author.
    let with_part = |(i, line): (usize, &str)| {
        let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
        row["part"] = json!(if i / 2 % 2 == 0 { "train" } else { "test" });
        format!("{row}\n")
    };
    let file: String = rows().lines().enumerate().map(with_part).collect();
    let split = Some(pb::dataset_declaration::Split::SplitColumn("part".into()));
    upload(client, "rows", &file, DatasetDeclaration { split, ..declaration() }).await;
    let learnt = |name: &str, method| {
        let task = pb::TrainingTask::CausalLm.into();
        trained(name, pb::TrainingSettings { task, ..training(method, 4) })
    };
    let models = vec![base(), learnt("lora", None), learnt("full", Some(Method::Full(pb::FullMethod {})))];
    let job = create(client, request("three", models, settings())).await.unwrap();
    let report = reported(client, &job.id).await;
    sound(&report);
    let kinds: Vec<_> = report.models.iter().map(pb::AuditedModel::kind).collect();
    use pb::AuditedModelKind::{Adapter, Base, Full};
    assert_eq!(kinds, [Base, Adapter, Full]);
    let mut apart = 0;
    for measure in ["accuracy", "log_loss", "brier", "auc"] {
        let gap = |model: u32| figure(&report, measure, FigureScope::Difference, None, model);
        for (model, versus) in [(1, 0), (2, 0), (2, 1)] {
            let fits = |f: &&AuditFigure| {
                f.measure == measure
                    && f.scope() == FigureScope::Difference
                    && (f.model, f.versus) == (model, Some(versus))
            };
            let compared = report.figures.iter().find(fits).unwrap();
            let expected = gap(model).value.unwrap() - gap(versus).value.unwrap();
            assert!((compared.value.unwrap() - expected).abs() < 1e-12, "{compared:?}");
            let interval = compared.interval.as_ref().unwrap();
            assert!(interval.low <= interval.high && interval.method == "percentile", "{interval:?}");
            apart += u32::from(expected.abs() > 1e-9 && interval.low < interval.high);
        }
        // The groups that a gap is between have its values.
        let own = gap(0);
        let value =
            |of: &pb::FigureGroup| figure(&report, measure, FigureScope::Group, of.value.as_deref(), 0).value.unwrap();
        let [smallest, largest] = &own.extremes[..] else { panic!("{own:?}") };
        assert!((value(largest) - value(smallest) - own.value.unwrap()).abs() < 1e-12, "{own:?}");
    }
    assert!(apart > 3, "training changes what is compared: {apart}");
}

#[tokio::test]
async fn rows_that_a_model_learnt_are_refused_or_marked() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &texts(60), of_texts()).await;
    let wire = |name: &str, mark: bool| {
        let mut settings = by_head();
        settings.splits = vec![pb::DatasetSplit::Train.into()];
        settings.allow_training_overlap = mark;
        request(name, vec![trained("lora", training(None, 2))], settings)
    };
    let job = create(client, wire("refused", false)).await.unwrap();
    let (job, _) = finished(client, &job.id).await;
    assert_eq!(job.error.unwrap().reason, "AUDIT_OVERLAP");
    let job = create(client, wire("marked", true)).await.unwrap();
    let report = reported(client, &job.id).await;
    // Two steps of 8 rows; a pass would have all 30.
    assert_eq!(report.models[0].overlap, Some(16));
    assert!(report.warnings.iter().any(|warning| warning.kind == "training_overlap"), "{:?}", report.warnings);
}

#[tokio::test]
async fn an_audit_that_trains_can_be_made_again() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &texts(60), of_texts()).await;
    let wire = || CreateAuditRequest {
        keep_models: Some(true),
        ..request("nightly", vec![trained("lora", training(None, 2))], by_head())
    };
    let mut reports = Vec::new();
    for _ in 0..2 {
        let job = create(client, wire()).await.unwrap();
        reports.push(reported(client, &job.id).await);
    }
    let models: Vec<_> = reports.iter().map(|report| report.models[0].adapter.as_str()).collect();
    assert_eq!(models, ["nightly.lora", "nightly.lora-2"]);
    // Trained alike: the same content, and the same figures.
    assert_eq!(reports[0].models[0].generation, reports[1].models[0].generation);
    assert_eq!(reports[0].figures, reports[1].figures);
    // What no audit has made is not passed over.
    client.publish("other.lora", "lora_qv").await;
    let taken = request("other", vec![trained("lora", training(None, 2))], by_head());
    let status = client::refused(create(client, taken).await, tonic::Code::Aborted, "GENERATION_MISMATCH");
    assert!(status.message().contains("other.lora"), "{status:?}");
}

#[tokio::test]
async fn a_child_that_fails_ends_the_audit_with_its_name() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &texts(60), of_texts()).await;
    let lora = pb::LoraMethod { target_modules: vec!["nowhere".into()], ..Default::default() };
    let wire = request("broken", vec![trained("lora", training(Some(Method::Lora(lora)), 2))], by_head());
    let job = create(client, wire).await.unwrap();
    let child = job.audit.as_ref().unwrap().children[0].clone();
    let (job, _) = finished(client, &job.id).await;
    let error = job.error.unwrap();
    assert!(error.reason == "AUDIT_CHILD_FAILED" && error.message.contains(&child), "{error:?}");
}

#[tokio::test]
async fn membership_of_what_was_learnt_by_heart_is_found_with_shadows() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &without_reason(128), of_texts()).await;
    let mut settings = by_head();
    settings.membership = Some(pb::AuditMembership { shadows: Some(3), ..Default::default() });
    let model = trained("target", training(None, 30));
    let job = create(client, request("members", vec![model], settings)).await.unwrap();
    // One target, three shadows, one planted control.
    assert_eq!(job.audit.as_ref().unwrap().children.len(), 5);
    let report = reported(client, &job.id).await;
    sound(&report);
    let attacks: std::collections::BTreeSet<i32> = report.rocs.iter().map(|roc| roc.attack).collect();
    assert!(attacks.contains(&pb::AuditAttack::Loss.into()));
    assert!(attacks.contains(&pb::AuditAttack::LiraOnlineFixed.into()), "{attacks:?}");
    let loss = figure(&report, "mia_loss_auc", FigureScope::Overall, None, 0);
    assert!(loss.value.unwrap() > 0.6, "{loss:?}");
    // The planted members are found, by every attack that has a score for enough rows.
    let attacks = [("", 0.85), ("_loss", 0.85), ("_rmia", 0.7), ("_lira_offline", 0.7), ("_lira_offline_fixed", 0.85)];
    for (attack, least) in attacks.into_iter().chain([("_lira_online_fixed", 0.0)]) {
        let planted = format!("mia{attack}_control_planted_auc");
        let planted = figure(&report, &planted, FigureScope::Overall, None, 0);
        assert!(planted.value.unwrap() > least && planted.interval.is_some(), "{planted:?}");
    }
    assert!(!report.warnings.iter().any(|warning| warning.kind == "controls_failed"), "{:?}", report.warnings);
    for roc in &report.rocs {
        let rising = roc.points.windows(2).all(|pair| {
            pair[0].false_positive_rate <= pair[1].false_positive_rate
                && pair[0].true_positive_rate <= pair[1].true_positive_rate
        });
        assert!(rising && roc.members + roc.others <= 128, "{roc:?}");
    }
    // Shadows and control are gone when the audit has ended; the target stays.
    let list = pb::ListAdaptersRequest::default();
    let adapters = client.adapters.clone().list_adapters(list).await.unwrap().into_inner().adapters;
    assert_eq!(adapters.len(), 1, "{:?}", adapters.iter().map(|adapter| &adapter.name).collect::<Vec<_>>());
}
