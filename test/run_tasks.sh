#!/usr/bin/env bash
# run_tasks.sh - all twelve tasks in all modes on a tiny random model: every row is there, a killed run
# goes on to the same rows, shards are the whole, records give the prompts that generators give.
# SOAK=1: 20 kills instead of 3.
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
{ "model_type": "llama", "vocab_size": 270, "hidden_size": 32, "intermediate_size": 64,
  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
  "max_position_embeddings": 40000, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": true }
JSON
model=$tmp/tiny.bin
.venv/bin/python export.py --random 3 --shape "$tmp/shape.json" "$model" >"$tmp/err" 2>&1 ||
    { fail "export.py --random"; exit 1; }

# the rows of the directories, sorted, without times, bytes and directories
cat >"$tmp/rows.py" <<'EOF'
import json, sys
lines = []
for d in sys.argv[1:]:
    for line in open(d + "/results.jsonl"):
        r = json.loads(line)
        assert r["error"] is None, r
        lines.append(json.dumps({k: r[k] for k in r if not k.endswith(("_s", "peak_bytes"))}))
print("\n".join(sorted(lines)))
EOF
rows() { .venv/bin/python "$tmp/rows.py" "$@"; }
same() { cmp -s "$2" "$3" || fail "$1: $(diff "$2" "$3" | head -n 4 | cut -c 1-600)"; }
# bench NAME ARGUMENTS...: one run into $tmp/NAME
bench() {
    local name=$1
    shift
    timeout 300 ./scbench "$model" --threads 1 --quiet "$@" --out "$tmp/$name" >"$tmp/$name.txt" 2>"$tmp/err" ||
        fail "scbench $*: exit $?"
}
all="--task all --mode multi-turn,multi-request,single --method full,keep-last --budget 64 --turns 2"
all="$all --ctx 5200 --max-new 3 --sessions 2"

# ---- every row, both scorers
bench base $all
rows "$tmp/base" >"$tmp/base.rows"
.venv/bin/python - "$tmp/base" <<'EOF' || fail "rows are missing or wrong"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1] + "/results.jsonl")]
tasks = "retr_kv retr_ps retr_mh repoqa en_qa zh_qa en_mc math_find icl en_sum mix_sum_niah mix_repoqa_kv".split()
keys = [(r["task"], r["session"], r["turn"], r["mode"], r["arm"]) for r in rows]
want = {(t, s, n, m, a) for t in tasks for s in (1, 2) for n in (1, 2)
        for m in ("multi-turn", "multi-request", "single") for a in ("full", "keep-last 64")}
assert len(keys) == len(set(keys)) and set(keys) == want, (len(keys), len(set(keys)), len(want))
for r in rows:
    assert 0 <= r["score"] <= 1 and r["n_new"] <= 3 and r["turns"] == 2, r
    assert r["ctx"] == 5200 and r["scorer"] == "ours", r
    assert (r["part"] is not None) == r["task"].startswith("mix_"), r
    assert (r["similarity"] is not None) == (r["task"] == "repoqa" or r["part"] == "scbench_repoqa"), r
    assert r["query_aware"] == {"multi-turn": "first", "multi-request": "no", "single": "each"}[r["mode"]]
parts = {(r["task"], r["part"]) for r in rows if r["part"]}
assert len(parts) == 4, parts
by = dict(zip(keys, rows))
for (t, s, n, m, a), r in by.items():       # the full cache does not care how a prompt was cut into feeds
    request = by[t, s, n, "multi-request", a]
    if a == "full" and (m == "single" or n == 1):
        assert r["logits_hash"] == request["logits_hash"] and r["ids_hash"] == request["ids_hash"], (t, s, n, m)
EOF
bench harness $all --scorer harness
.venv/bin/python - "$tmp/base" "$tmp/harness" <<'EOF' || fail "--scorer harness changes more than scores"
import json, sys
a, b = ([json.loads(line) for line in open(d + "/results.jsonl")] for d in sys.argv[1:])
assert len(a) == len(b) and all(x["logits_hash"] == y["logits_hash"] and y["scorer"] == "harness" for x, y in zip(a, b))
EOF

# ---- what the policy sees: each = single; with first the policy has seen question 1
aware="--task retr_kv,en_mc --method full,keep-last,corm --budget 64 --turns 2 --ctx 5200 --max-new 3 --sessions 1"
bench no $aware --mode multi-request
bench first $aware --mode multi-request --query-aware first
bench each $aware --mode multi-request,single --query-aware each
bench corm --task retr_kv,en_mc --method corm --no-baselines --turns 2 --ctx 5200 --max-new 3 --sessions 1 \
    --mode multi-request --query-aware first
