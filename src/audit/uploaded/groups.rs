//! Who belongs to which group of an upload, combinations included.
//!
//! Order: groups by value, a missing one last; flags as they came; rows ascending.

use std::collections::BTreeMap;

use super::{Faults, UploadedAttribute, UploadedGroups, names};
use crate::audit::assess::MAX_GROUPS;
use crate::audit::groups::product;
use crate::audit::table::{AttributeRows, GroupRows};

/// Groups of each attribute; faults name `field`.
pub(super) fn groups(
    faults: &mut Faults,
    field: &str,
    uploaded: &[UploadedAttribute],
    rows: usize,
) -> Vec<AttributeRows> {
    let mut all = Vec::with_capacity(uploaded.len());
    for (number, attribute) in uploaded.iter().enumerate() {
        let field = format!("{field}[{number}]");
        let groups = match &attribute.groups {
            UploadedGroups::Values(values) => {
                faults.length(&field, values.len(), rows);
                let mut by_value: BTreeMap<(bool, Option<&String>), Vec<u32>> = BTreeMap::new();
                for (row, value) in values.iter().enumerate() {
                    // Missing last.
                    by_value.entry((value.is_none(), value.as_ref())).or_default().push(row as u32);
                }
                let group =
                    |((_, value), rows): ((bool, Option<&String>), Vec<u32>)| GroupRows { value: value.cloned(), rows };
                by_value.into_iter().map(group).collect()
            }
            UploadedGroups::Flags(names_of, flags) => {
                names(faults, &field, names_of.iter().map(String::as_str));
                faults.length(&field, flags.len(), rows * names_of.len());
                let rows_of = |group: usize| {
                    let flags = flags.chunks_exact(names_of.len().max(1)).enumerate();
                    flags.filter(|(_, flags)| flags[group]).map(|(row, _)| row as u32).collect()
                };
                let group = |(i, name): (usize, &String)| GroupRows { value: Some(name.clone()), rows: rows_of(i) };
                names_of.iter().enumerate().map(group).collect()
            }
        };
        all.push(AttributeRows { name: attribute.name.clone(), combination: false, groups });
    }
    all
}

/// Combinations of attributes: the full product of their groups, those without rows included.
pub(super) fn combinations(
    faults: &mut Faults,
    asked: &[Vec<String>],
    attributes: &[AttributeRows],
) -> Vec<AttributeRows> {
    let mut combined = Vec::new();
    for (number, names) in asked.iter().enumerate() {
        let field = format!("intersections[{number}]");
        let parts: Vec<&AttributeRows> =
            names.iter().filter_map(|name| attributes.iter().find(|attribute| attribute.name == *name)).collect();
        let groups = parts.iter().map(|part| part.groups.len()).fold(1, usize::saturating_mul);
        if parts.len() < names.len() || names.len() < 2 {
            faults.add(&field, None, "expected the names of two or more attributes".to_owned());
        } else if groups > MAX_GROUPS {
            faults.add(&field, None, format!("has {groups} groups, at most {MAX_GROUPS} can be compared"));
        } else {
            combined.push(product(&parts));
        }
    }
    combined
}
