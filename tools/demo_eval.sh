#!/bin/sh
# usage: demo_eval.sh GEMMA4 QUANTISED_DEMO [BACKEND]: the demo model's score, as downloaded and quantised with the
# default recipe. Fails below the documented scores: in bf16 99 % of the picture answers equal to the reference's and every
# text answer right; with quantised weights 98 % equal to the reference with the same weights.
set -u
gemma4=$1 quantised=$2 backend=${3:-cpu}
eval_dir=$(dirname "$0")/../tests/golden/demo_eval
demo=$(dirname "$0")/../models/demo
status=0
ask() {
  title=$1; shift
  echo "$title"
  "$gemma4" eval --backend "$backend" "$@" || status=1
}
ask "bf16, pictures:" --model "$demo" --questions "$eval_dir/demo_eval.json" --equal-min 0.99
ask "bf16, text:" --model "$demo" --questions "$eval_dir/demo_text_eval.json" --right-min 1
ask "int4, pictures:" --model "$quantised" --questions "$eval_dir/quantised_default.json" --equal-min 0.98
ask "int4, text:" --model "$quantised" --questions "$eval_dir/demo_text_eval.json"
exit $status
