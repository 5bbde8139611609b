//! Compiles `proto/` into `OUT_DIR`, without protoc, and keeps the descriptor set for reflection.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "server",
        "inference",
        "adapter",
        "dataset",
        "training",
        "job",
        "fine_tuning",
        "audit_settings",
        "audit_report",
        "audit",
    ]
    .map(|name| format!("evenkeel/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gives OUT_DIR")?);
    fs::write(out.join("evenkeel.binpb"), prost::Message::encode_to_vec(&descriptors))?;
    // A job is large, a step small.
    tonic_prost_build::configure().boxed(".evenkeel.v1.WatchJobResponse.event.job").compile_fds(descriptors)?;
    Ok(())
}
