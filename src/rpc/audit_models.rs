//! What CreateAudit asks for, from the wire: models, sweeps as the models they stand for, settings.
//!
//! Whether adapters and data sets exist is asked by `jobs`. A sweep becomes one model for every combination of what it
//! lists, named after what differs.

use std::collections::BTreeSet;

use super::audit_settings;
use super::fields::{name, reference};
use super::names::dataset;
use super::pb::{self, audit_model, training_settings};
use super::training;
use super::violations::Violations;
use crate::jobs::{AuditWanted, CheckpointWanted, ModelWanted, SourceWanted};
use crate::train::Length;

const MAX_MODELS: usize = 64;
const MAX_SWEEPS: usize = 16;
const MAX_NAME: usize = 128;

/// Checks an audit; `context` is the longest sequence of the model.
pub(super) fn wanted(v: &mut Violations, wire: pb::CreateAuditRequest, context: usize) -> Option<AuditWanted> {
    let own = name(v, "name", &wire.name);
    dataset(v, "dataset", &wire.dataset);
    let settings = audit_settings::settings(v, wire.settings, context);
    let mut models = Vec::new();
    for (i, model) in wire.models.into_iter().enumerate().take(MAX_MODELS + 1) {
        models.extend(self::model(v, &format!("models[{i}]"), model, context));
    }
    v.require("sweeps", wire.sweeps.len() <= MAX_SWEEPS, "must be at most 16");
    for (i, sweep) in wire.sweeps.into_iter().enumerate().take(MAX_SWEEPS) {
        models.extend(self::sweep(v, &format!("sweeps[{i}]"), sweep, context));
    }
    let sound = (1..=MAX_MODELS).contains(&models.len());
    v.require("models", sound, "must be 1 to 64 together with those of sweeps");
    let names: BTreeSet<&str> = models.iter().map(|model| model.name.as_str()).collect();
    v.require("models", names.len() == models.len(), "must have different names");
    if let Some(settings) = &settings {
        audit_settings::reference(v, settings, names);
    }
    let base = (!wire.base_model.is_empty()).then_some(wire.base_model);
    let keep_models = wire.keep_models;
    Some(AuditWanted { name: own?, dataset: wire.dataset, base, models, settings: settings?, keep_models })
}

fn model(v: &mut Violations, field: &str, wire: pb::AuditModel, context: usize) -> Option<ModelWanted> {
    let scale = wire.scale.unwrap_or(1.0);
    v.require(&format!("{field}.scale"), (0.0..=4.0).contains(&scale), "must be 0 to 4");
    let (source, default) = match wire.source {
        None => {
            v.add(format!("{field}.source"), "must be one of base, adapter and training");
            return None;
        }
        Some(audit_model::Source::Base(pb::BaseSource {})) => (SourceWanted::Base, "base".to_owned()),
        Some(audit_model::Source::Adapter(text)) => {
            let reference = reference(v, &format!("{field}.adapter"), &text)?;
            (SourceWanted::Adapter(reference), text)
        }
        Some(audit_model::Source::Training(training)) => {
            let field = format!("{field}.training");
            (self::training(v, &field, training, context), String::new())
        }
    };
    let name = if wire.name.is_empty() { default } else { wire.name };
    model_name(v, &format!("{field}.name"), &name);
    Some(ModelWanted { name, source, scale })
}

fn model_name(v: &mut Violations, field: &str, name: &str) {
    let sound = (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control);
    v.require(field, sound, "must be 1 to 128 bytes without control characters");
}

fn training(v: &mut Violations, field: &str, wire: pb::TrainingSource, context: usize) -> SourceWanted {
    if !wire.dataset.is_empty() {
        dataset(v, &format!("{field}.dataset"), &wire.dataset);
    }
    let mut own = Violations::default();
    let settings = training::settings(&mut own, wire.settings, context);
    for fault in own.list() {
        v.add(format!("{field}.{}", fault.field), fault.description.clone());
    }
    let dataset = (!wire.dataset.is_empty()).then_some(wire.dataset);
    SourceWanted::Training { settings: Box::new(settings), dataset, checkpoint: None }
}

