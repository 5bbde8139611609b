//! One optimiser step: losses, gradients, update.
//!
//! The model is run block by block. Each block's graph begins at a variable of its own, so the backward goes through
//! one block at a time, and a block can be computed again instead of being kept. Chooses no rows and no learning rate.
//! Every block, forward or backward, is one slice, and so is a part of the update. Shapes: tokens packed without
//! padding, as in `model`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::losses::{by_row, right, set};
use super::optimizer::{AdamW, Constants, squares};
use super::parameters::{Parameter, Parameters};
use super::sums::Sums;
use super::{Average, MicroBatch, Pixels, RowLoss, Settings, Task, TrainError};
use crate::dataset::Label;
use crate::lora::{Adapter, Change, Dropout, LoraBatch, Run, SiteId};
use crate::model::{Backward, BaseModel, Differentiable, Ends, Input, Layout, ModelError};
use crate::ops::{Head, binary_cross_entropy, buffer, cross_entropy, seed};
use crate::turns::Slices;

/// Values of parameters that are looked at or changed in one slice, on the CPU and on a GPU.
const VALUES: [usize; 2] = [8 << 20, 1 << 30];

/// How one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Averaged as [`Settings::average`] says.
    pub loss: f64,
    /// Mean of each micro-batch.
    pub micro_losses: Vec<f64>,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// What the gradients were multiplied with.
    pub clip_factor: f64,
    /// By row.
    pub rows: Vec<RowLoss>,
}

/// Gradients of all parameters, and the step's losses.
#[derive(Debug)]
pub struct Gradients {
    /// In the order of the parameters.
    pub tensors: Vec<Tensor>,
    outcome: Outcome,
}

/// Trains the variables of an adapter on a frozen base.
pub struct Learner {
    model: Arc<dyn BaseModel>,
    parameters: Parameters,
    optimizer: AdamW,
    settings: Settings,
    dropout: f64,
    recompute: bool,
    multi_label: bool,
}

impl std::fmt::Debug for Learner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learner").field("parameters", &self.parameters.count()).finish_non_exhaustive()
    }
}

/// Memory of its steps goes back to the system.
impl Drop for Learner {
    fn drop(&mut self) {
        buffer::clear();
    }
}

/// A block's input, and the way of its backward unless the block is computed again.
struct Kept<'a> {
    input: Var,
    way: Option<Way<'a>>,
}

/// How the backward of a block is computed.
enum Way<'a> {
    /// By the graph of this output.
    Graph(Tensor),
    /// By the block itself.
    Own(Backward<'a>),
}

/// What one pass is computed with.
struct Pass<'a> {
    model: &'a dyn Differentiable,
    adapter: &'a Arc<Adapter>,
    dropout: Option<Dropout>,
    slices: &'a dyn Slices,
}

impl Pass<'_> {
    fn lora(&self, rows: usize) -> LoraBatch {
        let run = Run { adapter: Arc::clone(self.adapter), rows: 0..rows, scale: 1.0 };
        LoraBatch { runs: vec![run], dropout: self.dropout }
    }

    /// Runs `work` in a slice of its own.
    fn slice<T>(&self, work: impl FnOnce() -> Result<T, TrainError>) -> Result<T, TrainError> {
        whole_slice(self.slices, self.model.base().device(), work)
    }

    /// Runs a block; with gradients unless `keep` wants nothing.
    fn block<'b>(
        &'b self,
        layer: usize,
        input: &Var,
        (layout, lora): (&'b Layout, &'b LoraBatch),
        keep: Keep,
    ) -> Result<(Tensor, Way<'b>), TrainError> {
        if !matches!(keep, Keep::Nothing)
            && let Some((output, own)) = self.model.learn(layer, input.as_tensor(), layout, lora)?
        {
            return Ok((output, Way::Own(own)));
        }
        let output = self.model.block(layer, input.as_tensor(), layout, lora)?;
        Ok((output.detach(), Way::Graph(output)))
    }

    /// Runs all blocks; `keep` says whether inputs and what is behind outputs are kept for a backward.
    fn forward<'b>(
        &'b self,
        layout: &'b Layout,
        lora: &'b LoraBatch,
        embedded: &Tensor,
        keep: Keep,
    ) -> Result<(Tensor, Vec<Kept<'b>>), TrainError> {
        let mut x = embedded.detach();
        let mut kept = Vec::new();
        for layer in 0..self.model.depth() {
            let input = Var::from_tensor(&x)?;
            let (output, way) = self.slice(|| self.block(layer, &input, (layout, lora), keep))?;
            x = output;
            match keep {
                Keep::Nothing => {}
                Keep::Inputs => kept.push(Kept { input, way: None }),
                Keep::All => kept.push(Kept { input, way: Some(way) }),
            }
        }
        Ok((x, kept))
    }
}

