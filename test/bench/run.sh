#!/usr/bin/env bash
# make bench: speed against ceilings measured in the same rounds, and the price of the fixed order.
set -eu
cd "$(dirname "$0")/../.."
for ctx in 2048 8000; do ./scbench speed --shape smollm2-135m --ctx "$ctx"; echo; done
"$1"
