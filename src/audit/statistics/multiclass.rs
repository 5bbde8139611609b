//! Figures of tasks with several classes.
//!
//! A class that a group lacks is the trap here: scikit-learn's default averages over the classes that the rows happen
//! to show, so that two groups are averages over different things; averaging over all classes of the task counts an
//! absent one as 0. Neither is right: both are given, and the missing classes are named. Units: [0, 1]; log loss in nats.
//! After: scikit-learn 1.9 (`precision_recall_fscore_support`, `roc_auc_score`, `cohen_kappa_score`,
//! `matthews_corrcoef`).

use super::auc::{Ranked, log_loss_of, mean};
use super::{Measured, Undefined, divide};

/// Over which classes to average.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Every class of the task; one without rows counts as 0.
    All,
    /// Classes that occur among the labels or predictions of these rows.
    Present,
}

/// How to average over classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Average {
    /// Every class counts the same.
    Macro,
    /// From the sums over classes.
    Micro,
    /// By the rows of the class.
    Weighted,
}

/// Precision, recall and F1; where a class gives none it counts as 0, as in scikit-learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrecisionRecall {
    /// Right among those predicted so.
    pub precision: f64,
    /// Right among those of the class.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
}

/// Rows by class (first index) and predicted class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassConfusion {
    classes: usize,
    cells: Vec<f64>,
}

impl ClassConfusion {
    /// Counts rows; labels and predictions `[rows]` below `classes`, a row weighing 1 without `weights`.
    #[must_use]
    pub fn of(truth: &[usize], predicted: &[usize], weights: Option<&[f64]>, classes: usize) -> Self {
        let mut cells = vec![0.0; classes * classes];
        for (row, (truth, predicted)) in truth.iter().zip(predicted).enumerate() {
            cells[truth * classes + predicted] += weights.map_or(1.0, |w| w[row]);
        }
        Self { classes, cells }
    }

    /// Weight of the rows of a class predicted as another.
    #[must_use]
    pub fn cell(&self, truth: usize, predicted: usize) -> f64 {
        self.cells[truth * self.classes + predicted]
    }

    /// Weight of the rows of a class.
    #[must_use]
    pub fn support(&self, class: usize) -> f64 {
        (0..self.classes).map(|predicted| self.cell(class, predicted)).sum()
    }

    /// Weight of the rows predicted as a class.
    #[must_use]
    pub fn predicted(&self, class: usize) -> f64 {
        (0..self.classes).map(|truth| self.cell(truth, class)).sum()
    }

