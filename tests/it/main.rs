//! The one integration binary: a module a theme.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails says so by a panic, and prints what it counted"
)]

mod adapters;
mod audits;
mod classify;
mod cli;
mod client;
mod datasets;
mod fine_tuning;
mod full;
mod full_disk;
mod generate;
mod golden;
mod image_datasets;
mod images;
mod jobs;
mod layering;
mod limits;
mod metrics;
mod process;
mod reference_models;
mod restart;
mod score;
mod swap;
mod training_rows;
mod transport;
mod uploads;
mod wire;
