//! Comparing groups: smallest, largest, difference and ratio, and the measures of group fairness built on them.
//!
//! Takes figures that were computed elsewhere. A group whose figure is undefined is left out and counted; fewer than
//! two groups are no comparison, which is not the same as no difference. [`Convention::Fairlearn`] gives what fairlearn
//! prints instead. Differences and ratios of rates lie in [0, 1].
//! After: fairlearn 0.15 `MetricFrame.difference`, `.ratio`, `demographic_parity_*`, `equal_opportunity_*`,
//! `equalized_odds_*`.

use super::confusion::{Confusion, Convention, Rate};
use super::inputs::{InputError, option};
use super::{Measured, Undefined};

/// What a group is compared with (fairlearn's `method`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The best with the worst group.
    BetweenGroups,
    /// Every group with all rows together.
    ToOverall,
}

impl Method {
    /// Finds it by fairlearn's name.
    ///
    /// # Errors
    /// [`InputError::UnknownOption`].
    pub fn named(name: &str) -> Result<Self, InputError> {
        option("method", name, &[("between_groups", Self::BetweenGroups), ("to_overall", Self::ToOverall)])
    }
}

/// How the two rates of equalized odds become one figure (fairlearn's `agg`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// The worse of the two.
    WorstCase,
    /// Their mean.
    Mean,
}

impl Combine {
    /// Finds it by fairlearn's name.
    ///
    /// # Errors
    /// [`InputError::UnknownOption`].
    pub fn named(name: &str) -> Result<Self, InputError> {
        option("agg", name, &[("worst_case", Self::WorstCase), ("mean", Self::Mean)])
    }
}

/// Difference or ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// 0 is equal.
    Difference,
    /// 1 is equal.
    Ratio,
}

/// One figure over all groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aggregates {
    /// Of all rows together.
    pub overall: Measured,
    /// Smallest of a group.
    pub group_min: Measured,
    /// Largest of a group.
    pub group_max: Measured,
    /// Largest minus smallest.
    pub difference_between_groups: Measured,
    /// Largest distance of a group from `overall`.
    pub difference_to_overall: Measured,
    /// Smallest over largest.
    pub ratio_between_groups: Measured,
    /// Smallest ratio of a group to `overall`, turned round where it is above 1.
    pub ratio_to_overall: Measured,
    /// Groups that have the figure.
    pub groups_defined: usize,
    /// Groups that have none, and are left out.
    pub groups_undefined: usize,
}

impl Aggregates {
    /// Compares the figures of groups.
    #[must_use]
    pub fn of(overall: Measured, by_group: &[Measured], convention: Convention) -> Self {
        let defined: Vec<f64> = by_group.iter().filter_map(|figure| figure.ok()).collect();
        let why = by_group.iter().find_map(|figure| figure.err()).unwrap_or(Undefined::NoRows);
        let group_min = defined.iter().copied().reduce(f64::min).ok_or(why);
        let group_max = defined.iter().copied().reduce(f64::max).ok_or(why);
        let enough = match (convention, defined.len()) {
            (Convention::Defined, 0 | 1) => Err(Undefined::OneGroup),
            (Convention::Defined, _) | (Convention::Fairlearn, _) => Ok(()),
        };
        let compare = |figure: &dyn Fn(f64, f64, f64) -> Measured| {
            enough.and_then(|()| figure(group_min?, group_max?, overall.unwrap_or(f64::NAN)))
        };
        let to_overall = |one: &dyn Fn(f64, f64) -> Measured, worse: fn(f64, f64) -> f64| {
            enough?;
            let overall = overall?;
            let each = defined.iter().filter_map(|figure| one(*figure, overall).ok());
            each.reduce(worse).ok_or(Undefined::DivisionByZero)
        };
        Self {
            overall,
            group_min,
            group_max,
            difference_between_groups: compare(&|min, max, _| Ok(max - min)),
            difference_to_overall: to_overall(&|figure, overall| Ok((figure - overall).abs()), f64::max),
            ratio_between_groups: compare(&|min, max, _| ratio(min, max)),
            ratio_to_overall: to_overall(&|figure, overall| ratio(figure.min(overall), figure.max(overall)), f64::min),
            groups_defined: defined.len(),
            groups_undefined: by_group.len() - defined.len(),
        }
    }

    /// The difference or ratio by a method.
    ///
    /// # Errors
    /// As the field.
    pub fn extent(&self, extent: Extent, method: Method) -> Measured {
        match (extent, method) {
            (Extent::Difference, Method::BetweenGroups) => self.difference_between_groups,
            (Extent::Difference, Method::ToOverall) => self.difference_to_overall,
            (Extent::Ratio, Method::BetweenGroups) => self.ratio_between_groups,
            (Extent::Ratio, Method::ToOverall) => self.ratio_to_overall,
        }
    }
}

/// The smaller over the larger, of figures that are not negative.
fn ratio(smaller: f64, larger: f64) -> Measured {
    if larger == 0.0 { Err(Undefined::DivisionByZero) } else { Ok(smaller / larger) }
}

