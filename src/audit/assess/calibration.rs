//! Calibration beyond what resampling sums: reliability diagrams, smooth ECE, the ECE of a calibrated model, temperature.
//!
//! These need the confidences themselves, so they are computed once; the intervals of smooth ECE are in `smooth`. The null
//! of ECE takes rows as independent.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::base::{At, Base, Rows};
use super::figures::{Figures, Found, Place};
use super::measure::{Bins, Form, Kind};
use super::part::Part;
use super::read::{Sums, Support};
use super::resample::Stop;
use super::view::View;
use super::{AssessError, smooth};
use crate::audit::report::{Reliability, ReliabilityBin, Scope, Test};
use crate::audit::statistics::calibration::{Null, Temperature, null_ece};
use crate::audit::statistics::intervals::{Proportion, proportion};
use crate::audit::statistics::smooth_ece::{SmoothEce, smooth_ece};
use crate::audit::statistics::{Measured, Undefined};

/// Random numbers for the null of one ECE, at most; fewer draws of more rows.
const NULL_NUMBERS: usize = 20_000_000;
const NULL_DRAWS: (usize, usize) = (99, 999);

/// What is asked beside the measures of the view.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) wants: &'a (dyn Fn(&str) -> bool + Sync),
}

/// Confidences, hits and weights of the rows of a scope under a view.
fn pairs(view: &View, form: Form, weighted: bool, inside: impl Fn(usize) -> bool) -> (Vec<f64>, Vec<bool>, Vec<f64>) {
    let (mut confidences, mut hits, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for row in (0..view.rows()).filter(|row| inside(*row)) {
        let Some((confidence, hit, weight)) = of_row(view, form, weighted, row) else { continue };
        confidences.push(confidence);
        hits.push(hit);
        weights.push(weight);
    }
    (confidences, hits, weights)
}

/// Confidence, hit and weight of one row; none where it weighs nothing.
pub(super) fn of_row(view: &View, form: Form, weighted: bool, row: usize) -> Option<(f64, bool, f64)> {
    let (key, values) = (&view.keys[view.cells[row] as usize], &view.values[row * view.width..]);
    let weight = if weighted { values[0] } else { 1.0 };
    if weight <= 0.0 {
        return None;
    }
    let score = (values[1] / weight).clamp(0.0, 1.0);
    let top = form == Form::Top;
    let confidence = if top && !key.upper { 1.0 - score } else { score };
    Some((confidence, if top { key.hit } else { key.label }, weight))
}

fn forms(view: &View) -> Vec<Form> {
    let measured = |form: &Form| view.measures.iter().any(|m| m.kind == Kind::Ece(Bins::Width, *form));
    Form::ALL.into_iter().filter(measured).collect()
}

/// Measure, what was found, and the test of ECE that comes with it.
type Finding = (String, Found, Option<Test>);

/// What was found in one scope, and the smooth ECE that an interval is wanted of.
type OfScope = (Vec<Finding>, Option<SmoothEce>);

/// One scope: all rows or a group.
pub(super) struct Task {
    pub(super) view: usize,
    pub(super) form: Form,
    pub(super) at: At,
}

/// Smooth ECE and the null of ECE of all rows and of every group, with the test of ECE against that null; smooth ECE also
/// of complements, with gaps between groups and differences between models.
pub(super) fn add(part: &Part<'_>, asked: Asked<'_>, figures: &mut Figures, stop: Stop<'_>) -> Result<(), AssessError> {
    let mut tasks = Vec::new();
    for view in 0..part.models {
        for form in forms(&part.views[view]) {
            if part.overall {
                tasks.push(Task { view, form, at: At::Overall });
            }
            let groups = (0..part.layout.groups).flat_map(|group| [At::Group(group), At::Complement(group)]);
            tasks.extend(groups.map(|at| Task { view, form, at }));
        }
    }
    let found: Vec<Result<OfScope, AssessError>> = tasks
        .par_iter()
        .map(|task| if stop() { Err(AssessError::Stopped) } else { Ok(of_scope(part, asked, task)) })
        .collect();
    let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    let (found, values): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let replicates = smooth::replicates(part, &tasks, &values, stop)?;
    let mut supports = Vec::with_capacity(tasks.len());
    for (i, (task, found)) in tasks.iter().zip(found).enumerate() {
        let mut support = Support::default();
        for (measure, mut found, test) in found {
            if let (true, Some(smooth)) = (measure.starts_with(SMOOTH), values[i]) {
                found.interval = replicates.interval(smooth.value, |values| values[i], part);
            }
            support = found.support;
            let place = place(part, (task, None, task.at), &measure);
            figures.add(&place, found);
            if let Some(test) = test {
                let ece = format!("ece_width_{}", task.form.name());
                figures.attach(&Place { measure: &ece, ..place }, test);
            }
        }
        supports.push(support);
    }
    Compared { part, tasks: &tasks, values: &values, supports: &supports, replicates: &replicates }.add(asked, figures);
    Ok(())
}

const SMOOTH: &str = "smooth_ece";

fn place<'p>(part: &'p Part<'_>, (task, versus, at): (&Task, Option<usize>, At), measure: &'p str) -> Place<'p> {
    Place {
        model: part.views[task.view].model,
        versus,
        attribute: if at == At::Overall { None } else { part.attribute },
        at,
        group: at.group().and_then(|group| part.values[group]),
        control: part.control.clone(),
        measure,
        class: part.class,
    }
}

