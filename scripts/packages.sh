#!/bin/bash
# packages.sh BINARIES DIRECTORY: makes Debian packages of the programs in BINARIES, in DIRECTORY.
set -euo pipefail
binaries=$(realpath "$1")
target=$2
rm -rf "$target"
mkdir -p "$target/rangekeeper"
target=$(realpath "$target")
cd "$(dirname "$0")/.."
cp -a debian systemd scripts docs Runbooks dashboards "$target/rangekeeper"
# The programs with the revision that they were built from, where it is known.
mkdir "$target/programs"
for program in kvnode kvrouter kvcontrollerd kvctl kvbench; do cp "$binaries/$program" "$target/programs"; done
if revision=$(git describe --always --dirty --exclude='*' 2> /dev/null); then
    scripts/stamp-revision "$revision" "$target"/programs/*
fi
cd "$target/rangekeeper"
RANGEKEEPER_BIN=$target/programs DEB_BUILD_OPTIONS="nocheck ${DEB_BUILD_OPTIONS:-}" \
    dpkg-buildpackage --build=binary --no-sign --no-check-builddeps > ../build.log 2>&1 ||
    { cat ../build.log >&2; exit 1; }
cd ..
rm -rf rangekeeper programs
ls "$target"/*.deb