    /// Weight of all rows.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.cells.iter().sum()
    }

    /// Classes of which there is no row.
    #[must_use]
    pub fn missing(&self) -> Vec<usize> {
        (0..self.classes).filter(|class| self.support(*class) <= 0.0).collect()
    }

    fn right(&self) -> f64 {
        (0..self.classes).map(|class| self.cell(class, class)).sum()
    }

    /// Right among all.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn accuracy(&self) -> Measured {
        divide(self.right(), self.total(), Undefined::NoRows)
    }

    /// Mean recall over the classes of which there are rows.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn balanced_accuracy(&self) -> Measured {
        let present: Vec<usize> = (0..self.classes).filter(|class| self.support(*class) > 0.0).collect();
        let sum = present.iter().map(|class| self.cell(*class, *class) / self.support(*class)).sum();
        divide(sum, present.len() as f64, Undefined::NoRows)
    }

    /// Agreement beyond chance.
    ///
    /// # Errors
    /// [`Undefined::NoRows`]; [`Undefined::DivisionByZero`] where chance alone agrees always.
    pub fn cohen_kappa(&self) -> Measured {
        let total = self.total();
        let chance: f64 = (0..self.classes).map(|class| self.support(class) * self.predicted(class)).sum();
        let observed = self.accuracy()?;
        let chance = chance / (total * total);
        divide(observed - chance, 1.0 - chance, Undefined::DivisionByZero)
    }

    /// Correlation coefficient of Matthews, in [−1, 1].
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`] where only one class was predicted or is there.
    pub fn matthews(&self) -> Measured {
        let total = self.total();
        let sum = |f: &dyn Fn(usize) -> f64| (0..self.classes).map(f).sum::<f64>();
        let both = sum(&|class| self.support(class) * self.predicted(class));
        let of_truth = total * total - sum(&|class| self.support(class).powi(2));
        let of_predicted = total * total - sum(&|class| self.predicted(class).powi(2));
        divide(self.right() * total - both, (of_truth * of_predicted).sqrt(), Undefined::DivisionByZero)
    }

    /// Precision, recall and F1 of one class, 0 where undefined.
    #[must_use]
    pub fn of_class(&self, class: usize) -> PrecisionRecall {
        let (right, support, predicted) = (self.cell(class, class), self.support(class), self.predicted(class));
        from_sums(right, support, predicted)
    }

    /// Precision, recall and F1 over classes.
    #[must_use]
    pub fn average(&self, labels: Labels, average: Average) -> PrecisionRecall {
        let present = |class: &usize| self.support(*class) > 0.0 || self.predicted(*class) > 0.0;
        let classes: Vec<usize> = match labels {
            Labels::All => (0..self.classes).collect(),
            Labels::Present => (0..self.classes).filter(present).collect(),
        };
        let over = |weight: &dyn Fn(usize) -> f64| {
            let total: f64 = classes.iter().map(|class| weight(*class)).sum();
            let figure = |read: fn(PrecisionRecall) -> f64| {
                let sum: f64 = classes.iter().map(|class| weight(*class) * read(self.of_class(*class))).sum();
                if total > 0.0 { sum / total } else { 0.0 }
            };
            PrecisionRecall { precision: figure(|p| p.precision), recall: figure(|p| p.recall), f1: figure(|p| p.f1) }
        };
        match average {
            Average::Macro => over(&|_| 1.0),
            Average::Weighted => over(&|class| self.support(class)),
            Average::Micro => {
                let sum = |f: &dyn Fn(usize) -> f64| classes.iter().map(|class| f(*class)).sum::<f64>();
                let right = sum(&|class| self.cell(class, class));
                from_sums(right, sum(&|class| self.support(class)), sum(&|class| self.predicted(class)))
            }
        }
    }
}

fn from_sums(right: f64, support: f64, predicted: f64) -> PrecisionRecall {
    let or_zero = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    PrecisionRecall {
        precision: or_zero(right, predicted),
        recall: or_zero(right, support),
        f1: or_zero(2.0 * right, support + predicted),
    }
}

/// Probabilities of every class for the rows of a group.
#[derive(Debug, Clone, Copy)]
pub struct ClassScores<'a> {
    /// `[rows]`: the class.
    pub truth: &'a [usize],
    /// `[rows, classes]`, row by row.
    pub probabilities: &'a [f64],
    /// Classes of the task.
    pub classes: usize,
    /// `[rows]`, or a weight of 1 each.
    pub weights: Option<&'a [f64]>,
}

impl ClassScores<'_> {
    fn at(&self, row: usize, class: usize) -> f64 {
        self.probabilities[row * self.classes + class]
    }

    /// Mean log loss in nats.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn log_loss(&self) -> Measured {
        mean(self.truth.len(), self.weights, |row| log_loss_of(self.at(row, self.truth[row])))
    }

    /// Mean over rows of the squared differences summed over classes: twice the binary Brier score for two classes.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn brier_sum(&self) -> Measured {
        let hit = |row: usize, class: usize| f64::from(u8::from(self.truth[row] == class));
        mean(self.truth.len(), self.weights, |row| {
            (0..self.classes).map(|class| (self.at(row, class) - hit(row, class)).powi(2)).sum()
        })
    }

    /// AUC of `class` against the given rows of other classes.
    fn auc_of(&self, class: usize, counts: impl Fn(usize) -> bool) -> Measured {
        let rows: Vec<usize> = (0..self.truth.len()).filter(|row| counts(self.truth[*row])).collect();
        let scores: Vec<f64> = rows.iter().map(|row| self.at(*row, class)).collect();
        let truth: Vec<bool> = rows.iter().map(|row| self.truth[*row] == class).collect();
        Ranked::new(0..rows.len(), &scores, &truth).auc(|i| self.weights.map_or(1.0, |w| w[rows[i]]))
    }

    /// Mean over classes of the AUC of one class against the rest.
    ///
    /// # Errors
    /// [`Undefined::NoPositives`] where a class has no rows: the mean would be one over other classes.
    pub fn auc_one_vs_rest(&self) -> Measured {
        let sum: f64 = (0..self.classes).map(|class| self.auc_of(class, |_| true)).sum::<Result<f64, _>>()?;
        Ok(sum / self.classes as f64)
    }

    /// Mean over pairs of present classes of the AUC of either against the other (Hand and Till 2001).
    ///
    /// # Errors
    /// [`Undefined::NoNegatives`] where fewer than two classes have rows.
    pub fn auc_one_vs_one(&self) -> Measured {
        let present: Vec<usize> = (0..self.classes).filter(|class| self.truth.contains(class)).collect();
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (i, a) in present.iter().enumerate() {
            for b in &present[i + 1..] {
                let either = |class: usize| class == *a || class == *b;
                sum += f64::midpoint(self.auc_of(*a, either)?, self.auc_of(*b, either)?);
                pairs += 1.0;
            }
        }
        divide(sum, pairs, Undefined::NoNegatives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_class_is_named_and_moves_only_one_of_the_averages() {
        let truth = [0, 0, 1, 1];
        let confusion = ClassConfusion::of(&truth, &[0, 1, 1, 1], None, 3);
        assert_eq!(confusion.missing(), [2]);
        let all = confusion.average(Labels::All, Average::Macro);
        let present = confusion.average(Labels::Present, Average::Macro);
        assert!((all.f1 * 3.0 - present.f1 * 2.0).abs() < 1e-15);
        assert_eq!(confusion.average(Labels::All, Average::Micro).f1, confusion.accuracy().unwrap());
    }

    #[test]
    fn a_missing_class_leaves_no_one_vs_rest_area() {
        let scores =
            ClassScores { truth: &[0, 1], probabilities: &[0.7, 0.2, 0.1, 0.3, 0.6, 0.1], classes: 3, weights: None };
        assert_eq!(scores.auc_one_vs_rest(), Err(Undefined::NoPositives));
        assert_eq!(scores.auc_one_vs_one(), Ok(1.0));
    }
}
