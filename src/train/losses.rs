//! How single rows did: losses of positions or classes given to the rows that they belong to.
//!
//! Computes no loss: `ops` does. Units: nats.

use candle_core::Tensor;

use super::{MicroBatch, TrainError};
use crate::dataset::Label;

/// How one row (one sequence) did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowLoss {
    /// Index of the example.
    pub row: usize,
    /// Sum over its label tokens, or its own loss; nats.
    pub loss: f64,
    /// Label tokens, or 1.
    pub count: u64,
    /// Whether the label is the most likely one; classification only.
    pub correct: Option<bool>,
}

/// Gives losses of positions to their rows.
pub(super) fn by_row(
    batch: &MicroBatch,
    classify: bool,
    positions: &[usize],
    losses: &[f64],
    correct: &[bool],
) -> Vec<RowLoss> {
    if classify {
        let row = |((row, loss), correct): ((&usize, &f64), &bool)| {
            let (row, loss, correct) = (*row, *loss, Some(*correct));
            RowLoss { row, loss, count: 1, correct }
        };
        return batch.rows.iter().zip(losses).zip(correct).map(row).collect();
    }
    let mut end = 0;
    let mut next = 0;
    let mut rows = Vec::with_capacity(batch.lengths.len());
    for (i, len) in batch.lengths.iter().enumerate() {
        end += len;
        let count = positions[next..].iter().take_while(|position| **position < end).count();
        let loss = losses[next..next + count].iter().sum();
        next += count;
        let row = batch.rows.get(i).copied().unwrap_or_default();
        rows.push(RowLoss { row, loss, count: count as u64, correct: None });
    }
    rows
}

/// Returns whether each row's label is the most likely one; with several labels: whether all are on the right side.
pub(super) fn right(logits: &Tensor, classes: &[Label]) -> Result<Vec<bool>, TrainError> {
    let right = |(row, label): (&Vec<f32>, &Label)| match label {
        Label::Class(class) => {
            let best = row
                .iter()
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |best, (i, x)| if *x > best.1 { (i, *x) } else { best });
            best.0 == *class
        }
        Label::Classes(classes) => row.iter().enumerate().all(|(i, x)| (*x > 0.0) == classes.contains(&i)),
    };
    Ok(logits.detach().to_vec2::<f32>()?.iter().zip(classes).map(right).collect())
}

pub(super) fn set(label: &Label) -> &[usize] {
    match label {
        Label::Class(class) => std::slice::from_ref(class),
        Label::Classes(classes) => classes,
    }
}
