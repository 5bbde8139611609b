//! The bootstrap: how often each row was drawn, and intervals from the figures of many draws.
//!
//! A resample is a list of multiplicities, so that any weighted figure is a figure of it, several models see the same
//! rows (paired), and nothing is copied. Rows may be drawn in clusters (minimal pairs, one author) or within strata.
//! Knows no figure. Replicate b uses stream b of the seed: results depend neither on threads nor on how the replicates
//! are split into slices. An undefined figure of a replicate is left out of intervals and counted.
//! After: scipy 1.17 `bootstrap` (percentile, basic, BCa), quantiles of type 7; Lemire 2019 for unbiased draws.

use std::ops::Range;

use rand::Rng;
use rayon::prelude::*;

use super::distributions::{normal_cdf, normal_quantile};
use super::intervals::Interval;
use super::permutation::stream;
use super::{Measured, Undefined};

/// What is drawn.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resampling<'a> {
    /// Rows, below 2³¹.
    pub rows: usize,
    /// `[rows]`: the cluster of each row, below the number of clusters; rows of a cluster are drawn together.
    pub clusters: Option<&'a [u32]>,
    /// `[units]` (clusters if there are any, else rows): the stratum; as many are drawn of each as it has.
    pub strata: Option<&'a [u32]>,
    /// Seed of all replicates.
    pub seed: u64,
}

/// Draws resamples.
#[derive(Debug, Clone)]
pub struct Sampler<'a> {
    resampling: Resampling<'a>,
    units: usize,
    /// Units by stratum; empty without strata.
    members: Vec<u32>,
    /// Where the strata begin among `members`.
    strata: Vec<Range<usize>>,
}

/// Multiplicities of one replicate, used again for the next.
#[derive(Debug, Default)]
pub struct Buffers {
    units: Vec<u16>,
    rows: Vec<u16>,
}

impl<'a> Sampler<'a> {
    /// Prepares to draw.
    #[must_use]
    pub fn new(resampling: Resampling<'a>) -> Self {
        let clusters = |of: &[u32]| of.iter().max().map_or(0, |last| *last as usize + 1);
        let units = resampling.clusters.map_or(resampling.rows, clusters);
        let mut members: Vec<u32> = Vec::new();
        let mut strata = Vec::new();
        if let Some(of) = resampling.strata {
            members = (0..units as u32).collect();
            members.sort_by_key(|unit| of[*unit as usize]);
            for stratum in members.chunk_by(|a, b| of[*a as usize] == of[*b as usize]) {
                let start = strata.last().map_or(0, |before: &Range<usize>| before.end);
                strata.push(start..start + stratum.len());
            }
        }
        Self { resampling, units, members, strata }
    }

    /// Draws replicate `replicate` and returns how often each row is in it, `[rows]`.
    ///
    /// As many units are drawn as there are; allocates nothing once the buffers have their size. A multiplicity above
    /// 65,535 would need more draws of one unit than a run of any length will ever see.
    pub fn draw<'b>(&self, replicate: u64, buffers: &'b mut Buffers) -> &'b [u16] {
        let mut rng = stream(self.resampling.seed, replicate);
        buffers.units.clear();
        buffers.units.resize(self.units, 0);
        let counts = &mut buffers.units[..];
        if self.strata.is_empty() {
            draw_below(&mut rng, self.units, |unit| counts[unit] = counts[unit].saturating_add(1));
        }
        for stratum in &self.strata {
            let members = &self.members[stratum.clone()];
            draw_below(&mut rng, members.len(), |i| {
                let count = &mut counts[members[i] as usize];
                *count = count.saturating_add(1);
            });
        }
        match self.resampling.clusters {
            None => &buffers.units,
            Some(of) => {
                buffers.rows.clear();
                buffers.rows.extend(of.iter().map(|cluster| buffers.units[*cluster as usize]));
                &buffers.rows
            }
        }
    }

    /// Computes `figures` figures of each of the replicates, on all threads.
    ///
    /// `statistic` gets a scratch of its thread, the multiplicity of each row, and where to put the figures.
    pub fn replicates<S>(
        &self,
        replicates: Range<u64>,
        figures: usize,
        scratch: impl Fn() -> S + Sync + Send,
        statistic: impl Fn(&mut S, &[u16], &mut [Measured]) + Sync + Send,
    ) -> Replicates {
        let first = replicates.start;
        let mut values = vec![Err(Undefined::NoRows); (replicates.end.saturating_sub(first)) as usize * figures];
        values.par_chunks_mut(figures.max(1)).enumerate().for_each_init(
            || (Buffers::default(), scratch()),
            |(buffers, scratch), (i, figures)| {
                let counts = self.draw(first + i as u64, buffers);
                statistic(scratch, counts, figures);
            },
        );
        Replicates { figures, values }
    }
}

