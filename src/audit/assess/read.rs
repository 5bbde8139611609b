//! Reads figures off sums: of one view, and of one set of rows (all, a group, a complement).
//!
//! Knows cells, not rows. The formulas are those of `statistics`.

use super::measure::{Bins as BinsOf, Form, Kind, Part};
use super::view::{Key, View};
use crate::audit::statistics::calibration::Bins;
use crate::audit::statistics::confusion::{Confusion, Convention, Rate};
use crate::audit::statistics::multiclass::Labels;
use crate::audit::statistics::{Measured, Undefined, divide};
use crate::audit::table::Formula;

/// Sums of one set of rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums<'a> {
    pub(super) view: &'a View,
    /// `[stride]`
    pub(super) sums: &'a [f64],
}

impl<'a> Sums<'a> {
    fn cells(&self) -> impl Iterator<Item = (&'a Key, &'a [f64])> {
        self.view.keys.iter().zip(self.sums.chunks_exact(self.view.width))
    }

    fn total(&self, of: usize) -> f64 {
        self.cells().map(|(_, cell)| cell[of]).sum()
    }

    /// Counts by label and prediction.
    pub(super) fn confusion(&self) -> Confusion {
        let mut confusion = Confusion::default();
        self.cells().for_each(|(key, cell)| confusion.add(key.label, key.predicted, cell[0]));
        confusion
    }

    /// Confidence and hits of a cell, by form.
    fn confidence(&self, form: Form, key: &Key, cell: &[f64]) -> (f64, bool) {
        let (weight, score) = (cell[0], cell[1]);
        match form {
            Form::Positive => (score, key.label),
            // Of several classes the sum is that of the top label already.
            Form::Top if self.view.classes.is_some() || key.upper => (score, key.hit),
            Form::Top => (weight - score, key.hit),
        }
    }

