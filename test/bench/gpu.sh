#!/usr/bin/env bash
# gpu.sh - the figures of a GPU: prefill and steps of the papers' shapes against ceilings measured in
# the same rounds, sparse prefill against dense, attention against PyTorch's where that is installed.
#
#   test/bench/gpu.sh [MEGABYTES]   of GPU memory; shapes that need more are left out
set -u
cd "$(dirname "$0")/../.." || exit 1
program=build/cuda/scbench
[ -x $program ] || { echo "gpu: make CUDA=1 all tests comes first" >&2; exit 1; }
have=${1:-$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)}

# speed SHAPE CONTEXT OPTIONS...: medians of three rounds, or why there are none
speed() {
    local shape=$1 ctx=$2
    shift 2
    echo "== $shape, $ctx tokens $*"
    $program speed --device cuda --shape "$shape" --ctx "$ctx" --n-decode 32 --rounds 3 "$@" 2>&1
    echo
}
for ctx in 4096 32768 131072; do speed llama3.1-8b $ctx; done
for ctx in 32768 131072; do
    for method in a-shape minference; do speed llama3.1-8b $ctx --method $method; done
done
speed mamba-codestral-7b 4096
speed mamba-codestral-7b 32768
if [ "$have" -ge 120000 ]; then speed jamba-1.5-mini 32768
else echo "== jamba-1.5-mini: its 104 GB of weights do not fit $have MB"; fi

echo "== attention of 32 query heads on 8 KV heads of 128 channels"
TWIN_TIME=1 build/cuda/cuda/test_attention | awk -F '\t' '
    { printf "%-24s %9.3f ms", $2, $1 }
    $2 ~ /causal/ { n = $2 + 0; printf "  %.0f TF/s", 4 * 32 * 128 * n * (n + 1) / 2 / $1 / 1e9 }
    { print "" }'
for python in .venv/bin/python python3; do
    "$python" -c 'import torch; torch.cuda.current_device()' 2>/dev/null && break
    python=
done
[ -n "$python" ] || { echo "no PyTorch here to hold it against"; exit 0; }
"$python" - <<'END'
import torch
import torch.nn.functional as F

n = 16384
q = torch.randn(1, 32, n, 128, device="cuda", dtype=torch.bfloat16)
k, v = (torch.randn(1, 8, n, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
best = float("inf")
for _ in range(20):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    end.record()
    end.synchronize()
    best = min(best, start.elapsed_time(end))
rate = 4 * 32 * 128 * n * (n + 1) / 2 / best / 1e9
print(f"{'PyTorch, ' + str(n) + ' causal rows':<24} {best:9.3f} ms  {rate:.0f} TF/s")
END
