//! Every error of the house as a gRPC status with `google.rpc` details: the only file that chooses codes.
//!
//! Each `match` names all variants, so that a new error cannot reach a client unconsidered. Faults of the server are
//! logged with their chain; the client gets the request id and nothing else.
//! Source of the codes: AIP-193 and the table of `google.rpc.Code`.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt};

use super::context::Context;
use super::prompt::PromptError;
use super::violations::Violations;
use crate::dataset::{DatasetError, Fault};
use crate::engine::EngineError;
use crate::jobs::JobsError;
use crate::lora::LoraError;
use crate::model::chat::ChatError;
use crate::registry::RegistryError;
use crate::reports::{GateError, ReportsError};
use crate::store::StoreError;

/// `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "evenkeel";

/// When to try again where the engine gives no better estimate.
const RETRY: Duration = Duration::from_secs(1);

/// Rules that do not hold of which a refusal tells.
const MOST_REASONS: usize = 20;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal => $code:ident,)*) => {
        /// `reason` of a `google.rpc.ErrorInfo`; each has one code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the text on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Returns its gRPC code.
            pub fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code,)* }
            }
        }
    };
}

reasons! {
    /// A field is out of its range.
    InvalidField = "INVALID_FIELD" => InvalidArgument,
    /// Metadata cannot be read.
    BadMetadata = "BAD_METADATA" => InvalidArgument,
    /// A message cannot be decoded.
    MalformedMessage = "MALFORMED_MESSAGE" => InvalidArgument,
    /// A page token was not made by this server for this method.
    PageToken = "PAGE_TOKEN" => InvalidArgument,
    /// A token to watch on is not of this job.
    WatchToken = "WATCH_TOKEN" => InvalidArgument,
    /// Prompt and new tokens exceed the context.
    ContextLength = "CONTEXT_LENGTH" => InvalidArgument,
    /// The chat template refuses the messages.
    ChatTemplate = "CHAT_TEMPLATE" => InvalidArgument,
    /// Bytes are not those announced.
    Checksum = "CHECKSUM" => InvalidArgument,
    /// An adapter's files are faulty.
    AdapterInvalid = "ADAPTER_INVALID" => InvalidArgument,
    /// A data set's file or declaration is faulty.
    DatasetInvalid = "DATASET_INVALID" => InvalidArgument,
    /// Uploaded scores are faulty.
    ScoresInvalid = "SCORES_INVALID" => InvalidArgument,
    /// A request id was used for another request.
    RequestIdReused = "REQUEST_ID_REUSED" => InvalidArgument,
    /// Health is asked of a service that is not there.
    ServiceNotFound = "SERVICE_NOT_FOUND" => NotFound,
    /// No such adapter.
    AdapterNotFound = "ADAPTER_NOT_FOUND" => NotFound,
    /// No such job.
    JobNotFound = "JOB_NOT_FOUND" => NotFound,
    /// No such base model.
    BaseModelNotFound = "BASE_MODEL_NOT_FOUND" => NotFound,
    /// No such alias.
    AliasNotFound = "ALIAS_NOT_FOUND" => NotFound,
    /// No such data set.
    DatasetNotFound = "DATASET_NOT_FOUND" => NotFound,
    /// No such report.
    ReportNotFound = "REPORT_NOT_FOUND" => NotFound,
    /// No such audit policy.
    PolicyNotFound = "POLICY_NOT_FOUND" => NotFound,
    /// There is such a policy.
    PolicyExists = "POLICY_EXISTS" => AlreadyExists,
    /// The name is taken.
    NameTaken = "NAME_TAKEN" => AlreadyExists,
    /// Another generation is current.
    GenerationMismatch = "GENERATION_MISMATCH" => Aborted,
    /// The name points to another data set.
    DatasetMismatch = "DATASET_MISMATCH" => Aborted,
    /// A PEFT feature is not supported.
    AdapterUnsupported = "ADAPTER_UNSUPPORTED" => FailedPrecondition,
    /// The adapter does not fit the base model.
    AdapterMismatch = "ADAPTER_MISMATCH" => FailedPrecondition,
    /// The adapter changes nothing.
    AdapterNoEffect = "ADAPTER_NO_EFFECT" => FailedPrecondition,
    /// The adapter is pinned.
    AdapterPinned = "ADAPTER_PINNED" => FailedPrecondition,
    /// Aliases point to the adapter.
    AdapterInUse = "ADAPTER_IN_USE" => FailedPrecondition,
    /// Jobs need the data set.
    DatasetInUse = "DATASET_IN_USE" => FailedPrecondition,
    /// Aliases demand the policy.
    PolicyInUse = "POLICY_IN_USE" => FailedPrecondition,
    /// The target of an alias has no report that its policy passes.
    AuditGateFailed = "AUDIT_GATE_FAILED" => FailedPrecondition,
    /// No folder is configured from which data sets may be read.
    NoImportDir = "NO_IMPORT_DIR" => FailedPrecondition,
    /// The server has no adapter folder.
    NoAdapterDir = "NO_ADAPTER_DIR" => FailedPrecondition,
    /// The job has ended.
    JobFinished = "JOB_FINISHED" => FailedPrecondition,
    /// The job cannot be taken up again.
    JobNotResumable = "JOB_NOT_RESUMABLE" => FailedPrecondition,
    /// Another job makes the same adapter or alias.
    JobConflict = "JOB_CONFLICT" => FailedPrecondition,
    /// The model has no language head.
    WrongHead = "WRONG_HEAD" => FailedPrecondition,
    /// Neither base model nor adapter has a classification head.
    NoClassifier = "NO_CLASSIFIER" => FailedPrecondition,
    /// The server has no classifier of images.
    NoImageModel = "NO_IMAGE_MODEL" => FailedPrecondition,
    /// Too much waits already.
    QueueFull = "QUEUE_FULL" => ResourceExhausted,
    /// The adapter does not fit into memory now.
    AdapterBudget = "ADAPTER_BUDGET" => ResourceExhausted,
    /// The request can never fit into the key and value cache.
    KvCacheTooSmall = "KV_CACHE_TOO_SMALL" => ResourceExhausted,
    /// More rows are uploaded than allowed.
    TooManyRows = "TOO_MANY_ROWS" => ResourceExhausted,
    /// The upload is larger than allowed.
    UploadTooLarge = "UPLOAD_TOO_LARGE" => ResourceExhausted,
    /// A message is larger than allowed.
    MessageTooLarge = "MESSAGE_TOO_LARGE" => ResourceExhausted,
    /// The disk is full.
    StorageFull = "STORAGE_FULL" => ResourceExhausted,
    /// The caller's time is over.
    DeadlineExceeded = "DEADLINE_EXCEEDED" => DeadlineExceeded,
    /// The server is shutting down.
    Draining = "DRAINING" => Unavailable,
    /// Stored data is damaged.
    DataCorrupt = "DATA_CORRUPT" => DataLoss,
    /// No such method, or an encoding that is not spoken.
    Unimplemented = "UNIMPLEMENTED" => Unimplemented,
    /// A fault of the server.
    Internal = "INTERNAL" => Internal,
}