    /// Bins of confidence; none for a view without them.
    pub(super) fn bins(&self, of: BinsOf, form: Form) -> Option<Bins<'a>> {
        let binning = self.view.binning.as_ref()?;
        let edges = match of {
            BinsOf::Width => &binning.width,
            BinsOf::Mass => &binning.mass[form.index()],
        };
        let mut bins = Bins::new(edges);
        for (key, cell) in self.cells().filter(|(_, cell)| cell[0] > 0.0) {
            let (confidence, hit) = self.confidence(form, key, cell);
            let bin = match of {
                BinsOf::Width => key.width,
                BinsOf::Mass => key.mass,
            };
            bins.add_to(bin[form.index()] as usize, confidence / cell[0], hit, cell[0]);
        }
        Some(bins)
    }

    fn overconfidence(&self, form: Form) -> Measured {
        let difference = |(key, cell): (&Key, &[f64])| {
            let (confidence, hit) = self.confidence(form, key, cell);
            confidence - if hit { cell[0] } else { 0.0 }
        };
        divide(self.cells().map(difference).sum(), self.total(0), Undefined::NoRows)
    }

    fn brier(&self) -> Measured {
        let sum: f64 = match &self.view.classes {
            Some(_) => self.total(2),
            // (p − 1)² = p² − 2p + 1
            None => self.cells().map(|(key, c)| if key.label { c[2] - 2.0 * c[1] + c[0] } else { c[2] }).sum(),
        };
        divide(sum.max(0.0), self.total(0), Undefined::NoRows)
    }

    /// Weight by label, by prediction, and right ones, of each class.
    fn by_class(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let count = self.view.classes.as_ref().map_or(0, |classes| classes.count);
        let sums = &self.sums[self.view.keys.len() * self.view.width..];
        (0..count).map(move |class| (sums[class], sums[count + class], sums[2 * count + class]))
    }

    /// Means over classes as scikit-learn takes them: 0 where a class has no denominator.
    fn macro_mean(&self, part: Part, labels: Labels) -> Measured {
        let (mut sum, mut classes) = (0.0, 0.0);
        for (support, predicted, right) in self.by_class() {
            if labels == Labels::Present && support <= 0.0 && predicted <= 0.0 {
                continue;
            }
            classes += 1.0;
            let (part, whole) = match part {
                Part::Precision => (right, predicted),
                Part::Recall => (right, support),
                Part::F1 => (2.0 * right, support + predicted),
            };
            sum += if whole > 0.0 { part / whole } else { 0.0 };
        }
        if self.total(0) > 0.0 { divide(sum, classes, Undefined::NoRows) } else { Err(Undefined::NoRows) }
    }

    /// From the sums over classes, which is what scikit-learn calls micro.
    fn micro_mean(&self, part: Part) -> Measured {
        let add = |a: (f64, f64, f64), b: (f64, f64, f64)| (a.0 + b.0, a.1 + b.1, a.2 + b.2);
        let (support, predicted, right) = self.by_class().fold((0.0, 0.0, 0.0), add);
        match part {
            _ if self.total(0) <= 0.0 => Err(Undefined::NoRows),
            Part::Precision => divide(right, predicted, Undefined::NothingSelected),
            Part::Recall => divide(right, support, Undefined::NoPositives),
            Part::F1 => divide(2.0 * right, support + predicted, Undefined::NoPositives),
        }
    }

    fn class_balanced(&self) -> Measured {
        let recalls = self.by_class().filter(|(support, _, _)| *support > 0.0);
        let (sum, classes) = recalls.fold((0.0, 0.0), |(sum, n), (support, _, right)| (sum + right / support, n + 1.0));
        divide(sum, classes, Undefined::NoRows)
    }

    fn ratio(&self, column: usize) -> Measured {
        let whole = self.total(2 + 2 * column);
        // Numerators may be negative; a denominator of rounding is none.
        if whole > 0.0 { Ok(self.total(1 + 2 * column) / whole) } else { Err(Undefined::NoRows) }
    }

    fn formula(&self, formula: Formula) -> Measured {
        let value = match formula {
            Formula::Ratio(r) => self.ratio(r)?,
            Formula::Exponential(r) => self.ratio(r)?.exp(),
            Formula::Signed(r) => 2.0 * self.ratio(r)? - 1.0,
            Formula::ScaledSigned(a, b) => (1.0 - self.ratio(b)?) * (2.0 * self.ratio(a)? - 1.0),
            Formula::Difference(a, b) => self.ratio(a)? - self.ratio(b)?,
            Formula::Idealised(a, b) => {
                let stereotyped = self.ratio(b)?;
                self.ratio(a)? * stereotyped.min(1.0 - stereotyped) * 2.0
            }
        };
        if value.is_finite() { Ok(value) } else { Err(Undefined::Unreachable) }
    }

    /// The figure; `area` is that under the ROC curve.
    pub(super) fn read(&self, kind: Kind, area: Measured, convention: Convention) -> Measured {
        match kind {
            Kind::Rate(rate) => self.confusion().rate(rate, convention),
            Kind::MeanScore => divide(self.total(1), self.total(0), Undefined::NoRows),
            Kind::LogLoss => divide(self.total(3), self.total(0), Undefined::NoRows),
            Kind::Brier => self.brier(),
            // Of thresholds see `thresholds`.
            Kind::Auc | Kind::PooledAuc | Kind::Curve(_) => area,
            Kind::Ece(of, form) => self.bins(of, form).map_or(Err(Undefined::NoRows), |bins| bins.ece()),
            Kind::Mce(form) => self.bins(BinsOf::Width, form).map_or(Err(Undefined::NoRows), |bins| bins.mce()),
            Kind::Overconfidence(form) => self.overconfidence(form),
            Kind::ClassAccuracy => {
                divide(self.by_class().map(|(_, _, right)| right).sum(), self.total(0), Undefined::NoRows)
            }
            Kind::ClassBalanced => self.class_balanced(),
            Kind::Macro(part, labels) => self.macro_mean(part, labels),
            Kind::Micro(part) => self.micro_mean(part),
            Kind::Ratio(formula, _) => self.formula(formula),
        }
    }
}