/// One value of one thing that a sweep varies: how it changes settings, and what it adds to the name.
type Step<'a> = (String, Box<dyn Fn(&mut pb::TrainingSettings) + 'a>);

fn sweep(v: &mut Violations, field: &str, wire: pb::AuditSweep, context: usize) -> Vec<ModelWanted> {
    let alphas = wire.alphas.is_empty() || wire.alpha_policies.is_empty();
    v.require(&format!("{field}.alphas"), alphas, "must be empty when alpha_policies are given");
    let policy = |policy: &i32| {
        let name = pb::AlphaPolicy::try_from(*policy).map_or("unknown", |policy| policy.as_str_name());
        name.trim_start_matches("ALPHA_POLICY_").to_ascii_lowercase()
    };
    let layers = |set: &pb::LayerSet| {
        let numbers: Vec<String> = set.layers.iter().map(u32::to_string).collect();
        if numbers.is_empty() { "all".to_owned() } else { numbers.join("+") }
    };
    let axes: Vec<Vec<Step<'_>>> = vec![
        axis("rank", &wire.ranks, u32::to_string, |rank, settings| set_rank(settings, *rank)),
        axis("alpha", &wire.alphas, f64::to_string, |alpha, settings| {
            lora(settings, |lora| lora.scaling = Some(pb::lora_method::Scaling::Alpha(*alpha)));
        }),
        axis("alpha", &wire.alpha_policies, policy, |policy, settings| {
            lora(settings, |lora| lora.scaling = Some(pb::lora_method::Scaling::AlphaPolicy(*policy)));
        }),
        axis("layers", &wire.layers, layers, |set, settings| {
            lora(settings, |lora| lora.layers.clone_from(&set.layers))
        }),
        axis("steps", &wire.steps, u64::to_string, |steps, settings| {
            settings.length = Some(training_settings::Length::Steps(*steps));
        }),
        axis("lr", &wire.learning_rates, f64::to_string, |rate, settings| settings.learning_rate = Some(*rate)),
        axis("seed", &wire.seeds, u64::to_string, |seed, settings| settings.seed = Some(*seed)),
    ];
    let lengths = axes.iter().map(Vec::len).chain([wire.checkpoints.len()]);
    let combinations = lengths.map(|length| length.max(1)).try_fold(1_usize, usize::checked_mul);
    if combinations.is_none_or(|number| number > MAX_MODELS) {
        v.add(field, "stands for more than 64 models");
        return Vec::new();
    }
    let base = wire.base.clone().unwrap_or_default();
    let first = base.settings.unwrap_or_default();
    let faults = v.list().len();
    vain(v, field, &wire, first.method.as_ref());
    let prefix = if wire.name.is_empty() { "sweep".to_owned() } else { wire.name.clone() };
    let mut models = vec![(prefix, first)];
    for axis in axes.iter().filter(|axis| !axis.is_empty()) {
        models = models
            .iter()
            .flat_map(|(name, settings)| {
                axis.iter().map(move |(text, change)| {
                    let mut settings = settings.clone();
                    change(&mut settings);
                    (format!("{name} {text}"), settings)
                })
            })
            .collect();
    }
    let kept = checkpoints(v, field, &wire, &models);
    let mut wanted = Vec::new();
    for (training, mut settings) in models {
        if !kept.is_empty() {
            settings.publish_steps.clone_from(&kept);
        }
        let wire = pb::TrainingSource { settings: Some(settings), dataset: base.dataset.clone() };
        let source = self::training(v, &format!("{field}.base"), wire, context);
        let result = ModelWanted { name: training, source, scale: 1.0 };
        wanted.extend(looked_at(result, &kept));
    }
    for model in &wanted {
        model_name(v, &format!("{field}.name"), &model.name);
    }
    if v.list().len() == faults {
        twins(v, field, &wanted);
    }
    wanted
}

