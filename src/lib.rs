//! Serves a base model with hot-swappable LoRA adapters, fine-tunes new ones and audits them for subgroup fairness,
//! over gRPC.
//!
//! ```text
//! rpc → { engine  jobs  registry  reports  dataset }        registry → reports → audit
//! jobs → { train  audit  registry  reports  dataset }
//! { train  audit } → { encode  dataset }        encode → dataset → model
//! { engine  registry  train  audit } → model → lora → ops
//! { jobs  registry  reports  dataset } → store        { engine  jobs  train  audit } → turns        dataset → model
//! ```
//! Imports point along the arrows only (`tests/it/layering.rs` checks it). `config` and `metrics` are leaves that any
//! layer may read. Start reading at [`server`], which wires the rooms together, then [`engine`] for the life of a
//! request and [`registry`] for the life of an adapter.
//!
//! Five sentences decide everything: an adapter is an argument of `forward`, never a mutation of the model; the base
//! is immutable and shared; anything long is a durable job; identity is content; only `rpc` knows gRPC.

pub mod audit;
pub mod config;
pub mod dataset;
pub mod demo;
mod encode;
pub mod engine;
pub mod http;
pub mod hub;
pub mod jobs;
pub mod lora;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod registry;
pub mod reports;
pub mod rpc;
pub mod server;
pub mod startup;
pub mod store;
pub mod telemetry;
pub mod train;
pub mod turns;
