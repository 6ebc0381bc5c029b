#!/bin/sh
# Unpacks Debian's arm64 packages of the libraries that the build and the tests need into build/arm-sysroot, for
# cmake/aarch64.cmake. apt resolves and checks them with the system's own sources and keys, but with a state of its own:
# nothing is installed on this system. Does nothing where the folder has what this script names.
set -eu
cd "$(dirname "$0")/.."
packages="libstdc++-12-dev libhwy-dev nlohmann-json3-dev libcli11-dev libjpeg-dev libpng-dev libwebp-dev libgif-dev
  libheif-dev libcurl4-openssl-dev libedit-dev libgtest-dev libgmock-dev libbenchmark-dev"
packages=$(echo $packages) # on one line
folder=build/arm-sysroot
[ "$(cat $folder/packages 2>/dev/null)" = "$packages" ] && exit 0

made=$PWD/$folder.partial
rm -rf "$made" "$folder"
mkdir -p "$made/root" "$made/state/lists/partial" "$made/cache/archives/partial"
: >"$made/status" # nothing is installed, so all that is needed is fetched
apt() {
  apt-get -qq -o APT::Architecture=arm64 -o Dir::State="$made/state" -o Dir::State::status="$made/status" \
    -o Dir::Cache="$made/cache" -o APT::Sandbox::User="$(id -un)" -o APT::Install-Recommends=false "$@"
}
echo "arm_sysroot: fetching arm64 packages (40 MB) into $folder"
apt update
# shellcheck disable=SC2086
apt install --download-only -y $packages
for package in "$made"/cache/archives/*.deb; do dpkg -x "$package" "$made/root"; done
# Absolute links (libz.so -> /lib/...) would lead out of the folder.
find "$made/root" -type l -lname '/*' | while read -r link; do
  ln -sfn --relative "$made/root$(readlink "$link")" "$link"
done
echo "$packages" >"$made/root/packages"
mv "$made/root" "$folder"
rm -rf "$made"
