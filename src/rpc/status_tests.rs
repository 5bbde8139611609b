//! Tests of `status`: each variant of each error has its code, its reason and its details.

use super::*;
use crate::model::ModelError;
use crate::store::RequestIdReused;

fn context() -> Context {
    Context { request_id: "r-1".into(), deadline: None }
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every error has an ErrorInfo");
    assert_eq!(info.domain, DOMAIN);
    info.reason
}

fn io() -> std::io::Error {
    std::io::Error::other("secret path")
}

#[test]
fn every_engine_error_has_code_reason_and_details() {
    let full = EngineError::QueueFull { waiting: 9, limit: 8, retry_after: Duration::from_secs(3) };
    let small = EngineError::KvCacheTooSmall { needed: 9, available: 8 };
    let model = EngineError::Model(ModelError::Unsupported("x".into()));
    let cases = [
        (&full, Code::ResourceExhausted, "QUEUE_FULL"),
        (&small, Code::ResourceExhausted, "KV_CACHE_TOO_SMALL"),
        (&EngineError::DeadlineExceeded, Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (&EngineError::Draining, Code::Unavailable, "DRAINING"),
        (&model, Code::Internal, "INTERNAL"),
        (&EngineError::Stopped, Code::Internal, "INTERNAL"),
    ];
    for (error, code, text) in cases {
        let status = engine(error, &context());
        assert_eq!((status.code(), reason(&status).as_str()), (code, text), "{error}");
    }
    let retry = |e| engine(e, &context()).get_details_retry_info().and_then(|r| r.retry_delay);
    assert_eq!(retry(&full), Some(Duration::from_secs(3)));
    assert!(retry(&EngineError::Draining).is_some());
    assert!(engine(&full, &context()).get_details_quota_failure().is_some());
}

#[test]
fn every_registry_error_has_code_and_reason() {
    use RegistryError as R;
    let mismatch = R::GenerationMismatch { name: "a".into(), expected: "b".into(), actual: "c".into() };
    let cases = [
        (R::AdapterNotFound("a".into()), Code::NotFound, "ADAPTER_NOT_FOUND"),
        (R::BaseNotFound { name: "a".into(), known: "b".into() }, Code::NotFound, "BASE_MODEL_NOT_FOUND"),
        (R::AliasNotFound("a".into()), Code::NotFound, "ALIAS_NOT_FOUND"),
        (R::NameTaken("a".into(), "an alias"), Code::AlreadyExists, "NAME_TAKEN"),
        (mismatch, Code::Aborted, "GENERATION_MISMATCH"),
        (R::Lora(LoraError::Invalid("x".into())), Code::InvalidArgument, "ADAPTER_INVALID"),
        (R::Lora(LoraError::Unsupported("x".into())), Code::FailedPrecondition, "ADAPTER_UNSUPPORTED"),
        (R::Lora(LoraError::Mismatch("x".into())), Code::FailedPrecondition, "ADAPTER_MISMATCH"),
        (R::Lora(LoraError::Tensor(candle_core::Error::Msg("x".into()))), Code::Internal, "INTERNAL"),
        (R::NoEffect, Code::FailedPrecondition, "ADAPTER_NO_EFFECT"),
        (R::Budget { needed: 1, budget: 2, busy: 3 }, Code::ResourceExhausted, "ADAPTER_BUDGET"),
        (R::Pinned("a".into()), Code::FailedPrecondition, "ADAPTER_PINNED"),
        (R::InUse { name: "a".into(), aliases: vec!["b".into()] }, Code::FailedPrecondition, "ADAPTER_IN_USE"),
        (R::NoAdapterDir, Code::FailedPrecondition, "NO_ADAPTER_DIR"),
        (R::Directory("x".into()), Code::InvalidArgument, "INVALID_FIELD"),
        (R::RequestIdReused("x".into()), Code::InvalidArgument, "REQUEST_ID_REUSED"),
        (R::Model(ModelError::Unsupported("x".into())), Code::Internal, "INTERNAL"),
        (R::Store(StoreError::Full), Code::ResourceExhausted, "STORAGE_FULL"),
        (R::Store(StoreError::Corrupt("x".into())), Code::DataLoss, "DATA_CORRUPT"),
        (R::Store(StoreError::Locked("x".into())), Code::Internal, "INTERNAL"),
        (R::Store(StoreError::Io { path: "p".into(), source: io() }), Code::Internal, "INTERNAL"),
    ];
    for (error, code, text) in cases {
        let status = registry(&error, &context());
        assert_eq!((status.code(), reason(&status).as_str()), (code, text), "{error}");
        // A job whose result is refused says the same, or that it cannot be the caller's fault.
        let told = crate::jobs::refused(&error).reason;
        assert!(told == text || told == "INTERNAL", "{error}: {told}");
        let details = status.get_error_details();
        if code == Code::InvalidArgument {
            assert!(details.bad_request().is_some(), "{error}");
        } else if code == Code::FailedPrecondition {
            assert!(details.precondition_failure().is_some(), "{error}");
        } else if matches!(code, Code::NotFound | Code::AlreadyExists) {
            assert!(details.resource_info().is_some(), "{error}");
        }
    }
}

#[test]
fn every_dataset_error_has_code_reason_and_details() {
    use crate::dataset::FaultKind;
    use DatasetError as D;
    let fault = |row: Option<u64>, column: Option<&str>| Fault {
        row,
        column: column.map(str::to_owned),
        kind: FaultKind::Missing,
    };
    let places = vec![fault(Some(7), Some("label")), fault(Some(8), None), fault(None, Some("x")), fault(None, None)];
    let mismatch = D::Mismatch { name: "a".into(), expected: "b".into(), actual: "c".into() };
    let cases = [
        (D::Invalid(places), Code::InvalidArgument, "DATASET_INVALID"),
        (D::NotFound("a".into()), Code::NotFound, "DATASET_NOT_FOUND"),
        (mismatch, Code::Aborted, "DATASET_MISMATCH"),
        (D::InUse { name: "a".into(), holders: vec!["b".into()] }, Code::FailedPrecondition, "DATASET_IN_USE"),
        (D::NoImportDir, Code::FailedPrecondition, "NO_IMPORT_DIR"),
        (D::Folder { field: "listing", fault: "x".into() }, Code::InvalidArgument, "INVALID_FIELD"),
        (D::RequestIdReused(RequestIdReused("x".into())), Code::InvalidArgument, "REQUEST_ID_REUSED"),
        (D::Store(StoreError::Full), Code::ResourceExhausted, "STORAGE_FULL"),
        (D::Store(StoreError::Corrupt("x".into())), Code::DataLoss, "DATA_CORRUPT"),
    ];
    for (error, code, text) in &cases {
        let status = dataset(error, &context());
        assert_eq!((status.code(), reason(&status).as_str()), (*code, *text), "{error}");
    }
    let status = dataset(&cases[0].0, &context());
    let fields = status.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = fields.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["rows[7].label", "rows[8]", "columns.x", "file"]);
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!((metadata["row"].as_str(), metadata["column"].as_str()), ("7", "label"));
    assert_eq!(dataset(&cases[2].0, &context()).get_details_error_info().unwrap().metadata["current_id"], "c");
}

