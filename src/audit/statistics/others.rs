//! Figures of other toolkits under their own names, for those who compare with them.
//!
//! Nothing else here is built on them: they know two groups at a time, and some stand for an undefined value with 0 or
//! 10. Every such place is named. The signs are theirs: unprivileged minus privileged, `a` minus `b`.
//! After: AIF360 0.6.1 `ClassificationMetric`, Aequitas 1.0.0 `Bias`, holisticai 1.0.14 `bias.metrics`.

use super::confusion::{Confusion, Convention, Rate};
use super::{Measured, Undefined, divide};

fn defined(confusion: &Confusion, rate: Rate) -> Measured {
    confusion.rate(rate, Convention::Defined)
}

/// Two groups as AIF360 compares them; weighted counts.
#[derive(Debug, Clone, Copy)]
pub struct Privilege {
    /// The group that might be worse off.
    pub unprivileged: Confusion,
    /// The group that it is compared with.
    pub privileged: Confusion,
}

impl Privilege {
    fn minus(&self, rate: Rate) -> Measured {
        Ok(defined(&self.unprivileged, rate)? - defined(&self.privileged, rate)?)
    }

    /// AIF360 puts 0 for PPV, NPV, FDR, FOR and accuracy without a denominator.
    fn minus_or_zero(&self, rate: Rate) -> f64 {
        defined(&self.unprivileged, rate).unwrap_or(0.0) - defined(&self.privileged, rate).unwrap_or(0.0)
    }

    /// Difference of selection rates.
    ///
    /// # Errors
    /// [`Undefined`] where a group has no rows.
    pub fn statistical_parity_difference(&self) -> Measured {
        self.minus(Rate::SelectionRate)
    }

    /// Ratio of selection rates.
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`] where nobody privileged is selected (AIF360: infinity or NaN).
    pub fn disparate_impact(&self) -> Measured {
        let privileged = defined(&self.privileged, Rate::SelectionRate)?;
        divide(defined(&self.unprivileged, Rate::SelectionRate)?, privileged, Undefined::DivisionByZero)
    }

    /// Difference of true positive rates.
    ///
    /// # Errors
    /// [`Undefined`] where a group has no positives.
    pub fn equal_opportunity_difference(&self) -> Measured {
        self.minus(Rate::TruePositive)
    }

    /// Difference of false positive rates.
    ///
    /// # Errors
    /// [`Undefined`] where a group has no negatives.
    pub fn false_positive_rate_difference(&self) -> Measured {
        self.minus(Rate::FalsePositive)
    }

    /// Difference of false negative rates.
    ///
    /// # Errors
    /// [`Undefined`] where a group has no positives.
    pub fn false_negative_rate_difference(&self) -> Measured {
        self.minus(Rate::FalseNegative)
    }

    /// Mean of the differences of false and true positive rates; opposite ones cancel.
    ///
    /// # Errors
    /// [`Undefined`] where either is.
    pub fn average_odds_difference(&self) -> Measured {
        Ok(f64::midpoint(self.false_positive_rate_difference()?, self.equal_opportunity_difference()?))
    }

    /// Mean of their sizes: nothing cancels.
    ///
    /// # Errors
    /// [`Undefined`] where either is.
    pub fn average_abs_odds_difference(&self) -> Measured {
        let (fpr, tpr) = (self.false_positive_rate_difference()?, self.equal_opportunity_difference()?);
        Ok(f64::midpoint(fpr.abs(), tpr.abs()))
    }

    /// Larger of the two sizes; an undefined true positive rate is passed over, an undefined false positive rate is
    /// not (Python's `max` keeps its first argument against NaN).
    ///
    /// # Errors
    /// [`Undefined`] where a group has no negatives.
    pub fn equalized_odds_difference(&self) -> Measured {
        let fpr = self.false_positive_rate_difference()?.abs();
        Ok(self.equal_opportunity_difference().map_or(fpr, |tpr| fpr.max(tpr.abs())))
    }

    /// Difference of false discovery rates, 0 for one without a denominator.
    #[must_use]
    pub fn false_discovery_rate_difference(&self) -> f64 {
        self.minus_or_zero(Rate::FalseDiscovery)
    }

    /// Difference of false omission rates, 0 for one without a denominator.
    #[must_use]
    pub fn false_omission_rate_difference(&self) -> f64 {
        self.minus_or_zero(Rate::FalseOmission)
    }

    /// Difference of error rates; a group without rows errs always.
    #[must_use]
    pub fn error_rate_difference(&self) -> f64 {
        -self.minus_or_zero(Rate::Accuracy)
    }

    /// Ratio of error rates; a group without rows errs always.
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`] where the privileged group has no errors.
    pub fn error_rate_ratio(&self) -> Measured {
        let errors = |confusion| 1.0 - defined(confusion, Rate::Accuracy).unwrap_or(0.0);
        divide(errors(&self.unprivileged), errors(&self.privileged), Undefined::DivisionByZero)
    }

    /// Mean of the differences of precision and false omission rate, 0 for one without a denominator.
    #[must_use]
    pub fn average_predictive_value_difference(&self) -> f64 {
        f64::midpoint(self.minus_or_zero(Rate::Precision), self.minus_or_zero(Rate::FalseOmission))
    }

    /// Differential fairness of the labels: the largest log ratio between the groups of the smoothed shares of a
    /// label, (count + ½) / (n + 1).
    #[must_use]
    pub fn smoothed_empirical_differential_fairness(&self) -> f64 {
        let label = |c: &Confusion| (c.positives(), c.total());
        log_ratio(label(&self.unprivileged), label(&self.privileged))
    }

    /// The same of the predictions, minus that of the labels.
    #[must_use]
    pub fn differential_fairness_bias_amplification(&self) -> f64 {
        let prediction = |c: &Confusion| (c.selected(), c.total());
        let predictions = log_ratio(prediction(&self.unprivileged), prediction(&self.privileged));
        predictions - self.smoothed_empirical_differential_fairness()
    }
}

