#!/bin/sh
# usage: check_symbols.sh FILE...: exits 1 where a program or library needs a newer symbol version than $GLIBC (default
# 2.34: Ubuntu 22.04, Fedora 35, RHEL 9, Debian 12) or $GLIBCXX (default 3.4.29, GCC 11's), and names it.
set -eu
export LC_ALL=C
bad=0
highest=
for file in "$@"; do
  [ -L "$file" ] && continue
  for limit in "GLIBC ${GLIBC:-2.34}" "GLIBCXX ${GLIBCXX:-3.4.29}"; do
    name=${limit% *}
    allowed=${limit#* }
    found=$(objdump -p "$file" | grep -oE "${name}_[0-9.]+$" | sed 's/.*_//' | sort -uV | tail -1)
    [ -n "$found" ] || continue
    highest="$highest${name}_$found
"
    if [ "$(printf '%s\n' "$found" "$allowed" | sort -V | tail -1)" != "$allowed" ]; then
      echo "check_symbols: $file needs ${name}_$found; at most ${name}_$allowed is allowed:" >&2
      objdump -T "$file" | grep "${name}_$found" | head -3 >&2
      bad=1
    fi
  done
done
[ -n "$highest" ] || { echo "check_symbols: no file names a symbol version" >&2; exit 1; }
echo "check_symbols: $# files; highest:" $(printf '%s' "$highest" | sort -V | awk -F_ '{ last[$1] = $0 } END { for (n in last) print last[n] }')
exit $bad
