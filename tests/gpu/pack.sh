#!/usr/bin/env bash
# Packs what run.sh needs on a machine with a GPU and without Rust or a network, below target/gpu/pack: the server, its unit
# and integration tests and the bench `engine`, built with the feature `cuda` in the release profile, and wheels of the
# Python client's libraries for Python 3.11 and 3.12. Takes half an hour of a processor at first. Fails where the pack and
# the files of the repository, which travel together, are more than 60 MiB.
# usage: tests/gpu/pack.sh
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/../.."
here=target/gpu pack=target/gpu/pack most=$((60 << 20))
mkdir -p "$pack/wheels" "$here/programs"

echo "$(date +%T) programs" >&2
# Integration tests need the server, so cargo builds it with them.
tests/gpu/cargo.sh test --release --no-run --message-format json-render-diagnostics --lib --test it --bench engine \
    >"$here/built.json"
python3 - "$here/built.json" "$here/programs" <<'P'
import json, pathlib, shutil, subprocess, sys

# The name in the pack, by kind and name of what cargo built.
names = {("lib", "evenkeel"): "unit", ("bin", "evenkeel"): "evenkeel", ("test", "it"): "it", ("bench", "engine"): "engine"}
folder, found = pathlib.Path(sys.argv[2]), set()
for line in open(sys.argv[1]):
    built = json.loads(line)
    if built.get("reason") != "compiler-artifact" or not built["executable"]:
        continue
    name = names.get((built["target"]["kind"][0], built["target"]["name"]))
    if name:
        shutil.copyfile(built["executable"], folder / name)
        (folder / name).chmod(0o755)
        subprocess.run(["strip", folder / name], check=True)
        found.add(name)
if missing := set(names.values()) - found:
    sys.exit(f"cargo built no {', '.join(sorted(missing))}")
P
if readelf -d "$here"/programs/* | grep -E 'NEEDED.*lib(cuda|cublas|curand|nvrtc)'; then
    echo "a program needs a library of NVIDIA to start" >&2
    exit 1
fi
# They share most of what they hold: one archive, with a dictionary that reaches over all of them.
if ! sha256sum --status -c "$here/programs.sums" 2>/dev/null || [ ! -e "$pack/programs.tar.xz" ]; then
    echo "$(date +%T) archive" >&2
    tar -C "$here/programs" --sort=name --owner=0 --group=0 --mtime=@0 -c evenkeel engine it unit |
        xz --lzma2=preset=6,dict=256MiB >"$pack/programs.tar.xz.part"
    mv "$pack/programs.tar.xz.part" "$pack/programs.tar.xz"
    sha256sum "$here"/programs/* >"$here/programs.sums"
fi
git describe --always --dirty --abbrev=12 >"$pack/commit"

if [ ! -e "$pack/wheels/complete" ]; then
    echo "$(date +%T) wheels" >&2
    platforms=()
    for version in 2014 _2_17 _2_28; do platforms+=(--platform "manylinux${version}_x86_64"); done
    for python in 3.11 3.12; do
        python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
            --python-version "$python" "${platforms[@]}" -d "$pack/wheels" grpcio==1.85.3 grpcio-status==1.85.3 \
            googleapis-common-protos protobuf typing-extensions
    done
    touch "$pack/wheels/complete"
fi

du -ab "$pack" | sort -n
size=$(du -sb "$pack" | cut -f1)
files=$(git ls-files -z | xargs -0 du -cb | tail -1 | cut -f1)
echo "$((size >> 10)) KiB in $pack, $((files >> 10)) KiB of the repository"
[ $((size + files)) -le "$most" ] || { echo "together more than $((most >> 20)) MiB" >&2; exit 1; }