#[derive(Clone, Copy)]
enum Keep {
    Nothing,
    Inputs,
    All,
}

impl Learner {
    /// Begins with `parameters` as they are and moments of zero.
    ///
    /// # Errors
    /// When the model cannot be trained, or memory cannot be had.
    pub fn new(
        model: Arc<dyn BaseModel>,
        parameters: Parameters,
        settings: &Settings,
        recompute: bool,
        multi_label: bool,
    ) -> Result<Self, TrainError> {
        differentiable(&*model)?;
        let Settings { beta1, beta2, epsilon, weight_decay, .. } = *settings;
        let optimizer = AdamW::new(parameters.list(), Constants { beta1, beta2, epsilon, weight_decay })?;
        let dropout = match &settings.method {
            super::Method::Lora(lora) => lora.dropout,
            super::Method::Full | super::Method::HeadOnly => 0.0,
        };
        Ok(Self { model, parameters, optimizer, settings: settings.clone(), dropout, recompute, multi_label })
    }

    /// Returns what is trained.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns whether blocks are computed again for their backward.
    pub fn recomputes(&self) -> bool {
        self.recompute
    }

    /// Returns the optimiser's state.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Returns the optimiser's state, to be set.
    pub(super) fn optimizer_mut(&mut self) -> &mut AdamW {
        &mut self.optimizer
    }

    /// Does one optimiser step with learning rate `rate`; `step` counts from 1 and decides what dropout drops.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] and [`TrainError::Gradient`], the parameters as they were then; [`TrainError::Stopped`],
    /// or when the device fails.
    pub fn step(
        &mut self,
        batches: &[MicroBatch],
        rate: f64,
        step: u64,
        slices: &dyn Slices,
    ) -> Result<Outcome, TrainError> {
        let Gradients { tensors, outcome } = self.gradients(batches, step, slices)?;
        let (list, device) = (self.parameters.list(), differentiable(&*self.model)?.base().device());
        self.optimizer.steps += 1;
        for part in parts(list) {
            let update = || self.optimizer.update(part, list, &tensors, (outcome.clip_factor, rate));
            whole_slice(slices, device, || Ok(update()?))?;
        }
        Ok(outcome)
    }

