#!/usr/bin/env bash
# run_sparse.sh - sparse prefills in the benchmark, on a small random model: the logits do not depend
# on threads, chunks, instruction set or on who shares a context; the pattern search and its file; and
# what is refused.
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

shape() { cat <<JSON
{ "model_type": "llama", "vocab_size": 270, "hidden_size": 96, "intermediate_size": 160,
  "num_hidden_layers": $1, "num_attention_heads": $2, "num_key_value_heads": 2, "head_dim": 32,
  "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": true }
JSON
}
shape 2 6 >"$tmp/shape.json"
shape 3 4 >"$tmp/other.json"
model=$tmp/small.bin
for m in small:shape other:other; do
    .venv/bin/python export.py --random 7 --shape "$tmp/${m#*:}.json" "$tmp/${m%:*}.bin" >"$tmp/err" 2>&1 ||
        { fail "export.py --random"; exit 1; }
done

cat >"$tmp/rows.py" <<'PY'
import json, sys
lines = []
for d in sys.argv[1:]:
    for line in open(d + "/results.jsonl"):
        r = json.loads(line)
        assert r["error"] is None, r
        lines.append(json.dumps({k: r[k] for k in (
            "session", "turn", "mode", "arm", "params", "ids_hash", "logits_hash", "pairs_ratio",
            "rows_min_q", "rows_max_end")}))
print("\n".join(sorted(lines)))
PY
rows() { .venv/bin/python "$tmp/rows.py" "$@"; }
export OMP_NUM_THREADS=1
size="--ctx 900 --turns 2 --max-new 4 --quiet --sessions 1"
sets="--set a-shape.local=128 --set tri-shape.dense_rows=70 --set minference.verticals=40 --set minference.slashes=100"
# bench NAME ARGUMENTS...: one run into $tmp/NAME
bench() {
    local name=$1
    shift
    timeout 120 ./scbench "$model" --task retr_kv $size "$@" --out "$tmp/$name" >"$tmp/$name.txt" 2>"$tmp/err" ||
        fail "scbench $*: exit $?"
}
same() { cmp -s "$2" "$3" || fail "$1: $(diff "$2" "$3" | head -n 4)"; }

methods=full,a-shape,tri-shape,minference,snapkv+minference,minference+h2o,a-shape+streamingllm
sweep="--method $methods $sets --no-baselines --mode multi-turn,multi-request"
bench base $sweep
rows "$tmp/base" >"$tmp/base.rows"
[ "$(wc -l <"$tmp/base.rows")" = 28 ] || fail "7 methods x 2 modes x 2 turns gave $(wc -l <"$tmp/base.rows") rows"
for way in '--threads 2' '--chunk 7' '--chunk 5000'; do
    name=$(echo $way | tr -d ' -')
    bench "$name" $sweep $way
    rows "$tmp/$name" >"$tmp/a"
    same "$way" "$tmp/base.rows" "$tmp/a"
done
SCBENCH_ISA=portable bench portable $sweep
rows "$tmp/portable" >"$tmp/a"
same 'portable kernels' "$tmp/base.rows" "$tmp/a"

# ---- every arm alone: nothing shared, rows of its own
alone=()
for method in ${methods//,/ }; do
    own=()
    for set in $sets; do
        case $set:$method in
        a-shape.*:*a-shape* | tri-shape.*:*tri-shape* | minference.*:*minference*) own+=(--set "$set") ;;
        esac
    done
    for mode in multi-turn multi-request; do
        alone+=("$tmp/$method-$mode")
        bench "$method-$mode" --method "$method" --mode $mode "${own[@]}"
    done
done
rows "${alone[@]}" >"$tmp/a"
same 'arms alone' "$tmp/base.rows" "$tmp/a"

.venv/bin/python - "$tmp/base" <<'PY' || fail "the rows do not say what was computed"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1] + "/results.jsonl")]
first = {(r["mode"], r["method"]): r for r in rows if r["turn"] == 1}
for mode in ("multi-turn", "multi-request"):
    assert first[mode, "full"]["pairs_ratio"] == 1
    hashes = [first[mode, m]["logits_hash"] for m in ("full", "a-shape", "tri-shape", "minference")]
    assert len(set(hashes)) == 4, hashes
    assert first[mode, "minference"]["pairs_ratio"] == first[mode, "minference+snapkv"]["pairs_ratio"]
    assert 0 < first[mode, "a-shape"]["pairs_ratio"] < first[mode, "tri-shape"]["pairs_ratio"] < 1
assert first["multi-turn", "a-shape"]["params"]["prefill"]["local"] == 128
PY

# ---- all pairs of a long enough context: one warning
bench warned --method minference --set minference.slashes=800
grep -q '^warning: minference computed 100' "$tmp/err" || fail "no warning where nearly everything was computed"

# ---- the search: the same file for any threads, read back by a run
for how in '' '--score output' '--space released' '--space released --score output'; do
    for t in 1 2; do
        ./scbench search "$model" --ctx 1200 --quiet --threads $t $how --out "$tmp/pattern$t.json" >"$tmp/out" 2>"$tmp/err" ||
            fail "scbench search $how: exit $?"
    done
    same "search $how, threads" "$tmp/pattern1.json" "$tmp/pattern2.json"
    [ "$(grep -c '^ *[01] *[0-5] ' "$tmp/out")" = 12 ] || fail "scbench search $how: no table of 12 heads"
