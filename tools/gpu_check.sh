#!/bin/bash
# usage: gpu_check.sh STAGE...: tests and benchmarks on a GPU, in stages of less than ten minutes each. Needs no
# compiler: programs and libraries come from tools/gpu_bundle.sh (build/gpu or build/gpu.tar.gz, or $BUNDLE). Run it in
# the project's folder. Logs go to $OUT (or build/gpu_logs), a synthetic 31B to $MODELS (/dev/shm or /tmp). A stage's
# table is printed last; exit 1 where a step failed.
#   info      the GPU, its driver and clocks; the programs start                                             1 min
#   correct   cuda_tests, checks of every layout and variant, golden cases, the demo's questions             9 min
#   linear    the linear layers alone: the GEMV kernels in turns, chain, prompts, attention     6 min
#   model     31B int4: decode with every variant in turns, batches, prompts, images, time to first token    9 min
#   deep      31B int4: a prompt of 32,768, depths of 64k and 128k; cuBLASLt for prompts; Q4_0               9 min
#   sanitize  memcheck, racecheck and synccheck on small shapes, where compute-sanitizer is                  9 min
#   small     31B int4 on a card of which 24 GiB (25.2 GB free) and then 12.5 GB are left: run, serve, --gpu-layers  5 min
#   profiles  cuda_tests and golden cases under the profiles of other cards                                   9 min
set -u
[ $# -gt 0 ] || { sed -n '2,13s/^# \?//p' "$0"; exit 2; }
bundle=${BUNDLE:-build/gpu} logs=${OUT:-build/gpu_logs} models=${MODELS:-}
if [ -z "$models" ]; then  # memory where it has room for one model, else a disk, whose pages stay in memory too
  models=/tmp
  [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 26000000 ] 2>/dev/null && models=/dev/shm
fi
model=$models/gemma4-31b-int4 q4=$models/gemma4-31b-q4_0 demo=$models/gemma4-demo-int4
mkdir -p "$logs"
[ -d "$bundle/bin" ] || tar -xzf "$bundle.tar.gz" -C "$(dirname "$bundle")" || exit 2
table=$logs/table.txt
failed=0
cublas=$(find / -name 'libcublasLt.so.13*' -not -path '/proc/*' -not -path '/sys/*' 2>/dev/null | sort | head -1)
export LD_LIBRARY_PATH=$PWD/$bundle/lib${cublas:+:$(dirname "$cublas")}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
loader=()
if ! "$bundle/bin/gemma4" --help >/dev/null 2>&1; then  # an older C library than the build's: bring that one too
  driver=$(dirname "$(find / -xdev -name 'libcuda.so.1' -not -path '/proc/*' 2>/dev/null | head -1)")
  loader=("$bundle/libc/ld-linux-x86-64.so.2" --library-path "$PWD/$bundle/libc:$LD_LIBRARY_PATH:$driver")
fi

note() { printf '%s\n' "$*" | tee -a "$table"; }

# run NAME SECONDS COMMAND...: one line in the table. The command's output goes to $logs/NAME.log.
run() {
  local name=$1 limit=$2 start end rc
  shift 2
  start=$(date +%s.%N)
  timeout -k 10 "$limit" "$@" >"$logs/$name.log" 2>&1
  rc=$?
  end=$(date +%s.%N)
  case $rc in
    0) note "$(printf '%-34s ok      %6.1f s' "$name" "$(echo "$end $start" | awk '{ print $1 - $2 }')")" ;;
    124 | 137) note "$(printf '%-34s TIMED OUT after %s s' "$name" "$limit")"; failed=1 ;;
    *)
      note "$(printf '%-34s FAILED  exit %d: %s' "$name" "$rc" "$(tail -1 "$logs/$name.log" | cut -c1-150)")"
      failed=1
      ;;
  esac
  return $rc
}

# say NAME PATTERN: the lines of a log that belong in the table.
say() { grep -E "$2" "$logs/$1.log" | sed 's/^/    /' | tee -a "$table"; }

