#!/bin/sh
# usage: check_locks.sh: clang reads every source and compiles nothing. Exits 1 where a member marked GUARDED_BY
# (src/base/mutex.h) is touched without its mutex, or where clang refuses what g++ takes. Left out are tests; CUDA's
# sources, since clang 14 cannot read CUDA 13's headers; and kernels, which are read once for each SIMD target.
set -eu
cd "$(dirname "$0")/.."
clang=$(command -v clang++ || ls /usr/bin/clang++-* 2>/dev/null | sort -V | tail -1)
[ -n "$clang" ] || { echo "check_locks: clang++ is not installed (tools/setup.sh test installs it)" >&2; exit 2; }
flags="-std=c++20 -fsyntax-only -Isrc -isystem /usr/include/editline
  -Wno-everything -Wthread-safety -Werror=thread-safety"

# The analysis must accept this source with its lock and refuse it without, or it would prove nothing about the others.
twin='#include "base/mutex.h"
struct Counter {
  void add() {
#ifdef LOCKED
    const gemma4::MutexLock lock(mutex);
#endif
    ++count;
  }
  gemma4::Mutex mutex;
  int count GUARDED_BY(mutex) = 0;
};'
if ! printf '%s\n' "$twin" | "$clang" $flags -DLOCKED -x c++ -; then
  echo "check_locks: refuses a member under its mutex" >&2
  exit 1
fi
if said=$(printf '%s\n' "$twin" | "$clang" $flags -x c++ - 2>&1) ||
  ! printf '%s\n' "$said" | grep -q "requires holding mutex 'mutex'"; then
  echo "check_locks: does not refuse a member without its mutex: $said" >&2
  exit 1
fi

sources=$(find src -name '*.cc' | grep -vE '/cuda/|/backend/cpu/|_(test|bench|fuzz)[.]cc' | sort)
printf '%s\n' $sources | xargs -P "$(nproc)" -n 4 "$clang" $flags || exit 1
echo "check_locks: $(printf '%s\n' $sources | wc -l) sources, clang takes them, and no member is touched without its mutex"
