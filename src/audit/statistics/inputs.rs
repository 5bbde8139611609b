//! Options of the statistics by the names that libraries give them.
//!
//! Rows are checked where they come in (see `audit::uploaded`).

/// Why an option cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// An option by a name that is not known.
    #[error("`{option}` is `{value}`, expected one of {known}")]
    UnknownOption {
        /// The option.
        option: &'static str,
        /// What was asked.
        value: String,
        /// What there is, separated by commas.
        known: String,
    },
}

/// Finds an option by its name.
///
/// # Errors
/// [`InputError::UnknownOption`].
pub fn option<T: Copy>(option: &'static str, value: &str, known: &[(&'static str, T)]) -> Result<T, InputError> {
    let found = known.iter().find(|(name, _)| *name == value).map(|(_, found)| *found);
    found.ok_or_else(|| InputError::UnknownOption {
        option,
        value: value.to_owned(),
        known: known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_option_names_those_there_are() {
        let unknown = option("agg", "median", &[("worst_case", 0), ("mean", 1)]).unwrap_err();
        assert_eq!(unknown.to_string(), "`agg` is `median`, expected one of worst_case, mean");
    }
}
