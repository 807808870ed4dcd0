#!/usr/bin/env bash
# run_badinput.sh - what a user can get wrong: one sentence on stderr that names the culprit, the right
# exit code (1 file or user, 2 usage, 3 memory), and nothing left half written.
set -u
cd "$(dirname "$0")/.." || exit 1
root=$PWD
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0

# all but the directory of a run that fails after it has begun
files() { find . -not -path './begun*' | sort; }

# expect CODE PATTERN COMMAND...: the pattern is an extended regular expression over stderr
expect() {
    local code=$1 pattern=$2 rc why='' before
    shift 2
    before=$(files)
    timeout 60 "$@" >"$tmp/stdout" 2>"$tmp/stderr" </dev/null
    rc=$?
    # the run may say first what it is going to do; the error is the last line
    tail -n 1 "$tmp/stderr" >"$tmp/last"
    [ $rc = "$code" ] || why="exit $rc, not $code"
    grep -Eq -- "$pattern" "$tmp/last" || why="$why; stderr does not say /$pattern/"
    grep -Eq '^(scbench|run): .' "$tmp/last" || why="$why; the sentence does not begin with the program"
    grep -q 'internal error' "$tmp/stderr" && why="$why; an internal error"
    [ "$(grep -Ec '^(scbench|run): ' "$tmp/stderr")" = 1 ] || why="$why; not one sentence"
    [ "$(files)" = "$before" ] || why="$why; files changed: $(files | diff - <(echo "$before"))"
    [ -z "$why" ] && return
    failures=$((failures + 1))
    printf '%s\n  %s\n' "$*" "$why"
    sed 's/^/  stderr: /' "$tmp/stderr"
}

finish() {
    [ $failures = 0 ] && return
    echo "$failures failed"
    exit 1
}

mkdir "$tmp/work" && cd "$tmp/work" || exit 1
both() {
    local code=$1 pattern=$2
    shift 2
    expect "$code" "$pattern" "$root/scbench" "$@"
    expect "$code" "$pattern" "$root/run" "$@"
}

# ---- files that are no models
printf '\n<!DOCTYPE html><html><body>404 Not Found</body></html>\n' >page.bin
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n' >pointer.bin
printf 'GGUF\003\000\000\000' >x.gguf
head -c 4096 /dev/zero >zero.bin
: >empty.bin
mkdir directory.bin
both 1 'absent\.bin.*No such file' absent.bin
both 1 'page\.bin.*web page' page.bin
both 1 'pointer\.bin.*git-lfs' pointer.bin
both 1 'x\.gguf.*export\.py' x.gguf
both 1 'zero\.bin.*not a scbench model' zero.bin
both 1 'empty\.bin.*empty' empty.bin
both 1 'directory\.bin.*not a file' directory.bin

# ---- the command line alone
expect 2 "'--taks'.*did you mean.*--task" "$root/scbench" absent.bin --taks retr_kv
expect 2 "--sessions.*integer.*'many'" "$root/scbench" absent.bin --sessions many
expect 2 '--ctx' "$root/scbench" absent.bin --ctx
expect 2 '' "$root/scbench" one.bin two.bin
expect 2 "'tasc'" "$root/scbench" list tasc
expect 2 "'--methd'.*did you mean.*--method" "$root/run" absent.bin --methd corm
expect 2 '' "$root/run" one.bin two.bin
expect 1 'nowhere' "$root/scbench" report nowhere
if [ -c /dev/full ]; then expect 1 'No space left' sh -c '"$0" list >/dev/full' "$root/scbench"; fi
finish

