#!/usr/bin/env bash
# run_plot.sh - plot.py on a small report: every figure in every format is written and is no empty
# page; what cannot be drawn is refused in one sentence
set -u
cd "$(dirname "$0")/.." || exit 1
python=
for p in .venv/bin/python python3; do
    $p -c 'import matplotlib' 2>/dev/null && python=$p && break
done
[ -n "$python" ] || { echo "no Python with matplotlib: run test/venv.sh"; exit 77; }
[ -x ./scbench ] || make -s scbench || exit 1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export PYTHONDONTWRITEBYTECODE=1
fail() { echo "$*"; exit 1; }

# three methods, three categories, two modes, five sessions of three turns
mkdir "$dir/run"
for mode in multi-turn multi-request; do
    for task in retr_kv en_qa icl; do
        for s in 1 2 3 4 5; do
            for t in 1 2 3; do
                for m in full:4096 corm:300.5 keep-last:256; do
                    [ $mode = multi-turn ] && more='"history": "golden", "query_aware": "first"' ||
                        more='"history": null, "query_aware": "no"'
                    [ "${m%:*}" = full ] && score=1 || score=$(((s + t) % 2))
                    echo "{\"session\": $s, \"turn\": $t, \"task\": \"$task\", \"mode\": \"$mode\"," \
                         "\"preset\": \"scbench\", \"method\": \"${m%:*}\", \"params\": {}, $more," \
                         "\"ctx\": 4096, \"depth\": 0.$((s * 2 - 1)), \"score\": $score," \
                         "\"n_prompt\": 4096, \"rows_mean_q\": ${m#*:}}"
                done
            done
        done
    done
done >"$dir/run/results.jsonl"
./scbench report "$dir/run" --format csv >"$dir/all.csv" 2>"$dir/notes" || fail "no report"

# drawn FILE: written, of its format, with more than a frame in it
drawn() {
    [ -s "$1" ] || fail "$1 was not written"
    [ ! -e "$1.tmp" ] || fail "$1.tmp was left"
    case $1 in
    *.png) head -c 8 "$1" | od -An -tx1 | tr -d ' \n' | grep -q 89504e470d0a1a0a ;;
    *.svg) grep -q '</svg>' "$1" ;;
    *.pdf) head -c 5 "$1" | grep -q '%PDF-' ;;
    esac || fail "$1 is not of its format"
    [ "$(wc -c <"$1")" -gt 4000 ] || fail "$1 holds nothing: $(wc -c <"$1") bytes"
}
plot() { "$python" plot.py "$@" 2>&1; }

for figure in turns abilities budget depth; do
    said=$(plot $figure "$dir/all.csv" "$dir/$figure.svg") || fail "$figure: $said"
    [ -z "$said" ] || fail "$figure says: $said"
    drawn "$dir/$figure.svg"
    for word in corm keep-last full multi-turn multi-request; do
        grep -q ">$word" "$dir/$figure.svg" || fail "$figure.svg does not name $word"
    done
    [ "$(grep -c 'golden' "$dir/$figure.svg")" = 0 ] || fail "$figure.svg: switches at their default"
done
plot sweep "$dir/run" "$dir/sweep.svg" || fail "sweep of a directory"
drawn "$dir/sweep.svg"
for word in corm keep-last full multi-turn multi-request 'turn 1' 'turn 3'; do
    grep -q ">$word" "$dir/sweep.svg" || fail "sweep.svg does not name $word"
done
plot turns "$dir/all.csv" "$dir/turns.png" --mode multi-turn --task retr_kv --title "Retr.KV" || fail "png"
drawn "$dir/turns.png"
plot turns "$dir/all.csv" "$dir/split.svg" --split || fail "turns, a panel per task"
drawn "$dir/split.svg"
for word in retr_kv en_qa icl corm full; do
    grep -q ">$word" "$dir/split.svg" || fail "split.svg does not name $word"
done
plot abilities "$dir/all.csv" "$dir/radar.pdf" --radar --method corm --method full || fail "radar"
drawn "$dir/radar.pdf"
plot turns "$dir/all.csv" "$dir/again.svg" && cmp "$dir/turns.svg" "$dir/again.svg" || fail "two drawings differ"

