#!/usr/bin/env bash
# try.sh NAME (make try K=NAME): the loop for work on one kernel. Rebuilds and runs
# test/cuda/test_NAME.cu, first in the emulation, then, where a GPU is, on it; and times it there at
# the sizes the test names, beside the committed version, in three rounds that alternate.
set -u
cd "$(dirname "$0")/.." || exit 1
name=${1:-}
if [ ! -f "test/cuda/test_$name.cu" ]; then
    names=$(cd test/cuda && echo test_*.cu | sed 's/test_//g; s/\.cu//g')
    echo "make try K=NAME: there is no test/cuda/test_$name.cu; NAME is one of: $names"
    exit 2
fi
export MAKEFLAGS=--no-print-directory
emulated=build/emu/cuda/test_$name device=build/cuda/cuda/test_$name
make -s "$emulated" && "$emulated" || exit 1
if ! test/gpu.sh; then
    echo "nothing was timed: that takes a GPU and nvcc"
    exit 0
fi
make -s CUDA=1 "$device" && "$device" || exit 1

tmp=$(mktemp -d)
trap 'git worktree remove --force "$tmp/committed" 2>/dev/null; rm -rf "$tmp"' EXIT
git worktree add -q --detach "$tmp/committed" HEAD || exit 1
if ! make -s -C "$tmp/committed" CUDA=1 "$device" >"$tmp/said" 2>&1; then
    echo "the committed version has no such test, or does not build: these are this one's times"
    TWIN_TIME=1 "$device"
    exit
fi
for round in 1 2 3; do
    (cd "$tmp/committed" && TWIN_TIME=1 "$device") >>"$tmp/before" || exit 1
    TWIN_TIME=1 "$device" >>"$tmp/now" || exit 1
done
# "milliseconds label" a line: the least of the rounds, in the order of the test
awk -F'\t' 'function least(t, k, v) { if (!(k in t) || v < t[k]) t[k] = v }
            NR == FNR { least(before, $2, $1); next }
            { if (!($2 in now)) order[n++] = $2; least(now, $2, $1) }
            END { printf "%-32s %12s %12s %8s\n", "", "committed ms", "now ms", "faster"
                  for (i = 0; i < n; i++) {
                      k = order[i]
                      if (k in before)
                          printf "%-32s %12.4f %12.4f %7.2fx\n", k, before[k], now[k],
                                 before[k] / now[k]
                      else printf "%-32s %12s %12.4f\n", k, "-", now[k]
                  } }' "$tmp/before" "$tmp/now"
