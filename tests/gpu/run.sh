#!/usr/bin/env bash
# Runs every check that wants a GPU, and measures, on a machine with one; needs Python with torch, transformers and peft, and
# what pack.sh packed. Within 8 minutes, logs and figures in $OUT (default target/gpu/out). Exit code 1 where one fails.
# usage: tests/gpu/run.sh [--quick] [--only NAME] [OPTION]...
#   kernels   unit tests of kernels against their forms for the CPU
#   golden    golden values in f32 on the device
#   parity    scores, tokens and losses against transformers and PEFT in bf16
#   serving   swaps under load, the same bits, a killed job, planned memory
#   figures   speed and memory against transformers and PEFT, and against what the machine allows
# --quick: within 3 minutes, fewer figures; --seconds N: within N seconds. A rehearsal without a GPU: --device cpu --tiny
# [--program FILE] takes that program instead of the packed ones; EVENKEEL_CUDA_LIBRARIES names a folder with libraries that
# emulate a device (slow: --seconds 2000).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-target/gpu/out} pack=target/gpu/pack python=${EVENKEEL_PYTHON:-python3}
seconds=480 only='' device=cuda program='' sizes=()
while [ $# -gt 0 ]; do
    case $1 in
        --quick) seconds=180; sizes+=(--quick) ;;
        --tiny) sizes+=(--tiny) ;;
        --only) only=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --device) device=$2; shift ;;
        --program) program=$(realpath "$2"); shift ;;
        *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    esac
    shift
done
small=()
[[ " ${sizes[*]-} " == *" --tiny "* ]] && small=(--tiny)
mkdir -p "$out"
out=$(realpath "$out")
rm -f "$out"/*.log "$out"/figures.* "$out/summary.md"
# In memory where there is room for two models: what is measured is no disk.
place=${TMPDIR:-/tmp}
shared=$(df --output=avail -B 1G /dev/shm 2>/dev/null | tail -1 || true)
[ "${shared:-0}" -lt 50 ] || place=/dev/shm
work=$(mktemp -d "$place/evenkeel-gpu.XXXXXX")
trap 'rm -rf "$work"' EXIT
left() { echo $((seconds - SECONDS)); }

# --- programs, the CUDA libraries that Python ships, the client ---

programs=$work/programs
mkdir -p "$programs" "$work/bin"
if [ -n "$program" ]; then
    ln -s "$program" "$programs/evenkeel"
    commit="a program that was named"
elif [ -e "$pack/programs.tar.xz" ]; then
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
        "$pack/programs.tar.xz" "$programs"
    commit=$(cat "$pack/commit")
    echo "packed at commit $commit"
else
    echo "no $pack/programs.tar.xz: run tests/gpu/pack.sh where Rust is" >&2
    exit 2
fi
libraries=${EVENKEEL_CUDA_LIBRARIES:-$("$python" - <<'P'
import glob, os, site, sys

roots = {*site.getsitepackages(), *(path for path in sys.path if path.endswith("packages"))}
wanted = ("libcublas.so.*", "libcublasLt.so.*", "libcurand.so.*", "libnvrtc.so.*")
found = {os.path.dirname(file) for root in roots for name in wanted
         for file in glob.glob(f"{root}/nvidia/**/{name}", recursive=True)}
# Those of the toolkit beside them would be opened first, and be other versions.
print(":".join(sorted(found) or ["/usr/local/cuda/lib64"]))
P
)}
libraries=$libraries:/usr/local/nvidia/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# What the driver compiled for one process is there for the next.
export CUDA_CACHE_PATH=$work/compiled CUDA_CACHE_MAXSIZE=$((4 << 30))
# Only our programs look there: torch knows where its own are.
for name in "$programs"/*; do
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$libraries" "$name" >"$work/bin/${name##*/}"
    chmod +x "$work/bin/${name##*/}"
done

