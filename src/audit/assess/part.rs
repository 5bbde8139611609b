//! One attribute over all rows or one stratum, one question: its figures with intervals and tests.
//!
//! The figures are listed first; then the same list is computed on the rows, on each resample and on each permutation.

use super::base::{At, Base, Rows, Scene, Spec, What};
use super::comparison;
use super::figures::{Figures, Found, Place};
use super::layout::Layout;
use super::measure::{Kind, Named};
use super::read::{Support, Supports};
use super::resample::{Permuter, Replicates, Stop, bootstrap, left_out, permutations};
use super::view::View;
use super::{AssessError, accumulate};
use crate::audit::report::{Interval, Test};
use crate::audit::settings::{BootstrapInterval, Statistics};
use crate::audit::statistics::Measured;
use crate::audit::statistics::bootstrap::Distribution;
use crate::audit::statistics::confusion::{Convention, Rate};
use crate::audit::statistics::distributions::normal_quantile;
use crate::audit::statistics::intervals::{Proportion, proportion};
use crate::audit::statistics::permutation::Tails;
use crate::audit::statistics::proportions::Difference;

/// Figures of replicates that are kept at once, in numbers.
const KEPT: usize = 8 << 20;

/// What is assessed.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) views: &'a [View],
    /// How many views, from the first, are of the predictions as they came; the others are after temperature scaling.
    pub(super) models: usize,
    pub(super) named: &'a [(&'static str, Named)],
    pub(super) layout: &'a Layout,
    pub(super) suppressed: &'a [bool],
    /// Whether the rows are a stratum that is held back as a whole.
    pub(super) hidden: bool,
    pub(super) attribute: Option<(usize, &'a str)>,
    /// `[groups]`
    pub(super) values: Vec<Option<&'a str>>,
    pub(super) control: Option<(usize, (String, Option<String>))>,
    pub(super) class: Option<(usize, &'a str)>,
    pub(super) weights: Option<&'a [f64]>,
    pub(super) clusters: Option<&'a [u32]>,
    /// Joint strata of controls, within which groups are rearranged.
    pub(super) strata: Option<&'a [u32]>,
    /// Whether figures of all rows belong to it; they are the same for every attribute.
    pub(super) overall: bool,
    pub(super) convention: Convention,
    pub(super) statistics: &'a Statistics,
    pub(super) seed: u64,
}

/// What resampling says of one figure.
#[derive(Debug, Clone, Default)]
pub(super) struct Resampled {
    interval: Option<Interval>,
    pub(super) error: Option<f64>,
    /// Hits and rows of a share where every row is one piece of evidence: there are neither weights nor clusters.
    pub(super) counts: Option<(u64, u64)>,
    test: Option<Test>,
    /// p of the test that it is smaller than the margin, where that is asked.
    equivalence: Option<f64>,
}

impl<'a> Part<'a> {
    /// Pairs of views that are compared: the second minus the first.
    pub(super) fn pairs(&self) -> Vec<(usize, usize)> {
        let all = self.models <= 4;
        let of = |views: std::ops::Range<usize>| {
            let start = views.start;
            views.flat_map(move |b| (start..b).map(move |a| (a, b)))
        };
        let kinds = [0..self.models, self.models..self.views.len()];
        kinds.into_iter().flat_map(of).filter(|(a, _)| all || self.views[*a].model == 0).collect()
    }

    fn specs(&self) -> Vec<Spec> {
        let groups = 0..self.layout.groups;
        let compared = self.attribute.is_some();
        let mut specs = Vec::new();
        for (view, v) in self.views.iter().enumerate() {
            for (measure, m) in v.measures.iter().enumerate() {
                let mut add = |at| specs.push(Spec { view, versus: None, what: What::Measure(measure), at });
                if self.overall {
                    add(At::Overall);
                }
                // A threshold of all rows is told of each group, and how far they are apart.
                if matches!(m.kind, Kind::Curve(point) if point.is_global()) {
                    groups.clone().map(At::Group).chain(compared.then_some(At::Difference)).for_each(add);
                    continue;
                }
                for group in groups.clone() {
                    [At::Group(group), At::Complement(group), At::MemberMinusRest(group)]
                        .into_iter()
                        .for_each(&mut add);
                }
                if compared {
                    [At::Minimum, At::Maximum, At::Difference, At::DifferenceToOverall].into_iter().for_each(&mut add);
                    if m.ratio {
                        [At::Ratio, At::RatioToOverall].into_iter().for_each(&mut add);
                    }
                }
            }
            if compared && view < self.models {
                for (_, named) in self.named {
                    let spec = |at| Spec { view, versus: None, what: What::Named(*named), at };
                    if *named == Named::ImpactRatio {
                        specs.extend(groups.clone().map(|group| spec(At::Group(group))));
                    }
                    specs.push(spec(At::Attribute));
                }
            }
        }
        for (first, second) in self.pairs() {
            for measure in 0..self.views[second].measures.len() {
                let spec = |at| Spec { view: second, versus: Some(first), what: What::Measure(measure), at };
                if self.overall {
                    specs.push(spec(At::Overall));
                }
                specs.extend(groups.clone().map(|group| spec(At::Group(group))));
                if compared {
                    specs.push(spec(At::Difference));
                }
            }
            if compared && second < self.models {
                let named = self.named.iter().filter(|(_, named)| named.is_difference());
                let spec = |what| Spec { view: second, versus: Some(first), what, at: At::Attribute };
                specs.extend(named.map(|(_, named)| spec(What::Named(*named))));
            }
        }
        specs
    }

    pub(super) fn scene<'s>(&'s self, visible: &'s [bool], negatives: &'s [Vec<f64>]) -> Scene<'s> {
        let (views, layout, weights, convention) = (self.views, self.layout, self.weights, self.convention);
        Scene { views, layout, weights, visible, convention, negatives }
    }

    /// Negative rows of each scope, of views of attacks.
    fn negatives(&self, supports: &[Vec<Supports<'_>>]) -> Vec<Vec<f64>> {
        let of = |(view, scopes): (&View, &Vec<Supports<'_>>)| match view.rates.is_empty() {
            true => Vec::new(),
            false => scopes.iter().map(|supports| supports.rate(Rate::FalsePositive).n as f64).collect(),
        };
        self.views.iter().zip(supports).map(of).collect()
    }

    pub(super) fn is_suppressed(&self, at: At) -> bool {
        at.group().map_or(self.hidden && at == At::Overall, |group| self.suppressed[group])
    }

    /// Computes everything and adds it to the figures.
    pub(super) fn assess(&self, figures: &mut Figures, stop: Stop<'_>) -> Result<(), AssessError> {
        if self.views.is_empty() {
            return Ok(());
        }
        let visible: Vec<bool> = self.suppressed.iter().map(|suppressed| !suppressed).collect();
        let supports = self.supports();
        let negatives = self.negatives(&supports);
        let scene = self.scene(&visible, &negatives);
        let specs = self.specs();
        let mut base = Base::default();
        base.compute(&scene, Rows::default());
        let values: Vec<Measured> = specs.iter().map(|spec| base.figure(&scene, spec)).collect();
        let mut resampled = vec![Resampled::default(); specs.len()];
        self.intervals(&scene, &specs, (&values, &supports), &mut resampled, stop)?;
        self.tests(&scene, &specs, &values, &mut resampled, stop)?;
        comparison::add_tests(self, &specs, |i, test| resampled[i].test = Some(test));
        let equivalences: Vec<Option<f64>> =
            (0..specs.len()).map(|i| comparison::equivalence(self, (&specs, i), &values, &resampled)).collect();
        resampled.iter_mut().zip(equivalences).for_each(|(of, p)| of.equivalence = p);
        self.publish(&specs, &values, &supports, resampled, figures);
        Ok(())
    }

    /// By view, by scope.
    pub(super) fn supports(&self) -> Vec<Vec<Supports<'a>>> {
        self.views.iter().map(|view| supports(view, self.layout, self.weights)).collect()
    }

    fn intervals(
        &self,
        scene: &Scene<'_>,
        specs: &[Spec],
        (values, supports): (&[Measured], &[Vec<Supports<'_>>]),
        resampled: &mut [Resampled],
        stop: Stop<'_>,
    ) -> Result<(), AssessError> {
        let level = self.statistics.level;
        let mut by_resampling = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            let Ok(value) = values[i] else { continue };
            let of_rows = matches!(spec.at, At::Overall | At::Group(_) | At::Complement(_)) && spec.versus.is_none();
            let share = match spec.what {
                What::Measure(m) => of_rows && self.views[spec.view].measures[m].kind.is_share(),
                What::Named(_) => false,
            };
            if self.is_suppressed(spec.at) {
                continue;
            }
            let exact = match spec.what {
                What::Measure(m) if of_rows && self.clusters.is_none() => {
                    self.views[spec.view].measures[m].kind.exact()
                }
                What::Measure(_) | What::Named(_) => None,
            };
            if let Some(two) = comparison::two_proportions(specs, i, resampled) {
                let newcombe = two.difference(level, Difference::Newcombe).ok();
                resampled[i].interval = newcombe.map(|interval| Interval {
                    method: "newcombe".to_owned(),
                    level,
                    low: interval.low.clamp(-1.0, value),
                    high: interval.high.clamp(value, 1.0),
                });
                resampled[i].error = two.standard_error().ok();
            } else if let Some(rate) = exact {
                resampled[i].interval = self.exact(value, spec, rate, supports);
            } else if share && self.clusters.is_none() {
                let support = self.support(spec, supports).0;
                let rows = support.effective();
                if self.weights.is_none() {
                    resampled[i].counts = Some(((value * rows).round() as u64, support.n));
                }
                let hits = (value * rows).clamp(0.0, rows);
                let interval = proportion(hits, rows, level, Proportion::Wilson).ok();
                resampled[i].interval = interval.map(|interval| Interval {
                    method: "wilson".to_owned(),
                    level,
                    low: interval.low.clamp(0.0, value),
                    high: interval.high.clamp(value, 1.0),
                });
            } else {
                by_resampling.push(i);
            }
        }
        let resamples = self.statistics.resamples;
        if resamples == 0 {
            return Ok(());
        }
        for part in by_resampling.chunks((KEPT / resamples).max(1)) {
            let chosen: Vec<Spec> = part.iter().map(|i| specs[*i]).collect();
            let drawn = bootstrap(scene, self.clusters, (resamples, self.seed), &chosen, stop)?;
            let without = match self.statistics.interval {
                BootstrapInterval::Percentile => Replicates::default(),
                BootstrapInterval::Bca => left_out(scene, self.clusters, &chosen, stop)?,
            };
            for (figure, i) in part.iter().enumerate() {
                let Ok(value) = values[*i] else { continue };
                let (interval, error) =
                    interval(value, drawn.figure(figure), without.figure(figure).collect(), self.statistics);
                (resampled[*i].interval, resampled[*i].error) = (interval, error);
            }
        }
        Ok(())
    }

    /// Clopper and Pearson's interval of a share of the rows of one label.
    fn exact(&self, value: f64, spec: &Spec, rate: Rate, supports: &[Vec<Supports<'_>>]) -> Option<Interval> {
        let scope = match spec.at {
            At::Group(group) => 1 + group,
            At::Complement(group) => 1 + self.layout.groups + group,
            At::Overall
            | At::MemberMinusRest(_)
            | At::Minimum
            | At::Maximum
            | At::Difference
            | At::Ratio
            | At::DifferenceToOverall
            | At::RatioToOverall
            | At::Attribute => 0,
        };
        let n = supports[spec.view][scope].rate(rate).n as f64;
        let interval = proportion((value * n).round(), n, self.statistics.level, Proportion::ClopperPearson).ok()?;
        let (level, method) = (self.statistics.level, "clopper_pearson".to_owned());
        Some(Interval { method, level, low: interval.low, high: interval.high })
    }

    /// Whether groups are rearranged for it.
    fn is_tested(&self, spec: &Spec) -> bool {
        if spec.versus.is_some() || spec.view >= self.models || self.is_suppressed(spec.at) {
            return false;
        }
        match spec.what {
            What::Measure(measure) => {
                matches!(spec.at, At::Difference | At::MemberMinusRest(_))
                    && self.views[spec.view].measures[measure].tested
            }
            What::Named(named) => named.is_difference() && spec.at == At::Attribute,
        }
    }

    fn tests(
        &self,
        scene: &Scene<'_>,
        specs: &[Spec],
        values: &[Measured],
        resampled: &mut [Resampled],
        stop: Stop<'_>,
    ) -> Result<(), AssessError> {
        let count = self.statistics.permutations;
        let tested: Vec<usize> =
            (0..specs.len()).filter(|i| values[*i].is_ok() && self.is_tested(&specs[*i])).collect();
        if count == 0 || tested.is_empty() {
            return Ok(());
        }
        let permuter = Permuter::new(self.layout, self.clusters, self.strata, count);
        for part in tested.chunks((KEPT / count).max(1)) {
            let chosen: Vec<Spec> = part.iter().map(|i| specs[*i]).collect();
            let null = permutations(scene, &permuter, self.seed, &chosen, stop)?;
            for (figure, i) in part.iter().enumerate() {
                let Ok(value) = values[*i] else { continue };
                let null = (null.figure(figure).collect(), permuter.is_exact());
                resampled[*i].test = Some(permutation_test(value, null, resampled[*i].error));
            }
        }
        Ok(())
    }

    /// What the figure stands on, and how many groups have a value of how many.
    fn support(&self, spec: &Spec, supports: &[Vec<Supports<'_>>]) -> (Support, Option<(u64, u64)>) {
        let of = |view: usize, scope: usize| -> Support {
            let supports = &supports[view][scope];
            match spec.what {
                What::Measure(measure) => supports.of(self.views[view].measures[measure].kind),
                What::Named(named) => smallest(named.rates().iter().map(|rate| supports.rate(*rate))),
            }
        };
        let of = |scope: usize| smallest([spec.view].into_iter().chain(spec.versus).map(|view| of(view, scope)));
        let groups = self.layout.groups;
        match spec.at {
            At::Overall => (of(0), None),
            At::Group(group) => (of(1 + group), None),
            At::Complement(group) => (of(1 + groups + group), None),
            At::MemberMinusRest(group) => (smallest([of(1 + group), of(1 + groups + group)].into_iter()), None),
            At::Minimum
            | At::Maximum
            | At::Difference
            | At::Ratio
            | At::DifferenceToOverall
            | At::RatioToOverall
            | At::Attribute => {
                let with = (0..groups).filter(|group| !self.suppressed[*group]).map(|group| of(1 + group));
                let with: Vec<Support> = with.filter(|support| support.n > 0 && support.weight > 0.0).collect();
                (smallest(with.iter().copied()), Some((with.len() as u64, groups as u64)))
            }
        }
    }

    fn publish(
        &self,
        specs: &[Spec],
        values: &[Measured],
        supports: &[Vec<Supports<'_>>],
        resampled: Vec<Resampled>,
        figures: &mut Figures,
    ) {
        // Tests of gaps by view and rate, for named measures that are the same number.
        let mut gaps = Vec::new();
        for (i, ((spec, value), resampled)) in specs.iter().zip(values).zip(resampled).enumerate() {
            let view = &self.views[spec.view];
            let (support, groups) = self.support(spec, supports);
            let measure = match spec.what {
                What::Measure(measure) => view.measures[measure].name.as_str(),
                What::Named(named) => self.named.iter().find(|(_, n)| *n == named).map_or("", |(name, _)| name),
            };
            let place = Place {
                model: view.model,
                versus: spec.versus.map(|versus| self.views[versus].model),
                attribute: if spec.at == At::Overall { None } else { self.attribute },
                at: spec.at,
                group: spec.at.group().and_then(|group| self.values[group]),
                control: self.control.clone(),
                measure,
                class: self.class,
            };
            let found = Found {
                value: *value,
                support,
                suppressed: self.is_suppressed(spec.at),
                groups,
                extremes: comparison::extremes(self, (specs, i), values),
                interval: resampled.interval,
                test: resampled.test,
            };
            if let Some(p) = resampled.equivalence {
                let found = Found { test: Some(comparison::test("tost", p)), ..found.clone() };
                let measure = format!("{measure}{}", comparison::EQUIVALENCE);
                figures.add(&Place { measure: &measure, ..place.clone() }, found);
            }
            let same = match spec.what {
                What::Named(named) => named.same_as(),
                What::Measure(_) => None,
            };
            let shared =
                gaps.iter().find(|(view, kind, _)| *view == spec.view && same == Some(*kind) && spec.versus.is_none());
            if let Some((_, _, test)) = shared {
                figures.add_with_test(&place, found, *test);
                continue;
            }
            let test = figures.add(&place, found);
            if let (What::Measure(measure), At::Difference, None) = (spec.what, spec.at, spec.versus)
                && let super::measure::Kind::Rate(rate) = view.measures[measure].kind
            {
                gaps.push((spec.view, rate, test));
            }
        }
    }
}

fn smallest(supports: impl Iterator<Item = Support>) -> Support {
    supports.reduce(|a, b| if b.n < a.n { b } else { a }).unwrap_or_default()
}

/// Rows, weights and squared weights by scope and cell.
fn supports<'a>(view: &'a View, layout: &Layout, weights: Option<&[f64]>) -> Vec<Supports<'a>> {
    let stride = view.keys.len() * 3;
    let mut folded = vec![0.0; (1 + 2 * layout.groups) * stride];
    for set in &layout.sets {
        let mut sums = vec![0.0; set.member.len() * stride];
        for (row, (pattern, cell)) in set.patterns.iter().zip(&view.cells).enumerate() {
            let at = *pattern as usize * stride + *cell as usize * 3;
            let weight = weights.map_or(1.0, |weights| weights[row]);
            sums[at] += 1.0;
            sums[at + 1] += weight;
            sums[at + 2] += weight * weight;
        }
        accumulate::fold(set, layout.groups, stride, &sums, &mut folded);
    }
    let support = |s: &[f64]| Support { n: s[0] as u64, weight: s[1], squares: s[2] };
    let scope = |s: &[f64]| Supports { view, cells: s.chunks_exact(3).map(support).collect() };
    folded.chunks_exact(stride.max(1)).map(scope).collect()
}

/// Interval and standard error of a figure from its replicates; none where half of them or more lack the figure.
pub(super) fn interval(
    value: f64,
    replicates: impl Iterator<Item = f64>,
    left_out: Vec<f64>,
    statistics: &Statistics,
) -> (Option<Interval>, Option<f64>) {
    let measured = |v: f64| if v.is_finite() { Ok(v) } else { Err(super::NO_ROWS) };
    let drawn = Distribution::new(replicates.map(measured));
    if drawn.defined() <= drawn.undefined || drawn.defined() < 2 {
        return (None, None);
    }
    let level = statistics.level;
    let defined: Vec<f64> = left_out.into_iter().filter(|v| v.is_finite()).collect();
    let corrected = match statistics.interval {
        BootstrapInterval::Percentile => None,
        BootstrapInterval::Bca if defined.len() < 2 => None,
        BootstrapInterval::Bca => drawn.bca(value, &[defined], level).ok().map(|interval| ("bca", interval)),
    };
    let chosen = corrected.or_else(|| drawn.percentile(level).ok().map(|interval| ("percentile", interval)));
    let interval = chosen.map(|(method, i)| Interval { method: method.to_owned(), level, low: i.low, high: i.high });
    (interval, drawn.standard_error().ok().filter(|error| error.is_finite()))
}

/// A statistic of which values far from 0 are extreme, among those of permutations (and whether these are all there are).
pub(super) fn permutation_test(value: f64, (null, exact): (Vec<f64>, bool), error: Option<f64>) -> Test {
    let p = Tails::of(value, null.iter().copied(), exact).two_sided_absolute;
    let measured = |v: f64| if v.is_finite() { Ok(v.abs()) } else { Err(super::NO_ROWS) };
    let drawn = Distribution::new(null.into_iter().map(measured));
    let bound = drawn.quantile(0.95).ok();
    // The gap whose estimate lies above the bound in 80 % of samples, its error being normal.
    let error = error.or_else(|| drawn.standard_error().ok());
    Test {
        name: "permutation".to_owned(),
        p,
        adjusted: None,
        null: bound,
        detectable: bound.zip(error).map(|(bound, error)| bound + normal_quantile(0.8) * error),
    }
}