/// Returns the result of a training, or in its place each of its checkpoints.
fn looked_at(result: ModelWanted, steps: &[u64]) -> Vec<ModelWanted> {
    let SourceWanted::Training { settings, dataset, .. } = &result.source else { return vec![result] };
    if steps.is_empty() {
        return vec![result];
    }
    let at = |step: &u64| {
        let checkpoint = Some(CheckpointWanted { training: result.name.clone(), step: *step });
        let (settings, dataset) = (settings.clone(), dataset.clone());
        let source = SourceWanted::Training { settings, dataset, checkpoint };
        ModelWanted { name: format!("{} checkpoint={step}", result.name), source, scale: result.scale }
    };
    steps.iter().map(at).collect()
}

/// Returns the steps at which each training is looked at; none where they are faulty.
fn checkpoints(
    v: &mut Violations,
    field: &str,
    wire: &pb::AuditSweep,
    models: &[(String, pb::TrainingSettings)],
) -> Vec<u64> {
    if wire.checkpoints.is_empty() {
        return Vec::new();
    }
    let empty = wire.base.iter().flat_map(|base| &base.settings).all(|settings| settings.publish_steps.is_empty());
    let place = format!("{field}.base.settings.publish_steps");
    v.require(&place, empty, "must be empty: `checkpoints` says what is published");
    let shortest = models.iter().filter_map(|(_, settings)| match settings.length {
        Some(training_settings::Length::Steps(steps)) => Some(steps),
        Some(training_settings::Length::Epochs(_)) | None => None,
    });
    let length = shortest.min().map_or(Length::Epochs(1.0), Length::Steps);
    let faults = v.list().len();
    training::published(v, &format!("{field}.checkpoints"), &wire.checkpoints, length);
    if v.list().len() == faults { wire.checkpoints.clone() } else { Vec::new() }
}

/// Refuses what would change nothing: models alike under different names.
fn vain(v: &mut Violations, field: &str, wire: &pb::AuditSweep, method: Option<&training_settings::Method>) {
    let of_lora = [
        ("alphas", wire.alphas.is_empty()),
        ("alpha_policies", wire.alpha_policies.is_empty()),
        ("layers", wire.layers.is_empty()),
    ];
    let (why, ranks) = match method {
        Some(training_settings::Method::Full(_)) => ("must be empty: training of all weights has none", false),
        Some(training_settings::Method::HeadOnly(_)) => ("must be empty: a head alone has none", false),
        Some(training_settings::Method::Lora(_)) | None if wire.ranks.contains(&0) => {
            ("must be empty: rank 0 is a head alone, which has none; put it in a sweep of its own", true)
        }
        Some(training_settings::Method::Lora(_)) | None => return,
    };
    v.require(&format!("{field}.ranks"), ranks || wire.ranks.is_empty(), why);
    for (name, empty) in of_lora {
        v.require(&format!("{field}.{name}"), empty, why);
    }
}

/// Refuses models that are the same but for their names.
fn twins(v: &mut Violations, field: &str, models: &[ModelWanted]) {
    for (i, model) in models.iter().enumerate() {
        let same = |other: &&ModelWanted| match (&other.source, &model.source) {
            (
                SourceWanted::Training { settings: one, checkpoint: first, .. },
                SourceWanted::Training { settings: two, checkpoint: second, .. },
            ) => one == two && first.as_ref().map(|of| of.step) == second.as_ref().map(|of| of.step),
            (SourceWanted::Base | SourceWanted::Adapter(_) | SourceWanted::Training { .. }, _) => false,
        };
        if let Some(other) = models[..i].iter().find(same) {
            v.add(field, format!("trains the same model twice: `{}` and `{}`", other.name, model.name));
            return;
        }
    }
}

fn axis<'a, T>(
    name: &str,
    values: &'a [T],
    text: impl Fn(&T) -> String,
    change: impl Fn(&T, &mut pb::TrainingSettings) + Copy + 'a,
) -> Vec<Step<'a>> {
    let step = |value: &'a T| -> Step<'a> {
        (
            format!("{name}={}", text(value)),
            Box::new(move |settings: &mut pb::TrainingSettings| change(value, settings)),
        )
    };
    values.iter().map(step).collect()
}