done
cat >"$tmp/mixed.json" <<'JSON'
[{"0": ["vertical_and_slash", 40, 100, 0.5], "1": ["stream_llm", 64, 128, 1], "2": ["block_sparse", 100, 0, 7],
  "3": ["vertical_and_slash", 30, 800, 1], "4": ["stream_llm", 0, 1, 1], "5": ["vertical_and_slash", 0, 0, 1]},
 {"0": ["vertical_and_slash", 40, 100, 0.5], "1": ["stream_llm", 64, 128, 1], "2": ["block_sparse", 100, 0, 7],
  "3": ["vertical_and_slash", 30, 800, 1], "4": ["stream_llm", 0, 1, 1], "5": ["vertical_and_slash", 0, 0, 1]}]
JSON
bench mixed --method minference,minference+corm --set minference.pattern="$tmp/mixed.json"
grep -q '"pattern": "[0-9a-f]*"' "$tmp/mixed/results.jsonl" || fail "the rows do not name the pattern file"

# ---- a sweep: sizes from a share of the tokens, less of them less computed
bench sweep --method a-shape,tri-shape,minference,minference+snapkv --keep 0.5,0.25,0.125 --no-baselines
.venv/bin/python - "$tmp/sweep" <<'PY' || fail "the sweep's rows do not follow its shares"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1] + "/results.jsonl")]
dense, = {r["pairs_ratio"] for r in rows if r["method"] == "minference+snapkv" and r["turn"] == 1}
assert dense not in {r["pairs_ratio"] for r in rows if r["method"] == "minference"}
for method in ("a-shape", "tri-shape", "minference"):
    first = [r for r in rows if r["method"] == method and r["turn"] == 1]
    assert [r["params"]["budget"] for r in first] == [450, 225, 112], first
    ratios = [r["pairs_ratio"] for r in first]
    assert 1 >= ratios[0] >= ratios[1] > ratios[2] > 0, ratios
    assert method == "minference" or 1 > ratios[0] > ratios[1], ratios
    p = first[1]["params"]["prefill"]
    keys = p["sinks"] + p["local"] if method != "minference" else p["verticals"] + p["slashes"]
    assert keys == 225, p
PY
timeout 60 ./scbench "$model" --plan $size --method a-shape --keep 0.5,0.25 >"$tmp/out" 2>"$tmp/err" ||
    fail "--plan of a sparse sweep: exit $?"
[ "$(grep -c '^a-shape [0-9]* ' "$tmp/out")" = 2 ] || fail "--plan does not name the sizes of a sparse sweep"

# ---- a run of what the search wrote
bench found --method minference --set minference.pattern="$tmp/pattern1.json"

# ---- refusals: exit code and the word that must be in the sentence
refuse() {
    local code=$1 word=$2
    shift 2
    timeout 60 ./scbench "$@" >"$tmp/out" 2>"$tmp/err"
    local rc=$?
    [ $rc = "$code" ] || fail "scbench $*: exit $rc, not $code"
    grep -q -e "$word" "$tmp/err" || fail "scbench $*: '$word' is not in the sentence"
    [ "$(wc -l <"$tmp/err")" = 1 ] || fail "scbench $*: not one sentence"
}
o="--out $tmp/never --quiet --ctx 900"
pattern() { refuse 1 "$1" "$model" --method minference --set minference.pattern="$2" $o; }
pattern 'cannot be read' "$tmp/no-such-file"
echo '[{"0": ["vertical_and_slash", 30' >"$tmp/bad.json"
pattern 'not JSON' "$tmp/bad.json"
sed 's/, 40, 100/, -40, 100/' "$tmp/mixed.json" >"$tmp/bad.json"
pattern 'size must be' "$tmp/bad.json"
sed 's/, "1": [^]]*\], "2"/, "2"/' "$tmp/mixed.json" >"$tmp/bad.json"
pattern 'head' "$tmp/bad.json"
sed 's/,[^,]*"5": [^]]*\]}/}/' "$tmp/mixed.json" >"$tmp/bad.json"
pattern '2 layers with 5 heads; the model has 2 with 6' "$tmp/bad.json"
head -c 300 "$tmp/mixed.json" >"$tmp/bad.json"
pattern 'not JSON' "$tmp/bad.json"
echo '[]' >"$tmp/bad.json"
pattern 'not a file of head patterns' "$tmp/bad.json"
sed 's/stream_llm/stream/' "$tmp/mixed.json" >"$tmp/bad.json"
pattern 'none of vertical_and_slash' "$tmp/bad.json"
refuse 1 'another model' "$tmp/other.bin" --method minference --set minference.pattern="$tmp/mixed.json" $o
refuse 2 'two prefill' "$model" --method a-shape+minference $o
refuse 2 'two cache' "$model" --method snapkv+minference+h2o $o
refuse 2 'did you mean .minference' "$model" --method minferense $o
refuse 2 'from 1\|integer' "$model" --method a-shape --set a-shape.local=0 $o
refuse 2 '0 and\|from 0' "$model" --method a-shape --set a-shape.sinks=-5 $o
refuse 2 'slashes' "$model" --method minference --set minference.slashes=-1 $o
refuse 2 'no option' "$model" --method a-shape --set a-shape.slashes=9 $o
refuse 2 "'first' or 'every'" "$model" --method a-shape --set a-shape.feeds=some $o
refuse 2 'rows' "$model" --method full --budget 64 $o
refuse 2 'sizes of their own' "$model" --method minference --keep 0.5 --set minference.pattern="$tmp/mixed.json" $o
refuse 2 'usage' search "$model"
refuse 2 'paper, released' search "$model" --out "$tmp/never" --space all
refuse 2 'recall, output' search "$model" --out "$tmp/never" --score most
refuse 1 'takes 2048' search "$model" --out "$tmp/never" --ctx 3000
[ -e "$tmp/never" ] && fail "a refused run left something"
bench harness --preset harness --method a-shape,tri-shape,minference

echo "$failures failures"
[ $failures = 0 ]
