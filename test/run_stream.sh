#!/usr/bin/env bash
# run_stream.sh - --stream-weights: the bits of a model in memory, with the bytes of one layer; a
# model that does not fit says so and then runs
set -u
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0
fail() {
    failures=$((failures + 1))
    echo "$*"
    [ -s "$tmp/err" ] && sed 's/^/  stderr: /' "$tmp/err"
}
venv=$(test/venv.sh 2>&1) || { echo "$venv" | tail -n 1; exit 77; }
make -s scbench run || exit 1

shape() {   # NAME FAMILY TIED WIDTH LAYERS
    cat >"$tmp/$1.json" <<JSON
{ "model_type": "$2", "vocab_size": 270, "hidden_size": $4, "intermediate_size": $((4 * $4 + 8)),
  "num_hidden_layers": $5, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
  "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": $3 }
JSON
}
shape tied llama true 96 5
shape bias qwen2 false 80 3
shape one llama false 64 1
shape large llama true 1024 10
cat >"$tmp/mamba.json" <<'JSON'
{ "model_type": "mamba2", "vocab_size": 270, "hidden_size": 64, "num_hidden_layers": 3, "num_heads": 8,
  "head_dim": 16, "expand": 2, "state_size": 16, "n_groups": 2, "conv_kernel": 4,
  "layer_norm_epsilon": 1e-05 }
JSON
cat >"$tmp/jamba.json" <<'JSON'
{ "model_type": "jamba", "vocab_size": 270, "hidden_size": 64, "intermediate_size": 72,
  "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
  "max_position_embeddings": 2048, "rms_norm_eps": 1e-06, "attn_layer_period": 3,
  "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2,
  "expert_layer_offset": 1, "mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4 }
JSON
export_bin() { .venv/bin/python export.py --random 7 --shape "$tmp/$1.json" --dtype "$2" "$tmp/$1-$2.bin"; }

# ---- the same logits after a prompt and every new token, and the same rows of a benchmark
seq -s ' ' 0 199 >"$tmp/ids"
for what in 'tied bf16' 'tied q8' 'bias f32' 'bias bf16' 'one bf16' 'mamba bf16' 'jamba bf16' 'jamba f32'; do
    set -- $what
    export_bin "$1" "$2" >"$tmp/err" 2>&1 || fail "export.py $what"
    model=$tmp/$1-$2.bin
    for way in '' --stream-weights; do
        ./run "$model" --ids "$tmp/ids" -n 5 --logits "$tmp/logits$way" $way >"$tmp/out$way" 2>"$tmp/err" ||
            fail "run $what $way"
    done
    cmp "$tmp/logits" "$tmp/logits--stream-weights" || fail "$what: other logits"
    cmp "$tmp/out" "$tmp/out--stream-weights" || fail "$what: other ids"
done
model=$tmp/tied-bf16.bin
for way in '' --stream-weights; do
    ./scbench "$model" --ctx 700 --turns 2 --sessions 1 --max-new 4 --quiet --method full,corm \
        --mode multi-turn,multi-request $way --out "$tmp/rows$way" >"$tmp/out" 2>"$tmp/err" || fail "scbench $way"
    grep -o '"\(ids\|logits\)_hash": "[^"]*"' "$tmp/rows$way/results.jsonl" | sort >"$tmp/hashes$way"
done
[ "$(wc -l <"$tmp/hashes")" -ge 16 ] || fail "too few rows"
cmp "$tmp/hashes" "$tmp/hashes--stream-weights" || fail "the benchmark gives other logits"

# ---- memory: the plan is that of a layer, and a limit below the weights is no obstacle
export_bin large bf16 >"$tmp/err" 2>&1 || fail "export.py large"
model=$tmp/large-bf16.bin
bytes=$(stat -c %s "$model")
planned() { awk '$1 == "full" { printf "%d\n", $2 * 1e6 }'; }
all=$(./scbench plan "$model" --ctx 128 | planned)
some=$(./scbench plan "$model" --ctx 128 --stream-weights | planned)
[ $((some * 4)) -lt "$all" ] || fail "planned $some of $all bytes of weights when streamed"
# the file is mapped, so it counts; beside it half of it is free for weights, scratch and threads
limit=$(((bytes + bytes / 2 + 60000000) / 1024))
limited() { (ulimit -v $limit; OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 exec "$@"); }
rest="--ctx 500 --turns 1 --sessions 1 --max-new 2 --quiet"
limited ./scbench "$model" $rest --plan >"$tmp/out" 2>"$tmp/err"
[ $? = 3 ] || fail "--plan of a model larger than the memory"
grep -q 'weights are larger.*--stream-weights' "$tmp/out" || fail "the plan names no way out"
grep -q 'does not fit.*--stream-weights' "$tmp/err" || fail "the refusal names no way out"
limited ./run "$model" --ids "$tmp/ids" -n 2 --logits "$tmp/a" >"$tmp/out" 2>"$tmp/err"
[ $? = 3 ] && grep -q 'weights need .*--stream-weights' "$tmp/err" || fail "run of a model larger than the memory"
limited ./scbench "$model" $rest --stream-weights --out "$tmp/streamed" >"$tmp/out" 2>"$tmp/err" ||
    fail "scbench --stream-weights in little memory"
limited ./run "$model" --ids "$tmp/ids" -n 2 --logits "$tmp/a" --stream-weights >"$tmp/out" 2>"$tmp/err" ||
    fail "run --stream-weights in little memory"
./run "$model" --ids "$tmp/ids" -n 2 --logits "$tmp/b" >"$tmp/out" 2>"$tmp/err" || fail "run in enough memory"
cmp "$tmp/a" "$tmp/b" || fail "other logits in little memory"
rm -f "$tmp/err"

echo "$failures failures"
[ $failures = 0 ]
