//! What the statistics refuse: the checks of uploaded rows, run once at the border of this room.
//!
//! Nothing is repaired or dropped here: the first faulty row ends the check and is named with its value. A missing
//! group value is not a fault (see [`super::groups`]), and a class without rows is an undefined figure, not a fault.
//! Rows are counted from 0. Rules: `rejected_inputs.json` of the golden values.

/// How far from 1 the probabilities of a row may sum.
pub const SUM_TOLERANCE: f64 = 1e-6;

/// Why rows cannot be taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InputError {
    /// Nothing to compute from.
    #[error("there are no rows")]
    NoRows,
    /// Two columns of different lengths.
    #[error("`{name}` has {got} rows, expected {expected}")]
    Length {
        /// The column.
        name: &'static str,
        /// Its rows.
        got: usize,
        /// The rows of the first column.
        expected: usize,
    },
    /// NaN or an infinity.
    #[error("row {row}: `{name}` is {value}, expected a finite number")]
    NotFinite {
        /// The column.
        name: &'static str,
        /// The row.
        row: usize,
        /// What it holds.
        value: f64,
    },
    /// A probability outside [0, 1].
    #[error("row {row}: `{name}` is {value}, expected a probability from 0 to 1")]
    NotProbability {
        /// The column.
        name: &'static str,
        /// The row.
        row: usize,
        /// What it holds.
        value: f64,
    },
    /// Probabilities of all classes that are not a distribution.
    #[error("row {row}: the probabilities sum to {sum}, expected 1 within 0.000001")]
    RowSum {
        /// The row.
        row: usize,
        /// Their sum.
        sum: f64,
    },
    /// A label or prediction that is none of the classes 0, 1, …
    #[error("row {row}: `{name}` is {value}, expected a class from 0 to {last}")]
    NotAClass {
        /// The column.
        name: &'static str,
        /// The row.
        row: usize,
        /// What it holds.
        value: f64,
        /// The last class.
        last: usize,
    },
    /// A weight below 0.
    #[error("row {row}: the weight is {value}, expected 0 or more")]
    NegativeWeight {
        /// The row.
        row: usize,
        /// The weight.
        value: f64,
    },
    /// No row has any weight.
    #[error("every weight is 0")]
    AllWeightsZero,
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

/// Checks that a column has as many rows as the others, and at least one.
///
/// # Errors
/// [`InputError::NoRows`], [`InputError::Length`].
pub fn check_length(name: &'static str, got: usize, expected: usize) -> Result<(), InputError> {
    match (got == expected, got) {
        (true, 0) => Err(InputError::NoRows),
        (true, _) => Ok(()),
        (false, _) => Err(InputError::Length { name, got, expected }),
    }
}

/// Checks that every score is a finite number.
///
/// # Errors
/// [`InputError::NotFinite`] with the first row that is not.
pub fn check_finite(name: &'static str, values: &[f64]) -> Result<(), InputError> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(row) => Err(InputError::NotFinite { name, row, value: values[row] }),
        None => Ok(()),
    }
}

/// Checks that every value is a probability.
///
/// # Errors
/// [`InputError::NotFinite`], [`InputError::NotProbability`].
pub fn check_probabilities(name: &'static str, values: &[f64]) -> Result<(), InputError> {
    check_finite(name, values)?;
    match values.iter().position(|v| !(0.0..=1.0).contains(v)) {
        Some(row) => Err(InputError::NotProbability { name, row, value: values[row] }),
        None => Ok(()),
    }
}

/// Checks the probabilities of all classes, `[rows, classes]` row by row: each in [0, 1], each row a distribution.
///
/// # Errors
/// [`InputError::NoRows`], [`InputError::Length`], [`InputError::NotFinite`], [`InputError::NotProbability`],
/// [`InputError::RowSum`].
pub fn check_distributions(name: &'static str, values: &[f64], rows: usize, classes: usize) -> Result<(), InputError> {
    check_length(name, values.len(), rows * classes)?;
    for (row, values) in values.chunks_exact(classes).enumerate() {
        check_probabilities(name, values).map_err(|e| in_row(e, row))?;
        let sum: f64 = values.iter().sum();
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            return Err(InputError::RowSum { row, sum });
        }
    }
    Ok(())
}

/// The same fault, told of the row that the slice came from.
fn in_row(error: InputError, row: usize) -> InputError {
    match error {
        InputError::NotFinite { name, value, .. } => InputError::NotFinite { name, row, value },
        InputError::NotProbability { name, value, .. } => InputError::NotProbability { name, row, value },
        other @ (InputError::NoRows
        | InputError::Length { .. }
        | InputError::RowSum { .. }
        | InputError::NotAClass { .. }
        | InputError::NegativeWeight { .. }
        | InputError::AllWeightsZero
        | InputError::UnknownOption { .. }) => other,
    }
}

/// Checks sample weights: finite, none below 0, not all 0.
///
/// # Errors
/// [`InputError::NotFinite`], [`InputError::NegativeWeight`], [`InputError::AllWeightsZero`].
pub fn check_weights(weights: &[f64]) -> Result<(), InputError> {
    check_finite("weights", weights)?;
    if let Some(row) = weights.iter().position(|w| *w < 0.0) {
        return Err(InputError::NegativeWeight { row, value: weights[row] });
    }
    if weights.iter().all(|w| *w == 0.0) { Err(InputError::AllWeightsZero) } else { Ok(()) }
}

/// Reads classes from numbers.
///
/// # Errors
/// [`InputError::NotFinite`], [`InputError::NotAClass`].
pub fn to_classes(name: &'static str, values: &[f64], classes: usize) -> Result<Vec<usize>, InputError> {
    check_finite(name, values)?;
    let last = classes.saturating_sub(1);
    let class = |(row, value): (usize, &f64)| match *value {
        value if value >= 0.0 && value <= last as f64 && value.fract() == 0.0 => Ok(value as usize),
        value => Err(InputError::NotAClass { name, row, value, last }),
    };
    values.iter().enumerate().map(class).collect()
}

/// Reads 0 and 1.
///
/// # Errors
/// [`InputError::NotFinite`], [`InputError::NotAClass`].
pub fn to_binary(name: &'static str, values: &[f64]) -> Result<Vec<bool>, InputError> {
    Ok(to_classes(name, values, 2)?.into_iter().map(|class| class == 1).collect())
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
    fn a_fault_names_the_row_and_the_value() {
        let error = check_distributions("proba", &[0.5, 0.5, 0.2, 1.2], 2, 2).unwrap_err();
        assert_eq!(error, InputError::NotProbability { name: "proba", row: 1, value: 1.2 });
        assert_eq!(
            to_binary("y_true", &[0.0, 1.0, 0.5]).unwrap_err().to_string(),
            "row 2: `y_true` is 0.5, expected a class from 0 to 1"
        );
        let unknown = option("agg", "median", &[("worst_case", 0), ("mean", 1)]).unwrap_err();
        assert_eq!(unknown.to_string(), "`agg` is `median`, expected one of worst_case, mean");
    }

    #[test]
    fn rounding_is_no_fault() {
        assert_eq!(check_distributions("proba", &[0.333_333_3, 0.333_333_3, 0.333_333_3], 1, 3), Ok(()));
        assert_eq!(check_weights(&[0.0, 2.0]), Ok(()));
        assert_eq!(to_classes("y", &[-0.0, 3.0], 4), Ok(vec![0, 3]));
    }
}
