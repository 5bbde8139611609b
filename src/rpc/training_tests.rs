//! Tests of `training`: defaults, every faulty field, and that what goes out comes in again.

use super::*;

const CONTEXT: usize = 2048;

fn sound(wire: pb::TrainingSettings) -> Settings {
    let mut v = Violations::default();
    let settings = settings(&mut v, Some(wire), CONTEXT);
    assert!(v.list().is_empty(), "{:?}", v.list());
    settings
}

fn with(change: impl FnOnce(&mut pb::TrainingSettings)) -> pb::TrainingSettings {
    let mut wire = pb::TrainingSettings::default();
    change(&mut wire);
    wire
}

fn with_lora(change: impl FnOnce(&mut pb::LoraMethod)) -> pb::TrainingSettings {
    let mut lora = pb::LoraMethod::default();
    change(&mut lora);
    pb::TrainingSettings { method: Some(wire::Method::Lora(lora)), ..Default::default() }
}

#[test]
fn nothing_given_is_what_users_of_peft_expect() {
    let mut v = Violations::default();
    let resolved = settings(&mut v, None, CONTEXT);
    let Method::Lora(lora) = &resolved.method else { panic!("{resolved:?}") };
    assert_eq!((lora.rank, lora.alpha, lora.dropout), (8, 16.0, 0.0));
    assert_eq!((&lora.targets, lora.rslora, lora.dora), (&Targets::AllLinear, false, false));
    assert_eq!((resolved.task, resolved.length), (Task::CausalLm, Length::Epochs(1.0)));
    assert_eq!((resolved.batch_size, resolved.accumulation, resolved.max_tokens), (8, 1, 1024));
    assert_eq!((resolved.learning_rate, resolved.schedule, resolved.warmup_steps), (2e-4, Schedule::Linear, 0));
    assert_eq!((resolved.weight_decay, resolved.beta1, resolved.beta2, resolved.epsilon), (0.0, 0.9, 0.999, 1e-8));
    assert_eq!((resolved.max_grad_norm, resolved.average, resolved.recompute), (1.0, Average::Tokens, None));
    assert_eq!((resolved.eval_every, resolved.patience, resolved.keep_best, resolved.seed), (0, 0, false, 42));
    let full = sound(with(|s| s.method = Some(wire::Method::Full(pb::FullMethod {}))));
    assert_eq!((full.method, full.learning_rate), (Method::Full, 2e-5));
    assert_eq!(settings(&mut v, None, 64).max_tokens, 64);
    assert!(v.list().is_empty());
}

#[test]
fn alpha_follows_its_policy() {
    for (policy, expected) in [
        (None, 64.0),
        (Some(Scaling::AlphaPolicy(pb::AlphaPolicy::TwiceRank.into())), 64.0),
        (Some(Scaling::AlphaPolicy(pb::AlphaPolicy::Rank.into())), 32.0),
        (Some(Scaling::Alpha(5.0)), 5.0),
    ] {
        let settings = sound(with_lora(|lora| (lora.rank, lora.scaling) = (Some(32), policy)));
        let Method::Lora(lora) = settings.method else { panic!() };
        assert_eq!(lora.alpha, expected);
    }
}

