//! A run from its first step to its last: which rows when, evaluation, early stopping, checkpoints.
//!
//! Everything that a step depends on is in the checkpoint or follows from settings and step number: rows and dropout
//! are functions of the seed and the step, so there is no generator to save. Computes through [`Learner`].

use std::io::Write;

use candle_core::Tensor;
use candle_core::safetensors::Load as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{adapter_config, head_config};
use super::images;
use super::learner::differentiable;
use super::memory::{Estimate, free};
use super::parameters::{to_safetensors, write_safetensors};
use super::{
    Context, Evaluation, Examples, Figure, GroupKey, Learner, Method, MicroBatch, Order, Output, Parameter, Parameters,
    Progress, Reader, RowLoss, Settings, Targets, TrainError, learning_rate,
};
use crate::dataset::Dataset;
use crate::lora::{Base, SiteKind};
use crate::model::image::Processor;
use crate::turns::{Slices, Stopped};

/// Key of the run's own state in a checkpoint.
const STATE: &str = "evenkeel";

/// One training run, between two steps.
pub struct Trainer {
    settings: Settings,
    examples: Examples,
    order: Order,
    learner: Learner,
    /// Makes pixels, where the base model reads images.
    processor: Option<Processor>,
    /// `adapter_config.json` or `config.json`.
    config: Vec<u8>,
    estimate: Estimate,
    state: State,
    /// Parameters of the best evaluation, when they are wanted.
    best: Option<Vec<Tensor>>,
}

/// What a checkpoint holds besides tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    /// Of settings, data and base: a checkpoint is one run's own.
    run: String,
    steps: u64,
    best_loss: Option<f64>,
    /// Evaluations since the best one.
    stale: u64,
    stopped: bool,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer").field("state", &self.state).field("learner", &self.learner).finish_non_exhaustive()
    }
}

impl Trainer {
    /// Checks settings against model and data, estimates memory, makes the variables.
    ///
    /// # Errors
    /// Names the setting, the row, or the bytes.
    pub fn begin(context: &Context, dataset: &Dataset, settings: &Settings) -> Result<Self, TrainError> {
        Self::prepare(context, dataset, settings, 0)
    }

    /// As [`Self::begin`]; `held` bytes of the host are given back before the first step.
    fn prepare(context: &Context, dataset: &Dataset, settings: &Settings, held: u64) -> Result<Self, TrainError> {
        let examples = Examples::new(context, dataset, settings)?;
        let order = Order::new(&examples.train, settings)?;
        let looks = [
            ("eval_every", settings.eval_every > 0),
            ("patience", settings.patience > 0),
            ("keep_best", settings.keep_best),
        ];
        if let Some((field, _)) = looks.into_iter().find(|(_, on)| *on && examples.validation.is_empty()) {
            return Err(TrainError::Setting {
                field,
                fault: "needs validation rows, and the data set has none".into(),
            });
        }
        if let Some(step) = settings.publish_steps.iter().find(|step| !(1..=order.total_steps()).contains(*step)) {
            let fault = format!("{step} is no step of this run, which has {}", order.total_steps());
            return Err(TrainError::Setting { field: "publish_steps", fault });
        }
        let model = differentiable(&*context.model)?;
        let base = model.base();
        let classes = settings.task.has_classes().then_some(examples.labels.len());
        let takes_any = base.sites().iter().any(|site| site.kind == SiteKind::Classifier);
        if let (Some(own), Some(classes)) = (context.model.info().labels, classes)
            && own != classes
            && !takes_any
        {
            return Err(TrainError::Data(format!("{classes} labels, but the base model's head has {own}")));
        }
        let labels = classes.map(|_| (examples.labels.as_slice(), examples.multi_label));
        if let Method::Lora(lora) = &settings.method {
            check_targets(&lora.targets, base)?;
        }
        let tokens = match &context.reader {
            Reader::Text { .. } => largest(&examples, settings),
            Reader::Images(_) => settings.batch_size.min(examples.train.len()) * model.rows_of_image(),
        };
        let estimate = Estimate::new(base, model.depth(), settings, examples.labels.len(), tokens);
        let available = match context.memory_bytes {
            // Nothing that is left is not the same as not known.
            0 => match free(base.device()) {
                0 => 0,
                free => {
                    let held = if base.device().is_cpu() { held } else { 0 };
                    free.saturating_add(held).saturating_sub(context.spare_bytes).max(1)
                }
            },
            bytes => bytes,
        };
        let recompute = fit(&estimate, settings.recompute, available)?;
        let (config, parameters) = match &settings.method {
            Method::Lora(lora) => {
                let config = adapter_config(lora, settings.task, labels, base);
                let parameters = Parameters::low_rank(&config, base, classes, settings.seed)?;
                (config, parameters)
            }
            Method::HeadOnly => {
                let Some(labels) = labels else {
                    let fault = "is for classification".to_owned();
                    return Err(TrainError::Setting { field: "head_only", fault });
                };
                let config = head_config(settings.task, labels);
                let parameters = Parameters::low_rank(&config, base, classes, settings.seed)?;
                (config, parameters)
            }
            Method::Full => {
                let config = model.config_json(labels.map(|(names, _)| names))?;
                let config = with_problem_type(config, classes, examples.multi_label);
                (config, Parameters::full(base, classes, settings.seed)?)
            }
        };
        if parameters.list().is_empty() {
            return Err(TrainError::Setting { field: "method", fault: "trains nothing".into() });
        }
        let multi_label = examples.multi_label;
        let learner = Learner::new(context.model.clone(), parameters, settings, recompute, multi_label)?;
        let state = State {
            run: run(settings, dataset, base.fingerprint()),
            steps: 0,
            best_loss: None,
            stale: 0,
            stopped: false,
        };
        let processor = match &context.reader {
            Reader::Images(processor) => Some(processor.clone()),
            Reader::Text { .. } => None,
        };
        Ok(Self {
            settings: settings.clone(),
            examples,
            order,
            learner,
            processor,
            config,
            estimate,
            state,
            best: None,
        })
    }

