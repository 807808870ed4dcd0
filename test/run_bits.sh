#!/usr/bin/env bash
# run_bits.sh - the benchmark on a small random model: the logits of every chosen token do not depend
# on threads, chunks, instruction set, sharing, other sessions or an interrupted run; and what a run
# refuses. The rows of two runs are compared by their hashes.
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

cat >"$tmp/shape.json" <<'JSON'
{ "model_type": "llama", "vocab_size": 270, "hidden_size": 96, "intermediate_size": 160,
  "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
  "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": true }
JSON
model=$tmp/small.bin
.venv/bin/python export.py --random 7 --shape "$tmp/shape.json" "$model" >"$tmp/err" 2>&1 ||
    { fail "export.py --random"; exit 1; }

# the rows of the directories as sorted lines without times, bytes and what sharing changes
cat >"$tmp/rows.py" <<'EOF'
import json, sys
full = sys.argv[1] == "all"
lines = []
for d in sys.argv[2:]:
    for line in open(d + "/results.jsonl"):
        r = json.loads(line)
        assert r["error"] is None, r
        keep = [k for k in r if not k.endswith(("_s", "tok_s", "peak_bytes"))] if full else [
            "session", "turn", "mode", "arm", "params", "ids_hash", "logits_hash", "score", "n_new",
            "rows_min_q", "rows_mean_q", "rows_max_end"]
        lines.append(json.dumps({k: r[k] for k in keep}))
print("\n".join(sorted(lines)))
EOF
rows() { .venv/bin/python "$tmp/rows.py" "$@"; }

sweep="--method full,keep-last,streamingllm,corm --mode multi-turn,multi-request"
short="--ctx 700 --turns 3 --max-new 6 --quiet"
corm="--set corm.window=1 --set corm.protect=8"
size="$short --budget 100 $corm"
# bench NAME ARGUMENTS...: one run into $tmp/NAME
bench() {
    local name=$1
    shift
    timeout 120 ./scbench "$model" --task retr_kv $size "$@" --out "$tmp/$name" >"$tmp/$name.txt" 2>"$tmp/err" ||
        fail "scbench $*: exit $?"
}
# same NAME A B
same() { cmp -s "$2" "$3" || fail "$1: $(diff "$2" "$3" | head -n 4)"; }

# ---- one run, then the same one in other ways
export OMP_NUM_THREADS=1                # --threads 2 below says otherwise
bench base $sweep --sessions 2
rows few "$tmp/base" >"$tmp/base.rows"
[ "$(wc -l <"$tmp/base.rows")" = 60 ] || fail "2 sessions x 3 turns x 10 arms gave $(wc -l <"$tmp/base.rows") rows"
grep -q '^retr_kv: accuracy in % by turn, 2 sessions' "$tmp/base.txt" || fail "no table at the end"
./scbench report "$tmp/base" | cmp -s - <(grep -v '^rows: /' "$tmp/base.txt") || fail "report prints another table"

bench again $sweep --sessions 2
rows all "$tmp/base" >"$tmp/a"
rows all "$tmp/again" >"$tmp/b"
same 'the same run again' "$tmp/a" "$tmp/b"
for way in '--threads 2' '--chunk 7' '--chunk 256' '--chunk 5000' '--batch 1' '--batch 2'; do
    name=$(echo $way | tr -d ' -')
    bench "$name" $sweep --sessions 2 $way
    rows few "$tmp/$name" >"$tmp/a"
    same "$way" "$tmp/base.rows" "$tmp/a"
done
size="$short $corm" bench chunk1 --method full,corm --mode multi-turn --sessions 1 --chunk 1
rows few "$tmp/chunk1" >"$tmp/a"
grep "\"session\": 1,.*\"multi-turn\", \"arm\": \"\(full\|corm\|keep-last at corm's rows\)\"" "$tmp/base.rows" >"$tmp/b"
same '--chunk 1' "$tmp/b" "$tmp/a"
SCBENCH_ISA=portable bench portable $sweep --sessions 2
rows few "$tmp/portable" >"$tmp/a"
same 'portable kernels' "$tmp/base.rows" "$tmp/a"

# ---- one arm alone owns its rows; in the sweep all arms share the context
alone=()
for method in full keep-last streamingllm corm; do
    for mode in multi-turn multi-request; do
        alone+=("$tmp/$method-$mode")
        case $method in
        full) sizes= ;;
        corm) sizes=$corm ;;
        *)    sizes="--budget 100" ;;
        esac
        size="$short $sizes" bench "$method-$mode" --method $method --mode $mode --sessions 2
    done
