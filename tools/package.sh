#!/bin/sh
# usage: package.sh: builds the packages of this version into build/packages: a .deb for the Debian that this machine
# runs, checked by lintian where that is installed, and a .tar.gz for any x86-64 Linux with glibc 2.34, whose symbol
# versions are checked (build it on Debian 12: a newer C library ties it to newer systems). Neither has CUDA code: that
# ties a package to a driver; `make` on the GPU's machine builds with it.
set -eu
cd "$(dirname "$0")/.."
for tool in dpkg-shlibdeps objdump; do
  command -v "$tool" >/dev/null || { echo "package: $tool is not installed (Debian: dpkg-dev, binutils)" >&2; exit 2; }
done
packages=build/packages
mkdir -p "$packages"
for portable in OFF ON; do
  folder=build/package-$(echo "$portable" | sed 's/OFF/deb/; s/ON/portable/')
  cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DWITH_CUDA=OFF -DPORTABLE="$portable" >/dev/null
  cmake --build "$folder" --target gemma4
  (cd "$folder" && rm -rf packages && cpack >/dev/null) || exit 1
  cp "$folder"/packages/*.deb "$packages" 2>/dev/null || cp "$folder"/packages/*.tar.gz "$packages"
done
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
tar -xzf "$packages"/gemma4-*-linux-x86_64.tar.gz -C "$unpacked"
tools/check_symbols.sh "$unpacked"/*/bin/gemma4 "$unpacked"/*/lib/gemma4/*.so*
if command -v lintian >/dev/null; then
  lintian --fail-on error,warning "$packages"/*.deb
else
  echo "package: lintian is not installed, the .deb was not checked" >&2
fi
ls -l "$packages"
