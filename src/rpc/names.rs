//! Fields of settings that hold names, lists of them, or a number that stands for a word.
//!
//! Knows no service: each names its own fields.

use std::collections::HashSet;
use std::hash::Hash;
use std::ops::RangeInclusive;

use super::violations::Violations;

/// Largest number of bytes of the name of a column or the like.
const MAX_NAME: usize = 255;

/// Checks the name of a column.
pub(super) fn column(v: &mut Violations, field: &str, name: &str) {
    v.require(field, is_name(name), "must be 1 to 255 bytes without control characters");
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
