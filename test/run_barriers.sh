#!/usr/bin/env bash
# run_barriers.sh - every barrier of every kernel is needed, and were it missing, the tests would
# say so: each __syncthreads and __syncwarp that the emulated tests of test/cuda pass is made to
# order nothing, one at a time, and then one of the tests that pass it must fail. Tests of whole
# models take too long for that and pass no barrier that a kernel's own test does not.
set -u
cd "$(dirname "$0")/.." || exit 1
export MAKEFLAGS=--no-print-directory
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
tests=()
for source in $(grep -L 'model_open\|model_random\|models\.h' test/cuda/test_*.cu); do
    name=build/emu/cuda/$(basename "$source" .cu)
    make -s "$name" >"$tmp/said" 2>&1 || { cat "$tmp/said"; exit 1; }
    [ "$name.barriers" -nt "$name" ] || "$name" >"$tmp/said" 2>&1 || { cat "$tmp/said"; exit 1; }
    tests+=("$name")
done

# one FILE:LINE: prints the barrier when no test misses it
missed() {
    for name in "${tests[@]}"; do
        grep -qxF "$1" "$name.barriers" || continue
        EMU_IGNORE=$1 timeout 300 "$name" >/dev/null 2>&1
        [ $? = 1 ] && return 0
    done
    echo "    $1:$(sed -n "${1##*:}p" "${1%:*}")"
}
n=0
for barrier in $(sort -u "${tests[@]/%/.barriers}" | grep -v '^test/'); do
    missed "$barrier" >>"$tmp/needless"
    n=$((n + 1))
done
if [ -s "$tmp/needless" ]; then
    echo "barriers that no test misses: either nothing needs them, or a test is too small"
    cat "$tmp/needless"
    exit 1
fi
echo "$n barriers; each one was missed by a test when it ordered nothing"
