#!/usr/bin/env bash
# run_lingua.sh - llmlingua2 in the benchmark with small random encoders: an arm sees what scbench
# compress leaves of the context and whole questions, once per session whatever the modes and cache
# stages; a later run reads it; rows and report say which answers were left out; and what is refused.
set -u
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0
n=0

fail() {
    failures=$((failures + 1))
    echo "$*"
    [ -s "$tmp/err" ] && sed 's/^/  stderr: /' "$tmp/err"
}
venv=$(test/venv.sh 2>&1) || { echo "$venv" | tail -n 1; exit 77; }
make -s scbench || exit 1
model=data/tiny_llama.bin
encoder=data/lingua/xlm.bin
python=.venv/bin/python
export OMP_NUM_THREADS=2

# bench NAME ARGUMENTS...: one run into $tmp/NAME
bench() {
    local name=$1
    shift
    timeout 120 ./scbench "$model" --ctx "${ctx:-700}" --turns 2 --max-new 6 "$@" --out "$tmp/$name" \
        >"$tmp/$name.txt" 2>"$tmp/err" || fail "scbench $*: exit $?"
}
# counted NAME MADE READ: what the last run said of its compressed contexts
counted() { grep -Eq "^llmlingua2: $2 contexts compressed .* $3 read" "$tmp/err" || fail "$1: not $2 and $3"; }
cat >"$tmp/rows.py" <<'EOF'
import json, sys
lines = []
for line in open(sys.argv[1] + "/results.jsonl"):
    r = json.loads(line)
    assert r["error"] is None, r
    if len(sys.argv) > 2 and not r["method"].startswith(sys.argv[2]): continue
    lines.append(json.dumps({k: r[k] for k in r if not k.endswith("_s") and
                             k not in ("compress_read", "peak_bytes", "restored", "shared",
                                       "policy_bytes", "kv_alloc_bytes_q", "kv_alloc_bytes_end")}))
print("\n".join(sorted(lines)))
EOF
rows() { $python "$tmp/rows.py" "$@"; }
same() { cmp -s "$2" "$3" || fail "$1: $(diff "$2" "$3" | head -n 4 | cut -c 1-600)"; }

# ---- every mode, alone and with a cache stage and a sparse prefill
all="--task retr_kv --sessions 2 --mode multi-turn,multi-request,single --budget 64 --no-baselines"
methods=full,llmlingua2,llmlingua2+snapkv,snapkv+tri-shape+llmlingua2
bench base $all --method $methods --encoder $encoder --dump-prompts
counted base 2 0
rows "$tmp/base" >"$tmp/base.rows"
bench alone ${all/--budget 64/} --method full
rows "$tmp/alone" >"$tmp/a"
rows "$tmp/base" full >"$tmp/b"
same 'full is another one beside llmlingua2' "$tmp/a" "$tmp/b"
bench part --method llmlingua2+snapkv --encoder $encoder ${all/--no-baselines/}
rows "$tmp/part" >"$tmp/a"
rows "$tmp/base" llmlingua2+snapkv >"$tmp/b"
same 'llmlingua2+snapkv is another one beside others' "$tmp/a" "$tmp/b"

# ---- what an arm sees is what scbench compress leaves
./scbench gen --task retr_kv --tokenizer $model --ctx 700 --sessions 2 --turns 2 --out "$tmp/gen.jsonl" 2>"$tmp/err" ||
    fail "scbench gen"
for i in 1 2; do
    $python - "$tmp" $i <<'EOF'
import json, sys
tmp, i = sys.argv[1], int(sys.argv[2])
open(f"{tmp}/whole{i}", "w").write(json.loads(open(f"{tmp}/gen.jsonl").read().splitlines()[i - 1])["context"])
EOF
    ./scbench compress $encoder --text "$tmp/whole$i" --out "$tmp/left$i" --quiet 2>"$tmp/err" || fail "scbench compress"
