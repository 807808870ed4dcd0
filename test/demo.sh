#!/usr/bin/env bash
# demo.sh - from a fresh clone to what the papers claim, offline: builds, runs the retrieval tasks
# and math_find with every method on the small models in data/, prints the tables, draws two figures.
# Where matplotlib is missing and cannot be had, it says how to draw them later.
#
#   test/demo.sh [SESSIONS [DIR]]       default 20 sessions per cell, into out/demo-DATE
set -u
cd "$(dirname "$0")/.." || exit 1

sessions=${1:-20}
dir=${2:-out/demo-$(date +%Y%m%d-%H%M%S)}
tasks=retr_kv,retr_ps,retr_mh,math_find

test/deps.sh || exit 1
make --no-print-directory -s -j"$(nproc)" || exit 1

# play MODEL METHODS: two halves of the sessions side by side, a small model does not fill two cores
play() {
    local shard pids=() rc=0
    set -- "$1" ./scbench "data/$1.bin" --task $tasks --method "$2" --mode multi-turn,multi-request \
        --sessions "$sessions" --ctx 1536 --out "$dir/$1"
    echo "${*:2}"
    for shard in 1/2 2/2; do
        "${@:2}" --shard $shard --threads 1 --quiet >"$dir/$1.${shard%/2}.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || rc=$?; done
    [ $rc = 0 ] || { cat "$dir/$1".*.log >&2; exit $rc; }
}

[ ! -e "$dir" ] || { echo "demo: $dir exists; name another directory" >&2; exit 1; }
mkdir -p "$dir"
# plotter: a Python with matplotlib
plotter() {
    for python in .venv/bin/python python3; do
        $python -c 'import matplotlib' 2>/dev/null && echo $python && return
    done
    return 1
}
figures=
plotter >/dev/null || { test/venv.sh >"$dir/venv.log" 2>&1 & figures=$!; }
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
runs=()
for model in tiny_llama tiny_jamba tiny_mamba2; do
    [ -f data/$model.bin ] || continue
    if [ $model = tiny_llama ]; then play $model all; else play $model full; fi
    runs+=("$dir/$model")
done

./scbench report "${runs[@]}" --table turns || exit 1
./scbench report "${runs[@]}" --table tasks || exit 1
./scbench report "${runs[@]}" --format csv >"$dir/report.csv" 2>/dev/null || exit 1
[ -z "$figures" ] || wait "$figures"
if python=$(plotter); then
    $python plot.py turns "$dir/report.csv" "$dir/turns.png" --split --title "score by turn" ||
        exit 1
    $python plot.py abilities "$dir/report.csv" "$dir/abilities.png" || exit 1
    echo "figures: $dir/turns.png $dir/abilities.png"
else
    echo "for the two figures: test/venv.sh; .venv/bin/python plot.py turns $dir/report.csv turns.png"
fi