    /// Takes a run up again where `checkpoint` was written.
    ///
    /// # Errors
    /// As [`Self::begin`]; [`TrainError::Checkpoint`].
    pub fn resume(
        context: &Context,
        dataset: &Dataset,
        settings: &Settings,
        checkpoint: &[u8],
    ) -> Result<Self, TrainError> {
        let mut trainer = Self::prepare(context, dataset, settings, checkpoint.len() as u64)?;
        let unreadable = |error: safetensors::SafeTensorError| TrainError::Checkpoint(format!("is faulty: {error}"));
        let (_, header) = safetensors::SafeTensors::read_metadata(checkpoint).map_err(unreadable)?;
        let text = header.metadata().as_ref().and_then(|texts| texts.get(STATE));
        let state: Option<State> = text.and_then(|text| serde_json::from_str(text).ok());
        let state = state.ok_or_else(|| TrainError::Checkpoint("has no state".into()))?;
        if state.run != trainer.state.run {
            return Err(TrainError::Checkpoint("is of another run".into()));
        }
        // One tensor at a time: the file is as large as all that is trained, and its moments.
        let tensors = safetensors::SafeTensors::deserialize(checkpoint).map_err(unreadable)?;
        let tensor = |part: &str, name: &str, like: &Tensor| -> Result<Tensor, TrainError> {
            let fault = |what: &str| TrainError::Checkpoint(format!("{what} {part}.{name}"));
            let view = tensors.tensor(&format!("{part}.{name}")).map_err(|_| fault("lacks"))?;
            match view.load(like.device())? {
                value if value.dims() == like.dims() && value.dtype() == like.dtype() => Ok(value),
                _ => Err(fault("has another shape or format of")),
            }
        };
        let parameters = trainer.learner.parameters().list().to_vec();
        let optimizer = trainer.learner.optimizer_mut();
        optimizer.steps = state.steps;
        for (Parameter { name, var, .. }, moments) in parameters.iter().zip(&mut optimizer.moments) {
            var.set(&tensor("weights", name, var)?)?;
            (moments.m, moments.v) = (tensor("m", name, var)?, tensor("v", name, var)?);
        }
        if tensors.names().iter().any(|name| name.starts_with("best.")) {
            let best = parameters.iter().map(|Parameter { name, var, .. }| tensor("best", name, var));
            trainer.best = Some(best.collect::<Result<_, _>>()?);
        }
        trainer.state = state;
        Ok(trainer)
    }

    /// Returns the estimated bytes on top of the base model.
    pub fn estimated_bytes(&self) -> u64 {
        let Estimate { state, kept, recomputed } = self.estimate;
        state + if self.learner.recomputes() { recomputed } else { kept }
    }

