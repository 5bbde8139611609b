//! Settings and progress of training, from the wire and back: every field is checked here, once.
//!
//! No data set or layer is asked: what depends on them is found out when the job runs. Ranges are those written in
//! `proto/evenkeel/v1/training.proto`. Settings that went out as resolved come in again as the same.

use super::info::count;
use super::names::{all_differ, split_out, splits};
use super::pb::{self, lora_method::Scaling, training_settings as wire};
use super::violations::Violations;
use crate::dataset::Split;
use crate::jobs::Advance;
use crate::registry::Lineage;
use crate::train::{
    Average, Evaluation, Figure, Length, LoraSettings, Method, Schedule, Settings, Subset, Targets, Task,
};

/// Largest number of steps of any kind.
const MAX_STEPS: u64 = 10_000_000;
const MAX_EPOCHS: f64 = 10_000.0;
const MAX_RANK: u32 = 4096;
const MAX_ALPHA: f64 = 1e6;
const MAX_BATCH: u32 = 4096;
const MAX_ACCUMULATION: u32 = 65_536;
const MAX_RATE: f64 = 10.0;
const MAX_GROUPS: usize = 16;
/// Most checkpoints that one run publishes.
const MAX_PUBLISHED: usize = 64;
const MAX_MODULES: usize = 1024;
const MAX_NAME: usize = 255;

const DEFAULT_RANK: u32 = 8;
const DEFAULT_BATCH: u32 = 8;
const DEFAULT_TOKENS: u32 = 1024;
const DEFAULT_SEED: u64 = 42;
/// peft's examples use it for LoRA, transformers' for all weights.
const DEFAULT_RATES: (f64, f64) = (2e-4, 2e-5);

/// Checks settings; `context` is the longest sequence of the model. Fields are named below `settings`.
pub(super) fn settings(v: &mut Violations, wire: Option<pb::TrainingSettings>, context: usize) -> Settings {
    let wire = wire.unwrap_or_default();
    let task = task(v, wire.task);
    let language = task == Task::CausalLm;
    for (field, on) in [("settings.packing", wire.packing), ("settings.train_on_prompt", wire.train_on_prompt)] {
        v.require(field, language || !on, "is for causal language modelling");
    }
    let images = task == Task::ImageClassification;
    v.require("settings.random_flip", images || !wire.random_flip, "is for images");
    v.require("settings.max_tokens", !images || wire.max_tokens.is_none(), "is for texts");
    v.require("settings.patience", wire.patience == 0 || wire.eval_every > 0, "needs `eval_every`");
    let method = match wire.method {
        None => lora(v, pb::LoraMethod::default()),
        Some(wire::Method::Lora(lora_method)) => lora(v, lora_method),
        Some(wire::Method::Full(pb::FullMethod {})) => Method::Full,
        Some(wire::Method::HeadOnly(pb::HeadOnlyMethod {})) => {
            v.require("settings.head_only", !language, "is for classification");
            Method::HeadOnly
        }
    };
    let full = method == Method::Full;
    let longest = count(context);
    let tokens = wire.max_tokens.unwrap_or(DEFAULT_TOKENS.min(longest));
    let rule = format!("must be 2 to {longest}, the context of the model");
    v.require("settings.max_tokens", (2..=longest).contains(&tokens), &rule);
    let rate = wire.learning_rate.unwrap_or(if full { DEFAULT_RATES.1 } else { DEFAULT_RATES.0 });
    let rate_rule = "must be above 0 and at most 10";
    for (field, steps) in [
        ("settings.warmup_steps", wire.warmup_steps),
        ("settings.eval_every", wire.eval_every),
        ("settings.patience", wire.patience),
    ] {
        v.require(field, steps <= MAX_STEPS, "must be 0 to 10000000");
    }
    names(v, "settings.groups", &wire.groups, MAX_GROUPS);
    let length = length(v, wire.length);
    published(v, "settings.publish_steps", &wire.publish_steps, length);
    Settings {
        task,
        method,
        length,
        batch_size: whole(v, "settings.batch_size", wire.batch_size, DEFAULT_BATCH, MAX_BATCH),
        accumulation: whole(v, "settings.accumulation", wire.accumulation, 1, MAX_ACCUMULATION),
        max_tokens: tokens as usize,
        packing: wire.packing,
        train_on_prompt: wire.train_on_prompt,
        learning_rate: v.check("settings.learning_rate", rate, |r| *r > 0.0 && *r <= MAX_RATE, rate_rule),
        schedule: schedule(v, wire.schedule),
        warmup_steps: wire.warmup_steps,
        weight_decay: v.check(
            "settings.weight_decay",
            wire.weight_decay,
            |w| (0.0..=10.0).contains(w),
            "must be 0 to 10",
        ),
        beta1: share(v, "settings.beta1", wire.beta1.unwrap_or(0.9)),
        beta2: share(v, "settings.beta2", wire.beta2.unwrap_or(0.999)),
        epsilon: v.check(
            "settings.epsilon",
            wire.epsilon.unwrap_or(1e-8),
            |e| (f64::from(f32::MIN_POSITIVE)..=1.0).contains(e),
            "must be at least 1.2e-38, the smallest number of f32, and at most 1",
        ),
        max_grad_norm: v.check(
            "settings.max_grad_norm",
            wire.max_grad_norm.unwrap_or(1.0),
            |norm| norm.is_finite() && *norm >= 0.0,
            "must be 0 or above",
        ),
        average: average(v, wire.average),
        recompute: wire.recompute,
        eval_every: wire.eval_every,
        patience: wire.patience,
        keep_best: wire.keep_best,
        seed: wire.seed.unwrap_or(DEFAULT_SEED),
        groups: wire.groups,
        random_flip: wire.random_flip,
        publish_steps: wire.publish_steps,
        subset: wire.subset.and_then(|subset| self::subset(v, &subset)),
    }
}