/// Confusion matrices of all groups, read by one convention.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    /// Of each group.
    pub by_group: &'a [Confusion],
    /// Of all rows together; with overlapping groups not their sum.
    pub overall: &'a Confusion,
    /// What an empty denominator gives.
    pub convention: Convention,
}

impl Groups<'_> {
    /// A rate over the groups that have rows.
    #[must_use]
    pub fn rate(&self, rate: Rate) -> Aggregates {
        let by_group: Vec<Measured> = self.by_group.iter().map(|c| c.rate(rate, self.convention)).collect();
        Aggregates::of(self.overall.rate(rate, self.convention), &by_group, self.convention)
    }

    /// Selection rates (statistical parity).
    ///
    /// # Errors
    /// [`Undefined`], see [`Aggregates`].
    pub fn demographic_parity(&self, extent: Extent, method: Method) -> Measured {
        self.rate(Rate::SelectionRate).extent(extent, method)
    }

    /// True positive rates.
    ///
    /// # Errors
    /// [`Undefined`], see [`Aggregates`].
    pub fn equal_opportunity(&self, extent: Extent, method: Method) -> Measured {
        self.rate(Rate::TruePositive).extent(extent, method)
    }

    /// Precisions: does "selected" mean the same in every group?
    ///
    /// # Errors
    /// [`Undefined`], see [`Aggregates`].
    pub fn predictive_parity(&self, extent: Extent, method: Method) -> Measured {
        self.rate(Rate::Precision).extent(extent, method)
    }

    /// True and false positive rates.
    ///
    /// Where only one of the two can be compared, the worst case is that one and there is no mean.
    ///
    /// # Errors
    /// [`Undefined`], see [`Aggregates`].
    pub fn equalized_odds(&self, extent: Extent, method: Method, combine: Combine) -> Measured {
        let tpr = self.rate(Rate::TruePositive).extent(extent, method);
        let fpr = self.rate(Rate::FalsePositive).extent(extent, method);
        let worse = |a: f64, b: f64| match extent {
            Extent::Difference => a.max(b),
            Extent::Ratio => a.min(b),
        };
        match (tpr, fpr, combine, self.convention) {
            (Ok(tpr), Ok(fpr), Combine::WorstCase, _) => Ok(worse(tpr, fpr)),
            (Ok(tpr), Ok(fpr), Combine::Mean, _) => Ok(f64::midpoint(tpr, fpr)),
            // pandas leaves NaN out of a mean.
            (Ok(one), Err(_), Combine::Mean, Convention::Fairlearn)
            | (Err(_), Ok(one), Combine::Mean, Convention::Fairlearn) => Ok(one),
            // Python's min and max keep the first of the two if the second is NaN, and NaN if the first is.
            (Ok(one), Err(_), Combine::WorstCase, Convention::Defined | Convention::Fairlearn)
            | (Err(_), Ok(one), Combine::WorstCase, Convention::Defined) => Ok(one),
            (Err(why), _, _, _) | (_, Err(why), _, _) => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Measured = Err(Undefined::NoPositives);

    #[test]
    fn one_group_is_no_comparison() {
        let alone = Aggregates::of(Ok(0.4), &[Ok(0.4), NONE], Convention::Defined);
        assert_eq!(alone.difference_between_groups, Err(Undefined::OneGroup));
        assert_eq!(alone.ratio_to_overall, Err(Undefined::OneGroup));
        assert_eq!((alone.groups_defined, alone.groups_undefined), (1, 1));
        let fairlearn = Aggregates::of(Ok(0.4), &[Ok(0.4)], Convention::Fairlearn);
        assert_eq!(fairlearn.difference_between_groups, Ok(0.0));
        assert_eq!(fairlearn.ratio_between_groups, Ok(1.0));
    }

    #[test]
    fn nobody_selected_is_no_ratio() {
        let none = Aggregates::of(Ok(0.0), &[Ok(0.0), Ok(0.0)], Convention::Defined);
        assert_eq!(none.difference_between_groups, Ok(0.0));
        assert_eq!(none.ratio_between_groups, Err(Undefined::DivisionByZero));
        assert_eq!(none.ratio_to_overall, Err(Undefined::DivisionByZero));
    }

    proptest! {
        #[test]
        fn the_order_of_groups_and_undefined_ones_change_nothing(mut figures in prop::collection::vec(0.0..1.0, 2..8)) {
            let of = |figures: &[f64], extra: &[Measured]| {
                let all: Vec<Measured> = figures.iter().map(|f| Ok(*f)).chain(extra.iter().copied()).collect();
                Aggregates::of(Ok(0.5), &all, Convention::Defined)
            };
            let before = of(&figures, &[]);
            figures.reverse();
            let after = of(&figures, &[NONE, NONE]);
            prop_assert_eq!(before.difference_between_groups, after.difference_between_groups);
            prop_assert_eq!(before.ratio_to_overall, after.ratio_to_overall);
            prop_assert_eq!(after.groups_undefined, 2);
            let ratio = before.ratio_between_groups.unwrap();
            prop_assert!((0.0..=1.0).contains(&ratio));
            prop_assert!(before.difference_to_overall.unwrap() <= 1.0);
        }
    }
}