done
rows few "${alone[@]}" >"$tmp/a"
same 'arms alone' "$tmp/base.rows" "$tmp/a"
for mode in multi-turn multi-request; do    # without keep-last beside it, corm's context has no other user
    size="$short $corm" bench "own-$mode" --method corm --no-baselines --mode $mode --sessions 2
done
rows few "$tmp/own-multi-turn" "$tmp/own-multi-request" >"$tmp/a"
grep '"arm": "corm"' "$tmp/base.rows" >"$tmp/b"
same 'corm on rows of its own' "$tmp/b" "$tmp/a"

# ---- a hash that never changes would pass everything above
.venv/bin/python - "$tmp/base" <<'EOF' || fail "the hashes cannot tell runs apart"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1] + "/results.jsonl")]
logits = {(r["session"], r["turn"], r["mode"], r["arm"]): r["logits_hash"] for r in rows}
for s in (1, 2):
    for t in (1, 2, 3):
        for m in ("multi-turn", "multi-request"):
            of = [logits[s, t, m, k] for k in ("full", "keep-last 100", "streamingllm 100", "corm", "keep-last at corm's rows")]
            assert len(set(of)) == 5, (s, t, m, of)
assert len({r["ids_hash"] for r in rows}) == 2 * (3 + 2), "request 1 and turn 1 have the same ids"
assert all(r["rows_max_q"] <= 100 for r in rows if r["arm"] == "keep-last 100")
assert all(r["rows_max_q"] == r["n_prompt"] for r in rows if r["method"] == "full")
assert all(r["evictable"] is None for r in rows if r["method"] == "full")
EOF

# ---- a torn file: session 2 is played alone by a run that goes on
cp -r "$tmp/base" "$tmp/torn"
{ grep '"session": 1' "$tmp/base/results.jsonl"; grep '"session": 2' "$tmp/base/results.jsonl" | head -n 5
  printf '{"session": 2, "turn": 3, "ta'; } >"$tmp/torn/results.jsonl"
bench torn $sweep --sessions 2 --resume
rows few "$tmp/torn" >"$tmp/a"
same 'session 2 alone' "$tmp/base.rows" "$tmp/a"
cp "$tmp/torn/results.jsonl" "$tmp/done"
bench torn $sweep --sessions 2 --resume
same 'a finished run goes on' "$tmp/done" "$tmp/torn/results.jsonl"

# ---- interrupted: 130, whole lines, the way to go on
bench long $sweep --sessions 6
for signal in INT TERM; do
    ./scbench "$model" $size $sweep --sessions 6 --out "$tmp/$signal" >"$tmp/out" 2>"$tmp/err" &
    pid=$!
    for _ in $(seq 600); do
        [ "$(wc -l 2>/dev/null <"$tmp/$signal/results.jsonl" || echo 0)" -ge 30 ] && break
        sleep 0.02
    done
    kill -$signal $pid
    wait $pid
    rc=$?
    [ $rc = 130 ] || fail "SIG$signal: exit $rc, not 130"
    grep -q -- '--resume' "$tmp/err" || fail "SIG$signal: no word on how to go on"
    .venv/bin/python -c 'import json, sys; [json.loads(l) for l in open(sys.argv[1])]' \
        "$tmp/$signal/results.jsonl" || fail "SIG$signal left a torn line"
    bench $signal $sweep --sessions 6 --resume
    rows few "$tmp/long" >"$tmp/a"
    rows few "$tmp/$signal" >"$tmp/b"
    same "interrupted by SIG$signal and gone on with" "$tmp/a" "$tmp/b"
