#!/usr/bin/env bash
# run_wording.sh - prompts in other words (--templates): a task's own words give the same ids, others
# stand where the file puts them, in generated sessions and in records; what a file lacks is said.
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
  "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
  "max_position_embeddings": 40000, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": true }
JSON
model=$tmp/tiny.bin
.venv/bin/python export.py --random 3 --shape "$tmp/shape.json" "$model" >"$tmp/err" 2>&1 ||
    { fail "export.py --random"; exit 1; }
few="--ctx 5600 --sessions 1 --turns 2 --max-new 1"
bench() {       # bench DIR ARGS...
    local dir=$tmp/$1
    shift
    ./scbench "$model" --quiet --dump-prompts --out "$dir" "$@" $few >"$tmp/out" 2>"$tmp/err" ||
        fail "scbench $*"
}

# ---- the program's own words, found in its prompts, put into a file
bench own --task retr_kv,en_mc,en_qa
.venv/bin/python - "$tmp" <<'EOF' || fail "the prompts of the program's own words"
import json, sys
tmp = sys.argv[1]
prompts = {}
for line in open(tmp + "/own/prompts.jsonl"):
    f = json.loads(line)
    prompts.setdefault(f["task"], f["text"])
def between(text, a, b):
    i = text.index(a) + len(a)
    return text[i:text.index(b, i)]
kv = prompts["retr_kv"]
words = {"retr_kv": between(kv, "<|user|>", '{"') + "{context}\n\n{input}"}
options = "{input}\nFour replies stand to choose from.\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n\nThe fitting reply:"
for task, after in ("en_mc", options), ("en_qa", "{input}\nReply in brief:"):
    first = between(prompts[task], "<|user|>", "\n\n")
    words[task] = first + "\n\n{context}\n\nA reader asks: " + after
json.dump(words, open(tmp + "/own.json", "w"))
json.dump({"retr_kv": "Mind <this>:\n{context}\t\nAsk {input} {or {A} not.", "math_find":
           "Say {target}!\n\n{context}\n\n{input}", "en_mc": "{context}\n{input} {A}{B}{D}", "icl": "{input}",
           "en_qa": "{context} ?", "qasper": "Q {context} {input}"}, open(tmp + "/other.json", "w"))
EOF
bench same --task retr_kv,en_mc,en_qa --templates "$tmp/own.json"
.venv/bin/python - "$tmp/own" "$tmp/same" <<'EOF' || fail "the same words are other ids"
import json, sys
a, b = ([json.loads(l)["ids_hash"] for l in open(d + "/results.jsonl")] for d in sys.argv[1:])
assert a == b and len(a) == 6, (a, b)
m = [json.load(open(d + "/manifest.json"))["options"].get("templates") for d in sys.argv[1:]]
assert m[0] is None and len(m[1]) == 16, m
EOF

# ---- other words, generated and from a record
./scbench gen --tokenizer "$model" --task retr_kv --ctx 1500 --sessions 1 --turns 2 --seed 1 \
    --out "$tmp/kv.jsonl" >"$tmp/out" 2>"$tmp/err" || fail "gen"
bench other --task retr_kv --templates "$tmp/other.json"
bench record --task retr_kv --data "$tmp/kv.jsonl" --templates "$tmp/other.json"
bench math --task math_find --preset harness --templates "$tmp/other.json"
.venv/bin/python - "$tmp" <<'EOF' || fail "other words"
import json, sys
def texts(d): return [json.loads(l)["text"] for l in open(f"{sys.argv[1]}/{d}/prompts.jsonl")]
for d in "other", "record":
    first, second = texts(d)
    assert "<|user|>Mind <this>:\n{\"" in first and "}\t\nAsk " in first, first[:200]
    assert first.count("Ask ") == 1 and " {or {A} not.<|end|>" in first and "\t\nAsk " in second, second
first, second = texts("math")
assert "<|user|>Say the " in first and "!\n\n[" in first, first[:100]
EOF

# ---- what is missing
refuse() {
    local code=$1 word=$2
    shift 2
    ./scbench "$model" --quiet "$@" $few --out "$tmp/never" >"$tmp/out" 2>"$tmp/err"
    local rc=$?
    [ $rc = "$code" ] || fail "scbench $*: exit $rc, not $code"
    grep -qF -e "$word" "$tmp/err" || fail "scbench $*: '$word' is not in the sentence"
    [ -e "$tmp/never" ] && fail "a refused run left a directory"
}
echo '{"retr_kv": ' >"$tmp/broken.json"
refuse 1 "not valid JSON" --task retr_kv --templates "$tmp/broken.json"
refuse 1 "no text 'retr_ps'" --task retr_kv,retr_ps --templates "$tmp/other.json"
refuse 1 "'icl' has no {context}" --task icl --templates "$tmp/other.json"
refuse 1 "'en_qa' has no {input}" --task en_qa --templates "$tmp/other.json"
refuse 1 "has not all options" --task en_mc --templates "$tmp/other.json"
refuse 2 "which only --preset harness fills" --task math_find --templates "$tmp/other.json"
refuse 1 "no text 'trec'" --task longbench/trec --templates "$tmp/other.json"
./scbench "$model" --quiet --task retr_kv,en_mc,en_qa --templates "$tmp/own.json" $few --seed 1 \
    --dump-prompts --out "$tmp/own" --resume >"$tmp/out" 2>"$tmp/err" &&
    fail "a run went on in other words"

echo "$failures failures"
[ $failures = 0 ]