    /// Returns the accumulated gradients of a step before clipping.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn gradients(&self, batches: &[MicroBatch], step: u64, slices: &dyn Slices) -> Result<Gradients, TrainError> {
        let changes = slices.run(|| self.changes())?;
        let mut sums = Sums::new(&self.parameters, &changes);
        let adapter = Arc::new(Adapter::unnamed(changes));
        let total: usize = batches.iter().map(|batch| self.counted(batch)).sum();
        let (mut micro_losses, mut rows, mut loss) = (Vec::new(), Vec::new(), 0.0);
        for (i, batch) in batches.iter().enumerate() {
            let counted = self.counted(batch);
            let share = match self.settings.average {
                Average::Tokens => 1.0 / total.max(1) as f64,
                Average::MicroBatches => 1.0 / (counted.max(1) * batches.len()) as f64,
            };
            // At most 65536 micro-batches a step: no two of a run drop the same.
            let seed = self.settings.seed ^ (step << 16) ^ i as u64;
            let dropout = (self.dropout > 0.0).then_some(Dropout { rate: self.dropout, seed });
            let pass = Pass { model: differentiable(&*self.model)?, adapter: &adapter, dropout, slices };
            let losses = self.micro_batch(&pass, batch, Some((share, &mut sums)))?;
            let sum: f64 = losses.iter().map(|row| row.loss).sum();
            if !sum.is_finite() {
                return Err(TrainError::Diverged { step, loss: sum });
            }
            loss += sum * share;
            micro_losses.push(sum / counted.max(1) as f64);
            rows.extend(losses);
        }
        let mut tensors = Vec::with_capacity(sums.sums.len());
        let mut sum_of_squares = 0.0;
        for part in parts(self.parameters.list()) {
            slices.run(|| {
                let list = &self.parameters.list()[part.clone()];
                let fault =
                    |parameter: &Parameter, fault| Err(TrainError::Gradient { tensor: parameter.name.clone(), fault });
                let first = tensors.len();
                for (sum, parameter) in sums.sums[part].iter_mut().zip(list) {
                    let Some(gradient) = sum.take() else { return fault(parameter, "missing") };
                    tensors.push(gradient.contiguous()?);
                }
                for (square, parameter) in squares(&tensors[first..])?.into_iter().zip(list) {
                    if !square.is_finite() {
                        return fault(parameter, "not finite");
                    }
                    sum_of_squares += f64::from(square);
                }
                Ok(())
            })?;
        }
        let grad_norm = sum_of_squares.sqrt();
        let clip = self.settings.max_grad_norm;
        // torch `clip_grad_norm_`.
        let clip_factor = if clip > 0.0 { (clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        Ok(Gradients { tensors, outcome: Outcome { loss, micro_losses, grad_norm, clip_factor, rows } })
    }

    /// Returns the losses of rows, without dropout and without learning from them.
    ///
    /// # Errors
    /// When the device fails, or [`TrainError::Stopped`].
    pub fn evaluate(&self, batch: &MicroBatch, slices: &dyn Slices) -> Result<Vec<RowLoss>, TrainError> {
        let adapter = Arc::new(Adapter::unnamed(slices.run(|| self.changes())?));
        let pass = Pass { model: differentiable(&*self.model)?, adapter: &adapter, dropout: None, slices };
        self.micro_batch(&pass, batch, None)
    }

    fn changes(&self) -> Result<BTreeMap<SiteId, Change>, TrainError> {
        self.parameters.changes(differentiable(&*self.model)?.base())
    }

    /// Returns what the mean of a micro-batch is taken over.
    fn counted(&self, batch: &MicroBatch) -> usize {
        match self.settings.task {
            Task::CausalLm => batch.targets.iter().flatten().count(),
            Task::SequenceClassification | Task::ImageClassification => batch.classes.len(),
        }
    }

    /// Runs one micro-batch forward and, with a share of the loss, backward into `sums`.
    fn micro_batch(
        &self,
        pass: &Pass<'_>,
        batch: &MicroBatch,
        mut learn: Option<(f64, &mut Sums<'_>)>,
    ) -> Result<Vec<RowLoss>, TrainError> {
        let pixels = batch.pixels.as_ref().map(Pixels::to_tensor).transpose()?;
        let input = match &pixels {
            Some(pixels) => Input::Pixels(pixels),
            None => Input::Tokens { ids: &batch.tokens, lengths: &batch.lengths },
        };
        let layout = pass.model.layout(&input)?;
        let lora = pass.lora(layout.rows()?);
        let keep = match (&learn, self.recompute) {
            // No gradient goes below the head.
            (Some(_), _) if self.settings.method == super::Method::HeadOnly => Keep::Nothing,
            (None, _) => Keep::Nothing,
            (Some(_), true) => Keep::Inputs,
            (Some(_), false) => Keep::All,
        };
        let embedded = pass.slice(|| Ok(pass.model.embed(&layout, &lora)?))?;
        let (last, kept) = pass.forward(&layout, &lora, &embedded, keep)?;
        let Ends { head, embedding } = match &learn {
            Some(_) => pass.model.learn_ends(&lora, layout.rows()?)?,
            None => Ends::default(),
        };
        let (losses, gradient) = self.head(pass, (batch, &input), (&last, head), &mut learn)?;
        let Some((_, sums)) = learn else { return Ok(losses) };
        if self.settings.method == super::Method::HeadOnly {
            return Ok(losses);
        }
        let mut gradient = gradient;
        for (layer, Kept { input, way }) in kept.into_iter().enumerate().rev() {
            gradient = pass.slice(|| {
                let way = match way {
                    Some(way) => way,
                    None => pass.block(layer, &input, (&layout, &lora), Keep::All)?.1,
                };
                match way {
                    Way::Own(own) => {
                        let (gradient, learnt) = own(&gradient)?;
                        sums.add(learnt)?;
                        Ok(gradient)
                    }
                    Way::Graph(output) => {
                        let mut found = sums.take(seed(&output, gradient.clone())?.backward()?)?;
                        let fault = || format!("the input of block {layer}");
                        let gradient = found.remove(input.as_tensor()).map(|gradient| gradient.detach());
                        gradient.ok_or_else(|| TrainError::Gradient { tensor: fault(), fault: "missing" })
                    }
                }
            })?;
        }
        if let Some(embedding) = embedding {
            pass.slice(|| sums.add_rows(embedding, &batch.tokens, &gradient))?;
        } else if embedded.track_op() {
            pass.slice(|| sums.take(seed(&embedded, gradient.clone())?.backward()?).map(drop))?;
        }
        Ok(losses)
    }

    /// Computes losses from the last block's output, some rows at a time, and the gradient of that output.
    fn head(
        &self,
        pass: &Pass<'_>,
        (batch, input): (&MicroBatch, &Input<'_>),
        (last, own): (&Tensor, Option<Head<'_>>),
        learn: &mut Option<(f64, &mut Sums<'_>)>,
    ) -> Result<(Vec<RowLoss>, Tensor), TrainError> {
        let classify = self.settings.task.has_classes();
        let rows = match classify {
            true => pass.model.classified(input),
            false => (0..batch.targets.len()).filter(|i| batch.targets[*i].is_some()).collect(),
        };
        let share = learn.as_ref().map_or(1.0, |(share, _)| *share) as f32;
        let mut losses = Vec::with_capacity(rows.len());
        let mut correct = Vec::new();
        let mut gradient = last.zeros_like()?;
        let mut own = own.filter(|_| !classify);
        let at_once = logit_rows(last.device());
        for (chunk, rows) in rows.chunks(at_once).enumerate() {
            pass.slice(|| {
                let index = Tensor::new(rows.iter().map(|row| *row as u32).collect::<Vec<_>>(), last.device())?;
                let x = last.index_select(&index, 0)?;
                if let Some(own) = &mut own {
                    let targets: Vec<u32> = rows.iter().filter_map(|row| batch.targets[*row]).collect();
                    let (loss, part) = own.learn(&x, &targets, share)?;
                    losses.extend(loss);
                    gradient = gradient.index_add(&index, &part, 0)?;
                    return Ok(());
                }
                let x = Var::from_tensor(&x)?;
                let logits = pass.model.head(x.as_tensor(), &pass.lora(rows.len()), classify)?;
                let (loss, for_logits) = if classify {
                    let from = chunk * at_once;
                    let classes = &batch.classes[from..from + rows.len()];
                    correct.extend(right(&logits, classes)?);
                    self.class_loss(&logits.detach(), classes, share)?
                } else {
                    let targets: Vec<u32> = rows.iter().filter_map(|row| batch.targets[*row]).collect();
                    cross_entropy(&logits.detach(), &targets, share)?
                };
                losses.extend(loss);
                let Some((_, sums)) = learn else { return Ok(()) };
                let mut found = sums.take(seed(&logits, for_logits)?.backward()?)?;
                if let Some(part) = found.remove(x.as_tensor()) {
                    gradient = gradient.index_add(&index, &part.detach().contiguous()?, 0)?;
                }
                Ok(())
            })?;
        }
        if let (Some(own), Some((_, sums))) = (own, learn) {
            pass.slice(|| sums.add(own.learnt()?))?;
        }
        Ok((by_row(batch, classify, &rows, &losses, &correct), gradient))
    }

    fn class_loss(&self, logits: &Tensor, classes: &[Label], share: f32) -> Result<(Vec<f64>, Tensor), TrainError> {
        let width = logits.dim(1)?;
        if self.multi_label {
            let mut targets = vec![0.0; classes.len() * width];
            for (row, label) in targets.chunks_mut(width).zip(classes) {
                for class in set(label) {
                    if let Some(target) = row.get_mut(*class) {
                        *target = 1.0;
                    }
                }
            }
            return Ok(binary_cross_entropy(logits, &targets, share)?);
        }
        let targets: Vec<u32> =
            classes.iter().map(|label| set(label).first().map_or(u32::MAX, |c| *c as u32)).collect();
        Ok(cross_entropy(logits, &targets, share)?)
    }
}

/// Returns how many rows' logits are held at a time: about the work of one block, so that a slice of the head is no longer
/// than another; on a GPU, which few rows keep waiting, more.
pub(super) fn logit_rows(device: &Device) -> usize {
    if device.is_cpu() { 64 } else { 1024 }
}

/// Runs `work` in a slice, which ends when a GPU has done what it was given: a step of an engine waits for one slice at
/// most.
fn whole_slice<T>(
    slices: &dyn Slices,
    device: &Device,
    work: impl FnOnce() -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    slices.run(|| {
        let done = work()?;
        device.synchronize()?;
        Ok(done)
    })
}

/// Divides parameters into runs of about [`VALUES`] values.
fn parts(parameters: &[Parameter]) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let on_cpu = parameters.first().is_none_or(|first| first.var.device().is_cpu());
    let most = VALUES[usize::from(!on_cpu)];
    let mut values = most;
    for (index, parameter) in parameters.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if values < most => part.end = index + 1,
            _ => {
                parts.push(index..index + 1);
                values = 0;
            }
        }
        values += parameter.var.elem_count();
    }
    parts
}

/// Returns the model as training sees it.
pub(super) fn differentiable(model: &dyn BaseModel) -> Result<&dyn Differentiable, TrainError> {
    model.differentiable().ok_or_else(|| ModelError::Unsupported("training this model".into()).into())
}
