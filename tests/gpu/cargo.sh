#!/usr/bin/env bash
# cargo with the feature `cuda`: `cargo.sh test --lib ops::cuda`, `cargo.sh build --release`.
# Puts nvcc 13.0 and the headers that it needs below $EVENKEEL_CUDA_HOME (default target/cuda) at first, from PyPI.
# Why each flag is there: README.md beside this file.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
home=${EVENKEEL_CUDA_HOME:-$top/target/cuda}

# 13.0, no newer one: its PTX is what drivers from 580 on take.
install() {
    local stamp=$home/.nvcc-13.0.88
    [ -e "$stamp" ] && return
    rm -rf "$home"
    mkdir -p "$home"
    cat >"$home/requirements.txt" <<'R'
nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cccl==13.0.85 --hash=sha256:e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649
R
    python3 -m pip install --quiet --no-deps --require-hashes --only-binary=:all: --no-compile \
        --disable-pip-version-check --root-user-action=ignore --target "$home/site" -r "$home/requirements.txt" >&2
    for part in bin include nvvm lib; do ln -s "site/nvidia/cu13/$part" "$home/$part"; done
    rm -f "$home/lib/libnvvm.so.4" # 63 MB that nvcc does not use
    touch "$stamp"
}

install
[ $# -gt 0 ] || exit 0
export CUDA_HOME=$home NVCC=$home/bin/nvcc
export CUDA_COMPUTE_CAP=90 CUDARC_CUDA_VERSION=13000 CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-2}
export RUSTC_WRAPPER=$top/tests/gpu/rustc.sh
command=$1
shift
exec cargo "$command" --features cuda "$@"
