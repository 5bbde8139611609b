//! Scoring with the golden models: properties over whole audits. Golden numbers are compared in `compute`.

mod choices;
mod images;
mod inputs;
mod life;
mod private;
mod tasks;
mod verdicts;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::*;
use crate::audit::settings::{
    Attribute, BootstrapInterval, Calibration, Convention, Correction, Overlap, Source, Statistics,
};
use crate::dataset::{Content, Dataset, Label, Row, Split};
use crate::lora::{LoraBatch, Run};
use crate::model::tokenizer::Tokenizer;
use crate::model::{Batch, Segment};
use crate::turns::{Slices, Stopped};

/// SentencePiece, Llama-2's template.
const LLAMA2: &str = "llama_mha";
/// Bytes, Llama-3's template.
const LLAMA3: &str = "llama_gqa_llama3_tied";
/// Three named classes.
const CLASSIFIER: &str = "llama_seqcls";

/// Grants every slice.
pub(crate) struct Endless;

impl Slices for Endless {
    fn slice(&self, work: &mut dyn FnMut()) -> Result<(), Stopped> {
        work();
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        false
    }
}

/// One attribute by the column `group`, no intervals, nothing refused.
pub(crate) fn settings() -> Settings {
    Settings {
        task: Task::Perplexity,
        attributes: vec![Attribute { name: "group".to_owned(), source: Source::Values("group".to_owned()) }],
        intersections: Vec::new(),
        controls: Vec::new(),
        weight_column: None,
        cluster_column: None,
        splits: Vec::new(),
        measures: Vec::new(),
        positive: None,
        threshold: 0.5,
        statistics: Statistics {
            level: 0.95,
            resamples: 0,
            interval: BootstrapInterval::Percentile,
            permutations: 0,
            correction: Correction::None,
            margin: 0.0,
            min_group: 0,
            suppress_below: 0,
        },
        calibration: Calibration { bins: 10, temperature: false },
        membership: None,
        max_tokens: Some(200),
        overlap: Overlap::Refuse,
        convention: Convention::Defined,
        utility_match: None,
        seed: 3,
    }
}

fn asking(task: Task) -> Settings {
    Settings { task, ..settings() }
}

fn golden(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(part)
}

fn context(model: &str) -> Context {
    let folder = golden("language").join(model);
    let (tokenizer, chat) = Tokenizer::load(&folder).unwrap();
    let loaded = crate::model::load(&folder, model, "cpu", "f32").unwrap();
    Context { model: loaded, name: model.to_owned(), tokenizer: Arc::new(tokenizer), chat: chat.map(Arc::new) }
}

/// Text to ids and back.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(&golden("language").join(LLAMA3)).unwrap().0)
}

fn adapter(context: &Context, name: &str) -> Arc<Adapter> {
    let read = |file: &str| std::fs::read(golden("adapters").join(name).join(file)).unwrap();
    Arc::new(context.model.load_adapter(&read("adapter_config.json"), &read("adapter_model.safetensors")).unwrap())
}

fn subject(name: &str, adapter: Option<Arc<Adapter>>, scale: f64) -> Subject {
    let kind = if adapter.is_some() { report::ModelKind::Adapter } else { report::ModelKind::Base };
    let generation = adapter.as_ref().map(|adapter| adapter.generation().to_string()).unwrap_or_default();
    let model = report::Model {
        name: name.to_owned(),
        kind,
        adapter: String::new(),
        generation,
        scale,
        training: None,
        overlap: None,
    };
    Subject { model, adapter: adapter.map(Tuned::held), trained_on: None, shadows: Vec::new(), planted: None }
}

fn base() -> Vec<Subject> {
    vec![subject("base", None, 1.0)]
}

