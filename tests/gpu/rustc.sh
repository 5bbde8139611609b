#!/bin/sh
# rustc as cargo.sh has cargo call it: the library cudarc, not its build script, is compiled so that it opens NVIDIA's
# libraries when a device is asked for.
case " $* " in *" --crate-name cudarc "*) set -- "$@" --cfg 'feature="dynamic-loading"' ;; esac
exec "$@"
