//! The border: sole user of gRPC and the generated types.
//!
//! A request crosses it once: `convert` checks it completely, the engine or the registry answers in plain values, and
//! `status` gives every error its code and details. What is the same for all methods (request id, metrics, deadline)
//! is done once in [`layers`]. Nothing here computes or stores anything.

mod adapters;
mod audit_models;
mod audit_policies;
mod audit_report;
mod audit_scores;
mod audit_settings;
mod audit_settings_out;
mod audit_signals;
mod audit_tasks;
mod audits;
mod classify;
mod classify_request;
mod classify_rows;
mod context;
mod convert;
mod dataset_rows;
mod datasets;
mod declaration;
pub mod decode;
mod download;
mod fields;
mod fine_tuning;
pub mod images;
mod inference;
mod info;
mod jobs;
pub mod layers;
pub mod listener;
mod names;
mod page;
mod prompt;
mod services;
mod status;
mod training;
mod upload;
mod violations;

pub use services::{Companions, Services, readiness_names};
pub use status::{DOMAIN, Reason};

/// Messages and services generated from `proto/`.
#[expect(clippy::allow_attributes_without_reason, clippy::large_enum_variant, reason = "generated")]
pub mod pb {
    tonic::include_proto!("evenkeel.v1");

    /// The descriptors of `proto/` and all they import, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/evenkeel.binpb"));
}
