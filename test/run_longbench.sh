#!/usr/bin/env bash
# run_longbench.sh - LongBench end to end on a tiny random model: generated records and the same ones
# read back give the same prompts, which sets skip the chat template, the cut of long prompts, the
# sizes of CORM's tables, scores of a run as `scbench score` gives them, buckets of LongBench-E,
# a killed run.
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

# bench NAME ARGUMENTS...: one run into $tmp/NAME
bench() {
    local name=$1
    shift
    timeout 300 ./scbench "$model" --threads 1 --quiet "$@" --out "$tmp/$name" >"$tmp/$name.txt" 2>"$tmp/err" ||
        fail "scbench $*: exit $?"
}
check() {
    local what=$1
    shift
    .venv/bin/python - "$@" || fail "$what"
}

# ---- records, and the prompts they give
sets="narrativeqa qasper multifieldqa_en multifieldqa_zh hotpotqa 2wikimqa musique dureader gov_report qmsum
      multi_news vcsum trec triviaqa samsum lsht passage_count passage_retrieval_en passage_retrieval_zh lcc
      repobench-p"
mkdir "$tmp/records"
for name in $sets; do
    timeout 60 ./scbench gen --task "longbench/$name" --tokenizer "$model" --ctx 4000 --sessions 2 \
        --out "$tmp/records/$name.jsonl" 2>"$tmp/err" || fail "gen longbench/$name"
done
short="--task longbench --method full --max-new 3 --dump-prompts"
bench made $short --ctx 4000 --sessions 2
bench read $short --ctx 39000 --data "$tmp/records"
cmp -s "$tmp/made/prompts.jsonl" "$tmp/read/prompts.jsonl" || fail "records give other prompts than the generator"
bench cut $short --ctx 1501 --data "$tmp/records"
check "templates, cuts or defaults" "$tmp" <<'EOF'
import json, sys
tmp = sys.argv[1]
BARE = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
BOS, OPEN, CLOSE = [256], [258], [260, 259]     # of the random model's template
def feeds(d):
    out = {}
    for line in open(f"{tmp}/{d}/prompts.jsonl"):
        f = json.loads(line)
        key = f["task"].split("/")[1], f["session"]
        out[key] = out.get(key, []) + f["ids"]
    return out
made, cut = feeds("made"), feeds("cut")
assert len(made) == len(cut) == 42 and set(made) == set(cut)
for (name, session), ids in made.items():
    head, tail = (BOS, []) if name in BARE else (BOS + OPEN, CLOSE)
    assert ids[:len(head)] == head and (not tail or ids[-2:] == tail), (name, ids[:3], ids[-3:])
    body = ids[len(head):len(ids) - len(tail)]
    assert all(i < 256 for i in body), name
    prompt = BOS + body                         # what is cut: BOS counts, the template does not
    kept = prompt[:750] + prompt[-750:]
    assert cut[name, session] == head + kept[1:] + tail, (name, len(ids), len(cut[name, session]))
rows = [json.loads(line) for line in open(f"{tmp}/cut/results.jsonl")]
manifest = json.load(open(f"{tmp}/cut/manifest.json"))
assert len(rows) == 42 and all(r["preset"] == "corm" and r["scorer"] == "harness" and r["error"] is None for r in rows)
assert len(manifest["cut"]) == 42
for r in rows:
    assert r["ctx"] == 1500 + (0 if r["task"].split("/")[1] in BARE else 3), r["ctx"]
EOF

# ---- the sizes of CORM's tables, at 4K and, given as a budget, on shorter prompts
sizes="--task longbench/qasper --method full,streamingllm,scissorhands,h2o,corm --sessions 1 --max-new 3"
bench paper $sizes --ctx 4096
bench budget $sizes --ctx 3500 --budget 1024
check "CORM's sizes" "$tmp" <<'EOF'
import json, sys
want = {"streamingllm": {"budget": 1024, "sinks": 4, "recent": 1020}, "h2o": {"budget": 1024, "recent": 256},
        "scissorhands": {"budget": 1024, "recent": 256, "history": 256}, "full": {}}
for d, corm in (("paper", 256), ("budget", 218)):
    rows = [json.loads(line) for line in open(f"{sys.argv[1]}/{d}/results.jsonl")]
    for r in rows:
        if r["method"] == "corm":
            assert r["params"] == {"window": corm, "protect": corm}, r["params"]
        if r["method"] in want:
            assert r["params"] == want[r["method"]], (d, r["method"], r["params"])
    assert {r["method"] for r in rows} == {*want, "corm", "keep-last"}
EOF

# ---- a record whose answer is what the model says scores full marks, in a run and by `score`
bench said --task longbench --method full --max-new 40 --sessions 2 --data "$tmp/records"
mkdir "$tmp/told_records" "$tmp/predictions"
check "records of what was said" "$tmp" <<'EOF'
import json, re, sys
tmp = sys.argv[1]
said = {}
for line in open(f"{tmp}/said/results.jsonl"):
    r = json.loads(line)
    said[r["task"].split("/")[1], r["session"]] = r["prediction"]