#[test]
fn every_jobs_error_has_code_and_reason() {
    use JobsError as J;
    let cases = [
        (J::NotFound("a".into()), Code::NotFound, "JOB_NOT_FOUND"),
        (J::DatasetNotFound("a".into()), Code::NotFound, "DATASET_NOT_FOUND"),
        (J::Finished(crate::jobs::State::Failed), Code::FailedPrecondition, "JOB_FINISHED"),
        (J::NotResumable("x".into()), Code::FailedPrecondition, "JOB_NOT_RESUMABLE"),
        (J::Conflict("x".into()), Code::FailedPrecondition, "JOB_CONFLICT"),
        (J::QueueFull(3), Code::ResourceExhausted, "QUEUE_FULL"),
        (J::TooManyModels { wanted: 9, limit: 8 }, Code::InvalidArgument, "INVALID_FIELD"),
        (J::Event, Code::InvalidArgument, "WATCH_TOKEN"),
        (J::Registry(RegistryError::RequestIdReused("x".into())), Code::InvalidArgument, "REQUEST_ID_REUSED"),
        (J::Store(StoreError::Full), Code::ResourceExhausted, "STORAGE_FULL"),
        (J::Store(StoreError::Corrupt("x".into())), Code::DataLoss, "DATA_CORRUPT"),
    ];
    for (error, code, text) in cases {
        let status = jobs(&error, &context());
        assert_eq!((status.code(), reason(&status).as_str()), (code, text), "{error}");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().is_some(), code == Code::InvalidArgument, "{error}");
        assert_eq!(details.precondition_failure().is_some(), code == Code::FailedPrecondition, "{error}");
        assert_eq!(details.resource_info().is_some(), code == Code::NotFound, "{error}");
    }
    assert!(jobs(&J::QueueFull(3), &context()).get_details_retry_info().is_some());
}

