//! One model's predictions in the form that resampling sums: a cell and a few sums a row.
//!
//! A cell is all that is discrete about a row (label, prediction, bins of confidence), so that every binned or counted
//! figure is a function of sums by cell, and a resample never looks at a probability again. Does not sum: see
//! `accumulate`; does not read figures from sums: see `read`.

use std::collections::BTreeMap;

use super::measure::{Kind, Measure};
use crate::audit::statistics::auc::log_loss_of;
use crate::audit::statistics::calibration::{Closure, Edges};
use crate::audit::table::RatioColumn;

/// All that is discrete about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Key {
    /// Whether the row is positive.
    pub(super) label: bool,
    /// Whether it is predicted positive.
    pub(super) predicted: bool,
    /// Whether the top label is the positive class.
    pub(super) upper: bool,
    /// Whether the top label is right.
    pub(super) hit: bool,
    /// Bins of equal width of the positive class and of the top label.
    pub(super) width: [u16; 2],
    /// Bins of equal mass of them.
    pub(super) mass: [u16; 2],
    /// Ratios: a bit for each column that counts the row.
    pub(super) counted: u64,
}

/// How confidences are binned, the positive class before the top label.
#[derive(Debug, Clone)]
pub(super) struct Binning {
    pub(super) width: Edges,
    /// Their edges come from all rows and are the same for every group.
    pub(super) mass: [Edges; 2],
}

/// Rows in the order of their scores; of one score a row, or of several.
#[derive(Debug, Clone)]
pub(super) struct Rank {
    /// Row, lowest score first; [`TIE`]: it ties with the one before; [`POSITIVE`]: it is positive.
    pub(super) order: Vec<u32>,
}

pub(super) const TIE: u32 = 1 << 31;
pub(super) const POSITIVE: u32 = 1 << 30;

impl Rank {
    pub(super) fn new(scores: &[f64], positive: &[bool]) -> Self {
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        order.sort_unstable_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]).then(a.cmp(b)));
        let mut before = f64::NAN;
        for row in &mut order {
            let at = *row as usize;
            let tie = if scores[at] == before { TIE } else { 0 };
            before = scores[at];
            *row |= tie | if positive[at] { POSITIVE } else { 0 };
        }
        Self { order }
    }

    /// Several scores a row, `[rows, count]`, in one order: a row comes `count` times.
    fn pooled(scores: &[f64], positive: &[bool], count: usize) -> Self {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_unstable_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
        let mut before = f64::NAN;
        let entry = |at: usize| {
            let tie = if scores[at] == before { TIE } else { 0 };
            before = scores[at];
            (at / count.max(1)) as u32 | tie | if positive[at] { POSITIVE } else { 0 }
        };
        Self { order: order.into_iter().map(entry).collect() }
    }
}

/// Classes of each row, for figures that average over classes.
#[derive(Debug, Clone)]
pub(super) struct Classes {
    pub(super) count: usize,
    pub(super) marks: Marks,
}

/// Which classes are true and predicted.
#[derive(Debug, Clone)]
pub(super) enum Marks {
    /// One of each a row.
    One { labels: Vec<u32>, predicted: Vec<u32> },
    /// Any number a row, `[rows, classes]`: [`LABELLED`] and [`PREDICTED`].
    Several(Vec<u8>),
}

pub(super) const LABELLED: u8 = 1;
pub(super) const PREDICTED: u8 = 2;

/// One model's predictions.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// Index of the model.
    pub(super) model: usize,
    pub(super) measures: Vec<Measure>,
    pub(super) binning: Option<Binning>,
    pub(super) keys: Vec<Key>,
    /// `[rows]`
    pub(super) cells: Vec<u16>,
    /// Sums a cell; the first is the weight.
    pub(super) width: usize,
    /// `[rows, width]`, times the weight of the row. Binary: 1, p, p², log loss. Classes: 1, confidence, squared error,
    /// log loss. Ratios: 1, then numerator and denominator of each column.
    pub(super) values: Vec<f64>,
    pub(super) classes: Option<Classes>,
    /// One for binary tasks, one a class for several; empty where no AUC is asked.
    pub(super) ranks: Vec<Rank>,
    /// Rows with several labels: their scores of all labels in one order, where that is asked.
    pub(super) pooled: Option<Rank>,
    /// False-positive rates that thresholds are asked for; empty where no [`Kind::Curve`] is.
    pub(super) rates: Vec<f64>,
}