/// How many rows a figure stands on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Support {
    /// Rows of the denominator; where there are two denominators, of the smaller.
    pub(super) n: u64,
    /// Sum of their weights.
    pub(super) weight: f64,
    /// Sum of their squares.
    pub(super) squares: f64,
}

impl Support {
    /// Rows of weight 1 that tell as much (Kish 1965).
    pub(super) fn effective(&self) -> f64 {
        if self.squares > 0.0 { self.weight * self.weight / self.squares } else { 0.0 }
    }

    fn smaller(self, other: Self) -> Self {
        if other.n < self.n { other } else { self }
    }
}

/// Rows, weights and squared weights by cell, of one set of rows.
#[derive(Debug, Clone)]
pub(super) struct Supports<'a> {
    pub(super) view: &'a View,
    /// `[cells]`
    pub(super) cells: Vec<Support>,
}

impl Supports<'_> {
    fn where_(&self, counts: impl Fn(&Key) -> bool) -> Support {
        let mut all = Support::default();
        for (_, cell) in self.view.keys.iter().zip(&self.cells).filter(|(key, _)| counts(key)) {
            all.n += cell.n;
            all.weight += cell.weight;
            all.squares += cell.squares;
        }
        all
    }

    /// Support of a rate of the confusion matrix.
    pub(super) fn rate(&self, rate: Rate) -> Support {
        match rate {
            Rate::Accuracy | Rate::SelectionRate | Rate::BaseRate => self.where_(|_| true),
            Rate::BalancedAccuracy => self.where_(|key| key.label).smaller(self.where_(|key| !key.label)),
            Rate::Precision | Rate::FalseDiscovery => self.where_(|key| key.predicted),
            Rate::Recall | Rate::TruePositive | Rate::FalseNegative => self.where_(|key| key.label),
            Rate::F1 => self.where_(|key| key.label || key.predicted),
            Rate::TrueNegative | Rate::FalsePositive => self.where_(|key| !key.label),
            Rate::NegativePredictive | Rate::FalseOmission => self.where_(|key| !key.predicted),
        }
    }

    /// Rows in a bin of equal width.
    pub(super) fn in_bin(&self, form: Form, bin: usize) -> Support {
        self.where_(|key| key.width[form.index()] as usize == bin)
    }

    /// Support of any figure.
    pub(super) fn of(&self, kind: Kind) -> Support {
        let counted = |column: usize| self.where_(|key| key.counted >> column & 1 == 1);
        match kind {
            Kind::Rate(rate) => self.rate(rate),
            Kind::Curve(point) if point.is_global() => self.rate(point.share().unwrap_or(Rate::BalancedAccuracy)),
            Kind::Curve(_) => self.rate(Rate::BalancedAccuracy),
            Kind::Auc if self.view.classes.is_none() => self.rate(Rate::BalancedAccuracy),
            Kind::Ratio(formula, _) => match formula {
                Formula::Ratio(r) | Formula::Exponential(r) | Formula::Signed(r) => counted(r),
                Formula::ScaledSigned(a, b) | Formula::Difference(a, b) | Formula::Idealised(a, b) => {
                    counted(a).smaller(counted(b))
                }
            },
            Kind::Auc
            | Kind::MeanScore
            | Kind::LogLoss
            | Kind::Brier
            | Kind::Ece(..)
            | Kind::Mce(_)
            | Kind::Overconfidence(_)
            | Kind::ClassAccuracy
            | Kind::ClassBalanced
            | Kind::PooledAuc
            | Kind::Micro(_)
            | Kind::Macro(..) => self.where_(|_| true),
        }
    }
}
