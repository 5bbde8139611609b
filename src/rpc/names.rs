//! Fields of settings that hold names, lists of them, parts of data sets, or a number that stands for a word.
//!
//! Knows no service: each names its own fields.

use std::collections::HashSet;
use std::hash::Hash;
use std::ops::RangeInclusive;

use super::pb;
use super::violations::Violations;
use crate::dataset::Split;

/// Largest number of bytes of the name of a column or the like.
const MAX_NAME: usize = 255;

/// Checks the name of a column.
pub(super) fn column(v: &mut Violations, field: &str, name: &str) {
    v.require(field, is_name(name), "must be 1 to 255 bytes without control characters");
}

/// Largest number of bytes of a data set's name or id.
const MAX_DATASET: usize = 128;

/// Checks the name or id of a data set.
pub(super) fn dataset(v: &mut Violations, field: &str, name: &str) {
    let sound = !name.is_empty() && name.len() <= MAX_DATASET && !name.chars().any(char::is_control);
    v.require(field, sound, "must be the name or id of a data set");
}

/// Checks different names of columns.
pub(super) fn columns(v: &mut Violations, field: &str, names: &[String], number: RangeInclusive<usize>) {
    let sound = names.iter().all(|name| is_name(name)) && number.contains(&names.len()) && all_differ(names);
    let (least, most) = number.into_inner();
    v.require(field, sound, &format!("must be {least} to {most} different names of 1 to {MAX_NAME} bytes"));
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

/// Returns whether no item occurs twice.
pub(super) fn all_differ<T: Eq + Hash>(list: &[T]) -> bool {
    let mut seen = HashSet::new();
    list.iter().all(|item| seen.insert(item))
}

/// Reads the number of an enumeration; one that is not known is a fault.
pub(super) fn enumerated<W: TryFrom<i32>, T>(
    v: &mut Violations,
    field: &str,
    wire: i32,
    read: impl FnOnce(W) -> T,
) -> Option<T> {
    let known = W::try_from(wire).ok().map(read);
    v.require(field, known.is_some(), "is not a known value");
    known
}

/// Checks different parts of a data set; returns them in their order.
pub(super) fn splits(v: &mut Violations, field: &str, wire: &[i32]) -> Vec<Split> {
    let mut splits = Vec::new();
    for (i, split) in wire.iter().enumerate().take(4) {
        match pb::DatasetSplit::try_from(*split) {
            Ok(pb::DatasetSplit::Train) => splits.push(Split::Train),
            Ok(pb::DatasetSplit::Validation) => splits.push(Split::Validation),
            Ok(pb::DatasetSplit::Test) => splits.push(Split::Test),
            Ok(pb::DatasetSplit::Unspecified) | Err(_) => {
                v.add(format!("{field}[{i}]"), "must be train, validation or test");
            }
        }
    }
    v.require(field, wire.len() <= 3 && all_differ(wire), "must be at most three different parts");
    splits.sort_unstable();
    splits
}

/// A part of a data set.
pub(super) fn split_out(split: Split) -> pb::DatasetSplit {
    match split {
        Split::Train => pb::DatasetSplit::Train,
        Split::Validation => pb::DatasetSplit::Validation,
        Split::Test => pb::DatasetSplit::Test,
    }
}
