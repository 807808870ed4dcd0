#!/usr/bin/env bash
# findings.sh - what the papers claim, measured on the small models in data/ with 100 sessions per cell:
# at several lengths, corm against budgets of its rows, with a question known beforehand, with the
# model's own history, with half of the rows, and with the default sizes. The tables go into README.md
# between its two marker lines.
#
#   test/findings.sh [SESSIONS [DIR]]   default 100 sessions per cell, into out/findings-DATE; a DIR of
#                                       findings that were cut off goes on
set -u
cd "$(dirname "$0")/.." || exit 1

sessions=${1:-100}
dir=${2:-out/findings-$(date +%Y%m%d-%H%M%S)}
grep -q '^<!-- findings -->$' README.md && grep -q '^<!-- end of findings -->$' README.md ||
    { echo "findings: README.md lacks the lines '<!-- findings -->' and '<!-- end of findings -->'" >&2
      exit 1; }

test/deps.sh || exit 1
make --no-print-directory -s -j"$(nproc)" || exit 1
# more NAME MODEL CTX OPTIONS...: another run, two halves of the sessions side by side
more() {
    local shard pids=() resume rc=0 name=$1 model=$2 ctx=$3
    shift 3
    echo "$name: $model, $ctx tokens, $*"
    for shard in 1/2 2/2; do
        resume=
        [ ! -e "$dir/$name/shard-${shard%/2}/manifest.json" ] || resume=--resume
        ./scbench "data/$model.bin" --sessions "$sessions" --seed 9000 --ctx "$ctx" --out "$dir/$name" \
            --shard $shard --threads 1 --quiet $resume "$@" >"$dir/$name.${shard%/2}.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || rc=$?; done
    [ $rc = 0 ] || { cat "$dir/$name".*.log >&2; exit $rc; }
}
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM

mkdir -p "$dir"
tasks=retr_kv,retr_mh
both=multi-turn,multi-request
more full tiny_llama 1536 --task retr_kv,retr_ps,retr_mh,math_find --mode $both
for ctx in 768 1536 3072; do
    for model in tiny_llama tiny_jamba tiny_mamba2; do
        more "length-$model-$ctx" $model $ctx --task retr_kv
    done
done
# what any query of the prompt looks at, ragged, and the same bytes in equal lists
more corm tiny_llama 1536 --task $tasks --method corm --set corm.window=1536 --mode $both
rows=$(python3 test/findings.py --rows "$dir/corm") || exit 1
more equal tiny_llama 1536 --task $tasks --method streamingllm,snapkv,h2o --budget "$rows" \
     --no-baselines --mode $both
more half tiny_llama 1536 --task $tasks --keep 0.5 --mode $both --no-baselines \
     --method "full,topk,quest,minference,tri-shape,a-shape,streamingllm,snapkv,pyramidkv,h2o,roco,`
             `scissorhands,tova,keep-last"
more known tiny_llama 1536 --task $tasks --method snapkv,pyramidkv,tova,h2o --keep 0.5 \
     --no-baselines --mode multi-request --query-aware first
more own tiny_llama 1536 --task $tasks --keep 0.5 --history own --no-baselines \
     --method full,streamingllm,snapkv,h2o,roco,a-shape,minference
more few tiny_llama 1536 --task retr_kv --method all

python3 test/findings.py "$sessions" "$dir" README.md