.venv/bin/python - "$tmp" <<'EOF' || fail "--query-aware"
import json, sys
def load(name):
    rows = [json.loads(line) for line in open(f"{sys.argv[1]}/{name}/results.jsonl")]
    assert all(r["error"] is None for r in rows), rows
    return {(r["task"], r["turn"], r["mode"], r["arm"]): r for r in rows}
no, first, each, corm = (load(n) for n in ("no", "first", "each", "corm"))
assert len(no) == len(first) == 2 * 2 * 4 and len(each) == 2 * len(no)
hashes = lambda r: (r["ids_hash"], r["logits_hash"])
for (task, turn, mode, arm), r in first.items():
    n, e, s = no[task, turn, mode, arm], each[task, turn, mode, arm], each[task, turn, "single", arm]
    assert r["query_aware"] == "first" and n["query_aware"] == "no" and e["query_aware"] == "each"
    assert r["ids_hash"] == n["ids_hash"] == e["ids_hash"] and hashes(e) == hashes(s)
    if arm == "full":
        assert r["logits_hash"] == n["logits_hash"] == e["logits_hash"]
    if arm == "keep-last 64":
        assert r["rows_max_q"] == 64, r
    if arm == "corm":       # rows of its own or of a shared context
        assert hashes(r) == hashes(corm[task, turn, mode, arm])
differ = sum(first[k]["logits_hash"] != no[k]["logits_hash"] for k in first if k[3] != "full")
assert differ, "keep-last does not see question 1"
EOF

# ---- kill -9 wherever it strikes, then go on
kills=$([ "${SOAK:-0}" = 1 ] && echo 20 || echo 3)
short="${all/--sessions 2/--sessions 1}"
bench short $short
rows "$tmp/short" >"$tmp/short.rows"
RANDOM=7
for i in $(seq "$kills"); do
    at=$((RANDOM % 130 + 1))
    ./scbench "$model" --threads 1 --quiet $short --out "$tmp/kill$i" >"$tmp/out" 2>"$tmp/err" &
    pid=$!
    for _ in $(seq 3000); do
        [ "$(wc -l 2>/dev/null <"$tmp/kill$i/results.jsonl" || echo 0)" -ge $at ] && break
        sleep 0.01
    done
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    bench "kill$i" $short --resume
    rows "$tmp/kill$i" >"$tmp/a"
    same "killed after $at rows and gone on with" "$tmp/short.rows" "$tmp/a"
done

# ---- four shards are one run
for i in 1 2 3 4; do bench whole $all --shard $i/4; done
rows "$tmp"/whole/shard-* >"$tmp/a"
same 'four shards' "$tmp/base.rows" "$tmp/a"
for i in 1 2 3 4; do [ -s "$tmp/whole/shard-$i/results.jsonl" ] || fail "shard $i has no rows"; done
./scbench report "$tmp/whole" >"$tmp/a" 2>"$tmp/err" || fail "report on shards"
./scbench report "$tmp/base" >"$tmp/b" 2>"$tmp/err" || fail "report"
same 'the report of four shards' <(head -n 12 "$tmp/a") <(head -n 12 "$tmp/b")

# ---- generated sessions written as records give the same prompts
mkdir "$tmp/records"
for name in retr_kv=kv retr_ps=prefix_suffix retr_mh=vt repoqa=repoqa en_qa=qa_eng zh_qa=qa_chn en_mc=choice_eng \
    math_find=mf icl=many_shot en_sum=summary mix_sum_niah=summary_with_needles mix_repoqa_kv=repoqa_and_kv; do
    timeout 60 ./scbench gen --task "${name%=*}" --tokenizer "$model" --ctx 5200 --sessions 2 --turns 2 \
        --out "$tmp/records/scbench_${name#*=}.jsonl" 2>"$tmp/err" || fail "gen ${name%=*}"
done
# the order of the questions: shuffled over the text, or as their answers stand in it
cat >"$tmp/order.py" <<'EOF'
import json, sys
for line in open(sys.argv[1]):
    r = json.loads(line)
    at = [r["context"].index(t["answer"]) for t in r["multi_turns"]]
    sys.exit(at != sorted(at))
EOF
for order in shuffled paper; do
    timeout 60 ./scbench gen --tokenizer "$model" --ctx 5200 --sessions 1 --order $order \
        --out "$tmp/$order.jsonl" 2>"$tmp/err" || fail "gen --order $order"