program() { local name=$1; shift; run_program=("${loader[@]}" "$bundle/bin/$name" "$@"); }
go() { local name=$1 limit=$2; shift 2; program "$@"; run "$name" "$limit" "${run_program[@]}"; }

info() {
  run info-smi 20 nvidia-smi --format=csv \
    --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu
  say info-smi '.'
  go info-start 30 gemma4 --help
  note "cuBLASLt: ${cublas:-NOT FOUND}; loader: ${loader[0]:-own}; $(nproc) cores"
}

correct() {
  go check-few 60 cuda_linear_bench few; say check-few '^checks|FAILED|warning'
  go check-variants 200 cuda_linear_bench variants; say check-variants '^checks|FAILED'
  go check-all 240 cuda_linear_bench check; say check-all '^checks|FAILED|warning'
  go cuda-tests 300 cuda_tests --gtest_brief=1; say cuda-tests '^\[  (PASSED|FAILED)|SKIPPED|Failure'
  go eval-tiny 60 gemma4 eval --model tests/golden/tiny --golden tests/golden/tiny/golden --backend cuda
  say eval-tiny 'KL|text_|image_'
  [ -d "$demo" ] || go demo-quantize 60 gemma4 quantize --model-dir models/demo --output "$demo"
  for set in demo_eval.json:models/demo "quantised_default.json:$demo" "demo_text_eval.json:$demo"; do
    name=demo-${set%%.json*}
    go "$name" 120 gemma4 eval --backend cuda --model "${set#*:}" --questions "tests/golden/demo_eval/${set%%:*}"
    say "$name" 'equal|right'
  done
}

linear() {
  go linear-chain 150 cuda_linear_bench chain; say linear-chain 'copy|chain'
  go linear-decode 150 cuda_linear_bench decode; say linear-decode 'n     1 '
  go linear-prefill 120 cuda_linear_bench prefill; say linear-prefill 'n  2048'
  go attention 100 cuda_benchmarks; say attention '/'
}

# bench NAME SECONDS MODEL ARGUMENTS...
bench() {
  local name=$1 limit=$2 which=$3
  shift 3
  go "$name" "$limit" gemma4 bench --backend cuda --model "$which" "$@"
  say "$name" '^(what|prompt|decode|image|its|preprocessing|megakernel)|loaded in|warning'
}

synth() { [ -d "$2" ] || go "synth-$1" 200 gemma4 synth --like 31b --format "$1" --output "$2"; }

model() {
  synth default "$model"
  for round in 1 2; do  # in turns, so that a card that changes its clock shows
    for variant in on one off; do  # one: steps of several rows by their own kernels
      GEMMA4_CUDA_STEP=$variant bench "decode-step-$variant-$round" 60 "$model" --prompts 512 --depths 0,2048,16384 \
        --batches 1,2,4,8 --images 0 --steps 48
    done
  done
  bench prompts-images 90 "$model" --prompts 512,2048,8192 --depths 0 --batches 1 --images 280,1120
  go profile 60 gemma4 bench --backend cuda --model "$model" --prompts 512,2048 --images 280 --batches 1 --depths 0 \
    --profile
  if [ -f "$bundle/tokenizer.json.gz" ]; then
    gzip -dc "$bundle/tokenizer.json.gz" >"$model/tokenizer.json"
    go first-token 60 gemma4 run --backend cuda --model "$model" --raw-prompt --prompt "The sky is" --max-new-tokens 1 \
      --ignore-eos
    say first-token 'first token'
    rm "$model/tokenizer.json"
  fi
}

deep() {
  synth default "$model"
  bench deep 300 "$model" --prompts 32768 --depths 65536,131072 --batches 1 --images 0
  GEMMA4_CUDA_PROMPTS=library bench prompts-library 60 "$model" --prompts 512,2048,8192 --depths 0 --batches 1 \
    --images 0
  rm -rf "$model"
  synth q4_0 "$q4"
  bench q4_0 90 "$q4/model.gguf" --prompts 512,2048 --depths 0,16384 --batches 1,8
  rm -rf "$q4"
}

