//! Runs on a small real model: a head alone, and some rows only.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::dataset::{Content, Label, Row, Split};
use crate::lora::{Change, Kind};
use crate::model::tokenizer::Tokenizer;
use crate::train::order::tests::settings;
use crate::train::{Length, LoraSettings, Reader, Schedule, Subset, Task};

/// No one else computes.
struct Alone;

impl Slices for Alone {
    fn slice(&self, work: &mut dyn FnMut()) -> Result<(), Stopped> {
        work();
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        false
    }
}

fn context() -> Context {
    context_in("f32")
}

fn context_in(dtype: &str) -> Context {
    context_on("cpu", dtype)
}

fn context_on(device: &str, dtype: &str) -> Context {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/language/llama_mha");
    let (tokenizer, chat) = Tokenizer::load(&folder).unwrap();
    let model = crate::model::load(&folder, "golden", device, dtype).unwrap();
    let reader = Reader::Text { tokenizer: Arc::new(tokenizer), chat: chat.map(Arc::new) };
    Context { model, reader, memory_bytes: 0, spare_bytes: 0 }
}

fn dataset(rows: usize) -> Dataset {
    let row = |i: usize| Row {
        content: Content::Text(format!("{} {i}", ["good day", "bad rain"][i % 2])),
        label: Some(Label::Class(i % 2)),
        groups: vec![],
        split: [Split::Train, Split::Train, Split::Test, Split::Test][i % 4],
        hash: Sha256::digest(i.to_le_bytes()).into(),
    };
    let labels = vec!["good".into(), "bad".into()];
    let rows = (0..rows).map(row).collect();
    Dataset { id: "d".into(), labels, multi_label: false, group_columns: vec![], rows }
}

fn head_only() -> Settings {
    Settings {
        task: Task::SequenceClassification,
        method: Method::HeadOnly,
        length: Length::Steps(6),
        learning_rate: 1e-2,
        max_grad_norm: 0.0,
        ..settings()
    }
}

fn lora() -> Settings {
    let lora = LoraSettings {
        rank: 2,
        alpha: 6.0,
        rslora: false,
        dora: false,
        dropout: 0.0,
        targets: Targets::AllLinear,
        layers: vec![],
        modules_to_save: vec![],
    };
    Settings { method: Method::Lora(lora), ..head_only() }
}

fn head(trainer: &Trainer) -> Vec<f32> {
    let own = trainer.learner.parameters().list().iter().find(|parameter| parameter.name.ends_with("score.weight"));
    own.unwrap().var.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_head_alone_is_trained_as_the_head_beside_matrices_that_change_nothing_yet() {
    let (context, dataset) = (context(), dataset(16));
    let mut alone = Trainer::begin(&context, &dataset, &head_only()).unwrap();
    let mut beside = Trainer::begin(&context, &dataset, &lora()).unwrap();
    assert!(alone.estimated_bytes() < beside.estimated_bytes() / 2, "no block is kept");
    assert_eq!(alone.learner.parameters().list().len(), 1);
    assert!(beside.learner.parameters().list().len() > 1);
    let before = head(&alone);
    assert_eq!(before, head(&beside));
    // Every B is 0 in the first step.
    let (one, other) = (alone.advance(&Alone).unwrap(), beside.advance(&Alone).unwrap());
    assert_eq!(one.loss, other.loss);
    let (alone, beside) = (head(&alone), head(&beside));
    assert_ne!(alone, before);
    let distance = alone.iter().zip(&beside).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance < 1e-6, "{distance}");
}

