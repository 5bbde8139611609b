//! What ends a run of a job before it succeeds, as the job's record tells it.
//!
//! Reasons that calls of services give too have the same text there (`rpc::status`); a test holds the two together.

use super::{Failure, JobsError, reason};
use crate::audit::AuditError;
use crate::lora::LoraError;
use crate::registry::RegistryError;
use crate::reports::{GateError, ReportsError};
use crate::store::StoreError;
use crate::train::TrainError;
use crate::turns::Stopped;

/// Longest message in bytes: it may quote what a caller sent.
const LONGEST: usize = 1024;

/// Why a run ends early.
#[derive(Debug)]
pub(super) enum Halt {
    /// It was told to.
    Stopped,
    /// It cannot go on.
    Failed(Failure),
}

impl Failure {
    pub(super) fn new(reason: &str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > LONGEST {
            let cut = (0..=LONGEST).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(cut);
            message.push('…');
        }
        Self { reason: reason.to_owned(), message }
    }

    /// A fault of the server: the log gets its causes, the record does not.
    fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a job failed by a fault of the server");
        Self::new(reason::INTERNAL, "internal error")
    }
}

impl From<TrainError> for Halt {
    fn from(error: TrainError) -> Self {
        let reason = match &error {
            TrainError::Stopped(_) => return Self::Stopped,
            TrainError::Setting { .. } => reason::SETTING,
            TrainError::Data(_) => reason::DATA,
            TrainError::Memory { .. } => reason::MEMORY,
            TrainError::Diverged { .. } => reason::DIVERGED,
            TrainError::Gradient { .. } => reason::GRADIENT,
            TrainError::Checkpoint(_) => reason::CHECKPOINT,
            TrainError::Model(_) | TrainError::Tensor(_) => return Self::Failed(Failure::internal(&error)),
        };
        Self::Failed(Failure::new(reason, error.to_string()))
    }
}

impl From<AuditError> for Halt {
    fn from(error: AuditError) -> Self {
        let reason = match &error {
            AuditError::Stopped(_) => return Self::Stopped,
            AuditError::Setting { .. } | AuditError::Head { .. } => reason::AUDIT_SETTING,
            AuditError::Data(_) | AuditError::Row { .. } => reason::AUDIT_DATA,
            AuditError::Overlap { .. } => reason::AUDIT_OVERLAP,
            // Of what was trained for the audit alone the cause does not matter to its caller.
            AuditError::Load { fault, .. } => match fault.downcast_ref::<RegistryError>() {
                Some(error) => return Self::Failed(registry(error)),
                None => reason::AUDIT_CHILD_FAILED,
            },
            AuditError::Checkpoint(_) => reason::AUDIT_CHECKPOINT,
            AuditError::Unfinished { .. } | AuditError::Model(_) => return Self::Failed(Failure::internal(&error)),
        };
        Self::Failed(Failure::new(reason, error.to_string()))
    }
}

impl From<Stopped> for Halt {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// Of a file that is being written; what the store says of it comes as its own.
impl From<std::io::Error> for Halt {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(Failure::internal(&error))
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Failed(store(&error))
    }
}

impl From<RegistryError> for Halt {
    fn from(error: RegistryError) -> Self {
        Self::Failed(registry(&error))
    }
}

impl From<ReportsError> for Halt {
    fn from(error: ReportsError) -> Self {
        Self::Failed(match error {
            ReportsError::Store(error) => store(&error),
            ReportsError::ReportNotFound(_)
            | ReportsError::PolicyNotFound(_)
            | ReportsError::PolicyExists(_)
            | ReportsError::PolicyInUse { .. }
            | ReportsError::RequestIdReused(_) => Failure::internal(&error),
        })
    }
}

impl From<JobsError> for Halt {
    fn from(error: JobsError) -> Self {
        Self::Failed(match error {
            JobsError::DatasetNotFound(_) => Failure::new(reason::DATA, error.to_string()),
            JobsError::Registry(error) => registry(&error),
            JobsError::Store(error) => store(&error),
            JobsError::NotFound(_)
            | JobsError::Finished(_)
            | JobsError::NotResumable(_)
            | JobsError::Conflict(_)
            | JobsError::QueueFull(_)
            | JobsError::TooManyModels { .. }
            | JobsError::Measure { .. }
            | JobsError::RequestIdReused(_)
            | JobsError::Event => Failure::internal(&error),
        })
    }
}

fn store(error: &StoreError) -> Failure {
    match error {
        StoreError::Full => Failure::new("STORAGE_FULL", error.to_string()),
        StoreError::Corrupt(_) => Failure::new("DATA_CORRUPT", error.to_string()),
        StoreError::Locked(_) | StoreError::Database(_) | StoreError::Io { .. } => Failure::internal(error),
    }
}

/// Says why a job failed whose result the registry refused.
pub(crate) fn registry(error: &RegistryError) -> Failure {
    let reason = match error {
        RegistryError::AdapterNotFound(_) => "ADAPTER_NOT_FOUND",
        RegistryError::BaseNotFound { .. } => "BASE_MODEL_NOT_FOUND",
        RegistryError::AliasNotFound(_) => "ALIAS_NOT_FOUND",
        RegistryError::NameTaken(..) => "NAME_TAKEN",
        RegistryError::GenerationMismatch { .. } => "GENERATION_MISMATCH",
        RegistryError::Lora(LoraError::Invalid(_)) => "ADAPTER_INVALID",
        RegistryError::Lora(LoraError::Unsupported(_)) => "ADAPTER_UNSUPPORTED",
        RegistryError::Lora(LoraError::Mismatch(_)) => "ADAPTER_MISMATCH",
        RegistryError::NoEffect => "ADAPTER_NO_EFFECT",
        RegistryError::Budget { .. } => "ADAPTER_BUDGET",
        RegistryError::Gate(GateError::Failed { .. }) => "AUDIT_GATE_FAILED",
        RegistryError::Gate(GateError::PolicyNotFound(_)) => "POLICY_NOT_FOUND",
        RegistryError::Store(error) | RegistryError::Gate(GateError::Store(error)) => return store(error),
        RegistryError::Lora(LoraError::Tensor(_))
        | RegistryError::Pinned(_)
        | RegistryError::InUse { .. }
        | RegistryError::Held { .. }
        | RegistryError::NoAdapterDir
        | RegistryError::Directory(_)
        | RegistryError::RequestIdReused(_)
        | RegistryError::Model(_) => return Failure::internal(error),
    };
    Failure::new(reason, error.to_string())
}