/// Builds a status that has an ErrorInfo and nothing else.
pub(super) fn plain(reason: Reason, message: impl Into<String>) -> Status {
    with(reason, message, info(reason))
}

/// Builds a status with a RetryInfo.
pub(super) fn retry(reason: Reason, message: impl Into<String>, after: Duration) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(after));
    with(reason, message, details)
}

/// The refusal of a server that shuts down.
pub(super) fn draining() -> Status {
    retry(Reason::Draining, "the server is shutting down", RETRY)
}

/// The answer when the caller's time is over.
pub(super) fn deadline_exceeded() -> Status {
    plain(Reason::DeadlineExceeded, "deadline passed")
}

/// Names all faulty fields.
pub(super) fn violations(violations: &Violations) -> Status {
    let list: Vec<_> =
        violations.list().iter().map(|v| FieldViolation::new(v.field.clone(), v.description.clone())).collect();
    let message = violations.list().iter().map(|v| format!("{} {}", v.field, v.description)).collect::<Vec<_>>();
    let mut details = info(Reason::InvalidField);
    details.set_bad_request(list);
    with(Reason::InvalidField, message.join("; "), details)
}

/// Faults by field, with a reason of their own.
pub(super) fn faults(reason: Reason, list: Vec<(String, String)>) -> Status {
    let message = list.first().map_or_else(String::new, |(field, fault)| format!("{field}: {fault}"));
    let mut details = info(reason);
    details
        .set_bad_request(list.into_iter().map(|(field, fault)| FieldViolation::new(field, fault)).collect::<Vec<_>>());
    with(reason, message, details)
}

