#!/bin/bash
# usage: try_debian.sh SUITE [demo|test|shell] [COMPILER]: `make demo` and `make test` in a bare Debian or Ubuntu, and their seconds.
#   SUITE      bookworm, trixie, testing, jammy, noble: made with debootstrap (and ubuntu-keyring; root)
#   demo       only `make demo`;   test: only `make test`;   all (default): both;   shell: a shell in the system
#   COMPILER   g++-14, clang-19, ...: installed and used in place of the system's g++
# The bare system is kept in $ROOTS (default /var/tmp/gemma4-roots) and copied for each try, so a try begins with nothing
# but make and git. The mirror is the one that this machine's apt uses, or $MIRROR. With CCACHE_DIR set that folder is
# used by ccache in there. What a try leaves behind is removed, unless KEEP=1.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${1:?usage: try_debian.sh SUITE [demo|test|all|shell] [COMPILER]}
what=${2:-all}
compiler=${3:-}
source tools/bare_system.sh

bare_system "$suite" make git
trap leave_system EXIT
enter_system "$suite" try
mkdir "$SYSTEM/gemma4"
git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -xf - -C "$SYSTEM/gemma4"
setup=true
if [ -n "$compiler" ]; then
  setup="apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    $(basename "$compiler" | sed 's/^clang++-/clang-/; s/^clang-\(.*\)/clang-\1 libclang-rt-\1-dev/') >/dev/null"
  # CMake reads CXX; tools/check_locks.sh looks for any clang.
  export CXX=${compiler/#clang-/clang++-}
fi
if [ -n "${CCACHE_DIR:-}" ]; then
  setup="$setup && apt-get update -qq && apt-get install -y -qq --no-install-recommends ccache >/dev/null"
  mkdir -p "$SYSTEM/ccache" && mount --bind "$CCACHE_DIR" "$SYSTEM/ccache"
  export CCACHE_DIR=/ccache
fi
in_system "$setup"
status=0
for target in demo test; do
  [ "$what" = "$target" ] || [ "$what" = all ] || continue
  start=$(date +%s)
  code=0
  in_system "cd /gemma4 && make $target" || code=$?
  echo "try_debian: $suite ${compiler:-g++}: make $target ended with $code after $(($(date +%s) - start)) seconds"
  [ "$code" = 0 ] || status=1
done
[ "$what" = shell ] && in_system "cd /gemma4 && exec bash -i"
exit "$status"