/// Draws `n` times a number below `n`, every one equally likely.
fn draw_below(rng: &mut impl Rng, n: usize, mut drawn: impl FnMut(usize)) {
    let bound = n as u32;
    let threshold = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
    for _ in 0..n {
        loop {
            let product = u64::from(rng.next_u32()) * u64::from(bound);
            // The lowest products would favour some numbers.
            if product as u32 >= threshold {
                drawn((product >> 32) as usize);
                break;
            }
        }
    }
}

/// Figures of all replicates.
#[derive(Debug, Clone, PartialEq)]
pub struct Replicates {
    figures: usize,
    /// `[replicates, figures]`.
    values: Vec<Measured>,
}

impl Replicates {
    /// One figure of every replicate.
    #[must_use]
    pub fn figure(&self, figure: usize) -> Distribution {
        Distribution::new(self.values.iter().skip(figure).step_by(self.figures.max(1)).copied())
    }

    /// Adds the replicates of a later slice.
    pub fn extend(&mut self, later: Self) {
        self.values.extend(later.values);
    }
}

/// The bootstrap distribution of one figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    sorted: Vec<f64>,
    /// Replicates without the figure.
    pub undefined: usize,
}

impl Distribution {
    /// Collects the replicates.
    #[must_use]
    pub fn new(replicates: impl Iterator<Item = Measured>) -> Self {
        let mut undefined = 0;
        let mut sorted: Vec<f64> = replicates.filter_map(|r| r.map_err(|_| undefined += 1).ok()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        Self { sorted, undefined }
    }

    /// Replicates with the figure.
    #[must_use]
    pub fn defined(&self) -> usize {
        self.sorted.len()
    }

    /// Quantile of type 7: linear between the values, the ends being the smallest and the largest.
    ///
    /// # Errors
    /// [`Undefined::NoRows`] where no replicate has the figure.
    pub fn quantile(&self, q: f64) -> Measured {
        let last = self.sorted.len().checked_sub(1).ok_or(Undefined::NoRows)?;
        let at = (q.clamp(0.0, 1.0) * last as f64).clamp(0.0, last as f64);
        let below = at.floor() as usize;
        let above = (below + 1).min(last);
        Ok(self.sorted[below] + (at - at.floor()) * (self.sorted[above] - self.sorted[below]))
    }

    /// Percentile interval.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn percentile(&self, level: f64) -> Result<Interval, Undefined> {
        let tail = (1.0 - level) / 2.0;
        Ok(Interval { low: self.quantile(tail)?, high: self.quantile(1.0 - tail)? })
    }

    /// Basic interval: the percentile interval mirrored at the estimate.
    ///
    /// # Errors
    /// [`Undefined::NoRows`].
    pub fn basic(&self, estimate: f64, level: f64) -> Result<Interval, Undefined> {
        let Interval { low, high } = self.percentile(level)?;
        Ok(Interval { low: 2.0 * estimate - high, high: 2.0 * estimate - low })
    }

    /// Bias-corrected and accelerated interval. `left_out[s][i]` is the figure without unit i of sample s (one sample,
    /// or one for each stratum).
    ///
    /// # Errors
    /// [`Undefined::NoRows`]; [`Undefined::Unreachable`] where all replicates lie on one side of the estimate, or the
    /// figure does not vary when units are left out.
    pub fn bca(&self, estimate: f64, left_out: &[Vec<f64>], level: f64) -> Result<Interval, Undefined> {
        let replicates = self.sorted.len() as f64;
        let below = self.sorted.partition_point(|v| *v < estimate) as f64;
        let not_above = self.sorted.partition_point(|v| *v <= estimate) as f64;
        if self.sorted.is_empty() {
            return Err(Undefined::NoRows);
        }
        let bias = normal_quantile((below + not_above) / (2.0 * replicates));
        let (mut cubes, mut squares) = (0.0, 0.0);
        for sample in left_out {
            let n = sample.len() as f64;
            let mean = sample.iter().sum::<f64>() / n;
            let influence = |v: &f64| (n - 1.0) * (mean - v) / n;
            cubes += sample.iter().map(|v| influence(v).powi(3)).sum::<f64>();
            squares += sample.iter().map(|v| influence(v).powi(2)).sum::<f64>();
        }
        let acceleration = cubes / (6.0 * squares.powf(1.5));
        if !bias.is_finite() || !acceleration.is_finite() {
            return Err(Undefined::Unreachable);
        }
        let end = |tail: f64| {
            let shifted = bias + normal_quantile(tail);
            self.quantile(normal_cdf(bias + shifted / (1.0 - acceleration * shifted)))
        };
        let tail = (1.0 - level) / 2.0;
        Ok(Interval { low: end(tail)?, high: end(1.0 - tail)? })
    }

