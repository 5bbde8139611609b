#!/usr/bin/env bash
# Generates evenkeel/v1 from proto/. Old tools on purpose: their code runs on every protobuf from 6.31 on.
# usage: clients/python/make.sh [--check]    with --check it fails when the committed files differ
set -euo pipefail
cd "$(dirname "$0")"
root=$(realpath ../..)
venv=$root/target/tools/client-venv
if [ ! -e "$venv/complete" ]; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check 'grpcio-tools==1.73.1' 'setuptools<81' # it imports pkg_resources
    touch "$venv/complete"
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
(cd "$root/proto" && "$venv/bin/python" -m grpc_tools.protoc -I . --python_out="$out" --pyi_out="$out" \
    --grpc_python_out="$out" evenkeel/v1/*.proto 2>/dev/null)
echo '"""Messages and stubs generated from proto/ by make.sh."""' >"$out/evenkeel/v1/__init__.py"
if [ "${1:-}" = --check ]; then
    diff -r --exclude=__pycache__ "$out/evenkeel/v1" evenkeel/v1
else
    rm -rf evenkeel/v1
    cp -r "$out/evenkeel/v1" evenkeel/v1
fi
