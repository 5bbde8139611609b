//! How many bytes of memory an upload takes while it is audited, told before any of it is taken.
//!
//! About, and rather from above. What is uploaded need not be sound yet. Units: bytes.

use super::{Labels, Scores, Uploaded, UploadedAttribute, UploadedGroups};
use crate::audit::settings::Settings;
use crate::audit::table::statistics_bytes;

/// Bytes of a number of a row.
const ROW: u64 = 4;
/// Bytes of a score.
const SCORE: u64 = 8;
/// Overlapping groups whose memberships are told together, at least; in the worst case 256 patterns are those of 8.
const SET: u64 = 8;
/// Bytes of a row's pattern: laid out, rearranged, and drawn on some threads.
const PATTERN: u64 = 2 * 6;

/// Returns what the table takes that is made of an upload, and what statistics take on it, beside the upload itself.
#[must_use]
pub fn audited_bytes(settings: &Settings, uploaded: &Uploaded) -> u64 {
    let membership = uploaded.membership.as_ref().map_or(&[][..], |membership| &membership.models);
    let rows = match &uploaded.labels {
        Labels::One(labels) => labels.len(),
        Labels::Several(labels) => labels.len(),
        Labels::None => membership.first().map_or(0, |model| model.members.len()),
    };
    let named = |name: &String| uploaded.attributes.iter().find(|attribute| attribute.name == *name);
    let mut parts: Vec<Vec<&UploadedAttribute>> =
        uploaded.attributes.iter().chain(&uploaded.controls).map(|attribute| vec![attribute]).collect();
    parts.extend(settings.intersections.iter().map(|names| names.iter().filter_map(named).collect()));
    let lists = parts.iter().map(|parts| memberships(parts, rows).saturating_mul(ROW));
    // One attribute is laid out at a time.
    let sets = parts.iter().map(|parts| parts.iter().map(|part| sets(part)).fold(1, u64::saturating_mul));
    let patterns = (rows as u64 * PATTERN).saturating_mul(sets.max().unwrap_or(1));
    let scores = uploaded.models.iter().map(|model| match &model.scores {
        Scores::Positive(_) => 2 * rows as u64 * SCORE,
        Scores::Classes(scores) => scores.len() as u64 * SCORE,
        Scores::None => 0,
    });
    let signals = membership.iter().map(|model| {
        // The signal, the same as a score of an attack, the membership; and all of it of the reference and each shadow.
        (model.signals.len() + model.reference_signals.len() + model.shadow_signals.iter().map(Vec::len).sum::<usize>())
            as u64
            * (3 * SCORE + 1)
    });
    let table = lists.chain([patterns]).chain(scores).chain(signals).fold(0, u64::saturating_add);
    table.saturating_add(statistics_bytes(rows as u64, uploaded.models.len() as u64))
}

/// Returns in how many groups of a combination rows are, all together.
fn memberships(parts: &[&UploadedAttribute], rows: usize) -> u64 {
    let of = |row: usize| parts.iter().map(|part| groups_of(part, row)).fold(1, u64::saturating_mul);
    (0..rows).map(of).fold(0, u64::saturating_add)
}

/// Returns in how many groups a row is.
fn groups_of(attribute: &UploadedAttribute, row: usize) -> u64 {
    match &attribute.groups {
        UploadedGroups::Values(_) => 1,
        UploadedGroups::Flags(names, flags) => {
            let own = flags.get(row * names.len()..(row + 1) * names.len());
            own.unwrap_or_default().iter().filter(|flag| **flag).count() as u64
        }
    }
}

/// Returns the most sets that the groups of an attribute are laid out in: one where none overlaps.
fn sets(attribute: &UploadedAttribute) -> u64 {
    match &attribute.groups {
        UploadedGroups::Values(_) => 1,
        UploadedGroups::Flags(names, _) => names.len() as u64 / SET + 1,
    }
}