assert len(said) == 42
for name in {n for n, _ in said}:
    out = open(f"{tmp}/told_records/{name}.jsonl", "w")
    for k, line in enumerate(open(f"{tmp}/records/{name}.jsonl"), 1):
        r, p = json.loads(line), said[name, k]
        if name in ("trec", "triviaqa", "samsum", "lsht"):      # the first line counts
            p = p.lstrip("\n").split("\n")[0]
        if name in ("lcc", "repobench-p"):                      # the first line without a mark
            p = next((x for x in p.lstrip("\n").split("\n") if not any(c in x for c in ("`", "#", "//"))), "")
        if name.startswith("passage"):
            n = (re.findall("[0-9]+", p) or ["7"])[0]
            p = {"passage_count": n, "passage_retrieval_en": f"Paragraph {n}"}.get(name, f"段落{n}")
        r["answers"] = [p] if name.startswith("passage") else ["never said", p]
        r["all_classes"] = r["all_classes"] and [p, "no such class"]
        r["length"] = (100, 5000)[k - 1]
        print(json.dumps(r, ensure_ascii=False), file=out)
EOF
bench told --task longbench --method full --max-new 40 --sessions 2 --data "$tmp/told_records"
check "what was said is not what the records hold" "$tmp" <<'EOF'
import json, sys
tmp = sys.argv[1]
records = {}
for line in open(f"{tmp}/told/results.jsonl"):
    r = json.loads(line)
    name = r["task"].split("/")[1]
    if name not in records:
        records[name] = [json.loads(x) for x in open(f"{tmp}/told_records/{name}.jsonl")]
    record = records[name][r["session"] - 1]
    assert r["gold"] == record["answers"][0], (name, r["gold"])
    with open(f"{tmp}/predictions/{name}.jsonl", "a") as out:
        print(json.dumps({"pred": r["prediction"], **{k: record[k] for k in ("answers", "all_classes", "length")}}), file=out)
    # a text of marks alone has no word, one without a digit no number
    if name in ("lcc", "repobench-p") or (name in ("trec", "lsht") and r["prediction"].strip()):
        assert r["score"] == 1, (name, r["prediction"], r["score"])
    if name in ("gov_report", "qmsum", "multi_news", "narrativeqa", "hotpotqa"):
        assert r["score"] > 0.999, (name, r["prediction"], r["score"])
EOF
for name in $sets; do
    ./scbench score --task "longbench/$name" "$tmp/predictions/$name.jsonl" 2>"$tmp/err" | tail -n 1
done >"$tmp/scores"
check "a run and scbench score disagree" "$tmp" <<'EOF'
import json, sys
tmp = sys.argv[1]
rows = [json.loads(line) for line in open(f"{tmp}/told/results.jsonl")]
scores = {s["task"]: s["score"] for s in map(json.loads, open(f"{tmp}/scores"))}
assert len(scores) == 21
for task, score in scores.items():
    own = [r["score"] for r in rows if r["task"] == task]
    assert abs(score - 100 * sum(own) / len(own)) < 0.00501, (task, score, own)
EOF

# ---- LongBench-E takes a record's bucket from its length
mkdir "$tmp/extended_records"
for name in qasper trec samsum passage_count lcc; do
    cp "$tmp/told_records/$name.jsonl" "$tmp/extended_records/${name}_e.jsonl"
done
bench extended --task longbench/qasper_e,longbench/trec_e,longbench/samsum_e,longbench/passage_count_e,longbench/lcc_e \
    --method full --max-new 40 --data "$tmp/extended_records"
check "LongBench-E" "$tmp" <<'EOF'
import json, sys
rows = [json.loads(line) for line in open(f"{sys.argv[1]}/extended/results.jsonl")]
plain = {(r["task"], r["session"]): r["score"] for r in map(json.loads, open(f"{sys.argv[1]}/told/results.jsonl"))}
assert len(rows) == 10
for r in rows:
    assert r["part"] == ("0-4k", "4-8k")[r["session"] - 1], r
    assert r["score"] == plain[r["task"][:-2], r["session"]], r
EOF
grep -q '^LongBench-E, multi-turn' "$tmp/extended.txt" || fail "the report has no table by length"
./scbench report "$tmp/made" >"$tmp/report" 2>"$tmp/err" || fail report
for word in 'LongBench, multi-turn' 'EN +ZH +All' 'dropped %' '6-2'; do
    grep -Eq -- "$word" "$tmp/report" || fail "the report does not hold '$word'"
done

# ---- kill -9 in the middle, then go on
killed="--task longbench/qasper,longbench/trec,longbench/dureader --method full,corm --ctx 2000 --sessions 2 --max-new 20"
bench whole $killed
rows() {
    .venv/bin/python -c '
import json, sys
for line in open(sys.argv[1] + "/results.jsonl"):
    r = json.loads(line)
    print(json.dumps({k: r[k] for k in r if not k.endswith(("_s", "peak_bytes"))}))' "$1" | sort
}
./scbench "$model" --threads 1 --quiet $killed --out "$tmp/killed" >"$tmp/out" 2>"$tmp/err" &
pid=$!
for _ in $(seq 3000); do
    [ "$(wc -l 2>/dev/null <"$tmp/killed/results.jsonl" || echo 0)" -ge 5 ] && break
    sleep 0.01
done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
bench killed $killed --resume
cmp -s <(rows "$tmp/whole") <(rows "$tmp/killed") || fail "a killed run went on to other rows"

echo "$failures failures"
[ $failures = 0 ]