#[test]
fn a_head_alone_is_read_back_and_changes_nothing_else() {
    let (context, dataset) = (context(), dataset(16));
    let mut trainer = Trainer::begin(&context, &dataset, &head_only()).unwrap();
    let mut losses = Vec::new();
    while !trainer.is_done() {
        losses.push(trainer.advance(&Alone).unwrap().loss);
        // Taken up again after every step, as after a kill.
        let mut checkpoint = Vec::new();
        trainer.checkpoint(&mut checkpoint).unwrap();
        trainer = Trainer::resume(&context, &dataset, &head_only(), &checkpoint).unwrap();
    }
    assert!(losses[5] < losses[0], "{losses:?}");
    let output = trainer.output().unwrap();
    let adapter = context.model.load_adapter(&output.config, &output.tensors).unwrap();
    let info = adapter.info();
    assert_eq!((info.kind, info.rank, info.modules.len()), (Kind::Lora, 0, 1));
    assert_eq!((info.task_type.as_str(), info.classes.as_ref().map(|c| c.names.len())), ("SEQ_CLS", Some(2)));
    let [Change::Replaced { weight, bias: None }] = adapter.changes().values().collect::<Vec<_>>()[..] else {
        panic!()
    };
    assert_eq!(weight.flatten_all().unwrap().to_vec1::<f32>().unwrap(), head(&trainer));
    let language = Settings { task: Task::CausalLm, ..head_only() };
    let refused = Trainer::begin(&context, &dataset, &language);
    assert!(matches!(refused, Err(TrainError::Setting { field: "head_only", .. })), "{refused:?}");
}

#[test]
fn a_subset_is_learnt_from_whatever_the_order_of_rows() {
    let (context, dataset) = (context(), dataset(40));
    let subset = Subset { splits: vec![Split::Train, Split::Test], fraction: 0.5, seed: 4 };
    let settings = Settings { subset: Some(subset.clone()), length: Length::Epochs(1.0), batch_size: 1, ..head_only() };
    let learnt = settings.learnt_rows(&dataset, None);
    let expected: Vec<_> = dataset.rows.iter().filter(|row| subset.contains(row)).map(|row| row.hash).collect();
    assert_eq!(learnt, expected.iter().copied().collect());
    assert!((8..32).contains(&learnt.len()), "{}", learnt.len());
    let mut trainer = Trainer::begin(&context, &dataset, &settings).unwrap();
    assert_eq!(trainer.examples.train.len(), learnt.len());
    let mut turned = dataset.clone();
    turned.rows.reverse();
    assert_eq!(settings.learnt_rows(&turned, None), learnt);
    // What is learnt is these rows and no other: their labels, in the order of the file.
    let classes: Vec<_> = dataset.rows.iter().filter(|row| subset.contains(row)).map(|row| row.label.clone()).collect();
    assert_eq!(trainer.examples.train.iter().map(|example| example.class.clone()).collect::<Vec<_>>(), classes);
    trainer.advance(&Alone).unwrap();
    let none = Subset { fraction: 1e-12, ..subset };
    let refused = Trainer::begin(&context, &dataset, &Settings { subset: Some(none), ..settings });
    assert!(matches!(&refused, Err(TrainError::Data(fault)) if fault.contains("subset")), "{refused:?}");
}

#[test]
fn dropout_acts_while_learning_and_not_while_looking() {
    let (context, dataset) = (context(), dataset(16));
    let trainer = |dropout: f64| {
        let Settings { method: Method::Lora(lora), .. } = lora() else { unreachable!() };
        let settings = Settings { method: Method::Lora(LoraSettings { dropout, ..lora }), ..head_only() };
        let trainer = Trainer::begin(&context, &dataset, &settings).unwrap();
        // B is 0 at first, and dropout without effect.
        for (i, parameter) in trainer.learner.parameters().list().iter().enumerate() {
            let count = parameter.var.elem_count();
            let values: Vec<f32> = (0..count).map(|j| ((7 * i + 3 * j) % 11) as f32 / 20.0 - 0.25).collect();
            parameter
                .var
                .set(&Tensor::from_vec(values, parameter.var.shape(), parameter.var.device()).unwrap())
                .unwrap();
        }
        trainer
    };
    let (mut whole, mut dropped) = (trainer(0.0), trainer(0.5));
    let batch = |trainer: &Trainer| MicroBatch::new(&trainer.examples.train, &[0, 1, 2, 3]);
    let looks = |trainer: &Trainer| {
        let rows = trainer.learner.evaluate(&batch(trainer), &Alone).unwrap();
        rows.iter().map(|row| row.loss).collect::<Vec<_>>()
    };
    assert_eq!(looks(&whole), looks(&dropped));
    // Two micro-batches of the same rows, nothing learnt.
    let losses = |trainer: &mut Trainer, step| {
        let batches = [batch(trainer), batch(trainer)];
        trainer.learner.step(&batches, 0.0, step, &Alone).unwrap().micro_losses
    };
    let all = losses(&mut whole, 1);
    assert_eq!(all[0], all[1]);
    let first = losses(&mut dropped, 1);
    assert_eq!(losses(&mut dropped, 1), first);
    let mut seen = [all[0], first[0], first[1], losses(&mut dropped, 2)[0]];
    seen.sort_by(f64::total_cmp);
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
}

