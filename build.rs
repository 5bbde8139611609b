//! Compiles `proto/` into `OUT_DIR`, without protoc, and keeps the descriptor set for reflection; with the feature `cuda`
//! also the kernels of `src/ops/cuda`, to PTX.

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
    #[cfg(feature = "cuda")]
    cuda(&out)?;
    Ok(())
}

/// Compiles the kernels, and makes the linker content without NVIDIA's libraries: they are opened when a device is asked
/// for (`tests/gpu/README.md`).
#[cfg(feature = "cuda")]
fn cuda(out: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let folder = "src/ops/cuda/kernels";
    // Watched: a kernel is compiled again when a header changed.
    let kernels = cudaforge::KernelBuilder::new().source_dir(folder).watch([folder]);
    kernels.arg("-std=c++17").arg("-O3").build_ptx()?.write(out.join("ptx.rs"))?;
    println!("cargo:rerun-if-changed={folder}");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let home = PathBuf::from(env::var_os("CUDA_HOME").ok_or("CUDA_HOME names the folder of nvcc")?);
    let links = out.join("cuda-link");
    fs::create_dir_all(&links)?;
    for library in ["cuda", "nvrtc", "curand", "cublas", "cublasLt"] {
        fs::write(links.join(format!("lib{library}.a")), b"!<arch>\n")?;
    }
    fs::copy(home.join("lib/libcudart_static.a"), links.join("libcudart.a"))?;
    println!("cargo:rustc-link-search=native={}", links.display());
    Ok(())
}