export PYTHONPATH=tests/gpu:tests/bench:clients/python PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unpack() { # FOLDER WHEEL...
    "$python" -c 'import sys, zipfile; [zipfile.ZipFile(w).extractall(sys.argv[1]) for w in sys.argv[2:]]' "$@"
}
client() { "$python" -c 'import evenkeel' 2>"$work/client"; }
if ! client; then
    # What is missing only, or where that does not go together, all of it in front of what is there.
    unpack "$work/pure" "$pack"/wheels/*status*.whl "$pack"/wheels/googleapis*.whl
    plain=$PYTHONPATH
    PYTHONPATH=$plain:$work/pure
    if ! client; then
        unpack "$work/all" "$pack"/wheels/*-none-any.whl "$pack"/wheels/protobuf*abi3*.whl \
            "$pack"/wheels/*-"$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"-*.whl
        PYTHONPATH=$work/all:$plain
        client || cat "$work/client"
    fi
fi
nvidia-smi -L 2>/dev/null || true
"$python" - <<'P' || true
import sys, torch, transformers, peft, grpc, google.protobuf
print("Python", sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__, "peft",
      peft.__version__, "grpc", grpc.__version__, "protobuf", google.protobuf.__version__, "GPU", torch.cuda.is_available())
P

# --- checks ---

names=() states=$work/states
mkdir "$states"
# NAME SECONDS COMMAND...: runs one with its own log and remembers how it ended.
check() {
    local name=$1 limit=$2 code=0 begin=$SECONDS
    shift 2
    [ "$limit" -le "$(left)" ] || limit=$(left)
    if [ "$limit" -lt 5 ]; then
        echo "NO TIME" >"$states/$name"
        return
    fi
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    case $code in
        0) echo "PASS in $((SECONDS - begin)) s" ;;
        124 | 137) echo "FAIL: more than $limit s" ;;
        *) echo "FAIL in $((SECONDS - begin)) s: exit code $code" ;;
    esac >"$states/$name"
    echo "$(date +%T) $name: $(cat "$states/$name")"
}
# NAME REASON
skip() {
    echo "SKIPPED: $2" >"$states/$1"
    echo "$(date +%T) $1: SKIPPED: $2"
}
wanted() {
    [ -z "$only" ] || [ "$only" = "$1" ] || return 1
    names+=("$1")
}
# They are not measured, so that they may run side by side where there is room.
aside() {
    if [ "$(nproc)" -ge 8 ]; then "$@" & else "$@"; fi
}

most=$((seconds / 4))
common=(--program "$work/bin/evenkeel" --device "$device" --work "$work")
if wanted kernels; then
    if [ "$device" = cpu ]; then skip kernels "they need CUDA"
    elif [ ! -e "$programs/unit" ]; then skip kernels "the unit tests are not packed"
    else aside check kernels "$most" "$work/bin/unit" on_gpu --test-threads 4; fi
fi
if wanted golden; then
    if [ ! -e "$programs/it" ]; then skip golden "the integration tests are not packed"
    else
        aside check golden "$most" env EVENKEEL_GOLDEN="$PWD/tests/golden" EVENKEEL_DEVICE="$device" "$work/bin/it" \
            golden_language golden_adapters golden_training golden_vision --test-threads 4 --nocapture
    fi
fi
if wanted parity; then aside check parity "$most" "$python" tests/gpu/parity.py "${common[@]}" "${small[@]}"; fi
if wanted serving; then aside check serving "$most" "$python" tests/gpu/serving.py "${common[@]}" "${small[@]}"; fi
wait
if wanted figures; then
    engine=()
    [ -e "$programs/engine" ] && engine=(--engine "$work/bin/engine")
    check figures $(($(left) - 8)) "$python" tests/gpu/figures.py "${common[@]}" "${sizes[@]}" "${engine[@]}" \
        --out "$out" --commit "$commit" --seconds $(($(left) - 20))
fi

# --- what came out ---

failed=0
{
    echo "| check | |"
    echo "| --- | --- |"
    for name in "${names[@]}"; do
        state=$(cat "$states/$name")
        echo "| $name | $state |"
        [[ $state == PASS* || $state == SKIPPED* ]] || failed=1
    done
} >"$out/summary.md"
for name in "${names[@]}"; do
    if [[ $(cat "$states/$name") == FAIL* ]]; then
        printf '\n--- end of %s.log ---\n' "$name"
        tail -n 25 "$out/$name.log" | cut -c1-400
    elif [ -e "$out/$name.log" ] && [ "$name" != figures ]; then
        printf '\n--- %s ---\n' "$name"
        grep -E '^(ok  |test result|golden|[0-9]+ passed)' "$out/$name.log" | cut -c1-200 || true
    fi
done
[ ! -e "$out/figures.md" ] || { echo; cat "$out/figures.md"; }
echo
cat "$out/summary.md"
echo "$SECONDS s"
exit "$failed"