done
.venv/bin/python "$tmp/order.py" "$tmp/paper.jsonl" || fail "gen --order paper does not follow the text"
.venv/bin/python "$tmp/order.py" "$tmp/shuffled.jsonl" && fail "gen --order shuffled follows the text"
data="--mode multi-turn,multi-request --turns 2 --max-new 1 --dump-prompts"
# math_find has other words in front of its list in the harness, and so another length
eleven=retr_kv,retr_ps,retr_mh,repoqa,en_qa,zh_qa,en_mc,icl,en_sum,mix_sum_niah,mix_repoqa_kv
for preset in scbench harness; do
    tasks=$([ $preset = harness ] && echo $eleven || echo all)
    bench "gen-$preset" $data --task $tasks --preset $preset --ctx 5200 --sessions 2
    bench "data-$preset" $data --task $tasks --preset $preset --ctx 39000 --data "$tmp/records"
    same "prompts of records, preset $preset" "$tmp/gen-$preset/prompts.jsonl" "$tmp/data-$preset/prompts.jsonl"
    [ "$(grep -c . "$tmp/gen-$preset/prompts.jsonl")" = $([ $preset = harness ] && echo 110 || echo 144) ] ||
        fail "$preset: $(grep -c . "$tmp/gen-$preset/prompts.jsonl") feeds"
done

# ---- long records lose their middle, the manifest says so
bench cut $data --task all --data "$tmp/records" --ctx 2501
.venv/bin/python - "$tmp/cut" "$tmp/gen-scbench" <<'EOF' || fail "records cut to --ctx"
import json, sys
m = json.load(open(sys.argv[1] + "/manifest.json"))
assert len(m["cut"]) == 24 and all(c["kept"] == 2500 and 3200 < c["tokens"] <= 5200 for c in m["cut"]), m["cut"]
def feeds(d):
    out = {}
    for line in open(d + "/prompts.jsonl"):
        f = json.loads(line)
        out[f["task"], f["session"], f["mode"], f["turn"]] = f["ids"]
    return out
a, b = (feeds(d) for d in sys.argv[1:])
assert set(a) == set(b)
for key in b:
    if key[3] or key[2] != "all":
        assert a[key] == b[key], key
        continue
    q = len(b[key[0], key[1], "multi-turn", 1])
    assert a[key] == b[key][:1250] + b[key][len(b[key]) - (1250 - q):], key
assert all(r["ctx"] == 2500 for r in map(json.loads, open(sys.argv[1] + "/results.jsonl")))
EOF

# ---- functions of a source tree
mkdir "$tmp/source"
for i in 1 2 3 4 5 6; do
    printf '# Adds the number %d to the product of both of its arguments.\ndef step_%d(a, b):\n    return a * b + %d\n\n\n' \
        $i $i $i
done >"$tmp/source/steps.py"
bench tree --task repoqa --repo "$tmp/source" --ctx 1600 --turns 2 --max-new 1 --sessions 1
[ "$(grep -c '"lang": "python"' "$tmp/tree/results.jsonl")" = 2 ] || fail "--repo: other rows"

# ---- malformed records
refuse() {
    local code=$1 word=$2
    shift 2
    timeout 60 ./scbench "$model" --quiet "$@" --out "$tmp/never" >"$tmp/out" 2>"$tmp/err"
    local rc=$?
    [ $rc = "$code" ] || fail "scbench $*: exit $rc, not $code"
    grep -q -e "$word" "$tmp/err" || fail "scbench $*: '$word' is not in the sentence"
    [ "$(wc -l <"$tmp/err")" = 1 ] || fail "scbench $*: not one sentence"
}
kv=$tmp/records/scbench_kv.jsonl
{ head -n 1 "$kv"; echo '{"context": "x", "multi_turns": [{"input": "q"}]}'; tail -n 1 "$kv"; } >"$tmp/bad.jsonl"
refuse 1 "bad.jsonl:2: field 'multi_turns\[0\].answer' is missing" --data "$tmp/bad.jsonl"
refuse 2 'one file' --data "$tmp/bad.jsonl" --task retr_kv,icl
refuse 1 'scbench_kv_compressible.jsonl' --data "$tmp/records" --task retr_kv_compressible
: >"$tmp/empty.jsonl"
refuse 1 'holds no record' --data "$tmp/empty.jsonl"
[ -e "$tmp/never" ] && fail "a refused run left a directory"
bench skip --data "$tmp/bad.jsonl" --skip-bad --max-new 1
grep -q 'bad.jsonl:2:.*left out' "$tmp/err" || fail "--skip-bad does not say what it left out"
[ "$(wc -l <"$tmp/skip/results.jsonl")" = 4 ] || fail "--skip-bad: $(wc -l <"$tmp/skip/results.jsonl") rows"
./scbench "$model" --data "$kv" --max-new 1 --seed 2 --out "$tmp/skip" --resume >"$tmp/out" 2>"$tmp/err" &&
    fail "a run on other records went on"

echo "$failures failures"
[ $failures = 0 ]