#[test]
fn a_base_in_bf16_is_learnt_on_as_one_in_f32() {
    let dataset = dataset(16);
    for method in [lora().method, Method::Full] {
        let settings = Settings { method, length: Length::Steps(12), learning_rate: 5e-3, ..head_only() };
        let losses = |dtype| {
            let mut trainer = Trainer::begin(&context_in(dtype), &dataset, &settings).unwrap();
            (0..12).map(|_| trainer.advance(&Alone).unwrap().loss).collect::<Vec<_>>()
        };
        let (wide, half) = (losses("f32"), losses("bf16"));
        assert!(wide[11] < wide[0] / 2.0, "{wide:?}");
        // Weights and rows have 8 bits: 1/256 each, in some products behind each other.
        for (step, (wide, half)) in wide.iter().zip(&half).enumerate() {
            assert!((wide - half).abs() < 0.03 * wide.max(0.1), "step {step}: {wide} and {half}");
        }
        assert_ne!(wide, half);
    }
}

#[test]
fn what_is_wanted_on_the_way_is_the_last_weights_and_what_a_shorter_run_makes() {
    let (context, dataset) = (context(), dataset(16));
    let settings = |steps| Settings { length: Length::Steps(steps), schedule: Schedule::Constant, ..lora() };
    let run = |steps| {
        let mut trainer = Trainer::begin(&context, &dataset, &settings(steps)).unwrap();
        (0..steps).for_each(|_| drop(trainer.advance(&Alone).unwrap()));
        trainer
    };
    let whole = run(5).output().unwrap();
    let mut trainer =
        Trainer::begin(&context, &dataset, &Settings { publish_steps: vec![2, 5], ..settings(5) }).unwrap();
    for step in 1..=5 {
        trainer.advance(&Alone).unwrap();
        let latest = trainer.latest().unwrap();
        assert_eq!(latest, run(step).output().unwrap(), "step {step}");
        // The best weights are others; those of the first step stand for them.
        let first = trainer.best.take();
        let copy = |parameter: &Parameter| parameter.var.as_tensor().copy().unwrap();
        trainer.best = first.or_else(|| Some(trainer.learner.parameters().list().iter().map(copy).collect()));
        assert_eq!(trainer.latest().unwrap(), latest);
        assert_eq!(trainer.output().unwrap() == latest, step == 1, "step {step}");
    }
    assert_eq!(trainer.latest().unwrap(), whole);
    // Another schedule is another run all the way.
    let falling = |steps| Settings { length: Length::Steps(steps), schedule: Schedule::Linear, ..lora() };
    let after_two = |settings: &Settings| {
        let mut trainer = Trainer::begin(&context, &dataset, settings).unwrap();
        (0..2).for_each(|_| drop(trainer.advance(&Alone).unwrap()));
        trainer.latest().unwrap()
    };
    assert_ne!(after_two(&falling(5)), after_two(&falling(2)));
}

