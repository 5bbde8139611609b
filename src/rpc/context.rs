//! What the layers found out about a call and its handler needs: who asks, and until when.

use std::sync::Arc;
use std::time::Instant;

/// Names one call in logs, metadata and error details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestId(pub(super) Arc<str>);

/// When the caller stops waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline(pub(super) Instant);

/// The call that a handler answers.
#[derive(Debug, Clone)]
pub(super) struct Context {
    /// Names the call.
    pub(super) request_id: Arc<str>,
    /// When the caller stops waiting.
    pub(super) deadline: Option<Instant>,
}

impl Context {
    /// Reads what the layers left in the request's extensions.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        let extensions = request.extensions();
        Self {
            request_id: extensions.get::<RequestId>().map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0)),
            deadline: extensions.get::<Deadline>().map(|deadline| deadline.0),
        }
    }
}
