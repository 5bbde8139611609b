#!/usr/bin/env bash
# Measures evenkeel against llama.cpp and transformers + PEFT in one interleaved run and prints ratios.
# Everything it needs goes below target/bench. Nothing else should run on the machine meanwhile.
# usage: tests/bench/run.sh [--rounds N] [--only TEXT]
set -euo pipefail
cd "$(dirname "$0")/../.."
here=target/bench
mkdir -p "$here"
if [ ! -e "$here/venv/.ok" ]; then
    python3 -m venv "$here/venv"
    "$here/venv/bin/pip" install -q torch transformers peft gguf safetensors numpy llama-cpp-python \
        grpcio grpcio-status
    touch "$here/venv/.ok"
fi
cargo build --release
target/release/evenkeel pull smollm2-135m > "$here/model-path"
PYTHONPATH=clients/python exec "$here/venv/bin/python" tests/bench/bench.py \
    --binary target/release/evenkeel --gguf "$(cat "$here/model-path")" --work "$here" "$@"
