#!/usr/bin/env bash
# Measures evenkeel against llama.cpp and transformers + PEFT in one interleaved run and prints a table of ratios.
# Everything it needs goes below target/bench, the peers in a virtual environment of their own (requirements.txt: some
# GB, and llama.cpp is compiled). Nothing else should run on the machine meanwhile.
# usage: tests/bench/run.sh [OPTION]...                            serving
#        tests/bench/run.sh --training [--sst2 FOLDER] [OPTION]... fine-tuning
#        tests/bench/run.sh --all [--sst2 FOLDER] [OPTION]...      both
#        tests/bench/run.sh --formats [--text FILE] [--llama-server BINARY] [--adapters N] [OPTION]...
#                                                                  the same GGUF formats as llama.cpp
#        tests/bench/run.sh --audit [--hatecheck FOLDER] [--shadows N] [OPTION]...
#                                                                  audits of real data, scoring against transformers
#        tests/bench/run.sh --vision [OPTION]...                   images: speed, a real task, audits
# options: --rounds N, --only TEXT (figures whose title holds it), --program FILE (measures that one, builds nothing),
#          --smoke (a few tokens each: shows that everything works; the figures mean nothing)
set -euo pipefail
cd "$(dirname "$0")/../.."
here=target/bench
mkdir -p "$here"

parts=serving program= sst2=() options=()
while [ $# -gt 0 ]; do
    case $1 in
        --training) parts=training ;;
        --all) parts="serving training" ;;
        --formats) parts=formats ;;
        --audit) parts=audit ;;
        --vision) parts=vision ;;
        --program) program=$2; shift ;;
        --sst2) sst2=(--sst2 "$2"); shift ;;
        --rounds | --only | --text | --llama-server | --adapters | --hatecheck | --shadows) options+=("$1" "$2"); shift ;;
        --smoke) options+=("$1") ;;
        *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    esac
    shift
done

if ! cmp -s tests/bench/requirements.txt "$here/venv/installed"; then
    echo "$(date +%T) peers" >&2
    # One that was finished once is only brought up to date: it is large.
    [ -e "$here/venv/installed" ] || python3 -m venv --clear "$here/venv"
    "$here/venv/bin/pip" install -q --disable-pip-version-check -r tests/bench/requirements.txt
    cp tests/bench/requirements.txt "$here/venv/installed"
fi
if [ -z "$program" ]; then
    cargo build --release
    program=target/release/evenkeel
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
        audit) "$python" tests/bench/audit.py --binary "$program" --folder "$here/smollm2-f32" --work "$here" \
            "${options[@]}" ;;
        vision) "$python" tests/bench/vision.py --binary "$program" --folder "$here/smollm2-f32" --work "$here" \
            "${options[@]}" ;;
        training) "$python" tests/bench/training.py --binary "$program" --folder "$here/smollm2-f32" --work "$here" \
            "${options[@]}" "${sst2[@]}" ;;
    esac
done