/// One fault in one field, with a reason of its own.
pub(super) fn field(reason: Reason, field: &str, message: &str) -> Status {
    let mut details = info(reason);
    details.add_bad_request_violation(field, message);
    with(reason, message, details)
}

/// Logs a fault of the server and tells the client its request id only.
pub(super) fn internal(error: &dyn Error, request_id: &str) -> Status {
    let mut chain = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        chain = format!("{chain}: {source}");
        cause = source.source();
    }
    tracing::error!(request_id, error = %chain, "request failed by a fault of the server");
    opaque(request_id)
}

/// What a client sees of a fault of the server.
pub(super) fn opaque(request_id: &str) -> Status {
    let mut details = info(Reason::Internal);
    details.set_request_info(request_id, "");
    with(Reason::Internal, "internal error", details)
}

/// Maps an error of the engine.
pub(super) fn engine(error: &EngineError, context: &Context) -> Status {
    match error {
        EngineError::QueueFull { limit, retry_after, .. } => {
            let mut details = info(Reason::QueueFull);
            details.set_retry_info(Some(*retry_after));
            details.add_quota_failure_violation("engine.max_waiting_sequences", format!("{limit} sequences may wait"));
            with(Reason::QueueFull, error.to_string(), details)
        }
        EngineError::KvCacheTooSmall { available, .. } => {
            let mut details = info(Reason::KvCacheTooSmall);
            details.add_quota_failure_violation("engine.kv_cache_bytes", format!("{available} bytes"));
            with(Reason::KvCacheTooSmall, error.to_string(), details)
        }
        EngineError::DeadlineExceeded => deadline_exceeded(),
        EngineError::Draining => draining(),
        EngineError::Model(_) | EngineError::Stopped => internal(error, &context.request_id),
    }
}

/// Maps an error of the registry.
pub(super) fn registry(error: &RegistryError, context: &Context) -> Status {
    let message = error.to_string();
    match error {
        RegistryError::AdapterNotFound(name) => resource(Reason::AdapterNotFound, "adapter", name, message),
        RegistryError::BaseNotFound { name, .. } => resource(Reason::BaseModelNotFound, "base_model", name, message),
        RegistryError::AliasNotFound(name) => resource(Reason::AliasNotFound, "alias", name, message),
        RegistryError::NameTaken(name, owner) => resource(Reason::NameTaken, owner, name, message),
        RegistryError::GenerationMismatch { name, actual, .. } => {
            let mut details = ErrorDetails::new();
            let current = [("current_generation".to_owned(), actual.clone())];
            details.set_error_info(Reason::GenerationMismatch.as_str(), DOMAIN, current);
            details.set_resource_info("generation", name, "", &message);
            with(Reason::GenerationMismatch, message, details)
        }
        RegistryError::Gate(error) => gate(error, context),
        RegistryError::Lora(error) => lora(error, context),
        RegistryError::NoEffect => precondition(Reason::AdapterNoEffect, "adapter", message),
        RegistryError::Budget { budget, .. } => {
            let mut details = info(Reason::AdapterBudget);
            details.set_retry_info(Some(RETRY));
            details.add_quota_failure_violation("registry.memory_bytes", format!("{budget} bytes"));
            with(Reason::AdapterBudget, message, details)
        }
        RegistryError::Pinned(name) => precondition(Reason::AdapterPinned, name, message),
        RegistryError::InUse { name, .. } | RegistryError::Held { name, .. } => {
            precondition(Reason::AdapterInUse, name, message)
        }
        RegistryError::NoAdapterDir => precondition(Reason::NoAdapterDir, "registry.adapter_dir", message),
        RegistryError::Directory(_) => field(Reason::InvalidField, "directory", &message),
        RegistryError::RequestIdReused(_) => field(Reason::RequestIdReused, "request_id", &message),
        RegistryError::Model(_) => internal(error, &context.request_id),
        RegistryError::Store(error) => store(error, context),
    }
}