/// Smooth ECE of all scopes and views, to be compared.
struct Compared<'c, 'p> {
    part: &'c Part<'p>,
    tasks: &'c [Task],
    values: &'c [Option<SmoothEce>],
    supports: &'c [Support],
    replicates: &'c smooth::Replicates,
}

impl Compared<'_, '_> {
    /// Adds the gap of each view and form, and the difference of each pair of models.
    fn add(&self, asked: Asked<'_>, figures: &mut Figures) {
        for (first, task) in self.tasks.iter().enumerate() {
            let measure = format!("{SMOOTH}_{}", task.form.name());
            let starts =
                first == 0 || (self.tasks[first - 1].view, self.tasks[first - 1].form) != (task.view, task.form);
            if !(asked.wants)(&measure) {
                continue;
            }
            if starts && self.part.attribute.is_some() {
                let gap = self.gap(task);
                self.publish(figures, (task, None, At::Difference), &measure, (&gap[..], None));
            }
            for (a, _) in self.part.pairs().into_iter().filter(|(_, b)| *b == task.view) {
                let versus = Some(self.part.views[a].model);
                let same = |other: &&Task| other.view == a && other.form == task.form;
                if let At::Overall | At::Group(_) = task.at {
                    let other = self.tasks.iter().position(|other| same(&other) && other.at == task.at);
                    let other = other.map(|other| vec![other]).unwrap_or_default();
                    self.publish(figures, (task, versus, task.at), &measure, (&[first][..], Some(&other)));
                }
                if let (true, true, Some(other)) = (starts, self.part.attribute.is_some(), self.tasks.iter().find(same))
                {
                    let (own, other) = (self.gap(task), self.gap(other));
                    self.publish(figures, (task, versus, At::Difference), &measure, (&own[..], Some(&other)));
                }
            }
        }
    }

    /// The groups of a view and form that have a value.
    fn gap(&self, of: &Task) -> Vec<usize> {
        let inside = |(i, task): (usize, &Task)| {
            let same = (task.view, task.form) == (of.view, of.form) && matches!(task.at, At::Group(_));
            (same && self.values[i].is_some()).then_some(i)
        };
        self.tasks.iter().enumerate().filter_map(inside).collect()
    }

    /// Publishes the value of one task or the gap between several, of the second view minus the first.
    fn publish(
        &self,
        figures: &mut Figures,
        (task, versus, at): (&Task, Option<usize>, At),
        measure: &str,
        (own, other): (&[usize], Option<&Vec<usize>>),
    ) {
        let gap = at == At::Difference;
        let least = if gap { 2 } else { 1 };
        let of = |tasks: &[usize], value: &dyn Fn(usize) -> f64| -> f64 {
            if tasks.len() < least || tasks.iter().any(|task| value(*task).is_nan()) {
                return f64::NAN;
            }
            let values = || tasks.iter().map(|task| value(*task));
            let largest = values().fold(f64::MIN, f64::max);
            if gap { largest - values().fold(f64::MAX, f64::min) } else { largest }
        };
        let figure = |value: &dyn Fn(usize) -> f64| of(own, value) - other.map_or(0.0, |other| of(other, value));
        let smooth = |task: usize| self.values[task].map_or(f64::NAN, |smooth| smooth.value);
        let value = figure(&smooth);
        let all = || own.iter().chain(other.into_iter().flatten());
        let support = all().map(|task| self.supports[*task]).reduce(|a, b| if b.n < a.n { b } else { a });
        let why = if gap { Undefined::OneGroup } else { Undefined::NoRows };
        let measured = if value.is_finite() { Ok(value) } else { Err(why) };
        let suppressed = self.part.is_suppressed(at);
        let mut found = Found { suppressed, ..Found::new(measured, support.unwrap_or_default()) };
        found.groups = gap.then_some((own.len() as u64, self.part.layout.groups as u64));
        if gap && other.is_none() {
            let tasks = || own.iter().copied();
            let smallest = tasks().reduce(|a, b| if smooth(b) < smooth(a) { b } else { a });
            let largest = tasks().reduce(|a, b| if smooth(b) > smooth(a) { b } else { a });
            let name = |task: usize| self.part.values[self.tasks[task].at.group()?].map(str::to_owned);
            found.extremes = [smallest, largest].into_iter().flatten().map(name).collect();
        }
        if value.is_finite() && !suppressed {
            found.interval = self.replicates.interval(value, |values| figure(&|task| values[task]), self.part);
        }
        figures.add(&place(self.part, (task, versus, at), measure), found);
    }
}