sanitize() {
  local tool sanitizer
  sanitizer=$(command -v compute-sanitizer ||
    find / -name compute-sanitizer -type f -not -path '/proc/*' -not -path '/sys/*' 2>/dev/null | head -1)
  if [ -z "$sanitizer" ]; then
    note "sanitize: compute-sanitizer is NOT on this machine; nothing was run"
    failed=1
    return
  fi
  for tool in memcheck racecheck synccheck; do
    program cuda_linear_bench few
    run "$tool-linear" 120 "$sanitizer" --tool "$tool" --error-exitcode 9 "${run_program[@]}"
    say "$tool-linear" 'ERROR SUMMARY|RACECHECK SUMMARY|^checks'
    program gemma4 eval --model tests/golden/tiny --golden tests/golden/tiny/golden --case text_short --case image_one \
      --backend cuda
    run "$tool-eval" 120 "$sanitizer" --tool "$tool" --error-exitcode 9 "${run_program[@]}"
    say "$tool-eval" 'ERROR SUMMARY|RACECHECK SUMMARY'
    program cuda_tests --gtest_filter='CudaMegakernel.*ASmallShape'
    run "$tool-step" 200 "$sanitizer" --tool "$tool" --error-exitcode 9 "${run_program[@]}"
    say "$tool-step" 'ERROR SUMMARY|RACECHECK SUMMARY|PASSED|FAILED'
  done
}

# The model answers a raw prompt with a picture's tokens only if it has a tokenizer: the bundle's, or that of
# tests/clients/variants.py --words 262144.
small() {
  local wide=$models/gemma4-31b-wide
  if [ ! -d "$wide" ]; then
    run wide-vocabulary 60 python3 tests/clients/variants.py --words 262144 "$models/gemma4-words"
    go synth-wide 200 gemma4 synth --like 31b --format default --tokenizer "$models/gemma4-words/tokenizer.json" \
      --output "$wide"
  fi
  program gemma4 run --backend cuda --model "$wide" --prompt "What is at the left?" --max-new-tokens 4 --ignore-eos \
    --image tests/golden/demo_eval/images/002.png
  run small-24-run 120 python3 tools/occupy_gpu.py --leave-gb 25.2 "${run_program[@]}" &&
    say small-24-run 'context|free|first token|GB'
  run small-12-auto 300 python3 tools/occupy_gpu.py --leave-gb 12.5 "${run_program[@]}" --gpu-layers auto &&
    say small-12-auto 'layers|first token'
  if python3 tools/occupy_gpu.py --leave-gb 12.5 "${run_program[@]}" >"$logs/small-12-run.log" 2>&1 ||
    [ $? -ne 2 ] || ! grep -q -- --gpu-layers "$logs/small-12-run.log"; then
    note "small-12-run FAILED: code 2 and a sentence that names --gpu-layers were due"
    failed=1
  else
    note "$(printf '%-34s ok' small-12-run)"; say small-12-run 'gpu-layers'
  fi
  rm -rf "$wide" "$models/gemma4-words"
}

profiles() {
  local profile
  for profile in sm80 sm86 sm89 sm120; do
    GEMMA4_CUDA_PROFILE=$profile go "tests-$profile" 200 cuda_tests --gtest_brief=1
    say "tests-$profile" '^\[  (PASSED|FAILED)|SKIPPED|Failure'
    GEMMA4_CUDA_PROFILE=$profile go "golden-$profile" 60 gemma4 eval --model tests/golden/tiny \
      --golden tests/golden/tiny/golden --backend cuda
    say "golden-$profile" 'KL|PASS|FAIL'
  done
}

: >"$table"
for stage in "$@"; do
  case $stage in
    info | correct | linear | model | deep | sanitize | small | profiles) echo "== $stage" >>"$table"; "$stage" ;;
    *) echo "gpu_check: no stage \"$stage\"; stages are info, correct, linear, model, deep, sanitize, small, profiles"; exit 2 ;;
  esac
done
nvidia-smi --format=csv,noheader --query-gpu=clocks.sm,clocks.mem,temperature.gpu 2>/dev/null |
  sed 's/^/clocks at the end: /' >>"$table"
echo; echo "================ table ================"; cat "$table"
exit $failed