/// Checks the steps of checkpoints that a run of this length publishes; of epochs it is told later how many steps they are.
pub(super) fn published(v: &mut Violations, field: &str, steps: &[u64], length: Length) {
    let most = match length {
        Length::Steps(steps) => steps.min(MAX_STEPS),
        Length::Epochs(_) => MAX_STEPS,
    };
    let ascending = steps.windows(2).all(|pair| pair[0] < pair[1]);
    let sound = steps.len() <= MAX_PUBLISHED && ascending && steps.iter().all(|step| (1..=most).contains(step));
    v.require(field, sound, &format!("must be at most {MAX_PUBLISHED} ascending steps from 1 to {most}"));
}

fn subset(v: &mut Violations, wire: &pb::TrainingSubset) -> Option<Subset> {
    let fraction = wire.fraction > 0.0 && wire.fraction <= 1.0;
    v.require("settings.subset.fraction", fraction, "must be above 0 and at most 1");
    let known = splits(v, "settings.subset.splits", &wire.splits);
    let splits = if known.is_empty() { vec![Split::Train] } else { known };
    Some(Subset { splits, fraction: wire.fraction, seed: wire.seed })
}

fn lora(v: &mut Violations, wire: pb::LoraMethod) -> Method {
    let rank = wire.rank.unwrap_or(DEFAULT_RANK);
    v.require("settings.lora.rank", (1..=MAX_RANK).contains(&rank), "must be 1 to 4096");
    let alpha = match wire.scaling {
        None => 2.0 * f64::from(rank),
        Some(Scaling::Alpha(alpha)) => {
            let rule = "must be above 0 and at most 1e6";
            v.check("settings.lora.alpha", alpha, |alpha| *alpha > 0.0 && *alpha <= MAX_ALPHA, rule)
        }
        Some(Scaling::AlphaPolicy(policy)) => match pb::AlphaPolicy::try_from(policy) {
            Ok(pb::AlphaPolicy::Unspecified | pb::AlphaPolicy::TwiceRank) => 2.0 * f64::from(rank),
            Ok(pb::AlphaPolicy::Rank) => f64::from(rank),
            Err(_) => unknown(v, "settings.lora.alpha_policy", 1.0),
        },
    };
    names(v, "settings.lora.target_modules", &wire.target_modules, MAX_MODULES);
    names(v, "settings.lora.modules_to_save", &wire.modules_to_save, MAX_MODULES);
    let layers = wire.layers.len() <= MAX_MODULES && all_differ(&wire.layers);
    v.require("settings.lora.layers", layers, "must be at most 1024 different numbers");
    Method::Lora(LoraSettings {
        rank: rank as usize,
        alpha,
        rslora: wire.rslora,
        dora: wire.dora,
        dropout: share(v, "settings.lora.dropout", wire.dropout),
        targets: match wire.target_modules {
            modules if modules.is_empty() => Targets::AllLinear,
            modules => Targets::Modules(modules),
        },
        layers: wire.layers.into_iter().map(|layer| layer as usize).collect(),
        modules_to_save: wire.modules_to_save,
    })
}

