#!/usr/bin/env bash
# run_speed.sh - scbench speed on the small shipped model: what it measured of bytes against the plan
# and against what the method keeps; options that it must refuse. No time is judged.
set -u
cd "$(dirname "$0")/.." || exit 1
make -s scbench || exit 1
command -v python3 >/dev/null || { echo "there is no Python 3"; exit 77; }
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
model=data/tiny_llama.bin
export OMP_WAIT_POLICY=passive
fail() { echo "$*"; exit 1; }

speed() { # NAME OPTIONS: NAME.json
    ./scbench speed $model --ctx 900 --n-decode 6 --rounds 2 --json "${@:2}" > "$tmp/$1.json" ||
        fail "speed ${*:2} fails"
}
refuse() { # WORDS OPTIONS
    ./scbench speed "${@:2}" > /dev/null 2> "$tmp/err" && fail "speed ${*:2} is not refused"
    grep -q -- "$1" "$tmp/err" || fail "speed ${*:2} says: $(cat "$tmp/err")"
}

speed full
speed batch --batch 4
speed snapkv --method snapkv --budget 128
speed stream --method streamingllm --set streamingllm.sinks=4 --set streamingllm.recent=60
speed quest --method quest --budget 64 --batch 2
./scbench speed $model --ctx 300 --n-decode 2 --rounds 1 --batch 2 > "$tmp/text" || fail "no text"
grep -q '^peak .* planned .* resident$' "$tmp/text" || fail "no peak in the text"
grep -q 'one by one: together' "$tmp/text" || fail "no batch in the text"

refuse 'give either' $model --shape smollm2-135m
refuse 'give either' --ctx 10
refuse 'batch wants' $model --batch 0
refuse 'batch wants' $model --batch 65
refuse 'rounds wants' $model --rounds 10
refuse 'acts on no method' $model --method full --set snapkv.window=3
refuse 'did you mean' $model --method snapvk
refuse 'more than the model' $model --ctx 1000000

python3 - "$tmp" <<'END' || fail "the figures do not fit"
import json, sys
def read(name): return json.load(open(f"{sys.argv[1]}/{name}.json"))
full, batch, snap, stream, quest = map(read, ["full", "batch", "snapkv", "stream", "quest"])
for r in (full, batch, snap, stream, quest):
    off = r["peak_bytes"] / r["plan_bytes"] - 1
    assert abs(off) <= 0.03, f"{r['method']} x {r['batch']}: measured {r['peak_bytes']}, planned {r['plan_bytes']}"
    assert r["resident_bytes"] > r["peak_bytes"] / 2 and r["step_s"] > 0 and r["rounds"] == 2
    assert all(p["seconds"] >= 0 for p in r["phases"])
assert full["rows_mean"] == 900 and snap["rows_mean"] == 128 and stream["rows_mean"] == 64
assert quest["rows_mean"] == 900 and stream["params"]["sinks"] == 4
assert snap["kv_live_bytes"] * 900 == full["kv_live_bytes"] * 128
assert snap["peak_bytes"] < full["peak_bytes"] < batch["peak_bytes"]
def bytes_of(r): return next(p["bytes"] for p in r["phases"] if p["phase"] == "decode attention")
# panels of 512 entries: 512 shared rows are read once, what is behind them by each branch
assert bytes_of(batch) < 4 * bytes_of(full) and bytes_of(batch) > bytes_of(full)
END
echo "speed: ok"
