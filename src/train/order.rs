//! Which rows each optimiser step learns from.
//!
//! A pure function of (seed, step): nothing is kept between steps, so a run that is taken up again needs no cursor.
//! Rows of a micro-batch follow each other without padding, each seeing only itself; packing therefore decides only
//! how many rows a micro-batch has. As in transformers' Trainer, the last step of an epoch may be smaller.
//! Units: rows, tokens.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::dataset::Label;

use super::examples::setting;
use super::{Example, Length, Settings, TrainError};

/// Sequences that are computed at once, packed: no padding, no sequence sees another.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MicroBatch {
    /// Ids of all sequences, one after the other.
    pub tokens: Vec<u32>,
    /// Tokens of each sequence, each 1 or more.
    pub lengths: Vec<usize>,
    /// What follows each token, where that is learnt; `None` at the end of each sequence. As long as `tokens`.
    pub targets: Vec<Option<u32>>,
    /// One a sequence for classification, else empty.
    pub classes: Vec<Label>,
    /// Which example each sequence or image is.
    pub rows: Vec<usize>,
    /// Images in the place of tokens, filled in by who has their files (`images`).
    pub pixels: Option<Pixels>,
}

/// Images as a model takes them: f32, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// All values.
    pub values: Vec<f32>,
    /// `[images, channels, height, width]`.
    pub shape: [usize; 4],
}

impl Pixels {
    /// Returns them as a tensor on the CPU.
    ///
    /// # Errors
    /// When shape and number of values disagree.
    pub fn to_tensor(&self) -> candle_core::Result<Tensor> {
        Tensor::from_slice(&self.values, self.shape.as_slice(), &Device::Cpu)
    }
}

impl MicroBatch {
    /// Puts `rows` of `examples` together; indices that are none are left out.
    #[must_use]
    pub fn new(examples: &[Example], rows: &[usize]) -> Self {
        let mut batch = Self::default();
        for (row, example) in rows.iter().filter_map(|row| Some((*row, examples.get(*row)?))) {
            batch.classes.extend(example.class.clone());
            batch.rows.push(row);
            if example.image.is_some() {
                continue;
            }
            let next = example.tokens.iter().zip(&example.learnt).skip(1);
            batch.targets.extend(next.map(|(id, learnt)| learnt.then_some(*id)));
            batch.targets.push(None);
            batch.tokens.extend(&example.tokens);
            batch.lengths.push(example.tokens.len());
        }
        batch
    }

    /// Returns the number of tokens that are learnt.
    #[must_use]
    pub fn learnt(&self) -> usize {
        self.targets.iter().flatten().count()
    }
}

/// The order of the training rows: a permutation of its own for every epoch.
#[derive(Debug, Clone)]
pub struct Order {
    /// Rows that stay together: one each, or a packed sequence.
    units: Vec<Vec<usize>>,
    batch_size: usize,
    accumulation: usize,
    steps_per_epoch: u64,
    total_steps: u64,
    seed: u64,
}

impl Order {
    /// Plans a run over the training rows `train`.
    ///
    /// Packing is done once, in the order of the rows: each goes into the fullest sequence that has room for it.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a count of 0 or a length that is no number; [`TrainError::Data`] without rows.
    pub fn new(train: &[Example], settings: &Settings) -> Result<Self, TrainError> {
        match settings.packing {
            true => Self::of(pack(train.iter().map(|example| example.tokens.len()), settings.max_tokens), settings),
            false => Self::unpacked(train.len(), settings),
        }
    }

