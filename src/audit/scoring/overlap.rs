//! Which rows are audited, which of them come twice, and which a model was trained on.
//!
//! Compares hashes of content and label: a row that is labelled otherwise is another row. Where membership is audited the
//! overlap is what is looked for, so it is counted and never refused.

use std::collections::{BTreeMap, BTreeSet};

use super::super::AuditError;
use super::super::groups::Columns;
use super::super::report::{Model, Warning};
use super::super::settings::{Overlap, Settings};
use super::Subject;
use super::plan::Rows;
use crate::dataset::{Dataset, Split};

/// Chooses the audited rows: those of the splits asked for; without any, all for membership, else those of the test
/// split if it has some, else all.
pub(super) fn choose<'a>(dataset: &'a Dataset, settings: &Settings) -> Result<Rows<'a>, AuditError> {
    let tested = dataset.rows.iter().any(|row| row.split == Split::Test);
    let wanted = |split: &Split| match (settings.splits.is_empty(), settings.membership.is_none() && tested) {
        (false, _) => settings.splits.contains(split),
        (true, true) => *split == Split::Test,
        (true, false) => true,
    };
    let chosen = || dataset.rows.iter().enumerate().filter(|(_, row)| wanted(&row.split));
    let columns = Columns {
        names: &dataset.group_columns,
        cells: chosen().map(|(_, row)| row.groups.as_slice()).collect(),
        numbers: chosen().map(|(i, _)| i + 1).collect(),
    };
    let rows: Vec<_> = chosen().map(|(_, row)| row).collect();
    if rows.is_empty() {
        return Err(AuditError::Data("the data set has no row in the splits asked for".to_owned()));
    }
    if u32::try_from(rows.len()).is_err() {
        return Err(AuditError::Data(format!("{} rows are too many", rows.len())));
    }
    Ok(Rows { dataset, rows, columns })
}

/// Returns the number of rows whose content and label were there before.
pub(super) fn duplicates(rows: &Rows<'_>) -> u64 {
    let mut seen = BTreeSet::new();
    rows.rows.iter().filter(|row| !seen.insert(row.hash)).count() as u64
}

/// Returns the models with their overlap.
pub(super) fn overlaps(
    rows: &Rows<'_>,
    subjects: &[Subject],
    settings: &Settings,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Model>, AuditError> {
    let mut models = Vec::with_capacity(subjects.len());
    let mut counted: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for Subject { model, trained_on, adapter, .. } in subjects {
        let shared =
            |hashes: &BTreeSet<[u8; 32]>| rows.rows.iter().filter(|row| hashes.contains(&row.hash)).count() as u64;
        let overlap = trained_on.as_deref().map(shared);
        if let Some(rows) = overlap.filter(|rows| *rows > 0 && settings.membership.is_none()) {
            match settings.overlap {
                Overlap::Refuse => return Err(AuditError::Overlap { model: model.name.clone(), rows }),
                Overlap::Mark => counted.entry(rows).or_default().push(&model.name),
            }
        }
        if overlap.is_none() && adapter.is_some() {
            let message =
                format!("the rows that `{}` was trained on are not known: it may have seen these", model.name);
            warnings.push(Warning { kind: "training_rows_unknown".to_owned(), message });
        }
        models.push(Model { overlap, ..model.clone() });
    }
    for (rows, names) in counted {
        let message = format!("{rows} of the audited rows were trained on by {}", names.join(", "));
        warnings.push(Warning { kind: "training_overlap".to_owned(), message });
    }
    Ok(models)
}
