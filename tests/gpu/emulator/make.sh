#!/usr/bin/env bash
# Builds the emulated device: `make.sh [OUT]` makes libcuda.so.1 and its sisters in OUT (default target/gpu/emulator).
# Needs g++, the headers that ../cargo.sh installs, and candle's kernels in cargo's registry. Does what changed only.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
out=${1:-$top/target/gpu/emulator}
headers=${EVENKEEL_CUDA_HOME:-$top/target/cuda}/include
"$here/../cargo.sh"
candle=$(cargo metadata --manifest-path "$top/Cargo.toml" --format-version 1 --features cuda |
    grep -o '"manifest_path":"[^"]*/candle-kernels-[^"]*/Cargo.toml"' | head -1 | cut -d'"' -f4)
candle=$(dirname "$candle")/src
mkdir -p "$out"
flags=(-std=c++17 -O2 -march=native -fPIC -w -pthread -fno-strict-aliasing -mtls-dialect=gnu2
    -I"$here/include" -I"$here" -I"$headers" -I"$top/src/ops/cuda/kernels" -I"$candle")

# Compiles a file of kernels in a namespace of its own, as a module is one, and registers each of them by name.
kernels() {
    local source=$1 name=$2 depends
    shift 2
    local text=$out/$name.ii object=$out/$name.o
    if [ -e "$object" ] && [ -e "$out/$name.d" ]; then
        depends=$(sed 's/^[^:]*://; s/\\$//' "$out/$name.d")
        # shellcheck disable=SC2086
        [ -z "$(find $depends "$here/make.sh" -newer "$object" 2>&1 | head -1)" ] && return
    fi
    echo "emulator: $name"
    {
        echo '#include "emulate.h"'
        echo 'namespace {'
        echo "#line 1 \"$source\""
        sed 's/extern __shared__ \([a-z]*\) \([a-z_]*\)\[\];/DYNAMIC_SHARED(\1, \2);/' "$source"
        echo '}'
    } | g++ "${flags[@]}" -x c++ -E -MMD -MF "$out/$name.d" -MT kernels - -o "$text"
    echo "kernels: $source" >>"$out/$name.d"
    grep -ozE 'extern "C" __attribute__\(\(used\)\)[^(;]*\(' "$text" | tr '\n\0' ' \n' | sed -E 's/ *\($//; s/.*[ *]//' |
        sort -u | sed 's/.*/static emulated::Registered registered_&("&", \&&);/' >"$out/$name.names"
    cat "$out/$name.names" >>"$text"
    g++ "${flags[@]}" "$@" -x c++ -fpreprocessed -c "$text" -o "$object"
}

part() {
    local object=$out/$1.o
    if [ -n "$(find "$here/$1.cpp" "$here/device.h" "$here/emulate.h" "$here/make.sh" -newer "$object" 2>&1 | head -1)" ]; then
        echo "emulator: $1"
        g++ "${flags[@]}" -c "$here/$1.cpp" -o "$object"
    fi
}

objects=()
for name in fibers memory streams driver products random; do
    part $name
    objects+=("$out/$name.o")
done
for name in affine binary cast fill indexing quantized reduce sort ternary unary; do
    kernels "$candle/$name.cu" "candle_$name"
    objects+=("$out/candle_$name.o")
done
for source in "$top"/src/ops/cuda/kernels/*.cu; do
    name=our_$(basename "$source" .cu)
    # A vector that is not aligned, or an index beyond an array, ends the process with its line.
    kernels "$source" "$name" -fsanitize=alignment,bounds -fno-sanitize-recover=all
    objects+=("$out/$name.o")
done
library=$out/libcuda.so.1
if [ -n "$(find "${objects[@]}" -newer "$library" 2>&1 | head -1)" ]; then
    g++ -shared -pthread -fsanitize=undefined -o "$library.new" "${objects[@]}" -Wl,-soname,libcuda.so.1 -Wl,-z,defs
    mv "$library.new" "$library"
    for name in cuda.so cublas.so.13 cublasLt.so.13 curand.so.10 nvrtc.so.13; do ln -sf libcuda.so.1 "$out/lib$name"; done
fi
