#!/bin/sh
# usage: check_locks.sh: clang's thread safety analysis over every source that names a Mutex (src/base/mutex.h). Exits 1
# where a member marked GUARDED_BY is touched without its mutex. Compiles nothing; takes some ten seconds.
set -eu
cd "$(dirname "$0")/.."
clang=$(command -v clang++ || ls /usr/bin/clang++-* 2>/dev/null | sort -V | tail -1)
[ -n "$clang" ] || { echo "check_locks: clang++ is not installed (tools/setup.sh test installs it)" >&2; exit 2; }
headers=$(grep -rlE '\b(Mutex|GUARDED_BY)\b' --include='*.h' src | sed 's#^src/##')
pattern=$(printf '%s\n' $headers | sed 's/[.]/\\./g' | paste -sd'|')
sources=$(grep -rlE "GUARDED_BY|MutexLock|#include \"($pattern)\"" --include='*.cc' src | grep -v '/cuda/' | sort)
printf '%s\n' $sources | xargs -P "$(nproc)" -n 4 "$clang" -std=c++20 -fsyntax-only -Isrc -Wno-everything \
  -Wthread-safety -Werror=thread-safety-analysis
echo "check_locks: $(printf '%s\n' $sources | wc -l) sources, no member is touched without its mutex"
