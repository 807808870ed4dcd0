#!/usr/bin/env bash
# run_smollm2.sh - the real model against the reference (data/goldens/README.md): ids of 344 texts,
# and greedy answers in fp32, the first 8 tokens of each; all 200 with SOAK=1, which takes minutes.
set -u
cd "$(dirname "$0")/.." || exit 1
test/smollm2.sh || exit $?
make -s run || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

gguf=.cache/SmolLM2-135M-Instruct.Q4_1.gguf
.venv/bin/python export.py $gguf "$tmp/f32.bin" --dtype f32 || exit 1
.venv/bin/python - "$tmp" <<'EOF'
import json
import os
import subprocess
import sys

tmp, failures = sys.argv[1], 0
model = tmp + "/f32.bin"


def run(*args):
    r = subprocess.run(["./run", model, *args], capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"./run {' '.join(args)}: exit {r.returncode}: {r.stderr}")
    return r.stdout


with open("data/goldens/smollm2_encode.jsonl", encoding="utf-8") as f:
    rows = [json.loads(line) for line in f]
with open(tmp + "/texts.jsonl", "w", encoding="utf-8") as f:
    f.writelines(json.dumps(row["text"]) + "\n" for row in rows)
lines = run("--encode-jsonl", tmp + "/texts.jsonl").splitlines()
assert len(lines) == len(rows) >= 300, f"{len(lines)} lines for {len(rows)} texts"
for row, line in zip(rows, lines):
    if json.loads(line) != row["ids"]:
        failures += 1
        print(f"encode {row['text']!r}: {line}, the reference has {row['ids']}")

STOP = 2
with open("data/goldens/smollm2_greedy.json", encoding="utf-8") as f:
    prompts = json.load(f)
for row in prompts:
    if os.environ.get("SOAK") != "1":
        row["new_ids"] = row["new_ids"][:8]
    done = []
    while len(done) < len(row["new_ids"]):      # a stop id ends a run, the golden goes on after it
        rest = row["new_ids"][len(done):]
        want = rest[:rest.index(STOP)] if STOP in rest else rest
        if want:
            with open(tmp + "/ids", "w") as f:
                f.write(" ".join(map(str, row["prompt_ids"] + done)))
            got = [int(i) for i in run("--ids", tmp + "/ids", "-n", str(len(rest))).split()]
            if got != want:
                failures += 1
                at = sum(1 for i in range(len(want)) if got[:i + 1] == want[:i + 1])
                print(f"greedy, {row['prompt'][-60:]!r}: new token {len(done) + at} is "
                      f"{got[at:at + 3]}, the reference has {want[at:at + 3]}")
                break
        done += rest[:len(want) + 1]
print(f"{len(rows)} texts, {len(prompts)} prompts, {failures} differ")
sys.exit(failures != 0)
EOF
