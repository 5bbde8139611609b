//! Figures of all rows, every group and every complement under every view, for one resample; and what follows from them.
//!
//! The same code computes the figures themselves, each replicate of their bootstrap and each permutation of their null:
//! what differs is how often a row counts and to which groups it belongs.

use super::accumulate::{Sides, Times, areas, fold, sum_rows};
use super::layout::Layout;
use super::measure::{Kind, Named};
use super::read::Sums;
use super::thresholds::Thresholds;
use super::view::View;
use crate::audit::statistics::confusion::{Confusion, Convention, Rate};
use crate::audit::statistics::disparity::{Aggregates, Combine, Extent, Groups, Method};
use crate::audit::statistics::{Measured, Undefined};

/// What a figure is of; groups by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    Overall,
    Group(usize),
    Complement(usize),
    MemberMinusRest(usize),
    Minimum,
    Maximum,
    Difference,
    Ratio,
    DifferenceToOverall,
    RatioToOverall,
    Attribute,
}

impl At {
    /// The group, for figures of one.
    pub(super) fn group(self) -> Option<usize> {
        match self {
            Self::Group(group) | Self::Complement(group) | Self::MemberMinusRest(group) => Some(group),
            Self::Overall
            | Self::Minimum
            | Self::Maximum
            | Self::Difference
            | Self::Ratio
            | Self::DifferenceToOverall
            | Self::RatioToOverall
            | Self::Attribute => None,
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What {
    /// A measure of the view.
    Measure(usize),
    /// A named measure of disparity.
    Named(Named),
}

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spec {
    pub(super) view: usize,
    /// Minus that of this view.
    pub(super) versus: Option<usize>,
    pub(super) what: What,
    pub(super) at: At,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) views: &'a [View],
    pub(super) layout: &'a Layout,
    /// `[rows]`
    pub(super) weights: Option<&'a [f64]>,
    /// Groups that take part in comparisons.
    pub(super) visible: &'a [bool],
    pub(super) convention: Convention,
    /// By view of an attack: negative rows of each scope; empty elsewhere.
    pub(super) negatives: &'a [Vec<f64>],
}

/// Figures of one resample, and the room to compute the next.
#[derive(Debug, Default)]
pub(super) struct Base {
    scopes: usize,
    /// By view: `[measures, scopes]`.
    values: Vec<Vec<Measured>>,
    /// By view, of binary questions: `[scopes]`.
    confusions: Vec<Vec<Confusion>>,
    sums: Vec<f64>,
    folded: Vec<f64>,
    areas: Vec<Measured>,
    mean: Vec<Measured>,
    pooled: Vec<Measured>,
    sides: Sides,
    thresholds: Thresholds,
}

impl Base {
    /// Sums of each scope under a view as they are: `[scopes, stride]`.
    pub(super) fn fold_view(&mut self, scene: &Scene<'_>, view: &View, rows: Rows<'_>) -> &[f64] {
        let stride = view.stride();
        self.folded.clear();
        self.folded.resize((1 + 2 * scene.layout.groups) * stride, 0.0);
        for (number, set) in scene.layout.sets.iter().enumerate() {
            self.sums.resize(set.member.len() * stride, 0.0);
            sum_rows(view, rows.patterns(scene.layout, number), rows.counts, &mut self.sums);
            fold(set, scene.layout.groups, stride, &self.sums, &mut self.folded);
        }
        &self.folded
    }

    /// Computes everything for these multiplicities and patterns.
    pub(super) fn compute(&mut self, scene: &Scene<'_>, rows: Rows<'_>) {
        let scopes = 1 + 2 * scene.layout.groups;
        self.scopes = scopes;
        self.values.resize(scene.views.len(), Vec::new());
        self.confusions.resize(scene.views.len(), Vec::new());
        for (number, view) in scene.views.iter().enumerate() {
            self.compute_areas(scene, view, rows);
            let stride = view.stride();
            self.fold_view(scene, view, rows);
            self.compute_thresholds(scene, view, rows);
            let binary = view.binning.is_some() && view.classes.is_none();
            let reach = |scope: usize| scene.negatives.get(number).and_then(|n| n.get(scope)).copied().unwrap_or(0.0);
            let (values, confusions) = (&mut self.values[number], &mut self.confusions[number]);
            values.clear();
            values.resize(view.measures.len() * scopes, Err(Undefined::NoRows));
            confusions.clear();
            for scope in 0..scopes {
                let sums = Sums { view, sums: &self.folded[scope * stride..(scope + 1) * stride] };
                let confusion = sums.confusion();
                if binary {
                    confusions.push(confusion);
                }
                let area = |of: &[Measured]| of.get(scope).copied().unwrap_or(Err(Undefined::NoRows));
                let (area, pooled) = (area(&self.areas), area(&self.pooled));
                for (i, measure) in view.measures.iter().enumerate() {
                    values[i * scopes + scope] = match measure.kind {
                        Kind::Rate(rate) => confusion.rate(rate, scene.convention),
                        Kind::PooledAuc => pooled,
                        Kind::Curve(point) => self.thresholds.figure(point, scope, &view.rates, reach),
                        Kind::MeanScore
                        | Kind::LogLoss
                        | Kind::Brier
                        | Kind::Auc
                        | Kind::Ece(..)
                        | Kind::Mce(_)
                        | Kind::Overconfidence(_)
                        | Kind::ClassAccuracy
                        | Kind::ClassBalanced
                        | Kind::Macro(..)
                        | Kind::Micro(_)
                        | Kind::Ratio(..) => sums.read(measure.kind, area, scene.convention),
                    };
                }
            }
        }
    }

    /// After [`Self::fold_view`] of the same rows.
    fn compute_thresholds(&mut self, scene: &Scene<'_>, view: &View, rows: Rows<'_>) {
        let Some(rank) = view.ranks.first().filter(|_| !view.rates.is_empty()) else { return };
        let stride = view.stride();
        let total = |sums: &[f64]| {
            let confusion = Sums { view, sums }.confusion();
            (confusion.positives(), confusion.negatives())
        };
        self.thresholds.begin(self.folded.chunks_exact(stride.max(1)).map(total), view.rates.len());
        let times = Times { counts: rows.counts, weights: scene.weights };
        for (number, set) in scene.layout.sets.iter().enumerate() {
            self.thresholds.pass(rank, (set, rows.patterns(scene.layout, number)), times, &view.rates);
        }
    }

    fn compute_areas(&mut self, scene: &Scene<'_>, view: &View, rows: Rows<'_>) {
        let times = Times { counts: rows.counts, weights: scene.weights };
        let scopes = 1 + 2 * scene.layout.groups;
        self.mean.clear();
        for rank in &view.ranks {
            self.areas.clear();
            self.areas.resize(scopes, Err(Undefined::NoRows));
            for (number, set) in scene.layout.sets.iter().enumerate() {
                let patterns = rows.patterns(scene.layout, number);
                areas(rank, (set, patterns), times, &mut self.sides, &mut self.areas);
            }
            // Of several classes the mean; a class without rows leaves none.
            let share = 1.0 / view.ranks.len() as f64;
            if self.mean.is_empty() {
                self.mean.resize(scopes, Ok(0.0));
            }
            for (mean, area) in self.mean.iter_mut().zip(&self.areas) {
                *mean = mean.and_then(|mean| Ok(mean + share * (*area)?));
            }
        }
        std::mem::swap(&mut self.areas, &mut self.mean);
        self.pooled.clear();
        if let Some(rank) = &view.pooled {
            self.pooled.resize(scopes, Err(Undefined::NoRows));
            for (number, set) in scene.layout.sets.iter().enumerate() {
                let patterns = rows.patterns(scene.layout, number);
                areas(rank, (set, patterns), times, &mut self.sides, &mut self.pooled);
            }
        }
    }

    fn value(&self, view: usize, measure: usize, scope: usize) -> Measured {
        self.values[view][measure * self.scopes + scope]
    }

    fn groups(&self) -> usize {
        (self.scopes - 1) / 2
    }

    /// The figure.
    pub(super) fn figure(&self, scene: &Scene<'_>, spec: &Spec) -> Measured {
        let first = self.of_view(scene, spec.view, spec.what, spec.at)?;
        match spec.versus {
            Some(versus) => Ok(first - self.of_view(scene, versus, spec.what, spec.at)?),
            None => Ok(first),
        }
    }

    fn of_view(&self, scene: &Scene<'_>, view: usize, what: What, at: At) -> Measured {
        let measure = match what {
            What::Measure(measure) => measure,
            What::Named(named) => return self.named(scene, view, named, at),
        };
        let value = |scope| self.value(view, measure, scope);
        let aggregates = || {
            let by_group: Vec<Measured> =
                (0..self.groups()).filter(|g| scene.visible[*g]).map(|g| value(1 + g)).collect();
            Aggregates::of(value(0), &by_group, scene.convention)
        };
        match at {
            At::Overall => value(0),
            At::Group(group) => value(1 + group),
            At::Complement(group) => value(1 + self.groups() + group),
            At::MemberMinusRest(group) => Ok(value(1 + group)? - value(1 + self.groups() + group)?),
            At::Minimum => aggregates().group_min,
            At::Maximum => aggregates().group_max,
            At::Difference => aggregates().difference_between_groups,
            At::Ratio => aggregates().ratio_between_groups,
            At::DifferenceToOverall => aggregates().difference_to_overall,
            At::RatioToOverall => aggregates().ratio_to_overall,
            At::Attribute => Err(Undefined::OneGroup),
        }
    }

    fn named(&self, scene: &Scene<'_>, view: usize, named: Named, at: At) -> Measured {
        let confusions = &self.confusions[view];
        let visible: Vec<Confusion> =
            (0..self.groups()).filter(|g| scene.visible[*g]).map(|g| confusions[1 + g]).collect();
        let groups = Groups { by_group: &visible, overall: &confusions[0], convention: scene.convention };
        let (difference, ratio, between) = (Extent::Difference, Extent::Ratio, Method::BetweenGroups);
        match named {
            Named::DemographicParityDifference => groups.demographic_parity(difference, between),
            Named::DemographicParityRatio => groups.demographic_parity(ratio, between),
            Named::EqualizedOddsDifference => groups.equalized_odds(difference, between, Combine::WorstCase),
            Named::EqualizedOddsRatio => groups.equalized_odds(ratio, between, Combine::WorstCase),
            Named::EqualizedOddsDifferenceMean => groups.equalized_odds(difference, between, Combine::Mean),
            Named::EqualizedOddsRatioMean => groups.equalized_odds(ratio, between, Combine::Mean),
            Named::EqualOpportunityDifference => groups.equal_opportunity(difference, between),
            Named::EqualOpportunityRatio => groups.equal_opportunity(ratio, between),
            Named::PredictiveParityDifference => groups.predictive_parity(difference, between),
            Named::ImpactRatio => match at.group() {
                Some(group) => {
                    let rate = confusions[1 + group].rate(Rate::SelectionRate, scene.convention)?;
                    let highest = groups.rate(Rate::SelectionRate).group_max?;
                    if highest > 0.0 { Ok(rate / highest) } else { Err(Undefined::DivisionByZero) }
                }
                None => groups.demographic_parity(ratio, between),
            },
        }
    }
}

/// How often rows count and where they belong in one resample.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rows<'a> {
    /// `[rows]`; none: each once.
    pub(super) counts: Option<&'a [u16]>,
    /// By set: `[rows]`; none: as they are.
    pub(super) patterns: Option<&'a [Vec<u16>]>,
}

impl<'a> Rows<'a> {
    fn patterns(&self, layout: &'a Layout, set: usize) -> &'a [u16] {
        self.patterns.map_or(&layout.sets[set].patterns, |patterns| &patterns[set])
    }
}