fn log_ratio(first: (f64, f64), second: (f64, f64)) -> f64 {
    let smoothed = |(count, n): (f64, f64)| (count + 0.5) / (n + 1.0);
    let (first, second) = (smoothed(first), smoothed(second));
    (first / second).ln().abs().max(((1.0 - first) / (1.0 - second)).ln().abs())
}

/// Benefit of a row in AIF360's inequality indices: 1 + prediction − label.
#[must_use]
pub fn benefits(truth: &[bool], predicted: &[bool]) -> Vec<f64> {
    let benefit = |(t, p): (&bool, &bool)| 1.0 + f64::from(u8::from(*p)) - f64::from(u8::from(*t));
    truth.iter().zip(predicted).map(benefit).collect()
}

/// Generalized entropy index of benefits; α = 1 is Theil's index. AIF360 ignores weights here.
///
/// # Errors
/// [`Undefined::NoRows`]; [`Undefined::DivisionByZero`] where every benefit is 0.
pub fn generalized_entropy(benefits: &[f64], alpha: f64) -> Measured {
    let rows = benefits.len() as f64;
    let mean = divide(benefits.iter().sum(), rows, Undefined::NoRows)?;
    let shares = benefits.iter().map(|b| divide(*b, mean, Undefined::DivisionByZero));
    let log_times = |share: f64| if share > 0.0 { share * share.ln() } else { 0.0 };
    let terms = shares.map(|share| {
        share.map(|share| {
            if alpha == 1.0 {
                log_times(share)
            } else if alpha == 0.0 {
                -share.ln()
            } else {
                (share.powf(alpha) - 1.0) / (alpha * (alpha - 1.0))
            }
        })
    });
    Ok(terms.sum::<Result<f64, _>>()? / rows)
}

