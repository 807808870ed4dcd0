#!/usr/bin/env bash
# findings.sh - what the papers claim, measured on the small models in data/: the demo's runs with 100
# sessions per cell, then the runs with the models' own history and with questions known beforehand;
# the table goes into README.md between its two marker lines.
#
#   test/findings.sh [SESSIONS [DIR]]   default 100 sessions per cell, into out/findings-DATE
set -u
cd "$(dirname "$0")/.." || exit 1

sessions=${1:-100}
dir=${2:-out/findings-$(date +%Y%m%d-%H%M%S)}
grep -q '^<!-- findings -->$' README.md && grep -q '^<!-- end of findings -->$' README.md ||
    { echo "findings: README.md lacks the lines '<!-- findings -->' and '<!-- end of findings -->'" >&2
      exit 1; }

test/demo.sh "$sessions" "$dir" || exit $?
# more NAME OPTIONS...: another run of tiny_llama over the same sessions
more() {
    local shard pids=() rc=0 name=$1
    shift
    for shard in 1/2 2/2; do
        ./scbench data/tiny_llama.bin --task retr_kv,retr_ps,retr_mh,math_find --sessions "$sessions" \
            --ctx 1536 --out "$dir/$name" --shard $shard --threads 1 --quiet "$@" \
            >"$dir/$name.${shard%/2}.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || rc=$?; done
    [ $rc = 0 ] || { cat "$dir/$name".*.log >&2; exit $rc; }
}
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
more own --method all --history own
more aware --method all --mode multi-request --query-aware first
more half --method all --keep 0.5 --mode multi-turn,multi-request

python3 test/findings.py "$sessions" "$dir" README.md
