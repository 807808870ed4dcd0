#!/usr/bin/env bash
# findings.sh - what the papers claim, measured on the small models in data/ with 100 sessions per cell:
# every method on four tasks with half of the rows and at the sizes of the demo, several lengths, corm
# against budgets of its rows, with and without a question known beforehand, with the model's own
# history. The tables go into README.md between its two marker lines, the scores by turn at half of the
# rows into figures/findings.png.
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
pair=retr_kv,retr_mh
tasks=retr_kv,retr_ps,retr_mh,math_find
both=multi-turn,multi-request
more full tiny_llama 1536 --task $tasks --mode $both
for ctx in 768 1536 3072; do
    for model in tiny_llama tiny_jamba tiny_mamba2; do
        more "length-$model-$ctx" $model $ctx --task retr_kv
    done
done
# what any query of nearly the whole prompt looks at, ragged; the same bytes in equal lists
more corm tiny_llama 1536 --task $pair --method corm --set corm.window=1280 --mode $both
rows=$(python3 test/findings.py --rows "$dir/corm") || exit 1
more equal tiny_llama 1536 --task $pair --method streamingllm,snapkv,h2o --budget "$rows" \
     --no-baselines --mode $both
methods="full,topk,quest,minference,tri-shape,a-shape,streamingllm,snapkv,pyramidkv,h2o,roco,`
         `scissorhands,tova,keep-last"
more half tiny_llama 1536 --task $tasks --keep 0.5 --mode $both --no-baselines --method $methods
more small tiny_llama 1536 --task $tasks --mode $both --method all
# looks that are spread over a whole value, as one look from the question marks its beginning alone
wide="--task retr_kv --method snapkv,pyramidkv --keep 0.25 --no-baselines"
wide="$wide --set snapkv.kernel=41 --set pyramidkv.kernel=41"
more wide tiny_llama 1536 $wide --mode $both
more wide-known tiny_llama 1536 $wide --mode multi-request --query-aware first
more own tiny_llama 1536 --task retr_kv,retr_ps,retr_mh --method $methods --keep 0.5 \
     --no-baselines --history own

python3 test/findings.py "$sessions" "$dir" README.md || exit 1
for python in .venv/bin/python python3; do
    $python -c 'import matplotlib' 2>/dev/null &&
        exec $python plot.py turns "$dir/half" figures/findings.png --split --dpi 110
done
echo "for the figure: test/venv.sh; .venv/bin/python plot.py turns $dir/half figures/findings.png --split"