#[test]
fn a_step_that_is_none_of_the_run_is_refused_and_one_more_copy_is_counted() {
    let (context, dataset) = (context(), dataset(16));
    // Eight rows, two of them in each of three micro-batches: two steps a pass.
    let epochs = |publish_steps: &[u64]| Settings {
        length: Length::Epochs(2.0),
        publish_steps: publish_steps.to_vec(),
        ..lora()
    };
    let bytes =
        |steps: &[u64]| Trainer::begin(&context, &dataset, &epochs(steps)).map(|trainer| trainer.estimated_bytes());
    let (plain, kept) = (bytes(&[]).unwrap(), bytes(&[1, 4]).unwrap());
    let weights = super::super::trained_bytes(context.model.differentiable().unwrap().base(), &lora(), 2);
    assert_eq!(kept, plain + 2 * weights);
    for steps in [&[5][..], &[1, 5], &[0]] {
        let refused = bytes(steps);
        assert!(
            matches!(&refused, Err(TrainError::Setting { field: "publish_steps", fault }) if fault.contains("has 4")),
            "{refused:?}"
        );
    }
}

#[test]
fn rows_of_a_short_run_are_those_that_it_comes_to() {
    let (context, dataset) = (context(), dataset(40));
    let settings = Settings { batch_size: 2, accumulation: 3, ..head_only() };
    let trainer = Trainer::begin(&context, &dataset, &settings).unwrap();
    let train: Vec<_> = dataset.rows.iter().filter(|row| row.split == Split::Train).map(|row| row.hash).collect();
    for steps in 1..=3 {
        let rows = (0..steps).flat_map(|step| trainer.order.rows(step)).flatten();
        let expected: std::collections::BTreeSet<_> = rows.map(|row| train[row]).collect();
        assert_eq!(settings.learnt_rows(&dataset, Some(steps)), expected);
        assert_eq!(expected.len(), 6 * steps as usize);
        let whole = Settings { length: Length::Steps(steps), ..settings.clone() };
        assert_eq!(whole.learnt_rows(&dataset, None), expected);
        let packed = Settings { packing: true, ..whole };
        assert_eq!(packed.learnt_rows(&dataset, None).len(), 20, "which rows is not known");
    }
    assert_eq!(settings.learnt_rows(&dataset, Some(4)).len(), 20);
}

#[cfg(feature = "cuda")]
#[test]
fn on_gpu_runs_learn_as_on_the_cpu_and_go_on_as_if_never_interrupted() {
    let dataset = dataset(16);
    let Settings { method: Method::Lora(plain), .. } = lora() else { unreachable!() };
    let dora = LoraSettings { dora: true, ..plain };
    let (class, text) = (Task::SequenceClassification, Task::CausalLm);
    let low_rank = lora().method;
    let runs = [(low_rank.clone(), class), (low_rank, text), (Method::Lora(dora), class), (Method::Full, text)];
    for (method, task) in runs {
        let length = Length::Steps(4);
        let clipped = Settings { max_grad_norm: 0.5, weight_decay: 0.1, learning_rate: 5e-3, ..head_only() };
        let settings = Settings { method: method.clone(), task, length, ..clipped };
        let run = |device, dtype| {
            let context = context_on(device, dtype);
            let mut trainer = Trainer::begin(&context, &dataset, &settings).unwrap();
            let mut steps = Vec::new();
            while !trainer.is_done() {
                let step = trainer.advance(&Alone).unwrap();
                steps.push([step.loss, step.grad_norm]);
            }
            steps
        };
        let expected = run("cpu", "f32");
        for (dtype, tolerance) in [("f32", 1e-3), ("bf16", 0.05)] {
            let got = run("cuda", dtype);
            for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
                let near = (got - expected).abs() < tolerance * expected.abs().max(0.5);
                assert!(near, "{got} instead of {expected}, {dtype}, {task:?}, {method:?}");
            }
        }
        assert_eq!(run("cuda", "bf16"), run("cuda", "bf16"), "bit for bit");
    }
    let context = context_on("cuda", "bf16");
    let settings = Settings { length: Length::Steps(4), ..lora() };
    let run = |interrupted: bool| {
        let mut trainer = Trainer::begin(&context, &dataset, &settings).unwrap();
        while !trainer.is_done() {
            trainer.advance(&Alone).unwrap();
            if interrupted {
                let mut checkpoint = Vec::new();
                trainer.checkpoint(&mut checkpoint).unwrap();
                trainer = Trainer::resume(&context, &dataset, &settings, &checkpoint).unwrap();
            }
        }
        trainer.output().unwrap()
    };
    assert_eq!(run(true), run(false));
}