/// A job that fails tells the same reasons as calls do, or one of its own that the proto explains.
#[test]
fn reasons_of_failed_jobs_are_known() {
    let proto = include_str!("../../proto/evenkeel/v1/job.proto");
    for reason in crate::jobs::reason::ALL {
        let known = Reason::ALL.iter().any(|known| known.as_str() == reason);
        assert!(known || proto.contains(&format!("`{reason}`")), "{reason}");
    }
}

#[test]
fn internal_faults_tell_the_request_id_and_nothing_else() {
    let error = RegistryError::Store(StoreError::Io { path: "/secret".into(), source: io() });
    let status = registry(&error, &context());
    assert_eq!(status.message(), "internal error");
    assert_eq!(status.get_details_request_info().unwrap().request_id, "r-1");
    assert!(!String::from_utf8_lossy(status.details()).contains("secret"));
}

#[test]
fn all_violations_are_listed() {
    let mut faults = Violations::default();
    faults.add("a", "must be 1");
    faults.add("b", "must be 2");
    let status = violations(&faults);
    let listed = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(listed.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(reason(&status), "INVALID_FIELD");
}

#[test]
fn long_messages_are_cut_between_characters() {
    let status = plain(Reason::InvalidField, "é".repeat(5000));
    assert!(status.message().len() < 1100);
}

/// The protos are the API reference: each reason they name exists, and each that exists is named in them.
#[test]
fn the_protos_name_the_reasons_and_no_others() {
    let protos = [
        include_str!("../../proto/evenkeel/v1/server.proto"),
        include_str!("../../proto/evenkeel/v1/inference.proto"),
        include_str!("../../proto/evenkeel/v1/adapter.proto"),
        include_str!("../../proto/evenkeel/v1/dataset.proto"),
        include_str!("../../proto/evenkeel/v1/training.proto"),
        include_str!("../../proto/evenkeel/v1/job.proto"),
        include_str!("../../proto/evenkeel/v1/fine_tuning.proto"),
        include_str!("../../proto/evenkeel/v1/audit.proto"),
    ]
    .concat();
    for reason in Reason::ALL {
        assert!(protos.contains(reason.as_str()), "{} is in no proto comment", reason.as_str());
    }
    // In a comment a reason is followed by its code in brackets; `A and B (CODE)` and `A, B (CODE)` share one.
    let codes = [
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "ABORTED",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "DATA_LOSS",
    ];
    let comments = protos.lines().filter_map(|l| l.trim().strip_prefix("//"));
    // What stands in backquotes is a value or field, no reason.
    let prose = comments.flat_map(|l| l.split('`').step_by(2));
    let words = prose.flat_map(|l| l.split(|c: char| !(c.is_ascii_uppercase() || c == '_')));
    for word in words.filter(|w| w.contains('_') && w.len() > 4 && !codes.contains(w)) {
        assert!(Reason::ALL.iter().any(|r| r.as_str() == word), "{word} is named in a proto but is no reason");
    }
}