done
cat >"$tmp/check.py" <<'EOF'
import glob, json, re, sys
tmp = sys.argv[1]
rows = [json.loads(line) for line in open(tmp + "/base/results.jsonl")]
whole, left = ({i: open(f"{tmp}/{w}{i}").read() for i in (1, 2)} for w in ("whole", "left"))
kept = {}                       # the texts of the run, behind a line of numbers
for path in glob.glob(tmp + "/base/compressed/*.txt"):
    head, text = open(path).read().split("\n", 1)
    kept[text] = head.split()
assert set(kept) == set(left.values()), kept.keys()
bare = lambda s: re.sub(r"\s", "", s)
arms = {}
for r in rows:
    i = r["session"]
    arms.setdefault((r["mode"], r["session"], r["turn"]), {})[r["method"]] = r
    if r["method"] == "full":
        assert all(r[k] is None for k in ("tokens_before", "tokens_after", "compress_s", "compress_read", "gold_kept")), r
        continue
    before, after, _ = kept[left[i]]
    assert (r["tokens_before"], r["tokens_after"]) == (int(before), int(after)), r
    assert r["compress_s"] > 0 and r["compress_read"] is False, r
    assert bare(r["gold"]) in bare(whole[i]), r
    assert r["gold_kept"] == (bare(r["gold"]) in bare(left[i])), r
    assert r["params"]["prompt"] == {"method": "llmlingua2", "preset": "scbench",
                                     "rate": 0.3333333333, "specials": "official"}, r
    assert r["ctx"] == [x for x in rows if x["session"] == i][0]["ctx"]
for methods in arms.values():
    assert sorted(methods) == ["full", "llmlingua2", "llmlingua2+snapkv", "llmlingua2+tri-shape+snapkv"], methods
    a, *others = (methods[m] for m in methods if m != "full")
    assert all(a["ids_hash"] == b["ids_hash"] != methods["full"]["ids_hash"] for b in others)
    assert a["n_prompt"] < methods["full"]["n_prompt"]
assert any(r["gold_kept"] is False for r in rows), "nothing was left out"
seen = set()
for line in open(tmp + "/base/prompts.jsonl"):
    p = json.loads(line)
    seen |= {(p["session"], i) for i in (1, 2) if bare(left[i]) in bare(p["text"])}
assert seen == {(1, 1), (2, 2)}, seen
manifest = json.load(open(tmp + "/base/manifest.json"))
assert manifest["encoder"]["hash"] == manifest["options"]["encoder"], manifest
EOF
$python "$tmp/check.py" "$tmp" || fail "rows, texts or prompts of llmlingua2"

# ---- the report shows what was left out
bench rates --task retr_kv --sessions 4 --method llmlingua2 --rate 0.1,0.97,1 --encoder data/lingua/xlm.bin
counted rates 12 0
grep -q 'compressed contexts' "$tmp/rates.txt" || fail "the report says nothing of compression"
./scbench report "$tmp/rates" --table prompt --format csv >"$tmp/a" 2>"$tmp/err" || fail "report --table prompt"
$python - "$tmp" <<'EOF' || fail "shares of the answers left"
import csv, json, sys
tmp = sys.argv[1]
rows = [json.loads(line) for line in open(tmp + "/rates/results.jsonl")]
share = {}
for arm in {r["arm"] for r in rows}:
    kept = [r["gold_kept"] for r in rows if r["arm"] == arm and r["gold_kept"] is not None]
    share[arm] = 100 * sum(kept) / len(kept)
assert share["llmlingua2 rate 0.1"] < share["llmlingua2 rate 0.97"] <= share["llmlingua2 rate 1"] == 100, share
lines = [r for r in csv.DictReader(open(tmp + "/a")) if r["kind"] == "answers"]
assert {r["sizes"]: float(r["mean"]) for r in lines} == {a: float(f"{s:.6g}") for a, s in share.items()}, (lines, share)
tokens = {r["arm"]: r["tokens_after"] / r["tokens_before"] for r in rows}
assert tokens["llmlingua2 rate 0.1"] < 0.3 < 0.8 < tokens["llmlingua2 rate 0.97"], tokens
EOF

