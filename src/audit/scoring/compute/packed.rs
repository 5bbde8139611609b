//! Computes sequences in shared passes, and what several begin with once.
//!
//! Knows tokens and rows of logits, no unit: who calls says which rows are read, and how. A pass is a slice of its own,
//! and its size is bounded in tokens and in rows of logits. On the CPU no row depends on those beside it (`ops::cpu`), so
//! a result has the same bits whatever it is packed with; elsewhere whoever calls must pass the sequences of one unit only.
//! After: the prefix tree of SGLang's RadixAttention (Zheng et al. 2024), level by level so that levels can be packed.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::AuditError;
use crate::lora::{Adapter, LoraBatch, Run};
use crate::model::{Batch, CausalLm, KvCache, Rows, Segment, pass};
use crate::turns::Slices;

/// Least tokens that are worth being shared: they may cost a pass of their own.
const SHARED: usize = 8;
/// Levels of the tree of beginnings.
const LEVELS: usize = 3;

/// A token to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step {
    pub(super) token: u32,
    /// What its row of logits is read for; none: nobody reads it.
    pub(super) target: Option<u32>,
}

/// A sequence, or what is left of it, and what was computed before.
pub(super) struct Part<'a> {
    pub(super) steps: &'a [Step],
    pub(super) cache: &'a mut KvCache,
}

/// A computed sequence: what was read of its rows, in their order.
pub(super) struct Computed<T> {
    pub(super) steps: Vec<Step>,
    pub(super) cache: KvCache,
    pub(super) read: Vec<T>,
}

/// Sequences that begin alike, on their way down the tree.
struct Node<T> {
    /// Places in their sorted order.
    members: Range<usize>,
    /// What is computed of them.
    steps: Range<usize>,
    cache: KvCache,
    read: Vec<T>,
}

/// The model with one adapter, and the bounds of its passes.
pub(super) struct Packer {
    pub(super) model: Arc<dyn CausalLm>,
    /// With the factor of its change.
    pub(super) adapter: Option<(Arc<Adapter>, f32)>,
    /// Most tokens of a pass.
    pub(super) tokens: usize,
    /// Most rows of logits of a pass.
    pub(super) rows: usize,
    /// Whether a row has the same bits whatever it is packed with.
    pub(super) packs: bool,
}

impl Packer {
    /// Computes sequences; what they share with each other or with `held` is computed once.
    pub(super) fn shared<T: Clone + Send>(
        &self,
        sequences: Vec<Vec<Step>>,
        held: Option<&Computed<T>>,
        slices: &dyn Slices,
        read: impl Fn(&[f32], u32) -> Result<T, AuditError> + Sync,
    ) -> Result<Vec<Computed<T>>, AuditError> {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by(|a, b| sequences[*a].cmp(&sequences[*b]));
        let sorted: Vec<&[Step]> = order.iter().map(|i| &sequences[*i][..]).collect();
        let mut nodes = Vec::new();
        for members in self.groups(&sorted, 0..sorted.len(), 0, 0) {
            nodes.push(self.root(&sorted, members, held)?);
        }
        let mut found: Vec<Option<(KvCache, Vec<T>)>> = sequences.iter().map(|_| None).collect();
        for level in 1.. {
            let parts = nodes.iter_mut().map(|node| {
                let steps = &sorted[node.members.start][node.steps.clone()];
                Part { steps, cache: &mut node.cache }
            });
            let mut parts: Vec<Part<'_>> = parts.collect();
            if parts.is_empty() {
                break;
            }
            let rows = self.advance(&mut parts, slices, &read)?;
            let mut next = Vec::new();
            for (mut node, rows) in nodes.into_iter().zip(rows) {
                node.read.extend(rows);
                let end = node.steps.end;
                for members in self.groups(&sorted, node.members.clone(), end, level) {
                    let last = members.end == node.members.end;
                    let cache = if last { std::mem::take(&mut node.cache) } else { pass::fork(&node.cache)? };
                    let (read, common) = (node.read.clone(), common(&sorted, &members));
                    if common > end {
                        next.push(Node { members, steps: end..common, cache, read });
                    } else {
                        found[order[members.start]] = Some((cache, read));
                    }
                }
            }
            nodes = next;
        }
        let computed = sequences.into_iter().zip(found).filter_map(|(steps, found)| {
            let (cache, read) = found?;
            Some(Computed { steps, cache, read })
        });
        Ok(computed.collect())
    }