fn length(v: &mut Violations, wire: Option<wire::Length>) -> Length {
    match wire {
        None => Length::Epochs(1.0),
        Some(wire::Length::Epochs(epochs)) => {
            let sound = epochs > 0.0 && epochs <= MAX_EPOCHS;
            v.require("settings.epochs", sound, "must be above 0 and at most 10000");
            Length::Epochs(epochs)
        }
        Some(wire::Length::Steps(steps)) => {
            v.require("settings.steps", (1..=MAX_STEPS).contains(&steps), "must be 1 to 10000000");
            Length::Steps(steps)
        }
    }
}

fn whole(v: &mut Violations, field: &str, wire: Option<u32>, default: u32, most: u32) -> usize {
    let value = wire.unwrap_or(default);
    v.require(field, (1..=most).contains(&value), &format!("must be 1 to {most}"));
    value as usize
}

/// A number of which 1 itself is too much.
fn share(v: &mut Violations, field: &str, value: f64) -> f64 {
    v.check(field, value, |share| (0.0..1.0).contains(share), "must be 0 to below 1")
}

fn names(v: &mut Violations, field: &str, names: &[String], most: usize) {
    let sound = names.iter().all(|name| !name.is_empty() && name.len() <= MAX_NAME);
    let sound = sound && names.len() <= most && all_differ(names);
    v.require(field, sound, &format!("must be at most {most} different names of 1 to {MAX_NAME} bytes"));
}

fn unknown<T>(v: &mut Violations, field: &str, stand_in: T) -> T {
    v.add(field, "is not a known value");
    stand_in
}

fn task(v: &mut Violations, wire: i32) -> Task {
    match pb::TrainingTask::try_from(wire) {
        Ok(pb::TrainingTask::Unspecified | pb::TrainingTask::CausalLm) => Task::CausalLm,
        Ok(pb::TrainingTask::SequenceClassification) => Task::SequenceClassification,
        Ok(pb::TrainingTask::ImageClassification) => Task::ImageClassification,
        Err(_) => unknown(v, "settings.task", Task::CausalLm),
    }
}

fn schedule(v: &mut Violations, wire: i32) -> Schedule {
    match pb::TrainingSchedule::try_from(wire) {
        Ok(pb::TrainingSchedule::Constant) => Schedule::Constant,
        Ok(pb::TrainingSchedule::Unspecified | pb::TrainingSchedule::Linear) => Schedule::Linear,
        Ok(pb::TrainingSchedule::Cosine) => Schedule::Cosine,
        Err(_) => unknown(v, "settings.schedule", Schedule::Linear),
    }
}

fn average(v: &mut Violations, wire: i32) -> Average {
    match pb::LossAverage::try_from(wire) {
        Ok(pb::LossAverage::Unspecified | pb::LossAverage::Tokens) => Average::Tokens,
        Ok(pb::LossAverage::MicroBatches) => Average::MicroBatches,
        Err(_) => unknown(v, "settings.average", Average::Tokens),
    }
}

