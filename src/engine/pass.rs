//! One pass through the model, with the errors of the engine.
//!
//! Runs nothing itself: see [`crate::model::pass`].

use super::EngineError;
use super::sampler::SampleError;
use crate::model::ModelError;
use crate::model::pass;

pub(super) use pass::{classify, fork, forward, rows, see, step};

/// Returns an error of the model that has no other type.
pub(super) fn fault(what: &str) -> EngineError {
    pass::fault(what).into()
}

impl From<SampleError> for EngineError {
    fn from(error: SampleError) -> Self {
        Self::Model(ModelError::from(error))
    }
}
