#!/bin/sh
# GPTQ, AWQ and AutoRound against the programs that define them: packs a checkpoint with their own modules
# (tools/make_gptq.py), compares the weights with what these dequantise, and the logits of both on the ref backend.
#
#   tools/check_gptq.sh build/dev/gemma4 [python3]      the Python that has what tools/make_gptq.py needs
#
# Ends with 1 where 4 bits, or 8 bits around 128, are not equal bit by bit, or other weights differ by more than rounding.
set -eu
binary=$1 python=${2:-python3}
source=tests/golden/tiny
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

check() {  # exact|rounded, then the options of make_gptq.py
  kind=$1
  shift
  rm -rf "$work"/*
  "$python" tools/make_gptq.py $source "$work/packed" --values "$work/values" "$@" >/dev/null 2>&1
  for side in packed values; do
    "$binary" eval "$work/$side" --golden $source/golden --backend ref --dump "$work/$side.logits" >/dev/null || true
  done
  limit=0
  [ "$kind" = exact ] || limit=1e-4
  if "$python" tools/compare_logits.py "$work/values.logits" "$work/packed.logits" --kl $limit >"$work/log" &&
    { [ "$kind" = rounded ] || "$binary" diff "$work/values" "$work/packed" 2>/dev/null | tail -n 1 | grep -q equal; }; then
    echo "good, $kind: $*"
  else
    echo "BAD, not $kind: $*"
    cat "$work/log"
    failed=1
  fi
}

for group in 32 -1; do
  for layout in gptq gptq_v2 awq auto-round auto-round-gptq auto-round-awq; do
    check exact --layout $layout --group $group
    check exact --layout $layout --group $group --symmetric
  done
  check exact --layout gptq --bits 8 --symmetric --group $group --shards
  check exact --layout auto-round --bits 8 --symmetric --group $group
  check rounded --layout gptq --bits 8 --group $group
done
check rounded --layout gptq --group 32 --act-order
check rounded --layout gptq_v2 --group 32 --act-order --bits 8 --symmetric
exit $failed
