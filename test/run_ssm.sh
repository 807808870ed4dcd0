#!/usr/bin/env bash
# run_ssm.sh - the benchmark on small recurrent models, a Mamba-2 and a hybrid with experts: both
# modes prefill the context once and answer bit for bit as when everything is computed again, for
# every arm, thread count, chunk and instruction set; what a run without keys and values says.
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
make -s scbench || exit 1

cat >"$tmp/mamba2.json" <<'JSON'
{ "model_type": "mamba2", "vocab_size": 270, "hidden_size": 64, "num_hidden_layers": 3,
  "num_heads": 4, "head_dim": 32, "expand": 2, "state_size": 40, "n_groups": 2, "conv_kernel": 4,
  "hidden_act": "silu", "use_bias": false, "use_conv_bias": true, "rms_norm": true,
  "layer_norm_epsilon": 1e-05, "max_position_embeddings": 2048, "tie_word_embeddings": true }
JSON
cat >"$tmp/jamba.json" <<'JSON'
{ "model_type": "jamba", "vocab_size": 270, "hidden_size": 64, "intermediate_size": 96,
  "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
  "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2,
  "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 16, "mamba_d_conv": 4,
  "mamba_dt_rank": 5, "mamba_expand": 2, "hidden_act": "silu", "mamba_conv_bias": true,
  "mamba_proj_bias": false, "rms_norm_eps": 1e-06, "max_position_embeddings": 2048,
  "tie_word_embeddings": false }
JSON

# the rows of the directories as sorted lines of what must not change
cat >"$tmp/rows.py" <<'EOF'
import json, sys
lines = []
for d in sys.argv[1:]:
    for line in open(d + "/results.jsonl"):
        r = json.loads(line)
        assert r["error"] is None, r
        lines.append(json.dumps({k: r[k] for k in (
            "session", "turn", "mode", "arm", "params", "ids_hash", "logits_hash", "n_new", "ssm_bytes",
            "rows_min_q", "rows_mean_q", "rows_max_end")}))
print("\n".join(sorted(lines)))
EOF
rows() { .venv/bin/python "$tmp/rows.py" "$@"; }
same() { cmp -s "$2" "$3" || fail "$1: $(diff "$2" "$3" | head -n 4)"; }
# bench NAME ARGUMENTS...: one run of $model into $tmp/NAME
bench() {
    local name=$1
    shift
    local turns="--turns 3"
    [[ " $* " = *" --turns "* ]] && turns=
    timeout 120 ./scbench "$model" --task retr_kv --ctx 620 $turns --max-new 5 --sessions 1 --quiet "$@" \
        --out "$tmp/$name" >"$tmp/$name.txt" 2>"$tmp/err" || fail "$model $*: exit $?"
}

export OMP_NUM_THREADS=1                # --threads 2 below says otherwise
modes="--mode multi-turn,multi-request"
corm="--set corm.window=1 --set corm.protect=8"
for kind in mamba2 jamba; do
    model=$tmp/$kind.bin
    .venv/bin/python export.py --random 7 --shape "$tmp/$kind.json" "$model" >"$tmp/err" 2>&1 ||
        { fail "export.py --random"; continue; }
    methods=full
    sweep="--method full"
    [ $kind = jamba ] && methods="full keep-last streamingllm corm" &&
        sweep="--method full,keep-last,streamingllm,corm --budget 90 $corm"
    bench $kind $sweep $modes
    rows "$tmp/$kind" >"$tmp/$kind.rows"
    for way in '--threads 2' '--chunk 7' '--chunk 64' '--chunk 5000'; do
        name=$kind$(echo $way | tr -d ' -')
        bench "$name" $sweep $modes $way
        rows "$tmp/$name" >"$tmp/a"
        same "$kind $way" "$tmp/$kind.rows" "$tmp/a"
    done
    SCBENCH_ISA=portable bench $kind-portable $sweep $modes
    rows "$tmp/$kind-portable" >"$tmp/a"
    same "$kind, portable kernels" "$tmp/$kind.rows" "$tmp/a"

    # a context used again by its requests; and context + question computed at once, from the first
    # token on: the same ids and logits
    bench $kind-reuse --method full --mode multi-request
    rows "$tmp/$kind-reuse" | sed 's/"arm": "[^"]*"/"arm": ""/' >"$tmp/b"
    for mode in multi-request single; do
        bench $kind-$mode --method full --mode $mode --turns 1
        rows "$tmp/$kind-$mode" | sed 's/"arm": "[^"]*"/"arm": ""/; s/"mode": "[^"]*"/"mode": ""/' \
            >"$tmp/$mode"
    done
    same "$kind: a context used again, and computed again" "$tmp/multi-request" "$tmp/single"

    # the policy sees question 1, then the root goes back to the context's end: with nothing evicted
    # the answers are those of a root that never saw it
    bench $kind-aware --method full --mode multi-request --query-aware first
    rows "$tmp/$kind-aware" | sed 's/"arm": "[^"]*"/"arm": ""/' >"$tmp/a"
    same "$kind: a root cut back to its context" "$tmp/b" "$tmp/a"
    for method in $methods; do
        [ $method = full ] && continue
        sizes="--budget 90"
        [ $method = corm ] && sizes=$corm
        bench $kind-aware-$method --method $method $sizes --mode multi-request --query-aware first
        bench $kind-own-$method --method $method --no-baselines $sizes --mode multi-turn
        rows "$tmp/$kind-own-$method" >"$tmp/a"
        grep "\"multi-turn\", \"arm\": \"$method\( 90\)*\"" "$tmp/$kind.rows" >"$tmp/b"
        same "$kind, $method on rows of its own" "$tmp/b" "$tmp/a"
    done
