#!/usr/bin/env bash
# Measures evenkeel against llama.cpp and transformers + PEFT in one interleaved run and prints a table of ratios.
# Everything it needs goes below target/bench, the peers in a virtual environment of their own (requirements.txt: some
# GB, and llama.cpp is compiled). Nothing else should run on the machine meanwhile.
# usage: tests/bench/run.sh [OPTION]...                            serving
#        tests/bench/run.sh --training [--sst2 FOLDER] [OPTION]... fine-tuning
#        tests/bench/run.sh --all [--sst2 FOLDER] [OPTION]...      both
#        tests/bench/run.sh --formats [--text FILE] [--llama-server [BINARY]] [OPTION]...
#                                                                  the same GGUF formats as llama.cpp; with its server
#                                                                  too, which is compiled here where none is named
#        tests/bench/run.sh --alone [--adapters N] [OPTION]...     start, gRPC, streams, adapters, swaps, a prompt again
#        tests/bench/run.sh --audit [--hatecheck FOLDER] [--shadows N] [OPTION]...
#                                                                  audits of real data, scoring against transformers
#        tests/bench/run.sh --vision [OPTION]...                   images: speed, a real task, audits
# options: --rounds N, --only TEXT (figures whose title holds it), --program FILE (measures that one, builds nothing
#          but what --alone asks of cargo bench), --busy (serving, formats and training steps also beside one process
#          that computes without end, and what share of the speed is left), --smoke (a few tokens each: shows that
#          everything works; the figures mean nothing)
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/../.."
here=target/bench
mkdir -p "$here"

# Prints what llama.cpp is compiled for: this processor, but without AMX, its code for which ends the process (it loads
# tiles on a thread that has configured none).
for_processor() {
    if ! grep -qw amx_tile /proc/cpuinfo; then
        echo -DGGML_NATIVE=ON
        return
    fi
    local flag
    printf %s -DGGML_NATIVE=OFF
    for flag in SSE42:sse4_2 AVX:avx AVX2:avx2 FMA:fma F16C:f16c BMI2:bmi2 AVX512:avx512f AVX512_VBMI:avx512vbmi \
        AVX512_VNNI:avx512_vnni AVX512_BF16:avx512_bf16; do
        if grep -qw "${flag#*:}" /proc/cpuinfo; then printf %s " -DGGML_${flag%:*}=ON"; fi
    done
    echo
}

# llama.cpp's server, of the sources that llama-cpp-python brings, for this processor; without TLS and web pages.
llama_server() {
    local version folder processor
    version=$(sed -n 's/^llama-cpp-python==//p' tests/bench/requirements.txt)
    folder=$here/llama-cpp-$version
    if [ ! -x "$folder/llama-server" ]; then
        echo "$(date +%T) llama-server" >&2
        command -v cmake >/dev/null || "$here/venv/bin/pip" install -q --disable-pip-version-check cmake==4.4.5
        "$here/venv/bin/pip" download -q --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
            "llama-cpp-python==$version" -d "$folder"
        tar -xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder"
        PATH=$PATH:$PWD/$here/venv/bin
        read -ra processor < <(for_processor)
        cmake -S "$folder/llama_cpp_python-$version/vendor/llama.cpp" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release \
            "${processor[@]}" -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TESTS=OFF \
            -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF >&2
        cmake --build "$folder/build" --target llama-server -j "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" >&2
        cp "$folder/build/bin/llama-server" "$folder"
    fi
    echo "$folder/llama-server"
}

parts=serving program= server= sst2=() options=()
while [ $# -gt 0 ]; do
    case $1 in
        --training) parts=training ;;
        --all) parts="serving training" ;;
        --formats) parts=formats ;;
        --alone) parts=alone ;;
        --audit) parts=audit ;;
        --vision) parts=vision ;;
        --program) program=$2; shift ;;
        --sst2) sst2=(--sst2 "$2"); shift ;;
        --llama-server)
            case ${2-} in "" | --*) server=build ;; *) server=$2; shift ;; esac ;;
        --rounds | --only | --text | --adapters | --hatecheck | --shadows) options+=("$1" "$2"); shift ;;
        --smoke | --busy) options+=("$1") ;;
        *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    esac
    shift
done

if ! cmp -s tests/bench/requirements.txt "$here/venv/installed"; then
    echo "$(date +%T) peers" >&2
    # One that was finished once is only brought up to date: it is large.
    [ -e "$here/venv/installed" ] || python3 -m venv --clear "$here/venv"
    CMAKE_ARGS=$(for_processor) "$here/venv/bin/pip" install -q --disable-pip-version-check \
        -r tests/bench/requirements.txt
    cp tests/bench/requirements.txt "$here/venv/installed"
fi
if [ -z "$program" ]; then
    cargo build --release
    program=target/release/evenkeel
fi
if [ "$server" = build ]; then
    server=$(llama_server)
fi
if [ -n "$server" ]; then
    options+=(--llama-server "$server")
fi
gguf=$("$program" pull smollm2-135m)
export PYTHONPATH=clients/python PYTHONDONTWRITEBYTECODE=1
python=$here/venv/bin/python
"$python" tests/bench/peer_transformers.py --prepare "$gguf" "$here/smollm2-f32" "$here"/adapters/random-{0..7}
"$python" tests/bench/peer.py --machine "$program"
for part in $parts; do
    case $part in
        serving) "$python" tests/bench/bench.py --binary "$program" --gguf "$gguf" --work "$here" "${options[@]}" ;;
        formats) "$python" tests/bench/formats.py --binary "$program" --gguf "$gguf" --work "$here" "${options[@]}" ;;
        alone) "$python" tests/bench/alone.py --binary "$program" --gguf "$gguf" --work "$here" "${options[@]}" ;;
        audit) "$python" tests/bench/audit.py --binary "$program" --folder "$here/smollm2-f32" --work "$here" \
            "${options[@]}" ;;
        vision) "$python" tests/bench/vision.py --binary "$program" --folder "$here/smollm2-f32" --work "$here" \
            "${options[@]}" ;;
        training) "$python" tests/bench/training.py --binary "$program" --folder "$here/smollm2-f32" --work "$here" \
            "${options[@]}" "${sst2[@]}" ;;
    esac
done