fn gate(error: &GateError, context: &Context) -> Status {
    let message = error.to_string();
    match error {
        GateError::PolicyNotFound(name) => resource(Reason::PolicyNotFound, "policy", name, message),
        GateError::Failed { policy, report, reasons } => {
            let reason = Reason::AuditGateFailed;
            let report = report.clone().map(|report| ("report".to_owned(), report));
            let metadata: HashMap<_, _> = report.into_iter().chain([("policy".to_owned(), policy.clone())]).collect();
            let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
            // A status travels in headers, which are small.
            let violations = reasons.iter().take(MOST_REASONS);
            details.set_precondition_failure(
                violations.map(|text| PreconditionViolation::new(reason.as_str(), policy, text)).collect::<Vec<_>>(),
            );
            with(reason, message, details)
        }
        GateError::Store(error) => store(error, context),
    }
}

/// Maps an error of the reports.
pub(super) fn reports(error: &ReportsError, context: &Context) -> Status {
    let message = error.to_string();
    match error {
        ReportsError::ReportNotFound(name) => resource(Reason::ReportNotFound, "report", name, message),
        ReportsError::PolicyNotFound(name) => resource(Reason::PolicyNotFound, "policy", name, message),
        ReportsError::PolicyExists(name) => resource(Reason::PolicyExists, "policy", name, message),
        ReportsError::PolicyInUse { name, .. } => precondition(Reason::PolicyInUse, name, message),
        ReportsError::RequestIdReused(_) => field(Reason::RequestIdReused, "request_id", &message),
        ReportsError::Store(error) => store(error, context),
    }
}

/// The refusal to classify without a classification head.
pub(super) fn no_classifier(adapter: &str) -> Status {
    let subject = if adapter.is_empty() { "base_model" } else { adapter };
    let text = "neither the base model nor the adapter has a classification head";
    precondition(Reason::NoClassifier, subject, text.to_owned())
}

/// The refusal of images where no model takes them.
pub(super) fn no_image_model() -> Status {
    precondition(Reason::NoImageModel, "model.images", "this server was started without a model of images".to_owned())
}

/// Maps an error of the data sets.
pub(super) fn dataset(error: &DatasetError, context: &Context) -> Status {
    let message = error.to_string();
    match error {
        DatasetError::Invalid(faults) => {
            let reason = Reason::DatasetInvalid;
            let first = faults.first();
            let row = first.and_then(|fault| fault.row).map(|row| ("row".to_owned(), row.to_string()));
            let column = first.and_then(|fault| fault.column.clone()).map(|column| ("column".to_owned(), column));
            let mut details = ErrorDetails::new();
            let metadata: HashMap<_, _> = row.into_iter().chain(column).collect();
            details.set_error_info(reason.as_str(), DOMAIN, metadata);
            let violation = |fault: &Fault| FieldViolation::new(place(fault), fault.kind.to_string());
            details.set_bad_request(faults.iter().map(violation).collect::<Vec<_>>());
            with(reason, message, details)
        }
        DatasetError::NotFound(name) => resource(Reason::DatasetNotFound, "dataset", name, message),
        DatasetError::Mismatch { name, actual, .. } => {
            let reason = Reason::DatasetMismatch;
            let current = [("current_id".to_owned(), actual.clone())];
            let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, current);
            details.set_resource_info("dataset", name, "", &message);
            with(reason, message, details)
        }
        DatasetError::InUse { name, .. } => precondition(Reason::DatasetInUse, name, message),
        DatasetError::NoImportDir => precondition(Reason::NoImportDir, "datasets.import_dir", message),
        DatasetError::Folder { field: name, .. } => field(Reason::InvalidField, name, &message),
        DatasetError::RequestIdReused(_) => field(Reason::RequestIdReused, "request_id", &message),
        DatasetError::Store(error) => store(error, context),
    }
}

/// Names the place of a fault as a field.
fn place(fault: &Fault) -> String {
    match (fault.row, &fault.column) {
        (Some(row), Some(column)) => format!("rows[{row}].{column}"),
        (Some(row), None) => format!("rows[{row}]"),
        (None, Some(column)) => format!("columns.{column}"),
        (None, None) => "file".to_owned(),
    }
}

