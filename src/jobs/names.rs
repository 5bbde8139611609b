//! What a fine-tuning publishes under: the name of its result, those of its checkpoints, and who else has them.
//!
//! Publishes nothing. A checkpoint is called after the result and its step, as transformers' Trainer calls its folders.

use super::rows::parse;
use super::{JobsError, Task, Tuning};
use crate::registry::{Expected, Name, RegistryError, compare};
use crate::store::Catalog;

/// Stands between the name of an adapter and the step.
const MARK: &str = ".checkpoint-";

/// Returns the name of what an adapter was after `step` steps; it may be longer than a name can be.
pub fn checkpoint_name(adapter: &str, step: u64) -> String {
    format!("{adapter}{MARK}{step}")
}

/// Returns the adapter and the step that a name of a checkpoint is made of.
fn checkpoint_of(name: &str) -> Option<(&str, u64)> {
    let (adapter, step) = name.rsplit_once(MARK)?;
    let step = step.parse().ok()?;
    (checkpoint_name(adapter, step) == name).then_some((adapter, step))
}

/// Returns the names of the checkpoints that a fine-tuning publishes.
pub(super) fn checkpoints(tuning: &Tuning) -> impl Iterator<Item = String> {
    tuning.settings.publish_steps.iter().map(|step| checkpoint_name(&tuning.adapter, *step))
}

/// Returns an unfinished job that publishes under one of the names of this one.
pub(super) fn rival(catalog: &Catalog<'_>, tuning: &Tuning) -> Result<Option<String>, JobsError> {
    if let Some(other) = catalog.job_of_name(&tuning.adapter, tuning.alias.as_deref())? {
        return Ok(Some(other));
    }
    for name in checkpoints(tuning) {
        if let Some(other) = catalog.job_of_name(&name, None)? {
            return Ok(Some(other));
        }
    }
    // And one whose checkpoint has a name of this one.
    for name in checkpoints(tuning).chain([tuning.adapter.clone()]).chain(tuning.alias.clone()) {
        let Some((adapter, step)) = checkpoint_of(&name) else { continue };
        let Some(other) = catalog.job_of_name(adapter, None)? else { continue };
        let Some(row) = catalog.job(&other)? else { continue };
        if let Task::FineTuning(theirs) = parse(&row)?.task
            && theirs.adapter == adapter
            && theirs.settings.publish_steps.contains(&step)
        {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Refuses what could not be published now, before hours are spent on it.
pub(super) fn check_names(
    catalog: &Catalog<'_>,
    adapter: &Name,
    expected: &Expected,
    alias: Option<&Name>,
) -> Result<(), RegistryError> {
    if catalog.alias(adapter.as_str())?.is_some() {
        return Err(RegistryError::NameTaken(adapter.to_string(), "an alias"));
    }
    if let Some(alias) = alias
        && catalog.adapter(alias.as_str())?.is_some()
    {
        return Err(RegistryError::NameTaken(alias.to_string(), "an adapter"));
    }
    let current = catalog.adapter(adapter.as_str())?.map(|row| row.current);
    compare(adapter, expected, current.as_deref())
}

/// Refuses checkpoints that could not be published now; returns what must be current under their names then: what is now,
/// where a generation of the result is expected.
pub(super) fn check_checkpoints(catalog: &Catalog<'_>, tuning: &Tuning) -> Result<Vec<String>, RegistryError> {
    let mut current = Vec::new();
    for name in checkpoints(tuning) {
        current.push(catalog.adapter(&name)?.map(|row| row.current).unwrap_or_default());
        // What is no name is refused at the border.
        let Some(name) = Name::parse(&name) else { continue };
        let expected = match tuning.expected.as_deref() {
            Some("") => Expected::Absent,
            Some(_) | None => Expected::Any,
        };
        check_names(catalog, &name, &expected, None)?;
    }
    let follows = tuning.expected.as_deref().is_some_and(|expected| !expected.is_empty());
    Ok(if follows { current } else { Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_checkpoints_are_told_from_others() {
        assert_eq!(checkpoint_name("a.b", 12), "a.b.checkpoint-12");
        for (adapter, step) in [("a", 1), ("a.checkpoint-3", 7), ("x.y", u64::MAX)] {
            assert_eq!(checkpoint_of(&checkpoint_name(adapter, step)), Some((adapter, step)));
        }
        for other in ["a", "a.checkpoint-", "a.checkpoint-x", "a.checkpoint-07", "a.checkpoint-+7", "a.checkpoint-7.b"]
        {
            assert_eq!(checkpoint_of(other), None, "{other}");
        }
    }
}
