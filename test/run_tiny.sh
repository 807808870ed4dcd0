#!/usr/bin/env bash
# run_tiny.sh - the small models in data/ are good at the tasks, with full attention: accuracy floors
# that a broken kernel, tokenizer or generator would not reach; and the shuffle control: when the keys
# of the context change places, the old answers are no longer given and the new ones are.
set -u
cd "$(dirname "$0")/.." || exit 1
export OMP_WAIT_POLICY=passive
[ -x ./scbench ] || make -s scbench || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python=
for p in .venv/bin/python python3; do command -v $p >/dev/null && python=$p && break; done
[ -n "$python" ] || { echo "no Python 3"; exit 77; }

# mean NAME OPTIONS...: plays and prints the mean score of all turns in %, one per mode; of math_find
# the turns that ask for the largest or the smallest number
mean() {
    local name=$1
    shift
    ./scbench "$@" --method full --ctx 1536 --out "$tmp/$name" --quiet >"$tmp/$name.log" 2>&1 ||
        { cat "$tmp/$name.log" >&2; return 1; }
    "$python" - "$tmp/$name/results.jsonl" <<'END'
import collections
import json
import sys

score = collections.defaultdict(list)
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    if row["task"] == "math_find" and not row["question"].split("\nThe ")[1].startswith(
            ("largest", "smallest")):
        continue
    score[row["mode"]].append(row["score"])
print(*(round(100 * sum(s) / len(s)) for s in score.values()))
END
}

failures=0
# floor MODEL TASK MULTI-TURN MULTI-REQUEST
floor() {
    local got
    got=$(mean "$1-$2" "data/$1.bin" --task "$2" --mode multi-turn,multi-request --sessions 6) || exit 1
    set -- "$@" $got
    echo "$1 $2: $5 % multi-turn, $6 % multi-request"
    [ "$5" -ge "$3" ] && [ "$6" -ge "$4" ] ||
        { echo "  the floors are $3 % and $4 %"; failures=$((failures + 1)); }
}
floor tiny_llama retr_kv 93 93
floor tiny_llama retr_mh 93 93
floor tiny_llama retr_ps 83 83
floor tiny_llama math_find 70 75
floor tiny_jamba retr_kv 90 90
floor tiny_mamba2 retr_kv 80 80

./scbench gen --task retr_kv --tokenizer data/tiny_llama.bin --ctx 1536 --sessions 6 --seed 2 \
    --out "$tmp/kv.jsonl" >"$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }
"$python" test/shuffle.py retr_kv "$tmp/kv.jsonl" "$tmp/old.jsonl" "$tmp/new.jsonl" || exit 1
# control MODEL CHANCE FLOOR: at most CHANCE % of the old answers, at least FLOOR % of the new ones
control() {
    local old new
    old=$(mean "$1-old" "data/$1.bin" --task retr_kv --data "$tmp/old.jsonl") || exit 1
    new=$(mean "$1-new" "data/$1.bin" --task retr_kv --data "$tmp/new.jsonl") || exit 1
    echo "$1 retr_kv, keys moved: $old % of the old answers, $new % of the new ones"
    [ "$old" -le "$2" ] && [ "$new" -ge "$3" ] ||
        { echo "  at most $2 % and at least $3 % are expected"; failures=$((failures + 1)); }
}
control tiny_llama 4 90
control tiny_jamba 4 90
control tiny_mamba2 4 80
[ $failures = 0 ] || exit 1
