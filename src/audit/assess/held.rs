//! Which groups and strata of a table are held back: see [`suppression`](crate::audit::statistics::suppression).
//!
//! Takes attributes, combinations, strata of controls and groups within strata together, since figures of all of them are
//! published. Computes no figure.

use crate::audit::statistics::suppression::{Sets, suppressed};
use crate::audit::table::{AttributeRows, Table};

/// What is held back of a table.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    /// Number of rows.
    rows: usize,
    /// `[attributes][groups]`.
    pub(super) groups: Vec<Vec<bool>>,
    /// `[controls][strata]`.
    pub(super) strata: Vec<Vec<bool>>,
    /// `[controls][strata][attributes][groups]`: of groups within strata.
    pub(super) cells: Vec<Vec<Vec<Vec<bool>>>>,
    /// Whether all sums and differences could be searched.
    pub(super) searched: bool,
}

impl Held {
    pub(super) fn new(table: &Table, below: u64) -> Self {
        let nothing = |of: &[AttributeRows]| of.iter().map(|a| vec![false; a.groups.len()]).collect::<Vec<_>>();
        let (attributes, controls) = (&table.attributes[..], &table.controls[..]);
        let strata = controls.iter().map(|control| vec![nothing(attributes); control.groups.len()]);
        let mut held = Self {
            rows: table.rows,
            groups: nothing(attributes),
            strata: nothing(controls),
            cells: strata.collect(),
            searched: true,
        };
        if below <= 1 {
            return held;
        }
        // Groups within strata: a family for every attribute and control.
        let pairs = || (0..controls.len()).flat_map(|c| (0..attributes.len()).map(move |a| (c, a)));
        let cells: Vec<Vec<Vec<u32>>> =
            pairs().map(|(c, a)| within(&controls[c], &attributes[a], table.rows)).collect();
        let mut families: Vec<Vec<&[u32]>> = attributes.iter().chain(controls).map(sets).collect();
        families.extend(cells.iter().map(|cells| cells.iter().map(Vec::as_slice).collect()));
        let none = families.iter().map(|family| vec![false; family.len()]).collect();
        let (found, searched) = suppressed(Sets { families: &families, rows: table.rows }, below, none);
        held.searched = searched;
        let mut found = found.into_iter();
        held.groups = found.by_ref().take(attributes.len()).collect();
        held.strata = found.by_ref().take(controls.len()).collect();
        for ((c, a), cells) in pairs().zip(found) {
            let groups = attributes[a].groups.len().max(1);
            for (stratum, cells) in cells.chunks(groups).enumerate() {
                held.cells[c][stratum][a] = cells.to_vec();
            }
        }
        held
    }

    /// Of some rows of the table, the groups of an attribute that are held back among them.
    pub(super) fn among(&self, (number, attribute): (usize, &AttributeRows), rows: &[u32], below: u64) -> Vec<bool> {
        let held = self.groups.get(number).cloned().unwrap_or_default();
        if below <= 1 || rows.len() == self.rows {
            return held;
        }
        let place = |row: &u32| rows.binary_search(row).ok().map(|at| at as u32);
        let groups: Vec<Vec<u32>> =
            attribute.groups.iter().map(|group| group.rows.iter().filter_map(place).collect()).collect();
        let families = [groups.iter().map(Vec::as_slice).collect()];
        let (mut held, _) = suppressed(Sets { families: &families, rows: rows.len() }, below, vec![held]);
        held.pop().unwrap_or_default()
    }
}

fn sets(of: &AttributeRows) -> Vec<&[u32]> {
    of.groups.iter().map(|group| group.rows.as_slice()).collect()
}

/// Groups of an attribute within each stratum, stratum by stratum.
fn within(control: &AttributeRows, attribute: &AttributeRows, rows: usize) -> Vec<Vec<u32>> {
    let mut inside = vec![false; rows];
    let mut cells = Vec::with_capacity(control.groups.len() * attribute.groups.len());
    for stratum in &control.groups {
        stratum.rows.iter().for_each(|row| inside[*row as usize] = true);
        for group in &attribute.groups {
            cells.push(group.rows.iter().copied().filter(|row| inside[*row as usize]).collect());
        }
        stratum.rows.iter().for_each(|row| inside[*row as usize] = false);
    }
    cells
}
