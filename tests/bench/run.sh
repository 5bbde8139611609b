#!/usr/bin/env bash
# Measures evenkeel against llama.cpp and transformers + PEFT in one interleaved run and prints ratios.
# Everything it needs goes below target/bench. Nothing else should run on the machine meanwhile.
# usage: tests/bench/run.sh [--rounds N] [--only TEXT]
#        tests/bench/run.sh --formats [--rounds N] [--only TEXT] [--text FILE] [--llama-server BINARY] [--adapters N]
#                                                                                   the same GGUF formats as llama.cpp
#        tests/bench/run.sh --training [--rounds N] [--only TEXT] [--sst2 FOLDER]    fine-tuning against PEFT
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
export PYTHONPATH=clients/python
if [ "${1:-}" = --training ]; then
    shift
    [ -e "$here/smollm2-f32/config.json" ] || "$here/venv/bin/python" tests/bench/peer_transformers.py \
        --prepare "$(cat "$here/model-path")" "$here/smollm2-f32" "$here/adapters/random-0"
    exec "$here/venv/bin/python" tests/bench/training.py \
        --binary target/release/evenkeel --folder "$here/smollm2-f32" --work "$here" "$@"
fi
script=bench
if [ "${1:-}" = --formats ]; then
    shift
    script=formats
fi
exec "$here/venv/bin/python" "tests/bench/$script.py" \
    --binary target/release/evenkeel --gguf "$(cat "$here/model-path")" --work "$here" "$@"
