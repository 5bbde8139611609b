//! Intervals of the smooth calibration error.
//!
//! Resamples are those of all other figures (paired, by cluster), but at most 200, and fewer of more than a million rows;
//! the bandwidth is held at that of the rows themselves. Chosen anew in each resample it would damp the spread, so these
//! intervals are rather too wide. A resample costs one pass over the rows for all groups at once.

use rayon::prelude::*;

use super::AssessError;
use super::base::At;
use super::calibration::{Task, of_row};
use super::part::{Part, interval};
use super::resample::Stop;
use crate::audit::report::Interval;
use crate::audit::settings::Statistics;
use crate::audit::statistics::bootstrap::{Buffers, Resampling, Sampler};
use crate::audit::statistics::smooth_ece::{SmoothEce, Smoother};

/// Resamples, at most.
const RESAMPLES: usize = 200;
/// Rows of all resamples, at most; but never fewer than the least number of resamples.
const ROWS: usize = 200_000_000;
const LEAST: usize = 50;
/// Resamples between two questions whether to stop.
const SLICE: usize = 16;

/// Returns how many resamples an interval is of.
pub(super) fn resamples(statistics: &Statistics, rows: usize) -> usize {
    statistics.resamples.min((ROWS / rows.max(1)).clamp(LEAST, RESAMPLES))
}

/// Rows of one view and form, spread over a grid.
struct Grid {
    view: usize,
    points: usize,
    /// `[rows]`: the point below, and the part that goes to the next one.
    at: Vec<(u16, f32)>,
    /// `[rows]`: confidence minus hit.
    residual: Vec<f32>,
    /// Tasks with what smooths them.
    tasks: Vec<(usize, Smoother)>,
}

/// Sums of one pattern of memberships.
struct Sums {
    residual: Vec<f64>,
    ones: Vec<f64>,
    rows: f64,
}

impl Sums {
    fn new(points: usize) -> Self {
        Self { residual: vec![0.0; points], ones: vec![0.0; points], rows: 0.0 }
    }

    fn add(&mut self, other: &Self) {
        let pairs = |to: &mut Vec<f64>, from: &[f64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        pairs(&mut self.residual, &other.residual);
        pairs(&mut self.ones, &other.ones);
        self.rows += other.rows;
    }
}

/// Smooth ECE by resample and task, NaN where undefined; empty where there are no resamples.
pub(super) struct Replicates(Vec<Vec<f64>>);

impl Replicates {
    /// The interval of a figure of the tasks of each resample.
    pub(super) fn interval(&self, value: f64, of: impl Fn(&[f64]) -> f64, part: &Part<'_>) -> Option<Interval> {
        interval(value, self.0.iter().map(|values| of(values)), Vec::new(), part.statistics).0
    }
}

/// Resamples each task that has a value.
pub(super) fn replicates(
    part: &Part<'_>,
    tasks: &[Task],
    found: &[Option<SmoothEce>],
    stop: Stop<'_>,
) -> Result<Replicates, AssessError> {
    let rows = part.views.first().map_or(0, super::view::View::rows);
    let count = resamples(part.statistics, rows);
    let grids = grids(part, tasks, found);
    if count == 0 || grids.is_empty() {
        return Ok(Replicates(Vec::new()));
    }
    let sampler = Sampler::new(Resampling { rows, clusters: part.clusters, strata: None, seed: part.seed });
    // `[resamples][tasks]`
    let mut values = vec![vec![f64::NAN; tasks.len()]; count];
    for (slice, values) in values.chunks_mut(SLICE).enumerate() {
        if stop() {
            return Err(AssessError::Stopped);
        }
        values.par_iter_mut().enumerate().for_each_init(Buffers::default, |buffers, (i, values)| {
            let counts = sampler.draw((slice * SLICE + i) as u64, buffers);
            grids.iter().for_each(|grid| replicate(part, grid, tasks, counts, values));
        });
    }
    Ok(Replicates(values))
}

/// Spreads the rows of each view and form that has a value over a grid for the smallest bandwidth.
fn grids(part: &Part<'_>, tasks: &[Task], found: &[Option<SmoothEce>]) -> Vec<Grid> {
    let mut grids: Vec<Grid> = Vec::new();
    let forms = tasks.chunk_by(|a, b| (a.view, a.form) == (b.view, b.form));
    let mut first = 0;
    for alike in forms {
        let known: Vec<(usize, f64)> =
            (first..first + alike.len()).filter_map(|task| Some((task, found[task]?.bandwidth))).collect();
        first += alike.len();
        let Some(smallest) = known.iter().map(|(_, bandwidth)| *bandwidth).reduce(f64::min) else { continue };
        let (view, points) = (&part.views[alike[0].view], Smoother::points(smallest));
        let mut grid = Grid {
            view: alike[0].view,
            points,
            at: Vec::with_capacity(view.rows()),
            residual: Vec::with_capacity(view.rows()),
            tasks: known.iter().map(|(task, bandwidth)| (*task, Smoother::new(*bandwidth, points))).collect(),
        };
        for row in 0..view.rows() {
            let (confidence, hit, _) = of_row(view, alike[0].form, part.weights.is_some(), row).unwrap_or_default();
            let (at, next) = Smoother::place(confidence, points);
            grid.at.push((at as u16, next as f32));
            grid.residual.push((confidence - f64::from(u8::from(hit))) as f32);
        }
        grids.push(grid);
    }
    grids
}

fn replicate(part: &Part<'_>, grid: &Grid, tasks: &[Task], counts: &[u16], values: &mut [f64]) {
    let view = &part.views[grid.view];
    for (number, set) in part.layout.sets.iter().enumerate() {
        let mut sums: Vec<Sums> = set.member.iter().map(|_| Sums::new(grid.points)).collect();
        for (row, (pattern, count)) in set.patterns.iter().zip(counts).enumerate().filter(|(_, (_, count))| **count > 0)
        {
            let weight = if part.weights.is_some() { view.values[row * view.width] } else { 1.0 };
            let (times, (at, next)) = (f64::from(*count) * weight, grid.at[row]);
            if times <= 0.0 {
                continue;
            }
            let (sums, at, next) = (&mut sums[*pattern as usize], usize::from(at), f64::from(next));
            let residual = times * f64::from(grid.residual[row]);
            sums.residual[at] += (1.0 - next) * residual;
            sums.residual[at + 1] += next * residual;
            sums.ones[at] += (1.0 - next) * times;
            sums.ones[at + 1] += next * times;
            sums.rows += f64::from(*count);
        }
        for (task, smoother) in &grid.tasks {
            let at = tasks[*task].at;
            let place = match at.group() {
                Some(group) => match set.groups.iter().position(|of| *of == group) {
                    Some(place) => Some(place),
                    None => continue,
                },
                // All rows are in the first set.
                None if number > 0 => continue,
                None => None,
            };
            let wanted = !matches!(at, At::Complement(_));
            let mut whole = Sums::new(grid.points);
            let inside =
                sums.iter().zip(&set.member).filter(|(_, member)| place.is_none_or(|place| member[place] == wanted));
            inside.for_each(|(sums, _)| whole.add(sums));
            values[*task] = smoother.error(&whole.residual, &whole.ones, whole.rows).unwrap_or(f64::NAN);
        }
    }
}