# refused COUNT-OF-LINES-IS-1 and holding the words
refused() {
    local words=$1 said
    shift
    said=$(plot "$@") && fail "'$*' was drawn"
    [ "$(echo "$said" | wc -l)" = 1 ] || fail "'$*' is refused in more than a sentence: $said"
    echo "$said" | grep -q -- "$words" || fail "'$*' is refused with: $said"
}
refused "cannot be read" turns "$dir/none.csv" "$dir/x.png"
refused "does not end in .png, .svg or .pdf" turns "$dir/all.csv" "$dir/x.bmp"
refused "has no column" turns test/run_plot.sh "$dir/x.png"
refused "has no method 'cork'; it has corm, full, keep-last" turns "$dir/all.csv" "$dir/x.png" --method cork
refused "cannot be written" turns "$dir/all.csv" "$dir/none/x.png"
refused "--radar belongs to abilities" turns "$dir/all.csv" "$dir/x.png" --radar
refused "--split belongs to turns" depth "$dir/all.csv" "$dir/x.png" --split
# where a task has fewer turns than another, the mean of both ends with it
"$python" - <<'END' || fail "a mean over tasks of unequal length"
import plot
rows = [{"task": t, "turn": n, "mean": m, "lo": None, "hi": None}
        for t, n, m in (("a", 1, 10), ("b", 1, 30), ("a", 2, 50))]
assert plot.averaged(rows, "turn") == {1: (20, None, None)}, plot.averaged(rows, "turn")
assert list(plot.averaged(rows[::2], "turn")) == [1, 2]
END
./scbench report "$dir/run" --format csv --table turns >"$dir/turns.csv" 2>>"$dir/notes" || fail "no report"
refused "holds neither" turns "$dir" "$dir/x.png"
refused "has no depth rows" depth "$dir/turns.csv" "$dir/x.png"
head -n 3 "$dir/all.csv" >"$dir/cut.csv" && echo "turn,half" >>"$dir/cut.csv"
refused "another number of fields" turns "$dir/cut.csv" "$dir/x.png"

# scbench probe on a small random model: each measurement has its figure
cat >"$dir/shape.json" <<EOS
{"model_type": "llama", "vocab_size": 261, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
 "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
EOS
$python export.py --random 3 --shape "$dir/shape.json" "$dir/model.bin" || fail "export.py --random"
for i in $(seq 200); do echo "line $i says $((i * i)) and no more"; done >"$dir/text"
for what in sparsity similarity compression attention; do
    more="--text $dir/text --ctx 600 --lengths 300,600 --windows 16,32"
    [ $what = attention ] && more="--ctx 800 --turns 2"
    ./scbench probe "$dir/model.bin" --what $what --out "$dir/$what.csv" $more 2>"$dir/said" ||
        fail "probe $what: $(cat "$dir/said")"
    [ "$(wc -l <"$dir/$what.csv")" -gt 4 ] || fail "probe $what wrote $(wc -l <"$dir/$what.csv") lines"
    plot probe "$dir/$what.csv" "$dir/$what.svg" || fail "probe $what: no figure"
    drawn "$dir/$what.svg"
done
refused "no output of scbench probe" probe "$dir/all.csv" "$dir/x.png"
# the whole way of a sweep: every method at five shares in both modes, a panel per turn
said=$(OMP_NUM_THREADS=1 test/sweep.sh "$dir/model.bin" "$dir/sweep" --ctx 1100 --sessions 1 --turns 2 --max-new 1 \
    --quiet 2>&1) || fail "sweep.sh: $(echo "$said" | tail -n 1)"
drawn "$dir/sweep/sweep.png"
[ "$(grep -c '"arm": "h2o keep 0.03125"' "$dir/sweep/results.jsonl")" = 4 ] || fail "the sweep lacks h2o at 1/32"
cp "$dir/sweep/results.jsonl" "$dir/whole"
said=$(test/sweep.sh "$dir/model.bin" "$dir/sweep" --ctx 1100 --sessions 1 --turns 2 --max-new 1 --quiet 2>&1) &&
    cmp -s "$dir/whole" "$dir/sweep/results.jsonl" || fail "a whole sweep does not go on: $said"
for bad in "--what nothing --text $dir/text" "--what sparsity" "--what attention --text $dir/text" \
           "--what sparsity --text $dir/none" "--what sparsity --text $dir/text --ctx 100000"; do
    ./scbench probe "$dir/model.bin" --out "$dir/x.csv" $bad 2>"$dir/said" && fail "probe took $bad"
    [ "$(wc -l <"$dir/said")" = 1 ] || fail "probe $bad says $(cat "$dir/said")"
done
echo "all figures drawn"
