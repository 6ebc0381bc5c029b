#!/bin/sh
# tools/setup.sh: its names for each system, and what it says where it cannot help; what `make install` says.
set -eu
cd "$(dirname "$0")/.."
fail() { echo "setup_test: $1" >&2; exit 1; }
says() { echo "$2" | grep -qwF -- "$1" || fail "'$1' is not in: $2"; }
for system in debian "debian ubuntu 24.04" "ubuntu debian 22.04"; do
  names=$(tools/setup.sh names test "$system")
  says libhwy-dev "$names"
  says libgtest-dev "$names"
done
says g++-12 "$names"
says highway-devel "$(tools/setup.sh names fedora)"
says gtest-devel "$(tools/setup.sh names test fedora)"
says chromium "$(tools/setup.sh names clients fedora)"
says qemu-user "$(tools/setup.sh names arm debian)"
if said=$(tools/setup.sh names arm fedora 2>&1); then fail "ARM's packages were named on Fedora: $said"; fi
says "takes its libraries from Debian's packages" "$said"
if said=$(tools/setup.sh names plan9 2>&1); then fail "an unknown system was accepted: $said"; fi
says "this is no Debian, Ubuntu or Fedora" "$said"

# `make install` builds nothing: where nothing is built it says what to do.
if command -v make >/dev/null; then
  if said=$(make --no-print-directory BUILD=build/nothing install 2>&1); then fail "nothing was installed"; fi
  says "there is no build/nothing/gemma4: run make first" "$said"
  if make -n install | grep -e --build; then fail "make install builds"; fi
fi
