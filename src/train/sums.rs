//! Gradients of parameters, summed over blocks and micro-batches.
//!
//! They come from candle's graph, or from blocks with a backward of their own: those of parameters, of their transposes,
//! or of what else was made of some. Knows no model. All f32.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, TensorId, bail};

use super::TrainError;
use super::optimizer::{values, values_mut};
use super::parameters::Parameters;
use crate::lora::{Change, SiteId};
use crate::ops::cpu::{steps, threads};
use crate::ops::learning::Learnt;
use crate::ops::seed;

/// Sums of gradients, in the order of the parameters.
pub(super) struct Sums<'a> {
    parameters: &'a Parameters,
    /// Of what layers learn: transposes of parameters times a factor.
    transposed: HashMap<TensorId, (usize, f64)>,
    pub(super) sums: Vec<Option<Tensor>>,
    /// Whether nobody else holds a sum: then it is added to in place, on the CPU.
    own: Vec<bool>,
}

impl<'a> Sums<'a> {
    /// Begins with none; `changes` is what the parameters make of the base.
    pub(super) fn new(parameters: &'a Parameters, changes: &BTreeMap<SiteId, Change>) -> Self {
        let transposed = parameters.transposed(changes);
        let count = parameters.list().len();
        Self { parameters, transposed, sums: vec![None; count], own: vec![false; count] }
    }

    /// Adds what a backward found of the parameters; returns the rest.
    pub(super) fn take(&mut self, mut found: GradStore) -> Result<GradStore, TrainError> {
        for (place, parameter) in self.parameters.list().iter().enumerate() {
            let Some(gradient) = found.remove(parameter.var.as_tensor()) else { continue };
            // The graph may have given the same tensor to another.
            self.put(place, gradient.to_dtype(DType::F32)?.contiguous()?.detach(), false)?;
        }
        Ok(found)
    }

    /// Adds gradients of tensors that are parameters, or were made of some.
    pub(super) fn add(&mut self, learnt: Vec<Learnt>) -> Result<(), TrainError> {
        let mut start: Option<Tensor> = None;
        for (tensor, mut gradient) in learnt {
            let own = || self.parameters.list().iter().position(|own| own.var.as_tensor().id() == tensor.id());
            let place = match self.transposed.get(&tensor.id()) {
                Some((place, factor)) => {
                    gradient = gradient.t()?.contiguous()?;
                    if *factor != 1.0 {
                        gradient = (gradient * *factor)?;
                    }
                    Some(*place)
                }
                None => own(),
            };
            if let Some(place) = place {
                self.put(place, gradient, true)?;
                continue;
            }
            let seeded = seed(&tensor, gradient)?;
            start = Some(match start {
                None => seeded,
                Some(sum) => (sum + seeded)?,
            });
        }
        match start {
            None => Ok(()),
            Some(start) => self.take(start.backward()?).map(drop),
        }
    }

    /// Adds a gradient; `own` says that nobody else holds it.
    fn put(&mut self, place: usize, gradient: Tensor, own: bool) -> Result<(), TrainError> {
        let in_place = self.own[place] && gradient.device().is_cpu();
        self.sums[place] = Some(match self.sums[place].take() {
            None => {
                self.own[place] = own;
                gradient
            }
            Some(sum) if in_place => {
                sum.inplace_op2(&gradient.contiguous()?, &Add(None))?;
                sum
            }
            Some(sum) => {
                self.own[place] = true;
                (sum + gradient)?
            }
        });
        Ok(())
    }

    /// Adds rows `[ids, hidden]` to those of the gradient of a parameter `[vocab, hidden]` that have these ids, on the CPU.
    pub(super) fn add_rows(&mut self, tensor: &Tensor, ids: &[u32], rows: &Tensor) -> Result<(), TrainError> {
        let own = self.parameters.list().iter().position(|own| own.var.as_tensor().id() == tensor.id());
        let Some(place) = own else {
            return Err(TrainError::Gradient { tensor: "the embedding".into(), fault: "of no parameter" });
        };
        if !self.own[place] {
            self.put(place, tensor.zeros_like()?, true)?;
        }
        if let Some(sum) = &self.sums[place] {
            sum.inplace_op2(&rows.contiguous()?, &Add(Some(ids)))?;
        }
        Ok(())
    }
}

/// sum ← sum + rows: all of one shape, or those with these numbers.
struct Add<'a>(Option<&'a [u32]>);

impl InplaceOp2 for Add<'_> {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, sum: &mut CpuStorage, ls: &Layout, rows: &CpuStorage, lr: &Layout) -> candle_core::Result<()> {
        let (sum, rows) = (values_mut(sum, ls)?, values(rows, lr)?);
        let Some(ids) = self.0 else {
            threads::add(sum, rows);
            return Ok(());
        };
        let width = rows.len() / ids.len().max(1);
        for (id, row) in ids.iter().zip(rows.chunks_exact(width.max(1))) {
            let Some(sum) = sum.chunks_exact_mut(width).nth(*id as usize) else { bail!("no row {id}") };
            steps::add(sum, row);
        }
        Ok(())
    }
}