done

# ---- recurrent state is in the rows; a model without keys and values has no rows to evict
.venv/bin/python - "$tmp" <<'EOF' || fail "the sizes in the rows"
import json, sys
mamba, jamba = ([json.loads(x) for x in open(f"{sys.argv[1]}/{k}/results.jsonl")] for k in ("mamba2", "jamba"))
X, D, J, N, E = 128 + 2 * 2 * 40, 128, 4, 40, 2     # channels of the conv, inner width, heads, state, bf16
up = lambda b: (b + 63) // 64 * 64
layer = up(3 * X * 4) + up(D * N * 4) + up(64 * X * E) + up(64 * J * 4)
for r in mamba:
    assert r["ssm_bytes"] == 3 * layer and r["rows_max_q"] == 0 and r["kv_alloc_bytes_q"] == 0, r
for r in jamba:
    assert r["ssm_bytes"] == 3 * up((3 + 16) * 128 * 4), r
assert all(r["rows_max_q"] == r["n_prompt"] for r in jamba if r["method"] == "full")
assert len({r["logits_hash"] for r in jamba}) > len(jamba) / 2
EOF
model=$tmp/mamba2.bin
timeout 120 ./scbench "$model" --task retr_kv --ctx 620 --turns 2 --max-new 3 --sessions 1 --method keep-last \
    --out "$tmp/none" >"$tmp/none.txt" 2>"$tmp/none.err" || fail "keep-last on a model without keys"
grep -q 'evict' "$tmp/none.err" || fail "no warning that nothing is evictable: $(cat "$tmp/none.err")"
grep -q '"evictable": 0' "$tmp/none/results.jsonl" || fail "evictable is not 0 without keys and values"

# ---- the gated norm over the whole width, by a switch and by the file: the same model
sed 's/"n_groups": 2/"n_groups": 2, "norm_groups": 1/' "$tmp/mamba2.json" >"$tmp/whole.json"
.venv/bin/python export.py --random 7 --shape "$tmp/whole.json" "$tmp/whole.bin" >"$tmp/err" 2>&1 ||
    fail "export.py with norm_groups"
bench parts --method full
bench switch --method full --set mamba.norm_groups=1
model=$tmp/whole.bin
bench whole --method full
for run in parts switch whole; do
    rows "$tmp/$run" | sed 's/"params": {[^}]*}/"params": {}/' >"$tmp/$run.rows"
done
same "the norm's width by switch and by file" "$tmp/whole.rows" "$tmp/switch.rows"
cmp -s "$tmp/parts.rows" "$tmp/switch.rows" && fail "mamba.norm_groups=1 changes nothing"
grep -q '"mamba.norm_groups": 1' "$tmp/switch/results.jsonl" || fail "rows do not name the switch"
./scbench "$tmp/jamba.bin" --method full --set mamba.norm_groups=1 --ctx 620 --turns 1 --out "$tmp/no" \
    >/dev/null 2>"$tmp/err" && fail "mamba.norm_groups on another architecture was taken"

[ $failures = 0 ] && exit 0
echo "$failures failures"
exit 1
