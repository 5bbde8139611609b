//! Computes classes of images with one model; a model at work is this or that of texts.
//!
//! Images share passes: that a result does not depend on what else is in a pass is the model's promise. Decodes files as
//! they are needed: a damaged one names its row. Shapes: `[images, channels, height, width]`.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::super::super::AuditError;
use super::super::plan::Unit;
use super::{Runner, ordered};
use crate::lora::{Adapter, LoraBatch, Run};
use crate::model::{ImageClassifier, pass};
use crate::turns::Slices;

/// Images of a pass: as much work as a slice may be.
const IMAGES: usize = 4;

/// One model at work.
pub(in super::super) enum Running {
    /// On texts.
    Text(Box<Runner>),
    /// On images.
    Images(ImageRunner),
}

impl Running {
    /// Returns how many of the first units to compute together: at least one, if there is one.
    pub(in super::super) fn together(&self, units: &[Arc<Unit>]) -> usize {
        match self {
            Self::Text(runner) => runner.together(units),
            Self::Images(_) => units.len().min(IMAGES),
        }
    }

    /// Returns the results of units in their order: see [`Runner::run`]. `rows` are the numbers of rows that need them.
    ///
    /// # Errors
    /// Names the row whose file cannot be decoded; when the model fails, its logits are no numbers, or it was told to
    /// stop.
    pub(in super::super) fn run(
        &mut self,
        units: &[&Unit],
        rows: &[usize],
        slices: &dyn Slices,
    ) -> Result<Vec<Vec<f64>>, AuditError> {
        match self {
            Self::Text(runner) => runner.run(units, slices),
            Self::Images(runner) => runner.run(units, rows, slices),
        }
    }
}

/// A classifier of images at work.
pub(in super::super) struct ImageRunner {
    model: Arc<dyn ImageClassifier>,
    adapter: Option<(Arc<Adapter>, f32)>,
    /// Index into the head's logits of each class of the data set.
    order: Vec<usize>,
}

impl ImageRunner {
    pub(in super::super) fn new(
        model: Arc<dyn ImageClassifier>,
        adapter: Option<(Arc<Adapter>, f32)>,
        order: Vec<usize>,
    ) -> Self {
        Self { model, adapter, order }
    }

    fn run(&self, units: &[&Unit], rows: &[usize], slices: &dyn Slices) -> Result<Vec<Vec<f64>>, AuditError> {
        let mut results = Vec::with_capacity(units.len());
        for (some, rows) in units.chunks(IMAGES).zip(rows.chunks(IMAGES)) {
            results.extend(slices.run(|| self.pass(some, rows))?);
        }
        Ok(results)
    }

    fn pass(&self, units: &[&Unit], rows: &[usize]) -> Result<Vec<Vec<f64>>, AuditError> {
        let processor = self.model.processor();
        let pixels =
            |(unit, row): (&&Unit, &usize)| match unit {
                Unit::Image { file, mirrored } => processor
                    .augmented(file, *mirrored)
                    .map_err(|fault| AuditError::Row { row: *row, column: None, fault: fault.to_string() }),
                Unit::Classes(_) | Unit::Answers { .. } | Unit::Text { .. } | Unit::Completion { .. } => {
                    Err(pass::fault("a model of images was given text").into())
                }
            };
        let pixels = units.par_iter().zip(rows).map(pixels).collect::<Result<Vec<_>, AuditError>>()?.concat();
        let [height, width] = processor.size();
        let shape = (units.len(), pixels.len() / (units.len() * height * width).max(1), height, width);
        let run = |(adapter, scale): &(Arc<Adapter>, f32)| Run {
            adapter: Arc::clone(adapter),
            rows: 0..units.len(),
            scale: *scale,
        };
        let lora = LoraBatch { runs: self.adapter.iter().map(run).collect(), dropout: None };
        let pixels = Tensor::from_vec(pixels, shape, &Device::Cpu).map_err(|e| pass::fault(&e.to_string()))?;
        let logits = pass::see(&*self.model, &pixels, &lora)?;
        pass::rows(&logits, units.len(), |all, labels| {
            all.chunks_exact(labels).map(|row| ordered(row, &self.order)).collect::<Result<Vec<_>, _>>()
        })?
    }
}
