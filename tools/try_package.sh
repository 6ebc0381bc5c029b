#!/bin/bash
# usage: try_package.sh [FOLDER]: tries the packages in FOLDER (default build/packages; tools/package.sh makes them) in
# bare Debian 12 and 13: unpacks the .tar.gz without installing anything, installs the .deb, asks each the demo's question,
# and purges the .deb. A .deb made on Debian 12 is for both: 13 provides 12's names of the libraries. The .tar.gz is
# asked in Ubuntu 22.04, too, which has the oldest C library that it is for. Needs root, debootstrap and ubuntu-keyring; see
# try_debian.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=${1:-build/packages}
source tools/bare_system.sh
trap leave_system EXIT
deb=$(ls "$packages"/gemma4_*.deb)
archive=$(ls "$packages"/gemma4-*-linux-x86_64.tar.gz)

# ask PROGRAM: quantises the demo checkpoint with it and asks about a picture, in the system that was entered.
ask() {
  local said
  rm -rf "$SYSTEM/demo" && mkdir "$SYSTEM/demo"
  cp -r models/demo "$SYSTEM/demo/model"
  cp tests/golden/demo_eval/images/002.png "$SYSTEM/demo"
  said=$(in_system "cd /demo && $1 quantize --model-dir model --output int4 >/dev/null 2>&1 && $1 run --model int4 \
    --image 002.png --prompt 'What is at the left?' --temperature 0 2>/dev/null") || said="nothing, exit code $?"
  [ "$said" = "$WANT" ] || { echo "try_package: $2 answers '$said', not '$WANT'" >&2; exit 1; }
  echo "try_package: $2 answers '$said'"
}
WANT=$(python3 -c '
import json
rows = json.load(open("tests/golden/demo_eval/demo_eval.json"))["rows"]
print(next(r for r in rows if r["image"].endswith("002.png") and r["question"] == "What is at the left?")["reference_output"])')

for suite in bookworm trixie; do
  bare_system "$suite" make git
  enter_system "$suite" package
  tar -xzf "$archive" -C "$SYSTEM/opt"
  ask "/opt/$(basename "$archive" .tar.gz)/bin/gemma4" "the .tar.gz in a bare $suite"
  cp "$deb" "$SYSTEM/gemma4.deb"
  in_system "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq /gemma4.deb >/dev/null"
  ask gemma4 "the .deb in a bare $suite"
  in_system "test -e /etc/default/gemma4 && test -e /usr/lib/systemd/system/gemma4.service"
  in_system "apt-get purge -y -qq gemma4 >/dev/null && ! test -e /etc/default/gemma4 && ! test -e /usr/bin/gemma4"
  leave_system
done
bare_system jammy make git
enter_system jammy package
tar -xzf "$archive" -C "$SYSTEM/opt"
ask "/opt/$(basename "$archive" .tar.gz)/bin/gemma4" "the .tar.gz in a bare jammy"
