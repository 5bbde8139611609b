#!/usr/bin/env bash
# Checks the feature `cuda` on a machine with or without a GPU: that it builds, that its binary needs no library of
# NVIDIA's to start, that it says so when it is told to use a device and there is no driver, that kernels compute what the
# CPU does and models what their references do, on the device where there is one and else on the emulated one, and that no
# kernel spills registers.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Kernels that may spill, with the reason beside each.
may_spill=()

home=${EVENKEEL_CUDA_HOME:-target/cuda}
built=${CARGO_TARGET_DIR:-target}/debug
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() {
    echo "check.sh: $*" >&2
    exit 1
}
has_driver() { /sbin/ldconfig -p | grep 'libcuda\.so\.1 ' >/dev/null; }

# One call, for what tests and the binary depend on has other features when it is built alone.
tests/gpu/cargo.sh test --no-run --lib --test it --message-format json-render-diagnostics >"$scratch/build"
if readelf -d "$built/evenkeel" | grep -E 'NEEDED.*lib(cuda|cublas|curand|nvrtc)'; then
    fail "the binary cannot start without the libraries above"
fi

# The PTX that was built, as a driver compiles it: registers, spilled bytes and static shared memory of each kernel.
out=$(grep '"build-script-executed"' "$scratch/build" | grep -o '"out_dir":"[^"]*/evenkeel-[^"]*"' | cut -d'"' -f4)
for ptx in "$out"/*.ptx; do
    "$home/bin/ptxas" -arch=sm_90a -v "$ptx" -o "$scratch/cubin" 2>"$scratch/log" || fail "$(cat "$scratch/log")"
    awk -v file="$(basename "$ptx" .ptx)" '
        /Compiling entry function/ { split($0, words, "\x27"); kernel = words[2] }
        /bytes spill stores/ { spilled = $5 + $9 }
        /Used [0-9]+ registers/ {
            for (i = 1; i < NF; i++) if ($(i + 1) ~ /^registers/) registers = $i
            shared = 0
            for (i = 2; i <= NF; i++) if ($i ~ /^smem/) shared = $(i - 2)
            printf "%s %s %s %s %s\n", file, kernel, registers, spilled, shared
        }' "$scratch/log" >>"$scratch/kernels"
done
[ -s "$scratch/kernels" ] || fail "no kernel was found in $out"
{ echo file kernel registers spilled_bytes shared_bytes && sort "$scratch/kernels"; } | column -t
while read -r _ kernel _ spilled _; do
    [ "$spilled" -eq 0 ] || [[ " ${may_spill[*]} " == *" $kernel "* ]] || fail "$kernel spills $spilled bytes"
done <"$scratch/kernels"

alone() { env -u LD_LIBRARY_PATH "$built/evenkeel" "$@"; }
alone --version
alone check-config --model some/folder --device cuda >"$scratch/settings"
grep -q 'device = "cuda"' "$scratch/settings" || fail "check-config does not know the device"
if ! has_driver; then
    model=$(find tests/golden/language -name config.json | sort | head -1)
    alone serve --model "$(dirname "$model")" --device cuda --data-dir "$scratch/data" --listen 127.0.0.1:0 \
        --http-listen 127.0.0.1:0 >"$scratch/out" 2>&1 && fail "serve --device cuda starts without a driver"
    grep -q 'device `cuda`: no NVIDIA driver here' "$scratch/out" || fail "serve --device cuda says: $(cat "$scratch/out")"
    tests/gpu/emulator/make.sh target/gpu/emulator
    # The emulated device refuses launches with more registers than there are.
    export EVENKEEL_EMULATOR_KERNELS=$scratch/kernels
    export LD_LIBRARY_PATH=$PWD/target/gpu/emulator${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
tests/gpu/cargo.sh test --lib -- on_gpu model::weights
has_driver || EVENKEEL_EMULATOR_ORDER=reversed tests/gpu/cargo.sh test --lib -- on_gpu
EVENKEEL_DEVICE=cuda tests/gpu/cargo.sh test --test it -- golden_language golden_vision golden_adapters golden_training
echo "check.sh: passed"