# ---- a second run reads what the first one left; options and encoder are part of the key
bench first $all --method $methods --encoder $encoder --save-context "$tmp/saved"
counted first 2 0
bench second $all --method $methods --encoder $encoder --save-context "$tmp/saved"
counted second 0 2
for d in first second; do
    rows "$tmp/$d" >"$tmp/a"
    same "$d run with --save-context" "$tmp/base.rows" "$tmp/a"
done
first=$(ls "$tmp/saved/compressed" | head -n 1)
printf 'torn' >"$tmp/saved/compressed/$first"
bench torn $all --method $methods --encoder $encoder --save-context "$tmp/saved"
counted torn 1 1
rows "$tmp/torn" >"$tmp/a"
same "a run with a torn compressed context" "$tmp/base.rows" "$tmp/a"
short="--task retr_kv --sessions 1 --save-context $tmp/saved --method llmlingua2"
for o in "--rate 0.5" "--set llmlingua2.specials=fixed" "--set llmlingua2.preset=upstream" "--set llmlingua2.target=90" \
         "--set llmlingua2.digits=reserved" "--set llmlingua2.word=first" "--set llmlingua2.repeats=dropped" \
         "--set llmlingua2.force=," "--set llmlingua2.force="; do
    if [ "$o" = "--set llmlingua2.force=," ]; then o='--set llmlingua2.force=\n,\,'; fi
    bench "options$((++n))" $short --encoder $encoder $o
    counted "$o" 1 0
done
bench other $short --encoder data/lingua/bert.bin
counted "another encoder" 1 0

# ---- a run that goes on: finished sessions are not compressed again
cp -r "$tmp/base" "$tmp/resumed"
head -n $(($(wc -l <"$tmp/base/results.jsonl") / 2 + 3)) "$tmp/base/results.jsonl" >"$tmp/resumed/results.jsonl"
bench resumed $all --method $methods --encoder $encoder --dump-prompts --resume
counted resumed 0 1
rows "$tmp/resumed" >"$tmp/a"
same "a run gone on with" "$tmp/base.rows" "$tmp/a"

# ---- a context longer than the model takes, records, LongBench, the released program's prompts
ctx=5200 bench long --task retr_kv --sessions 1 --method llmlingua2 --rate 0.1 --encoder $encoder
bench records --task retr_kv --data "$tmp/gen.jsonl" --method llmlingua2 --encoder $encoder
$python - "$tmp" <<'EOF' || fail "records, or contexts longer than the model takes"
import json, sys
load = lambda name: [json.loads(line) for line in open(f"{sys.argv[1]}/{name}/results.jsonl")]
keys = ("session", "turn", "ids_hash", "logits_hash", "tokens_after", "gold_kept")
base = [[r[k] for k in keys] for r in load("base") if r["method"] == "llmlingua2" and r["mode"] == "multi-turn"]
assert [[r[k] for k in keys] for r in load("records")] == base
assert all(r["ctx"] == 5200 and r["n_prompt"] < 4096 for r in load("long")), load("long")
EOF
ctx=2000 bench longbench --task longbench/hotpotqa,longbench/trec --sessions 1 --method full,llmlingua2 --encoder $encoder
bench harness --task retr_kv --sessions 1 --preset harness --method full,llmlingua2,llmlingua2+snapkv \
    --mode multi-turn,multi-request --encoder $encoder
./scbench $model --plan --task retr_kv --ctx 700 --sessions 1 --method llmlingua2 --encoder $encoder >"$tmp/a" 2>"$tmp/err" ||
    fail "--plan"
grep -q 'beside these the encoder' "$tmp/a" || fail "--plan does not name the encoder"

