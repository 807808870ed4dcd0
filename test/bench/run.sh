#!/usr/bin/env bash
# make bench: speed against ceilings measured in the same rounds, the price of the fixed order, and
# sparse against dense attention.
set -eu
cd "$(dirname "$0")/../.."
for ctx in 2048 8000; do ./scbench speed --shape smollm2-135m --ctx "$ctx"; echo; done
"$1"
echo
"$2"
if test/gpu.sh; then
    make -s -j"$(nproc)" CUDA=1 all tests
    echo
    test/bench/gpu.sh
fi
