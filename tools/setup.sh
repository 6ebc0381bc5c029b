#!/bin/sh
# Installs what the build needs from Debian's packages, if anything of it is missing. Needs root or sudo only then.
# `setup.sh test` adds what the tests need, `setup.sh clients` what the tests of real clients and of the page need.
set -eu
packages="g++ cmake ninja-build pkg-config libhwy-dev nlohmann-json3-dev libcli11-dev libjpeg62-turbo-dev libpng-dev
  libwebp-dev libcpp-httplib-dev"
[ "${1:-}" = test ] && packages="$packages libgtest-dev libgmock-dev libbenchmark-dev python3 xz-utils"
[ "${1:-}" = clients ] && packages="$packages python3 python3-venv chromium openssl ca-certificates"
missing=""
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
echo "installing:$missing"
as_root=""
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "setup: these packages are needed; install them as root, or install sudo"; exit 2; }
  as_root=sudo
fi
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