/// Whether a row is in the group, or outside it, or anywhere.
fn membership(part: &Part<'_>, at: At) -> impl Fn(usize) -> bool {
    let place = at.group().and_then(|group| {
        let of = |set: &super::layout::PatternSet| set.groups.iter().position(|g| *g == group);
        part.layout.sets.iter().find_map(|set| Some((set, of(set)?)))
    });
    let wanted = !matches!(at, At::Complement(_));
    move |row| place.is_none_or(|(set, at)| set.member[set.patterns[row] as usize][at] == wanted)
}

fn of_scope(part: &Part<'_>, asked: Asked<'_>, task: &Task) -> OfScope {
    let view = &part.views[task.view];
    let suppressed = part.is_suppressed(task.at);
    let (confidence, hit, weights) = pairs(view, task.form, part.weights.is_some(), membership(part, task.at));
    let weight = weights.iter().sum();
    let support = Support { n: confidence.len() as u64, weight, squares: weights.iter().map(|w| w * w).sum() };
    let weights = part.weights.map(|_| &weights[..]);
    let name = |what: &str| format!("{what}_{}", task.form.name());
    let mut found = Vec::new();
    let mut add = |what: &str, value: Measured, test_of_ece: Option<Test>| {
        found.push((name(what), Found { suppressed, ..Found::new(value, support) }, test_of_ece));
    };
    let mut smooth = None;
    if (asked.wants)(&name("smooth_ece")) {
        let value = smooth_ece(&confidence, &hit, weights);
        smooth = value.ok().filter(|_| !suppressed);
        add("smooth_ece", value.map(|smooth| smooth.value), None);
    }
    // Of two groups the complement of one is the other: its test would be the same again.
    if (asked.wants)(&name("ece_null")) && !matches!(task.at, At::Complement(_)) {
        let null = view.binning.as_ref().map_or(Err(Undefined::NoRows), |binning| {
            let draws = (NULL_NUMBERS / confidence.len().max(1)).clamp(NULL_DRAWS.0, NULL_DRAWS.1);
            null_ece(&binning.width, &confidence, weights, draws, part.seed ^ 0x6563_6500)
        });
        let ece = || {
            let edges = &view.binning.as_ref()?.width;
            crate::audit::statistics::calibration::Bins::of(edges, &confidence, &hit, weights).ece().ok()
        };
        let test = null.as_ref().ok().zip(ece()).map(|(null, ece): (&Null, f64)| Test {
            name: "calibrated".to_owned(),
            p: null.p_value(ece),
            adjusted: None,
            null: Some(null.quantile(0.95)),
            detectable: None,
        });
        add("ece_null", null.map(|null| null.mean()), test);
    }
    (found, smooth)
}