fn text(text: &str) -> Content {
    Content::Text(text.to_owned())
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

/// A row of the test split; `-` is a missing cell.
fn row(content: Content, label: Option<usize>, cells: &[&str]) -> Row {
    let hash = Sha256::digest(format!("{content:?} {label:?}")).into();
    let cell = |cell: &&str| (*cell != "-").then(|| (*cell).to_owned());
    let groups = cells.iter().map(cell).collect();
    Row { content, label: label.map(Label::Class), groups, split: Split::Test, hash }
}

fn dataset(labels: &[&str], columns: &[&str], rows: Vec<Row>) -> Dataset {
    Dataset { id: "d".to_owned(), labels: texts(labels), multi_label: false, group_columns: texts(columns), rows }
}

/// Sentences with a label and a group each.
fn sentences(labels: &[&str]) -> Dataset {
    let all =
        ["the model speaks", "she said the count was small", "two cats and a server", "a cold night", "noon", "He ran"];
    let of = |(i, words): (usize, &&str)| row(text(words), Some(i % labels.len()), &[if i < 4 { "a" } else { "b" }]);
    dataset(labels, &["group"], all.iter().enumerate().map(of).collect())
}

fn begin(context: &Context, dataset: &Dataset, settings: &Settings, subjects: Vec<Subject>) -> Scorer {
    Scorer::begin(context, dataset, settings, subjects).unwrap()
}

fn finished(mut scorer: Scorer) -> Scored {
    while !scorer.is_done() {
        scorer.advance(&Endless).unwrap();
    }
    scorer.finish().unwrap()
}

fn scored(context: &Context, dataset: &Dataset, settings: &Settings, subjects: Vec<Subject>) -> Scored {
    let scored = finished(begin(context, dataset, settings, subjects));
    if let Outcomes::Ratios { measures, .. } = &scored.table.outcomes {
        // What settings are told before is what there is.
        let names: Vec<&String> = measures.iter().map(|measure| &measure.name).collect();
        assert_eq!(names, ratio_names(&settings.task).iter().collect::<Vec<_>>());
    }
    scored
}

/// Probabilities `[models][rows · classes]`.
fn probabilities(scored: &Scored) -> &Vec<Vec<f64>> {
    let Outcomes::Classes { models, names, labels, .. } = &scored.table.outcomes else { panic!("no classes") };
    for model in models {
        assert_eq!(model.len(), names.len() * labels.len());
        for row in model.chunks(names.len()) {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{row:?}");
        }
    }
    models
}

/// Values by row of a measure's only column, one a model; NaN where a row does not count.
fn ratios(scored: &Scored, name: &str) -> Vec<Vec<f64>> {
    use crate::audit::table::Formula;
    let Outcomes::Ratios { measures, models } = &scored.table.outcomes else { panic!("no ratios") };
    let measure = measures.iter().find(|measure| measure.name == name).unwrap();
    let (Formula::Ratio(at) | Formula::Exponential(at) | Formula::Signed(at) | Formula::ScaledSigned(at, _)) =
        measure.formula
    else {
        panic!("{name} has several columns")
    };
    let of = |columns: &Vec<crate::audit::table::RatioColumn>| {
        columns[at].sums.iter().zip(&columns[at].counts).map(|(sum, count)| sum / count).collect()
    };
    models.iter().map(of).collect()
}

/// Sum of the log-probabilities of `answer` after `prompt`, computed at once and without a cache of anybody.
fn log_probability(context: &Context, adapter: Option<&Arc<Adapter>>, prompt: &[u32], answer: &[u32]) -> f64 {
    let tokens = [prompt, answer].concat();
    let segments = [Segment { len: tokens.len(), logits: crate::model::Rows::Last(tokens.len()) }];
    let run = |adapter: &Arc<Adapter>| Run { adapter: Arc::clone(adapter), rows: 0..tokens.len(), scale: 1.0 };
    let lora = LoraBatch { runs: adapter.into_iter().map(run).collect(), dropout: None };
    let batch = Batch { tokens: &tokens, segments: &segments, lora: &lora };
    let logits = context.model.forward(&batch, &mut [&mut context.model.new_cache()]).unwrap();
    let logits: Vec<Vec<f32>> = logits.to_vec2().unwrap();
    let at = |i: usize| -> f64 {
        let row: Vec<f64> = logits[i - 1].iter().map(|z| f64::from(*z)).collect();
        row[tokens[i] as usize] - classes::log_sum(&row)
    };
    (prompt.len()..tokens.len()).map(at).sum()
}

fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-4 * (1.0 + expected.abs()), "{got} is not {expected}");
}