#[test]
fn resolved_settings_come_in_again_as_the_same() {
    let every = pb::TrainingSettings {
        task: pb::TrainingTask::SequenceClassification.into(),
        method: Some(wire::Method::Lora(pb::LoraMethod {
            rank: Some(3),
            scaling: Some(Scaling::Alpha(7.5)),
            rslora: true,
            dora: true,
            dropout: 0.25,
            target_modules: vec!["q_proj".into(), "v_proj".into()],
            layers: vec![0, 5],
            modules_to_save: vec!["score".into()],
        })),
        length: Some(wire::Length::Steps(17)),
        batch_size: Some(2),
        accumulation: Some(4),
        max_tokens: Some(33),
        packing: false,
        train_on_prompt: false,
        learning_rate: Some(1e-3),
        schedule: pb::TrainingSchedule::Cosine.into(),
        warmup_steps: 5,
        weight_decay: 0.01,
        beta1: Some(0.8),
        beta2: Some(0.99),
        epsilon: Some(1e-6),
        max_grad_norm: Some(0.0),
        average: pb::LossAverage::MicroBatches.into(),
        recompute: Some(true),
        eval_every: 9,
        patience: 2,
        keep_best: true,
        seed: Some(u64::MAX),
        groups: vec!["age".into(), "sex".into()],
        random_flip: false,
        publish_steps: vec![1, 9, 17],
        subset: Some(pb::TrainingSubset {
            splits: vec![pb::DatasetSplit::Train.into(), pb::DatasetSplit::Test.into()],
            fraction: 0.25,
            seed: 3,
        }),
    };
    assert_eq!(settings_out(sound(every.clone())), every);
    let mut other = sound(with(|s| {
        s.method = Some(wire::Method::Full(pb::FullMethod {}));
        (s.packing, s.train_on_prompt) = (true, true);
        s.length = Some(wire::Length::Epochs(0.5));
        s.schedule = pb::TrainingSchedule::Constant.into();
    }));
    let images = sound(with(|s| {
        s.task = pb::TrainingTask::ImageClassification.into();
        s.random_flip = true;
    }));
    assert_eq!(sound(settings_out(images.clone())), images);
    other.recompute = Some(false);
    assert_eq!(sound(settings_out(other.clone())), other);
    // As a job keeps them: written, read, the same to the last bit.
    let text = serde_json::to_string(&other).unwrap();
    assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), other);
}