/// √(2 · entropy of α = 2): standard deviation of the benefits over their mean.
///
/// # Errors
/// As [`generalized_entropy`].
pub fn coefficient_of_variation(benefits: &[f64]) -> Measured {
    Ok((2.0 * generalized_entropy(benefits, 2.0)?).sqrt())
}

/// Generalized entropy index with every benefit replaced by the mean of its group.
///
/// # Errors
/// As [`generalized_entropy`].
pub fn between_group_entropy(benefits: &[f64], group: &[u32], groups: usize, alpha: f64) -> Measured {
    let mut sums = vec![(0.0, 0.0); groups];
    for (benefit, group) in benefits.iter().zip(group) {
        let (sum, rows) = &mut sums[*group as usize];
        *sum += benefit;
        *rows += 1.0;
    }
    let means: Vec<f64> = group.iter().map(|g| sums[*g as usize].0 / sums[*g as usize].1).collect();
    generalized_entropy(&means, alpha)
}

/// Disparity of Aequitas: the rate of a group over that of the reference group, x/0 capped to 10.
///
/// # Errors
/// [`Undefined`] where a rate is, and for 0/0.
pub fn aequitas_disparity(group: Measured, reference: Measured) -> Measured {
    let (group, reference) = (group?, reference?);
    match reference == 0.0 {
        false => Ok(group / reference),
        true if group > 0.0 => Ok(10.0),
        true => Err(Undefined::DivisionByZero),
    }
}

/// Two groups as holisticai compares them; unweighted counts.
#[derive(Debug, Clone, Copy)]
pub struct TwoGroups {
    /// The first.
    pub a: Confusion,
    /// The second.
    pub b: Confusion,
}

impl TwoGroups {
    fn selection(&self) -> Result<(f64, f64), Undefined> {
        Ok((defined(&self.a, Rate::SelectionRate)?, defined(&self.b, Rate::SelectionRate)?))
    }

    /// Smaller of the two ratios of selection rates.
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`] where nobody is selected.
    pub fn four_fifths(&self) -> Measured {
        let (a, b) = self.selection()?;
        divide(a.min(b), a.max(b), Undefined::DivisionByZero)
    }

    /// Difference of selection rates in pooled standard deviations.
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`] where neither rate varies.
    pub fn cohen_d(&self) -> Measured {
        let (a, b) = self.selection()?;
        let (n_a, n_b) = (self.a.total(), self.b.total());
        let pooled = ((n_a - 1.0) * a * (1.0 - a) + (n_b - 1.0) * b * (1.0 - b)) / (n_a + n_b - 2.0);
        divide(a - b, pooled.max(0.0).sqrt(), Undefined::DivisionByZero)
    }

    /// Difference of selection rates in standard errors of equal rates.
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`] where all or none are selected.
    pub fn z_test_diff(&self) -> Measured {
        let (a, b) = self.selection()?;
        let p = (self.a.selected() + self.b.selected()) / (self.a.total() + self.b.total());
        divide(a - b, (p * (1.0 - p) * self.inverse_sizes()).sqrt(), Undefined::DivisionByZero)
    }

    /// Log ratio of selection rates in standard errors of equal rates.
    ///
    /// # Errors
    /// [`Undefined::DivisionByZero`] where a group has nobody selected, or all are.
    pub fn z_test_ratio(&self) -> Measured {
        let (a, b) = self.selection()?;
        let p = (self.a.selected() + self.b.selected()) / (self.a.total() + self.b.total());
        if a == 0.0 || b == 0.0 {
            return Err(Undefined::DivisionByZero);
        }
        divide((a / b).ln(), ((1.0 - p) / p * self.inverse_sizes()).sqrt(), Undefined::DivisionByZero)
    }

    fn inverse_sizes(&self) -> f64 {
        1.0 / self.a.total() + 1.0 / self.b.total()
    }
}
