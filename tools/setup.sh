#!/bin/sh
# Installs the Debian packages that the build needs. Needs root or sudo only if one is missing. `setup.sh test` adds the
# packages for the tests, `setup.sh clients` those for the tests with real clients and of the page, `setup.sh terminal`
# those for the tests of the terminal.
set -eu
packages="g++ cmake ninja-build pkg-config libhwy-dev nlohmann-json3-dev libcli11-dev libjpeg62-turbo-dev libpng-dev
  libwebp-dev libgif-dev libheif-dev libcpp-httplib-dev libedit-dev libjs-katex libjs-highlight.js libjs-pdf"
[ "${1:-}" = test ] && packages="$packages libgtest-dev libgmock-dev libbenchmark-dev python3 xz-utils"
# make test-locks needs any clang; only one that is missing is installed.
[ "${1:-}" = test ] && ! command -v clang++ >/dev/null && ! ls /usr/bin/clang++-* >/dev/null 2>&1 &&
  packages="$packages clang"
[ "${1:-}" = clients ] && packages="$packages python3 python3-venv chromium openssl ca-certificates"
[ "${1:-}" = terminal ] && packages="$packages python3 python3-pytest tmux bash zsh fish groff man-db"
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