    /// Plans a run over so many training rows, each a sequence of its own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn unpacked(rows: usize, settings: &Settings) -> Result<Self, TrainError> {
        Self::of((0..rows).map(|row| vec![row]).collect(), settings)
    }

    fn of(units: Vec<Vec<usize>>, settings: &Settings) -> Result<Self, TrainError> {
        if units.is_empty() {
            return Err(TrainError::Data("no row is in the training split".to_owned()));
        }
        for (field, count) in [("batch_size", settings.batch_size), ("accumulation", settings.accumulation)] {
            if count == 0 {
                return Err(setting(field, "must be 1 or more".to_owned()));
            }
        }
        let micro_batches = units.len().div_ceil(settings.batch_size);
        let steps_per_epoch = micro_batches.div_ceil(settings.accumulation) as u64;
        let total_steps = match settings.length {
            Length::Steps(steps) => steps,
            // A partial epoch counts whole steps, as transformers' `max_steps` does.
            Length::Epochs(epochs) if epochs.is_finite() && epochs > 0.0 => {
                (epochs * steps_per_epoch as f64).ceil() as u64
            }
            Length::Epochs(_) => 0,
        };
        if total_steps == 0 {
            return Err(setting("length", "must be above 0".to_owned()));
        }
        let (batch_size, accumulation) = (settings.batch_size, settings.accumulation);
        Ok(Self { units, batch_size, accumulation, steps_per_epoch, total_steps, seed: settings.seed })
    }

    /// Returns how many steps one pass over the rows takes, 1 or more.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Returns how many steps there are, 1 or more.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Returns the passes over the rows, with fraction, after `steps` steps.
    #[must_use]
    pub fn epoch(&self, steps: u64) -> f64 {
        steps as f64 / self.steps_per_epoch as f64
    }

    /// Returns the rows that the first `steps` steps learn from, all steps for `None`; in ascending order.
    #[must_use]
    pub(super) fn seen(&self, steps: Option<u64>) -> BTreeSet<usize> {
        let steps = steps.unwrap_or(self.total_steps).min(self.total_steps);
        if steps >= self.steps_per_epoch {
            // Later passes bring nothing new.
            return self.units.iter().flatten().copied().collect();
        }
        // Fewer than in one pass, so it fits.
        let units = steps as usize * self.batch_size * self.accumulation;
        let order = permutation(self.units.len(), self.seed, 0);
        order.into_iter().take(units).filter_map(|unit| self.units.get(unit)).flatten().copied().collect()
    }

    /// Returns what step `step` (from 0) learns from: 1 or more micro-batches.
    #[must_use]
    pub fn micro_batches(&self, train: &[Example], step: u64) -> Vec<MicroBatch> {
        self.rows(step).iter().map(|rows| MicroBatch::new(train, rows)).collect()
    }

    /// Returns the rows of each micro-batch of step `step`, from 0.
    #[must_use]
    pub fn rows(&self, step: u64) -> Vec<Vec<usize>> {
        let order = permutation(self.units.len(), self.seed, step / self.steps_per_epoch);
        let within = (step % self.steps_per_epoch) as usize;
        let micro_batches = order.chunks(self.batch_size).skip(within * self.accumulation).take(self.accumulation);
        micro_batches.map(|units| units.iter().flat_map(|unit| &self.units[*unit]).copied().collect()).collect()
    }
}

/// Puts rows of these lengths into sequences of at most `room` tokens; a longer row has one of its own.
fn pack(lengths: impl Iterator<Item = usize>, room: usize) -> Vec<Vec<usize>> {
    let mut sequences: Vec<Vec<usize>> = Vec::new();
    // Room left and index of a sequence.
    let mut open = BTreeSet::new();
    for (row, length) in lengths.enumerate() {
        let fits = open.range((length, 0)..).next().copied();
        let (left, at) = fits.unwrap_or((room.max(length), sequences.len()));
        if fits.is_none() {
            sequences.push(Vec::new());
        }
        open.remove(&(left, at));
        sequences[at].push(row);
        open.insert((left - length, at));
    }
    sequences
}

/// Returns 0 to `count` - 1 in the order of an epoch (Fisher and Yates, after Durstenfeld 1964).
fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<_> = (0..count).collect();
    for last in (1..count).rev() {
        // The product's upper half is uniform but for a bias of count/2⁶⁴, and the same in every version of `rand`.
        let drawn = (u128::from(rng.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, drawn as usize);
    }
    order
}

#[cfg(test)]
pub(super) mod tests;
