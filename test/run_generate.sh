#!/usr/bin/env bash
# run_generate.sh - the program run: the tokenizer alone, then prompts, ids, logits, sampling and chat
# on a small random model
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
# same NAME WANTED GOT
same() { [ "$2" = "$3" ] || fail "$1: wanted '$2', got '$3'"; }
# go ARGUMENTS...: run with its stderr kept
go() { timeout 60 ./run "$@" 2>"$tmp/err" || fail "run $*: exit $?"; }

# ---- the tokenizer alone
vocab=data/tokenizer/llama3/vocab.bin
{ head -c 3000 tokenizer.c; head -c 5000 "$vocab"; printf '<|eot_id|>\r\n  \xe4\xbd'; } >"$tmp/bytes"
go $vocab --encode "$tmp/bytes" >"$tmp/ids"
go $vocab --decode "$tmp/ids" | cmp - "$tmp/bytes" || fail "decode(encode) is not the text"
same empty '' "$(go $vocab --encode /dev/null)"
printf '"a\\u0000b"\n"\\ud83d\\ude00"\n""\n' >"$tmp/lines"
same jsonl '[64,188,65]' "$(go $vocab --encode-jsonl "$tmp/lines" | head -n 1)"
same 'jsonl, an empty string' '[]' "$(go $vocab --encode-jsonl - <"$tmp/lines" | tail -n 1)"
printf '"a"\n["b"]\n' >"$tmp/lines"
./run $vocab --encode-jsonl "$tmp/lines" >/dev/null 2>"$tmp/err" && fail "a line that is no string"
grep -q 'lines line 2' "$tmp/err" || fail "the error does not name the line"

venv=$(test/venv.sh 2>&1) || { echo "$venv" | tail -n 1; [ $failures = 0 ] && exit 77; exit 1; }

# ---- generating
cat >"$tmp/shape.json" <<'JSON'
{ "model_type": "llama", "vocab_size": 264, "hidden_size": 128, "intermediate_size": 192,
  "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
  "max_position_embeddings": 256, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": true }
JSON
m=$tmp/model.bin
.venv/bin/python export.py --random 3 --shape "$tmp/shape.json" "$m" || exit 1
echo '1 2 3 4 5 6 7 8 9' >"$tmp/ids"
ids=$(go "$m" --ids "$tmp/ids" -n 12)
same 'twelve ids' 12 "$(wc -w <<<"$ids")"
same 'one thread' "$ids" "$(go "$m" --ids "$tmp/ids" -n 12 --threads 1)"
same 'method full' "$ids" "$(go "$m" --ids "$tmp/ids" -n 12 --method full)"
same 'temperature 0' "$ids" "$(go "$m" --ids "$tmp/ids" -n 12 --temp 0 --seed 9)"
hot=$(go "$m" --ids "$tmp/ids" -n 12 --temp 1 --seed 7)
same 'a seed' "$hot" "$(go "$m" --ids "$tmp/ids" -n 12 --temp 1 --seed 7)"
[ "$hot" != "$(go "$m" --ids "$tmp/ids" -n 12 --temp 1 --seed 8)" ] || fail "two seeds, one text"
same 'a low temperature' "$ids" "$(go "$m" --ids "$tmp/ids" -n 12 --temp 1e-6)"
grep -q 'prompt 9 tokens' "$tmp/err" || fail "no speed on stderr"

# logits: a row after the prompt and one per new token, whose maxima are the ids
same 'with logits' "$ids" "$(go "$m" --ids "$tmp/ids" -n 12 --logits "$tmp/l.f32")"
maxima=$(.venv/bin/python -c 'import sys, numpy
x = numpy.fromfile(sys.argv[1], "<f4").reshape(-1, 264)
print(*x.argmax(1)[:-1]); print(len(x))' "$tmp/l.f32")
same 'maxima' "$ids
13" "$maxima"
go "$m" --ids "$tmp/ids" -n 0 --logits "$tmp/first.f32" >/dev/null
cmp -s -n $((4 * 264)) "$tmp/l.f32" "$tmp/first.f32" || fail "the first row depends on what follows"
same 'one row' $((4 * 264)) "$(stat -c %s "$tmp/first.f32")"
[ -e "$tmp/l.f32.tmp" ] && fail "a temporary file stayed"

# text is ids and back; -p, -f and standard input are the same
text=$(go "$m" -p 'Hello' -n 9 | od -An -tx1)
printf Hello >"$tmp/hello"
same '-f' "$text" "$(go "$m" -f "$tmp/hello" -n 9 | od -An -tx1)"
same '-f -' "$text" "$(go "$m" -f - -n 9 <"$tmp/hello" | od -An -tx1)"

# chat: two turns through a pipe; the first answer is that of the template around the message
printf 'one\n\ntwo' | go "$m" --chat -n 5 >/dev/null
same 'two answers' 2 "$(grep -c 'new [0-5] tokens' "$tmp/err")"
answer=$(printf 'one\n' | go "$m" --chat -n 5 | od -An -tx1)
same 'the template' "$answer" "$(go "$m" -p '<|user|>one<|end|><|assistant|>' -n 5 | od -An -tx1)"

# the history stays in the branch: a second turn is fed alone; /reset begins a new conversation
printf 'one\ntwo\n/reset\none\n' | go "$m" --chat -n 5 >"$tmp/said"
mapfile -t fed < <(sed -n 's/^prompt \([0-9]*\) tokens.*/\1/p' "$tmp/err")
same 'three answers' 3 ${#fed[@]}
same 'fed at the start and after /reset' '7 7' "${fed[0]} ${fed[2]}"
[ "${fed[1]}" -le 8 ] || fail "the second turn feeds ${fed[1]} tokens: the history again?"
printf 'one\n' | go "$m" --chat -n 5 >"$tmp/one"
n=$(stat -c %s "$tmp/one")
cmp <(head -c "$n" "$tmp/said") "$tmp/one" && cmp <(tail -c "$n" "$tmp/said") "$tmp/one" ||
    fail "the answer after /reset is not that of a new conversation"

# on a terminal there is something to type behind, and ctrl-D ends
if command -v script >/dev/null; then
    printf 'one\n\004' | timeout 60 script -qec "./run $m --chat -n 5" /dev/null >"$tmp/tty" 2>&1 ||
        fail "a chat on a terminal: exit $?"
    grep -q 'ctrl-D ends' "$tmp/tty" && grep -aq '^> ' "$tmp/tty" || fail "a terminal shows no mark"
fi

# the model's longest context
head -c 250 /dev/zero | tr '\0' x >"$tmp/long"
go "$m" -f "$tmp/long" -n 50 >/dev/null
grep -q 'longest context, 256' "$tmp/err" || fail "the end of the context is not mentioned"
head -c 256 /dev/zero | tr '\0' x >"$tmp/long"
./run "$m" -f "$tmp/long" 2>"$tmp/err" && fail "a prompt that is too long"
grep -q '257 tokens.*256' "$tmp/err" || fail "an overlong prompt: no sentence"

[ $failures = 0 ] || { echo "$failures failed"; exit 1; }