    /// Does one optimiser step, and an evaluation when it is due.
    ///
    /// # Errors
    /// [`TrainError::Stopped`], [`TrainError::Diverged`], [`TrainError::Gradient`], or when the model fails.
    /// After an error the trainer is spent: go on from a checkpoint.
    pub fn advance(&mut self, slices: &dyn Slices) -> Result<Progress, TrainError> {
        let total = self.order.total_steps();
        if self.is_done() {
            return Err(Stopped.into());
        }
        let mut batches = self.order.micro_batches(&self.examples.train, self.state.steps);
        for batch in &mut batches {
            self.see(&self.examples.train, batch, Some(self.state.steps), slices)?;
        }
        let rate = learning_rate(&self.settings, self.state.steps, total);
        let outcome = self.learner.step(&batches, rate, self.state.steps + 1, slices)?;
        self.state.steps += 1;
        let step = self.state.steps;
        let due = step == total || (self.settings.eval_every > 0 && step.is_multiple_of(self.settings.eval_every));
        let evaluation = if due && !self.examples.validation.is_empty() { Some(self.evaluate(slices)?) } else { None };
        let figures = figures(&outcome.rows, &self.examples.train, &self.examples.groups);
        Ok(Progress {
            step,
            total_steps: total,
            epoch: self.order.epoch(step),
            loss: outcome.loss,
            learning_rate: rate,
            grad_norm: outcome.grad_norm,
            tokens: batches.iter().map(|batch| batch.tokens.len() as u64).sum(),
            groups: figures.into_iter().skip(1).collect(),
            evaluation,
            truncated_rows: self.examples.truncated as u64,
            last: self.is_done(),
        })
    }

    /// Returns whether no step follows.
    pub fn is_done(&self) -> bool {
        self.state.stopped || self.state.steps >= self.order.total_steps()
    }

    /// Fills in the images of a micro-batch, where it has some, in a slice of its own.
    fn see(
        &self,
        examples: &[super::Example],
        batch: &mut MicroBatch,
        step: Option<u64>,
        slices: &dyn Slices,
    ) -> Result<(), TrainError> {
        match &self.processor {
            Some(processor) => slices.run(|| images::fill(processor, examples, batch, &self.settings, step)),
            None => Ok(()),
        }
    }

    /// Looks at the validation rows, and decides whether to go on.
    fn evaluate(&mut self, slices: &dyn Slices) -> Result<Evaluation, TrainError> {
        let examples = &self.examples.validation;
        let mut rows = Vec::with_capacity(examples.len());
        let all: Vec<usize> = (0..examples.len()).collect();
        for part in all.chunks(self.settings.batch_size) {
            let mut batch = MicroBatch::new(examples, part);
            self.see(examples, &mut batch, None, slices)?;
            rows.extend(self.learner.evaluate(&batch, slices)?);
        }
        let figures = figures(&rows, examples, &self.examples.groups);
        let loss = figures.first().map_or(f64::NAN, |figure| figure.loss);
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: self.state.steps, loss });
        }
        let best = self.state.best_loss.is_none_or(|before| loss < before);
        if best {
            self.state.best_loss = Some(loss);
            self.state.stale = 0;
            if self.settings.keep_best {
                let copy = |parameter: &Parameter| parameter.var.as_tensor().copy();
                self.best = Some(self.learner.parameters().list().iter().map(copy).collect::<Result<_, _>>()?);
            }
        } else {
            self.state.stale += 1;
            self.state.stopped = self.settings.patience > 0 && self.state.stale >= self.settings.patience;
        }
        Ok(Evaluation { figures, best })
    }

    /// Writes everything down that the next step depends on.
    ///
    /// # Errors
    /// When the device or the writer fails.
    pub fn checkpoint(&self, out: &mut dyn Write) -> Result<(), TrainError> {
        let state = serde_json::to_string(&self.state).map_err(|error| TrainError::Checkpoint(error.to_string()))?;
        let parameters = self.learner.parameters().list();
        let moments = &self.learner.optimizer().moments;
        let mut tensors = Vec::with_capacity(4 * parameters.len());
        for (parameter, moments) in parameters.iter().zip(moments) {
            tensors.push((format!("weights.{}", parameter.name), parameter.var.as_tensor().clone()));
            tensors.push((format!("m.{}", parameter.name), moments.m.clone()));
            tensors.push((format!("v.{}", parameter.name), moments.v.clone()));
        }
        for (parameter, best) in parameters.iter().zip(self.best.iter().flatten()) {
            tensors.push((format!("best.{}", parameter.name), best.clone()));
        }
        write_safetensors(tensors, &[(STATE, &state)], out)
    }

    /// Returns what was trained: the weights of the best evaluation where [`Settings::keep_best`] says so, else the last.
    ///
    /// # Errors
    /// When the device fails.
    pub fn output(&self) -> Result<Output, TrainError> {
        let parameters = self.learner.parameters();
        let tensors = match &self.best {
            None => parameters.to_safetensors()?,
            Some(best) => {
                let named = parameters.list().iter().map(|parameter| parameter.name.clone()).zip(best.iter().cloned());
                to_safetensors(named.collect(), &[("format", "pt")])?
            }
        };
        Ok(Output { config: self.config.clone(), tensors })
    }

    /// Returns the weights of the last step, whatever [`Settings::keep_best`] says: what [`Settings::publish_steps`] ask for.
    ///
    /// # Errors
    /// When the device fails.
    pub fn latest(&self) -> Result<Output, TrainError> {
        Ok(Output { config: self.config.clone(), tensors: self.learner.parameters().to_safetensors()? })
    }
}