/// Maps an error of the jobs.
pub(super) fn jobs(error: &JobsError, context: &Context) -> Status {
    let message = error.to_string();
    match error {
        JobsError::NotFound(id) => resource(Reason::JobNotFound, "job", id, message),
        JobsError::DatasetNotFound(name) => resource(Reason::DatasetNotFound, "dataset", name, message),
        JobsError::Finished(_) => precondition(Reason::JobFinished, "job", message),
        JobsError::NotResumable(_) => precondition(Reason::JobNotResumable, "job", message),
        JobsError::Conflict(other) => precondition(Reason::JobConflict, other, message),
        JobsError::QueueFull(limit) => {
            let mut details = info(Reason::QueueFull);
            details.set_retry_info(Some(RETRY));
            details.add_quota_failure_violation("jobs.max_queued", format!("{limit} jobs may wait"));
            with(Reason::QueueFull, message, details)
        }
        JobsError::TooManyModels { .. } => field(Reason::InvalidField, "models", &message),
        JobsError::Measure { place, why } => field(Reason::InvalidField, &format!("settings.measures[{place}]"), why),
        JobsError::RequestIdReused(_) => field(Reason::RequestIdReused, "request_id", &message),
        JobsError::Event => field(Reason::WatchToken, "token", "is not a token of this job"),
        JobsError::Registry(error) => registry(error, context),
        JobsError::Store(error) => store(error, context),
    }
}

/// Maps an error of the border's own work on prompts.
pub(super) fn prompt(error: &PromptError, context: &Context) -> Status {
    match error {
        PromptError::Violations(list) => violations(list),
        PromptError::ContextLength { field: name, .. } => field(Reason::ContextLength, name, &error.to_string()),
        PromptError::NoChatTemplate => field(Reason::ChatTemplate, "messages", &error.to_string()),
        PromptError::Chat(ChatError::Refused(_)) => field(Reason::ChatTemplate, "messages", &error.to_string()),
        PromptError::Chat(ChatError::Template(_)) => field(Reason::ChatTemplate, "messages", &error.to_string()),
        PromptError::Chat(ChatError::Tokenizer(_)) | PromptError::Tokenizer(_) => internal(error, &context.request_id),
        PromptError::WrongHead => precondition(Reason::WrongHead, "base_model", error.to_string()),
    }
}

fn lora(error: &LoraError, context: &Context) -> Status {
    let message = error.to_string();
    match error {
        LoraError::Invalid(_) => field(Reason::AdapterInvalid, "files", &message),
        LoraError::Unsupported(feature) => precondition(Reason::AdapterUnsupported, feature, message),
        LoraError::Mismatch(_) => precondition(Reason::AdapterMismatch, "adapter", message),
        LoraError::Tensor(_) => internal(error, &context.request_id),
    }
}

fn store(error: &StoreError, context: &Context) -> Status {
    match error {
        StoreError::Full => plain(Reason::StorageFull, error.to_string()),
        StoreError::Corrupt(_) => {
            tracing::error!(request_id = %context.request_id, %error, "stored data is damaged");
            plain(Reason::DataCorrupt, error.to_string())
        }
        StoreError::Locked(_) | StoreError::Database(_) | StoreError::Io { .. } => internal(error, &context.request_id),
    }
}

fn info(reason: Reason) -> ErrorDetails {
    ErrorDetails::with_error_info(reason.as_str(), DOMAIN, [])
}

fn resource(reason: Reason, kind: &str, name: &str, message: String) -> Status {
    let mut details = info(reason);
    details.set_resource_info(kind, name, "", &message);
    with(reason, message, details)
}

fn precondition(reason: Reason, subject: &str, message: String) -> Status {
    let mut details = info(reason);
    details.add_precondition_failure_violation(reason.as_str(), subject, &message);
    with(reason, message, details)
}

/// Cuts messages that echo what the caller sent: a status travels in headers, which are small.
fn with(reason: Reason, message: impl Into<String>, details: ErrorDetails) -> Status {
    let mut message = message.into();
    if message.len() > 1024 {
        let cut = (0..=1024).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    Status::with_error_details(reason.code(), message, details)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
