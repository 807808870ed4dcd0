#!/usr/bin/env bash
# demo_smollm2.sh - from a fresh clone to a table of scores of a real model: installs what is missing,
# builds, gets SmolLM2-135M and runs the main job on it. A second call starts the run at once.
set -u
cd "$(dirname "$0")/.." || exit 1

step() {
    "$@"
    local rc=$?
    [ $rc = 77 ] && exit 1
    [ $rc = 0 ] || exit $rc
}

step test/deps.sh
step make --no-print-directory -s -j"$(nproc)"
step test/smollm2.sh
# a file of that name that somebody put there is not ours to replace
[ -f smollm2_135m.bin ] && [ ! -L smollm2_135m.bin ] || ln -sfn .cache/smollm2_135m.bin smollm2_135m.bin

set -- ./scbench smollm2_135m.bin --task retr_kv --method full,keep-last,streamingllm,corm \
       --mode multi-turn,multi-request --sessions 4 --ctx 2048
echo "$*"
exec "$@"
