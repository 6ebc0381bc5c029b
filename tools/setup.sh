#!/bin/sh
# Installs the packages that the build needs, on Debian 12 or later, Ubuntu 22.04 or later, Fedora. Needs root or sudo
# only if one is missing, and without them says what to install. `setup.sh test` adds the packages for the tests,
# `setup.sh clients` those for the tests with real clients and of the page, `setup.sh terminal` those for the tests of the
# terminal, `setup.sh arm` those that build and emulate for ARM. `setup.sh names [test|clients|terminal|arm]
# [debian|ubuntu|fedora]` prints the names alone.
set -eu
system=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${ID_LIKE:-} ${VERSION_ID:-}") || system=
names=
[ "${1:-}" = names ] && names=yes && shift
for_what=build
case "${1:-}" in test | clients | terminal | arm) for_what=$1 && shift ;; esac
[ -n "$names" ] && [ -n "${1:-}" ] && system=$1

case " $system " in
*" debian "* | *" ubuntu "*)
  packages="g++ cmake ninja-build pkg-config libhwy-dev nlohmann-json3-dev libcli11-dev libjpeg-dev libpng-dev
    libwebp-dev libgif-dev libheif-dev libcurl4-openssl-dev libedit-dev libjs-katex libjs-highlight.js libjs-pdf"
  case " $system " in *" ubuntu "*" 22.04 "*) packages="$packages g++-12" ;; esac # its g++ is 11: see CMakeLists.txt
  tests="libgtest-dev libgmock-dev libbenchmark-dev python3 xz-utils valgrind"
  clients="python3 python3-venv chromium openssl ca-certificates"
  terminal="python3 python3-pytest tmux bash zsh fish groff man-db"
  arm="g++-aarch64-linux-gnu qemu-user"
  have() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q "install ok installed"; }
  update="apt-get update -qq"
  install="env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
  ;;
*" fedora "*)
  packages="gcc-c++ cmake ninja-build pkgconf-pkg-config highway-devel json-devel cli11-devel libjpeg-turbo-devel
    libpng-devel libwebp-devel giflib-devel libheif-devel libcurl-devel libedit-devel"
  tests="gtest-devel gmock-devel google-benchmark-devel python3 xz valgrind"
  clients="python3 chromium openssl ca-certificates"
  terminal="python3 python3-pytest tmux bash zsh fish groff man-db"
  arm=
  have() { rpm -q --quiet "$1"; }
  update=true
  install="dnf install -y -q"
  ;;
*)
  echo "setup: this is no Debian, Ubuntu or Fedora; install what CONTRIBUTING.md names (\"Prerequisites\")" >&2
  exit 2
  ;;
esac
[ "$for_what" = test ] && packages="$packages $tests"
[ "$for_what" = clients ] && packages="$packages $clients"
[ "$for_what" = terminal ] && packages="$packages $terminal"
if [ "$for_what" = arm ]; then
  [ -n "$arm" ] || { echo "setup: the build for ARM takes its libraries from Debian's packages" >&2 && exit 2; }
  packages="$packages $arm"
fi
# make test-locks needs any clang; only one that is missing is installed.
[ "$for_what" = test ] && ! command -v clang++ >/dev/null && ! ls /usr/bin/clang++-* >/dev/null 2>&1 &&
  packages="$packages clang"
packages=$(echo $packages) # on one line
if [ -n "$names" ]; then
  echo "$packages"
  exit
fi

missing=""
for package in $packages; do have "$package" || missing="$missing $package"; done
[ -z "$missing" ] && exit 0
as_root=""
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: packages are missing, and this is neither root nor is sudo here; as root: ${install#env * }$missing" >&2
    exit 2
  fi
  as_root=sudo
fi
echo "installing:$missing"
$as_root $update
$as_root $install $missing >/dev/null
