#!/usr/bin/env python3
"""check_plan.py - the bytes that `scbench plan --shape` prints for full, against arithmetic written
down here from the shapes of the papers' models. With --md it prints the table of the README.

A packed bf16 matrix (n, k) takes ceil(n / 32) ceil(k / 32) blocks of 2 KB; embeddings that are not
also the head stay in the file; vectors are fp32. A row of one KV head is K, V (bf16) and a 4-byte
position; a context holds ctx + 80 rows per KV head. Recurrent state is there twice, once for a mark.
"""
import re
import subprocess
import sys

LATER = 80          # tokens after the first feed, the command's default
DENSE = {           # V, E, F, L, H, G, hd, rotary width, bias, tied
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3, 64, 64, 0, 1),
    "llama2-7b": (32000, 4096, 11008, 32, 32, 32, 128, 128, 0, 0),
    "llama3-8b-262k": (128256, 4096, 14336, 32, 32, 8, 128, 128, 0, 0),
    "llama3.1-8b": (128256, 4096, 14336, 32, 32, 8, 128, 128, 0, 0),
    "llama3.1-70b": (128256, 8192, 28672, 80, 64, 8, 128, 128, 0, 0),
    "mistral-7b": (32000, 4096, 14336, 32, 32, 8, 128, 128, 0, 0),
    "qwen2.5-0.5b": (151936, 896, 4864, 24, 14, 2, 64, 64, 1, 1),
    "qwen2.5-7b": (152064, 3584, 18944, 28, 28, 4, 128, 128, 1, 0),
    "qwen2.5-32b": (152064, 5120, 27648, 64, 40, 8, 128, 128, 1, 0),
    "qwen2.5-72b": (152064, 8192, 29568, 80, 64, 8, 128, 128, 1, 0),
    "glm-4-9b-1m": (151552, 4096, 13696, 40, 32, 4, 128, 64, 1, 0),
}
CODESTRAL = {"V": 32768, "E": 4096, "L": 64, "D": 8192, "N": 128, "J": 128, "groups": 8, "K": 4}
JAMBA = {"jamba-1.5-mini": (4096, 14336, 32, 32, 256), "jamba-1.5-large": (8192, 24576, 72, 64, 512)}


def matrix(n, k):
    return -(-n // 32) * -(-k // 32) * 2048


def vector(n):
    return -(-4 * n // 64) * 64


def dense(V, E, F, L, H, G, hd, R, bias, tied):
    """bytes of weights, of a token's rows, of the recurrent state; width of the residual stream,
    rotary width, bytes of a packed row of all KV heads"""
    q, kv = H * hd, G * hd
    layer = 2 * vector(E) + matrix(q, E) + 2 * matrix(kv, E) + matrix(E, q)
    layer += 2 * matrix(F, E) + matrix(E, F) + bias * (vector(q) + 2 * vector(kv))
    return L * layer + vector(E) + matrix(V, E), L * G * (4 * hd + 4), 0, E, R, G * 4 * hd


def codestral(V, E, L, D, N, J, groups, K):
    X = D + 2 * groups * N
    layer = vector(E) + matrix(D, E) + matrix(X, E) + matrix(J, E) + vector(K * X) + vector(X)
    layer += 3 * vector(J) + vector(D) + matrix(E, D)
    # 3 inputs of the convolution, S, and up to 64 rows of x B C (bf16) and dt since it was advanced
    state = 4 * (K - 1) * X + 4 * D * N + 64 * (2 * X + 4 * J)
    return L * layer + vector(E) + matrix(V, E), 0, L * state, E, 0, 0


def jamba(E, F, L, H, R):
    V, G, hd, D, N, K, experts = 65536, 8, 128, 2 * E, 16, 4, 16
    attends, routes = L // 8, L // 2
    attention = matrix(H * hd, E) + 2 * matrix(G * hd, E) + matrix(E, H * hd)
    mixer = 2 * matrix(D, E) + vector(K * D) + vector(D) + matrix(R + 2 * N, D) + vector(R)
    mixer += 2 * vector(N) + matrix(D, R) + vector(D) + vector(N * D) + vector(D) + matrix(E, D)
    ffn = 2 * matrix(F, E) + matrix(E, F)
    total = attends * attention + (L - attends) * mixer + 2 * L * vector(E)
    total += (L - routes) * ffn + routes * (experts * ffn + matrix(experts, E))
    state = (L - attends) * 4 * (K - 1 + N) * D
    return total + vector(E) + matrix(V, E), attends * G * (4 * hd + 4), state, E, 0, G * 4 * hd


EXPECTED = {**{name: dense(*shape) for name, shape in DENSE.items()},
            "mamba-codestral-7b": codestral(**CODESTRAL),
            **{name: jamba(*shape) for name, shape in JAMBA.items()}}


def plan(name, ctx):
    """column -> MB, as printed"""
    r = subprocess.run(["./scbench", "plan", "--shape", name, "--ctx", str(ctx)],
                       capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"scbench plan --shape {name} --ctx {ctx}: {r.stderr}")
    lines = r.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("MB"))
    columns = re.findall(r"\w+", lines[at])[1:]
    return dict(zip(columns, map(float, lines[at + 1].split()[1:])))


def differences(name, ctx, p):
    weights, row, state, E, R, packed = EXPECTED[name]
    want = {"weights": weights / 1e6, "KV": (row * (ctx + LATER) + 2 * state) / 1e6}
    for key, mb in want.items():
        if abs(p[key] - mb) > 0.0051:
            yield f"{name}, {ctx} tokens: {key} {p[key]} MB, expected {mb:.2f}"
    # residual stream, cos and sin of every position, one layer's keys and values packed
    scratch = ctx * (4 * E + 4 * R + packed) / 1e6
    if not scratch <= p["scratch"] <= 1.1 * scratch + 400:
        yield f"{name}, {ctx} tokens: scratch {p['scratch']} MB, its main parts are {scratch:.2f}"
    if abs(sum(v for k, v in p.items() if k != "total") - p["total"]) > 0.03:
        yield f"{name}, {ctx} tokens: {p} does not add up"


def gb(mb):
    return f"{mb / 1e3:.1f}" if mb < 1e5 else f"{mb / 1e3:.0f}"


def main(markdown):
    wrong = []
    if markdown:
        print("| shape | weights | KV per token | full, 4K | 128K | 1M |\n|---|---|---|---|---|---|")
    for name in EXPECTED:
        plans = {ctx: plan(name, ctx) for ctx in
                 ((4096, 131072, 1048576) if markdown else (131072,))}
        for ctx, p in plans.items():
            wrong += differences(name, ctx, p)
        if markdown:
            print(f"| {name} | {gb(plans[4096]['weights'])} GB | {EXPECTED[name][1]:,} B | " +
                  " | ".join(f"{gb(p['total'])} GB" for p in plans.values()) + " |")
    if not markdown:
        for ctx in (4096, 1048576):
            wrong += differences("glm-4-9b-1m", ctx, plan("glm-4-9b-1m", ctx))
    print("\n".join(wrong) or f"{len(EXPECTED)} shapes agree", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main("--md" in sys.argv))
