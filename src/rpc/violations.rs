//! Collects every faulty field of a request, so that the caller sees all of them at once.
//!
//! Knows nothing of gRPC codes: `status` turns the list into a `google.rpc.BadRequest`.

/// A faulty field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// Path of the field as in the proto, for example `sampling.top_p`.
    pub(super) field: String,
    /// What it must be.
    pub(super) description: String,
}

/// The faulty fields found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Violations(Vec<Violation>);

/// Faults reported of one request; a hostile one could have millions.
const MOST: usize = 64;

impl Violations {
    /// Records a fault.
    pub(super) fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.0.len() < MOST {
            self.0.push(Violation { field: field.into(), description: description.into() });
        }
    }

    /// Records a fault unless `sound`.
    pub(super) fn require(&mut self, field: &str, sound: bool, description: &str) {
        if !sound {
            self.add(field, description);
        }
    }

    /// Returns the value, recording a fault unless it is sound.
    pub(super) fn check<T>(&mut self, field: &str, value: T, sound: impl FnOnce(&T) -> bool, description: &str) -> T {
        self.require(field, sound(&value), description);
        value
    }

    /// Returns `value` when no fault was recorded; it is `None` only where a fault was.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }

    /// Returns one fault as a list.
    pub(super) fn one(field: impl Into<String>, description: impl Into<String>) -> Self {
        let mut one = Self::default();
        one.add(field, description);
        one
    }

    /// Returns the faults in the order they were found.
    pub(super) fn list(&self) -> &[Violation] {
        &self.0
    }

    #[cfg(test)]
    pub(super) fn fields(&self) -> Vec<&str> {
        self.0.iter().map(|v| v.field.as_str()).collect()
    }
}