# ---- what is refused
cat >"$tmp/cut.py" <<'EOF'
# the encoder without its tensor "weigher"
import struct, sys
import xxhash
data = open(sys.argv[1], "rb").read()
magic, version, n_params, n_tensors, start, size, _ = struct.unpack_from("<4sIIIQQQ", data)
at = 64 + 64 * n_params
records = [data[at + 128 * i:at + 128 * (i + 1)] for i in range(n_tensors)]
records = [r for r in records if r[:56].rstrip(b"\0") != b"weigher"]
assert len(records) == n_tensors - 1
head = data[64:at] + b"".join(records)
out = struct.pack("<4sIIIQQQ", magic, version, n_params, n_tensors - 1, start, size, xxhash.xxh64(head).intdigest())
out = out.ljust(64, b"\0") + head
open(sys.argv[2], "wb").write(out + bytes(start - len(out)) + data[start:])
EOF
$python "$tmp/cut.py" $encoder "$tmp/mute.bin" || fail "an encoder without weights"
# refuse CODE PATTERN ARGUMENTS...
refuse() {
    local code=$1 pattern=$2
    shift 2
    timeout 60 ./scbench "$@" --out "$tmp/refused" >"$tmp/a" 2>"$tmp/err"
    local rc=$?
    [ $rc = "$code" ] || fail "scbench $*: exit $rc, not $code"
    tail -n 1 "$tmp/err" | grep -Eq -- "$pattern" || fail "scbench $*: stderr does not say /$pattern/"
    grep -q 'internal error' "$tmp/err" && fail "scbench $*: an internal error"
    [ ! -e "$tmp/refused" ] || fail "scbench $*: left a directory"
}
s="$model --ctx 700 --sessions 1 --task retr_kv --turns 1"
refuse 2 'give --encoder' $s --method llmlingua2
refuse 2 '--encoder acts on no method' $s --method full --encoder $encoder
refuse 2 '--rate acts on no method' $s --method full --rate 0.5
refuse 2 '--rate' $s --method llmlingua2 --encoder $encoder --rate 1.5
refuse 2 '--rate' $s --method llmlingua2 --encoder $encoder --rate 0
refuse 2 'exclude' $s --method llmlingua2 --encoder $encoder --rate 0.5 --set llmlingua2.target=50
refuse 2 "official.*fixed.*'right'" $s --method llmlingua2 --encoder $encoder --set llmlingua2.specials=right
refuse 2 "no option 'spezials'" $s --method llmlingua2 --encoder $encoder --set llmlingua2.spezials=fixed
refuse 2 'none of them empty' $s --method llmlingua2 --encoder $encoder --set llmlingua2.force=a,,b
refuse 2 'two prompt stages' $s --method llmlingua2+llmlingua2 --encoder $encoder
refuse 2 "'lmlingua2'.*did you mean.*llmlingua2" $s --method lmlingua2
refuse 1 'tiny_llama.*wants an encoder' $s --method llmlingua2 --encoder $model
refuse 1 'absent' $s --method llmlingua2 --encoder absent.bin
refuse 1 'mute\.bin.*--weights-bpe' $s --method llmlingua2 --encoder "$tmp/mute.bin"
refuse 1 'xlm.*encoder' $encoder --task retr_kv --ctx 700 --sessions 1
refuse 1 'takes 4096' ${s/700/5200} --method full,llmlingua2 --encoder $encoder
cp -r "$tmp/base" "$tmp/kept"
./scbench $model --ctx 700 --turns 2 --max-new 6 $all --method $methods --encoder data/lingua/bert.bin --resume --out "$tmp/kept" \
    >"$tmp/a" 2>"$tmp/err" && fail "a run goes on with another encoder"
grep -q 'encoder' "$tmp/err" || fail "no word of the encoder"
./run $model -p hello -n 2 --method llmlingua2 >"$tmp/a" 2>"$tmp/err" && fail "run takes llmlingua2"

[ $failures = 0 ] || { echo "$failures failed"; exit 1; }