/// Changes the LoRA method; other methods have nothing to change.
fn lora(settings: &mut pb::TrainingSettings, change: impl FnOnce(&mut pb::LoraMethod)) {
    let method = settings.method.get_or_insert_with(|| training_settings::Method::Lora(pb::LoraMethod::default()));
    match method {
        training_settings::Method::Lora(lora) => change(lora),
        training_settings::Method::Full(_) | training_settings::Method::HeadOnly(_) => {}
    }
}

/// Rank 0 is a head on the frozen base.
fn set_rank(settings: &mut pb::TrainingSettings, rank: u32) {
    if rank == 0 {
        settings.method = Some(training_settings::Method::HeadOnly(pb::HeadOnlyMethod {}));
    } else {
        lora(settings, |lora| lora.rank = Some(rank));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Method, Settings};

    fn request() -> pb::CreateAuditRequest {
        let base = pb::AuditModel { source: Some(audit_model::Source::Base(pb::BaseSource {})), ..Default::default() };
        let task = pb::AuditTask { kind: Some(pb::audit_task::Kind::Head(pb::HeadTask {})) };
        pb::CreateAuditRequest {
            name: "a".into(),
            dataset: "d".into(),
            models: vec![base],
            settings: Some(pb::AuditSettings { task: Some(task), ..Default::default() }),
            ..Default::default()
        }
    }

    fn settings_of(model: &ModelWanted) -> &Settings {
        match &model.source {
            SourceWanted::Training { settings, .. } => settings,
            SourceWanted::Base | SourceWanted::Adapter(_) => panic!("{} is not trained", model.name),
        }
    }

    #[test]
    fn a_sweep_is_every_combination_and_rank_0_is_a_head() {
        let mut wire = request();
        wire.sweeps = vec![pb::AuditSweep {
            name: "r".into(),
            ranks: vec![0, 4, 16],
            seeds: vec![1, 2],
            steps: vec![9],
            base: Some(pb::TrainingSource {
                settings: Some(pb::TrainingSettings { task: 2, ..Default::default() }),
                dataset: "other".into(),
            }),
            ..Default::default()
        }];
        let mut v = Violations::default();
        let wanted = wanted(&mut v, wire, 64).unwrap();
        assert!(v.list().is_empty(), "{v:?}");
        let names: Vec<&str> = wanted.models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names[..3], ["base", "r rank=0 steps=9 seed=1", "r rank=0 steps=9 seed=2"]);
        assert_eq!(names.len(), 7);
        assert_eq!(settings_of(&wanted.models[1]).method, Method::HeadOnly);
        let last = settings_of(&wanted.models[6]);
        assert!(matches!(&last.method, Method::Lora(lora) if lora.rank == 16 && lora.alpha == 32.0));
        assert_eq!((last.seed, last.length), (2, Length::Steps(9)));
    }

    /// The models of one sweep, or the fields at fault.
    fn swept(sweep: pb::AuditSweep) -> Result<Vec<ModelWanted>, Vec<String>> {
        let mut v = Violations::default();
        let wanted = wanted(&mut v, pb::CreateAuditRequest { sweeps: vec![sweep], ..request() }, 64);
        match v.list() {
            [] => Ok(wanted.unwrap().models.split_off(1)),
            faults => Err(faults.iter().map(|fault| fault.field.clone()).collect()),
        }
    }

    /// A sweep of classifiers by this method.
    fn by(method: Option<training_settings::Method>) -> pb::AuditSweep {
        let settings = pb::TrainingSettings {
            task: 2,
            method,
            length: Some(training_settings::Length::Steps(9)),
            ..Default::default()
        };
        let base = pb::TrainingSource { settings: Some(settings), ..Default::default() };
        pb::AuditSweep { name: "s".into(), base: Some(base), ..Default::default() }
    }

    #[test]
    fn every_axis_changes_what_it_is_called_after() {
        let lora = |model: &ModelWanted| match &settings_of(model).method {
            Method::Lora(lora) => lora.clone(),
            Method::Full | Method::HeadOnly => panic!("{} is no LoRA", model.name),
        };
        let names = |models: &[ModelWanted]| models.iter().map(|model| model.name.clone()).collect::<Vec<_>>();
        let models = swept(pb::AuditSweep { ranks: vec![4, 8], alphas: vec![8.0, 12.5], ..by(None) }).unwrap();
        assert_eq!(
            names(&models),
            ["s rank=4 alpha=8", "s rank=4 alpha=12.5", "s rank=8 alpha=8", "s rank=8 alpha=12.5"]
        );
        let found: Vec<_> = models.iter().map(|model| (lora(model).rank, lora(model).alpha)).collect();
        assert_eq!(found, [(4, 8.0), (4, 12.5), (8, 8.0), (8, 12.5)]);

        let alpha_policies = vec![pb::AlphaPolicy::TwiceRank.into(), pb::AlphaPolicy::Rank.into()];
        let models = swept(pb::AuditSweep { ranks: vec![4, 8], alpha_policies, ..by(None) }).unwrap();
        assert_eq!(names(&models)[..2], ["s rank=4 alpha=twice_rank", "s rank=4 alpha=rank"]);
        let found: Vec<_> = models.iter().map(|model| (lora(model).rank, lora(model).alpha)).collect();
        assert_eq!(found, [(4, 8.0), (4, 4.0), (8, 16.0), (8, 8.0)]);

        let set = |layers: &[u32]| pb::LayerSet { layers: layers.to_vec() };
        let layers = vec![set(&[]), set(&[0]), set(&[1, 2])];
        let models = swept(pb::AuditSweep { layers, ..by(None) }).unwrap();
        assert_eq!(names(&models), ["s layers=all", "s layers=0", "s layers=1+2"]);
        let found: Vec<_> = models.iter().map(|model| lora(model).layers).collect();
        assert_eq!(found, [vec![], vec![0], vec![1, 2]]);

        let full = Some(training_settings::Method::Full(pb::FullMethod {}));
        let rates = vec![0.001, 0.5];
        let models = swept(pb::AuditSweep { learning_rates: rates, steps: vec![2, 3], ..by(full) }).unwrap();
        assert_eq!(
            names(&models),
            ["s steps=2 lr=0.001", "s steps=2 lr=0.5", "s steps=3 lr=0.001", "s steps=3 lr=0.5"]
        );
        let found: Vec<_> = models.iter().map(settings_of).map(|own| (own.length, own.learning_rate)).collect();
        let steps = Length::Steps;
        assert_eq!(found, [(steps(2), 0.001), (steps(2), 0.5), (steps(3), 0.001), (steps(3), 0.5)]);
        assert!(models.iter().all(|model| settings_of(model).method == Method::Full));
    }

    #[test]
    fn checkpoints_are_models_of_one_training_each() {
        let of = |model: &ModelWanted| match &model.source {
            SourceWanted::Training { settings, checkpoint: Some(of), .. } => {
                (of.training.clone(), of.step, settings.publish_steps.clone())
            }
            SourceWanted::Base | SourceWanted::Adapter(_) | SourceWanted::Training { .. } => panic!("{}", model.name),
        };
        let models = swept(pb::AuditSweep { ranks: vec![4, 8], checkpoints: vec![2, 9], ..by(None) }).unwrap();
        let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
        let expected =
            ["s rank=4 checkpoint=2", "s rank=4 checkpoint=9", "s rank=8 checkpoint=2", "s rank=8 checkpoint=9"];
        assert_eq!(names, expected);
        let found: Vec<_> = models.iter().map(of).collect();
        let one = |training: &str, step| (training.to_owned(), step, vec![2, 9]);
        assert_eq!(found, [one("s rank=4", 2), one("s rank=4", 9), one("s rank=8", 2), one("s rank=8", 9)]);
        // As long as each other step asks for; the shortest training has them all.
        let both = pb::AuditSweep { steps: vec![9, 20], checkpoints: vec![2, 9], ..by(None) };
        let lengths: Vec<_> = swept(both).unwrap().iter().map(|model| settings_of(model).length).collect();
        assert_eq!(lengths, [9, 9, 20, 20].map(Length::Steps));

        let mut twice = pb::AuditSweep { checkpoints: vec![2], ..by(None) };
        twice.base.as_mut().unwrap().settings.as_mut().unwrap().publish_steps = vec![3];
        let mut long = pb::AuditSweep { checkpoints: vec![2], ..by(None) };
        long.name = "s".repeat(120);
        for (sweep, field) in [
            (pb::AuditSweep { checkpoints: vec![10], ..by(None) }, "sweeps[0].checkpoints"),
            (pb::AuditSweep { checkpoints: vec![0, 1], ..by(None) }, "sweeps[0].checkpoints"),
            (pb::AuditSweep { checkpoints: vec![2, 2], ..by(None) }, "sweeps[0].checkpoints"),
            (pb::AuditSweep { checkpoints: vec![2, 9], steps: vec![20, 8], ..by(None) }, "sweeps[0].checkpoints"),
            (pb::AuditSweep { checkpoints: (1..=9).collect(), seeds: (0..8).collect(), ..by(None) }, "sweeps[0]"),
            (twice, "sweeps[0].base.settings.publish_steps"),
            (long, "sweeps[0].name"),
        ] {
            assert_eq!(swept(sweep.clone()).unwrap_err(), [field], "{sweep:?}");
        }
    }

    #[test]
    fn an_axis_that_would_change_nothing_is_refused_by_name() {
        let full = || by(Some(training_settings::Method::Full(pb::FullMethod {})));
        let head = || by(Some(training_settings::Method::HeadOnly(pb::HeadOnlyMethod {})));
        let policies = vec![pb::AlphaPolicy::Rank.into()];
        let layers = vec![pb::LayerSet { layers: vec![0] }];
        for (sweep, field) in [
            (pb::AuditSweep { ranks: vec![4, 8], ..full() }, "sweeps[0].ranks"),
            (pb::AuditSweep { ranks: vec![0], ..full() }, "sweeps[0].ranks"),
            (pb::AuditSweep { alphas: vec![1.0, 2.0], ..full() }, "sweeps[0].alphas"),
            (pb::AuditSweep { layers: layers.clone(), ..full() }, "sweeps[0].layers"),
            (pb::AuditSweep { alpha_policies: policies.clone(), ..head() }, "sweeps[0].alpha_policies"),
            (pb::AuditSweep { ranks: vec![8], ..head() }, "sweeps[0].ranks"),
            (pb::AuditSweep { ranks: vec![0, 4], alphas: vec![8.0, 16.0], ..by(None) }, "sweeps[0].alphas"),
            (pb::AuditSweep { ranks: vec![0], alpha_policies: policies, ..by(None) }, "sweeps[0].alpha_policies"),
            (pb::AuditSweep { ranks: vec![0], layers, ..by(None) }, "sweeps[0].layers"),
            // Twice the rank is the default.
            (pb::AuditSweep { alpha_policies: vec![0, 1], ..by(None) }, "sweeps[0]"),
        ] {
            assert_eq!(swept(sweep.clone()).unwrap_err(), [field], "{sweep:?}");
        }
        assert_eq!(swept(pb::AuditSweep { ranks: vec![0, 4], seeds: vec![1, 2], ..by(None) }).unwrap().len(), 4);
        assert_eq!(swept(pb::AuditSweep { seeds: vec![1, 2], ..full() }).unwrap().len(), 2);
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let mut wire = request();
        wire.name = "A".into();
        wire.models.push(pb::AuditModel { scale: Some(f64::NAN), ..Default::default() });
        wire.sweeps = vec![
            pb::AuditSweep { seeds: (0..65).collect(), ..Default::default() },
            pb::AuditSweep { learning_rates: vec![f64::NAN], ..Default::default() },
        ];
        let mut v = Violations::default();
        assert!(wanted(&mut v, wire, 64).is_none());
        let fields =
            ["name", "models[1].scale", "models[1].source", "sweeps[0]", "sweeps[1].base.settings.learning_rate"];
        assert_eq!(v.fields(), fields);
    }
}