    /// Returns sequences from their first token on, or from where they part with the held one.
    fn root<T: Clone>(
        &self,
        sorted: &[&[Step]],
        members: Range<usize>,
        held: Option<&Computed<T>>,
    ) -> Result<Node<T>, AuditError> {
        let common = common(sorted, &members);
        if let Some(held) = held {
            let from = alike(&held.steps, &sorted[members.start][..common]);
            if from == held.steps.len() || (self.packs && from >= SHARED) {
                let known = held.steps[..from].iter().filter(|step| step.target.is_some()).count();
                let (cache, read) = (pass::fork_at(&held.cache, from)?, held.read[..known].to_vec());
                return Ok(Node { members, steps: from..common, cache, read });
            }
        }
        Ok(Node { members, steps: 0..common, cache: self.model.new_cache(), read: Vec::new() })
    }

    /// Divides sorted sequences, alike up to `from`, into those that share enough after it.
    fn groups(&self, sorted: &[&[Step]], members: Range<usize>, from: usize, level: usize) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for i in members {
            match groups.last_mut() {
                Some(group) if self.packs && level < LEVELS - 1 && alike(sorted[i - 1], sorted[i]) >= from + SHARED => {
                    group.end = i + 1;
                }
                _ => groups.push(i..i + 1),
            }
        }
        groups
    }

    /// Computes parts one behind the other in as few passes as their bounds allow, and returns what was read of each.
    pub(super) fn advance<T: Send>(
        &self,
        parts: &mut [Part<'_>],
        slices: &dyn Slices,
        read: impl Fn(&[f32], u32) -> Result<T, AuditError> + Sync,
    ) -> Result<Vec<Vec<T>>, AuditError> {
        let most = self.pass_tokens(parts);
        let mut found: Vec<Vec<T>> = parts.iter().map(|_| Vec::new()).collect();
        // The next token: its part, its place in it.
        let (mut part, mut at) = (0, 0);
        while part < parts.len() {
            let first = part;
            let (mut tokens, mut segments, mut counted, mut rows) = (Vec::new(), Vec::new(), Vec::new(), 0);
            while let Some(steps) = parts.get(part).map(|part| part.steps) {
                let rest = &steps[at..];
                let piece = &rest[..rest.len().min(most - tokens.len())];
                // Rows before the first that is read need no logits.
                let unread = piece.iter().take_while(|step| step.target.is_none()).count();
                let piece = &piece[..piece.len().min(unread + self.rows - rows)];
                if !piece.is_empty() {
                    let wanted = piece.len() - unread;
                    for (row, step) in piece[unread..].iter().enumerate() {
                        counted.extend(step.target.map(|target| (part, rows + row, target)));
                    }
                    rows += wanted;
                    tokens.extend(piece.iter().map(|step| step.token));
                    let logits = if wanted == 0 { Rows::None } else { Rows::Last(wanted) };
                    segments.push(Segment { len: piece.len(), logits });
                }
                if piece.len() < rest.len() {
                    at += piece.len();
                    break;
                }
                (part, at) = (part + 1, 0);
            }
            if tokens.is_empty() {
                break;
            }
            let caches = parts[first..].iter_mut().filter(|part| !part.steps.is_empty()).take(segments.len());
            let mut caches: Vec<&mut KvCache> = caches.map(|part| &mut *part.cache).collect();
            let values: Vec<T> = slices.run(|| {
                let batch = Batch { tokens: &tokens, segments: &segments, lora: &self.lora(tokens.len()) };
                let logits = pass::forward(&*self.model, &batch, &mut caches)?;
                pass::rows(&logits, rows, |all, vocab| {
                    let one = |(_, row, target): &(usize, usize, u32)| read(&all[row * vocab..][..vocab], *target);
                    counted.par_iter().map(one).collect()
                })?
            })?;
            counted.iter().zip(values).for_each(|((part, ..), value)| found[*part].push(value));
        }
        Ok(found)
    }

    /// Returns the size of passes: where they may be packed at will, all of about the same.
    fn pass_tokens(&self, parts: &[Part<'_>]) -> usize {
        if !self.packs {
            return self.tokens;
        }
        let steps = || parts.iter().flat_map(|part| part.steps);
        let (tokens, rows) = (steps().count(), steps().filter(|step| step.target.is_some()).count());
        let passes = tokens.div_ceil(self.tokens).max(rows.div_ceil(self.rows)).max(1);
        tokens.div_ceil(passes).max(1)
    }

    /// Returns the adapter over all rows.
    pub(super) fn lora(&self, rows: usize) -> LoraBatch {
        let run =
            |(adapter, scale): &(Arc<Adapter>, f32)| Run { adapter: Arc::clone(adapter), rows: 0..rows, scale: *scale };
        LoraBatch { runs: self.adapter.iter().map(run).collect(), dropout: None }
    }
}

/// Returns how many steps two sequences begin with alike.
pub(super) fn alike<S: PartialEq>(one: &[S], other: &[S]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// Returns how many steps sorted sequences begin with alike.
fn common(sorted: &[&[Step]], members: &Range<usize>) -> usize {
    alike(sorted[members.start], sorted[members.end - 1])
}