/// Refuses a name that is no layer: peft itself passes over it as long as another one fits.
fn check_targets(targets: &Targets, base: &dyn Base) -> Result<(), TrainError> {
    let Targets::Modules(names) = targets else { return Ok(()) };
    let is_layer = |name: &&String| {
        let inner = |path: &str| path.strip_suffix(name.as_str()).is_some_and(|before| before.ends_with('.'));
        base.spellings().into_iter().flatten().any(|site| site.path == **name || inner(&site.path))
    };
    match names.iter().find(|name| !is_layer(name)) {
        None => Ok(()),
        Some(name) => {
            let fault = format!("`{name}` is no layer of this base model");
            Err(TrainError::Setting { field: "lora.target_modules", fault })
        }
    }
}

/// Adds to `config.json` what transformers' loss and pipelines go by.
fn with_problem_type(config: Vec<u8>, classes: Option<usize>, multi_label: bool) -> Vec<u8> {
    let read: Option<serde_json::Value> = serde_json::from_slice(&config).ok();
    let (Some(serde_json::Value::Object(mut keys)), Some(_)) = (read, classes) else { return config };
    let kind = if multi_label { "multi_label_classification" } else { "single_label_classification" };
    keys.insert("problem_type".to_owned(), kind.into());
    serde_json::to_vec_pretty(&keys).unwrap_or(config)
}

/// Returns SHA-256 over what makes a run this run.
fn run(settings: &Settings, dataset: &Dataset, base: &str) -> String {
    let mut digest = Sha256::new_with_prefix(b"evenkeel run 1");
    for part in [serde_json::to_string(settings).unwrap_or_default().as_str(), &dataset.id, base] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize())
}

/// Returns the most tokens that a micro-batch of the run can have, whatever the order.
fn largest(examples: &Examples, settings: &Settings) -> usize {
    let mut lengths: Vec<usize> = examples.train.iter().map(|example| example.tokens.len()).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    match settings.packing {
        true => settings.batch_size.saturating_mul(settings.max_tokens).min(lengths.iter().sum()),
        false => lengths.iter().take(settings.batch_size).sum(),
    }
}

/// Decides whether blocks are computed again, by the memory there is.
fn fit(estimate: &Estimate, wanted: Option<bool>, available: u64) -> Result<bool, TrainError> {
    let Estimate { state, kept, recomputed } = *estimate;
    let fits = |activations: u64| available == 0 || state.saturating_add(activations) <= available;
    let recompute = wanted.unwrap_or(!fits(kept));
    let activations = if recompute { recomputed } else { kept };
    match fits(activations) {
        true => Ok(recompute),
        false => Err(TrainError::Memory { needed: state.saturating_add(activations), available }),
    }
}

/// Returns loss and accuracy of all rows, then of each group that has some.
fn figures(rows: &[RowLoss], examples: &[super::Example], groups: &[GroupKey]) -> Vec<Figure> {
    let figure = |column: &str, value: Option<String>, rows: &mut dyn Iterator<Item = &RowLoss>| {
        let (mut count, mut loss, mut units, mut right, mut judged) = (0, 0.0, 0, 0_u64, 0_u64);
        for row in rows {
            count += 1;
            loss += row.loss;
            units += row.count;
            judged += u64::from(row.correct.is_some());
            right += u64::from(row.correct == Some(true));
        }
        let accuracy = (judged > 0).then(|| right as f64 / judged as f64);
        Figure { column: column.to_owned(), value, rows: count, loss: loss / units.max(1) as f64, accuracy }
    };
    let mut figures = vec![figure("", None, &mut rows.iter())];
    for (index, group) in groups.iter().enumerate() {
        let inside = |row: &&RowLoss| examples.get(row.row).is_some_and(|example| example.groups.contains(&index));
        let of_group = figure(&group.column, group.value.clone(), &mut rows.iter().filter(inside));
        if of_group.rows > 0 {
            figures.push(of_group);
        }
    }
    figures
}

#[cfg(test)]
mod tests;
