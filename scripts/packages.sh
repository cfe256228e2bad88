#!/bin/bash
# packages.sh BINARIES DIRECTORY: makes Debian packages of the programs in BINARIES, in DIRECTORY.
set -euo pipefail
binaries=$(realpath "$1")
target=$2
rm -rf "$target"
mkdir -p "$target/rangekeeper/docs"
target=$(realpath "$target")
cd "$(dirname "$0")/.."
cp -a debian systemd scripts "$target/rangekeeper"
cp -a docs/systemd.md "$target/rangekeeper/docs"
cd "$target/rangekeeper"
RANGEKEEPER_BIN=$binaries DEB_BUILD_OPTIONS="nocheck ${DEB_BUILD_OPTIONS:-}" \
    dpkg-buildpackage --build=binary --no-sign --no-check-builddeps > ../build.log 2>&1 ||
    { cat ../build.log >&2; exit 1; }
cd ..
rm -rf rangekeeper
ls "$target"/*.deb