/// Reliability diagrams of all rows and every published group.
pub(super) fn reliability(part: &Part<'_>) -> Vec<Reliability> {
    let mut diagrams = Vec::new();
    let mut base = Base::default();
    let visible: Vec<bool> = part.suppressed.iter().map(|suppressed| !suppressed).collect();
    let supports = part.supports();
    for (number, view) in part.views[..part.models].iter().enumerate() {
        let forms = forms(view);
        if forms.is_empty() {
            continue;
        }
        let stride = view.stride();
        let folded = base.fold_view(&part.scene(&visible, &[]), view, Rows::default()).to_vec();
        let scopes = (usize::from(!part.overall)..=part.layout.groups).filter(|s| *s == 0 || visible[*s - 1]);
        for scope in scopes {
            let sums = Sums { view, sums: &folded[scope * stride..(scope + 1) * stride] };
            for form in &forms {
                let Some(bins) = sums.bins(Bins::Width, *form) else { continue };
                let rows = |bin: usize| supports[number][scope].in_bin(*form, bin);
                let bin = |row: crate::audit::statistics::calibration::ReliabilityRow| {
                    let support = rows(row.bin);
                    let effective = support.effective();
                    let hits = (row.rate * effective).clamp(0.0, effective);
                    let wilson = proportion(hits, effective, part.statistics.level, Proportion::Wilson).ok()?;
                    Some(ReliabilityBin {
                        low: row.low,
                        high: row.high,
                        n: support.n,
                        confidence: row.confidence,
                        accuracy: row.rate,
                        interval: (wilson.low.clamp(0.0, row.rate), wilson.high.clamp(row.rate, 1.0)),
                    })
                };
                diagrams.push(Reliability {
                    model: view.model as u32,
                    attribute: if scope == 0 { None } else { part.attribute.map(|(_, name)| name.to_owned()) },
                    scope: match scope.checked_sub(1) {
                        None => Scope::Overall,
                        Some(group) => Scope::Group(part.values[group].map(str::to_owned)),
                    },
                    form: form.name().to_owned(),
                    bins: bins.table().into_iter().filter_map(bin).collect(),
                });
            }
        }
    }
    diagrams
}

/// What temperature scaling makes of a model.
#[derive(Debug, Clone)]
pub(super) struct CrossFitted {
    /// `[rows, classes]`.
    pub(super) probabilities: Vec<f64>,
    /// Geometric mean of the temperatures of both halves.
    pub(super) temperature: f64,
    /// Standard error of its logarithm; none where the loss is flat.
    pub(super) log_error: Option<f64>,
}

/// Scales each half of the clusters with the temperature of the other half. `[rows, classes]` with `classes` ≥ 2.
///
/// # Errors
/// Where a half has no best temperature.
pub(super) fn cross_fitted(
    probabilities: &[f64],
    classes: usize,
    labels: &[u32],
    (weights, clusters): (Option<&[f64]>, Option<&[u32]>),
    seed: u64,
) -> Result<CrossFitted, Undefined> {
    let units = clusters.map_or(labels.len(), |c| c.iter().max().map_or(0, |last| *last as usize + 1));
    let mut order: Vec<usize> = (0..units).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed ^ 0x7465_6d70));
    let mut second = vec![false; units];
    order.iter().skip(units / 2).for_each(|unit| second[*unit] = true);
    let half = |row: usize| second[clusters.map_or(row, |clusters| clusters[row] as usize)];
    let logits = Temperature::logits(probabilities);
    let mut after = vec![0.0; probabilities.len()];
    let (mut product, mut variance) = (1.0, Some(0.0));
    for fitted_on in [false, true] {
        let rows: Vec<usize> = (0..labels.len()).filter(|row| half(*row) == fitted_on).collect();
        let of = |rows: &[usize]| -> Vec<f64> {
            rows.iter().flat_map(|row| logits[row * classes..(row + 1) * classes].iter().copied()).collect()
        };
        let label: Vec<usize> = rows.iter().map(|row| labels[*row] as usize).collect();
        let weights: Option<Vec<f64>> = weights.map(|weights| rows.iter().map(|row| weights[*row]).collect());
        let temperature = Temperature::fit(&of(&rows), classes, &label, weights.as_deref())?;
        product *= temperature.value();
        let of_clusters: Option<Vec<u32>> = clusters.map(|clusters| rows.iter().map(|row| clusters[*row]).collect());
        let paired = (weights.as_deref(), of_clusters.as_deref());
        let error = temperature.log_error(&of(&rows), classes, &label, paired).ok();
        variance = variance.zip(error).map(|(sum, error)| sum + error * error);
        let others: Vec<usize> = (0..labels.len()).filter(|row| half(*row) != fitted_on).collect();
        let scaled = temperature.apply(&of(&others), classes);
        for (row, scaled) in others.iter().zip(scaled.chunks_exact(classes)) {
            after[row * classes..(row + 1) * classes].copy_from_slice(scaled);
        }
    }
    // The halves have no cluster in common.
    let log_error = variance.map(|variance: f64| variance.sqrt() / 2.0);
    Ok(CrossFitted { probabilities: after, temperature: product.sqrt(), log_error })
}