/// Rows of a binary question.
#[derive(Debug, Clone)]
pub(super) struct BinaryRows {
    pub(super) labels: Vec<bool>,
    pub(super) scores: Vec<f64>,
    pub(super) predicted: Vec<bool>,
    /// Whether a tie of both classes goes to the positive one: it does where it is the first.
    pub(super) tie_is_positive: bool,
}

impl BinaryRows {
    /// Confidence in the top label, whether it is positive, whether it is right.
    pub(super) fn top(&self, row: usize) -> (f64, bool, bool) {
        let p = self.scores[row];
        let upper = if self.tie_is_positive { p >= 0.5 } else { p > 0.5 };
        (if upper { p } else { 1.0 - p }, upper, upper == self.labels[row])
    }
}

/// Rows of a question with several classes; probabilities `[rows, classes]`.
#[derive(Debug, Clone)]
pub(super) struct ClassRows {
    pub(super) classes: usize,
    pub(super) labels: Vec<u32>,
    pub(super) probabilities: Vec<f64>,
}

/// The index of the largest, the first of equals.
pub(super) fn largest(row: &[f64]) -> usize {
    row.iter().enumerate().fold(0, |best, (class, p)| if *p > row[best] { class } else { best })
}

impl View {
    /// Rows of a binary question; `weights` `[rows]`.
    pub(super) fn binary(
        model: usize,
        measures: Vec<Measure>,
        rows: &BinaryRows,
        weights: Option<&[f64]>,
        bins: usize,
    ) -> Self {
        let n = rows.labels.len();
        let top: Vec<f64> = (0..n).map(|row| rows.top(row).0).collect();
        let width = Edges::width(bins, Closure::Left);
        let mass = [Edges::chunks(&rows.scores, weights, bins), Edges::chunks(&top, weights, bins)];
        let binned = measures.iter().any(|m| m.kind.is_binned());
        let key = |row: usize| {
            let (confidence, upper, hit) = rows.top(row);
            let pair = [rows.scores[row], confidence];
            let bin = |edges: &Edges, i: usize| if binned { edges.bin(pair[i]) as u16 } else { 0 };
            Key {
                label: rows.labels[row],
                predicted: rows.predicted[row],
                upper,
                hit,
                width: [bin(&width, 0), bin(&width, 1)],
                mass: [bin(&mass[0], 0), bin(&mass[1], 1)],
                counted: 0,
            }
        };
        let (keys, cells) = dictionary((0..n).map(key).collect());
        let mut values = Vec::with_capacity(n * 4);
        for row in 0..n {
            let (w, p) = (weights.map_or(1.0, |w| w[row]), rows.scores[row]);
            let loss = log_loss_of(if rows.labels[row] { p } else { 1.0 - p });
            values.extend([w, w * p, w * p * p, w * loss]);
        }
        let ranked = measures.iter().any(|m| matches!(m.kind, Kind::Auc | Kind::Curve(_)));
        let ranks = if ranked { vec![Rank::new(&rows.scores, &rows.labels)] } else { Vec::new() };
        let binning = Some(Binning { width, mass });
        let rates = Vec::new();
        Self { model, measures, binning, keys, cells, width: 4, values, classes: None, ranks, pooled: None, rates }
    }