#[test]
fn each_faulty_field_is_named() {
    let classify = pb::TrainingTask::SequenceClassification.into();
    let images = pb::TrainingTask::ImageClassification.into();
    let modules = |count: usize| (0..count).map(|i| format!("m{i}")).collect::<Vec<_>>();
    let cases: Vec<(&str, pb::TrainingSettings)> = vec![
        ("settings.task", with(|s| s.task = 9)),
        ("settings.schedule", with(|s| s.schedule = -1)),
        ("settings.average", with(|s| s.average = 7)),
        ("settings.packing", with(|s| (s.task, s.packing) = (classify, true))),
        ("settings.random_flip", with(|s| (s.task, s.random_flip) = (classify, true))),
        ("settings.max_tokens", with(|s| (s.task, s.max_tokens) = (images, Some(64)))),
        ("settings.patience", with(|s| s.patience = 1)),
        ("settings.train_on_prompt", with(|s| (s.task, s.train_on_prompt) = (classify, true))),
        ("settings.epochs", with(|s| s.length = Some(wire::Length::Epochs(0.0)))),
        ("settings.epochs", with(|s| s.length = Some(wire::Length::Epochs(f64::NAN)))),
        ("settings.epochs", with(|s| s.length = Some(wire::Length::Epochs(f64::INFINITY)))),
        ("settings.steps", with(|s| s.length = Some(wire::Length::Steps(0)))),
        ("settings.steps", with(|s| s.length = Some(wire::Length::Steps(u64::MAX)))),
        ("settings.batch_size", with(|s| s.batch_size = Some(0))),
        ("settings.batch_size", with(|s| s.batch_size = Some(u32::MAX))),
        ("settings.accumulation", with(|s| s.accumulation = Some(0))),
        ("settings.max_tokens", with(|s| s.max_tokens = Some(1))),
        ("settings.max_tokens", with(|s| s.max_tokens = Some(2049))),
        ("settings.learning_rate", with(|s| s.learning_rate = Some(f64::NAN))),
        ("settings.learning_rate", with(|s| s.learning_rate = Some(0.0))),
        ("settings.learning_rate", with(|s| s.learning_rate = Some(-1e-4))),
        ("settings.learning_rate", with(|s| s.learning_rate = Some(f64::INFINITY))),
        ("settings.warmup_steps", with(|s| s.warmup_steps = u64::MAX)),
        ("settings.eval_every", with(|s| s.eval_every = u64::MAX)),
        ("settings.patience", with(|s| (s.patience, s.eval_every) = (u64::MAX, 1))),
        ("settings.weight_decay", with(|s| s.weight_decay = f64::NAN)),
        ("settings.weight_decay", with(|s| s.weight_decay = -0.1)),
        ("settings.beta1", with(|s| s.beta1 = Some(1.0))),
        ("settings.beta2", with(|s| s.beta2 = Some(f64::NAN))),
        ("settings.epsilon", with(|s| s.epsilon = Some(0.0))),
        ("settings.max_grad_norm", with(|s| s.max_grad_norm = Some(f64::INFINITY))),
        ("settings.max_grad_norm", with(|s| s.max_grad_norm = Some(-1.0))),
        ("settings.publish_steps", with(|s| s.publish_steps = vec![0, 3])),
        ("settings.publish_steps", with(|s| s.publish_steps = vec![3, 3])),
        ("settings.publish_steps", with(|s| s.publish_steps = vec![3, 2])),
        ("settings.publish_steps", with(|s| s.publish_steps = vec![10_000_001])),
        ("settings.publish_steps", with(|s| s.publish_steps = (1..=65).collect())),
        ("settings.publish_steps", with(|s| (s.publish_steps, s.length) = (vec![5], Some(wire::Length::Steps(4))))),
        ("settings.groups", with(|s| s.groups = vec![String::new()])),
        ("settings.groups", with(|s| s.groups = vec!["a".into(), "a".into()])),
        ("settings.groups", with(|s| s.groups = modules(17))),
        ("settings.groups", with(|s| s.groups = vec!["a".repeat(256)])),
        ("settings.lora.rank", with_lora(|l| l.rank = Some(0))),
        ("settings.lora.rank", with_lora(|l| l.rank = Some(1_000_000))),
        ("settings.lora.alpha", with_lora(|l| l.scaling = Some(Scaling::Alpha(f64::NAN)))),
        ("settings.lora.alpha", with_lora(|l| l.scaling = Some(Scaling::Alpha(0.0)))),
        ("settings.lora.alpha_policy", with_lora(|l| l.scaling = Some(Scaling::AlphaPolicy(5)))),
        ("settings.lora.dropout", with_lora(|l| l.dropout = 1.0)),
        ("settings.lora.dropout", with_lora(|l| l.dropout = f64::NAN)),
        ("settings.lora.target_modules", with_lora(|l| l.target_modules = vec![String::new()])),
        ("settings.lora.target_modules", with_lora(|l| l.target_modules = modules(1025))),
        ("settings.lora.modules_to_save", with_lora(|l| l.modules_to_save = vec!["a".repeat(256)])),
        ("settings.lora.layers", with_lora(|l| l.layers = vec![1, 1])),
    ];
    for (field, wire) in cases {
        let mut v = Violations::default();
        settings(&mut v, Some(wire), CONTEXT);
        assert_eq!(v.fields(), [field]);
    }
    // As many as there may be, to the last step; how many steps two epochs are is not known yet.
    assert_eq!(sound(with(|s| s.publish_steps = (1..=64).collect())).publish_steps.len(), 64);
    sound(with(|s| (s.publish_steps, s.length) = (vec![4], Some(wire::Length::Steps(4)))));
    sound(with(|s| (s.publish_steps, s.length) = (vec![1_000_000], Some(wire::Length::Epochs(2.0)))));
    let mut v = Violations::default();
    let wire = with(|s| (s.batch_size, s.beta1, s.learning_rate) = (Some(0), Some(2.0), Some(f64::NAN)));
    settings(&mut v, Some(wire), CONTEXT);
    assert_eq!(v.list().len(), 3, "all at once");
}
