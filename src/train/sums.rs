//! Gradients of parameters, summed over blocks and micro-batches.
//!
//! They come from candle's graph, or from blocks with a backward of their own: those of parameters, of their transposes,
//! or of what else was made of some. Knows no model. All f32.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId};

use super::TrainError;
use super::parameters::Parameters;
use crate::lora::{Change, SiteId};
use crate::ops::learning::Learnt;
use crate::ops::seed;

/// Sums of gradients, in the order of the parameters.
pub(super) struct Sums<'a> {
    parameters: &'a Parameters,
    /// Of what layers learn: transposes of parameters times a factor.
    transposed: HashMap<TensorId, (usize, f64)>,
    pub(super) sums: Vec<Option<Tensor>>,
}

impl<'a> Sums<'a> {
    /// Begins with none; `changes` is what the parameters make of the base.
    pub(super) fn new(parameters: &'a Parameters, changes: &BTreeMap<SiteId, Change>) -> Self {
        let transposed = parameters.transposed(changes);
        Self { parameters, transposed, sums: vec![None; parameters.list().len()] }
    }

    /// Adds what a backward found of the parameters; returns the rest.
    pub(super) fn take(&mut self, mut found: GradStore) -> Result<GradStore, TrainError> {
        for (sum, parameter) in self.sums.iter_mut().zip(self.parameters.list()) {
            let Some(gradient) = found.remove(parameter.var.as_tensor()) else { continue };
            let gradient = gradient.to_dtype(DType::F32)?.contiguous()?.detach();
            *sum = Some(match sum.take() {
                None => gradient,
                Some(sum) => (sum + gradient)?,
            });
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
            if let Some(sum) = place.and_then(|place| self.sums.get_mut(place)) {
                *sum = Some(match sum.take() {
                    None => gradient,
                    Some(sum) => (sum + gradient)?,
                });
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
}
