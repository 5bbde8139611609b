//! Which rows count for which groups, in a form that a pass over all rows can use.
//!
//! Rows of the same memberships share a pattern; sums are kept by pattern and folded into groups afterwards, so that a
//! pass costs the same for groups that overlap and groups that do not. Attributes of many overlapping groups are split
//! into sets of few patterns. Knows no figure.

use std::collections::BTreeMap;

use crate::audit::table::AttributeRows;

/// Patterns of a set, at most: their sums stay in the cache.
const PATTERNS: usize = 256;

/// Groups of one attribute over some rows.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Number of groups.
    pub(super) groups: usize,
    /// At least one.
    pub(super) sets: Vec<PatternSet>,
}

/// Some of the groups.
#[derive(Debug, Clone)]
pub(super) struct PatternSet {
    /// `[rows]`.
    pub(super) patterns: Vec<u16>,
    /// The groups of the set.
    pub(super) groups: Vec<usize>,
    /// `[patterns, groups of the set]`: whether rows of the pattern are in the group.
    pub(super) member: Vec<Vec<bool>>,
}

impl PatternSet {
    fn new(rows: usize) -> Self {
        Self { patterns: vec![0; rows], groups: Vec::new(), member: vec![Vec::new()] }
    }

    /// Splits patterns by one more group; nothing happens if they would be too many.
    fn split(&mut self, group: usize, inside: &[bool]) -> bool {
        let mut occurs = vec![[false; 2]; self.member.len()];
        for (pattern, inside) in self.patterns.iter().zip(inside) {
            occurs[*pattern as usize][usize::from(*inside)] = true;
        }
        let after = occurs.iter().flatten().filter(|occurs| **occurs).count();
        if after > PATTERNS && !self.groups.is_empty() {
            return false;
        }
        let mut numbers = vec![[0_u16; 2]; self.member.len()];
        let mut member = Vec::with_capacity(after);
        for (pattern, before) in self.member.iter().enumerate() {
            for inside in [false, true] {
                // Rows are needed to make a pattern, except for the first of a table without rows.
                if occurs[pattern][usize::from(inside)] {
                    numbers[pattern][usize::from(inside)] = member.len() as u16;
                    member.push(before.iter().copied().chain([inside]).collect());
                }
            }
        }
        if member.is_empty() {
            member.push(vec![false; self.groups.len() + 1]);
        }
        for (pattern, inside) in self.patterns.iter_mut().zip(inside) {
            *pattern = numbers[*pattern as usize][usize::from(*inside)];
        }
        self.groups.push(group);
        self.member = member;
        true
    }
}

impl Layout {
    /// Lays out the groups of an attribute over the given rows of the table (ascending), `total` rows in all.
    pub(super) fn new(attribute: &AttributeRows, rows: &[u32], total: usize) -> Self {
        let mut position = vec![u32::MAX; total];
        for (at, row) in rows.iter().enumerate() {
            position[*row as usize] = at as u32;
        }
        let mut sets = vec![PatternSet::new(rows.len())];
        let mut inside = vec![false; rows.len()];
        for (group, members) in attribute.groups.iter().enumerate() {
            inside.fill(false);
            for row in &members.rows {
                let at = position[*row as usize];
                if at != u32::MAX {
                    inside[at as usize] = true;
                }
            }
            let taken = sets.last_mut().is_some_and(|set| set.split(group, &inside));
            if !taken {
                let mut set = PatternSet::new(rows.len());
                set.split(group, &inside);
                sets.push(set);
            }
        }
        Self { groups: attribute.groups.len(), sets }
    }
}

/// Joint strata of several control features over the given rows, numbered in the order of memberships; none without
/// controls.
pub(super) fn strata(controls: &[AttributeRows], rows: &[u32], total: usize) -> Option<Vec<u32>> {
    if controls.is_empty() {
        return None;
    }
    let mut keys = vec![Vec::new(); total];
    for control in controls {
        for (group, members) in control.groups.iter().enumerate() {
            for row in &members.rows {
                keys[*row as usize].push(group as u32);
            }
        }
        keys.iter_mut().for_each(|key| key.push(u32::MAX));
    }
    let known: BTreeMap<&Vec<u32>, u32> = {
        let mut known: BTreeMap<&Vec<u32>, u32> = rows.iter().map(|row| (&keys[*row as usize], 0)).collect();
        known.values_mut().enumerate().for_each(|(number, value)| *value = number as u32);
        known
    };
    Some(rows.iter().map(|row| known.get(&keys[*row as usize]).copied().unwrap_or(0)).collect())
}

/// Clusters of the given rows, numbered from 0 in the order of appearance; none where each row stands alone.
pub(super) fn clusters(all: Option<&[u32]>, rows: &[u32]) -> Option<Vec<u32>> {
    let all = all?;
    let mut known = BTreeMap::new();
    let numbered = rows.iter().map(|row| {
        let next = known.len() as u32;
        *known.entry(all[*row as usize]).or_insert(next)
    });
    let numbered: Vec<u32> = numbered.collect();
    (known.len() < rows.len()).then_some(numbered)
}
