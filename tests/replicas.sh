#!/bin/bash
# Tests two replicas of the demo model behind HAProxy, as docs/SCALING.md describes them: a conversation stays with its replica
# and finds its prefix in the cache; a replica that stops finishes its answer while new requests go to the other; a killed
# replica gets no more requests. Needs haproxy, curl and python3.   tests/replicas.sh [GEMMA4]
set -uo pipefail
cd "$(dirname "$0")/.."
GEMMA4=${1:-build/release/gemma4}
folder=$(mktemp -d)
export GEMMA4_BIND=127.0.0.1:18080 GEMMA4_ONE=127.0.0.1:18081 GEMMA4_TWO=127.0.0.1:18082
pids=()
finish() {
  for pid in "${pids[@]}"; do { kill -9 "$pid" && wait "$pid"; } 2>/dev/null; done
  rm -rf "$folder"
}
trap finish EXIT
fail() { echo "FAILED: $1"; exit 1; }

serve() {  # port
  "$GEMMA4" serve --model models/demo --backend cpu --threads 1 --port "$1" --max-seq-len 1024 --grace 60 \
    > "$folder/$1.out" 2> "$folder/$1.err" &
  pids+=($!)
  eval "pid_$1=$!"
}
healthy() { curl -sf "http://127.0.0.1:$1/health" >/dev/null; }
wait_for() {  # what, seconds, command...
  local what=$1 left=$(($2 * 10))
  shift 2
  until "$@"; do
    [ $((left--)) -gt 0 ] || fail "$what did not happen"
    sleep 0.1
  done
}
ask() {  # session, messages as JSON, more fields; prints the replica's name and the cached tokens
  curl -s -D "$folder/headers" -o "$folder/body" "http://$GEMMA4_BIND/v1/chat/completions" -H "x-session-id: $1" \
    -H 'content-type: application/json' -d "{\"model\": \"demo\", \"messages\": $2, \"temperature\": 0, \"max_tokens\": 8 $3}" || return 1
  python3 - "$folder" <<'PY'
import json, pathlib, re, sys
folder = pathlib.Path(sys.argv[1])
headers, body = (folder / "headers").read_text(), json.loads((folder / "body").read_text())
status = re.match(r"\S+ (\d+)", headers)[1]
served = re.search(r"(?mi)^x-served-by: (\S+)", headers)
print(status, served[1] if served else "-", body.get("usage", {}).get("prompt_tokens_details", {}).get("cached_tokens"))
PY
}
question='[{"role": "user", "content": "What is 16 + 3? Think of the squares, the circles and the colours you know."}]'
second='[{"role": "user", "content": "What is 16 + 3? Think of the squares, the circles and the colours you know."},
         {"role": "assistant", "content": "16 + 3 = 19."}, {"role": "user", "content": "And what is 4 + 4?"}]'

serve 18081
serve 18082
haproxy -f packaging/proxy/haproxy.cfg > "$folder/haproxy.out" 2>&1 &
pids+=($!)
for port in 18081 18082 18080; do wait_for "the start of $port" 60 healthy "$port"; done
sleep 3 # HAProxy has asked both

declare -A served
for session in a b c d e f g h; do
  read -r status replica cached <<< "$(ask $session "$question" "")"
  [ "$status" = 200 ] || fail "session $session got $status"
  served[$session]=$replica
done
echo "sessions: $(for s in a b c d e f g h; do echo -n "$s=${served[$s]} "; done)"
[ "$(printf '%s\n' "${served[@]}" | sort -u | wc -l)" = 2 ] || fail "all sessions went to one replica"
for session in a b c d e f g h; do
  read -r status replica cached <<< "$(ask $session "$second" "")"
  [ "$replica" = "${served[$session]}" ] || fail "session $session moved from ${served[$session]} to $replica"
  [ "${cached:-0}" -ge 10 ] || fail "session $session found $cached tokens in the cache"
done
echo "second turns: same replicas, from the cache (the last: $cached tokens)"

# A long answer from session a's replica, which is told to stop in the middle of it.
[ "${served[a]}" = one ] && port=18081 other=two || { port=18082 other=one; }
curl -sN "http://$GEMMA4_BIND/v1/completions" -H "x-session-id: a" -H 'content-type: application/json' \
  -d '{"model": "demo", "prompt": "The squares", "stream": true, "max_tokens": 900, "ignore_eos": true, "seed": 1}' > "$folder/stream" &
stream=$!
wait_for "the long answer's beginning" 20 grep -q '"text":' "$folder/stream"
grep -q 'finish_reason":"' "$folder/stream" && fail "the long answer was over before the signal"
pid=pid_$port
kill -TERM "${!pid}"
wait_for "503 of /health" 5 bash -c "[ \$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:$port/health) != 200 ]"
kill -0 $stream 2>/dev/null || fail "the long answer ended with the signal"
read -r status replica cached <<< "$(ask a "$second" "")" # HAProxy may not know yet: it hands the 503 on
[ "$status $replica" = "200 $other" ] || fail "while its replica stops, session a got $status from $replica"
wait $stream
grep -q 'data: \[DONE\]' "$folder/stream" || fail "the long answer was cut"
grep -q '"finish_reason":"length"' "$folder/stream" || fail "the long answer was cut short"
wait "${!pid}" || fail "the replica that stopped ended with $?"
echo "a replica that stopped in the middle of an answer finished it; new requests went to $other"

serve $port
wait_for "its return" 60 healthy $port
sleep 3
read -r status replica cached <<< "$(ask a "$second" "")"
[ "$replica" = "${served[a]}" ] || fail "session a did not come back to ${served[a]}"
pid=pid_$port
{ kill -9 "${!pid}" && wait "${!pid}"; } 2>/dev/null
read -r status replica cached <<< "$(ask a "$second" "")"
[ "$status $replica" = "200 $other" ] || fail "after its replica was killed, session a got $status from $replica"
echo "a replica that was killed is gone around"
echo "replicas: passed"