# ---- with a model: tiny, random, with a KV cache that is large for its weights
venv=$("$root/test/venv.sh" 2>&1) || { echo "$venv" | tail -n 1; exit 77; }
config() {  # HEADS HEAD_DIM LONGEST
    cat <<JSON
{ "model_type": "llama", "vocab_size": 272, "hidden_size": 32, "intermediate_size": 32,
  "num_hidden_layers": 8, "num_attention_heads": $1, "num_key_value_heads": $1, "head_dim": $2,
  "max_position_embeddings": $3, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": true }
JSON
}
config 2 16 4096 >small.json
config 32 256 40000000 >wide.json
python=$root/.venv/bin/python
"$python" "$root/export.py" --random 1 --shape small.json ok.bin >"$tmp/log" 2>&1 &&
"$python" "$root/export.py" --random 1 --shape wide.json wide.bin >"$tmp/log" 2>&1 ||
    { cat "$tmp/log"; exit 1; }
rm -f ./*.json
size=$(stat -c %s ok.bin)
flip() {    # FILE OFFSET: one bit
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    printf "\\$(printf %03o $((byte ^ 4)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
expect 1 'absent\.ids' "$root/run" ok.bin --ids absent.ids
expect 1 'absent\.ids' "$root/run" ok.bin --decode absent.ids
head -c $((size / 2)) ok.bin >half.bin
head -c 50 ok.bin >stub.bin
cp ok.bin record.bin; flip record.bin 100
cp ok.bin data.bin; flip data.bin $((size - 5000))
cp ok.bin magic.bin; flip magic.bin 1
cp ok.bin version.bin; flip version.bin 4
both 1 'half\.bin.*truncated' half.bin
both 1 'stub\.bin.*truncated' stub.bin
both 1 'record\.bin.*damaged' record.bin
both 1 "data\\.bin.*tensor '.*checksum" data.bin
both 1 'magic\.bin.*not a scbench model' magic.bin
both 1 'version\.bin.*format version' version.bin

s="$root/scbench ok.bin --sessions 1 --turns 1 --max-new 2"
expect 2 "'retr_vk'.*did you mean.*retr_kv" $s --ctx 1024 --task retr_vk
expect 2 "'crom'.*did you mean.*corm" $s --ctx 1024 --method crom
expect 2 "--mode.*multi-turn, multi-request.*'multi-trun'" $s --ctx 1024 --mode multi-trun
expect 2 "'fulll'.*did you mean.*full" $s --ctx 1024 --method full,fulll
expect 1 'max|takes 4096|4096' $s --ctx 8192
expect 2 '--ctx 3 is too small' $s --ctx 3
expect 2 '--ctx' $s --ctx -5
expect 2 '--ctx' $s --ctx 99999999999999999999
expect 2 '--budget' $s --ctx 1024 --method corm --budget 64
expect 2 '--budget' $s --ctx 1024 --method keep-last --budget 3
expect 2 '--keep' $s --ctx 1024 --method keep-last --keep 0.0001
expect 2 '--budget and --keep' $s --ctx 1024 --method keep-last --keep 0.5 --budget 64
expect 2 'corm\.windw' $s --ctx 1024 --method corm --set corm.windw=4
expect 2 'keep-last|acts on no method' $s --ctx 1024 --method corm --no-baselines --set streamingllm.sinks=4
expect 2 'sessions' $root/scbench ok.bin --ctx 1024 --sessions -1
expect 2 '--resume' $s --ctx 1024 --resume

# ---- output that cannot be written
echo keep >file
expect 1 'file/out' $s --ctx 1024 --quiet --out file/out
mkdir taken; echo keep >taken/results.jsonl
expect 1 'taken' $s --ctx 1024 --quiet --out taken
[ "$(cat taken/results.jsonl)" = keep ] || { echo "the rows of an earlier run were touched"; failures=$((failures + 1)); }
if [ "$(id -u)" != 0 ]; then
    mkdir locked; chmod 555 locked
    expect 1 'locked/out.*ermission' $s --ctx 1024 --quiet --out locked/out
fi

# ---- memory: a context that no machine holds, and a system that refuses
s="$root/scbench wide.bin --sessions 1 --turns 1 --max-new 2"
expect 3 'does not fit|not enough memory' $s --ctx 4000000
expect 3 'does not fit|not enough memory' \
    sh -c "ulimit -v 250000; exec $s --ctx 6000 --threads 1 --quiet --out begun"
[ ! -s begun/results.jsonl ] || { echo "a row of a run without memory"; failures=$((failures + 1)); }

# ---- run
expect 2 "'crom'.*did you mean.*corm" "$root/run" ok.bin -p hello -n 2 --method crom
expect 1 'absent\.txt.*No such file' "$root/run" ok.bin -f absent.txt
expect 1 'absent\.txt.*No such file' "$root/run" ok.bin --encode absent.txt
expect 2 '' "$root/run" ok.bin -p hello -n 0x
head -c 6000 /dev/zero | tr '\0' a >long.txt
expect 1 '4096' "$root/run" ok.bin -f long.txt -n 2

finish