/// Settings with nothing left to defaults.
pub(super) fn settings_out(settings: Settings) -> pb::TrainingSettings {
    let method = match settings.method {
        Method::Full => wire::Method::Full(pb::FullMethod {}),
        Method::HeadOnly => wire::Method::HeadOnly(pb::HeadOnlyMethod {}),
        Method::Lora(lora) => wire::Method::Lora(pb::LoraMethod {
            rank: Some(count(lora.rank)),
            scaling: Some(Scaling::Alpha(lora.alpha)),
            rslora: lora.rslora,
            dora: lora.dora,
            dropout: lora.dropout,
            target_modules: match lora.targets {
                Targets::AllLinear => Vec::new(),
                Targets::Modules(modules) => modules,
            },
            layers: lora.layers.into_iter().map(count).collect(),
            modules_to_save: lora.modules_to_save,
        }),
    };
    let task = match settings.task {
        Task::CausalLm => pb::TrainingTask::CausalLm,
        Task::SequenceClassification => pb::TrainingTask::SequenceClassification,
        Task::ImageClassification => pb::TrainingTask::ImageClassification,
    };
    let schedule = match settings.schedule {
        Schedule::Constant => pb::TrainingSchedule::Constant,
        Schedule::Linear => pb::TrainingSchedule::Linear,
        Schedule::Cosine => pb::TrainingSchedule::Cosine,
    };
    let average = match settings.average {
        Average::Tokens => pb::LossAverage::Tokens,
        Average::MicroBatches => pb::LossAverage::MicroBatches,
    };
    pb::TrainingSettings {
        task: task.into(),
        method: Some(method),
        length: Some(match settings.length {
            Length::Epochs(epochs) => wire::Length::Epochs(epochs),
            Length::Steps(steps) => wire::Length::Steps(steps),
        }),
        batch_size: Some(count(settings.batch_size)),
        accumulation: Some(count(settings.accumulation)),
        max_tokens: (settings.task != Task::ImageClassification).then(|| count(settings.max_tokens)),
        packing: settings.packing,
        train_on_prompt: settings.train_on_prompt,
        learning_rate: Some(settings.learning_rate),
        schedule: schedule.into(),
        warmup_steps: settings.warmup_steps,
        weight_decay: settings.weight_decay,
        beta1: Some(settings.beta1),
        beta2: Some(settings.beta2),
        epsilon: Some(settings.epsilon),
        max_grad_norm: Some(settings.max_grad_norm),
        average: average.into(),
        recompute: settings.recompute,
        eval_every: settings.eval_every,
        patience: settings.patience,
        keep_best: settings.keep_best,
        seed: Some(settings.seed),
        groups: settings.groups,
        random_flip: settings.random_flip,
        publish_steps: settings.publish_steps,
        subset: settings.subset.map(|subset| pb::TrainingSubset {
            splits: subset.splits.into_iter().map(|split| split_out(split).into()).collect(),
            fraction: subset.fraction,
            seed: subset.seed,
        }),
    }
}

/// What became of a step.
pub(super) fn progress_out(advance: Advance) -> pb::TrainingProgress {
    let Advance { progress, tokens_per_second, eta_seconds, step_seconds: _ } = advance;
    pb::TrainingProgress {
        step: progress.step,
        total_steps: progress.total_steps,
        epoch: progress.epoch,
        loss: progress.loss,
        learning_rate: progress.learning_rate,
        grad_norm: progress.grad_norm,
        tokens: progress.tokens,
        tokens_per_second,
        eta_seconds,
        groups: progress.groups.into_iter().map(figure_out).collect(),
        evaluation: progress.evaluation.map(|Evaluation { figures, best }| pb::Evaluation {
            figures: figures.into_iter().map(figure_out).collect(),
            best,
        }),
        truncated_rows: progress.truncated_rows,
    }
}

fn figure_out(figure: Figure) -> pb::GroupFigure {
    let Figure { column, value, rows, loss, accuracy } = figure;
    pb::GroupFigure { column, value, rows, loss, accuracy }
}

/// How a generation was made; settings of another version of this program may not be readable.
pub(super) fn lineage_out(lineage: Lineage) -> pb::Lineage {
    pb::Lineage {
        job: lineage.job,
        dataset: lineage.dataset,
        base_fingerprint: lineage.base,
        parent_generation: lineage.parent.unwrap_or_default(),
        step: lineage.step,
        settings: serde_json::from_value(lineage.settings).ok().map(settings_out),
    }
}

#[cfg(test)]
#[path = "training_tests.rs"]
mod tests;
