//! Which group a row belongs to: one attribute, or the product of several.
//!
//! A partition: every row is in exactly one group. Overlapping groups are membership masks and need none of this. A row
//! without a value is in the group [`UNKNOWN`]: it is counted, never dropped. Groups are sorted by name, so that a
//! result does not depend on the order of rows.

use std::collections::BTreeSet;

/// The group of rows without a value.
pub const UNKNOWN: &str = "unknown";

/// Groups by name, and the group of every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Names, sorted.
    pub names: Vec<String>,
    /// `[rows]`: index into `names`.
    pub of: Vec<u32>,
}

impl Partition {
    /// Groups the rows by their value; rows without one are in the group [`UNKNOWN`].
    #[must_use]
    pub fn new<S: AsRef<str>>(values: &[Option<S>]) -> Self {
        let name = |value: &Option<S>| value.as_ref().map_or(UNKNOWN, AsRef::as_ref).to_owned();
        let names: BTreeSet<String> = values.iter().map(name).collect();
        let names: Vec<String> = names.into_iter().collect();
        let of = values.iter().map(|value| names.partition_point(|known| *known < name(value)) as u32).collect();
        Self { names, of }
    }

    /// Number of groups.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Every combination of the groups of both, `first|second`, those without rows included; of the same rows.
    #[must_use]
    pub fn product(&self, other: &Self) -> Self {
        let names = self.names.iter().flat_map(|a| other.names.iter().map(move |b| format!("{a}|{b}"))).collect();
        let of = self.of.iter().zip(&other.of).map(|(a, b)| a * other.names.len() as u32 + b).collect();
        Self { names, of }
    }

    /// The rows of a group.
    pub fn rows(&self, group: usize) -> impl Iterator<Item = usize> + '_ {
        self.of.iter().enumerate().filter(move |(_, of)| **of as usize == group).map(|(row, _)| row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_a_value_are_a_group_and_empty_combinations_are_listed() {
        let sex = Partition::new(&[Some("F"), Some("M"), None]);
        assert_eq!(sex.names, ["F", "M", UNKNOWN]);
        let age = Partition::new(&[Some("old"), Some("young"), Some("old")]);
        let both = sex.product(&age);
        assert_eq!(both.len(), 6);
        assert_eq!(both.names[both.of[1] as usize], "M|young");
        assert_eq!(both.rows(1).count(), 0);
        assert_eq!(both.rows(4).collect::<Vec<_>>(), [2]);
    }
}