    /// Standard deviation of the replicates, divisor n − 1.
    ///
    /// # Errors
    /// [`Undefined::NoRows`] below two replicates.
    pub fn standard_error(&self) -> Measured {
        let n = self.sorted.len() as f64;
        if n < 2.0 {
            return Err(Undefined::NoRows);
        }
        let mean = self.sorted.iter().sum::<f64>() / n;
        Ok((self.sorted.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    #[test]
    fn as_many_are_drawn_as_there_are_and_clusters_stay_together() {
        let clusters: Vec<u32> = (0..90).map(|row| row / 3).collect();
        let strata: Vec<u32> = (0..30).map(|cluster| cluster % 2).collect();
        let sampler = Sampler::new(Resampling { rows: 90, clusters: Some(&clusters), strata: Some(&strata), seed: 3 });
        let mut buffers = Buffers::default();
        let mut seen = std::collections::BTreeSet::new();
        for replicate in 0..50 {
            let counts = sampler.draw(replicate, &mut buffers).to_vec();
            assert!(counts.chunks(3).all(|cluster| cluster.iter().all(|c| *c == cluster[0])));
            for stratum in 0..2 {
                let drawn: u32 = counts.chunks(3).skip(stratum).step_by(2).map(|c| u32::from(c[0])).sum();
                assert_eq!(drawn, 15);
            }
            seen.insert(counts);
        }
        assert_eq!(seen.len(), 50, "every replicate is another one");
    }

    #[test]
    fn every_row_is_equally_likely() {
        let rows = 7;
        let sampler = Sampler::new(Resampling { rows, seed: 11, ..Resampling::default() });
        let mut buffers = Buffers::default();
        let mut drawn = vec![0_u64; rows];
        for replicate in 0..20_000 {
            let counts = sampler.draw(replicate, &mut buffers);
            drawn.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(*count));
        }
        assert_eq!(drawn.iter().sum::<u64>(), 140_000);
        // χ² with 6 degrees of freedom: 22.5 is passed once in a thousand.
        let chi: f64 = drawn.iter().map(|d| (*d as f64 - 20_000.0).powi(2) / 20_000.0).sum();
        assert!(chi < 22.5, "{drawn:?}");
    }

    #[test]
    fn neither_threads_nor_slices_change_a_replicate() {
        let sampler = Sampler::new(Resampling { rows: 40, seed: 1, ..Resampling::default() });
        let first = |(): &mut (), counts: &[u16], out: &mut [Measured]| {
            out[0] = Ok(f64::from(counts[0]));
            out[1] = if counts[1] > 1 { Err(Undefined::NoRows) } else { Ok(1.0) };
        };
        let whole = sampler.replicates(0..64, 2, || (), first);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let mut sliced = one.install(|| sampler.replicates(0..13, 2, || (), first));
        sliced.extend(sampler.replicates(13..64, 2, || (), first));
        assert_eq!(whole, sliced);
        let figure = whole.figure(1);
        assert!(figure.undefined > 0 && figure.defined() + figure.undefined == 64);
        assert_eq!(figure.percentile(0.9), Ok(Interval { low: 1.0, high: 1.0 }));
    }

    #[test]
    fn no_spread_is_no_bca_interval() {
        let flat = Distribution::new([Ok(1.0), Ok(1.0)].into_iter());
        assert_eq!(flat.bca(1.0, &[vec![1.0, 1.0]], 0.9), Err(Undefined::Unreachable));
        assert_eq!(Distribution::new(std::iter::empty()).quantile(0.5), Err(Undefined::NoRows));
    }

    /// Percentile intervals of a difference of two rates hold the true difference about as often as they say.
    #[test]
    fn nineteen_intervals_in_twenty_hold_the_truth() {
        let (rows, trials) = (240, 1_000);
        let (rates, truth) = ([0.7, 0.55], 0.15);
        let held = (0..trials).into_par_iter().filter(|trial| {
            let mut rng = stream(123, *trial);
            let hit: Vec<bool> = (0..rows).map(|row| rng.random_bool(rates[row % 2])).collect();
            let sampler = Sampler::new(Resampling { rows, seed: 900 + trial, ..Resampling::default() });
            let replicates = sampler.replicates(
                0..400,
                1,
                || (),
                |(), counts, out| {
                    let mut sums = [(0.0, 0.0); 2];
                    for (row, count) in counts.iter().enumerate() {
                        sums[row % 2].0 += f64::from(*count) * f64::from(u8::from(hit[row]));
                        sums[row % 2].1 += f64::from(*count);
                    }
                    out[0] = Ok(sums[0].0 / sums[0].1 - sums[1].0 / sums[1].1);
                },
            );
            replicates.figure(0).percentile(0.95).unwrap().contains(truth)
        });
        let share = held.count() as f64 / trials as f64;
        assert!((0.93..=0.97).contains(&share), "{share}");
    }
}
