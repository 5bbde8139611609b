//! Classifiers trained by jobs: on a language model, whose head is new, and on a model that has one.

use evenkeel::rpc::pb::{ClassifyInput, ClassifyRequest, ClassifyResponse};

use super::*;
use crate::client::Server;

const WORDS: [(&str, [&str; 3]); 3] =
    [("cold", ["snow", "ice", "frost"]), ("hot", ["fire", "ember", "lava"]), ("wet", ["rain", "river", "sea"])];

/// Texts with the index of their label: to learn from, to look at.
fn texts(labels: usize) -> Vec<(String, usize, &'static str)> {
    let mut all = Vec::new();
    for (form, frame) in ["I saw X", "the X is here", "so much X", "X again"].iter().enumerate() {
        for (label, (_, words)) in WORDS[..labels].iter().enumerate() {
            for word in words {
                let part = if form == 3 { "validation" } else { "train" };
                all.push((frame.replace('X', word), label, part));
            }
        }
    }
    all
}

fn rows(labels: usize, label: impl Fn(usize) -> serde_json::Value) -> String {
    let row = |(i, (text, index, part)): (usize, (String, usize, &str))| {
        let group = ["f", "m"][i % 2];
        format!("{}\n", json!({"text": text, "label": label(index), "sex": group, "part": part}))
    };
    texts(labels).into_iter().enumerate().map(row).collect()
}

fn declared(names: &[&str], multi_label: bool) -> DatasetDeclaration {
    DatasetDeclaration {
        format: pb::DatasetFormat::Jsonl.into(),
        text_column: "text".into(),
        label_column: "label".into(),
        label_names: names.iter().map(|name| (*name).to_owned()).collect(),
        multi_label,
        group_columns: vec!["sex".into()],
        split: Some(Split::SplitColumn("part".into())),
        ..Default::default()
    }
}

fn classifying(rate: f64, method: Method) -> TrainingSettings {
    TrainingSettings {
        task: pb::TrainingTask::SequenceClassification.into(),
        groups: vec!["sex".into()],
        ..settings(60, rate, method)
    }
}

fn methods() -> [(&'static str, TrainingSettings); 2] {
    let lora = classifying(1e-2, Method::Lora(LoraMethod::default()));
    [("lora", lora), ("full", classifying(3e-3, Method::Full(pb::FullMethod {})))]
}

async fn classify(server: &Server, adapter: &str, texts: &[(String, usize, &str)]) -> ClassifyResponse {
    let input = |text: &String| ClassifyInput { prompt: Some(text.clone()), ..Default::default() };
    let inputs = texts.iter().map(|(text, ..)| input(text)).collect();
    let request = ClassifyRequest { adapter: adapter.into(), inputs, ..Default::default() };
    server.client.inference.clone().classify(request).await.unwrap().into_inner()
}

fn check_figures(events: &[pb::WatchJobResponse], name: &str) {
    let steps = steps(events);
    let last = steps.last().unwrap().evaluation.clone().unwrap();
    let columns: Vec<_> = last.figures.iter().map(|f| (f.column.as_str(), f.value.as_deref())).collect();
    assert_eq!(columns, [("", None), ("sex", Some("f")), ("sex", Some("m"))], "{name}");
    for figure in steps.iter().flat_map(|step| &step.groups).chain(&last.figures) {
        assert!(figure.accuracy.is_some_and(|share| (0.0..=1.0).contains(&share)), "{name}: {figure:?}");
    }
    let right = |figure: &pb::GroupFigure| figure.accuracy.unwrap() * figure.rows as f64;
    let parts: f64 = last.figures[1..].iter().map(right).sum();
    assert!((right(&last.figures[0]) - parts).abs() < 1e-9, "{name}: {:?}", last.figures);
    let (first, end) = (mean_loss(&steps[..6]), mean_loss(&steps[54..]));
    assert!(end < first / 2.0, "{name}: the loss went from {first} to {end}");
}

#[tokio::test]
async fn classifiers_learn_their_labels_on_every_kind_of_base() {
    for (model, labels) in [("llama_mha", 3), ("llama_seqcls", 3), ("mistral_seqcls", 2)] {
        let server = client::start_with(model, |_| {}).await;
        let names: Vec<_> = WORDS[..labels].iter().map(|(name, _)| *name).collect();
        let file = rows(labels, |label| json!(WORDS[label].0));
        upload(&server.client, "weather", &file, declared(&names, false)).await.unwrap();
        for (name, settings) in methods() {
            let (job, events) = run(&server.client, request(name, "weather", settings)).await;
            assert_eq!(job.state(), pb::JobState::Succeeded, "{model} {name}: {:?}", job.error);
            check_figures(&events, name);
            let learnt: Vec<_> = texts(labels).into_iter().filter(|(.., part)| *part == "train").collect();
            let answer = classify(&server, name, &learnt).await;
            assert_eq!(answer.generation, job.result.unwrap().generation);
            let right = answer.classifications.iter().zip(&learnt).filter(|(got, row)| got.label as usize == row.1);
            let right = right.count();
            assert!(right * 10 >= learnt.len() * 9, "{model} {name}: {right} of {}", learnt.len());
            assert!(!answer.multi_label);
            // Those of the data set, whatever the base calls its own.
            assert_eq!(answer.label_names, names, "{model} {name}");
        }
    }
}

#[tokio::test]
async fn rows_may_have_several_labels() {
    let server = client::start().await;
    // Heat is one label, water another: rain has one, snow has both, fire has none.
    let sets = [json!(["cold", "wet"]), json!([]), json!(["wet"])];
    let file = rows(3, |label| sets[label].clone());
    upload(&server.client, "weather", &file, declared(&["cold", "wet"], true)).await.unwrap();
    let expected = [[true, true], [false, false], [false, true]];
    for (name, settings) in methods() {
        let (job, events) = run(&server.client, request(name, "weather", settings)).await;
        assert_eq!(job.state(), pb::JobState::Succeeded, "{name}: {:?}", job.error);
        check_figures(&events, name);
        let learnt: Vec<_> = texts(3).into_iter().filter(|(.., part)| *part == "train").collect();
        let answer = classify(&server, name, &learnt).await;
        let right = |(got, row): &(&pb::Classification, &(String, usize, &str))| {
            got.logits.iter().map(|logit| *logit > 0.0).eq(expected[row.1])
        };
        let right = answer.classifications.iter().zip(&learnt).filter(right).count();
        assert!(right * 10 >= learnt.len() * 9, "{name}: {right} of {}", learnt.len());
        assert!(answer.multi_label, "{name}");
    }
}