    /// Rows of a question with several classes.
    pub(super) fn classes(
        model: usize,
        measures: Vec<Measure>,
        rows: &ClassRows,
        weights: Option<&[f64]>,
        bins: usize,
    ) -> Self {
        let n = rows.labels.len();
        let of = |row: usize| &rows.probabilities[row * rows.classes..(row + 1) * rows.classes];
        let predicted: Vec<u32> = (0..n).map(|row| largest(of(row)) as u32).collect();
        let confidence: Vec<f64> = (0..n).map(|row| of(row)[predicted[row] as usize]).collect();
        let width = Edges::width(bins, Closure::Left);
        let mass = Edges::chunks(&confidence, weights, bins);
        let key = |row: usize| {
            let (w, m) = (width.bin(confidence[row]) as u16, mass.bin(confidence[row]) as u16);
            Key { hit: predicted[row] == rows.labels[row], upper: true, width: [0, w], mass: [0, m], ..Key::default() }
        };
        let (keys, cells) = dictionary((0..n).map(key).collect());
        let mut values = Vec::with_capacity(n * 4);
        for row in 0..n {
            let (w, label) = (weights.map_or(1.0, |w| w[row]), rows.labels[row] as usize);
            let square = |(class, p): (usize, &f64)| (p - f64::from(u8::from(class == label))).powi(2);
            let brier: f64 = of(row).iter().enumerate().map(square).sum();
            values.extend([w, w * confidence[row], w * brier, w * log_loss_of(of(row)[label])]);
        }
        let mut ranks = Vec::new();
        if measures.iter().any(|m| m.kind == Kind::Auc) {
            for class in 0..rows.classes {
                let scores: Vec<f64> = (0..n).map(|row| of(row)[class]).collect();
                let positive: Vec<bool> = rows.labels.iter().map(|label| *label as usize == class).collect();
                ranks.push(Rank::new(&scores, &positive));
            }
        }
        let marks = Marks::One { labels: rows.labels.clone(), predicted };
        let classes = Some(Classes { count: rows.classes, marks });
        let binning = Some(Binning { width, mass: [mass.clone(), mass] });
        let rates = Vec::new();
        Self { model, measures, binning, keys, cells, width: 4, values, classes, ranks, pooled: None, rates }
    }

    /// Columns of numerators and denominators, of the given rows of the table.
    pub(super) fn ratios(
        model: usize,
        measures: Vec<Measure>,
        columns: &[RatioColumn],
        rows: &[u32],
        weights: Option<&[f64]>,
    ) -> Self {
        let key = |row: &u32| {
            let bits = columns.iter().enumerate().filter(|(_, column)| column.counts[*row as usize] > 0.0);
            Key {
                counted: bits.fold(0, |bits, (i, _)| bits | 1_u64.checked_shl(i as u32).unwrap_or(0)),
                ..Key::default()
            }
        };
        let (keys, cells) = dictionary(rows.iter().map(key).collect());
        let width = 1 + 2 * columns.len();
        let mut values = Vec::with_capacity(rows.len() * width);
        for (at, row) in rows.iter().enumerate() {
            let w = weights.map_or(1.0, |w| w[at]);
            values.push(w);
            for column in columns {
                values.extend([w * column.sums[*row as usize], w * column.counts[*row as usize]]);
            }
        }
        let (binning, classes, ranks, pooled, rates) = (None, None, Vec::new(), None, Vec::new());
        Self { model, measures, binning, keys, cells, width, values, classes, ranks, pooled, rates }
    }

    /// Adds what averages over labels are made of; all slices `[rows, labels]` of the rows of the view.
    pub(super) fn with_labels(mut self, count: usize, truth: &[bool], scores: &[f64], threshold: f64) -> Self {
        let mark = |(truth, p): (&bool, &f64)| {
            (if *truth { LABELLED } else { 0 }) | (if *p >= threshold { PREDICTED } else { 0 })
        };
        let marks = truth.iter().zip(scores).map(mark).collect();
        self.classes = Some(Classes { count, marks: Marks::Several(marks) });
        if self.measures.iter().any(|m| m.kind == Kind::Auc) {
            let of = |class: usize| move |at: usize| at % count == class;
            for class in 0..count {
                let scores: Vec<f64> = (0..scores.len()).filter(|at| of(class)(*at)).map(|at| scores[at]).collect();
                let truth: Vec<bool> = (0..truth.len()).filter(|at| of(class)(*at)).map(|at| truth[at]).collect();
                self.ranks.push(Rank::new(&scores, &truth));
            }
        }
        if self.measures.iter().any(|m| m.kind == Kind::PooledAuc) {
            self.pooled = Some(Rank::pooled(scores, truth, count));
        }
        self
    }

    /// Sums that a pattern has.
    pub(super) fn stride(&self) -> usize {
        self.keys.len() * self.width + 3 * self.classes.as_ref().map_or(0, |classes| classes.count)
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.cells.len()
    }
}

/// Different keys in order, and the number of the key of every row.
fn dictionary(of_rows: Vec<Key>) -> (Vec<Key>, Vec<u16>) {
    let mut numbers: BTreeMap<Key, u16> = of_rows.iter().map(|key| (*key, 0)).collect();
    numbers.values_mut().enumerate().for_each(|(i, number)| *number = i as u16);
    let cells = of_rows.iter().map(|key| numbers.get(key).copied().unwrap_or(0)).collect();
    (numbers.into_keys().collect(), cells)
}