done

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
o="--out $tmp/never --quiet"
refuse 1 'exists' "$model" $short --out "$tmp/base"
refuse 1 'another seed' "$model" $size $sweep --sessions 2 --seed 2 --resume --out "$tmp/base"
refuse 1 'no run' "$model" $short --resume --out "$tmp/never"
refuse 2 '--resume needs --out' "$model" $short --resume
refuse 2 'did you mean --ctx' "$model" --ctxx 3
refuse 2 'did you mean retr_kv' "$model" --task retrkv $o
refuse 2 'did you mean .corm' "$model" --method crom $o
refuse 2 'multi-turn, multi-request, single' "$model" --mode singel $o
refuse 2 'at least\|from 32' "$model" --method keep-last --budget 31 $o
refuse 2 'corm keeps no fixed' "$model" --method corm --budget 64 $o
refuse 2 'exclude' "$model" --method keep-last --budget 64 --keep 0.5 $o
refuse 2 'no method of this run' "$model" --method full --set corm.window=3 $o
refuse 2 'windo' "$model" --method corm --set corm.windo=3 --ctx 700 $o
refuse 2 'one first feed' "$model" --query-aware each $o
refuse 2 'acts on no mode' "$model" --mode single --query-aware first $o
refuse 2 'mixes' "$model" --task longbench/hotpotqa,retr_kv $o
refuse 2 'names retr_kv twice' "$model" --task retr_kv,scbench_kv $o
refuse 2 'has no topk' "$model" --preset harness --method topk $o
refuse 2 'keeps a prompt whole' "$model" --method streamingllm --set streamingllm.positions=sinkcache --set streamingllm.prefill=stream:64 $o
refuse 2 "'original' or 'cache'" "$model" --method snapkv --set snapkv.positions=sinkcache $o
refuse 2 'acts on no method' "$model" --method corm --group max $o
refuse 2 'acts on no method' "$model" --method full --group query-head $o
refuse 2 'acts on no method' "$model" --method h2o,corm --compress every-turn $o
refuse 2 'odd number' "$model" --method snapkv --set snapkv.kernel=4 $o
refuse 2 'stream:TOKENS' "$model" --method h2o --set h2o.prefill=dense $o
refuse 2 'has no meaning' "$model" --method quest --positions cache $o
refuse 2 'has no corm' "$model" --preset harness --method corm $o
refuse 2 'leave .*scorer' "$model" --preset harness --scorer ours $o
refuse 2 'single' "$model" --preset harness --mode single $o
refuse 2 'I/N' "$model" --shard 3/2 $o
refuse 2 'shard needs --out' "$model" --shard 1/2
refuse 2 'skip-bad acts' "$model" --skip-bad $o
refuse 1 'cannot be read' "$model" --data "$tmp/no-such-file" $o
refuse 2 'share no history' "$model" --mode multi-request --history own $o
refuse 2 'too small' "$model" --ctx 50 $o
refuse 1 'takes 2048' "$model" --ctx 2040 $o
refuse 1 'CPU' "$model" --device cuda $o
refuse 1 'small.bi' "$tmp/small.bi" $o
refuse 2 'usage' "$model" "$model" $o
refuse 2 'wants an integer' "$model" --seed x $o
[ -e "$tmp/never" ] && fail "a refused run left a directory"

# ---- the plan against the account of the run; full, keep-last and streamingllm within 3 %
for method in full keep-last streamingllm; do
    for mode in multi-turn multi-request; do
        set -- --method $method --mode $mode --ctx 1500 --turns 3 --sessions 1 --max-new 8
        ./scbench "$model" "$@" --plan >"$tmp/out" 2>"$tmp/err" || fail "--plan: exit $?"
        plan=$(awk -v m="$method" '$1 == m { print $NF * 1e6 }' "$tmp/out")
        timeout 60 ./scbench "$model" "$@" --quiet --out "$tmp/plan-$method-$mode" >/dev/null 2>"$tmp/err" ||
            fail "$*: exit $?"
        .venv/bin/python - "$tmp/plan-$method-$mode" "$plan" <<'EOF' || fail "plan of $method, $mode"
import json, sys
peak = max(json.loads(line)["peak_bytes"] for line in open(sys.argv[1] + "/results.jsonl"))
plan = float(sys.argv[2])
print(f"planned {plan / 1e6:.2f} MB, measured {peak / 1e6:.2f} MB")
sys.exit(abs(plan - peak) > 0.03 * peak)
EOF
    done
done
rm -rf "$tmp/err"

# ---- gen, list
./scbench gen --tokenizer "$model" --ctx 700 --sessions 3 --turns 4 --seed 9 --out "$tmp/gen.jsonl" || fail "gen"
.venv/bin/python - "$tmp/gen.jsonl" <<'EOF' || fail "gen wrote something else"
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
assert len(lines) == 3 and [x["id"] for x in lines] == [0, 1, 2]
for x in lines:
    table = json.loads(x["context"])
    assert len(x["multi_turns"]) == 4
    for turn in x["multi_turns"]:
        assert table[turn["input"].split('"')[1]] == turn["answer"]
EOF
for what in tasks methods shapes; do ./scbench list $what >"$tmp/out" || fail "list $what"; done
./scbench --help | grep -q -- '--query-aware' || fail "--help"

echo "$failures failures"
[ $failures = 0 ]
