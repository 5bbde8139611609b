//! Resamples: bootstrap, leaving units out, permutations of groups.
//!
//! Rows of a cluster are drawn together, and every model and group of a replicate sees the same draw (paired). Each
//! replicate has a stream of the seed of its own: results depend neither on threads nor on slices. Figures of all
//! replicates are kept, so callers ask for a bounded number at a time.
//! After: Efron and Tibshirani 1993; Phipson and Smyth 2010.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::AssessError;
use super::base::{Base, Rows, Scene, Spec};
use super::layout::Layout;
use crate::audit::statistics::bootstrap::{Buffers, Resampling, Sampler};
use crate::audit::statistics::permutation::{arrangement, arrangements};

/// Replicates between two questions whether to stop.
const SLICE: usize = 32;
/// Blocks of units that are left out one at a time for the acceleration of BCa, at most.
const BLOCKS: usize = 200;

/// Whether to stop.
pub(super) type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Figures by replicate: `[replicates, figures]`, NaN where undefined.
#[derive(Debug, Clone, Default)]
pub(super) struct Replicates {
    figures: usize,
    values: Vec<f64>,
}

impl Replicates {
    /// The figure in every replicate.
    pub(super) fn figure(&self, figure: usize) -> impl Iterator<Item = f64> + '_ {
        self.values.iter().skip(figure).step_by(self.figures.max(1)).copied()
    }

    /// Computes `replicates` replicates of the figures, in slices, on all threads.
    fn of<S: Send>(
        (replicates, specs): (usize, &[Spec]),
        scene: &Scene<'_>,
        stop: Stop<'_>,
        scratch: impl Fn() -> S + Sync + Send,
        draw: impl Fn(u64, &mut S, &mut dyn FnMut(Rows<'_>)) + Sync + Send,
    ) -> Result<Self, AssessError> {
        let figures = specs.len();
        let mut values = vec![f64::NAN; replicates * figures];
        for (slice, values) in values.chunks_mut(SLICE * figures.max(1)).enumerate() {
            if stop() {
                return Err(AssessError::Stopped);
            }
            values.par_chunks_mut(figures.max(1)).enumerate().for_each_init(
                || (scratch(), Base::default()),
                |(scratch, base), (i, values)| {
                    draw((slice * SLICE + i) as u64, scratch, &mut |rows| {
                        base.compute(scene, rows);
                        for (value, spec) in values.iter_mut().zip(specs) {
                            *value = base.figure(scene, spec).unwrap_or(f64::NAN);
                        }
                    });
                },
            );
        }
        Ok(Self { figures, values })
    }
}

/// Draws rows, or clusters, with replacement.
pub(super) fn bootstrap(
    scene: &Scene<'_>,
    clusters: Option<&[u32]>,
    (resamples, seed): (usize, u64),
    specs: &[Spec],
    stop: Stop<'_>,
) -> Result<Replicates, AssessError> {
    let rows = scene.views.first().map_or(0, super::view::View::rows);
    let sampler = Sampler::new(Resampling { rows, clusters, strata: None, seed });
    Replicates::of((resamples, specs), scene, stop, Buffers::default, |replicate, buffers, with| {
        let counts = sampler.draw(replicate, buffers);
        with(Rows { counts: Some(counts), patterns: None });
    })
}

/// Leaves out one unit at a time, or one block of units where there are many: what the acceleration of BCa needs.
pub(super) fn left_out(
    scene: &Scene<'_>,
    clusters: Option<&[u32]>,
    specs: &[Spec],
    stop: Stop<'_>,
) -> Result<Replicates, AssessError> {
    let rows = scene.views.first().map_or(0, super::view::View::rows);
    let blocks = blocks_of(rows, clusters);
    Replicates::of((blocks, specs), scene, stop, Vec::new, |block, counts: &mut Vec<u16>, with| {
        without((block as usize, blocks), rows, clusters, counts);
        with(Rows { counts: Some(counts), patterns: None });
    })
}

/// How many blocks of units are left out, one at a time.
pub(super) fn blocks_of(rows: usize, clusters: Option<&[u32]>) -> usize {
    let units = clusters.map_or(rows, |clusters| clusters.iter().max().map_or(0, |last| *last as usize + 1));
    units.min(BLOCKS)
}

/// Multiplicities of the rows without one block.
pub(super) fn without((block, blocks): (usize, usize), rows: usize, clusters: Option<&[u32]>, counts: &mut Vec<u16>) {
    let unit = |row: usize| clusters.map_or(row, |clusters| clusters[row] as usize);
    counts.clear();
    counts.extend((0..rows).map(|row| u16::from(unit(row) % blocks != block)));
}

/// Rearranges memberships: among clusters where each has one (rows, where there are no clusters), else among the rows
/// of each cluster; within control strata always. Where there are no more arrangements than are asked for, each comes
/// once.
#[derive(Debug)]
pub(super) struct Permuter {
    /// `[rows]`; none: each row is a unit.
    units: Option<Vec<u32>>,
    /// Units that may change places.
    blocks: Vec<Vec<u32>>,
    /// By set: `[units]`.
    patterns: Vec<Vec<u16>>,
    /// How many arrangements are looked at.
    count: usize,
    /// By block, where these are all: units by their memberships, and the number of arrangements.
    every: Option<Vec<(Alike, u64)>>,
}

/// Units of a block: a label for each, and one unit with the memberships of each label.
#[derive(Debug)]
struct Alike {
    labels: Vec<u32>,
    units: Vec<u32>,
}

/// Room of one thread.
#[derive(Debug, Default)]
pub(super) struct Permuted {
    source: Vec<u32>,
    patterns: Vec<Vec<u16>>,
}

impl Permuter {
    pub(super) fn new(layout: &Layout, clusters: Option<&[u32]>, strata: Option<&[u32]>, count: usize) -> Self {
        let rows = layout.sets.first().map_or(0, |set| set.patterns.len());
        let stratum = |row: usize| strata.map_or(0, |strata| strata[row]);
        let key = |row: usize| {
            let patterns = layout.sets.iter().map(|set| set.patterns[row]);
            (stratum(row), patterns.collect::<Vec<u16>>())
        };
        let of_sets = |rows: &[usize]| -> Vec<Vec<u16>> {
            layout.sets.iter().map(|set| rows.iter().map(|row| set.patterns[*row]).collect()).collect()
        };
        let Some(clusters) = clusters else {
            let blocks = blocks((0..rows).map(|row| (stratum(row), 0)));
            return Self::of(None, blocks, of_sets(&(0..rows).collect::<Vec<_>>()), count);
        };
        let count = clusters.iter().max().map_or(0, |last| *last as usize + 1);
        let mut first = vec![usize::MAX; count];
        for (row, cluster) in clusters.iter().enumerate() {
            let first = &mut first[*cluster as usize];
            *first = row.min(*first);
        }
        let alike = clusters.iter().enumerate().all(|(row, cluster)| key(row) == key(first[*cluster as usize]));
        if alike {
            let blocks = blocks(first.iter().map(|row| (stratum(*row), 0)));
            Self::of(Some(clusters.to_vec()), blocks, of_sets(&first), count)
        } else {
            let blocks = blocks(clusters.iter().enumerate().map(|(row, cluster)| (stratum(row), *cluster)));
            Self::of(None, blocks, of_sets(&(0..rows).collect::<Vec<_>>()), count)
        }
    }

    fn of(units: Option<Vec<u32>>, blocks: Vec<Vec<u32>>, patterns: Vec<Vec<u16>>, count: usize) -> Self {
        let mut left = count as u64;
        let mut every = Vec::new();
        for block in &blocks {
            // Two kinds of memberships have at least as many orders as there are units.
            let alike = (block.len() as u64 <= left).then(|| Alike::of(block, &patterns));
            let Some((alike, arrangements)) = alike.and_then(|a| arrangements(&a.labels, left).map(|all| (a, all)))
            else {
                return Self { units, blocks, patterns, count, every: None };
            };
            left /= arrangements;
            every.push((alike, arrangements));
        }
        let count = every.iter().map(|(_, arrangements)| *arrangements as usize).product();
        Self { units, blocks, patterns, count, every: Some(every) }
    }

    /// Whether all arrangements are looked at.
    pub(super) fn is_exact(&self) -> bool {
        self.every.is_some()
    }

    /// The arrangement of this number.
    fn enumerate(&self, every: &[(Alike, u64)], mut number: u64, room: &mut Permuted) {
        room.source.resize(self.patterns.first().map_or(0, Vec::len), 0);
        for (block, (alike, arrangements)) in self.blocks.iter().zip(every) {
            let order = arrangement(&alike.labels, number % arrangements);
            number /= arrangements;
            for (unit, label) in block.iter().zip(order) {
                room.source[*unit as usize] = alike.units[label as usize];
            }
        }
        self.place(room);
    }

    fn draw(&self, seed: u64, replicate: u64, room: &mut Permuted) {
        room.patterns.resize(self.patterns.len(), Vec::new());
        if let Some(every) = &self.every {
            return self.enumerate(every, replicate, room);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(replicate);
        if let ([patterns], [_], None) = (&self.patterns[..], &self.blocks[..], &self.units) {
            room.patterns[0].clone_from(patterns);
            room.patterns[0].shuffle(&mut rng);
            return;
        }
        let units = self.patterns.first().map_or(0, Vec::len);
        room.source.resize(units, 0);
        let mut order = Vec::new();
        for block in &self.blocks {
            order.clone_from(block);
            order.shuffle(&mut rng);
            for (unit, source) in block.iter().zip(&order) {
                room.source[*unit as usize] = *source;
            }
        }
        self.place(room);
    }

    /// Gives every row the memberships of the unit that its own was exchanged for.
    fn place(&self, room: &mut Permuted) {
        for (patterns, from) in room.patterns.iter_mut().zip(&self.patterns) {
            patterns.clear();
            match &self.units {
                Some(units) => patterns.extend(units.iter().map(|unit| from[room.source[*unit as usize] as usize])),
                None => patterns.extend(room.source.iter().map(|source| from[*source as usize])),
            }
        }
    }
}

impl Alike {
    fn of(block: &[u32], patterns: &[Vec<u16>]) -> Self {
        let mut known = BTreeMap::new();
        let mut units = Vec::new();
        let label = |unit: &u32| {
            let key: Vec<u16> = patterns.iter().map(|of| of[*unit as usize]).collect();
            let next = known.len() as u32;
            *known.entry(key).or_insert_with(|| {
                units.push(*unit);
                next
            })
        };
        let labels = block.iter().map(label).collect();
        Self { labels, units }
    }
}

/// Units by key.
fn blocks(keys: impl Iterator<Item = (u32, u32)>) -> Vec<Vec<u32>> {
    let mut by_key: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
    keys.enumerate().for_each(|(unit, key)| by_key.entry(key).or_default().push(unit as u32));
    by_key.into_values().collect()
}

/// Figures where groups mean nothing.
pub(super) fn permutations(
    scene: &Scene<'_>,
    permuter: &Permuter,
    seed: u64,
    specs: &[Spec],
    stop: Stop<'_>,
) -> Result<Replicates, AssessError> {
    // Another key than that of the bootstrap.
    let seed = seed ^ 0x7065_726d_7574_6500;
    Replicates::of((permuter.count, specs), scene, stop, Permuted::default, |replicate, room, with| {
        permuter.draw(seed, replicate, room);
        with(Rows { counts: None, patterns: Some(&room.patterns) });
    })
}
