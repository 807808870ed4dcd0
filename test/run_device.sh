#!/usr/bin/env bash
# run_device.sh - the program on the emulated GPU: sessions are answered as on the CPU, rows move to
# the host where the GPU has no room for them, and what it cannot do is said with its exit code.
set -u
cd "$(dirname "$0")/.." || exit 1
export OMP_WAIT_POLICY=passive
make -s scbench build/emu/scbench || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0
complain() { echo "device: $*"; failures=$((failures + 1)); }

# answers NAME PROGRAM OPTIONS...: what every turn answered, a line each
answers() {
    local name=$1
    shift
    "$@" --out "$tmp/$name" --quiet >"$tmp/$name.log" 2>&1 || { cat "$tmp/$name.log"; return 1; }
    grep -o '"mode":"[^"]*","\|"turn":[0-9]*\|"method":"[^"]*"\|"prediction":"[^"]*"' \
        "$tmp/$name/results.jsonl"
}
# same NAME MODEL OPTIONS...
same() {
    local name=$1
    shift
    answers "$name-cpu" ./scbench "$@" >"$tmp/cpu" || complain "$name fails on the CPU"
    answers "$name-gpu" build/emu/scbench "$@" --device cuda >"$tmp/gpu" ||
        complain "$name fails on the GPU"
    [ -s "$tmp/cpu" ] && cmp -s "$tmp/cpu" "$tmp/gpu" || {
        complain "$name is answered otherwise"
        diff "$tmp/cpu" "$tmp/gpu" | head -n 6
    }
}
same full data/tiny_llama.bin --task retr_kv --ctx 400 --sessions 1 --turns 2 --method full
# one MB less than all of it takes: the settled rows go to the host
plan="build/emu/scbench data/tiny_llama.bin --task retr_kv --ctx 700 --sessions 1 --turns 1 --method full"
less=$($plan --device cuda --plan 2>/dev/null |
    awk '/^full/ { printf "%d", $NF * 1e6 / 1048576 / 0.98 - 0.5 }')
EMU_MEMORY=$less $plan --device cuda --plan 2>&1 | grep -q 'MB, stay in host memory, which it reads' ||
    complain "$less MB are enough for all, or not for the rest"
EMU_MEMORY=$less same host data/tiny_llama.bin --task retr_kv --ctx 700 --sessions 1 --turns 1 \
    --method full

same lossy data/tiny_llama.bin --task retr_kv --ctx 300 --sessions 1 --turns 1 \
    --method h2o,quest --no-baselines --keep 0.6

# peak METHOD...: bytes held at the peak are those planned, within 3 %
peak() {
    build/emu/scbench speed data/tiny_llama.bin --ctx 300 --n-decode 2 --rounds 1 --device cuda \
        --method "$@" >"$tmp/log" 2>&1 || { cat "$tmp/log"; complain "speed of $* fails"; }
    awk '/^peak/ { d = $2 / $8 - 1; ok = d < 0.03 && d > -0.03 } END { exit !ok }' "$tmp/log" ||
        complain "$1 held otherwise than planned: $(grep '^peak' "$tmp/log")"
}
peak full
peak snapkv --budget 64

# refuses CODE WORDS ENV OPTIONS...: the exit code and the sentence
refuses() {
    local code=$1 words=$2 rc
    shift 2
    env "$1" build/emu/scbench data/tiny_llama.bin --task retr_kv --ctx 1400 --device cuda \
        --out "$tmp/none" "${@:2}" >"$tmp/log" 2>&1
    rc=$?
    [ $rc = "$code" ] || complain "$1 ends with $rc, not $code"
    [ "$(grep -c "$words" "$tmp/log")" = 1 ] || { complain "$1 does not say '$words':"; cat "$tmp/log"; }
}
refuses 1 'no NVIDIA GPU can be used here.*use --device cpu' EMU_DEVICES=0
refuses 3 'does not fit the GPU: weights [0-9]* + KV [0-9]* + scratch' EMU_MEMORY=46
refuses 2 'sinkcache.*runs on the CPU alone' EMU_DEVICES=1 --method streamingllm \
    --set streamingllm.positions=sinkcache
refuses 2 '.--stream-weights is for the CPU alone' EMU_DEVICES=1 --stream-weights
./scbench data/tiny_llama.bin --task retr_kv --device cuda >"$tmp/log" 2>&1
[ $? = 1 ] && grep -q 'this build computes on the CPU only' "$tmp/log" ||
    complain "a CPU build takes --device cuda"
[ $failures = 0 ] && echo "device: ok" || exit 1
